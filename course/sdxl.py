"""SDXL's way of being told what to draw: two text encoders, a pooled vector, and the sizes (Podell et al. 2023, section 2).

    context  = [CLIP-L's last layer but one, OpenCLIP-bigG's last layer but one]     (B,N,768 + 1280), for cross-attention
    added    = bigG's pooled vector, and six numbers                                 for the time embedding

The refiner, a second U-Net for the last fifth of the way, reads the second encoder alone, and a mark for beauty instead of
the target's size.

The six numbers are the picture's original height and width, its crop (top, left), and the target's height and width.
Trained on small and on cropped pictures with the truth about them, the model can be asked for large and uncropped ones.
"""

import torch
from torch import Tensor

from course.errors import UsageError


def encode(encoders: list, ids: list[Tensor]) -> dict[str, Tensor]:
    """{"context" (B,N,D), "text_embeds" (B,P)}: contexts side by side, and the pooled vector of the last encoder.

    Args:
        encoders: text.TextEncoders; SDXL has two, its refiner the second alone.  ids: (B,N) for each of them.
    """
    if len(encoders) != len(ids):
        raise UsageError(f"one batch of ids for each of the {len(encoders)} text encoders expected, got {len(ids)}")
    context = torch.cat([encoder(i) for encoder, i in zip(encoders, ids, strict=True)], dim=-1)      # (B,N,D1+D2)
    return {"context": context, "text_embeds": encoders[-1].pooled(ids[-1])}


def nothing(like: dict[str, Tensor]) -> dict[str, Tensor]:
    """What stands for "no prompt": zeros, since SDXL was trained with the text's vectors dropped, not with an empty text."""
    return {name: torch.zeros_like(value) for name, value in like.items()}


def refined(base, refiner, prompt, share: float = 0.8, **how) -> Tensor:
    """x_0 (B,C,h,w) at the scale that is diffused: `base` walks the first `share` of the way, `refiner` the rest.

    The refiner was trained on low noise alone, where only details are still open (their section 2.5). Both are
    pipeline.StableDiffusion of one autoencoder; `how`: what `generate` takes.
    """
    if not 0 < share < 1:
        raise UsageError(f"the refiner takes over at a share of the way between 0 and 1, got {share}")
    return refiner.latents(prompt, part=(share, 1.0), begin=base.latents(prompt, part=(0.0, share), **how), **how)


def added(condition: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """What of a condition goes to the time embedding, see unet.UNet; None where there is nothing of the kind."""
    return {name: condition[name] for name in ("text_embeds", "time_ids") if name in condition} or None


def time_ids(height: int, width: int, original: tuple[int, int] | None = None, crop: tuple[int, int] = (0, 0),
             target: tuple[int, int] | None = None, aesthetic_score: float | None = None) -> Tensor:
    """The numbers above in pixels, (1,6); for the refiner, with an aesthetic score in place of the target, (1,5)."""
    if len(crop) != 2 or min(*crop, *(original or (1,)), *(target or (1,))) < 0:
        raise UsageError(f"sizes and crops are pairs of pixels, not negative, got {original}, {crop} and {target}")
    original, target = original or (height, width), target or (height, width)
    last = target if aesthetic_score is None else (aesthetic_score,)
    return torch.tensor([[*original, *crop, *last]], dtype=torch.float32)
