"""The autoencoder on large pictures, in little memory: one picture at a time, in tiles that overlap.

At 1024 x 1024 the decoder's widest feature map alone has 268 million values. Its convolutions only look around them, so a
tile comes out like the same place of the whole picture, except near its edge, where its surroundings are missing, and for
what looks at everything: GroupNorm's statistics, and the attention in the middle. So neighbours overlap, and each fades
into the next:

    out = sum_i w_i tile_i,      w rising from 0 to 1 over an overlap, along H and along W, and  sum_i w_i = 1
"""

from collections.abc import Callable

import torch
from torch import Tensor

from course.errors import UsageError

OVERLAP = 0.25                            # of a tile's side


def tiled(function: Callable, x: Tensor, tile: int, scale: float) -> Tensor:
    """`function` of x (B,C,H,W), put together from tiles of at most `tile` x `tile` -> (B,C',scale H,scale W).

    function: (1,C,h,w) -> (1,C',scale h,scale w); a decoder has scale f, an encoder 1 / f. A picture that fits into one tile
    is not cut. Raises UsageError for a tile whose side or overlap would be no whole number of the result's pixels.
    """
    shared = int(tile * OVERLAP)
    if shared < 1 or tile * scale % 1 or shared * scale % 1:
        raise UsageError(f"the side of a tile must be a multiple of {round(1 / OVERLAP) * max(1, round(1 / scale))}, got {tile}")
    rows, columns = (_cuts(n, tile, shared, scale) for n in x.shape[2:])
    whole = []
    for picture in x.split(1):                                                          # (1,C,H,W)
        out = None
        for i, top, fade_rows in rows:
            for j, left, fade_columns in columns:
                part = function(picture[:, :, i: i + tile, j: j + tile])                # (1,C',scale tile,scale tile)
                if out is None:
                    out = part.new_zeros(*part.shape[:2], round(x.shape[2] * scale), round(x.shape[3] * scale))
                weights = (fade_rows[:, None] * fade_columns).to(part)                  # (scale tile,scale tile)
                out[:, :, top: top + len(fade_rows), left: left + len(fade_columns)] += weights * part
        whole.append(out)
    return torch.cat(whole)                                                             # (B,C',scale H,scale W)


def _cuts(length: int, tile: int, shared: int, scale: float) -> list[tuple[int, int, Tensor]]:
    """The tiles along one axis: where each begins in x, where in the result, and its weights there."""
    side, fade = round(min(tile, length) * scale), round(shared * scale)
    starts = [*range(0, length - tile, tile - shared), max(length - tile, 0)]           # the last moves back, to be whole
    up, total, weights = torch.arange(fade) / fade, torch.zeros(round(length * scale)), []
    for k, start in enumerate(starts):
        w = torch.ones(side)
        if k > 0:
            w[:fade] = up
        if k < len(starts) - 1:
            w[side - fade:] = 1 - up
        weights.append(w)
        total[round(start * scale):][:side] += w
    return [(start, round(start * scale), w / total[round(start * scale):][:side])
            for start, w in zip(starts, weights, strict=True)]
