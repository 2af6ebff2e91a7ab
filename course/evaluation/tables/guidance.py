"""F: text to image over the guidance scale (Rombach et al. 2022, table 2; Stable Diffusion's own curve; the article's 6.2)."""

from pathlib import Path

from course.evaluation import figures
from course.evaluation.tables import drawn
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Scale, Table, Work
from course.pipeline import StableDiffusion

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 12.0)
QUICK = (1.0, 7.5)


def measure(work: Work) -> list[dict]:
    quick = work.scale.name == "quick"
    pipe = StableDiffusion.load("scenes64", work.device)
    judge = drawn.Judge(64, work.scale.pictures, (1, 3), drawn.extractor(work), drawn.scorer(work).judges(pipe))
    jobs = {"real": lambda: {"guidance": "the pictures themselves"} | judge.says(judge.own),
            "rebuilt": lambda: {"guidance": "the autoencoder alone"} | judge.says(drawn.rebuilt(pipe, judge.own)),
            "shuffled": lambda: {"guidance": "the pictures of other prompts"} | judge.says(judge.own.roll(1, 0))}
    scales = QUICK if quick else SCALES
    for number, w in enumerate(scales):
        def compute(w: float = w, number: int = number) -> dict:
            images = drawn.pictures(pipe, judge.prompts, work.seed, steps=2 if quick else 25, guidance_scale=w,
                                    tick=lambda share: work.progress((number + share) / len(scales)))
            return {"guidance": w} | judge.says(images)
        jobs[f"guidance-{w:g}"] = compute
    return work.share(jobs)


def swept(rows: list[dict]) -> list[dict]:
    return [r for r in rows if not isinstance(r["guidance"], str)]


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: FD is lowest strictly inside the sweep, by KID's intervals below both ends, and being right rises from w = 0."""
    found = swept(rows)
    best = min(found, key=lambda r: r["fd"])
    first, last = found[0], found[-1]
    told = f"FD is lowest at w = {best['guidance']:g} ({best['fd']:.2f}; w = {first['guidance']:g}: {first['fd']:.2f}, " \
           f"w = {last['guidance']:g}: {last['fd']:.2f})"
    if best in (first, last):
        return CONTRADICTED, f"{told}: an end of the sweep"
    if best["kid_high"] >= min(first["kid_low"], last["kid_low"]):
        return INCONCLUSIVE, f"{told}, but by KID its interval touches that of an end"
    if max(r["right_low"] for r in found) <= first["right_high"]:
        return CONTRADICTED, f"{told}, but guidance makes no more prompts come out right"
    return SUPPORTED, told


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    found, floor = swept(rows), [r for r in rows if isinstance(r["guidance"], str)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1))
    w = [r["guidance"] for r in found]
    left.plot(w, [r["fd"] for r in found], "o-", color=figures.LATENT, label="drawn")
    for r, style in zip(floor[:2], (":", "--"), strict=True):
        left.axhline(r["fd"], color=figures.FAINT, ls=style, label=r["guidance"])
    left.set(xlabel="guidance scale w", title="FD-course, lower is better", ylim=(0, None))
    right.plot(w, [100 * r["right"] for r in found], "o-", color=figures.LATENT, label="all right, by the oracle")
    right.fill_between(w, [100 * r["right_low"] for r in found], [100 * r["right_high"] for r in found], alpha=0.2,
                       color=figures.LATENT, lw=0)
    right.plot(w, [100 * r["precision"] for r in found], "^--", color=figures.PIXEL, label="precision")
    right.plot(w, [100 * r["recall"] for r in found], "s:", color=figures.INK, label="recall")
    right.set(xlabel="guidance scale w", title="%", ylim=(-3, 103))
    for axis in (left, right):
        axis.legend(fontsize=8)
    figure.tight_layout()
    figures.write(plt, figure, path)


JUDGED = (Column("fd", "FD-course", ".2f"), Column("kid", "KID-course", ".2e"), Column("precision", "precision", ".2f"),
          Column("recall", "recall", ".2f"), Column("right", "all right", "%"), Column("right_low", "at least", "%"),
          Column("right_high", "at most", "%"))
TABLE = Table(
    "F", "Text to image over guidance",
    "Some guidance makes pictures both better and truer to the prompt; too much makes them worse",
    "FD is lowest at an end of the sweep, or guidance makes no more prompts come out right",
    (Column("guidance", "guidance scale", "g"), *JUDGED, Column("clip", "CLIP-course", ".3f")), measure, rule, draw,
    ("guidance", (Column("guidance", "guidance scale", "g"), Column("FID", "FID", ".1f"), Column("CLIP", "CLIP score", ".3f"))),
    notes=("Published: Stable Diffusion 1.4 on COCO, FID and CLIP ViT-L/14; read from a plot by eye.",))
