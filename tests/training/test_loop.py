"""Nothing is lost: resumed equals uninterrupted to the bit, and a kill at any moment leaves a whole file."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from course import files
from course.errors import CheckpointError, Terminated, TrainingError, UsageError
from course.training import loop
from course.training.engine import EngineConfig
from course.training.step import Step, generator

CONFIG = loop.LoopConfig(batch_size=4, lr=1e-2, warmup_images=8, seed=3, save_seconds=0.0)


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))


def loss_of_batch(model, step):
    x = step.normal(3).to(next(model.parameters()))
    return (model(x)[:, 0] - x.sum(1)).square().mean()


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Stop(KeyboardInterrupt):
    pass


def test_ctrl_c_waits_for_the_end_of_the_step(tmp_path):
    """A real SIGINT in the middle of a step: the step is finished, counted and saved, and resuming is still exact."""
    whole, before = make(), signal.getsignal(signal.SIGINT)    # a shell that starts pytest in the background ignores it
    loop.fit(whole, loss_of_batch, CONFIG, loop.Budget(steps=20), tmp_path / "a", quiet=True)
    calls = 0

    def signalled(model, step):
        nonlocal calls
        calls += 1
        if calls == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return loss_of_batch(model, step)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(make(), signalled, CONFIG, loop.Budget(steps=20), tmp_path / "b", quiet=True)
    assert files.load_tensors(tmp_path / "b" / "checkpoint.safetensors")[1]["state"]["step"] == 7
    resumed = make()
    loop.fit(resumed, loss_of_batch, CONFIG, loop.Budget(steps=20), tmp_path / "b", quiet=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_equals_uninterrupted_bit_for_bit(tmp_path):
    budget, whole = loop.Budget(steps=30), make()
    loop.fit(whole, loss_of_batch, CONFIG, budget, tmp_path / "a", quiet=True)
    for stop_at in (1, 13, 29):
        calls = 0

        def interrupted(model, step, stop_at=stop_at):
            nonlocal calls
            calls += 1
            if calls > stop_at:
                raise Stop
            return loss_of_batch(model, step)
        folder = tmp_path / f"b{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            loop.fit(make(), interrupted, CONFIG, budget, folder, quiet=True)
        resumed = make()
        state = loop.fit(resumed, loss_of_batch, CONFIG, budget, folder, quiet=True)
        assert state["step"] == 30 and state["images"] == 120
        assert torch.equal(weights(resumed), weights(whole))


def test_it_learns_and_ends_as_the_average(tmp_path):
    model = make()
    before = loss_of_batch(model, Step(9, 9, 4)).item()
    loop.fit(model, loss_of_batch, CONFIG, loop.Budget(steps=300), tmp_path, quiet=True)
    assert loss_of_batch(model, Step(9, 9, 4)).item() < 0.05 * before
    tensors, metadata = files.load_tensors(tmp_path / "checkpoint.safetensors")
    assert torch.equal(tensors["average.0.weight"], model[0].weight.detach())
    assert not torch.equal(tensors["average.0.weight"], tensors["model.0.weight"])
    assert metadata["state"]["step"] == 300


def test_average_has_the_half_life_in_images():
    config = loop.LoopConfig(batch_size=10, ema_halflife=100, ema_rampup=1e9)
    average, model = {"weight": torch.ones(1, 1)}, nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    for step in range(10):                                                      # 100 images
        loop.update_average(average, model, config, 10 * (step + 1))
    assert average["weight"].item() == pytest.approx(0.5, rel=1e-5)


def test_schedule_is_a_function_of_the_budget():
    c = loop.LoopConfig(batch_size=10, lr=1.0, warmup_images=100)
    assert loop.learning_rate(c, 0.0, 0) == pytest.approx(0.1)
    assert loop.learning_rate(c, 0.5, 10_000) == pytest.approx(0.5)
    assert loop.learning_rate(c, 1.0, 10_000) == pytest.approx(0.0)
    assert loop.Budget(minutes=2).used(999, 60.0) == 0.5 and loop.Budget(steps=10).used(5, 1e9) == 0.5


def test_time_budget_counts_the_seconds_of_earlier_runs(tmp_path):
    model = make()
    state = loop.fit(model, loss_of_batch, CONFIG, loop.Budget(minutes=0.02), tmp_path, quiet=True)
    assert 1.2 <= state["seconds"] < 6
    begun = time.perf_counter()
    again = loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(minutes=0.02), tmp_path, quiet=True)
    assert again["step"] == state["step"] and time.perf_counter() - begun < 1.0


def test_nan_stops_with_step_and_seed_and_keeps_the_last_good_state(tmp_path):
    def poisoned(model, step):
        value = loss_of_batch(model, step)
        return value * float("nan") if poisoned.calls == 5 else (setattr(poisoned, "calls", poisoned.calls + 1), value)[1]
    poisoned.calls = 0
    with pytest.raises(TrainingError, match=r"nan at step 5 \(seed 3"):
        loop.fit(make(), poisoned, CONFIG, loop.Budget(steps=10), tmp_path, quiet=True)
    assert files.load_tensors(tmp_path / "checkpoint.safetensors")[1]["state"]["step"] == 5


def test_other_settings_or_another_model_are_refused(tmp_path):
    loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=2), tmp_path, quiet=True)
    from dataclasses import replace
    with pytest.raises(CheckpointError, match="lr: 0.01 -> 0.5"):
        loop.fit(make(), loss_of_batch, replace(CONFIG, lr=0.5), loop.Budget(steps=4), tmp_path, quiet=True)
    other = nn.Sequential(nn.Linear(3, 9), nn.SiLU(), nn.Linear(9, 1))
    with pytest.raises(CheckpointError, match=r"0.weight has shape \(8, 3\), expected \(9, 3\)"):
        loop.fit(other, loss_of_batch, CONFIG, loop.Budget(steps=4), tmp_path, quiet=True)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    whole, resumed = make(), make()
    loop.fit(whole, loss_of_batch, CONFIG, loop.Budget(steps=12), tmp_path / "a", quiet=True)
    loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=6), tmp_path / "b", quiet=True)
    damage(tmp_path / "b" / "checkpoint.safetensors")
    with pytest.warns(UserWarning, match="damaged.*going on from checkpoint.before.safetensors, step 6"):
        loop.fit(resumed, loss_of_batch, CONFIG, loop.Budget(steps=12), tmp_path / "b", quiet=True)
    # the schedule of the first six steps knew another budget: equal only in kind
    assert torch.isfinite(weights(resumed)).all() and weights(resumed).shape == weights(whole).shape


def test_a_disk_without_hard_links_keeps_the_one_before_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError("this file system has none")
    monkeypatch.setattr("os.link", no_links)
    config = replace(CONFIG, save_seconds=0.0)
    loop.fit(make(), loss_of_batch, config, loop.Budget(steps=3), tmp_path, quiet=True)
    (_, now), (_, before) = (files.load_tensors(tmp_path / f"checkpoint{name}.safetensors") for name in ("", ".before"))
    assert now["state"]["step"] == 3 and before["state"]["step"] in (2, 3) and len(list(tmp_path.glob(".*.tmp"))) == 0


def test_two_damaged_checkpoints_are_explained(tmp_path):
    loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=2), tmp_path, quiet=True)
    for name in ("checkpoint.safetensors", "checkpoint.before.safetensors"):
        damage(tmp_path / name)
    with pytest.raises(CheckpointError, match="damaged"):
        loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=4), tmp_path, quiet=True)


def test_sigterm_saves_and_is_no_failure(tmp_path):
    calls = 0

    def signalled(model, step):
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss_of_batch(model, step)
    with pytest.raises(Terminated):
        loop.fit(make(), signalled, CONFIG, loop.Budget(steps=20), tmp_path, quiet=True)
    assert files.load_tensors(tmp_path / "checkpoint.safetensors")[1]["state"]["step"] == 5
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_full_disk_keeps_the_last_whole_checkpoint(tmp_path, monkeypatch):
    loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=5), tmp_path, quiet=True)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(number):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="cannot write .*No space left"):
        loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=9), tmp_path, quiet=True)
    monkeypatch.undo()
    kept = [p.read_bytes() for p in tmp_path.glob("checkpoint*.safetensors")]
    assert before in kept and not list(tmp_path.glob(".*.tmp"))
    assert loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=9), tmp_path, quiet=True)["step"] == 9


@pytest.mark.parametrize("fits, said", [(3, "4 samples at once; 2 fit"), (0, "a single sample")])
def test_out_of_memory_names_the_micro_batch_that_fits(tmp_path, fits, said):
    def hungry(model, step):
        if len(step) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_of_batch(model, step)
    with pytest.raises(TrainingError, match=said):
        loop.fit(make(), hungry, CONFIG, loop.Budget(steps=5), tmp_path, quiet=True)
    assert files.load_tensors(tmp_path / "checkpoint.safetensors")[1]["state"]["step"] == 0


def test_micro_batches_change_nothing(tmp_path):
    whole, pieces = make().double(), make().double()
    for model, micro_batch in ((whole, None), (pieces, 3)):
        loop.fit(model, loss_of_batch, CONFIG, loop.Budget(steps=20), tmp_path / str(micro_batch), quiet=True,
                 engine=EngineConfig(precision="fp64", micro_batch=micro_batch))
    assert (weights(whole) - weights(pieces)).abs().max() < 1e-9


def test_the_log_has_a_line_every_ten_steps_and_none_twice(tmp_path):
    import json
    loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=25), tmp_path, quiet=True)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 30, "loss": 1.0}\n{"step"')       # a killed run got further than its checkpoint
    loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=45), tmp_path, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40] and all(line["loss"] >= 0 for line in lines)


def test_tensorboard_shows_the_same_figures(tmp_path):
    import json
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=30), tmp_path, quiet=True, tensorboard=True)
    board = events.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(x["step"], pytest.approx(x["loss"], rel=1e-6)) for x in lines]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot write"):
        loop.fit(make(), loss_of_batch, CONFIG, loop.Budget(steps=1), tmp_path / "file" / "run", quiet=True)


@pytest.mark.parametrize("arguments", [{}, {"steps": 1, "minutes": 1}, {"steps": -1}, {"minutes": -0.5},
                                       {"minutes": float("nan")}])
def test_budget_misuse(arguments):
    with pytest.raises(UsageError, match="budget"):
        loop.Budget(**arguments)


KILLED = """
import sys, torch
sys.path.insert(0, {root!r})
from tests.training.test_loop import make, CONFIG
from course.training import loop
big = torch.nn.Sequential(make(), torch.nn.Linear(1, 400_000))       # a file that takes a while to write
def loss(model, step):
    return model(step.normal(3)).square().mean()
print("ready", flush=True)
loop.fit(big, loss, CONFIG, loop.Budget(steps=10_000), {folder!r}, quiet=True)
"""


@pytest.mark.parametrize("delay", [0.15, 0.4, 0.83])
def test_kill_nine_while_saving_leaves_a_whole_checkpoint(tmp_path, delay):
    """save_seconds = 0: the loop writes after every step, so a kill nearly always hits a write."""
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(root=root, folder=str(tmp_path))],
                               stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root})
    path = tmp_path / "checkpoint.safetensors"
    try:
        assert process.stdout.readline().strip() == "ready"
        deadline = time.time() + 60
        while not path.exists() and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    tensors, metadata = files.load_tensors(path)               # at no moment is the newest one missing
    assert metadata["state"]["step"] >= 1 and torch.isfinite(tensors["model.1.weight"]).all()


def test_step_generators_are_unrelated():
    draws = torch.stack([torch.randn(1000, generator=generator(s, k, i)) for s in (0, 1) for k in range(3) for i in (0, 1)])
    correlation = torch.corrcoef(draws) - torch.eye(12)
    assert correlation.abs().max() < 0.15


def test_who_watches_sees_the_average_and_costs_no_time(tmp_path):
    seen, model = [], make()

    def watch(state, average):
        seen.append((state["step"], {name: t.clone() for name, t in average.items()}))
        time.sleep(0.05)
    state = loop.fit(model, loss_of_batch, CONFIG, loop.Budget(steps=4), tmp_path, quiet=True, watch=watch)
    assert [step for step, _ in seen] == [1, 2, 3, 4] and state["seconds"] < 0.2
    assert all(torch.equal(seen[-1][1][name], p) for name, p in model.named_parameters())
