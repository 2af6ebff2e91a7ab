"""Control pictures of Scenes: edges, segmentation, depth; as a ControlNet is shown them, and as they are found in a picture.

A ControlNet is only as good as what can be recovered from its pictures (Zhang et al. 2023, table 2): so here is the way
there, exact, from the scene's geometry, and the way back, from nothing but pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from course.data import oracle
from course.data.scenes import Scene, Scenes
from course.errors import UsageError

KINDS = ("edges", "segmentation", "depth")
STEP = 0.06                               # of RGB, 0 ... sqrt(3), between the two sides of a pixel, makes it an edge
CREST = 0.75                              # as steep as that, next to the steepest: an edge may lie between two pixels


def picture(data: Scenes, scenes: list[Scene], kind: str) -> Tensor:
    """What a ControlNet is shown of n scenes; (n,3,S,S) in [0, 1]. Edges and depth are gray; objects are red, green, blue."""
    if kind not in KINDS:
        raise UsageError(f"no control pictures called {kind!r}; expected one of {', '.join(KINDS)}")
    found = data.controls(scenes)[kind]
    if kind == "segmentation":
        return torch.stack([found == k for k in (1, 2, 3)], 1).float()                  # (n,3,S,S)
    return found.expand(-1, 3, -1, -1)                                                  # (n,1,S,S) -> (n,3,S,S)


def edges(images: Tensor) -> Tensor:
    """Where the colour changes, in thin lines: pictures (B,3,H,W) in [-1, 1] -> (B,H,W) bool."""
    steepness = steep(images)[:, None]                                                  # (B,1,H,W)
    # an edge is steep on both of its sides: the crest is where no neighbour is much steeper
    crest = steepness >= CREST * F.max_pool2d(steepness, 3, stride=1, padding=1)
    return (crest & (steepness > STEP))[:, 0]                                           # (B,H,W)


def steep(images: Tensor) -> Tensor:
    """Half the change of colour from the pixel before to the pixel after; (B,3,H,W) in [-1, 1] -> (B,H,W), 0 ... sqrt(3)."""
    wide = F.pad(images / 2, (1, 1, 1, 1), mode="replicate")                            # (B,3,H+2,W+2)
    across = (wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]) / 2                         # (B,3,H,W)
    down = (wide[:, :, 2:, 1:-1] - wide[:, :, :-2, 1:-1]) / 2                           # (B,3,H,W)
    return (across.square() + down.square()).sum(1).sqrt()                              # (B,H,W)


def f_score(found: Tensor, wanted: Tensor, tolerance: int = 1) -> Tensor:
    """Harmonic mean of precision and recall of edges, both (B,H,W) bool, who may be `tolerance` pixels away; (B,).

    Precision: the share of what was found that has a wanted edge near. Recall: the other way round. (Martin et al. 2004,
    without their one-to-one matching.)
    """
    def near(mask: Tensor) -> Tensor:
        return F.max_pool2d(mask[:, None].float(), 2 * tolerance + 1, stride=1, padding=tolerance)[:, 0] > 0

    def share(mask: Tensor, around: Tensor) -> Tensor:
        return (mask & around).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)

    precision, recall = share(found, near(wanted)), share(wanted, near(found))          # (B,), (B,)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)


def silhouettes(images: Tensor) -> Tensor:
    """Where something stands before the background: pictures (B,3,H,W) in [-1, 1] -> (B,H,W) bool.

    A pixel belongs to an object from half the object's colour on, since edges are mixtures of two colours.
    """
    off = oracle.from_background(images)                                                # (B,H,W)
    return (off > 0.1) & (off > 0.5 * F.max_pool2d(off[:, None], 5, stride=1, padding=2)[:, 0])


def iou(found: Tensor, wanted: Tensor) -> Tensor:
    """Intersection over union of masks, both (B,H,W) bool; (B,). Two empty masks are alike: 1."""
    both, either = (found & wanted).sum((1, 2)), (found | wanted).sum((1, 2))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def recovered(images: Tensor, data: Scenes, scenes: list[Scene]) -> dict[str, float]:
    """How well pictures (n,3,S,S) keep to the geometry of n scenes: mean edge F-score at 1 pixel, mean IoU of silhouettes."""
    exact = data.controls(scenes)
    return {"edge_f": f_score(edges(images), exact["edges"][:, 0] > 0.99).mean().item(),
            "iou": iou(silhouettes(images), exact["segmentation"] > 0).mean().item()}
