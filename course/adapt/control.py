"""`course train controlnet`: a network beside a trained pipeline that makes it keep to a control picture."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from course import controlnet, files, presets, published
from course.adapt.drawn import draw, marks
from course.data import Scenes, hints, latents, oracle
from course.errors import CheckpointError, UsageError
from course.pipeline import SHIPPED, StableDiffusion
from course.training import control, diffusion
from course.training.engine import processes


def train(recipe, data, out: Path, how: dict, pipe: StableDiffusion):
    """A ControlNet; `out/model/controlnet.json` and `.safetensors` are what `load` opens."""
    device, loss = how["engine"].device, recipe.loss
    if data.scenes is None or pipe.config.vae is None or pipe.config.unet.added_dim:
        raise UsageError("control pictures are known of Scenes alone, and a latent diffusion model with one text encoder is "
                         f"needed, got {recipe.data.source} and {pipe.origin}")
    pipe.to(device)
    with processes(how["engine"]).main_process_first():
        mean, std = latents.cached(out / "latents", pipe.vae, data.images, device)
    batches = diffusion.latent_batches(mean, std, pipe.vae.scaling_factor, loss.draw_latents)
    drawer = Scenes(recipe.data.size)
    shown = torch.cat([(255 * hints.picture(drawer, data.scenes[i: i + 1024], loss.control)).round().byte()
                       for i in range(0, len(data.scenes), 1024)])                      # (n,3,S,S)
    ids = pipe.tokenizer([c for said in data.captions for c in said]).view(len(data.captions), -1, pipe.config.text.length)
    network = controlnet.ControlNet.from_unet(pipe.unet, loss.hint_channels)
    state = control.train(network, pipe, batches, shown, ids, pipe.tokenizer("")[0], out, config=recipe.loop, loss=loss, **how)

    def finish():
        save(network, out / "model", loss.control)
        asked = hints.picture(drawer, data.test_scenes, loss.control)                   # (n,3,S,S)
        drawn = {"without": draw(pipe, data.test_captions, 25, pipe.config.guidance_scale, recipe.seed),
                 "with": draw(pipe, data.test_captions, 25, pipe.config.guidance_scale, recipe.seed,
                              control=controlnet.Control(network.float().eval(), asked))}
        found = {name: hints.recovered(images, drawer, data.test_scenes) | oracle.rates(images, data.test_scenes)
                 for name, images in drawn.items()}
        rows = {"control": (2 * asked - 1, [None] * len(asked))}
        rows |= {name: (images, marks(images, data.test_scenes)) for name, images in drawn.items()}
        return rows, {"control": loss.control, "by_control": found, "oracle": found["with"]}
    return state, finish


def save(network: "controlnet.ControlNet", folder: Path, kind: str) -> None:
    files.save_tensors(folder / "controlnet.safetensors", network.state_dict(), {"part": "controlnet", "control": kind})
    config = controlnet.ControlNetConfig(network.config, network.hint_channels)
    files.write_json(folder / "controlnet.json", {"control": kind, **asdict(config)})


def load(source: str | Path) -> "controlnet.ControlNet":
    """A ControlNet: one that comes with the course, of a run of `course train controlnet`, or as released. CheckpointError."""
    places = (Path(source) / "model", Path(source), SHIPPED / source)
    folder = next((place for place in places if (place / "controlnet.json").is_file()), None)
    if folder is None:
        if not Path(source).exists():
            raise CheckpointError(f"no ControlNet in {source}: expected a run of `course train controlnet`, or a released one")
        return published.load_controlnet(source)
    tensors, _ = files.load_tensors(folder / "controlnet.safetensors")
    network = controlnet.ControlNet(presets.controlnet_from_dict(json.loads((folder / "controlnet.json").read_text("utf-8"))))
    files.load_into(network, tensors, str(folder / "controlnet.safetensors"))
    return network.eval()
