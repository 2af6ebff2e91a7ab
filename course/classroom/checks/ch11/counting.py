"""Exercises 1 and 2: parameters by formula, of a block and of the whole U-Net."""

import torch

from course.classroom.checks import Exercise, several
from course.classroom.checks.ch11.answers import count_blocks, count_unet
from course.unet import UNet, UNetConfig

# ---- 1 · a block

BLOCKS = Exercise("unet.count_blocks", points=3, minutes=15, reference=count_blocks)


def _number(value, right: int, bugs: dict[str, int]) -> str | None:
    """None where `value` is `right`; otherwise the first bug that would give it."""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"expected a whole number (an int), got {type(value).__name__}: {value!r}"[:160]
    if value == right:
        return None
    return next((bug for bug, wrong in bugs.items() if value == wrong), f"expected {right:,d}, got {value:,d}")


# what a residual block i -> o with one mistake would count, as a difference from the right number
RESIDUAL = {
    "where in and out are equal there is no 1 x 1 convolution": lambda i, o, t: i * o + o if i == o else 0,
    "where in and out differ a 1 x 1 convolution carries the input across": lambda i, o, t: -i * o - o if i != o else 0,
    "the 1 x 1 convolution has a bias, too": lambda i, o, t: -o if i != o else 0,
    "the biases of the convolutions are missing": lambda i, o, t: -2 * o,
    "all biases of the convolutions are missing": lambda i, o, t: -2 * o - (o if i != o else 0),
    "both norms are missing: a weight and a bias a channel": lambda i, o, t: -2 * i - 2 * o,
    "a norm has a weight and a bias a channel: two numbers": lambda i, o, t: -i - o,
    "the second norm is over the new width": lambda i, o, t: 2 * i - 2 * o,
    "the layer that brings the time in is missing": lambda i, o, t: -t * o - o,
    "the layer that brings the time in has a bias, too": lambda i, o, t: -o,
    "the second convolution goes from out to out": lambda i, o, t: 9 * i * o - 9 * o * o,
    "the second convolution is missing": lambda i, o, t: -9 * o * o - o,
    "a 3 x 3 kernel has nine weights a pair of channels": lambda i, o, t: -8 * i * o - 8 * o * o,
}
SIZES = ((8, 8, 20), (12, 5, 20), (5, 12, 28))


@BLOCKS.gate("returns (residual, transformer), two whole numbers")
def _(fn):
    out = fn(8, 4, 16, 6)
    return several(out, ("residual", "transformer")) or next(
        (problem for part in out if (problem := _number(part, part, {}))), None)


@BLOCKS.property("a residual block, whether it keeps its width or changes it")
def _(fn):
    found = [fn(*size, 6)[0] for size in SIZES]
    right = [count_blocks(*size, 6)[0] for size in SIZES]
    for bug, off in RESIDUAL.items():                          # one that fits at all sizes is the one
        if found != right and found == [n + off(*size) for n, size in zip(right, SIZES, strict=True)]:
            return bug
    for (i, o, t), value, wanted in zip(SIZES, found, right, strict=True):
        if problem := _number(value, wanted, {}):
            return f"{i} to {o}, time {t}: {problem}"


@BLOCKS.property("a transformer of one block")
def _(fn):
    D, c = 8, 6
    right = count_blocks(4, D, 16, c)[1]
    return _number(fn(4, D, 16, c)[1], right, {
        "q, k and v have no bias": right + 6 * D,
        "keys and values of the second attention read the text: c to D": right - 2 * c * D + 2 * D * D,
        "in the first attention the picture reads itself: D to D": right - 2 * D * D + 2 * c * D,
        "GEGLU makes 4D values and 4D gates: D to 8D": right - 4 * D * D - 4 * D,
        "the gate is multiplied away: the second layer reads 4D numbers": right + 4 * D * D,
        "proj_in and proj_out are missing": right - 2 * D * D - 2 * D,
        "the norm in front of proj_in is missing": right - 2 * D,
        "the three LayerNorms are missing": right - 6 * D,
        "a norm has a weight and a bias a channel: two numbers": right - 4 * D,
        "the output layers of both attentions have a bias": right - 2 * D,
        "the width is that of the input: a transformer stands behind the residual block": count_blocks(4, 4, 16, c)[1]})


@BLOCKS.property("more blocks in one transformer, or none")
def _(fn):
    one, right, none = (count_blocks(4, 8, 16, 6, depth)[1] for depth in (1, 3, 0))
    if problem := _number(fn(4, 8, 16, 6, 3)[1], right, {
            "depth is not read": one, "the norm and the two projections stand there once, not in each block": 3 * one}):
        return problem
    return _number(fn(4, 8, 16, 6, 0)[1], none, {"depth 0 means no transformer at all": 2 * 8 * 8 + 4 * 8,
                                                 "depth is not read": one})


@BLOCKS.property("equals the library's, first level of Stable Diffusion: 320, time 1280, text 768")
def _(fn):
    for i, o in ((320, 320), (960, 640)):
        for part, (value, right) in enumerate(zip(fn(i, o, 1280, 768), count_blocks(i, o, 1280, 768), strict=True)):
            if problem := _number(value, right, {}):
                return f"{('residual', 'transformer')[part]} {i} to {o}: {problem}"


# ---- 2 · the whole

UNET = Exercise("unet.count_unet", points=4, minutes=25, reference=count_unet)


def _walk(config, bug: str = "") -> int:
    """The right count, or that of one mistake."""
    c, widths, n = config, config.block_channels, config.layers_per_block
    first, t = widths[0], 4 * widths[0]

    def pair(i: int, o: int, d: int) -> int:
        return sum(count_blocks(i, o, t, c.context_dim, d))

    total = 9 * c.in_channels * first + first if bug != "in" else 0
    total += first * t + t + t * t + t if bug != "time" else 0
    now, skips = first, [first] if bug != "first skip" else []
    for level, width in enumerate(widths):
        for _ in range(n):
            total += pair(width if bug == "first block" else now, width, c.depth[level])
            now = width
            skips.append(width)
        if level < len(widths) - 1:
            total += 9 * width * width + width if bug != "down" else 0
            skips.append(width)
        elif bug == "last down":
            total += 9 * width * width + width
    total += pair(now, now, c.mid_depth) + (pair(now, now, 0) if bug != "one in the middle" else 0)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(n + (bug != "n up")):
            skip = 0 if bug == "no skips" or not skips else skips.pop()
            total += pair(now + skip, width, c.depth[level])
            now = width
        if level and bug != "up":
            total += 9 * width * width + width
    total += 2 * first if bug != "last norm" else 0
    return total + (9 * first * c.out_channels + c.out_channels if bug != "out" else 0)


BUGS = {"in": "conv_in is missing", "time": "the two layers of the time embedding are missing",
        "first skip": "conv_in's output goes across, too: the first of the skips",
        "first block": "the first residual block of a level still has the width of the level above at its input",
        "down": "the convolutions that halve the picture are missing: one a level, but for the last",
        "last down": "the last level halves nothing", "one in the middle": "the middle has two residual blocks",
        "n up": "on the way up a level has layers_per_block + 1 residual blocks",
        "no skips": "on the way up every residual block reads a skip beside its input: the channels add up",
        "up": "the convolutions behind the doubling are missing: one a level, but for the highest",
        "last norm": "the norm before conv_out is missing", "out": "conv_out is missing"}
TINY = UNetConfig(block_channels=(32, 64), layers_per_block=1, depth=(0, 0), mid_depth=0, heads=(1, 1), context_dim=8)
SMALL = UNetConfig(in_channels=3, out_channels=5, block_channels=(32, 64, 96), layers_per_block=2, depth=(0, 1, 2), mid_depth=2,
                   heads=(1, 2, 3), context_dim=24)


@UNET.gate("returns one whole number")
def _(fn):
    value = fn(TINY)
    return _number(value, value, {})


def _same(fn, config) -> str | None:
    return _number(fn(config), count_unet(config), {BUGS[bug]: _walk(config, bug) for bug in BUGS})


@UNET.property("two levels of one residual block, without transformers")
def _(fn):
    return _same(fn, TINY)


@UNET.property("three levels, transformers of several depths, other channels at both ends")
def _(fn):
    right = count_unet(SMALL)
    swapped = count_unet(UNetConfig(**{**vars(SMALL), "in_channels": 5, "out_channels": 3}))
    none = UNetConfig(**{**vars(SMALL), "mid_depth": 0})
    ones = UNetConfig(**{**vars(SMALL), "depth": (0, 1, 1), "mid_depth": 1})
    return _number(fn(SMALL), right, {BUGS[bug]: _walk(SMALL, bug) for bug in BUGS} | {
        "in_channels and out_channels are exchanged": swapped,
        "the middle has a transformer, too: config.mid_depth": count_unet(none),
        "config.depth says how many blocks a transformer has": count_unet(ones)})


@UNET.property("Stable Diffusion 1.5: 859,520,964")
def _(fn):
    return _same(fn, UNetConfig())


@UNET.property("and the one that also reads a mask and a picture, 9 channels: 859,535,364")
def _(fn):
    return _same(fn, UNetConfig(in_channels=9))


@UNET.property("equals what is built, for a model that was not named")
def _(fn):
    config = UNetConfig(block_channels=(64, 64, 128, 32), layers_per_block=3, depth=(2, 0, 1, 0), mid_depth=0, heads=(1, 1, 1, 1),
                        context_dim=40)
    with torch.device("meta"):
        right = sum(p.numel() for p in UNet(config).parameters())
    return _number(fn(config), right, {BUGS[bug]: _walk(config, bug) for bug in BUGS})
