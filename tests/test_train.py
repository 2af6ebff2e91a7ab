"""`course train`, each kind for a second or two: what it leaves behind, and that the next stage can use it."""

import json

import pytest
import torch
from PIL import Image

from course import train
from course.errors import CheckpointError, UsageError
from course.pipeline import StableDiffusion
from course.train import Given
from course.training import recipes, saved
from course.training.engine import EngineConfig

SHORT = ["minutes=0.02", "data.pictures=64", "data.size=64", "prompts=4", "loop.batch_size=4"]


def run(kind, out, changes=(), preset="demo", **how):
    return train.run(recipes.find(kind, preset, [*SHORT, *changes]), out, EngineConfig(), quiet=True, **how)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    out = tmp_path_factory.mktemp("vae")
    run("vae", out)
    return out


def check_folder(out):
    for name in ("run.json", "checkpoint.safetensors", "log.jsonl", "metrics.json", "curves.png", "samples.png", "report.html"):
        assert (out / name).stat().st_size > 0 or name == "log.jsonl", name
    noted = json.loads((out / "run.json").read_text())
    assert len(noted["data_sha256"]) == 64 and noted["commit"] and noted["recipe"]["minutes"] == 0.02
    assert "<img" in (out / "report.html").read_text()


def test_vae(first_stage):
    check_folder(first_stage)
    metrics = json.loads((first_stage / "metrics.json").read_text())
    vae = saved.autoencoder(first_stage)
    assert vae.scaling_factor == metrics["scaling_factor"] > 0 and metrics["psnr"] > 0 and "all" in metrics["oracle"]


def test_latent_diffusion_on_it(first_stage, tmp_path):
    metrics = run("ldm", tmp_path / "ldm", given=Given(str(first_stage)))
    check_folder(tmp_path / "ldm")
    assert metrics["kind"] == "ldm" and metrics["images_seen"] > 0
    picture, = StableDiffusion.load(tmp_path / "ldm").generate("a small red ring", steps=2, seed=0)
    assert picture.size == (64, 64)


def test_beginning_with_the_weights_of_another_run(first_stage, tmp_path):
    run("ldm", tmp_path / "first", given=Given(str(first_stage)))
    given = Given(str(first_stage), start=str(tmp_path / "first"))
    run("ldm", tmp_path / "second", ["loop.lr=0.0", "seed=1"], given=given)
    a, b = (StableDiffusion.load(tmp_path / name) for name in ("first", "second"))
    assert all(torch.equal(p, q) for p, q in zip(a.unet.parameters(), b.unet.parameters(), strict=True))
    assert a.tokenizer.encode("a small red ring") == b.tokenizer.encode("a small red ring")
    run("ldm", tmp_path / "third", ["loop.lr=1e-2"], given=given)
    c = StableDiffusion.load(tmp_path / "third")
    assert not all(torch.equal(p, q) for p, q in zip(a.unet.parameters(), c.unet.parameters(), strict=True))
    with pytest.raises(UsageError, match="is no run"):
        run("ldm", tmp_path / "fourth", given=Given(str(first_stage), start=str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match="checkpoint.safetensors"):
        run("vae", tmp_path / "fifth", given=Given(start=str(tmp_path / "first")))


def test_codebook_and_latent_diffusion_on_it(tmp_path):
    metrics = run("vq", tmp_path / "vq")
    assert metrics["scaling_factor"] > 0
    run("ldm", tmp_path / "ldm", given=Given(str(tmp_path / "vq")))
    assert StableDiffusion.load(tmp_path / "ldm").generate("a ring", steps=1, seed=0)


def test_pixels(tmp_path):
    assert run("ddpm", tmp_path, ["prompts=2"])["images_seen"] > 0
    check_folder(tmp_path)


def test_clip_and_a_model_that_reads_by_it(first_stage, tmp_path):
    metrics = run("clip", tmp_path / "clip", preset="cond")
    check_folder(tmp_path / "clip")
    assert 0 <= metrics["right_among_all"] <= 1 and 0 <= metrics["right_among_near_misses"] <= 1
    run("ldm", tmp_path / "ldm", given=Given(str(first_stage), str(tmp_path / "clip")))
    both = StableDiffusion.load(tmp_path / "ldm").text_encoder.state_dict()
    frozen = saved.contrastive(tmp_path / "clip")[0].text_encoder.state_dict()
    assert both.keys() == frozen.keys() and all(torch.equal(both[n], frozen[n]) for n in both)
    assert (tmp_path / "ldm" / "captions" / "captions-00000.safetensors").exists()
    with pytest.raises(UsageError, match="another text_encoder"):
        run("ldm", tmp_path / "ldm", given=Given(str(first_stage)))


def test_real_pictures(tmp_path):
    for i in range(30):
        (tmp_path / "d" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 70), (8 * i, 100, 50)).save(tmp_path / "d" / "cat" / f"{i}.png")
    run("vae", tmp_path / "vae", [f"data.source={tmp_path / 'd'}"], root=tmp_path)
    metrics = run("ldm", tmp_path / "ldm", [f"data.source={tmp_path / 'd'}"], given=Given(str(tmp_path / "vae")), root=tmp_path)
    assert "oracle" not in metrics
    check_folder(tmp_path / "ldm")


def test_going_on_and_misuse(first_stage, tmp_path):
    again = run("vae", first_stage)
    assert again["steps"] == json.loads((first_stage / "metrics.json").read_text())["steps"]
    with pytest.raises(UsageError, match="another loop"):
        run("vae", first_stage, ["loop.lr=1e-5"])
    with pytest.raises(UsageError, match="--autoencoder"):
        run("ldm", tmp_path)
    with pytest.raises(CheckpointError, match="course train vae"):
        run("ldm", tmp_path, given=Given(str(tmp_path / "nowhere")))
    (first_stage / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        run("vae", first_stage)


def test_the_list_and_the_command(capsys):
    train.print_recipes(as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in rows} == set(recipes.RECIPES) and all(row["parameters"] > 1e5 for row in rows)
    from typer.testing import CliRunner

    from course.cli import app
    assert CliRunner().invoke(app, ["train", "--list"]).exit_code == 0
    refused = CliRunner().invoke(app, ["train", "gan"])
    assert isinstance(refused.exception, UsageError)


def test_near_misses_are_near_and_wrong():
    from course.data import captions
    text = "a small red ring left of a large blue square on a white background"
    for turn in range(40):
        for other in captions.near_misses(text, turn, 3):
            assert other != text and len(other.split()) == len(text.split())
            assert sum(a != b for a, b in zip(other.split(), text.split(), strict=True)) <= 2
    assert torch.tensor([sorted(o.split()) == sorted(text.split()) for o in captions.near_misses(text, 0, 3)]).any()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--sharded"]])
def test_the_command_on_two_processes(first_stage, tmp_path, more):
    """torchrun: the first process writes the run, and its weights are those of a single process."""
    import subprocess
    import sys

    from course import files
    sets = [word for change in SHORT[1:] + ["steps=5", "guidance=1.5"] for word in ("--set", change)]
    command = ["-m", "course", "train", "ldm", "--autoencoder", str(first_stage), "--device", "cpu", "--precision", "fp64", *sets]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    runs = {"one": [sys.executable], "two": [sys.executable, *torchrun]}
    for name, start in runs.items():
        line = [*start, *command, "--out", str(tmp_path / name), *(more if name == "two" else [])]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Report:") == 1
    one, two = (files.load_tensors(tmp_path / name / "checkpoint.safetensors")[0] for name in runs)
    assert one.keys() == two.keys() and max((one[n] - two[n]).abs().max().item() for n in one) <= 1e-5
    pictures = [StableDiffusion.load(tmp_path / name).latents("a small red ring", steps=2, seed=0) for name in runs]
    assert torch.allclose(*pictures, atol=1e-4)


def test_sigterm_ends_the_command_with_exit_code_zero(tmp_path):
    import signal
    import subprocess
    import sys
    import time
    command = [sys.executable, "-m", "course", "train", "vae", "--out", str(tmp_path), "--minutes", "5", "--device", "cpu",
               "--set", "data.pictures=64", "--set", "loop.save_seconds=0.5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.time() + 120
    while not (tmp_path / "checkpoint.safetensors").exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "all is kept" in said and "Traceback" not in said
