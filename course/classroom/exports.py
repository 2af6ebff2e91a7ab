"""The marks as other programs read them: CSV for a spreadsheet, nbgrader, Moodle and Canvas; JUnit XML for a test report."""

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

from course import files


def write(made, out: Path) -> None:
    files.write_bytes(out / "grades.csv", grades(made).encode())
    for name, text in (("nbgrader", nbgrader(made)), ("moodle", moodle(made)), ("canvas", canvas(made))):
        files.write_bytes(out / "exports" / f"{name}.csv", text.encode())
    files.write_bytes(out / "junit.xml", junit(made))


def table(rows) -> str:
    """CSV. What a spreadsheet would take for a formula is made plain text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t\r" and v else v for v in row])
    return text.getvalue()


def grades(made) -> str:
    """One row a student: total, and points of each exercise."""
    rows = [["student", "total", "of", *made.exercises]]
    for name in made.students:
        rows.append([name, made.total(name), sum(made.most.values()), *(made.marks[name][id].points for id in made.exercises)])
    return table(rows)


def nbgrader(made) -> str:
    """As `nbgrader export` writes it, one row a chapter and student."""
    rows = [["assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email", "raw_score",
             "late_submission_penalty", "score", "max_score"]]
    for chapter, ids in chapters(made).items():
        for name in made.students:
            score = sum(made.marks[name][id].points for id in ids)
            rows.append([chapter, "", "", name, "", "", "", score, 0.0, score, sum(made.most[id] for id in ids)])
    return table(rows)


def moodle(made) -> str:
    """For "Upload grading worksheet": the number is the one in the folder names of Moodle's download."""
    rows = [["Identifier", "Full name", "Grade", "Maximum Grade", "Feedback comments"]]
    for name, student in made.students.items():
        words = ", ".join(f"{id}: {m.status}" for id, m in made.marks[name].items() if m.status != "correct")
        rows.append([f"Participant {student.number}" if student.number else "", name, made.total(name), sum(made.most.values()),
                     words or "all correct"])
    return table(rows)


def canvas(made) -> str:
    """For Canvas' "Import grades": one column an assignment, points possible in the second row."""
    groups = chapters(made)
    rows = [["Student", "ID", "SIS Login ID", "Section", *groups],
            ["    Points Possible", "", "", "", *(sum(made.most[id] for id in ids) for ids in groups.values())]]
    for name, student in made.students.items():
        rows.append([name, student.number, "", "", *(sum(made.marks[name][id].points for id in ids) for ids in groups.values())])
    return table(rows)


def chapters(made) -> dict[str, list[str]]:
    from course.classroom import curriculum
    found: dict[str, list[str]] = {}
    for id in made.exercises:
        found.setdefault(curriculum.tasks()[id].chapter, []).append(id)
    return found


def junit(made) -> bytes:
    """A suite for each student, a case for each exercise; what is not correct failed, what is missing was skipped."""
    root = ElementTree.Element("testsuites", name="course grade")
    for name in made.students:
        marks = made.marks[name]
        failed = sum(m.status not in ("correct", "missing") for m in marks.values())
        skipped = sum(m.status == "missing" for m in marks.values())
        suite = ElementTree.SubElement(root, "testsuite", name=plain(name), tests=str(len(marks)), failures=str(failed),
                                       errors="0", skipped=str(skipped))
        for id, mark in marks.items():
            case = ElementTree.SubElement(suite, "testcase", classname=plain(name), name=id)
            if mark.status == "missing":
                ElementTree.SubElement(case, "skipped", message=plain(mark.why))
            elif mark.status != "correct":
                said = f"{mark.status}: {mark.points:g} of {mark.most:g} points"
                failure = ElementTree.SubElement(case, "failure", message=said)
                failure.text = plain("\n".join(mark.messages) or mark.why)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "utf-8", xml_declaration=True) + b"\n"


def plain(text: str) -> str:
    """Without the characters that XML does not know."""
    return "".join(c if c in "\n\t" or (c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF) else "?" for c in text)
