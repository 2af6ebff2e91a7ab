"""What the functions beside this one share: drawing the unseen prompts, and asking the oracle."""

from dataclasses import replace

import torch
from torch import Tensor

from course import controlnet
from course.data import oracle
from course.pipeline import StableDiffusion


def draw(pipe: StableDiffusion, prompts: list[str], steps: int, scale: float, seed: int,
         control: "controlnet.Control | None" = None) -> Tensor:
    """(n,3,H,W) on the CPU, one picture a prompt; a control has a picture for each."""
    drawn = []
    for i in range(0, len(prompts), 32):
        part = control and replace(control, hint=control.hint[i: i + 32])
        drawn.append(pipe.decode(pipe.latents(prompts[i: i + 32], steps=steps, seed=seed + i, guidance_scale=scale,
                                              control=part)).cpu())
    return torch.cat(drawn)                                                             # (n,3,H,W)


def marks(images: Tensor, scenes: list) -> list[bool]:
    """Which pictures show all that was asked."""
    return [bool(oracle.score(reading, scene)["all"]) for reading, scene in zip(oracle.read(images), scenes, strict=True)]


def right(pipe: StableDiffusion, data, recipe) -> tuple[Tensor, list[bool]]:
    """(pictures of the data's prompts, which of them show what was asked)."""
    images = draw(pipe, data.test_captions, 25, pipe.config.guidance_scale, recipe.seed)
    return images, marks(images, data.test_scenes)


def share(row: tuple[Tensor, list[bool]]) -> float:
    return sum(row[1]) / len(row[1])
