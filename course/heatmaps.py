"""Where the picture looks at a word: cross-attention as heat maps (Hertz et al. 2022; Tang et al. 2023, section 3).

In every cross-attention each place of the picture spreads one unit of attention over the tokens of the prompt:

    A = softmax(Q K^T / sqrt(d))      (N places, M tokens), rows sum to 1

The column of a token is a map over the picture. It is noisy in one head, one layer or one step, and plain in the average
over all of them. PyTorch's fused kernel never stores A; so Q and K are caught on their way, and A is computed once more.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from course.errors import UsageError


class Maps:
    """The attention of the last `pictures` of each batch (guidance puts those with the prompt last), summed over steps."""

    def __init__(self, pictures: int):
        self.pictures = pictures
        self.total, self.steps = {}, {}                        # by layer: (B,N,M), and how many were added

    def add(self, layer: str, q: Tensor, k: Tensor, heads: int) -> None:
        """q (B,N,hd), k (B,M,hd) of one call of one layer."""
        q, k = (rearrange(a[-self.pictures:].float(), "B N (h d) -> B h N d", h=heads) for a in (q, k))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)       # (B,h,N,M)
        self.total[layer] = self.total.get(layer, 0) + weights.mean(1)                  # (B,N,M)
        self.steps[layer] = self.steps.get(layer, 0) + 1

    def of(self, places: list[list[int]], height: int, width: int) -> Tensor:
        """Heat maps (B,K,height,width) of K words, each at some places among the tokens; over all tokens they sum to 1."""
        if not self.total:
            raise UsageError("no cross-attention was seen: this model reads no text, or its layers have no `attn2.to_q`")
        mean = 0
        for layer, total in self.total.items():
            rows = round((total.shape[1] * height / width) ** 0.5)                      # N = rows * columns, of one shape
            grid = rearrange(total / self.steps[layer], "B (H W) M -> B M H W", H=rows)
            words = torch.stack([grid[:, at].mean(1) for at in places], 1)              # (B,K,rows,columns)
            mean = mean + F.interpolate(words, (height, width), mode="bilinear") / len(self.total)
        return mean


@contextmanager
def recorded(unet, pictures: int) -> Iterator[Maps]:
    """Watch the cross-attentions of `unet`, found by their names, until the block ends."""
    maps, seen, handles = Maps(pictures), {}, []
    for name, module in unet.named_modules():
        layer, _, which = name.rpartition(".")
        if not layer.endswith("attn2") or which not in ("to_q", "to_k"):
            continue

        def catch(module, inputs, output, layer=layer, which=which):
            seen[layer, which] = output                                                 # (B,N,hd) or (B,M,hd)
            if (layer, "to_q") in seen and (layer, "to_k") in seen:
                maps.add(layer, seen.pop((layer, "to_q")), seen.pop((layer, "to_k")), heads_of(layer, unet.config))

        handles.append(module.register_forward_hook(catch))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def heads_of(layer: str, config) -> int:
    """The heads of a layer, from its name: `up_blocks` counts the levels from the lowest one."""
    way, i = layer.split(".")[:2]
    return config.heads[{"down_blocks": lambda: int(i), "up_blocks": lambda: -1 - int(i)}.get(way, lambda: -1)()]


def places_of(tokens, prompt: str, words: str) -> list[int]:
    """The places in the token sequence at which `words` stand in `prompt`, wherever they do. Raises UsageError for nowhere."""
    said, wanted = tokens.encode(prompt)[: tokens.length - 2], tokens.encode(words)
    starts = [i for i in range(len(said) - len(wanted) + 1) if wanted and said[i: i + len(wanted)] == wanted]
    if not starts:
        raise UsageError(f"{words!r} is not in what the model reads of the prompt: {tokens.decode(said)!r}")
    return [1 + i + k for i in starts for k in range(len(wanted))]                      # START comes first
