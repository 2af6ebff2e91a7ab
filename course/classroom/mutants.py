"""Wrong answers that a check must reject, right ones that it must accept: what a check is worth, measured.

They live in `tests/mutants/chNN.py`, as two dictionaries: `WRONG[id]` holds (name, answer, words that the report must
contain), `RIGHT[id]` holds (name, answer). Found in a checkout only: the installed package does not carry them.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from course.classroom import checks
from course.errors import UsageError

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "mutants"
NEEDED = {"wrong": 4, "right": 3}


@dataclass
class Answers:
    """Of one exercise."""

    wrong: list[tuple[str, object, str]] = field(default_factory=list)
    right: list[tuple[str, object]] = field(default_factory=list)


@dataclass
class Tally:
    """How often the checks were right."""

    wrong: int = 0
    killed: int = 0                        # wrong answers rejected, with words that fit
    right: int = 0
    accepted: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rate = 100 * self.killed / max(self.wrong, 1)
        return (f"{self.killed} of {self.wrong} wrong answers rejected ({rate:.1f} %), "
                f"{self.right - self.accepted} of {self.right} right ones rejected")


def load(folder: Path = FOLDER) -> dict[str, Answers]:
    """The answers of every chapter by exercise. Raises UsageError outside a checkout."""
    if not folder.is_dir():
        raise UsageError(f"no answers in {folder}: they are in a checkout of the course, not in the installed package")
    found: dict[str, Answers] = {}
    for path in sorted(folder.glob("ch*.py")):
        spec = importlib.util.spec_from_file_location(f"course_mutants_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for kind, answers in (("wrong", module.WRONG), ("right", module.RIGHT)):
            for id, given in answers.items():
                getattr(found.setdefault(id, Answers()), kind).extend(given)
    return found


def missing(id: str, answers: dict[str, Answers]) -> list[str]:
    """What an exercise lacks: at least 4 wrong answers and 3 right ones."""
    have = answers.get(id, Answers())
    counts = {"wrong": len(have.wrong), "right": len(have.right)}
    return [f"{id} has {counts[kind]} {kind} answers, needed are {n}" for kind, n in NEEDED.items() if counts[kind] < n]


def tally(answers: dict[str, Answers], progress: Callable[[str], None] = lambda id: None) -> Tally:
    """Try every answer."""
    total = Tally()
    for id, have in answers.items():
        progress(id)
        for name, answer, words in have.wrong:
            result = checks.find(id).run(answer)
            first = next((line for line in result.messages if line.startswith("✗")), "")
            total.wrong += 1
            if result.passed:
                total.problems.append(f"{id}: the wrong answer {name} was accepted")
            elif words not in first:
                total.problems.append(f"{id}: the wrong answer {name} was told {first!r}, without {words!r}")
            else:
                total.killed += 1
        for name, answer in have.right:
            result = checks.find(id).run(answer)
            total.right += 1
            total.accepted += result.passed
            if not result.passed:
                why = next(line for line in result.messages if line.startswith("✗"))
                total.problems.append(f"{id}: the right answer {name} was rejected: {why}")
    return total


def own(id: str):
    """The course's own answer behind a name of its own: a check refuses the very object."""
    reference = checks.find(id).reference
    if isinstance(reference, type):
        return type(reference.__name__, (reference,), {})
    return lambda *arguments, **options: reference(*arguments, **options)
