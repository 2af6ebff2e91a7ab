"""Checks: what each exercise asks for, as a list of properties, each of which names the likely bug when it fails.

One module or package per chapter (`ch05`) holds `EXERCISES`, a list of `Exercise`. A property is a function of the student's
object that returns None, or a sentence that says what is wrong:

    ADD_NOISE = Exercise("schedule.add_noise", points=3, minutes=10, reference=add_noise)

    @ADD_NOISE.property("worked by hand: alpha_bar 0.64 keeps 0.8 of the signal")
    def _(fn):
        return compare(fn(...), expected, {"did you forget the square root?": what_that_bug_gives})

The order is: type and shape (a gate: nothing else is tried where it fails), a case worked by hand, properties, equality
with the reference, gradient, input untouched. Whatever an answer does (raise, return a list, be None) is a failed
property with a sentence, never a crash of the check.
"""

import contextlib
import importlib
import io
import math
import pkgutil
import re
import sys
import warnings
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from course.errors import UsageError

UNWRITTEN = "✗ not written yet"            # the only message about a stub


class CheckFailed(AssertionError):
    """An answer fell short under COURSE_GRADING=1."""


@dataclass(frozen=True)
class Result:
    """What a check found. A notebook shows it as its points, a number, which nbgrader reads as partial credit."""

    id: str
    passed: bool
    points: float
    max_points: float
    messages: list[str] = field(default_factory=list)          # one a property: a tick, or the likely bug

    def __repr__(self) -> str:
        return str(float(self.points))


class Exercise:
    """One exercise: its points, its minutes, the course's own answer, and the properties an answer must have.

    The points are earned by properties in equal shares, in steps of a half; short of all properties at least half a
    point is missing. Gates and `hygiene` earn nothing but are necessary.
    """

    def __init__(self, id: str, points: int, minutes: int, reference):
        self.id, self.points, self.minutes, self.reference = id, points, minutes, reference
        self.properties: list[tuple[str, str, object]] = []     # (title, kind, function)

    def gate(self, title: str):
        return self._add(title, "gate")

    def property(self, title: str):
        return self._add(title, "value")

    def hygiene(self, title: str):
        return self._add(title, "hygiene")

    def _add(self, title: str, kind: str):
        def keep(function):
            self.properties.append((title, kind, function))
            return function
        return keep

    def run(self, obj, before=lambda kind: None) -> Result:
        """Try every property on `obj`; prints nothing and leaves the random state as it was.

        before: called with the kind of each property that is about to be tried.
        """
        if obj is self.reference:
            return self._nothing("this is the course's own part: run the cell with your definition again")
        if not callable(obj):
            return self._nothing(f"expected a function or a class, got {_named(obj)}: did you run the cell that defines it?")
        messages, earned, blocked, all_well = [], 0, False, True
        for title, kind, function in self.properties:
            if blocked:
                continue
            before(kind)
            # an answer that edits its inputs is told so by `hygiene`; elsewhere it would spoil the expected values
            problem = _attempt(function, obj if kind == "hygiene" else _on_copies(obj))
            if problem is _UNWRITTEN and kind == "gate":
                return self._nothing(UNWRITTEN.removeprefix("✗ "))
            problem = "this case is not written yet" if problem is _UNWRITTEN else problem
            messages.append(f"✗ {title}\n    {problem}" if problem else f"✓ {title}")
            earned += kind == "value" and not problem
            all_well, blocked = all_well and not problem, kind == "gate" and bool(problem)
        if blocked:
            messages.append("· the other properties are tried when this one holds")
        share = earned / sum(kind == "value" for _, kind, _ in self.properties)
        points = self.points if all_well else min(math.floor(2 * share * self.points) / 2, self.points - 0.5)
        return Result(self.id, all_well, float(points), float(self.points), messages)

    def _nothing(self, why: str) -> Result:
        return Result(self.id, False, 0.0, float(self.points), [f"✗ {why}"])


def find(id: str) -> Exercise:
    """The exercise called `id`. Raises UsageError that lists the known ids."""
    known = exercises()
    if id not in known:
        raise UsageError(f"no exercise is called {id!r}; the exercises are {', '.join(known)}")
    return known[id]


def exercises() -> dict[str, Exercise]:
    """All exercises by id, in the order of the chapters."""
    chapters = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith("ch"))
    return {e.id: e for name in chapters for e in importlib.import_module(f"{__name__}.{name}").EXERCISES}


def text(result: Result) -> str:
    """The report for a person."""
    return f"{result.id}: {result.points:g} of {result.max_points:g} points\n" + "\n".join(result.messages)


def report(result: Result) -> None:
    """Print the report on stdout."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text(result).encode(encoding, "replace").decode(encoding))    # a Windows console may lack the tick


# ---- what properties are written with

def compare(actual, expected: Tensor, bugs: dict[str, Tensor] | None = None, rtol: float = 1e-4) -> str | None:
    """None where `actual` equals `expected` to `rtol` of the largest magnitude; otherwise what is wrong.

    Args:
        bugs: sentence -> the value that this bug would give. The first that fits is the answer.
    """
    if problem := tensor_like(actual, tuple(expected.shape)):
        return problem
    actual, expected = actual.detach().double().cpu(), expected.detach().double()
    if _close(actual, expected, rtol):
        return None
    if not torch.isfinite(actual).all():
        return "the result holds NaN or infinity: a division by zero, or the root of a negative number?"
    for sentence, wrong in (bugs or {}).items():
        if wrong.shape == actual.shape and _close(actual, wrong, rtol):
            return sentence
    where = (actual - expected).abs().argmax()
    index = tuple(int(i) for i in torch.unravel_index(where, expected.shape))
    at = f" at index {index}" if index else ""
    return f"expected {float(expected.flatten()[where]):.6g}{at}, got {float(actual.flatten()[where]):.6g}"


def tensor_like(value, shape: tuple[int, ...], floating: bool = True) -> str | None:
    """None where `value` is a tensor of `shape` and of a real floating (or an integer) dtype; otherwise a sentence."""
    if not isinstance(value, Tensor):
        return f"expected a torch tensor of shape {shape}, got {_named(value)}" + (
            ": is the `return` missing?" if value is None else "")
    if tuple(value.shape) != shape:
        return f"expected shape {shape}, got {tuple(value.shape)}"
    fits = value.dtype.is_floating_point if floating else value.dtype in (torch.int64, torch.int32)
    return None if fits else f"expected {'a floating' if floating else 'an integer'} dtype, got {value.dtype}"


def several(value, names: tuple[str, ...]) -> str | None:
    """None where `value` is a tuple of as many things as `names`."""
    if isinstance(value, (tuple, list)) and len(value) == len(names):
        return None
    got = f"{len(value)} values" if isinstance(value, (tuple, list)) else _named(value)
    return f"expected ({', '.join(names)}), got {got}" + (": is the `return` missing?" if value is None else "")


def touched(call, *inputs: Tensor) -> str | None:
    """None where `call(*inputs)` leaves every input as it was."""
    copies = [x.clone() for x in inputs]
    call(*inputs)
    for position, (now, before) in enumerate(zip(inputs, copies, strict=True)):
        if not torch.equal(now, before):
            return (f"tensor argument {position + 1} was changed in place: `x = a * x` makes a new tensor, "
                    "`x *= a` writes into the caller's")
    return None


def normal(shape, seed: int, dtype=torch.float32) -> Tensor:
    """Standard normal numbers from a seed: the same in every check of a notebook, others in every grading (`fresh`)."""
    generator = torch.Generator().manual_seed(seed + _SALT.get())
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


_SALT: ContextVar[int] = ContextVar("salt", default=0)


@contextlib.contextmanager
def fresh(salt: int):
    """Within it `normal` gives the numbers that belong to `salt`: who knows those of the notebook knows nothing."""
    before = _SALT.set(salt % 2**40 * 1000)                    # seeds are small numbers, so that no two salts share one
    try:
        yield
    finally:
        _SALT.reset(before)


def _on_copies(obj):
    def copy(value):
        return value.clone() if isinstance(value, Tensor) else value
    return lambda *arguments, **options: obj(*map(copy, arguments), **{k: copy(v) for k, v in options.items()})


_UNWRITTEN = object()


def _attempt(function, obj):
    """What `function(obj)` says, with the student's prints and warnings kept out of the report."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), \
                contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return function(obj)
    except NotImplementedError as error:
        if found := re.match(r"Module \[(\w+)\]", str(error)):        # torch's, not the stub's
            return f"a {found[1]} cannot be called: take what it holds one by one, as in `blocks[0](h)`"
        return _UNWRITTEN
    except (Exception, SystemExit) as error:
        first = (str(error).strip().splitlines() or ["no message"])[0][:160]
        return f"it raised {type(error).__name__}: {first}"


def _close(a: Tensor, b: Tensor, rtol: float) -> bool:
    return a.numel() == 0 or bool((a - b).abs().max() <= rtol * b.abs().max() + 1e-12)


def _named(value) -> str:
    return "None" if value is None else f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
