"""Exercises 3 and 6: the noise that a picture starts from, and the way from one start to another."""

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch00.answers import slerp, start_noise

# ---- 3 · a seed is a place to start

START = Exercise("pipeline.start_noise", points=2, minutes=10, reference=start_noise)


@START.gate("a shape (C,h,w) and B seeds -> (B,C,h,w), float32")
def _(fn):
    out = fn((4, 8, 6), [3, 1, 2])
    if problem := tensor_like(out, (3, 4, 8, 6)):
        return problem
    return None if out.dtype == torch.float32 else f"expected torch.float32, got {out.dtype}"


@START.property("the numbers are standard normal: mean 0, variance 1")
def _(fn):
    out = fn((4, 50, 50), [5, 6]).double()
    mean, std = float(out.mean()), float(out.std())
    if abs(mean - 0.5) < 0.02:
        return "the mean is 0.5: torch.rand is uniform, torch.randn is normal"
    if abs(mean) > 0.03 or abs(std - 1) > 0.03:                # standard errors 0.007 and 0.005
        return f"20,000 numbers have mean {mean:.3f} and standard deviation {std:.3f}, expected 0 and 1"


@START.property("the same seed gives the same noise, whatever was drawn before")
def _(fn):
    torch.manual_seed(1)
    first = fn((2, 4, 4), [7])
    torch.manual_seed(2)
    second = fn((2, 4, 4), [7])
    if not torch.equal(first, second):
        return "two calls with seed 7 differ: make a torch.Generator, seed it, and pass it as generator="


@START.property("other seeds give other noise")
def _(fn):
    out = fn((2, 4, 4), [7, 8])
    if torch.equal(out[0], out[1]):
        return "the seeds 7 and 8 give the same noise: seed the generator anew for every picture"


@START.property("a picture's noise depends on its own seed, not on its neighbours in the batch")
def _(fn):
    together, alone = fn((2, 4, 4), [7, 8, 9]), fn((2, 4, 4), [9])
    if torch.equal(together[2], alone[0]):
        return None
    if torch.equal(together[0], fn((2, 4, 4), [7])[0]):
        return "seed 9 gives other noise after 7 and 8 than alone: one generator ran on; each seed needs its own"
    return "seed 9 gives other noise in a batch than alone: each seed needs a generator of its own"


@START.property("equals torch.randn with a seeded generator, picture by picture")
def _(fn):
    expected = start_noise((3, 2, 5), [0, 11, 2**31])
    bugs = {"the seeds are off by one": start_noise((3, 2, 5), [1, 12, 2**31 + 1]),
            "the seeds are not used, only their number": start_noise((3, 2, 5), [0, 1, 2])}
    return compare(fn((3, 2, 5), [0, 11, 2**31]), expected, bugs)


@START.hygiene("leaves the global random state as it was")
def _(fn):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    fn((2, 4, 4), [7])
    if not torch.equal(torch.rand(3), expected):
        return "torch.manual_seed changed everybody's random numbers: use a torch.Generator of your own"


# ---- 6 · from one start to another

SLERP = Exercise("pipeline.slerp", points=3, minutes=15, reference=slerp)


@SLERP.gate("(C,h,w), (C,h,w), (K,) -> (K,C,h,w)")
def _(fn):
    return tensor_like(fn(normal((2, 3, 4), 1), normal((2, 3, 4), 2), torch.linspace(0, 1, 5)), (5, 2, 3, 4))


@SLERP.property("worked by hand: a third of the way from (2, 0) to (0, 2) is 2 (cos 30°, sin 30°)")
def _(fn):
    a, b = torch.tensor([2.0, 0.0]).reshape(2, 1, 1), torch.tensor([0.0, 2.0]).reshape(2, 1, 1)
    expected = torch.tensor([3**0.5, 1.0]).reshape(1, 2, 1, 1)
    return compare(fn(a, b, torch.tensor([1 / 3])), expected, {
        "this is the straight line: it cuts through the inside of the sphere": torch.tensor([[4 / 3, 2 / 3]])[..., None, None],
        "weight 0 must give a, weight 1 must give b: they are exchanged": expected.flip(1),
        "the length is lost: normalise for the angle only, and mix a and b themselves": expected / 2,
    })


@SLERP.property("a right angle is not special: directions 60° apart, and their angle divided evenly")
def _(fn):
    a, b = torch.tensor([1.0, 0.0]).reshape(2, 1, 1), torch.tensor([0.5, 0.75**0.5]).reshape(2, 1, 1)
    expected = slerp(a, b, torch.tensor([1 / 3]))               # at 20°
    return compare(fn(a, b, torch.tensor([1 / 3])), expected, {
        "the sum of both sines is not divided by sin(angle)": expected * 0.75**0.5,
        "this is the straight line: it cuts through the inside of the sphere": (2 * a + b)[None] / 3,
        "this takes every angle for a right one: cos and sin of 90° times the weight": (0.75**0.5 * a + 0.5 * b)[None],
    })


@SLERP.property("the angle is found from directions, whatever the lengths")
def _(fn):
    a, b = torch.tensor([3.0, 0.0]).reshape(2, 1, 1), torch.tensor([0.0, 3.0]).reshape(2, 1, 1)
    turned = torch.tensor([3.0 * 0.5, 3.0 * 0.75**0.5]).reshape(2, 1, 1)
    for other in (b, turned):
        out = fn(a, other, torch.tensor([0.25, 0.5]))
        if isinstance(out, torch.Tensor) and torch.isnan(out).any():
            return "NaN: the cosine is the dot product divided by both lengths; undivided it exceeds 1"
        if problem := compare(out, slerp(a, other, torch.tensor([0.25, 0.5]))):
            return problem + ": is the dot product divided by both lengths?"


@SLERP.property("one angle for the whole latent; the way begins at a, ends at b, and keeps the length")
def _(fn):
    a, b = normal((4, 8, 8), 3), normal((4, 8, 8), 4)
    b = b * a.norm() / b.norm()
    out = fn(a, b, torch.tensor([0.0, 0.3, 0.7, 1.0]))
    if problem := compare(out[[0, 3]], torch.stack([a, b])):
        return f"at the ends: {problem}"
    lengths = out.flatten(1).norm(dim=1) / a.norm()
    if (lengths - 1).abs().max() > 1e-3:
        return (f"the lengths along the way are {', '.join(f'{v:.3f}' for v in lengths)} times that of a, all should be 1: "
                "take one dot product over all values")
    if problem := compare(out, slerp(a, b, torch.tensor([0.0, 0.3, 0.7, 1.0]))):
        return f"{problem}: take one dot product over all values, not one for each row"


@SLERP.property("equal ends do not divide by zero")
def _(fn):
    # of sixteen ones the cosine is 1 to the bit; of random numbers it may be a little less, and then nothing divides by zero
    for a in (torch.ones(4, 2, 2), normal((2, 3, 3), 5)):
        if problem := compare(fn(a, a.clone(), torch.tensor([0.0, 0.5])), torch.stack([a, a]), rtol=1e-3):
            return problem


@SLERP.property("a gradient flows back to both ends")
def _(fn):
    a, b = normal((2, 2, 2), 6).requires_grad_(), normal((2, 2, 2), 7).requires_grad_()
    out = fn(a, b, torch.tensor([0.4]))
    if not out.requires_grad:
        return "the result is cut off from a and b: no .detach() and no numpy on the way"
    got = torch.autograd.grad(out.square().sum(), (a, b), allow_unused=True)
    if None in got:
        return "no gradient reaches one of the two ends"
    if not all(torch.isfinite(g).all() for g in got):
        return "the gradient holds NaN or infinity"


@SLERP.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(fn, normal((2, 2, 2), 8), normal((2, 2, 2), 9), torch.tensor([0.2, 0.5]))
