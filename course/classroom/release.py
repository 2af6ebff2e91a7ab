"""From one source to two notebooks: the executed solution, and the student's with stubs in place of solutions.

    solutions/05_forward_process.py  ->  solutions/05_forward_process.ipynb   executed, normalised
    (jupytext percent; edit this)        notebooks/05_forward_process.ipynb   stubs, no outputs

An exercise is four cells that carry `exercise="<id>"` and a role on their cell line:

    # %% [markdown] exercise="schedule.add_noise" role="prompt"     a heading, then signature and shapes
    # %% exercise="schedule.add_noise" role="solution"              BEGIN/END SOLUTION inside a function
    # %% exercise="schedule.add_noise" role="check"                 check("schedule.add_noise", add_noise)
    # %% [markdown] exercise="schedule.add_noise" role="hint"       hints of rising specificity, `---` between them

A cell that builds a part of the library from several answers says which class of it that is:

    # %% part="schedule.NoiseSchedule" is="MySchedule"              collected by `parts.from_notebooks`

The rest is made here: ids that survive a rebuild, points and minutes from the check, nbgrader (schema 3) and nbval
metadata, own keys under `metadata.course`, and each hint folded away in <details>.
"""

import ast
import base64
import hashlib
import io
import os
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from course.classroom import checks, mutants
from course.errors import CourseError

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("prompt", "solution", "check", "hint")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
PICTURE_AIM, PICTURE_LIMIT, NOTEBOOK_LIMIT = 8 * 1024, 60 * 1024, 300 * 1024      # bytes
CELL_SECONDS = 600


class ReleaseError(CourseError):
    """A chapter cannot be built; the message names the file and the cell."""


def chapters() -> list[Path]:
    """The sources of all chapters, in order. Raises ReleaseError outside a checkout."""
    if found := sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py")):
        return found
    raise ReleaseError(f"no chapters in {ROOT / 'solutions'}: `course release` works in a checkout")


def build(path: str | Path, execute: bool = True, prose: bool = False) -> tuple[Path, Path]:
    """Write both notebooks of the chapter at `path`; returns (solution, student).

    With `prose=True` nothing is executed: the outputs are those of the notebook on disk, whose code must be the same.
    With `execute=False` the solution is written without outputs, which `check_in_step` reports.
    Raises ReleaseError for a malformed exercise, a cell that fails or warns, or an output that is too large.
    """
    path = Path(path)
    solution, student = notebooks(path)
    if prose:
        _keep_outputs(solution, _places(path)[0])
    elif execute:
        _execute(solution, path)
    for notebook, place in zip((solution, student), _places(path), strict=True):
        data = (nbformat.writes(notebook).rstrip("\n") + "\n").encode("utf-8")
        if len(data) > NOTEBOOK_LIMIT:
            largest = max(notebook.cells, key=lambda cell: len(str(cell))).id
            raise ReleaseError(f"{place.name} has {len(data) >> 10} KB, allowed are {NOTEBOOK_LIMIT >> 10}; "
                               f"its largest cell is {largest}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return _places(path)


def check_in_step(path: str | Path) -> list[str]:
    """What differs between the notebooks on disk and what `path` would give; empty where they are in step.

    Nothing is executed: sources, ids and metadata are compared, that each code cell of the solution has run, and that each
    exercise comes with enough wrong and right answers to try its check on.
    """
    path, answers = Path(path), mutants.load()
    differences = [line for id in exercises_of(path) for line in mutants.missing(id, answers)]
    for expected, place in zip(notebooks(path), _places(path), strict=True):
        name, executed = f"{place.parent.name}/{place.name}", place.parent == path.parent
        try:
            found = nbformat.reads(place.read_text("utf-8"), as_version=4)
        except (OSError, ValueError, nbformat.ValidationError) as error:
            differences.append(f"{name} is missing or no notebook ({type(error).__name__})")
            continue
        if found.metadata != expected.metadata:
            differences.append(f"{name}: the notebook's metadata differs")
        if [c.get("id") for c in found.cells] != [c.id for c in expected.cells]:
            differences.append(f"{name}: the cells are not those of the source, or not in its order")
        mine = {c.id: c for c in expected.cells}
        for cell in (c for c in found.cells if c.get("id") in mine):
            keys = [key for key in ("cell_type", "source", "metadata") if cell[key] != mine[cell.id][key]]
            differences += [f"{name}: cell {cell.id} differs in its {key}" for key in keys]
            if cell.cell_type == "code" and executed != (cell.execution_count is not None):
                differences.append(f"{name}: cell {cell.id} {'has not' if executed else 'has'} been executed")
    return differences


def exercises_of(path: str | Path) -> list[str]:
    """The exercises of a chapter's source, in order."""
    return re.findall(r'^# %% exercise="([^"]+)" role="solution"', Path(path).read_text("utf-8"), flags=re.M)


def notebooks(path: str | Path):
    """(solution, student) of the source at `path`, both without outputs, the same for the same source."""
    import jupytext

    path = Path(path)
    cells = [c for c in jupytext.reads(path.read_text("utf-8"), fmt="py:percent").cells if c.cell_type != "raw"]
    _require_exercises(path, cells)
    pair = []
    for kind in ("solution", "student"):
        made, taken = [], {}
        for cell in cells:
            hide = kind == "student" and cell.metadata.get("role") == "solution"
            text = stub(cell.source, cell.metadata["exercise"]) if hide else cell.source
            new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
            made.append(new(_dress(text, cell.metadata), id=_cell_id(cell, taken), metadata=_metadata(cell)))
        pair.append(nbformat.v4.new_notebook(cells=made, metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}, "course": {"chapter": path.stem, "kind": kind}}))
        nbformat.validate(pair[-1])
    return tuple(pair)


def stub(source: str, exercise: str, where: str = "the cell") -> str:
    """`source` with every marked solution replaced by a TODO that raises; what is outside the markers stays."""
    kept, inside, indent = [], False, ""
    for line in source.splitlines():
        if BEGIN in line:
            indent = line[: len(line) - len(line.lstrip())]
            if inside or not indent:
                raise ReleaseError(f"{where}: {BEGIN} " + ("inside a solution" if inside else
                                   "must stand inside a function, below its signature: the stub has to define it"))
            inside = True
        elif END in line:
            if not inside:
                raise ReleaseError(f"{where}: {END} without {BEGIN}")
            inside = False
            kept += [f"{indent}# TODO: your code here, then delete the next line",
                     f'{indent}raise NotImplementedError("{exercise}")']
        elif not inside:
            kept.append(line)
    if inside:
        raise ReleaseError(f"{where}: {BEGIN} is never closed")
    return "\n".join(kept)


# ---- a cell

def _require_exercises(path: Path, cells) -> None:
    """Every exercise has its four cells, once, side by side, a check that exists, and a stub that parses."""
    seen, marked = [], [(i, c) for i, c in enumerate(cells) if "exercise" in c.metadata or BEGIN in c.source]
    for four in (marked[k: k + len(ROLES)] for k in range(0, len(marked), len(ROLES))):
        first, id = four[0][0], four[0][1].metadata.get("exercise")
        where = f"{path.name}, exercise {id!r}"
        if [(i, c.metadata.get("exercise"), c.metadata.get("role")) for i, c in four] != \
                [(first + k, id, role) for k, role in enumerate(ROLES)]:
            raise ReleaseError(f"{where}: expected the cells {', '.join(ROLES)}, in this order and side by side")
        if id not in checks.exercises() or id in seen:
            raise ReleaseError(f"{where}: " + ("occurs twice" if id in seen else "there is no check of this name"))
        seen.append(id)
        solution, checking = four[1][1].source, four[2][1].source
        if BEGIN not in solution or f'check("{id}", ' not in checking:
            raise ReleaseError(f'{where}: the solution needs {BEGIN}, the check cell check("{id}", ...)')
        try:
            ast.parse(stub(solution, id, where))
        except SyntaxError as error:
            raise ReleaseError(f"{where}: the stub is no Python ({error.msg})") from None


def _cell_id(cell, taken: dict[str, int]) -> str:
    """From the exercise where there is one, else from the content; the second of two equal cells gets a number."""
    if "exercise" in cell.metadata:
        return f"{cell.metadata['exercise'].replace('.', '-')}-{cell.metadata['role']}"
    name = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"


def _metadata(cell) -> NotebookNode:
    role, tags = cell.metadata.get("role"), list(cell.metadata.get("tags", []))
    if role is None:
        made = {"course": {"part": cell.metadata["part"], "is": cell.metadata["is"]}} if "part" in cell.metadata else {}
        return nbformat.from_dict(made | ({"tags": tags} if tags else {}))
    exercise = checks.find(cell.metadata["exercise"])
    id, own = exercise.id.replace(".", "-"), {"exercise": exercise.id, "role": role, "minutes": exercise.minutes}
    grading = {"schema_version": 3, "grade": False, "solution": False, "locked": False, "task": False}
    if role == "solution":
        grading |= {"solution": True, "grade_id": id}
    if role == "check":
        grading |= {"grade": True, "locked": True, "grade_id": f"{id}-check", "points": exercise.points}
        tags.append("nbval-check-output")                      # the report is words and points, the same everywhere
    made = {"course": own, "tags": [*tags, "exercise" if role == "solution" else role]}
    made |= {"nbgrader": grading} if "grade_id" in grading else {}
    return nbformat.from_dict(made | ({"deletable": False, "editable": False} if role == "check" else {}))


def _dress(text: str, metadata) -> str:
    """Points under a prompt's heading, the exercise's id above its code, each hint folded away."""
    role = metadata.get("role")
    if role == "prompt":
        exercise = checks.find(metadata["exercise"])
        heading, _, rest = text.partition("\n")
        return f"{heading}\n\n**{exercise.points} points · about {exercise.minutes} minutes** · `{exercise.id}`\n{rest}"
    if role == "solution":
        return f"# exercise: {metadata['exercise']}\n{text}"
    if role == "hint":
        return "\n\n".join(f"<details><summary>Hint {n}</summary>\n\n{hint.strip()}\n\n</details>"
                           for n, hint in enumerate(re.split(r"^---$", text, flags=re.M), 1))
    return text


def _execute(notebook, path: Path) -> None:
    """Run in a fresh kernel, in the profile `cpu`, beside the source; then strip what changes from run to run."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"COURSE_GRADING": "0", "COURSE_PROFILE": "cpu", "PYTHONPATH": paths}
    client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False,
                            coalesce_streams=True, resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute(env=env)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        ran = [c.id for c in notebook.cells if c.get("execution_count")] or ["1"]
        told = str(error).strip().splitlines()[0 if isinstance(error, CellTimeoutError) else -1]
        raise ReleaseError(f"{path.name}, cell {ran[-1]} failed: {told}") from error
    notebook.metadata["language_info"] = NotebookNode(name="python")          # without the version of this Python
    notebook.metadata.pop("widgets", None)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        cell.outputs = [_normalised(output, f"{path.name}, cell {cell.id}") for output in cell.outputs
                        if "application/vnd.jupyter.widget-view+json" not in output.get("data", {})]


def _keep_outputs(notebook, place: Path) -> None:
    """Take the outputs from the notebook at `place`, cell by cell."""
    try:
        before = [c for c in nbformat.reads(place.read_text("utf-8"), as_version=4).cells if c.cell_type == "code"]
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise ReleaseError(f"{place.name} has no outputs to keep ({type(error).__name__}): build it without --prose") from None
    now = [c for c in notebook.cells if c.cell_type == "code"]
    if [c.source for c in now] != [b.source for b in before]:
        known = {b.source for b in before}
        changed = [c.id for c in now if c.source not in known]
        raise ReleaseError(f"{place.name}: its code changed ({', '.join(changed) or 'a cell is gone or moved'}): "
                           f"build it without --prose")
    for cell, old in zip(now, before, strict=True):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count


def _normalised(output, where: str):
    if output.output_type == "stream" and output.name == "stderr":
        raise ReleaseError(f"{where} writes to stderr, which nbgrader marks down: {output.text.strip()[:200]}")
    if "image/png" in output.get("data", {}):
        png = _smaller(base64.b64decode(output.data["image/png"]))
        if len(png) > PICTURE_LIMIT:
            raise ReleaseError(f"{where}: a picture of {len(png) >> 10} KB, allowed are {PICTURE_LIMIT >> 10}")
        output.data["image/png"] = base64.b64encode(png).decode()
        output.metadata = {}
    return output


def _smaller(png: bytes) -> bytes:
    """The same picture in as many colours as it can afford, noise being dear, and without a note of who drew it."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colors in (256, 128, 64):
        fewer = picture.quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        fewer.save(buffer := io.BytesIO(), "PNG", optimize=True)
        if buffer.tell() <= PICTURE_AIM:
            break
    return buffer.getvalue()


def _places(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".ipynb"), path.parent.parent / "notebooks" / f"{path.stem}.ipynb"
