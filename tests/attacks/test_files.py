"""Hostile files are refused as data: nothing is unpacked, followed or executed, and the neighbour's work is read."""

import json
import os

import pytest

from course.classroom import curriculum, submissions
from course.classroom.grade import _without_running
from tests.attacks.cells import ID, WRONG
from tests.attacks.files import FILES, GRADE_ID, RIGHT, cell, notebook, zipped


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_a_hostile_file_is_refused(make, tmp_path):
    (tmp_path / "class/mallory").mkdir(parents=True)
    (tmp_path / "class/neighbour").mkdir()
    (tmp_path / "class/neighbour/a.ipynb").write_bytes(notebook(cell(RIGHT)))
    before = set(os.listdir(tmp_path))
    status = make(tmp_path / "class/mallory")
    found = submissions.gather([tmp_path / "class"])
    assert found["neighbour"].sources == {ID: RIGHT}
    mark = _without_running(found["mallory"], ID)
    assert mark is not None and (mark.status, mark.points) == (status, 0.0), mark
    assert set(os.listdir(tmp_path)) == before and set(found) == {"mallory", "neighbour"}


def test_of_doubled_cells_the_last_that_was_written_counts_and_is_flagged(tmp_path):
    stub = curriculum.tasks()[ID].stub
    path = tmp_path / "mallory.ipynb"
    path.write_bytes(notebook(cell(RIGHT), cell(WRONG), cell(stub)))
    student = submissions.gather([path])["mallory"]
    assert student.sources[ID] == WRONG and "3 cells" in student.flags[ID][0]


def test_tags_outputs_and_kernels_of_the_student_are_ignored(tmp_path):
    hostile = cell("# NBVAL_SKIP\n" + WRONG, tags=["nbval-skip", "raises-exception"])
    hostile["outputs"] = [{"output_type": "execute_result", "data": {"text/plain": "3.0"}}]
    (tmp_path / "m.ipynb").write_bytes(notebook(hostile, kernelspec={"name": "evil", "argv": ["touch", "/tmp/owned"]}))
    source = submissions.gather([tmp_path / "m.ipynb"])["m"].sources[ID]
    assert "NBVAL" not in source and source.strip() == WRONG.strip()


def test_a_cell_without_ids_is_found_by_its_header(tmp_path):
    (tmp_path / "m.ipynb").write_bytes(notebook(cell(f"\n# exercise: {ID}\n{RIGHT}", None)))
    assert RIGHT in submissions.gather([tmp_path / "m.ipynb"])["m"].sources[ID]


@pytest.mark.parametrize("layout, who", [
    ("submitted/ann/05/05_forward_process.ipynb", "ann"),
    ("Ann Lee_4711_assignsubmission_file_/05.ipynb", "Ann Lee"),
    ("leeann_123_456_05_forward_process.ipynb", "leeann"), ("leeann_LATE_123_456_05.ipynb", "leeann"), ("ann/05.ipynb", "ann"),
    ("ann/deep/er/05.ipynb", "ann")])
def test_trees_of_nbgrader_moodle_and_canvas(layout, who, tmp_path):
    for other in (layout, layout.replace("nn", "nna").replace("Ann", "Anna")):
        path = tmp_path / "class" / other
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(notebook(cell(RIGHT)))
    folder = submissions.gather([tmp_path / "class"])
    assert who in folder and len(folder) == 2
    entries = [(str(p.relative_to(tmp_path / "class")), p.read_bytes()) for p in (tmp_path / "class").rglob("*.ipynb")]
    (tmp_path / "all.zip").write_bytes(zipped(*entries))
    assert set(submissions.gather([tmp_path / "all.zip"])) == set(folder)


def test_a_zip_of_one_student_bears_the_name(tmp_path):
    (tmp_path / "ann.zip").write_bytes(zipped(("05.ipynb", notebook(cell(RIGHT))), ("06.ipynb", notebook())))
    assert list(submissions.gather([tmp_path / "ann.zip"])) == ["ann"]


@pytest.mark.parametrize("source, rule", [
    ("%matplotlib inline", "magic"), ("!ls", "shell"), ("from diffusers import X", "diffusers"),
    ("import course.classroom.checks", "course.classroom"), ("get_ipython()", "get_ipython")])
def test_rules_of_the_course(source, rule):
    assert rule in submissions.breaks_policy(f"x = 1\n{source}\n")
    assert submissions.breaks_policy(RIGHT) is None and submissions.breaks_policy("def (:") is None


def test_ids_are_not_shared_between_exercises():
    ids = [id.replace(".", "-") for id in curriculum.tasks()]
    assert len(set(ids)) == len(ids) and GRADE_ID in ids and json.dumps(ids)
