"""How pictures come out of the noise, as a WebP or GIF of at most 1 MB: `course sample ... --animate x.webp`.

After each step a sampler holds two things: x, which is still noisy, and the clean picture that the model believes to be behind
it. The animation shows both, decoded: what is there, and what is expected. They meet in the last step.
"""

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from course import files, style
from course.errors import UsageError

FORMATS = (".webp", ".gif")
LIMIT = 1_000_000                          # bytes
STEP, HOLD = 160, 2500                     # milliseconds: of a step, and of the last one
INK, FAINT, DONE = style.INK, "#DDDDDD", style.BLUE
# from the best downwards, until the file is small enough: share of the size, and quality of a WebP (None: to the pixel), colours
TRIALS = {".webp": [(1, None), (1, 90), (1, 75), (1, 50), (0.5, 75), (0.5, 50), (0.25, 50)],
          ".gif": [(1, 256), (1, 64), (0.5, 128), (0.5, 32), (0.25, 64), (0.25, 16)]}


class Film:
    """Collects (t, x, x0), each (B,C,h,w) on the CPU, as a sampler's callback; may be a second sampler's that goes on."""

    def __init__(self):
        self.steps: list[tuple[float, Tensor, Tensor]] = []

    def __call__(self, i: int, t: float, x: Tensor, x0: Tensor) -> None:
        self.steps.append((float(t), x.cpu(), x0.cpu()))


def frames(steps: list[tuple[float, Tensor, Tensor]], last: Tensor, decode, lay) -> list[Image.Image]:
    """One picture a step: on the left, or above where that is wide, x; beside it the estimate of x_0; below them the step.

    last: (B,C,h,w), what came out: it takes the place of the last step's x and estimate.
    decode: (B,C,h,w) -> (B,3,H,W).   lay: (B,3,H,W) -> one picture of them all.
    """
    made = []
    for number, (t, x, x0) in enumerate(steps, 1):
        if number == len(steps):
            x = x0 = last
        made.append(frame(lay(decode(x)), lay(decode(x0)), number, len(steps), t))
    return made


def frame(noisy: Image.Image, clean: Image.Image, number: int, count: int, t: float) -> Image.Image:
    """Two pictures of one size, what they are, the step, and a line that grows."""
    width, height = noisy.size
    stacked = width > 1.5 * height
    size = max(14, (width if stacked else 2 * width) // 28)    # of the writing: legible where a page shows it at 390 pixels
    font, strip, gap = ImageFont.load_default(size), size * 3 // 2, size // 2
    across, down = (width, 2 * height + 2 * strip) if stacked else (2 * width + gap, height + strip)
    page = Image.new("RGB", (across, down + strip + gap), "white")
    pen = ImageDraw.Draw(page)
    places = [(0, strip), (0, height + 2 * strip)] if stacked else [(0, strip), (width + gap, strip)]
    titles = ("x, still noisy" if number < count else "x, done", "what the model expects")
    for place, picture, words in zip(places, (noisy, clean), titles, strict=True):
        page.paste(picture, place)
        pen.text((place[0] + 2, place[1] - strip // 2), words, INK, font, anchor="lm")
    pen.text((2, down + strip // 2), f"step {number} of {count}", INK, font, anchor="lm")
    pen.text((across - 2, down + strip // 2), f"t = {t:.0f}", INK, font, anchor="rm")
    pen.rectangle((0, down + strip, across, down + strip + gap), FAINT)
    pen.rectangle((0, down + strip, across * number // count, down + strip + gap), DONE)
    return page


def write(path: Path, made: list[Image.Image], limit: int = LIMIT) -> dict:
    """Write frames as an endless loop that rests on the last, as good as `limit` bytes allow. Returns what it became.

    Raises UsageError where it cannot be that small.
    """
    kind = path.suffix.lower()
    for share, quality in TRIALS[kind]:
        data = packed(made, kind, share, quality)
        if len(data) <= limit:
            files.write_bytes(path, data)
            return {"bytes": len(data), "frames": len(made), "share": share, "quality": quality}
    raise UsageError(f"{len(made)} steps of {made[0].width} x {made[0].height} pixels do not fit into {limit:,} bytes; "
                     f"fewer steps or pictures would")


def packed(made: list[Image.Image], kind: str, share: float, quality: int | None) -> bytes:
    """The bytes of an animation. quality: of a WebP, None is to the pixel; of a GIF, colours."""
    shown = made if share == 1 else [f.resize((round(f.width * share), round(f.height * share)), Image.LANCZOS) for f in made]
    how = {"lossless": True, "quality": 60, "method": 2} if quality is None else {"quality": quality, "method": 4}
    if kind == ".gif":
        shown, how = [f.quantize(quality, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for f in shown], {"disposal": 1}
    page = io.BytesIO()
    shown[0].save(page, kind[1:].upper(), save_all=True, append_images=shown[1:], loop=0,
                  duration=[STEP] * (len(shown) - 1) + [HOLD], **how)
    return page.getvalue()
