"""Exercise 3: two estimates of one gradient."""

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch02.answers import gradient_estimates

GRADIENTS = Exercise("vae.gradient_estimates", points=3, minutes=15, reference=gradient_estimates)
NAMES = ("pathwise", "score")


def _double(*values):
    return torch.tensor(values, dtype=torch.float64)


def _square(z):
    return z.square().sum(1)


@GRADIENTS.gate("returns (pathwise, score), each (N,d): one estimate for each draw, not their mean")
def _(fn):
    out = fn(_square, _double(1, 2), _double(1, 1), normal((5, 2), 1, torch.float64))
    if problem := several(out, NAMES):
        return problem
    for name, value in zip(NAMES, out, strict=True):
        if isinstance(value, torch.Tensor) and tuple(value.shape) == (2,):
            return f"{name} has shape (2,), expected (5, 2): one estimate for each draw, leave the mean to the caller"
        if problem := tensor_like(value, (5, 2)):
            return f"{name}: {problem}"
        if value.requires_grad:
            return f"{name} still hangs on a graph: these are numbers now, detach them"


@GRADIENTS.property("worked by hand, pathwise: f = z^2, mean 1, std 0.5, noise 3 gives z = 2.5 and f' = 5")
def _(fn):
    return compare(fn(_square, _double(1), _double(0.5), _double(3)[None])[0], _double(5)[None], {
        "this is the derivative with respect to the noise: the mean enters z with the factor 1, not std": _double(2.5)[None],
        "this is the derivative with respect to std: the mean enters z with the factor 1": _double(15)[None],
        "f' was taken at the mean: take it at z = mean + std * noise": _double(2)[None],
        "f' was taken at mean + noise: the noise has the factor std": _double(8)[None],
        "this is f(z) itself: its derivative is asked for, by torch.autograd.grad": _double(6.25)[None],
        "this is the score estimate: the order is (pathwise, score)": _double(37.5)[None],
    })


@GRADIENTS.property("worked by hand, score: f = 3 z, mean 1, std 0.5, noise 3 gives 7.5 * 3 / 0.5 = 45")
def _(fn):
    return compare(fn(lambda z: 3 * z.sum(1), _double(1), _double(0.5), _double(3)[None])[1], _double(45)[None], {
        "the division by std is missing: d log q / d mean = (z - mean) / std^2 = noise / std": _double(22.5)[None],
        "it is divided by std^2: (z - mean) / std^2 is noise / std": _double(90)[None],
        "it is multiplied by std: d log q / d mean = noise / std": _double(11.25)[None],
        "the factor f(z) is missing": _double(6)[None],
        "the sign is turned: d log q / d mean = + noise / std": _double(-45)[None],
        "f' stands where f should: the score estimate needs only the value of f": _double(18)[None],
        "z stands where z - mean should: (z - mean) / std^2 is noise / std": _double(75)[None],
    })


@GRADIENTS.property("both equal the course's, with a mean and a std for each of d = N = 3 values")
def _(fn):
    mean, std, noise = _double(0.5, -1, 2), _double(0.3, 1, 2), normal((3, 3), 2, torch.float64)

    def f(z):
        return z.prod(1) + z[:, 0].sin()
    value, z = f(mean + std * noise), mean + std * noise
    right = gradient_estimates(f, mean, std, noise)
    across = {"f(z) runs along the d values: it belongs to the draws, value[:, None]": value * noise / std,
              "all draws got the mean of f: each has its own": value.mean() * noise / std,
              "it is divided by std^2: (z - mean) / std^2 is noise / std": value[:, None] * noise / std**2,
              "z stands where noise should: (z - mean) / std^2": value[:, None] * z / std**2}
    out = fn(f, mean, std, noise)
    for name, have, expected, bugs in zip(NAMES, out, right, ({}, across), strict=True):
        if problem := compare(have, expected, bugs):
            return f"{name}: {problem}"


@GRADIENTS.property("over many draws both means agree with the true gradient, 2 * mean for f = z^2")
def _(fn):
    noise = normal((40_000, 1), 3, torch.float64)
    for name, value in zip(NAMES, fn(_square, _double(1.5), _double(0.5), noise), strict=True):
        if abs(float(value.mean()) - 3) > 0.15:                # the standard errors are 0.005 and 0.035
            return f"{name}: the mean of 40,000 estimates should be near 3, got {float(value.mean()):.2f}"


@GRADIENTS.property("the score estimate needs no derivative of f; where f is a staircase, the pathwise one is zero")
def _(fn):
    def staircase(z):
        return (z > 0).double().sum(1) + 0 * z.sum(1)
    pathwise, score = fn(staircase, _double(0.0), _double(1.0), normal((4000, 1), 4, torch.float64))
    if pathwise.abs().max() > 1e-9:
        return "pathwise: the derivative of a staircase is 0 almost everywhere: let autograd find f'"
    if abs(float(score.mean()) - 0.3989) > 0.06:               # the normal density at 0; standard error 0.009
        return f"score: the mean should be near 0.40 = d P(z > 0) / d mean, got {float(score.mean()):.2f}"


@GRADIENTS.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(lambda mean, std, noise: fn(_square, mean, std, noise),
                   _double(1, 2), _double(0.5, 2), normal((4, 2), 5, torch.float64))
