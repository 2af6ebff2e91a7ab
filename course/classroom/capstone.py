"""The capstone's detective: swap in one part at a time, draw, and compare with the library's picture.

    mine = parts.from_notebooks("my-notebooks")
    for finding in capstone.diagnose(mine):
        print(finding)

A part is tried on pictures that need it: see `tasks_of`. Losses, codebooks and adapters have no share in a picture from words;
of them, and of what a picture cannot show (how weights begin, whether gradients flow), the exercise's own check speaks.
"""

import contextlib
import io
import math
import warnings
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from course import controlnet, parts, unet
from course.adapt import control
from course.classroom import checks
from course.data import Scenes, hints
from course.errors import UsageError
from course.pipeline import StableDiffusion

PROMPT = "a small red ring left of a large blue square on a cream background"
EXACT, SAME, OTHER, FAILS, UNSEEN = "bit for bit", "the same picture", "another picture", "no picture", "not in a picture"
STEP = 2 / 255                            # of a picture in [-1, 1]: one value of a byte


@dataclass(frozen=True)
class Finding:
    """What became of the picture with one part swapped in; `part` is None where only several together break it."""

    part: str | None
    verdict: str                          # one of the five above
    distance: float = 0.0                 # largest difference of a pixel, of 255; infinite where it is no number
    says: str = ""                        # what was raised, or what the exercise's check says
    pictures: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)     # task -> (3,64,64)

    @property
    def broken(self) -> bool:
        return self.verdict in (OTHER, FAILS) or bool(self.says)

    def __str__(self) -> str:
        off = f", off by {self.distance:.3g} of 255" if 0 < self.distance < math.inf else ""
        return f"{self.part or 'all together'}: {self.verdict}{off}" + (f" ({self.says})" if self.says else "")


def tasks_of(part: str) -> tuple[str, ...]:
    """The pictures that show whether a part is right; none for parts that draw none. Raises UsageError for no part."""
    if part not in parts.PARTS:
        raise UsageError(f"no such part: {part}; the parts are {', '.join(parts.PARTS)}")
    module, name = part.split(".")
    if module in ("objectives", "vq", "lora"):
        return ()
    if module == "samplers" and name != "ddim":
        return (name,)
    return ("edges",) if module == "controlnet" else ("words", "picture")


class Plain(unet.UNet):
    """The library's U-Net under another name: a pipeline whose network is swapped remembers no noise levels (see `memo`), so that
    all pictures are computed in the same order, whosever their blocks are, and the same code gives the same bits."""


def draw(mapping: dict[str, object], tasks: tuple[str, ...] = ("words",), source: str = "scenes64",
         steps: int = 4) -> dict[str, Tensor]:
    """Pictures (3,64,64) in [-1,1] by task, from a pipeline that is built of the parts in `mapping`, else of the library's.

    words: from a prompt. picture: from a prompt and a picture, so that the encoder has its share. edges: with a ControlNet.
    Any other task is the name of a sampler.
    """
    with parts.swapped({"unet.UNet": Plain} | mapping):
        pipe = StableDiffusion.load(source)
        return {task: _drawn(pipe, task, steps) for task in tasks}


def _drawn(pipe: StableDiffusion, task: str, steps: int) -> Tensor:
    how = {}
    if task == "picture":
        how = {"image": Scenes(64, "test", degraded=0.0).images([1]), "strength": 0.5}
    elif task == "edges":
        data = Scenes(64, "test", degraded=0.0)
        hint = hints.picture(data, data.scenes([1]), "edges")                           # (1,3,64,64)
        how = {"control": controlnet.Control(control.load("scenes64-edges"), hint)}
    elif task != "words":
        how = {"sampler": task}
    return pipe.decode(pipe.latents(PROMPT, steps=steps, seed=16, **how))[0]


@cache
def reference(tasks: tuple[str, ...], source: str = "scenes64", steps: int = 4) -> dict[str, Tensor]:
    """The library's own pictures."""
    return draw({}, tasks, source, steps)


def difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of a pixel, of 255; infinite for another shape and for what is no number."""
    found = 0.0
    for task, picture in theirs.items():
        if mine[task].shape != picture.shape or not torch.isfinite(mine[task]).all():
            return math.inf
        found = max(found, float((mine[task] - picture).abs().max()) / STEP)
    return found


def compare(mapping: dict[str, object], part: str | None = None, source: str = "scenes64", steps: int = 4) -> Finding:
    """Draw with `mapping` swapped in, and compare with the library's pictures. What a part raises is a finding."""
    tasks = tuple(dict.fromkeys(task for name in mapping for task in tasks_of(name)))
    if not tasks:
        return Finding(part, UNSEEN)
    expected = reference(tasks, source, steps)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            pictures = draw(mapping, tasks, source, steps)
            distance = difference(pictures, expected)
    except (Exception, SystemExit) as error:
        first = (str(error).strip().splitlines() or ["no message"])[0][:160]
        return Finding(part, FAILS, math.inf, f"{type(error).__name__}: {first}")
    return Finding(part, EXACT if distance == 0 else SAME if distance <= 1 else OTHER, distance, pictures=pictures)


def diagnose(mapping: dict[str, object], source: str = "scenes64", steps: int = 4) -> list[Finding]:
    """One finding for each part of `mapping`; where they break the picture only together, one more, without a part.

    All at once first. Where that gives the library's picture, no part needs to be tried alone.
    """
    drawing = {name: mine for name, mine in mapping.items() if tasks_of(name)}
    together = compare(drawing, None, source, steps)
    found = []
    for name, mine in mapping.items():
        if name in drawing and not together.broken:
            alone = Finding(name, together.verdict, together.distance)
        else:
            alone = compare({name: mine}, name, source, steps)
        found.append(alone if alone.verdict == FAILS else _checked(alone, mine))
    if together.broken and not any(f.verdict in (OTHER, FAILS) for f in found):
        found.append(together)
    return found


def _checked(finding: Finding, mine) -> Finding:
    """The same, with what the check of the exercise has against it, where there is an exercise of that name."""
    exercise = checks.exercises().get(finding.part)
    if exercise is None or mine is exercise.reference:
        return finding
    result = exercise.run(mine)
    if result.passed:
        return finding
    says = next(line for line in result.messages if line.startswith("✗")).removeprefix("✗ ").replace("\n   ", ":")
    return Finding(finding.part, finding.verdict, finding.distance, f"its check: {says}", finding.pictures)


def report(findings: list[Finding]) -> str:
    """For a person: who is to blame, then everything."""
    broken = [f for f in findings if f.broken]
    if not broken:
        head = f"{len(findings)} parts, the library's picture"
    else:
        head = "broken by " + ", ".join(f.part or "several parts together" for f in broken)
    return "\n".join([head, *(f"  {'✗' if f.broken else '✓'} {f}" for f in findings)])
