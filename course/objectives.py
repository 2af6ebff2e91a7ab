"""What the denoiser is trained to predict, and the loss: draw t and eps, noise z_0, regress.

    L = E w(t) || target - f(z_t, t, c) ||^2,   target = eps  (Ho et al. 2020, eq. 14; Rombach et al. 2022, eq. 2)
                                                target = x0   (Ho et al. 2020, section 3.2)
                                                target = v    (Salimans & Ho 2022)

They differ only in how they weigh noise levels. With z_t = a z_0 + s eps, an error d in z_0 is an error a/s d in eps
and 1/s d in v, so the three losses weigh d^2 by SNR = a^2/s^2, by 1 and by 1 + SNR.

Flow matching draws other lines between data and noise: see `flow_matching_loss`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from course import schedule as schedules
from course.errors import UsageError

TARGETS = ("eps", "v", "x0")


def training_target(schedule: "schedules.NoiseSchedule", x0: Tensor, noise: Tensor, t: Tensor, predict: str) -> Tensor:
    """What the network should answer at x_t; (B,...), (B,...), (B,) -> (B,...)."""
    if predict == "eps":
        return noise
    if predict == "v":
        return schedule.to_v(x0, noise, t)
    if predict == "x0":
        return x0
    raise UsageError(f"unknown objective {predict!r}, expected one of {', '.join(TARGETS)}")


def min_snr_weight(snr: Tensor, predict: str, gamma: float = 5.0) -> Tensor:
    """Weights that make any target weigh the error in x_0 by min(SNR, gamma); (B,) -> (B,). Hang et al. 2023, section 3.4.

    Levels with little noise are easy and agree with each other least; unclamped, the eps loss lets them drown the rest.
    """
    if gamma <= 0:
        raise UsageError(f"gamma must be positive, got {gamma}")
    clamped = snr.clamp(max=gamma)
    if predict == "eps":
        return clamped / snr
    if predict == "v":
        return clamped / (1 + snr)
    if predict == "x0":
        return clamped
    raise UsageError(f"unknown objective {predict!r}, expected one of {', '.join(TARGETS)}")


def diffusion_loss(model, schedule, x0: Tensor, context: Tensor | None, predict: str = "eps",
                   generator: torch.Generator | None = None, min_snr_gamma: float | None = None,
                   t: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
    """Mean squared error of `model(x_t, t, context)` at one random t a sample, weighted by min-SNR if asked; a scalar.

    t (B,) int64 and noise (B,C,H,W) are drawn here, on the CPU, so that a seed means the same on every device; who must
    have them the same in another way, such as across processes, hands them in.
    """
    if t is None:
        t = (stratified(len(x0), generator) * schedule.num_steps).long().clamp(max=schedule.num_steps - 1)   # (B,)
    noise = (torch.randn(x0.shape, generator=generator) if noise is None else noise).to(x0)   # (B,C,H,W)
    x_t = schedule.add_noise(x0, noise, t)                                              # (B,C,H,W)
    prediction = model(x_t, t.to(x0.device), context)                                   # (B,C,H,W)
    target = training_target(schedule, x0, noise, t, predict)
    if min_snr_gamma is None:
        return F.mse_loss(prediction.float(), target.float())
    errors = (prediction.float() - target.float()).square().flatten(1).mean(1)          # (B,)
    return (min_snr_weight(schedule.snr(t), predict, min_snr_gamma).to(errors) * errors).mean()


def flow_matching_loss(model, x0: Tensor, context: Tensor | None, generator: torch.Generator | None = None,
                       mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Rectified flow: on the straight line x_t = (1 - t) x_0 + t eps, predict its velocity eps - x_0; a scalar.

    Lipman et al. 2023; Liu et al. 2023; the form of Esser et al. 2024, eq. 13. t is the sigmoid of a normal
    (`mean`, `std`; their eq. 19): the middle of the line is where the answer is least obvious. The model gets 1000 t,
    so that its time embedding sees the range it was made for. `samplers.rectified_flow` goes back.
    """
    t = logit_normal(stratified(len(x0), generator), mean, std).to(x0)                  # (B,)
    line = t.reshape(-1, *[1] * (x0.ndim - 1))                                          # (B,1,1,1)
    noise = torch.randn(x0.shape, generator=generator).to(x0)                           # (B,C,H,W)
    x_t = (1 - line) * x0 + line * noise                                                # (B,C,H,W)
    velocity = model(x_t, 1000 * t, context)                                            # (B,C,H,W)
    return F.mse_loss(velocity.float(), (noise - x0).float())


def stratified(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform numbers in [0, 1), one in each of `count` equal slices, shuffled; (count,).

    Every batch then covers the whole range, which lowers the variance of the gradient and leaves its mean as it is
    (Kingma et al. 2021, appendix I).
    """
    return (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count


def logit_normal(u: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Uniform numbers in [0, 1) -> the sigmoid of a normal, in (0, 1); (B,) -> (B,). Esser et al. 2024, eq. 19.

    Where things go is settled while there is much noise, what they look like in detail when there is little: the mean says
    which of the two is to be practised more.
    """
    normal = torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
    return torch.sigmoid(mean + std * normal)
