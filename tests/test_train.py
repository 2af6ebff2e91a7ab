"""`course train`, each kind for a second or two: what it leaves behind, and that the next stage can use it."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from course import inversion, presets, train
from course.adapt import control, low_rank
from course.controlnet import Control
from course.errors import CheckpointError, UsageError
from course.pipeline import StableDiffusion
from course.sdxl import refined
from course.tokenizer import Tokenizer
from course.train import Given
from course.training import recipes, saved, xl
from course.training.engine import EngineConfig
from tests.conftest import TINY, TINY_UNET

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
    assert {row["kind"] for row in rows} == set(recipes.RECIPES) and all(row["parameters"] > 100 for row in rows)
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


@pytest.fixture
def small(tmp_path):
    """A tiny pipeline to adapt, which can read long captions, and what to change in a recipe for it."""
    words = Tokenizer.train(["a small red circle"], num_merges=10, length=120)
    StableDiffusion(replace(TINY, text=replace(TINY.text, length=120)), words).save(tmp_path / "base")
    return Given(model=str(tmp_path / "base")), ["data.size=32", "steps=2"]


def test_distilling_leaves_a_pipeline_for_each_number_of_steps(small, tmp_path):
    (given, changes), out = small, tmp_path / "fast"
    metrics = run("distill", out, [*changes, "loss.rounds=2,1"], preset="scenes64", given=given)
    assert set(metrics["oracle_by_steps"]) == {"teacher, 25 steps", "teacher, 2 steps", "teacher, 1 step",
                                               "distilled, 2 steps", "distilled, 1 step"}
    two, one = StableDiffusion.load(out / "2-steps"), StableDiffusion.load(out)
    assert (two.config.steps, one.config.steps, one.config.guidance_scale) == (2, 1, 1.0)
    assert one.generate("a small red ring", steps=1, seed=0)[0].size == (32, 32)
    again = run("distill", out, [*changes, "loss.rounds=2,1"], preset="scenes64", given=given)
    assert again["oracle"] == metrics["oracle"]                # all rounds are done: nothing is trained anew


def test_something_new_by_low_rank(small, tmp_path):
    (given, changes), out = small, tmp_path / "heart"
    metrics = run("lora", out, [*changes, "loss.rank=2", "data.pictures=16"], preset="heart", given=given)
    assert metrics["trained_parameters"] * 8 == metrics["optimizer_bytes"] and metrics["new_prompts"] == 4
    assert metrics["old_before"] >= 0 and metrics["new_after"] <= 1
    pipe = StableDiffusion.load(given.model)
    plain = pipe.latents("a small red ring", steps=2, seed=0)
    low_rank.add(pipe, out, "none", 0.0)
    assert torch.equal(pipe.latents("a small red ring", steps=2, seed=0), plain)
    low_rank.add(pipe, out, "all")
    assert not torch.equal(pipe.latents("a small red ring", steps=2, seed=0), plain)
    with pytest.raises(CheckpointError, match="no such file|nowhere"):
        low_rank.add(pipe, tmp_path / "nowhere", "more")
    whole = run("lora", tmp_path / "whole", [*changes, "loss.rank=none", "data.pictures=16", "loss.replay=0"], preset="heart",
                given=given)
    assert whole["trained_parameters"] > 5 * metrics["trained_parameters"]
    assert StableDiffusion.load(tmp_path / "whole").generate("a heart", steps=1, seed=0)[0].size == (32, 32)


@pytest.mark.parametrize("kind", ["edges", "segmentation", "depth"])
def test_a_controlnet(small, tmp_path, kind):
    (given, changes), out = small, tmp_path / "net"
    metrics = run("controlnet", out, [*changes, "data.pictures=16", "loss.hint_channels=8,8,16"], preset=kind, given=given)
    assert metrics["control"] == kind and set(metrics["by_control"]) == {"without", "with"}
    assert 0 <= metrics["by_control"]["with"]["edge_f"] <= 1 and 0 <= metrics["by_control"]["without"]["iou"] <= 1
    network, pipe = control.load(out), StableDiffusion.load(given.model)
    hint = Control(network, torch.rand(1, 3, 32, 32))
    how = {"prompt": "a small red ring", "steps": 2, "seed": 0}
    assert not torch.equal(pipe.latents(control=hint, **how), pipe.latents(**how))


def test_a_new_word(small, tmp_path):
    (given, changes), out = small, tmp_path / "word"
    metrics = run("inversion", out, [*changes, "data.pictures=16", "loss.vectors=2"], preset="ring", given=given)
    assert metrics["trained_parameters"] == 2 * TINY.text.width and metrics["stands_for"] == "ring"
    pipe = StableDiffusion.load(given.model)
    assert inversion.load(pipe, out / "model" / "learned_embeds.safetensors") == "<thing>"
    assert len(pipe.tokenizer.encode("<thing>")) == 2
    with pytest.raises(UsageError, match="data.shape"):
        run("inversion", tmp_path / "none", [*changes, "data.pictures=16", "data.shape=none"], preset="ring", given=given)


def test_sdxl_in_small_and_its_refiner(small, tmp_path, monkeypatch):
    unet = replace(TINY_UNET, added_dim=8 + 6 * 8, size_embedding_dim=8, context_dim=16 + 32)
    first = replace(TINY.text, length=120)
    second = replace(first, width=32, skip=1, projection=8)
    base = replace(TINY, unet=unet, text=first, text_2=second, zero_empty_prompt=True)
    refiner = replace(base, unet=replace(unet, added_dim=8 + 5 * 8, context_dim=32), text=second, text_2=None)
    monkeypatch.setitem(presets.PIPELINES, "scenes64-xl", base)
    monkeypatch.setitem(presets.PIPELINES, "scenes64-xl-refiner", refiner)
    given, changes = small
    metrics = run("xl", tmp_path / "large", [*changes, "data.pictures=16"], preset="base", given=given)
    assert set(metrics["by_original"]) == {16, 24, 32, 48} and set(metrics["by_crop"]) == {"0,0", "0,16", "16,0", "16,16"}
    pipe = StableDiffusion.load(tmp_path / "large")
    large, small_one = (pipe.latents("a ring", steps=2, seed=0, sizes={"original": (s, s)}) for s in (32, 16))
    assert not torch.equal(large, small_one) and pipe.text_encoder_2.config.eos_id == pipe.tokenizer_2.end_id
    later = Given(model=str(tmp_path / "large"))
    metrics = run("xl", tmp_path / "refiner", [*changes, "data.pictures=16"], preset="refiner", given=later)
    assert set(metrics["by_way"]) == {"base", "base and refiner", "real"}
    second = StableDiffusion.load(tmp_path / "refiner")
    assert all(torch.equal(a, b) for a, b in zip(second.text_encoder.parameters(), pipe.text_encoder_2.parameters(), strict=True))
    x0 = refined(pipe, second, ["a ring", "a star"], steps=5, seed=0)
    assert x0.shape == (2, 4, 8, 8) and not torch.equal(x0, pipe.latents(["a ring", "a star"], steps=5, seed=0))
    with pytest.raises(UsageError, match="name the base with --model"):
        run("xl", tmp_path / "lonely", [*changes, "data.pictures=16"], preset="refiner", given=given)


def test_what_makes_a_picture_small_or_cropped_is_written_down():
    pictures = torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8)
    spoilt, numbers = xl.spoilt(pictures, xl.XLLoss())
    small, cropped = numbers[:, 0] < 64, numbers[:, 2:4].any(1)
    assert 0.2 < small.float().mean() < 0.6 and 0.2 < cropped.float().mean() < 0.6 and (numbers[:, 4:] == 64).all()
    untouched = ~small & ~cropped
    assert torch.equal(spoilt[untouched], pictures[untouched]) and numbers[untouched][0].tolist() == [64, 64, 0, 0, 64, 64]
    energy = spoilt.float().diff(dim=3).square().mean((1, 2, 3))
    assert energy[small].max() < energy[untouched].min() / 2                            # enlarged: no fine detail is left
    with pytest.raises(UsageError, match="must lie in 0 ... 1, got 2"):
        xl.XLLoss(small=2)
