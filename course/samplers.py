"""The reverse process: from pure noise to a picture, one denoising step at a time.

A sampler is a function. All of them share one signature:

    sampler(denoiser, x, timesteps, *, schedule, eta, generator, clip_x0, callback) -> x_0

    denoiser(x_t, t) -> eps    at variance-preserving scale; classifier-free guidance is already inside it
    x                          (B,C,H,W), noise at the first of `timesteps`
    timesteps                  (S,), high to low: `schedule.timesteps(S)`
    eta                        how much fresh noise a step adds; 0 makes DDIM deterministic
    generator                  the CPU generator that noise is drawn from; or a list of them, one a picture, so that what a
                               picture becomes does not depend on its batch
    clip_x0                    clamp every estimate of x_0 to [-clip_x0, clip_x0]; for pixels 1.0, for latents None
    callback(i, t, x, x0)      called after step i with the new x and the estimate of x_0 that led to it

`ddim` and `ddpm` stop at `schedule.final_alpha_cumprod`. `euler`, `heun`, `dpmpp_2m` and `unipc` solve the same
differential equation with fewer calls of the network, have no randomness, and end where no noise is left.
"""

import math
from dataclasses import dataclass

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


def euler(denoiser, x: Tensor, timesteps: Tensor, *, schedule, eta: float = 0.0,
          generator: torch.Generator | None = None, clip_x0: float | None = None, callback=None) -> Tensor:
    """Euler's method in sigma-space, Karras et al. 2022, algorithm 1 without its second half.

    With y = x / sqrt(ab) = x_0 + sigma eps the probability-flow ODE is dy / dsigma = eps, so a step is a straight line:

        y_next = y + (sigma_next - sigma) eps

    The same step as DDIM's with eta = 0, written in other letters.
    """
    for i, now, after in _levels("euler", schedule, timesteps, eta):
        x0, eps = _estimate(x, denoiser(x, now.t), now.a**2, clip_x0)                   # (B,C,H,W) twice
        y = x / now.a + (after.sigma - now.sigma) * eps
        x = after.a * y
        if callback:
            callback(i, now.t, x, x0)
    return x


def heun(denoiser, x: Tensor, timesteps: Tensor, *, schedule, eta: float = 0.0,
         generator: torch.Generator | None = None, clip_x0: float | None = None, callback=None) -> Tensor:
    """Heun's method, Karras et al. 2022, algorithm 1: walk the line, look at the slope there too, take their average.

    Second order for two calls of the network a step. The last step, to sigma = 0, is Euler's: no slope is known there.
    """
    for i, now, after in _levels("heun", schedule, timesteps, eta):
        x0, slope = _estimate(x, denoiser(x, now.t), now.a**2, clip_x0)                 # (B,C,H,W) twice
        y = x / now.a
        there = y + (after.sigma - now.sigma) * slope
        if after.sigma > 0:
            _, slope_there = _estimate(after.a * there, denoiser(after.a * there, after.t), after.a**2, clip_x0)
            there = y + (after.sigma - now.sigma) * (slope + slope_there) / 2
        x = after.a * there
        if callback:
            callback(i, now.t, x, x0)
    return x


def dpmpp_2m(denoiser, x: Tensor, timesteps: Tensor, *, schedule, eta: float = 0.0,
             generator: torch.Generator | None = None, clip_x0: float | None = None, callback=None) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2: second order for one call a step, by remembering the last answer.

    In lambda = log(a / s) the ODE is linear but for x_0(lambda), and its exact solution over a stride h is

        x_next = s_next / s x - a_next (e^-h - 1) D,          D = x_0, extended along the line through the last two
    """
    before = x0_before = None
    for i, now, after in _levels("dpmpp_2m", schedule, timesteps, eta):
        x0, _ = _estimate(x, denoiser(x, now.t), now.a**2, clip_x0)                     # (B,C,H,W)
        h, D = after.lam - now.lam, x0
        if before is not None and after.sigma > 0:             # on the way to sigma = 0 h is infinite: first order there
            ratio = (now.lam - before.lam) / h
            D = x0 + (x0 - x0_before) / (2 * ratio)
        x = after.s / now.s * x - after.a * math.expm1(-h) * D
        before, x0_before = now, x0
        if callback:
            callback(i, now.t, x, x0)
    return x


def unipc(denoiser, x: Tensor, timesteps: Tensor, *, schedule, eta: float = 0.0,
          generator: torch.Generator | None = None, clip_x0: float | None = None, callback=None) -> Tensor:
    """UniPC, Zhao et al. 2023, algorithms 5-6, with B(h) = e^h - 1: predict at second order, correct one step later.

    The answer of the network at the new level is needed for the next prediction anyway. It also says how far off the
    last one was, so the last step is taken again with it: third order, at no further call.
    """
    past = []                                                  # (level, x_0) of earlier steps, the latest last
    start = order = None                                       # x before the last prediction, and that one's order
    for i, now, after in _levels("unipc", schedule, timesteps, eta):
        x0, _ = _estimate(x, denoiser(x, now.t), now.a**2, clip_x0)                     # (B,C,H,W)
        if past:
            x = _unipc_step(start, past, now, order, x0)
        past = [*past[-1:], (now, x0)]
        start, order = x, min(len(past), 2 if after.sigma > 0 else 1)
        x = _unipc_step(start, past, after, order)
        if callback:
            callback(i, now.t, x, x0)
    return x


def _unipc_step(x: Tensor, past: list, after: "_Level", order: int, x0_after: Tensor | None = None) -> Tensor:
    """From the latest level in `past` to `after`: UniP, or UniC where the network's answer there is known."""
    now, x0 = past[-1]
    h = after.lam - now.lam
    grow = math.expm1(-h)                                      # h phi_1(h), and here B(h) as well
    linear = after.s / now.s * x - after.a * grow * x0
    if order == 1:
        return linear if x0_after is None else linear - after.a * grow * 0.5 * (x0_after - x0)
    earlier, x0_earlier = past[-2]
    r = (earlier.lam - now.lam) / h
    slope = (x0_earlier - x0) / r
    if x0_after is None:
        return linear - after.a * grow * 0.5 * slope
    # two unknown weights, two conditions: exact where x_0(lambda) is a line, and where it is a parabola
    phi_2 = grow / -h - 1
    phi_3 = phi_2 / -h - 0.5
    b1, b2 = phi_2 / grow, 2 * phi_3 / grow
    w1 = (b1 - b2) / (1 - r)
    return linear - after.a * grow * (w1 * slope + (b1 - w1) * (x0_after - x0))


def rectified_flow(velocity, x: Tensor, steps: int, callback=None) -> Tensor:
    """Euler's method along the lines of flow matching (`objectives.flow_matching_loss`), from noise x (B,C,H,W) to x_0.

    velocity(x_t, 1000 t) -> eps - x_0, the direction of growing t. Where the lines are straight one step is enough.
    """
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    for i in range(steps):
        t = 1 - i / steps
        v = velocity(x, 1000 * t)                                                       # (B,C,H,W)
        x0 = x - t * v
        x = x - v / steps
        if callback:
            callback(i, 1000 * t, x, x0)
    return x


SAMPLERS = ("ddim", "ddpm", "euler", "heun", "dpmpp_2m", "unipc")   # names, looked up at the call: see `by_name`


def by_name(name: str):
    """The sampler function called `name`, looked up now, so that a swapped part is found."""
    if name not in SAMPLERS:
        raise UsageError(f"unknown sampler {name!r}, expected one of {', '.join(SAMPLERS)}")
    return globals()[name]


@dataclass(frozen=True)
class _Level:
    """One noise level in every unit the papers use: x = a x_0 + s eps, sigma = s / a, lambda = log(a / s)."""

    t: float
    alpha_bar: float

    @property
    def a(self) -> float:
        return self.alpha_bar**0.5

    @property
    def s(self) -> float:
        return (1 - self.alpha_bar) ** 0.5

    @property
    def sigma(self) -> float:
        return self.s / self.a

    @property
    def lam(self) -> float:
        return -math.log(self.sigma) if self.s else math.inf


def _levels(name: str, schedule, timesteps: Tensor, eta: float):
    """(i, this level, the next) for each step of a deterministic sampler; the last "next" has no noise."""
    if eta != 0:
        raise UsageError(f"{name} adds no noise, so eta must be 0, got {eta}; ddim with an eta does")
    levels = [_Level(t, alpha_bar) for t, alpha_bar, _ in _strides(schedule, timesteps)]
    return zip(range(len(levels)), levels, [*levels[1:], _Level(0.0, 1.0)], strict=True)


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


def _noise_like(x: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    if isinstance(generator, list):
        return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generator]).to(x)
    return torch.randn(x.shape, generator=generator).to(x)
