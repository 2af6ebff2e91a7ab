"""`course bench`: every figure that the course gives of itself, by one command each, with --json."""

import json
from pathlib import Path
from typing import Annotated

import typer

from course.errors import UsageError
from course.options import Device, Json

app = typer.Typer(no_args_is_help=True, help="Measure: against other libraries, and what the models can do.")


@app.command()
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


@app.command()
def prompts(model: Annotated[str, typer.Option(help="Run or pipeline folder, or a shipped model's name.")] = "scenes64",
            count: Annotated[int, typer.Option(help="Unseen prompts; a quarter as many with pairs held out of training.")] = 1024,
            objects: Annotated[int, typer.Option(help="Prompts name 1 ... this many objects.")] = 3,
            baselines: Annotated[bool, typer.Option("--baselines", help="Also: the pictures themselves, what the autoencoder "
                                                    "makes of them, other pictures' prompts, no prompt.")] = False,
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
                                   progress=progress.update, baselines=baselines)
    if as_json:
        print(json.dumps({"model": pipe.origin, "steps": steps, "sampler": sampler, "seed": seed, "rows": rows}))
        return
    keys = ("count", "shape", "color", "binding", "size", "position", "relation", "background", "all")
    table = Table(title=pipe.origin, title_justify="left")
    for column in ("split", "objects", "prompts", *keys, "95 %"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for row in rows:
        unasked = "relation" if row["objects"] == 1 else "position"
        figures = ("–" if key == unasked or row[key] is None else f"{100 * row[key]:.1f} %" for key in keys)
        table.add_row(row["split"], str(row["objects"]), str(row["prompts"]), *figures,
                      f"{100 * row['all_low']:.0f} – {100 * row['all_high']:.0f}")
    Console().print(table)


@app.command()
def control(network: Annotated[str, typer.Argument(help="One that comes with the course, or a run's folder.")] = "scenes64-edges",
            kind: Annotated[str, typer.Option(help="What it reads: edges, segmentation or depth.")] = "edges",
            model: Annotated[str, typer.Option(help="Run or pipeline folder, or a shipped model's name.")] = "scenes64",
            count: Annotated[int, typer.Option(help="Unseen scenes.")] = 256,
            weight: float = 1.0, steps: int = 25, seed: int = 0, device: Device = "auto", as_json: Json = False) -> None:
    """Draw unseen scenes with and without a ControlNet, and compare the edges found in the pictures with the exact ones."""
    from rich.console import Console
    from rich.table import Table

    from course.adapt import control as adapted
    from course.data import hints
    from course.device import choose
    from course.evaluation import steering
    from course.pipeline import StableDiffusion
    from course.training.progress import Progress
    if count < 8 or kind not in hints.KINDS:
        raise UsageError(f"count must be at least 8 and kind one of {', '.join(hints.KINDS)}, got {count} and {kind!r}")
    pipe, net = StableDiffusion.load(model, choose(device)), adapted.load(network)
    with Progress(f"{count} scenes, four times", as_json) as progress:
        rows = steering.measure(pipe, net.to(pipe.device), kind, count, steps=steps, seed=seed, weight=weight,
                                progress=progress.update)
    if as_json:
        print(json.dumps({"model": pipe.origin, "network": network, "kind": kind, "weight": weight, "steps": steps, "seed": seed,
                          "count": count, "rows": rows}))
        return
    table = Table(title=f"{network} on {pipe.origin}, {count} scenes", title_justify="left")
    for column in ("pictures", "prompts", "edges, F at 1 pixel", "silhouettes, IoU", *steering.KEYS[2:]):
        table.add_column(column, justify="left" if column in ("pictures", "prompts") else "right")
    for row in rows:
        table.add_row(row["pictures"], row["prompts"] or "", f"{row['edge_f']:.3f}", f"{row['iou']:.3f}",
                      *(f"{100 * row[key]:.1f} %" for key in steering.KEYS[2:]))
    Console().print(table)


@app.command()
def lora(preset: Annotated[str, typer.Option(help="The recipe of `course train lora`.")] = "heart",
         ranks: Annotated[str, typer.Option(help="Ranks; `full` is full fine-tuning.")] = "1,2,4,8,16,full",
         steps: Annotated[int, typer.Option(help="Of training, each: as many pictures for all.")] = 500,
         out: Annotated[Path, typer.Option(help="A folder for the runs; what is finished there is not run again.")] = Path(
             "runs/lora-ranks"), model: Annotated[str, typer.Option(help="What to adapt: shipped, or a run.")] = "scenes64",
         device: Device = "auto", as_json: Json = False) -> None:
    """Train the same concept at several ranks and in full: parameters, optimizer memory, what is learned, what is forgotten."""
    from rich.console import Console
    from rich.table import Table

    from course import files, train
    from course.device import choose
    from course.training import recipes
    from course.training.engine import EngineConfig
    rows = []
    for rank in ranks.split(","):
        change = ["loss.rank=none", "loop.lr=1e-3"] if rank == "full" else [f"loss.rank={rank}"]
        recipe, folder = recipes.find("lora", preset, [*change, f"steps={steps}"]), out / f"rank-{rank}-steps-{steps}"
        done = folder / "metrics.json"
        metrics = (json.loads(done.read_text("utf-8")) if done.is_file() else
                   train.run(recipe, folder, EngineConfig(choose(device)), given=train.Given(model=model), quiet=as_json))
        rows.append({"rank": rank} | {key: metrics[key] for key in (
            "trained_parameters", "optimizer_bytes", "new_before", "new_after", "old_before", "old_after", "new_prompts",
            "images_seen", "seconds", "commit", "device")})
    files.write_json(out / "ranks.json", {"preset": preset, "steps": steps, "rows": rows})
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(title=f"{preset}, {steps} steps each", title_justify="left")
    for column in ("rank", "trained", "Adam's memory", "new, before", "new, after", "old, before", "old, after", "minutes"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["rank"], f"{row['trained_parameters']:,}", f"{row['optimizer_bytes'] / 1e6:.2f} MB",
                      *(f"{100 * row[key]:.1f} %" for key in ("new_before", "new_after", "old_before", "old_after")),
                      f"{row['seconds'] / 60:.1f}")
    Console().print(table)


@app.command()
def speed(size: Annotated[str, typer.Option(help="course, sd15 or sdxl.")] = "course",
          rounds: Annotated[int, typer.Option(help="Turns of each; the median counts.")] = 10,
          only: Annotated[str | None, typer.Option(help="Only rows with this in their name, and no other tables.")] = None,
          compiled: Annotated[bool, typer.Option("--compile", help="Also both through torch.compile; takes minutes.")] = False,
          prompts: Annotated[int, typer.Option(help="For the oracle, of each approximation; 0: no approximations.")] = 256,
          threads: Annotated[int, typer.Option(help="Of a CPU; 0: as many as torch takes.")] = 0,
          device: Device = "auto", as_json: Json = False) -> None:
    """Time every network and whole runs beside diffusers, in turns, and print the floor beside both. Needs an idle machine."""
    import torch
    from rich.console import Console

    from course.device import choose
    from course.evaluation import faster, machine, speed_tables
    from course.evaluation import speed as comparison
    from course.training.progress import Progress
    if rounds < 1 or threads < 0 or not (prompts == 0 or prompts >= 8):
        raise UsageError(f"rounds must be at least 1, threads 0 or more, prompts 0 or at least 8, got {rounds}, {threads} and "
                         f"{prompts}")
    if threads:
        torch.set_num_threads(threads)
    device = choose(device)
    found = machine.measure(device, torch.bfloat16 if device.startswith("cuda") else torch.float32)
    with Progress(f"{size}, beside diffusers", as_json) as progress:
        rows = comparison.run(found, size, rounds, only, compiled, progress.update)
    whole, ways, starts = only is None and size == "course", [], []
    if whole and prompts:
        with Progress("approximations, and what they cost", as_json) as progress:
            ways = faster.run(found, prompts, rounds, progress=progress.update)
    if whole and device == "cpu":                              # a GPU's turn comes later
        starts = comparison.start_up()
    if as_json:
        print(json.dumps({"machine": found.as_dict(), "rows": rows, "approximate": ways, "start_up": starts,
                          "gpu": "this one" if device.startswith("cuda") else speed_tables.NO_GPU}))
    else:
        for table in speed_tables.tables(found, rows, ways, starts):
            Console().print(table)
    raise typer.Exit(0 if all(row["equal"] for row in rows) else 1)


@app.command()
def scaling(rounds: Annotated[int, typer.Option(help="Turns of each size; the median counts.")] = 5, device: Device = "auto",
            as_json: Json = False) -> None:
    """Cost against resolution, batch, width and length of the text: the fitted exponent beside the counted one."""
    from rich.console import Console

    from course.device import choose
    from course.evaluation import machine, speed_tables
    from course.evaluation import scaling as experiment
    from course.training.progress import Progress
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, got {rounds}")
    found = machine.measure(choose(device))
    with Progress("four axes", as_json) as progress:
        rows = experiment.run(found, rounds, progress=progress.update)
    if as_json:
        print(json.dumps({"machine": found.as_dict(), "rows": rows}))
        return
    Console().print(speed_tables.scaling(found, rows))
