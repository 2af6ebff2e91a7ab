"""Pictures to be judged, and what is said of them: shared by the tables that compare models or settings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from course.data import Scenes, oracle
from course.evaluation import agreement, features, metrics
from course.evaluation.sweep import wilson
from course.evaluation.tables.table import Work


def extractor(work: Work) -> features.Extractor:
    """What FD and KID are measured in: fd-mini, or the Inception that was asked for; at the quick scale an untrained one."""
    if work.inception is not None:
        return work.with_network(features.fid(work.inception, work.device))
    return work.with_network(features.random() if work.scale.name == "quick" else features.course(device=work.device))


def scorer(work: Work) -> agreement.Scorer:
    """What says whether pictures and words agree: clip-score, or the CLIP that was asked for; at the quick scale untrained."""
    if work.clip is not None:
        return work.with_network(agreement.released(work.clip, work.device))
    return work.with_network(agreement.untrained(device=work.device) if work.scale.name == "quick"
                             else agreement.course(device=work.device))


def likeness(work: Work) -> features.Likeness:
    """What says whether two pictures look alike: PSIM-course, or the LPIPS that was asked for."""
    return work.with_network(features.lpips(work.lpips, work.device) if work.lpips is not None
                             else features.psim("random" if work.scale.name == "quick" else "fd-mini", work.device))


@dataclass
class Judge:
    """Unseen prompts, as many real pictures of other scenes to compare with, and a feature network."""

    size: int
    count: int
    objects: tuple[int, int]
    extractor: features.Extractor
    scorer: agreement.Scorer | None = None

    def __post_init__(self):
        data = Scenes(self.size, "test", objects=self.objects, textures=("plain",), degraded=0.0)
        self.scenes = data.scenes(range(self.count))
        self.prompts = data.captions(range(self.count), full=True)
        self.own = data.images(range(self.count))              # (n,3,S,S): what the prompts describe
        others = range(1_000_000, 1_000_000 + max(2 * self.count, 256))
        self.real = self.extractor.of(data.images(others))     # (m,d)

    def says(self, images: Tensor) -> dict[str, float]:
        """FD, KID with its interval, precision, recall, the share that the oracle finds right with its interval; CLIP score."""
        found = self.extractor.of(images)
        kid, kid_low, kid_high = metrics.kernel_distance_interval(self.real, found, size=min(256, self.count), draws=50)
        precision, recall = metrics.precision_recall(self.real, found)
        right = sum(oracle.score(reading, scene)["all"] for reading, scene in zip(oracle.read(images), self.scenes, strict=True))
        low, high = wilson(right, self.count)
        clip = {"clip": self.scorer.of(images, self.prompts).mean().item()} if self.scorer else {}
        return clip | {"fd": metrics.frechet_distance(self.real, found), "kid": kid, "kid_low": kid_low, "kid_high": kid_high,
                "precision": precision, "recall": recall, "right": right / self.count, "right_low": low, "right_high": high}


@torch.no_grad()
def pictures(pipe, prompts: list[str], seed: int = 0, batch: int | None = None, tick: Callable[[float], None] = lambda done: None,
             **how) -> Tensor:
    """(n,3,S,S) on the CPU; by default in batches that keep the device busy."""
    drawn, batch = [], batch or (64 if pipe.device.type == "cpu" else 512)
    for i in range(0, len(prompts), batch):
        drawn.append(pipe.decode(pipe.latents(prompts[i: i + batch], seed=seed + i, **how)).cpu())
        tick(min(i + batch, len(prompts)) / len(prompts))
    return torch.cat(drawn)


@torch.no_grad()
def rebuilt(pipe, images: Tensor, batch: int = 64) -> Tensor:
    """What the autoencoder alone makes of pictures: no latent model can be better."""
    return torch.cat([pipe.decode(pipe.encode_image(part.to(pipe.device))).cpu() for part in images.split(batch)])
