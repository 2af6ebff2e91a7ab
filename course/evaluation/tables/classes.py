"""E: class-conditional pictures over guidance (Rombach et al. 2022, table 3; the article's 6.1). A class is a shape in a colour.

The condition is one vector a class, learned with the denoiser; one more stands for no class. The autoencoder is that of scenes64.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from course import demo, presets
from course.data import latents, oracle
from course.data.vocabulary import COLORS, SHAPES
from course.evaluation import figures, metrics
from course.evaluation.sweep import wilson
from course.evaluation.tables import arms, drawn
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Scale, Table, Work
from course.pipeline import StableDiffusion
from course.training import diffusion, loop

GUIDANCE = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)


class ClassNames:
    """A tokenizer of one token: "red circle" -> (1,1); "" has a number of its own."""

    length = 1

    def __init__(self):
        self.names = [f"{color} {shape}" for shape in SHAPES for color in COLORS]

    def __call__(self, said: str | list[str]) -> Tensor:
        said = [said] if isinstance(said, str) else said
        return torch.tensor([[self.names.index(name) if name else len(self.names)] for name in said])          # (B,1)

    def cut_off(self, said: str) -> str:
        return ""


class ClassEmbedding(nn.Module):
    """(B,1) -> (B,1,D), in a text encoder's place."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(classes + 1, width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)


def name_of(scene) -> str:
    return f"{scene.objects[0].color} {scene.objects[0].shape}"


def measure(work: Work) -> list[dict]:
    quick = work.scale.name == "quick"
    extractor = drawn.extractor(work)
    judge = drawn.Judge(64, work.scale.pictures, (1, 1), extractor)
    lesson = arms.Lesson(pictures=64 if quick else demo.recipe_for(work.device).pictures)
    wanted = [name_of(scene) for scene in judge.scenes]

    def says(images: Tensor) -> dict:
        readings = oracle.read(images)
        right = sum(s["shape"] and s["color"] for s in (
            oracle.score(r, scene) for r, scene in zip(readings, judge.scenes, strict=True)))
        low, high = wilson(right, len(wanted))
        return judge.says(images) | {"is": metrics.inception_score(extractor.classes(images))[0],
                                     "right": right / len(wanted), "right_low": low, "right_high": high}
    seeds = range(1 if quick else work.scale.seeds)
    jobs = {"real": lambda: {"guidance": "the pictures themselves"} | says(judge.own)}
    for s in seeds:
        for w in (1.0, 5.0) if quick else GUIDANCE:
            def compute(s: int = s, w: float = w) -> dict:
                pipe = trained(work, lesson, s)
                images = drawn.pictures(pipe, wanted, work.seed, steps=2 if quick else 25, guidance_scale=w, tick=work.progress)
                return {"guidance": w, "seed": s} | says(images)
            jobs[f"seed{s}-guidance-{w:g}"] = compute
    return work.share(jobs)


def trained(work: Work, lesson: arms.Lesson, seed: int) -> StableDiffusion:
    """The class-conditional model of a seed, trained or read again."""
    shipped, recipe, folder = StableDiffusion.load("scenes64", work.device), demo.recipe_for(work.device), work.folder / "runs"
    mean, std = latents.cached(folder / "latents", shipped.vae, lesson.material.images, work.device)
    tokens = ClassNames()
    torch.manual_seed(work.seed + seed)
    encoder = ClassEmbedding(len(tokens.names), 128)
    ids = tokens([name_of(scene) for scene in lesson.material.scenes])[:, None]         # (n,1,1)
    base = presets.PIPELINES["demo-latent"]
    config = replace(base, vae=shipped.config.vae, unet=replace(base.unet, in_channels=8, out_channels=8))
    return arms.second_stage(lesson, config, diffusion.latent_batches(mean, std, shipped.vae.scaling_factor, False), shipped.vae,
                             folder / f"seed-{seed}", loop.Budget(minutes=work.scale.minutes), recipe.latent, work.device,
                             work.seed + seed, words=(tokens, encoder, ids),
                             watch=lambda state, _: work.progress(state["seconds"] / (60 * work.scale.minutes)))[0]


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: from w = 1 to the strongest guidance precision and inception score rise and recall falls, for every seed.
    Contradicted: recall does not fall for any."""
    found = []
    for s in sorted({r["seed"] for r in rows if "seed" in r}):
        own = [r for r in rows if r.get("seed") == s]
        first, last = own[0], own[-1]
        found.append({key: last[key] - first[key] for key in ("precision", "recall", "is")})
    told = "; ".join(f"precision {d['precision']:+.2f}, recall {d['recall']:+.2f}, IS {d['is']:+.1f}" for d in found)
    told = f"from w = {rows[1]['guidance']:g} to {rows[-1]['guidance']:g}: {told}"
    if all(d["recall"] < 0 and d["precision"] > 0 and d["is"] > 0 for d in found):
        return SUPPORTED, told
    if all(d["recall"] >= 0 for d in found) or all(d["precision"] <= 0 for d in found):
        return CONTRADICTED, told
    return INCONCLUSIVE, told


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0))
    for s in sorted({r["seed"] for r in rows if "seed" in r}):
        own = [r for r in rows if r.get("seed") == s]
        w, first = [r["guidance"] for r in own], s == 0
        axes[0].plot(w, [r["fd"] for r in own], "o-", ms=4, lw=1.2, color=figures.LATENT, label="drawn" if first else None)
        axes[1].plot(w, [r["is"] for r in own], "o-", ms=4, lw=1.2, color=figures.LATENT)
        for key, mark, color in (("precision", "^", figures.PIXEL), ("recall", "s", figures.INK), ("right", "o", figures.LATENT)):
            axes[2].plot(w, [r[key] for r in own], mark + "-", ms=4, lw=1.2, color=color, label=key if first else None)
    real = rows[0]
    axes[0].axhline(real["fd"], color=figures.FAINT, ls=":", label=real["guidance"])
    axes[1].axhline(real["is"], color=figures.FAINT, ls=":")
    for axis, title in zip(axes, ("FD-course, lower is better", "inception score, of shape and colour", "shares"), strict=True):
        axis.set(xlabel="guidance scale w", title=title)
    axes[0].legend(fontsize=8), axes[2].legend(fontsize=8)
    figure.tight_layout()
    figures.write(plt, figure, path)


TABLE = Table(
    "E", "Class-conditional pictures over guidance", "Guidance buys precision and pays with recall",
    "recall does not fall, or precision does not rise, from w = 1 to the strongest guidance",
    (Column("guidance", "guidance scale", "g"), Column("seed", "seed", "d"), Column("fd", "FD-course", ".2f"),
     Column("kid", "KID-course", ".2e"), Column("is", "IS, of shape and colour", ".1f"), Column("precision", "precision", ".2f"),
     Column("recall", "recall", ".2f"), Column("right", "class right", "%")), measure, rule, draw,
    ("class_conditional", (Column("model", "model"), Column("FID", "FID", "g"), Column("IS", "IS", "g"),
                           Column("precision", "precision", "g"), Column("recall", "recall", "g"),
                           Column("parameters_millions", "parameters, millions", "g"))),
    notes=("The inception score here is that of fd-mini's answers for shape and colour: another classifier, other classes.",))
