"""Misuse of the command line: one clear line, exit code 2, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def course(*arguments: str, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "course", *arguments], capture_output=True, text=True, cwd=cwd,
                          env={**__import__("os").environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"})


@pytest.fixture
def model(pipe, tmp_path) -> str:
    pipe.save(tmp_path / "model")
    return str(tmp_path / "model")


def test_sample_writes_a_picture(model, tmp_path):
    done = course("sample", "a red circle", "--model", model, "--out", str(tmp_path / "x.png"), "--steps", "2", "--count", "2",
                  "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompt"] == "a red circle"
    assert Image.open(tmp_path / "x.png").size == (2 * 256 + 4, 256)


@pytest.mark.parametrize("arguments, words", [
    (["sample", "a ring", "--model", "nowhere"], "no model in nowhere"),
    (["sample", "", "--model", "MODEL"], "empty"),
    (["train", "lora", "--preset", "heart", "--set", "loss.rank=0"], "rank must be a whole number, at least 1, got 0"),
    (["train", "lora", "--preset", "heart", "--set", "loss.alpha=nan"], "alpha must be a finite number, got nan"),
    (["train", "controlnet", "--preset", "edges", "--model", "nowhere"], "no model in nowhere"),
    (["bench", "control", "nowhere"], "no ControlNet in nowhere"),
    (["bench", "control", "--kind", "pose"], "edges, segmentation, depth"),
    (["sample", "a ring", "--model", "MODEL", "--steps", "-5"], "steps must lie in 1 ... 1000, got -5"),
    (["sample", "a ring", "--model", "MODEL", "--steps", "many"], "--steps"),
    (["sample", "a ring", "--model", "MODEL", "--guidance", "nan"], "guidance_scale"),
    (["sample", "a ring", "--model", "MODEL", "--sampler", "magic"], "magic"),
    (["sample", "a ring", "--model", "MODEL", "--size", "33"], "multiples of 8"),
    (["sample", "a ring", "--model", "MODEL", "--out", "FILE/x.png"], "cannot write"),
    (["sample", "a ring", "--model", "MODEL", "--out", "x.txt"], ".png"),
    (["sample", "a ring", "--model", "MODEL", "--device", "tpu9"], "tpu9"),
    (["sample", "a ring", "--model", "MODEL", "--count", "0"], "count"),
    (["sample", "a ring", "--model", "CUT"], "damaged"),
    (["sample"], "prompt"),
    (["demo", "--minutes", "-1"], "minutes"),
    (["demo", "--minutes", "nan"], "minutes"),
    (["demo", "--prompts", "0"], "prompts"),
    (["demo", "--out", "FILE/run"], "cannot write"),
    (["release", "99"], "99"),
    (["fly"], "fly"),
])
def test_misuse(arguments, words, model, tmp_path):
    (tmp_path / "file").write_text("")
    cut = tmp_path / "cut"
    cut.mkdir()
    for f in Path(model).iterdir():
        (cut / f.name).write_bytes(f.read_bytes())
    (cut / "vae.safetensors").write_bytes((cut / "vae.safetensors").read_bytes()[:1000])
    fill = {"MODEL": model, "CUT": str(cut)}
    arguments = [fill.get(a, a.replace("FILE", str(tmp_path / "file"))) for a in arguments]
    done = course(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


def test_help_everywhere():
    assert course("--version").stdout.strip() == "0.1.0"
    for command in ("demo", "sample", "sweep", "doctor", "release"):
        done = course(command, "--help")
        assert done.returncode == 0 and "--help" in done.stdout


def test_doctor_reports_as_json():
    done = course("doctor", "--json")
    assert done.returncode in (0, 1) and json.loads(done.stdout)
