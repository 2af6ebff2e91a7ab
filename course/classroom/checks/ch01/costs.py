"""Exercises 1 to 3: what a convolution, attention and a picture cost, as numbers."""

import math
import numbers

from torch import Tensor

from course.classroom.checks import Exercise, several
from course.classroom.checks.ch01.answers import attention, compression, conv


def plain_number(value) -> str | None:
    """None where `value` is one real number, of Python's or in a tensor."""
    one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, numbers.Real)
    if one and not isinstance(value, bool):
        return None if math.isfinite(float(value)) else f"expected a finite number, got {float(value)}"
    return f"expected a number, got {type(value).__name__}" + (": is the `return` missing?" if value is None else "")


def same(value, expected: float, bugs: dict[str, float] | None = None) -> str | None:
    """None where `value` is `expected`; otherwise the bug whose number it is."""
    if problem := plain_number(value):
        return problem
    value = float(value)
    if math.isclose(value, expected, rel_tol=1e-9):
        return None
    return next((bug for bug, wrong in (bugs or {}).items() if math.isclose(value, wrong, rel_tol=1e-9)),
                f"expected {expected:,.12g}, got {value:,.12g}")


# ---- 1 · a convolution

CONV = Exercise("flops.conv", points=2, minutes=10, reference=conv)


@CONV.gate("returns one number")
def _(fn):
    return plain_number(fn(3, 8, 3, 16, 16, padding=1))


@CONV.property("worked by hand: a 3 x 3 convolution from 7 to 11 channels on 5 x 7 positions, padded by 1")
def _(fn):
    weights, macs = 11 * 7 * 9, 5 * 7 * 11 * 7 * 9
    return same(fn(7, 11, 3, 5, 7, padding=1), 2 * macs, {
        "these are multiply-adds: a multiply and an add are two operations": macs,
        "the kernel has kernel * kernel weights for each input channel": 2 * macs / 3,
        "the input channels are missing: every output value reads all of them": 2 * macs / 7,
        "the output channels are missing: each of them is computed anew": 2 * macs / 11,
        "the padding is missing: the output is (height + 2 padding - kernel) // stride + 1 high": 2 * 3 * 5 * weights,
        "one position too few along each side: padding counts on both sides, and there is a + 1 at the end":
            2 * 4 * 6 * weights,
        "the kernel's weights are counted, but not at every position": 2 * weights,
        "the bias is not counted here, by the convention of the course": 2 * macs + 5 * 7 * 11,
    })


@CONV.property("without padding the output shrinks; a 1 x 1 kernel keeps it")
def _(fn):
    return same(fn(2, 5, 3, 4, 6), 2 * 2 * 4 * 5 * 2 * 9, {
        "without padding a 3 x 3 kernel fits at height - 2 places, not at height": 2 * 4 * 6 * 5 * 2 * 9,
        "one position too few along each side: did you forget the + 1?": 2 * 1 * 3 * 5 * 2 * 9,
    }) or same(fn(7, 3, 1, 4, 6), 2 * 24 * 3 * 7)


@CONV.property("stride 2 computes a quarter of the positions, also of odd sides")
def _(fn):
    for h, w, oh, ow in ((16, 8, 8, 4), (15, 9, 8, 5)):
        each = 2 * 6 * 4 * 9
        if problem := same(fn(4, 6, 3, h, w, stride=2, padding=1), oh * ow * each, {
            "the stride is ignored": h * w * each,
            "the stride divides both sides: the positions fall by stride squared": h * w * each / 2,
        }):
            return f"{h} x {w}: {problem}"


@CONV.property("groups: every output channel reads in_channels / groups channels")
def _(fn):
    return same(fn(12, 6, 3, 5, 5, padding=1, groups=3), 2 * 25 * 6 * 4 * 9, {
        "groups are ignored: an output channel reads in_channels / groups channels": 2 * 25 * 6 * 12 * 9,
        "only the input channels are divided by groups: all output channels are still computed": 2 * 25 * 2 * 4 * 9,
    })


@CONV.property("equals the course's formula")
def _(fn):
    for case in ((320, 320, 3, 64, 64, 1, 1, 1), (3, 128, 5, 33, 47, 3, 2, 1), (64, 64, 7, 30, 30, 2, 3, 64)):
        if problem := same(fn(*case), conv(*case)):
            return f"conv{case}: {problem}"


# ---- 2 · attention

ATTENTION = Exercise("flops.attention", points=2, minutes=10, reference=attention)


@ATTENTION.gate("returns one number")
def _(fn):
    return plain_number(fn(16, 8))


@ATTENTION.property("worked by hand: 7 tokens of width 5 among themselves")
def _(fn):
    N, D = 7, 5
    right = 2 * (4 * N * D * D + 2 * N * N * D)
    return same(fn(N, D), right, {
        "these are multiply-adds: a multiply and an add are two operations": right / 2,
        "the projection of the output is missing: there are four, q, k, v and out": right - 2 * N * D * D,
        "the four projections are missing": 4 * N * N * D,
        "the products of queries and keys are missing": 8 * N * D * D,
        "the scores are counted, the weighted sum of the values is not: it costs as much": right - 2 * N * N * D,
        "queries meet keys in pairs: N * N, not N": 2 * (4 * N * D * D + 2 * N * D),
        "each of the N * N scores is a product over all D channels": 2 * (4 * N * D * D + 2 * N * N),
        "a projection multiplies each token by a D x D matrix": 2 * (4 * N * D + 2 * N * N * D),
    })


@ATTENTION.property("cross-attention: k and v are made of the keys' tokens, at the context's width")
def _(fn):
    N, D, M, C = 10, 4, 3, 7
    pairs, right = 4 * N * M * D, 2 * (2 * N * D * D + 2 * M * C * D) + 4 * N * M * D
    return same(fn(N, D, M, C), right, {
        "keys are ignored": 2 * (4 * N * D * D) + 4 * N * N * D,
        "k and v are made of the M keys, not of the N queries": 2 * (2 * N * D * D + 2 * N * C * D) + pairs,
        "k and v are made of the M keys, not of the queries": 8 * N * D * D + pairs,
        "the context is context_dim wide, so k and v have context_dim x dim weights": 2 * (2 * N * D * D + 2 * M * D * D) + pairs,
        "k and v map context_dim to dim: the weights are context_dim x dim":
            2 * (2 * N * D * D + 2 * M * C * C) + pairs,
        "the scores pair N queries with M keys, not with N": right - pairs + 4 * N * N * D,
    })


@ATTENTION.property("a quarter of the cost is left for half the tokens, where tokens are many; half where they are few")
def _(fn):
    many, few = (float(fn(2 * n, 64)) / float(fn(n, 64)) for n in (10**7, 1))
    if abs(many - 4) > 0.01:
        return f"twice as many of 10,000,000 tokens should cost 4 times as much, got {many:.2f} times"
    if abs(few - 2) > 0.05:
        return f"2 tokens should cost about twice as much as 1, since projections dominate, got {few:.2f} times"


@ATTENTION.property("equals the course's formula")
def _(fn):
    for case in ((4096, 320), (4096, 320, 77, 768), (64, 1280, 64), (1, 8, 5)):
        if problem := same(fn(*case), attention(*case)):
            return f"attention{case}: {problem}"


# ---- 3 · three ratios

COMPRESSION = Exercise("vae.compression", points=2, minutes=5, reference=compression)
NAMES = ("values", "positions", "pairs")


@COMPRESSION.gate("returns (values, positions, pairs), three numbers")
def _(fn):
    out = fn(64, 64, 8, 4)
    return several(out, NAMES) or next(filter(None, map(plain_number, out)), None)


def _three(out, right, bugs):
    for name, value, expected in zip(NAMES, out, right, strict=True):
        if problem := same(value, expected, bugs.get(name)):
            return f"{name}: {problem}"


@COMPRESSION.property("Stable Diffusion: 512 x 512, f = 8, 4 channels")
def _(fn):
    return _three(fn(512, 512, 8, 4), (48, 64, 4096), {
        "values": {"this compares positions: a picture has 3 values at each, the latent 4": 64,
                   "these are the latent's values by the picture's: turn the ratio round": 1 / 48,
                   "f shortens both sides: the positions fall by f squared": 6,
                   "the 3 colours are missing: the picture has 3 values at each position": 16,
                   "divide by the latent's channels: more of them compress less": 3 * 64,
                   "multiply by 3 colours and divide by the channels, not the other way round": 64 * 4 / 3},
        "positions": {"f shortens both sides: the positions fall by f squared": 8,
                      "this is the ratio of the values: leave the channels out": 48},
        "pairs": {"a pair has two members: square the ratio of the positions": 64,
                  "pairs of positions, not of values: square the ratio of the positions": 48**2}})


@COMPRESSION.property("other pictures, factors and channels")
def _(fn):
    for case in ((256, 256, 4, 3), (64, 96, 16, 16), (32, 32, 1, 3)):
        if problem := _three(fn(*case), compression(*case), {}):
            return f"compression{case}: {problem}"


@COMPRESSION.property("a side that f does not divide is refused")
def _(fn):
    for height, width in ((100, 64), (64, 100)):
        try:
            fn(height, width, 8, 4)
        except ValueError:
            continue
        return f"{height} x {width} cannot be cut into 8 x 8 patches: raise ValueError, for the height and for the width"
