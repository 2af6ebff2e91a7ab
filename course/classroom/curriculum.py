"""What the grader knows of a chapter: its exercises, what each builds on, and the course as a student may see it meanwhile.

Everything is read from the executed solution notebooks; in the sandbox an exercise gets the imports and definitions that its
cell needs and no more, the reference answers of earlier exercises among them, and a copy of the library's modules that the
chapter's exercises use, from which the graded part is cut out.
"""

import ast
import hashlib
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nbformat

from course.classroom import checks, collect
from course.classroom.release import ROOT

# beside the answer's own name: what else in the library would be the answer
SAME_AS = {"schedule.make_schedule": ("_betas",), "schedule.convert": ("to_x0", "to_eps", "to_v")}
# chapter -> modules that right answers use beside those of the course's own answers: a U-Net is built to count it, and so on
MAY_USE = {"11": ("unet",), "15": ("samplers",)}
COMMON = {"np": "import numpy as np", "torch": "import torch", "nn": "from torch import nn", "math": "import math",
          "Tensor": "from torch import Tensor", "F": "import torch.nn.functional as F", "copy": "import copy",
          "itertools": "import itertools"} | {
          name: f"from einops import {name}" for name in ("rearrange", "reduce", "repeat", "einsum", "pack", "unpack")} | {
          name: f"from dataclasses import {name}" for name in ("dataclass", "replace", "field")}
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
OURS = ("wire", "bridge", "values", "changes", "gradients", "mirrors")      # the sandbox's side of the bridge
OTHERS = ("course", "diffusers", "peft", "transformers", "lpips", "torchmetrics", "torch_fidelity", "timm", "tests")


@dataclass
class Task:
    """One exercise."""

    id: str
    chapter: str
    answer: str                            # the name that the check cell hands over
    source: str                            # the reference solution's cell
    stub: str                              # what the student's notebook begins with
    prompt: str = ""
    hints: list[str] = field(default_factory=list)
    position: int = 0                      # of its cell in the notebook

    @property
    def points(self) -> float:
        return float(checks.find(self.id).points)


@dataclass
class Chapter:
    stem: str
    cells: list                            # code cells of the solution, in order
    tasks: dict[str, Task]


@cache
def chapters(folder: Path = ROOT / "solutions") -> dict[str, Chapter]:
    """Every chapter by its stem, "05_forward_process"."""
    return {path.stem: _chapter(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}


def tasks() -> dict[str, Task]:
    """Every exercise of every chapter, in order."""
    return {id: task for chapter in chapters().values() for id, task in chapter.tasks.items()}


def _chapter(path: Path) -> Chapter:
    notebook = nbformat.read(path, as_version=4)
    given = nbformat.read(ROOT / "notebooks" / path.name, as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    names, found = collect._answers(cells), {}
    stubs = {c.metadata.course.exercise: c.source for c in given.cells if c.metadata.get("course", {}).get("role") == "solution"}
    for cell in notebook.cells:
        own = cell.metadata.get("course", {})
        if own.get("role") == "solution" and own["exercise"] in names:
            id = own["exercise"]
            found[id] = Task(id, path.stem, names[id], cell.source, stubs.get(id, ""), position=cells.index(cell))
    for cell in notebook.cells:
        own = cell.metadata.get("course", {})
        if own.get("exercise") in found and own.get("role") == "prompt":
            found[own["exercise"]].prompt = cell.source
        if own.get("exercise") in found and own.get("role") == "hint":
            found[own["exercise"]].hints = [h.strip() for h in re.findall(
                r"<details><summary>[^<]*</summary>(.*?)</details>", cell.source, flags=re.S)]
    return Chapter(path.stem, cells, found)


# ---- what stands before the answer

def prerequisites(task: Task, source: str, own: dict[str, str] | None = None) -> str:
    """Imports and definitions of earlier cells that `source` needs, directly or not.

    own: exercise -> the student's own source, in place of the reference, for a chain.
    """
    chapter = chapters()[task.chapter]
    offers: dict[str, tuple[int, str, set[str]]] = {}           # name -> (order, text, names that it needs)
    for place, cell in enumerate(chapter.cells[: task.position]):
        text, role = cell.source, cell.metadata.get("course", {})
        if role.get("role") == "check":
            continue
        if role.get("role") == "solution":
            text = (own or {}).get(role["exercise"], text)
        for number, node in enumerate(collect._tree(text).body):
            if not isinstance(node, DEFINITIONS) and not collect._is_constant(node):
                continue
            for name, line in _binds(node, text, _modules(task.chapter)):
                offers[name] = (1000 * place + number, line, _needs([node]))
    needed, chosen = _needs(collect._tree(source).body), {}
    while needed:
        name = needed.pop()
        if name in chosen or name == task.answer:
            continue
        if name in offers:
            chosen[name] = offers[name][:2]
            needed |= offers[name][2] - set(chosen)
        elif name in COMMON:
            chosen[name] = (-1, COMMON[name])
    return "\n\n".join(dict.fromkeys(line for _, line in sorted(chosen.values())))


def _binds(node, text: str, modules: tuple[str, ...]):
    """(name, source) for each name that a statement brings; of the course only these modules are there."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        origin = getattr(node, "module", None) or ""
        for alias in node.names:
            module = alias.name if origin == "course" else origin.removeprefix("course.")
            if (origin == "course" or origin.startswith("course.")) and module not in modules:
                continue
            statement = ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], node.level)
            yield (alias.asname or alias.name).split(".")[0], ast.unparse(statement)
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        yield node.name, "\n".join(text.splitlines()[first - 1: node.end_lineno])
    else:
        for target in ast.walk(ast.Module(node.targets, [])):
            if isinstance(target, ast.Name):
                yield target.id, ast.unparse(node)


def _needs(nodes) -> set[str]:
    return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


# ---- the course without the answer

def library(task: Task) -> dict[str, str]:
    """Path -> text of the course as it is seen while `task` is graded."""
    files = {"course/__init__.py": '"""The course, without what is graded."""\n',
             "course/errors.py": (ROOT / "course/errors.py").read_text("utf-8"),
             "course/classroom/__init__.py": ""}
    files |= {f"course/classroom/{name}.py": (ROOT / f"course/classroom/{name}.py").read_text("utf-8") for name in OURS}
    names = {task.id.rpartition(".")[2], task.answer, *SAME_AS.get(task.id, ())}
    for module in _modules(task.chapter):
        files[f"course/{module}.py"] = cut((ROOT / f"course/{module}.py").read_text("utf-8"), names)
    return files


@cache
def _modules(stem: str) -> tuple[str, ...]:
    """The library's modules that the exercises of a chapter use or may use, and what these import."""
    chapter, aliases, found = chapters()[stem], {}, []
    for cell in chapter.cells:
        for node in ast.walk(collect._tree(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module == "course":
                aliases |= {a.asname or a.name: a.name for a in node.names}
    open_ones = [aliases[n] for t in chapter.tasks.values() for n in sorted(_needs(collect._tree(t.source).body)) if n in aliases]
    open_ones += MAY_USE.get(stem[:2], ())
    while open_ones:
        module = open_ones.pop()
        path = ROOT / f"course/{module}.py"
        if module in (*found, "errors", "classroom") or not path.is_file():
            continue
        found.append(module)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "course":
                open_ones += [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course."):
                open_ones.append(node.module.split(".")[1])
    return tuple(sorted(found))


def cut(text: str, names: set[str]) -> str:
    """`text` with the body of every function, method and class of these names replaced by an error."""
    lines = text.splitlines()
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name in names]
    for node in sorted(nodes, key=lambda n: -n.lineno):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        indent = " " * node.col_offset
        stub = [f"{indent}def {node.name}(*arguments, **options):",
                f'{indent}    raise NotImplementedError("{node.name} is what is graded here")']
        if isinstance(node, ast.ClassDef):
            stub = [f"{indent}class {node.name}:", *("    " + line for line in stub)]
            stub[1] = stub[1].replace(f"def {node.name}", "def __init__")
        lines[first - 1: node.end_lineno] = stub
    return "\n".join(lines) + "\n"


@cache
def version(id: str) -> str:
    """Changes when the check of an exercise, or anything that decides about points, does."""
    package = checks.find(id).properties[0][2].__module__.split(".")[3]
    parts = sorted([*(ROOT / "course/classroom/checks" / package).glob("*.py"), ROOT / "course/classroom/checks/__init__.py",
                    *(ROOT / f"course/classroom/{name}.py" for name in (*OURS, "plugin", "curriculum", "sandbox"))])
    seen = repr(sorted(library(tasks()[id]).items())).encode()
    return hashlib.sha256(b"\0".join([*(p.read_bytes() for p in parts), seen])).hexdigest()[:16]
