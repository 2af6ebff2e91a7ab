"""Pictures to be judged, and what is said of them: shared by the tables that compare models or settings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from course.data import Scenes, oracle
from course.evaluation import features, metrics
from course.evaluation.sweep import wilson


@dataclass
class Judge:
    """Unseen prompts, as many real pictures of other scenes to compare with, and a feature network."""

    size: int
    count: int
    objects: tuple[int, int]
    extractor: features.Extractor

    def __post_init__(self):
        data = Scenes(self.size, "test", objects=self.objects, textures=("plain",), degraded=0.0)
        self.scenes = data.scenes(range(self.count))
        self.prompts = data.captions(range(self.count), full=True)
        self.own = data.images(range(self.count))              # (n,3,S,S): what the prompts describe
        others = range(1_000_000, 1_000_000 + max(2 * self.count, 256))
        self.real = self.extractor.of(data.images(others))     # (m,d)

    def says(self, images: Tensor) -> dict[str, float]:
        """FD, KID with its interval, precision, recall, and the share that the oracle finds right with its interval."""
        found = self.extractor.of(images)
        kid, kid_low, kid_high = metrics.kernel_distance_interval(self.real, found, size=min(256, self.count), draws=50)
        precision, recall = metrics.precision_recall(self.real, found)
        right = sum(oracle.score(reading, scene)["all"] for reading, scene in zip(oracle.read(images), self.scenes, strict=True))
        low, high = wilson(right, self.count)
        return {"fd": metrics.frechet_distance(self.real, found), "kid": kid, "kid_low": kid_low, "kid_high": kid_high,
                "precision": precision, "recall": recall, "right": right / self.count, "right_low": low, "right_high": high}


@torch.no_grad()
def pictures(pipe, prompts: list[str], seed: int = 0, batch: int = 64, tick: Callable[[float], None] = lambda done: None,
             **how) -> Tensor:
    """(n,3,S,S) on the CPU."""
    drawn = []
    for i in range(0, len(prompts), batch):
        drawn.append(pipe.decode(pipe.latents(prompts[i: i + batch], seed=seed + i, **how)).cpu())
        tick(min(i + batch, len(prompts)) / len(prompts))
    return torch.cat(drawn)


@torch.no_grad()
def rebuilt(pipe, images: Tensor, batch: int = 64) -> Tensor:
    """What the autoencoder alone makes of pictures: no latent model can be better."""
    return torch.cat([pipe.decode(pipe.encode_image(part.to(pipe.device))).cpu() for part in images.split(batch)])
