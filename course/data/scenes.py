"""Scenes: captioned pictures that are drawn on demand, the same on every machine.

    index -> counter-based random numbers -> scene -> picture, caption, control maps

Nothing is stored and nothing depends on the order of access: picture 7 of the training split is a pure function of
(split, seed, 7). Every number in it is a hash of those three and of the name of what it is for.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from course.data import captions as wording
from course.data import drawing
from course.data.vocabulary import (
    ALL_COLORS,
    ALL_SHAPES,
    ALL_TEXTURES,
    BACKGROUNDS,
    COLORS,
    CONCEPT_COLOR,
    CONCEPT_SHAPE,
    CONCEPT_TEXTURE,
    DEGRADATIONS,
    HELD_OUT,
    POSITIONS,
    RADII,
    RADII_OF_SEVERAL,
    SHAPES,
    SIZES,
    TEXTURES,
    Object,
    Scene,
    nearest_position,
)
from course.errors import UsageError

SPLITS = ("train", "val", "test", "heldout", "concept")
SEEDS = 1_000_003                              # as many per split, so that no two splits ever share a stream
CACHE = 64 * 64 * 64                           # pixels drawn at a time
LAYOUTS = 128                                  # tries at placing several objects without overlap
MARGIN, GAP = 0.03, 0.08                        # to the border; between objects
SHARP = 0.15                                   # of the undegraded captions say so, where some are degraded
SHORT = 0.10                                   # of the captions leave something unsaid


class Scenes:
    """Captioned pictures of one to three objects.

    Args:
        size: H = W, 32 ... 1024 pixels.  split: train, val, test, heldout (only shape x colour pairs that the first
            three never show), concept (a shape, a colour and a texture that no other split shows).
        objects: fewest and most objects in a picture.  textures: which may occur.
        degraded: share of pictures that are blurred, noisy, cropped or watermarked, and captioned so.

    `[i]` -> {"image": (3,H,W) float32 in [-1,1], "caption": str, "scene": Scene,
              "controls": {"edges": (1,H,W) 0..1, "segmentation": (H,W) int64, "depth": (1,H,W) 0..1}}
    """

    def __init__(self, size: int, split: str = "train", seed: int = 0, *, objects: tuple[int, int] = (1, 3),
                 textures: tuple[str, ...] = TEXTURES, degraded: float = 0.1, device: str = "cpu"):
        if not 32 <= size <= 1024:
            raise UsageError(f"size must lie in 32 ... 1024, got {size}")
        if split not in SPLITS:
            raise UsageError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
        if not 1 <= objects[0] <= objects[1] <= 3:
            raise UsageError(f"objects must be (fewest, most) within 1 ... 3, got {objects}")
        if unknown := set(textures) - set(ALL_TEXTURES) or not textures:
            raise UsageError(f"textures must be among {', '.join(ALL_TEXTURES)}, got {unknown}")
        if not 0 <= degraded <= 1:
            raise UsageError(f"degraded must lie in 0 ... 1, got {degraded}")
        if not 0 <= seed < SEEDS:
            raise UsageError(f"seed must lie in 0 ... {SEEDS - 1}, got {seed}")
        self.size, self.split, self.seed, self.device = size, split, seed, device
        self.objects, self.textures, self.degraded = objects, tuple(textures), degraded

    def __getitem__(self, index: int) -> dict:
        batch = self.batch([index])
        controls = {name: value[0] for name, value in batch["controls"].items()}
        return {"image": batch["image"][0], "caption": batch["caption"][0], "scene": batch["scene"][0], "controls": controls}

    def batch(self, indices) -> dict:
        """The same as `[i]` for many, with a batch axis in front of the tensors and lists elsewhere."""
        scenes = self.scenes(indices)
        return {"image": self.images(indices, scenes), "caption": self.captions(indices, scenes=scenes), "scene": scenes,
                "controls": self.controls(scenes)}

    # ---- words

    def scenes(self, indices) -> list[Scene]:
        """What is in each picture; nothing is drawn."""
        indices = np.asarray(list(indices), dtype=np.int64)
        if not len(indices):
            return []
        if indices.min() < 0:
            raise UsageError(f"an index must not be negative, got {indices.min()}")
        # one column of random choices for every field, for all indices at once
        fewest, most = self.objects
        counts = fewest + self._choice(indices, "count", most - fewest + 1)
        background = self._choice(indices, "background", len(BACKGROUNDS))
        bad = self._uniform(indices, "degraded") < self.degraded
        how = self._choice(indices, "how", len(DEGRADATIONS))
        pairs, textures = self._pairs(), (CONCEPT_TEXTURE,) if self.split == "concept" else self.textures
        pair = [self._choice(indices, f"pair{k}", len(pairs)) for k in range(most)]
        texture = [self._choice(indices, f"texture{k}", len(textures)) for k in range(most)]
        layouts = self._layouts(indices, counts)
        names = list(BACKGROUNDS)
        made = []
        for row, layout in enumerate(layouts):
            things = tuple(Object(*pairs[pair[k][row]], size, textures[texture[k][row]], *place)
                           for k, (size, *place) in enumerate(layout))
            made.append(Scene(things, names[background[row]], DEGRADATIONS[how[row]] if bad[row] else None))
        return made

    def captions(self, indices, full: bool = False, scenes: list[Scene] | None = None) -> list[str]:
        """One caption a picture. One in ten leaves something unsaid; `full=True` says everything."""
        indices = list(indices)
        template = self._choice(indices, "template", 1000)
        short = self._uniform(indices, "short") < (0 if full else SHORT)
        sharp = self._uniform(indices, "sharp") < (0 if full or not self.degraded else SHARP)
        return [wording.caption(scene, int(template[row]), bool(short[row]), "sharp" if sharp[row] else None)
                for row, scene in enumerate(scenes or self.scenes(indices))]

    # ---- pictures

    def images(self, indices, scenes: list[Scene] | None = None) -> Tensor:
        """(B,3,H,W) float32 in [-1,1]."""
        indices = list(indices)
        scenes = scenes or self.scenes(indices)
        images = torch.empty(len(scenes), 3, self.size, self.size, device=self.device)
        few = max(1, CACHE // self.size**2)                    # as many at a time as stay in the processor's cache
        for start in range(0, len(scenes), few):
            images[start: start + few] = draw(scenes[start: start + few], self.size, self.device)
        for row, scene in enumerate(scenes):
            if scene.degradation:
                strength = float(self._uniform(indices[row], "strength")[0])
                noise_key = self._key(indices[row], "noise")
                images[row] = degrade(images[row], scene.degradation, strength, noise_key)
        return images.mul_(2).sub_(1)

    def controls(self, scenes: list[Scene]) -> dict[str, Tensor]:
        """Exact edges (B,1,H,W), segmentation (B,H,W: 0 background, k object k) and depth (B,1,H,W: 0 far, 1 near)."""
        distance, owner = _distances(scenes, self.size, self.device)                    # (n,H,W), (n,)
        B, H = len(scenes), self.size
        edges, depth = torch.zeros(B, H, H, device=self.device), torch.zeros(B, H, H, device=self.device)
        segmentation = torch.zeros(B, H, H, dtype=torch.long, device=self.device)
        number = [k + 1 for scene in scenes for k in range(len(scene.objects))]
        for d, b, k in zip(distance, owner.tolist(), number, strict=True):
            edges[b] = torch.maximum(edges[b], (1.5 - d.abs() * H).clamp(0, 1))
            segmentation[b] = torch.where(d < 0, k, segmentation[b])
            depth[b] = torch.maximum(depth[b], torch.where(d < 0, 0.4 + (-d / 0.12).clamp(0, 1) * 0.6, 0.0))
        return {"edges": edges[:, None], "segmentation": segmentation, "depth": depth[:, None]}

    # ---- random numbers, by counting

    def _key(self, indices, what: str) -> np.ndarray:
        stream = _mix(np.uint64(SPLITS.index(self.split) * SEEDS + self.seed) ^ _name_key(what))
        return _mix(stream ^ _mix(np.asarray(indices).astype(np.uint64)))

    def _uniform(self, indices, what: str) -> np.ndarray:
        """One number in [0, 1) for each index, a function of (split, seed, index, what) alone."""
        return (self._key(indices, what) >> np.uint64(11)).astype(np.float64) / 2.0**53

    def _choice(self, indices, what: str, n: int) -> np.ndarray:
        """One of 0 ... n-1 for each index."""
        return (self._uniform(indices, what) * n).astype(int)

    def _pairs(self) -> list[tuple[str, str]]:
        """The shape x colour pairs of this split."""
        if self.split == "heldout":
            return sorted(HELD_OUT)
        if self.split == "concept":
            return [(CONCEPT_SHAPE, CONCEPT_COLOR)]
        return [(s, c) for s in SHAPES for c in COLORS if (s, c) not in HELD_OUT]

    def _layouts(self, indices, counts) -> list[list[tuple]]:
        """(size, position, cx, cy, radius) of each object of each scene."""
        most = self.objects[1]
        size = [self._choice(indices, f"size{k}", len(SIZES)) for k in range(most)]
        within = [self._uniform(indices, f"radius{k}") for k in range(most)]
        position = self._choice(indices, "position", len(POSITIONS))
        jitter = [0.05 * self._uniform(indices, axis) - 0.025 for axis in ("x", "y")]
        places = list(POSITIONS.items())
        out = []
        for row, (index, count) in enumerate(zip(indices, counts, strict=True)):
            names = [SIZES[size[k][row]] for k in range(count)]
            table = RADII if count == 1 else RADII_OF_SEVERAL
            radii = [float(table[s][0] + within[k][row] * (table[s][1] - table[s][0])) for k, s in enumerate(names)]
            if count == 1:
                place, (cx, cy) = places[position[row]]
                out.append([(names[0], place, float(cx + jitter[0][row]), float(cy + jitter[1][row]), radii[0])])
                continue
            centres = self._place(index, np.array(radii)).tolist()
            out.append([(s, nearest_position(x, y), x, y, r) for s, (x, y), r in zip(names, centres, radii, strict=True)])
        return out

    def _place(self, index, radii: np.ndarray) -> np.ndarray:
        """Centres (K,2) without overlap, the first object clearly beside, above or below each of the others."""
        K, tries, low = len(radii), np.arange(LAYOUTS), radii[:, None] + MARGIN                     # low: (K,1)
        key = self._key(index, "layout")
        keys = _mix(key ^ _mix((tries[:, None] * 2 * K + np.arange(2 * K)).astype(np.uint64)))      # (tries,2K)
        unit = ((keys >> np.uint64(11)).astype(np.float64) / 2.0**53).reshape(-1, K, 2)
        centres = low + unit * (1 - 2 * low)                                                        # (tries,K,2)
        fine = _apart(centres, radii)
        if fine.any():
            return centres[fine.argmax()]
        # large ones hardly ever fall apart by chance: put the first in a corner, the others along its two sides
        room = np.array([[0.03, 0.03], [0.03, 0.25], [0.25, 0.03]])[:K]                             # (K,2)
        far = np.array([[False, False], [True, False], [False, True]])[:K]
        inward = np.concatenate([unit, np.zeros((1, K, 2))]) * room                                 # the last always fits
        centres = np.where(far, 1 - low - inward, low + inward)                                     # (tries+1,K,2)
        centre = centres[_apart(centres, radii).argmax()]                                           # (K,2)
        turn = int(self._choice(index, "corner", 8)[0])                                             # of the 8 symmetries
        centre = np.where([turn & 1, turn & 2], 1 - centre, centre)
        return centre[:, ::-1] if turn & 4 else centre


def _apart(centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Which layouts (tries,K,2) keep K objects apart, and none of them diagonal to the first; (tries,) bool."""
    offset = np.abs(centres[:, :1] - centres[:, 1:])                                                # (tries,K-1,2)
    fine = (np.abs(offset[..., 0] - offset[..., 1]) > 0.10).all(1)
    for a in range(len(radii)):
        for b in range(a):
            fine &= np.sqrt(((centres[:, a] - centres[:, b]) ** 2).sum(-1)) > radii[a] + radii[b] + GAP
    return fine


def draw(scenes: list[Scene], size: int, device: str = "cpu") -> Tensor:
    """Pictures of scenes, undegraded; (B,3,H,W) in 0 ... 1."""
    names = list(BACKGROUNDS)
    background = torch.tensor([names.index(s.background) for s in scenes], device=device)
    images = drawing.background_palette(device)[background][:, :, None, None].repeat(1, 1, size, size)   # (B,3,H,W)
    distance, owner = _distances(scenes, size, device)                                  # (n,H,W), (n,)
    things = [o for s in scenes for o in s.objects]
    color_names = list(ALL_COLORS)
    colors = drawing.palette(device=device)[[color_names.index(o.color) for o in things]]            # (n,3)
    textures = torch.tensor([ALL_TEXTURES.index(o.texture) for o in things], device=device)
    cx, cy, _ = _geometry(things, device)
    paint = drawing.tones(textures, colors, cx, cy, size)                               # (n,3,H,W) or (n,3,1,1)
    alpha = drawing.coverage(distance, size)[:, None]                                   # (n,1,H,W)
    # objects do not overlap, so the order of painting does not matter and one sum does it for all
    images.index_add_(0, owner, alpha * (paint - images[owner]))
    return images


def degrade(image: Tensor, how: str, strength: float, key: np.uint64) -> Tensor:
    """(3,H,W) in 0 ... 1 -> the same, spoilt; `strength` 0 ... 1; noise is a hash of `key`, not a generator's."""
    H = image.shape[-1]
    if how == "blurry":
        sigma = (0.018 + 0.012 * strength) * H
        half = int(3 * sigma)
        window = torch.exp(-0.5 * (torch.arange(-half, half + 1, device=image.device) / sigma) ** 2)
        window = (window / window.sum())[None, None]                                    # (1,1,L)
        padded = F.pad(image[:, None], (half,) * 4, mode="replicate")                   # (3,1,H+2h,W+2h)
        return F.conv2d(F.conv2d(padded, window[..., None]), window[:, :, None])[:, 0]
    if how == "noisy":
        counter = np.arange(2 * image.numel(), dtype=np.uint64)
        u = ((_mix(_mix(counter) ^ key) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
        u1, u2 = u.reshape(2, -1)
        normal = np.sqrt(-2 * np.log(u1)) * np.cos(2 * np.pi * u2)                      # Box & Muller 1958
        noise = torch.from_numpy(normal).to(image).reshape(image.shape)
        return (image + (0.10 + 0.08 * strength) * noise).clamp(0, 1)
    if how == "cropped":
        side = 0.60 + 0.12 * strength
        corner = (_mix(key ^ np.array([1, 2], dtype=np.uint64)) >> np.uint64(11)) / 2.0**53 * (1 - side)
        left, top = corner.tolist()
        line = 2 * (torch.arange(H, device=image.device) + 0.5) / H * side - 1
        rows, columns = torch.meshgrid(line + 2 * top, line + 2 * left, indexing="ij")
        where = torch.stack([columns, rows], dim=-1)[None].to(image)                    # (1,H,W,2)
        return F.grid_sample(image[None], where, align_corners=False, padding_mode="border")[0]
    x, y = drawing.grid(H, image.device)                                                # watermark: diagonal bands
    band = (((x + y) % 0.25) - 0.125).abs() < 0.022
    ticks = (((x - y) % 0.11) - 0.055).abs() < 0.038
    mark = (band & ticks).float() * (0.35 + 0.2 * strength)
    return image * (1 - mark) + 0.5 * mark


def _geometry(things: list[Object], device: str) -> tuple[Tensor, Tensor, Tensor]:
    rows = [[o.cx, o.cy, o.radius] for o in things]
    return torch.tensor(rows, device=device, dtype=torch.float32).view(-1, 3).unbind(1)


def _distances(scenes: list[Scene], size: int, device: str) -> tuple[Tensor, Tensor]:
    """(n,H,W) signed distances of all objects of all scenes, and (n,) which scene each belongs to."""
    things = [o for s in scenes for o in s.objects]
    owner = torch.tensor([b for b, s in enumerate(scenes) for _ in s.objects], device=device, dtype=torch.long)
    shapes = torch.tensor([ALL_SHAPES.index(o.shape) for o in things], device=device)
    return drawing.distances(shapes, *_geometry(things, device), size), owner


@lru_cache
def _name_key(what: str) -> np.uint64:
    key = 0xCBF29CE484222325                                   # FNV-1a: Python's own hash changes from run to run
    for byte in what.encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    return np.uint64(key)


def _mix(x: np.ndarray | np.uint64) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014): neighbours in, strangers out."""
    x = np.atleast_1d(np.asarray(x, dtype=np.uint64)).copy()   # arrays wrap around in silence, scalars warn
    x += np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
