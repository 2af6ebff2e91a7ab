"""The training loop, on one page: draw a batch, take a step, average the weights, and never lose anything.

Everything random in step k is drawn from generators seeded by (seed, k), so a run that was stopped and resumed takes
exactly the steps that an uninterrupted one would have taken, bit for bit on a CPU.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from course.errors import Terminated, TrainingError, UsageError
from course.training import checkpoint
from course.training.engine import Engine, EngineConfig, fitting_micro_batch
from course.training.interrupt import deferred_interrupt
from course.training.log import Log
from course.training.step import Step


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
        engine: EngineConfig = EngineConfig(), title: str = "training", resume: bool = True, quiet: bool = False,
        tensorboard: bool = False, flops_per_image: float | None = None, start: str | Path | None = None,
        watch: Callable[[dict, dict[str, Tensor]], None] | None = None) -> dict:
    """Train `model` in place; its weights end as their exponential moving average.

    Args:
        loss_of_batch: (model, step) -> scalar loss. All that is random comes from `step`, a step.Step.
        folder: `checkpoint.safetensors` is kept there (weights, average, optimiser, counters, curve), and `log.jsonl`.
        resume: go on from that checkpoint if it is there.
        flops_per_image: of a training step; on a GPU the share of its peak is then shown (MFU).
        start: folder of another run, of the same model, whose averaged weights are where this one begins.
        watch: called after each step with the counters and the averaged weights by name; the clock stands still meanwhile.

    Returns {"step", "images", "seconds", "curve": [[step, images, seconds, loss, lr], ...]}.
    Raises TrainingError where the loss is not finite, naming step and seed, and where memory runs out. However it ends,
    the last good state is saved and `model` holds the average.
    """
    folder = Path(folder)
    if start is not None and not (resume and (folder / "checkpoint.safetensors").exists()):
        checkpoint.average_of(Path(start), model)
    run = Engine(engine, model)
    rows = run.rows(config.batch_size)
    groups = groups_of(model)
    parameters = [p for group in groups for p in group["params"]]
    fused = run.device.type in ("cpu", "cuda")                 # one pass over the weights instead of a dozen
    optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    keep = checkpoint.Keeper(folder, run, average, optimiser, config)
    state = (keep.load() if resume else None) or {"step": 0, "images": 0, "seconds": 0.0, "curve": []}
    log = Log(folder, title, state, quiet or not run.main, run.main, tensorboard, run.peak_flops(), flops_per_image)

    run.model.train()
    started, saved = time.perf_counter() - state["seconds"], time.perf_counter()
    try:
        with log, deferred_interrupt() as interrupted:
            while (used := budget.used(state["step"], state["seconds"])) < 1:
                lr = learning_rate(config, used, state["images"])
                for group in optimiser.param_groups:
                    group["lr"] = lr * group["pace"]
                optimiser.zero_grad()
                step = Step(config.seed, state["step"], config.batch_size, rows, used)
                loss = run.gradients(loss_of_batch, step)
                if not math.isfinite(loss):
                    raise TrainingError(f"the loss is {loss} at step {state['step']} (seed {config.seed}, learning rate "
                                        f"{lr:.2g}); the last good state is in {keep.path}")
                nn.utils.clip_grad_norm_(parameters, config.grad_clip)
                optimiser.step()

                state["step"] += 1
                state["images"] += config.batch_size
                update_average(average, model, config, state["images"])
                state["seconds"], stop, due = run.agree(time.perf_counter() - started, interrupted() is not None,
                                                        time.perf_counter() - saved > config.save_seconds)
                if state["step"] % 10 == 0:
                    state["curve"].append([state["step"], state["images"], round(state["seconds"], 2), loss, lr])
                log.step(budget.used(state["step"], state["seconds"]), state, loss, lr, step.figures)
                if watch is not None:
                    before = time.perf_counter()
                    watch(state, average)
                    started += time.perf_counter() - before
                if stop:
                    raise interrupted() or Terminated          # ours, or another process's
                if due:
                    keep.save(state)
                    saved = time.perf_counter()
    except torch.OutOfMemoryError:
        raise fitting_micro_batch(run, loss_of_batch, step) from None
    finally:                                                   # done, Ctrl-C or an error: the last good state is kept
        keep.save(state)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(average[name])
        model.eval()
    return state


def groups_of(model: nn.Module) -> list[dict]:
    """What is trained, by pace: a model may say that parts of it learn slower, `paces = {"critic.": 0.1}`."""
    groups: dict[float, list] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            pace = next((pace for start, pace in getattr(model, "paces", {}).items() if name.startswith(start)), 1.0)
            groups.setdefault(pace, []).append(p)
    return [{"params": params, "pace": pace} for pace, params in groups.items()]


@torch.no_grad()
def update_average(average: dict, model: nn.Module, config: LoopConfig, images: int) -> None:
    """average <- decay * average + (1 - decay) * weights; the half-life grows with the run (Karras et al. 2024)."""
    halflife = min(config.ema_halflife, config.ema_rampup * images)
    decay = 0.5 ** (config.batch_size / max(halflife, 1e-9))
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in model.parameters()], 1 - decay)
