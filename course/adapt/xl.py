"""`course train xl`: SDXL in small, on a trained pipeline's autoencoder; the base, then a refiner on the base's encoder."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from course import pixels, presets, sdxl
from course.adapt.drawn import marks
from course.data import captions, hints, latents, oracle
from course.errors import UsageError
from course.pipeline import StableDiffusion
from course.training import diffusion, xl
from course.training.engine import processes
from course.training.material import material, vocabulary


def train(recipe, data, out: Path, how: dict, earlier: StableDiffusion):
    """`out/model` is a pipeline: with two text encoders, or, of a refiner, with the second one of `earlier`."""
    device, loss, config = how["engine"].device, recipe.loss, presets.PIPELINES[recipe.model]
    refiner = loss.refine_below is not None
    if refiner and earlier.text_encoder_2 is None:
        raise UsageError(f"a refiner reads the second text encoder of its base, and {earlier.origin} has one only; "
                         "name the base with --model")
    config = replace(config, vae=earlier.vae.config)
    if refiner:
        tokens, images = [earlier.tokenizer_2], data.images
        size = recipe.data.size
        numbers = torch.tensor([[size, size, 0, 0, xl.BAD if s.degradation else xl.GOOD] for s in data.scenes]).float()  # (n,5)
        config = replace(config, text=earlier.text_encoder_2.config)
        pipe = StableDiffusion(config, tokens[0], text_encoder=earlier.text_encoder_2, autoencoder=earlier.vae)
    else:
        tokens = [vocabulary(data, c) for c in (config.text, config.text_2)]
        images, numbers = xl.spoilt(data.images, loss, recipe.seed)
        config = replace(config, text_2=replace(config.text_2, eos_id=tokens[1].end_id))
        pipe = StableDiffusion(config, tokens[0], autoencoder=earlier.vae, tokens_2=tokens[1])
    pipe.to(device)
    with processes(how["engine"]).main_process_first():
        mean, std = latents.cached(out / "latents", pipe.vae, images, device)
    batches = diffusion.latent_batches(mean, std, pipe.vae.scaling_factor, loss.draw_latents)
    if refiner:                                                # what is wrong with a picture says the score, not the prompt
        said = [captions.full_captions(replace(scene, degradation=None)) for scene in data.scenes]
        data = material(replace(recipe.data, degraded=0.0, pictures=1), recipe.seed, recipe.prompts)
    else:
        said = data.captions
    ids = [t([c for ways in said for c in ways]).view(len(said), -1, t.length) for t in tokens]
    encoders = [pipe.text_encoder] if refiner else [pipe.text_encoder, pipe.text_encoder_2]
    for module in encoders if refiner else []:
        module.requires_grad_(False)
    denoiser = xl.XLDenoiser(pipe.unet, encoders, frozen=refiner)
    state = xl.train(denoiser, batches, ids, numbers, pipe.schedule, out, config=recipe.loop, loss=loss, **how)

    def finish():
        for module in pipe.modules().values():
            module.float().eval()
        pipe.save(out / "model")
        if refiner:
            return refined(earlier.to(device), pipe, data, recipe)
        return told(pipe, data, recipe)
    return state, finish


def told(pipe: StableDiffusion, data, recipe):
    """What comes out when the model is told of originals and crops, beside pictures that have been spoilt in that way."""
    rows, found, side = {}, {"by_original": {}, "by_crop": {}}, recipe.data.size
    real = pixels.to_bytes(pixels.to_unit(data.test_images))
    for original in (*xl.ORIGINALS, side):
        drawn = draw(pipe, data.test_captions, recipe.seed, {"original": (original, original)})
        shown = pixels.to_unit(xl.enlarged(xl.shrunk(real, original), side))            # (n,3,S,S)
        rebuilt = pipe.decode(pipe.encode_image(shown.to(pipe.device))).cpu()
        found["by_original"][original] = look(drawn, data.test_scenes) | {
            "real_steepness": steepness(shown), "rebuilt_steepness": steepness(rebuilt)}
        rows[f"original of {original}"] = drawn, marks(drawn, data.test_scenes)
    most = round(xl.ZOOM * side) - side
    for crop in ((0, 0), (0, most), (most, 0), (most, most)):
        drawn = draw(pipe, data.test_captions, recipe.seed, {"crop": crop})
        wide = pixels.to_unit(xl.enlarged(real, round(xl.ZOOM * side)))[:, :, crop[0]: crop[0] + side, crop[1]: crop[1] + side]
        found["by_crop"]["{},{}".format(*crop)] = look(drawn, data.test_scenes) | {
            f"real_{key}": value for key, value in look(wide, data.test_scenes).items() if key != "all"}
        rows["crop at {}, {}".format(*crop)] = drawn, [None] * len(drawn)
    found["oracle"] = oracle.rates(rows[f"original of {side}"][0], data.test_scenes)
    return rows, found


def refined(base: StableDiffusion, refiner: StableDiffusion, data, recipe):
    """The base alone, and with the refiner for the last steps, as many in all."""
    rows, found, share = {}, {}, 1 - recipe.loss.refine_below
    alone = draw(base, data.test_captions, recipe.seed, {})
    parts = []
    for i in range(0, len(data.test_captions), 32):
        x0 = sdxl.refined(base, refiner, data.test_captions[i: i + 32], share, steps=25, seed=recipe.seed + i)
        parts.append(refiner.decode(x0).cpu())
    for name, drawn in (("base", alone), ("base and refiner", torch.cat(parts))):
        rows[name] = drawn, marks(drawn, data.test_scenes), data.test_captions
        found[name] = look(drawn, data.test_scenes)
    found["real"] = look(pixels.to_unit(data.test_images), data.test_scenes)
    return rows, {"by_way": found, "oracle": oracle.rates(rows["base and refiner"][0], data.test_scenes)}


def look(images: Tensor, scenes: list) -> dict[str, float]:
    """How often all is right; how steep edges are; how often an object touches the border, and where it is on average."""
    mask = hints.silhouettes(images).float()                                            # (n,S,S)
    places = (torch.arange(mask.shape[-1]) + 0.5) / mask.shape[-1]
    weight = mask.sum((1, 2)).clamp(min=1)
    rim = torch.cat([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], dim=1)    # (n,4S)
    return {"all": sum(marks(images, scenes)) / len(scenes), "steepness": steepness(images),
            "cut": (rim.sum(1) > 1).float().mean().item(),
            "x": ((mask * places).sum((1, 2)) / weight).mean().item(),
            "y": ((mask * places[:, None]).sum((1, 2)) / weight).mean().item()}


def steepness(images: Tensor) -> float:
    """The steepest step of colour from a pixel to the next but one, in 0 ... sqrt(3), on average over pictures."""
    return (hints.steep(images).flatten(1).max(1).values * 2).mean().item()


def draw(pipe: StableDiffusion, prompts: list[str], seed: int, sizes: dict) -> Tensor:
    """(n,3,S,S) on the CPU."""
    return torch.cat([pipe.decode(pipe.latents(prompts[i: i + 32], steps=25, seed=seed + i, sizes=sizes)).cpu()
                      for i in range(0, len(prompts), 32)])
