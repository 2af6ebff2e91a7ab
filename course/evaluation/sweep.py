"""How much guidance, how many steps? The article's table 9.3 recommends; here it is measured, picture by picture.

Every cell of the grid draws the same prompts from the same noise, so two cells differ in nothing but the two settings. The
oracle reads every picture and says whether all that the prompt asks for is there; the interval is Wilson's.
"""

import math
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from course.data import Scenes, captions, oracle
from course.errors import UsageError

KEYS = ("shape", "color", "size", "place", "background", "count", "all")


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): unlike share +- z std it has a width at 0 of n and never leaves [0, 1]."""
    share, shrink = right / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def unseen(count: int, pipe) -> list[str]:
    """Prompts of `count` scenes that no model was trained on: two and three objects, or one where `pipe` reads no more words."""
    for objects in ((2, 3), (1, 1)):
        said = Scenes(pipe.config.image_size, "test", objects=objects, textures=("plain",), degraded=0.0).captions(
            range(count), full=True)
        if not any(map(pipe.tokenizer.cut_off, said)):
            break
    return said


@torch.no_grad()
def run(pipe, prompts: list[str], guidance: list[float], steps: list[int], seeds: list[int], sampler: str = "ddim",
        batch: int = 32, progress: Callable[[float], None] = lambda done: None) -> tuple[list[dict], list[Tensor]]:
    """Draw every prompt with every seed for every pair of settings.

    Returns (cells, pictures): a cell is {"guidance", "steps", "pictures", "right", "rate", "low", "high"} and the share for
    each of KEYS; `pictures` has its first four, (4,3,S,S), which take the prompts in turn, the first seed first.
    Raises UsageError for a prompt in which the oracle knows no shape.
    """
    asked = [captions.parse(prompt) for prompt in prompts]
    for prompt, found in zip(prompts, asked, strict=True):
        if not found["objects"]:
            raise UsageError(f"the oracle cannot score {prompt!r}: it knows {', '.join(captions.ALL_SHAPES)}")
    said = [(p, seed) for seed in seeds for p in range(len(prompts))]
    work, done = len(guidance) * sum(steps) * len(said), 0.0
    cells, shown = [], []
    for n in steps:
        for w in guidance:
            drawn = []
            for chunk in (said[i: i + batch] for i in range(0, len(said), batch)):
                def tick(share: float, before: float = done, size: int = len(chunk) * n):
                    progress((before + share * size) / work)
                x0 = pipe.latents([prompts[p] for p, _ in chunk], steps=n, guidance_scale=w, seed=[s for _, s in chunk],
                                  sampler=sampler, progress=tick)
                drawn.append(pipe.decode(x0).cpu())
                done += len(chunk) * n
            images = torch.cat(drawn)                                                   # (n,3,S,S)
            scores = [oracle.heeds(reading, asked[p]) for reading, (p, _) in zip(oracle.read(images), said, strict=True)]
            right = sum(s["all"] for s in scores)
            low, high = wilson(right, len(said))
            cells.append({"guidance": w, "steps": n, "pictures": len(said), "right": right, "rate": right / len(said),
                          "low": low, "high": high} | {k: sum(s[k] for s in scores) / len(said) for k in KEYS})
            shown.append(images[:4])
    return cells, shown


def print_table(cells: list[dict]) -> None:
    """The share of pictures that show everything, with its interval, as the picture has it."""
    across, down = (list(dict.fromkeys(c[key] for c in cells)) for key in ("guidance", "steps"))
    table = Table(title="pictures that show all that was asked for, in %, by guidance")
    for head in ("steps", *(f"{w:g}" for w in across)):
        table.add_column(head, justify="right")
    for n in down:
        row = [c for c in cells if c["steps"] == n]
        table.add_row(str(n), *(f"{100 * c['rate']:.0f} ({100 * c['low']:.0f}–{100 * c['high']:.0f})" for c in row))
    Console().print(table)
