"""SDXL's training: the network is told how large the original was and what was cut off (Podell et al. 2023, section 2.2).

Small originals are enlarged, and blurred by it; batches need one shape, so pictures are cropped. Thrown away, four in ten of
SDXL's pictures would be missing; kept in silence, the model learns to draw blurred and beheaded things. Told, it learns what
the numbers mean, and can be asked for a large original of which nothing is cut off.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import objectives, pixels, sdxl
from course.errors import UsageError
from course.training import diffusion, loop

ORIGINALS, ZOOM = (16, 24, 32, 48), 1.5  # sides of small originals; a picture to be cropped is enlarged so much
GOOD, BAD = 6.0, 2.5                     # aesthetic scores: what the pipeline asks the refiner for, and keeps away from


@dataclass(frozen=True)
class XLLoss(diffusion.DiffusionLoss):
    """How the pictures are spoilt, and what the network is told of it."""

    predict: str = "v"
    draw_latents: bool = False
    small: float = 0.4                     # share of small originals
    cropped: float = 0.4                   # share of cropped pictures
    told: bool = True                      # False: of none of it, to see what the telling is worth
    refine_below: float | None = None      # a refiner: only t / T below this, no crops, and scores in place of targets

    def __post_init__(self):
        if not 0 <= self.small <= 1 or not 0 <= self.cropped <= 1 or not 0 < (self.refine_below or 1) <= 1:
            raise UsageError(f"small, cropped and refine_below must lie in 0 ... 1, got {self.small}, {self.cropped} and "
                             f"{self.refine_below}")


class XLDenoiser(nn.Module):
    """U-Net and text encoders as one module; (x_t, t, told) -> (B,C,H,W).

    told: {"ids": (B,N) for each encoder in a list, "time_ids": (B,6) or (B,5), "dropped": (B,) bool: no prompt, zeros}.
    """

    def __init__(self, unet: nn.Module, encoders: list[nn.Module], frozen: bool = False):
        super().__init__()
        self.unet, self.frozen = unet, encoders if frozen else None
        self.learned = nn.ModuleList([] if frozen else encoders)

    def forward(self, x_t: Tensor, t: Tensor, told: dict) -> Tensor:
        condition = sdxl.encode(self.frozen or list(self.learned), told["ids"])
        kept = (~told["dropped"]).to(x_t)                                               # (B,)
        context = condition["context"] * kept[:, None, None]                            # (B,N,D)
        added = {"text_embeds": condition["text_embeds"] * kept[:, None], "time_ids": told["time_ids"]}
        return self.unet(x_t, t, context, added)


def spoilt(images: Tensor, loss: XLLoss, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures (n,3,S,S) uint8 as a collection would have them, and SDXL's six numbers for each: (n,3,S,S) uint8, (n,6)."""
    n, side = len(images), images.shape[-1]
    draw = torch.Generator().manual_seed(seed)
    is_small, is_cropped = torch.rand(n, generator=draw) < loss.small, torch.rand(n, generator=draw) < loss.cropped
    which = torch.randint(len(ORIGINALS), (n,), generator=draw)
    wide = round(ZOOM * side)
    corner = torch.randint(wide - side + 1, (n, 2), generator=draw)                     # top, left
    original = torch.where(is_small, torch.tensor(ORIGINALS)[which], side)              # (n,)
    corner = torch.where(is_cropped[:, None], corner, 0)
    out = images.clone()
    for i in torch.nonzero(is_small | is_cropped).flatten().tolist():
        shown = enlarged(shrunk(images[i: i + 1], int(original[i])), wide if is_cropped[i] else side)
        top, left = corner[i].tolist()
        out[i] = shown[0, :, top: top + side, left: left + side]
    numbers = torch.cat([original[:, None].expand(n, 2), corner, torch.full((n, 2), side)], dim=1)
    return out, numbers.float()


def shrunk(images: Tensor, side: int) -> Tensor:
    """uint8 pictures as a camera of side x side pixels would have taken them."""
    return images if images.shape[-1] == side else pixels.to_bytes(F.interpolate(pixels.to_unit(images), size=side, mode="area"))


def enlarged(images: Tensor, side: int) -> Tensor:
    return images if images.shape[-1] == side else pixels.to_bytes(
        F.interpolate(pixels.to_unit(images), size=side, mode="bicubic", align_corners=False).clamp(-1, 1))


def train(denoiser: XLDenoiser, batches: Callable, ids: list[Tensor], numbers: Tensor, schedule, folder: str | Path,
          budget: loop.Budget, config: loop.LoopConfig, loss: XLLoss, **how) -> dict:
    """Train `denoiser` in place; returns what `loop.fit` does.

    Args:
        batches: see diffusion.latent_batches.  ids: (n,K,N) for each text encoder.
        numbers: (n,6), or for a refiner (n,5): what `time_ids` says of each picture.
    """
    n, K = ids[0].shape[:2]
    numbers = numbers if loss.told else numbers[:1].expand_as(numbers)

    def loss_of_batch(model, step):
        chosen, which, dropped = step.integers(n), step.integers(K), step.uniform() < loss.condition_dropout
        own = next(model.parameters())
        x0 = batches(chosen, step).to(own.device, own.dtype)                            # (B,C,h,w)
        told = {"ids": [i[chosen, which].to(own.device) for i in ids], "time_ids": numbers[chosen].to(own.device),
                "dropped": dropped.to(own.device)}
        share = step.stratified() if loss.t_mean is None else objectives.logit_normal(step.stratified(), loss.t_mean)
        t, noise = (schedule.num_steps * (loss.refine_below or 1.0) * share).long(), step.normal(*x0.shape[1:])
        return objectives.diffusion_loss(model, schedule, x0, told, loss.predict, t=t, noise=noise)

    return loop.fit(denoiser, loss_of_batch, config, budget, folder, **how)
