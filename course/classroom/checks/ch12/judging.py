"""Exercises 5 to 7: pictures beside words, a verdict from intervals, and figures looked up in a published table."""

import torch
import torch.nn.functional as F

from course.classroom.checks import Exercise, normal, several, touched
from course.classroom.checks.ch12.answers import clip_score, rows_with, verdict
from course.classroom.checks.ch12.clouds import plain

# ---- 5 · the CLIP score

CLIP = Exercise("metrics.clip_score", points=3, minutes=10, reference=clip_score)


@CLIP.gate("returns (score, found), two plain numbers")
def _(fn):
    out = fn(normal((4, 6), 1), normal((4, 3, 6), 2))
    return several(out, ("score", "found")) or next((p for v in out if (p := plain(v, v))), None)


@CLIP.property("worked by hand: (3, 4) and (8, 6) have the cosine 0.96")
def _(fn):
    pictures, captions = torch.tensor([[3.0, 4.0]]), torch.tensor([[[8.0, 6.0], [5.0, 12.0]]])
    score, found = fn(pictures, captions)
    other = (15 + 48) / 65
    return plain(score, 0.96, {
        "this is the product of vectors as they are: divide by both lengths": 48.0,
        "the pictures' vectors have to be of length one, too": 4.8, "the captions' vectors have to be of length one, too": 9.6,
        "only the first caption is the picture's own: the others are near misses": (0.96 + other) / 2,
        "this is the largest of all captions: the first is the picture's own": other,
        "the factor 2.5 is not asked for": 2.4, "this is 100 times the cosine": 96.0,
        "normalised over the wrong axis: each vector has length one": 2.0}, rtol=1e-3) or plain(found, 0.0, {
            "the own caption is the first; here a near miss is nearer": 1.0})


def _case(n=40, M=4, D=8):
    pictures = normal((n, D), 3)
    captions = normal((n, M, D), 4) * torch.arange(1, M + 1).reshape(1, M, 1)
    captions[:, 0] = pictures + 1.5 * normal((n, D), 5)
    return pictures, captions


@CLIP.property("score: the mean over pictures of the cosine with their own caption")
def _(fn):
    pictures, captions = _case()
    u, v = (F.normalize(x, dim=-1) for x in (pictures, captions))
    return plain(fn(pictures, captions)[0], clip_score(pictures, captions)[0], {
        "every picture met the captions of all: a picture belongs to its own row": float((u @ v[:, 0].T).mean()),
        "normalised over the wrong axis: each vector has length one": float(
            (F.normalize(pictures, dim=0) * F.normalize(captions, dim=0)[:, 0]).sum(-1).mean()),
        "cosines below 0 were cut off: take the plain mean": float((u * v[:, 0]).sum(-1).clamp(min=0).mean())})


@CLIP.property("cosines below 0 count as they are")
def _(fn):
    pictures = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    captions = torch.tensor([[[-1.0, 0.0]], [[0.0, 2.0]]])
    return plain(fn(pictures, captions)[0], 0.0, {"cosines below 0 were cut off: take the plain mean": 0.5})


@CLIP.property("found: the share of pictures whose own caption is the nearest of their M")
def _(fn):
    pictures, captions = _case()
    u, v = (F.normalize(x, dim=-1) for x in (pictures, captions))
    among_all = float(((u @ v[:, 0].T).argmax(1) == torch.arange(len(u))).double().mean())
    unscaled = float(((pictures[:, None] * captions).sum(-1).argmax(1) == 0).double().mean())
    right = clip_score(pictures, captions)[1]
    return plain(fn(pictures, captions)[1], right, {
        "this is the share that is not found": 1 - right, "the near misses of other pictures do not count": among_all,
        "the nearest by angle, not by product: normalise first": unscaled,
        "this is a number of pictures: divide by n": 40 * right})


@CLIP.hygiene("leaves the vectors as they were")
def _(fn):
    return touched(fn, normal((4, 6), 6), normal((4, 3, 6), 7))


# ---- 6 · a verdict

VERDICT = Exercise("metrics.verdict", points=2, minutes=10, reference=verdict)
WORDS = ("supported", "contradicted", "inconclusive")


def _says(fn, pairs, right: str, why: str) -> str | None:
    found = fn(pairs)
    return None if found == right else f"{why}: expected {right!r}, got {found!r}"


@VERDICT.gate("returns one of the words supported, contradicted, inconclusive")
def _(fn):
    found = fn([((1.0, 2.0), (3.0, 4.0))])
    return None if found in WORDS else f"expected one of {', '.join(WORDS)}, got {found!r}"


@VERDICT.property("one pair, apart: (1, 2) lies below (3, 4)")
def _(fn):
    return (_says(fn, [((1.0, 2.0), (3.0, 4.0))], "supported", "the first interval ends below the second")
            or _says(fn, [((3.0, 4.0), (1.0, 2.0))], "contradicted", "the first interval begins above the second"))


@VERDICT.property("intervals that overlap or touch decide nothing, wherever their middles lie")
def _(fn):
    for first, second in (((1.0, 3.0), (2.0, 6.0)), ((2.0, 6.0), (1.0, 3.0)), ((1.0, 2.0), (2.0, 3.0)), ((2.0, 3.0), (1.0, 2.0)),
                          ((1.0, 9.0), (4.0, 5.0)), ((4.0, 5.0), (1.0, 9.0))):
        if problem := _says(fn, [(first, second)], "inconclusive", f"{first} and {second} have a value in common"):
            return problem


@VERDICT.property("several pairs: one that is clearly the other way contradicts, whatever the others say")
def _(fn):
    good, open_, bad = ((1.0, 2.0), (3.0, 4.0)), ((1.0, 3.0), (2.0, 4.0)), ((5.0, 6.0), (3.0, 4.0))
    for pairs in ([good, bad], [bad, good], [open_, bad, good], [good, open_, bad]):
        if problem := _says(fn, pairs, "contradicted", "the claim is about every pair, and one is clearly the other way"):
            return problem


@VERDICT.property("several pairs: supported only if every one is clearly so")
def _(fn):
    good, open_ = ((1.0, 2.0), (3.0, 4.0)), ((1.0, 3.0), (2.0, 4.0))
    for pairs in ([good, open_], [open_, good], [good, good, open_]):
        if problem := _says(fn, pairs, "inconclusive", "one of the pairs decides nothing"):
            return problem
    return _says(fn, [good, ((0.0, 1.0), (1.5, 2.0))], "supported", "both pairs are clearly so")


@VERDICT.property("no pair at all supports nothing")
def _(fn):
    return _says(fn, [], "inconclusive", "`all` of nothing is true, but nothing was measured")


# ---- 7 · which row?

ROWS = Exercise("metrics.rows_with", points=3, minutes=15, reference=rows_with)
TABLE = [{"model": "A", "FID": 6.95, "IS": 203.6}, {"model": "B", "FID": 4.59, "IS": 186.7, "parameters": 608},
         {"model": "C", "FID": 10.94, "IS": 100.98, "parameters": 554},
         {"model": "D", "FID": 3.60, "IS": 247.67, "parameters": 400},
         {"model": "E", "FID": 10.56, "IS": None, "parameters": 400}]


@ROWS.gate("returns (models, {figure: models}): a list, and a dict of lists")
def _(fn):
    out = fn(TABLE, {"FID": 4.59}, 0.05)
    if problem := several(out, ("models", "by figure")):
        return problem
    whole, parts = out
    if not isinstance(whole, list) or not isinstance(parts, dict) or not all(isinstance(v, list) for v in parts.values()):
        return "expected a list of models and a dict with a list of models for each figure"
    return None if all(isinstance(m, str) for m in whole) else "expected the models' names, row[\"model\"], not whole rows"


@ROWS.property("one figure: the models that have it")
def _(fn):
    for figures, right in (({"FID": 4.59}, ["B"]), ({"parameters": 400}, ["D", "E"]), ({"IS": 999.0}, [])):
        whole, parts = fn(TABLE, figures, 0.05)
        key = next(iter(figures))
        if list(whole) != right:
            return f"{figures}: expected the models {right}, got {whole}"
        if {k: list(v) for k, v in parts.items()} != {key: right}:
            return f"{figures}: expected by figure {({key: right})}, got {parts}"


@ROWS.property("several figures: whole rows have them all; each figure also by itself")
def _(fn):
    mixed = {"FID": 4.59, "IS": 186.7, "parameters": 554}
    whole, parts = fn(TABLE, mixed, 0.05)
    if list(whole):
        return f"no row has FID 4.59, IS 186.7 and 554 parameters, got {whole}: a model counts if it has every figure" + (
            ", not any" if len(whole) > 1 else "")
    right = {"FID": ["B"], "IS": ["B"], "parameters": ["C"]}
    if {k: list(v) for k, v in parts.items()} != right:
        return f"by figure: expected {right}, got {parts}"
    whole, _ = fn(TABLE, {"FID": 3.60, "parameters": 400}, 0.05)
    return None if list(whole) == ["D"] else f"FID 3.60 and 400 parameters stand in the row of D, got {whole}"


@ROWS.property("figures may be rounded: within the tolerance, up or down, both ends included")
def _(fn):
    for value in (247.7, 247.62, 247.72):
        if list(fn(TABLE, {"IS": value}, 0.05)[0]) != ["D"]:
            return f"IS {value} is 247.67 within 0.05: abs(difference) <= tolerance, with 1e-9 for the computer's own rounding"
    if list(fn(TABLE, {"IS": 247.8}, 0.05)[0]):
        return "IS 247.8 is more than 0.05 away from every row"
    return None if list(fn(TABLE, {"IS": 250.0}, 5.0)[0]) == ["D"] else "the tolerance is an argument: 250 is 247.67 within 5"


@ROWS.property("a row without the figure, or with None, does not fit and does not raise")
def _(fn):
    whole, parts = fn(TABLE, {"parameters": 0.0, "IS": 0.0}, 0.05)
    if list(whole) or any(parts.values()):
        return f"no row has 0 parameters or IS 0: a missing figure is not 0; got {whole}, {parts}"


@ROWS.hygiene("leaves the table as it was")
def _(fn):
    rows = [dict(r) for r in TABLE]
    fn(rows, {"FID": 4.59}, 0.05)
    return None if rows == TABLE else "the rows were changed"
