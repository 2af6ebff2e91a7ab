"""A working folder: copied once, never overwritten; how far one has come is read from the check cells."""

import json
import re
import sys

import nbformat
import pytest
from typer.testing import CliRunner

from course import cli, parts, schedule, teaching
from course.classroom import checks, release, working
from course.classroom.release import ROOT
from course.errors import UsageError

NAME = "05_forward_process.ipynb"
FULL = checks.find("schedule.make_schedule").points


@pytest.fixture
def folder(tmp_path):
    working.start(tmp_path / "mine")
    return tmp_path / "mine"


def answered(path, points: dict):
    """The notebook as it is saved after its check cells said so."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.metadata.get("course", {}).get("role") == "check" and cell.metadata.course.exercise in points:
            said = str(float(points[cell.metadata.course.exercise]))
            cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": said}, execution_count=1)]
    nbformat.write(notebook, path)


def test_a_notebook_that_is_there_is_never_touched(folder):
    everything = {p.name for p in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    assert {p.name for p in folder.iterdir()} == everything
    (folder / NAME).write_text("my own work")
    (folder / sorted(everything - {NAME})[0]).unlink() if len(everything) > 1 else None
    copied, left = working.start(folder)
    assert (folder / NAME).read_text() == "my own work" and NAME in left
    assert {p.name for p in folder.iterdir()} == everything and len(copied) == min(1, len(everything) - 1)


def test_it_refuses_what_is_no_working_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        working.start(tmp_path / "file")
    with pytest.raises(UsageError, match="the notebooks themselves"):
        working.start(ROOT / "notebooks")
    with pytest.raises(UsageError, match="works in a checkout"):
        working.start(tmp_path / "new", source=tmp_path)
    with pytest.raises(UsageError, match="course start"):
        working.progress(tmp_path / "nowhere")


def test_progress_is_what_the_check_cells_said(folder):
    answered(folder / NAME, {"schedule.make_schedule": FULL, "schedule.add_noise": 1.5, "schedule.log_snr": 0})
    chapter = next(c for c in working.progress(folder) if c.path.name == NAME)
    found = {id: points for id, points, _ in chapter.exercises}
    assert found["schedule.make_schedule"] == FULL and found["schedule.diffuse_stepwise"] is None
    assert chapter.points == FULL + 1.5 and chapter.solved == 1
    assert working.dots(chapter) == "●·◐○··"
    assert chapter.title.startswith("05 · ")


def test_the_next_chapter_is_the_first_with_an_open_exercise(folder):
    chapters = working.progress(folder)
    assert working.next_chapter(chapters) is chapters[0]
    for c in chapters[:1]:
        answered(c.path, {id: most for id, _, most in c.exercises})
    chapters = working.progress(folder)
    assert working.next_chapter(chapters) is (chapters[1] if len(chapters) > 1 else chapters[0])


def test_the_table_and_the_page(folder, tmp_path):
    answered(folder / NAME, {"schedule.make_schedule": FULL})
    run = CliRunner().invoke(cli.app, ["progress", str(folder), "--html", str(tmp_path / "page.html")])
    assert run.exit_code == 0 and "●·····" in run.output
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="full"') == 1 and f"schedule.make_schedule: {FULL} of {FULL} points" in page
    assert not re.search(r"https?://", page)
    run = CliRunner().invoke(cli.app, ["progress", str(folder), "--json"])
    [row] = [r for r in json.loads(run.output) if r["chapter"] == NAME.removesuffix(".ipynb")]
    assert row["solved"] == 1 and row["points"] == FULL


def test_lab_opens_where_the_student_left(folder, monkeypatch):
    called = []
    monkeypatch.setattr(teaching.subprocess, "call", lambda command: called.append(command) or 0)
    first = working.progress(folder)[0]
    run = CliRunner().invoke(cli.app, ["lab", str(folder), "--no-browser"])
    assert run.exit_code == 0 and called[0][:3] == [sys.executable, "-m", "jupyterlab"]
    assert f"--LabApp.default_url=/lab/tree/{first.path.name}" in called[0] and "--no-browser" in called[0]


# ---- the student's parts

def with_answers(path, answers: dict[str, str]):
    """The notebook with these sources in its solution cells."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        own = cell.metadata.get("course", {})
        if own.get("role") == "solution" and own["exercise"] in answers:
            cell.source = answers[own["exercise"]]
    nbformat.write(notebook, path)


def test_solved_answers_become_parts(tmp_path):
    solution, _ = release.notebooks(ROOT / "solutions" / "05_forward_process.py")
    nbformat.write(solution, tmp_path / NAME)
    found = parts.from_notebooks(tmp_path)
    assert found.status["schedule.NoiseSchedule"] == "yours"
    with parts.swapped(found):
        mine = schedule.NoiseSchedule()
    assert type(mine).__name__ == "MySchedule"
    assert (mine.alphas_cumprod - schedule.NoiseSchedule().alphas_cumprod).abs().max() < 1e-12


def test_open_ones_stay_the_librarys_and_say_why(folder):
    found = parts.from_notebooks(folder)
    assert found == {}
    assert found.status["schedule.NoiseSchedule"].startswith("library: add_noise, make_schedule, timesteps not solved")
    with_answers(folder / NAME, {"schedule.add_noise": "def add_noise(x0, noise, t, alphas_cumprod):\n    return x0"})
    assert "add_noise" in parts.from_notebooks(folder).status["schedule.NoiseSchedule"]


def test_a_cell_that_does_not_run_is_named_and_stops_nobody(folder):
    with_answers(folder / NAME, {"schedule.add_noise": "import no_such_module\ndef add_noise(): pass",
                                 "schedule.timesteps": "def timesteps(:"})
    assert "schedule.NoiseSchedule" in parts.from_notebooks(folder).status
    (folder / NAME).write_text("no notebook")
    with pytest.raises(UsageError, match="is no notebook"):
        parts.from_notebooks(folder)
    with pytest.raises(UsageError, match="no notebooks in"):
        parts.from_notebooks(folder / "nowhere")
