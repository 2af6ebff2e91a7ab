"""ControlNet: a picture of edges, depth or pose steers a trained U-Net that is never touched (Zhang et al. 2023).

A trainable copy of the U-Net's way down reads the noisy latent plus the hint, and what it finds is added to the
U-Net's skips and middle. Every path from the copy to the U-Net starts as a convolution of zeros, so training starts from
the U-Net as it was: nothing is harmed before the copy has learned to help (their section 3.1; the article's 8.1).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import unet
from course.errors import ShapeError, UsageError


@dataclass(frozen=True)
class ControlNetConfig:
    """The U-Net to be steered, and the widths of the small network that shrinks the hint by 2 for each step in width."""

    unet: "unet.UNetConfig" = unet.UNetConfig()
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)         # 512 x 512 pixels -> 64 x 64, the size of the latent


@dataclass(frozen=True)
class Control:
    """A ControlNet in use: which network, what it is shown, how strongly, and on which part of the way from noise to picture.

    hint: (1,3,H,W) or (B,3,H,W) in [0, 1].  start, end: shares of the steps, 0 ... 1.  guess: see ControlNet.
    """

    network: "ControlNet"
    hint: Tensor
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False

    def __post_init__(self):
        if self.hint.ndim != 4 or self.hint.shape[1] != 3 or not (self.hint.min() >= 0 and self.hint.max() <= 1):
            raise ShapeError(f"a control picture must be (B,3,H,W) with values in [0, 1], got {tuple(self.hint.shape)} with "
                             f"{self.hint.min():g} ... {self.hint.max():g}")
        if not 0 <= self.start <= self.end <= 1:
            raise UsageError(f"a control's start and end must be shares of the steps, 0 ... 1, got {self.start} and {self.end}")
        if not math.isfinite(self.weight):
            raise UsageError(f"a control's weight must be a finite number, got {self.weight}")


def checked(control, count: int, height: int, width: int) -> list[Control]:
    """One control or several, as a list. Raises ShapeError for a picture that does not fit `count` pictures of that size."""
    controls = list(control) if isinstance(control, list | tuple) else [control]
    for c in controls:
        if len(c.hint) not in (1, count) or c.hint.shape[2:] != (height, width):
            raise ShapeError(f"expected a control picture (1,3,{height},{width}), or {count} of them, as large as what is to "
                             f"be drawn, got {tuple(c.hint.shape)}")
    return controls


def residuals(controls: list[Control], begin: float, end: float, x: Tensor, t, context: Tensor, count: int,
              added: dict | None = None) -> list[Tensor] | None:
    """What all controls add to the U-Net's skips and middle in the step from `begin` to `end`, shares of the way; or None.

    x: (B,...) or, with guidance, (2B,...) of which the first half has no prompt; B is `count`. In guess mode that half is left
    alone: the control is then part of what guidance goes towards.
    """
    total = None
    for c in controls:
        if begin < c.start or end > c.end:
            continue
        hint = c.hint.to(x).expand(count, -1, -1, -1).repeat(len(x) // count, 1, 1, 1)                 # (B,3,H,W)
        found = c.network(x, t, context, hint, c.weight, added, c.guess)
        if c.guess and len(x) > count:
            told = (torch.arange(len(x), device=x.device) >= count).reshape(-1, 1, 1, 1)
            found = [r * told for r in found]
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    return total


class ControlNet(unet.Trunk):
    """forward(x, t, context, hint, scale=1.0, added=None) -> residuals, the `control` of unet.UNet.forward

    Args:
        x, t, context, added: what the U-Net gets.
        hint: (B,3,H,W) in [0, 1] (not [-1, 1]: the one picture here with that range), at the size of the pictures.
        scale: how strongly to steer; 0 leaves the U-Net alone.
        guess: without a prompt to lean on, steer coarsely: residuals of fine levels count a tenth, the middle fully.
    """

    def __init__(self, config: ControlNetConfig):
        super().__init__(config.unet)
        self.hint_channels = config.hint_channels
        widths = config.unet.block_channels
        self.controlnet_cond_embedding = HintNet(config.hint_channels, widths[0])
        self.controlnet_down_blocks = nn.ModuleList([zero(nn.Conv2d(n, n, 1)) for n in unet.skip_channels(config.unet)])
        self.controlnet_mid_block = zero(nn.Conv2d(widths[-1], widths[-1], 1))

    @classmethod
    def from_unet(cls, source, hint_channels: tuple[int, ...] = (16, 32, 96, 256)) -> "ControlNet":
        """A ControlNet for `source` (a unet.UNet), its trunk copied from there."""
        net = cls(ControlNetConfig(source.config, hint_channels)).to(next(source.parameters()))
        own = net.state_dict()
        net.load_state_dict({name: tensor for name, tensor in source.state_dict().items() if name in own}, strict=False)
        return net

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor | None, hint: Tensor, scale: float = 1.0,
                added: dict | None = None, guess: bool = False) -> list[Tensor]:
        self.check(x, context)
        h = self.conv_in(x) + self._embed_hint(hint, x)                                 # (B,C,H/f,W/f)
        h, skips = self.go_down(h, self.embed_time(t, x, added), context)
        out = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        out.append(self.controlnet_mid_block(h))
        scales = torch.logspace(-1, 0, len(out)).tolist() if guess else [1.0] * len(out)
        return [scale * s * residual for s, residual in zip(scales, out, strict=True)]  # as `control` wants them

    def _embed_hint(self, hint: Tensor, x: Tensor) -> Tensor:
        factor = 2 ** (len(self.hint_channels) - 1)
        if hint.ndim != 4 or hint.shape[1] != 3 or hint.shape[2:] != (x.shape[2] * factor, x.shape[3] * factor):
            raise ShapeError(f"expected a hint of shape (B,3,{x.shape[2] * factor},{x.shape[3] * factor}) in [0, 1], "
                             f"got {tuple(hint.shape)}")
        return self.controlnet_cond_embedding(hint.to(x))


class HintNet(nn.Module):
    """The hint at the size of the latent, by strided convolutions; (B,3,H,W) -> (B,out_channels,H/f,W/f)."""

    def __init__(self, channels: tuple[int, ...], out_channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for a, b in zip(channels, channels[1:], strict=False):
            self.blocks += [nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1, stride=2)]
        self.conv_out = zero(nn.Conv2d(channels[-1], out_channels, 3, padding=1))

    def forward(self, hint: Tensor) -> Tensor:
        h = F.silu(self.conv_in(hint))                                                  # (B,16,H,W)
        for block in self.blocks:
            h = F.silu(block(h))                                                        # (B,c,H/2,W/2) every other time
        return self.conv_out(h)                                                         # (B,C,H/f,W/f)


def zero(module: nn.Module) -> nn.Module:
    """The same module, all weights zero."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module
