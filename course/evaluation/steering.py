"""Does a ControlNet's picture keep to its control picture, and still to its prompt?

Edges and silhouettes are recovered from the pixels, and compared with the scene's exact geometry. Beside the controlled model
stand what it cannot be better than, the autoencoder's own reconstructions, and what it must beat, the same model without control.
Prompts say where things are, or leave it open: only the control can know then.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from course import controlnet
from course.data import Scenes, captions, hints, oracle

KEYS = ("edge_f", "iou", "shape", "color", "size", "count", "background", "all")


@torch.no_grad()
def measure(pipe, network, kind: str, count: int = 256, objects: tuple[int, int] = (1, 3), steps: int = 25, seed: int = 0,
            weight: float = 1.0, batch: int = 64, progress: Callable[[float], None] = lambda done: None) -> list[dict]:
    """Rows {"pictures": what, "prompts": which or None, and KEYS}; kind: see data.hints.KINDS."""
    data = Scenes(pipe.config.image_size, "test", objects=objects, textures=("plain",), degraded=0.0)
    scenes, real = data.scenes(range(count)), data.images(range(count))
    shown = hints.picture(data, scenes, kind)                                           # (n,3,S,S)
    rebuilt = torch.cat([pipe.decode(pipe.encode_image(part.to(pipe.device))).cpu() for part in real.split(batch)])
    rows = [row("drawn by Scenes", None, real, data, scenes), row("rebuilt by the autoencoder", None, rebuilt, data, scenes)]
    said = {"say where": data.captions(range(count), full=True),
            "leave it open": [captions.caption(scene, short=True) for scene in scenes]}
    ways = [(which, steered) for which in said for steered in (False, True)]
    for number, (which, steered) in enumerate(ways):
        drawn = []
        for i in range(0, count, batch):
            control = controlnet.Control(network, shown[i: i + batch].to(pipe.device), weight) if steered else None
            drawn.append(pipe.decode(pipe.latents(said[which][i: i + batch], steps=steps, seed=seed + i, control=control)).cpu())
            progress((number + min(i + batch, count) / count) / len(ways))
        rows.append(row("with control" if steered else "without", which, torch.cat(drawn), data, scenes))
    return rows


def row(pictures: str, prompts: str | None, images: Tensor, data: Scenes, scenes: list) -> dict:
    rates = oracle.rates(images, scenes)
    return {"pictures": pictures, "prompts": prompts} | hints.recovered(images, data, scenes) | {
        key: rates[key] for key in KEYS if key in rates}
