"""The demo's pictures: samples side by side, one picture's way out of the noise, and the loss curves."""

import json
import math
import textwrap
from pathlib import Path

from torch import Tensor

# Okabe & Ito 2008: told apart by every kind of eye
LATENT, PIXEL, INK, FAINT = "#0072B2", "#D55E00", "#222222", "#999999"


def _plt():
    """Matplotlib without a screen; imported late, it takes a second."""
    import matplotlib
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False,
                         "axes.spines.right": False, "axes.edgecolor": FAINT, "text.color": INK})
    return plt


def _show(axis, image: Tensor, color: str | None = None) -> None:
    """One picture (3,H,W) in [-1,1], framed."""
    axis.imshow(((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axis.set_xticks([]), axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(True), spine.set_color(color or FAINT), spine.set_linewidth(1)


def samples(path: Path, prompts: list[str], rows: dict[str, tuple[Tensor, list[bool | None]]], columns: int = 8) -> None:
    """Rows of pictures over their prompts; a tick or a cross says what the oracle made of each.

    rows: title -> (images (B,3,H,W), all attributes right? None where nobody can say)
    """
    plt, columns = _plt(), min(columns, len(prompts))
    colors = {"latent": LATENT, "pixel": PIXEL}
    said = [textwrap.fill(prompt, 21) for prompt in prompts[:columns]]
    words = 0.14 * max(4, *(text.count("\n") + 1 for text in said)) + 0.25             # inches below the last row
    height = 1.63 * len(rows) + words
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.45 * columns + 0.6, height), squeeze=False)
    for row, (title, (images, right)) in enumerate(rows.items()):
        color = next((c for key, c in colors.items() if key in title), INK)
        for column in range(columns):
            axis = axes[row][column]
            _show(axis, images[column])
            if right[column] is not None:
                axis.text(0.5, -0.04, "✓" if right[column] else "✗", transform=axis.transAxes, ha="center", va="top",
                          fontsize=11, color="#007A5E" if right[column] else "#B03A2E", fontweight="bold")
        axes[row][0].set_ylabel(title, fontsize=11, color=color, fontweight="bold")
    for axis, text in zip(axes[-1], said, strict=True):
        axis.text(0.5, -0.24, text, transform=axis.transAxes, ha="center", va="top", fontsize=8)
    figure.subplots_adjust(left=0.045, right=0.995, top=0.99, bottom=words / height, wspace=0.08, hspace=0.17)
    _write(plt, figure, path)


def grid(path: Path, prompts: list[str], images: Tensor, right: list[bool | None], columns: int = 8, rows: int = 4) -> None:
    """Pictures (n,3,H,W), each over its own prompt, with the oracle's tick or cross where there is one."""
    plt, n = _plt(), min(len(prompts), rows * columns)
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
    _write(plt, figure, path)


def trajectory(path: Path, prompt: str, rows: dict[str, list[tuple[float, Tensor]]]) -> None:
    """How a picture comes out of the noise: title -> [(t, picture (3,H,W)), ...]."""
    plt = _plt()
    columns = max(len(steps) for steps in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.2 * columns + 0.8, 1.42 * len(rows) + 0.45), squeeze=False)
    for row, (title, steps) in enumerate(rows.items()):
        for axis, (t, image) in zip(axes[row], steps, strict=True):
            _show(axis, image)
            axis.set_title(f"t = {t:.0f}" if t >= 0 else "result", fontsize=8.5, pad=3)
        axes[row][0].set_ylabel(title, fontsize=9)
    figure.suptitle(f"“{prompt}”", fontsize=10.5, y=0.995)
    figure.subplots_adjust(left=0.06, right=0.995, top=0.86, bottom=0.02, wspace=0.06, hspace=0.30)
    _write(plt, figure, path)


def curves(path: Path, runs: dict[str, list[list[float]]]) -> None:
    """Loss against minutes, smoothed: title -> [[step, images, seconds, loss, lr], ...]."""
    plt = _plt()
    figure, axes = plt.subplots(1, len(runs), figsize=(3.5 * len(runs), 2.6), squeeze=False)
    for axis, (title, curve) in zip(axes[0], runs.items(), strict=True):
        _curve(plt, axis, title, [c[2] / 60 for c in curve], [c[3] for c in curve], PIXEL if "pixel" in title else LATENT)
    axes[0][0].set_ylabel("loss")
    figure.tight_layout()
    _write(plt, figure, path)


def logged(path: Path, log: Path, marks: dict[str, float]) -> None:
    """Loss, and whatever else a run wrote to its log.jsonl, against minutes; `marks` names moments (minutes) to point out."""
    plt = _plt()
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
    _write(plt, figure, path)


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
        axis.yaxis.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(plt.matplotlib.ticker.FormatStrFormatter("%.3g"))
        axis.yaxis.set_minor_formatter(plt.matplotlib.ticker.NullFormatter())


def _write(plt, figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)
