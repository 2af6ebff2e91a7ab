"""Draws what was asked, with what `course sample` draws with: the same words and seed, the same pixels."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from course import controlnet, lora, sample
from course.adapt import control
from course.data import hints, oracle
from course.pipeline import StableDiffusion
from course.studio.asked import OUT, Asked, command


@dataclass(frozen=True)
class Picture:
    """As `course sample` would write it, small ones enlarged, with what goes into its PNG and what can be said of it."""

    image: Image.Image
    seed: int
    said: dict
    oracle: str                         # what is seen in it; empty where the oracle reads no such pictures
    unread: str                         # what of the prompts was too long for the model
    edges: Image.Image                  # found in it, at its own size: to draw another like it


class Painter:
    """Keeps the last model in memory. For one thread at a time."""

    def __init__(self, device: str, typed: str = "auto"):
        self.device, self.typed = device, typed                # the device, and how it was asked for
        self.loaded: tuple[str, StableDiffusion] | None = None

    def pipe(self, name: str) -> StableDiffusion:
        if self.loaded is None or self.loaded[0] != name:
            self.loaded = None                                 # the old one goes before the new one comes
            self.loaded = name, StableDiffusion.load(name, self.device)
        return self.loaded[1]

    def draw(self, asked: Asked, step) -> list[Picture]:
        """step(done, look): called after each step with the share done, and a function that gives what is there by then.

        Raises CourseError, and whatever `step` raises.
        """
        pipe = self.pipe(asked.model)
        wish = sample.Wish([asked.prompt], Path(OUT), asked.seeds)
        how = sample.settings(wish, {
            "negative_prompt": asked.negative_prompt or None, "steps": asked.steps, "guidance_scale": asked.guidance,
            "sampler": asked.sampler, "control": self.control(asked)})
        seen = []

        def callback(i, t, x, x0):
            seen[:] = [x0]

        def progress(share: float) -> None:
            step(share, lambda: sample.grid(pipe.decode(seen[0]).cpu(), columns(asked.count)))

        try:
            sample.equip(pipe, list(asked.loras), [])
            images = pipe.decode(sample.draw(pipe, wish, how, progress=progress, callback=callback)).cpu()      # (B,3,H,W)
        finally:
            for module in pipe.modules().values():             # a layer without its LoRA is what it was, to the bit
                lora.remove(module)
        unread = " ".join(filter(None, map(pipe.tokenizer.cut_off, (asked.prompt, asked.negative_prompt))))
        return [self.picture(images[i: i + 1], asked, seed, how, unread) for i, seed in enumerate(asked.seeds)]

    def control(self, asked: Asked) -> list[controlnet.Control] | None:
        if asked.control is None:
            return None
        name, weight = asked.control
        return [controlnet.Control(control.load(name).to(self.device), asked.hint, weight)]

    def picture(self, image: torch.Tensor, asked: Asked, seed: int, how: dict, unread: str) -> Picture:
        """image: (1,3,H,W) in [-1,1]."""
        alone = replace(asked, seed=seed, count=1)
        wish = sample.Wish([asked.prompt], Path(OUT), [seed], note={
            "model": asked.model, "loras": asked.loras, "control": asked.control, "command": command(alone, self.typed)})
        readable = image.shape[2] == image.shape[3] >= 32
        return Picture(sample.grid(image, 1), seed, sample.note(wish, how),
                       sample.describe(oracle.read(image)[0]) if readable else "", unread, edges(image))


def edges(image: torch.Tensor) -> Image.Image:
    """(1,3,H,W) in [-1,1] -> where its colour changes, white on black."""
    return Image.fromarray((255 * hints.edges(image)[0]).byte().numpy(), "L")


def columns(count: int) -> int:
    """So that a few pictures make a block: 1, 2, 3, 2 x 2, 3 x 2, 4 x 2."""
    return count if count <= 3 else -(-count // 2)
