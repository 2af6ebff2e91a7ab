"""The course's own answers, out of reach of `parts.swapped`, which may be in force."""

from math import comb

import torch
from torch import Tensor


def drop_texts(texts: list[str], p: float, generator: torch.Generator | None = None) -> list[str]:
    draws = torch.rand(len(texts), generator=generator).tolist()
    return ["" if u < p else text for text, u in zip(texts, draws, strict=True)]


def guided(predict, cond: dict[str, Tensor], uncond: dict[str, Tensor], scale: float):
    both = {name: torch.cat([uncond[name], cond[name]]) for name in cond}               # (2B,...)

    def denoiser(x: Tensor, t) -> Tensor:
        if scale == 1:
            return predict(x, t, cond)
        without, with_text = predict(torch.cat([x, x]), t, both).chunk(2)
        return without + scale * (with_text - without)
    return denoiser


def limited(plain, guided, alphas_cumprod: Tensor, sigma_low: float, sigma_high: float):
    def denoiser(x: Tensor, t) -> Tensor:
        bar = float(alphas_cumprod[int(t)])
        return (guided if sigma_low <= ((1 - bar) / bar) ** 0.5 <= sigma_high else plain)(x, t)
    return denoiser


def rescaled(guided: Tensor, cond: Tensor, share: float) -> Tensor:
    spread, wanted = (x.std(dim=(1, 2, 3), keepdim=True) for x in (guided, cond))       # (B,1,1,1)
    return share * guided * (wanted / spread) + (1 - share) * guided


def sharpness(images: Tensor) -> Tensor:
    gray = images.mean(dim=1)                                                           # (B,H,W)
    steps = torch.cat([gray.diff(dim=2).flatten(1), gray.diff(dim=1).flatten(1)], dim=1)
    return steps.square().sum(1) / steps.abs().sum(1).clamp(min=1e-8)


def paired(before: list[bool], after: list[bool]) -> tuple[int, int, float]:
    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    n = gained + lost
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return gained, lost, min(1.0, 2 * tail)
