"""Two CLIPs that differ in one thing: whether captions that are almost right were among the wrong ones they learned from.

A caption of another picture is told apart by any one of its words. Without near misses nothing asks which colour is on which
shape, and CLIP reads a bag of words (Podell et al. 2023, appendix B, suspect as much; Yuksekgonul et al. 2023 measure it).
"""

from dataclasses import replace

import torch
from torch import Tensor

from course import presets, text
from course.data import Scenes, captions, oracle
from course.evaluation import agreement
from course.evaluation.tables import arms
from course.evaluation.tables.table import Work
from course.training import clip, loop
from course.training.material import material, vocabulary
from course.training.recipes import find

MINUTES = {"quick": 0.005, "cpu": 8.0, "gpu": 8.0}
PICTURES = {"quick": 48, "cpu": 12_288, "gpu": 49_152}
NEAR = 3


def trained(work: Work, near: bool) -> agreement.Scorer:
    """One of the two, of the course's recipe for clip-score but for the minutes, in a run folder of the table."""
    recipe = find("clip", "score")
    found = material(replace(recipe.data, pictures=PICTURES[work.scale.name]), recipe.seed, 8)
    config = presets.PIPELINES[recipe.model].text
    tokens = vocabulary(found, config)
    config = replace(config, projection=config.width, eos_id=tokens.end_id)
    torch.manual_seed(work.seed)
    model = clip.CLIP(clip.ImageEncoder(config.projection), text.TextEncoder(config))

    def choose(chosen: Tensor, step) -> Tensor:
        rows, which = [], step.integers(10_000).tolist()
        for i, way in zip(chosen.tolist(), which, strict=True):
            own = found.captions[i][way % len(found.captions[i])]
            rows += [own, *(captions.near_misses(own, way, NEAR) if near else [])]
        return tokens(rows).view(len(chosen), -1, config.length)
    minutes = MINUTES[work.scale.name]
    clip.train(model, found.images, choose, work.folder / "runs" / f"clip-{'near' if near else 'plain'}",
               loop.Budget(minutes=minutes), replace(recipe.loop, seed=work.seed),
               watch=lambda state, _: work.progress(min(state["seconds"] / (60 * minutes), 1.0)), **arms.how(work.device))
    return agreement.scorer(model, tokens, work.device, "CLIP with near misses" if near else "CLIP without near misses")


@torch.no_grad()
def tells_apart(scorer: agreement.Scorer, count: int) -> float:
    """Share of pictures of two objects that agree more with their caption than with the one that has two words exchanged."""
    data = Scenes(64, "test", objects=(2, 2), textures=("plain",), degraded=0.0)
    said = data.captions(range(count), full=True)
    pairs = [(i, s, captions.near_misses(s, 0, 1)[0]) for i, s in enumerate(said)]
    pairs = [(i, s, other) for i, s, other in pairs if sorted(s.split()) == sorted(other.split()) and s != other]
    images = data.images([i for i, _, _ in pairs])
    own, exchanged = (torch.cat([scorer.cosines(images[k: k + 128], [p[which] for p in pairs[k: k + 128]]).cpu()
                                 for k in range(0, len(pairs), 128)]) for which in (1, 2))
    return (own > exchanged).double().mean().item()


def follows(scores: Tensor, images: Tensor, scenes: list) -> float:
    """Correlation of n scores with the oracle's verdict, all right or not; 0 where all pictures fare alike."""
    right = torch.tensor([oracle.score(r, s)["all"] for r, s in zip(oracle.read(images), scenes, strict=True)]).double()
    if right.std() == 0 or scores.std() == 0:
        return 0.0
    return torch.corrcoef(torch.stack([scores.double(), right]))[0, 1].item()
