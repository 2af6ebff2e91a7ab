"""Small models that a table trains for itself, each in a run folder: a table that was stopped goes on mid-training.

What they learn from is the demo's: pictures of one object, every word order of their captions. A recipe's learning rate and batch
are the demo's, too, which gave latents and pixels as many trials (CONTRIBUTING.md).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from course import files, presets
from course.data import latents
from course.demo import Recipe
from course.evaluation import metrics
from course.pipeline import StableDiffusion
from course.training import autoencoder, diffusion, flops, loop
from course.training.engine import EngineConfig
from course.training.material import Material, material, vocabulary
from course.training.recipes import Data

DEMO, SOFT = Recipe(), autoencoder.AutoencoderLoss(kl=Recipe.kl)


@dataclass(frozen=True)
class Lesson:
    """Pictures to learn from, in memory, and their captions as tokens."""

    size: int = 64
    pictures: int = 8_192
    seed: int = 0
    text: "presets.text.TextConfig" = field(default_factory=lambda: presets.TEXTS["demo-text"])

    @cached_property
    def material(self) -> Material:
        return material(Data(size=self.size, pictures=self.pictures), self.seed, 8)

    @cached_property
    def tokens(self):
        return vocabulary(self.material, self.text)

    @cached_property
    def ids(self) -> Tensor:
        """(n,K,N): K captions of each picture."""
        said = self.material.captions
        return self.tokens([c for ways in said for c in ways]).view(len(said), -1, self.text.length)


class Snapshots:
    """Keeps the averaged weights as they are after so many seconds of training: `loop.fit(watch=...)`."""

    def __init__(self, folder: Path, moments: tuple[float, ...]):
        self.folder, self.moments = folder, moments

    def path(self, moment: float) -> Path:
        return self.folder / f"after-{moment:g}.safetensors"

    def __call__(self, state: dict, average: dict[str, Tensor]) -> None:
        for moment in self.moments:
            if moment <= state["seconds"] and not self.path(moment).is_file():
                files.save_tensors(self.path(moment), average, {k: state[k] for k in ("step", "images", "seconds")})

    def load(self, moment: float, model: torch.nn.Module) -> dict:
        """Fill `model`; returns the counters {"step", "images", "seconds"}."""
        tensors, state = files.load_tensors(self.path(moment))
        files.load_into(model, tensors, str(self.path(moment)))
        return state


def how(device: str) -> dict:
    return {"engine": EngineConfig(device, "bf16" if device.startswith("cuda") else "fp32"), "quiet": True}


def first_stage(lesson: Lesson, config, folder: Path, budget: loop.Budget, device: str = "cpu", seed: int = 0,
                loss: autoencoder.AutoencoderLoss = SOFT,
                settings: loop.LoopConfig = DEMO.autoencoder, watch: Callable | None = None) -> tuple:
    """(autoencoder, what `loop.fit` returns, with "flops" in all and a picture's "flops_per_image")."""
    torch.manual_seed(seed)
    model = presets.autoencoder(config).to(device)
    with torch.device("meta"):
        each = flops.training(presets.autoencoder(config).eval(), torch.empty(1, 3, lesson.size, lesson.size))
    state = autoencoder.train(model, lesson.material.images, folder, budget, replace(settings, seed=seed), loss, watch=watch,
                              **how(device))
    return model, state | {"flops": each * state["images"], "flops_per_image": each}


def encoded(lesson: Lesson, vae, folder: Path, device: str = "cpu") -> tuple:
    """(mean, std, scale, seconds): the latents of all pictures, encoded once; the seconds are those of the first time."""
    timing, begun = folder / "encoding.json", time.perf_counter()
    mean, std = latents.cached(folder, vae, lesson.material.images, device)
    if not timing.is_file():
        files.write_json(timing, {"seconds": time.perf_counter() - begun})
    return mean, std, latents.measured_scale(mean, std), json.loads(timing.read_text("utf-8"))["seconds"]


def second_stage(lesson: Lesson, config: "presets.PipelineConfig", batches: Callable, vae, folder: Path, budget: loop.Budget,
                 settings: loop.LoopConfig, device: str = "cpu", seed: int = 0, loss: diffusion.DiffusionLoss | None = None,
                 watch: Callable | None = None, words: tuple | None = None) -> tuple[StableDiffusion, dict]:
    """(the pipeline, what `loop.fit` returns with "flops" and "flops_per_image").

    words: (tokenizer, text encoder, ids (n,K,N)) in place of the lesson's captions.
    """
    torch.manual_seed(seed)
    tokens, encoder, ids = words or (lesson.tokens, None, lesson.ids)
    pipe = StableDiffusion(config, tokens, text_encoder=encoder, autoencoder=vae).to(device)
    both = diffusion.ConditionalDenoiser(pipe.unet, pipe.text_encoder)
    each = cost_of(config, pipe.text_encoder, ids)
    state = diffusion.train(both, batches, ids, tokens("")[0], pipe.schedule, folder, budget, replace(settings, seed=seed),
                            loss or diffusion.DiffusionLoss(config.predict), watch=watch, **how(device))
    return pipe, state | {"flops": each * state["images"], "flops_per_image": each}


def cost_of(config: "presets.PipelineConfig", encoder: torch.nn.Module, ids: Tensor) -> int:
    """FLOPs of a training step for one picture, text encoder included."""
    side = config.image_size // (config.vae.factor if config.vae else 1)
    net = presets.unet.UNet(config.unet)
    model = diffusion.ConditionalDenoiser(net, encoder).eval()
    device = next(encoder.parameters()).device
    net.to(device)
    return flops.training(model, torch.zeros(1, config.unet.in_channels, side, side, device=device),
                          torch.zeros(1, device=device), ids[:1, 0].to(device))


def rebuilt(vae, images: Tensor, device: str = "cpu", batch: int = 64) -> Tensor:
    """(n,3,S,S) in [-1,1] -> the autoencoder's own pictures of them, on the CPU."""
    with torch.no_grad():
        parts = []
        for x in images.split(batch):
            z = vae.encode(x.to(device))
            parts.append(vae.decode(z if isinstance(z, Tensor) else z.mode()).clamp(-1, 1).cpu())
    return torch.cat(parts)


def distortion(real: Tensor, again: Tensor) -> dict[str, float]:
    """{"psnr", "ssim"}, means over pictures."""
    return {"psnr": metrics.psnr(real, again).mean().item(), "ssim": metrics.ssim(real, again).mean().item()}

