"""Does a model draw what the prompt says? The oracle reads its pictures of unseen prompts, by number of objects.

Prompts of the test split are words in orders and combinations that training has mostly seen, of scenes it has not; those of
`heldout` pair shapes with colours that it never saw together. A rate says something only beside others, the baselines: the
pictures themselves and what the autoencoder makes of them, above which no model can be; what comes out without any prompt, or for
the prompt of another picture, which only chance gets right.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from course import pixels
from course.data import Scenes, oracle
from course.data.oracle import Reading
from course.data.vocabulary import Scene
from course.evaluation.sweep import wilson


def measure(pipe, prompts: int = 1024, objects: tuple[int, int] = (1, 3), textures: tuple[str, ...] = ("plain",),
            steps: int = 25, guidance_scale: float | None = None, sampler: str = "ddim", seed: int = 0, batch: int = 64,
            progress: Callable[[float], None] = lambda done: None, baselines: bool = False, **more
            ) -> tuple[list[dict], dict[str, Tensor]]:
    """(rows, {split: pictures (n,3,S,S) uint8}); a row is {"split", "objects", "prompts", and the rates of `rates`}.

    baselines: also rows of the splits "real", "autoencoder" (where there is one), "shuffled" and "no prompt".
    `more`: what `latents` takes beside these.
    """
    drawn, rows = {}, []
    plan = {"test": prompts, "heldout": max(8, prompts // 4)}
    work = sum(plan.values()) + prompts * baselines

    def draw(said: list[str], done: int) -> Tensor:
        parts = []
        for start in range(0, len(said), batch):
            x0 = pipe.latents(said[start: start + batch], steps=steps, guidance_scale=guidance_scale, seed=seed + start,
                              sampler=sampler, **more)
            parts.append(pixels.to_bytes(pipe.decode(x0).cpu()))
            progress(min(done + start + batch, work) / work)
        return torch.cat(parts)
    for split, n in plan.items():
        data, scenes = asked(pipe, split, n, objects, textures)
        drawn[split] = draw(data.captions(range(n), full=True), sum(map(len, drawn.values())))
        rows += rows_of(split, drawn[split], scenes, objects)
    if not baselines:
        return rows, drawn
    data, scenes = asked(pipe, "test", prompts, objects, textures)
    real = data.images(range(prompts))                                                  # (n,3,S,S)
    rows += rows_of("real", pixels.to_bytes(real), scenes, objects)
    if pipe.config.vae is not None:
        again = torch.cat([pipe.decode(pipe.encode_image(x.to(pipe.device))).cpu() for x in real.split(batch)])
        rows += rows_of("autoencoder", pixels.to_bytes(again), scenes, objects)
    rows += rows_of("shuffled", drawn["test"].roll(1, 0), scenes, objects)
    drawn["no prompt"] = draw([""] * prompts, sum(plan.values()))
    return rows + rows_of("no prompt", drawn["no prompt"], scenes, objects), drawn


def asked(pipe, split: str, n: int, objects: tuple[int, int], textures: tuple[str, ...]) -> tuple[Scenes, list[Scene]]:
    data = Scenes(pipe.config.image_size, split, objects=objects, textures=textures, degraded=0.0)
    return data, data.scenes(range(n))


def rows_of(split: str, images: Tensor, scenes: list[Scene], objects: tuple[int, int]) -> list[dict]:
    """A row for each number of objects that occurs; images (n,3,S,S) uint8."""
    readings = oracle.read(pixels.to_unit(images))
    rows = []
    for count in range(objects[0], objects[1] + 1):
        group = [(r, s) for r, s in zip(readings, scenes, strict=True) if len(s.objects) == count]
        if group:
            rows.append({"split": split, "objects": count, "prompts": len(group)} | rates(*zip(*group, strict=True)))
    return rows


def rates(readings: list[Reading], scenes: list[Scene]) -> dict[str, float]:
    """Shares of pictures for which each key of oracle.score holds, each with its Wilson interval as KEY_low and KEY_high.

    binding: of the pictures that have all the colours and all the shapes asked for, the share that has them on each other as
    asked; None where nothing could be exchanged.  coverage: the share read without abstaining.
    """
    scores = [oracle.score(r, s) for r, s in zip(readings, scenes, strict=True)]
    marks = {key: [s[key] for s in scores] for key in scores[0]}
    marks["binding"] = [b for b in (bound(r, s) for r, s in zip(readings, scenes, strict=True)) if b is not None]
    marks["coverage"] = [not r.abstained for r in readings]
    found = {}
    for key, held in marks.items():
        low, high = wilson(sum(held), len(held)) if held else (None, None)
        found |= {key: sum(held) / len(held) if held else None, f"{key}_low": low, f"{key}_high": high}
    return found


def bound(reading: Reading, scene: Scene) -> bool | None:
    """Are the colours on the shapes that they were asked for? None where they could not be exchanged, or one is missing."""
    wanted, seen = ([(o.shape, o.color) for o in part.objects] for part in (scene, reading))
    shapes, colors = ([pair[i] for pair in wanted] for i in (0, 1))
    if len(set(shapes)) < 2 or len(set(colors)) < 2:
        return None
    if Counter(shapes) != Counter(s for s, _ in seen) or Counter(colors) != Counter(c for _, c in seen):
        return None
    return Counter(wanted) == Counter(seen)
