"""The rows of `course bench speed` are there, compare like with like, and add up. Nothing here is timed."""

import json
import math

import pytest
import torch

from course import presets
from course.errors import UsageError
from course.evaluation import beside, faster, machine, scaling, speed, speed_tables
from course.training import flops

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

SLOW_MACHINE = machine.Machine("cpu", "a test", 1, torch.__version__, "float32", 1e9, 1e9, 0.0)


@pytest.fixture(scope="module")
def subject():
    return speed.Subject("course", SLOW_MACHINE)


@pytest.mark.parametrize("name", ["U-Net forward, batch 1", "training step", "VAE encode", "VAE decode", "text encoder",
                                  "20 steps, guided, batch 1"])
def test_both_answer_the_same(subject, name):
    make = dict(subject.cases(compile=False))[name]
    row = speed.measure(make(), SLOW_MACHINE, "course", 1)
    assert row["equal"] and row["error"] < 1e-5, row
    assert row["floor_ms"] > 0 and row["ours_ms"] > 0 and row["ratio"] == pytest.approx(row["theirs_ms"] / row["ours_ms"])
    assert row["ratio_low"] <= row["ratio_high"]


def test_gates_of_a_gpu_are_its_own_and_half_precision_is_counted():
    gpu = machine.Machine("cuda", "NVIDIA H200", 1, "", "bfloat16", 1e12, 1e12, 0.0)
    assert speed.gate_of(speed.Case("U-Net forward, compiled", 2, None, {}), gpu, "sd15") == (1.05, 1.2)
    assert speed.gate_of(speed.Case("U-Net forward, batch 1", 1, None, {}), gpu, "sd15") == (None, None)
    assert speed.gate_of(speed.Case("U-Net forward, compiled", 1, None, {}), SLOW_MACHINE, "sd15") == (1.0, None)
    half = speed.Subject("course", machine.Machine("cpu", "", 1, "", "bfloat16", 1e12, 1e12, 0.0))
    row = speed.measure(half.forward(1), half.machine, "course", 1)
    assert row["equal"] and row["gflop"] > 0


def test_a_difference_is_seen(subject):
    make = dict(subject.cases(compile=False))["VAE decode"]
    case = make()
    wrong = speed.Case(case.name, 1, lambda: case.ours() * 1.001, case.theirs, case.flops, case.bytes)
    row = speed.measure(wrong, SLOW_MACHINE, "course", 1)
    assert not row["equal"] and 1e-4 < row["error"] < 1e-2


def test_theirs_has_every_weight_and_every_norm_of_ours(subject):
    for ours, theirs in ((subject.unet, beside.unet(subject.unet)), (subject.vae, beside.vae(subject.vae))):
        own, other = ours.state_dict(), theirs.state_dict()
        assert own.keys() == other.keys() and all(own[n].data_ptr() == other[n].data_ptr() for n in own)
        groups = [[m.num_groups for _, m in sorted(net.named_modules()) if isinstance(m, torch.nn.GroupNorm)]
                  for net in (ours, theirs)]
        assert groups[0] == groups[1] and len(set(groups[0])) > 0


def test_released_sizes_are_those_of_diffusers():
    """On the meta device, where a network of any size costs nothing."""
    for name in ("sd15", "sdxl-base"):
        with torch.device("meta"):
            ours = presets.build(name)
        theirs = beside.unet(ours)
        assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


def test_floor_is_the_longer_of_two():
    found = machine.Machine("cpu", "", 1, "", "float32", flops=100.0, bandwidth=10.0, load=0.0)
    assert found.floor(200, 10) == 2.0 and found.floor(100, 50) == 5.0


def test_the_machine_can_multiply_and_copy():
    found = machine.measure("cpu", seconds=0.01)
    assert found.flops > 1e8 and found.bandwidth > 1e8 and json.dumps(found.as_dict())


def test_operations_of_sd15_by_the_one_convention():
    with torch.device("meta"):
        net = presets.build("sd15")
        counted = flops.forward(net, torch.empty(1, 4, 64, 64), 500.0, torch.empty(1, 77, 768))
    assert abs(counted / 2 / 1e9 - 401.6) < 1


def test_share_of_the_peak_is_for_gpus_that_are_known():
    case = speed.Case("", 1, None, {}, flops=989e12)
    found = [machine.Machine(device, name, 1, "", "bfloat16", 1.0, 1.0, 0.0) for device, name in
             (("cuda", "NVIDIA H100 80GB HBM3"), ("cuda", "another"), ("cpu", "EPYC"))]
    assert [speed.mfu(case, m, 4.0) for m in found] == [0.25, None, None]


def test_turns_are_taken_and_filled():
    order = []
    times = speed.in_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, turn=0.0)
    assert order == ["a", "b"] * 5 and all(len(t) == 3 for t in times.values())


def test_rows_are_chosen_by_name_and_misuse_is_said():
    with pytest.raises(UsageError, match="sd14"):
        speed.run(SLOW_MACHINE, "sd14")
    with pytest.raises(UsageError, match="text encoder"):
        speed.run(SLOW_MACHINE, "course", only="no such row")
    rows = speed.run(SLOW_MACHINE, "course", rounds=1, only="text")
    assert [row["name"] for row in rows] == ["text encoder, a prompt and none"]


def test_gates_are_for_one_picture_and_for_a_training_batch(subject):
    make = dict(subject.cases(compile=False))
    assert speed.measure(make["U-Net forward, batch 1"](), SLOW_MACHINE, "course", 1)["gate"] == 1.3
    assert speed.measure(make["U-Net forward, batch 16"](), SLOW_MACHINE, "course", 1)["gate"] is None
    assert speed.measure(make["training step"](), SLOW_MACHINE, "course", 1)["gate"] == 1.15


def test_approximations_are_counted_by_the_oracle():
    ways = (faster.Way("exact", {"steps": 2}), faster.Way("kept", {"steps": 2, "deep_cache": 2}),
            faster.Way("distilled", {"steps": 2}, "scenes64-fast"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faster, "EXACT", ways[0])
        rows = faster.run(SLOW_MACHINE, prompts=8, rounds=1, ways=ways)
    assert [row["name"] for row in rows] == ["exact", "kept", "distilled"]
    assert rows[0]["times_exact"] == 1 and rows[0]["lost"] == 0
    assert all(row["lost"] == rows[0]["right"] - row["right"] and row["times_diffusers"] > 0 for row in rows)


def test_an_exponent_is_a_slope():
    assert math.isclose(scaling.exponent((1, 2, 4, 8), [3 * n**1.7 for n in (1, 2, 4, 8)]), 1.7)


def test_counted_exponents_are_what_theory_says():
    """Side: between 2 and 4. Batch: 1. Width: below 2, since attention between places grows with the width only once."""
    small = tuple(scaling.Axis(a.name, a.sizes[:2], a.limit, a.change) for a in scaling.AXES)
    rows = {row["axis"]: row for row in scaling.run(SLOW_MACHINE, rounds=1, axes=small)}
    assert 2 < rows["side of the latent"]["counted"] < 4 and math.isclose(rows["batch"]["counted"], 1)
    assert 1 < rows["width"]["counted"] < 2 and 0 < rows["tokens of text"]["counted"] < 1
    counts = [scaling.call(SLOW_MACHINE, words=n)[1] for n in (10, 20, 30)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0  # a straight line in the length of the text


def test_tables_say_what_was_measured():
    rows = [{"name": "U-Net forward, batch 1", "size": "course", "batch": 1, "ours_ms": 10.0, "theirs_ms": 13.0,
             "their_layout": "channels_last", "ratio": 1.3, "ratio_low": 1.2, "ratio_high": 1.4, "rounds": 3, "floor_ms": 2.0,
             "of_floor": 0.2, "gflop": 1.0, "error": 2e-3, "equal": False, "gate": 1.3, "aim": 1.6, "note": ""}]
    ways = [{"name": "exact", "ms": 9.0, "times_exact": 1.0, "times_diffusers": 1.2, "right": 0.9, "lost": 0.0, "prompts": 8}]
    starts = [{"name": "import course", "seconds": 0.05, "allowed": 0.3, "theirs_seconds": None}]
    from rich.console import Console
    console = Console(width=240, record=True, quiet=False, file=open("/dev/null", "w"))
    for table in speed_tables.tables(SLOW_MACHINE, rows, ways, starts):
        console.print(table)
    said = console.export_text()
    for part in ("1.30", "DIFFERS", "not measured on a GPU", "channels_last", "90.0 %", "0.05", "20 %", "1 GFLOP/s"):
        assert part in said, part


def test_the_commands_print_json(monkeypatch):
    from typer.testing import CliRunner

    from course import cli
    short = machine.measure
    monkeypatch.setattr(machine, "measure", lambda device, dtype=torch.float32: short(device, dtype, seconds=0.01))
    done = CliRunner().invoke(cli.app, ["bench", "speed", "--only", "text encoder", "--rounds", "1", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["rows"][0]["equal"] and told["machine"]["flops"] > 0 and told["approximate"] == []
    small = tuple(scaling.Axis(a.name, a.sizes[:2], a.limit, a.change) for a in scaling.AXES[1:2])
    monkeypatch.setattr(scaling, "AXES", small)
    done = CliRunner().invoke(cli.app, ["bench", "scaling", "--rounds", "1", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["rows"][0]["counted"] == pytest.approx(1)
    done = CliRunner().invoke(cli.app, ["bench", "scaling", "--rounds", "1"])
    assert done.exit_code == 0 and "batch" in done.stdout
    assert isinstance(CliRunner().invoke(cli.app, ["bench", "speed", "--rounds", "0"]).exception, UsageError)
