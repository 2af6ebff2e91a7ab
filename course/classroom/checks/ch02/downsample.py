"""Exercise 1: halve the sides, with the zeros where the released files expect them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch02.answers import Downsample

DOWNSAMPLE = Exercise("layers.Downsample", points=2, minutes=10, reference=Downsample)
WEIGHTS = {"conv.weight", "conv.bias"}


@DOWNSAMPLE.gate("Downsample(channels, asymmetric)(x): (B,C,H,W) -> (B,C,H/2,W/2), both ways")
def _(fn):
    for asymmetric in (False, True):
        module = fn(4, asymmetric=asymmetric)
        if not isinstance(module, nn.Module):
            return f"expected a torch module, got {type(module).__name__}: class Downsample(nn.Module)"
        out = module(normal((2, 4, 8, 6), 1))
        if isinstance(out, Tensor) and tuple(out.shape) == (2, 4, 3, 2):
            return "asymmetric: a row and a column are lost: pad before the convolution, F.pad(x, (0, 1, 0, 1))"
        if isinstance(out, Tensor) and tuple(out.shape) in ((2, 4, 8, 6), (2, 4, 6, 4)):
            return f"the sides are not halved, the result is {tuple(out.shape)}: the convolution needs stride=2"
        if problem := tensor_like(out, (2, 4, 4, 3)):
            return f"asymmetric = {asymmetric}: {problem}"


@DOWNSAMPLE.property("its weights are called conv.weight (C,C,3,3) and conv.bias (C,)")
def _(fn):
    have = {k: tuple(v.shape) for k, v in fn(4, asymmetric=True).state_dict().items()}
    if missing := sorted(WEIGHTS - set(have)):
        return f"the weights {', '.join(missing)} are missing: a released file brings them under this name"
    if more := sorted(set(have) - WEIGHTS):
        return f"{', '.join(more)} is in no released file"
    if have["conv.weight"] != (4, 4, 3, 3):
        return f"conv.weight should have shape (4, 4, 3, 3), has {have['conv.weight']}"


def _filled(fn, asymmetric: bool, weight: Tensor, bias: Tensor):
    module = fn(len(bias), asymmetric=asymmetric)
    module.load_state_dict({"conv.weight": weight, "conv.bias": bias})
    return module


def _variants(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Where the zeros may stand."""
    def padded(*where):
        return F.conv2d(F.pad(x, where), weight, bias, stride=2)
    return {"right and bottom": padded(0, 1, 0, 1), "all": padded(1, 1, 1, 1), "mixed": padded(0, 1, 1, 0),
            "mixed too": padded(1, 0, 0, 1),
            "repeated": F.conv2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), weight, bias, stride=2)}


def _asymmetric(fn, x, weight, bias):
    v = _variants(x, weight, bias)
    return compare(_filled(fn, True, weight, bias)(x), v["right and bottom"], {
        "asymmetric: the zeros stand on all four sides, or on the left and at the top, which is the same at stride 2: "
        "only on the right and at the bottom": v["all"],
        "asymmetric: F.pad counts (left, right, top, bottom): one on the right, one at the bottom": v["mixed"],
        "asymmetric: the zeros must stand on the right *and* at the bottom: F.pad(x, (0, 1, 0, 1))": v["mixed too"],
        "asymmetric: pad with zeros, not with copies of the border": v["repeated"],
    })


@DOWNSAMPLE.property("worked by hand: 4 x 4 ones, a kernel of ones: 9, 6, 6 and 4 in asymmetric mode")
def _(fn):
    return _asymmetric(fn, torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), torch.zeros(1))


@DOWNSAMPLE.property("symmetric, as in the U-Net: one zero on every side")
def _(fn):
    x, weight, bias = normal((2, 3, 6, 8), 2), normal((3, 3, 3, 3), 3), normal((3,), 4)
    v = _variants(x, weight, bias)
    return compare(_filled(fn, False, weight, bias)(x), v["all"], {
        "asymmetric=False must pad by one on all four sides, yours pads on the right and at the bottom":
            v["right and bottom"]})


@DOWNSAMPLE.property("asymmetric, as in the autoencoder: equals the course's for random weights")
def _(fn):
    return _asymmetric(fn, normal((2, 3, 6, 8), 5), normal((3, 3, 3, 3), 6), normal((3,), 7))


@DOWNSAMPLE.property("a gradient reaches the input and both weights")
def _(fn):
    module, x = fn(2, asymmetric=True), normal((1, 2, 4, 4), 8).requires_grad_()
    module(x).square().sum().backward()
    given = {"x": x} | dict(module.named_parameters())
    missing = [name for name, p in given.items() if p.grad is None or not p.grad.any()]
    return f"no gradient reaches {', '.join(missing)}" if missing else None


@DOWNSAMPLE.hygiene("leaves its input as it was")
def _(fn):
    return touched(fn(2, asymmetric=True), normal((1, 2, 4, 4), 9))
