"""How the machine is used: devices, processes, precision, memory. None of it changes what is learned, but for rounding.

Placement and processes are accelerate's. The rest is a few lines of torch each, because they are worth seeing.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from course.errors import TrainingError, UsageError

PRECISIONS = ("fp32", "bf16", "fp64")
# dense bf16 FLOP/s by the makers' data sheets
BF16_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12}


@dataclass(frozen=True)
class EngineConfig:
    """Where and how a loop runs."""

    device: str = "cpu"
    precision: str = "fp32"                # bf16: autocast around float32 weights; fp64: to see whether two runs are equal
    micro_batch: int | None = None         # samples at once on each process; None: all of its share of the batch
    compile: bool = False
    channels_last: bool = False
    recompute: bool = False                # gradient checkpointing: a third more time for much less memory
    sharded: bool = False                  # weights, gradients and moments spread over the processes (FSDP)

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UsageError(f"micro_batch must be at least 1, got {self.micro_batch}")


def processes(config: EngineConfig):
    """Who else is running this (accelerate's PartialState): alone, or as torchrun started us."""
    from accelerate import PartialState
    return PartialState(cpu=torch.device(config.device).type == "cpu")


class Engine:
    """One process of a run: `model` is trained, `bare` is the same weights without what is wrapped around them."""

    def __init__(self, config: EngineConfig, model: nn.Module):
        from accelerate import Accelerator
        self.config = config
        self.accelerator = Accelerator(cpu=torch.device(config.device).type == "cpu")
        self.device = self.accelerator.device
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        model.to(self.device, torch.float64 if config.precision == "fp64" else None)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        if config.recompute:
            recompute(model)
        self.bare = model
        if config.sharded:
            shard(model)
        wrapped = torch.compile(model) if config.compile else model
        self.model = wrapped if config.sharded else self.accelerator.prepare_model(wrapped)

    def rows(self, batch_size: int) -> range:
        """Which samples of the batch are this process's."""
        if batch_size % self.processes:
            raise UsageError(f"a batch of {batch_size} cannot be shared by {self.processes} processes; "
                             f"choose a multiple of {self.processes}")
        share = batch_size // self.processes
        return range(self.rank * share, (self.rank + 1) * share)

    def gradients(self, loss_of_batch, step) -> float:
        """Gradients of the mean loss of the whole batch, everywhere; returns that loss."""
        pieces = step.split(self.config.micro_batch or len(step))
        total = torch.zeros((), device=self.device, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        for piece in pieces:
            last = piece is pieces[-1]
            with self._hold_back(not last):                    # processes talk once a step, not once a piece
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                    loss = loss_of_batch(self.model, piece)
                share = len(piece) / len(step)
                (share * loss).backward()
            total += share * loss.detach()
            for name, value in piece.figures.items():
                step.figures[name] = step.figures.get(name, 0.0) + share * value
        return self.mean(total).item()

    def _hold_back(self, hold: bool):
        if self.config.sharded:
            self.bare.set_requires_gradient_sync(not hold)
            return nullcontext()
        return self.accelerator.no_sync(self.model) if hold else nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return self.accelerator.reduce(value, "mean") if self.processes > 1 else value

    def agree(self, seconds: float, stop: bool, save: bool) -> tuple[float, bool, bool]:
        """The clock and the wish to save of the first process, and whether anybody must stop: all decide alike."""
        if self.processes == 1:
            return seconds, stop, save
        said = torch.tensor([seconds * self.main, float(stop), float(save and self.main)], device=self.device)
        seconds, stops, saves = self.accelerator.reduce(said, "sum").tolist()
        return seconds, stops > 0, saves > 0

    def peak_flops(self) -> float | None:
        """What this GPU's matrix units can do per second at most, over all processes; None where we do not know."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        peak = next((peak for known, peak in BF16_PEAKS.items() if known in name), None)
        return peak and peak * self.processes

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of the model or the optimiser, put together from its shards; all processes must ask for it."""
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def like(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """The inverse of `whole`: `tensor` on the device, and in the shards, of `parameter`."""
        tensor = tensor.to(self.device)
        if tensor.ndim == 0 or not hasattr(parameter, "full_tensor"):
            return tensor
        from torch.distributed.tensor import distribute_tensor
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def recompute(model: nn.Module) -> None:
    """Forget what happens inside each block and compute it again on the way back (Chen et al. 2016)."""
    from torch.utils.checkpoint import checkpoint
    for block in _blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def shard(model: nn.Module) -> None:
    """FSDP: each process keeps a slice of every weight, and a block is put together only while it computes.

    Raises UsageError on a CPU with a torch that can shard on GPUs only (2.6 is one).
    """
    from torch.distributed.fsdp import fully_shard
    if next(model.parameters()).device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise UsageError(f"torch {torch.__version__} shards weights on GPUs only; leave sharding away, or take a newer torch")
    for block in _blocks(model):
        fully_shard(block)
    fully_shard(model)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What a U-Net, autoencoder or text encoder repeats."""
    return [module for name, module in model.named_modules()
            if name.split(".")[-1].isdigit() and name.split(".")[-2:-1] in (["resnets"], ["attentions"], ["layers"])]


def fitting_micro_batch(engine: Engine, loss_of_batch, step) -> TrainingError:
    """After the memory was not enough: halve the micro-batch until a step goes through, and say so."""
    asked = engine.config.micro_batch or len(step)
    size = asked
    while size > 1:
        size //= 2
        try:
            engine.bare.zero_grad(set_to_none=True)
            if engine.device.type == "cuda":
                torch.cuda.empty_cache()
            loss_of_batch(engine.model, step.split(size)[0]).backward()
        except torch.OutOfMemoryError:
            continue
        return TrainingError(f"out of memory with {asked} samples at once; {size} fit: go on with --micro-batch {size}, "
                             "which changes nothing else")
    return TrainingError("out of memory with a single sample; --recompute or a smaller model is needed")
