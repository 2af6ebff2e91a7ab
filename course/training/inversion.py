"""Textual inversion's training: one vector learns, everything else stands still (Gal et al. 2022)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from course import objectives
from course.training import diffusion, loop


@dataclass(frozen=True)
class InversionLoss(diffusion.DiffusionLoss):
    """The new word, how many vectors it is worth, and the word whose meaning it begins with (none: the mean of all)."""

    condition_dropout: float = 0.0
    draw_latents: bool = False
    word: str = "<thing>"
    vectors: int = 1
    like: str | None = None


def train(new, pipe, batches: Callable, conditions: Tensor, folder: str | Path, budget: loop.Budget, config: loop.LoopConfig,
          loss: InversionLoss, **how) -> dict:
    """Train `new`, an inversion.NewWord in the text encoder of `pipe`; returns what `loop.fit` does.

    batches: see diffusion.latent_batches.  conditions: (n,K,N) token ids, with the new word in them.
    """
    n, K = conditions.shape[:2]

    def loss_of_batch(model, step):
        chosen, which = step.integers(n), step.integers(K)
        own = next(model.parameters())
        x0 = batches(chosen, step).to(own.device, own.dtype)                            # (B,C,h,w)
        context = pipe.text_encoder(conditions[chosen, which].to(own.device))           # (B,N,D)
        share = step.stratified() if loss.t_mean is None else objectives.logit_normal(step.stratified(), loss.t_mean)
        t, noise = (pipe.schedule.num_steps * share).long(), step.normal(*x0.shape[1:])
        return objectives.diffusion_loss(pipe.unet, pipe.schedule, x0, context, pipe.config.predict, t=t, noise=noise)

    return loop.fit(new, loss_of_batch, config, budget, folder, **how)
