"""The course's own answers, and a small trunk to try them on: out of reach of `parts.swapped`, which may be in force."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_gradients(x: Tensor, weight: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pixels, slopes = x.flatten(2), upstream.flatten(2)                                  # (B,in,HW), (B,out,HW)
    d_weight = torch.einsum("bon,bin->oi", slopes, pixels)
    d_x = torch.einsum("oi,bon->bin", weight, slopes).reshape(x.shape)
    return d_weight, slopes.sum((0, 2)), d_x


class HintNet(nn.Module):
    def __init__(self, channels: tuple[int, ...] = (16, 32, 96, 256), out_channels: int = 320):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for a, b in zip(channels, channels[1:], strict=False):
            self.blocks += [nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1, stride=2)]
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, hint: Tensor) -> Tensor:
        h = F.silu(self.conv_in(hint))                                                  # (B,c,H,W)
        for block in self.blocks:
            h = F.silu(block(h))                                                        # (B,c,H/2,W/2) every other time
        return self.conv_out(h)                                                         # (B,C,H/f,W/f)


@torch.no_grad()
def copy_trunk(network: nn.Module, source: nn.Module) -> list[str]:
    own, theirs = network.state_dict(), source.state_dict()
    for name in own.keys() & theirs.keys():
        own[name].copy_(theirs[name])
    return [name for name in own if name not in theirs]


def control_forward(net: nn.Module, x: Tensor, t, context: Tensor | None, hint: Tensor, scale: float = 1.0) -> list[Tensor]:
    h = net.conv_in(x) + net.controlnet_cond_embedding(hint)
    middle, skips = net.go_down(h, net.embed_time(t, x), context)
    found = [conv(skip) for conv, skip in zip(net.controlnet_down_blocks, skips, strict=True)]
    return [scale * residual for residual in [*found, net.controlnet_mid_block(middle)]]


def add_control(skips: list[Tensor], middle: Tensor, controls: list[list[Tensor]], weights: list[float]):
    skips = list(skips)
    for (*on_skips, on_middle), weight in zip(controls, weights, strict=True):
        skips = [s + weight * r for s, r in zip(skips, on_skips, strict=True)]
        middle = middle + weight * on_middle
    return skips, middle


def training_step(network, unet, optimizer, z0: Tensor, context: Tensor, hint: Tensor, schedule, generator=None,
                  max_norm: float = 1.0) -> float:
    t = torch.randint(schedule.num_steps, (len(z0),), generator=generator).to(z0.device)           # (B,)
    noise = torch.randn(z0.shape, generator=generator).to(z0)                           # (B,C,h,w)
    z_t = schedule.add_noise(z0, noise, t)
    prediction = unet(z_t, t, context, control=network(z_t, t, context, hint))          # (B,C,h,w)
    loss = F.mse_loss(prediction, schedule.to_v(z0, noise, t))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    optimizer.step()
    return loss.item()


def f_score(found: Tensor, wanted: Tensor, tolerance: int = 1) -> Tensor:
    def share(mask: Tensor, other: Tensor) -> Tensor:
        wide = F.max_pool2d(other[:, None].float(), 2 * tolerance + 1, stride=1, padding=tolerance)[:, 0] > 0
        return (mask & wide).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)

    precision, recall = share(found, wanted), share(wanted, found)                      # (B,), (B,)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)


class SmallControl(nn.Module):
    """The attributes of `controlnet.ControlNet` that its forward needs, with two skips; random weights everywhere."""

    def __init__(self, seed: int = 0, channels: int = 4, width: int = 6):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.controlnet_cond_embedding = nn.Conv2d(3, width, 4, stride=4)
        self.down = nn.Conv2d(width, width + 2, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(width + 2, width + 2, 3, padding=1)
        self.from_time, self.from_text = nn.Linear(1, width + 2), nn.Linear(5, width + 2)
        self.controlnet_down_blocks = nn.ModuleList([nn.Conv2d(width, width, 1), nn.Conv2d(width + 2, width + 2, 1)])
        self.controlnet_mid_block = nn.Conv2d(width + 2, width + 2, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / max(p[0].numel(), 4) ** 0.5)

    def embed_time(self, t, x: Tensor, added=None) -> Tensor:
        return self.from_time(torch.as_tensor(t, dtype=x.dtype).expand(len(x))[:, None] / 1000)    # (B,D)

    def go_down(self, h: Tensor, time_emb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        told = (time_emb + self.from_text(context).mean(1))[:, :, None, None]           # (B,D,1,1)
        low = torch.tanh(self.down(h) + told)                                           # (B,D,H/2,W/2)
        return torch.tanh(self.mid(low)), [h, low]
