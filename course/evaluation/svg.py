"""A page of a drawing: bars, lines, arrows and words as SVG, legible at a phone's width, in the light and in the dark.

The page is 760 units wide and shown at 390 pixels on a phone, so nothing is written smaller than 20 units. It brings a ground
of its own: where a page's theme is not the system's, words would be dark on dark otherwise.
"""

from html import escape

WIDTH = 760
BLUE, ORANGE, GREEN, RED, GRAY = "blue", "orange", "green", "red", "gray"              # Okabe & Ito 2008, by class, see STYLE
STYLE = """
text{font-family:"Helvetica Neue",Helvetica,Arial,"Liberation Sans",sans-serif;font-size:21px;fill:#222}
.small{font-size:20px}.line.thin{stroke-width:1.3}.faint{fill:#555}.title{font-size:31px;font-weight:700}.bold{font-weight:700}
.paper{fill:#fff}.line{fill:none;stroke:#8a8f98;stroke-width:2}.head{fill:#8a8f98}
.blue{fill:#0072B2}.orange{fill:#E69F00}.green{fill:#009E73}.red{fill:#D55E00}.gray{fill:#8a8f98}
.line.blue{fill:none;stroke:#0072B2}.line.orange{fill:none;stroke:#E69F00}.line.red{fill:none;stroke:#D55E00}
.box{stroke-width:2;fill-opacity:.13}.box.blue{stroke:#0072B2}.box.orange{stroke:#E69F00}.box.green{stroke:#009E73}
.box.red{stroke:#D55E00}.box.gray{stroke:#8a8f98}.chip{fill:#fff;stroke:#8a8f98;stroke-width:1.5}
.drawn{fill:#F6C1D0}.ring{fill:none;stroke:#009E73;stroke-width:20}
@media (prefers-color-scheme:dark){text{fill:#ececec}.faint{fill:#b8bcc4}.paper,.chip{fill:#161a21}
.blue{fill:#2b94d6}.line.blue,.box.blue{stroke:#2b94d6}.line.blue{fill:none}}
"""


class Page:
    """Shapes in the order in which they are painted. `tip`s are what a browser shows where the mouse rests."""

    def __init__(self):
        self.made, self.height = [], 0

    def text(self, x: float, y: float, words: str, look: str = "", anchor: str = "start") -> None:
        how = _of("class", look) + _of("text-anchor", anchor, "start")
        self.made.append(f'<text x="{x:g}" y="{y:g}"{how}>{escape(words)}</text>')

    def bar(self, x: float, y: float, width: float, height: float, look: str, tip: str = "", round: float = 2) -> None:
        inside = f"<title>{escape(tip)}</title>" if tip else ""
        self.made.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{round:g}" class="{look}">'
                         f"{inside}</rect>")

    def line(self, path: str, look: str = "", dashed: bool = False) -> None:
        self.made.append(f'<path d="{path}" class="{" ".join(filter(None, ("line", look)))}"'
                         f'{_of("stroke-dasharray", "7 6" if dashed else "")}/>')

    def head(self, x: float, y: float, way: str, look: str = "head", size: float = 7) -> None:
        """The tip of an arrow, at (x, y), that points up, down, left or right."""
        a, b = size * 1.5, size * 0.75
        corners = {"right": (-a, -b, -a, b), "left": (a, -b, a, b), "down": (-b, -a, b, -a), "up": (-b, a, b, a)}[way]
        points = f"{x:.1f},{y:.1f} {x + corners[0]:.1f},{y + corners[1]:.1f} {x + corners[2]:.1f},{y + corners[3]:.1f}"
        self.made.append(f'<polygon points="{points}" class="{look}"/>')

    def chip(self, x: float, y: float, words: str, look: str = "", width: float | None = None) -> None:
        """Words on a small plate, centred at (x, y)."""
        width = width or 11.2 * len(words) + 26
        self.made.append(f'<rect x="{x - width / 2:.1f}" y="{y - 17:.1f}" width="{width:.1f}" height="34" rx="17" class="chip"/>')
        self.text(x, y + 7, words, look, "middle")

    def svg(self, title: str, description: str) -> str:
        """The whole file; a screen reader says title and description."""
        height = round(self.height)
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
                          f'height="{height}" role="img" aria-labelledby="title about">',
                          f'<title id="title">{escape(title)}</title>', f'<desc id="about">{escape(description)}</desc>',
                          f"<style>{STYLE}</style>", f'<rect width="{WIDTH}" height="{height}" rx="14" class="paper"/>',
                          *self.made, "</svg>", ""])


def _of(name: str, value: str, usual: str = "") -> str:
    return "" if value == usual else f' {name}="{value}"'


def shape(sizes: tuple[int, ...]) -> str:
    """(4, 64, 64) -> "(B, 4, 64, 64)"."""
    return f"(B, {', '.join(map(str, sizes))})"


def short(count: int) -> str:
    """859520964 -> "859.5 M"."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            digits = 0 if count >= 100 * unit and name == "k" else 1 if count >= 10 * unit else 2
            return f"{count / unit:.{digits}f} {name}"
    return str(count)
