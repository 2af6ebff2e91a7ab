"""`course train lora`: something new for a trained pipeline, by LoRA or, to compare, by full fine-tuning."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from course import lora
from course.adapt.drawn import right, share
from course.data import latents
from course.errors import UsageError
from course.pipeline import SHIPPED, StableDiffusion
from course.training import adapters, diffusion
from course.training.engine import processes
from course.training.material import material


def train(recipe, data, out: Path, how: dict, pipe: StableDiffusion):
    """LoRA, or full fine-tuning: new pictures and, among them, old ones; `out/model/lora.safetensors` is what was learned."""
    device, loss = how["engine"].device, recipe.loss
    pipe.to(device)
    old = familiar(recipe, len(data.images), recipe.seed, len(data.test_captions))
    before = {"new": right(pipe, data, recipe), "old": right(pipe, old, recipe)}
    both = [data, old] if loss.replay else [data]
    with processes(how["engine"]).main_process_first():
        mean, std = latents.cached(out / "latents", pipe.vae, torch.cat([m.images for m in both]), device)
    batches = diffusion.latent_batches(mean, std, pipe.vae.scaling_factor, loss.draw_latents)
    ways = min(len(m.captions[0]) for m in both)
    ids = pipe.tokenizer([c for m in both for said in m.captions for c in said[-ways:]])
    ids = ids.view(-1, ways, pipe.config.text.length)
    networks = {name: module for name, module in pipe.modules().items() if name in ("unet", "text_encoder")}
    count = sum(p.numel() for p in adapters.trained(loss, list(networks.values())))
    denoiser = diffusion.ConditionalDenoiser(pipe.unet, pipe.text_encoder)
    state = diffusion.train(denoiser, batches, ids, pipe.tokenizer("")[0], pipe.schedule, out, config=recipe.loop, loss=loss,
                            **how)

    def finish():
        if loss.rank is None:
            pipe.save(out / "model")
        else:
            lora.save(networks, out / "model" / "lora.safetensors")
        after = {"new": right(pipe, data, recipe), "old": right(pipe, old, recipe)}
        found = {"trained_parameters": count, "optimizer_bytes": 8 * count}             # Adam keeps two numbers for each
        for kind in before:
            found |= {f"{kind}_before": share(before[kind]), f"{kind}_after": share(after[kind]),
                      f"{kind}_prompts": len(after[kind][1])}
        said = {"new": data.test_captions, "old": old.test_captions}
        rows = {f"{kind}, {when}": (*drawn[kind], said[kind])
                for kind in before for when, drawn in (("before", before), ("after", after))}
        return rows, found
    return state, finish


def familiar(recipe, new: int, seed: int, prompts: int):
    """Pictures of the old kind: so many that beside `new` ones they are the share `loss.replay`, one at least; old prompts."""
    count = max(1, round(new * recipe.loss.replay / (1 - recipe.loss.replay)))
    return material(replace(recipe.data, shape=None, objects=(1, 3), pictures=count), seed + 1, prompts)


def add(pipe: StableDiffusion, source: str | Path, name: str = "default", weight: float = 1.0) -> None:
    """Put a LoRA beside the pipeline's layers: a file, the run that made it, or one that comes with the course.

    Raises CheckpointError for a file that was made for another model, UsageError for a name that is taken.
    """
    places = (Path(source) / "model", Path(source), SHIPPED / source)
    found = next((place / "lora.safetensors" for place in places if (place / "lora.safetensors").is_file()), Path(source))
    if not math.isfinite(weight):
        raise UsageError(f"the weight of {source} must be a finite number, got {weight}")
    lora.load(pipe.modules(), found, name, weight)
