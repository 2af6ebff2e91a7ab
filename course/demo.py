"""`course demo`: train a latent and a pixel text-to-image model for the same minutes, and look at both.

One stage after the other, each kept in its folder, so that the same command goes on wherever it was stopped:

    autoencoder -> latents -> latent model -> its pictures -> pixel model -> its pictures -> costs -> report
"""

import json
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from course import files, pixels, presets, tokenizer
from course.data import Scenes, captions, latents, oracle
from course.errors import CheckpointError, UsageError
from course.evaluation import cost, figures, report
from course.pipeline import StableDiffusion
from course.training import autoencoder, diffusion, engine, loop
from course.training.progress import Progress


@dataclass(frozen=True)
class Recipe:
    """Everything that makes one demo; both arms were given the same number of tuning trials (CONTRIBUTING.md)."""

    models: tuple[str, str] = ("demo-latent", "demo-pixel")
    minutes: float = 8.0                   # of training for each arm; the autoencoder's are the latent arm's
    autoencoder_share: float = 0.31
    pictures: int = 8_192                 # drawn for training
    prompts: int = 256
    steps: int = 25
    seed: int = 0
    kl: float = 0.15                       # far above Stable Diffusion's 1e-6: a decoder that is used to noise forgives more
    autoencoder: loop.LoopConfig = loop.LoopConfig(batch_size=8, lr=3e-3, warmup_images=800, ema_halflife=2_000)
    latent: loop.LoopConfig = loop.LoopConfig(batch_size=16, lr=1.5e-3, warmup_images=1_000, ema_halflife=4_000)
    pixel: loop.LoopConfig = loop.LoopConfig(batch_size=8, lr=3e-3, warmup_images=300, ema_halflife=1_000)


# a GPU gets larger models and batches in the same minutes; not measured on a GPU
GPU = Recipe(models=("demo-latent-gpu", "demo-pixel-gpu"), pictures=65_536,
             autoencoder=loop.LoopConfig(batch_size=64, lr=1e-3, warmup_images=20_000, ema_halflife=20_000),
             latent=loop.LoopConfig(batch_size=512, lr=1e-3, warmup_images=100_000, ema_halflife=200_000),
             pixel=loop.LoopConfig(batch_size=128, lr=5e-4, warmup_images=50_000, ema_halflife=50_000))


def recipe_for(device: str) -> Recipe:
    return GPU if device.startswith("cuda") else Recipe()


def run(out: str | Path = "runs/demo", recipe: Recipe = Recipe(), device: str = "cpu", quiet: bool = False) -> dict:
    """Train, sample, measure, report; returns what it writes to `out/metrics.json`. Raises CourseError."""
    if not 0 < recipe.minutes < float("inf"):
        raise UsageError(f"minutes must be a positive number, got {recipe.minutes}")
    return Demo(Path(out), recipe, device, Console(quiet=quiet)).run()


class Demo:
    def __init__(self, out: Path, recipe: Recipe, device: str, console: Console):
        self.out, self.recipe, self.device, self.console = out, recipe, device, console
        self.configs = dict(zip(("latent", "pixel"), map(presets.PIPELINES.get, recipe.models), strict=True))
        self.precision = "bf16" if device.startswith("cuda") else "fp32"
        self.how = {"engine": engine.EngineConfig(device, self.precision), "quiet": console.quiet}

    def run(self) -> dict:
        self._claim_folder()
        self.say(f"Latent against pixel diffusion, {self.recipe.minutes:g} minutes of training each, on {self.device}.")
        self._data()
        vae, vae_state = self._autoencoder()
        arm_latent, latent_state, spent = self._latent(vae, vae_state)
        latent = self._samples("latent", arm_latent)
        self._pictures({"latent": latent})
        self.say(f"Pictures of the latent model: {self.out / 'samples.png'}")
        arm_pixel, pixel_state = self._pixel(spent)
        pixel = self._samples("pixel", arm_pixel)
        metrics = self._metrics(vae, vae_state, latent_state, pixel_state, spent, latent, pixel)
        self._pictures({"latent": latent, "pixel": pixel})
        self._trajectories({"latent": arm_latent, "pixel": arm_pixel})
        curves = {"autoencoder": vae_state["curve"], "latent model": latent_state["curve"], "pixel model": pixel_state["curve"]}
        figures.curves(self.out / "curves.png", curves)
        report.write(self.out / "report.html", metrics, {n: self.out / f"{n}.png" for n in ("samples", "progress", "curves")},
                     self.size)
        self.say(f"Report: {self.out / 'report.html'}")
        return metrics

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    # ---- stages

    def _claim_folder(self) -> None:
        """One folder, one recipe: going on with other settings would silently mix two runs."""
        path, mine = self.out / "demo.json", {"recipe": json.loads(json.dumps(asdict(self.recipe))), "device": self.device}
        if path.exists():
            try:
                before = json.loads(path.read_text())
            except ValueError:
                raise CheckpointError(f"{path} is damaged; delete {self.out} or choose another --out") from None
            if before != mine:
                raise UsageError(f"{self.out} holds a demo with other settings; choose another --out, or delete it")
        files.write_json(path, mine)

    def _data(self) -> None:
        """Pictures as bytes, their captions as tokens; drawn anew each time, since that takes seconds."""
        r, self.size = self.recipe, self.configs["latent"].image_size
        kind = dict(objects=(1, 1), textures=("plain",), degraded=0.0)
        train = Scenes(self.size, "train", r.seed, **kind)
        self.images = torch.cat([pixels.to_bytes(train.images(range(i, min(i + 1024, r.pictures))))
                                 for i in range(0, r.pictures, 1024)])                  # (n,3,H,W)
        # all word orders twice, and once in eleven the place is left open, so that short prompts are understood, too
        phrasings = [[*2 * captions.full_captions(scene), captions.caption(scene, short=True)]
                     for scene in train.scenes(range(r.pictures))]
        text = self.configs["latent"].text
        words = [p for ways in phrasings[:2048] for p in ways]
        self.tokenizer = tokenizer.Tokenizer.train(words, num_merges=400, length=text.length)
        flat = self.tokenizer([p for ways in phrasings for p in ways])                  # (n*K,N)
        self.ids = flat.view(len(phrasings), -1, text.length)                           # (n,K,N)
        self.null_ids = self.tokenizer("")[0]                                           # (N,)
        self.tests = {split: Scenes(self.size, split, r.seed, **kind) for split in ("test", "heldout")}

    def _autoencoder(self):
        r = self.recipe
        torch.manual_seed(r.seed)
        vae = presets.vae.AutoencoderKL(self.configs["latent"].vae).to(self.device)
        budget = loop.Budget(minutes=r.minutes * r.autoencoder_share)
        state = autoencoder.train(vae, self.images, self.out / "autoencoder", budget, replace(r.autoencoder, seed=r.seed),
                                  autoencoder.AutoencoderLoss(kl=r.kl), title="autoencoder", **self.how)
        return vae, state

    def _latent(self, vae, vae_state):
        """Encode everything once, then train on what is left of the arm's minutes."""
        r, config = self.recipe, self.configs["latent"]
        timing, begun = self.out / "latent" / "encoding.json", time.perf_counter()
        mean, std = latents.cached(self.out / "latent", vae, self.images, self.device)
        if not timing.exists():
            files.write_json(timing, {"seconds": time.perf_counter() - begun})
        spent = vae_state["seconds"] + json.loads(timing.read_text())["seconds"]
        vae.scaling_factor = latents.measured_scale(mean, std)
        config = replace(config, vae=replace(config.vae, scaling_factor=vae.scaling_factor))
        arm, state = self._train_arm("latent", config, diffusion.latent_batches(mean, std, vae.scaling_factor),
                                     loop.Budget(minutes=max(r.minutes - spent / 60, 0.01)), vae)
        return arm, state, spent + state["seconds"]

    def _pixel(self, seconds: float):
        return self._train_arm("pixel", self.configs["pixel"], diffusion.pixel_batches(self.images),
                               loop.Budget(minutes=seconds / 60), None)

    def _train_arm(self, name: str, config, batches, budget: loop.Budget, vae):
        r = self.recipe
        torch.manual_seed(r.seed)
        arm = StableDiffusion(config, self.tokenizer, autoencoder=vae).to(self.device)
        both = diffusion.ConditionalDenoiser(arm.unet, arm.text_encoder)
        try:
            state = diffusion.train(both, batches, self.ids, self.null_ids, arm.schedule, self.out / name, budget,
                                    replace(getattr(r, name), seed=r.seed), diffusion.DiffusionLoss(config.predict),
                                    title=f"{name} model", **self.how)
        finally:                                               # an unfinished model can be sampled, too
            arm.save(self.out / "model" if name == "latent" else self.out / name / "model")
        return arm, state

    def _samples(self, name: str, arm: StableDiffusion) -> dict[str, dict]:
        """Pictures for the prompts of both test splits: {split: {"images", "prompts", "scenes", "scores"}}."""
        found = {}
        for split, data in self.tests.items():
            n = self.recipe.prompts if split == "test" else max(8, self.recipe.prompts // 4)
            scenes, prompts = data.scenes(range(n)), data.captions(range(n), full=True)
            path = self.out / name / f"samples-{split}.safetensors"
            if path.exists():
                images = pixels.to_unit(files.load_tensors(path)[0]["images"])
            else:
                images = self._generate(arm, prompts, f"{name} model draws {n} prompts ({split})")
                files.save_tensors(path, {"images": pixels.to_bytes(images)}, {"prompts": prompts})
            scores = [oracle.score(reading, scene) for reading, scene in zip(oracle.read(images), scenes, strict=True)]
            found[split] = {"images": images, "prompts": prompts, "scores": scores}
        return found

    def _generate(self, arm: StableDiffusion, prompts: list[str], title: str) -> Tensor:
        r, images = self.recipe, []
        # what a batch needs must fit a processor's cache: in pixels, 64 at once take twice as long as 8 times 8
        batch = 8 if self.device == "cpu" and arm.config.vae is None else 64
        with Progress(title, self.console.quiet) as progress:
            for start in range(0, len(prompts), batch):
                def tick(i, *_, start=start):
                    progress.update((start + (i + 1) / r.steps * batch) / len(prompts))
                x0 = arm.latents(prompts[start: start + batch], steps=r.steps, seed=r.seed + start, callback=tick)
                images.append(arm.decode(x0).cpu())
        return torch.cat(images)

    # ---- figures

    def _metrics(self, vae, vae_state, latent_state, pixel_state, spent, latent, pixel) -> dict:
        path, r = self.out / "metrics.json", self.recipe
        n = r.prompts
        real = self.tests["test"].images(range(n))
        scenes = self.tests["test"].scenes(range(n))
        with torch.no_grad():
            rebuilt = torch.cat([vae.decode(vae.encode(x.to(self.device)).mode()).clamp(-1, 1).cpu() for x in real.split(64)])
        psnr = (10 * torch.log10(4 / (rebuilt - real).square().mean((1, 2, 3)))).mean().item()
        batch = 32 if self.device == "cpu" else 256
        self.say("Measuring what both cost, in turns ...")
        costs = cost.compare(self.configs, batch, self.device)
        arms = {}
        for name, state, samples in (("latent", latent_state, latent), ("pixel", pixel_state, pixel)):
            arms[name] = {"params": cost.parameters(cost.denoiser(self.configs[name], "meta")),
                          "train_seconds": spent if name == "latent" else state["seconds"],
                          "images_seen": state["images"]} | costs[name]
            arms[name] |= {"oracle": _means(samples["test"]["scores"]), "heldout_oracle": _means(samples["heldout"]["scores"])}
        metrics = {
            **arms,
            "autoencoder": {"psnr": psnr, "oracle": oracle.rates(rebuilt, scenes), "params": cost.parameters(vae),
                            "train_seconds": vae_state["seconds"], "images_seen": vae_state["images"],
                            "scaling_factor": vae.scaling_factor},
            "real": {"oracle": oracle.rates(real, scenes)},
            "ratio": {key: costs["pixel"][key] / costs["latent"][key]
                      for key in ("train_ms_per_image", "sample_step_ms_per_image")},
            "prompts": n, "cost_batch": batch, "minutes": r.minutes, "steps": r.steps,
            "seed": r.seed, "commit": commit(), "device": device_name(self.device), "torch": torch.__version__,
        }
        files.write_json(path, metrics)
        return metrics

    def _pictures(self, arms: dict[str, dict]) -> None:
        rows = {f"{name}": (s["test"]["images"], [x["all"] for x in s["test"]["scores"]]) for name, s in arms.items()}
        figures.samples(self.out / "samples.png", next(iter(arms.values()))["test"]["prompts"], rows)

    def _trajectories(self, arms: dict[str, StableDiffusion]) -> None:
        prompt, rows = self.tests["test"].captions([0], full=True)[0], {}
        for name, arm in arms.items():
            steps = []

            def keep(i, t, x, x0, arm=arm, steps=steps):
                if i % 4 == 0:
                    steps.append((t, arm.decode(x0)[0].cpu()))
            final = arm.latents([prompt], steps=self.recipe.steps, seed=self.recipe.seed, callback=keep)
            rows[name] = [*steps, (-1, arm.decode(final)[0].cpu())]
        figures.trajectory(self.out / "progress.png", prompt, rows)


def _means(scores: list[dict]) -> dict[str, float]:
    return {key: sum(s[key] for s in scores) / len(scores) for key in scores[0]}


def print_summary(metrics: dict, out: Path) -> None:
    """The table of the report, in the terminal."""
    from rich.table import Table
    table = Table(title="pictures that show what the prompt says", title_justify="left")
    for column in ("", *report.KEYS):
        table.add_column(column, justify="right" if column else "left")
    for name in ("real", "autoencoder", "latent", "pixel"):
        table.add_row(name, *(f"{100 * metrics[name]['oracle'][key]:.1f} %" for key in report.KEYS))
    console = Console()
    console.print(table)
    ratio = metrics["ratio"]
    console.print(f"pixel / latent: {ratio['train_ms_per_image']:.1f} x a training picture, "
                  f"{ratio['sample_step_ms_per_image']:.1f} x a sampling step.  Look at {Path(out) / 'report.html'}")


def commit() -> str:
    """The checked-out commit, with a + where files differ from it; "unknown" outside a checkout."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=True).stdout
    try:
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", "--", ".").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{device}, {count} thread{'s' * (count != 1)}"
