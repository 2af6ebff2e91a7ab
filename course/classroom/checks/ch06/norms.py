"""Exercise 2: group normalisation by hand."""

import torch
import torch.nn.functional as F

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch06.answers import normalise_groups

NORMALISE = Exercise("layers.normalise_groups", points=2, minutes=10, reference=normalise_groups)


@NORMALISE.gate("(B,C,H,W), groups, (C,), (C,) -> (B,C,H,W)")
def _(fn):
    try:
        return tensor_like(fn(normal((2, 6, 4, 5), 1), 3, torch.ones(6), torch.zeros(6)), (2, 6, 4, 5))
    except RuntimeError as error:
        if "must match" in str(error) or "size of tensor" in str(error):
            return "weight and bias have shape (C,) and would meet W: reshape them to (1,C,1,1); the mean must keep its axis"
        raise


@NORMALISE.property("worked by hand: the group 0, 0, 4, 4 becomes -1, -1, 1, 1 (mean 2, variance 4)")
def _(fn):
    x = torch.tensor([0.0, 0.0, 4.0, 4.0]).reshape(1, 2, 1, 2)
    right = torch.tensor([-1.0, -1.0, 1.0, 1.0]).reshape(1, 2, 1, 2)
    return compare(fn(x, 1, torch.ones(2), torch.zeros(2), eps=0.0001), right, {
        "it is divided by the variance: did you forget the square root?": right / 2,
        "the mean is not subtracted": right + 1,
        "the variance is divided by n - 1: norms divide by n (unbiased=False)": right * 0.75**0.5,
        "each channel has statistics of its own: a group's channels share them": right * 0,
        "it is not divided by the standard deviation": right * 2}, rtol=1e-3)


@NORMALISE.property("each picture has statistics of its own: whoever else is in the batch makes no difference")
def _(fn):
    x, other = normal((1, 4, 3, 3), 2), 5 + 3 * normal((1, 4, 3, 3), 3)
    w, b = torch.ones(4), torch.zeros(4)
    if compare(fn(torch.cat([x, other]), 2, w, b)[:1], fn(x, 2, w, b)):
        return "the result of one picture depends on its neighbours in the batch: keep the batch axis out of mean and variance"


@NORMALISE.property("each group of neighbouring channels has mean 0 and variance 1")
def _(fn):
    x = normal((2, 6, 4, 4), 4) * torch.tensor([1.0, 2, 3, 4, 5, 6]).reshape(1, 6, 1, 1) + 3
    out = fn(x, 3, torch.ones(6), torch.zeros(6))
    grouped, mixed = out.reshape(2, 3, -1), out.reshape(2, 2, 3, 16).transpose(1, 2).reshape(2, 3, -1)
    if float(grouped.mean(-1).abs().max()) < 1e-3 and float((grouped.var(-1, unbiased=False) - 1).abs().max()) < 1e-3:
        if float(out.mean((2, 3)).abs().max()) < 1e-3:
            return "each channel has mean 0 by itself: a group's channels share one mean and one variance"
        return None
    if float(mixed.mean(-1).abs().max()) < 1e-3:
        return "channels 0 and 3 share a group: a group is channels side by side, 0 and 1, then 2 and 3 ..."
    if tensor_like(fn(x, 1, torch.ones(6), torch.zeros(6)), x.shape) is None and not compare(
            out, normalise_groups(x, 1, torch.ones(6), torch.zeros(6)), rtol=1e-2):
        return "all channels share one mean and variance: `groups` is not used"
    if float(grouped.mean(-1).abs().max()) > 1e-3:
        return f"some group has the mean {float(grouped.mean(-1).abs().max()):.2g}: are there 3 groups of 2 channels each?"
    return f"some group has the variance {float(grouped.var(-1, unbiased=False).flatten()[0]):.3g}, expected 1"


@NORMALISE.property("weight and bias act on their own channel, and eps stands under the root")
def _(fn):
    x, w, b = normal((2, 4, 4, 4), 5), normal((4,), 6), normal((4,), 7)
    bare = normalise_groups(x, 2, torch.ones(4), torch.zeros(4))
    right = normalise_groups(x, 2, w, b)
    if problem := compare(fn(x, 2, w, b), right, {
            "weight and bias are not used": bare,
            "the bias is not added": bare * w.reshape(1, 4, 1, 1),
            "weight and bias run along the width: reshape them to (1,C,1,1)": bare * w + b,
            "weight and bias run along the height: reshape them to (1,C,1,1)": bare * w[:, None] + b[:, None],
            "the bias is added before the weight is multiplied": (bare + b.reshape(1, 4, 1, 1)) * w.reshape(1, 4, 1, 1)}):
        return problem
    small, one, nil = x / 10, torch.ones(4), torch.zeros(4)
    right = normalise_groups(small, 2, one, nil, 0.03)
    grouped = small.reshape(2, 2, -1)
    mean, std = grouped.mean(-1, keepdim=True), grouped.std(-1, keepdim=True, unbiased=False)
    return compare(fn(small, 2, one, nil, eps=0.03), right, {
        "eps is ignored": normalise_groups(small, 2, one, nil, 0.0),
        "eps is the default whatever is asked": normalise_groups(small, 2, one, nil),
        "eps is added to the standard deviation: it belongs to the variance, under the root":
            ((grouped - mean) / (std + 0.03)).reshape(2, 4, 4, 4)})


@NORMALISE.property("equals torch's group_norm, with a gradient")
def _(fn):
    x = (2 + 3 * normal((3, 12, 5, 7), 8)).requires_grad_()
    w, b = normal((12,), 9).requires_grad_(), normal((12,), 10).requires_grad_()
    out = fn(x, 4, w, b)
    if problem := compare(out, F.group_norm(x, 4, w, b), rtol=1e-3):
        return problem
    if not out.requires_grad:
        return "the result is cut off from x: no .detach(), numpy or no_grad on the way"
    missing = [name for name, g in zip(("x", "weight", "bias"), torch.autograd.grad(
        out.square().sum(), (x, w, b), allow_unused=True), strict=True) if g is None]
    return f"no gradient reaches {', '.join(missing)}" if missing else None


@NORMALISE.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(lambda x, w, b: fn(x, 2, w, b), normal((2, 4, 3, 3), 11), normal((4,), 12), normal((4,), 13))
