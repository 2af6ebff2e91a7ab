"""I: can the metrics be trusted? FD against the number of pictures and the extractor, and the rankings that come of it."""

from pathlib import Path

import torch.nn.functional as F

from course.evaluation import features, figures, metrics
from course.evaluation.tables import drawn, twins
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Scale, Table, Work
from course.pipeline import StableDiffusion

JUDGES = {"shipped": "{}, as shipped", "near": "{}", "plain": "{}"}
KINDS = ("other scenes", "the autoencoder", "w = 1.5, 25 steps", "w = 7.5, 25 steps", "w = 1.5, 5 steps", "blurred")


def measure(work: Work) -> list[dict]:
    quick = work.scale.name == "quick"
    n, steps = work.scale.pictures, (1, 1) if quick else (25, 5)
    trained = drawn.extractor(work)
    pipe = StableDiffusion.load("scenes64", work.device)
    judge = drawn.Judge(64, n, (1, 3), trained, drawn.scorer(work).judges(pipe))
    clouds = {"course": trained, "untrained": features.random(2), "untrained, other seed": features.random(1)}

    def images(kind: str, number: int):
        def tick(share: float) -> None:
            work.progress((number + share) / len(KINDS))
        if kind == "other scenes":
            return judge.own
        if kind == "the autoencoder":
            return drawn.rebuilt(pipe, judge.own)
        if kind == "blurred":
            return F.avg_pool2d(F.pad(judge.own, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        w, few = (7.5 if kind.startswith("w = 7.5") else 1.5), kind.endswith("5 steps") and "25" not in kind
        return drawn.pictures(pipe, judge.prompts, work.seed, steps=steps[1] if few else steps[0], guidance_scale=w, tick=tick)

    sizes = [s for s in (64, 128, 256, 512, 1024, 2048, 5000, 10_000) if s <= n] or [n]
    real = {}
    rows = []
    for number, kind in enumerate(KINDS):
        def compute(kind: str = kind, number: int = number) -> dict:
            shown, row = images(kind, number), {"pictures": kind}
            for name, extractor in clouds.items():
                if name not in real:
                    reference = drawn.Scenes(64, "test", objects=(1, 3), textures=("plain",), degraded=0.0)
                    real[name] = extractor.of(reference.images(range(1_000_000, 1_000_000 + max(2 * n, 256))))
                found = extractor.of(shown)
                row |= {f"fd, {name}, {s}": metrics.frechet_distance(real[name], found[:s]) for s in sizes}
                end, slope, _ = metrics.without_bias(real[name], found, sizes=3 if quick else 8)
                row |= {f"fd, {name}, without end": end, f"slope, {name}": slope,
                        f"kid, {name}": metrics.kernel_distance(real[name], found)}
            said = judge.says(shown)
            return row | {"right": said["right"], "clip": said["clip"]}
        rows.append(work.once(kind.replace(" ", "-").replace(",", "").replace("=", "").replace(".", "_"), compute))
    return rows + work.share({f"clip-{name}": lambda name=name: agrees(work, judge, pipe, name) for name in JUDGES})


def agrees(work: Work, judge: drawn.Judge, pipe: StableDiffusion, name: str) -> dict:
    """What a CLIP is worth as a judge: does it notice exchanged words, and does it think of drawn pictures as the oracle does?"""
    scorer = judge.scorer if name == "shipped" else twins.trained(work, name == "near")
    quick = work.scale.name == "quick"
    shown = drawn.pictures(pipe, judge.prompts[:256], work.seed, steps=1 if quick else 5, guidance_scale=1.5)
    scores = scorer.of(shown, judge.prompts[:256])
    return {"pictures": JUDGES[name].format(scorer.name), "clip": scores.mean().item(),
            "apart": twins.tells_apart(scorer, 32 if quick else 512),
            "follows": twins.follows(scores, shown, judge.scenes[:256])}


def ranking(rows: list[dict], key: str) -> list[str]:
    return [r["pictures"] for r in sorted(rows, key=lambda r: r[key])]


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: the order of the six kinds is the same at all n from 256 on, and with every extractor."""
    judges, rows = ([r for r in rows if ("apart" in r) == own] for own in (True, False))
    keys = [k for k in rows[0] if k.startswith("fd, ") and k.split(", ")[-1].isdigit() and int(k.split(", ")[-1]) >= 256]
    if len({k.split(", ")[-1] for k in keys}) < 2:
        return INCONCLUSIVE, "fewer than two sizes from 256 on"
    orders = {k: ranking(rows, k) for k in keys}
    own = orders[next(k for k in reversed(keys) if k.startswith("fd, course"))]
    by_size = [k for k in keys if k.startswith("fd, course") and orders[k] != own]
    others = [k for k in keys if orders[k] != own and not k.startswith("fd, course")]
    by_extractor = sorted({k.split(", ", 1)[1].rsplit(", ", 1)[0] for k in others})
    noticed = "".join(f"; {r['pictures']} notices {100 * r['apart']:.0f} % of exchanges" for r in judges)
    if not by_size and not by_extractor:
        return SUPPORTED, f"always {' < '.join(own)}{noticed}"
    said = ([f"at {', '.join(k.rsplit(', ', 1)[1] for k in by_size)} pictures the order is another"] if by_size else [])
    said += [f"the network \"{name}\" ranks otherwise" for name in by_extractor]
    return CONTRADICTED, "; ".join(said) + f"; the course's network with all pictures says {' < '.join(own)}{noticed}"


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    names = ("course", "untrained")
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.3))
    for axis, name in zip(axes, names, strict=True):
        for row, mark in zip([r for r in rows if "apart" not in r], "osD^vP", strict=True):
            points = sorted((int(size), v) for k, v in row.items() for of, _, size in [k.rpartition(", ")]
                            if of == f"fd, {name}" and size.isdigit())
            axis.plot(*zip(*points, strict=True), mark + "-", ms=4, lw=1, label=row["pictures"])
        axis.set(xscale="log", yscale="log", xlabel="pictures", title=f"FD, network: {name}")
        figures.plain_ticks(plt, axis.yaxis)
        axis.minorticks_off()
        axis.set_xticks([p for p, _ in points], [str(p) for p, _ in points], fontsize=8)
    axes[-1].legend(fontsize=7.5, bbox_to_anchor=(1, 1), loc="upper left")
    figure.tight_layout()
    figures.write(plt, figure, path)


def columns() -> tuple[Column, ...]:
    return (Column("pictures", "pictures"), Column("fd, course, 64", "FD-course, 64", ".2f"),
            Column("fd, course, 256", "256", ".2f"), Column("fd, course, 1024", "1,024", ".2f"),
            Column("fd, course, without end", "without end", ".2f"), Column("kid, course", "KID-course", ".2e"),
            Column("fd, untrained, 1024", "FD, untrained, 1,024", ".4f"), Column("right", "all right", "%"),
            Column("clip", "CLIP-course", ".3f"), Column("apart", "exchanges noticed", "%"),
            Column("follows", "correlation with the oracle", ".2f"))


TABLE = Table(
    "I", "The metrics themselves", "FD ranks models alike, whatever the number of pictures and the network",
    "the order of six kinds of pictures changes with the number of pictures or with the network",
    columns(), measure, rule, draw,
    notes=("FD falls with n by about c / n, and c differs from row to row: figures at different n cannot be compared.",
           "Judges: an exchange swaps two words of a caption, so that each shape has the other's colour, or the like; chance is "
           "50 %. The two with and without near misses were trained in this table, for as long as each other. The correlation is "
           "over 256 pictures drawn in five steps."))
