"""Two processes, with whole weights or with shards, take the steps that one process takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course import files, schedule, text, unet
from course.training import diffusion, loop
from course.training.engine import EngineConfig

ROOT = Path(__file__).parents[2]
STEPS = 6


def train(folder: Path, stop_after: int | None = None, **engine) -> None:
    """A small text-to-image model on random latents and captions, in float64."""
    torch.manual_seed(0)
    config = unet.UNetConfig(block_channels=(32, 32), layers_per_block=1, depth=(0, 1), heads=(2, 2), context_dim=16)
    words = text.TextConfig(vocab_size=40, length=6, width=16, layers=1, heads=2, activation="gelu")
    model = diffusion.ConditionalDenoiser(unet.UNet(config), text.TextEncoder(words))
    mean, std, ids = torch.randn(32, 4, 8, 8).double(), torch.rand(32, 4, 8, 8).double(), torch.randint(40, (32, 2, 6))
    draw, calls = diffusion.latent_batches(mean, std, 0.7), 0

    def batches(chosen, step):
        nonlocal calls
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise KeyboardInterrupt
        return draw(chosen, step)
    try:
        diffusion.train(model, batches, ids, torch.zeros(6, dtype=torch.int64), schedule.NoiseSchedule(), folder,
                        loop.Budget(steps=STEPS), loop.LoopConfig(batch_size=8, lr=1e-3, warmup_images=16), quiet=True,
                        engine=EngineConfig(precision="fp64", **engine))
    except KeyboardInterrupt:
        pass


def by_two(folder: Path, arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__,
               str(folder), arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


def weights(folder: Path) -> dict:
    tensors, metadata = files.load_tensors(folder / "checkpoint.safetensors")
    assert metadata["state"]["step"] == STEPS
    return {n: t for n, t in tensors.items() if n.startswith(("model.", "average.", "optimiser."))}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("one")
    train(folder)
    return weights(folder)


def check(folder: Path, one: dict) -> None:
    found = weights(folder)
    assert found.keys() == one.keys()
    assert max((found[n] - one[n]).abs().max().item() for n in one) <= 1e-5


@pytest.mark.parametrize("arguments", ["micro_batch=2", pytest.param("", marks=pytest.mark.slow)])
def test_two_processes_equal_one(tmp_path, one, arguments):
    by_two(tmp_path, arguments)
    check(tmp_path, one)


on_a_cpu = pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on GPUs only")


@on_a_cpu
def test_sharded_then_resumed_by_one(tmp_path, one):
    """Three steps with the weights in two shards, the rest in one process."""
    by_two(tmp_path, "sharded=1,stop_after=3")
    assert files.load_tensors(tmp_path / "checkpoint.safetensors")[1]["state"]["step"] == 3
    train(tmp_path)
    check(tmp_path, one)


@on_a_cpu
@pytest.mark.slow
def test_begun_by_one_then_sharded(tmp_path, one):
    train(tmp_path, stop_after=3)
    by_two(tmp_path, "sharded=1")
    check(tmp_path, one)


def test_recomputing_changes_nothing(tmp_path, one):
    train(tmp_path, recompute=True)
    check(tmp_path, one)


if __name__ == "__main__":
    train(Path(sys.argv[1]), **{name: int(value) for name, _, value in (a.partition("=") for a in sys.argv[2].split(",") if a)})
