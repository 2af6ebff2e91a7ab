"""`course train`: one recipe, one folder with everything that came of it.

    run.json             the recipe as it was resolved, command, commit, environment, hash of the data
    checkpoint.safetensors, log.jsonl, tensorboard/      kept by the loop; the same command goes on from there
    model/               what was trained, ready to be loaded
    metrics.json, curves.png, samples.png, report.html   how it went, and what it can do
"""

import json
import platform
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from course import adapt, controlnet, files, pixels, presets, text, unet
from course.data import captions, latents, oracle
from course.demo import commit, device_name
from course.errors import CheckpointError, UsageError
from course.evaluation import figures, report
from course.pipeline import StableDiffusion
from course.training import adapters, attributes, autoencoder, checkpoint, clip, diffusion, flops, loop, perceptual, saved
from course.training.engine import EngineConfig, processes
from course.training.material import Material, material, vocabulary
from course.training.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Given:
    """What earlier runs made and a latent diffusion model builds on."""

    autoencoder: str | None = None         # run folder of `course train vae` or `vq`
    text_encoder: str | None = None        # frozen: see saved.text_encoder; None: a new one, trained jointly
    start: str | None = None               # run folder of the same recipe's model, to go on from its weights with a new budget
    model: str | None = None               # a whole pipeline, shipped or a run's, that is adapted or distilled

    def load(self, kind: str) -> tuple:
        """(autoencoder or None, (tokenizer, text encoder) or None); for what adapts a whole pipeline, that."""
        if kind == "ldm" and self.autoencoder is None:
            raise UsageError("a latent diffusion model needs an autoencoder: name its run with --autoencoder")
        if self.start is not None and not (Path(self.start) / "checkpoint.safetensors").is_file():
            raise UsageError(f"{self.start} is no run of `course train`: expected checkpoint.safetensors in it")
        if kind in adapt.TRAIN:
            return (StableDiffusion.load(self.model or "scenes64"),)
        return (saved.autoencoder(self.autoencoder) if kind == "ldm" else None,
                saved.text_encoder(self.text_encoder) if self.text_encoder and kind in ("ldm", "ddpm") else None)


def run(recipe: Recipe, out: str | Path, engine: EngineConfig, *, given: Given = Given(), resume: bool = True,
        tensorboard: bool = False, quiet: bool = False, root: str | Path = "datasets") -> dict:
    """Train one recipe into `out`; returns what it writes to metrics.json. Raises CourseError."""
    world = processes(engine)
    out, main = Path(out), world.is_main_process
    console = Console(quiet=quiet or not main)
    found = given.load(recipe.kind)                            # before anything is written: there may be nothing to find
    claim(out, recipe, given, resume)
    torch.manual_seed(recipe.seed)
    with world.main_process_first():                           # the others then find what it has read in the cache
        data = material(recipe.data, recipe.seed, recipe.prompts, root)
    if main:
        console.print(data.origin, highlight=False)
        note(out, recipe, engine, given, data)
    budget = loop.Budget(steps=recipe.steps) if recipe.steps is not None else loop.Budget(minutes=recipe.minutes)
    how = {"engine": engine, "resume": resume, "tensorboard": tensorboard, "quiet": console.quiet, "title": recipe.kind,
           "budget": budget, "start": given.start}
    train = {"vae": first, "vq": first, "ldm": denoiser, "ddpm": denoiser, "clip": contrastive,
             "features": attributed, **adapt.TRAIN}[recipe.kind]
    state, finish = train(recipe, data, out, how, *found)
    if not main:                                               # whoever is first draws, measures and reports
        return {}
    rows, measured = finish()
    metrics = {"kind": recipe.kind, **measured, "images_seen": state["images"], "seconds": state["seconds"],
               "steps": state["step"], "expected": recipe.expected, "commit": commit(), "device": device_name(engine.device),
               "seed": recipe.seed}
    files.write_json(out / "metrics.json", metrics)
    figures.logged(out / "curves.png", out / "log.jsonl", critic_is_heard(recipe))
    if list(rows) == ["drawn"]:
        figures.grid(out / "samples.png", data.test_captions, *rows["drawn"])
    else:
        figures.samples(out / "samples.png", data.test_captions, rows)
    report.write_run(out / "report.html", asdict(recipe), metrics, {n: out / f"{n}.png" for n in ("samples", "curves")})
    console.print(f"Report: {out / 'report.html'}", highlight=False)
    return metrics


def critic_is_heard(recipe: Recipe) -> dict[str, float]:
    """Minutes to mark in the curves."""
    loss = recipe.loss
    if not getattr(loss, "adversarial", 0.0):
        return {}
    return {"critic learns": loss.critic_learns * recipe.minutes, "critic counts": loss.critic_counts * recipe.minutes}


def claim(out: Path, recipe: Recipe, given: Given, resume: bool) -> None:
    """One folder, one recipe: going on with other settings would silently mix two runs."""
    path = out / "run.json"
    if resume and path.exists():
        try:
            noted = json.loads(path.read_text())
            before = noted["recipe"] | noted["given"]
        except (ValueError, KeyError):
            raise CheckpointError(f"{path} is damaged; delete {out} or choose another --out") from None
        now = json.loads(json.dumps(asdict(recipe) | asdict(given)))
        if other := [k for k in now if now[k] != before.get(k) and k != "expected"]:
            raise UsageError(f"{out} holds a run with another {', '.join(other)}; choose another --out, or delete it")


def note(out: Path, recipe: Recipe, engine: EngineConfig, given: Given, data: Material) -> None:
    """Write down what this run is, before it begins."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "system": platform.platform()}
    files.write_json(out / "run.json", {"recipe": asdict(recipe), "engine": asdict(engine), "given": asdict(given),
                                        "command": sys.argv[1:], "commit": commit(), "environment": versions,
                                        "data_sha256": data.hash()})


# ---- one function a kind. Each trains, and returns the loop's state and what is left for the first process to do: keep the
# model and measure it; that returns (rows of pictures, figures)

def first(recipe: Recipe, data: Material, out: Path, how: dict, *_):
    """An autoencoder, KL or VQ."""
    config, judge, size = presets.PIPELINES[recipe.model].vae, None, recipe.data.size
    if recipe.loss.perceptual:
        judge, words = perceptual.load(recipe.loss.perceptual_net, recipe.loss.perceptual_trunk)
        judge.to(how["engine"].device)
        Console(quiet=how["quiet"]).print(f"perceptual distance: {words}", highlight=False)
    model = presets.autoencoder(config)
    with torch.device("meta"):
        cost = flops.training(presets.autoencoder(config).eval(), torch.empty(1, 3, size, size))
    state = autoencoder.train(model, data.images, out, config=recipe.loop, loss=recipe.loss, perceptual=judge,
                              flops_per_image=cost, **how)

    def finish():
        device, sharded = how["engine"].device, how["engine"].sharded
        trained = checkpoint.average_of(out, presets.autoencoder(config).to(device), "autoencoder.") if sharded else model.float()
        real, found = pixels.to_unit(data.test_images), {}
        with torch.no_grad():
            z = torch.cat([latent_of(trained.encode(x.to(device))) for x in real.split(64)])
            rebuilt = torch.cat([trained.decode(part).clamp(-1, 1).cpu() for part in z.split(64)])
            # 1 / std of the latents: diffusion starts from unit variance
            sample = pixels.to_unit(data.images[:1024]).to(device)
            scale = float(1 / torch.cat([latent_of(trained.encode(x)) for x in sample.split(64)]).std())
        found["psnr"] = (10 * torch.log10(4 / (rebuilt - real).square().mean((1, 2, 3)))).mean().item()
        found["scaling_factor"] = scale
        if data.test_scenes is not None:
            found["oracle"] = oracle.rates(rebuilt, data.test_scenes)
        files.save_tensors(out / "model" / "vae.safetensors", trained.state_dict(), {"part": "vae"})
        files.write_json(out / "model" / "vae.json", asdict(replace(config, scaling_factor=scale)))
        return {"real": (real, [None] * len(real)), "rebuilt": (rebuilt, right(rebuilt, data))}, found
    return state, finish


def latent_of(encoded) -> Tensor:
    """The mode of a KL posterior; a codebook's encoder gives the latent itself."""
    return encoded if isinstance(encoded, Tensor) else encoded.mode()


def denoiser(recipe: Recipe, data: Material, out: Path, how: dict, vae, words):
    """A text-conditional U-Net on latents, or, without an autoencoder, on pixels."""
    config, encoder, device = presets.PIPELINES[recipe.model], None, how["engine"].device
    if vae is not None:
        vae.to(device)
        config = replace(config, vae=vae.config)
        with processes(how["engine"]).main_process_first():
            mean, std = latents.cached(out / "latents", vae, data.images, device)
        batches = diffusion.latent_batches(mean, std, vae.scaling_factor, recipe.loss.draw_latents)
    else:
        batches = diffusion.pixel_batches(data.images)
    if words is None:
        tokens = vocabulary(data, config.text, how["start"])
    else:
        tokens, encoder = words
        config = replace(config, text=encoder.config, unet=replace(config.unet, context_dim=encoder.config.width))
        encoder.to(device)
    ids = tokens([c for ways in data.captions for c in ways]).view(len(data.captions), -1, config.text.length)
    pipe = StableDiffusion(config, tokens, text_encoder=encoder, autoencoder=vae)
    conditions, nothing, learned = ids, tokens("")[0], pipe.text_encoder
    if encoder is not None:
        with processes(how["engine"]).main_process_first():
            conditions, learned = latents.Contexts(out / "captions", encoder, ids, device), None
        nothing = pipe.encode_text([""])["context"][0].cpu()                            # (N,D)
    loss = replace(recipe.loss, predict=config.predict)

    def keep() -> StableDiffusion | None:
        """Write the pipeline's folder, once, and return the pipeline; an unfinished model can be sampled, too."""
        if not processes(how["engine"]).is_main_process or not (out / "checkpoint.safetensors").exists():
            return None
        whole = pipe
        if how["engine"].sharded:
            whole = StableDiffusion(config, tokens, text_encoder=encoder, autoencoder=vae)
            checkpoint.average_of(out, diffusion.ConditionalDenoiser(whole.unet, None if encoder else whole.text_encoder))
        for module in whole.modules().values():
            module.float()
        whole.save(out / "model")
        return whole.to(device)

    try:
        state = diffusion.train(diffusion.ConditionalDenoiser(pipe.unet, learned), batches, conditions, nothing, pipe.schedule,
                                out, config=recipe.loop, loss=loss, flops_per_image=cost_of(config, learned is not None), **how)
    except BaseException:
        keep()
        raise

    def finish():
        whole, prompts = keep(), data.test_captions
        drawn = torch.cat([whole.decode(whole.latents(prompts[i: i + 32], steps=25, seed=recipe.seed + i,
                                                      guidance_scale=recipe.guidance)).cpu() for i in range(0, len(prompts), 32)])
        found = {"oracle": oracle.rates(drawn, data.test_scenes)} if data.test_scenes is not None else {}
        return {"drawn": (drawn, right(drawn, data))}, found
    return state, finish


def cost_of(config: "presets.PipelineConfig", learned_text: bool) -> int:
    """FLOPs of a training step for one picture."""
    side = config.image_size // (config.vae.factor if config.vae else 1)
    with torch.device("meta"):
        model = diffusion.ConditionalDenoiser(unet.UNet(config.unet), text.TextEncoder(config.text) if learned_text else None)
        words = torch.zeros(1, config.text.length, dtype=torch.int64) if learned_text else torch.empty(
            1, config.text.length, config.text.width)
        return flops.training(model, torch.empty(1, config.unet.in_channels, side, side), torch.empty(1), words)


def contrastive(recipe: Recipe, data: Material, out: Path, how: dict, *_):
    """CLIP: near misses are captions of the same picture with one word changed."""
    config = presets.PIPELINES[recipe.model].text
    tokens = vocabulary(data, config, how["start"])
    config = replace(config, projection=config.width, eos_id=tokens.end_id)

    def fresh():
        return clip.CLIP(clip.ImageEncoder(config.projection), text.TextEncoder(config))
    model = fresh()

    def choose(chosen: Tensor, step) -> Tensor:
        which, turns = step.integers(10_000).tolist(), step.integers(10_000).tolist()
        rows = []
        for i, way, turn in zip(chosen.tolist(), which, turns, strict=True):
            own = data.captions[i][way % len(data.captions[i])]
            rows += [own, *captions.near_misses(own, turn, 3)]
        return tokens(rows).view(len(chosen), 4, -1)
    state = clip.train(model, data.images, choose, out, config=recipe.loop, **how)

    def finish():
        trained = checkpoint.average_of(out, fresh()) if how["engine"].sharded else model.float()
        files.save_tensors(out / "model" / "clip.safetensors", trained.state_dict(), {"part": "clip"})
        files.write_json(out / "model" / "clip.json", asdict(config))
        tokens.save(out / "model" / "tokenizer.json")
        real, device = pixels.to_unit(data.test_images), next(trained.parameters()).device
        near = tokens([c for i, own in enumerate(data.test_captions) for c in (own, *captions.near_misses(own, i, 3))])
        with torch.no_grad():
            u, v = trained.directions(real.to(device), tokens(data.test_captions).to(device))           # (n,D), (n,D)
            w = trained.directions(real[:1].to(device), near.to(device))[1].view(len(u), 4, -1)         # (n,4,D)
        among_all = (u @ v.T).argmax(1).cpu() == torch.arange(len(u))
        among_near = torch.einsum("bd,bkd->bk", u, w).argmax(1).cpu() == 0
        found = {"right_among_all": among_all.float().mean().item(), "right_among_near_misses": among_near.float().mean().item()}
        return {"real": (real, among_near.tolist())}, found
    return state, finish


def attributed(recipe: Recipe, data: Material, out: Path, how: dict, *_):
    """The network in whose features pictures are compared: see evaluation.features."""
    if data.scenes is None:
        raise UsageError(f"what a picture shows is known of Scenes alone, got {recipe.data.source}")
    net = attributes.AttributeNet()
    state = attributes.train(net, data.images, attributes.answers(data.scenes), out, config=recipe.loop, **how)

    def finish():
        trained = (checkpoint.average_of(out, attributes.AttributeNet()) if how["engine"].sharded else net).float().eval()
        files.save_tensors(out / "model" / "features.safetensors", trained.state_dict(), {"part": "features"})
        real, device = pixels.to_unit(data.test_images), next(trained.parameters()).device
        with torch.no_grad():
            said = [{name: x.cpu() for name, x in trained(part.to(device)).items()} for part in real.split(256)]
            seen = torch.cat([trained.features(part.to(device)) for part in real.split(256)])              # (n,dim)
        found = {"scale": float(seen.square().mean() ** -0.5)}                          # to mean square 1
        files.write_json(out / "model" / "features.json", {"dim": trained.dim, "channels": trained.channels, **found})
        for name, wanted in attributes.answers(data.test_scenes).items():
            best = torch.cat([part[name] for part in said]).argmax(1)                   # (n,)
            found[f"right_{name}"] = (wanted[torch.arange(len(best)), best] > 0).float().mean().item()
        return {"real": (real, [None] * len(real))}, found
    return state, finish


def print_recipes(as_json: bool = False) -> None:
    """Every recipe with its size, its time and what it is expected to reach."""
    from rich.table import Table
    rows = []
    for kind, named in RECIPES.items():
        for name, recipe in named.items():
            rows.append({"kind": kind, "preset": name, "parameters": size_of(recipe), "data": recipe.data.source,
                         "minutes_on_two_cores": recipe.minutes, "gpu": "not measured on a GPU", "expected": recipe.expected})
    if as_json:
        print(json.dumps(rows))
        return
    table = Table()
    for column in ("", "preset", "parameters", "data", "minutes on two cores", "on a GPU", "expected"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["kind"], row["preset"], f"{row['parameters']:,}", *map(str, list(row.values())[3:]))
    Console().print(table)


def size_of(recipe: Recipe) -> int:
    """Parameters of what the recipe trains."""
    config = presets.PIPELINES[recipe.model]
    with torch.device("meta"):
        if recipe.kind in ("vae", "vq"):
            parts = [presets.autoencoder(config.vae)]
        elif recipe.kind == "features":
            parts = [attributes.AttributeNet()]
        elif recipe.kind == "clip":
            words = replace(config.text, projection=config.text.width)
            parts = [clip.ImageEncoder(words.projection), text.TextEncoder(words)]
        elif recipe.kind == "xl" and config.text_2:
            parts = [unet.UNet(config.unet), text.TextEncoder(config.text), text.TextEncoder(config.text_2)]
        elif recipe.kind in ("distill", "xl"):
            parts = [unet.UNet(config.unet)]
        elif recipe.kind == "controlnet":
            parts = [controlnet.ControlNet(controlnet.ControlNetConfig(config.unet, recipe.loss.hint_channels))]
        elif recipe.kind == "inversion":
            return recipe.loss.vectors * config.text.width
        elif recipe.kind == "lora":
            parts = [unet.UNet(config.unet), text.TextEncoder(config.text)]
            return sum(p.numel() for p in adapters.trained(recipe.loss, parts))
        else:
            parts = [unet.UNet(config.unet), text.TextEncoder(config.text)]
    return sum(p.numel() for part in parts for p in part.parameters())


def right(drawn: Tensor, data: Material) -> list[bool]:
    """For each picture, does the oracle see what was asked? Of real pictures nobody can say."""
    if data.test_scenes is None:
        return [None] * len(drawn)
    return [bool(oracle.score(reading, scene)["all"])
            for reading, scene in zip(oracle.read(drawn), data.test_scenes, strict=True)]
