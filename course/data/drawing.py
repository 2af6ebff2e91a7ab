"""Draw shapes by their signed distance: negative inside, positive outside, so that an edge is where it crosses zero.

Every function works on many objects at once, at any resolution and on any device; nothing here is random.
"""

import math

import torch
from torch import Tensor

from course.data.vocabulary import ALL_COLORS, ALL_SHAPES, ALL_TEXTURES, BACKGROUNDS

LIGHT = 0.42                                   # a texture's second tone: this far from the colour towards white
STRIPE, DOT, CHECK = 0.082, 0.095, 0.085       # periods, in picture widths


def grid(size: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """x (1,1,W) and y (1,H,1) of the pixel centres, in picture widths."""
    line = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
    return line[None, None, :], line[None, :, None]


def signed_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance to the outline of a shape of radius 1 about (0, 0), y down; any broadcastable shapes."""
    if shape == "circle":
        return (x * x + y * y).sqrt() - 0.92
    if shape == "ring":
        return ((x * x + y * y).sqrt() - 0.72).abs() - 0.22
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.80
    if shape == "cross":
        ax, ay = x.abs(), y.abs()
        long, short = torch.maximum(ax, ay), torch.minimum(ax, ay)
        return torch.maximum(long - 0.94, short - 0.30)
    if shape == "triangle":                    # three half-planes: the base, and two sides at 60 degrees
        y = y - 0.18
        return torch.maximum(y - 0.52, 0.8660 * x.abs() - 0.5 * y - 0.52)
    if shape == "star":
        return _star(x, y)
    if shape == "heart":
        return _heart(x, y)
    raise KeyError(shape)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """A five-pointed star: fold the plane into one tenth, where it is bounded by a single line."""
    outer, inner = 1.06, 0.46
    radius = (x * x + y * y).sqrt()
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)                                       # 0 is straight up
    angle = (angle - sector * (angle / sector).round()).abs()        # 0 ... pi/5
    px, py = radius * angle.cos(), radius * angle.sin()
    ax, bx, by = outer, inner * math.cos(sector / 2), inner * math.sin(sector / 2)
    nx, ny = by, ax - bx                                             # normal of the line from the tip to the notch
    return ((px - ax) * nx + py * ny) / math.hypot(nx, ny)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Two discs over a square that stands on its corner."""
    x = x.abs()
    disc = ((x - 0.44) ** 2 + (y + 0.30) ** 2).sqrt() - 0.50
    wedge = torch.maximum((x + y - 0.86) * 0.7071, -(y + 0.26))
    wedge = torch.maximum(wedge, x - 0.92)
    return torch.minimum(disc, wedge)


def second_tone(texture: str, x: Tensor, y: Tensor) -> Tensor:
    """How much of the lighter tone there is at offset (x, y), in picture widths, from the object's centre; 0 ... 1."""
    if texture == "plain":
        return torch.zeros_like(x + y)
    if texture == "striped":
        return _hard(torch.sin(2 * math.pi * (x + 0 * y) / STRIPE))
    if texture == "dotted":
        u, v = (x / DOT + 0.5) % 1 - 0.5, (y / DOT + 0.5) % 1 - 0.5
        return _hard(3 * (0.30 - (u * u + v * v).sqrt()))
    if texture == "checkered":
        return _hard(2 * torch.sin(math.pi * x / CHECK) * torch.sin(math.pi * y / CHECK))
    raise KeyError(texture)


def _hard(wave: Tensor) -> Tensor:
    return (wave * 3 + 0.5).clamp(0, 1)


def distances(shapes: Tensor, cx: Tensor, cy: Tensor, radius: Tensor, size: int) -> Tensor:
    """Signed distance maps in picture widths; n objects, shapes as indices into ALL_SHAPES; (n,) -> (n,H,W)."""
    x, y = grid(size, cx.device)
    out = torch.empty(len(cx), size, size, device=cx.device)
    for k, name in enumerate(ALL_SHAPES):
        mine = (shapes == k).nonzero()[:, 0]
        if len(mine):
            c, d, r = (a[mine, None, None] for a in (cx, cy, radius))
            out[mine] = signed_distance(name, (x - c) / r, (y - d) / r) * r
    return out


def coverage(distance: Tensor, size: int) -> Tensor:
    """Share of each pixel that is inside: the anti-aliased mask; same shape, 0 ... 1."""
    return (0.5 - distance * size).clamp(0, 1)


def tones(textures: Tensor, colors: Tensor, cx: Tensor, cy: Tensor, size: int) -> Tensor:
    """What the objects are painted with; textures as indices, colors (n,3); -> (n,3,H,W),
    or (n,3,1,1) where all are plain."""
    if not textures.any():                                                               # 0 is plain
        return colors[:, :, None, None]
    x, y = grid(size, cx.device)
    light = torch.zeros(len(cx), size, size, device=cx.device)                           # (n,H,W)
    for k, name in enumerate(ALL_TEXTURES):
        mine = (textures == k).nonzero()[:, 0]
        if len(mine) and name != "plain":
            light[mine] = second_tone(name, x - cx[mine, None, None], y - cy[mine, None, None])
    colors = colors[:, :, None, None]                                                   # (n,3,1,1)
    return colors + LIGHT * light[:, None] * (1 - colors)


def palette(names: dict | None = None, device: str = "cpu") -> Tensor:
    """RGB rows of the object colours, or of the backgrounds; (n,3) in 0 ... 1."""
    return torch.tensor(list((names or ALL_COLORS).values()), device=device)


def background_palette(device: str = "cpu") -> Tensor:
    return palette(BACKGROUNDS, device)
