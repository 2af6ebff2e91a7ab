"""nbgrader, which others grade with, takes the notebooks as they are: generate_assignment, autograde, and the right points.

It lives in an environment of its own (`make nbgrader`): it holds back packages that the course needs newer. A chapter takes
minutes; `make test-all` tries one of plain functions and one of parts that need each other, `make class` all of them.
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from course.classroom import checks, mutants, release

ROOT = Path(__file__).parents[2]
NBGRADER = Path(os.environ.get("COURSE_NBGRADER", ROOT / "build" / "nbgrader" / "bin" / "nbgrader"))
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not NBGRADER.exists(), reason="`make nbgrader` installs it in build/nbgrader")]
CHAPTERS = [path for path in release.chapters() if os.environ.get("COURSE_CLASS") or path.stem[:2] in ("05", "14")]


@pytest.fixture(scope="module")
def classroom(tmp_path_factory):
    """(folder, call): a course folder whose kernel is the Python that runs these tests."""
    folder = tmp_path_factory.mktemp("classroom")
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"display_name": "Python 3", "language": "python", "argv": [
        sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]}))
    (folder / "nbgrader_config.py").write_text('c.CourseDirectory.course_id = "ldm"\nc.ExecutePreprocessor.timeout = 300\n')
    environment = os.environ | {"JUPYTER_PATH": str(folder / "jupyter"), "COURSE_PROFILE": "quick", "OMP_NUM_THREADS": "1",
                                "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment["PATH"] = os.pathsep.join([str(NBGRADER.parent), environment["PATH"]])          # it calls alembic by name
    environment.pop("COURSE_GRADING", None)

    def call(*arguments):
        done = subprocess.run([NBGRADER, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done
    return folder, call


def half(notebook, solved):
    """Every second exercise as in the solution, the others untouched; and what that is worth."""
    worth, cells = 0, {c.id: c for c in solved.cells}
    solutions = [c for c in notebook.cells if c.metadata.get("course", {}).get("role") == "solution"]
    for cell in solutions[::2]:
        cell.source = cells[cell.id].source
        check = next(c for c in notebook.cells if c.metadata.get("course", {}).get("role") == "check"
                     and c.metadata.course.exercise == cell.metadata.course.exercise)
        worth += check.metadata.nbgrader.points
    return worth


def mistaken(solved, answers):
    """(source, submission, worth): the first cell, and each exercise as often as there are wrong answers to it, one in each."""
    source = nbformat.v4.new_notebook(metadata=solved.metadata, cells=[next(c for c in solved.cells if c.cell_type == "code")])
    submission, worth = copied(source), 0.0
    submission.cells[0].source += "\nfrom course.classroom import mutants\nanswers = mutants.load()"
    solutions = {c.metadata.course.exercise: c for c in solved.cells if c.metadata.get("course", {}).get("role") == "solution"}
    for check in (c for c in solved.cells if c.metadata.get("course", {}).get("role") == "check"):
        id, name = re.search(r'check\("(.+?)", (\w+)\)', check.source).groups()
        for k, (_, wrong, _) in enumerate(answers[id].wrong):
            pair = [copied(solutions[id]), copied(check)]
            for cell in pair:
                cell.id = cell.metadata.nbgrader.grade_id = f"{cell.metadata.nbgrader.grade_id}-{k}"
            source.cells += copied(pair)
            pair[0].source = f"{name} = answers['{id}'].wrong[{k}][1]"
            submission.cells += pair
            points = checks.find(id).run(wrong).points
            assert points < check.metadata.nbgrader.points, (id, k)
            worth += points
    return source, submission, worth


def copied(part):
    return nbformat.from_dict(json.loads(json.dumps(part)))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_full_points_none_and_half(path, classroom):
    folder, call = classroom
    name, file = path.stem, f"{path.stem}.ipynb"
    source = folder / "source" / name / file
    source.parent.mkdir(parents=True)
    source.write_bytes(path.with_suffix(".ipynb").read_bytes())
    call("generate_assignment", name)
    released = folder / "release" / name / file
    assert "BEGIN SOLUTION" not in released.read_text()

    solved, untouched = nbformat.read(source, 4), nbformat.read(released, 4)
    everything = sum(c.metadata.nbgrader.points for c in solved.cells if c.metadata.get("nbgrader", {}).get("grade"))
    partly = copied(untouched)
    worth = half(partly, solved)
    students = {"solved": solved, "untouched": untouched, "half": partly}
    for student, notebook in students.items():
        place = folder / "submitted" / student / name / file
        place.parent.mkdir(parents=True)
        nbformat.write(notebook, place)
    call("autograde", name)
    expected = {"solved": everything, "untouched": 0.0, "half": worth}
    assert {student: score for student, score in scores(classroom, name).items() if student in expected} == expected
    assert 0 < worth < everything


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_wrong_answer_costs_points(path, classroom):
    folder, call = classroom
    name = f"{path.stem}-wrong"
    source, submission, worth = mistaken(nbformat.read(path.with_suffix(".ipynb"), 4), mutants.load())
    for place, notebook in ((folder / "source" / name, source), (folder / "submitted" / "wrong" / name, submission)):
        place.mkdir(parents=True)
        nbformat.write(notebook, place / f"{path.stem}.ipynb")
    call("generate_assignment", name)
    call("autograde", name)
    assert scores(classroom, name)["wrong"] == worth


def scores(classroom, name):
    folder, call = classroom
    call("export", "--to", "grades.csv")
    with open(folder / "grades.csv") as opened:
        return {row["student_id"]: float(row["score"]) for row in csv.DictReader(opened) if row["assignment"] == name}
