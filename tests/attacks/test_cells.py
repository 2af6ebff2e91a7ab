"""Every hostile answer is graded, all in one class with an honest neighbour: none gains a point, hangs or leaves anything."""

import json
import os
import tempfile
from pathlib import Path

import psutil
import pytest

from course.classroom import checks, curriculum, grade, sandbox
from tests.attacks.cells import ATTACKS, ID, WRONG
from tests.attacks.files import RIGHT, cell, notebook

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sandbox.available() is not None, reason=f"no sandbox: {sandbox.available()}")]
SECONDS = {"setup": 40, "answer": 10, "probe": 15}
PLAIN = {ID: WRONG, "unet.unet_forward": "import torch\ndef unet_forward(net, x, time_emb):\n    return torch.zeros_like(x)",
         "guidance.guide": "import torch\ndef guide(predict, x, t, cond, uncond, scale):\n    return torch.zeros_like(x)",
         "pipeline.start_noise": "import torch\ndef start_noise(shape, seeds):\n    return torch.zeros(len(seeds), *shape)"}


def worth(id: str) -> float:
    """What the plain wrong answer earns without any trick."""
    space: dict = {}
    exec(PLAIN[id], space)
    return checks.find(id).run(space[curriculum.tasks()[id].answer]).points


def left(work: Path) -> list[str]:
    """Files and processes of a run that are still there, and what an attack would have left elsewhere."""
    files = [n for n in os.listdir(tempfile.gettempdir()) if n == work.name or n.startswith(("attack", "owned"))]
    lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    return files + [line for line in lines if str(work) in line or line.startswith("sleep 7654321")]


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    os.environ["SECRET_TOKEN"] = "of the grader"
    base = tmp_path_factory.mktemp("class")
    cells = {name: (id, source) for name, (id, source) in ATTACKS.items()} | {"an honest neighbour": (ID, RIGHT)}
    for name, (id, source) in cells.items():
        (base / "in" / name).mkdir(parents=True)
        (base / "in" / name / "a.ipynb").write_bytes(notebook(cell(source, id.replace(".", "-"))))
    (base / "points.json").write_text(json.dumps({id: checks.find(id).points for id in PLAIN}))
    work = grade._Runner(base / "out", b"", False, SECONDS, print).work
    made = grade.run([base / "in"], base / "out", jobs=2, points=base / "points.json", seconds=SECONDS, say=print)
    del os.environ["SECRET_TOKEN"]
    return made, base, work


def test_there_are_enough():
    assert len(ATTACKS) >= 30 and worth(ID) == 0 and worth("unet.unet_forward") == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gains_nothing(name, graded):
    made, base, _ = graded
    id, _ = ATTACKS[name]
    mark = made.marks[name][id]
    said = f"{mark.status}, {mark.points} points: {mark.why} {mark.messages}"
    assert mark.points <= worth(id) and mark.status not in ("correct", "blocked"), said
    assert "LOOT" not in said and "of the grader" not in said
    if mark.key:
        path = next((base / "out/verdicts").glob(f"{mark.key}*.json"))
        assert json.loads(path.read_text())["seconds"] <= sum(SECONDS.values()) + 10, said


@pytest.mark.parametrize("name, status", [
    ("exit_at_once", "killed"), ("exit_when_called", "killed"), ("endless", "timeout"), ("endless_when_called", "timeout"),
    ("sleeps", "timeout"), ("swallows_interrupts", "timeout"), ("memory_bomb", ("killed", "error")), ("magic", "policy"),
    ("get_ipython_in_the_open", "policy"), ("asks_for_input", "error"), ("patched_allclose", "wrong"),
    ("a_gigabyte_of_output", ("killed", "timeout")), ("huge_frame", "killed"), ("fake_eq", "wrong")])
def test_the_status_says_what_happened(name, status, graded):
    mark = graded[0].marks[name][ATTACKS[name][0]]
    assert mark.status in status, (mark.status, mark.why, mark.messages)


def test_the_neighbour_has_all_points_and_nothing_is_left(graded):
    made, base, work = graded
    assert made.marks["an honest neighbour"][ID].status == "correct"
    assert left(work) == []
    assert sorted(p.name for p in Path(base).iterdir()) == ["in", "out", "points.json"]
    text = (base / "out/results.json").read_text() + (base / "out/index.html").read_text()
    assert "of the grader" not in text
