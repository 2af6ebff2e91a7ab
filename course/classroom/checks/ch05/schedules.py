"""Exercises 1, 4 and 6: the numbers that a schedule holds, and which of them a sampler visits."""

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, several, tensor_like, touched
from course.classroom.checks.ch05.answers import KINDS, log_snr, make_schedule, timesteps

# ---- 1 · the schedule

MAKE_SCHEDULE = Exercise("schedule.make_schedule", points=3, minutes=15, reference=make_schedule)


@MAKE_SCHEDULE.gate("returns (betas, alphas_cumprod), floating tensors of shape (T,), for all three kinds")
def _(fn):
    for kind in KINDS:
        out = fn(kind, 7, 0.001, 0.01)
        problem = several(out, ("betas", "alphas_cumprod")) or tensor_like(out[0], (7,)) or tensor_like(out[1], (7,))
        if problem:
            return f"kind {kind!r}: {problem}"


@MAKE_SCHEDULE.property("worked by hand: linear betas 0.1, 0.2, 0.3 leave alpha_bar 0.9, 0.72, 0.504")
def _(fn):
    betas, alphas_cumprod = fn("linear", 3, 0.1, 0.3)
    right = torch.tensor([0.1, 0.2, 0.3])
    return compare(betas, right, {"the betas fall: they rise from beta_start to beta_end": right.flip(0)}) \
        or compare(alphas_cumprod, torch.tensor([0.9, 0.72, 0.504]), {
            "this is alpha_t = 1 - beta_t: alpha_bar_t is the product of all alphas up to t (torch.cumprod)": 1 - right,
            "this is the product of the betas: did you use betas instead of alphas = 1 - betas?": right.cumprod(0),
            "this is a sum: alpha_bar is a product of alphas (torch.cumprod)": (1 - right).cumsum(0),
            "this is 1 minus the sum of the betas: alpha_bar is a product of alphas": 1 - right.cumsum(0),
            "one step late: alpha_bar_0 already contains alpha_0": torch.tensor([1, 0.9, 0.72]),
            "this is 1 - alpha_bar, the power of the noise, not of the signal": torch.tensor([0.1, 0.28, 0.496]),
            "this is sqrt(alpha_bar): leave the root to add_noise": torch.tensor([0.9, 0.72, 0.504]).sqrt(),
        })


@MAKE_SCHEDULE.property("worked by hand: scaled_linear from 0.04 to 0.16 has 0.09 in the middle")
def _(fn):
    right = torch.tensor([0.04, 0.09, 0.16])
    return compare(fn("scaled_linear", 3, 0.04, 0.16)[0], right, {
        "these are the linear betas: scaled_linear is a straight line in sqrt(beta)": torch.tensor([0.04, 0.10, 0.16]),
        "these are sqrt(beta): square the straight line": right.sqrt(),
        "these are squares of linear betas: take the root of both ends first": torch.tensor([0.04, 0.10, 0.16]) ** 2,
    })


@MAKE_SCHEDULE.property("cosine: alpha_bar is cos² of an even grid, with the offset 0.008, and no beta above 0.999")
def _(fn):
    T = 10
    grid = torch.arange(T + 1, dtype=torch.float64) / T

    def variant(offset=0.008, power=2.0, clip=0.999):
        f = torch.cos((grid + offset) / (1 + offset) * torch.pi / 2) ** power
        return (1 - f[1:] / f[:-1]).clamp(max=clip)
    return compare(fn("cosine", T)[0], variant(), {
        "the last beta is not clipped to 0.999: alpha_bar becomes 0, by which nobody can divide": variant(clip=1.0),
        "the offset s = 0.008 is missing": variant(offset=0.0),
        "the offset is missing, and so is the clip at 0.999": variant(offset=0.0, clip=1.0),
        "the square of the cosine is missing": variant(power=1.0),
        "one step early: beta_t compares f(t + 1) with f(t)": torch.cat([torch.zeros(1), variant()[:-1]]),
    })


@MAKE_SCHEDULE.property("alpha_bar falls from nearly 1 to nearly 0 and never leaves (0, 1)")
def _(fn):
    for kind in KINDS:
        a = fn(kind, 1000)[1].detach().double()
        if not bool((a > 0).all() and (a < 1).all()):
            return f"kind {kind!r}: alpha_bar runs from {float(a.min()):.3g} to {float(a.max()):.3g}"
        if not bool((a.diff() < 0).all()):
            return f"kind {kind!r}: alpha_bar does not fall at every step"


@MAKE_SCHEDULE.property("equals the course's schedule for T = 1000 and T = 50")
def _(fn):
    for kind in KINDS:
        for T in (1000, 50):
            betas, alphas_cumprod = fn(kind, T, 0.0001, 0.02)
            right_betas, right = make_schedule(kind, T, 0.0001, 0.02)
            # alpha_bar ends near zero: compare ratios there, so that the end counts as much as the start
            problem = compare(betas, right_betas) or tensor_like(alphas_cumprod, (T,)) \
                or compare(alphas_cumprod.detach().double() / right, torch.ones(T), rtol=2e-3)
            if problem:
                return f"kind {kind!r}, T = {T}, betas 0.0001 ... 0.02: {problem}"


# ---- 4 · signal against noise

LOG_SNR = Exercise("schedule.log_snr", points=2, minutes=5, reference=log_snr)


@LOG_SNR.gate("returns (log_snr, t_half): a floating tensor of shape (T,) and an integer")
def _(fn):
    out = fn(make_schedule("linear", 7)[1])
    if problem := several(out, ("log_snr", "t_half")) or tensor_like(out[0], (7,)):
        return problem
    t = out[1].detach().item() if isinstance(out[1], Tensor) and out[1].numel() == 1 else out[1]
    return None if isinstance(t, int) else f"t_half is a step, an integer: got a {type(t).__name__}"


@LOG_SNR.property("worked by hand: alpha_bar 0.8, 0.5, 0.2 has SNR 4, 1, 1/4, so log SNR ln 4, 0, -ln 4")
def _(fn):
    a = torch.tensor([0.8, 0.5, 0.2], dtype=torch.float64)
    right = torch.tensor([4.0, 1.0, 0.25]).double().log()
    return compare(fn(a)[0], right, {
        "this is the SNR itself: take its natural logarithm": right.exp(),
        "this is the logarithm to base 10: use the natural one": right / torch.tensor(10.0).log(),
        "this is the logarithm to base 2: use the natural one": right / torch.tensor(2.0).log(),
        "this is noise over signal: the signal alpha_bar is the numerator": -right,
        "this is half of it: SNR is a ratio of powers, without square roots": right / 2,
        "this is log(alpha_bar): divide by the noise power 1 - alpha_bar first": a.log(),
        "this is in decibel: use the natural logarithm, without the factor 10": 10 * right / torch.tensor(10.0).log(),
    })


@LOG_SNR.property("t_half is the first step with log SNR below 0")
def _(fn):
    t = int(fn(torch.tensor([0.9, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64))[1])
    if t == 3:
        return None
    return {2: "for alpha_bar 0.9, 0.8, 0.6, 0.4, 0.2 it is step 3, got 2: that is the last step on the signal's side",
            4: "for alpha_bar 0.9, 0.8, 0.6, 0.4, 0.2 it is step 3, got 4: one too late, steps count from 0",
            0: "for alpha_bar 0.9, 0.8, 0.6, 0.4, 0.2 it is step 3, got 0: is the comparison the wrong way round?",
            }.get(t, f"for alpha_bar 0.9, 0.8, 0.6, 0.4, 0.2 it is step 3, got {t}")


@LOG_SNR.property("t_half is T where the noise never takes over")
def _(fn):
    t = int(fn(torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64))[1])
    return None if t == 3 else f"for alpha_bar 0.9, 0.8, 0.7 it should be 3, got {t}"


@LOG_SNR.property("equals the course's curve for all three kinds")
def _(fn):
    for kind in KINDS:
        a = make_schedule(kind)[1]
        values, t = fn(a)
        right, right_t = log_snr(a)
        problem = compare(values, right, rtol=1e-3)
        if problem or int(t) != right_t:
            problem = problem or f"t_half is {right_t}, got {int(t)}"
            return f"kind {kind!r}: {problem}"


@LOG_SNR.hygiene("leaves alphas_cumprod as it was")
def _(fn):
    return touched(lambda a: fn(a), make_schedule("linear", 7)[1])


# ---- 6 · which steps to visit

TIMESTEPS = Exercise("schedule.timesteps", points=2, minutes=10, reference=timesteps)


@TIMESTEPS.gate("returns an integer tensor of shape (steps,) for both spacings")
def _(fn):
    for spacing in ("trailing", "leading"):
        if problem := tensor_like(fn(5, 10, spacing), (5,), floating=False):
            return f"spacing {spacing!r}: {problem}"


def _steps(fn, steps: int, T: int, spacing: str, right: list[int]) -> str | None:
    got = fn(steps, T, spacing).tolist()
    if got == right:
        return None
    low, said = list(range(steps))[::-1], f"expected {right}, got {got}"
    return {
        tuple(low): f"{said}: these are the {steps} lowest of {T} levels; stride over all of them",
        tuple(right[::-1]): f"{said}: a sampler goes from noise to picture, from high t to low",
        tuple(r + 1 for r in right): f"{said}: one too high, t runs from 0 to T - 1",
        tuple(r - 1 for r in right): f"{said}: one too low",
        tuple(timesteps(steps, T, "leading").tolist()): f"{said}: this is the leading spacing",
        tuple(timesteps(steps, T, "trailing").tolist()): f"{said}: this is the trailing spacing",
    }.get(tuple(got), said)


@TIMESTEPS.property("worked by hand: trailing, 5 of 10 levels, visits 9, 7, 5, 3, 1")
def _(fn):
    return _steps(fn, 5, 10, "trailing", [9, 7, 5, 3, 1])


@TIMESTEPS.property("worked by hand: leading, 5 of 10 levels, visits 8, 6, 4, 2, 0")
def _(fn):
    return _steps(fn, 5, 10, "leading", [8, 6, 4, 2, 0])


@TIMESTEPS.property("every t lies in 0 ... T - 1, and they fall without repeating")
def _(fn):
    for spacing in ("trailing", "leading"):
        for steps, T in ((1, 1000), (7, 1000), (30, 1000), (64, 100), (100, 100)):
            t = fn(steps, T, spacing)
            if problem := tensor_like(t, (steps,), floating=False):
                return f"{steps} of {T}, {spacing!r}: {problem}"
            if int(t.min()) < 0 or int(t.max()) > T - 1:
                return f"{steps} of {T}, {spacing!r}: t must lie in 0 ... {T - 1}, got {t.tolist()[:4]} ..."
            if bool((t.diff() >= 0).any()):
                return f"{steps} of {T}, {spacing!r}: t must fall from step to step"


@TIMESTEPS.property("equals the course's steps, also where T / steps is no integer")
def _(fn):
    for spacing in ("trailing", "leading"):
        for steps, T in ((50, 1000), (1, 1000), (30, 1000), (1000, 1000), (12, 500)):
            got, right = fn(steps, T, spacing), timesteps(steps, T, spacing)
            # where the stride is no integer there are several ways to round a tie
            slack = 1 if spacing == "trailing" and T % steps else 0
            if tensor_like(got, (steps,), floating=False) or int((got - right).abs().max()) > slack:
                return f"{steps} of {T}, {spacing!r}: expected {right[:4].tolist()} ..., got {got[:4].tolist()} ..."
