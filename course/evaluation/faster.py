"""Faster still, but no longer the same picture: what each approximation saves, and what the oracle says it costs.

Every row draws the same unseen prompts from the same noise. The first row is the exact run, which the others are measured by;
time is that of one picture, in turns with diffusers' exact run, so that "x diffusers" is what somebody gains who changes both the
library and the method.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from course.evaluation import beside, fidelity, speed
from course.evaluation.machine import Machine
from course.pipeline import StableDiffusion


@dataclass(frozen=True)
class Way:
    """A way to draw: `how` goes to `latents` as it is."""

    name: str
    how: dict = field(default_factory=dict)
    model: str = "scenes64"


EXACT = Way("DDIM, 50 steps", {"steps": 50})
WAYS = (
    EXACT,
    Way("DDIM, 25 steps", {"steps": 25}),
    Way("guidance for t in 500 ... 999 only", {"steps": 50, "guidance_interval": (500, 999)}),
    Way("deep features kept for 2 steps", {"steps": 50, "deep_cache": 2}),
    Way("deep features kept for 3 steps", {"steps": 50, "deep_cache": 3}),
    Way("DPM-Solver++(2M), 15 steps", {"steps": 15, "sampler": "dpmpp_2m"}),
    Way("DPM-Solver++(2M), 10 steps", {"steps": 10, "sampler": "dpmpp_2m"}),
    Way("UniPC, 10 steps", {"steps": 10, "sampler": "unipc"}),
    Way("UniPC, 10 steps, guidance for t in 500 ... 999", {"steps": 10, "sampler": "unipc", "guidance_interval": (500, 999)}),
    Way("distilled, 2 steps", {"steps": 2}, "scenes64-fast"),
)


def run(machine: Machine, prompts: int = 256, rounds: int = 10, ways: tuple[Way, ...] = WAYS,
        progress: Callable[[float], None] = lambda done: None) -> list[dict]:
    """A row for each way: milliseconds a picture, ratios, the share of prompts that came out right, and what exact has more."""
    pipes = {model: StableDiffusion.load(model, machine.device) for model in dict.fromkeys(way.model for way in ways)}
    exact = pipes[EXACT.model]
    _, theirs = speed.sampling(exact, EXACT.how["steps"], 1, {"diffusers": beside.unet(exact.unet)})
    functions = {way.name: lambda way=way: pipes[way.model].latents([speed.PROMPT], seed=0, **way.how) for way in ways}
    seconds = speed.in_turns(functions | theirs, rounds, machine.device)
    other = statistics.median(seconds["diffusers"])
    rows = []
    for i, way in enumerate(ways):
        right = rate(pipes[way.model], prompts, **way.how)
        mine = statistics.median(seconds[way.name])
        rows.append({"name": way.name, "model": way.model, "ms": 1000 * mine, "times_diffusers": other / mine,
                     "right": right, "prompts": prompts})
        progress((i + 1) / len(ways))
    for row in rows:
        row |= {"times_exact": rows[0]["ms"] / row["ms"], "lost": rows[0]["right"] - row["right"]}
    return rows


def rate(pipe: StableDiffusion, prompts: int, **how) -> float:
    """The share of unseen prompts of one to three objects of which all came out right."""
    rows, _ = fidelity.measure(pipe, prompts, **how)
    rows = [row for row in rows if row["split"] == "test"]
    return sum(row["all"] * row["prompts"] for row in rows) / sum(row["prompts"] for row in rows)
