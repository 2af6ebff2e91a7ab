"""Exercises 7 and 8: where a tensor lies in the authors' file, and what half precision keeps of it."""

import math

import torch

from course.classroom.checks import Exercise, normal, touched
from course.classroom.checks.ch11.answers import survey, unet_entry
from course.published import compvis

# ---- 7 · the other names

ENTRY = Exercise("published.unet_entry", points=3, minutes=20, reference=unet_entry)


def _says(fn, right: str, *where, **shape) -> str | None:
    found = fn(*where, **shape)
    if found == right:
        return None
    way, level, kind, index = where
    n = shape.get("layers_per_block", 2)
    if not isinstance(found, str):
        return f"expected a string, got {type(found).__name__}" + (": is the `return` missing?" if found is None else "")
    side, other = ("input_blocks", "output_blocks") if way == "down" else ("output_blocks", "input_blocks")
    said = f"{way}_blocks.{level}.{kind}.{index}: "
    if found.startswith(other):
        return f"{said}the way {way} lies in {side}"
    parts, wanted = found.split("."), right.split(".")
    if len(parts) > 2 and parts[1].isdigit() and parts[:1] == wanted[:1]:
        entry, should = int(parts[1]), int(wanted[1])
        if entry != should:
            if way == "down" and should - entry == 1 and level == 0:
                return f"{said}entry 0 is conv_in, so the blocks begin at 1; got {found}"
            if level and entry == should - level:
                return f"{said}a level takes layers_per_block + 1 = {n + 1} entries; expected entry {should}, got {entry}"
            return f"{said}expected entry {should}, got {entry}"
        if kind == "upsamplers" and parts[2] != wanted[2]:
            return (f"{said}the upsampler stands behind the transformer where its level has one (2), else behind the residual "
                    f"block (1): expected {right}, got {found}")
        if kind in ("resnets", "attentions") and parts[2] != wanted[2]:
            return f"{said}in an entry the residual block is 0 and the transformer 1: expected {right}, got {found}"
        if kind.endswith("samplers") and parts[-1] != wanted[-1]:
            return f"{said}it ends in .{wanted[-1]}: expected {right}, got {found}"
    return f"{said}expected {right}, got {found}"


@ENTRY.gate("returns a string that begins with input_blocks or output_blocks")
def _(fn):
    found = fn("down", 0, "resnets", 0)
    if not isinstance(found, str):
        return f"expected a string, got {type(found).__name__}" + (": is the `return` missing?" if found is None else "")
    return None if found.startswith(("input_blocks.", "output_blocks.")) else f"expected input_blocks. ..., got {found!r}"


@ENTRY.property("worked by hand: the first level on the way down")
def _(fn):
    for kind, index, right in (("resnets", 0, "input_blocks.1.0"), ("attentions", 0, "input_blocks.1.1"),
                               ("resnets", 1, "input_blocks.2.0"), ("downsamplers", 0, "input_blocks.3.0.op")):
        if problem := _says(fn, right, "down", 0, kind, index):
            return problem


@ENTRY.property("worked by hand: the first level on the way up is the lowest, without transformers")
def _(fn):
    for kind, index, right in (("resnets", 0, "output_blocks.0.0"), ("resnets", 2, "output_blocks.2.0"),
                               ("upsamplers", 0, "output_blocks.2.1.conv")):
        if problem := _says(fn, right, "up", 0, kind, index):
            return problem


@ENTRY.property("a level with transformers on the way up: the upsampler stands third")
def _(fn):
    for kind, index, right in (("attentions", 1, "output_blocks.4.1"), ("upsamplers", 0, "output_blocks.5.2.conv")):
        if problem := _says(fn, right, "up", 1, kind, index):
            return problem


def _everywhere(layers_per_block: int, attention: tuple[bool, ...]):
    """(way, level, kind, index) of all parts of such a U-Net, with the library's entry."""
    levels, up = len(attention), attention[::-1]
    for way, n, there in (("down", layers_per_block, attention), ("up", layers_per_block + 1, up)):
        for level in range(levels):
            parts = [("resnets", k) for k in range(n)] + [("attentions", k) for k in range(n) if there[level]]
            parts += [(f"{way}samplers", 0)] if level < levels - 1 else []
            for kind, index in parts:
                leaf = ".norm1.weight" if kind == "resnets" else ".norm.weight" if kind == "attentions" else ".conv.weight"
                name = compvis.unet_name(f"{way}_blocks.{level}.{kind}.{index}{leaf}", layers_per_block, list(up))
                name = name.removesuffix(".weight")
                for inner in (".in_layers.0", ".norm"):
                    name = name.removesuffix(inner)
                yield (way, level, kind, index), name


@ENTRY.property("every place of Stable Diffusion 1.5")
def _(fn):
    for where, right in _everywhere(2, (True, True, True, False)):
        if problem := _says(fn, right, *where):
            return problem


@ENTRY.property("and of other shapes: one or three blocks a level, other levels with transformers")
def _(fn):
    for n, attention in ((1, (True, True)), (3, (False, True, False)), (2, (False, True, True))):
        for where, right in _everywhere(n, attention):
            if problem := _says(fn, right, *where, layers_per_block=n, attention=attention):
                return f"layers_per_block {n}, attention {attention}: {problem}"


# ---- 8 · half of the bits

SURVEY = Exercise("weights.survey", points=3, minutes=15, reference=survey)
KEYS = ("bytes", "overflowed", "vanished", "relative")


@SURVEY.gate("returns a dict of bytes, overflowed, vanished and relative, of plain numbers")
def _(fn):
    found = fn([normal((3, 4), 1), normal((5,), 2)], torch.float16)
    if not isinstance(found, dict) or set(found) != set(KEYS):
        shown = sorted(found) if isinstance(found, dict) else type(found).__name__
        return f"expected a dict with the keys {', '.join(KEYS)}, got {shown}"
    for key in KEYS:
        kind = (int, float) if key == "relative" else int
        if isinstance(found[key], bool) or not isinstance(found[key], kind):
            return f"{key}: expected a plain number, got {type(found[key]).__name__}: int(...), float(...)"


@SURVEY.property("bytes: every value at the size of the dtype")
def _(fn):
    tensors = [normal((3, 4), 1), normal((5,), 2), torch.tensor(2.0)]
    for dtype, right in ((torch.float16, 36), (torch.bfloat16, 36), (torch.float32, 72)):
        found = fn(tensors, dtype)["bytes"]
        if found != right:
            why = {18: ": this is the number of values", 72: ": dtype.itemsize is the size of the new dtype",
                   24: ": all tensors count"}.get(found, "")
            return f"18 values in {dtype} take {right} bytes, got {found}{why}"


@SURVEY.property("overflowed: what float16 cannot hold becomes infinite; bfloat16 reaches as far as float32")
def _(fn):
    for dtype, right in ((torch.float16, 4), (torch.bfloat16, 0)):
        found = fn([torch.tensor([1.0, 65504.0, 65520.0, -1e5, 3e38]), torch.tensor([70000.0])], dtype)["overflowed"]
        if found != right:
            why = {3: ": negative values and all tensors count", 5: ": 65,504 is the largest that fits", 1: ": all tensors count"}
            return f"{right} of these values become infinite in {dtype}, got {found}{why.get(found, '') if right else ''}"


@SURVEY.property("vanished: what becomes 0 and was not")
def _(fn):
    tensors = [torch.tensor([0.0, 1e-8, -1e-9, 1e-4]), torch.tensor([0.0, 1e-12])]
    found = fn(tensors, torch.float16)["vanished"]
    if found != 3:
        why = {5: ": zeros were zero before", 2: ": negative values and all tensors count"}.get(found, "")
        return f"3 of these values become 0 in float16, got {found}{why}"


@SURVEY.property("relative: the norm of the errors over the norm of the values, over all tensors together")
def _(fn):
    tensors = [torch.tensor([1.0 + 2**-11 * 0.9, 2.0]), torch.tensor([3.0, 1000.3])]
    x = torch.cat(tensors).double()
    y = torch.cat([t.half() for t in tensors]).double()
    right, found = float((x - y).norm() / x.norm()), float(fn(tensors, torch.float16)["relative"])
    bugs = {"this is the mean of the values' own relative errors": float(((x - y).abs() / x.abs()).mean()),
            "this is the largest relative error": float(((x - y).abs() / x.abs()).max()),
            "the norm of the values is missing: errors over values": float((x - y).norm()),
            "this is the square: take norms, not sums of squares": right**2,
            "all tensors together, not the mean of their errors": sum(
                float((t.double() - t.half().double()).norm() / t.double().norm()) for t in tensors) / 2}
    if abs(found - right) <= 1e-3 * right:
        return None
    return next((bug for bug, wrong in bugs.items() if abs(found - wrong) <= 1e-3 * wrong),
                f"expected {right:.3g}, got {found:.3g}: is the difference taken in float64?")


@SURVEY.property("what overflowed is left out of it, what vanished is not")
def _(fn):
    found = float(fn([torch.tensor([1.0, 1e6, 3e-9])], torch.float16)["relative"])
    if not math.isfinite(found):
        return "one infinite value makes the error infinite: leave out what overflowed"
    if abs(found - 3e-9) > 1e-10:
        return f"1 is exact and 3e-9 is lost, so the error is 3e-9, got {found:.3g}"


@SURVEY.hygiene("leaves the tensors as they were")
def _(fn):
    return touched(lambda a, b: fn([a, b], torch.float16), normal((3, 4), 3), normal((5,), 4))
