"""What a reader can move or point at: alive where a person looks on, a figure where a notebook is only executed.

    slider(draw, 0, 999, start=300)                 draw(t)               alone: draw(300)
    prompt_box(draw, ["a red ring", "a blue star"]) draw([prompt])        alone: draw of both prompts, side by side
    latent_mixer(a, b, draw)                        draw(latents, names)  alone: draw of five latents on the way from a to b
    attention_hover(picture, maps, words, prompt)   needs no kernel: the same HTML in a notebook and on a web page

`draw` shows what it draws, by `plt.show()`, and is the chapter's own. Importing this module loads neither torch nor ipywidgets.
"""

import base64
import html
import io
import os
import re
from collections.abc import Callable, Sequence

from course.errors import UsageError

SIDE = 96                                                      # pixels of a picture in `attention_hover`, at most
WIDTH = 16                                                     # and how wide it is shown, in rem: letters of a page's body
# A word holds its picture, which lies over the first one while the word is pointed at, tapped on or reached by Tab.
# Without these rules, as in a notebook that is not trusted, the pictures stand beside their words.
STYLE = """
.attention-hover { position: relative; margin: 0; line-height: 1.9; }
.attention-hover img { position: absolute; left: 0; bottom: 0; width: WIDTH; height: auto; max-width: none;
                       image-rendering: pixelated; }
.attention-hover span img { visibility: hidden; }
.attention-hover span:focus img { visibility: visible; z-index: 1; }
.attention-hover span:hover img { visibility: visible; z-index: 2; }
.attention-hover span { text-decoration: underline dotted; text-underline-offset: .25em; cursor: default; border-radius: .2em;
                        white-space: nowrap; }
.attention-hover span:hover, .attention-hover span:focus { background: #ffe08a; color: #222; outline: 2px solid #0072b2; }
""".replace("WIDTH", f"{WIDTH}rem")


def live() -> bool:
    """Whether a person looks on: a Jupyter server or Colab names its sessions; nbval, nbgrader and nbclient have none."""
    return "JPY_SESSION_NAME" in os.environ or "COLAB_RELEASE_TAG" in os.environ


def slider(draw: Callable[[int], None], low: int, high: int, start: int) -> None:
    """draw(value) under a slider that somebody can move, in a live session; where a notebook is only executed, draw(start)."""
    if not live():
        return draw(start)
    from inspect import signature

    from ipywidgets import IntSlider, interact
    name = next(iter(signature(draw).parameters))              # the slider says what it moves
    interact(draw, **{name: IntSlider(start, low, high, continuous_update=False)})


def prompt_box(draw: Callable[[list[str]], None], examples: Sequence[str]) -> None:
    """The examples' pictures, and in a live session above them a field for a prompt and a button: draw([prompt]).

    The field offers the examples. Enter in it and the button do the same.
    """
    if not live():
        return draw(list(examples))
    from IPython.display import display
    from ipywidgets import Button, Combobox, HBox, Layout, Output, VBox

    field = Combobox(placeholder="a prompt of your own", options=list(examples), continuous_update=False,
                     layout=Layout(width="34em", max_width="100%"))
    button, place, drawn = Button(description="draw"), Output(), []

    def ask(_):
        if drawn == [field.value]:                             # a click on the button also leaves the field: once is enough
            return
        drawn[:] = [field.value]
        button.disabled = True
        try:
            place.clear_output(wait=True)
            with place:
                draw([field.value])
        finally:
            button.disabled = False

    field.observe(ask, "value")
    button.on_click(ask)
    display(VBox([HBox([field, button], layout=Layout(flex_flow="row wrap")), place]))
    with place:
        draw(list(examples))


def latent_mixer(a, b, draw: Callable, c=None, places: int = 5) -> None:
    """Latents (C,h,w) mixed by a share u, 0 ... 1: on the arc from `a` to `b`, or, with a `c`, a + u (c - b).

    draw(latents (K,C,h,w), titles) draws them side by side: one under a slider in a live session, else `places` of them.
    The arc is that of chapter 00: noise keeps its variance on it, which the straight line takes away (Shoemake 1985).
    With a `c` the way ends at a - b + c: what makes `a` different from `b`, done to `c`. Raises UsageError for other shapes.
    """
    if not a.shape == b.shape == (b if c is None else c).shape or a.ndim != 3:
        raise UsageError(f"latents of one shape (C,h,w) can be mixed, got {[tuple(z.shape) for z in (a, b, c) if z is not None]}")

    def show(*shares: float) -> None:
        from course.classroom.checks.ch00 import answers
        u = a.new_tensor(shares)                               # (K,)
        mixed = answers.slerp(a, b, u) if c is None else a + u.reshape(-1, 1, 1, 1) * (c - b)           # (K,C,h,w)
        draw(mixed, [f"u = {share:.2g}" for share in shares])

    if not live():
        return show(*(k / (places - 1) for k in range(places)))
    from ipywidgets import FloatSlider, interact
    interact(lambda u: show(u), u=FloatSlider(0.5, min=0.0, max=1.0, step=0.05, continuous_update=False))


def attention_hover(picture, maps, words: Sequence[str], prompt: str) -> None:
    """A PIL picture under its prompt, in which the `words` can be pointed at, tapped on or reached by Tab: then the picture
    shows the word's heat map, of maps (K,H,W). Behind each word stands its largest share, 0 ... 100 %.

    Raises UsageError where maps and words differ in number, or a word is not in the prompt.
    """
    from IPython.display import HTML, display
    display(HTML(hover_page(picture, maps, words, prompt)))


def hover_page(picture, maps, words: Sequence[str], prompt: str) -> str:
    """What `attention_hover` shows: HTML and CSS with the pictures in it, no script."""
    if len(maps) != len(words):
        raise UsageError(f"{len(maps)} heat maps for {len(words)} words")
    heat = dict(zip(words, maps, strict=True))
    # "blue square" before "blue"; the split keeps the words at the odd places
    pieces = re.split("|".join(rf"\b({re.escape(word)})\b" for word in sorted(words, key=len, reverse=True)), prompt)
    pieces = [piece for piece in pieces if piece]
    if missing := [word for word in words if word not in pieces]:
        raise UsageError(f"{', '.join(map(repr, missing))}: not in the prompt {prompt!r}")
    line = "".join(_word(piece, picture, heat[piece]) if piece in heat else html.escape(piece) for piece in pieces)
    told = html.escape(f"the picture of “{prompt}”; its maps: {', '.join(words)}", quote=True)
    tall = WIDTH * picture.height / picture.width
    return (f'<figure class="attention-hover" style="padding-bottom: {tall + 0.6:.1f}rem"><style>{STYLE}</style>'
            f'<div>{line}</div><img alt="{told}" {_data(picture)}></figure>')


def _word(word: str, picture, heat) -> str:
    return (f'<span tabindex="0">{html.escape(word)} <small>{float(heat.max()):.0%}</small>'
            f'<img alt="" {_data(_heated(picture, heat))}></span>')


def _heated(picture, heat):
    """The picture in light grey, and over it the map (H,W) from yellow to red, stretched from its least to its largest value."""
    from matplotlib import colormaps
    from PIL import Image

    heat = heat.detach().float().cpu()
    share = ((heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-9)).numpy()                   # (H,W) 0 ... 1
    gray = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, "white"), 0.35)
    colors, cover = colormaps["YlOrRd"](share, bytes=True)[..., :3].copy(), (230 * share).astype("uint8")
    colors, cover = (Image.fromarray(array).resize(picture.size, Image.Resampling.BILINEAR) for array in (colors, cover))
    return Image.composite(colors, gray, cover)


def _data(picture) -> str:
    """An image's attributes: it lies in the page itself, as WebP, which is smaller than JPEG and sharper at an edge."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    small.save(buffer := io.BytesIO(), "WEBP", quality=80, method=6)
    width, height = small.size
    return f'width="{width}" height="{height}" src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"'
