"""What students hand in, read as data: from notebooks, folders, zips, and the trees of nbgrader, Moodle and Canvas.

Nothing is executed and nothing is unpacked onto the disk. Of a notebook only the source of the exercises' cells is kept, found
by id, or by the comment that heads the cell; outputs, tags, kernels and all other cells are left aside. What is too large,
damaged, a link or outside its folder is refused, and said.
"""

import ast
import io
import json
import os
import re
import stat
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from course.classroom import curriculum
from course.errors import UsageError

NOTEBOOK, CELLS, FILES, TOTAL, SOURCE = 8 << 20, 5000, 2000, 256 << 20, 100_000     # bytes, cells, files, bytes, characters
HEADER = re.compile(r"^\s*#\s*exercise:\s*(\S+)\s*$")
MARKERS = re.compile(r"^\s*#+\s*(NBVAL_|PYTEST_VALIDATE_)\w+\s*$", flags=re.M)
MOODLE = re.compile(r"^(?P<name>.+?)_(?P<number>\d+)_assignsubmission_file_?$")
CANVAS = re.compile(r"^(?P<name>[^_]+?)(?:_LATE|_late)?_(?P<number>\d+)_\d+_.+\.ipynb$")
BANNED = ("course.classroom", "diffusers", "IPython", "ipykernel", "peft", "transformers", "tests", "solutions")


@dataclass
class Student:
    """One of the class: exercise -> source, and what was noticed."""

    name: str
    number: str = ""                       # in Moodle or Canvas
    sources: dict[str, str] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)          # exercise -> remarks
    refused: list[str] = field(default_factory=list)                    # files that were not read, and why
    refused_chapters: set[str] = field(default_factory=set)


def gather(paths: list[Path]) -> dict[str, Student]:
    """Every student of the paths by name. Raises UsageError where nothing is found at all."""
    found: dict[str, Student] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"no such file or folder: {path}")
        for name, number, label, data in _files(path):
            student = found.setdefault(_text(name), Student(_text(name), number))
            _add(student, _text(label)[:200], data)
    if not found:
        raise UsageError(f"no notebooks in {', '.join(map(str, paths))}")
    return dict(sorted(found.items()))


# ---- where files come from: (student, number, file name, bytes or why not)

def _files(path: Path):
    if path.is_symlink():
        raise UsageError(f"{path} is a link; give the file or folder itself")
    if path.is_dir():
        single = any(p.suffix == ".ipynb" for p in path.iterdir()) and not any(CANVAS.match(p.name) for p in path.iterdir())
        count = 0
        for folder, inner, names in os.walk(path, followlinks=False):
            inner.sort()
            inner[:] = [d for d in inner if not d.startswith(".") and d not in ("__MACOSX", "__pycache__")]
            for name in sorted(names):
                file = Path(folder, name)
                parts = file.relative_to(path).parts
                if name.startswith(".") or file.suffix not in (".ipynb", ".zip"):
                    continue
                count += 1
                who, number = (path.resolve().name, "") if single else _who(parts, path.name)
                if count > FILES:
                    raise UsageError(f"more than {FILES} files in {path}")
                if file.is_symlink():
                    yield who, number, name, "a link, not a file"
                elif file.suffix == ".zip":
                    data = file.read_bytes() if file.is_file() and file.stat().st_size <= TOTAL else b""
                    yield from _zip(data, name, who if len(parts) > 1 else None)
                else:
                    yield who, number, name, _read(file)
    elif path.suffix == ".zip":
        yield from _zip(path.read_bytes(), path.name, None)
    else:
        found = CANVAS.match(path.name)
        yield (found["name"], found["number"], path.name, _read(path)) if found else (path.stem, "", path.name, _read(path))


def _who(parts: tuple[str, ...], above: str = "") -> tuple[str, str]:
    """Whose file this is, from where it lies."""
    if "submitted" in parts[:-1]:                               # nbgrader: submitted/<student>/<assignment>/
        return parts[parts.index("submitted") + 1], ""
    for part in parts[:-1]:
        if found := MOODLE.match(part):
            return found["name"], found["number"]
    if found := CANVAS.match(parts[-1]):
        return found["name"], found["number"]
    return (parts[0] if len(parts) > 1 else PurePosixPath(parts[0]).stem), ""


def _zip(data: bytes, label: str, who: str | None):
    """The notebooks in a zip: of `who`, or of a class, or of the student that the zip is called after."""
    stem = PurePosixPath(label).stem
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError):
        yield who or stem, "", label, "no zip file"
        return
    names = [e.filename for e in entries if e.filename.endswith(".ipynb") and not e.filename.startswith("__MACOSX")]
    folders = {PurePosixPath(n).parts[0] for n in names if len(PurePosixPath(n).parts) > 1}
    class_of_many = any(MOODLE.match(f) for f in folders) or "submitted" in folders or len(folders) > 1 \
        or any(CANVAS.match(PurePosixPath(n).name) for n in names)
    left = TOTAL
    for entry in entries[:FILES]:
        parts = PurePosixPath(entry.filename).parts
        if entry.is_dir() or not entry.filename.endswith(".ipynb") or "__MACOSX" in parts:
            continue
        name, number = (who, "") if who else _who(parts) if class_of_many else (stem, "")
        if entry.filename.startswith(("/", "\\")) or ".." in parts or ":" in entry.filename or "\\" in entry.filename:
            yield stem if not who else who, "", entry.filename[:80], "a path that leaves its folder"
        elif stat.S_ISLNK(entry.external_attr >> 16):
            yield name, number, parts[-1], "a link, not a file"
        elif entry.flag_bits & 1:
            yield name, number, parts[-1], "encrypted"
        else:
            got = _unpack(archive, entry, min(NOTEBOOK, left))
            left -= len(got) if isinstance(got, bytes) else 0
            yield name, number, parts[-1], got
    if len(entries) > FILES:
        yield who or stem, "", label, f"more than {FILES} files in it"


def _unpack(archive: zipfile.ZipFile, entry, most: int):
    """The bytes; whatever the archive says of its size, no more than `most` are read."""
    try:
        with archive.open(entry) as file:
            data = file.read(most + 1)
    except Exception as error:                                  # zipfile and zlib raise many kinds for damaged data
        return f"damaged ({type(error).__name__})"
    return data if len(data) <= most else f"larger than {most >> 20} MB"


def _text(text: str) -> str:
    """Without half characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _read(path: Path):
    try:
        if not path.is_file():
            return "no plain file"
        return path.read_bytes() if path.stat().st_size <= NOTEBOOK else f"larger than {NOTEBOOK >> 20} MB"
    except OSError as error:
        return error.strerror or "not readable"


# ---- what is in a file

def _add(student: Student, label: str, data) -> None:
    cells = data if isinstance(data, str) else cells_of(data)
    if isinstance(cells, str):
        if len(student.refused) < 20:
            student.refused.append(f"{label}: {cells}")
        stem = next((s for s in curriculum.chapters() if s in label), None)
        student.refused_chapters.add(stem or "")
        return
    for id, sources in exercises_in(cells).items():
        task = curriculum.tasks()[id]
        flags = student.flags.setdefault(id, [])
        before = [student.sources[id]] if id in student.sources else []
        if len(before + sources) > 1:
            flags.append(f"{len(before + sources)} cells of this exercise; the last one that was written counts")
        written = [s for s in before + sources if not is_stub(s, task)]
        student.sources[id] = (written or sources)[-1]


def cells_of(data: bytes) -> list[tuple] | str:
    """The code cells of a notebook as (source, metadata), or a sentence that says why there are none."""
    try:
        notebook = json.loads(data)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({type(error).__name__})"
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        return "no notebook: it has no list of cells"
    if len(cells) > CELLS:
        return f"{len(cells)} cells; at most {CELLS} are read"
    found = []
    for cell in cells:
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            source = cell.get("source", "")
            if isinstance(source, list) and all(isinstance(line, str) for line in source):
                source = "".join(source)
            if isinstance(source, str) and len(source) <= SOURCE:
                found.append((_text(source).replace("\0", ""), cell.get("metadata")))
    return found


def exercises_in(cells) -> dict[str, list[str]]:
    """exercise -> the sources of its cells, by nbgrader's id, by ours, or by the comment above the code."""
    by_id = {id.replace(".", "-"): id for id in curriculum.tasks()}
    found: dict[str, list[str]] = {}
    for source, metadata in cells:
        metadata = metadata if isinstance(metadata, dict) else {}
        nbgrader, own = metadata.get("nbgrader"), metadata.get("course")
        nbgrader, own = (m if isinstance(m, dict) else {} for m in (nbgrader, own))
        head = HEADER.match(next((line for line in source.splitlines() if line.strip()), ""))
        id = by_id.get(nbgrader.get("grade_id")) if isinstance(nbgrader.get("grade_id"), str) else None
        if id is None and own.get("role") == "solution" and isinstance(own.get("exercise"), str):
            id = own["exercise"]
        if id is None and head and not nbgrader.get("grade"):
            id = head[1]
        if id in curriculum.tasks():
            found.setdefault(id, []).append(MARKERS.sub("", source))
    return found


def is_stub(source: str, task: curriculum.Task) -> bool:
    """Whether nothing was written: the same code as in the notebook that was handed out."""
    try:
        return ast.dump(ast.parse(source)) == ast.dump(ast.parse(task.stub))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def breaks_policy(source: str) -> str | None:
    """A rule of the course that a cell breaks, as a sentence. This is housekeeping, no defence: the sandbox is the defence."""
    for number, line in enumerate(source.splitlines(), 1):
        if re.match(r"^\s*(%%?|!)\s*\w", line):
            return f"line {number} is a magic or a shell command: an answer is Python only"
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None                                             # running it will say so
    for node in ast.walk(tree):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else \
            [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            if any(module == b or module.startswith(b + ".") for b in BANNED):
                return f"import of {module}: an answer may not use it"
        if isinstance(node, ast.Name) and node.id == "get_ipython":
            return "get_ipython: an answer may not reach for the notebook"
    return None
