"""Exercises 4 and 5: a picture by its frequencies."""

import math

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch01.answers import low_pass, power_spectrum, radii


def wave(side: int, down: int, across: int, phase: float = 0.4):
    """One cosine of (down, across) cycles per picture; (1,1,S,S), power 1/2."""
    line = torch.arange(side, dtype=torch.float64) / side
    return torch.cos(2 * math.pi * (down * line[:, None] + across * line[None, :]) + phase)[None, None].float()


# ---- 4 · power spectrum

POWER_SPECTRUM = Exercise("pixels.power_spectrum", points=4, minutes=15, reference=power_spectrum)


@POWER_SPECTRUM.gate("(B,C,S,S) -> (S // 2 + 1,), real")
def _(fn):
    for side in (8, 16):
        if problem := tensor_like(fn(normal((2, 3, side, side), 1)), (side // 2 + 1,)):
            return f"S = {side}: {problem}"


@POWER_SPECTRUM.property("worked by hand: one wave with 3 cycles across fills ring 3, and no other")
def _(fn):
    j, total = torch.arange(16), 16 * 16 / 2                                           # a cosine's mean square is 1/2
    u, v = torch.minimum(j, 16 - j)[:, None], torch.minimum(j, 16 - j)[None, :]
    count = int((radii(16).round() == 3).sum())
    others = {"floor": radii(16).floor(), "larger": torch.maximum(u, v), "sum": u + v,
              "up": (j[:, None] ** 2 + j[None, :] ** 2).double().sqrt().round()}
    count_of = {name: int((ring == 3).sum()) for name, ring in others.items()}
    only = torch.zeros(9, dtype=torch.float64)
    only[3] = total
    out = fn(wave(16, 0, 3))
    strongest = int(out.detach().abs().argmax())
    signs = "frequencies are fftfreq(S) * S, which runs 0, 1, ... and then the negative ones"
    if strongest != 3:
        return f"the wave has 3 cycles, and its power is in ring {strongest}: {signs}"
    return compare(out, only / count, {
        "the ring's power is summed: divide by how many frequencies lie in it": only,
        "norm='ortho' is missing: this power is S * S times too large": only / count * 16**2,
        "this is the amplitude: square it": only / total * 2 * math.sqrt(total / 2) / count,
        f"half of the wave is missing: {signs}": only / 2 / count_of["up"],
        "radii are cut off: round them, so that ring 3 is 2.5 to 3.5": only / count_of["floor"],
        "the radius is sqrt(u * u + v * v), not the larger of both": only / count_of["larger"],
        "the radius is sqrt(u * u + v * v), not the sum of both": only / count_of["sum"]})


@POWER_SPECTRUM.property("direction does not matter: 3 down and 4 across are 5 cycles")
def _(fn):
    out = fn(wave(32, 3, 4)).detach().double()
    where = int(out.argmax())
    if where in (3, 4, 7):
        how = {3: "the rows", 4: "the larger of both", 7: "the sum of both"}[where]
        return f"3 down and 4 across landed in ring {where}, {how}: the radius is sqrt(3 * 3 + 4 * 4) = 5"
    return None if where == 5 else f"3 down and 4 across landed in ring {where} instead of 5"


@POWER_SPECTRUM.property("a constant picture has power in ring 0 only: its square, times S * S")
def _(fn):
    right = torch.zeros(5, dtype=torch.float64)
    right[0] = 64 * 0.25
    return compare(fn(torch.full((1, 3, 8, 8), 0.5)), right, {
        "the mean of the picture was subtracted: ring 0 keeps it": right * 0,
        "the channels are summed: take their mean": 3 * right})


@POWER_SPECTRUM.property("white noise of variance 1 has power 1 in every ring")
def _(fn):
    out = fn(normal((64, 3, 16, 16), 3)).detach().double()
    if float((out - 1).abs().max()) > 0.15:
        return f"power should be 1 everywhere, got {out.min():.3g} to {out.max():.3g}"


@POWER_SPECTRUM.property("equals the course's spectrum, of even and odd sides")
def _(fn):
    for side in (16, 15):
        x = normal((2, 3, side, side), side).cumsum(-1)
        ring = radii(side)
        power = torch.fft.fft2(x.double(), norm="ortho").abs().pow(2).mean((0, 1))
        down = torch.stack([power[ring.floor() == k].mean() for k in range(side // 2 + 1)])
        if problem := compare(fn(x), power_spectrum(x.double()), {
                "radii are cut off: round them, so that ring 3 is 2.5 to 3.5": down}, rtol=1e-3):
            return f"S = {side}: {problem}"


@POWER_SPECTRUM.hygiene("leaves the pictures as they were")
def _(fn):
    return touched(fn, normal((2, 3, 8, 8), 5))


# ---- 5 · low pass

LOW_PASS = Exercise("pixels.low_pass", points=3, minutes=10, reference=low_pass)


@LOW_PASS.gate("(B,C,S,S) -> the same shape and dtype, real")
def _(fn):
    x = normal((2, 3, 8, 8), 1)
    out = fn(x, 2)
    if isinstance(out, torch.Tensor) and out.is_complex():
        return "the result is complex: take the real part of ifft2"
    if problem := tensor_like(out, (2, 3, 8, 8)):
        return problem
    return None if out.dtype == x.dtype else f"x is {x.dtype}, the result is {out.dtype}"


@LOW_PASS.property("worked by hand: a wave of 3 cycles stays at cutoff 3 and is gone at 2.9")
def _(fn):
    x = wave(16, 0, 3)
    at, below = fn(x, 3), fn(x, 2.9)
    lost, left = (float(y.abs().max()) for y in (at, below))
    if lost < 1e-3 and float((below - x).abs().max()) < 1e-3:
        return "the slow waves are taken out and the fast ones kept: keep radius <= cutoff"
    if lost < 1e-3:
        return "at cutoff 3 the wave of 3 cycles is gone: keep radius <= cutoff, with radii in cycles per picture"
    if problem := compare(at, x, rtol=1e-3):
        return problem
    if left > 1e-3:
        return ("at cutoff 2.9 the wave of 3 cycles is still there: are frequencies in cycles per picture, "
                "fftfreq(S) * S?")


@LOW_PASS.property("the wave may run in any direction: 3 down and 4 across are 5 cycles")
def _(fn):
    for down, across in ((3, 4), (4, 3), (0, 5), (5, 0), (-3, 4)):
        x = wave(32, down, across)
        if float((fn(x, 5) - x).abs().max()) > 1e-3:
            return (f"{down} down and {across} across should stay at cutoff 5: is a frequency kept by its radius, "
                    "sqrt(down * down + across * across), and negative ones like positive ones?")
        if float(fn(x, 4.5).abs().max()) > 1e-3:
            return f"{down} down and {across} across are 5 cycles and should be gone at 4.5: a circle, not a square"


@LOW_PASS.property("the mean stays, whatever the cutoff")
def _(fn):
    x = normal((2, 3, 8, 8), 2) + 1
    return compare(fn(x, 0), x.mean((2, 3), keepdim=True).expand_as(x), {
        "the mean of each picture is lost: frequency 0 has radius 0 and stays": torch.zeros_like(x).double()})


@LOW_PASS.property("twice is once, and nothing is lost at a large cutoff")
def _(fn):
    x = normal((2, 3, 9, 9), 3)
    once = fn(x, 2.5)
    if compare(fn(once, 2.5), once):
        return "filtering a second time changes the picture again: frequencies are kept or dropped, not weakened"
    return compare(fn(x, 100), x)


@LOW_PASS.property("equals the course's filter")
def _(fn):
    x = normal((2, 3, 16, 16), 4)
    return compare(fn(x, 4), low_pass(x, 4), {
        "frequencies of radius exactly `cutoff` stay too: <=, not <":
            torch.fft.ifft2(torch.fft.fft2(x) * (radii(16) < 4)).real.double()})


@LOW_PASS.property("a gradient flows back to the picture")
def _(fn):
    x = normal((1, 1, 8, 8), 5).requires_grad_()
    return None if fn(x, 2).requires_grad else "the result is cut off from x: no .detach() or numpy on the way"


@LOW_PASS.hygiene("leaves the picture as it was")
def _(fn):
    return touched(lambda x: fn(x, 2), normal((1, 3, 8, 8), 6))
