"""What does not change during a sampling run is computed once.

A run asks the same network about fifty noise levels, always with the same words:

- the keys and values of the words are the same at every level, in each cross-attention;
- what a residual block is told of a level depends on nothing else, so that all levels can be computed together, as one
  product of two matrices instead of fifty products of a matrix and a vector;
- on a CPU the weights of a convolution are put into the order in which its kernel reads them, at every call. Over a small
  feature map that takes as long as the convolution itself: half of the time of Stable Diffusion's lowest levels.

    with memo.remembering([unet], timesteps):
        ...                                  # unet(x, t, context), as often as one likes

Nothing is approximated: answers are those of the same layers. They are found by name and duck, so that a student's attention
is served if it asks `self.to_k(context)`, and left alone if it does something else.
"""

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

LARGE = 2**21                              # weights of a convolution, from which on their order is worth their memory



class Remembered:
    """A function of one tensor. Asked with the very same tensor again, it answers from memory, as long as that tensor lives."""

    def __init__(self, function):
        self.function, self.answers = function, WeakTensorKeyDictionary()

    def __call__(self, x: Tensor) -> Tensor:
        answer = self.answers.get(x)
        if answer is None:
            answer = self.answers[x] = self.function(x)
        return answer


@contextmanager
def remembering(networks: Iterable[nn.Module], timesteps: Tensor | None = None) -> Iterator[None]:
    """Until the block ends `networks` remember: keys and values of every context, and all that depends on `timesteps` alone.

    Args:
        networks: U-Nets and ControlNets whose weights stay as they are.
        timesteps: (S,), the levels to be asked for; any other is computed as ever. None: no level is remembered.
    """
    before = []                                                # (module, name, what was there)

    def replace(module: nn.Module, name: str, function) -> None:
        before.append((module, name, vars(module).get(name)))
        setattr(module, name, function)

    try:
        for network in networks:
            if getattr(network, "_compiled_call_impl", None) is not None:      # torch.compile has its own copy of the code
                continue
            for name, module in network.named_modules():
                if name.endswith(("attn2.to_k", "attn2.to_v")):
                    replace(module, "forward", Remembered(module.forward))
                if can_pack(module):
                    replace(module, "forward", Packed(module))
            # SDXL's time embedding also holds the pooled text
            if timesteps is not None and getattr(network, "add_embedding", 0) is None:
                remember_levels(network, timesteps, replace)
        yield
    finally:
        for module, name, function in reversed(before):
            if function is None:
                delattr(module, name)
            else:
                setattr(module, name, function)


class Packed:
    """A large convolution on a CPU, its weights kept in the order of oneDNN's kernel for inputs of one size."""

    def __init__(self, conv: nn.Conv2d):
        self.conv, self.how = conv, (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.shape = self.weight = None

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():                            # the kernel knows no gradients
            return type(self.conv).forward(self.conv, x)
        if x.shape != self.shape:                              # another size, another order; the last one is kept
            self.shape = x.shape
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.conv.weight.detach(), *self.how, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.conv.bias, *self.how, "none", [], "")


def can_pack(module: nn.Module) -> bool:
    return (type(module) is nn.Conv2d and module.weight.numel() >= LARGE and module.weight.device.type == "cpu"
            and module.weight.dtype == torch.float32 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
            and torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64"))


@torch.no_grad()
def remember_levels(network: nn.Module, timesteps: Tensor, replace) -> None:
    """The time embedding of each level, (1,D), and what each residual block makes of it, (1,C,1,1): one row for all pictures."""
    weight = next(network.parameters())
    levels = timesteps.to(weight.device)                                                # (S,)
    embed = network.embed_time
    table = embed(levels, weight.new_empty(len(levels), 0))                             # (S,D)
    rows = dict(zip(timesteps.tolist(), table.split(1), strict=True))                   # t -> (1,D)

    def embed_time(t: Tensor | float, x: Tensor, added: dict | None = None) -> Tensor:
        row = None if isinstance(t, Tensor) else rows.get(t)
        return embed(t, x, added) if row is None else row

    replace(network, "embed_time", embed_time)
    for block in network.modules():
        if getattr(block, "time_emb_proj", None) is not None and hasattr(block, "time_shift"):
            shift = Remembered(block.time_shift)
            shift.answers.update(zip(rows.values(), block.time_shift(table).split(1), strict=True))     # (1,C,1,1) each
            replace(block, "time_shift", shift)
