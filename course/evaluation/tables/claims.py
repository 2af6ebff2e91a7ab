"""Beside table D: what the article says of resolution, row by row, and of a consumer's GPU, with what is so beside it.

The article gives no batch, precision or optimiser for its gigabytes. So each of its networks is drawn up here at the size that it
names, after ADM (Dhariwal & Nichol 2021): levels down to 8 x 8, attention from 32 x 32 on. What drawing one picture needs (half
precision, no gradient) and what a training step needs (float32, AdamW) are counted. A figure below the first is contradicted, one
between it and a step of one picture is supported; above, it is true of some batch, and which one is said.
"""

import math

import torch

from course import unet
from course.evaluation import cost, errata, memory
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Part, Work

GB = 1e9


def network(side: int, millions: float) -> "unet.UNetConfig":
    """A U-Net for pictures of side x side with about so many millions of parameters."""
    levels = int(math.log2(side)) - 2                          # the last one sees 8 x 8
    multiples = (1,) * (levels - 4) + (1, 2, 3, 4)

    def config(width: int) -> "unet.UNetConfig":
        widths = tuple(width * m for m in multiples)
        return unet.UNetConfig(3, 3, widths, depth=(0,) * (levels - 3) + (1, 1, 1), heads=tuple(w // 32 for w in widths),
                               context_dim=None)

    def miss(width: int) -> float:
        with torch.device("meta"):
            return abs(cost.parameters(unet.UNet(config(width))) / 1e6 - millions)
    return config(min(range(64, 641, 32), key=miss))


def needs(config: "unet.UNetConfig", side: int) -> dict[str, float]:
    """{"network": parameters, "sampling_gb", "training_gb", "each_gb"}: for one picture, and what one more adds to a batch."""
    def sampling():
        net = memory.built(lambda: unet.UNet(config), torch.float16)
        x = torch.zeros(1, 3, side, side, dtype=torch.float16)
        return torch.no_grad()(lambda: net(x, 500.0))
    with torch.device("meta"):
        size = cost.parameters(unet.UNet(config))
    one, two = (memory.counted(lambda n=n: memory.training(unet.UNet(config), torch.zeros(n, 3, side, side), 500.0), calls=2)
                for n in (1, 2))
    return {"network": size, "sampling_gb": memory.counted(sampling) / GB, "training_gb": one / GB, "each_gb": (two - one) / GB}


def judged(said: dict, pixels: int, same: int, first: int, need: dict) -> dict:
    """The verdict on each of the article's three figures, and the largest batch that its memory trains.

    pixels: supported if that is how many there are.  parameters: contradicted where they have grown since the first row, but
    those of one U-Net, `same` at this size and `first` there, have not.  memory: see above.
    """
    grown = said["parameters_millions"] > errata.row("resolution", side=64)["parameters_millions"]
    room = said["memory_gb"] - need["training_gb"]
    batch = 1 + math.floor(room / need["each_gb"]) if room >= 0 else 0
    return {"pixels_verdict": SUPPORTED if said["pixels"] == pixels else CONTRADICTED,
            "parameters_verdict": INCONCLUSIVE if not grown else CONTRADICTED if same == first else SUPPORTED,
            "memory_verdict": CONTRADICTED if said["memory_gb"] < need["sampling_gb"] else INCONCLUSIVE if batch else SUPPORTED,
            "batch": batch}


def resolution(work: Work, rows: list[dict]) -> list[dict]:
    """Three rows for each of the article's: what it says, what is so, and the numbers behind that."""
    found = []
    for said in errata.published()["tables"]["resolution"]["rows"][:1 if work.scale.name == "quick" else None]:
        side = said["side"]
        need = work.once(f"article-{side}", lambda said=said, side=side: needs(network(side, said["parameters_millions"]), side))
        same = next(r["pixel_parameters"] for r in rows if r["side"] == side)
        verdict = judged(said, side**2, same, rows[0]["pixel_parameters"], need)
        trains = f"a batch of {verdict['batch']} in {said['memory_gb']}" if verdict["batch"] else f"more than {said['memory_gb']}"
        found += [
            {"side": side, "what": "pixels", "said": f"{said['pixels']:,}", "here": f"{side**2:,}, of three values each",
             "pixels": side**2, "verdict": verdict["pixels_verdict"]},
            {"side": side, "what": "U-Net, parameters", "said": f"about {said['parameters_millions']} million",
             "here": f"{same:,}, one and the same at this size", "parameters": same, "verdict": verdict["parameters_verdict"]},
            {"side": side, "what": "memory, GB", "said": f"about {said['memory_gb']}", "verdict": verdict["memory_verdict"],
             "here": f"{need['sampling_gb']:.1f} to draw a picture with {need['network'] / 1e6:.0f} million, "
                     f"{need['training_gb']:.1f} to train on one, {trains}", "batch": verdict["batch"]} | need]
    return found


def consumer(work: Work, rows: list[dict]) -> list[dict]:
    """Stable Diffusion 1.5 under a cap of 8 GB: weights, then whole pictures; on a GPU measured, elsewhere counted."""
    parts, found = ("sd15", "clip-l", "vae-sd"), []
    cap = memory.CAP / GB

    def row(what: str, used: float | None, how: str) -> dict:
        holds = used is not None and used <= cap
        return {"what": what, "gb": used, "cap": cap, "how": how, "verdict": SUPPORTED if holds else CONTRADICTED}
    found.append({"what": "weights alone, half precision", "gb": memory.weights(*parts) / GB, "cap": cap, "how": "counted"})
    for dtype, name in ((torch.float16, "half"), (torch.float32, "single"))[:1 if work.scale.name == "quick" else 2]:
        what = f"a guided picture at 512 x 512, {name} precision"
        found.append(work.once(f"consumer-{name}-counted", lambda what=what, dtype=dtype: row(
            what, memory.counted(lambda: memory.picture(dtype=dtype)) / GB, "counted")))
    if work.device.startswith("cuda"):
        def measured() -> dict:
            used = memory.under_cap()
            return row("a guided picture at 512 x 512, half precision", used["peak"] and used["peak"] / GB,
                       "measured, the allocator's cap set")
        found.append(work.once("consumer-half-measured", measured))
    return found


ARTICLE = Part(
    "article", "The article's own table (section 1.1), row by row",
    (Column("side", "pixels a side", "d"), Column("what", "figure"), Column("said", "the article"),
     Column("here", "here, counted"), Column("verdict", "verdict")), resolution)
CONSUMER = Part(
    "consumer", "“Runs on a consumer's GPU” (the article's section 10): Stable Diffusion 1.5 under a cap of 8 GB",
    (Column("what", "what"), Column("gb", "GB at most", ".2f"), Column("cap", "cap, GB", ".1f"), Column("how", "how"),
     Column("verdict", "verdict")), consumer)
