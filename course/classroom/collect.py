"""From notebooks to parts: what a student wrote, ready to be swapped into the library.

A notebook is read, not run: of its code cells only imports, functions and classes are executed, so that neither a training
nor a picture is made again. An answer counts as the student's own if it passes its check; in place of the others stands the
course's own. Two things become parts of the pipeline:

- an answer whose exercise is called like a part: `layers.ResBlock`;
- a class that a chapter builds from several answers; its cell says so: `# %% part="schedule.NoiseSchedule" is="MySchedule"`.
"""

import ast
from pathlib import Path

import nbformat

from course import parts
from course.classroom import checks
from course.errors import UsageError

YOURS, LIBRARY = "yours", "library"


class StudentParts(dict):
    """Part name -> the student's own, for `parts.swapped`. `status` says of every part met whose it is, and why not yours.

    `attempts` holds what was written and does not pass yet: for `capstone.diagnose`, not for the pipeline.
    """

    def __init__(self):
        super().__init__()
        self.status: dict[str, str] = {}                       # part name -> "yours", or "library: ..."
        self.attempts: dict[str, object] = {}

    def __str__(self) -> str:
        width = max(map(len, self.status), default=0)
        return "\n".join(f"{name:{width}s}  {whose}" for name, whose in self.status.items())


def from_notebooks(folder: str | Path) -> StudentParts:
    """The parts that the notebooks of `folder` define. Raises UsageError where there is no notebook."""
    found, paths = StudentParts(), sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise UsageError(f"no notebooks in {folder}: expected files like 05_forward_process.ipynb")
    for path in paths:
        _read(path, found)
    return found


def _read(path: Path, found: StudentParts) -> None:
    try:
        notebook = nbformat.reads(path.read_text("utf-8"), as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise UsageError(f"{path} is no notebook ({type(error).__name__})") from None
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    space: dict = {"__name__": f"{path.stem}_of_a_student"}
    answers, solved = _answers(cells), {}                      # exercise -> name; name -> whether the student's stands
    tried: dict[str, object] = {}                              # name -> what was written and is not right
    for cell in cells:
        problem = _define(cell.source, space, f"{path.name}, cell {cell.get('id')}")
        own = cell.metadata.get("course", {})
        if own.get("role") == "solution" and own.get("exercise") in checks.exercises():
            id, name = own["exercise"], answers.get(own["exercise"])
            mine = space.get(name)
            result = None if mine is None else checks.find(id).run(mine)
            solved[name] = result is not None and result.passed
            if result is not None and not solved[name] and result.messages != [checks.UNWRITTEN]:
                tried[name] = mine
            if id in parts.PARTS:
                _settle(found, id, mine, None if solved[name] else problem or f"exercise {id} is not solved")
                if name in tried:
                    found.attempts[id] = mine
            if not solved[name]:                               # whoever builds on it gets the course's own
                space[name] = checks.find(id).reference
        if part := own.get("part"):
            used = {n.id for n in ast.walk(_tree(cell.source)) if isinstance(n, ast.Name)}
            open_ones = sorted(used & {name for name, well in solved.items() if not well})
            if open_ones and set(open_ones) <= set(tried):     # the same class, built from what was written
                trial = space | tried
                if _define(cell.source, trial, path.name) is None and own["is"] in trial:
                    found.attempts[part] = trial[own["is"]]
            why = problem or (f"{', '.join(open_ones)} not solved" if open_ones else None)
            _settle(found, part, space.get(own["is"]), why or (None if own["is"] in space else f"{own['is']} is not defined"))


def _settle(found: StudentParts, part: str, mine, problem: str | None) -> None:
    if problem:
        found.status[part] = f"{LIBRARY}: {problem}"
    else:
        found[part], found.status[part] = mine, YOURS


def _answers(cells) -> dict[str, str]:
    """exercise -> the name it is given, from the check cells: check("layers.ResBlock", ResBlock)."""
    found = {}
    for cell in cells:
        for node in ast.walk(_tree(cell.source)):
            if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
                    and len(node.args) == 2 and isinstance(node.args[0], ast.Constant) and isinstance(node.args[1], ast.Name)):
                found[node.args[0].value] = node.args[1].id
    return found


def _define(source: str, space: dict, where: str) -> str | None:
    """Execute the imports and definitions of a cell; what went wrong, or None."""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    for node in _tree(source).body:
        if not isinstance(node, kinds) and not _is_constant(node):
            continue
        try:
            exec(compile(ast.Module([node], []), where, "exec"), space)
        except Exception as error:
            return f"{where}: {type(error).__name__}: {error}"
    return None


def _is_constant(node) -> bool:
    """`SCALE = 0.18215`, `GROUPS, EPS = 32, 1e-5`: definitions may need them."""
    if not isinstance(node, ast.Assign):
        return False
    try:
        ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _tree(source: str) -> ast.Module:
    """The cell as Python; one with a magic or a mistake in it defines nothing."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])
