"""Exercises 5 and 6: how sharp is a picture, and did a change help?"""

import torch
import torch.nn.functional as F

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch10.answers import paired, sharpness

# ---- 5 · sharpness

SHARPNESS = Exercise("prompts.sharpness", points=3, minutes=15, reference=sharpness)


def _ramp(width: int, high: float = 1.0, turned: bool = False):
    """A step of `high`, spread evenly over `width` pixels; (1,3,8,16), or turned by a quarter."""
    line = ((torch.arange(16) - 4).clamp(0, width) / width * high).reshape(1, 1, 1, 16).expand(1, 3, 8, 16)
    return line.transpose(2, 3).contiguous() if turned else line.contiguous()


@SHARPNESS.gate("(B,3,H,W) -> (B,)")
def _(fn):
    out = fn(normal((4, 3, 6, 9), 1))
    if getattr(out, "ndim", None) == 0 or isinstance(out, float):
        return "one number came back for the whole batch: one for each picture"
    return tensor_like(out, (4,))


@SHARPNESS.property("worked by hand: an edge of height 1 over 1, 2 and 4 pixels has the sharpness 1, 1/2, 1/4")
def _(fn):
    right = torch.tensor([1.0, 0.5, 0.25])
    out = torch.cat([fn(_ramp(w)) for w in (1, 2, 4)])
    return compare(out, right, {
        "this does not feel the blur: squares above, absolute values below": torch.ones(3),
        "these are the absolute values alone, which a blur leaves as they are": torch.full((3,), 8 / 232),
        "these are sums of absolute values": torch.full((3,), 8.0),
        "these are sums of squares: divide by the sum of the absolute values": 8 * right,
        "these are means of squares: divide by the mean of the absolute values": 8 * right / 232,
        "this is its root": right.sqrt(),
        "this is the largest step divided by the sum": right / 8,
        "this is the ratio turned round": 1 / right,
        "the channels were added: take their mean": 3 * right})


@SHARPNESS.property("edges across and edges down count alike")
def _(fn):
    out = torch.cat([fn(_ramp(2)), fn(_ramp(2, turned=True))])
    if not torch.isfinite(out).all():
        return "NaN for a picture that changes in one direction only: are both directions in one sum?"
    if float(out.min()) < 1e-3 < float(out.max()):
        return "only one direction counts: steps across and steps down"
    return compare(out, torch.tensor([0.5, 0.5]))


@SHARPNESS.property("more edges of the same kind do not make a picture sharper; a higher edge does")
def _(fn):
    two = torch.cat([_ramp(2), _ramp(2).flip(-1)], dim=-1)
    return compare(torch.cat([fn(two), fn(_ramp(2, 0.5))]), torch.tensor([0.5, 0.25]))


@SHARPNESS.property("a dark and a bright picture of the same edges are alike, and each picture is judged by itself")
def _(fn):
    x = normal((3, 3, 8, 8), 2)
    if problem := compare(fn(x - 0.5), fn(x)):
        return f"adding a constant changed it: {problem}"
    return compare(fn(x)[1:2], fn(x[1:2])) or compare(fn(x), sharpness(x))


@SHARPNESS.property("an even picture has the sharpness 0, not NaN; blurred ones have less")
def _(fn):
    out = fn(torch.ones(1, 3, 8, 8))
    if not torch.isfinite(out).all():
        return "NaN for an even picture: 0 divided by 0, so .clamp(min=1e-8) below"
    if float(out.abs().max()) > 1e-6:
        return f"an even picture has no edges: expected 0, got {float(out.max()):g}"
    x = (normal((2, 3, 32, 32), 3) > 0).float()
    return "a blurred picture counts as sharper" if (fn(F.avg_pool2d(x, 3, 1, 1)) >= fn(x)).any() else None


@SHARPNESS.hygiene("leaves the pictures as they were")
def _(fn):
    return touched(fn, normal((2, 3, 8, 8), 4))


# ---- 6 · did it help?

PAIRED = Exercise("prompts.paired", points=3, minutes=15, reference=paired)


def _lists(both, gained, lost, neither):
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    return before, [True] * (both + gained) + [False] * (lost + neither)


@PAIRED.gate("returns (gained, lost, p)")
def _(fn):
    out = fn(*_lists(3, 2, 1, 1))
    if problem := several(out, ("gained", "lost", "p")):
        return problem
    try:
        [float(value) for value in out]
    except (TypeError, ValueError):
        return f"expected three numbers, got {out!r}"


def _numbers(out, right, bugs):
    out = tuple(float(x) for x in out)
    if all(abs(a - b) < 1e-6 for a, b in zip(out, right, strict=True)):
        return None
    for words, wrong in bugs.items():
        if all(abs(a - b) < 1e-6 for a, b in zip(out, wrong, strict=True)):
            return words
    if abs(out[0] - right[0]) + abs(out[1] - right[1]) > 1e-6:
        return f"expected {right[0]} gained and {right[1]} lost, got {out[0]:g} and {out[1]:g}"
    return f"expected p = {right[2]:.4g}, got {out[2]:.4g}"


@PAIRED.property("worked by hand: 5 gained, 0 lost: two times 1/32 is p = 0.0625")
def _(fn):
    return _numbers(fn(*_lists(4, 5, 0, 3)), (5, 0, 0.0625), {
        "p is one-sided: a change that harms as much must count as well, so twice the tail": (5, 0, 1 / 32),
        "gained and lost are exchanged: gained is wrong before and right after": (0, 5, 0.0625),
        "these are the totals: count pictures that changed": (9, 4, 0.0625),
        "pictures that did not change were counted in n: only the changed ones tell": (5, 0, 2 / 2**12),
        "this is 1 - p": (5, 0, 1 - 0.0625)})


@PAIRED.property("worked by hand: 6 gained, 2 lost: (1 + 8 + 28) / 256, twice, is 0.289; and the same turned round")
def _(fn):
    right = 2 * 37 / 256
    bugs = {"only the outcome itself was counted: add those that are more extreme": (6, 2, 2 * 28 / 256),
            "the tail stops one too early: k runs up to the smaller number, itself included": (6, 2, 2 * 9 / 256),
            "p is one-sided: twice the tail": (6, 2, 37 / 256),
            "the tail runs up to the larger of the two: up to the smaller": (6, 2, 1.0)}
    if problem := _numbers(fn(*_lists(1, 6, 2, 9)), (6, 2, right), bugs):
        return problem
    return _numbers(fn(*_lists(1, 2, 6, 9)), (2, 6, right), {
        "the tail runs up to `lost`: up to the smaller of the two, so that harm is seen, too": (2, 6, 1.0)})


@PAIRED.property("p never exceeds 1, and is 1 where nothing changed")
def _(fn):
    return _numbers(fn(*_lists(1, 3, 3, 1)), (3, 3, 1.0), {"p exceeds 1: min(1, ...)": (3, 3, 2 * 42 / 64)}) or _numbers(
        fn(*_lists(5, 0, 0, 5)), (0, 0, 1.0), {})


@PAIRED.property("the order of the pictures matters: it is a comparison in pairs")
def _(fn):
    before, after = [True, False, True, False] * 5, [False, True] * 10
    return _numbers(fn(before, after), (10, 10, 1.0), {"only totals were compared: look at each picture": (0, 0, 1.0)})


@PAIRED.property("equals the course's on larger numbers")
def _(fn):
    for case in ((40, 30, 12, 18), (10, 70, 50, 30)):
        if problem := _numbers(fn(*_lists(*case)), paired(*_lists(*case)), {}):
            return problem


@PAIRED.hygiene("leaves both lists as they were")
def _(fn):
    before, after = _lists(2, 2, 1, 1)
    fn(before, after)
    return None if (before, after) == _lists(2, 2, 1, 1) else "a list was changed: work on a copy"
