"""The oracle against a pair of eyes: 200 pictures of scenes64 that somebody has looked at, one by one, and put into words.

    python -m course.evaluation.labelled                         reads the pictures with the oracle, and compares
    python -m course.evaluation.labelled --out docs/oracle       also writes labelled.md there
    python -m course.evaluation.labelled --sheets runs/sheets    the pictures, numbered and without their prompts, to label anew
    python -m course.evaluation.labelled --draw                  draws them again first, and says whether they are the same

`oracle_study` measures the instrument on pictures that the course has drawn; a model's mistakes are of another kind: shapes in
between two, colours that run. Labels (`data/labelled.json`) were written down before prompts and readings were looked at.
"""

import hashlib
import io
import json
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor

from course import files, pixels
from course.data import Scenes, oracle
from course.data.oracle import ObjectReading, Reading
from course.data.vocabulary import POSITIONS, Scene, relation
from course.errors import UsageError
from course.evaluation.sweep import wilson
from course.pipeline import StableDiffusion

DATA = Path(__file__).parent / "data"
PLAN = {"test": 120, "heldout": 80}        # pictures; heldout: of pairs never trained on together, which go wrong more often
SEED, STEPS, GUIDANCE, BATCH = 0, 25, 1.5, 50
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ACROSS = 20                                # pictures in a row of labelled.png


def asked() -> list[tuple[Scene, str]]:
    """What each of the pictures was to show, and in which words; the splits mixed."""
    both = []
    for split, n in PLAN.items():
        data = Scenes(64, split, objects=(1, 3), textures=("plain",), degraded=0.0)
        both += zip(data.scenes(range(n)), data.captions(range(n), full=True), strict=True)
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(SEED))
    return [both[i] for i in order]


def draw() -> Tensor:
    """(200,3,64,64) bytes, by the model that comes with the course."""
    pipe, said = StableDiffusion.load("scenes64"), [words for _, words in asked()]
    return torch.cat([pixels.to_bytes(pipe.decode(pipe.latents(said[i: i + BATCH], steps=STEPS, guidance_scale=GUIDANCE,
                                                               seed=SEED + i))) for i in range(0, len(said), BATCH)])


def png(images: Tensor) -> bytes:
    """Pictures (n,3,S,S) bytes side by side in rows of 20, without loss."""
    n, _, S, _ = images.shape
    whole = images.view(n // ACROSS, ACROSS, 3, S, S).permute(0, 3, 1, 4, 2).reshape(n // ACROSS * S, ACROSS * S, 3)
    page = io.BytesIO()
    Image.fromarray(whole.numpy()).save(page, "PNG", optimize=True)
    return page.getvalue()


def pictures(path: Path = DATA / "labelled.png", S: int = 64) -> Tensor:
    """What `png` has put together; (n,3,S,S) bytes."""
    whole = torch.from_numpy(np.array(Image.open(path).convert("RGB")))                 # (rows S, 20 S, 3)
    return whole.view(-1, S, ACROSS, S, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, S, S)


def digest(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def sheets(folder: Path, images: Tensor, each: int = 25, side: int = 160) -> None:
    """Pages of pictures, numbered from 0, with marks at the quarters of every side and nothing that says what was asked."""
    across, gap = 5, 26
    for first in range(0, len(images), each):
        page = Image.new("RGB", (across * (side + gap) + gap, -(-each // across) * (side + gap) + gap), "#888888")
        pen = ImageDraw.Draw(page)
        for k, image in enumerate(images[first: first + each]):
            x, y = gap + k % across * (side + gap), gap + k // across * (side + gap)
            page.paste(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.LANCZOS), (x, y))
            pen.text((x, y - 20), str(first + k), fill="white", font_size=15)
            for share in (0.25, 0.5, 0.75):
                pen.line((x + share * side, y - 5, x + share * side, y - 1), fill="white")
                pen.line((x - 5, y + share * side, x - 1, y + share * side), fill="white")
        content = io.BytesIO()
        page.save(content, "PNG")
        files.write_bytes(folder / f"sheet-{first // each}.png", content.getvalue())


# ---- words

def labels() -> list[dict]:
    """Of each picture {"background", "objects": ["large blue plain star", ...]} and, for one object, its "position", for several
    the "relations" of 1 to 2, 1 to 3, 2 to 3. "?" is what the eye had no word for."""
    return json.loads((DATA / "labelled.json").read_text("utf-8"))["labels"]


def as_reading(label: dict) -> Reading:
    """A label in the oracle's own form, so that both are scored by one rule. Raises UsageError where no places fit the words.

    Several objects get some places that lie to each other as the label says; nothing but that is asked of them later.
    """
    words = [[None if word == "?" else word for word in thing.split()] for thing in label["objects"]]
    where = label.get("position")
    for spots in [[POSITIONS[where]]] if where else product(product(range(5), repeat=2), repeat=len(words)):
        things = [ObjectReading(shape, color, size, texture, where, x, y, 0.0, 0.0)
                  for (size, color, texture, shape), (x, y) in zip(words, spots, strict=True)]
        two = list(combinations(things, 2))
        if where or ([relation(a, b) for a, b in two] == label["relations"]
                     and [relation(b, a) for a, b in two] == [OPPOSITE[word] for word in label["relations"]]):
            return Reading(tuple(things), None if label["background"] == "?" else label["background"])
    raise UsageError(f"nothing can lie like this: {label}")


def compared(eye: Reading, machine: Reading) -> dict[str, list[tuple]]:
    """What (the eye, the oracle) says of each thing that both were asked. Objects are matched as suits them best."""
    found = {"count": [(len(eye.objects), len(machine.objects))], "background": [(eye.background, machine.background)]}
    if len(eye.objects) != len(machine.objects):
        return found
    keys = ("shape", "color", "size", "texture")

    def pairs(order) -> dict[str, list[tuple]]:
        things = list(zip(eye.objects, order, strict=True))
        said = {key: [(getattr(a, key), getattr(b, key)) for a, b in things] for key in keys}
        if len(things) == 1:
            return said | {"position": [(a.position, b.position) for a, b in things]}
        return said | {"relation": [(relation(a, c), relation(b, d)) for (a, b), (c, d) in combinations(things, 2)]}
    best = max(map(pairs, permutations(machine.objects)), key=lambda said: sum(a == b for two in said.values() for a, b in two))
    return found | best


def shows(eye: Reading, scene: Scene) -> bool:
    """All right, by the oracle's rule; of objects that look the same, each may be the one that was meant."""
    return any(oracle.score(Reading(order, eye.background), scene)["all"] for order in permutations(eye.objects))


def study(images: Tensor, said: list[dict], wanted: list[Scene]) -> dict:
    """{"rows": agreement of each attribute with Wilson's interval, "right": both judges' shares, "table": how their verdicts
    meet, "differ": every disagreement in words}."""
    eyes, machines = [as_reading(label) for label in said], oracle.read(pixels.to_unit(images))
    pairs, differ, verdicts = {}, [], []
    for i, (eye, machine, scene) in enumerate(zip(eyes, machines, wanted, strict=True)):
        for key, two in compared(eye, machine).items():
            pairs.setdefault(key, []).extend(two)
            differ += [{"picture": i, "what": key, "eye": a, "oracle": b} for a, b in two if a != b]
        verdicts.append((shows(eye, scene), oracle.score(machine, scene)["all"]))
    pairs["all right"] = verdicts
    rows = []
    for key, two in pairs.items():
        agree = sum(a == b for a, b in two)
        low, high = wilson(agree, len(two))
        rows.append({"what": key, "n": len(two), "agree": agree, "share": agree / len(two), "low": low, "high": high})
    right = {}
    for name, own in (("eye", [v[0] for v in verdicts]), ("oracle", [v[1] for v in verdicts])):
        low, high = wilson(sum(own), len(own))
        right[name] = {"right": sum(own), "share": sum(own) / len(own), "low": low, "high": high}
    differ += [{"picture": i, "what": "all right", "eye": a, "oracle": b} for i, (a, b) in enumerate(verdicts) if a != b]
    return {"rows": rows, "right": right, "differ": differ, "table": {
        f"eye {a}, oracle {b}": verdicts.count((x, y)) for x, a in ((True, "right"), (False, "wrong"))
        for y, b in ((True, "right"), (False, "wrong"))}}


def told(found: dict, about: dict) -> str:
    """The page of a study, in Markdown."""
    def percent(row: dict) -> str:
        return f"{100 * row['share']:.1f} % | {100 * row['low']:.1f} – {100 * row['high']:.1f}"
    n = found["rows"][0]["n"]
    lines = ["# The oracle against a pair of eyes", "",
             f"{n} pictures that scenes64 drew ({about['drawn']}), labelled {about['who']} on {about['date']}, "
             f"blind to prompt and reading. {about['how']}", "",
             "| what | asked | agree | share | 95 % |", "|---|---|---|---|---|"]
    lines += [f"| {r['what']} | {r['n']} | {r['agree']} | {percent(r)} |" for r in found["rows"]]
    lines += ["", "Of objects, the figures are for pictures in which both see as many. *All right* is the rule of `course bench "
              "prompts`, applied to the label and to the reading.", "", "| judge | all right | share | 95 % |",
              "|---|---|---|---|"]
    lines += [f"| {name} | {r['right']} | {percent(r)} |" for name, r in found["right"].items()]
    lines += ["", "; ".join(f"{name}: {count}" for name, count in found["table"].items()) + ".", "",
              "Every disagreement:", "", "| picture | what | the eye | the oracle |", "|---|---|---|---|"]

    def word(said) -> str:
        return "no word" if said is None else ("wrong", "right")[said] if isinstance(said, bool) else str(said)
    lines += [f"| {d['picture']} | {d['what']} | {word(d['eye'])} | {word(d['oracle'])} |"
              for d in sorted(found["differ"], key=lambda d: (d["picture"], d["what"]))]
    return "\n".join([*lines, "", "Made by `python -m course.evaluation.labelled --out docs/oracle`."]) + "\n"


def main(out: Path | None = None, sheets_in: Path | None = typer.Option(None, "--sheets"), draw_anew: bool = typer.Option(
        False, "--draw"), as_json: bool = typer.Option(False, "--json")) -> None:
    kept = json.loads((DATA / "labelled.json").read_text("utf-8"))
    images = pictures()
    if digest(images) != kept["sha256"]:
        raise UsageError(f"the labels are of other pictures than those in {DATA / 'labelled.png'}")
    if draw_anew:
        again = draw()
        apart = (again.int() - images.int()).abs().flatten(1).amax(1)
        Console().print(f"drawn again: {int((apart == 0).sum())} of {len(images)} pictures are the same to the byte, the others "
                        f"differ by up to {int(apart.max())} of 255")
    if sheets_in:
        sheets(sheets_in, images)
    found = study(images, kept["labels"], [scene for scene, _ in asked()])
    if out:
        files.write_bytes(out / "labelled.md", told(found, kept).encode())
    print(json.dumps(found) if as_json else told(found, kept))


if __name__ == "__main__":
    typer.run(main)
