"""What a form said, checked: every mistake at the field that it was made in; and the same wish as a command line."""

import base64
import binascii
import io
import math
import shlex
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from course import sample, samplers
from course.errors import UsageError
from course.studio.catalogue import Catalogue

MOST_PICTURES, MOST_STEPS, MOST_GUIDANCE, MOST_WEIGHT = 8, 200, 30.0, 2.0
LONGEST = 1000                                                 # characters; the models read far fewer
OUT, DRAWING = "sample.png", "edges.png"                       # what the command is told to write, and to read


@dataclass(frozen=True)
class Asked:
    """A wish that can be drawn; names and ranges are right."""

    prompt: str
    negative_prompt: str
    model: str
    sampler: str
    steps: int
    guidance: float
    seed: int
    count: int
    loras: tuple[tuple[str, float], ...] = ()
    control: tuple[str, float] | None = None
    hint: Tensor | None = None                                 # (1,3,H,W) in [0,1], what the ControlNet is shown

    @property
    def seeds(self) -> list[int]:
        return [self.seed + i for i in range(self.count)]

    def told(self) -> dict:
        """All but the drawing, as JSON."""
        return {name: value for name, value in vars(self).items() if name != "hint"}


class Mistakes(Exception):
    """{"steps": "what is wrong with it", ...}"""

    def __init__(self, by_field: dict[str, str]):
        super().__init__(by_field)
        self.by_field = by_field


def read(form, catalogue: Catalogue) -> Asked:
    """Raises Mistakes, which has all of them at once."""
    if not isinstance(form, dict):
        raise Mistakes({"form": "expected the fields of the form as one JSON object"})
    said, wrong = {}, {}

    def field(name: str, how, *more) -> None:
        try:
            said[name] = how(form.get(name), *more)
        except UsageError as error:
            wrong[name] = str(error)

    field("prompt", prompt)
    field("negative_prompt", text)
    field("model", one_of, catalogue.models)
    field("sampler", one_of, samplers.SAMPLERS)
    field("steps", whole, 1, MOST_STEPS)
    field("guidance", number, 0.0, MOST_GUIDANCE)
    field("seed", whole, 0, 2**32 - 1)
    field("count", whole, 1, MOST_PICTURES)
    model = catalogue.models.get(said.get("model"))
    field("loras", loras, catalogue, model)
    field("control", control, catalogue, model)
    if said.get("control") and model:
        field("hint", drawing, model.size)
    if unknown := set(form) - {*said, *wrong, "hint"}:
        wrong["form"] = f"the form has no {', '.join(sorted(unknown))}"
    if wrong:
        raise Mistakes(wrong)
    return Asked(**said)


# ---- one field each; each raises UsageError, in words for who looks at that field

def text(value) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or any("\ud800" <= sign <= "\udfff" for sign in value):
        raise UsageError("Text is expected here.")
    if len(value) > LONGEST:
        raise UsageError(f"At most {LONGEST:,} characters, please; these are {len(value):,}.")
    return " ".join(value.split())


def prompt(value) -> str:
    if not (said := text(value)):
        raise UsageError("Say what to draw, such as “a large green ring on a pink background”.")
    return said


def one_of(value, known) -> str:
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"Choose one of {', '.join(known)}.")
    return value


def whole(value, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or not least <= value <= most or value % 1:
        raise UsageError(f"A whole number from {least} to {most}, please.")
    return int(value)


def number(value, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:
        raise UsageError(f"A number from {least:g} to {most:g}, please.")
    return round(float(value), 3)                              # what the command line shows is what is drawn


def loras(value, catalogue: Catalogue, model) -> tuple[tuple[str, float], ...]:
    if not isinstance(value or {}, dict):
        raise UsageError("Expected each LoRA with its weight.")
    chosen = []
    for name, weight in (value or {}).items():
        adapter = catalogue.loras[one_of(name, catalogue.loras)]
        if model and not adapter.fits(model):
            raise UsageError(f"{name} was made for another model than {model.name}.")
        chosen.append((name, number(weight, -MOST_WEIGHT, MOST_WEIGHT)))
    return tuple(chosen)


def control(value, catalogue: Catalogue, model) -> tuple[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"name", "weight"}:
        raise UsageError("Expected a ControlNet with its weight.")
    adapter = catalogue.controls[one_of(value["name"], catalogue.controls)]
    if model and not adapter.fits(model):
        raise UsageError(f"{adapter.name} was made for another model than {model.name}.")
    return adapter.name, number(value["weight"], 0.0, MOST_WEIGHT)


def drawing(value, size: int) -> Tensor:
    """A data URL with a PNG of size x size -> (1,3,size,size) in [0,1]."""
    hint = sample.read_hint(io.BytesIO(png(value, size)), "the drawing")
    if not hint.any():
        raise UsageError("The drawing is empty: draw some edges, or switch control off.")
    return hint


def png(value, size: int) -> bytes:
    """The bytes behind a data URL; what is not of that size is refused before it is unpacked."""
    head, _, body = value.partition(",") if isinstance(value, str) else ("", "", "")
    try:
        data = base64.b64decode(body, validate=True) if head == "data:image/png;base64" else b""
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            found = image.size
    except (OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError):
        raise UsageError("A drawing is expected here, and this is no PNG.") from None
    if found != (size, size):
        raise UsageError(f"The drawing must be {size} × {size} pixels, as large as the picture; it is {found[0]} × {found[1]}.")
    return data


# ---- the same, typed

def command(asked: Asked, device: str = "auto") -> str:
    """The `course sample` that draws the same."""
    words = ["--model", asked.model, "--sampler", asked.sampler, "--steps", asked.steps, "--guidance", f"{asked.guidance:g}",
             "--seed", asked.seed]
    words += ["--count", asked.count] * (asked.count > 1)
    words += ["--negative-prompt", asked.negative_prompt] * bool(asked.negative_prompt)
    for name, weight in asked.loras:
        words += ["--lora", f"{name}:{weight:g}"]
    if asked.control:
        words += ["--control", f"{asked.control[0]}={DRAWING}:{asked.control[1]:g}"]
    words += ["--device", device] * (device != "auto")
    words += ["--out", OUT]
    # what begins with a dash would be read as an option, unless it stands behind --
    words = [*words, "--", asked.prompt] if asked.prompt.startswith("-") else [asked.prompt, *words]
    return " ".join(["course", "sample", *(quoted(str(word), word in (asked.prompt, asked.negative_prompt)) for word in words)])


def quoted(word: str, always: bool = False) -> str:
    """In double quotes where that means the same everywhere, on Windows too; else as POSIX shells want it."""
    if not always and shlex.quote(word) == word:
        return word
    return shlex.quote(word) if set(word) & set('"$`\\!%') else f'"{word}"'
