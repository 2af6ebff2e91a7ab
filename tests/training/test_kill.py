"""kill -9 at any moment, as often as you like: the run that goes on ends with the same bits. `make soak` kills twenty times."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from course import files
from course.training import loop
from tests.training.test_loop import CONFIG, make

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("COURSE_SOAK", "2"))
STEPS = 400 * KILLS


def train(folder: Path, slow: float = 0.0) -> None:
    def loss_of_batch(model, step):
        time.sleep(slow)                                       # so that a kill comes in the middle of the run
        return model(step.normal(3)).square().mean()
    model = torch.nn.Sequential(make(), torch.nn.Linear(1, 2_000))
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    loop.fit(model, loss_of_batch, CONFIG, loop.Budget(steps=STEPS), folder, quiet=True)


def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path):
    moments, killed = random.Random(0), 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    path = tmp_path / "killed" / "checkpoint.safetensors"
    while killed < KILLS:
        before, deadline = path.stat().st_mtime_ns if path.exists() else 0, time.time() + 60
        process = subprocess.Popen([sys.executable, __file__, str(path.parent)], env=environment)
        while (not path.exists() or path.stat().st_mtime_ns == before) and time.time() < deadline and process.poll() is None:
            time.sleep(0.005)                                  # until this process has saved for the first time
        time.sleep(moments.uniform(0.0, 0.5))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert killed or process.returncode, "the run ended before it could be killed"
    finished = subprocess.run([sys.executable, __file__, str(path.parent)], env=environment)
    assert finished.returncode == 0
    train(tmp_path / "whole")
    a, metadata = files.load_tensors(path)
    b, _ = files.load_tensors(tmp_path / "whole" / "checkpoint.safetensors")
    assert metadata["state"]["step"] == STEPS
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), slow=0.002)
