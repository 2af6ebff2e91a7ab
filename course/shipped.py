"""The trained models that come with the course, in half precision, each with a note of where it came from.

    python -m course.shipped runs/ldm-scenes64 scenes64        packs a run's model into course/weights/scenes64
    ... runs/distill-scenes64 scenes64-fast --part 2-steps     packs what one of its rounds has made

`provenance.json` beside the weights: recipe, command, commit, seed, device, hash of the data, metrics, sha256 of each file.
`shared.json`: which files are those of another model that comes with the course.
"""

import hashlib
import json
from pathlib import Path

import typer
from rich.console import Console

from course import files
from course.errors import CheckpointError
from course.pipeline import SHIPPED

NOTES = {"provenance.json", "shared.json"}


def pack(run: str | Path, name: str, into: Path = SHIPPED, part: str = "") -> Path:
    """Copy what `run` trained, or one `part` of it, such as 2-steps; returns the new folder.

    Raises CheckpointError where the run is not finished.
    """
    run, folder = Path(run), Path(into) / name
    notes = notes_of(run)
    if "metrics" not in notes:
        raise CheckpointError(f"{run} is no finished run of `course train`: expected metrics.json in it")
    for path in sorted((run / part / "model").iterdir()):
        if path.suffix == ".safetensors":
            tensors, metadata = files.load_tensors(path)
            files.save_tensors(folder / path.name, {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()},
                               metadata)
        else:
            files.write_bytes(folder / path.name, path.read_bytes())
    notes["sha256"] = {p.name: digest(p) for p in sorted(folder.iterdir()) if p.name not in NOTES}
    if elsewhere := {p.name: f"../{other}/{p.name}" for p in sorted(folder.glob("*.safetensors")) for other in names(into)
                     if other != name and same(p, Path(into) / other / p.name)}:
        files.write_json(folder / "shared.json", elsewhere)
        for file in elsewhere:                                 # kept once
            (folder / file).unlink()
    files.write_json(folder / "provenance.json", notes)
    return folder


def same(path: Path, other: Path) -> bool:
    return other.is_file() and path.stat().st_size == other.stat().st_size and digest(path) == digest(other)


def notes_of(run: Path, told: tuple = ()) -> dict:
    """What a run wrote down before it began, measured at its end, or was at when it was stopped; and what it was built on.

    `told` are the runs that a later one has spoken of already.
    """
    try:
        notes = json.loads((run / "run.json").read_text("utf-8"))
        if (run / "metrics.json").is_file():
            notes["metrics"] = json.loads((run / "metrics.json").read_text("utf-8"))
        elif (run / "log.jsonl").is_file():
            notes["stopped"] = json.loads((run / "log.jsonl").read_text("utf-8").splitlines()[-1])
    except (OSError, ValueError):
        raise CheckpointError(f"{run} is no finished run of `course train`: expected run.json and metrics.json in it") from None
    given = {kind: earlier for kind, earlier in (notes.get("given") or {}).items() if earlier is not None}
    for kind, earlier in given.items():
        if earlier not in told and (Path(earlier) / "run.json").is_file():
            notes[kind] = notes_of(Path(earlier), (*told, *given.values()))
    return notes


def check(name: str, folder: Path = SHIPPED) -> list[str]:
    """What is wrong with a shipped model's files; nothing, if all is well."""
    noted = json.loads((folder / name / "provenance.json").read_text())["sha256"]
    there = {p.name for p in (folder / name).iterdir()} - NOTES
    place = {n: files.shared(folder / name, n) for n in noted}
    return ([f"{name}: {n} is missing" for n in noted if not place[n].is_file()]
            + [f"{name}: {n} is not in provenance.json" for n in sorted(there) if n not in noted]
            + [f"{name}: {n} has another checksum" for n in noted if place[n].is_file() and digest(place[n]) != noted[n]])


def names(folder: Path = SHIPPED) -> list[str]:
    return sorted(p.parent.name for p in folder.glob("*/provenance.json"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(run: Path, name: str, part: str = "") -> None:
    folder = pack(run, name, part=part)
    size = sum(p.stat().st_size for p in folder.iterdir())
    Console().print(f"{folder}: {size / 1e6:.1f} MB", highlight=False)


if __name__ == "__main__":
    typer.run(main)
