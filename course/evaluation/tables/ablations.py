"""G: what does each choice do? One at a time is changed, on the demo's latent model, for the same minutes.

The article gives the KL penalty as 1e-3 in its code and as 1e-5 in its text; Stable Diffusion has 1e-6. Each is tried in both
conventions: reconstruction and KL summed over a picture, as in the released code, or each averaged over its own values, as in the
article's, where the same number is as many times stronger as a picture has more values than its latent: 48 times here.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from course import demo, presets
from course.evaluation import figures
from course.evaluation.tables import arms, drawn
from course.evaluation.tables.guidance import JUDGED
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Scale, Table, Work
from course.training import autoencoder, diffusion, loop

BASE = presets.PIPELINES["demo-latent"]
VALUES = 3 * BASE.image_size**2 / ((BASE.image_size // BASE.vae.factor) ** 2 * BASE.vae.latent_channels)       # 48
SHARES = (0.4, 0.5)                        # of a scale's minutes: an autoencoder's, a denoiser's


@dataclass(frozen=True)
class Change:
    """What is otherwise than in the base: all that is None is as there."""

    name: str
    kl: float | None = None                # summed
    scale: float | None = None             # what latents are multiplied by
    schedule: str | None = None
    predict: str | None = None
    gamma: float | None = None             # of min-SNR
    halflife: float | None = None          # of the average of weights


CHANGES = (
    Change("latents at SD's scale, 0.18215", scale=0.18215),
    *(Change(f"KL {kl:g}, summed", kl=kl) for kl in (1e-3, 1e-5, 1e-6)),
    *(Change(f"KL {kl:g}, averaged", kl=kl * VALUES) for kl in (1e-3, 1e-5, 1e-6)),
    Change("no average of weights", halflife=0.0), Change("linear schedule", schedule="linear"),
    Change("cosine schedule", schedule="cosine"), Change("predicts the noise", predict="eps"),
    Change("predicts the picture", predict="x0"), Change("min-SNR, 5", gamma=5.0))
QUICK = (CHANGES[0], CHANGES[3])


def measure(work: Work) -> list[dict]:
    quick = work.scale.name == "quick"
    judge = drawn.Judge(64, work.scale.pictures, (1, 1), drawn.extractor(work))
    lesson = arms.Lesson(pictures=64 if quick else demo.recipe_for(work.device).pictures)
    seeds = 1 if quick else 3
    wanted = [(Change("base"), s) for s in range(seeds)] + [(c, 0) for c in (QUICK if quick else CHANGES)]
    jobs = {"real": lambda: {"change": "the pictures themselves"} | judge.says(judge.own)}
    for number, (change, seed) in enumerate(wanted):
        def compute(change: Change = change, seed: int = seed, number: int = number) -> dict:
            return arm(work, lesson, judge, change, seed, lambda share: work.progress((number + share) / len(wanted)))
        jobs[f"{seed}-" + "".join(c if c.isalnum() else "-" for c in change.name)] = compute
    return work.share(jobs)


def arm(work: Work, lesson: arms.Lesson, judge: drawn.Judge, change: Change, seed: int, tick: Callable) -> dict:
    recipe, runs, own = demo.recipe_for(work.device), work.folder / "runs", work.seed + seed
    kl = recipe.kl if change.kl is None else change.kl
    stage = f"kl-{kl:.3g}-{seed}"
    first, minutes = (share * work.scale.minutes for share in SHARES)
    vae, _ = arms.first_stage(lesson, BASE.vae, runs / f"autoencoder-{stage}", loop.Budget(minutes=first), work.device, own,
                              autoencoder.AutoencoderLoss(kl=kl), recipe.autoencoder)
    mean, std, measured, _ = arms.encoded(lesson, vae, runs / f"latents-{stage}", work.device)
    scale = measured if change.scale is None else change.scale
    vae.scaling_factor = scale
    config = replace(BASE, vae=replace(BASE.vae, scaling_factor=scale), predict=change.predict or BASE.predict,
                     schedule=replace(BASE.schedule, kind=change.schedule or BASE.schedule.kind))
    settings = recipe.latent if change.halflife is None else replace(recipe.latent, ema_halflife=change.halflife)
    pipe, state = arms.second_stage(
        lesson, config, diffusion.latent_batches(mean, std, scale), vae,
        runs / f"{seed}-{''.join(c if c.isalnum() else '-' for c in change.name)}", loop.Budget(minutes=minutes), settings,
        work.device, own, diffusion.DiffusionLoss(config.predict, min_snr_gamma=change.gamma),
        watch=lambda s, _: tick(min(s["seconds"] / (60 * minutes), 1.0)))
    images = drawn.pictures(pipe, judge.prompts, work.seed, steps=2 if work.scale.name == "quick" else 25)
    again = arms.rebuilt(vae, judge.own, work.device)
    return {"change": change.name, "seed": seed, "kl_weight": kl, "factor": scale, "images": state["images"],
            "psnr": arms.distortion(judge.own, again)["psnr"]} | judge.says(images)


def beyond(rows: list[dict]) -> tuple[float, float, dict[str, float]]:
    """(mean KID of the base, spread of its seeds, {change: how many spreads its KID lies above}); the spread is at least a
    quarter of KID's own interval."""
    base = [r for r in rows if r["change"] == "base"]
    mean = statistics.mean(r["kid"] for r in base)
    spread = statistics.stdev(r["kid"] for r in base) if len(base) > 1 else 0.0
    spread = max(spread, max((r["kid_high"] - r["kid_low"]) / 4 for r in base))
    return mean, spread, {r["change"]: (r["kid"] - mean) / spread for r in rows if "seed" in r and r["change"] != "base"}


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: at another dataset's scale of latents KID is worse than the base's by more than twice the spread of its seeds.
    Contradicted: it is better than the base's."""
    mean, spread, found = beyond(rows)
    off = found[CHANGES[0].name]
    worse = ", ".join(f"{name} ({value:+.1f})" for name, value in found.items() if value > 2)
    better = ", ".join(f"{name} ({value:+.1f})" for name, value in found.items() if value < -2)
    told = (f"KID of the base {mean:.3g} ± {spread:.2g}. Worse by more than two of these: {worse or 'nothing'}. "
            f"Better: {better or 'nothing'}")
    if off > 2:
        return SUPPORTED, told
    return (CONTRADICTED if off < 0 else INCONCLUSIVE), told


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    own = [r for r in rows if "seed" in r]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 0.27 * len(own) + 1.0), sharey=True)
    names = [r["change"] + (f", seed {r['seed']}" if r["change"] == "base" else "") for r in own]
    colors = [figures.INK if r["change"] == "base" else figures.LATENT for r in own]
    places = range(len(own))
    for place, r, color in zip(places, own, colors, strict=True):
        left.plot((r["kid_low"], r["kid_high"]), (place, place), color=color, lw=2)
        left.plot(r["kid"], place, "o", color=color, ms=5)
        right.plot((100 * r["right_low"], 100 * r["right_high"]), (place, place), color=color, lw=2)
        right.plot(100 * r["right"], place, "o", color=color, ms=5)
    mean, spread, _ = beyond(rows)
    left.axvspan(mean - 2 * spread, mean + 2 * spread, color=figures.FAINT, alpha=0.2, lw=0)
    left.set_yticks(list(places), names, fontsize=8)
    left.invert_yaxis()
    left.set_title("KID-course, lower is better"), right.set_title("all right, %")
    figure.tight_layout()
    figures.write(plt, figure, path)


TABLE = Table(
    "G", "One choice at a time", "Diffusion is hurt by latents whose scale is not measured, but taken from another model",
    "at Stable Diffusion's scale, 0.18215, KID is not worse than at the measured one by more than twice the spread over seeds",
    (Column("change", "changed"), Column("seed", "seed", "d"), Column("kl_weight", "KL weight, summed", ".2g"),
     Column("factor", "scale", ".3f"), Column("psnr", "autoencoder, dB", ".1f"),
     Column("images", "pictures seen", ",d"), *JUDGED),
    measure, rule, draw,
    notes=(f"Averaged, a KL weight is {VALUES:g} times as strong as summed; at 256 pixels, against 1e-6, the article's 1e-3 is "
           "48,000 times as strong.", "All but the base have one seed; grey is twice the spread of the base's three."))
