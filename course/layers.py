"""The convolutional half of the U-Net: what time it is, a residual block, and the two changes of scale."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.errors import ShapeError


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    """Noise level t as `dim` numbers: cosines, then sines, of t at geometrically falling frequencies; (B,) -> (B,dim).

    The order [cos, sin] and the division by dim/2 are Stable Diffusion's; DDPM's own code has [sin, cos] and dim/2 - 1.
    A fractional t is welcome. Raises ShapeError for an odd `dim`.
    """
    if dim % 2:
        raise ShapeError(f"the timestep embedding needs an even dim, half cosines and half sines, got {dim}")
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)   # (dim/2,)
    angles = t.float()[:, None] * frequencies                                           # (B,dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)                              # (B,dim)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm with 32 groups, as in every released model, but no group smaller than four channels.

    A group's own mean is taken away, so a group of one or two channels could not say how bright an even surface is.
    """
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def activated(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU(norm(x)); (B,C,H,W) -> same. While sampling nobody needs norm(x) again, so it is overwritten.

    On a CPU a new large tensor costs more than what is written into it: pages have to be found and cleared first.
    """
    h = norm(x)
    return F.silu(h, inplace=not h.requires_grad and h is not x)      # a norm that does nothing hands x itself back


class TimestepEmbedding(nn.Module):
    """Two linear layers that turn the fixed waves into learned features; (B,in_dim) -> (B,out_dim)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, out_dim)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, waves: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))                              # (B,out_dim)


class ResBlock(nn.Module):
    """Norm, SiLU, conv, twice, plus the input; the time embedding is added in between (the article's section 5.3).

    Args:
        in_channels, out_channels: where they differ, a 1x1 convolution carries the input across.
        time_emb_dim: width of the time embedding; None for the autoencoder, which has no notion of time.
        eps: of both norms. The U-Net has 1e-5, the autoencoder 1e-6.

    (B,in_channels,H,W), (B,time_emb_dim) -> (B,out_channels,H,W)
    """

    def __init__(self, in_channels: int, out_channels: int, time_emb_dim: int | None = None, eps: float = 1e-5):
        super().__init__()
        self.norm1 = group_norm(in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_emb_dim, out_channels) if time_emb_dim else None
        self.norm2 = group_norm(out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        nn.init.zeros_(self.conv2.weight)     # a block starts by doing nothing: deep stacks then train from the first step
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        h = self.conv1(activated(self.norm1, x))                                        # (B,out,H,W)
        if self.time_emb_proj is not None:
            h += self.time_shift(time_emb)                     # in place: no gradient needs what a convolution answered
        h = self.conv2(activated(self.norm2, h))                                        # (B,out,H,W)
        h += x if self.conv_shortcut is None else self.conv_shortcut(x)
        return h

    def time_shift(self, time_emb: Tensor) -> Tensor:
        """(B,time_emb_dim) -> (B,out_channels,1,1): one number a channel, the same at every place."""
        return self.time_emb_proj(F.silu(time_emb))[:, :, None, None]


class Downsample(nn.Module):
    """Halve H and W by a strided convolution; (B,C,H,W) -> (B,C,H/2,W/2).

    The U-Net pads by one on every side. The autoencoder pads on the right and at the bottom only (`asymmetric`), an
    accident of history that every released file depends on.
    """

    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.asymmetric:
            x = F.pad(x, (0, 1, 0, 1))                                                  # (B,C,H+1,W+1)
        return self.conv(x)                                                             # (B,C,H/2,W/2)


class Upsample(nn.Module):
    """Double H and W: repeat each value, then smooth by a convolution; (B,C,H,W) -> (B,C,2H,2W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")                          # (B,C,2H,2W)
        return self.conv(x)
