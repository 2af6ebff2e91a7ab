"""Exercise 5: the encoder's answer, a Gaussian."""

import math

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch02.answers import DiagonalGaussian, monte_carlo_kl

DIAGONAL_GAUSSIAN = Exercise("vae.DiagonalGaussian", points=4, minutes=15, reference=DiagonalGaussian)


def _of(fn, mean: Tensor, logvar: Tensor):
    return fn(torch.cat([mean, logvar], dim=1))


def _numbers(*values) -> Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1)


@DIAGONAL_GAUSSIAN.gate("moments (B,2c,h,w) -> .mean, .logvar, .sample(), .mode() (B,c,h,w) and .kl() (B,)")
def _(fn):
    g = fn(normal((2, 6, 4, 5), 1))
    for name in ("mean", "logvar", "sample", "mode", "kl"):
        if not hasattr(g, name):
            return f"it has no .{name}: the rest of the library asks for it under this name"
    for name, value in {"mean": g.mean, "logvar": g.logvar, "sample()": g.sample(), "mode()": g.mode()}.items():
        if isinstance(value, Tensor) and tuple(value.shape) in ((1, 6, 4, 5), (2, 6, 2, 5), (2, 6, 4, 2), (2, 6, 4, 3)):
            return f".{name} has shape {tuple(value.shape)}: split the channels, dim=1"
        if problem := tensor_like(value, (2, 3, 4, 5)):
            return f".{name}: {problem}"
    kl = g.kl()
    if isinstance(kl, Tensor) and kl.ndim == 0:
        return ".kl() is a single number: one for each picture, shape (B,); the loss averages over them"
    problem = tensor_like(kl, (2,))
    return problem and f".kl(): {problem}"


@DIAGONAL_GAUSSIAN.property("the first half of the channels is the mean, the second the log-variance")
def _(fn):
    mean, logvar = normal((2, 3, 2, 2), 2), normal((2, 3, 2, 2), 3)
    both = torch.cat([mean, logvar], 1)
    g = fn(both)
    if problem := compare(g.mean, mean, {
            "the halves are exchanged: the mean comes first": logvar,
            "the channels were taken alternately: the first c are the mean": both[:, ::2]}):
        return f".mean: {problem}"
    if problem := compare(g.logvar, logvar, {
            "this is the variance: keep its logarithm": logvar.exp(), "this is std: keep log-variance": (logvar / 2).exp(),
            "the channels were taken alternately: the last c are the log-variance": both[:, 1::2]}):
        return f".logvar: {problem}"
    if problem := compare(g.mode(), mean):
        return f".mode() is the most likely value, the mean: {problem}"


@DIAGONAL_GAUSSIAN.property("log-variances are clamped to [-30, 20], so that nothing overflows")
def _(fn):
    g = _of(fn, _numbers(1.0, 1.0, 1.0), _numbers(-100.0, 0.0, 100.0))
    value = g.logvar.flatten().tolist()
    if value[2] > 20:
        return f"a log-variance of 100 stays {value[2]:g}: exp(100) is more than float32 can hold; clamp(-30, 20)"
    if value[0] < -30:
        return f"a log-variance of -100 stays {value[0]:g}: clamp(-30, 20)"
    if value != [-30.0, 0.0, 20.0]:
        return f"log-variances -100, 0, 100 should become -30, 0, 20, got {', '.join(f'{v:g}' for v in value)}"
    kl, sample = g.kl(), g.sample(noise=torch.ones(1, 3, 1, 1))
    if not torch.isfinite(torch.cat([kl, sample.flatten()])).all():
        return ".sample() and .kl() must use the clamped log-variance too"


@DIAGONAL_GAUSSIAN.property("worked by hand, sample: mean 1, variance 4, noise 3 gives 1 + 2 * 3 = 7")
def _(fn):
    out = _of(fn, _numbers(1.0), _numbers(math.log(4))).sample(noise=_numbers(3.0))
    return compare(out, _numbers(7.0), {
        "the noise is multiplied by the variance: std = exp(0.5 * logvar)": _numbers(13.0),
        "the noise is multiplied by logvar: std = exp(0.5 * logvar)": _numbers(1 + 3 * math.log(4)),
        "the noise is multiplied by logvar / 2: take exp of it": _numbers(1 + 1.5 * math.log(4)),
        "the noise is multiplied by exp(2 * logvar): std = exp(0.5 * logvar)": _numbers(49.0),
        "the sign of logvar is turned: std = exp(0.5 * logvar)": _numbers(2.5),
        "the noise is not scaled: std = exp(0.5 * logvar)": _numbers(4.0),
        "the noise that was given is not used": _numbers(1.0),
        "the mean is missing": _numbers(6.0),
    })


@DIAGONAL_GAUSSIAN.property("the generator decides the draw, and fresh draws have mean and std as said")
def _(fn):
    g = _of(fn, torch.full((1, 1, 100, 100), 3.0), torch.full((1, 1, 100, 100), math.log(0.25)))
    one, same, other = (g.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    if not torch.equal(one, same):
        return "two draws with the same seed differ: pass generator=generator to torch.randn"
    if torch.equal(one, other):
        return "two seeds give the same draw: do not seed inside, and do use the generator"
    if torch.equal(g.sample(), g.sample()):
        return "two draws without a generator are equal: each call needs fresh noise"
    mean, std = float(one.mean()), float(one.std())
    if abs(mean - 3) > 0.03 or abs(std - 0.5) > 0.03:          # the standard errors are 0.005 and 0.004
        return f"10,000 draws should have mean 3 and std 0.5, got {mean:.2f} and {std:.2f}: torch.randn, not torch.rand"


@DIAGONAL_GAUSSIAN.property("worked by hand, kl: mean 2, variance 4 costs (4 + 4 - 1 - ln 4) / 2 = 2.807")
def _(fn):
    out, log4 = _of(fn, _numbers(2.0), _numbers(math.log(4))).kl(), math.log(4)
    return compare(out, torch.tensor([(7 - log4) / 2]), {
        "the factor 1/2 is missing": torch.tensor([7 - log4]),
        "the sign is turned: a KL divergence is never negative": torch.tensor([(log4 - 7) / 2]),
        "the 1 is missing: KL(N(0, 1) || N(0, 1)) must be 0": torch.tensor([(8 - log4) / 2]),
        "the mean is not squared, or std stands where the variance should": torch.tensor([(5 - log4) / 2]),
        "the sign of logvar is turned: it is subtracted": torch.tensor([(7 + log4) / 2]),
        "logvar stands where exp(logvar) should": torch.tensor([1.5]),
        "this is KL(p || q), the other way round": torch.tensor([0.5 * (0.25 + 1 - 1 + log4)]),
    })


@DIAGONAL_GAUSSIAN.property("kl sums over the values of each picture, as 4,000 draws confirm")
def _(fn):
    mean, logvar = normal((2, 2, 3, 2), 4), normal((2, 2, 3, 2), 5)
    right = DiagonalGaussian(torch.cat([mean, logvar], 1)).kl()
    if problem := compare(_of(fn, mean, logvar).kl(), right, {
            "the values of a picture were averaged: sum them": right / 12,
            "the pictures were averaged too: one number each": right.mean().expand(2),
            "only the channels were averaged": right / 2}):
        drawn = monte_carlo_kl(mean, logvar, normal((4000, 2, 2, 3, 2), 6))
        return f"{problem}; 4,000 draws say {', '.join(f'{v:.1f}' for v in drawn)}"


@DIAGONAL_GAUSSIAN.property("a gradient flows through the sample: 1 to the mean, std * noise / 2 to logvar")
def _(fn):
    moments = torch.cat([_numbers(1.0), _numbers(math.log(4))], 1).requires_grad_()
    out = fn(moments).sample(noise=_numbers(3.0))
    if not out.requires_grad:
        return "the sample is cut off from the moments: mean + std * noise, without .detach() or no_grad"
    gradient, = torch.autograd.grad(out.sum(), moments)
    return compare(gradient, torch.cat([_numbers(1.0), _numbers(3.0)], 1), {
        "no gradient reaches logvar: is std detached?": torch.cat([_numbers(1.0), _numbers(0.0)], 1),
        "no gradient reaches the mean": torch.cat([_numbers(0.0), _numbers(3.0)], 1),
        "no gradient reaches mean and logvar: torch.normal gives none": torch.zeros(1, 2, 1, 1)})


@DIAGONAL_GAUSSIAN.hygiene("leaves the moments and the noise as they were")
def _(fn):
    def call(moments, noise):
        g = fn(moments)
        g.sample(noise=noise)
        g.kl()
    return touched(call, 50 * normal((1, 4, 2, 2), 7), normal((1, 2, 2, 2), 8))
