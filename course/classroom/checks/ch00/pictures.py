"""Exercises 1 and 2: bytes to values and back, and many pictures on one sheet."""

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch00.answers import convert, make_grid

# ---- 1 · bytes and values

CONVERT = Exercise("pixels.convert", points=3, minutes=10, reference=convert)


def _bytes(shape, seed):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def _byte_result(value, shape):
    if not isinstance(value, torch.Tensor) or value.dtype != torch.uint8:
        return tensor_like(value, shape) or f"float values must come back as torch.uint8, got {value.dtype}"
    return None if tuple(value.shape) == shape else f"expected shape {shape}, got {tuple(value.shape)}"


@CONVERT.gate("uint8 (B,H,W,3) -> float (B,3,H,W), and float (B,3,H,W) -> uint8 (B,H,W,3)")
def _(fn):
    out = fn(_bytes((2, 4, 5, 3), 1))
    if isinstance(out, torch.Tensor) and tuple(out.shape) == (2, 4, 5, 3) and out.is_floating_point():
        return "bytes come as (B,H,W,3); the values need the colours in front of the rows: permute to (B,3,H,W)"
    if problem := tensor_like(out, (2, 3, 4, 5)):
        return f"for bytes: {problem}"
    if problem := _byte_result(fn(normal((2, 3, 4, 5), 1).clamp(-1, 1)), (2, 4, 5, 3)):
        return f"for values: {problem}"


@CONVERT.property("worked by hand: the bytes 0, 51 and 255 become -1, -0.6 and 1")
def _(fn):
    given = torch.tensor([0, 51, 255]).to(torch.uint8).reshape(1, 1, 1, 3)
    raw = given.double().reshape(1, 3, 1, 1)
    return compare(fn(given), raw / 127.5 - 1, {
        "this maps to 0 ... 1: divide by 127.5 and subtract 1 to reach -1 ... 1": raw / 255,
        "the -1 is missing: divided by 127.5 a byte lies in 0 ... 2": raw / 127.5,
        "divided by 128: the whitest byte 255 must become exactly 1, so divide by 127.5": raw / 128 - 1,
        "the range is -0.5 ... 0.5: the networks want -1 ... 1": raw / 255 - 0.5,
        "these are still bytes: divide by 127.5, then subtract 1": raw,
    })


@CONVERT.property("worked by hand: the values -1, -0.6 and 1 become the bytes 0, 51 and 255")
def _(fn):
    values = torch.tensor([-1.0, -0.6, 1.0]).reshape(1, 3, 1, 1)
    return _same_bytes(fn(values), [0, 51, 255], {
        (129, 179, 255): "-1 has wrapped round: add 1 before you multiply",
        (0, 50, 255): "50.99999 became 50: a conversion to uint8 cuts the fraction off, so round first",
        **dict.fromkeys([(0, 101, 254), (0, 102, 254)],
                        "multiplied by 255: the range -1 ... 1 is 2 wide, so add 1 and multiply by 127.5"),
    })


@CONVERT.property("rounds to the nearest byte, and cuts off what lies outside -1 ... 1")
def _(fn):
    # 99.6 and 100.4 in bytes
    near = torch.tensor([99.6, 100.4, 7.7]) / 127.5 - 1
    if problem := _same_bytes(fn(near.reshape(1, 3, 1, 1)), [100, 100, 8], {
            (99, 100, 7): "99.6 became 99: a conversion to uint8 cuts the fraction off, so round first"}):
        return problem
    outside = fn(torch.tensor([-1.2, 1.2, 3.0]).reshape(1, 3, 1, 1)).flatten().tolist()
    if outside != [0, 255, 255]:
        return f"the values -1.2, 1.2 and 3 became the bytes {outside}, not [0, 255, 255]: clamp to -1 ... 1 first"


@CONVERT.property("each colour stays where it is: axes are exchanged, not cut up anew")
def _(fn):
    given = _bytes((2, 3, 4, 3), 2)
    raw = given.double() / 127.5 - 1
    return compare(fn(given), raw.permute(0, 3, 1, 2), {
        "reshape keeps the order in memory and mixes rows with colours: use permute(0, 3, 1, 2)": raw.reshape(2, 3, 3, 4),
    })


@CONVERT.property("there and back is the same picture, for every byte")
def _(fn):
    given = torch.arange(256).repeat(3).to(torch.uint8).reshape(1, 16, 16, 3)
    back = fn(fn(given))
    if problem := _byte_result(back, (1, 16, 16, 3)):
        return problem
    wrong = int((back != given).sum())
    return f"{wrong} of 768 bytes came back changed" if wrong else None


@CONVERT.hygiene("leaves its input as it was")
def _(fn):
    return touched(fn, normal((1, 3, 2, 2), 3)) or touched(fn, _bytes((1, 2, 2, 3), 3))


def _same_bytes(out, expected, bugs):
    if problem := _byte_result(out, (1, 1, 1, 3)):
        return problem
    found = out.flatten().tolist()
    return None if found == expected else bugs.get(tuple(found), f"expected the bytes {expected}, got {found}")


# ---- 2 · many pictures on one sheet

GRID = Exercise("pixels.make_grid", points=3, minutes=15, reference=make_grid)


@GRID.gate("(N,C,H,W) -> one picture (C, rows, columns), gaps only between the pictures")
def _(fn):
    out = fn(normal((5, 3, 4, 6), 1), 3, 2, 1.0)
    if isinstance(out, torch.Tensor):
        hint = {(3, 12, 24): "a gap after each picture, the last too: rows * (H + gap) - gap",
                (3, 14, 26): "a border all round: gaps stand between the pictures only",
                (3, 8, 18): "there is no gap", (3, 4, 22): "5 pictures in 3 columns need two rows: round up",
                (3, 16, 14): "rows and columns are exchanged: `columns` pictures stand side by side"}
        if tuple(out.shape) in hint:
            return f"expected shape (3, 10, 22), got {tuple(out.shape)}: {hint[tuple(out.shape)]}"
    return tensor_like(out, (3, 10, 22))


@GRID.property("worked by hand: three pictures of one pixel in two columns")
def _(fn):
    out = fn(torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1), 2, 1, 9.0)
    expected = torch.tensor([[1.0, 9, 2], [9, 9, 9], [3, 9, 9]])[None]
    return compare(out, expected, {
        "filled column by column: picture 1 belongs to the right of picture 0": expected.mT,
        "the empty cell is 0: cells without a picture have the value of the gap":
            torch.tensor([[1.0, 9, 2], [9, 9, 9], [3, 9, 0]])[None],
        "gaps are 0: fill the sheet with `value`": torch.tensor([[1.0, 0, 2], [0, 0, 0], [3, 0, 0]])[None],
        "gaps are 1 whatever `value` says": torch.tensor([[1.0, 1, 2], [1, 1, 1], [3, 1, 1]])[None],
        "upside down: row 0 is the upper one": expected.flip(1),
    })


@GRID.property("every picture is found in its cell, for all numbers of columns")
def _(fn):
    images = normal((7, 2, 3, 4), 2)
    for columns in (1, 2, 3, 7):
        out = fn(images, columns, 2, 0.5)
        if problem := compare(out, make_grid(images, columns, 2, 0.5)):
            return f"7 pictures in {columns} columns: {problem}"


@GRID.property("a gap of 0 lets the pictures touch; the default is 2, with the value 1")
def _(fn):
    images = normal((4, 3, 2, 2), 3)
    if problem := compare(fn(images, 2, 0, 1.0), make_grid(images, 2, 0, 1.0)):
        return f"gap = 0: {problem}"
    if problem := compare(fn(images, 2), make_grid(images, 2)):
        return f"without gap and value: {problem}"


@GRID.property("a gradient flows back to every picture")
def _(fn):
    images = normal((3, 1, 2, 2), 4).requires_grad_()
    out = fn(images, 2, 1, 0.0)
    if not out.requires_grad:
        return "the sheet is cut off from the pictures: no .detach() and no numpy on the way"
    return compare(torch.autograd.grad(out.sum(), images)[0], torch.ones(3, 1, 2, 2))


@GRID.hygiene("leaves the pictures as they were")
def _(fn):
    return touched(lambda images: fn(images, 2, 1, 0.0), normal((3, 1, 2, 2), 5))
