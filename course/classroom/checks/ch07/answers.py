"""The course's own answers: as in `course.samplers`, but out of reach of `parts.swapped`, which may be in force."""

import math

import torch
from torch import Tensor


def exact_x0(x_t: Tensor, alpha_bar: float, data: Tensor, spread: float = 0.0) -> Tensor:
    flat, centres = x_t.flatten(1), data.flatten(1).to(x_t)                             # (B,D), (N,D)
    a, variance = alpha_bar**0.5, alpha_bar * spread**2 + 1 - alpha_bar
    squared = (flat[:, None] - a * centres[None]).pow(2).sum(-1)                        # (B,N)
    mean = torch.softmax(-squared / (2 * variance), dim=1) @ centres                    # (B,D)
    return (mean + a * spread**2 / variance * (flat - a * mean)).reshape(x_t.shape)


def posterior(x_t: Tensor, x0: Tensor, alpha_bar: float, alpha_bar_next: float, kind: str = "small"):
    alpha = alpha_bar / alpha_bar_next
    beta = 1 - alpha
    mean = (alpha_bar_next**0.5 * beta * x0 + alpha**0.5 * (1 - alpha_bar_next) * x_t) / (1 - alpha_bar)
    return mean, beta if kind == "large" else (1 - alpha_bar_next) / (1 - alpha_bar) * beta


def ddim_step(x_t: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_next: float, eta: float = 0.0, noise=None):
    x0 = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    sigma = 0.0                                                # only a step down has one, and only for eta > 0
    if eta > 0:
        sigma = eta * ((1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)) ** 0.5
    x = alpha_bar_next**0.5 * x0 + (1 - alpha_bar_next - sigma**2) ** 0.5 * eps
    return x + sigma * noise if sigma > 0 else x, x0


def ddim(denoiser, x: Tensor, timesteps: Tensor, *, schedule, eta: float = 0.0, generator=None, callback=None, **others):
    ts, alpha_bars = levels(timesteps, schedule)
    for i, t in enumerate(ts):
        noise = torch.randn(x.shape, generator=generator).to(x) if eta > 0 else None
        x, x0 = ddim_step(x, denoiser(x, t), alpha_bars[i], alpha_bars[i + 1], eta, noise)
        if callback:
            callback(i, t, x, x0)
    return x


def ddim_invert(denoiser, x0: Tensor, timesteps: Tensor, *, schedule) -> Tensor:
    ts, alpha_bars = levels(timesteps, schedule)
    ts, alpha_bars, x = ts[::-1], alpha_bars[::-1], x0
    for i in range(len(ts)):
        x, _ = ddim_step(x, denoiser(x, ts[max(i - 1, 0)]), alpha_bars[i], alpha_bars[i + 1])
    return x


def heun(denoiser, x: Tensor, timesteps: Tensor, *, schedule, **others) -> Tensor:
    ts, alpha_bars = levels(timesteps, schedule)
    sigmas = [((1 - a) / a) ** 0.5 for a in alpha_bars]
    y = x / alpha_bars[0] ** 0.5
    for i, t in enumerate(ts):
        step, slope = sigmas[i + 1] - sigmas[i], denoiser(alpha_bars[i] ** 0.5 * y, t)
        there = y + step * slope
        if i + 1 < len(ts):
            slope_there = denoiser(alpha_bars[i + 1] ** 0.5 * there, ts[i + 1])
            there = y + step * (slope + slope_there) / 2
        y = there
    return y


def dpmpp_2m(denoiser, x: Tensor, timesteps: Tensor, *, schedule, **others) -> Tensor:
    ts, alpha_bars = levels(timesteps, schedule)
    a, s = [b**0.5 for b in alpha_bars], [(1 - b) ** 0.5 for b in alpha_bars]
    lam, before = [math.log(p / q) for p, q in zip(a, s[:-1], strict=False)], None
    for i, t in enumerate(ts):
        x0 = (x - s[i] * denoiser(x, t)) / a[i]
        if i + 1 == len(ts):
            return x0
        h, D = lam[i + 1] - lam[i], x0
        if before is not None:
            D = x0 + h / (2 * (lam[i] - lam[i - 1])) * (x0 - before)
        x, before = s[i + 1] / s[i] * x - a[i + 1] * math.expm1(-h) * D, x0
    return x


def levels(timesteps, schedule) -> tuple[list[float], list[float]]:
    """The times, and alpha_bar at each of them and at the end, where no noise is left."""
    ts = [float(t) for t in timesteps]
    return ts, [*schedule.alpha_bar(torch.tensor(ts, dtype=torch.float64)).tolist(), 1.0]
