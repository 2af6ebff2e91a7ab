"""What the studio offers: the models, LoRAs and ControlNets that come with the course, and those that the command names."""

import json
from dataclasses import dataclass
from pathlib import Path

from course import presets, samplers, unet
from course.data import vocabulary
from course.errors import CheckpointError, UsageError
from course.pipeline import SHIPPED

EXAMPLES = ("a large green ring on a pink background", "a small red circle left of a large blue square",
            "a large striped purple star on a cream background", "a small yellow cross above a small black triangle")
WORDS = {"sizes": vocabulary.SIZES, "textures": vocabulary.TEXTURES[1:], "colours": tuple(vocabulary.COLORS),
         "shapes": vocabulary.SHAPES, "places": ("in the center", "on the left", "on the right", "at the top", "at the bottom"),
         "relations": vocabulary.RELATIONS, "backgrounds": tuple(vocabulary.BACKGROUNDS),
         "qualities": (*vocabulary.DEGRADATIONS, "sharp")}


@dataclass(frozen=True)
class Model:
    """A pipeline, by the name or path that `--model` takes; what the form shows of it before it is loaded."""

    name: str
    size: int                       # pixels
    steps: int
    guidance: float
    about: str
    unet: unet.UNetConfig           # adapters fit where it is the same


@dataclass(frozen=True)
class Adapter:
    """A LoRA or a ControlNet, by the name or path that `--lora` and `--control` take."""

    name: str
    about: str
    unet: unet.UNetConfig | None    # that it was made for; None: not known before it is loaded, so any model may try

    def fits(self, model: Model) -> bool:
        return self.unet in (None, model.unet)


@dataclass(frozen=True)
class Catalogue:
    models: dict[str, Model]
    loras: dict[str, Adapter]
    controls: dict[str, Adapter]

    def told(self) -> dict:
        """What the page has to know, as JSON."""
        return {"models": {m.name: {"size": m.size, "steps": m.steps, "guidance": m.guidance, "about": m.about,
                                    "loras": [a.name for a in self.loras.values() if a.fits(m)],
                                    "controls": [a.name for a in self.controls.values() if a.fits(m)]}
                           for m in self.models.values()},
                "words": WORDS, "examples": EXAMPLES, "samplers": samplers.SAMPLERS}


def collect(models: list[str], loras: list[str], controls: list[str]) -> Catalogue:
    """Those named come first, then all that are shipped. Raises CheckpointError or UsageError for one that is not there."""
    shipped = sorted(p.parent.name for p in SHIPPED.glob("*/provenance.json"))
    pipelines = [name for name in shipped if (SHIPPED / name / "pipeline.json").is_file()]
    known = [model(name) for name in dict.fromkeys([*models, "scenes64", *pipelines])]
    found = Catalogue({m.name: m for m in known if m is not None}, {}, {})
    for name in dict.fromkeys([*loras, *(n for n in shipped if (SHIPPED / n / "lora.safetensors").is_file())]):
        found.loras[name] = lora(name)
    for name in dict.fromkeys([*controls, *(n for n in shipped if (SHIPPED / n / "controlnet.json").is_file())]):
        found.controls[name] = control(name)
    for name in models:
        if name not in found.models:
            raise UsageError(f"{name} is a refiner: it goes on from where another model stopped, and begins no picture")
    return found


def model(name: str) -> Model | None:
    """None for a refiner, which cannot draw alone."""
    config = read(name, "pipeline.json")
    if config is None:
        raise CheckpointError(f"no model of the course in {name}: expected pipeline.json, in it or in its folder `model`")
    config = presets.PipelineConfig.from_dict(config)
    if config.unet.added_dim and config.text_2 is None:
        return None
    about = (f"distilled to {config.steps} steps" if config.steps else "diffuses pixels" if config.vae is None else
             "SDXL in small, with two text encoders" if config.text_2 else "diffuses latents")
    return Model(name, config.image_size, config.steps or 25, config.guidance_scale, about, config.unet)


def lora(name: str) -> Adapter:
    made_for = ((read(name, "provenance.json") or {}).get("recipe") or {}).get("model")
    base = read(made_for, "pipeline.json") if made_for else None
    if base is None:
        if not Path(name).exists():
            raise CheckpointError(f"no LoRA in {name}: expected a run of `course train lora`, or a file")
        return Adapter(name, "yours", None)
    data = read(name, "provenance.json")["recipe"]["data"]
    return Adapter(name, f"has learned what a {data.get('shape') or 'new thing'} is",
                   presets.PipelineConfig.from_dict(base).unet)


def control(name: str) -> Adapter:
    config = read(name, "controlnet.json")
    if config is None:
        if not Path(name).exists():
            raise CheckpointError(f"no ControlNet in {name}: expected a run of `course train controlnet`, or a released one")
        return Adapter(name, "yours", None)
    return Adapter(name, config["control"], presets.controlnet_from_dict(config).unet)


def read(source: str, file: str) -> dict | None:
    """A JSON file of a run, a folder, or something shipped, looked for where `load` looks; None where there is none."""
    for place in (Path(source) / "model", Path(source), SHIPPED / source):
        if (place / file).is_file():
            try:
                return json.loads((place / file).read_text("utf-8"))
            except ValueError as error:
                raise CheckpointError(f"{place / file} is damaged: {error}") from None
    return None
