"""What the denoiser is trained to predict, and the loss: draw t and eps, noise z_0, regress.

    L = E || target - f(z_t, t, c) ||^2,   target = eps  (Ho et al. 2020, eq. 14; Rombach et al. 2022, eq. 2)
                                           target = v    (Salimans & Ho 2022)

The two differ only in how they weigh noise levels: since v = (eps - sqrt(1 - alpha_bar) z_t) / sqrt(alpha_bar),
an error in v is an error in eps divided by sqrt(alpha_bar): v cares more about the noisy end.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from course import schedule as schedules
from course.errors import UsageError

TARGETS = ("eps", "v")


def training_target(schedule: "schedules.NoiseSchedule", x0: Tensor, noise: Tensor, t: Tensor, predict: str) -> Tensor:
    """What the network should answer at x_t; (B,...), (B,...), (B,) -> (B,...)."""
    if predict == "eps":
        return noise
    if predict == "v":
        return schedule.to_v(x0, noise, t)
    raise UsageError(f"unknown objective {predict!r}, expected one of {', '.join(TARGETS)}")


def diffusion_loss(model, schedule, x0: Tensor, context: Tensor | None, predict: str = "eps",
                   generator: torch.Generator | None = None) -> Tensor:
    """Mean squared error of `model(x_t, t, context)` at one random t a sample; a scalar.

    The t are stratified: sample i draws from the i-th of B equal slices of [0, T), shuffled. Every batch then covers
    the whole range, which lowers the variance of the gradient and leaves its mean as it is (Kingma et al. 2021, app. I).

    Noise is drawn on the CPU, so that a seed means the same noise on every device.
    """
    B = len(x0)
    u = (torch.randperm(B, generator=generator) + torch.rand(B, generator=generator)) / B
    t = (u * schedule.num_steps).long().clamp(max=schedule.num_steps - 1)               # (B,)
    noise = torch.randn(x0.shape, generator=generator).to(x0)                           # (B,C,H,W)
    x_t = schedule.add_noise(x0, noise, t)                                              # (B,C,H,W)
    prediction = model(x_t, t.to(x0.device), context)                                   # (B,C,H,W)
    target = training_target(schedule, x0, noise, t, predict)
    return F.mse_loss(prediction.float(), target.float())
