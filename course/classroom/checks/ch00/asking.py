"""Exercises 4 and 5: asking a network twice, and what a share of right answers is worth."""

import math

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch00.answers import guide, share_with_interval

# ---- 4 · guidance

GUIDE = Exercise("guidance.guide", points=3, minutes=10, reference=guide)


class Network:
    """Answers `gain * x + condition`, and remembers what it was asked."""

    def __init__(self, gain: float = 0.0):
        self.gain, self.asked = gain, []

    def __call__(self, x, t, condition):
        self.asked.append((x, t, condition))
        return self.gain * x + condition


def _ask(fn, with_text=5.0, without=1.0, scale=2.0):
    return fn(Network(), torch.zeros(1, 1, 2, 2), 500.0, torch.tensor(with_text), torch.tensor(without), scale)


@GUIDE.gate("predict(x, t, condition), (B,C,h,w), t, two conditions and a scale -> (B,C,h,w)")
def _(fn):
    return tensor_like(fn(Network(1.0), normal((2, 4, 3, 3), 1), 500.0, torch.tensor(1.0), torch.tensor(2.0), 3.0),
                       (2, 4, 3, 3))


@GUIDE.property("worked by hand: 5 with the text, 1 without, w = 2 gives 9")
def _(fn):
    full = torch.ones(1, 1, 2, 2)
    return compare(_ask(fn), 9 * full, {
        "the difference is added to the answer WITH text; start from the one without": 13 * full,
        "the difference has the wrong sign: it points from `without` to `with`": -7 * full,
        "the two answers are exchanged": -3 * full,
        "w multiplies the answer with text itself, not the difference": 11 * full,
        "this is the difference only: it must be added to the answer without text": 8 * full,
        "w is not used": 5 * full,
        "half of w, or a mean, where the formula has w": 3 * full,
    })


@GUIDE.property("w = 0 ignores the text, w = 1 is the answer with text, w = -1 turns away from it")
def _(fn):
    for scale, expected in ((0.0, 1.0), (1.0, 5.0), (-1.0, -3.0), (7.5, 31.0)):
        if problem := compare(_ask(fn, scale=scale), torch.full((1, 1, 2, 2), expected)):
            return f"w = {scale:g}: {problem}"


@GUIDE.property("asks with the x and t that it was given, once with each condition")
def _(fn):
    network, x = Network(1.0), normal((1, 2, 2, 2), 2)
    cond, uncond = torch.tensor(5.0), torch.tensor(1.0)
    fn(network, x, 321.0, cond, uncond, 2.0)
    if len(network.asked) != 2:
        return f"the network was asked {len(network.asked)} times, expected 2"
    if not all(torch.equal(asked, x) for asked, _, _ in network.asked):
        return "the network was handed another x: both questions are about the same noisy latent"
    if any(float(t) != 321.0 for _, t, _ in network.asked):
        return "the network was handed another t"
    if sorted(float(c) for _, _, c in network.asked) != [1.0, 5.0]:
        return "ask once with the text and once without"


@GUIDE.property("at w = 1 one question is enough: the other answer would be multiplied by 0")
def _(fn):
    network = Network(1.0)
    fn(network, normal((1, 2, 2, 2), 3), 10.0, torch.tensor(5.0), torch.tensor(1.0), 1)
    if len(network.asked) != 1:
        return f"at w = 1 the network was asked {len(network.asked)} times: return the answer with text at once"


@GUIDE.property("equals the course's guide on random answers, gradient included")
def _(fn):
    for scale in (0.5, 3.0, 7.5):
        x, cond, uncond = (normal((2, 4, 3, 3), seed).requires_grad_() for seed in (4, 5, 6))
        out, expected = fn(Network(0.7), x, 10.0, cond, uncond, scale), guide(Network(0.7), x, 10.0, cond, uncond, scale)
        if problem := compare(out, expected):
            return f"w = {scale:g}: {problem}"
        if not out.requires_grad:
            return "the result is cut off from the network's answers: no .detach() and no torch.no_grad() in here"
        got = torch.autograd.grad(out.sum(), (x, cond, uncond), allow_unused=True)
        right = torch.autograd.grad(expected.sum(), (x, cond, uncond))
        for name, one, other in zip(("x", "the answer with text", "the answer without text"), got, right, strict=True):
            if one is None:
                return f"no gradient reaches {name}"
            if problem := compare(one, other):
                return f"the gradient of {name}: {problem}"


@GUIDE.hygiene("leaves x and the network's answers as they were")
def _(fn):
    with_text, without = normal((1, 1, 2, 2), 7), normal((1, 1, 2, 2), 8)
    return touched(lambda x, c, u: fn(lambda x, t, condition: condition, x, 1.0, c, u, 2.0),
                   normal((1, 1, 2, 2), 9), with_text, without)


# ---- 5 · a share and what it is worth

SHARE = Exercise("fidelity.share_with_interval", points=3, minutes=10, reference=share_with_interval)


def _numbers(value):
    """(share, low, high) as a tensor, or a sentence."""
    if problem := several(value, ("share", "low", "high")):
        return problem
    try:
        return torch.tensor([float(v) for v in value], dtype=torch.float64)
    except (TypeError, ValueError):
        return "expected three numbers (share, low, high)"


@SHARE.gate("(right, total, z) -> (share, low, high), three numbers")
def _(fn):
    found = _numbers(fn(8, 10, 1.96))
    if isinstance(found, str):
        return found
    share, low, high = found.tolist()
    if not all(map(math.isfinite, (share, low, high))):
        return "a number is NaN or infinite"
    if abs(share - 80) < 1:
        return "this is in percent: give shares between 0 and 1"
    return None if low <= high else f"expected low <= high, got {low:.3g} and {high:.3g}"


@SHARE.property("worked by hand: 2 of 4 right, z = 2 gives 0.5, 0.146 and 0.854")
def _(fn):
    def around(centre, half, share=0.5):
        return torch.tensor([share, centre - half, centre + half], dtype=torch.float64)
    return compare(_numbers(fn(2, 4, 2.0)), around(0.5, 0.125**0.5), {
        "this is share ± z sqrt(share (1 - share) / total), without Wilson's correction": around(0.5, 0.5),
        "did you forget the square root?": around(0.5, 0.125),
        "the term z² / (4 total²) under the root is missing": around(0.5, 0.25),
        "the half width is not divided by 1 + z² / total": around(0.5, 0.5**0.5),
        "z is missing in front of the root": around(0.5, 0.125**0.5 / 2),
    }, rtol=1e-3)


@SHARE.property("worked by hand: 4 of 4 right, z = 2 gives 1, 0.5 and 1: four in four do not prove certainty")
def _(fn):
    return compare(_numbers(fn(4, 4, 2.0)), torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64), {
        "the interval has no width at 4 of 4: that is the formula without Wilson's correction":
            torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64),
        "the interval leaves 1: the centre is pulled towards a half, (share + z² / 2n) / (1 + z² / n)":
            torch.tensor([1.0, 0.75, 1.25], dtype=torch.float64),
        "the centre is returned in place of the share": torch.tensor([0.75, 0.5, 1.0], dtype=torch.float64),
    }, rtol=1e-3)


@SHARE.property("right and wrong are treated alike, and more pictures give a narrower interval")
def _(fn):
    some, rest = _numbers(fn(7, 20, 1.96)), _numbers(fn(13, 20, 1.96))
    if problem := compare(some, (1 - rest)[[0, 2, 1]], rtol=1e-6):
        return f"7 of 20 right is 13 of 20 wrong, so low must be 1 - high: {problem}"
    widths = [_numbers(fn(n // 2, n, 1.96)) for n in (10, 100, 1000)]
    widths = [float(w[2] - w[1]) for w in widths]
    if not widths[0] > widths[1] > widths[2]:
        return f"the widths at 10, 100 and 1000 pictures are {', '.join(f'{w:.3f}' for w in widths)}: they must fall"


@SHARE.property("z is 1.96 unless it is given; equals the course's interval")
def _(fn):
    for right, total in ((0, 7), (1, 7), (30, 48), (256, 256), (999, 1000)):
        if problem := compare(_numbers(fn(right, total)), torch.tensor(share_with_interval(right, total)).double(), rtol=1e-5):
            return f"{right} of {total}: {problem}"
