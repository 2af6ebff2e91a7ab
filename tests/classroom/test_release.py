"""One source gives two notebooks: stable, valid, in step; the solution scores full, the untouched student's 0."""

import ast
import base64
import io
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from course.classroom import checks, release

ROOT = Path(__file__).parents[2]
CHAPTERS = release.chapters()
TOY = '''\
# %% [markdown]
# # A toy chapter

# %%
from course.classroom import check, use

# %% [markdown]
# same words

# %% [markdown]
# same words

# %% [markdown] exercise="schedule.timesteps" role="prompt"
# ## Exercise
#
# Write it.

# %% exercise="schedule.timesteps" role="solution"
def timesteps(steps: int, num_steps=1000, *, spacing="trailing") -> "Tensor":
    """Docstring stays."""
    import torch
    ### BEGIN SOLUTION
    secret = torch.arange(steps)
    return secret
    ### END SOLUTION


class Pair:
    def first(self, x):
        ### BEGIN SOLUTION
        return x
        ### END SOLUTION

    def second(self, x):
        if x:
            ### BEGIN SOLUTION
            return -x
            ### END SOLUTION
        return x


# %% exercise="schedule.timesteps" role="check"
check("schedule.timesteps", timesteps)

# %% [markdown] exercise="schedule.timesteps" role="hint"
# Think.
#
# ---
#
# Think *harder*.

# %% tags=["gpu"]
print("done")
'''


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "solutions" / "99_toy.py"
    path.parent.mkdir()
    path.write_text(TOY)
    return path


def by_role(notebook, role):
    return [c for c in notebook.cells if c.metadata.get("course", {}).get("role") == role]


# ---- the build

def test_a_build_is_the_same_every_time(toy):
    first = [p.read_bytes() for p in release.build(toy, execute=False)]
    second = [p.read_bytes() for p in release.build(toy, execute=False)]
    assert first == second
    assert all(data.endswith(b"}\n") for data in first)


def test_where_only_text_changed_the_outputs_are_kept(toy):
    place, _ = release.build(toy, execute=False)
    notebook = nbformat.read(place, as_version=4)
    cell = next(c for c in notebook.cells if c.cell_type == "code")
    cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="seen")], 7
    nbformat.write(notebook, place)
    toy.write_text(toy.read_text() + "\n# %% [markdown]\n# A last word.\n")
    release.build(toy, prose=True)
    kept = nbformat.read(place, as_version=4)
    assert kept.cells[-1].source == "A last word."
    same = next(c for c in kept.cells if c.cell_type == "code")
    assert same.outputs[0].text == "seen" and same.execution_count == 7
    toy.write_text(toy.read_text() + "\n# %%\n1 + 1\n")
    with pytest.raises(release.ReleaseError, match="its code changed"):
        release.build(toy, prose=True)


def test_ids_come_from_the_exercise_or_the_content_and_survive_edits_elsewhere(toy):
    before = [c.id for c in release.notebooks(toy)[0].cells]
    assert len(set(before)) == len(before)
    assert "schedule-timesteps-solution" in before and "schedule-timesteps-check" in before
    assert [i for i in before if i.endswith("-2")], "the second of two equal cells gets a number"
    toy.write_text(TOY.replace("# A toy chapter", "# A toy chapter, edited").replace("return secret", "return -secret"))
    after = [c.id for c in release.notebooks(toy)[0].cells]
    assert before[1:] == after[1:] and before[0] != after[0]


def test_solution_and_student_have_the_same_cells(toy):
    solution, student = release.notebooks(toy)
    assert [c.id for c in solution.cells] == [c.id for c in student.cells]
    different = [s.id for s, t in zip(solution.cells, student.cells, strict=True) if s.source != t.source]
    assert different == ["schedule-timesteps-solution"]


def test_the_stub_keeps_the_signatures_and_hides_the_solution(toy):
    solution, student = (by_role(n, "solution")[0].source for n in release.notebooks(toy))
    assert "secret" in solution and "secret" not in student
    assert "BEGIN SOLUTION" not in student and "# TODO" in student and "Docstring stays." in student

    def signatures(source):
        found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
        return [(f.name, ast.dump(f.args), ast.dump(f.returns) if f.returns else "") for f in found]
    assert signatures(solution) == signatures(student)
    names = {}
    exec(student, names)                                       # defining a stub raises nothing, calling it does
    with pytest.raises(NotImplementedError, match="schedule.timesteps"):
        names["timesteps"](3)
    with pytest.raises(NotImplementedError):
        names["Pair"]().second(1)
    assert names["Pair"]().second(0) == 0


def test_hints_are_folded_and_prompts_say_points_and_minutes(toy):
    _, student = release.notebooks(toy)
    hint = by_role(student, "hint")[0].source
    assert hint.count("<details>") == hint.count("</details>") == 2
    assert "<summary>Hint 2</summary>\n\nThink *harder*." in hint
    exercise = checks.find("schedule.timesteps")
    assert f"**{exercise.points} points · about {exercise.minutes} minutes**" in by_role(student, "prompt")[0].source


def test_the_student_notebook_holds_no_outputs(toy):
    _, place = release.build(toy, execute=False)
    for cell in nbformat.read(place, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


# ---- what a malformed source gives

@pytest.mark.parametrize("old, new, words", [
    ("    return secret\n    ### END SOLUTION\n", "    return secret\n", "inside a solution"),
    ("            return -x\n            ### END SOLUTION\n", "            return -x\n", "never closed"),
    ("        ### BEGIN SOLUTION\n        return x\n", "        return x\n", "END SOLUTION without"),
    ("    ### BEGIN SOLUTION\n    secret", "### BEGIN SOLUTION\n    secret", "must stand inside a function"),
    ('exercise="schedule.timesteps"', 'exercise="schedule.tmesteps"', "no check of this name"),
    ('check("schedule.timesteps", timesteps)', 'check("schedule.add_noise", timesteps)', "the check cell"),
    ('# %% exercise="schedule.timesteps" role="check"', "# %%", "expected the cells prompt, solution"),
    ('# %% tags=["gpu"]\n', '# %%\n### BEGIN SOLUTION\n', "expected the cells"),
    ("            ### BEGIN SOLUTION\n            return -x", "        ### BEGIN SOLUTION\n        1", "no Python"),
], ids=["unclosed first", "unclosed last", "END alone", "at the margin", "unknown id", "other id checked", "no check cell",
        "solution outside an exercise", "stub does not parse"])
def test_a_malformed_source_is_refused_by_name(toy, old, new, words):
    assert old in TOY
    toy.write_text(TOY.replace(old, new))
    with pytest.raises(release.ReleaseError, match=re.escape(words)) as caught:
        release.notebooks(toy)
    assert "99_toy.py" in str(caught.value)


def test_an_exercise_may_occur_only_once(toy):
    start = TOY.index("# %% [markdown] exercise")
    stop = TOY.index('# %% tags=["gpu"]')
    toy.write_text(TOY + "\n" + TOY[start:stop])
    with pytest.raises(release.ReleaseError, match="occurs twice"):
        release.notebooks(toy)


# ---- execution

PLAIN = "# %%\nprint('a')\nprint('b')\n"
PICTURE = """# %%
import io, os
from IPython.display import Image, display
import PIL.Image
buffer = io.BytesIO()
PIL.Image.frombytes("RGB", ({side}, {side}), os.urandom({side} * {side} * 3)).save(buffer, "PNG")
for _ in range({count}):
    display(Image(buffer.getvalue()))
"""


def executed(tmp_path, source):
    path = tmp_path / "solutions" / "98_run.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    solution, _ = release.build(path)
    assert release.check_in_step(path) == []
    return json.loads(solution.read_text()), solution


def test_an_executed_notebook_holds_nothing_that_changes_from_run_to_run(tmp_path):
    notebook, place = executed(tmp_path, PLAIN + PICTURE.format(side=40, count=1))
    again, _ = executed(tmp_path, PLAIN + PICTURE.format(side=40, count=1))
    assert notebook["cells"][0] == again["cells"][0]
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert "version" not in json.dumps(notebook["metadata"])
    assert [o["text"] for o in notebook["cells"][0]["outputs"]] == [["a\n", "b\n"]]
    assert notebook["cells"][0]["execution_count"] == 1 and "execution" not in notebook["cells"][0]["metadata"]


@pytest.mark.parametrize("source, words", [
    (PICTURE.format(side=100, count=1), "a picture of"),
    (PICTURE.format(side=40, count=20), "its largest cell is"),
    ("# %%\nimport sys\nprint('careful', file=sys.stderr)\n", "writes to stderr"),
    ("# %%\nx = 1\n\n# %%\nx / 0\n", "ZeroDivisionError"),
], ids=["picture", "notebook", "stderr", "error"])
def test_an_output_that_must_not_ship_is_refused_with_its_cell(tmp_path, monkeypatch, source, words):
    assert (release.PICTURE_LIMIT, release.NOTEBOOK_LIMIT) == (60 * 1024, 300 * 1024)
    monkeypatch.setattr(release, "PICTURE_LIMIT", 4 * 1024)    # noise takes long to squeeze, so test small
    monkeypatch.setattr(release, "NOTEBOOK_LIMIT", 20 * 1024)
    with pytest.raises(release.ReleaseError, match=words) as caught:
        executed(tmp_path, source)
    path = tmp_path / "solutions" / "98_run.py"
    assert [c.id for c in release.notebooks(path)[0].cells][-1] in str(caught.value)
    assert not path.with_suffix(".ipynb").exists()


# ---- in step

def test_an_edited_notebook_is_detected(toy):
    solution, student = release.build(toy, execute=False)
    assert all("has not been executed" in d and "solutions/" in d for d in release.check_in_step(toy))

    def edited(place, change):
        original = place.read_bytes()
        notebook = nbformat.read(place, as_version=4)
        change(notebook)
        nbformat.write(notebook, place)
        found = [d for d in release.check_in_step(toy) if "has not been executed" not in d]
        place.write_bytes(original)
        return found

    def set_source(n):
        n.cells[1].source += "\nx = 1"

    def set_points(n):
        by_role(n, "check")[0].metadata.nbgrader.points = 99

    def give_away(n):
        by_role(n, "solution")[0].source = "timesteps = None"

    def run(n):
        n.cells[1].execution_count = 1

    assert "differs in its source" in edited(solution, set_source)[0]
    assert "differs in its metadata" in edited(student, set_points)[0]
    assert "schedule-timesteps-solution" in edited(student, give_away)[0]
    assert "has been executed" in edited(student, run)[0]
    assert "not those of the source" in edited(student, lambda n: n.cells.pop())[0]
    assert "metadata differs" in edited(student, lambda n: n.metadata.update(x=1))[0]
    student.write_text("no notebook")
    assert any("no notebook" in d for d in release.check_in_step(toy))
    student.unlink()
    assert any("missing" in d for d in release.check_in_step(toy))


# ---- the chapters

@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_the_committed_notebooks_are_in_step_with_the_source(path):
    assert release.check_in_step(path) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_nbgrader_metadata_follows_schema_3(path):
    for notebook in release.notebooks(path):
        ids = []
        for cell in notebook.cells:
            assert set(cell.metadata) <= {"course", "nbgrader", "tags", "deletable", "editable"}
            found = cell.metadata.get("nbgrader")
            if found is None:
                continue
            allowed = {"schema_version": int, "grade": bool, "solution": bool, "locked": bool, "task": bool,
                       "grade_id": str, "points": (int, float)}
            assert set(found) <= set(allowed)
            assert {"schema_version", "grade", "solution", "locked", "grade_id"} <= set(found)
            assert all(isinstance(value, allowed[key]) for key, value in found.items())
            assert found.schema_version == 3
            assert re.fullmatch(r"[a-zA-Z0-9_\-]+", found.grade_id)
            assert ("points" in found) == found.grade and found.get("points", 0) >= 0
            assert (found.grade, found.solution, found.locked) in ((True, False, True), (False, True, False))
            ids.append(found.grade_id)
        assert len(set(ids)) == len(ids) and ids


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_keeps_within_its_limits(path):
    solution, student = path.with_suffix(".ipynb"), ROOT / "notebooks" / f"{path.stem}.ipynb"
    assert solution.stat().st_size <= 300 * 1024 and student.stat().st_size <= 300 * 1024
    notebook = nbformat.read(solution, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr", cell.id
            if "image/png" in output.get("data", {}):
                data = base64.b64decode(output.data["image/png"])
                assert len(data) <= 60 * 1024 and not Image.open(io.BytesIO(data)).text, cell.id
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    lines = sum(bool(line.strip()) for c in notebook.cells if c.cell_type == "code" for line in c.source.splitlines())
    assert words <= 3000 and lines <= 400
    for cell in by_role(notebook, "solution"):
        inside = [line for part in cell.source.split(release.BEGIN)[1:] for line in part.split(release.END)[0].splitlines()]
        assert 5 <= len([line for line in inside if line.strip()]) <= 25, cell.id
    shown = solution.read_text() + student.read_text()
    assert str(ROOT) not in shown and "/tmp/" not in shown


def run(path, folder, monkeypatch, **environment):
    """The notebook at `path`, executed in the quick profile somewhere else."""
    for name, value in {"COURSE_PROFILE": "quick", "COURSE_GRADING": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    copy = shutil.copy(path, folder)
    notebook = nbformat.read(copy, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where).execute()
    return notebook


def scores(notebook):
    """Points as nbgrader reads them: the check cell's execute_result, forfeited by anything on stderr."""
    found = {}
    for cell in by_role(notebook, "check"):
        assert not [o for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
        [result] = [o for o in cell.outputs if o.output_type == "execute_result"]
        found[cell.metadata.course.exercise] = float(result.data["text/plain"])
    return found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_figures_look_alike_in_all_chapters(path):
    text = path.read_text("utf-8")
    assert "figure_style(" in text and "rcParams" not in text
    assert set(re.findall(r'"(#[0-9a-f]{6})"', text.lower())) <= {"#dddddd"}          # a frame; the others have names


# `make test` runs every notebook by nbval as it is; what each scores on the way is asked of two, and in `make test-all` of all
RUN = [pytest.param(path, id=path.stem, marks=[] if path.stem[:2] in ("05", "12") else pytest.mark.slow) for path in CHAPTERS]


@pytest.mark.parametrize("path", RUN)
def test_the_solution_scores_full_even_when_graded(path, tmp_path, monkeypatch):
    notebook = run(path.with_suffix(".ipynb"), tmp_path, monkeypatch, COURSE_GRADING="1")
    found = scores(notebook)
    assert found == {id: checks.find(id).points for id in found} and found
    assert found == {c.metadata.course.exercise: c.metadata.nbgrader.points for c in by_role(notebook, "check")}


@pytest.mark.parametrize("path", RUN)
def test_the_untouched_student_notebook_runs_to_its_end_and_scores_nothing(path, tmp_path, monkeypatch):
    notebook = run(ROOT / "notebooks" / path.name.replace(".py", ".ipynb"), tmp_path, monkeypatch)
    assert set(scores(notebook).values()) == {0.0}
    assert not any("raises-exception" in c.metadata.get("tags", []) for c in notebook.cells)
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code" and c.source)
    shown = json.dumps(notebook)
    assert shown.count("not written yet") == len(by_role(notebook, "check"))
    assert shown.count("course's own part instead.") == len(by_role(notebook, "check"))
