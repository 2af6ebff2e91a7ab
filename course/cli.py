"""The `course` command. Exit codes: 0 all is well, 1 a finding, 2 misuse or something to mend, 130 Ctrl-C.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import json
import os
import shlex
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from course import __version__, bench, teaching
from course.errors import CourseError, Terminated, UsageError
from course.options import Device, Json, weighted


class Commands(typer.core.TyperGroup):
    """Says itself what an interrupted run leaves behind; typer would only say "Aborted!"."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Terminated:
            print("\nasked to stop; all is kept: the same command goes on from here", file=sys.stderr)
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            print("\nstopped; all is kept: the same command goes on from here", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Latent Diffusion, from scratch: train, sample, look, learn.")



@app.command()
def demo(minutes: Annotated[float, typer.Option(help="Minutes of training for each of the two models.")] = 8.0,
         out: Annotated[Path, typer.Option(help="Run folder; the same command goes on from there.")] = Path("runs/demo"),
         prompts: Annotated[int, typer.Option(help="How many prompts both models are tested with.")] = 256,
         seed: int = 0, device: Device = "auto", as_json: Json = False) -> None:
    """Train a latent and a pixel diffusion model for the same minutes on drawn pictures, and compare them."""
    from course import demo as demonstration
    from course.device import choose
    if prompts < 8:
        raise UsageError(f"prompts must be at least 8, got {prompts}")
    device = choose(device)
    recipe = replace(demonstration.recipe_for(device), minutes=minutes, prompts=prompts, seed=seed)
    metrics = demonstration.run(out, recipe, device, quiet=as_json)
    if as_json:
        print(json.dumps(metrics))
        return
    demonstration.print_summary(metrics, out)


@app.command()
def sample(prompts: Annotated[list[str], typer.Argument(metavar="prompt", help="What to draw: \"a large green ring on a pink "
                                                        "background\". Several are drawn below each other.")],
           out: Annotated[Path, typer.Option(help="The PNG, JPEG or WebP to write.")] = Path("sample.png"),
           model: Annotated[str, typer.Option(help="One that comes with the course, a run or pipeline folder, or a released "
                                              "model.")] = "scenes64",
           negative_prompt: Annotated[str, typer.Option(help="What to keep away from.")] = "",
           adapters: Annotated[list[str] | None, typer.Option("--lora", help="File or run of a LoRA, with :0.8 as weight; "
                                                              "several add up.")] = None,
           new_words: Annotated[list[str] | None, typer.Option("--embedding", help="File or run of a textual inversion: a word "
                                                               "that the prompt may then use.")] = None,
           control: Annotated[list[str] | None, typer.Option(metavar="NETWORK=PICTURE", help="A ControlNet and what it is shown, "
                                                             "with :0.8 as weight; several add up.")] = None,
           control_part: Annotated[str, typer.Option(metavar="FROM,TO", help="Share of the steps that is controlled.")] = "0,1",
           guess: Annotated[bool, typer.Option(help="Control only what guidance goes towards.")] = False,
           steps: Annotated[int | None, typer.Option(help="Denoising steps; default: 25, or the model's own if it was "
                                                    "distilled.")] = None,
           guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; default: the model's.")] = None,
           interval: Annotated[str | None, typer.Option("--guidance-interval", metavar="LOW,HIGH", help="Guide only between "
                                                        "these noise levels t, such as 200,800.")] = None,
           rescale: Annotated[float, typer.Option("--guidance-rescale", help="Bring the spread of the guided answer back, 0 ... "
                                                  "1; 0.7 is usual, against glaring colours.")] = 0.0,
           sampler: Annotated[str, typer.Option(help="ddim, ddpm, euler, heun, dpmpp_2m or unipc.")] = "ddim",
           deep_cache: Annotated[int, typer.Option(help="Compute the whole U-Net in every so many steps only: faster, not quite "
                                                   "the same picture.")] = 1,
           image: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
           strength: Annotated[float, typer.Option(help="How far to go from that picture, 0 ... 1.")] = 0.8,
           mask: Annotated[Path | None, typer.Option(help="White where that picture may change, black where it stays.")] = None,
           count: Annotated[int, typer.Option(help="Pictures, side by side, with seeds seed, seed + 1, ...")] = 1,
           seed: int = 0,
           seeds: Annotated[str | None, typer.Option(metavar="N,N,...", help="The seeds themselves, instead.")] = None,
           size: Annotated[str | None, typer.Option(help="Pixels, or WIDTHxHEIGHT; default: those of the image, or the model's."
                                                    )] = None,
           attention: Annotated[Path | None, typer.Option(help="Also write a PNG of where the first picture looked at each "
                                                          "word.")] = None,
           words: Annotated[str | None, typer.Option(help="Which words, with commas between; default: all but the smallest."
                                                     )] = None,
           animate: Annotated[Path | None, typer.Option(help="Also write a WebP or GIF, at most 1 MB, of how the pictures come "
                                                        "out of the noise.")] = None,
           latents: Annotated[Path | None, typer.Option(help="Also write what was diffused, as safetensors.")] = None,
           original: Annotated[str | None, typer.Option(help="SDXL: as if the picture had been taken in so many pixels, or "
                                                        "WIDTHxHEIGHT.")] = None,
           crop: Annotated[str | None, typer.Option(metavar="TOP,LEFT", help="SDXL: as if so much had been cut off.")] = None,
           refiner: Annotated[str | None, typer.Option(help="SDXL: the model for the last part of the way.")] = None,
           hand_over: Annotated[float, typer.Option(help="The share of the way after which the refiner takes over.")] = 0.8,
           precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
           tile: Annotated[int | None, typer.Option(help="Decode one picture at a time, in tiles of so many pixels: saves "
                                                    "memory.")] = None,
           device: Device = "auto", as_json: Json = False) -> None:
    """Draw a picture from words with a trained model."""
    from course import sample as command
    from course.device import choose
    from course.pipeline import StableDiffusion
    if not 1 <= count <= 64:
        raise UsageError(f"count must lie in 1 ... 64, got {count}")
    if precision not in command.PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}, expected one of {', '.join(command.PRECISIONS)}")
    chosen = command.numbers(seeds, "--seeds", int) if seeds else [seed + i for i in range(count)]
    pipe = StableDiffusion.load(model).to(choose(device), command.PRECISIONS[precision]).in_tiles(tile)
    command.equip(pipe, [weighted(given) for given in adapters or []], new_words or [])
    controls = [command.read_control(given, control_part, guess, pipe.device) for given in control or []]
    second = refiner and StableDiffusion.load(refiner).to(choose(device), command.PRECISIONS[precision])
    wish = command.Wish(prompts, out, chosen, size, image, mask, interval, attention, words, latents, original, crop, second,
                        hand_over, {"model": model, "command": shlex.join(["course", *sys.argv[1:]])}, animate)
    told = command.run(pipe, wish, {
        "negative_prompt": negative_prompt or None, "steps": steps or pipe.config.steps or 25,
        "guidance_scale": guidance, "guidance_rescale": rescale,
        "sampler": sampler, "deep_cache": deep_cache, "strength": strength, "control": controls or None}, quiet=as_json)
    if as_json:
        print(json.dumps(told))
        return
    print(f"drawn by {pipe.origin}")
    print(f"{out}   the oracle reads: {'; '.join(told['oracle']) or 'square pictures only'}")
    for extra in ("attention", "animate", "latents"):
        if extra in told:
            print(f"{extra}: {told[extra]}")


@app.command()
def studio(models: Annotated[list[str] | None, typer.Option("--model", help="A run or pipeline folder to offer beside the models "
                                                            "that come with the course; several may be given.")] = None,
           loras: Annotated[list[str] | None, typer.Option("--lora", help="File or run of a LoRA to offer.")] = None,
           controls: Annotated[list[str] | None, typer.Option("--control", help="Run of a ControlNet to offer.")] = None,
           host: Annotated[str, typer.Option(help="Where to listen; only this machine reaches the default.")] = "127.0.0.1",
           port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8899,
           browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
           device: Device = "auto") -> None:
    """Open a page on this machine to draw with: prompts, drawn edges, LoRAs, and the picture as it comes out of the noise."""
    from course.device import choose
    from course.studio import catalogue, server
    if not 0 <= port <= 65535:
        raise UsageError(f"port must lie in 0 ... 65535, got {port}")
    offered = catalogue.collect(models or [], loras or [], controls or [])
    server.run(offered, host, port, choose(device), device, browser)


@app.command()
def architecture(source: Annotated[str, typer.Argument(metavar="MODEL", help="One that comes with the course, sd15, sd21, sdxl, "
                                                       "a preset, or a run, pipeline or released folder.")] = "scenes64",
                 what: Annotated[str, typer.Option(help="unet, vae or pipeline.")] = "unet",
                 out: Annotated[Path | None, typer.Option(help="The SVG to write; default: WHAT-MODEL.svg.")] = None,
                 as_json: Json = False) -> None:
    """Run a model once and draw what it is made of: every block with its shape and parameters, skips, text and time."""
    from course import files
    from course.evaluation import architecture as survey
    from course.evaluation import drawings
    from course.sample import check_out
    drawings.check(what)
    out = out or Path(f"{what}-{Path(source).name}.svg")
    check_out(out, ".svg")
    record = survey.record(source)
    files.write_bytes(out, drawings.draw(record, what).encode())
    if as_json:
        print(json.dumps(record.to_json() | {"out": str(out)}))
        return
    print("; ".join(f"{name} {count:,}" for name, count in record.networks.items()) + " parameters")
    print(out)


@app.command()
def sweep(prompts: Annotated[list[str] | None, typer.Argument(metavar="prompt", help="What to draw; default: prompts that "
                                                              "no model was trained on.")] = None,
          guidance: Annotated[str, typer.Option(help="Guidance scales, from left to right.")] = "1,3,5,7.5,12",
          steps: Annotated[str, typer.Option(help="Numbers of steps, from top to bottom.")] = "10,20,50",
          seeds: Annotated[int, typer.Option(help="Pictures of each prompt in each cell.")] = 4,
          unseen: Annotated[int, typer.Option(help="How many prompts to take where none is given.")] = 8,
          sampler: Annotated[str, typer.Option(help="ddim, ddpm, euler, heun, dpmpp_2m or unipc.")] = "ddim",
          model: Annotated[str, typer.Option(help="One that comes with the course, or a run or pipeline folder.")] = "scenes64",
          out: Annotated[Path, typer.Option(help="The PNG to write; the rates go to a JSON file beside it.")] = Path("sweep.png"),
          seed: Annotated[int, typer.Option(help="The first seed.")] = 0, device: Device = "auto", as_json: Json = False) -> None:
    """Draw the same prompts at several guidance scales and numbers of steps, and let the oracle say what came out right."""
    from course import files
    from course import sample as command
    from course.device import choose
    from course.evaluation import figures
    from course.evaluation import sweep as experiment
    from course.pipeline import StableDiffusion
    from course.training.progress import Progress
    command.check_out(out, ".png")
    scales, counts = command.numbers(guidance, "--guidance"), command.numbers(steps, "--steps", int)
    if not 1 <= seeds <= 64 or not 1 <= unseen <= 256:
        raise UsageError(f"seeds must lie in 1 ... 64 and unseen in 1 ... 256, got {seeds} and {unseen}")
    pipe = StableDiffusion.load(model, choose(device))
    asked = prompts or experiment.unseen(unseen, pipe)
    drawn = len(asked) * seeds
    with Progress(f"{len(scales) * len(counts)} cells of {drawn} pictures", as_json) as progress:
        cells, pictures = experiment.run(pipe, asked, scales, counts, [seed + i for i in range(seeds)], sampler,
                                         progress=progress.update)
    what = f"“{asked[0]}”" if len(asked) == 1 else f"{len(asked)} prompts"
    figures.sweep(out, f"{what}, {seeds} seeds, {model}, {sampler}: pictures that show all that was asked for", cells, pictures)
    metrics = {"model": pipe.origin, "sampler": sampler, "prompts": asked, "seeds": seeds, "seed": seed, "cells": cells}
    files.write_json(out.with_suffix(".json"), metrics)
    if as_json:
        print(json.dumps(metrics))
        return
    experiment.print_table(cells)
    print(f"{out}, {out.with_suffix('.json')}")


@app.command()
def train(kind: Annotated[str | None, typer.Argument(help="What: `--list` shows all.")] = None,
          preset: Annotated[str, typer.Option(help="The recipe; `--list` shows all.")] = "demo",
          out: Annotated[Path | None, typer.Option(help="The run's folder; default: runs/KIND-PRESET.")] = None,
          change: Annotated[list[str] | None, typer.Option("--set", help="key=value: another value of the recipe's, such as "
                                                           "loop.lr=1e-3 or data.source=FOLDER.")] = None,
          minutes: Annotated[float | None, typer.Option(help="Time to train; default: the recipe's.")] = None,
          first_stage: Annotated[Path | None, typer.Option("--autoencoder", help="Run of the autoencoder, for ldm.")] = None,
          text_encoder: Annotated[Path | None, typer.Option(help="A frozen one, for ldm and ddpm: run of `train clip`, or CLIP-L "
                                                           "as released. Default: a new one, trained jointly.")] = None,
          model: Annotated[Path | None, typer.Option(help="What to adapt: shipped, or a run; default: scenes64.")] = None,
          start: Annotated[Path | None, typer.Option("--start-from", help="Run whose weights to begin with, instead of new ones: "
                                                     "for another budget, or other data.")] = None,
          resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint, if there is one.")] = True,
          micro_batch: Annotated[int | None, typer.Option(help="Samples at once; the rest of the batch in turns.")] = None,
          precision: Annotated[str, typer.Option(help="fp32, bf16 or fp64.")] = "fp32",
          compile: Annotated[bool, typer.Option(help="torch.compile.")] = False,
          channels_last: Annotated[bool, typer.Option(help="Layout that some GPUs prefer.")] = False,
          recompute: Annotated[bool, typer.Option(help="Gradient checkpointing: less memory, a third more time.")] = False,
          sharded: Annotated[bool, typer.Option(help="Spread the weights over the processes (FSDP; under torchrun).")] = False,
          tensorboard: Annotated[bool, typer.Option(help="Also log for TensorBoard.")] = False,
          list_all: Annotated[bool, typer.Option("--list", help="Show all recipes and stop.")] = False,
          device: Device = "auto", as_json: Json = False) -> None:
    """Train one model of the course by its recipe. The same command goes on where it was stopped."""
    from course import train as command
    from course.device import choose
    from course.training import recipes
    from course.training.engine import EngineConfig
    if list_all or kind is None:
        command.print_recipes(as_json)
        return
    recipe = recipes.find(kind, preset, [*(change or []), *([f"minutes={minutes}"] if minutes is not None else [])])
    engine = EngineConfig(choose(device), precision, micro_batch, compile, channels_last, recompute, sharded)
    given = command.Given(*(None if path is None else str(path) for path in (first_stage, text_encoder, start, model)))
    metrics = command.run(recipe, out or Path("runs") / f"{kind}-{preset}", engine, given=given, resume=resume,
                          tensorboard=tensorboard, quiet=as_json)
    if as_json:
        print(json.dumps(metrics))


app.add_typer(bench.app, name="bench")
app.add_typer(teaching.app)                                    # without a name: its commands stand beside these


@app.command()
def tables(names: Annotated[str, typer.Argument(metavar="name", help="all, or some, such as C,F; report: "
                                                  "the page anew, of what is there.")] = "all",
           scale: Annotated[str, typer.Option(help="quick (seconds, no verdicts), cpu or gpu.")] = "cpu",
           out: Annotated[Path, typer.Option(help="A folder; what it has is not computed again.")] = Path("runs/tables"),
           inception: Annotated[Path | None, typer.Option("--inception-weights", help="torch-fidelity's file: FID and KID, not "
                                                          "FD-course and KID-course.")] = None,
           clip: Annotated[Path | None, typer.Option(help="A released CLIP's folder: CLIP score, not CLIP-course.")] = None,
           lpips: Annotated[Path | None, typer.Option(help="torchvision's AlexNet or VGG16: LPIPS, not PSIM-course.")] = None,
           pdf: Annotated[bool, typer.Option("--pdf", help="Print the report to report.pdf, too; needs Chromium.")] = False,
           seed: int = 0, device: Device = "auto", as_json: Json = False) -> None:
    """Regenerate the papers' comparison tables: the claim, what comes out here, and whether it holds."""
    from rich.console import Console

    from course import files
    from course.device import choose
    from course.evaluation import tables as known
    from course.evaluation.tables import page
    from course.evaluation.tables.table import SCALES, Work, make
    from course.training.progress import Progress
    if scale not in SCALES:
        raise UsageError(f"unknown scale {scale!r}, expected one of {', '.join(SCALES)}")
    given = {"inception": inception, "clip": clip, "lpips": lpips}
    other = "-".join(name for name, path in given.items() if path is not None)       # their figures are not the course's
    made, folder = [], out / (f"{scale}-{other}" if other else scale)
    for table in [] if names == "report" else known.chosen(names):
        with Progress(f"{table.name}. {table.title}", as_json) as progress:
            work = Work(folder / table.name, SCALES[scale], choose(device), seed, progress.update, **given)
            result = make(table, work)
        files.write_bytes(work.folder / "table.md", page.markdown(table, result).encode())
        files.write_bytes(work.folder / "table.tex", page.latex(table, result).encode())
        made.append((table, result))
    there = page.collect(folder, known.TABLES)
    if not there:
        raise UsageError(f"no table in {folder} yet: `course tables all --scale {scale}` makes them")
    path = page.write(folder, there, [name for name in known.TABLES if name not in [table.name for table, _ in there]])
    printed = page.pdf(path) if pdf else None
    if as_json:
        print(json.dumps([result for _, result in made]))
        return
    for table, result in made:
        Console().print(f"{table.name}  {result['verdict']}: {result['why']}", highlight=False)
    print(f"Report: {path}" + (f", {printed}" if printed else ""))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has for the course, what is missing, and the command that mends it."""
    from course import doctor as examination
    findings = examination.examine()
    if as_json:
        print(examination.to_json(findings))
    else:
        examination.render(findings)
    raise typer.Exit(examination.exit_code(findings))


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if show:
        print(__version__)
        raise typer.Exit()


def main() -> None:
    """Run the command; every CourseError becomes one line and exit code 2, every warning one line."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        app()
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:                                    # `course doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
