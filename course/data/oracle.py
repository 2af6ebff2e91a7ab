"""Read a picture back into words, without learning anything: analysis by synthesis.

The palette, the shapes and the drawing code are known, so a hypothesis is tested by drawing it: find the background at
the border, cut out what differs from it, fit every shape's place and size to each piece, draw it, and keep what leaves
the smallest residual. What fits nothing is not guessed: the reading abstains, attribute by attribute.

It is the measuring instrument of this course. `oracle_study` measures the instrument.
"""

from dataclasses import dataclass, replace
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from course.data import drawing
from course.data.vocabulary import (
    ALL_COLORS,
    ALL_SHAPES,
    ALL_TEXTURES,
    BACKGROUNDS,
    Object,
    Scene,
    nearest_position,
    relation,
    size_of,
)
from course.errors import ShapeError, UsageError

WORK_SIZE = 64                     # larger pictures are averaged down to this: a word needs no more
BACKGROUND_ERROR = 0.16            # largest RGB distance of the border to a background's colour
COLOR_ERROR = 0.22                 # largest mean RGB distance of a piece to its colour
RESIDUAL = 0.17                    # largest share of a piece's contrast that its drawing may leave unexplained: an
                                   # ellipse, a bar or a diamond leaves 0.18 ... 0.3, a clean known shape below 0.1
SHAPE_MARGIN = 0.97                # the second-best shape must be worse by this factor
SMALLEST = 0.006                   # of the picture: smaller pieces are specks
MOST = 4                           # pieces looked at in a picture


@dataclass(frozen=True)
class ObjectReading:
    """An object as read; None is an abstention. Geometry in picture widths."""

    shape: str | None
    color: str | None
    size: str | None
    texture: str | None
    position: str | None
    cx: float
    cy: float
    radius: float
    residual: float


@dataclass(frozen=True)
class Reading:
    """A picture as read: its objects, largest first, and its background; None is an abstention."""

    objects: tuple[ObjectReading, ...]
    background: str | None

    @property
    def abstained(self) -> bool:
        return self.background is None or not self.objects or any(None in (o.shape, o.color) for o in self.objects)


@torch.no_grad()
def read(images: Tensor) -> list[Reading]:
    """Pictures (B,3,H,W) in [-1,1], H = W >= 32 -> B readings. Texture is read from 64 pixels up.

    Raises ShapeError for another shape, UsageError for values that are not finite or far out of range.
    """
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or images.shape[2] < 32:
        raise ShapeError(f"expected pictures (B,3,H,W) with H = W >= 32, got {tuple(images.shape)}")
    if not torch.isfinite(images).all() or images.abs().max() > 1.5:
        raise UsageError("expected finite values in [-1, 1]")
    full_size = images.shape[-1]
    rgb = (images.float().cpu().clamp(-1, 1) + 1) / 2
    if full_size > WORK_SIZE:
        rgb = F.interpolate(rgb, size=WORK_SIZE, mode="area")
    readings = []
    for chunk in rgb.split(128):
        readings += _read_chunk(chunk, with_texture=full_size >= 64)
    return readings


def _read_chunk(rgb: Tensor, with_texture: bool) -> list[Reading]:
    B, size = len(rgb), rgb.shape[-1]
    names, error = _backgrounds(rgb)                                                    # (B,), (B,)
    ground = drawing.background_palette()[names]                                        # (B,3)
    pieces = _pieces(rgb, ground)                                                       # (B,M,H,W) masks
    owner, slot = pieces.flatten(2).any(2).nonzero().T                                  # (n,), (n,)
    found = [[] for _ in range(B)]
    if len(owner):
        objects = _fit(rgb[owner], ground[owner], pieces[owner, slot], with_texture, size)
        for b, thing in zip(owner.tolist(), objects, strict=True):
            found[b].append(thing)
    words = list(BACKGROUNDS)
    return [Reading(tuple(found[b]), words[names[b]] if error[b] < BACKGROUND_ERROR else None) for b in range(B)]


def _backgrounds(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest background colour of the border's median, and how far off it is; (B,) and (B,)."""
    edge = max(1, rgb.shape[-1] // 32)
    inside = torch.zeros(rgb.shape[-2:], dtype=torch.bool)
    inside[edge:-edge, edge:-edge] = True
    border = rgb[:, :, ~inside].median(dim=2).values                                    # (B,3)
    distance = torch.cdist(border, drawing.background_palette())                        # (B,backgrounds)
    return distance.argmin(1), distance.min(1).values


@torch.no_grad()
def from_background(images: Tensor) -> Tensor:
    """How far each colour is from the background's, 0 ... sqrt(3); pictures (B,3,H,W) in [-1,1] -> (B,H,W)."""
    rgb = (images.float().cpu().clamp(-1, 1) + 1) / 2
    return _length(rgb - drawing.background_palette()[_backgrounds(rgb)[0]][:, :, None, None])


def _pieces(rgb: Tensor, ground: Tensor) -> Tensor:
    """Connected pieces that differ from the background, largest first; (B,MOST,H,W) bool, empty masks where fewer."""
    B, _, H, W = rgb.shape
    window = torch.tensor([1.0, 2.0, 1.0])
    window = (window[:, None] * window / 16).expand(3, 1, 3, 3)
    smooth = F.conv2d(F.pad(rgb, (1, 1, 1, 1), mode="replicate"), window, groups=3)      # noise is not an object
    different = _length(smooth - ground[:, :, None, None]) > 0.15                       # (B,H,W)
    # every pixel starts with a number of its own; the largest number floods each connected piece
    labels = torch.arange(1, H * W + 1, dtype=torch.float32).view(1, H, W) * different   # (B,H,W)
    while True:
        spread = F.max_pool2d(labels[:, None], 3, stride=1, padding=1)[:, 0] * different
        if torch.equal(spread, labels):
            break
        labels = spread
    masks = torch.zeros(B, MOST, H, W, dtype=torch.bool)
    for b in range(B):
        values, counts = labels[b][different[b]].unique(return_counts=True)
        order = counts.argsort(descending=True)[:MOST]
        for k, i in enumerate(order.tolist()):
            if counts[i] >= SMALLEST * H * W:
                masks[b, k] = labels[b] == values[i]
    return masks


def _fit(rgb: Tensor, ground: Tensor, mask: Tensor, with_texture: bool, size: int) -> list[ObjectReading]:
    """Name n pieces: rgb (n,3,H,W), background colours (n,3), masks (n,H,W)."""
    n = len(rgb)
    color, color_error = _colors(rgb, ground[:, :, None, None], mask)                   # (n,), (n,)
    dark = drawing.palette()[color]                                                     # (n,3)
    # every shape roughly, on a small copy; then the best two carefully
    small = _Residual(_shrink(rgb), ground, dark, _shrink(mask[:, None].float())[:, 0] > 0.5)
    shapes = torch.arange(len(ALL_SHAPES))
    rough = [small.descend(k.expand(n), _first_guess(name, mask), pixels=(1.0, 0.5))
             for k, name in zip(shapes, ALL_SHAPES, strict=True)]
    candidates = torch.stack([error for _, error in rough], 1).topk(2, dim=1, largest=False).indices   # (n,2)
    guesses = torch.stack([geometry for geometry, _ in rough], 1)                       # (n,shapes,3)
    full, rows = _Residual(rgb, ground, dark, mask), torch.arange(n)
    fine = [full.descend(k, guesses[rows, k], pixels=(1.0, 0.5, 0.25)) for k in candidates.T]
    errors, fits = torch.stack([e for _, e in fine], 1), torch.stack([g for g, _ in fine], 1)   # (n,2), (n,2,3)
    two = errors.sort(dim=1)
    shape, geometry = candidates[rows, two.indices[:, 0]], fits[rows, two.indices[:, 0]]        # (n,), (n,3)
    # free paint hides a wrong outline by painting it pale, so the verdict is on the drawing in its best texture
    painted = torch.stack([
        _Residual(rgb, ground, dark, mask, drawing.tones(k.expand(n), dark, *geometry.T[:2], size))(shape, geometry)
        for k in torch.arange(len(ALL_TEXTURES))], 1)                                   # (n,textures)
    residual, texture = painted.min(1)                                                  # (n,), (n,)
    readings = []
    for i in range(n):
        cx, cy, radius = geometry[i].tolist()
        best, second = two.values[i].tolist()
        known = residual[i] < RESIDUAL and best < SHAPE_MARGIN * second
        readings.append(ObjectReading(
            shape=ALL_SHAPES[shape[i]] if known else None,
            color=list(ALL_COLORS)[color[i]] if color_error[i] < COLOR_ERROR else None,
            size=size_of(radius) if best < 2 * RESIDUAL else None,
            texture=ALL_TEXTURES[texture[i]] if known and with_texture else None,
            position=nearest_position(cx, cy), cx=cx, cy=cy, radius=radius, residual=residual[i].item()))
    return readings


class _Residual:
    """How badly a drawing explains n pieces: the squared RGB error around them over their contrast; 0 is perfect.

    Without `paint` (n,3,H,W) every pixel gets whichever mixture of the colour's two tones suits it best, so that the
    outline can be fitted before the texture is known.
    """

    def __init__(self, rgb: Tensor, ground: Tensor, dark: Tensor, mask: Tensor, paint: Tensor | None = None):
        ground, dark = ground[:, :, None, None], dark[:, :, None, None]                 # (n,3,1,1)
        axis = drawing.LIGHT * (1 - dark)
        if paint is None:
            share = ((rgb - dark) * axis).sum(1, keepdim=True) / axis.square().sum(1, keepdim=True)
            paint = dark + share.clamp(0, 1) * axis                                     # (n,3,H,W)
        self.size = rgb.shape[-1]
        region = F.max_pool2d(mask[:, None].float(), 5, stride=1, padding=2)[:, 0]      # (n,H,W), a little around
        contrast = (mask[:, None] * (dark - ground).square()).sum((1, 2, 3)).clamp(min=1e-6)[:, None, None]
        # |ground + cover (paint - ground) - rgb|^2 is a parabola in cover: its coefficients are needed once
        off, span = ground - rgb, paint - ground
        self.c0, self.c1, self.c2 = (region * (a * b).sum(1) / contrast for a, b in ((off, off), (off, span), (span, span)))

    def __call__(self, shape: Tensor, geometry: Tensor) -> Tensor:
        """Shapes (n,) and (cx, cy, radius) (n,3) -> (n,)."""
        cover = drawing.coverage(drawing.distances(shape, *geometry.T, self.size), self.size)       # (n,H,W)
        return (self.c0 + cover * (2 * self.c1 + cover * self.c2)).sum((1, 2))

    def descend(self, shape: Tensor, geometry: Tensor, pixels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Coordinate descent on centre and radius in ever smaller moves; (n,), (n,3) -> (n,3), (n,)."""
        best = self(shape, geometry)
        for step in pixels:
            for move in torch.cat([torch.eye(3), -torch.eye(3)]) * step / self.size:
                trial = geometry + move
                error = self(shape, trial)
                better = error < best
                geometry, best = torch.where(better[:, None], trial, geometry), torch.where(better, error, best)
        return geometry, best


def _shrink(pictures: Tensor) -> Tensor:
    """At most 32 pixels a side; (n,C,H,W)."""
    return pictures if pictures.shape[-1] <= 32 else F.interpolate(pictures, size=32, mode="area")


def _length(colors: Tensor) -> Tensor:
    """(n,3,H,W) -> (n,H,W); what `norm(dim=1)` says, in a tenth of its time."""
    return colors.square().sum(1).sqrt()


def _colors(rgb: Tensor, ground: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The colour whose two tones are nearest to each piece, edges counting little, and how near; (n,), (n,)."""
    off = _length(rgb - ground) * mask                                             # (n,H,W)
    weight = (off / off.flatten(1).max(1).values.clamp(min=1e-6)[:, None, None]) ** 4
    weight = weight / weight.sum((1, 2), keepdim=True)
    errors = []
    for dark in drawing.palette():
        light = dark + drawing.LIGHT * (1 - dark)
        tones = [_length(rgb - tone[None, :, None, None]) for tone in (dark, light)]
        errors.append((weight * torch.minimum(*tones)).sum((1, 2)))
    errors = torch.stack(errors, 1)                                                     # (n,colours)
    return errors.argmin(1), errors.min(1).values


def _first_guess(shape: str, mask: Tensor) -> Tensor:
    """Centre and radius that would give `shape` the bounding box of each mask; (n,H,W) -> (n,3) in picture widths."""
    line = torch.linspace(-1.5, 1.5, 601)
    inside = drawing.signed_distance(shape, line[None, :], line[:, None]) < 0
    unit = [(line[inside.any(axis)].min().item(), line[inside.any(axis)].max().item()) for axis in (0, 1)]
    size = mask.shape[-1]
    boxes = []
    for axis, (low, high) in zip((1, 2), unit, strict=True):                            # columns, then rows
        hit = mask.any(axis).float()                                                    # (n,W) or (n,H)
        first, last = hit.argmax(1) / size, 1 - hit.flip(1).argmax(1) / size
        radius = (last - first) / (high - low)
        boxes.append((first - low * radius, radius))
    (cx, rx), (cy, ry) = boxes
    return torch.stack([cx, cy, (rx + ry) / 2], 1)


def score(reading: Reading, scene: Scene) -> dict[str, bool]:
    """What of `scene` the picture shows: shape, color, size, texture, position, background, relation, count, all.

    An attribute holds if it does for every object, under the assignment of read to wanted objects that fits best.
    `all` = count, shape, color, size, position and background; for several objects relation takes position's place.
    """
    wanted, seen = scene.objects, reading.objects
    keys = ("shape", "color", "size", "texture", "position")
    result = dict.fromkeys((*keys, "relation"), False)
    result["count"] = len(wanted) == len(seen)
    result["background"] = reading.background == scene.background

    def matches(order) -> list[list[bool]]:
        return [[getattr(w, k) == getattr(s, k) for k in keys] for w, s in zip(wanted, order, strict=True)]

    if len(seen) >= len(wanted):
        best = max(permutations(seen, len(wanted)), key=lambda order: sum(map(sum, matches(order))))
        rows = matches(best)
        result |= {k: all(row[i] for row in rows) for i, k in enumerate(keys)}
        result["relation"] = all(relation(best[i], best[j]) == r for i, r, j in scene.relations())
    where = "position" if len(wanted) == 1 else "relation"
    result["all"] = all(result[k] for k in ("count", "shape", "color", "size", where, "background"))
    return result


def heeds(reading: Reading, asked: dict) -> dict[str, bool]:
    """What of a prompt (`captions.parse`) the picture shows: shape, color, size, place, background, count, all.

    What the prompt leaves open holds. Read objects are assigned to wanted ones as suits the prompt best; place is both where
    an object sits and how the first lies to the others.
    """
    wanted, seen = asked["objects"], reading.objects

    def shown(order) -> dict[str, bool]:
        pairs = list(zip(wanted, order, strict=True))
        result = {k: all(w[k] in (None, getattr(s, k)) for w, s in pairs) for k in ("shape", "color", "size")}
        related = all(relation(order[0], s) == r for s, r in zip(order[1:], asked["relations"], strict=False))
        result["place"] = related and all(w["position"] in (None, s.position) for w, s in pairs)
        return result

    orders = map(shown, permutations(seen, len(wanted)))                                # none where too few were read
    best = max(orders, key=lambda r: sum(r.values()), default=dict.fromkeys(("shape", "color", "size", "place"), False))
    best["background"] = asked["background"] in (None, reading.background)
    best["count"] = len(wanted) == len(seen)
    return best | {"all": all(best.values())}


def rates(images: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share of pictures for which each key of `score` holds, and the share that was read without abstaining."""
    readings = read(images)
    scores = [score(r, s) for r, s in zip(readings, scenes, strict=True)]
    means = {key: sum(s[key] for s in scores) / len(scores) for key in scores[0]}
    return means | {"coverage": sum(not r.abstained for r in readings) / len(readings)}


def as_scene(reading: Reading) -> Scene:
    """The reading as a Scene, to be drawn again: the picture of what the oracle believes it saw."""
    objects = [Object(o.shape or "circle", o.color or "black", o.size or size_of(o.radius), o.texture or "plain",
                      o.position, o.cx, o.cy, o.radius) for o in reading.objects]
    return replace(Scene((), reading.background or "white"), objects=tuple(objects))
