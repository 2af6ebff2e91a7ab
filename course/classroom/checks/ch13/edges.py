"""Exercise 7: how well edges agree."""

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, tensor_like, touched
from course.classroom.checks.ch13.answers import f_score

F_SCORE = Exercise("hints.f_score", points=4, minutes=15, reference=f_score)


def _mask(*points: tuple[int, int], side: int = 9) -> Tensor:
    made = torch.zeros(1, side, side, dtype=torch.bool)
    for y, x in points:
        made[0, y, x] = True
    return made


def _some(seed: int, share: float = 0.15) -> Tensor:
    return torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(seed)) < share


@F_SCORE.gate("returns one score for each picture, (B,)")
def _(fn):
    return tensor_like(fn(_some(1), _some(2)), (4,))


@F_SCORE.property("the same edges score 1, edges elsewhere 0, and two empty pictures 0 without NaN")
def _(fn):
    here, there = _mask((1, 1), (1, 2)), _mask((7, 7))
    if problem := compare(fn(here, here), torch.ones(1)):
        return f"the same edges: {problem}"
    for a, b, what in ((here, there, "edges elsewhere"), (_mask(), _mask(), "two empty pictures"),
                       (here, _mask(), "nothing wanted")):
        value = fn(a, b)
        if not torch.isfinite(value).all():
            return f"{what}: NaN: a count of 0 divides; use .clamp(min=...)"
        if problem := compare(value, torch.zeros(1)):
            return f"{what}: {problem}"


@F_SCORE.property("worked by hand: 4 found, 2 of them right, 2 wanted: P = 1/2, R = 1, F = 2/3")
def _(fn):
    wanted = _mask((1, 1), (1, 5))
    found = _mask((1, 1), (1, 5), (7, 1), (7, 5))
    bugs = {"this is the arithmetic mean: F is the harmonic one, 2PR / (P + R)": torch.tensor([0.75]),
            "this is precision alone": torch.tensor([0.5]), "this is recall alone": torch.tensor([1.0]),
            "the 2 of 2PR / (P + R) is missing": torch.tensor([1 / 3]), "this is P times R": torch.tensor([0.5]),
            "this is the geometric mean: F is the harmonic one, 2PR / (P + R)": torch.tensor([0.5]).sqrt(),
            "this is the share of pixels that agree: most of a picture is no edge": torch.tensor([79 / 81])}
    if problem := compare(fn(found, wanted), torch.tensor([2 / 3]), bugs):
        return problem
    return compare(fn(wanted, found), torch.tensor([2 / 3])) and "it should be the same with found and wanted exchanged"


@F_SCORE.property("an edge may be `tolerance` pixels away, diagonally, too, and no farther")
def _(fn):
    for tolerance, down, across, right in ((1, 0, 1, 1), (1, 1, 1, 1), (1, 0, 2, 0), (0, 0, 0, 1), (0, 0, 1, 0), (2, 2, 2, 1),
                                           (2, 0, 3, 0)):
        value = fn(_mask((4, 4)), _mask((4 + down, 4 + across)), tolerance)
        if not torch.isfinite(value).all() or abs(float(value) - right) > 1e-3:
            return (f"tolerance {tolerance}, {down} down and {across} to the right: expected {right}, got {float(value):.3g}"
                    + (": the window of max_pool2d has 2 * tolerance + 1 pixels" if tolerance else ""))


@F_SCORE.property("what is near is asked in both directions")
def _(fn):
    found, wanted = _mask((4, 4)), _mask((4, 3), (4, 4), (4, 5), (0, 0))                # P = 1, R = 3/4
    return compare(fn(found, wanted), torch.tensor([6 / 7]), {
        "recall counts found pixels: it is the share of the wanted ones that have a found one near":
            torch.tensor([0.4])})


@F_SCORE.property("equals the course's, the border included, each picture by itself")
def _(fn):
    found, wanted = _some(3), _some(4, 0.1)
    right = f_score(found, wanted)
    return compare(fn(found, wanted), right, {"one score over the batch: each picture has its own": right.mean().expand(4)})


@F_SCORE.hygiene("leaves the masks as they were")
def _(fn):
    return touched(fn, _some(5), _some(6))
