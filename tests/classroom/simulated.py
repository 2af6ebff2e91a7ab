"""A class that never was: students who are right, wrong, empty-handed or hostile, and the points that each of them deserves.

Wrong answers are the course's own with one thing changed (a sign, an operator, a number). What such an answer is worth is
measured beside it, in this process, by the check of the exercise; the grader has to come to the same by its own way.
"""

import ast
import json
import random
import threading
from pathlib import Path

import nbformat

from course.classroom import checks, curriculum
from course.classroom.release import ROOT
from tests.attacks.cells import ATTACKS

SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.GtE, ast.Gt: ast.LtE,
         ast.Eq: ast.NotEq}
HOSTILE = ("patched_allclose", "fake_eq", "exit_at_once", "input_transformer", "endless_when_called", "answers_first",
           "memory_walk", "lingering", "fork_bomb", "disk_bomb")
RIGHT, WRONG, EMPTY, BAD = "right", "wrong", "empty", "hostile"


def variants(task: curriculum.Task, most: int = 6) -> list[tuple[str, float]]:
    """(source, points) of the answer with one thing changed; changes that break nothing are among them, and worth all points."""
    found, place = [], 0
    while len(found) < most:
        tree = ast.parse(task.source)
        if not _change(tree, place):
            break
        place += 3                                              # not every place: the class is to be different, not complete
        source = f"# exercise: {task.id}\n{ast.unparse(tree)}\n"
        if (points := worth(task, source)) is not None:
            found.append((source, points))
    return found


def _change(tree: ast.AST, place: int) -> bool:
    """Change the `place`-th thing that can be changed; False where there are fewer."""
    for node in ast.walk(tree):
        operator = getattr(node, "op", None) or (getattr(node, "ops", None) or [None])[0]
        number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
        if type(operator) not in SWAPS and not number:
            continue
        place -= 1
        if place < 0:
            if number:
                node.value = node.value + 1
            elif hasattr(node, "op"):
                node.op = SWAPS[type(operator)]()
            else:
                node.ops[0] = SWAPS[type(operator)]()
            return True
    return False


def worth(task: curriculum.Task, source: str) -> float | None:
    """Points by the check beside the answer; None where the answer has no end, or is not even defined."""
    space: dict = {}
    try:
        exec(curriculum.prerequisites(task, source), space)
        exec(source, space)
    except Exception:
        return 0.0
    result: list = []
    thread = threading.Thread(target=lambda: result.append(checks.find(task.id).run(space[task.answer])), daemon=True)
    thread.start()
    thread.join(10)
    return result[0].points if result else None


def make(folder: Path, chapters: list[str], students: int, seed: int = 0) -> dict[str, dict[str, tuple[str, float]]]:
    """Write the class; returns student -> exercise -> (kind, points deserved)."""
    draw = random.Random(seed)
    wanted = [c for stem, c in curriculum.chapters().items() if stem[:2] in chapters]
    wrong = {id: variants(task) for chapter in wanted for id, task in chapter.tasks.items()}
    expected: dict[str, dict[str, tuple[str, float]]] = {}
    for number in range(students):
        name = f"student-{number:02d}"
        every = (RIGHT, WRONG, EMPTY, BAD)
        kinds = every[number] if number < 4 else draw.choices(every, (6, 8, 2, 2), k=1)[0]
        for chapter in wanted:
            notebook = nbformat.read(ROOT / "notebooks" / f"{chapter.stem}.ipynb", as_version=4)
            for cell in notebook.cells:
                own = cell.metadata.get("course", {})
                if own.get("role") != "solution" or own["exercise"] not in chapter.tasks:
                    continue
                task = chapter.tasks[own["exercise"]]
                kind = kinds if kinds != WRONG else draw.choice((RIGHT, WRONG, WRONG, EMPTY))
                if kind == WRONG and not wrong[task.id]:
                    kind = RIGHT
                points = 0.0
                if kind == RIGHT:
                    cell.source, points = task.source, task.points
                elif kind == WRONG:
                    cell.source, points = draw.choice(wrong[task.id])
                elif kind == BAD:
                    source = ATTACKS[draw.choice(HOSTILE)][1]
                    cell.source = f"# exercise: {task.id}\n{source}\n{task.answer} = add_noise\n"
                    points = None                               # no more than the plain answer behind the trick: see `allowed`
                expected.setdefault(name, {})[task.id] = (kind, points)
            (folder / name).mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, folder / name / f"{chapter.stem}.ipynb")
    (folder.parent / "expected.json").write_text(json.dumps(expected))
    return expected


def allowed(id: str) -> float:
    """The most that a hostile answer of this class may get: what zeros of the shape of the first argument are worth."""
    import torch
    return checks.find(id).run(lambda *a, **k: torch.zeros_like(a[0])).points


def differences(made, expected) -> list[str]:
    """Every cell of the table that is not as it should be."""
    found = []
    for name, row in expected.items():
        for id, (kind, points) in row.items():
            mark = made.marks[name][id]
            right = mark.points <= allowed(id) if kind == BAD else mark.points == points
            if not right or (kind == EMPTY and mark.status != "missing") or (kind == RIGHT and mark.status != "correct"):
                got = f"{mark.status} {mark.points}: {mark.why} {mark.messages}"
                found.append(f"{name} {id}: {kind}, expected {points}, got {got}")
    return found
