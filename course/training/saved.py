"""What an earlier run, or somebody else, left behind and a new run builds on: an autoencoder, a text encoder, features."""

import json
from pathlib import Path

from torch import nn

from course import files, presets, published, text, tokenizer
from course.errors import CheckpointError, UsageError
from course.training import clip


def autoencoder(folder: str | Path) -> nn.Module:
    """What `course train vae` or `vq` left in its run folder, frozen."""
    config = presets.vae_from_dict(_config(folder, "vae", "course train vae"))
    model = presets.autoencoder(config)
    files.load_into(model, files.load_tensors(_model(folder) / "vae.safetensors")[0], str(folder))
    return model.eval().requires_grad_(False)


def text_encoder(source: str | Path) -> tuple["tokenizer.Tokenizer", nn.Module]:
    """(tokenizer, frozen text encoder): of a `course train clip` run, or CLIP-L as released.

    Released: a folder with `tokenizer/` and `text_encoder/` in it, as of a whole pipeline; a folder that holds the files of
    both, as of CLIP itself; or the name of such a repository, which Hugging Face's library then downloads.
    """
    folder = Path(source)
    if (_model(folder) / "clip.json").is_file():
        model, tokens = contrastive(folder)
        return tokens, model.text_encoder.eval().requires_grad_(False)
    if not folder.exists():
        folder = _downloaded(str(source))
    words, network = folder / "tokenizer", folder / "text_encoder"
    encoder = published.load_text_encoder(network if network.is_dir() else folder)
    return published.load_tokenizer(words if words.is_dir() else folder), encoder.eval().requires_grad_(False)


def contrastive(folder: str | Path) -> tuple["clip.CLIP", "tokenizer.Tokenizer"]:
    """What `course train clip` left in its run folder: (both encoders, tokenizer)."""
    config = text.TextConfig(**_config(folder, "clip", "course train clip"))
    model = clip.CLIP(clip.ImageEncoder(config.projection), text.TextEncoder(config))
    files.load_into(model, files.load_tensors(_model(folder) / "clip.safetensors")[0], str(folder))
    return model, tokenizer.Tokenizer.load(_model(folder) / "tokenizer.json")


def _model(folder: str | Path) -> Path:
    """A run keeps its model one level down; a shipped model lies flat."""
    return Path(folder) / "model" if (Path(folder) / "model").is_dir() else Path(folder)


def _config(folder: str | Path, name: str, command: str) -> dict:
    path = _model(folder) / f"{name}.json"
    if not path.is_file():
        raise CheckpointError(f"nothing to build on in {folder}: expected {path}; `{command}` makes one")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _downloaded(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise UsageError(f"{name} is no folder here; to download it, pip install -e '.[bench]'") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "model.safetensors"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{name} is no folder here, and could not be downloaded: {str(error).splitlines()[0]}") from None
