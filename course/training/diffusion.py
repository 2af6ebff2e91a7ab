"""Stage two: train the denoiser and its text encoder jointly, on latents or on pixels (Rombach et al. 2022, eq. 3)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from course import objectives, pixels
from course.training import loop


@dataclass(frozen=True)
class DiffusionLoss:
    """What the denoiser is asked; see `course.objectives`."""

    predict: str = "eps"
    min_snr_gamma: float | None = None
    condition_dropout: float = 0.1        # so often "" takes the caption's place: both halves of classifier-free guidance
    draw_latents: bool = True             # from the encoder's Gaussian; False: its mean, for codes with collapsed channels
    t_mean: float | None = None           # None: all t alike; else t / T is the sigmoid of a normal with this mean, std 1


class ConditionalDenoiser(nn.Module):
    """U-Net and text encoder as one module with one optimiser; (x_t, t, conditions) -> (B,C,H,W).

    Conditions are token ids (B,N), or, where `text_encoder` is None, what a frozen encoder once made of them (B,N,D).
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, x_t: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        return self.unet(x_t, t, conditions if self.text_encoder is None else self.text_encoder(conditions))


def latent_batches(mean, std, scale: float, draw_latents: bool = True) -> Callable:
    """(chosen, step) -> z_0 (B,c,h,w): a fresh draw from the cached posterior, at unit variance; or its mean.

    A channel that the KL penalty has collapsed is all noise, N(0, 1) whatever the picture. A denoiser can learn nothing
    there, but is shaken by it; the decoder does not listen to it, so its mean serves as well.
    """
    def draw(chosen: Tensor, step) -> Tensor:
        z = mean[chosen]                                                                # (B,c,h,w)
        return scale * (z + std[chosen] * step.normal(*z.shape[1:]).to(z) if draw_latents else z)
    return draw


def pixel_batches(images) -> Callable:
    """(chosen, step) -> x_0 (B,3,H,W) in [-1, 1]."""
    return lambda chosen, step: pixels.to_unit(images[chosen])


def train(denoiser: ConditionalDenoiser, batches: Callable, conditions, nothing: Tensor, schedule,
          folder: str | Path, budget: loop.Budget, config: loop.LoopConfig, loss: DiffusionLoss = DiffusionLoss(),
          **how) -> dict:
    """Train `denoiser` in place; returns what `loop.fit` does.

    Args:
        batches: `latent_batches` or `pixel_batches`: what is diffused.
        conditions: (n,K,...), K captions for each of the n samples; one of them is drawn each time. A tensor of token ids,
            or data.latents.Contexts.
        nothing: (...), what stands for "".
    """
    n, K = conditions.shape[:2]

    def loss_of_batch(model, step):
        chosen, which, dropped = step.integers(n), step.integers(K), step.uniform() < loss.condition_dropout
        asked = conditions[chosen, which].clone()                                       # (B,...)
        asked[dropped] = nothing
        own = next(model.parameters())
        x0 = batches(chosen, step).to(own.device, own.dtype)                            # (B,C,H,W)
        asked = asked.to(own.device, own.dtype if asked.is_floating_point() else None)
        share = step.stratified() if loss.t_mean is None else objectives.logit_normal(step.stratified(), loss.t_mean)
        t, noise = (schedule.num_steps * share).long(), step.normal(*x0.shape[1:])
        return objectives.diffusion_loss(model, schedule, x0, asked, loss.predict, min_snr_gamma=loss.min_snr_gamma,
                                         t=t, noise=noise)

    return loop.fit(denoiser, loss_of_batch, config, budget, folder, **how)
