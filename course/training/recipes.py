"""What `course train` can train: frozen recipes by name, each with what to expect of it beside it.

A recipe is everything but the machine: model, data, loss, loop, budget. `--set loop.lr=1e-3` changes one value of it.
"""

import json
import types
import typing
from dataclasses import dataclass, fields, is_dataclass, replace

from course import lora
from course.errors import UsageError
from course.training import adapters, autoencoder, control, diffusion, distill, inversion, xl
from course.training.loop import LoopConfig

KINDS = {"vae": "an autoencoder with a KL penalty", "vq": "an autoencoder with a codebook",
         "ldm": "a latent diffusion model, on an autoencoder trained before", "ddpm": "a diffusion model of pixels",
         "clip": "a picture and a text encoder that agree", "features": "a network that measures how alike pictures are",
         "lora": "something new for a trained model, in a change of low rank",
         "controlnet": "a network beside a trained one, that reads a control picture",
         "inversion": "a word for something that a trained model can draw and has no word for",
         "xl": "SDXL in small: two text encoders, told of sizes and crops; and its refiner",
         "distill": "a trained model's pictures in fewer steps"}


@dataclass(frozen=True)
class Data:
    """Which pictures: "scenes", or what `data.images.load` knows."""

    source: str = "scenes"
    split: str = "train"
    size: int = 64
    pictures: int = 8_192                  # of Scenes: so many are drawn; of others: at most so many are read
    objects: tuple[int, int] = (1, 1)
    textures: tuple[str, ...] = ("plain",)
    degraded: float = 0.0
    shape: str | None = None               # in place of every shape of Scenes: something that a model has never seen


@dataclass(frozen=True)
class Recipe:
    kind: str
    model: str                             # in presets.PIPELINES; of it, this recipe trains its part
    expected: str                          # what came out, with which budget
    data: Data = Data()
    loop: LoopConfig = LoopConfig()
    minutes: float = 8.0                   # of training (of each round, when distilling), on two cores; a GPU does more
    steps: int | None = None               # instead of minutes
    seed: int = 0
    loss: ("autoencoder.AutoencoderLoss | diffusion.DiffusionLoss | adapters.LoRALoss | control.ControlLoss"
           " | inversion.InversionLoss | xl.XLLoss | distill.DistillLoss | None") = None
    guidance: float = 1.5                  # for the pictures of the report
    prompts: int = 64                      # unseen ones, drawn and read at the end


SMALL = LoopConfig(batch_size=16, lr=1.5e-3, warmup_images=1_000, ema_halflife=4_000)
FIRST = LoopConfig(batch_size=8, lr=3e-3, warmup_images=800, ema_halflife=2_000)
LONG = replace(SMALL, lr=1.2e-3, ema_halflife=10_000)
PIXEL = LoopConfig(batch_size=8, lr=3e-3, warmup_images=300, ema_halflife=1_000)
PAIRS = replace(SMALL, batch_size=32, warmup_images=4_000)                          # each picture among 128 captions
EMOJI = Data("emoji", pictures=10_000)                         # which folder or tar: --set data.source=...
SCENES = Data(pictures=49_152, objects=(1, 3), degraded=0.1)
SOFT = autoencoder.AutoencoderLoss(kl=0.15)
V = diffusion.DiffusionLoss("v")
LAYOUT = replace(V, t_mean=1.5)                         # what stands left of what is settled at t > 650 of 1000: practise that
MEANS = replace(LAYOUT, draw_latents=False)            # three of the eight channels of scenes64 have collapsed: noise

CONTROLLED = {"edges": "edges at one pixel .99, without .51, after 20 minutes on one core",
              "segmentation": "silhouettes .94, without .47, after 2,400 steps (a GPU, 200 s)",
              "depth": "silhouettes .94, without .47, after 2,400 steps (a GPU, 196 s)"}
INVERTED = {"ring": "all of 128 right after 3 minutes on one core",
            "heart": "none of 128 right: what the model cannot draw, no word can name"}

RECIPES: dict[str, dict[str, Recipe]] = {
    "vae": {
        "demo": Recipe("vae", "demo-latent", "29 dB after 3 minutes", loop=FIRST, minutes=3, loss=SOFT),
        "critic": Recipe("vae", "demo-latent", "31 dB after 10 minutes on one core; the critic does no harm", loop=FIRST,
                         minutes=10, loss=replace(SOFT, adversarial=0.5, critic_channels=32, critic_layers=2)),
        "emoji": Recipe("vae", "emoji", "24.7 dB on pictures kept apart, after 8 minutes", EMOJI, FIRST, 8, loss=SOFT),
        "scenes64": Recipe("vae", "scenes64", "33.6 dB after 50 minutes on one core; 99 % of three objects", SCENES, FIRST, 50,
                           loss=replace(SOFT, kl=0.05)),
    },
    "vq": {"demo": Recipe("vq", "demo-vq", "27 dB, 58 % read right, after 3 minutes on one core", loop=FIRST, minutes=3,
                          loss=autoencoder.AutoencoderLoss())},
    "ldm": {
        "demo": Recipe("ldm", "demo-latent", "88 % of prompts right after 5 minutes", loop=SMALL, minutes=5, loss=V),
        "emoji": Recipe("ldm", "emoji", "people and hearts after 12 minutes; the rest are blobs", EMOJI, SMALL, 12,
                        loss=V, guidance=2.5),
        "scenes64": Recipe("ldm", "scenes64", "one object: 100 %, two: 91 %, three: 80 %: five runs, 226 minutes on one core",
                           SCENES, LONG, 90, loss=MEANS),
    },
    "ddpm": {
        "demo": Recipe("ddpm", "demo-pixel", "nothing to be seen after 8 minutes on a CPU", loop=PIXEL, loss=V),
        "scenes64": Recipe("ddpm", "scenes64-pixel", "backgrounds and blobs after 80 minutes on one core", SCENES, PIXEL, 80,
                           loss=LAYOUT),
    },
    "clip": {
        "cond": Recipe("clip", "scenes64", "61 % among 4 near misses after 20 minutes on one core", SCENES, PAIRS, 20),
        # it scores what models conditioned on the other one draw: other weights to begin with, other pictures to learn from
        "score": Recipe("clip", "scenes64", "69 % among 4 near misses after 20 minutes on one core",
                        replace(SCENES, split="val"), PAIRS, 20, seed=1),
    },
    # it measures what others draw: other pictures, from another seed; textures and flaws, so that it notices them
    "features": {"fd-mini": Recipe("features", "scenes64", "shape and colour 72 %, all else 96 to 100 %, on one core",
                                   Data(split="val", pictures=24_576, objects=(1, 3), degraded=0.3),
                                   replace(SMALL, batch_size=32), 8, seed=11, prompts=1024)},
    "lora": {"heart": Recipe(
        "lora", "scenes64", "all of 128 right after 8 minutes on one core; old prompts lose 1 %",
        Data(pictures=2_048, shape="heart"), replace(SMALL, lr=3e-3, ema_halflife=4_000), 8, prompts=128,
        loss=adapters.LoRALoss(targets=lora.BROAD, replay=0.3))},
    "inversion": {shape: Recipe(
        "inversion", "scenes64", INVERTED[shape], Data(pictures=512, shape=shape),
        replace(SMALL, lr=5e-2, weight_decay=0.0, ema_halflife=1_000, warmup_images=300), 3, prompts=128,
        loss=inversion.InversionLoss()) for shape in INVERTED},
    "controlnet": {kind: Recipe(
        "controlnet", "scenes64", CONTROLLED[kind], Data(pictures=16_384, objects=(1, 3)), replace(SMALL, ema_halflife=6_000), 20,
        prompts=128, loss=control.ControlLoss(t_mean=0.8, control=kind)) for kind in CONTROLLED},
    "xl": {
        "base": Recipe("xl", "scenes64-xl", "97 % of 64 right after 20 minutes on one core, crops as told", Data(pictures=16_384),
                       LONG, 20, loss=xl.XLLoss(t_mean=0.7)),
        "refiner": Recipe("xl", "scenes64-xl-refiner", "no difference to be seen after 8 minutes on one core",
                          Data(pictures=16_384, degraded=0.4), SMALL, 8, loss=xl.XLLoss(refine_below=0.2)),
    },
    "distill": {"scenes64": Recipe(
        "distill", "scenes64", "89 % in 4 steps, 86 in 2, 74 in 1, as against 89 in 25; one core",
        Data(pictures=16_384, objects=(1, 3)), replace(LONG, lr=5e-4), 7, prompts=128, loss=distill.DistillLoss())},
}


def find(kind: str, name: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe, with each `key=value` of `overrides` applied. Raises UsageError that names what is known."""
    if kind not in RECIPES:
        raise UsageError(f"cannot train {kind!r}; expected one of {', '.join(RECIPES)}")
    if name not in RECIPES[kind]:
        raise UsageError(f"no recipe {name!r} for {kind}; expected one of {', '.join(RECIPES[kind])}")
    recipe = RECIPES[kind][name]
    for change in overrides or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise UsageError(f"--set expects key=value, got {change!r}")
        recipe = changed(recipe, key.strip(), value.strip(), key)
    return replace(recipe, loop=replace(recipe.loop, seed=recipe.seed))


def changed(config, path: str, value: str, said: str):
    """`config` with the field at the dotted `path` set to `value`, read as the field's type."""
    name, _, rest = path.partition(".")
    known = {f.name for f in fields(config)}
    if name not in known:
        raise UsageError(f"no setting {said!r}; expected one of {', '.join(sorted(known))}"
                         + (f" under {said.removesuffix(path).rstrip('.')}" if said != path else ""))
    before = getattr(config, name)
    if rest:
        if not is_dataclass(before):
            raise UsageError(f"{said!r}: {name} has no parts")
        return replace(config, **{name: changed(before, rest, value, said)})
    if is_dataclass(before):
        raise UsageError(f"{said!r} is a group; set one of {', '.join(f'{name}.{f.name}' for f in fields(before))}")
    return replace(config, **{name: _read(value, typing.get_type_hints(type(config))[name], said)})


def _read(value: str, kind, said: str):
    """`value` as `kind`: a number, a word, a tuple in JSON's or in plain comma form, or none."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union else (kind,)
    if value.lower() in ("none", "null") and type(None) in options:
        return None
    for option in options:
        try:
            if option is bool:
                return {"true": True, "false": False, "1": True, "0": False}[value.lower()]
            if option in (int, float, str):
                return option(value.replace("_", "") if option is int else value)
            if typing.get_origin(option) is tuple:
                items = json.loads(value) if value.startswith("[") else value.split(",")
                item = typing.get_args(option)[0]
                found = tuple(item(i) for i in items)
                wanted = typing.get_args(option)
                if wanted[-1] is not Ellipsis and len(found) != len(wanted):
                    raise ValueError
                return found
        except (ValueError, KeyError):
            continue
    expected = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    raise UsageError(f"{said} = {value!r} is no {expected}")
