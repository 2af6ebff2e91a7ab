"""How far the oracle can be trusted: measured on pictures whose content is known.

    python -m course.data.oracle_study --out docs/oracle          writes robustness.png, robustness.md, robustness.json
"""

from pathlib import Path

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from torch import Tensor

from course import files, style
from course.data import Scenes, oracle
from course.training.progress import Progress

SIZES = (32, 64, 128, 256)
BLURS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.06)                    # sigma, in picture widths
NOISES = (0.0, 0.05, 0.10, 0.15, 0.20, 0.30)                   # sigma, on the scale of [-1, 1]
KEYS = ("all", "shape", "color", "size", "background", "coverage")


def blurred(images: Tensor, sigma: float) -> Tensor:
    if sigma == 0:
        return images
    sigma *= images.shape[-1]
    half = max(1, int(3 * sigma + 0.5))
    window = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
    window = (window / window.sum()).expand(3, 1, 1, -1)
    images = F.conv2d(F.pad(images, (half, half, 0, 0), mode="replicate"), window, groups=3)
    return F.conv2d(F.pad(images, (0, 0, half, half), mode="replicate"), window.transpose(2, 3), groups=3)


def noisy(images: Tensor, sigma: float) -> Tensor:
    return (images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


def pictures(size: int, objects: tuple[int, int], indices: range):
    data = Scenes(size, "test", objects=objects, degraded=0)
    scenes = data.scenes(indices)
    return data.images(indices, scenes), scenes


def study(out: str | Path, clean: int = 2000, spoilt: int = 200) -> dict:
    """Measure, write the table and the plot to `out`, return the figures."""
    jobs = [("clean", size, objects) for size in SIZES for objects in ((1, 1), (2, 3))]
    jobs += [("blur", sigma, None) for sigma in BLURS] + [("noise", sigma, None) for sigma in NOISES]
    found = {"clean": [], "blur": [], "noise": [], "counts": {"clean": clean, "spoilt": spoilt}}
    with Progress("oracle study") as progress:
        for k, (what, value, objects) in enumerate(jobs):
            if what == "clean":
                row = {"pixels": value, "objects": "1" if objects == (1, 1) else "2-3"}
                rates = {}
                for start in range(0, clean, 500):             # a quarter of the pictures in memory at a time
                    chunk = range(start, min(start + 500, clean))
                    part = oracle.rates(*pictures(value, objects, chunk))
                    rates = {key: rates.get(key, 0) + part[key] * len(chunk) / clean for key in part}
            else:
                images, scenes = pictures(64, (1, 1), range(spoilt))
                row = {"sigma": value}
                rates = oracle.rates((blurred if what == "blur" else noisy)(images, value), scenes)
            found[what].append(row | rates)
            progress.update((k + 1) / len(jobs))
    out = Path(out)
    files.write_json(out / "robustness.json", found)
    files.write_bytes(out / "robustness.md", table(found).encode())
    plot(found, out / "robustness.png")
    return found


def table(found: dict) -> str:
    def percent(x: float) -> str:
        return f"{100 * x:.2f}".rstrip("0").rstrip(".") + " %"
    lines = ["# How far the oracle can be trusted", "",
             f"Clean pictures, {found['counts']['clean']} a row, read exactly (`all`: shape, colour, size, background, and place "
             "or relation of every object):", "",
             "| pixels | objects | all | shape | color | size | background | texture | read without abstaining |",
             "|---|---|---|---|---|---|---|---|---|"]
    for r in found["clean"]:
        texture = percent(r["texture"]) if r["pixels"] >= 64 else "not read"
        lines.append(f"| {r['pixels']} | {r['objects']} | " + " | ".join(percent(r[k]) for k in KEYS[:5]) +
                     f" | {texture} | {percent(r['coverage'])} |")
    for what, unit in (("blur", "in picture widths"), ("noise", "on a scale from -1 to 1")):
        lines += ["", f"Under {what}, one object, 64 pixels, {found['counts']['spoilt']} pictures a row; sigma {unit}:", "",
                  "| sigma | all | shape | color | size | background | read without abstaining |",
                  "|---|---|---|---|---|---|---|"]
        lines += [f"| {r['sigma']} | " + " | ".join(percent(r[k]) for k in KEYS) + " |" for r in found[what]]
    lines += ["", "![Accuracy under blur and noise](robustness.png)", "",
              "Made by `python -m course.data.oracle_study --out docs/oracle`."]
    return "\n".join(lines) + "\n"


def plot(found: dict, path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.gridspec import GridSpec
    styles = {"all": (style.INK, "-", 2.4), "shape": (style.BLUE, "-", 1.5), "color": (style.RED, "-", 1.5),
              "size": (style.GREEN, "-", 1.5), "coverage": (style.GREY, "--", 1.5)}
    figure = plt.figure(figsize=(9.6, 5.0))
    layout = GridSpec(2, 12, height_ratios=(3.2, 1), hspace=0.55, wspace=0.15, left=0.075, right=0.985, top=0.93,
                      bottom=0.03)
    images, _ = pictures(64, (1, 1), range(8))
    for half, (what, title, spoil) in enumerate((("blur", "Gaussian blur, sigma in picture widths", blurred),
                                                 ("noise", "Gaussian noise, sigma on a scale from -1 to 1", noisy))):
        axis = figure.add_subplot(layout[0, 6 * half + (1 if half else 0): 6 * half + 6])
        rows = found[what]
        for key, (color, line, width) in styles.items():
            label = "read without abstaining" if key == "coverage" else key
            axis.plot([r["sigma"] for r in rows], [100 * r[key] for r in rows], line, color=color, linewidth=width,
                      marker="o", markersize=3.5, label=label)
        axis.set(title=title, ylim=(-3, 104), xlim=(0, rows[-1]["sigma"]))
        axis.title.set_fontsize(10.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6")
        axis.set_axisbelow(True)
        if not half:
            axis.set_ylabel("pictures read right, %")
            axis.legend(frameon=False, fontsize=8.5, loc="lower left")
        for k, r in enumerate(rows):                           # what that much of it looks like
            small = figure.add_subplot(layout[1, 6 * half + k])
            small.imshow(((spoil(images, r["sigma"])[half + 1] + 1) / 2).permute(1, 2, 0).numpy())
            small.set_title(f"{r['sigma']:g}", fontsize=8.5, pad=2)
            small.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(out: str = "docs/oracle", clean: int = 2000, spoilt: int = 200) -> None:
    found = study(out, clean, spoilt)
    Console().print(table(found))


if __name__ == "__main__":
    typer.run(main)
