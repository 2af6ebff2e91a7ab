"""Exercises 7 and 8: what the latents are made of, and how large they are."""

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch02.answers import active_units, scaling_factor

# ---- 7 · which of them are in use

ACTIVE = Exercise("vae.active_units", points=2, minutes=10, reference=active_units)


def _count(value, expected: int, bugs: dict[int, str] | None = None):
    if isinstance(value, bool) or not isinstance(value, int):
        return f"count should be an int, got {'a tensor: int(...)' if isinstance(value, Tensor) else repr(value)[:40]}"
    if value != expected:
        return f"count: {(bugs or {}).get(value, f'expected {expected}, got {value}')}"


@ACTIVE.gate("means (N,c,h,w) -> (count, variance (c,h,w))")
def _(fn):
    out = fn(normal((9, 2, 3, 4), 1))
    if problem := several(out, ("count", "variance")):
        return problem
    if isinstance(out[1], Tensor) and tuple(out[1].shape) == (2,):
        return "variance has shape (2,): a unit is one of the c * h * w values, not a channel"
    if isinstance(out[1], Tensor) and tuple(out[1].shape) == (9,):
        return "variance has shape (9,): it is taken over the pictures, for each unit; not over the units of a picture"
    problem = tensor_like(out[1], (2, 3, 4))
    return f"variance: {problem}" if problem else _count(out[0], 24)


@ACTIVE.property("worked by hand: values 0 and 2 have the variance 2, values 5 and 5 have none")
def _(fn):
    means = torch.tensor([[0.0, 5.0, 0.0], [2.0, 5.0, 0.01]]).reshape(2, 3, 1, 1)
    count, variance = fn(means)
    right = torch.tensor([2.0, 0.0, 0.00005]).reshape(3, 1, 1)
    if problem := compare(variance, right, {
            "it is divided by N: by N - 1, as torch.var does": right / 2,
            "this is the standard deviation: the variance has no root": right.sqrt(),
            "the mean over the pictures was not subtracted": means.square().sum(0),
            "the mean over the pictures was not subtracted; and it is divided by N": means.square().mean(0)}):
        return f"variance: {problem}"
    return _count(count, 1, {2: "a unit that is always 5 is dead too, whatever its size: compare the variance",
                             3: "a unit counts if its variance is above the threshold of 0.01"})


@ACTIVE.property("the threshold is an argument, for the variance")
def _(fn):
    means = normal((4000, 3, 1, 1), 2) * torch.tensor([0.05, 0.2, 1.0]).reshape(3, 1, 1)
    for threshold, expected in ((0.001, 3), (0.01, 2), (0.1, 1), (2.0, 0)):
        if problem := _count(fn(means, threshold)[0], expected):
            return f"stds 0.05, 0.2, 1 and threshold {threshold:g}: {problem}"


@ACTIVE.property("equals the course's, also for units far from zero")
def _(fn):
    means = normal((50, 2, 3, 3), 3) * normal((2, 3, 3), 4) * 0.2 + 3 * normal((2, 3, 3), 5)
    count, variance = active_units(means)
    have = fn(means)
    return compare(have[1], variance, rtol=1e-3) or _count(have[0], count)


@ACTIVE.hygiene("leaves the means as they were")
def _(fn):
    return touched(fn, normal((5, 2, 2, 2), 6))


# ---- 8 · how large they are

SCALING = Exercise("vae.scaling_factor", points=2, minutes=10, reference=scaling_factor)


def _number(fn, batches, expected: float, bugs: dict[str, float] | None = None, rtol: float = 2e-3):
    value = fn(batches)
    if isinstance(value, Tensor) and value.ndim:
        return f"expected one number for all channels, got a tensor of shape {tuple(value.shape)}"
    if not isinstance(value, (int, float, Tensor)):
        return f"expected a float, got {type(value).__name__}" + (": is the `return` missing?" if value is None else "")
    known = {bug: torch.tensor(wrong) for bug, wrong in (bugs or {}).items()}
    return compare(torch.tensor(float(value)), torch.tensor(expected), known, rtol)


@SCALING.gate("batches of latents (b,c,h,w) -> one number")
def _(fn):
    value = fn([normal((3, 2, 4, 4), 1), normal((3, 2, 4, 4), 2)])
    if isinstance(value, Tensor) and value.ndim:
        return f"expected one number for all channels, got a tensor of shape {tuple(value.shape)}"
    if not isinstance(value, (int, float, Tensor)):
        return f"expected a float, got {type(value).__name__}" + (": is the `return` missing?" if value is None else "")


@SCALING.property("worked by hand: the values -1, 1, 7, 9 have mean 4 and variance 17, so 1 / sqrt(17) = 0.2425")
def _(fn):
    values = torch.tensor([-1.0, 1.0, 7.0, 9.0]).repeat(500)
    whole = values.reshape(2, 1, 25, 40)
    return _number(fn, [whole[:1], whole[1:]], 17**-0.5, {
        "this is std: the factor is 1 / std": 17**0.5,
        "this is 1 / variance: the root is missing": 1 / 17,
        "the mean was not subtracted: this is 1 / rms": 33**-0.5,
        "this is 1 / rms^2: subtract the mean, and take the root": 1 / 33})


@SCALING.property("one number for all channels, not a mean over channels or batches; batches of unequal size")
def _(fn):
    low, high = normal((30, 1, 8, 8), 3), 6 + 3 * normal((10, 1, 8, 8), 4)
    everything = torch.cat([low.flatten(), high.flatten()]).double()
    return _number(fn, [low, high], 1 / float(everything.std()), {
        "only the first batch was used": 1 / float(low.std()),
        "only the last batch was used": 1 / float(high.std()),
        "the stds of the batches were averaged: what lies between their means is lost":
            2 / float(low.std() + high.std()),
        "the factors of the batches were averaged": float(1 / low.std() + 1 / high.std()) / 2,
        "the variances of the batches were averaged: what lies between their means is lost":
            float((low.var() + high.var()) / 2) ** -0.5,
        "batches of unequal size count alike: weigh them by their number of values":
            float((low.square().mean() + high.square().mean()) / 2 - ((low.mean() + high.mean()) / 2) ** 2) ** -0.5})


@SCALING.property("channels of different size share one factor")
def _(fn):
    z = normal((20, 2, 8, 8), 5) * torch.tensor([0.5, 4.0]).reshape(1, 2, 1, 1)
    std = z.std(dim=(0, 2, 3))
    return _number(fn, [z[:5], z[5:]], 1 / float(z.std()), {
        "the stds of the channels were averaged: one std over all values": 1 / float(std.mean()),
        "the factors of the channels were averaged": float((1 / std).mean())})


@SCALING.property("the batches may come from a generator, which can be read only once")
def _(fn):
    z = 3 + 2 * normal((12, 2, 4, 4), 6)
    try:
        return _number(fn, (z[k: k + 4] for k in range(0, 12, 4)), 1 / float(z.std()))
    except (TypeError, ZeroDivisionError, RuntimeError, ValueError) as error:
        return f"it raised {type(error).__name__}: read the batches once, in one loop, and keep running sums"


@SCALING.hygiene("leaves the latents as they were")
def _(fn):
    return touched(lambda a, b: fn([a, b]), normal((2, 2, 3, 3), 7), normal((3, 2, 3, 3), 8))
