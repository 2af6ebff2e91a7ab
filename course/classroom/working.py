"""A student's working folder: where the notebooks are worked on, how far one has come, and where to go on.

    course start my-notebooks        copies the chapters there; a notebook that is already there is never touched
    course start my-notebooks --language ko      the same with the text in Korean (translate.py)
    course progress my-notebooks     which exercises are done, read from what the check cells last said
    course lab my-notebooks          JupyterLab on the first chapter with an open exercise
"""

import html
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from course import files
from course.classroom import translate
from course.classroom.release import ROOT
from course.errors import UsageError

FOLDER = Path("my-notebooks")


@dataclass
class Chapter:
    """What the check cells of one notebook say: (exercise, points or None where it has not been checked, of how many)."""

    path: Path
    title: str
    exercises: list[tuple[str, float | None, float]] = field(default_factory=list)

    @property
    def points(self) -> float:
        return sum(points or 0.0 for _, points, _ in self.exercises)

    @property
    def maximum(self) -> float:
        return sum(most for *_, most in self.exercises)

    @property
    def solved(self) -> int:
        return sum(points == most for _, points, most in self.exercises)


def start(folder: str | Path, source: Path = ROOT / "notebooks", language: str = "en") -> tuple[list[str], list[str]]:
    """Copy the student notebooks to `folder`; returns (copied, left as they are).

    Their text can be in another language, `ko`. Raises UsageError outside a checkout, and for a language that is not there.
    """
    folder, found = Path(folder), sorted(source.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise UsageError(f"no notebooks in {source}: `course start` works in a checkout of the course")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; expected a folder, or a name that is free")
    if folder.resolve() == source.resolve():
        raise UsageError(f"{folder} holds the notebooks themselves; choose another folder to work in")
    new = [path for path in found if not (folder / path.name).exists()]
    texts = [path.read_bytes() if language == "en" else nbformat.writes(translate.read(path, language)).encode() for path in new]
    for path, text in zip(new, texts, strict=True):                                # all read before the first is written
        files.write_bytes(folder / path.name, text)
    return [p.name for p in new], [p.name for p in found if p not in new]


def progress(folder: str | Path) -> list[Chapter]:
    """Every chapter of a working folder. Raises UsageError where there is none."""
    found = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise UsageError(f"no notebooks in {folder}: `course start {folder}` puts them there")
    return [_chapter(path) for path in found]


def _chapter(path: Path) -> Chapter:
    try:
        notebook = nbformat.reads(path.read_text("utf-8"), as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise UsageError(f"{path} is no notebook ({type(error).__name__})") from None
    first = next((c.source for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("# ")), path.stem)
    chapter = Chapter(path, first.splitlines()[0].removeprefix("# ").strip())
    for cell in notebook.cells:
        own = cell.metadata.get("course", {})
        if own.get("role") == "check":
            chapter.exercises.append((own["exercise"], _said(cell), float(cell.metadata["nbgrader"]["points"])))
    return chapter


def _said(cell) -> float | None:
    """The points that the check cell showed when it last ran."""
    for output in cell.get("outputs", []):
        if output.output_type == "execute_result":
            try:
                return float(output.data.get("text/plain", ""))
            except ValueError:
                return None
    return None


def next_chapter(chapters: list[Chapter]) -> Chapter:
    """The first with an open exercise; the first of all, if none is open."""
    return next((c for c in chapters if c.solved < len(c.exercises)), chapters[0])


def dots(chapter: Chapter) -> str:
    """One mark an exercise: solved, partly, tried, not checked yet."""
    return "".join("·" if points is None else "●" if points == most else "◐" if points else "○"
                   for _, points, most in chapter.exercises)


LEGEND = "● solved  ◐ partly  ○ not right yet  · not checked yet"


def page(chapters: list[Chapter]) -> str:
    """The same table as a page of its own."""
    rows = []
    for c in chapters:
        share = 100 * c.points / c.maximum if c.maximum else 0.0
        marks = "".join(f'<span class="{kind}" title="{html.escape(id)}: {said}"></span>' for id, kind, said in (
            (id, "open" if p is None else "full" if p == m else "part" if p else "none",
             "not checked yet" if p is None else f"{p:g} of {m:g} points") for id, p, m in c.exercises))
        rows.append(f'<tr><td>{html.escape(c.title)}</td><td class="marks">{marks}</td><td class="bar">'
                    f'<div style="width:{share:.0f}%"></div></td><td class="n">{c.points:g} / {c.maximum:g}</td></tr>')
    points, most = sum(c.points for c in chapters), sum(c.maximum for c in chapters)
    return PAGE.format(rows="\n".join(rows), points=f"{points:g}", most=f"{most:g}",
                       solved=sum(c.solved for c in chapters), exercises=sum(len(c.exercises) for c in chapters))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Progress</title><style>
:root {{ color-scheme: light dark; --ink: #1b1b1b; --soft: #6a6a6a; --line: #dddddd; --full: #0072b2; --part: #e69f00;
  --none: #d55e00; --paper: #ffffff; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #ececec; --soft: #a5a5a5; --line: #3a3a3a; --full: #56b4e9;
  --paper: #161616; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 52rem; margin: 2rem auto;
  padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }} td {{ padding: .45rem .6rem .45rem 0; border-top: 1px solid var(--line); }}
.marks {{ white-space: nowrap; }} .n {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
.marks span {{ display: inline-block; width: .8rem; height: .8rem; border-radius: 50%; margin-right: .25rem;
  box-sizing: border-box; border: 2px solid var(--soft); }}
.marks .full {{ background: var(--full); border-color: var(--full); }}
.marks .part {{ background: linear-gradient(90deg, var(--part) 50%, transparent 50%); border-color: var(--part); }}
.marks .none {{ border-color: var(--none); }} .marks .open {{ border-style: dotted; }}
.bar {{ width: 24%; }} .bar div {{ background: var(--full); height: .55rem; border-radius: .3rem; }}
p {{ color: var(--soft); }} @media (max-width: 480px) {{ .bar {{ display: none; }} }}
</style></head><body><h1>Progress</h1>
<p>{solved} of {exercises} exercises solved, {points} of {most} points. Read from what the check cells last said.</p>
<table>
{rows}
</table>
<p>Filled: solved. Half: some of the points. Ring: checked, not right yet. Dotted: not checked yet.</p>
</body></html>
"""
