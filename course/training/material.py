"""What a run learns from, and is measured on: Scenes drawn as the recipe says, or real pictures, in memory."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from course import pixels, text, tokenizer
from course.data import Scenes, captions, images
from course.training import recipes


@dataclass
class Material:
    """images (n,3,S,S) uint8, K captions of each, and the same of the pictures kept apart; of Scenes, scenes."""

    images: Tensor
    captions: list[list[str]]
    test_images: Tensor
    test_captions: list[str]
    test_scenes: list | None = None
    origin: str = ""
    scenes: list | None = None

    def hash(self) -> str:
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()


def material(data: "recipes.Data", seed: int, prompts: int, root: str | Path = "datasets") -> Material:
    """Draw Scenes, or read real pictures; of those the last ones are kept apart."""
    if data.source == "scenes":
        kind = dict(objects=data.objects, textures=data.textures, degraded=data.degraded)
        train, test = (Scenes(data.size, split, seed, **kind) for split in (data.split, "test"))
        shown, asked = (of_shape(s.scenes(range(n)), data.shape) for s, n in ((train, data.pictures), (test, prompts)))
        drawn = torch.cat([pixels.to_bytes(train.images(range(i, min(i + 1024, data.pictures)), shown[i: i + 1024]))
                           for i in range(0, data.pictures, 1024)])                     # (n,3,S,S)
        said = [[*2 * captions.full_captions(s), captions.caption(s, short=True)] for s in shown]
        most = max(map(len, said))
        said = [(most * ways)[:most] for ways in said]         # as many for all: several objects have fewer word orders
        return Material(drawn, said, pixels.to_bytes(test.images(range(prompts), asked)),
                        test.captions(range(prompts), full=True, scenes=asked), asked,
                        f"Scenes: {data.pictures} pictures of {data.size} x {data.size}", shown)
    found = images.load(data.source, data.size, data.split, root=root, limit=data.pictures)
    apart = min(prompts, len(found) // 10)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    keep, away = order[apart:], order[:apart]
    most = min(5, max(map(len, found.captions)))
    said = [(most * found.captions[i])[:most] for i in keep.tolist()]
    return Material(found.images[keep], said, found.images[away], [found.captions[i][0] for i in away.tolist()],
                    origin=found.report())


def of_shape(scenes: list, shape: str | None) -> list:
    """The same scenes with `shape` in place of every shape."""
    if shape is None:
        return scenes
    return [replace(s, objects=tuple(replace(o, shape=shape) for o in s.objects)) for s in scenes]


def vocabulary(data: Material, config: "text.TextConfig", start: str | None = None) -> "tokenizer.Tokenizer":
    """Byte pairs learned from the captions; the preset says how many. Weights of an earlier run know only its vocabulary."""
    if start is not None:
        return tokenizer.Tokenizer.load(Path(start) / "model" / "tokenizer.json")
    words = sorted({caption for ways in data.captions[:4096] for caption in ways})
    return tokenizer.Tokenizer.train(words, num_merges=config.vocab_size - 514, length=config.length)
