"""The words that a scene is described with, and what each of them looks like. All lengths are in picture widths."""

from dataclasses import dataclass, field

SHAPES = ("circle", "square", "triangle", "ring", "star", "cross")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
DEGRADATIONS = ("blurry", "noisy", "cropped", "watermarked")

# far apart from each other and from every background
COLORS = {
    "red": (0.84, 0.12, 0.14), "orange": (0.98, 0.55, 0.08), "yellow": (0.93, 0.82, 0.05), "green": (0.10, 0.60, 0.22),
    "blue": (0.12, 0.33, 0.86), "purple": (0.55, 0.18, 0.72), "brown": (0.46, 0.27, 0.12), "black": (0.08, 0.08, 0.08),
}
BACKGROUNDS = {
    "white": (1.00, 1.00, 1.00), "gray": (0.76, 0.76, 0.76), "pink": (1.00, 0.79, 0.86),
    "cream": (1.00, 0.95, 0.72), "mint": (0.74, 0.95, 0.80), "sky": (0.72, 0.87, 1.00),
}

# kept out of every split but `concept`: new ideas for LoRA and textual inversion to learn
CONCEPT_SHAPE, CONCEPT_COLOR, CONCEPT_TEXTURE = "heart", "teal", "checkered"
ALL_SHAPES = (*SHAPES, CONCEPT_SHAPE)
ALL_TEXTURES = (*TEXTURES, CONCEPT_TEXTURE)
ALL_COLORS = COLORS | {CONCEPT_COLOR: (0.00, 0.56, 0.60)}

# never trained on together: can a model compose what it only saw apart?
HELD_OUT = frozenset({("circle", "purple"), ("square", "orange"), ("triangle", "green"),
                      ("ring", "red"), ("star", "blue"), ("cross", "yellow")})

# where a single object sits; several objects have relations instead
POSITIONS = {"center": (0.50, 0.50), "left": (0.31, 0.50), "right": (0.69, 0.50), "top": (0.50, 0.31), "bottom": (0.50, 0.69)}

# radius of the circle around an object: one object may be larger than one of several, but never changes its name
RADII = {"small": (0.135, 0.150), "large": (0.250, 0.275)}
RADII_OF_SEVERAL = {"small": (0.120, 0.140), "large": (0.200, 0.210)}
SIZE_BOUNDARY = 0.173

RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Object:
    """One thing in a scene. Equality is of the words; the geometry (picture widths, y down) is carried along."""

    shape: str
    color: str
    size: str
    texture: str
    position: str
    cx: float = field(default=0.5, compare=False)
    cy: float = field(default=0.5, compare=False)
    radius: float = field(default=0.2, compare=False)


@dataclass(frozen=True)
class Scene:
    """One to three objects on a background, sharp or degraded."""

    objects: tuple[Object, ...]
    background: str
    degradation: str | None = None

    def relations(self) -> list[tuple[int, str, int]]:
        """(0, relation, j) for every other object j: the caption's view of where things are."""
        return [(0, relation(self.objects[0], other), j) for j, other in enumerate(self.objects[1:], start=1)]


def relation(a: Object, b: Object) -> str:
    """How a lies to b, along the axis on which they differ more."""
    dx, dy = a.cx - b.cx, a.cy - b.cy
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def nearest_position(cx: float, cy: float) -> str:
    """The named place that is closest to a centre."""
    return min(POSITIONS, key=lambda name: (POSITIONS[name][0] - cx) ** 2 + (POSITIONS[name][1] - cy) ** 2)


def size_of(radius: float) -> str:
    return "small" if radius < SIZE_BOUNDARY else "large"
