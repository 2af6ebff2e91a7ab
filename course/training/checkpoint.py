"""All that a training run needs to go on as if nothing had happened, in one file, and the one before it.

Weights, their average, the optimiser's moments, the counters and the loss curve, all whole: a run may go on with another
number of processes than it began with.
"""

import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from course import files
from course.errors import CheckpointError


class Keeper:
    """Saves and restores one run in `folder`: `checkpoint.safetensors`, and `checkpoint.before.safetensors` behind it."""

    def __init__(self, folder: Path, engine, average: dict, optimiser, config):
        self.path, self.before = folder / "checkpoint.safetensors", folder / "checkpoint.before.safetensors"
        self.engine, self.average, self.optimiser, self.config = engine, average, optimiser, config

    def save(self, state: dict) -> None:
        """Atomically write everything; all processes must call this, the first one writes."""
        tensors = {}
        for name, tensor in self._own().items():
            tensor = self.engine.whole(tensor)
            if self.engine.main:
                tensors[name] = tensor.detach().cpu()
        if not self.engine.main:
            return
        if self.path.exists():
            files.also_at(self.path, self.before)              # and not moved there: at no moment is there no newest file
        files.save_tensors(self.path, tensors, {"loop": asdict(self.config), "state": state})

    def load(self) -> dict | None:
        """Restore everything in place and return the counters; None where nothing is kept.

        A damaged newest file is set aside for the one before, with a warning. Raises CheckpointError where neither can
        be read, or where they were made with other settings or by another model.
        """
        if not self.path.exists() and not self.before.exists():
            return None
        path = self.path
        try:
            tensors, metadata = files.load_tensors(path)
        except CheckpointError as error:
            if not self.before.exists():
                raise
            path = self.before
            tensors, metadata = files.load_tensors(path)
            if self.path.exists():
                warnings.warn(f"{error}; going on from {path.name}, step {metadata.get('state', {}).get('step')}", stacklevel=3)
        self._check(metadata, path)
        slots = self._slots(tensors)
        weights = {name: t for name, t in tensors.items() if not name.startswith("optimiser.")}
        own = self._own()
        own = {name: t for name, t in own.items() if not name.startswith("optimiser.")}
        files.check_fit(own, weights, str(path), type(self.engine.bare).__name__)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(self.engine.like(weights[name], tensor))
        self.optimiser.load_state_dict({"state": slots, "param_groups": self.optimiser.state_dict()["param_groups"]})
        return metadata["state"]

    def _own(self) -> dict:
        tensors = {f"model.{n}": t for n, t in self.engine.bare.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        for i, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{slot}": t for slot, t in slots.items()}
        return tensors

    def _slots(self, tensors: dict) -> dict[int, dict]:
        """The optimiser's moments by the number of their parameter, laid out as it is."""
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        slots: dict[int, dict] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, i, slot = name.split(".")
                if int(i) < len(parameters):                   # another model: its weights will say so
                    slots.setdefault(int(i), {})[slot] = self.engine.like(tensor, parameters[int(i)])
        return slots

    def _check(self, metadata: dict, path: Path) -> None:
        if not {"state", "loop"} <= set(metadata):
            raise CheckpointError(f"{path} is no training checkpoint")
        before, now = metadata["loop"], asdict(self.config) | {"betas": list(self.config.betas)}
        changed = [f"{k}: {before.get(k)} -> {now[k]}" for k in now if now[k] != before.get(k) and k != "save_seconds"]
        if changed:
            raise CheckpointError(f"{path} was trained with other settings ({'; '.join(changed)}); choose another folder")


def average_of(folder: Path, model: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    """`model` with the average that a run has kept; its names there begin with `prefix`. After a sharded run the trained
    model is in pieces, and the checkpoint is where it is whole."""
    path = folder / "checkpoint.safetensors"
    tensors, _ = files.load_tensors(path)
    whole = {name: tensors.get(f"average.{prefix}{name}", tensors.get(f"model.{prefix}{name}")) for name in model.state_dict()}
    files.load_into(model, {name: t for name, t in whole.items() if t is not None}, str(path))
    return model.eval()
