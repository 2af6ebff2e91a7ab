"""Exercise 4: the KL term by drawing."""

import math

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch02.answers import kl, monte_carlo_kl

MONTE_CARLO = Exercise("vae.monte_carlo_kl", points=3, minutes=15, reference=monte_carlo_kl)


def _one(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1, 1)


@MONTE_CARLO.gate("(B,c,h,w), (B,c,h,w), (S,B,c,h,w) -> (B,): one estimate a picture")
def _(fn):
    out = fn(normal((3, 2, 4, 5), 1), normal((3, 2, 4, 5), 2), normal((7, 3, 2, 4, 5), 3))
    if isinstance(out, Tensor) and out.ndim == 0:
        return "a single number came back: one estimate for each of the B pictures is asked for, shape (3,)"
    if isinstance(out, Tensor) and tuple(out.shape) == (7,):
        return "the draws were kept and the pictures averaged: average over the first axis, S"
    return tensor_like(out, (3,))


@MONTE_CARLO.property("worked by hand: mean 1, variance 4, one draw with noise 1: 4.5 - 0.5 - ln 2 = 3.307")
def _(fn):
    log4, half = math.log(4), math.log(2 * math.pi) / 2
    mean, logvar = _one(1.0)[0], _one(log4)[0]
    return compare(fn(mean, logvar, _one(1.0)), _one(4 - log4 / 2).flatten(), {
        "log q lacks its term -logvar / 2: a wide Gaussian is a low one": _one(4).flatten(),
        "log q has -logvar: it is -logvar / 2, the logarithm of std": _one(4 - log4).flatten(),
        "the sign of logvar in log q is turned: it is -logvar / 2": _one(4 + log4 / 2).flatten(),
        "z was drawn with std = exp(logvar): it is exp(0.5 * logvar)": _one(12 - log4 / 2).flatten(),
        "z was drawn with std = exp(logvar) in log q too: std is exp(0.5 * logvar)": _one(12 - log4).flatten(),
        "z was drawn with std = 1: multiply the noise by exp(0.5 * logvar)": _one(2 - 0.5 - log4 / 2).flatten(),
        "the sign is turned: log q(z) - log p(z)": _one(log4 / 2 - 4).flatten(),
        "log p was taken at the noise: take it at z": _one(-log4 / 2).flatten(),
        "the factor 1/2 in front of the squares is missing": _one(8 - log4 / 2).flatten(),
        "the factor 1/2 is missing": _one(8 - log4).flatten(),
        "log 2 pi stands in one of the two densities only": _one(4 - log4 / 2 - half).flatten(),
        "log 2 pi stands in one of the two densities only: in log q": _one(4 - log4 / 2 + half).flatten(),
    })


@MONTE_CARLO.property("draws are averaged, values are summed")
def _(fn):
    mean, logvar, noise = normal((2, 2, 3, 1), 4), normal((2, 2, 3, 1), 5), normal((5, 2, 2, 3, 1), 6)
    right = monte_carlo_kl(mean, logvar, noise)
    return compare(fn(mean, logvar, noise), right, {
        "the values of a picture were averaged: log densities of independent values add up": right / 6,
        "the draws were summed: average them": right * 5,
        "only the first draw was used": monte_carlo_kl(mean, logvar, noise[:1]),
        "the channels were averaged": right / 2,
    })


@MONTE_CARLO.property("a Gaussian that is N(0, 1) already costs nothing, whatever is drawn")
def _(fn):
    out = fn(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), normal((3, 2, 1, 2, 2), 7))
    if out.abs().max() > 1e-5:
        return f"q and p are the same, so log q(z) - log p(z) is 0 for each z; got {float(out.abs().max()):.3g}"


@MONTE_CARLO.property("20,000 draws come near the true value")
def _(fn):
    mean, logvar = normal((2, 1, 2, 1), 8, torch.float64), normal((2, 1, 2, 1), 9, torch.float64)
    out = fn(mean, logvar, normal((20_000, 2, 1, 2, 1), 10, torch.float64))
    if (out - kl(mean, logvar)).abs().max() > 0.08:
        right = ", ".join(f"{v:.2f}" for v in kl(mean, logvar))
        return f"20,000 draws should come near {right}, got {', '.join(f'{v:.2f}' for v in out)}"


@MONTE_CARLO.property("a gradient reaches mean and logvar")
def _(fn):
    mean, logvar = normal((1, 1, 2, 2), 11).requires_grad_(), normal((1, 1, 2, 2), 12).requires_grad_()
    out = fn(mean, logvar, normal((4, 1, 1, 2, 2), 13)).sum()
    if not out.requires_grad:
        return "the result is cut off from mean and logvar: no .detach(), no_grad or numpy on the way"
    missing = [n for n, g in zip(("mean", "logvar"), torch.autograd.grad(out, (mean, logvar), allow_unused=True),
                                 strict=True) if g is None or not g.any()]
    return f"no gradient reaches {' and '.join(missing)}" if missing else None


@MONTE_CARLO.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(fn, normal((1, 1, 2, 2), 14), normal((1, 1, 2, 2), 15), normal((3, 1, 1, 2, 2), 16))
