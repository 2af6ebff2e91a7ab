"""Exercises 1 and 6: the best two thin matrices, and two pairs of them as one."""

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch14.answers import low_rank, stacked

# ---- 1 · the best of rank r

LOW_RANK = Exercise("lora.low_rank", points=3, minutes=15, reference=low_rank)


@LOW_RANK.gate("returns (A, B) of shapes (r,in) and (out,r)")
def _(fn):
    for (m, n), r in (((6, 9), 2), ((7, 4), 3)):
        out = fn(normal((m, n), 1), r)
        if problem := several(out, ("A", "B")):
            return problem
        if tuple(getattr(out[0], "shape", ())) == (m, r) and tuple(getattr(out[1], "shape", ())) == (r, n):
            return "the two are exchanged: A (r,in) comes first, then B (out,r)"
        for name, value, shape in (("A", out[0], (r, n)), ("B", out[1], (m, r))):
            if problem := tensor_like(value, shape):
                return f"{name}: {problem}" + (
                    ": it is turned" if tuple(getattr(value, "shape", ())) == shape[::-1] else "")


@LOW_RANK.property("worked by hand: of diag(4, 9, 1) the best of rank 1 keeps the 9")
def _(fn):
    A, B = fn(torch.diag(torch.tensor([4.0, 9.0, 1.0])), 1)
    right = torch.diag(torch.tensor([0.0, 9.0, 0.0]))
    return compare(B @ A, right, {
        "the singular values are missing from the product": right / 9,
        "the singular values are in both A and B: together they may occur once, as a root in each": right * 9,
        "the root of the singular values occurs once only": right / 3,
        "the smallest was kept: singular values come sorted, largest first": torch.diag(torch.tensor([0.0, 0.0, 1.0])),
        "the first row and column were kept": torch.diag(torch.tensor([4.0, 0.0, 0.0]))})


@LOW_RANK.property("a matrix of rank r comes back whole")
def _(fn):
    delta = normal((6, 2), 2) @ normal((2, 6), 3)
    A, B = fn(delta, 2)
    U, S, Vh = torch.linalg.svd(delta)
    return compare(B @ A, delta, {
        "V was turned: torch.linalg.svd returns it turned already, as Vh": (U[:, :2] * S[:2]) @ Vh.T[:2],
        "columns of Vh were taken: its rows belong to the singular values": (U[:, :2] * S[:2]) @ Vh[:, :2].T}, rtol=1e-3)


@LOW_RANK.property("no other product of rank r comes nearer: what is missing are the small singular values")
def _(fn):
    for seed, r in ((4, 1), (5, 3), (6, 5)):
        delta = normal((7, 10), seed)
        A, B = fn(delta, r)
        missing = float((delta - B @ A).square().sum())
        least = float(torch.linalg.svdvals(delta)[r:].square().sum())
        if missing > least * 1.001 + 1e-4:
            return f"rank {r}: the squared distance could be {least:.4g}, it is {missing:.4g}"


@LOW_RANK.property("the singular values are split evenly: A A^T and B^T B are equal, and diagonal")
def _(fn):
    A, B = fn(normal((6, 9), 7), 3)
    a, b = A @ A.T, B.T @ B
    if (a - b).abs().max() > 1e-3 * a.abs().max():
        return "the singular values are all on one side: give each of A and B their square root"
    return None if (a - a.diag().diag()).abs().max() < 1e-3 * a.abs().max() else "the rows of A are not orthogonal"


@LOW_RANK.hygiene("leaves delta as it was")
def _(fn):
    return touched(lambda d: fn(d, 2), normal((5, 6), 8))


# ---- 6 · two as one

STACKED = Exercise("lora.stacked", points=2, minutes=10, reference=stacked)


def _some(*ranks: int, seed: int = 1):
    return [(normal((r, 5), seed + k), normal((4, r), seed + 10 + k), 0.5 + k) for k, r in enumerate(ranks)]


@STACKED.gate("returns (A, B) of shapes (r1 + r2,in) and (out,r1 + r2)")
def _(fn):
    out = fn(_some(2, 3))
    if problem := several(out, ("A", "B")):
        return problem
    for name, value, shape in (("A", out[0], (5, 5)), ("B", out[1], (4, 5))):
        if problem := tensor_like(value, shape):
            return f"{name}: {problem}"


@STACKED.property("worked by hand: A 1 and 2, B 3 and 4, scales 10 and 100 give 30 + 800")
def _(fn):
    one = torch.ones(1, 1)
    A, B = fn([(one, 3 * one, 10.0), (2 * one, 4 * one, 100.0)])
    return compare(B @ A, 830 * one, {
        "the scales are missing": 11 * one, "the scale is in both A and B": 80_300 * one,
        "one scale was used for all": 110 * one, "one scale was used for all ": 1100 * one,
        "the mean of the two: they add up": 415 * one})


@STACKED.property("its change is the sum of the changes, whatever the ranks")
def _(fn):
    for ranks in ((2, 3), (1, 1, 4), (3,)):
        given = _some(*ranks, seed=3)
        A, B = fn([(a.clone(), b.clone(), scale) for a, b, scale in given])
        right = sum(scale * b @ a for a, b, scale in given)
        if problem := compare(B @ A, right, {"the scales are missing": sum(b @ a for a, b, _ in given)}, rtol=1e-3):
            return f"ranks {ranks}: {problem}"


@STACKED.hygiene("leaves the adapters as they were")
def _(fn):
    given = _some(2, 3)
    return touched(lambda *t: fn([(t[0], t[1], 2.0), (t[2], t[3], 3.0)]), *given[0][:2], *given[1][:2])
