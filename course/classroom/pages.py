"""Two kinds of page: feedback for each student, and the class at a glance. One file each, nothing loaded from elsewhere."""

import hashlib
import re
from collections import Counter
from pathlib import Path

from course import files
from course.classroom import curriculum

SIGNS = {"correct": "●", "partial": "◐", "wrong": "○", "error": "!", "timeout": "∞", "killed": "✕", "missing": "·",
         "blocked": "▨", "policy": "§"}
WORDS = {"correct": "correct", "partial": "partly right", "wrong": "not right yet", "error": "the code stopped with an error",
         "timeout": "it took too long", "killed": "the process ended or was ended", "missing": "not handed in",
         "blocked": "the file could not be read", "policy": "a rule of the course was broken"}

HERE = Path(__file__).parent


def write(made, pairs: list[dict], out: Path) -> None:
    from jinja2 import Environment
    environment = Environment(autoescape=True)
    environment.filters["n"] = lambda value: f"{value:g}" if isinstance(value, int) else f"{round(value, 2):g}"
    groups = _groups(made)
    common = {"style": (HERE / "pages.css").read_text("utf-8"), "signs": SIGNS, "words": WORDS}
    page = environment.from_string((HERE / "feedback.j2").read_text("utf-8"))
    wanted = {file_name(name) for name in made.students}
    for name, student in made.students.items():
        marks = made.marks[name]
        text = page.render(**common, name=name, marks=marks, total=made.total(name), most=sum(made.most.values()),
                           refused=student.refused, solved=sum(m.status == "correct" for m in marks.values()),
                           groups=[(chapter, [_row(id, marks[id], student) for id in ids]) for chapter, ids in groups])
        files.write_bytes(out / "feedback" / file_name(name), text.encode("utf-8", "replace"))
    for path in (out / "feedback").glob("*.html"):              # of a student who is no longer in the class
        if path.name not in wanted:
            path.unlink()
    totals = sorted(made.total(name) for name in made.students)
    middle = (totals[(len(totals) - 1) // 2] + totals[len(totals) // 2]) / 2
    rows = [(name, f"feedback/{file_name(name)}", list(made.marks[name].items()), made.total(name)) for name in made.students]
    text = environment.from_string((HERE / "class.j2").read_text("utf-8")).render(
        **common, made=made, groups=groups, rows=rows, pairs=pairs[:30], most=sum(made.most.values()),
        mean=sum(totals) / len(totals), median=middle, hardest=_hardest(made)[:10], wrong=_frequent(made),
        refused=[(name, line) for name, s in made.students.items() for line in s.refused])
    files.write_bytes(out / "index.html", text.encode("utf-8", "replace"))


def file_name(name: str) -> str:
    """A file name for any name of a student: two students never share one."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", name).strip("-")[:60]          # small letters: some disks do not tell Ann from ann
    mark = "" if plain == name and name else "-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain or 'student'}{mark}.html"


def _groups(made) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for id in made.exercises:
        found.setdefault(curriculum.tasks()[id].chapter, []).append(id)
    return [(stem.replace("_", " "), ids) for stem, ids in found.items()]


def _row(id: str, mark, student) -> dict:
    report = []
    for message in mark.messages:
        title, _, why = message.partition("\n")
        report.append((title[:1], title[1:].strip(), why.strip()))
    return {"id": id, "mark": mark, "report": report, "source": student.sources.get(id, ""),
            "hints": curriculum.tasks()[id].hints}


def _hardest(made) -> list[dict]:
    rows = []
    for id in made.exercises:
        marks = [m[id] for m in made.marks.values()]
        share = round(100 * sum(m.points for m in marks) / (len(marks) * made.most[id]))
        rows.append({"id": id, "share": share, "correct": sum(m.status == "correct" for m in marks),
                     "missing": sum(m.status == "missing" for m in marks)})
    return sorted(rows, key=lambda r: (r["share"], r["id"]))


def _frequent(made) -> list:
    """What is behind the first cross of an answer, without its numbers, which differ from answer to answer."""
    told: Counter = Counter()
    for marks in made.marks.values():
        for id, mark in marks.items():
            first = next((m for m in mark.messages if m.startswith("✗")), "")
            words = first.partition("\n")[2].strip() or mark.why
            if words and mark.status not in ("correct", "missing", "blocked"):
                told[id, re.sub(r"-?\d+\.\d+(e-?\d+)?", "…", words)[:200]] += 1
    return sorted(told.items(), key=lambda item: (-item[1], item[0]))[:12]
