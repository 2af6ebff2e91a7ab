"""B: how small should latents be? The same minutes for f = 1 (pixels), 2, 4, 8 and 16 (Rombach et al. 2022, figures 6 and 17).

An arm's seconds begin with those of its autoencoder and of encoding everything once: pixels have none of that, so they get to
spend all on the denoiser. Parameters of the denoisers lie within 5 % of each other. Prediction, written before the first run:
f = 8 ahead at the end, f = 1 last, f = 16 held back by its autoencoder.
"""

from dataclasses import replace
from pathlib import Path

from course import demo, presets, style, unet, vae
from course.evaluation import figures
from course.evaluation.tables import arms, drawn, zoo
from course.evaluation.tables.guidance import JUDGED
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Scale, Table, Work
from course.training import diffusion, loop

# f -> (latent channels, levels' widths, transformers at each, in the middle)
SHAPES = {1: (3, (32, 32, 64, 64), (0, 0, 1, 1), 0), 2: (2, (32, 64, 64), (0, 1, 1), 1), 4: (3, (32, 64, 64), (0, 1, 1), 1),
          8: (4, (64, 64), (1, 1), 1), 16: (8, (64, 64), (1, 1), 1)}
MOMENTS = {"quick": (1.0,), "cpu": (0.5, 1.0), "gpu": (0.4, 0.5, 0.65, 0.8, 1.0)}             # shares of an arm's minutes
PICTURES = {"quick": 24, "cpu": 256, "gpu": 5_000}              # a pixel model on a CPU takes two seconds for each
FIRST = demo.Recipe.autoencoder_share


def config(f: int) -> "presets.PipelineConfig":
    channels, widths, depth, middle = SHAPES[f]
    net = unet.UNetConfig(in_channels=channels, out_channels=channels, block_channels=widths, layers_per_block=1, depth=depth,
                          mid_depth=middle, heads=tuple(width // 32 for width in widths), context_dim=128)
    if f == 1:
        return replace(presets.PIPELINES["demo-pixel"], unet=net)
    stem, shape = zoo.SHAPES[f]
    first = vae.VAEConfig(latent_channels=channels, block_channels=shape, layers_per_block=1, stem=stem, mid_attention=False)
    return replace(presets.PIPELINES["demo-latent"], unet=net, vae=first)


def measure(work: Work) -> list[dict]:
    quick = work.scale.name == "quick"
    work.pictures = PICTURES[work.scale.name]
    judge = drawn.Judge(64, work.pictures, (1, 1), drawn.extractor(work))
    lesson = arms.Lesson(pictures=64 if quick else demo.recipe_for(work.device).pictures)
    jobs = {"real": lambda: {"f": "the pictures themselves"} | judge.says(judge.own)}
    sides = (1, 8) if quick else tuple(SHAPES)
    jobs |= {f"f{f}-seed{s}": lambda f=f, s=s: arm(work, lesson, judge, f, s)
             for s in range(work.scale.seeds if work.scale.name == "gpu" else 1) for f in sides}
    return work.share(jobs)


def arm(work: Work, lesson: arms.Lesson, judge: drawn.Judge, f: int, seed: int) -> dict:
    """The row of an arm at its end, with a `curve` of what it was on the way."""
    recipe, c, own = demo.recipe_for(work.device), config(f), work.seed + seed
    runs, vae_, spent, minutes = work.folder / "runs", None, 0.0, work.scale.minutes
    if f > 1:
        vae_, first = arms.first_stage(lesson, c.vae, runs / f"autoencoder-f{f}-{seed}", loop.Budget(minutes=FIRST * minutes),
                                       work.device, own, settings=recipe.autoencoder)
        mean, std, scale, seconds = arms.encoded(lesson, vae_, runs / f"latents-f{f}-{seed}", work.device)
        vae_.scaling_factor, spent = scale, first["seconds"] + seconds
        c = replace(c, vae=replace(c.vae, scaling_factor=scale))
        batches = diffusion.latent_batches(mean, std, scale)
    else:
        batches = diffusion.pixel_batches(lesson.material.images)
    left = max(60 * minutes - spent, 0.05)
    moments = tuple(round(60 * minutes * m - spent, 3) for m in MOMENTS[work.scale.name][:-1] if 60 * minutes * m > spent)
    snapshots = arms.Snapshots(runs / f"f{f}-{seed}", moments)

    def watch(state: dict, average: dict) -> None:
        snapshots(state, average)
        work.progress(min(state["seconds"] / left, 1.0))
    pipe, state = arms.second_stage(lesson, c, batches, vae_, runs / f"f{f}-{seed}", loop.Budget(minutes=left / 60),
                                    recipe.pixel if f <= 2 else recipe.latent, work.device, own, watch=watch)

    def says(key: str, counters: dict) -> dict:
        return work.once(f"f{f}-seed{seed}-{key}", lambda: {
            "seconds": counters["seconds"] + spent, "alone": counters["seconds"], "images": counters["images"],
            "step": counters["step"]} | judge.says(drawn.pictures(
                pipe, judge.prompts, work.seed, 8 if f == 1 and work.device == "cpu" else 64, steps=1 if quick(work) else 20)))
    row = {"f": f, "seed": seed, "parameters": sum(p.numel() for p in pipe.unet.parameters())} | says("end", state)
    both, curve = diffusion.ConditionalDenoiser(pipe.unet, pipe.text_encoder), []
    for moment in moments:
        if snapshots.path(moment).is_file():
            curve.append(says(f"after-{moment:g}", snapshots.load(moment, both)))
    return row | {"curve": curve}


def quick(work: Work) -> bool:
    return work.scale.name == "quick"


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: at equal seconds, autoencoders counted, some f in between is better than f = 1 and than f = 16, by KID's
    intervals. Contradicted: one of the two ends is ahead of all in between by them."""
    arms_ = [r for r in rows if not isinstance(r["f"], str)]
    by_f = {f: [r for r in arms_ if r["f"] == f] for f in sorted({r["f"] for r in arms_})}
    low = {f: min(r["kid_low"] for r in own) for f, own in by_f.items()}
    high = {f: max(r["kid_high"] for r in own) for f, own in by_f.items()}
    mean = {f: sum(r["kid"] for r in own) / len(own) for f, own in by_f.items()}
    told = "KID at the end: " + ", ".join(f"f = {f}: {mean[f]:.3g}" for f in by_f)
    middle, ends = [f for f in by_f if 1 < f < 16], [f for f in by_f if f in (1, 16)]
    for end in ends:
        if all(high[end] < low[f] for f in middle):
            return CONTRADICTED, f"f = {end} wins at equal seconds. {told}"
    best = min(middle, key=mean.get)
    if all(high[best] < low[end] for end in ends):
        return SUPPORTED, f"f = {best} wins at equal seconds, autoencoders counted. {told}"
    return INCONCLUSIVE, f"f = {best} is best in between, but the intervals touch those of an end. {told}"


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1), sharey=True)
    colors = dict(zip(SHAPES, (style.RED, style.ORANGE, style.GREEN, style.BLUE, style.PURPLE), strict=True))
    for axis, key, title in zip(axes, ("seconds", "images", "step"),
                                ("seconds, autoencoder counted", "pictures seen", "steps of training"), strict=True):
        for r in rows:
            if not isinstance(r["f"], str):
                points = [*r["curve"], r]
                axis.plot([p[key] for p in points], [p["kid"] for p in points], "o-", ms=4, lw=1.2, color=colors[r["f"]],
                          label=f"f = {r['f']}" if r["seed"] == 0 else None)
        axis.set(xlabel=title, xscale="linear" if key == "seconds" else "log")
        axis.xaxis.set_minor_formatter(plt.matplotlib.ticker.NullFormatter())
    axes[0].set_title("KID-course, lower is better")
    axes[2].legend(fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    figure.tight_layout()
    figures.write(plt, figure, path)


TABLE = Table(
    "B", "How small should latents be?", "At equal seconds, latents that are neither pixels nor very small draw best",
    "at equal seconds, autoencoders counted, f = 1 or f = 16 wins",
    (Column("f", "f", "d"), Column("parameters", "parameters", ",d"), Column("seconds", "seconds", ",.0f"),
     Column("alone", "without the autoencoder's", ",.0f"), Column("images", "pictures seen", ",d"), Column("step", "steps", ",d"),
     *JUDGED), measure, rule, draw,
    ("compression", (Column("claim", "claim"), Column("f", "f", "d"), Column("FID", "FID", "g"),
                     Column("batch_size", "batch size", "d"))),
    notes=("At 2 million steps the paper's f = 1 has seen 14 million pictures and its f = 8 128 million: their batches differ.",))
