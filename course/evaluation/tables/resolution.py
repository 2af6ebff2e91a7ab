"""D: what resolution costs, in pixels and in latents (the article's 1.1, 2.1 and 6.3; Rombach et al. 2022, table 18).

Parameters and operations are counted on the meta device, where a U-Net of any size costs nothing. Seconds are measured where they
fit, both arms in turns; a decoder's share is charged to the latent arm. Memory of a training step of one picture is counted
everywhere, and measured where it fits: a row says which of the two it shows.
"""

from dataclasses import replace
from pathlib import Path

import torch

from course import presets
from course.evaluation import cost, figures, memory
from course.evaluation.tables import claims
from course.evaluation.tables.table import CONTRADICTED, SUPPORTED, Column, Scale, Table, Work
from course.training import flops

SIDES = (64, 128, 256, 512, 1024)
STEPS = 50                                 # of a picture, two passes each


def pair(side: int) -> dict[str, "presets.PipelineConfig"]:
    """The demo's two arms at another size: the same U-Nets, as fully convolutional as they are."""
    return {name: replace(presets.PIPELINES[f"demo-{name}"], image_size=side) for name in ("pixel", "latent")}


def counted(side: int) -> dict[str, float]:
    """FLOPs of one pass for one picture, and of a decoder's; parameters."""
    row = {}
    with torch.device("meta"):
        for name, config in pair(side).items():
            model = cost.denoiser(config, "meta")
            x, t, ids = cost.inputs(config, 1, "meta")
            row[f"{name}_parameters"] = cost.parameters(model.unet)
            row[f"{name}_pass"] = flops.forward(model.unet, x, t, torch.empty(1, config.text.length, config.text.width))
            if config.vae is not None:
                row["decoder"] = flops.forward(presets.autoencoder(config.vae).decoder, x)
    return row


def peaks(side: int, device: str, measured: bool) -> dict:
    """MiB of a training step of one picture, for each arm: counted, and in "NAME_peak" measured, where it fits and is wanted."""
    row = {f"{name}_counted": memory.counted(lambda config=config: cost.training_step(config, 1), calls=2) / 2**20
           for name, config in pair(side).items()}
    measured = measured and 2 * row["pixel_counted"] < free(device) / 2**20
    for name in pair(side):
        row[f"{name}_peak"] = cost.peak_mb(f"demo-{name}", 1, device, side) if measured else row[f"{name}_counted"]
    row["peak_ratio"] = row["pixel_peak"] / row["latent_peak"]
    return row | {"peak_is": "counted" if not measured else "measured, CUDA" if device.startswith("cuda") else "measured, RSS"}


def free(device: str) -> int:
    """Bytes that nobody holds."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0]
    import psutil
    return psutil.virtual_memory().available


def measure(work: Work) -> list[dict]:
    sides = SIDES[:2] if work.scale.name == "quick" else SIDES
    timed = {"quick": (64,), "cpu": (64, 128, 256), "gpu": (64, 128, 256, 512)}[work.scale.name]
    rounds = {"quick": 1, "cpu": 5, "gpu": 9}[work.scale.name]
    rows = []
    for number, side in enumerate(sides):
        def compute(side: int = side) -> dict:
            row = {"side": side, "values": 3 * side**2, "pixels": side**2} | counted(side)
            everywhere = work.device.startswith("cuda")
            row |= peaks(side, work.device, work.scale.name != "quick" and (everywhere or side in timed))
            row["picture_ratio"] = 2 * STEPS * row["pixel_pass"] / (2 * STEPS * row["latent_pass"] + row["decoder"])
            if side in timed:
                batch = max(1, 2 * 64**2 // side**2)
                arms = pair(side)
                train = cost.interleaved({n: cost.training_step(c, batch, work.device) for n, c in arms.items()}, rounds,
                                         work.device)
                sample = cost.interleaved({n: cost.sampling_step(c, batch, work.device) for n, c in arms.items()}, rounds,
                                          work.device)
                decode = cost.interleaved({"decode": cost.decoding(arms["latent"], batch, work.device)}, rounds,
                                          work.device)["decode"]
                row |= {"train_ratio": train["pixel"] / train["latent"], "step_ratio": sample["pixel"] / sample["latent"],
                        "whole_ratio": STEPS * sample["pixel"] / (STEPS * sample["latent"] + decode),
                        "pixel_step_ms": 1000 * sample["pixel"] / batch, "latent_step_ms": 1000 * sample["latent"] / batch,
                        "decode_ms": 1000 * decode / batch}
            return row
        rows.append(work.once(f"side-{side}", compute))
        work.progress((number + 1) / len(sides))
    return rows


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: at every size a whole picture costs less in latents, decoder included, and the ratio does not fall with size."""
    ratios = [r["picture_ratio"] for r in rows]
    told = ", ".join(f"{r['side']}: {r['picture_ratio']:.0f}" for r in rows)
    if min(ratios) <= 1:
        return CONTRADICTED, f"operations of a picture, pixels / latents, at {told}: not always above 1"
    if any(b < 0.95 * a for a, b in zip(ratios, ratios[1:], strict=False)):
        return CONTRADICTED, f"operations of a picture, pixels / latents, at {told}: the saving does not grow with the size"
    return SUPPORTED, f"operations of a picture, pixels / latents, at {told}"


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.1))
    sides = [r["side"] for r in rows]
    left.plot(sides, [2 * STEPS * r["pixel_pass"] / 1e12 for r in rows], "o-", color=figures.PIXEL, label="pixels")
    left.plot(sides, [(2 * STEPS * r["latent_pass"] + r["decoder"]) / 1e12 for r in rows], "s-", color=figures.LATENT,
              label="latents, decoder included")
    left.plot(sides, [r["decoder"] / 1e12 for r in rows], ":", color=figures.FAINT, label="decoder alone")
    left.set(xscale="log", yscale="log", xticks=sides, xticklabels=sides, xlabel="pixels a side", title=f"TFLOPs, {STEPS} steps")
    right.plot(sides, [r["picture_ratio"] for r in rows], "o-", color=figures.INK, label="operations of a picture")
    for key, mark, name in (("train_ratio", "^", "seconds of a training step"), ("whole_ratio", "s", "seconds of a picture"),
                            ("peak_ratio", "D", "bytes of a training step")):
        some = [r for r in rows if key in r]
        right.plot([r["side"] for r in some], [r[key] for r in some], f"{mark}--", label=name)
    right.set(xscale="log", xticks=sides, xticklabels=sides, xlabel="pixels a side", title="pixels / latents", ylim=(0, None))
    for axis in (left, right):
        axis.minorticks_off()
        axis.legend(fontsize=8)
    figure.tight_layout()
    figures.write(plt, figure, path)


TABLE = Table(
    "D", "What resolution costs", "Diffusion in latents saves the more, the larger the picture",
    "latents and decoder together cost as much as pixels at some size, or the saving shrinks with the size",
    (Column("side", "pixels a side", "d"), Column("values", "values", ",d"), Column("pixel_parameters", "U-Net, pixels", ",d"),
     Column("latent_parameters", "U-Net, latents", ",d"), Column("pixel_pass", "FLOPs a pass, pixels", ".2e"),
     Column("latent_pass", "latents", ".2e"), Column("decoder", "decoder, once", ".2e"),
     Column("picture_ratio", "operations of a picture, ratio", ".1f"),
     Column("train_ratio", "seconds of a training step, ratio", ".1f"),
     Column("whole_ratio", "seconds of a picture, ratio", ".1f"),
     Column("pixel_peak", "peak MiB of a training step, pixels", ",.0f"),
     Column("latent_peak", "latents", ",.0f"), Column("peak_is", "which is")),
    measure, rule, draw,
    ("pixel_or_latent", (Column("task", "task"), Column("model", "model"),
                         Column("training_pictures_per_second", "pictures a second in training", "g"),
                         Column("samples_per_second_512", "pictures a second drawn, 512 x 512", "g"), Column("FID", "FID", "g"))),
    notes=("The same U-Net serves every size: the parameters that the article lets grow with the resolution do not.",
           f"A picture: {STEPS} steps, two passes each.",
           "Peak memory: batch 1, float32, AdamW. Measured: of a process of its own, by its resident set or by CUDA's allocator; "
           "counted: of all tensors alive at once, without what a device adds."),
    parts=(claims.ARTICLE, claims.CONSUMER))
