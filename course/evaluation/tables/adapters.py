"""H: adapters that begin as nothing, and the same begun at random (ControlNet, section 3.1; LoRA, section 4.1; the article's 8).

A ControlNet's last convolutions, and one of a LoRA's two matrices, start at zero, so that before the first step the model is what
it was. Beside each stands its twin whose zeros were drawn from a Gaussian of the size that such layers usually start with.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from course import controlnet, lora
from course.adapt import low_rank
from course.data import Scenes, captions, hints, latents, oracle
from course.evaluation import figures
from course.evaluation.sweep import wilson
from course.evaluation.tables import arms
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Scale, Table, Work
from course.pipeline import StableDiffusion
from course.training import adapters, control, diffusion, loop
from course.training.material import material
from course.training.recipes import Data, find

STEPS = {"quick": 1, "cpu": 400, "gpu": 4_000}
PICTURES = {"quick": 8, "cpu": 256, "gpu": 1_024}
ALONE = "LoRA, rank 4, no replay"
LEARNED = {"quick": 32, "cpu": 4_096, "gpu": 16_384}


def measure(work: Work) -> list[dict]:
    work.pictures = PICTURES[work.scale.name]
    jobs = {"base": lambda: Trial(work).base()}
    for start in ("zero", "gaussian"):
        jobs[f"controlnet-{start}"] = lambda start=start: Trial(work).controlnet(start)
        jobs[f"lora-{start}"] = lambda start=start: Trial(work).lora(start)
    jobs["lora-zero-no-replay"] = lambda: Trial(work).lora("zero", ["loss.replay=0"])
    return work.share(jobs)


class Trial:
    """scenes64 with something beside it, at its first moment and after some training; old prompts show what becomes of it."""

    def __init__(self, work: Work):
        self.work, self.scale = work, work.scale.name
        self.pipe = StableDiffusion.load("scenes64", work.device)
        self.data = Scenes(64, "test", objects=(1, 3), textures=("plain",), degraded=0.0)
        n = PICTURES[self.scale]
        self.scenes, self.said = self.data.scenes(range(n)), self.data.captions(range(n), full=True)
        self.vague = [captions.caption(scene, short=True) for scene in self.scenes]    # where things are only a control knows

    def draw(self, said: list[str], network=None) -> Tensor:
        shown, drawn = hints.picture(self.data, self.scenes, "edges"), []
        for i in range(0, len(said), 32):
            beside = network and controlnet.Control(network, shown[i: i + 32].to(self.pipe.device))
            drawn.append(self.pipe.decode(self.pipe.latents(said[i: i + 32], steps=2 if self.scale == "quick" else 25,
                                                            seed=self.work.seed + i, control=beside)).cpu())
        return torch.cat(drawn)

    def right(self, images: Tensor, key: str, scenes: list | None = None) -> dict:
        wanted = scenes or self.scenes
        count = sum(oracle.score(r, s)["all"] for r, s in zip(oracle.read(images), wanted, strict=True))
        low, high = wilson(count, len(wanted))
        return {f"{key}_right": count / len(wanted), f"{key}_low": low, f"{key}_high": high}

    def base(self) -> dict:
        geometry = hints.recovered(self.draw(self.vague), self.data, self.scenes)
        return {"adapter": "none", "iou_end": geometry["iou"], "edge_f_end": geometry["edge_f"]} | self.right(
            self.draw(self.said), "first")

    def lesson(self, recipe) -> tuple:
        """(material, batches, ids (n,K,N)) of a recipe, with fewer pictures; behind them the old ones, where it replays some."""
        found, replay = material(replace(recipe.data, pictures=LEARNED[self.scale]), self.work.seed, 8), getattr(
            recipe.loss, "replay", 0.0)
        both = [found, low_rank.familiar(recipe, len(found.images), self.work.seed, 8)] if replay else [found]
        mean, std = latents.cached(self.work.folder / "runs" / f"latents-{recipe.kind}-{replay:g}", self.pipe.vae,
                                   torch.cat([m.images for m in both]), self.work.device)
        batches = diffusion.latent_batches(mean, std, self.pipe.vae.scaling_factor, False)
        ways = min(len(m.captions[0]) for m in both)           # several objects have fewer word orders
        ids = self.pipe.tokenizer([c for m in both for said in m.captions for c in said[-ways:]])
        return found, batches, ids.view(-1, ways, self.pipe.config.text.length)

    def controlnet(self, start: str) -> dict:
        recipe = find("controlnet", "edges")
        found, batches, ids = self.lesson(recipe)
        torch.manual_seed(self.work.seed)
        network = controlnet.ControlNet.from_unet(self.pipe.unet, recipe.loss.hint_channels).to(self.work.device)
        if start == "gaussian":
            fill([network.controlnet_cond_embedding.conv_out, *network.controlnet_down_blocks, network.controlnet_mid_block])
        plain = self.draw(self.said)
        first = self.draw(self.said, network)
        before = self.right(first, "first") | {"moved": (first - plain).abs().max().item()}
        shown = (255 * hints.picture(self.data, found.scenes, "edges")).round().byte()                 # (n,3,S,S)
        control.train(network, self.pipe, batches, shown, ids, self.pipe.tokenizer("")[0],
                      self.work.folder / "runs" / f"controlnet-{start}", loop.Budget(steps=STEPS[self.scale]),
                      config=replace(recipe.loop, seed=self.work.seed), loss=recipe.loss, watch=self.tick,
                      **arms.how(self.work.device))
        geometry = hints.recovered(self.draw(self.vague, network), self.data, self.scenes)
        return {"adapter": "ControlNet, edges", "start": start, "trained": sum(p.numel() for p in network.parameters()),
                "iou_end": geometry["iou"], "edge_f_end": geometry["edge_f"]} | before | self.right(
                    self.draw(self.said, network), "end")

    def lora(self, start: str, changes: list[str] | None = None) -> dict:
        """A new shape, hearts; old prompts are those of the base. changes: of the recipe, as `course train --set` takes them."""
        recipe = find("lora", "heart", changes or [])
        replay = recipe.loss.replay
        found, batches, ids = self.lesson(recipe)
        torch.manual_seed(self.work.seed)
        plain = self.draw(self.said)
        params = adapters.trained(recipe.loss, [self.pipe.unet, self.pipe.text_encoder])
        if start == "gaussian":
            fill([beside.up for network in (self.pipe.unet, self.pipe.text_encoder) for _, layer in lora.adapted(network)
                  for beside in layer.adapters.values()])
        first = self.draw(self.said)
        before = self.right(first, "first") | {"moved": (first - plain).abs().max().item()}
        denoiser = diffusion.ConditionalDenoiser(self.pipe.unet, self.pipe.text_encoder)
        diffusion.train(denoiser, batches, ids, self.pipe.tokenizer("")[0], self.pipe.schedule,
                        self.work.folder / "runs" / f"lora-{start}-{replay:g}", loop.Budget(steps=STEPS[self.scale]),
                        replace(recipe.loop, seed=self.work.seed), recipe.loss, watch=self.tick, **arms.how(self.work.device))
        new = material(Data(pictures=1, shape="heart"), self.work.seed, PICTURES[self.scale])
        drawn = self.right(self.draw_plain(new.test_captions), "new", new.test_scenes)
        return {"adapter": "LoRA, rank 4" if replay else ALONE, "start": start, "replay": replay,
                "trained": sum(p.numel() for p in params)} | before | self.right(self.draw(self.said), "end") | drawn

    def draw_plain(self, said: list[str]) -> Tensor:
        return torch.cat([self.pipe.decode(self.pipe.latents(said[i: i + 32], steps=2 if self.scale == "quick" else 25,
                                                             seed=self.work.seed + i)).cpu() for i in range(0, len(said), 32)])

    def tick(self, state: dict, _) -> None:
        self.work.progress(state["step"] / STEPS[self.scale])


def fill(layers: list[nn.Module]) -> None:
    """Gaussian weights of variance 1 / inputs, where zeros were."""
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=1 / math.sqrt(layer.weight[0].numel()))


def rule(rows: list[dict], scale: Scale) -> tuple[str, str]:
    """Supported: begun at zero, not a pixel of the first pictures is another; begun at random fewer are right, by Wilson's
    intervals; for both adapters. Contradicted: zeros do move pictures, or random ones leave as many right as the base has.
    The LoRA without replay has no twin and no say; what it forgot is told."""
    own = {(r["adapter"], r.get("start")): r for r in rows}
    base, alone = own["none", None], own.get((ALONE, "zero"))
    kinds = sorted({r["adapter"] for r in rows if r.get("start")} - {ALONE})
    moved = max(own[kind, "zero"]["moved"] for kind in kinds)
    told = f"right before the first step: base {100 * base['first_right']:.0f} %"
    for kind in kinds:
        told += ", " + ", ".join(f"{kind} from {s} {100 * own[kind, s]['first_right']:.0f} %" for s in ("zero", "gaussian"))
    told += "; after training: " + ", ".join(f"{kind} from {s} {100 * own[kind, s]['end_right']:.0f} %"
                                             for kind in kinds for s in ("zero", "gaussian"))
    told += f", LoRA without replay {100 * alone['end_right']:.0f} %" if alone else ""
    if moved > 1e-6 or any(own[kind, "gaussian"]["first_right"] >= base["first_right"] for kind in kinds):
        return CONTRADICTED, f"zeros move a pixel by up to {moved:.1g}. {told}"
    if any(own[kind, "gaussian"]["first_high"] >= base["first_low"] for kind in kinds):
        return INCONCLUSIVE, told
    return SUPPORTED, told


def draw(path: Path, rows: list[dict]) -> None:
    plt = figures.pyplot()
    figure, axis = plt.subplots(figsize=(7.6, 3.4))
    own = [r for r in rows if r.get("start")]
    for place, r in enumerate(own):
        for shift, key, color in ((-0.18, "first", figures.PIXEL), (0.18, "end", figures.LATENT)):
            axis.barh(place + shift, 100 * r[f"{key}_right"], 0.34, color=color,
                      label={"first": "before the first step", "end": "after training"}[key] if place == 0 else None)
            axis.plot((100 * r[f"{key}_low"], 100 * r[f"{key}_high"]), (place + shift,) * 2, color=figures.INK, lw=1)
    axis.axvline(100 * rows[0]["first_right"], color=figures.FAINT, ls="--", label="the base alone")
    axis.set_yticks(range(len(own)), [f"{r['adapter']}\nfrom {r['start']}" for r in own], fontsize=8)
    axis.invert_yaxis()
    axis.set(title="old prompts all right, %", xlim=(0, 103))
    axis.legend(fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    figure.tight_layout()
    figures.write(plt, figure, path)


TABLE = Table(
    "H", "Adapters that begin as nothing",
    "An adapter that starts at zero leaves the base as it was; started at random it harms it",
    "a start at zero changes a picture, or after a random start as many prompts come out right as without the adapter",
    (Column("adapter", "adapter"), Column("start", "starts at"), Column("replay", "old pictures", "%"),
     Column("trained", "trained", ",d"),
     Column("first_right", "old prompts right, at first", "%"), Column("moved", "a pixel moves by", ".1g"),
     Column("end_right", "after training", "%"), Column("edge_f_end", "edges, F at 1 pixel", ".3f"),
     Column("iou_end", "silhouettes, IoU", ".3f"), Column("new_right", "new prompts right", "%")), measure, rule, draw,
    ("controlnet", (Column("model", "model"), Column("ADE20K_IoU", "ADE20K IoU", "g"), Column("FID", "FID", "g"))),
    notes=("Edges and silhouettes: of prompts that leave open where things are; without an adapter only chance can be right.",
           "The base itself is frozen in all five: taken away, each leaves it to the bit.",
           "Old pictures: their share of what is trained on. What is forgotten without them, old prompts tell; both LoRAs from "
           "zero take as many steps, so that the one without sees more of the new."))
