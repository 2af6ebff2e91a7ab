"""Exercise 6: distortion, rate, and their exchange rate."""

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch02.answers import kl, vae_loss

VAE_LOSS = Exercise("losses.vae_loss", points=3, minutes=10, reference=vae_loss)
NAMES = ("loss", "distortion", "rate")


def _case(seed: int, B: int = 3):
    x, rebuilt = normal((B, 3, 8, 8), seed), normal((B, 3, 8, 8), seed + 1)
    return x, rebuilt, normal((B, 2, 2, 2), seed + 2), normal((B, 2, 2, 2), seed + 3)


@VAE_LOSS.gate("returns (loss, distortion, rate), three scalar tensors")
def _(fn):
    out = fn(*_case(1), 0.1)
    if problem := several(out, NAMES):
        return problem
    for name, value in zip(NAMES, out, strict=True):
        if problem := tensor_like(value, ()):
            return f"{name}: {problem}"


@VAE_LOSS.property("worked by hand: two pictures of 12 values, off by 2, cost 12 * 4 = 48 each; means of 1 in 4 values, 2 nats")
def _(fn):
    x, rebuilt = torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), 2.0)
    loss, distortion, rate = fn(x, rebuilt, torch.ones(2, 4, 1, 1), torch.zeros(2, 4, 1, 1), 0.5)
    if problem := compare(distortion, torch.tensor(48.0), {
            "the mean over all values was taken: sum over the values of a picture, average over pictures": torch.tensor(4.0),
            "the pictures were summed: average over the batch": torch.tensor(96.0),
            "this is the absolute error, or half of the square: the plain square is asked for": torch.tensor(24.0)}):
        return f"distortion: {problem}"
    if problem := compare(rate, torch.tensor(2.0), {
            "the mean over all values was taken: sum over the values of a latent, average over pictures": torch.tensor(0.5),
            "the pictures were summed: average over the batch": torch.tensor(4.0),
            "beta belongs to the loss, not to the rate": torch.tensor(1.0),
            "the sign is turned: a KL divergence is never negative": torch.tensor(-2.0)}):
        return f"rate: {problem}"
    return _loss(loss, 48.0, 2.0, 0.5)


def _loss(loss, distortion: float, rate: float, beta: float):
    problem = compare(loss, torch.tensor(distortion + beta * rate), {
        "the rate is not multiplied by beta": torch.tensor(distortion + rate),
        "beta multiplies the distortion: it belongs to the rate": torch.tensor(beta * distortion + rate),
        "the rate is subtracted: both terms are costs": torch.tensor(distortion - beta * rate),
        "the rate is missing": torch.tensor(distortion),
        "the rate is divided by beta": torch.tensor(distortion + rate / beta)})
    return problem and f"loss: {problem}"


@VAE_LOSS.property("equals the course's loss, with gradients for beta at any size")
def _(fn):
    case = _case(10)
    for beta in (1e-6, 0.3, 10.0):
        for name, have, right in zip(NAMES, fn(*case, beta), vae_loss(*case, beta), strict=True):
            if problem := compare(have, right):
                return f"{name}, beta = {beta:g}: {problem}"


@VAE_LOSS.property("twice the same batch costs as much as once; twice the values cost twice")
def _(fn):
    x, rebuilt, mean, logvar = _case(20)
    once = fn(x, rebuilt, mean, logvar, 0.5)
    again = fn(*(torch.cat([v, v]) for v in (x, rebuilt, mean, logvar)), 0.5)
    wider = fn(*(torch.cat([v, v], dim=3) for v in (x, rebuilt, mean, logvar)), 0.5)
    for name, a, b, c in zip(NAMES, once, again, wider, strict=True):
        if compare(b, a):
            return f"{name} changes with the batch size: average over pictures"
        if compare(c, 2 * a):
            return f"{name} of pictures twice as wide should double: sum over the values of a picture"


@VAE_LOSS.property("a gradient reaches the reconstruction, the mean and the log-variance")
def _(fn):
    x, rebuilt, mean, logvar = _case(30)
    inputs = [rebuilt.requires_grad_(), mean.requires_grad_(), logvar.requires_grad_()]
    loss = fn(x, *inputs, 0.5)[0]
    if not loss.requires_grad:
        return "the loss is cut off from its inputs: no .item(), .detach() or no_grad on the way"
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    names = ("rebuilt", "mean", "logvar")
    missing = [n for n, g in zip(names, found, strict=True) if g is None or not g.any()]
    if missing:
        return f"no gradient reaches {', '.join(missing)}"
    right = torch.autograd.grad(0.5 * kl(mean, logvar).mean(), mean)[0]
    return compare(found[1], right)


@VAE_LOSS.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(lambda *inputs: fn(*inputs, 0.5), *_case(40))
