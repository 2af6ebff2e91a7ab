"""What comes with the course is whole, small, and says where it came from; and packing a run makes the same of it."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from course import cli, shipped
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
    sizes = {name: sum(p.stat().st_size for p in (shipped.SHIPPED / name).iterdir()) for name in shipped.names()}
    assert sum(size for name, size in sizes.items() if name.startswith("scenes64")) <= 20e6
    assert all(size <= 16e6 for size in sizes.values())
