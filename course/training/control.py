"""A ControlNet's training: the U-Net is frozen, its copy learns what a control picture says (Zhang et al. 2023, section 3.3)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from course import objectives
from course.training import diffusion, loop


@dataclass(frozen=True)
class ControlLoss(diffusion.DiffusionLoss):
    """Which control pictures, and how often the prompt is left out, so that the ControlNet learns to read them without it."""

    condition_dropout: float = 0.5         # theirs
    draw_latents: bool = False
    control: str = "edges"                 # see data.hints.KINDS
    hint_channels: tuple[int, ...] = (16, 32, 64, 96)          # 64 x 64 pixels -> 8 x 8, the size of the latent


def train(net, pipe, batches: Callable, hints: Tensor, conditions: Tensor, nothing: Tensor, folder: str | Path,
          budget: loop.Budget, config: loop.LoopConfig, loss: ControlLoss, **how) -> dict:
    """Train `net`, a controlnet.ControlNet of `pipe.unet`, in place; returns what `loop.fit` does.

    Args:
        pipe: a pipeline.StableDiffusion; nothing of it is changed.  batches: see diffusion.latent_batches.
        hints: (n,3,H,W) uint8, the control picture of each sample.  conditions: (n,K,N) token ids.  nothing: (N,), those of "".
    """
    n, K = conditions.shape[:2]
    for module in pipe.modules().values():
        module.requires_grad_(False)

    def loss_of_batch(model, step):
        chosen, which, dropped = step.integers(n), step.integers(K), step.uniform() < loss.condition_dropout
        asked = conditions[chosen, which].clone()                                       # (B,N)
        asked[dropped] = nothing
        own = next(model.parameters())
        x0 = batches(chosen, step).to(own.device, own.dtype)                            # (B,C,h,w)
        hint = hints[chosen].to(own.device, own.dtype) / 255                            # (B,3,H,W) in [0, 1]
        with torch.no_grad():
            context = pipe.text_encoder(asked.to(own.device))                           # (B,N,D)

        def steered(x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return pipe.unet(x_t, t, context, control=model(x_t, t, context, hint))     # (B,C,h,w)

        share = step.stratified() if loss.t_mean is None else objectives.logit_normal(step.stratified(), loss.t_mean)
        t, noise = (pipe.schedule.num_steps * share).long(), step.normal(*x0.shape[1:])
        return objectives.diffusion_loss(steered, pipe.schedule, x0, context, pipe.config.predict, t=t, noise=noise)

    return loop.fit(net, loss_of_batch, config, budget, folder, **how)
