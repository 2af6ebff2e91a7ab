"""`course sample`: pictures from words, from other pictures, into the holes of pictures; and what the oracle reads in them."""

import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from course import __version__, animation, controlnet, files, pixels, sdxl
from course.adapt import control, inversion, low_rank
from course.data import images as pictures
from course.data import oracle
from course.errors import UsageError
from course.evaluation import figures
from course.options import weighted
from course.pipeline import StableDiffusion, to_pil
from course.training.progress import Progress

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL_WORDS = {"a", "an", "the", "of", "on", "in", "at", "and", "with"}             # not worth a heat map


@dataclass(frozen=True)
class Wish:
    """What to draw and what to write; as typed, so that one place says what is wrong with it."""

    prompts: list[str]
    out: Path
    seeds: list[int]                       # every prompt is drawn with every seed
    size: str | None = None
    image: Path | None = None
    mask: Path | None = None
    interval: str | None = None
    attention: Path | None = None          # where to draw heat maps of the first picture ...
    words: str | None = None               # ... and of which words
    latents: Path | None = None
    original: str | None = None            # SDXL: the size that the picture should look as if it had been taken in ...
    crop: str | None = None                # ... and what should be cut off at the top and on the left
    refiner: StableDiffusion | None = None  # who walks the last part of the way, behind `hand_over`
    hand_over: float = 0.8
    note: dict = field(default_factory=dict)  # what to write into a PNG beside prompts, seeds and settings
    animate: Path | None = None            # where to show how the pictures come out of the noise

    @property
    def pairs(self) -> list[tuple[str, int]]:
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]


def equip(pipe: StableDiffusion, loras: list[tuple[str, float]], words: list[str]) -> None:
    """Put LoRAs (source, weight) beside the layers of `pipe`, and teach it new words. Raises UsageError, CheckpointError."""
    for number, (path, weight) in enumerate(loras):
        if path in (before for before, _ in loras[:number]):
            raise UsageError(f"--lora {path} is there twice; one weight, such as {path}:0.8, says how much of it")
        low_rank.add(pipe, path, f"lora{number + 1}", weight)
    for given in words:
        inversion.add(pipe, given)


def run(pipe: StableDiffusion, wish: Wish, how: dict, quiet: bool = False) -> dict:
    """Draw, write, read back. `how` goes to `generate` as it is. Returns what to print."""
    check_out(wish.out, *FORMATS)
    if wish.attention:
        check_out(wish.attention, ".png")
    if wish.animate:
        check_out(wish.animate, *animation.FORMATS)
    how = settings(wish, how)
    with Progress(f"{len(wish.pairs)} pictures" if len(wish.pairs) > 1 else "a picture", quiet) as progress:
        film = animation.Film()
        x0 = draw(pipe, wish, how, progress=progress.update, **({"callback": film} if wish.animate else {}))
    images = pipe.decode(x0).cpu()                                                      # (B,3,H,W)
    write_grid(images, wish.out, len(wish.seeds), note(wish, how))
    told = {"out": str(wish.out), "prompt": wish.prompts[0] if len(wish.prompts) == 1 else wish.prompts,
            "seed": wish.seeds[0] if len(wish.seeds) == 1 else wish.seeds, "model": pipe.origin}
    if wish.latents:
        files.save_tensors(wish.latents, {"x0": x0}, {"prompts": [p for p, _ in wish.pairs], "seeds": [s for _, s in wish.pairs]})
        told["latents"] = str(wish.latents)
    if wish.animate:
        told["animate"] = str(wish.animate)
        # prompts below each other are shown in a row: pages are wide
        columns = len(wish.seeds) if len(wish.seeds) > 1 else min(4, len(wish.prompts))
        shown = animation.frames(film.steps, x0.cpu(), lambda x: pipe.decode(x.to(pipe.device)).cpu(), lambda x: grid(x, columns))
        told["animation"] = animation.write(wish.animate, shown)
    if wish.attention:
        draw_attention(pipe, wish, how)
        told["attention"] = str(wish.attention)
    readable = images.shape[2] == images.shape[3] >= 32                                 # the oracle reads square pictures
    return told | {"oracle": [describe(reading) for reading in oracle.read(images)] if readable else []}


def settings(wish: Wish, how: dict) -> dict:
    """`how`, and what `generate` is told of the wish besides. Raises UsageError for what was typed wrong."""
    if any(not prompt.strip() for prompt in wish.prompts):
        raise UsageError("the prompt is empty")
    if not 1 <= len(wish.prompts) * len(wish.seeds) <= 256:
        raise UsageError(f"prompts times seeds must lie in 1 ... 256, got {len(wish.prompts)} times {len(wish.seeds)}")
    height, width = size_of(wish.size)
    interval = wish.interval and tuple(numbers(wish.interval, "--guidance-interval"))
    how = how | {"height": height, "width": width, "guidance_interval": interval,
                 "image": read_image(wish.image) if wish.image else None, "mask": read_mask(wish.mask) if wish.mask else None}
    if wish.original or wish.crop:
        how["sizes"] = ({"original": size_of(wish.original)} if wish.original else {}) | (
            {"crop": tuple(numbers(wish.crop, "--crop", int))} if wish.crop else {})
    return how


def draw(pipe: StableDiffusion, wish: Wish, how: dict, **watch) -> Tensor:
    """x_0 (B,C,h,w) of every prompt with every seed, from complete `settings`; watch: `progress`, `callback`, see `latents`."""
    texts, how = [prompt for prompt, _ in wish.pairs], how | {"seed": [seed for _, seed in wish.pairs]} | watch
    if wish.refiner:
        return sdxl.refined(pipe, wish.refiner, texts, wish.hand_over, **how)
    return pipe.latents(texts, **how)


def draw_attention(pipe: StableDiffusion, wish: Wish, how: dict) -> None:
    """The first picture again, with heat maps of its prompt's words."""
    prompt = wish.prompts[0]
    said = dict.fromkeys(re.findall(r"\w+", prompt.lower()))                            # each once, in their order
    words = [w.strip() for w in wish.words.split(",")] if wish.words else [w for w in said if w not in SMALL_WORDS]
    image, maps = pipe.attention_maps(prompt, words, seed=wish.seeds[0], **how)
    figures.attention(wish.attention, prompt, image, words, maps, columns=5)


# ---- what was typed

def numbers(text: str, option: str, kind: type = float) -> list:
    """"1,3,7.5" -> [1.0, 3.0, 7.5]. Raises UsageError."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} takes numbers with commas between, such as 1,3,5; got {text!r}") from None


def size_of(text: str | None) -> tuple[int | None, int | None]:
    """"64" or "96x64", width first as in picture files -> (height, width). Raises UsageError."""
    if text is None:
        return None, None
    if not (found := re.fullmatch(r"(\d+)(?:x(\d+))?", text)):
        raise UsageError(f"--size takes a number of pixels, or width x height such as 96x64; got {text!r}")
    return int(found[2] or found[1]), int(found[1])


def check_out(path: Path, *endings: str) -> None:
    if path.suffix.lower() not in endings:
        raise UsageError(f"the file to write must end in {', '.join(endings)}, got {path}")


def read_image(path: Path) -> Tensor:
    """A picture file -> (1,3,H,W) in [-1,1]; what is transparent becomes white. Raises UsageError where there is none."""
    try:
        with Image.open(path) as image:
            rgb = pictures.opaque(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"no picture can be read from {path}: {error}") from None
    return pixels.to_unit(torch.from_numpy(np.array(rgb)).permute(2, 0, 1))[None]


def read_mask(path: Path) -> Tensor:
    """A black and white picture -> (1,1,H,W): white, where the picture may change, is 1. Raises UsageError for gray."""
    values = read_image(path)
    found = values.unique()
    if not set(found.tolist()) <= {-1.0, 1.0}:
        raise UsageError(f"{path} is no mask: expected black, where the picture stays, and white, where it may change, "
                         f"got {len(found)} different values; JPEG and soft brushes make such, a PNG can be pure")
    return (values[:, :1] > 0).float()


def read_control(given: str, part: str, guess: bool, device: str) -> controlnet.Control:
    """"NETWORK=PICTURE", perhaps with ":WEIGHT" behind it. Raises UsageError, also for a picture that is none of gray or RGB."""
    network, equals, rest = given.partition("=")
    if not equals:
        raise UsageError(f"--control takes a network and a picture, such as scenes64-edges=edges.png, got {given!r}")
    path, weight = weighted(rest)
    share = numbers(part, "--control-part")
    if len(share) != 2:
        raise UsageError(f"--control-part takes two shares such as 0,0.6, got {part!r}")
    return controlnet.Control(control.load(network).to(device), read_hint(path, path), weight, *share, guess)


def read_hint(picture: str | Path | BinaryIO, name: str | Path) -> Tensor:
    """What a ControlNet is shown, (1,3,H,W) in [0,1]. Raises UsageError, which calls the picture by `name`."""
    try:
        with Image.open(picture) as image:
            # programs to draw with save opaque pictures with an alpha, too
            opaque = image.mode in ("1", "L", "RGB") or image.mode == "RGBA" and image.getextrema()[3][0] == 255
            mode, pixel = image.mode, torch.from_numpy(np.array(image.convert("RGB")))   # (H,W,3) uint8
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"no picture can be read from {name}: {error}") from None
    if not opaque:
        raise UsageError(f"a control picture must be black and white, gray or RGB, got {name} with mode {mode}, not all opaque")
    return pixel.permute(2, 0, 1)[None].float() / 255                                    # (1,3,H,W)


# ---- what is written

def write_grid(images: Tensor, path: Path, columns: int, said: dict) -> None:
    """Pictures (B,3,H,W) in [-1,1] in one file, atomically; `said` goes into a PNG."""
    form = FORMATS[path.suffix.lower()]
    page = io.BytesIO()
    grid(images, columns).save(page, format=form, **({"pnginfo": inside(said)} if form == "PNG" else {}))
    files.write_bytes(path, page.getvalue())


def grid(images: Tensor, columns: int) -> Image.Image:
    """Pictures (B,3,H,W) in [-1,1], `columns` a row, small ones enlarged by a whole number."""
    drawn = to_pil(images)
    zoom, line = max(1, 256 // drawn[0].width), 4
    width, height = drawn[0].width * zoom, drawn[0].height * zoom
    rows = -(-len(drawn) // columns)
    page = Image.new("RGB", (columns * (width + line) - line, rows * (height + line) - line), "white")
    for i, picture in enumerate(drawn):
        place = (i % columns * (width + line), i // columns * (height + line))
        page.paste(picture.resize((width, height), Image.NEAREST), place)
    return page


def note(wish: Wish, how: dict) -> dict:
    """What a picture should be able to tell of how it was made."""
    plain = {name: value for name, value in how.items() if isinstance(value, str | int | float | tuple)}
    return {"prompts": wish.prompts, "seeds": wish.seeds} | plain | wish.note


def inside(said: dict) -> PngInfo:
    """Text that a PNG carries: the prompts, where any viewer looks, and all of `said` as JSON under "course"."""
    text = PngInfo()
    text.add_itxt("Description", "; ".join(said["prompts"]).encode("utf-8", "replace").decode())     # as typed: may be no Unicode
    text.add_itxt("Software", f"Latent Diffusion, from scratch {__version__}")
    text.add_itxt("course", json.dumps(said))
    return text


def describe(reading: "oracle.Reading") -> str:
    """A reading in words; an abstention is a question mark."""
    things = [" ".join(word or "?" for word in (o.size, o.color, o.shape)) + f" ({o.position})" for o in reading.objects]
    return f"{' and '.join(things) or 'nothing'} on {reading.background or '?'}"
