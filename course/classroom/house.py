"""A picture of the house: each room is a part of the library, lit where it is the student's own."""

from course import parts

FLOORS = {                                                     # from the ground up
    "words": ("tokenizer", "text"),
    "autoencoder": ("vae", "vq"),
    "network": ("layers", "unet"),
    "attention": ("attention",),
    "noise": ("schedule", "objectives"),
    "the way back": ("samplers", "guidance"),
}
ANNEX = "adapters"                                             # and what will come
SKY, WALL, LIT, DARK, BRICK, BROKEN, INK = "#14213D", "#3A3F4F", "#FFD166", "#1B1F2B", "#5B4A45", "#D55E00", "#E8E8E8"


def floors() -> dict[str, list[str]]:
    """Every part of `parts.PARTS` in its floor, from the ground up."""
    found = {name: [] for name in (*FLOORS, ANNEX)}
    for part in parts.PARTS:
        module = part.split(".")[0]
        found[next((name for name, modules in FLOORS.items() if module in modules), ANNEX)].append(part)
    return found


def draw(status: dict[str, str], broken: tuple[str, ...] = (), plate: str = ""):
    """A matplotlib figure. A room is lit where `status` says "yours", dark where it has an exercise that is not solved, red
    where it is named in `broken`, and bricked up where the course has no exercise for it.

    Args:
        status: part -> "yours" or "library: why", of `parts.from_notebooks`.  plate: what is written beside the door.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Polygon, Rectangle

    rooms = floors()
    figure, axis = plt.subplots(figsize=(8, 6.2), facecolor=SKY)
    axis.set(xlim=(-0.4, 12.4), ylim=(-0.55, len(rooms) + 1.75), facecolor=SKY)
    axis.axis("off")
    for x, y in ((0.3, 7.9), (1.4, 8.4), (2.7, 8.1), (9.2, 8.3), (10.9, 7.9), (11.8, 8.4), (4.0, 8.5), (0.1, 7.3)):      # stars
        axis.plot(x, y, ".", color=INK, ms=2)
    axis.add_patch(Polygon([(-0.3, len(rooms)), (6, len(rooms) + 1.6), (12.3, len(rooms))], color="#6B3E2E"))
    lit = sum(status.get(part) == "yours" for row in rooms.values() for part in row)
    axis.text(6, len(rooms) + 0.5, f"{lit} room{'' if lit == 1 else 's'} lit", ha="center", va="center", color=INK, fontsize=13)
    axis.add_patch(Rectangle((0, 0), 12, len(rooms), color=WALL))
    for floor, (name, row) in enumerate(rooms.items()):
        axis.plot([0, 12], [floor, floor], color=SKY, lw=2)
        axis.text(0.12, floor + 0.5, name, color=INK, fontsize=9, va="center")
        width = 10.1 / max(len(row), 1)
        for k, part in enumerate(row):
            x, whose = 1.8 + k * width, status.get(part)
            color = BROKEN if part in broken else LIT if whose == "yours" else DARK if whose else BRICK
            axis.add_patch(Rectangle((x + 0.04, floor + 0.14), width - 0.08, 0.72, facecolor=color, edgecolor=SKY, lw=1))
            word = part.split(".")[1]
            axis.text(x + width / 2, floor + 0.5, _lines(word, width), ha="center", va="center", fontsize=7.5, linespacing=1.15,
                      color="#222222" if color == LIT else INK)
    axis.plot([-0.4, 12.4], [0, 0], color="#2E4A34", lw=6)
    axis.text(6, -0.33, plate, ha="center", va="center", color=INK, fontsize=9)
    return figure


def _lines(word: str, width: float) -> str:
    """`BasicTransformerBlock` in lines short enough for its window."""
    pieces, line, lines = _pieces(word), "", []
    for piece in pieces:
        if line and len(line + piece) * 0.115 > width - 0.16:
            lines.append(line)
            line = ""
        line += piece
    return "\n".join([*lines, line])


def _pieces(word: str) -> list[str]:
    """Cut before capitals and behind underscores."""
    found = [""]
    for before, now in zip(" " + word, word, strict=False):
        if found[-1] and (now.isupper() and before.islower() or before == "_"):
            found.append("")
        found[-1] += now
    return found
