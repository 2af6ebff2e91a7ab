"""What comes with the course is whole, small, and says where it came from; and packing a run makes the same of it."""

import json

import pytest
import torch

from course import shipped
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
    (run / "run.json").write_text('{"command": ["train"]}'), (run / "metrics.json").write_text('{"psnr": 30}')
    folder = shipped.pack(run, "tiny", tmp_path)
    assert shipped.names(tmp_path) == ["tiny"] and shipped.check("tiny", tmp_path) == []
    assert json.loads((folder / "provenance.json").read_text())["metrics"] == {"psnr": 30}
    monkeypatch.setattr("course.pipeline.SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path / "run")                        # a folder called like the model would come first
    loaded = StableDiffusion.load("tiny")
    for a, b in zip(loaded.unet.parameters(), pipe.unet.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.allclose(a, b, rtol=1e-3, atol=1e-6)
    (folder / "unet.safetensors").write_bytes(b"other")
    (folder / "vae.safetensors").unlink()
    problems = shipped.check("tiny", tmp_path)
    assert len(problems) == 2 and "vae.safetensors is missing" in problems[0] and "another checksum" in problems[1]
