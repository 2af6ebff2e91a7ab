"""Exercise 1: the best possible denoiser, where the distribution of the data is known."""

import math

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch07.answers import exact_x0

EXACT = Exercise("samplers.exact_x0", points=4, minutes=20, reference=exact_x0)


@EXACT.gate("returns x0 in the shape and dtype of x_t: points (B,2), and pictures (B,C,H,W)")
def _(fn):
    for shape in ((4, 2), (2, 3, 4, 5)):
        x_t = normal(shape, 1)
        out = fn(x_t, 0.5, normal((7, *shape[1:]), 2), 0.1)
        if problem := tensor_like(out, shape):
            return problem
        if out.dtype != x_t.dtype:
            return f"x_t is {x_t.dtype}, the result is {out.dtype}"


@EXACT.property("worked by hand: two points, -1 and 1, and no spread: x0 = tanh(a x_t / (1 - alpha_bar))")
def _(fn):
    data, x_t = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([[0.3], [-0.1]]).double()
    ab = 0.64
    a, v = 0.8, 0.36
    best = x_t.sign()
    away = torch.tanh(x_t / v)                                  # distances to m, not to a m
    return compare(fn(x_t, ab, data, 0.0), torch.tanh(a * x_t / v), {
        "the distances are to the data: x_t lies around a times the data, a = sqrt(alpha_bar)": away,
        "the 2 is missing: the density of a Gaussian is exp(-distance^2 / (2 variance))": torch.tanh(2 * a * x_t / v),
        "the distances must be squared and divided by twice the variance": torch.tanh(a * x_t / math.sqrt(v)),
        "the weights are turned round: near points must weigh more (a minus sign?)": -torch.tanh(a * x_t / v),
        "this is the nearest point: average all points by their weights": best,
        "the mean is that of a x_0: use the data, unscaled, in the average": a * torch.tanh(a * x_t / v),
        "all points weigh the same: the weights come from the distances": 0 * x_t,
        "the data are scaled by alpha_bar: by its square root instead": torch.tanh(ab * x_t / v)})


@EXACT.property("one Gaussian alone: x0 = m + a spread^2 / (a^2 spread^2 + 1 - alpha_bar) (x_t - a m)")
def _(fn):
    x_t, m, ab, spread = normal((5, 2), 3, torch.float64), torch.tensor([[2.0, -1.0]]).double(), 0.64, 0.5
    a, variance = 0.8, 0.64 * 0.25 + 0.36
    gain = a * spread**2 / variance
    return compare(fn(x_t, ab, m, spread), m + gain * (x_t - a * m), {
        "the second term is missing: within a Gaussian of some spread, x_t says where x_0 lies": m.expand(5, 2),
        "spread is a standard deviation: square it": m + a * spread / (ab * spread + 0.36) * (x_t - a * m),
        "the factor a = sqrt(alpha_bar) is missing in the gain": m + spread**2 / variance * (x_t - a * m),
        "the difference is x_t - a m: the mean belongs to a x_0": m + gain * (x_t - m),
        "the variance of x_t is alpha_bar spread^2 + 1 - alpha_bar": m + a * spread**2 / 0.36 * (x_t - a * m)})


@EXACT.property("without noise x0 is the point itself, in noise alone the mean of the data; and nothing overflows")
def _(fn):
    data = normal((6, 3, 4, 4), 4) * 3
    near = fn(0.99999**0.5 * data[:2], 0.99999, data, 0.0)
    if problem := compare(near, data[:2], rtol=1e-3):
        return problem + ": exp of a large negative number is 0, and 0 / 0 is nan: use softmax"
    far = fn(normal((2, 3, 4, 4), 5), 1e-9, data, 0.0)
    return compare(far, data.mean(0).expand(2, -1, -1, -1), {
        "this is the sum, not the mean: the weights must add up to 1": data.sum(0).expand(2, -1, -1, -1)}, rtol=1e-2)


@EXACT.property("equals the course's denoiser: each x_t has its own weights, which add up to 1 over the data")
def _(fn):
    x_t, data = normal((5, 2), 6, torch.float64), normal((5, 2), 7, torch.float64)
    right = exact_x0(x_t, 0.7, data, 0.3)
    a, variance = 0.7**0.5, 0.7 * 0.09 + 0.3
    squared = (x_t[:, None] - a * data[None]).pow(2).sum(-1)
    across = torch.softmax(-squared / (2 * variance), 0) @ data
    bare = torch.softmax(-squared / 0.6, 1) @ data
    return compare(fn(x_t, 0.7, data, 0.3), right, {
        "softmax runs over the batch: over the N data points (dim=1)": across + a * 0.09 / variance * (x_t - a * across),
        "the weights ignore the spread: their variance is alpha_bar spread^2 + 1 - alpha_bar":
            bare + a * 0.09 / variance * (x_t - a * bare)})


@EXACT.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(lambda x, d: fn(x, 0.5, d, 0.1), normal((3, 2), 8), normal((4, 2), 9))
