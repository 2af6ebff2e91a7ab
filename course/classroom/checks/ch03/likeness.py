"""Exercises 1 to 3: how fine a picture is, how alike two pictures are, and the sum that an autoencoder is trained on."""

import torch
from torch import Tensor, nn

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch03.answers import Perceptual, fine_share, reconstruction

# ---- 1 · the share of fine detail

FINE = Exercise("losses.fine_share", points=2, minutes=10, reference=fine_share)


def _stripes(period: int, size: int = 16) -> Tensor:
    """Vertical stripes, (1,1,size,size), of variance 1/2 (period 2: 1)."""
    return torch.cos(2 * torch.pi * torch.arange(size) / period).expand(1, 1, size, size).clone()


@FINE.gate("one number for each picture: (B,C,H,W) -> (B,), also where H and W differ")
def _(fn):
    return tensor_like(fn(normal((2, 3, 8, 12), 1)), (2,))


@FINE.property("worked by hand: stripes of period 8 with amplitude 3, of period 3.2 with amplitude 1: 1 / (9 + 1) is fine")
def _(fn):
    x = 3 * _stripes(8) + _stripes(3.2) + 5
    return compare(fn(x), torch.tensor([0.1]), {
        "this is the share of amplitudes: square the absolute values, power is what adds up": torch.tensor([0.25]),
        "the mean of the picture was counted: it is no detail, subtract it (or leave frequency 0 out)":
            torch.tensor([0.5 / 30]),
        "this is the coarse share: count the frequencies above the cutoff": torch.tensor([0.9]),
        "this is the fine power itself: divide by the whole": torch.tensor([0.5 * 16**4]),
    }, rtol=1e-3)


@FINE.property("the frequency is the length of (f_y, f_x): a diagonal of 0.1875 along both axes has 0.265")
def _(fn):
    grid = torch.arange(16)
    x = torch.cos(2 * torch.pi * 3 / 16 * (grid[:, None] + grid))[None, None]
    return compare(fn(x), torch.ones(1), {
        "each axis was compared with the cutoff by itself: take the root of f_y^2 + f_x^2": torch.zeros(1)})


@FINE.property("lines that run down and lines that run across count alike")
def _(fn):
    a = torch.cat([_stripes(2), _stripes(2).mT, _stripes(16), _stripes(16).mT])
    return compare(fn(a), torch.tensor([1.0, 1, 0, 0]), {
        "only one direction is seen: the frequencies of rows have shape (H,1), of columns (W,)":
            torch.tensor([1.0, 0, 0, 0])})


@FINE.property("equals the course's measure, with a cutoff of its own")
def _(fn):
    x = normal((3, 3, 12, 10), 2)
    return compare(fn(x), fine_share(x)) or compare(fn(x, 0.15), fine_share(x, 0.15), {
        "the argument cutoff is not used": fine_share(x)})


@FINE.hygiene("leaves the pictures as they were")
def _(fn):
    return touched(lambda x: fn(x), normal((1, 1, 8, 8), 3))


# ---- 2 · a distance in features

PERCEPTUAL = Exercise("losses.Perceptual", points=3, minutes=15, reference=Perceptual)


class _Plain(nn.Module):
    """The picture itself is the only layer."""

    def forward(self, x):
        return [x]


class _Two(nn.Module):
    """Two layers of features, at two sizes; in training mode it would answer differently."""

    def __init__(self):
        super().__init__()
        self.one, self.drop, self.two = nn.Conv2d(3, 5, 3), nn.Dropout(0.5), nn.Conv2d(5, 7, 3, 2)
        for i, p in enumerate(self.parameters()):
            p.data = 0.3 * normal(p.shape, i)

    def forward(self, x):
        first = self.drop(self.one(x))
        return [first, self.two(first.tanh())]


@PERCEPTUAL.gate("Perceptual(features)(x, y) is one number for each pair: shape (B,)")
def _(fn):
    return tensor_like(fn(_Two())(normal((2, 3, 9, 9), 1), normal((2, 3, 9, 9), 2)), (2,))


@PERCEPTUAL.property("worked by hand: features (3, 4) and (4, 3) have unit vectors (0.6, 0.8) and (0.8, 0.6): distance 0.08")
def _(fn):
    x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 3)
    y = torch.tensor([4.0, 3.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 3)
    return compare(fn(_Plain())(x, y), torch.tensor([0.08]), {
        "the vectors are not normalised: divide each place by its length over the channels": torch.tensor([2.0]),
        "the mean over channels was taken: sum over channels, then the mean over places": torch.tensor([0.04]),
        "the sum over places was taken: the mean over places": torch.tensor([0.48]),
        "the root was taken at the end: LPIPS is the squared distance": torch.tensor([0.08]).sqrt(),
        "the absolute difference was taken, not the squared one": torch.tensor([0.4]),
        "divided by the squared length: take its root": torch.tensor([2 / 625.0]),
        "the channels were normalised over the places, not over the channels":
            torch.tensor([0.0]),
        "the whole picture was normalised at once: each place has its own length": torch.tensor([0.08 / 6]),
        "the vectors are divided by the sum of their entries (softmax-like): by the root of the sum of squares":
            torch.tensor([2 / 49.0]),
    }, rtol=1e-3)


@PERCEPTUAL.property("each place has a length of its own: one place ten times brighter changes nothing")
def _(fn):
    x, y = normal((1, 4, 3, 3), 3), normal((1, 4, 3, 3), 4)
    louder = y.clone()
    louder[:, :, 1, 1] *= 10
    before, after = (fn(_Plain())(x, v) for v in (y, louder))
    if not torch.allclose(before, after, rtol=1e-3):
        return (f"the distance went from {float(before):.4g} to {float(after):.4g}: divide each place's vector by its own "
                "length, over dim 1 and with keepdim=True")


@PERCEPTUAL.property("layers are summed, pairs of the batch are kept apart")
def _(fn):
    features, x, y = _Two(), normal((3, 3, 9, 9), 5), normal((3, 3, 9, 9), 6)
    right = Perceptual(features)(x, y)
    one, two = (Perceptual(_Only(features, i))(x, y) for i in (0, 1))
    return compare(fn(features)(x, y), right, {
        "only the last layer counts: add up all of them": two, "only the first layer counts: add up all of them": one,
        "the mean over layers was taken: sum them": right / 2,
        "all pairs got the same number: keep the batch axis, take the mean over (1, 2) only": right.mean().expand(3)})


class _Only(nn.Module):
    def __init__(self, features, index):
        super().__init__()
        self.inner, self.index = features, index

    def forward(self, x):
        return [self.inner(x)[self.index]]


@PERCEPTUAL.property("black features (all zero) give a finite distance and a finite gradient")
def _(fn):
    x = torch.zeros(1, 2, 2, 2, requires_grad=True)
    out = fn(_Plain())(x, normal((1, 2, 2, 2), 7))
    if not torch.isfinite(out).all():
        return "0 / 0: add 1e-10 to the sum of squares before the root"
    if not torch.isfinite(torch.autograd.grad(out.sum(), x)[0]).all():
        return "the gradient is NaN: the root has an infinite slope at 0, so add 1e-10 before the root, not after it"


@PERCEPTUAL.property("the judge is frozen and in eval mode, and the gradient still reaches the pictures")
def _(fn):
    features = _Two().train()
    judge = fn(features)
    x = normal((1, 3, 9, 9), 8).requires_grad_()
    out = judge(x, normal((1, 3, 9, 9), 9))
    if not out.requires_grad:
        return "no gradient reaches the picture: freeze the weights by requires_grad_(False), not the pass by no_grad"
    if any(p.requires_grad for p in features.parameters()):
        return "the judge's own weights would be trained: features.requires_grad_(False)"
    return "the judge is in training mode, dropout is on: features.eval()" if features.training else None


# ---- 3 · the sum

RECONSTRUCTION = Exercise("losses.reconstruction", points=2, minutes=10, reference=reconstruction)


def _judge(shape):
    return lambda x, y: (x - y).square().flatten(1).mean(1).reshape(shape)


@RECONSTRUCTION.gate("one error for each picture, (B,), whether the judge answers (B,) or, as the lpips package, (B,1,1,1)")
def _(fn):
    for shape in ((-1,), (-1, 1, 1, 1)):
        out = fn(normal((2, 3, 4, 4), 1), normal((2, 3, 4, 4), 2), _judge(shape), 1.0)
        if isinstance(out, Tensor) and out.ndim == 4:
            return "(B,) and (B,1,1,1) were broadcast to (B,1,1,B): flatten what the judge says"
        if isinstance(out, Tensor) and out.shape == (2, 2):
            return "(B,) and (B,1) were broadcast to (B,B): flatten what the judge says"
        if problem := tensor_like(out, (2,)):
            return problem


@RECONSTRUCTION.property("worked by hand: 12 values off by 0.5, judged 0.25, weight 4, give 6 + 4 * 12 * 0.25 = 18")
def _(fn):
    x, y = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), -0.5)
    return compare(fn(x, y, _judge((-1,)), 4.0), torch.tensor([18.0]), {
        "the judge counts once: its one number is added to the error of every value, 3HW times": torch.tensor([7.0]),
        "the mean over values was taken: sum them": torch.tensor([12.5]),
        "everything is a mean: sum over values, and count the judge 3HW times": torch.tensor([1.5]),
        "the error is squared: the L1 error is the absolute value": torch.tensor([15.0]),
        "the weight is not used": torch.tensor([9.0]),
        "only H * W was counted: a picture has 3 * H * W values": torch.tensor([10.0]),
        "the judge is missing, or the differences kept their sign": torch.tensor([6.0]),
        "the weight multiplies everything: it belongs to the judge": torch.tensor([36.0]),
    })


@RECONSTRUCTION.property("a picture's error does not depend on its neighbours in the batch")
def _(fn):
    x, y = normal((3, 3, 4, 4), 3), normal((3, 3, 4, 4), 4)
    alone = torch.cat([fn(x[i:i + 1], y[i:i + 1], _judge((-1,)), 1.0) for i in range(3)])
    return compare(fn(x, y, _judge((-1,)), 1.0), alone.detach())


@RECONSTRUCTION.property("equals the course's error, and a gradient reaches the rebuilt picture")
def _(fn):
    x, y = normal((2, 3, 5, 5), 5), normal((2, 3, 5, 5), 6).requires_grad_()
    out = fn(x, y, _judge((-1,)), 0.7)
    if not out.requires_grad:
        return "the result is cut off from the rebuilt picture: no .detach(), .item() or no_grad"
    return compare(out, reconstruction(x, y, _judge((-1,)), 0.7).detach())


@RECONSTRUCTION.hygiene("leaves both pictures as they were")
def _(fn):
    return touched(lambda x, y: fn(x, y, _judge((-1,)), 1.0), normal((1, 3, 2, 2), 7), normal((1, 3, 2, 2), 8))
