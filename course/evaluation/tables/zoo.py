"""A: autoencoders by how much they shrink, by regulariser and by channels (Rombach et al. 2022, table 8).

All see the same pictures, as many and in the same order; the penalty is the paper's 1e-6, summed. Their first and last layers
fold pixels into channels, so that a small f is not many times as dear as a large one.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from course import vae, vq
from course.evaluation import figures, metrics
from course.evaluation.tables import arms, drawn
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Scale, Table, Work
from course.training import autoencoder, loop

# f -> (pixels folded, widths): three to seven hundred thousand parameters but for f = 2, which would see too few pictures
SHAPES = {2: (2, (32,)), 4: (2, (32, 64)), 8: (4, (32, 64)), 16: (8, (32, 64))}
PLAN = [(f, "KL", 4) for f in SHAPES] + [(8, "KL", 1), (8, "KL", 16), (16, "KL", 16)] + [(f, "VQ", 4) for f in SHAPES]
QUICK = [(8, "KL", 4), (16, "KL", 4), (16, "VQ", 4)]
STEPS = {"quick": 2, "cpu": 1_500, "gpu": 12_000}
CODES = 1_024
PENALTY = autoencoder.AutoencoderLoss(kl=1e-6)
GPU = loop.LoopConfig(batch_size=64, lr=1e-3, warmup_images=20_000, ema_halflife=20_000)


def config(f: int, kind: str, channels: int) -> "vae.VAEConfig":
    stem, widths = SHAPES[f]
    shape = dict(latent_channels=channels, block_channels=widths, layers_per_block=1, stem=stem, mid_attention=False)
    return vae.VAEConfig(**shape) if kind == "KL" else vq.VQConfig(**shape, num_codes=CODES, ema_decay=0.99, restart_below=0.01)


def measure(work: Work) -> list[dict]:
    quick, plan = work.scale.name == "quick", QUICK if work.scale.name == "quick" else PLAN
    judge = drawn.Judge(64, work.scale.pictures, (1, 1), drawn.extractor(work))
    look = drawn.likeness(work)
    lesson = arms.Lesson(pictures=64 if quick else 8_192 if work.scale.name == "cpu" else 65_536)
    settings = GPU if work.device.startswith("cuda") else arms.DEMO.autoencoder
    jobs = {"real": lambda: {"kind": "the pictures themselves"} | of_interest(judge.says(judge.own))}
    for number, (f, kind, channels) in enumerate(plan):
        def compute(f=f, kind=kind, channels=channels, number=number) -> dict:
            model, state = arms.first_stage(
                lesson, config(f, kind, channels), work.folder / "runs" / f"{kind}-f{f}-c{channels}",
                loop.Budget(steps=STEPS[work.scale.name]), work.device, work.seed, PENALTY, settings,
                watch=lambda s, _: work.progress((number + s["step"] / STEPS[work.scale.name]) / len(plan)))
            again = arms.rebuilt(model, judge.own, work.device)
            each = metrics.psnr(judge.own, again)                                       # (n,)
            return {"kind": kind, "f": f, "channels": channels, "smaller": 3 * f**2 / channels,
                    "parameters": sum(p.numel() for p in model.parameters()), "images": state["images"],
                    "seconds": state["seconds"], "psnr": each.mean().item(),
                    "psnr_error": each.std().item() / math.sqrt(len(each)), "psnr_each": each[:1024].tolist(),
                    "ssim": metrics.ssim(judge.own, again).mean().item(), "psim": look.of(judge.own, again).mean().item(),
                    **(codes(model, judge.own, work.device) if kind == "VQ" else {})} | of_interest(judge.says(again))
        jobs[f"{kind}-f{f}-c{channels}"] = compute
    return work.share(jobs)


def of_interest(said: dict) -> dict:
    return {key: said[key] for key in ("fd", "kid", "kid_low", "kid_high", "right", "right_low", "right_high")}


@torch.no_grad()
def codes(model, images: Tensor, device: str) -> dict[str, float]:
    """Share of the codebook that occurs at all in `images`, and how many codes that amounts to, were all used alike."""
    indices = torch.cat([model(x.to(device))[2].flatten().cpu() for x in images.split(64)])
    found = vq.usage(indices, CODES)
    return {"used": found["used"], "perplexity": found["perplexity"]}


def gain(rows: list[dict], better: tuple, worse: tuple) -> tuple[float, float]:
    """(dB that `better` has over `worse`, half the width of its 95 % interval), by the same pictures in both."""
    found = {(r.get("f"), r["kind"], r.get("channels")): r for r in rows}
    a, b = (torch.tensor(found[key]["psnr_each"], dtype=torch.float64) for key in (better, worse))
    return (a - b).mean().item(), 1.96 * (a - b).std().item() / math.sqrt(len(a))


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: at four channels each doubling of f loses PSNR, KL and VQ alike, and sixteen channels give some of it back at
    f = 8 and 16; each by the interval of paired differences. Contradicted: one of them goes the other way by its interval."""
    sides = sorted(SHAPES)
    asked = {f"f = {b} to {a}, {kind}": ((a, kind, 4), (b, kind, 4)) for kind in ("KL", "VQ")
             for a, b in zip(sides, sides[1:], strict=False)}
    asked |= {f"4 to 16 channels at f = {f}": ((f, "KL", 16), (f, "KL", 4)) for f in (8, 16)}
    found = {name: gain(rows, *pair) for name, pair in asked.items()}
    wrong = [f"{name}: {value:+.2f} dB" for name, (value, half) in found.items() if value < -half]
    unsure = [name for name, (value, half) in found.items() if abs(value) <= half]
    regularisers = ", ".join(f"f = {f}: {gain(rows, (f, 'KL', 4), (f, 'VQ', 4))[0]:+.1f} dB" for f in sides)
    told = f"KL over VQ at four channels: {regularisers}"
    if wrong:
        return CONTRADICTED, f"the other way: {'; '.join(wrong)}. {told}"
    if unsure:
        return INCONCLUSIVE, f"within the interval: {', '.join(unsure)}. {told}"
    least = min(found, key=lambda name: found[name][0])
    return SUPPORTED, f"the least of {len(found)} differences is {found[least][0]:.2f} dB ({least}). {told}"


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1))
    for axis, key, title in zip(axes, ("psnr", "psim", "fd"), ("PSNR, dB", "PSIM-course", "rFD-course"), strict=True):
        for kind, color, mark in (("KL", figures.LATENT, "o"), ("VQ", figures.PIXEL, "s")):
            for channels, style in ((4, "-"), (16, ":"), (1, "")):
                points = sorted((r["f"], r[key]) for r in rows if r["kind"] == kind and r["channels"] == channels)
                if points:
                    axis.plot(*zip(*points, strict=True), mark + style, color=color, ms=5, lw=1.2,
                              label=f"{kind}, c = {channels}", markerfacecolor=color if channels == 4 else "white")
        axis.set(xscale="log", xlabel="f", title=title, xticks=sorted(SHAPES), xticklabels=sorted(SHAPES))
        axis.minorticks_off()
    floor = next(r["fd"] for r in rows if "f" not in r)
    axes[2].axhline(floor, color=figures.FAINT, ls="--", label="the pictures themselves")
    axes[2].legend(fontsize=7.5, bbox_to_anchor=(1, 1), loc="upper left")
    figure.tight_layout()
    figures.write(plt, figure, path)


TABLE = Table(
    "A", "Autoencoders", "Distortion rises with f at equal channels, and more channels buy some of it back",
    "at four channels some doubling of f gains PSNR, or sixteen channels are no better than four",
    (Column("kind", "regulariser"), Column("f", "f", "d"), Column("channels", "channels", "d"),
     Column("smaller", "times fewer values", "g"), Column("parameters", "parameters", ",d"),
     Column("images", "pictures seen", ",d"), Column("seconds", "seconds", ",.0f"), Column("fd", "rFD-course", ".2f"),
     Column("psnr", "PSNR, dB", ".2f"), Column("psnr_error", "±", ".2f"), Column("ssim", "SSIM", ".3f"),
     Column("psim", "PSIM-course", ".3f"), Column("used", "codes in use", "%"), Column("perplexity", "as many as", ".0f"),
     Column("right", "read right", "%")),
    measure, rule, draw,
    ("autoencoders", (Column("f", "f", "d"), Column("regulariser", "regulariser"), Column("channels", "channels", "d"),
                      Column("codes", "codes", ",d"), Column("rFID", "rFID", "g"), Column("PSNR", "PSNR, dB", "g"),
                      Column("SSIM", "SSIM", "g"), Column("PSIM", "PSIM", "g"), Column("note", "note"))),
    notes=("One training seed each: the intervals are over pictures. The paper's differ in attention and codes as well.",
           "The article's section 2.4 has VQ ahead of KL; the paper, KL slightly ahead of VQ."))
