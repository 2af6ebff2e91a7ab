"""Deep features change slowly: most steps need only the outermost layers. An approximation (DeepCache, Ma et al. 2023).

What the lower levels of the U-Net make of a picture hardly differs from one step to the next. So only every n-th step goes
through all of it and leaves behind what the last layers are handed from below; in the steps between, only these layers are
computed. They see the new x, and take the rest from there:

    x -> conv_in ------------------- skip ------------------> last layers -> conv_out
             \\___ everything below: every n-th step only ___/
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from course import layers
from course.errors import UsageError


@contextmanager
def cached(unet, every: int, outer: int = 1) -> Iterator[None]:
    """Until the block ends, every `every`-th call of `unet` is computed in full, and of the others the `outer` last layers.

    Their skips come from the first `outer` - 1 layers, which are computed as well. A batch of another size is computed in full.
    """
    last = unet.up_blocks[-1]
    if every < 1 or not 1 <= outer <= len(last.resnets):
        raise UsageError(f"deep features are kept for 1 or more steps and beside 1 ... {len(last.resnets)} outer layers, got "
                         f"{every} and {outer}")
    whole, first, skip_width = unet.forward, len(last.resnets) - outer, unet.config.block_channels[0]
    deep, calls = None, 0

    def keep(block, inputs) -> None:
        nonlocal deep
        deep = inputs[0][:, :-skip_width]                                               # (B,C,H,W): without the skip behind it

    def forward(x: Tensor, t: Tensor | float, context: Tensor | None = None, added: dict | None = None,
                control: list[Tensor] | None = None) -> Tensor:
        nonlocal calls
        if control is not None:
            raise UsageError("a ControlNet steers the layers that deep caching leaves out; use one of the two")
        calls += 1
        if (calls - 1) % every == 0 or len(deep) != len(x):
            return whole(x, t, context, added)
        time_emb, skips = unet.embed_time(t, x, added), [unet.conv_in(x)]
        for i in range(outer - 1):
            skips.append(unet.down_blocks[0].layer(i, skips[-1], time_emb, context))    # (B,C,H,W)
        h = deep
        for i in range(first, len(last.resnets)):
            h = last.layer(i, torch.cat([h, skips.pop()], dim=1), time_emb, context)    # (B,C,H,W)
        return unet.conv_out(layers.activated(unet.conv_norm_out, h))                   # (B,out_channels,H,W)

    handle = last.resnets[first].register_forward_pre_hook(keep)
    unet.forward = forward
    try:
        yield
    finally:
        handle.remove()
        del unet.forward
