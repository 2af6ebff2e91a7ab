"""Stage two: train the denoiser and its text encoder jointly, on latents or on pixels (Rombach et al. 2022, eq. 3)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from course import objectives, pixels
from course.training import loop


class ConditionalDenoiser(nn.Module):
    """U-Net and text encoder as one module with one optimiser; (x_t, t, token ids (B,N)) -> (B,C,H,W)."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(x_t, t, self.text_encoder(ids))


def latent_batches(mean: Tensor, std: Tensor, scale: float, device: str) -> Callable:
    """(chosen, generator) -> z_0 (B,c,h,w): a fresh draw from the cached posterior, at unit variance."""
    mean, std = mean.to(device), std.to(device)

    def draw(chosen: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(chosen), *mean.shape[1:], generator=generator).to(device)
        return scale * (mean[chosen] + std[chosen] * noise)

    return draw


def pixel_batches(images: Tensor, device: str) -> Callable:
    """(chosen, generator) -> x_0 (B,3,H,W) in [-1, 1]."""
    images = images.to(device)
    return lambda chosen, generator: pixels.to_unit(images[chosen])


def train(denoiser: ConditionalDenoiser, batches: Callable, ids: Tensor, null_ids: Tensor, schedule,
          folder: str | Path, budget: loop.Budget, config: loop.LoopConfig, predict: str = "eps",
          condition_dropout: float = 0.1, device: str = "cpu", precision: str = "fp32", **how) -> dict:
    """Train `denoiser` in place; returns what `loop.fit` does.

    Args:
        batches: `latent_batches` or `pixel_batches`: what is diffused.
        ids: (n,K,N) token ids, K captions for each of the n samples; one of them is drawn each time.
        null_ids: (N,), the tokens of "", which take the caption's place with probability `condition_dropout`, so
            that one network learns both halves of classifier-free guidance.
    """
    ids, null_ids = ids.to(device), null_ids.to(device)
    n, K, B = len(ids), ids.shape[1], config.batch_size

    def loss_of_batch(model, generator):
        chosen = torch.randint(n, (B,), generator=generator).to(device)
        which = torch.randint(K, (B,), generator=generator).to(device)
        dropped = (torch.rand(B, generator=generator) < condition_dropout).to(device)
        captions = torch.where(dropped[:, None], null_ids, ids[chosen, which])          # (B,N)
        x0 = batches(chosen, generator)                                                 # (B,C,H,W)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            return objectives.diffusion_loss(model, schedule, x0, captions, predict, generator)

    return loop.fit(denoiser, loss_of_batch, config, budget, folder, **how)
