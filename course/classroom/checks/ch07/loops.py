"""Exercises 4 and 5: DDIM over strided timesteps, down to the picture and up to the noise."""

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch07.answers import ddim, ddim_invert, ddim_step, levels
from course.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()                                      # made at import, before anything is swapped
TIMES = torch.tensor([999, 700, 400, 150, 20])


class Gaussian:
    """The exact denoiser of data N(1, 0.5^2), which notes what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, t):
        self.asked.append(float(t))
        alpha_bar = float(SCHEDULE.alpha_bar(float(t)))
        return (1 - alpha_bar) ** 0.5 * (x - alpha_bar**0.5) / (alpha_bar * 0.25 + 1 - alpha_bar)


def constant(x, t):
    return torch.full_like(x, 0.5)


def wrong_loop(x, ts, nexts):
    """DDIM with these alpha_bar after each step."""
    denoiser = Gaussian()
    for t, after in zip(ts, nexts, strict=True):
        x, _ = ddim_step(x, denoiser(x, t), float(SCHEDULE.alpha_bar(float(t))), after)
    return x


# ---- 4 · the loop

DDIM = Exercise("samplers.ddim", points=4, minutes=15, reference=ddim)


@DDIM.gate("returns a tensor like x")
def _(fn):
    return tensor_like(fn(constant, normal((2, 3, 4, 4), 1), TIMES, schedule=SCHEDULE), (2, 3, 4, 4))


@DDIM.property("asks the denoiser once at each of the timesteps, in their order")
def _(fn):
    denoiser = Gaussian()
    fn(denoiser, normal((2, 2), 2), TIMES, schedule=SCHEDULE)
    if denoiser.asked == TIMES.tolist():
        return None
    if denoiser.asked == TIMES.tolist()[::-1]:
        return "the timesteps are walked in reverse: they already run from high to low"
    if denoiser.asked == list(range(len(TIMES)))[::-1] or denoiser.asked == list(range(len(TIMES))):
        return "the denoiser is told the number of the step: tell it the timestep"
    return f"the timesteps are {TIMES.tolist()}, the denoiser was asked at {denoiser.asked[:8]}"


@DDIM.property("worked by hand: one step from t = 999 ends at x0 = (x - s eps) / a")
def _(fn):
    x, alpha_bar = torch.ones(1, 2).double(), float(SCHEDULE.alphas_cumprod[999])
    found = fn(constant, x, torch.tensor([999]), schedule=SCHEDULE)
    first = float(SCHEDULE.alphas_cumprod[0])
    return compare(found, ddim_step(x, 0.5 * x, alpha_bar, 1.0)[0], {
        "the last step stops at alpha_bar_0: after it alpha_bar is 1": ddim_step(x, 0.5 * x, alpha_bar, first)[0],
        "the last step goes to alpha_bar of the neighbour: the stride ends at alpha_bar = 1":
            ddim_step(x, 0.5 * x, alpha_bar, float(SCHEDULE.alphas_cumprod[998]))[0],
        "nothing has changed: the last timestep needs a step, too": x})


@DDIM.property("every stride goes to the alpha_bar of the next timestep")
def _(fn):
    x, ts = normal((4, 3), 3, torch.float64), TIMES.tolist()
    _, bars = levels(TIMES, SCHEDULE)
    neighbour = [float(SCHEDULE.alphas_cumprod[max(t - 1, 0)]) for t in ts]
    return compare(fn(Gaussian(), x, TIMES, schedule=SCHEDULE), wrong_loop(x, ts, bars[1:]), {
        "the step goes to t - 1: the next level is that of the next timestep of the list": wrong_loop(x, ts, neighbour),
        "the step goes to t - 1: the next level is that of the next timestep":
            wrong_loop(x, ts, [*neighbour[:-1], 1.0]),
        "the last step stops at alpha_bar_0: after it alpha_bar is 1":
            wrong_loop(x, ts, [*bars[1:-1], float(SCHEDULE.alphas_cumprod[0])]),
        "the last timestep got no step": wrong_loop(x, ts[:-1], bars[1:-1])})


@DDIM.property("eta = 1 adds fresh noise in every step but the last, drawn from the generator")
def _(fn):
    def run(seed, eta):
        x = normal((1, 20_000), 4)
        return fn(Gaussian(), x, TIMES, schedule=SCHEDULE, eta=eta, generator=torch.Generator().manual_seed(seed))
    one, same, other = run(1, 1.0), run(1, 1.0), run(2, 1.0)
    if not torch.equal(one, same):
        return "two runs with the same seed differ: pass generator=generator to torch.randn"
    if torch.equal(one, other):
        return "two seeds give the same result: is eta handed to the step, and the noise drawn from the generator?"
    right = ddim(Gaussian(), normal((1, 20_000), 4), TIMES, schedule=SCHEDULE, eta=1.0,
                 generator=torch.Generator().manual_seed(1))
    if abs(float(one.std() / right.std()) - 1) > 0.03 or abs(float((one - right).mean())) > 0.03:
        return (f"the samples should have mean {right.mean():.2f} and deviation {right.std():.2f}, got {one.mean():.2f} "
                f"and {one.std():.2f}: is the noise standard normal, fresh in each step, and of x's shape?")
    if not torch.equal(run(1, 0.0), run(2, 0.0)):
        return "eta = 0 must not depend on the seed"


@DDIM.property("callback(i, t, x, x0) is called after every step")
def _(fn):
    seen = []
    out = fn(Gaussian(), normal((2, 2), 5), TIMES, schedule=SCHEDULE, callback=lambda *given: seen.append(given))
    if [(i, float(t)) for i, t, *_ in seen] != list(enumerate(TIMES.tolist())):
        return f"expected {len(TIMES)} calls with i = 0, 1, ... and the timestep, got {len(seen)}"
    if not torch.equal(seen[-1][2], out):
        return "the last x handed to the callback is not the result: call it after the step"
    return compare(seen[-1][3], out, rtol=1e-4)                 # where no noise is left, x and x0 are one


@DDIM.hygiene("leaves x and the timesteps as they were")
def _(fn):
    return touched(lambda x, ts: fn(Gaussian(), x, ts, schedule=SCHEDULE), normal((2, 2), 6), TIMES)


# ---- 5 · and back

INVERT = Exercise("samplers.ddim_invert", points=3, minutes=15, reference=ddim_invert)


@INVERT.gate("returns a tensor like x0")
def _(fn):
    return tensor_like(fn(constant, normal((2, 3, 4, 4), 1), TIMES, schedule=SCHEDULE), (2, 3, 4, 4))


@INVERT.property("climbs: the denoiser is asked at the level where x is, the first time at the lowest")
def _(fn):
    denoiser, up = Gaussian(), TIMES.tolist()[::-1]
    fn(denoiser, normal((2, 2), 2), TIMES, schedule=SCHEDULE)
    if denoiser.asked == [up[0], *up[:-1]]:
        return None
    if denoiser.asked == TIMES.tolist():
        return "the timesteps are walked from high to low: encoding climbs, from low to high"
    if denoiser.asked == up:
        return ("each step asks at the level it goes to: ask at the level where x is "
                f"({[up[0], *up[:-1]]} for {TIMES.tolist()})")
    return f"expected to be asked at {[up[0], *up[:-1]]}, was asked at {denoiser.asked[:8]}"


@INVERT.property("worked by hand: with a constant eps the way up is a x0 + s eps")
def _(fn):
    x0, alpha_bar = normal((3, 2), 3, torch.float64), float(SCHEDULE.alphas_cumprod[999])
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    last = float(SCHEDULE.alphas_cumprod[700])
    return compare(fn(constant, x0, TIMES, schedule=SCHEDULE), a * x0 + s * 0.5, {
        "the top level is not reached: the last step goes up to the first of the timesteps":
            last**0.5 * x0 + (1 - last) ** 0.5 * 0.5,
        "the noise is subtracted": a * x0 - s * 0.5,
        "the levels are one step late: the first step starts at alpha_bar = 1, where there is no noise":
            ddim_step(x0, torch.full_like(x0, 0.5), float(SCHEDULE.alphas_cumprod[20]), alpha_bar)[0]})


@INVERT.property("equals the course's encoder")
def _(fn):
    x0 = 1 + 0.5 * normal((50, 2), 4, torch.float64)
    return compare(fn(Gaussian(), x0, TIMES, schedule=SCHEDULE), ddim_invert(Gaussian(), x0, TIMES, schedule=SCHEDULE))


@INVERT.property("with 200 steps, sampling from the code gives the data back to 1 %")
def _(fn):
    ts, x0 = SCHEDULE.timesteps(200), 1 + 0.5 * normal((50, 2), 5, torch.float64)
    back = ddim(Gaussian(), fn(Gaussian(), x0, ts, schedule=SCHEDULE), ts, schedule=SCHEDULE)
    off = float((back - x0).pow(2).mean().sqrt())
    return None if off < 0.01 else f"the round trip is off by {off:.3f}"


@INVERT.hygiene("leaves x0 and the timesteps as they were")
def _(fn):
    return touched(lambda x, ts: fn(Gaussian(), x, ts, schedule=SCHEDULE), normal((2, 2), 6), TIMES)
