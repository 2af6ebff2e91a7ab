"""Classifier-free guidance: ask the network twice, with the text and without, and go further in the difference.

    eps = eps_uncond + w (eps_cond - eps_uncond)               Ho & Salimans 2022, whose own w is this one minus 1

w = 1 is the plain conditional model, w = 7.5 Stable Diffusion's default. A negative prompt takes the place of "".

Two remedies for what a large w spoils. High noise decides what is drawn, and pushing there makes all pictures alike; low
noise only sharpens, and pushing there is wasted: guide between two levels (Kynkäänniemi et al. 2024). And the further one
goes, the larger the answer, so that colours saturate: bring its spread back (Lin et al. 2023, section 3.4).
"""

import math

import torch
from torch import Tensor

from course.errors import UsageError


def classifier_free_guidance(eps_uncond: Tensor, eps_cond: Tensor, scale: float) -> Tensor:
    """(B,C,H,W), (B,C,H,W), w -> (B,C,H,W)."""
    return eps_uncond + scale * (eps_cond - eps_uncond)


def rescaled(guided: Tensor, cond: Tensor, share: float) -> Tensor:
    """`guided` with the standard deviation of `cond`, picture by picture, mixed with `guided` as it was; (B,C,H,W) -> same.

        share * guided std(cond) / std(guided) + (1 - share) guided          Lin et al. 2023, eq. 15-16; they take 0.7
    """
    spread, wanted = (x.std(dim=(1, 2, 3), keepdim=True) for x in (guided, cond))       # (B,1,1,1) twice
    return guided * (share * wanted / spread + 1 - share)


def guided(predict, cond: dict[str, Tensor], uncond: dict[str, Tensor], scale: float,
           interval: tuple[float, float] | None = None, rescale: float = 0.0):
    """(x, t) -> the guided prediction, from `predict(x, t, condition)` and two conditions.

    Whether the network predicts eps, v or x_0 is all the same to guidance: each is a line in the others. (Not to `rescale`,
    which is meant for what the network itself says.) A condition is what the network is told: {"context": (B,N,D)}, and for
    some models more, all with B in front.

    Args:
        interval: (low, high), the noise levels t between which to guide, both included; outside of them w is 1. None: all.
            Kynkäänniemi et al. name levels by sigma: `schedule.timestep_of` says which t that is.
        rescale: see `rescaled`; 0 leaves the answer as it is.

    Both passes go through the network as one batch of 2B, unconditional half first. Where w is 1 one pass is enough.
    """
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise UsageError(f"guidance_scale must be a finite number, got {scale}")
    if interval is not None and not (len(interval) == 2 and interval[0] <= interval[1]):
        raise UsageError(f"guidance_interval must be two noise levels, low and high, got {interval}")
    if not 0 <= rescale <= 1:
        raise UsageError(f"guidance_rescale must lie in [0, 1], got {rescale}")
    low, high = interval or (-math.inf, math.inf)
    halves = {name: torch.cat([uncond[name], cond[name]]) for name in cond}             # (2B,...)

    def denoiser(x: Tensor, t: float) -> Tensor:
        if scale == 1 or not low <= t <= high:
            return predict(x, t, cond)                                                  # (B,C,H,W)
        without, with_text = predict(torch.cat([x, x]), t, halves).chunk(2)             # (B,C,H,W) twice
        out = classifier_free_guidance(without, with_text, scale)
        return rescaled(out, with_text, rescale) if rescale else out

    return denoiser
