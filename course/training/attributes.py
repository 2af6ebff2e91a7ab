"""Train a network to say what a picture of Scenes shows; what it sees on the way measures how alike pictures are.

It learns from scenes of another seed and split than any model that it will judge; and from blurred, noisy and cropped ones,
too, so that its features know the difference.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import pixels
from course.data.vocabulary import ALL_COLORS, ALL_SHAPES, BACKGROUNDS, DEGRADATIONS, SIZES, Scene
from course.training import clip, loop

# what is asked, and how many answers there are; where several objects answer differently, each answer gets an equal share
QUESTIONS = {"pair": len(ALL_SHAPES) * len(ALL_COLORS), "size": len(SIZES), "count": 3, "background": len(BACKGROUNDS),
             "degradation": len(DEGRADATIONS) + 1, "place": 9}


class AttributeNet(nn.Module):
    """Pictures (B,3,H,W) in [-1,1] -> {question: logits (B,answers)}; `features` (B,dim) are what the answers are read from."""

    def __init__(self, dim: int = 64, channels: tuple[int, ...] = (24, 32, 48, 64)):
        super().__init__()
        self.dim, self.channels = dim, tuple(channels)
        self.encoder = clip.ImageEncoder(dim, self.channels)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, answers) for name, answers in QUESTIONS.items()})

    def features(self, x: Tensor) -> Tensor:
        return self.encoder(x)                                                          # (B,dim)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = F.silu(self.features(x))
        return {name: head(h) for name, head in self.heads.items()}


def answers(scenes: list[Scene]) -> dict[str, Tensor]:
    """{question: (n,answers)}, each row a distribution."""
    found = {name: torch.zeros(len(scenes), count) for name, count in QUESTIONS.items()}
    for i, scene in enumerate(scenes):
        found["count"][i, len(scene.objects) - 1] = 1
        found["background"][i, list(BACKGROUNDS).index(scene.background)] = 1
        found["degradation"][i, (None, *DEGRADATIONS).index(scene.degradation)] = 1
        for thing in scene.objects:
            share = 1 / len(scene.objects)
            found["pair"][i, ALL_SHAPES.index(thing.shape) * len(ALL_COLORS) + list(ALL_COLORS).index(thing.color)] += share
            found["size"][i, SIZES.index(thing.size)] += share
            found["place"][i, min(int(3 * thing.cy), 2) * 3 + min(int(3 * thing.cx), 2)] += share
    return found


def train(net: AttributeNet, images: Tensor, wanted: dict[str, Tensor], folder: str | Path, budget: loop.Budget,
          config: loop.LoopConfig, **how) -> dict:
    """Train in place by cross-entropy, all questions alike; images (n,3,S,S) uint8. Returns what `loop.fit` does."""
    def loss_of_batch(model, step):
        chosen = step.integers(len(images))
        own = next(model.parameters())
        said = model(pixels.to_unit(images[chosen]).to(own))
        return sum(F.cross_entropy(said[name], rows[chosen].to(own)) for name, rows in wanted.items()) / len(wanted)

    return loop.fit(net, loss_of_batch, config, budget, folder, **how)
