"""`course bench scaling`: how the cost of a U-Net grows with resolution, batch, width and length of the text.

Time is measured at several sizes, all in turns, and a line is fitted in log-log: cost ~ size^exponent. Beside it stand the
exponent of the counted operations over the same sizes, and the one that theory gives in the limit: convolutions and
projections grow with the number of places, side^2; self-attention with its square, side^4; both with the square of the width;
cross-attention alone with the length of the text. Measured below counted says that small sizes do not fill the machine.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from course import unet
from course.evaluation import speed
from course.evaluation.machine import Machine
from course.training import flops

BASE = unet.UNetConfig(block_channels=(128, 128), layers_per_block=1, depth=(1, 1), heads=(4, 4), context_dim=128)
WORDS = 32


@dataclass(frozen=True)
class Axis:
    """What is varied, over which sizes; the other three stay as they are."""

    name: str
    sizes: tuple[int, ...]
    limit: str                             # the exponent when the size goes to infinity, in words
    change: Callable[[int], dict]          # size -> what differs: side, batch, width, words


AXES = (
    Axis("side of the latent", (8, 16, 32, 64), "2 for convolutions, 4 for self-attention", lambda n: {"side": n}),
    Axis("batch", (1, 2, 4, 8, 16), "1", lambda n: {"batch": n}),
    Axis("width", (64, 128, 192, 256, 320), "2", lambda n: {"width": n}),
    Axis("tokens of text", (32, 128, 512, 2048), "0, then 1 where the text outweighs the picture", lambda n: {"words": n}),
)


def run(machine: Machine, rounds: int = 5, axes: tuple[Axis, ...] | None = None,
        progress: Callable[[float], None] = lambda done: None) -> list[dict]:
    """A row for each axis: sizes, milliseconds, billions of operations, and both exponents."""
    rows, axes = [], axes or AXES
    for i, axis in enumerate(axes):
        calls, counted = zip(*(call(machine, **axis.change(n)) for n in axis.sizes), strict=True)
        seconds = speed.in_turns(dict(zip(axis.sizes, calls, strict=True)), rounds, machine.device, turn=0.05)
        times = [statistics.median(seconds[n]) for n in axis.sizes]
        rows.append({"axis": axis.name, "sizes": list(axis.sizes), "ms": [1000 * t for t in times],
                     "gflop": [c / 1e9 for c in counted], "measured": exponent(axis.sizes, times),
                     "measured_upper": exponent(axis.sizes[-2:], times[-2:]), "counted": exponent(axis.sizes, counted),
                     "counted_upper": exponent(axis.sizes[-2:], counted[-2:]), "limit": axis.limit})
        progress((i + 1) / len(axes))
    return rows


def call(machine: Machine, side: int = 16, batch: int = 1, width: int = 128, words: int = WORDS) -> tuple[Callable, int]:
    """(a function that asks a U-Net of that size once, how many operations that is)."""
    config = replace(BASE, block_channels=(width, width), heads=(width // 32, width // 32))
    dtype = getattr(torch, machine.dtype)
    with torch.device("meta"):
        shadow = unet.UNet(config)
        counted = flops.forward(shadow, torch.empty(batch, 4, side, side), 500.0, torch.empty(batch, words, 128))
    net = unet.UNet(config).to(machine.device, dtype).eval()
    x, context = (torch.randn(shape, device=machine.device, dtype=dtype) for shape in
                  ((batch, 4, side, side), (batch, words, 128)))
    return speed.quiet(lambda: net(x, 500.0, context)), counted


def exponent(sizes, costs) -> float:
    """The slope of the least-squares line through (log size, log cost)."""
    x, y = ([math.log(v) for v in values] for values in (sizes, costs))
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return (sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x))
