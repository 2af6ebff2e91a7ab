"""Exercises 1 to 3: encode once, measure the scale, draw."""

from types import SimpleNamespace

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch08.answers import encode_all, latent_batch, measured_scale

# ---- 1 · encode once

ENCODE = Exercise("latents.encode_all", points=3, minutes=10, reference=encode_all)


class Coder(torch.nn.Module):
    """An encoder that can be worked by hand: mean = 2 w x, logvar = x. It notes what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight, self.shown, self.graph = torch.nn.Parameter(torch.tensor(1.0)), [], False

    def encode(self, x):
        self.shown.append(len(x))
        small = x[:, :, ::2, ::2]
        mean = 2 * self.weight * small
        self.graph = self.graph or mean.requires_grad
        logvar = small + 0 * self.weight
        return SimpleNamespace(mean=mean, logvar=logvar, mode=lambda: mean,
                               sample=lambda *a, **k: mean + (logvar / 2).exp() * torch.randn(mean.shape))


@ENCODE.gate("returns (mean, std), each (N,c,h,w), also where the batches do not divide N")
def _(fn):
    try:
        out = fn(Coder(), normal((5, 3, 4, 4), 1), 2)
    except RuntimeError as error:
        if "stack expects" in str(error) or "equal size" in str(error):
            return "the last batch is smaller than the others: torch.cat joins batches, torch.stack does not"
        raise
    if problem := several(out, ("mean", "std")):
        return problem
    return next(filter(None, (tensor_like(o, (5, 3, 2, 2)) for o in out)), None)


@ENCODE.property("worked by hand: a pixel of 2 ln 3 gives std 3")
def _(fn):
    three = torch.full((1, 3, 1, 1), 3.0)
    x = 2 * torch.full((1, 3, 2, 2), 3.0).log()
    return compare(fn(Coder(), x, 1)[1], three, {
        "this is the log-variance: std = exp(logvar / 2)": 2 * three.log(),
        "this is the variance: std = exp(logvar / 2)": three**2,
        "this is half the log-variance: take its exponential": three.log(),
    })


@ENCODE.property("the mean is the posterior's mean, in the order of the pictures, not a draw and not scaled")
def _(fn):
    x = normal((6, 3, 4, 4), 2)
    mean, std = fn(Coder(), x, 4)
    right = 2 * x[:, :, ::2, ::2]
    noise_apart = mean.detach() - right
    if noise_apart.abs().max() > 1e-3 and mean.shape == right.shape:
        if torch.allclose(mean.detach(), right * 0.18215, atol=1e-3):
            return "the latents are scaled already: keep them as the encoder gives them"
        if abs(float((noise_apart / (x[:, :, ::2, ::2] / 2).exp()).std()) - 1) < 0.3:
            return "this is a draw from the posterior: keep its mean, and draw anew in each step"
    return compare(mean, right) or compare(std, (x[:, :, ::2, ::2] / 2).exp())


@ENCODE.property("the encoder sees batch_size pictures at a time")
def _(fn):
    for size, right in ((2, [2, 2, 1]), (3, [3, 2]), (9, [5])):
        fn(coder := Coder(), normal((5, 3, 4, 4), 3), size)
        if coder.shown != right:
            return f"with 5 pictures and batch_size {size} the encoder should see {right} pictures, it saw {coder.shown}"


@ENCODE.property("no graph is kept")
def _(fn):
    mean, std = fn(coder := Coder(), normal((2, 3, 4, 4), 4), 2)
    if mean.requires_grad or std.requires_grad or coder.graph:
        return "the results hang on the graph of the encoder: encode under torch.no_grad()"


@ENCODE.hygiene("leaves the pictures as they were")
def _(fn):
    return touched(lambda x: fn(Coder(), x, 2), normal((3, 3, 4, 4), 5))


# ---- 2 · the scale

SCALE = Exercise("latents.measured_scale", points=3, minutes=10, reference=measured_scale)


@SCALE.gate("returns one positive number")
def _(fn):
    out = fn(normal((4, 2, 3, 3), 1), normal((4, 2, 3, 3), 2).exp())
    try:
        value = float(out)
    except (TypeError, ValueError, RuntimeError):
        return "expected one number for all channels" + (": is the `return` missing?" if out is None else "")
    if not value > 0:
        return f"expected a positive number, got {value}"


def _number(value, right: float, bugs: dict[str, float], rtol: float = 1e-3):
    value = float(value)
    if abs(value - right) <= rtol * right:
        return None
    return next((bug for bug, wrong in bugs.items() if abs(value - wrong) <= rtol * abs(wrong)),
                f"expected {right:.5g}, got {value:.5g}")


@SCALE.property("worked by hand: means -3 and 3, std 4 give 1/5")
def _(fn):
    mean = torch.tensor([-3.0, 3.0]).repeat(5_000).reshape(-1, 1, 1, 1)
    return _number(fn(mean, torch.full_like(mean, 4.0)), 0.2, {
        "the posterior's own noise is missing: a draw has the variance of the means plus std squared": 1 / 3,
        "this is the std: the scale is one over it": 5.0,
        "this is one over the variance: take the square root": 1 / 25,
        "this is the variance": 25.0,
        "standard deviations do not add, variances do": 1 / 7,
        "std enters squared: variances add": 1 / 13**0.5,
        "only std was read, not the means": 1 / 4,
    })


@SCALE.property("a constant added to every latent changes nothing")
def _(fn):
    mean, std = normal((50, 2, 4, 4), 3), torch.full((50, 2, 4, 4), 0.5)
    right = measured_scale(mean, std)
    rms = float(((mean + 7).double().square().mean() + 0.25).rsqrt())
    return _number(fn(mean + 7, std), right, {"the mean of the latents must be subtracted: 1/std, not 1/rms": rms})


@SCALE.property("unequal std: the mean of the squares, not the square of the mean")
def _(fn):
    mean, std = normal((50, 2, 4, 4), 4), normal((50, 2, 4, 4), 5).exp()
    bad = float((mean.double().var() + std.double().mean() ** 2).rsqrt())
    return _number(fn(mean, std), measured_scale(mean, std), {
        "the square of the mean of std: take the mean of its squares": bad})


@SCALE.property("one number over all channels: a channel's own offset is signal")
def _(fn):
    mean = normal((200, 2, 4, 4), 6) + torch.tensor([-5.0, 5.0]).reshape(1, 2, 1, 1)
    std = torch.full_like(mean, 0.5)
    each = float((mean.double().var(dim=(0, 2, 3)).mean() + 0.25).rsqrt())
    return _number(fn(mean, std), measured_scale(mean, std), {
        "the mean was taken per channel: one mean and one std over everything": each})


@SCALE.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(fn, normal((4, 2, 3, 3), 7), normal((4, 2, 3, 3), 8).exp())


# ---- 3 · a fresh draw

DRAW = Exercise("diffusion.latent_batch", points=3, minutes=10, reference=latent_batch)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@DRAW.gate("returns (B,c,h,w), in the dtype of mean")
def _(fn):
    mean = normal((5, 2, 3, 3), 1)
    return tensor_like(fn(mean, mean.abs(), torch.tensor([4, 0, 4]), 2.0, _generator()), (3, 2, 3, 3))


@DRAW.property("worked by hand: std 0 gives the chosen means times the scale")
def _(fn):
    mean, chosen = normal((5, 2, 3, 3), 2), torch.tensor([4, 0, 4])
    right = 3.0 * mean[chosen]
    return compare(fn(mean, torch.zeros_like(mean), chosen, 3.0, _generator()), right, {
        "the scale is missing": mean[chosen], "the scale divides: latents are multiplied by it": mean[chosen] / 3,
        "chosen is not used: mean[chosen]": 3 * mean[:3]})


@DRAW.property("the noise is scaled, too: its spread is scale times std")
def _(fn):
    mean = torch.zeros(3, 2, 50, 50)
    std = torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1, 1).expand_as(mean)
    out = fn(mean, std, torch.tensor([2, 0]), 3.0, _generator()).double()
    for got, right in zip(out.std(dim=(1, 2, 3)).tolist(), (6.0, 1.5), strict=True):
        if got == 0:
            return "no noise was added: draw from the posterior, mean + std * noise"
        if abs(got - right) > 0.1 * right:
            wide = right / 3
            if abs(got - wide) < 0.1 * wide:
                return "the noise is not scaled: scale * (mean + std * noise), with the scale outside"
            if abs(got - 3 * wide**2) < 0.1 * 3 * wide**2:
                return "std was squared: noise is multiplied by std, not by the variance"
            if abs(got - 3) < 0.3:
                return "std is not used: noise is multiplied by std[chosen]"
            return f"the spread of a latent with std {wide} should be {right}, got {got:.3g}: std[chosen]?"


@DRAW.property("each call and each value has noise of its own, and the generator decides it")
def _(fn):
    mean, std = torch.zeros(2, 2, 8, 8), torch.ones(2, 2, 8, 8)
    generator, same = _generator(1), torch.tensor([0, 0])
    first, second = fn(mean, std, same, 1.0, generator), fn(mean, std, same, 1.0, generator)
    if torch.equal(first, second):
        return "two calls gave one draw: do not seed inside the function"
    if torch.equal(first[0], first[1]):
        return "a picture chosen twice got the same noise twice: draw noise of the batch's shape"
    if float(first[0, 0].std()) < 1e-3 or torch.allclose(first[:, 0], first[:, 1]):
        return "values share their noise: draw noise of shape (B,c,h,w)"
    if not torch.equal(first, fn(mean, std, same, 1.0, _generator(1))):
        return "two runs with the same seed differ: pass generator=generator to torch.randn"
    if (first >= 0).all() or abs(float(first.mean())) > 0.3:
        return "the noise is not normal: torch.randn, not torch.rand"


@DRAW.hygiene("leaves the cache as it was")
def _(fn):
    return touched(lambda m, s: fn(m, s, torch.tensor([0, 1]), 2.0, _generator()),
                   normal((2, 2, 3, 3), 3), torch.ones(2, 2, 3, 3))
