"""Classifier-free guidance: ask the network twice, with the text and without, and go further in the difference.

    eps = eps_uncond + w (eps_cond - eps_uncond)               Ho & Salimans 2022, whose own w is this one minus 1

w = 1 is the plain conditional model, w = 7.5 Stable Diffusion's default. A negative prompt takes the place of "".
"""

import math

import torch
from torch import Tensor

from course.errors import UsageError


def classifier_free_guidance(eps_uncond: Tensor, eps_cond: Tensor, scale: float) -> Tensor:
    """(B,C,H,W), (B,C,H,W), w -> (B,C,H,W)."""
    return eps_uncond + scale * (eps_cond - eps_uncond)


def guided(predict_eps, cond: dict[str, Tensor], uncond: dict[str, Tensor], scale: float):
    """A denoiser (x, t) -> eps for the samplers, from `predict_eps(x, t, condition)` and two conditions.

    A condition is what the network is told: {"context": (B,N,D)}, and for some models more, all with B in front.

    Both passes go through the network as one batch of 2B, unconditional half first. At w = 1 one pass is enough.
    """
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise UsageError(f"guidance_scale must be a finite number, got {scale}")

    halves = {name: torch.cat([uncond[name], cond[name]]) for name in cond}             # (2B,...)

    def denoiser(x: Tensor, t: float) -> Tensor:
        if scale == 1:
            return predict_eps(x, t, cond)                                              # (B,C,H,W)
        both = predict_eps(torch.cat([x, x]), t, halves)                                # (2B,C,H,W)
        return classifier_free_guidance(*both.chunk(2), scale)

    return denoiser
