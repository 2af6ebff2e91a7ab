"""Train a small CLIP: which caption belongs to which picture? Its text half can then tell a denoiser what to draw.

    L = - mean_i log softmax_j(s u_i . v_j)[i], both ways        Radford et al. 2021, figure 3

u_i is a picture's direction, v_j a caption's, s a learned sharpness. Captions of other pictures are easy to tell apart, so
each picture also gets captions that differ from its own in a single word: those are what makes it look closely.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import layers, pixels
from course.training import loop


class ImageEncoder(nn.Module):
    """(B,3,H,W) in [-1,1] -> (B,D): residual blocks that halve the picture four times, then one layer over what is left.

    What is left is averaged to a grid of 4 x 4, not to a point: a mean over all places could not tell left from right.
    """

    def __init__(self, dim: int, channels: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, 2, 1)
        widths = [channels[0], *channels]
        self.blocks = nn.ModuleList(layers.ResBlock(a, b, None) for a, b in zip(widths, channels, strict=False))
        self.downs = nn.ModuleList(layers.Downsample(c) for c in channels[:-1])
        self.norm = layers.group_norm(channels[-1], 1e-6)
        self.out = nn.Linear(16 * channels[-1], dim)

    def stages(self, x: Tensor) -> list[Tensor]:
        """What each block makes of the picture: [(B,C_l,H/2^l,W/2^l), ...], l = 1 ... 4."""
        h, found = self.conv_in(x), []                                                  # (B,C,H/2,W/2)
        for i, block in enumerate(self.blocks):
            h = block(h, None)
            found.append(h)
            if i < len(self.downs):
                h = self.downs[i](h)
        return found

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(self.stages(x)[-1]))                                       # (B,C,H/16,W/16)
        return self.out(F.adaptive_avg_pool2d(h, 4).flatten(1))                         # (B,D)


class CLIP(nn.Module):
    """forward(images (B,3,H,W), ids (B,1+K,N)) -> loss; the first of the captions is the picture's own, K are near misses."""

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module):
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.log_scale = nn.Parameter(torch.tensor(2.659))     # s starts at 1 / 0.07

    def directions(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of pictures (B,D) and of captions (M,D)."""
        return F.normalize(self.image_encoder(images), dim=-1), F.normalize(self.text_encoder.pooled(ids), dim=-1)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, share of pictures whose own caption is the nearest of all)."""
        B = len(images)
        u, v = self.directions(images, ids.flatten(0, 1))                               # (B,D), (B(1+K),D)
        scores = self.log_scale.exp().clamp(max=100) * u @ v.T                          # (B,B(1+K))
        own = torch.arange(B, device=scores.device) * ids.shape[1]
        from_text = scores[:, own].T                                                    # (B,B): captions look for pictures
        loss = (F.cross_entropy(scores, own) + F.cross_entropy(from_text, torch.arange(B, device=own.device))) / 2
        return loss, (scores.argmax(1) == own).float().mean()


def train(clip: CLIP, images: Tensor, captions: Callable, folder: str | Path, budget: loop.Budget, config: loop.LoopConfig,
          **how) -> dict:
    """Train in place; captions(chosen, step) -> ids (B,1+K,N), the right caption first. Returns what `loop.fit` does.

    Each process contrasts only its own rows, so here, and only here, more processes are not the same as one.
    """
    def loss_of_batch(model, step):
        chosen = step.integers(len(images))
        own = next(model.parameters())
        x = pixels.to_unit(images[chosen].to(own.device)).to(own.dtype)                 # (B,3,H,W)
        loss, right = model(x, captions(chosen, step).to(own.device))
        step.figures = {"right": float(right.detach())}
        return loss

    return loop.fit(clip, loss_of_batch, config, budget, folder, **how)
