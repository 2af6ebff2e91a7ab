"""Pictures of pictures: samples side by side, the way out of the noise, loss curves, heat maps, the grid of a sweep."""

import io
import json
import math
import textwrap
from pathlib import Path

from PIL import Image
from torch import Tensor

from course import files, style
from course.style import FAINT, INK, LATENT, PIXEL


def pyplot():
    """Matplotlib without a screen; imported late, it takes a second."""
    import matplotlib
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt
    plt.rcParams.update(style.PAGE)
    return plt


def _show(axis, image: Tensor, color: str | None = None) -> None:
    """One picture (3,H,W) in [-1,1], framed."""
    axis.imshow(((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axis.set_xticks([]), axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(True), spine.set_color(color or FAINT), spine.set_linewidth(1)


def samples(path: Path, prompts: list[str], rows: dict[str, tuple], columns: int = 8) -> None:
    """Rows of pictures over their prompts; a tick or a cross says what the oracle made of each.

    rows: title -> (images (B,3,H,W), all attributes right? None where nobody can say), and behind these the row's own prompts,
        where it has others than `prompts`.
    """
    plt, columns = pyplot(), min(columns, *(len(row[0]) for row in rows.values()))
    colors = {"latent": LATENT, "pixel": PIXEL}
    said = [[textwrap.fill(text, 21) for text in (row[2] if len(row) > 2 else prompts)[:columns]] for row in rows.values()]
    last = [said[i] != said[i + 1: i + 2][0] if i + 1 < len(said) else True for i in range(len(said))]    # of its prompts
    marked = [any(mark is not None for mark in row[1][:columns]) for row in rows.values()]
    words = [0.14 * max(text.count("\n") + 1 for text in own) + 0.12 if end else 0.0
             for own, end in zip(said, last, strict=True)]                              # inches below each row
    side, left, gap, below = 1.34, 0.55, 0.08, 0.2
    width = left + columns * (side + gap)
    height = sum(side + gap + (below if mark else 0.0) + space for mark, space in zip(marked, words, strict=True)) + gap
    figure, top = plt.figure(figsize=(width, height)), height - gap
    for (title, (images, right, *_)), own, mark, space in zip(rows.items(), said, marked, words, strict=True):
        for column in range(columns):
            axis = figure.add_axes(((left + column * (side + gap)) / width, (top - side) / height, side / width, side / height))
            _show(axis, images[column])
            if right[column] is not None:
                axis.text(0.5, -0.03, "✓" if right[column] else "✗", transform=axis.transAxes, ha="center", va="top",
                          fontsize=11, color="#007A5E" if right[column] else "#B03A2E", fontweight="bold")
            if space:
                axis.text(0.5, -0.03 - (below if mark else 0.0) / side, own[column], transform=axis.transAxes, ha="center",
                          va="top", fontsize=8)
            if column == 0:
                color = next((c for key, c in colors.items() if key in title), INK)
                axis.set_ylabel(textwrap.fill(title, 15), fontsize=10.5, color=color, fontweight="bold")
        top -= side + gap + (below if mark else 0.0) + space
    write(plt, figure, path)


def grid(path: Path, prompts: list[str], images: Tensor, right: list[bool | None], columns: int = 8, rows: int = 4) -> None:
    """Pictures (n,3,H,W), each over its own prompt, with the oracle's tick or cross where there is one."""
    plt, n = pyplot(), min(len(prompts), rows * columns)
    columns, rows = min(columns, n), -(-n // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.55 * columns, 2.3 * rows), squeeze=False)
    for i, axis in enumerate(axes.flat):
        if i >= n:
            axis.axis("off")
            continue
        _show(axis, images[i], None if right[i] is None else "#007A5E" if right[i] else "#B03A2E")
        mark = "" if right[i] is None else "✓ " if right[i] else "✗ "
        axis.set_xlabel(textwrap.fill(textwrap.shorten(mark + prompts[i], 120, placeholder=" …"), 23), fontsize=7.5, labelpad=3)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.995, bottom=0.6 / (2.3 * rows) + 0.02, wspace=0.1, hspace=0.52)
    write(plt, figure, path)


def trajectory(path: Path, prompt: str, rows: dict[str, list[tuple[float, Tensor]]]) -> None:
    """How a picture comes out of the noise: title -> [(t, picture (3,H,W)), ...]."""
    plt = pyplot()
    columns = max(len(steps) for steps in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.2 * columns + 0.8, 1.42 * len(rows) + 0.45), squeeze=False)
    for row, (title, steps) in enumerate(rows.items()):
        for axis, (t, image) in zip(axes[row], steps, strict=True):
            _show(axis, image)
            axis.set_title(f"t = {t:.0f}" if t >= 0 else "result", fontsize=8.5, pad=3)
        axes[row][0].set_ylabel(title, fontsize=9)
    figure.suptitle(f"“{prompt}”", fontsize=10.5, y=0.995)
    figure.subplots_adjust(left=0.06, right=0.995, top=0.86, bottom=0.02, wspace=0.06, hspace=0.30)
    write(plt, figure, path)


def attention(path: Path, prompt: str, image: Image.Image, words: list[str], maps: Tensor, columns: int = 6) -> None:
    """A picture, and heat maps (K,H,W) of K words laid over it, see heatmaps: the redder, the more a place looked at the word.

    Each map is stretched from its own least to its own largest value; the latter stands beside the word.
    """
    plt, n = pyplot(), len(words) + 1
    columns = min(columns, n)
    rows, heat = -(-n // columns), maps.cpu().numpy()
    gray = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), 0.35)
    height = 1.82 * rows + 0.3
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, title) in enumerate(zip(axes.flat, ["", *words], strict=False)):
        axis.imshow(image if i == 0 else gray, interpolation="nearest")
        if i == 0:
            continue
        low, high = heat[i - 1].min(), heat[i - 1].max()
        share = (heat[i - 1] - low) / max(high - low, 1e-9)                             # (H,W) 0 ... 1
        axis.imshow(share, cmap="YlOrRd", alpha=0.9 * share, vmin=0, vmax=1, interpolation="bilinear")
        axis.set_title(title, fontsize=10.5, fontweight="bold", loc="left", pad=4)
        axis.set_title(f"{100 * high:.0f} %", fontsize=8.5, color=FAINT, loc="right", pad=4)
    figure.suptitle(f"“{prompt}”", fontsize=11, x=0.012, y=1 - 0.06 / height, ha="left", va="top")
    figure.subplots_adjust(left=0.012, right=0.988, top=1 - 0.5 / height, bottom=0.06 / height, wspace=0.07, hspace=0.2)
    write(plt, figure, path, colors=256)


def sweep(path: Path, title: str, cells: list[dict], pictures: list[Tensor]) -> None:
    """Guidance from left to right, steps from top to bottom: some pictures of each cell, and under them what came out right.

    cells: see sweep.run.   pictures: for each of them (n,3,S,S) in [-1,1], of which four are shown.
    """
    plt = pyplot()
    across, down = (list(dict.fromkeys(c[key] for c in cells)) for key in ("guidance", "steps"))
    width, height = 1.75 * len(across) + 0.7, 2.22 * len(down) + 0.6
    figure, axes = plt.subplots(len(down), len(across), figsize=(width, height), squeeze=False)
    best = max(c["right"] for c in cells)
    for cell, images in zip(cells, pictures, strict=True):
        row, column = down.index(cell["steps"]), across.index(cell["guidance"])
        axis, strong = axes[row][column], cell["right"] == best
        _show(axis, _mosaic(images))
        if row == 0:
            axis.set_title(f"{cell['guidance']:g}", fontsize=12, pad=6)
        if column == 0:
            axis.set_ylabel(f"{cell['steps']}", fontsize=12, rotation=0, ha="right", va="center", labelpad=8)

        def bar(ends, color, thick, axis=axis, y=-0.195):
            axis.plot(ends, (y, y), transform=axis.transAxes, color=color, linewidth=thick, clip_on=False, solid_capstyle="butt")

        axis.text(0, -0.04, f"{100 * cell['rate']:.0f} %", transform=axis.transAxes, va="top", fontsize=11,
                  color=LATENT if strong else INK, fontweight="bold" if strong else "normal")
        axis.text(1, -0.05, f"{100 * cell['low']:.0f} – {100 * cell['high']:.0f}", transform=axis.transAxes, va="top",
                  ha="right", fontsize=8, color=FAINT)
        bar((0, 1), "#E8E8EA", 4)
        bar((cell["low"], cell["high"]), "#9CC9E6", 4)
        bar((max(cell["rate"] - 0.01, 0), min(cell["rate"] + 0.01, 1)), LATENT, 8)
    first = axes[0][0].transAxes
    axes[0][0].text(0, 1.035, "guidance", transform=first, fontsize=8.5, color=FAINT)
    axes[0][0].text(-0.06, 0.57, "steps", transform=first, fontsize=8.5, color=FAINT, ha="right")
    figure.text(0.6 / width, 1 - 0.08 / height, title, fontsize=10.5, va="top")
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.1 / width, top=1 - 0.58 / height, bottom=0.38 / height, wspace=0.1,
                           hspace=0.3)
    write(plt, figure, path, colors=256)


def _mosaic(images: Tensor) -> Tensor:
    """Up to four pictures (n,3,S,S) as a square of two by two, a white line between them; one stays one."""
    if len(images) == 1:
        return images[0]
    S, line = images.shape[-1], max(1, images.shape[-1] // 32)
    whole = images.new_ones(3, 2 * S + line, 2 * S + line)
    for i, image in enumerate(images[:4]):
        top, left = (i // 2) * (S + line), (i % 2) * (S + line)
        whole[:, top: top + S, left: left + S] = image
    return whole


def curves(path: Path, runs: dict[str, list[list[float]]]) -> None:
    """Loss against minutes, smoothed: title -> [[step, images, seconds, loss, lr], ...]."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(runs), figsize=(3.5 * len(runs), 2.6), squeeze=False)
    for axis, (title, curve) in zip(axes[0], runs.items(), strict=True):
        _curve(plt, axis, title, [c[2] / 60 for c in curve], [c[3] for c in curve], PIXEL if "pixel" in title else LATENT)
    axes[0][0].set_ylabel("loss")
    figure.tight_layout()
    write(plt, figure, path)


def logged(path: Path, log: Path, marks: dict[str, float]) -> None:
    """Loss, and whatever else a run wrote to its log.jsonl, against minutes; `marks` names moments (minutes) to point out."""
    plt = pyplot()
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    beside = ("step", "images", "seconds", "lr", "images_per_second", "mfu")
    names = list(dict.fromkeys(["loss", *(name for line in lines for name in line if name not in beside)]))
    figure, axes = plt.subplots(1, len(names), figsize=(3.5 * len(names), 2.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        known = [line for line in lines if name in line]
        _curve(plt, axis, TITLES.get(name, name), [c["seconds"] / 60 for c in known], [c[name] for c in known], LATENT,
               logarithmic=name == "loss")
        for i, (title, minute) in enumerate(marks.items()):
            axis.axvline(minute, color=PIXEL, linewidth=0.9, linestyle=(0, (4, 3)))
            axis.text(minute, 0.02 + 0.09 * i, f" {title}", transform=axis.get_xaxis_transform(), color=PIXEL, fontsize=7.5)
    figure.tight_layout()
    write(plt, figure, path)


TITLES = {"psnr": "PSNR of the batch, dB", "critic": "the critic's own loss", "perplexity": "codes in use (perplexity)",
          "right": "own caption found"}


def _curve(plt, axis, title: str, minutes: list[float], values: list[float], color: str, logarithmic: bool = True) -> None:
    """Faint as measured, strong as a running mean."""
    smooth, value, weight, before = [], 0.0, 0.0, minutes[0] if minutes else 0.0
    for now, measured in zip(minutes, values, strict=True):
        keep = math.exp(-25 * (now - before) / max(minutes[-1], 1e-9))        # forgets in a 25th of the run: steps may slow down
        value, weight, before = keep * value + measured, keep * weight + 1, now
        smooth.append(value / weight)
    axis.plot(minutes, values, color=color, alpha=0.22, linewidth=0.8)
    axis.plot(minutes, smooth, color=color, linewidth=1.8)
    axis.set_xlabel("minutes of training"), axis.set_title(title, fontsize=10.5)
    if logarithmic:
        axis.set_yscale("log")
        plain_ticks(plt, axis.yaxis, "%.3g")


def plain_ticks(plt, side, form: str = "%g") -> None:
    """Write 1, 2, 5, 10, ... at a logarithmic side of a plot (axis.xaxis or axis.yaxis), no powers of ten."""
    ticker = plt.matplotlib.ticker
    side.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    side.set_major_formatter(ticker.FormatStrFormatter(form))
    side.set_minor_formatter(ticker.NullFormatter())


def write(plt, figure, path: Path, colors: int | None = None) -> None:
    """`colors`: with a palette of so many the file is a third as large."""
    page = io.BytesIO()
    figure.savefig(page, format=path.suffix[1:], dpi=130, facecolor="white")
    plt.close(figure)
    if colors:
        small = Image.open(page).convert("RGB").quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
        page = io.BytesIO()
        small.save(page, "PNG", optimize=True)
    files.write_bytes(path, page.getvalue())
