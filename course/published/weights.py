"""Tensors out of any file that weights are released in, without ever running what is in it.

safetensors holds numbers only. A .bin, .ckpt, .pt or .pth is a pickle, a program that can do anything; it is opened with
`weights_only=True`, which knows tensors and containers and refuses the rest.
"""

import json
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from course import files
from course.errors import CheckpointError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers; transformers, new and old
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def read(source: str | Path) -> dict[str, Tensor]:
    """Name -> tensor, from a file, or from the folder of one model as diffusers and transformers write it.

    In a folder full precision is preferred to the fp16 variant, safetensors to pickles, and shards are put together.
    Raises CheckpointError that says what was looked for.
    """
    source = Path(source)
    if source.is_dir():
        return _read_folder(source)
    if not source.is_file():
        raise CheckpointError(f"no such file or folder: {source}")
    if source.stat().st_size == 0:
        raise CheckpointError(f"{source} is empty: was the download cut short?")
    if source.name.endswith(".index.json"):
        return _read_shards(source)
    if source.suffix == ".safetensors":
        return files.load_tensors(source)[0]
    if source.suffix in PICKLES:
        return _read_pickle(source)
    raise CheckpointError(f"{source} has no known ending; expected .safetensors, {', '.join(PICKLES)} or a folder")


def _read_folder(folder: Path) -> dict[str, Tensor]:
    tried = []
    for ending in (".safetensors", ".bin"):
        for variant in ("", ".fp16"):
            for stem in STEMS:
                for name in (f"{stem}{variant}{ending}", f"{stem}{ending}.index{variant}.json",
                             f"{stem}{variant}{ending}.index.json"):
                    if (folder / name).is_file():
                        return _read_shards(folder / name) if name.endswith(".json") else read(folder / name)
                    tried.append(name)
    raise CheckpointError(f"no weights in {folder}; looked for {', '.join(tried[:3])} and the like")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """A model in several files: the index says which tensor is in which."""
    try:
        where = json.loads(index.read_text())["weight_map"]
        names = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error}") from error
    found = {}
    for name in names:
        # a name with a path in it could point anywhere on this machine
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index} names the shard {name!r}; expected the name of a file beside it")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names the shard {name}, which is not there; {len(names)} shards are needed")
        found |= read(index.parent / name)
    if missing := sorted(set(where) - set(found)):
        raise CheckpointError(f"{len(missing)} tensors that {index} promises are in no shard: {', '.join(missing[:5])}")
    return found


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asks = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "more than tensors")
        raise CheckpointError(f"{path} was refused, nothing in it was run: it holds {asks.strip()[:200]}; look for a "
                              ".safetensors file of the same model") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged or no PyTorch file ({str(error)[:200]})") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]                        # Lightning wraps the weights in counters and settings
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dict of tensors")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
