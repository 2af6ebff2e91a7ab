"""Exercise 1: the noise level as waves."""

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, tensor_like, touched
from course.classroom.checks.ch06.answers import timestep_embedding

EMBEDDING = Exercise("layers.timestep_embedding", points=3, minutes=10, reference=timestep_embedding)


def _waves(t, frequencies, order: str = "cs") -> Tensor:
    angles = torch.tensor(t, dtype=torch.float64)[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    parts = {"c": angles.cos(), "s": angles.sin()}
    return torch.cat([parts[p] for p in order], dim=-1)


@EMBEDDING.gate("(B,) integers or fractions -> (B,dim), floating")
def _(fn):
    for t in (torch.tensor([0, 5, 999]), torch.tensor([0.5, 7.25, 1.0])):
        try:
            problem = tensor_like(fn(t, 8), (3, 8))
        except RuntimeError as error:
            if "must match" not in str(error):
                raise
            problem = "t is (B,), the frequencies are (dim/2,): make t (B,1), and the product is (B,dim/2)"
        if problem:
            return f"t of dtype {t.dtype}: {problem}"


@EMBEDDING.property("worked by hand: t = 0 gives cosines 1, 1 and sines 0, 0")
def _(fn):
    expected = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    return compare(fn(torch.tensor([0]), 4), expected, {
        "sines come first in your answer: the released models have the cosines first": expected.flip(1),
        "cosines and sines alternate in your answer: first all cosines, then all sines": torch.tensor([[1.0, 0.0, 1.0, 0.0]]),
        "alternating, sines first: first all cosines, then all sines": torch.tensor([[0.0, 1.0, 0.0, 1.0]]),
        "two times the cosine: the second half is the sine": torch.ones(1, 4),
        "two times the sine: the first half is the cosine": torch.zeros(1, 4)})


@EMBEDDING.property("worked by hand: dim 4 has the frequencies 1 and 1/100, at t = 3: cos 3, cos 0.03, sin 3, sin 0.03")
def _(fn):
    half_period = torch.tensor([1.0, 1e-4])
    return compare(fn(torch.tensor([3]), 4), _waves([3], [1.0, 0.01]), {
        "the lowest of your frequencies is 1/10000: divide the exponent by dim/2, not by dim/2 - 1 (shift 0)":
            _waves([3], half_period.tolist()),
        "the exponent is divided by dim, not by dim/2": _waves([3], [1.0, 0.1]),
        "the frequencies rise: the sign of the exponent is turned": _waves([3], [1.0, 100.0]),
        "the highest frequency is missing: the exponents start at 0, so that the first frequency is 1":
            _waves([3], [0.01, 0.0001]),
        "the frequencies lie on a straight line: they fall geometrically, 10000^(-i / (dim/2))": _waves([3], [1.0, 0.5]),
        "angles in turns: there is no factor 2 pi": _waves([3], [2 * torch.pi, 0.02 * torch.pi]),
        "sines come first in your answer: the released models have the cosines first": _waves([3], [1.0, 0.01], "sc")})


@EMBEDDING.property("equals the course's, dim 320 and t up to 999, as in Stable Diffusion")
def _(fn):
    t = torch.tensor([0, 1, 17, 500, 999])
    return compare(fn(t, 320), timestep_embedding(t, 320), {
        "the exponent is divided by dim/2 - 1 instead of dim/2 (shift 0)":
            _waves(t.tolist(), [10_000 ** (-i / 159) for i in range(160)])}, rtol=2e-3)


@EMBEDDING.property("each row belongs to its own t, and fractions of t count")
def _(fn):
    t = torch.tensor([4.0, 0.25, 2.5, 0.75])
    e = fn(t, 8)
    if problem := compare(fn(t.flip(0), 8), e.flip(0)):
        return f"another order of t must give the rows in that order: {problem}"
    return compare(e, timestep_embedding(t, 8), {
        "t is rounded to whole numbers: samplers ask for levels in between": timestep_embedding(t.long(), 8)})


@EMBEDDING.property("max_period sets the slowest wave")
def _(fn):
    t = torch.tensor([3.0, 40.0])
    return compare(fn(t, 8, max_period=100), timestep_embedding(t, 8, 100), {
        "max_period is ignored: 10000 is only its default": timestep_embedding(t, 8)})


@EMBEDDING.hygiene("leaves t as it was")
def _(fn):
    return touched(lambda t: fn(t, 8), torch.tensor([1.0, 2.0]))
