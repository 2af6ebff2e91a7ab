"""The course's own answers: out of reach of `parts.swapped`, which may be in force. Only the encoder is built from the
library's levels, which are no exercise of this chapter."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import vae


class Downsample(nn.Module):
    def __init__(self, channels: int, asymmetric: bool = False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        widths = config.block_channels
        self.stem = nn.PixelUnshuffle(config.stem)
        self.conv_in = nn.Conv2d(config.in_channels * config.stem**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([
            vae.Level(widths[max(i - 1, 0)], width, config.layers_per_block, down=i < len(widths) - 1,
                      with_attention=config.has_attention(i)) for i, width in enumerate(widths)])
        self.mid_block = vae.Middle(widths[-1], config.mid_attention)
        self.conv_norm_out = nn.GroupNorm(min(32, widths[-1] // 4), widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.encoder_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(self.stem(x))
        for level in self.down_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))


def gradient_estimates(f, mean: Tensor, std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = (mean + std * noise).detach().requires_grad_()                              # (N,d)
        value = f(z)                                                                    # (N,)
        pathwise, = torch.autograd.grad(value.sum(), z)
    return pathwise, value.detach()[:, None] * noise / std


def monte_carlo_kl(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    z = mean + torch.exp(0.5 * logvar) * noise                                          # (S,B,c,h,w)
    log_q = -0.5 * (noise.square() + logvar + math.log(2 * math.pi))
    log_p = -0.5 * (z.square() + math.log(2 * math.pi))
    return (log_q - log_p).flatten(2).sum(2).mean(0)


class DiagonalGaussian:
    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30, 20)

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        return kl(self.mean, self.logvar)


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)          # (B,)


def vae_loss(x: Tensor, rebuilt: Tensor, mean: Tensor, logvar: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    distortion = (rebuilt - x).square().flatten(1).sum(1).mean()
    rate = kl(mean, logvar).mean()
    return distortion + beta * rate, distortion, rate


def active_units(means: Tensor, threshold: float = 0.01) -> tuple[int, Tensor]:
    variance = means.var(dim=0)                                                         # (c,h,w)
    return int((variance > threshold).sum()), variance


def scaling_factor(batches) -> float:
    count, total, squares = 0, 0.0, 0.0
    for z in batches:
        z = z.double()
        count, total, squares = count + z.numel(), total + float(z.sum()), squares + float(z.square().sum())
    return (squares / count - (total / count) ** 2) ** -0.5
