"""The training loop, on one page: draw a batch, take a step, average the weights, and never lose anything.

Everything random in step k is drawn from a generator seeded by (seed, k), so a run that was stopped and resumed takes
exactly the steps that an uninterrupted one would have taken, bit for bit on a CPU.
"""

import math
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from course.errors import TrainingError, UsageError
from course.training import checkpoint
from course.training.interrupt import deferred_interrupt
from course.training.progress import Progress


@dataclass(frozen=True)
class LoopConfig:
    """How to train; what to train is the loss function's business."""

    batch_size: int = 64
    lr: float = 1e-3                      # the peak; from there a cosine to zero over the rest of the budget
    warmup_images: int = 4_000
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    ema_halflife: float = 20_000          # in images, so that it means the same at every batch size
    ema_rampup: float = 0.1               # never longer than this share of the images seen so far
    seed: int = 0
    save_seconds: float = 60.0


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or of minutes."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        if (self.steps is None) == (self.minutes is None):
            raise UsageError("give a budget as steps or as minutes, one of the two")
        if not (self.steps or 0) >= 0 or not 0 <= (self.minutes or 0) < math.inf:
            raise UsageError(f"the budget must not be negative, got steps={self.steps}, minutes={self.minutes}")

    def used(self, step: int, seconds: float) -> float:
        """The share of the budget that is spent, 0 ... 1: what every schedule is a function of."""
        spent = step / max(self.steps, 1) if self.steps is not None else seconds / max(60 * self.minutes, 1e-9)
        return min(spent, 1.0)


def learning_rate(config: LoopConfig, used: float, images: int) -> float:
    """Linear warm-up by images, cosine by budget."""
    warmup = min(1.0, (images + config.batch_size) / max(config.warmup_images, 1))
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * used))


def fit(model: nn.Module, loss_of_batch, config: LoopConfig, budget: Budget, folder: str | Path, *,
        title: str = "training", resume: bool = True, quiet: bool = False) -> dict:
    """Train `model` in place; its weights end as their exponential moving average.

    Args:
        loss_of_batch: (model, generator) -> scalar loss. It draws its batch and all its noise from `generator`.
        folder: `checkpoint.safetensors` is kept there: weights, average, optimiser, counters and curve.
        resume: go on from that file if it is there.

    Returns {"step", "images", "seconds", "curve": [[step, images, seconds, loss, lr], ...]}.
    Raises TrainingError where the loss is not finite, naming step and seed. However it ends, the state
    is saved and `model` holds the average.
    """
    path = Path(folder) / "checkpoint.safetensors"
    average = deepcopy(model).requires_grad_(False)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")        # one pass over the weights instead of a dozen
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=config.betas,
                                  weight_decay=config.weight_decay, fused=fused)
    state = {"step": 0, "images": 0, "seconds": 0.0, "curve": []}
    if resume and path.exists():
        state = checkpoint.load(path, model, average, optimiser, config)

    model.train()
    started, saved = time.perf_counter() - state["seconds"], time.perf_counter()
    try:
        with Progress(title, quiet) as progress, deferred_interrupt() as check_interrupt:
            while (used := budget.used(state["step"], state["seconds"])) < 1:
                check_interrupt()
                lr = learning_rate(config, used, state["images"])
                for group in optimiser.param_groups:
                    group["lr"] = lr
                loss = loss_of_batch(model, step_generator(config.seed, state["step"]))
                if not math.isfinite(value := loss.item()):
                    raise TrainingError(f"the loss is {value} at step {state['step']} (seed {config.seed}, "
                                        f"learning rate {lr:.2g}); the last good state is in {path}")
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
                optimiser.step()

                state["step"] += 1
                state["images"] += config.batch_size
                update_average(average, model, config, state["images"])
                state["seconds"] = time.perf_counter() - started
                if state["step"] % 10 == 0:
                    state["curve"].append([state["step"], state["images"], round(state["seconds"], 2), value, lr])
                progress.update(budget.used(state["step"], state["seconds"]), loss=value,
                                images_per_second=state["images"] / max(state["seconds"], 1e-9))
                if time.perf_counter() - saved > config.save_seconds:
                    checkpoint.save(path, model, average, optimiser, config, state)
                    saved = time.perf_counter()
    finally:                                                   # done, Ctrl-C or an error: the last good state is kept
        checkpoint.save(path, model, average, optimiser, config, state)
        model.load_state_dict(average.state_dict())
        model.eval()
    return state


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step: (seed, step) mixed to 63 bits, so that neighbours have nothing in common."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93) % 2**64
    return torch.Generator().manual_seed((mixed ^ (mixed >> 32)) % 2**63)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, config: LoopConfig, images: int) -> None:
    """average <- decay * average + (1 - decay) * weights; the half-life grows with the run (Karras et al. 2024)."""
    halflife = min(config.ema_halflife, config.ema_rampup * images)
    decay = 0.5 ** (config.batch_size / max(halflife, 1e-9))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
