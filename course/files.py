"""Files that are whole or not there at all: write beside, flush to the disk, rename over.

A rename within one folder is atomic, so a process killed at any moment leaves either the old file or the new one.
"""

import json
import os
import shutil
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from course.errors import CheckpointError, TrainingError


def write_bytes(path: str | Path, data: bytes) -> None:
    """Atomically write `data` to `path`. Raises TrainingError where the folder cannot be written."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True) if beside.parent.is_dir() else None
        raise TrainingError(f"cannot write {path}: {error.strerror or error}") from error


def also_at(path: Path, other: Path) -> None:
    """Atomically give the file `path` a second name, `other`, in the same folder; where a disk has no hard links, a copy."""
    beside = other.with_name(f".{other.name}.{os.getpid()}.tmp")
    try:
        beside.unlink(missing_ok=True)
        try:
            os.link(path, beside)
        except OSError:
            shutil.copyfile(path, beside)
        os.replace(beside, other)
        beside.unlink(missing_ok=True)                         # is left where both names meant one file already
    except OSError as error:
        raise TrainingError(f"cannot write {other}: {error.strerror or error}") from error


def write_json(path: str | Path, value) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def save_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Atomically write `tensors` and the JSON-able `metadata` as one safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(tensors, metadata={"course": json.dumps(metadata)}))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors on the CPU, metadata). Raises CheckpointError for a file that is missing, cut short or something else."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("course", "{}")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata)
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}); delete it, or restore a copy") from None


def load_into(module, tensors: dict[str, Tensor], source: str, cause: str = "") -> None:
    """Copy `tensors` into `module`; one CheckpointError lists all that is missing, extra or of another shape.

    cause: what the caller believes is behind it, said first.
    """
    check_fit(module.state_dict(), tensors, source, type(module).__name__, cause)
    module.load_state_dict(tensors)


def check_fit(own: dict[str, Tensor], tensors: dict[str, Tensor], source: str, what: str, cause: str = "") -> None:
    """Raise one CheckpointError for all names and shapes in which `tensors` differ from `own`."""
    problems = [f"missing {n} {tuple(own[n].shape)}" for n in own if n not in tensors]
    problems += [f"unexpected {n} {tuple(t.shape)}" for n, t in tensors.items() if n not in own]
    problems += [f"{n} has shape {tuple(t.shape)}, expected {tuple(own[n].shape)}"
                 for n, t in tensors.items() if n in own and own[n].shape != t.shape]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{source} does not fit {what}: {cause + ': ' if cause else ''}{shown}")


def shared(folder: Path, name: str) -> Path:
    """The file `name` of a model's folder, or where its `shared.json` says that it lies: models may have parts in common."""
    try:
        elsewhere = json.loads((folder / "shared.json").read_text("utf-8"))
    except FileNotFoundError:
        return folder / name
    except ValueError as error:
        raise CheckpointError(f"{folder / 'shared.json'} is damaged: {error}") from None
    return folder / elsewhere.get(name, name)
