"""The reverse process: from pure noise to a picture, one denoising step at a time.

A sampler is a function. All of them share one signature:

    sampler(denoiser, x, timesteps, *, schedule, eta, generator, clip_x0, callback) -> x_0

    denoiser(x_t, t) -> eps    at variance-preserving scale; classifier-free guidance is already inside it
    x                          (B,C,H,W), noise at the first of `timesteps`
    timesteps                  (S,), high to low: `schedule.timesteps(S)`
    eta                        how much fresh noise a step adds; 0 makes DDIM deterministic
    generator                  the CPU generator that noise is drawn from
    clip_x0                    clamp every estimate of x_0 to [-clip_x0, clip_x0]; for pixels 1.0, for latents None
    callback(i, t, x, x0)      called after step i with the new x and the estimate of x_0 that led to it
"""

import torch
from torch import Tensor

from course.errors import UsageError


def ddim(denoiser, x: Tensor, timesteps: Tensor, *, schedule, eta: float = 0.0,
         generator: torch.Generator | None = None, clip_x0: float | None = None, callback=None) -> Tensor:
    """Denoising diffusion implicit models, Song et al. 2021, eq. 12: the strides may be as long as you like.

    x_next = sqrt(ab_next) x_0 + sqrt(1 - ab_next - sigma^2) eps + sigma noise
    """
    for i, (t, alpha_bar, alpha_bar_next) in enumerate(_strides(schedule, timesteps)):
        eps = denoiser(x, t)                                                            # (B,C,H,W)
        x0, eps = _estimate(x, eps, alpha_bar, clip_x0)
        sigma = eta * ((1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)) ** 0.5   # eq. 16
        x = alpha_bar_next**0.5 * x0 + (1 - alpha_bar_next - sigma**2) ** 0.5 * eps
        if sigma > 0:
            x = x + sigma * _noise_like(x, generator)
        if callback:
            callback(i, t, x, x0)
    return x


def ddpm(denoiser, x: Tensor, timesteps: Tensor, *, schedule, eta: float = 1.0,
         generator: torch.Generator | None = None, clip_x0: float | None = None, callback=None) -> Tensor:
    """Ancestral sampling, Ho et al. 2020, algorithm 2: draw from the Gaussian q(x_next | x_t, x_0), eq. 6-7.

    Strides are allowed (Nichol & Dhariwal 2021): alpha of a stride is the ratio of its two alpha_bar. The variance is
    the posterior's, so this is DDIM with eta = 1, in the form in which it was first written; `eta` cannot be changed.
    """
    if eta != 1.0:
        raise UsageError(f"ddpm is ddim with eta = 1; for eta = {eta} use ddim")
    for i, (t, alpha_bar, alpha_bar_next) in enumerate(_strides(schedule, timesteps)):
        eps = denoiser(x, t)                                                            # (B,C,H,W)
        x0, _ = _estimate(x, eps, alpha_bar, clip_x0)
        alpha = alpha_bar / alpha_bar_next
        beta = 1 - alpha
        mean = (alpha_bar_next**0.5 * beta * x0 + alpha**0.5 * (1 - alpha_bar_next) * x) / (1 - alpha_bar)
        variance = (1 - alpha_bar_next) / (1 - alpha_bar) * beta
        x = mean + variance**0.5 * _noise_like(x, generator) if variance > 0 else mean
        if callback:
            callback(i, t, x, x0)
    return x


SAMPLERS = ("ddim", "ddpm")                                    # names, looked up at the call: see `by_name`


def by_name(name: str):
    """The sampler function called `name`, looked up now, so that a swapped part is found."""
    if name not in SAMPLERS:
        raise UsageError(f"unknown sampler {name!r}, expected one of {', '.join(SAMPLERS)}")
    return globals()[name]


def _strides(schedule, timesteps: Tensor):
    """(t, alpha_bar at t, alpha_bar at the next t) for each step, as Python floats: no waiting for a GPU."""
    ts = [float(t) for t in timesteps]
    if not ts or any(b >= a for a, b in zip(ts, ts[1:], strict=False)):
        raise UsageError(f"timesteps must fall from high to low, got {ts[:5]} ...")
    alpha_bars = schedule.alpha_bar(torch.tensor(ts, dtype=torch.float64)).tolist() + [schedule.final_alpha_cumprod]
    return zip(ts, alpha_bars[:-1], alpha_bars[1:], strict=True)


def _estimate(x: Tensor, eps: Tensor, alpha_bar: float, clip_x0: float | None) -> tuple[Tensor, Tensor]:
    """The x_0 that eps implies, clamped where asked, and the eps that goes with it."""
    x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    if clip_x0 is None:
        return x0, eps
    x0 = x0.clamp(-clip_x0, clip_x0)
    return x0, (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5


def _noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator).to(x)
