"""The forward process: how a clean z_0 turns into noise, in closed form.

    q(z_t | z_0) = N(sqrt(alpha_bar_t) z_0, (1 - alpha_bar_t) I)          Ho et al. 2020, eq. 4

so one draw needs no loop:  z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps.

Three quantities say the same thing about z_t, and a network may predict any of them:
the noise eps, the clean z_0, or the velocity v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z_0 (Salimans & Ho 2022).
"""

import math

import torch
from torch import Tensor

from course.errors import ShapeError, UsageError

KINDS = ("linear", "scaled_linear", "cosine")
SPACINGS = ("leading", "trailing", "linspace", "karras")


class NoiseSchedule:
    """The numbers beta_t, alpha_t = 1 - beta_t and alpha_bar_t = alpha_0 ... alpha_t, for t = 0 ... T-1.

    Args:
        num_steps: T, the number of noise levels.
        kind: `linear` (Ho et al. 2020), `scaled_linear` (linear in sqrt(beta): Stable Diffusion; CompVis calls this
            one "linear"), or `cosine` (Nichol & Dhariwal 2021, eq. 17; ignores beta_start and beta_end).
        beta_start, beta_end: the first and the last beta. DDPM has 1e-4 and 0.02.
        final_alpha_cumprod: alpha_bar after the last sampling step. 1 means "no noise left"; the released
            Stable Diffusion stops at alpha_bar_0 instead.
        zero_terminal_snr: stretch the table so that its last level holds (almost) no signal (Lin et al. 2023).

    The tables are kept in float64, (T,): a product of a thousand factors loses four digits in float32.
    """

    def __init__(self, num_steps: int = 1000, kind: str = "scaled_linear", beta_start: float = 0.00085,
                 beta_end: float = 0.012, final_alpha_cumprod: float = 1.0, zero_terminal_snr: bool = False):
        if num_steps < 1:
            raise UsageError(f"num_steps must be at least 1, got {num_steps}")
        if kind not in KINDS:
            raise UsageError(f"unknown schedule kind {kind!r}, expected one of {', '.join(KINDS)}")
        if not 0 < beta_start <= beta_end < 1:
            raise UsageError(f"expected 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        self.num_steps, self.kind, self.final_alpha_cumprod = num_steps, kind, final_alpha_cumprod
        self.betas = _betas(num_steps, kind, beta_start, beta_end)                      # (T,)
        if zero_terminal_snr:
            self.betas = _zero_terminal_snr(self.betas)
        self.alphas = 1 - self.betas                                                    # (T,)
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)                         # (T,)

    def alpha_bar(self, t: Tensor | float) -> Tensor:
        """alpha_bar at `t`, float64, same shape as `t`; a fractional t is interpolated in log SNR."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        if t.numel() and not (t.min() >= 0 and t.max() <= self.num_steps - 1):
            raise UsageError(f"t must lie in [0, {self.num_steps - 1}], got {t.min():g} ... {t.max():g}")
        low = t.floor().long()
        high = (low + 1).clamp(max=self.num_steps - 1)
        log_snr = torch.logit(self.alphas_cumprod)                 # log(alpha_bar / (1 - alpha_bar)), smooth in t
        return torch.sigmoid(torch.lerp(log_snr[low], log_snr[high], t - low))

    def coefficients(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """(sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)), each (B,1,1,1) to multiply `like` (B,C,H,W)."""
        alpha_bar = self.alpha_bar(t)
        if alpha_bar.ndim > 1 or (alpha_bar.ndim == 1 and len(alpha_bar) != len(like)):
            raise ShapeError(f"t must be a number or have shape ({len(like)},), got {tuple(alpha_bar.shape)}")
        shape = (-1,) + (1,) * (like.ndim - 1)                     # (B,) -> (B,1,1,1): one noise level a picture
        signal, noise = alpha_bar.sqrt().reshape(shape), (1 - alpha_bar).sqrt().reshape(shape)
        return signal.to(like), noise.to(like)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """A draw of q(x_t | x_0) for the given standard normal `noise`; (B,...), (B,...), (B,) -> (B,...). Eq. 4."""
        if x0.shape != noise.shape:
            raise ShapeError(f"x0 has shape {tuple(x0.shape)} but noise has {tuple(noise.shape)}")
        a, s = self.coefficients(t, x0)
        return a * x0 + s * noise

    def snr(self, t: Tensor | float) -> Tensor:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar), float64, same shape as `t`."""
        alpha_bar = self.alpha_bar(t)
        return alpha_bar / (1 - alpha_bar)

    def to_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor | float, given: str = "eps") -> Tensor:
        """The clean x_0 that `x_t` and a `prediction` of eps or v imply; (B,...) -> (B,...)."""
        a, s = self.coefficients(t, x_t)
        return _choose({"eps": lambda: (x_t - s * prediction) / a,
                        "v": lambda: a * x_t - s * prediction,
                        "x0": lambda: prediction}, given)

    def to_eps(self, x_t: Tensor, prediction: Tensor, t: Tensor | float, given: str = "x0") -> Tensor:
        """The noise that `x_t` and a `prediction` of x_0 or v imply; (B,...) -> (B,...)."""
        a, s = self.coefficients(t, x_t)
        return _choose({"x0": lambda: (x_t - a * prediction) / s,
                        "v": lambda: s * x_t + a * prediction,
                        "eps": lambda: prediction}, given)

    def to_v(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """The velocity v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022); (B,...) -> (B,...)."""
        a, s = self.coefficients(t, x0)
        return a * noise - s * x0

    def sigmas(self, t: Tensor | float) -> Tensor:
        """Noise per unit of signal, sqrt((1 - alpha_bar) / alpha_bar) = 1 / sqrt(SNR), float64, same shape as `t`."""
        return self.snr(t).rsqrt()

    def timestep_of(self, sigmas: Tensor) -> Tensor:
        """The (fractional) t at which `sigmas` is reached: the inverse of `sigmas`, clamped to [0, T-1]; float64."""
        log_snr, wanted = torch.logit(self.alphas_cumprod), -2 * torch.as_tensor(sigmas, dtype=torch.float64).log()
        rising = -log_snr                                                               # (T,): what searchsorted needs
        low = (torch.searchsorted(rising, -wanted, right=True) - 1).clamp(0, self.num_steps - 2)
        fraction = (wanted - log_snr[low]) / (log_snr[low + 1] - log_snr[low])
        return low + fraction.clamp(0, 1)

    def timesteps(self, steps: int, spacing: str = "trailing", offset: int = 0) -> Tensor:
        """`steps` of the T noise levels, high to low, (steps,): the article's loop t = 49 ... 0 is not this.

        `leading` starts every stride at its low end and so never visits T-1; `trailing` does (Lin et al. 2023).
        `karras` gives fractional levels, evenly spaced in sigma^(1/7) (Karras et al. 2022, eq. 5); the others int64.
        """
        if not 1 <= steps <= self.num_steps:
            raise UsageError(f"steps must lie in 1 ... {self.num_steps}, got {steps}")
        if spacing not in SPACINGS:
            raise UsageError(f"unknown spacing {spacing!r}, expected one of {', '.join(SPACINGS)}")
        if spacing == "karras":
            ends = self.sigmas(torch.tensor([self.num_steps - 1.0, 0.0])) ** (1 / 7)    # (2,)
            return self.timestep_of(torch.linspace(*ends.tolist(), steps, dtype=torch.float64) ** 7)
        stride = self.num_steps / steps
        if spacing == "leading":
            t = (torch.arange(steps) * int(stride)).flip(0) + offset
        elif spacing == "trailing":
            t = torch.tensor([round(self.num_steps - i * stride) - 1 for i in range(steps)])
        else:
            t = torch.linspace(0, self.num_steps - 1, steps, dtype=torch.float64).round().long().flip(0)
        return t.clamp(0, self.num_steps - 1)


def _betas(num_steps: int, kind: str, start: float, end: float) -> Tensor:
    if kind == "linear":
        return torch.linspace(start, end, num_steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, num_steps, dtype=torch.float64) ** 2
    # cosine: choose alpha_bar first, so that the signal falls evenly, then read the betas off its ratios
    grid = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alpha_bar = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)                        # (T,)


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and stretch sqrt(alpha_bar) so that it keeps its first value and ends at zero; (T,) -> (T,).

    Lin et al. 2023, algorithm 1. The last alpha_bar is 2^-24, not 0: from pure noise alone no x_0 can be told, and a
    sampler that speaks of eps would divide by zero.
    """
    root = torch.cumprod(1 - betas, dim=0).sqrt()                                       # (T,)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = (root**2).clamp(min=2.0**-24)
    return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])           # (T,)


def _choose(forms: dict, given: str) -> Tensor:
    if given not in forms:
        raise UsageError(f"unknown prediction {given!r}, expected one of {', '.join(forms)}")
    return forms[given]()
