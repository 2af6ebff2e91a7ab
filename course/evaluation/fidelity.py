"""Does a model draw what the prompt says? The oracle reads its pictures of unseen prompts, by number of objects.

Prompts of the test split are words in orders and combinations that training has mostly seen, of scenes it has not; those of
`heldout` pair shapes with colours that it never saw together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from course import pixels
from course.data import Scenes, oracle


def measure(pipe, prompts: int = 1024, objects: tuple[int, int] = (1, 3), textures: tuple[str, ...] = ("plain",),
            steps: int = 25, guidance_scale: float | None = None, sampler: str = "ddim", seed: int = 0, batch: int = 64,
            progress: Callable[[float], None] = lambda done: None, **more) -> tuple[list[dict], dict[str, Tensor]]:
    """(rows, {split: pictures (n,3,S,S) uint8}); a row is {"split", "objects", "prompts", and the rates of oracle.score}.

    `more`: what `latents` takes beside these.
    """
    size, rows, drawn = pipe.config.image_size, [], {}
    plan = {"test": prompts, "heldout": max(8, prompts // 4)}
    for split, n in plan.items():
        data = Scenes(size, split, objects=objects, textures=textures, degraded=0.0)
        scenes = data.scenes(range(n))
        said, parts = data.captions(range(n), full=True), []
        for start in range(0, n, batch):
            x0 = pipe.latents(said[start: start + batch], steps=steps, guidance_scale=guidance_scale, seed=seed + start,
                              sampler=sampler, **more)
            parts.append(pixels.to_bytes(pipe.decode(x0).cpu()))
            progress((sum(map(len, drawn.values())) + start + batch) / sum(plan.values()))
        drawn[split] = torch.cat(parts)
        scores = [oracle.score(reading, scene)
                  for reading, scene in zip(oracle.read(pixels.to_unit(drawn[split])), scenes, strict=True)]
        for count in range(objects[0], objects[1] + 1):
            group = [s for s, scene in zip(scores, scenes, strict=True) if len(scene.objects) == count]
            if group:
                rows.append({"split": split, "objects": count, "prompts": len(group)}
                            | {key: sum(s[key] for s in group) / len(group) for key in group[0]})
    return rows, drawn
