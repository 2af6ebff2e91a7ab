"""Exercises 6 and 7: second order, by looking ahead (Heun) and by remembering (DPM-Solver++ 2M)."""

import math

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch07.answers import ddim, dpmpp_2m, heun, levels
from course.classroom.checks.ch07.loops import SCHEDULE, TIMES, Gaussian, constant

HEUN = Exercise("samplers.heun", points=4, minutes=20, reference=heun)
DPMPP = Exercise("samplers.dpmpp_2m", points=4, minutes=25, reference=dpmpp_2m)


def order(fn) -> float:
    """The order of convergence on an ODE whose solution is known: data N(1, 0.5^2)."""
    x, errors = normal((200, 1), 7, torch.float64), []
    def solve(steps):
        return fn(Gaussian(), x, SCHEDULE.timesteps(steps, "karras"), schedule=SCHEDULE)
    fine = heun(Gaussian(), x, SCHEDULE.timesteps(160, "karras"), schedule=SCHEDULE)
    for steps in (10, 40):
        errors.append(float((solve(steps) - fine).pow(2).mean().sqrt()))
    return math.log(errors[0] / max(errors[1], 1e-15)) / math.log(4)


def doubled(x, ts):
    """Where a constant eps leads if all steps but the last, which is Euler's, are twice as long."""
    sigma = [((1 - b) / b) ** 0.5 for b in levels(ts, SCHEDULE)[1]]
    y = x / (1 + sigma[0] ** 2) ** -0.5 + 0.5 * (2 * (sigma[-2] - sigma[0]) - sigma[-2])
    return {"each step is twice as long: take the mean of both slopes, and start again from y": y}


def slips(x, ts):
    """Where a constant eps leads if one part of 2M's step is wrong."""
    return {"the exponent is -h: math.expm1(-h)": two_m(x, exponent=math.expm1, ts=ts, denoiser=constant),
            "the -1 is missing: e^-h - 1 is math.expm1(-h)":
                two_m(x, exponent=lambda h: math.exp(-h), ts=ts, denoiser=constant),
            "the ratio is upside down: x is multiplied by s_next / s":
                two_m(x, linear=lambda s, after: s / after, ts=ts, denoiser=constant),
            "the last step is missing: at sigma = 0 the result is x0, not x":
                two_m(x, ts=ts, denoiser=constant, last=False)}


def common(exercise, mistakes):
    @exercise.gate("returns a tensor like x")
    def _(fn):
        return tensor_like(fn(constant, normal((2, 3, 4, 4), 1), TIMES, schedule=SCHEDULE), (2, 3, 4, 4))

    @exercise.property("worked by hand: a constant eps leads to x0 = (x - s eps) / a, however many steps")
    def _(fn):
        x, alpha_bar = normal((3, 2), 2, torch.float64), float(SCHEDULE.alphas_cumprod[999])
        a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        for ts in (TIMES[:1], TIMES):
            if problem := compare(fn(constant, x, ts, schedule=SCHEDULE), (x - s * 0.5) / a, {
                    "x was never divided by a: the ODE is that of y = x / a": x - s / a * 0.5,
                    "the sign of the step is turned: sigma_next - sigma is negative": (x + s * 0.5) / a,
                    "the result is at the scale of the first level: multiply by a_next at every step": x - s * 0.5,
                    **mistakes(x, ts)}):
                return f"{len(ts)} step{'s' * (len(ts) > 1)}: {problem}"


common(HEUN, doubled)


@HEUN.property("asks twice a step, at both ends of the stride; once in the last")
def _(fn):
    denoiser, t = Gaussian(), TIMES.tolist()
    fn(denoiser, normal((2, 2), 3), TIMES, schedule=SCHEDULE)
    expected = [u for now, after in zip(t, t[1:], strict=False) for u in (now, after)] + t[-1:]
    if denoiser.asked == expected:
        return None
    if denoiser.asked == t:
        return "the denoiser is asked once a step: Heun asks a second time, at the end of the stride"
    if denoiser.asked == [u for u in t for _ in "12"][:-1]:
        return "the second question is asked at t: ask at the next timestep, where the first guess lies"
    return f"expected to be asked at {expected[:5]} ..., was asked at {denoiser.asked[:5]} ..."


@HEUN.property("equals the course's Heun")
def _(fn):
    x = normal((5, 2), 4, torch.float64)
    right = heun(Gaussian(), x, TIMES, schedule=SCHEDULE)
    ts, bars = levels(TIMES, SCHEDULE)
    sigma, a = [((1 - b) / b) ** 0.5 for b in bars], [b**0.5 for b in bars]

    def variant(share, scaled=True, start_at=True):
        y, denoiser = x / a[0], Gaussian()
        for i, t in enumerate(ts):
            step, first = sigma[i + 1] - sigma[i], denoiser(a[i] * y, t)
            there = y + step * first
            if i + 1 < len(ts):
                second = denoiser((a[i + 1] if scaled else 1) * there, ts[i + 1])
                there = (y if start_at else there) + step * ((1 - share) * first + share * second)
            y = there
        return y
    return compare(fn(Gaussian(), x, TIMES, schedule=SCHEDULE), right, {
        "only the second slope is used: take the mean of both": variant(1.0),
        "the second slope is computed but not used: take the mean of both": variant(0.0),
        "the denoiser was handed y: it wants x = a_next y": variant(0.5, scaled=False),
        "the mean slope is applied on top of the first step: start again from y": variant(0.5, start_at=False)})


@HEUN.property("second order: four times the steps, a sixteenth of the error")
def _(fn):
    found = order(fn)
    return None if 1.6 < found < 3 else f"the error falls with the power {found:.2f} of the number of steps, not 2"


@HEUN.hygiene("leaves x and the timesteps as they were")
def _(fn):
    return touched(lambda x, ts: fn(Gaussian(), x, ts, schedule=SCHEDULE), normal((2, 2), 6), TIMES)


common(DPMPP, slips)


@DPMPP.property("asks once a step")
def _(fn):
    denoiser = Gaussian()
    fn(denoiser, normal((2, 2), 3), TIMES, schedule=SCHEDULE)
    if denoiser.asked != TIMES.tolist():
        return f"the timesteps are {TIMES.tolist()}, the denoiser was asked at {denoiser.asked[:8]}"


@DPMPP.property("two steps are first order, so DDIM's")
def _(fn):
    x, ts = normal((5, 2), 4, torch.float64), torch.tensor([999, 500])
    if compare(fn(Gaussian(), x, ts, schedule=SCHEDULE), ddim(Gaussian(), x, ts, schedule=SCHEDULE)):
        return ("the first step has no memory and the last, to sigma = 0, uses x0 alone, so two steps must equal DDIM's: "
                "x_next = s_next / s x - a_next (exp(-h) - 1) x0")


def two_m(x, weight=lambda h, b: h / (2 * b), exponent=lambda h: math.expm1(-h), linear=lambda s, after: after / s, *,
          ts=TIMES, denoiser=None, last=True):
    """DPM-Solver++ 2M with this weight of the difference, as a function of (h, the h before)."""
    ts, bars = levels(ts, SCHEDULE)
    a, s = [b**0.5 for b in bars], [(1 - b) ** 0.5 for b in bars]
    lam, before, denoiser = [math.log(p / q) for p, q in zip(a, s[:-1], strict=False)], None, denoiser or Gaussian()
    for i, t in enumerate(ts):
        x0 = (x - s[i] * denoiser(x, t)) / a[i]
        if i + 1 == len(ts):
            return x0 if last else x
        h = lam[i + 1] - lam[i]
        D = x0 if before is None else x0 + weight(h, lam[i] - lam[i - 1]) * (x0 - before)
        x, before = linear(s[i], s[i + 1]) * x - a[i + 1] * exponent(h) * D, x0


@DPMPP.property("equals the course's 2M on strides of unequal length")
def _(fn):
    x = normal((5, 2), 4, torch.float64)
    return compare(fn(Gaussian(), x, TIMES, schedule=SCHEDULE), two_m(x, lambda h, b: h / (2 * b)), {
        "there is no memory in it: D extends the line through the last two x0": two_m(x, lambda h, b: 0),
        "the ratio is upside down: the line goes on by h / (2 h_before)": two_m(x, lambda h, b: b / (2 * h)),
        "the 2 is missing in 1 / (2 r): D is x0 in the middle of the stride": two_m(x, lambda h, b: h / b),
        "the difference has the wrong sign: x0 - x0_before": two_m(x, lambda h, b: -h / (2 * b)),
        "r = 1 is assumed: these strides have unequal lengths in lambda": two_m(x, lambda h, b: 0.5)})


@DPMPP.property("second order: four times the steps, a sixteenth of the error")
def _(fn):
    found = order(fn)
    return None if 1.5 < found < 3 else f"the error falls with the power {found:.2f} of the number of steps, not 2"


@DPMPP.hygiene("leaves x and the timesteps as they were")
def _(fn):
    return touched(lambda x, ts: fn(Gaussian(), x, ts, schedule=SCHEDULE), normal((2, 2), 6), TIMES)
