"""Exercise 1: what reaches a convolution of zeros."""

import torch
import torch.nn.functional as F

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch13.answers import conv_gradients

GRADIENTS = Exercise("controlnet.conv_gradients", points=3, minutes=15, reference=conv_gradients)
NAMES = ("d_weight", "d_bias", "d_x")


@GRADIENTS.gate("returns (d_weight, d_bias, d_x) of shapes (out,in), (out,), (B,in,H,W)")
def _(fn):
    out = fn(normal((2, 3, 4, 5), 1), normal((6, 3), 2), normal((2, 6, 4, 5), 3))
    if problem := several(out, NAMES):
        return problem
    shapes = ((6, 3), (6,), (2, 3, 4, 5))
    if tuple(getattr(out[0], "shape", ())) == (3, 6):
        return "d_weight is turned: it has the shape (out,in) of the weight"
    for name, value, shape in zip(NAMES, out, shapes, strict=True):
        if problem := tensor_like(value, shape):
            return f"{name}: {problem}"


@GRADIENTS.property("worked by hand: x = (2, 3), W = (5, 7), dL/dy = 11 give (22, 33), 11 and (55, 77)")
def _(fn):
    x, upstream = torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1), torch.full((1, 1, 1, 1), 11.0)
    d_weight, d_bias, d_x = fn(x, torch.tensor([[5.0, 7.0]]), upstream)
    return compare(d_weight, torch.tensor([[22.0, 33.0]]), {
        "d_weight was made of the weight: it is dL/dy times x": torch.tensor([[55.0, 77.0]]),
        "d_weight is x alone: dL/dy is missing": torch.tensor([[2.0, 3.0]]),
    }) or compare(d_bias, torch.tensor([11.0]), {
        "d_bias is dL/dy times y: y has the slope 1 in b": torch.tensor([341.0])}) or compare(
        d_x.flatten(), torch.tensor([55.0, 77.0]), {
            "d_x was made of x: it is W transposed times dL/dy": torch.tensor([22.0, 33.0]),
            "d_x is the weight alone: dL/dy is missing": torch.tensor([5.0, 7.0])})


@GRADIENTS.property("a weight of zeros: nothing reaches x, yet the weight itself gets its gradient")
def _(fn):
    x, upstream = normal((2, 3, 4, 4), 4), normal((2, 5, 4, 4), 5)
    d_weight, _, d_x = fn(x, torch.zeros(5, 3), upstream)
    if d_x.any():
        return "with W = 0 no gradient may reach x: d_x is W transposed times dL/dy"
    if not d_weight.any():
        return "with W = 0 the weight still gets a gradient: dL/dy times x, in which W does not occur"


@GRADIENTS.property("pictures and places add up")
def _(fn):
    x, weight, upstream = torch.ones(3, 1, 2, 2), torch.ones(1, 1), torch.ones(3, 1, 2, 2)
    d_weight, d_bias, d_x = fn(x, weight, upstream)
    for name, value in (("d_weight", d_weight), ("d_bias", d_bias)):
        problem = compare(value.flatten(), torch.tensor([12.0]), {
            f"{name}: a mean for a sum: every picture and place adds its share": torch.tensor([1.0]),
            f"{name}: the mean over pictures was taken: add them up": torch.tensor([4.0]),
            f"{name}: only one picture was counted": torch.tensor([4.0]),
            f"{name}: the mean over places was taken: add them up": torch.tensor([3.0])})
        if problem:
            return problem
    return compare(d_x, torch.ones(3, 1, 2, 2))


@GRADIENTS.property("equals what autograd finds")
def _(fn):
    x, weight, bias = (normal(s, k).requires_grad_() for s, k in (((2, 4, 3, 5), 6), ((4, 4), 7), ((4,), 8)))
    upstream = normal((2, 4, 3, 5), 9)
    right = torch.autograd.grad(F.conv2d(x, weight[:, :, None, None], bias), (weight, bias, x), upstream)
    found = fn(x.detach(), weight.detach(), upstream)
    turned = torch.einsum("oi,bihw->bohw", weight, upstream)
    bugs = {"d_weight": {"d_weight is turned: row o, column i": right[0].T}, "d_bias": {},
            "d_x": {"W was not transposed: x_i gets the sum over o of W_oi dL/dy_o": turned.detach()}}
    for name, value, expected in zip(NAMES, found, right, strict=True):
        if problem := compare(value, expected, bugs[name]):
            return f"{name}: {problem}" if "d_" not in problem else problem


@GRADIENTS.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(fn, normal((2, 3, 4, 4), 10), normal((5, 3), 11), normal((2, 5, 4, 4), 12))
