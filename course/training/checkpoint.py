"""All that a training run needs to go on as if nothing had happened, in one file.

Weights, their average, the optimiser's moments, the counters and the loss curve: `checkpoint.safetensors`.
"""

from dataclasses import asdict
from pathlib import Path

from course import files
from course.errors import CheckpointError


def save(path: Path, model, average, optimiser, config, state: dict) -> None:
    """Atomically write everything to `path`."""
    tensors = {f"model.{n}": t for n, t in model.state_dict().items()}
    tensors |= {f"average.{n}": t for n, t in average.state_dict().items()}
    for i, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{slot}": t for slot, t in slots.items()}
    files.save_tensors(path, tensors, {"loop": asdict(config), "state": state})


def load(path: Path, model, average, optimiser, config) -> dict:
    """Restore everything from `path` in place and return the counters.

    Raises CheckpointError where the file is damaged, or was made with other settings or another model.
    """
    tensors, metadata = files.load_tensors(path)
    if not {"state", "loop"} <= set(metadata):
        raise CheckpointError(f"{path} is no training checkpoint")
    before, now = metadata["loop"], asdict(config) | {"betas": list(config.betas)}
    changed = [f"{k}: {before.get(k)} -> {now[k]}" for k in now if now[k] != before.get(k) and k != "save_seconds"]
    if changed:
        raise CheckpointError(f"{path} was trained with other settings ({'; '.join(changed)}); choose another folder")
    groups: dict[str, dict] = {"model": {}, "average": {}, "optimiser": {}}
    for name, tensor in tensors.items():
        group, rest = name.split(".", 1)
        groups.get(group, {})[rest] = tensor
    files.load_into(model, groups["model"], str(path))
    files.load_into(average, groups["average"], str(path))
    slots: dict[int, dict] = {}
    for name, tensor in groups["optimiser"].items():
        i, slot = name.split(".")
        slots.setdefault(int(i), {})[slot] = tensor
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    return metadata["state"]
