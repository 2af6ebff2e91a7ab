"""The `course` command. Exit codes: 0 all is well, 1 a finding, 2 misuse or something to mend, 130 Ctrl-C.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from course import __version__
from course.errors import CourseError, Terminated, UsageError


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

Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON, and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]


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
def sample(prompt: Annotated[str, typer.Argument(help='What to draw: "a large green ring on a pink background".')],
           out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("sample.png"),
           model: Annotated[str, typer.Option(help="One that comes with the course, or a run or pipeline folder.")] = "scenes64",
           negative_prompt: Annotated[str, typer.Option(help="What to keep away from.")] = "",
           steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
           guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; default: the model's.")] = None,
           sampler: Annotated[str, typer.Option(help="ddim, ddpm, euler, heun, dpmpp_2m or unipc.")] = "ddim",
           count: Annotated[int, typer.Option(help="Pictures, side by side, with seeds seed, seed + 1, ...")] = 1,
           seed: int = 0, size: Annotated[int | None, typer.Option(help="Pixels; default: the model's.")] = None,
           device: Device = "auto", as_json: Json = False) -> None:
    """Draw a picture from words with a trained model."""
    from course.data import oracle
    from course.device import choose
    from course.pipeline import StableDiffusion
    if not prompt.strip():
        raise UsageError("the prompt is empty")
    if not 1 <= count <= 64:
        raise UsageError(f"count must lie in 1 ... 64, got {count}")
    if out.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise UsageError(f"--out must end in .png, .jpg or .webp, got {out}")
    pipe = StableDiffusion.load(model, choose(device))
    x0 = pipe.latents([prompt] * count, negative_prompt or None, steps, guidance, seed, size, size, sampler)
    images = pipe.decode(x0).cpu()
    save_strip(images, out)
    words = [describe(reading) for reading in oracle.read(images)]
    if as_json:
        print(json.dumps({"out": str(out), "prompt": prompt, "seed": seed, "model": pipe.origin, "oracle": words}))
    else:
        print(f"drawn by {pipe.origin}")
        print(f"{out}   the oracle reads: {'; '.join(words)}")


@app.command()
def train(kind: Annotated[str | None, typer.Argument(help="vae, vq, ldm, ddpm or clip.")] = None,
          preset: Annotated[str, typer.Option(help="The recipe; `--list` shows all.")] = "demo",
          out: Annotated[Path | None, typer.Option(help="The run's folder; default: runs/KIND-PRESET.")] = None,
          change: Annotated[list[str] | None, typer.Option("--set", help="key=value: another value of the recipe's, such as "
                                                           "loop.lr=1e-3 or data.source=FOLDER.")] = None,
          minutes: Annotated[float | None, typer.Option(help="Time to train; default: the recipe's.")] = None,
          first_stage: Annotated[Path | None, typer.Option("--autoencoder", help="Run of the autoencoder, for ldm.")] = None,
          text_encoder: Annotated[Path | None, typer.Option(help="A frozen one, for ldm and ddpm: run of `train clip`, or CLIP-L "
                                                           "as released. Default: a new one, trained jointly.")] = None,
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
    given = command.Given(*(None if path is None else str(path) for path in (first_stage, text_encoder, start)))
    metrics = command.run(recipe, out or Path("runs") / f"{kind}-{preset}", engine, given=given, resume=resume,
                          tensorboard=tensorboard, quiet=as_json)
    if as_json:
        print(json.dumps(metrics))


bench = typer.Typer(no_args_is_help=True, help="Measure the course against other libraries.")
app.add_typer(bench, name="bench")


@bench.command()
def parity(only: Annotated[str | None, typer.Option(help="Only what has this in its name.")] = None,
           as_json: Json = False) -> None:
    """Compare every network, schedule and sampler with diffusers and transformers on the same random weights."""
    from rich.console import Console
    from rich.table import Table

    from course.evaluation import parity as comparison
    rows = comparison.run(only)
    if as_json:
        print(json.dumps([{"name": r.name, "reference": r.reference, "max_abs_error": r.max_abs_error,
                           "relative_error": r.relative_error, "allowed": r.allowed, "passed": r.passed} for r in rows]))
    else:
        table = Table()
        for column in ("", "reference", "max abs error", "relative", "allowed", "verdict"):
            table.add_column(column)
        for r in rows:
            table.add_row(r.name, r.reference, f"{r.max_abs_error:.1e}", f"{r.relative_error:.1e}", f"{r.allowed:.0e}",
                          "equal" if r.passed else "DIFFERS")
        Console().print(table)
    raise typer.Exit(0 if all(r.passed for r in rows) else 1)


@bench.command()
def prompts(model: Annotated[str, typer.Option(help="Run or pipeline folder, or a shipped model's name.")] = "scenes64",
            count: Annotated[int, typer.Option(help="Unseen prompts; a quarter as many with pairs held out of training.")] = 1024,
            objects: Annotated[int, typer.Option(help="Prompts name 1 ... this many objects.")] = 3,
            steps: int = 25, guidance: float | None = None, sampler: str = "ddim", seed: int = 0, device: Device = "auto",
            as_json: Json = False) -> None:
    """Draw unseen prompts of Scenes and let the oracle say how many came out right."""
    from rich.console import Console
    from rich.table import Table

    from course.device import choose
    from course.evaluation import fidelity
    from course.pipeline import StableDiffusion
    from course.training.progress import Progress
    if count < 8 or not 1 <= objects <= 3:
        raise UsageError(f"count must be at least 8 and objects in 1 ... 3, got {count} and {objects}")
    pipe = StableDiffusion.load(model, choose(device))
    with Progress(f"{count} prompts", as_json) as progress:
        rows, _ = fidelity.measure(pipe, count, (1, objects), steps=steps, guidance_scale=guidance, sampler=sampler, seed=seed,
                                   progress=progress.update)
    if as_json:
        print(json.dumps({"model": pipe.origin, "steps": steps, "sampler": sampler, "seed": seed, "rows": rows}))
        return
    keys = ("count", "shape", "color", "size", "position", "relation", "background", "all")
    table = Table(title=pipe.origin, title_justify="left")
    for column in ("split", "objects", "prompts", *keys):
        table.add_column(column, justify="left" if column == "split" else "right")
    for row in rows:
        unasked = "relation" if row["objects"] == 1 else "position"
        figures = ("–" if key == unasked else f"{100 * row[key]:.1f} %" for key in keys)
        table.add_row(row["split"], str(row["objects"]), str(row["prompts"]), *figures)
    Console().print(table)


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


@app.command()
def release(chapters: Annotated[list[str] | None, typer.Argument(help="Chapter numbers or names; default: all.")] = None,
            check: Annotated[bool, typer.Option("--check", help="Only say whether the notebooks are in step.")] = False,
            mutants: Annotated[bool, typer.Option("--mutants", help="Only try the wrong and the right answers that each check "
                                                  "comes with.")] = False) -> None:
    """Build the solution and the student notebook of each chapter from its percent script."""
    from course.classroom import mutants as answers
    from course.classroom import release as building
    if mutants:
        tally = answers.tally(answers.load())
        print(*tally.problems, tally, sep="\n")
        raise typer.Exit(1 if tally.problems else 0)
    known = building.chapters()
    wanted = [p for p in known if not chapters or any(p.stem == c or p.stem.split("_")[0] == c.zfill(2) for c in chapters)]
    if not wanted:
        raise UsageError(f"no chapter {', '.join(chapters or [])}; there are {', '.join(p.stem for p in known) or 'none'}")
    differences = []
    for path in wanted:
        if check:
            differences += building.check_in_step(path)
        else:
            building.build(path)
            print(f"built {path.stem}")
    for line in differences:
        print(line)
    if differences:
        raise typer.Exit(1)


Folder = Annotated[Path, typer.Argument(help="The folder you work in.")]


@app.command()
def start(folder: Folder = Path("my-notebooks")) -> None:
    """Copy the notebooks to a folder of your own. One that is already there is never touched, also not by a later release."""
    from course.classroom import working
    copied, left = working.start(folder)
    print(f"{len(copied)} notebooks copied to {folder}, {len(left)} already there and left as they are")
    print(f"now: course lab {folder}")


@app.command()
def progress(folder: Folder = Path("my-notebooks"),
             page: Annotated[Path | None, typer.Option("--html", help="Also write the table as a page.")] = None,
             as_json: Json = False) -> None:
    """Show which exercises are done, from what the check cells of the notebooks last said."""
    from rich.console import Console
    from rich.table import Table

    from course import files
    from course.classroom import working
    chapters = working.progress(folder)
    if page is not None:
        files.write_bytes(page, working.page(chapters).encode())
    if as_json:
        print(json.dumps([{"chapter": c.path.stem, "points": c.points, "of": c.maximum, "solved": c.solved,
                           "exercises": [{"id": i, "points": p, "of": m} for i, p, m in c.exercises]} for c in chapters]))
        return
    table = Table(caption=working.LEGEND, caption_justify="left")
    for column, side in (("chapter", "left"), ("exercises", "left"), ("solved", "right"), ("points", "right")):
        table.add_column(column, justify=side)
    for c in chapters:
        table.add_row(c.title, working.dots(c), f"{c.solved} of {len(c.exercises)}", f"{c.points:g} of {c.maximum:g}")
    Console().print(table)
    if page is not None:
        print(f"the page: {page}")


@app.command()
def lab(folder: Folder = Path("my-notebooks"),
        browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True) -> None:
    """Open JupyterLab where you left: on the first chapter with an open exercise."""
    from course.classroom import working
    chapter = working.next_chapter(working.progress(folder))
    print(f"{chapter.title}: {working.dots(chapter)}")
    command = [sys.executable, "-m", "jupyterlab", str(folder), f"--LabApp.default_url=/lab/tree/{chapter.path.name}",
               *([] if browser else ["--no-browser"])]
    raise typer.Exit(subprocess.call(command))


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if show:
        print(__version__)
        raise typer.Exit()


def save_strip(images, path: Path) -> None:
    """Write pictures (B,3,H,W) in [-1,1] side by side, small ones enlarged by a whole number; atomically."""
    import io

    from PIL import Image

    from course import files
    from course.pipeline import to_pil
    pictures = to_pil(images)
    side = pictures[0].width
    zoom = max(1, 256 // side)
    strip = Image.new("RGB", (len(pictures) * (side * zoom + 4) - 4, side * zoom), "white")
    for i, picture in enumerate(pictures):
        strip.paste(picture.resize((side * zoom, side * zoom), Image.NEAREST), (i * (side * zoom + 4), 0))
    buffer = io.BytesIO()
    strip.save(buffer, format={".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[path.suffix.lower()])
    files.write_bytes(path, buffer.getvalue())


def describe(reading) -> str:
    """A reading in words; an abstention is a question mark."""
    things = [" ".join(word or "?" for word in (o.size, o.color, o.shape)) + f" ({o.position})" for o in reading.objects]
    return f"{' and '.join(things) or 'nothing'} on {reading.background or '?'}"


def main() -> None:
    """Run the command; every CourseError becomes one line and exit code 2."""
    try:
        app()
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:                                    # `course doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
