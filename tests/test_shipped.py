"""What comes with the course is whole, small, and says where it came from; and packing a run makes the same of it."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from course import cli, lora, shipped
from course.adapt import control, inversion, low_rank
from course.controlnet import Control
from course.data import Scenes, hints, oracle
from course.errors import CheckpointError
from course.pipeline import StableDiffusion


def test_every_shipped_file_is_the_one_that_was_packed():
    assert [problem for name in shipped.names() for problem in shipped.check(name)] == []
    for name in shipped.names():
        notes = json.loads((shipped.SHIPPED / name / "provenance.json").read_text())
        assert {"recipe", "command", "commit", "data_sha256", "metrics", "sha256"} <= set(notes) and notes["metrics"]["device"]


def test_packing_a_run(pipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    pipe.save(run / "model")
    with pytest.raises(CheckpointError, match="no finished run"):
        shipped.pack(run, "tiny", tmp_path)
    earlier, stopped = tmp_path / "earlier", tmp_path / "stopped"
    for place, *given in ((earlier, None, None), (stopped, earlier, None), (run, earlier, stopped)):
        place.mkdir(exist_ok=True)
        given = dict(zip(("autoencoder", "start"), (g and str(g) for g in given), strict=True))
        (place / "run.json").write_text(json.dumps({"command": ["train"], "given": given}))
    (stopped / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match="no finished run"):
        shipped.pack(run, "tiny", tmp_path)
    for place in (earlier, run):
        (place / "metrics.json").write_text('{"psnr": 30}')
    folder = shipped.pack(run, "tiny", tmp_path)
    assert shipped.names(tmp_path) == ["tiny"] and shipped.check("tiny", tmp_path) == []
    notes = json.loads((folder / "provenance.json").read_text())
    assert notes["metrics"] == {"psnr": 30} and notes["autoencoder"]["metrics"] == {"psnr": 30} 
    assert notes["start"]["stopped"] == {"step": 2} and "autoencoder" not in notes["start"]     # of that we heard already
    monkeypatch.setattr("course.pipeline.SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path / "run")                        # a folder called like the model would come first
    loaded = StableDiffusion.load("tiny")
    for a, b in zip(loaded.unet.parameters(), pipe.unet.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.allclose(a, b, rtol=1e-3, atol=1e-6)
    (folder / "unet.safetensors").write_bytes(b"other")
    (folder / "vae.safetensors").unlink()
    problems = shipped.check("tiny", tmp_path)
    assert len(problems) == 2 and "vae.safetensors is missing" in problems[0] and "another checksum" in problems[1]


def test_what_two_models_have_in_common_is_kept_once(pipe, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text('{"command": ["train"]}')
        (tmp_path / name / "metrics.json").write_text("{}")
        pipe.save(tmp_path / name / "model")
        with torch.no_grad():
            pipe.unet.conv_in.weight += 1.0
    into = tmp_path / "shipped"
    first, second = (shipped.pack(tmp_path / name, name, into) for name in ("first", "second"))
    shared = json.loads((second / "shared.json").read_text())
    assert shared == {n: f"../first/{n}" for n in ("text_encoder.safetensors", "vae.safetensors")}
    assert not (first / "shared.json").exists() and not (second / "vae.safetensors").exists()
    assert shipped.check("first", into) == shipped.check("second", into) == []
    a, b = StableDiffusion.load(first), StableDiffusion.load(second)
    assert torch.equal(a.vae.encoder.conv_in.weight, b.vae.encoder.conv_in.weight)
    assert not torch.equal(a.unet.conv_in.weight, b.unet.conv_in.weight)
    (first / "vae.safetensors").write_bytes(b"other")
    assert any("vae.safetensors has another checksum" in problem for problem in shipped.check("second", into))


def test_a_picture_from_words_straight_after_install(tmp_path, monkeypatch):
    """`course sample "..."` with the model that comes with the course, in a folder where nothing was ever trained."""
    monkeypatch.chdir(tmp_path)
    words = "a large red circle in the center on a white background"
    run = CliRunner().invoke(cli.app, ["sample", words, "--json", "--device", "cpu"])
    assert run.exit_code == 0, run.output
    said = json.loads(run.output)
    assert Image.open(tmp_path / said["out"]).size == (256, 256)
    assert said["oracle"] == ["large red circle (center) on white"]


def test_what_is_shipped_is_small():
    size = {name: sum(p.stat().st_size for p in (shipped.SHIPPED / name).iterdir()) for name in shipped.names()}
    assert size["scenes64"] + size["scenes64-pixel"] <= 20e6
    adapted = [name for name in size if name.startswith("scenes64") and name != "scenes64-pixel"]
    assert {"scenes64-edges", "scenes64-heart", "scenes64-ring", "scenes64-fast", "scenes64-xl"} <= set(adapted)
    assert sum(size[name] for name in adapted) <= 40e6


@pytest.mark.parametrize("name, prompt", [("scenes64-fast", "a large red circle in the center on a white background"),
                                          ("scenes64-xl", "a large red circle in the center on a white background")])
def test_shipped_variants_draw_what_they_are_told(name, prompt):
    pipe = StableDiffusion.load(name)
    images = pipe.decode(pipe.latents([prompt] * 4, steps=pipe.config.steps or 10, seed=0))
    right = [[(o.shape, o.color, o.size) for o in r.objects] == [("circle", "red", "large")] for r in oracle.read(images)]
    assert sum(right) >= 3


def test_shipped_adapters_do_what_they_are_for():
    pipe = StableDiffusion.load("scenes64")
    words = ["a large red heart in the center on a white background", "a large blue heart in the center on a gray background"]
    plain = pipe.latents(words, steps=10, seed=0)
    low_rank.add(pipe, "scenes64-heart")
    assert [r.objects[0].shape for r in oracle.read(pipe.decode(pipe.latents(words, steps=10, seed=0)))] == ["heart"] * 2
    lora.remove(pipe.unet), lora.remove(pipe.text_encoder)
    assert torch.equal(pipe.latents(words, steps=10, seed=0), plain)           # to the bit
    assert inversion.add(pipe, "scenes64-ring") == "<thing>"
    x0 = pipe.latents("a large red <thing> in the center on a white background", steps=10, seed=0)
    assert oracle.read(pipe.decode(x0))[0].objects[0].shape == "ring"
    data = Scenes(64, "test", objects=(2, 2), textures=("plain",), degraded=0.0)
    scenes, said = data.scenes(range(4)), data.captions(range(4), full=True)
    steered = Control(control.load("scenes64-edges"), hints.picture(data, scenes, "edges"))
    images = pipe.decode(pipe.latents(said, steps=10, seed=0, control=steered))
    assert hints.recovered(images, data, scenes)["edge_f"] > 0.9
