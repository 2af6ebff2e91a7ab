"""`course train`: one recipe, one folder with everything that came of it.

    run.json             the recipe as it was resolved, command, commit, environment, hash of the data
    checkpoint.safetensors, log.jsonl, tensorboard/      kept by the loop; the same command goes on from there
    model/               what was trained, ready to be loaded
    metrics.json, curves.png, samples.png, report.html   how it went, and what it can do
"""

import hashlib
import json
import platform
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from course import files, pixels, presets, text, tokenizer, unet
from course.data import Scenes, captions, images, latents, oracle
from course.demo import commit, device_name
from course.errors import CheckpointError, UsageError
from course.evaluation import figures, report
from course.pipeline import StableDiffusion
from course.training import autoencoder, clip, diffusion, loop
from course.training.engine import EngineConfig
from course.training.recipes import RECIPES, Data, Recipe


@dataclass
class Material:
    """images (n,3,S,S) uint8, K captions of each, and of the pictures kept apart: images, captions and, of Scenes, scenes."""

    images: Tensor
    captions: list[list[str]]
    test_images: Tensor
    test_captions: list[str]
    test_scenes: list | None = None

    def hash(self) -> str:
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()


def material(data: Data, seed: int, prompts: int, root: str | Path = "datasets") -> Material:
    """Draw Scenes, or read real pictures; of those the last ones are kept apart."""
    if data.source == "scenes":
        kind = dict(objects=data.objects, textures=data.textures, degraded=data.degraded)
        train, test = (Scenes(data.size, split, seed, **kind) for split in ("train", "test"))
        drawn = torch.cat([pixels.to_bytes(train.images(range(i, min(i + 1024, data.pictures))))
                           for i in range(0, data.pictures, 1024)])                     # (n,3,S,S)
        said = [[*2 * captions.full_captions(s), captions.caption(s, short=True)] for s in train.scenes(range(data.pictures))]
        most = max(map(len, said))
        said = [(most * ways)[:most] for ways in said]         # as many for all: several objects have fewer word orders
        return Material(drawn, said, pixels.to_bytes(test.images(range(prompts))), test.captions(range(prompts), full=True),
                        test.scenes(range(prompts)))
    found = images.load(data.source, data.size, root=root, limit=data.pictures)
    Console().print(found.report(), highlight=False)
    apart = min(prompts, len(found) // 10)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    keep, away = order[apart:], order[:apart]
    most = min(5, max(map(len, found.captions)))
    said = [(most * found.captions[i])[:most] for i in keep.tolist()]
    return Material(found.images[keep], said, found.images[away], [found.captions[i][0] for i in away.tolist()])


def run(recipe: Recipe, out: str | Path, engine: EngineConfig, *, first_stage: str | Path | None = None, resume: bool = True,
        tensorboard: bool = False, quiet: bool = False, root: str | Path = "datasets") -> dict:
    """Train one recipe into `out`; returns what it writes to metrics.json. Raises CourseError."""
    out, console = Path(out), Console(quiet=quiet)
    claim(out, recipe, resume)
    torch.manual_seed(recipe.seed)
    data = material(recipe.data, recipe.seed, recipe.prompts, root)
    how = {"engine": engine, "resume": resume, "tensorboard": tensorboard, "quiet": quiet, "title": f"{recipe.kind}"}
    budget = loop.Budget(minutes=recipe.minutes)
    note(out, recipe, engine, data)
    state, rows, found = {"vae": first, "vq": first, "ldm": denoiser, "ddpm": denoiser, "clip": contrastive}[recipe.kind](
        recipe, data, out, budget, how, first_stage)
    metrics = {"kind": recipe.kind, **found, "images_seen": state["images"], "seconds": state["seconds"], "steps": state["step"],
               "expected": recipe.expected, "commit": commit(), "device": device_name(engine.device), "seed": recipe.seed}
    files.write_json(out / "metrics.json", metrics)
    figures.curves(out / "curves.png", {recipe.kind: state["curve"]})
    figures.samples(out / "samples.png", data.test_captions, rows)
    report.write_run(out / "report.html", asdict(recipe), metrics, {n: out / f"{n}.png" for n in ("samples", "curves")})
    console.print(f"Report: {out / 'report.html'}", highlight=False)
    return metrics


def claim(out: Path, recipe: Recipe, resume: bool) -> None:
    """One folder, one recipe: going on with other settings would silently mix two runs."""
    path = out / "run.json"
    if resume and path.exists():
        try:
            before = json.loads(path.read_text())["recipe"]
        except (ValueError, KeyError):
            raise CheckpointError(f"{path} is damaged; delete {out} or choose another --out") from None
        now = json.loads(json.dumps(asdict(recipe)))
        if other := [k for k in now if now[k] != before.get(k) and k != "expected"]:
            raise UsageError(f"{out} holds a run with another {', '.join(other)}; choose another --out, or delete it")


def note(out: Path, recipe: Recipe, engine: EngineConfig, data: Material) -> None:
    """Write down what this run is, before it begins."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "system": platform.platform()}
    files.write_json(out / "run.json", {"recipe": asdict(recipe), "engine": asdict(engine), "command": sys.argv[1:],
                                        "commit": commit(), "environment": versions, "data_sha256": data.hash()})


# ---- one function a kind: train, keep the model, measure; each returns (loop state, rows of pictures, figures)

def first(recipe: Recipe, data: Material, out: Path, budget, how, _):
    """An autoencoder, KL or VQ."""
    config = presets.PIPELINES[recipe.model].vae
    model = presets.autoencoder(config)
    state = autoencoder.train(model, data.images, out, budget, recipe.loop, recipe.loss, **how)
    real, found = pixels.to_unit(data.test_images), {}
    device = next(model.parameters()).device
    with torch.no_grad():
        z = torch.cat([latent_of(model.encode(x.to(device))) for x in real.split(64)])
        rebuilt = torch.cat([model.decode(part).clamp(-1, 1).cpu() for part in z.split(64)])
        # 1 / std of the latents: diffusion starts from unit variance
        sample = pixels.to_unit(data.images[:1024]).to(device)
        model.scaling_factor = float(1 / torch.cat([latent_of(model.encode(x)) for x in sample.split(64)]).std())
    found["psnr"] = (10 * torch.log10(4 / (rebuilt - real).square().mean((1, 2, 3)))).mean().item()
    found["scaling_factor"] = model.scaling_factor
    if data.test_scenes is not None:
        found["oracle"] = oracle.rates(rebuilt, data.test_scenes)
    config = replace(config, scaling_factor=model.scaling_factor)
    files.save_tensors(out / "model" / "vae.safetensors", model.state_dict(), {"part": "vae"})
    files.write_json(out / "model" / "vae.json", asdict(config))
    return state, {"real": (real, [True] * len(real)), "rebuilt": (rebuilt, right(rebuilt, data))}, found


def latent_of(encoded) -> Tensor:
    """The mode of a KL posterior; a codebook's encoder gives the latent itself."""
    return encoded if isinstance(encoded, Tensor) else encoded.mode()


def load_first_stage(folder: str | Path) -> torch.nn.Module:
    """What `course train vae` or `vq` left in its run folder."""
    folder = Path(folder)
    path = folder / "model" / "vae.json"
    if not path.is_file():
        raise CheckpointError(f"no autoencoder in {folder}: expected {path}; train one with `course train vae`")
    try:
        config = presets.vae_from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    model = presets.autoencoder(config)
    files.load_into(model, files.load_tensors(folder / "model" / "vae.safetensors")[0], str(folder / "model"))
    return model.eval().requires_grad_(False)


def denoiser(recipe: Recipe, data: Material, out: Path, budget, how, first_stage):
    """A text-conditional U-Net on latents, or, without a first stage, on pixels."""
    config, vae = presets.PIPELINES[recipe.model], None
    if recipe.kind == "ldm":
        if first_stage is None:
            raise UsageError("a latent diffusion model needs an autoencoder: name its run with --autoencoder")
        vae = load_first_stage(first_stage).to(how["engine"].device)
        config = replace(config, vae=vae.config)
        mean, std = latents.cached(out / "latents", vae, data.images, how["engine"].device)
        batches = diffusion.latent_batches(mean, std, vae.scaling_factor)
    else:
        batches = diffusion.pixel_batches(data.images)
    words = sorted({caption for ways in data.captions[:4096] for caption in ways})
    tokens = tokenizer.Tokenizer.train(words, num_merges=config.text.vocab_size - 514, length=config.text.length)
    ids = tokens([c for ways in data.captions for c in ways]).view(len(data.captions), -1, config.text.length)
    pipe = StableDiffusion(config, tokens, autoencoder=vae)
    both = diffusion.ConditionalDenoiser(pipe.unet, pipe.text_encoder)
    loss = replace(recipe.loss, predict=config.predict)
    try:
        state = diffusion.train(both, batches, ids, tokens("")[0], pipe.schedule, out, budget, recipe.loop, loss, **how)
    finally:
        pipe.save(out / "model")
    pipe.to(how["engine"].device)
    drawn = torch.cat([pipe.decode(pipe.latents(data.test_captions[i: i + 32], steps=25, seed=recipe.seed + i,
                                                guidance_scale=recipe.guidance)).cpu()
                       for i in range(0, len(data.test_captions), 32)])
    found = {"oracle": oracle.rates(drawn, data.test_scenes)} if data.test_scenes is not None else {}
    return state, {"drawn": (drawn, right(drawn, data))}, found


def contrastive(recipe: Recipe, data: Material, out: Path, budget, how, _):
    """CLIP: near misses are captions of the same picture with one word changed."""
    config = presets.PIPELINES[recipe.model].text
    words = sorted({c for ways in data.captions[:4096] for c in ways})
    tokens = tokenizer.Tokenizer.train(words, num_merges=config.vocab_size - 514, length=config.length)
    config = replace(config, projection=config.width, eos_id=tokens.end_id)
    model = clip.CLIP(clip.ImageEncoder(config.projection), text.TextEncoder(config))

    def choose(chosen: Tensor, step) -> Tensor:
        which, turns = step.integers(10_000).tolist(), step.integers(10_000).tolist()
        rows = []
        for i, way, turn in zip(chosen.tolist(), which, turns, strict=True):
            own = data.captions[i][way % len(data.captions[i])]
            rows += [own, *captions.near_misses(own, turn, 3)]
        return tokens(rows).view(len(chosen), 4, -1)
    state = clip.train(model, data.images, choose, out, budget, recipe.loop, **how)
    files.save_tensors(out / "model" / "clip.safetensors", model.state_dict(), {"part": "clip"})
    files.write_json(out / "model" / "clip.json", asdict(config))
    tokens.save(out / "model" / "tokenizer.json")
    real, device = pixels.to_unit(data.test_images), next(model.parameters()).device
    with torch.no_grad():
        u, v = model.directions(real.to(device), tokens(data.test_captions).to(device))
        near = [[c, *captions.near_misses(c, i, 3)] for i, c in enumerate(data.test_captions)]
        w = model.directions(real[:1].to(device), tokens([c for ways in near for c in ways]).to(device))[1].view(len(u), 4, -1)
    ranks = (u @ v.T).argmax(1).cpu() == torch.arange(len(u))
    misses = torch.einsum("bd,bkd->bk", u, w).argmax(1).cpu() == 0
    found = {"right_among_all": ranks.float().mean().item(), "right_among_near_misses": misses.float().mean().item()}
    return state, {"real": (real, misses.tolist())}, found


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
        elif recipe.kind == "clip":
            words = replace(config.text, projection=config.text.width)
            parts = [clip.ImageEncoder(words.projection), text.TextEncoder(words)]
        else:
            parts = [unet.UNet(config.unet), text.TextEncoder(config.text)]
    return sum(p.numel() for part in parts for p in part.parameters())


def right(drawn: Tensor, data: Material) -> list[bool]:
    """For each picture, does the oracle see what was asked? Of real pictures nobody can say."""
    if data.test_scenes is None:
        return [None] * len(drawn)
    return [bool(oracle.score(reading, scene)["all"])
            for reading, scene in zip(oracle.read(drawn), data.test_scenes, strict=True)]
