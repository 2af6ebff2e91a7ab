"""`course grade` from what was handed in to the files that come out."""

import ast
import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import nbformat
import pytest

from course.classroom import checks, curriculum, exports, grade, mutants, pages, sandbox, similar
from course.classroom.release import ROOT
from course.errors import UsageError
from tests.attacks.files import RIGHT, cell, notebook
from tests.classroom import simulated

ID, TWO = "schedule.add_noise", ("schedule.add_noise", "schedule.log_snr")
needs_sandbox = pytest.mark.skipif(sandbox.available() is not None, reason=f"no sandbox: {sandbox.available()}")


def hand_in(folder, name: str, **sources) -> None:
    (folder / name).mkdir(parents=True)
    cells = [cell(source, id.replace("__", "-")) for id, source in sources.items()]
    (folder / name / "a.ipynb").write_bytes(notebook(*cells))


def run(tmp_path, **options):
    points = tmp_path / "points.json"
    points.write_text(json.dumps(dict.fromkeys(options.pop("ids", TWO), 3)))
    return grade.run([tmp_path / "in"], tmp_path / "out", points=points, **options)


# ---- without a kernel

def test_every_exercise_is_known_with_its_stub_hints_and_answer():
    for id, task in curriculum.tasks().items():
        assert task.stub and task.hints and task.prompt and task.answer in task.source, id
        assert "NotImplementedError" in task.stub and "BEGIN SOLUTION" in task.source, id


@pytest.mark.parametrize("id", list(curriculum.tasks()))
def test_the_answer_is_nowhere_in_what_the_sandbox_sees(id):
    """No function or class in it is near the reference, as a student's copy of it would be."""
    task = curriculum.tasks()[id]
    mine = similar.tokens(task.source)
    before = curriculum.prerequisites(task, task.source)
    assert not any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == task.answer for n in ast.parse(before).body)
    for path, text in curriculum.library(task).items():
        if path.startswith("course/classroom"):
            assert path.rpartition("/")[2].removesuffix(".py") in (*curriculum.OURS, "__init__")
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                near = similar.difflib.SequenceMatcher(None, similar.tokens(ast.unparse(node)), mine, autojunk=False).ratio()
                assert near < 0.85 or len(mine) < 60, (path, node.name, near)


def test_what_an_answer_needs_stands_before_it():
    task = curriculum.tasks()["samplers.ddim"]
    before = curriculum.prerequisites(task, task.source)
    assert "def ddim_step" in before and "import torch" in before and "def ddim(" not in before
    own = {"samplers.ddim_step": "def ddim_step(*a):\n    return 'mine'"}
    assert "'mine'" in curriculum.prerequisites(task, task.source, own)


@pytest.mark.parametrize(("id", "line", "name"), [
    ("sdxl.hand_over", "samplers.ddim()", "from course import samplers"),
    ("unet.count_unet", "samplers.ddim()", "from course import samplers"),
    ("sdxl.hand_over", "StableDiffusion.load('scenes64')", None)])
def test_an_answer_finds_what_the_notebook_imports_where_it_may_use_it(id, line, name):
    task = curriculum.tasks()[id]
    before = curriculum.prerequisites(task, line)
    assert before == (name or "")
    if name:
        assert f"course/{name.split()[-1]}.py" in curriculum.library(task)


def test_a_class_of_the_library_is_found_by_its_own_name():
    lines = list(curriculum._binds(ast.parse("from course.unet import UNet, Nothing as N").body[0], "", ("unet",)))
    assert lines == [("UNet", "from course.unet import UNet"), ("N", "from course.unet import Nothing as N")]
    assert not list(curriculum._binds(ast.parse("from course.unet import UNet").body[0], "", ("vae",)))
    assert not list(curriculum._binds(ast.parse("from course.classroom import check").body[0], "", ("vae",)))


def test_cutting_leaves_the_rest():
    text = ("import a\n\n@a.b\ndef f(x):\n    return 1\n\n\n"
            "class C:\n    def g(self):\n        return 2\n\n    def f(self):\n        return 3\n")
    space = {"a": type("a", (), {"b": staticmethod(lambda f: f)})}
    exec(curriculum.cut(text, {"f"}).replace("import a", ""), space)
    assert space["C"]().g() == 2
    for call in (space["f"], space["C"]().f):
        with pytest.raises(NotImplementedError):
            call()


def test_without_a_sandbox_it_refuses_and_says_what_to_do(tmp_path, monkeypatch):
    hand_in(tmp_path / "in", "ann", schedule__add_noise=RIGHT)
    monkeypatch.setattr(sandbox, "available", lambda: "no namespaces here")
    with pytest.raises(UsageError, match=r"UNSANDBOXED.*no namespaces here(.|\n)*docker run(.|\n)*--trusted"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("points", ['{"no.such": 1}', "[1]", "{", '{"schedule.add_noise": 0}'])
def test_points_that_make_no_sense_are_misuse(points, tmp_path):
    (tmp_path / "p.json").write_text(points)
    with pytest.raises(UsageError):
        grade._points(tmp_path / "p.json")


def table() -> grade.Class:
    from course.classroom.submissions import Student
    source = "x = '</code><script>alert(1)</script>'"
    students = {n: Student(n, sources={ID: source}) for n in ("=cmd()", "<b>Eve</b>", "../../up")}
    marks = {n: {ID: grade.Mark("wrong", 1.5, 3.0, "it raised <i>ValueError</i>\x00", ["✗ title\n    why"])} for n in students}
    return grade.Class(students, [ID], {ID: 3.0}, marks)


def test_names_and_code_cannot_break_out_of_pages_tables_and_folders(tmp_path):
    made = table()
    grade.write(made, tmp_path / "out")
    written = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"] and len(list((tmp_path / "out/feedback").iterdir())) == 3
    for path in (tmp_path / "out").rglob("*.html"):
        text = path.read_text()
        assert "<script" not in text and "<b>Eve" not in text and "<i>ValueError" not in text
    for name in ("grades.csv", "exports/moodle.csv", "exports/canvas.csv", "exports/nbgrader.csv"):
        rows = list(csv.reader(io.StringIO((tmp_path / "out" / name).read_text())))
        assert all(not c.startswith(("=", "+", "@")) for row in rows for c in row) and len({len(r) for r in rows}) == 1
    root = ElementTree.parse(tmp_path / "out/junit.xml").getroot()
    assert len(root) == 3 and root[0].attrib["failures"] == "1" and "junit.xml" in written


def test_file_names_of_students_never_meet():
    names = ["ann", "Ann", "a nn", "a-nn", "a/nn", "ä", "ö", "", ".", "..", "x" * 300, "x" * 301]
    assert len({pages.file_name(n) for n in names}) == len(names)
    assert all("/" not in pages.file_name(n) and len(pages.file_name(n)) < 100 for n in names)


def test_alike_is_code_without_names_and_comments():
    one = "def f(x):\n    '''doc'''\n    y = x * 2  # twice\n    return y + 1\n"
    two = "def g(value):\n    z = value * 2\n    return z + 1"
    assert similar.tokens(one) == similar.tokens(two) != similar.tokens(one.replace("*", "/"))
    assert similar.tokens("not python (") and exports.plain("a\x00b\ud800") == "a?b?"


# ---- with kernels

@needs_sandbox
def test_a_small_class(tmp_path):
    wrong = RIGHT.replace("+ (1", "- (1")
    hand_in(tmp_path / "in", "ann", schedule__add_noise=RIGHT, schedule__log_snr=curriculum.tasks()[TWO[1]].source)
    hand_in(tmp_path / "in", "ben", schedule__add_noise=wrong, schedule__log_snr="def log_snr(:")
    hand_in(tmp_path / "in", "cem", schedule__add_noise=wrong, schedule__log_snr=curriculum.tasks()[TWO[1]].stub)
    said = []
    made = run(tmp_path, say=said.append)
    got = {n: [(m.status, m.points) for m in row.values()] for n, row in made.marks.items()}
    assert got == {"ann": [("correct", 3.0), ("correct", 3.0)], "ben": [("partial", 1.0), ("error", 0.0)],
                   "cem": [("partial", 1.0), ("missing", 0.0)]}
    assert "4 different answers, 0 of them graded before" in said        # ben's and cem's equal answer was run once
    assert "the noise is subtracted" in " ".join(made.marks["ben"][ID].messages)
    assert "SyntaxError" in made.marks["ben"][TWO[1]].why
    again = []
    run(tmp_path, say=again.append)
    assert "4 different answers, 4 of them graded before" in again


# an hour and more of two cores: `make class` runs them, `make test-all` does not
whole_class = pytest.mark.skipif(not os.environ.get("COURSE_CLASS"), reason="`make class` runs it")


def solution_folder(base, kind: str, stems) -> None:
    (base / kind).mkdir(parents=True)
    for stem in stems:
        shutil.copy(ROOT / ("solutions" if kind == "solutions" else "notebooks") / f"{stem}.ipynb", base / kind)


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("stem", list(curriculum.chapters()))
def test_solutions_score_everything_and_untouched_notebooks_nothing(stem, tmp_path):
    for kind in ("solutions", "untouched"):
        solution_folder(tmp_path / "in", kind, [stem])
    for chain in (False, True) if os.environ.get("COURSE_CLASS") else (False,):
        made = grade.run([tmp_path / "in"], tmp_path / "out", chain=chain, jobs=2)
        wrong = {id: (m.status, m.why, m.messages) for id, m in made.marks["solutions"].items() if m.status != "correct"}
        assert not wrong and made.total("solutions") == sum(made.most.values())
        assert made.total("untouched") == 0 and {m.status for m in made.marks["untouched"].values()} == {"missing"}


@needs_sandbox
@whole_class
@pytest.mark.slow
@pytest.mark.parametrize("stem", list(curriculum.chapters()))
def test_every_wrong_answer_loses_and_every_right_one_keeps_its_points(stem, tmp_path):
    """The file of answers of a chapter is what a student handed in; its answers are tried one after the other in one kernel."""
    answers, number = mutants.load(), stem[:2]
    text = (mutants.FOLDER / f"ch{number}.py").read_text("utf-8")
    folder = tmp_path / "units"
    folder.mkdir()
    for place, (id, _) in enumerate(curriculum.chapters()[stem].tasks.items()):
        # an answer that hands in the library's own part has nothing to hand in: it is cut out of what the sandbox sees
        names = [f"{kind}/{a[0]}" for kind in ("wrong", "right") for a in getattr(answers[id], kind) if a[0] != "ByTheLibrary"]
        serve = (f"serve({{f'{{kind}}/{{a[0]}}': a[1] for kind, answers in (('wrong', WRONG), ('right', RIGHT)) "
                 f"for a in answers[{id!r}]}})")
        cells = [("setup", ""), ("answer", text), ("probe", f"from course.classroom.bridge import serve\n{serve}")]
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(t, metadata={"role": r}) for r, t in cells])
        nbformat.write(made, folder / f"{place:03d}.ipynb")
        (folder / f"{place:03d}.json").write_text(json.dumps(
            {"id": id, "salt": 12345, "sandbox": True, "names": names, "seconds": {"setup": 60, "answer": 60, "probe": 300},
             "limits": {"cpu": 400, "wall": 500}}))
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:python",
                    "-p", "course.classroom.plugin", "--nbval-lax", "-c", os.devnull, "--rootdir", str(folder), str(folder)],
                   cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True)
    problems = []
    for place, (id, task) in enumerate(curriculum.chapters()[stem].tasks.items()):
        verdict = json.loads((folder / f"{place:03d}.result.json").read_text())
        assert "each" in verdict, verdict
        for name, found in verdict["each"].items():
            if (found["points"] == task.points) != name.startswith("right/"):
                problems.append((id, name, found))
        assert len(verdict["each"]) >= len(answers[id].wrong) + len(answers[id].right) - 1
    assert not problems


def files_of(folder) -> dict[str, bytes]:
    """What a run leaves; how long a verdict took is no part of it."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {n: b"" if n.startswith("verdicts/") else data for n, data in found.items()}


def graded(tmp_path, chapters, students, jobs: int = 2) -> float:
    """Grade a simulated class; returns the seconds it took. Every cell of the table is as it has to be."""
    expected = simulated.make(tmp_path / "in", chapters, students)
    began = time.monotonic()
    made = grade.run([tmp_path / "in"], tmp_path / "whole", jobs=jobs, say=print)
    took = time.monotonic() - began
    print(f"{students} students x {len(chapters)} chapters in {took / 60:.1f} minutes")
    assert simulated.differences(made, expected) == []
    return took


@needs_sandbox
@pytest.mark.slow
def test_a_class_that_is_killed_and_called_again_ends_with_the_same_files(tmp_path):
    took = graded(tmp_path, ["05"], 6)
    (tmp_path / "killed").mkdir()
    shutil.copy(tmp_path / "whole/.secret", tmp_path / "killed/.secret")
    command = [sys.executable, "-m", "course", "grade", str(tmp_path / "in"), "--out", str(tmp_path / "killed"), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(random.uniform(0.2, 0.8) * took)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/grades.csv").exists()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    whole, killed = files_of(tmp_path / "whole"), files_of(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert [n for n in whole if whole[n] != killed[n]] == []


@needs_sandbox
@whole_class
@pytest.mark.slow
def test_forty_students_three_chapters_within_an_hour(tmp_path):
    assert graded(tmp_path, ["05", "06", "07"], 40) < 3600


def test_the_command_says_what_is_wrong(tmp_path):
    done = subprocess.run([sys.executable, "-m", "course", "grade", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "no such file" in done.stderr + done.stdout or "UNSANDBOXED" in done.stderr
    assert checks.exercises()
