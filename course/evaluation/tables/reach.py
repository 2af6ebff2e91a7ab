"""J: how much training until latents are as good as pixels are at their end, and how much time a picture takes in each.

The article says 20 times less training and 25 times faster sampling; the paper's own table 18 says 3.5 and 5.7. Here the pixel
arm trains for long, and where it ends is the mark. Each latent arm is judged at moments of its training, and has reached the mark
when its KID lies below the pixel arm's by their intervals. Its seconds are those of the first such moment, which is later than
the true one, never earlier; they are given with and without the autoencoder's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from course import demo, presets
from course.evaluation import cost, figures
from course.evaluation.tables import arms, drawn
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Scale, Table, Work
from course.training import diffusion, flops, loop

LESS_TRAINING, FASTER = 20, 25             # what the article's section 6.3 says


@dataclass(frozen=True)
class Plan:
    pixel_minutes: float
    latent_minutes: float
    autoencoder_minutes: float
    pixel_seeds: int
    latent_seeds: int
    moments: tuple[float, ...]             # seconds of the latent model's own training
    steps: int                             # DDIM, of every picture that is judged
    few: tuple[tuple[str, int], ...]       # samplers and steps among which each arm has its fastest
    batches: tuple[int, ...]
    rounds: int


PLANS = {
    "quick": Plan(0.01, 0.01, 0.01, 1, 1, (0.2,), 1, (("ddim", 1),), (1,), 1),
    "cpu": Plan(40, 5, 3, 2, 3, (15, 30, 45, 60, 90, 120, 180, 240, 300), 20, (("ddim", 5), ("dpmpp_2m", 5), ("ddim", 10)),
                (1, 4, 16), 5),
    "gpu": Plan(40, 5, 3, 2, 3, (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300), 25,
                (("ddim", 5), ("dpmpp_2m", 5), ("ddim", 10), ("dpmpp_2m", 10), ("unipc", 10)), (1, 16, 64, 256), 9),
}
PICTURES = {"quick": 24, "cpu": 256, "gpu": 5_000}              # a pixel model on a CPU takes two seconds for each


def measure(work: Work) -> list[dict]:
    plan, work.pictures = PLANS[work.scale.name], PICTURES[work.scale.name]
    judge = drawn.Judge(64, work.pictures, (1, 1), drawn.extractor(work))
    lesson = arms.Lesson(pictures=64 if work.scale.name == "quick" else demo.recipe_for(work.device).pictures)
    study = Study(work, plan, lesson, judge)
    jobs = {"real": lambda: {"arm": "floor", "what": "the pictures themselves"} | judge.says(judge.own)}
    jobs |= {f"pixel-{s}": lambda s=s: study.pixel(s) for s in range(plan.pixel_seeds)}
    jobs |= {f"latent-{s}": lambda s=s: study.latent(s) for s in range(plan.latent_seeds)}
    trained = work.share(jobs)
    ends = [r for r in trained if r["arm"] == "pixel"]
    for row in (r for r in trained if r["arm"] == "latent"):
        row |= reached(row["curve"], ends)
    rest = {f"sampling-{side}": lambda side=side: study.sampling(side) for side in (64, 128)}
    rest["rebuilt"] = study.ceiling
    rest["few-steps"] = lambda: study.few_steps(min(r["kid_high"] for r in ends))
    return [*trained, *work.share(rest)]


class Study:
    """The trainings and measurements of one plan, each of which can be stopped and gone on with."""

    def __init__(self, work: Work, plan: Plan, lesson: arms.Lesson, judge: drawn.Judge):
        self.work, self.plan, self.lesson, self.judge = work, plan, lesson, judge
        self.runs = work.folder / "runs"
        recipe = demo.recipe_for(work.device)
        self.configs = dict(zip(("latent", "pixel"), map(presets.PIPELINES.get, recipe.models), strict=True))
        self.settings = {arm: getattr(recipe, arm) for arm in self.configs}
        self.first = recipe.autoencoder
        self.minutes = {f"pixel-{s}": plan.pixel_minutes for s in range(plan.pixel_seeds)}
        for s in range(plan.latent_seeds):
            self.minutes |= {f"autoencoder-{s}": plan.autoencoder_minutes, f"latent-{s}": plan.latent_minutes}
        self.trained = dict.fromkeys(self.minutes, 0.0)         # what of each training is done

    def says(self, key: str, pipe, steps: int, sampler: str = "ddim") -> dict:
        def compute() -> dict:
            batch = 8 if pipe.config.vae is None and self.work.device == "cpu" else 64
            images = drawn.pictures(pipe, self.judge.prompts, self.work.seed, batch, steps=steps, sampler=sampler)
            return self.judge.says(images)
        return self.work.once(key, compute)

    def pixel_model(self, seed: int):
        return arms.second_stage(self.lesson, self.configs["pixel"], diffusion.pixel_batches(self.lesson.material.images), None,
                                 self.runs / f"pixel-{seed}", loop.Budget(minutes=self.plan.pixel_minutes),
                                 self.settings["pixel"], self.work.device, self.work.seed + seed,
                                 watch=self.watch(f"pixel-{seed}"))

    def pixel(self, seed: int) -> dict:
        pipe, state = self.pixel_model(seed)
        return {"arm": "pixel", "seed": seed, "what": f"pixels, seed {seed}", "seconds": state["seconds"],
                "images": state["images"], "flops": state["flops"], "steps": state["step"]} | self.says(
                    f"pixel-{seed}-end", pipe, self.plan.steps)

    def latent_model(self, seed: int):
        """(pipeline, counters, what the autoencoder took, the snapshots)."""
        plan, device, own = self.plan, self.work.device, self.work.seed + seed
        vae, first = arms.first_stage(self.lesson, self.configs["latent"].vae, self.runs / f"autoencoder-{seed}",
                                      loop.Budget(minutes=plan.autoencoder_minutes), device, own, settings=self.first,
                                      watch=self.watch(f"autoencoder-{seed}"))
        mean, std, scale, seconds = arms.encoded(self.lesson, vae, self.runs / f"latents-{seed}", device)
        vae.scaling_factor = scale
        config = replace(self.configs["latent"], vae=replace(self.configs["latent"].vae, scaling_factor=scale))
        snapshots, tick = arms.Snapshots(self.runs / f"latent-{seed}", plan.moments), self.watch(f"latent-{seed}")

        def watch(state: dict, average: dict) -> None:
            snapshots(state, average)
            tick(state, average)
        pipe, state = arms.second_stage(
            self.lesson, config, diffusion.latent_batches(mean, std, scale), vae, self.runs / f"latent-{seed}",
            loop.Budget(minutes=plan.latent_minutes), self.settings["latent"], device, own, watch=watch)
        encoding = first["flops_per_image"] / 6 * self.lesson.pictures                  # a third of a pass: the encoder, about
        return pipe, state, {"seconds": first["seconds"] + seconds, "flops": first["flops"] + encoding}, snapshots

    def latent(self, seed: int) -> dict:
        pipe, state, first, snapshots = self.latent_model(seed)
        row = {"arm": "latent", "seed": seed, "what": f"latents, seed {seed}", "seconds": state["seconds"],
               "images": state["images"], "flops": state["flops"], "steps": state["step"], "first_seconds": first["seconds"],
               "first_flops": first["flops"]} | self.says(f"latent-{seed}-end", pipe, self.plan.steps)
        both, curve = diffusion.ConditionalDenoiser(pipe.unet, pipe.text_encoder), []
        for moment in snapshots.moments:
            if snapshots.path(moment).is_file():               # a machine too slow for a step before it has none
                counters = snapshots.load(moment, both)
                curve.append(counters | {"flops": counters["images"] * state["flops_per_image"]}
                             | self.says(f"latent-{seed}-after-{moment:g}", pipe, self.plan.steps))
        return row | {"curve": curve}

    def ceiling(self) -> dict:
        """What the first autoencoder makes of real pictures: no latent model on it can be better."""
        return {"arm": "floor", "what": "the autoencoder alone, seed 0"} | self.judge.says(
            drawn.rebuilt(self.latent_model(0)[0], self.judge.own))

    def sampling(self, side: int) -> dict:
        """Seconds of a guided step and of decoding, both arms in turns, at each one's best batch and at batch 1."""
        pair = {arm: replace(config, image_size=side) for arm, config in self.configs.items()}
        plan, device, times = self.plan, self.work.device, {}
        for batch in (b for b in plan.batches if b * side**2 <= 16 * 64**2 or device != "cpu" or b == 1):
            steps = {arm: cost.sampling_step(config, batch, device) for arm, config in pair.items()}
            found = cost.interleaved(steps | {"decode": cost.decoding(pair["latent"], batch, device)}, plan.rounds, device)
            times[batch] = {name: seconds / batch for name, seconds in found.items()}
        train = cost.interleaved({arm: cost.training_step(config, self.settings[arm].batch_size if side == 64 else 2, device)
                                  for arm, config in pair.items()}, plan.rounds, device)
        row = {"arm": "cost", "side": side, "what": f"{side} pixels a side, f = 8"}
        for name in ("pixel", "latent", "decode"):
            row[f"{name}_alone"] = times[1][name]
            row[f"{name}_best"] = min(t[name] for t in times.values())
        for arm in pair:
            row[f"{arm}_train"] = train[arm] / (self.settings[arm].batch_size if side == 64 else 2)
        row |= {f"{arm}_pass": passes(config) for arm, config in pair.items()}
        return row | {f"ratio_{kind}": ratio(row, plan.steps, plan.steps, kind) for kind in ("alone", "best")} | {
            "ratio_historical": ratio(row, 1000, 50, "best")}

    def few_steps(self, mark: float) -> dict:
        """The fastest setting of each arm whose KID is no worse than the mark: where the pixel model ends, upper end."""
        found = {}
        for arm, pipe in (("pixel", self.pixel_model(0)[0]), ("latent", self.latent_model(0)[0])):
            points = [{"sampler": s, "steps": k} | self.says(f"few-{arm}-{s}-{k}", pipe, k, s) for s, k in self.plan.few]
            points.append({"sampler": "ddim", "steps": self.plan.steps} | self.says(f"{arm}-0-end", pipe, self.plan.steps))
            enough = [p for p in points if p["kid"] <= mark] or points[-1:]
            found[arm] = min(enough, key=lambda p: p["steps"])
        return {"arm": "few", "what": "each as fast as it can be at the mark", "mark": mark} | {
            f"{arm}_{key}": found[arm][key] for arm in found for key in ("sampler", "steps", "kid", "fd")}

    def watch(self, training: str) -> Callable[[dict, dict], None]:
        """What `loop.fit` calls after a step: says how far all trainings are together. Those whose rows are kept are done, also
        another process's; it is looked for as each training begins, not after each of its steps."""
        kept = {path.stem for path in (self.work.folder / "rows").glob("*.json")}
        self.trained |= {name: 1.0 for name in self.minutes if name.replace("autoencoder", "latent") in kept}

        def tick(state: dict, _: dict) -> None:
            self.trained[training] = min(state["seconds"] / (60 * self.minutes[training]), 1.0)
            self.work.progress(sum(self.trained[name] * minutes for name, minutes in self.minutes.items())
                               / sum(self.minutes.values()))
        return tick


def passes(config: "presets.PipelineConfig") -> int:
    """FLOPs of one pass of the U-Net for one picture."""
    import torch
    with torch.device("meta"):
        model = cost.denoiser(config, "meta")
        x, t, _ = cost.inputs(config, 1, "meta")
        return flops.forward(model.unet, x, t, torch.empty(1, config.text.length, config.text.width))


def ratio(row: dict, pixel_steps: int, latent_steps: int, kind: str) -> float:
    """Seconds of a picture, pixels / latents, the decoder's included; kind: "alone" (batch 1) or "best"."""
    return pixel_steps * row[f"pixel_{kind}"] / (latent_steps * row[f"latent_{kind}"] + row[f"decode_{kind}"])


def reached(curve: list[dict], ends: list[dict]) -> dict:
    """When a latent arm was as good as the best pixel arm at its end, by KID's intervals, and by KID alone; None: never.

    Ratios are of the pixel arms' mean seconds, images and FLOPs to those of that moment.
    """
    mark, low = min(r["kid"] for r in ends), min(r["kid_low"] for r in ends)
    mean = {key: sum(r[key] for r in ends) / len(ends) for key in ("seconds", "images", "flops")}
    sure = next((p for p in curve if p["kid_high"] < low), None)
    about = next((p for p in curve if p["kid"] <= mark), None)
    found = {"reached": sure and sure["seconds"], "about": about and about["seconds"]}
    return found | {f"ratio_{key}": sure and mean[key] / sure[key] for key in mean} | {
        "ratio_about": about and mean["seconds"] / about["seconds"]}


def finished(rows: list[dict]) -> list[dict]:
    """The table's rows: figures that need several of the measured ones added."""
    ends = [r for r in rows if r["arm"] == "pixel"]
    seconds = sum(r["seconds"] for r in ends) / len(ends)
    flops_all = sum(r["flops"] for r in ends) / len(ends)
    for r in rows:
        if r["arm"] == "latent":
            r["ceiling"] = seconds / r["first_seconds"]
            r["ratio_with"] = r["reached"] and seconds / (r["reached"] + r["first_seconds"])
            r["ratio_flops_with"] = r["reached"] and flops_all / (flops_all / r["ratio_flops"] + r["first_flops"])
        if r["arm"] == "few":
            own = next(c for c in rows if c["arm"] == "cost" and c["side"] == 64)
            r["ratio_best"] = ratio(own, r["pixel_steps"], r["latent_steps"], "best")
    return rows


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: at 64 / f8 every latent seed reaches the mark 20 times sooner, the autoencoder not counted, and a guided
    picture takes a 25th of the time at equal sampler and steps. Contradicted: one of the two fails even at its best."""
    latent = [r for r in rows if r["arm"] == "latent"]
    costs = {r["side"]: r for r in rows if r["arm"] == "cost"}
    faster = costs[64]["ratio_best"]
    if any(r["reached"] is None for r in latent):
        return INCONCLUSIVE, f"{sum(r['reached'] is None for r in latent)} of {len(latent)} latent arms never reached the mark"
    sooner = [r["ratio_seconds"] for r in latent]
    told = (f"the mark is reached with {span(sooner, '.0f')} times less training, with the autoencoder's "
            f"{span([r['ratio_with'] for r in latent], '.1f')} (no more than {max(r['ceiling'] for r in latent):.1f} is "
            f"possible); a guided picture of equal steps takes {faster:.1f} times less at 64 pixels, "
            f"{costs[128]['ratio_best']:.1f} at 128")
    if min(sooner) >= LESS_TRAINING and faster >= FASTER:
        return SUPPORTED, told
    best = max(r["ratio_about"] for r in latent)
    if best < LESS_TRAINING or faster < FASTER:
        failed = [what for what, bad in (("training", best < LESS_TRAINING), ("sampling", faster < FASTER)) if bad]
        return CONTRADICTED, f"{' and '.join(failed)} {'fall' if len(failed) > 1 else 'falls'} short: {told}"
    return INCONCLUSIVE, told


def span(values: list[float], form: str) -> str:
    """From the least to the largest, as one figure where they are written alike."""
    low, high = (format(f(values), form) for f in (min, max))
    return low if low == high else f"{low} to {high}"


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4), gridspec_kw={"width_ratios": (3, 2)})
    for r in rows:
        if r["arm"] == "latent":
            points = [*r["curve"], r]
            left.plot([p["seconds"] / 60 for p in points], [p["kid"] for p in points], "o-", ms=3, lw=1, color=figures.LATENT,
                      label="latents" if r["seed"] == 0 else None)
            left.fill_between([p["seconds"] / 60 for p in points], [p["kid_low"] for p in points],
                              [p["kid_high"] for p in points], color=figures.LATENT, alpha=0.12, lw=0)
        if r["arm"] == "pixel":
            left.errorbar(r["seconds"] / 60, r["kid"], [[r["kid"] - r["kid_low"]], [r["kid_high"] - r["kid"]]], fmt="s", ms=5,
                          color=figures.PIXEL, label="pixels, at their end" if r["seed"] == 0 else None)
            left.axhline(r["kid"], color=figures.PIXEL, lw=0.7, ls=":")
    left.set(xscale="log", xlabel="minutes of training, the autoencoder's not counted", title="KID-course, lower is better")
    minutes = [m for m in (0.25, 0.5, 1, 2, 5, 10, 20, 40) if m >= left.get_xlim()[0]]
    left.set_xticks(minutes, [f"{m:g}" for m in minutes])
    left.minorticks_off()
    left.legend(fontsize=8)
    bars = []
    for r in rows:
        if r["arm"] == "cost":
            bars += [(f"{r['side']}: equal steps", r["ratio_best"]), (f"{r['side']}: batch 1", r["ratio_alone"]),
                     (f"{r['side']}: DDPM-1000\nagainst DDIM-50", r["ratio_historical"])]
        if r["arm"] == "few":
            bars.append(("64: each as fast\nas it can be", r["ratio_best"]))
    drawn_bars = right.barh([b[0] for b in bars], [b[1] for b in bars], color=figures.INK, height=0.6)
    right.bar_label(drawn_bars, fmt="%.3g", padding=3, fontsize=8)
    right.axvline(FASTER, color=figures.PIXEL, lw=1, ls="--")
    right.set(xscale="log", xlim=(1, 3 * max(b[1] for b in bars)), title="seconds of a picture, pixels / latents")
    right.set_xticks([1, 5, FASTER, 100], ["1", "5", f"{FASTER}, the article's", "100"])
    right.minorticks_off()
    right.tick_params(labelsize=8)
    right.invert_yaxis()
    figure.tight_layout()
    figures.write(plt, figure, path)


def measured(work: Work) -> list[dict]:
    return finished(measure(work))


TABLE = Table(
    "J", "Compute to reach the pixel model's final quality",
    "Diffusion in latents is as good as in pixels after a 20th of the training, and draws a picture in a 25th of the time",
    "at 64 pixels and f = 8 the mark is reached with less than 20 times less training, the autoencoder's not counted, or a "
    "guided picture at equal sampler and steps takes more than a 25th of the time",
    (Column("what", "what"), Column("seconds", "seconds of training", ",.0f"), Column("images", "pictures seen", ",d"),
     Column("flops", "FLOPs", ".2e"), Column("fd", "FD-course", ".2f"), Column("kid", "KID-course", ".2e"),
     Column("right", "all right", "%"), Column("reached", "mark reached after, s", ".0f"),
     Column("ratio_seconds", "× less time", ".1f"), Column("ratio_with", "autoencoder counted", ".1f"),
     Column("ceiling", "at most", ".1f"), Column("ratio_flops", "× fewer FLOPs", ".1f"),
     Column("ratio_flops_with", "autoencoder counted", ".1f"), Column("ratio_images", "× fewer pictures", ".2f"),
     Column("ratio_best", "× faster a picture", ".1f"), Column("ratio_alone", "at batch 1", ".1f"),
     Column("ratio_historical", "DDPM-1000 / DDIM-50", ".0f")),
    measured, rule, draw,
    ("class_conditional", (Column("model", "model"), Column("v100_days", "V100-days", "g"),
                           Column("samples_per_second", "pictures a second", "g"))),
    notes=("The paper's first stage took 29 V100-days more (its table 18): ADM-G / LDM-4-G is 3.5, with the first stage 3.2, and "
           "5.7 in pictures a second.",
           "Both arms: the demo's U-Nets, parameters within 5 %, each with its own batch, learning rate and schedule out of as "
           "many trials. FLOPs of the autoencoder include those of encoding all pictures once.",
           "A limitation: at 128 pixels nothing is trained, the same U-Nets are only timed; how much less training latents need "
           "is tested at 64 alone."))
