"""`course start`, `lab`, `progress` for students; `course release`, `grade` for who teaches."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from course.errors import UsageError
from course.options import Json

app = typer.Typer()


@app.command()
def release(chapters: Annotated[list[str] | None, typer.Argument(help="Chapter numbers or names; default: all.")] = None,
            check: Annotated[bool, typer.Option("--check", help="Only say whether the notebooks are in step.")] = False,
            mutants: Annotated[bool, typer.Option("--mutants", help="Only try the wrong and the right answers that each check "
                                                  "comes with.")] = False,
            prose: Annotated[bool, typer.Option("--prose", help="Only text changed: keep what cells printed.")] = False) -> None:
    """Build the solution and the student notebook of each chapter from its percent script."""
    from course.classroom import mutants as answers
    from course.classroom import release as building
    if mutants:
        tally = answers.tally(answers.load())
        print(*tally.problems, tally, sep="\n")
        raise typer.Exit(1 if tally.problems else 0)
    known = building.chapters()
    wanted = [p for p in known if not chapters or any(p.stem == c or p.stem.split("_")[0] == c.zfill(2) for c in chapters)]
    if not wanted:
        raise UsageError(f"no chapter {', '.join(chapters or [])}; there are {', '.join(p.stem for p in known) or 'none'}")
    differences = []
    for path in wanted:
        if check:
            differences += building.check_in_step(path)
        else:
            building.build(path, prose=prose)
            print(f"built {path.stem}")
    for line in differences:
        print(line)
    if differences:
        raise typer.Exit(1)


@app.command()
def grade(paths: Annotated[list[Path], typer.Argument(help="Notebooks, folders (one a student), zips, or a tree of submissions "
                                                      "from nbgrader, Moodle or Canvas.")],
          out: Annotated[Path, typer.Option(help="Folder for marks, feedback and exports; the same command goes on from "
                                            "there.")],
          chain: Annotated[bool, typer.Option("--chain", help="Let an answer build on the student's own earlier answers, not on "
                                              "the course's.")] = False,
          jobs: Annotated[int, typer.Option(help="How many answers are run at a time.")] = 2,
          points: Annotated[Path | None, typer.Option(help="JSON that says which exercises count, and for how many "
                                                           "points.")] = None,
          trusted: Annotated[bool, typer.Option("--trusted", help="Run without a sandbox: only for code that you would run "
                                                "yourself.")] = False,
          as_json: Json = False) -> None:
    """Grade a class by nbval, each answer in a sandbox; the verdict is found outside of it."""
    from course.classroom import grade as grading
    if jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}")
    made = grading.run(paths, out, chain, jobs, points, trusted,
                       say=lambda line: line and print(line, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps({name: made.total(name) for name in made.students}))
    else:
        print(f"{len(made.students)} students, {len(made.exercises)} exercises: {out / 'index.html'}, {out / 'grades.csv'}")


Folder = Annotated[Path, typer.Argument(help="The folder you work in.")]


@app.command()
def start(folder: Folder = Path("my-notebooks"),
          language: Annotated[str, typer.Option(help="Of the text, en or ko; code is English.")] = "en") -> None:
    """Copy the notebooks to a folder of your own. One that is already there is never touched, also not by a later release."""
    from course.classroom import working
    copied, left = working.start(folder, language=language)
    print(f"{len(copied)} notebooks copied to {folder}, {len(left)} already there and left as they are")
    print(f"now: course lab {folder}")


@app.command()
def progress(folder: Folder = Path("my-notebooks"),
             page: Annotated[Path | None, typer.Option("--html", help="Also write the table as a page.")] = None,
             as_json: Json = False) -> None:
    """Show which exercises are done, from what the check cells of the notebooks last said."""
    from rich.console import Console
    from rich.table import Table

    from course import files
    from course.classroom import working
    chapters = working.progress(folder)
    if page is not None:
        files.write_bytes(page, working.page(chapters).encode())
    if as_json:
        print(json.dumps([{"chapter": c.path.stem, "points": c.points, "of": c.maximum, "solved": c.solved,
                           "exercises": [{"id": i, "points": p, "of": m} for i, p, m in c.exercises]} for c in chapters]))
        return
    table = Table(caption=working.LEGEND, caption_justify="left")
    for column, side in (("chapter", "left"), ("exercises", "left"), ("solved", "right"), ("points", "right")):
        table.add_column(column, justify=side)
    for c in chapters:
        table.add_row(c.title, working.dots(c), f"{c.solved} of {len(c.exercises)}", f"{c.points:g} of {c.maximum:g}")
    Console().print(table)
    if page is not None:
        print(f"the page: {page}")


@app.command()
def lab(folder: Folder = Path("my-notebooks"),
        browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True) -> None:
    """Open JupyterLab where you left: on the first chapter with an open exercise."""
    from course.classroom import working
    chapter = working.next_chapter(working.progress(folder))
    print(f"{chapter.title}: {working.dots(chapter)}")
    command = [sys.executable, "-m", "jupyterlab", str(folder), f"--LabApp.default_url=/lab/tree/{chapter.path.name}",
               *([] if browser else ["--no-browser"])]
    raise typer.Exit(subprocess.call(command))
