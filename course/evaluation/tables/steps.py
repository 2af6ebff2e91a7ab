"""C: quality against time, by sampler and number of steps, latents beside pixels (Rombach et al. 2022, figure 7)."""

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from course.evaluation import figures
from course.evaluation.tables import drawn
from course.evaluation.tables.guidance import JUDGED
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Scale, Table, Work
from course.pipeline import StableDiffusion

PLAN = {"latent": [("ddim", n) for n in (5, 10, 20, 50, 100, 200)] + [
            (sampler, n) for sampler in ("ddpm", "euler", "heun", "dpmpp_2m", "unipc") for n in (5, 10, 20)],
        "pixel": [("ddim", n) for n in (5, 10, 20, 50)]}
QUICK = {"latent": [("ddim", 1), ("heun", 1)], "pixel": [("ddim", 1)]}
PICTURES = {"quick": 24, "cpu": 128, "gpu": 1_024}              # 85 steps of a pixel model on a CPU take five seconds a picture
MODELS = {"latent": "scenes64", "pixel": "scenes64-pixel"}


def measure(work: Work) -> list[dict]:
    quick, work.pictures = work.scale.name == "quick", PICTURES[work.scale.name]
    judge = drawn.Judge(64, work.pictures, (1, 3), drawn.extractor(work))
    plan = [(arm, *point) for arm, points in (QUICK if quick else PLAN).items() for point in points]
    loaded, jobs = {}, {"real": lambda: {"arm": "the pictures themselves"} | judge.says(judge.own)}
    shares = [(1 if arm == "latent" else 8) * steps * (2 if sampler == "heun" else 1) for arm, sampler, steps in plan]
    for number, (arm, sampler, steps) in enumerate(plan):
        done, share = sum(shares[:number]) / sum(shares), shares[number] / sum(shares)

        def compute(arm: str = arm, sampler: str = sampler, steps: int = steps, done: float = done, share: float = share) -> dict:
            if arm not in loaded:
                loaded[arm] = StableDiffusion.load(MODELS[arm], work.device)
            pipe = loaded[arm]
            batch = 256 if work.device != "cpu" else 8 if arm == "pixel" else 32        # what a batch needs must fit the cache
            images, seconds = timed(pipe, judge.prompts, work.seed, batch, lambda part: work.progress(done + share * part),
                                    steps=steps, sampler=sampler)
            return {"arm": arm, "sampler": sampler, "steps": steps, "seconds": seconds} | judge.says(images)
        jobs[f"{arm}-{sampler}-{steps}"] = compute
    return work.share(jobs)


def timed(pipe, prompts: list[str], seed: int, batch: int, tick: Callable[[float], None], **how) -> tuple[Tensor, float]:
    """(pictures, seconds of one: the median over batches, decoding included; the first batch, which warms up, weighs little)."""
    moments = [time.perf_counter()]

    def after(part: float) -> None:
        moments.append(time.perf_counter())
        tick(part)
    images = drawn.pictures(pipe, prompts, seed, batch, after, **how)
    return images, statistics.median(b - a for a, b in itertools.pairwise(moments)) / min(batch, len(prompts))


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: for every point of the pixel arm some latent point is at least as fast and, by KID's intervals, better."""
    latent, pixel = ([r for r in rows if r["arm"] == arm] for arm in ("latent", "pixel"))
    undecided = 0
    for p in pixel:
        faster = [r for r in latent if r["seconds"] <= p["seconds"]]
        if not any(r["fd"] < p["fd"] for r in faster):
            return CONTRADICTED, f"no latent point is as fast as and better than pixels with {p['steps']} steps"
        undecided += not any(r["kid_high"] < p["kid_low"] for r in faster)
    if undecided:
        return INCONCLUSIVE, f"at {undecided} of {len(pixel)} points the intervals of KID touch"
    best = min(latent, key=lambda r: r["fd"])
    return SUPPORTED, (f"each of the {len(pixel)} pixel points is beaten in both by a latent one; the best latent point is "
                       f"{best['sampler']} with {best['steps']} steps")


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    figure, axis = plt.subplots(figsize=(6.8, 3.6))
    marks = {"ddim": "o", "ddpm": "s", "euler": "v", "heun": "^", "dpmpp_2m": "D", "unipc": "P"}
    for arm, color in (("latent", figures.LATENT), ("pixel", figures.PIXEL)):
        for sampler, mark in marks.items():
            points = [r for r in rows if r["arm"] == arm and r["sampler"] == sampler]
            if points:
                axis.plot([1000 * r["seconds"] for r in points], [r["fd"] for r in points], mark + "-", color=color, ms=5, lw=0.8,
                          label=f"{arm}, {sampler}", alpha=0.9, markerfacecolor=color if sampler == "ddim" else "white")
                if sampler == "ddim":
                    for r in points:
                        axis.annotate(str(r["steps"]), (1000 * r["seconds"], r["fd"]), fontsize=7, xytext=(4, 3),
                                      textcoords="offset points")
    floor = next(r["fd"] for r in rows if r["arm"] not in MODELS)
    axis.axhline(floor, color=figures.FAINT, ls=":", label="the pictures themselves")
    axis.set(xscale="log", yscale="log", xlabel="milliseconds a picture, decoding included", ylabel="FD-course")
    for side in (axis.xaxis, axis.yaxis):
        figures.plain_ticks(plt, side)
    axis.legend(fontsize=7.5, bbox_to_anchor=(1, 1), loc="upper left")
    figure.tight_layout()
    figures.write(plt, figure, path)


TABLE = Table(
    "C", "Quality against time", "At every speed the latent model draws better than the pixel model",
    "some point of the pixel model is better than every latent point that is as fast",
    (Column("arm", "arm"), Column("sampler", "sampler"), Column("steps", "steps", "d"),
     Column("seconds", "seconds a picture", ".4f"), *JUDGED), measure, rule, draw,
    notes=("scenes64 was trained for 226 minutes on one core, scenes64-pixel for 80; table J trains both for the same time.",))
