"""The course's own answers: as in `course.schedule`, but out of reach of `parts.swapped`, which may be in force."""

import torch
from torch import Tensor

KINDS = ("linear", "scaled_linear", "cosine")
EASY = torch.tensor([0.64, 0.0784], dtype=torch.float64)       # roots 0.8 and 0.28, of the rest 0.6 and 0.96


def make_schedule(kind: str, num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012):
    if kind == "cosine":
        u = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        f = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    else:
        power = 2 if kind == "scaled_linear" else 1
        ends = (beta_start ** (1 / power), beta_end ** (1 / power))
        betas = torch.linspace(*ends, num_steps, dtype=torch.float64) ** power
    return betas, torch.cumprod(1 - betas, dim=0)


def diffuse_stepwise(x0: Tensor, betas: Tensor, t: int, generator=None) -> Tensor:
    x = x0
    for beta in betas[: t + 1].tolist():
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        x = (1 - beta) ** 0.5 * x + beta**0.5 * noise
    return x


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    a, s = coefficients(x0, t, alphas_cumprod)
    return a * x0 + s * noise


def log_snr(alphas_cumprod: Tensor) -> tuple[Tensor, int]:
    values = torch.logit(alphas_cumprod)
    return values, int((values >= 0).sum())                    # it only falls, so counting is finding


def convert(x_t: Tensor, prediction: Tensor, t: Tensor, alphas_cumprod: Tensor, given: str):
    a, s = coefficients(x_t, t, alphas_cumprod)
    if given == "v":
        return a * x_t - s * prediction, s * x_t + a * prediction, prediction
    x0 = (x_t - s * prediction) / a if given == "eps" else prediction
    eps = (x_t - a * prediction) / s if given == "x0" else prediction
    return x0, eps, a * eps - s * x0


def timesteps(steps: int, num_steps: int = 1000, spacing: str = "trailing") -> Tensor:
    if spacing == "leading":
        return torch.arange(steps).flip(0) * (num_steps // steps)
    return torch.tensor([round(num_steps - i * num_steps / steps) - 1 for i in range(steps)])


def coefficients(like: Tensor, t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt().to(like), (1 - alpha_bar).sqrt().to(like)
