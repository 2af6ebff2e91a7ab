"""The course's own answers, and a small U-Net to try them on: out of reach of `parts.swapped`, which may be in force."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)   # (dim/2,)
    angles = t.float()[:, None] * frequencies                                           # (B,dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def normalise_groups(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    B, C, H, W = x.shape
    grouped = x.reshape(B, groups, -1)                                                  # (B,G,C/G*H*W)
    mean = grouped.mean(-1, keepdim=True)
    var = grouped.var(-1, keepdim=True, unbiased=False)
    normal = ((grouped - mean) / (var + eps).sqrt()).reshape(B, C, H, W)
    return normal * weight.reshape(1, C, 1, 1) + bias.reshape(1, C, 1, 1)


class ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_emb_dim: int | None = None, eps: float = 1e-5):
        super().__init__()
        self.norm1 = nn.GroupNorm(min(32, in_channels // 4), in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_emb_dim, out_channels) if time_emb_dim else None
        self.norm2 = nn.GroupNorm(min(32, out_channels // 4), out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(F.silu(time_emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def up_inputs(widths: tuple[int, ...], layers_per_block: int) -> list[list[int]]:
    skips = [widths[0]]
    for i, width in enumerate(widths):
        skips += [width] * (layers_per_block + (i < len(widths) - 1))
    found, current = [], widths[-1]
    for width in reversed(widths):
        found.append([])
        for _ in range(layers_per_block + 1):
            found[-1].append(current + skips.pop())
            current = width
    return found


def unet_forward(net: nn.Module, x: Tensor, time_emb: Tensor) -> Tensor:
    h = net.conv_in(x)
    skips = [h]
    for level in net.down_blocks:
        for resnet in level.resnets:
            h = resnet(h, time_emb)
            skips.append(h)
        if level.downsamplers is not None:
            h = level.downsamplers[0](h)
            skips.append(h)
    for resnet in net.mid_block.resnets:
        h = resnet(h, time_emb)
    for level in net.up_blocks:
        for resnet in level.resnets:
            h = resnet(torch.cat([h, skips.pop()], dim=1), time_emb)
        if level.upsamplers is not None:
            h = level.upsamplers[0](h)
    return net.conv_out(F.silu(net.conv_norm_out(h)))


def simple_loss(model, x0: Tensor, alphas_cumprod: Tensor, generator: torch.Generator | None = None) -> Tensor:
    t = torch.randint(0, len(alphas_cumprod), (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt().to(x0) * x0 + (1 - alpha_bar).sqrt().to(x0) * noise
    return F.mse_loss(model(x_t, t.to(x0.device)), noise)


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, step: int, decay: float = 0.999) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for name, parameter in model.named_parameters():
        average[name].lerp_(parameter, 1 - decay)


# ---- a U-Net with the attributes of `unet.UNet`, small enough to run in a check

class _Down(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Up(_Down):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    def __init__(self, inputs, width: int, dim: int, down: bool = False, up: bool = False):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(n, width, dim) for n in inputs])
        self.downsamplers = nn.ModuleList([_Down(width)]) if down else None
        self.upsamplers = nn.ModuleList([_Up(width)]) if up else None


class SmallUNet(nn.Module):
    """Random weights everywhere, so that every connection shows in the output. It has no `forward`: that is the exercise."""

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (8, 16), layers: int = 1, dim: int = 8, seed: int = 0):
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([
            _Level([widths[max(i - 1, 0)]] + [w] * (layers - 1), w, dim, down=i < last) for i, w in enumerate(widths)])
        self.mid_block = _Level([widths[-1]] * 2, widths[-1], dim)
        self.up_blocks = nn.ModuleList([
            _Level(inputs, widths[last - k], dim, up=k < last) for k, inputs in enumerate(up_inputs(widths, layers))])
        self.conv_norm_out = nn.GroupNorm(min(32, widths[0] // 4), widths[0])
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)
        randomise(self, seed)


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn anew, norms near 1, so that nothing is hidden by a zero or by an even start."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else noise / max(p[0].numel(), 4) ** 0.5)
    return module
