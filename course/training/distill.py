"""Few steps instead of many: a student learns to do in one step what its teacher does in two, then becomes the teacher.

    x_t --teacher--> x_m --teacher--> x_u           t > m > u, two DDIM steps
    x_t ---------student-----------> x_u            one: so what must it say x_0 is?

A DDIM step is x_u = a_u x_0 + (s_u / s_t) (x_t - a_t x_0), one equation with one unknown, and solved for x_0 it is the student's
lesson (Salimans & Ho 2022, algorithm 2). Each round halves the number of steps. In the first one the teacher is guided, two
passes a step, and the student learns that too in its one (Meng et al. 2023).
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import guidance, objectives
from course.errors import UsageError
from course.training import diffusion, loop


@dataclass(frozen=True)
class DistillLoss:
    """What is distilled into what: `rounds` are the numbers of steps of the students, each half of the one before."""

    rounds: tuple[int, ...] = (8, 4, 2, 1)
    guidance: float = 1.5                  # of the first teacher

    def __post_init__(self):
        if not self.rounds or any(b * 2 != a for a, b in zip(self.rounds, self.rounds[1:], strict=False)):
            raise UsageError(f"each round must halve the steps, as 8,4,2,1 does, got {self.rounds}")


def lesson(teacher, schedule, x: Tensor, t: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """The x_0 with which one DDIM step from t to `end` arrives where the teacher's two do, by way of `middle`; (B,C,h,w).

    Args:
        teacher: (x, t) -> eps.  x: (B,C,h,w) at level t.  t, middle, end: (B,), falling; end = -1 is the clean picture.
    """
    eps = teacher(x, t)
    x_m = step(schedule, x, eps, t, middle)                                             # (B,C,h,w)
    x_u = step(schedule, x_m, teacher(x_m, middle), middle, end)                        # (B,C,h,w)
    a_t, s_t = levels(schedule, t, x)
    a_u, s_u = levels(schedule, end, x)
    return (x_u - s_u / s_t * x) / (a_u - s_u / s_t * a_t)                              # (B,C,h,w)


def step(schedule, x: Tensor, eps: Tensor, t: Tensor, end: Tensor) -> Tensor:
    """One DDIM step from level t to `end`, each picture from its own level to its own; (B,C,h,w)."""
    a, s = levels(schedule, end, x)
    return a * schedule.to_x0(x, eps, t) + s * eps


def levels(schedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(sqrt(alpha_bar), sqrt(1 - alpha_bar)) at t (B,), each (B,1,1,1); beyond the last step there is no noise."""
    clean = t.cpu() < 0
    alpha_bar = torch.where(clean, schedule.final_alpha_cumprod, schedule.alpha_bar(t.clamp(min=0)))
    return tuple(level.sqrt().reshape(-1, 1, 1, 1).to(like) for level in (alpha_bar, 1 - alpha_bar))


def grid(schedule, steps: int, config) -> tuple[Tensor, Tensor, Tensor]:
    """(t, middle, end) of each of the student's steps, (steps,) each, from high to low: every other level of the teacher's."""
    fine = torch.cat([schedule.timesteps(2 * steps, config.spacing, config.offset), torch.tensor([-1])])
    return fine[:-1:2], fine[1::2], fine[2::2]


def train(pipe, batches, conditions, nothing: Tensor, folder: str | Path, config: loop.LoopConfig, loss: DistillLoss,
          budget: loop.Budget, **how) -> tuple[dict, dict[int, nn.Module]]:
    """Distil `pipe.unet`, round by round; returns (the last round's state, {steps: that round's U-Net}).

    Args:
        pipe: a pipeline.StableDiffusion; its U-Net is left as it is.
        batches: see diffusion.latent_batches.  conditions: (n,K,N) token ids.  nothing: (N,), those of "".
        budget: of one round.
    """
    schedule, predict, students = pipe.schedule, pipe.config.predict, {}
    state, teacher = {}, pipe.unet
    n, K = conditions.shape[:2]
    for steps in loss.rounds:
        scale = loss.guidance if not students else 1.0         # what a student says is guided already
        t, middle, end = grid(schedule, steps, pipe.config)                             # (steps,) each
        student = diffusion.ConditionalDenoiser(copy.deepcopy(teacher).requires_grad_(True), None)

        def loss_of_batch(model, step, teacher=teacher, scale=scale, t=t, middle=middle, end=end):
            chosen, which = step.integers(n), step.integers(K)
            at = (step.stratified() * len(t)).long()                                    # (B,): which of the student's steps
            own = next(model.parameters())
            x0 = batches(chosen, step).to(own.device, own.dtype)                        # (B,C,h,w)
            noise = step.normal(*x0.shape[1:]).to(x0)
            first = (at == 0).reshape(-1, 1, 1, 1).to(x0.device)                        # sampling begins with noise alone
            x = torch.where(first, noise, schedule.add_noise(x0, noise, t[at]))         # (B,C,h,w)
            with torch.no_grad():
                asked = pipe.text_encoder(conditions[chosen, which].to(own.device))     # (B,N,D)
                empty = pipe.text_encoder(nothing[None].to(own.device)).expand_as(asked)

                def told(x, t):
                    t_here = t.to(x.device)
                    eps = schedule.to_eps(x, teacher(x, t_here, asked), t, given=predict)
                    if scale == 1:
                        return eps
                    return guidance.classifier_free_guidance(
                        schedule.to_eps(x, teacher(x, t_here, empty), t, given=predict), eps, scale)
                clean = lesson(told, schedule, x, t[at], middle[at], end[at])           # (B,C,h,w)
                wanted = objectives.training_target(schedule, clean, schedule.to_eps(x, clean, t[at]), t[at], predict)
            return F.mse_loss(model(x, t[at].to(own.device), asked).float(), wanted.float())

        state = loop.fit(student, loss_of_batch, config, budget, Path(folder) / f"{steps}-steps",
                         **how | {"title": f"{steps} steps"})
        teacher = students[steps] = student.unet.eval().requires_grad_(False)
    return state, students
