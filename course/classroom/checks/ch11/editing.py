"""Exercises 5 and 6: begin at a picture, and keep a part of it."""

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch11.answers import keep_known, start_from_image
from course.schedule import NoiseSchedule

# ---- 5 · begin at a picture

START = Exercise("pipeline.start_from_image", points=3, minutes=10, reference=start_from_image)
SCHEDULE = NoiseSchedule()
TEN = SCHEDULE.timesteps(10)                                    # 999, 899, ... 99


def _pair():
    return normal((2, 4, 3, 3), 1), normal((2, 4, 3, 3), 2)


@START.gate("returns (x, timesteps): x like z0, and the levels that are left")
def _(fn):
    z0, noise = _pair()
    out = fn(z0, noise, TEN, 0.5, SCHEDULE)
    if problem := several(out, ("x", "timesteps")):
        return problem
    if problem := tensor_like(out[0], (2, 4, 3, 3)):
        return f"x: {problem}"
    return None if isinstance(out[1], torch.Tensor) and out[1].ndim == 1 else "timesteps: expected a tensor (S',), a part of them"


def _levels(fn, strength: float, steps: int = 10):
    z0, noise = _pair()
    return fn(z0, noise, SCHEDULE.timesteps(steps), strength, SCHEDULE)[1].tolist()


@START.property("worked by hand: strength 0.3 of ten steps leaves the last three, 299, 199 and 99")
def _(fn):
    found, right = _levels(fn, 0.3), TEN[-3:].tolist()
    if found == right:
        return None
    names = {tuple(TEN[:3].tolist()): "these are the first three: the last ones, at low noise, are left",
             tuple(TEN[-7:].tolist()): "strength is the share that is walked, not the share that is kept: three levels",
             tuple(TEN.tolist()): "all levels are left: take the last ones only",
             tuple(right[::-1]): "the levels rise: they must fall from high to low"}
    return names.get(tuple(found), f"expected the levels {right}, got {found}")


@START.property("x is the picture at the first level that is left, exactly")
def _(fn):
    z0, noise = _pair()
    for strength in (0.3, 0.8):
        x, left = fn(z0, noise, TEN, strength, SCHEDULE)
        first = float(TEN[-int(10 * strength + 1e-9)])
        before, after = (SCHEDULE.add_noise(z0, noise, max(0.0, min(999.0, first + d))) for d in (100, -100))
        if problem := compare(x, SCHEDULE.add_noise(z0, noise, first), {
                "this is pure noise: image to image begins at the picture, with noise": noise,
                "no noise was added": z0,
                "this has the noise of the level before: the first of those that are left": before,
                "this has the noise of the level after: the first of those that are left": after,
                "this has the noise of the last level": SCHEDULE.add_noise(z0, noise, float(TEN[-1])),
                "this has the noise of level 999, whatever the strength": SCHEDULE.add_noise(z0, noise, 999.0),
                "noise was added without a schedule": z0 + noise}):
            return f"strength {strength}: {problem}"


@START.property("strength 1 walks all steps")
def _(fn):
    found = _levels(fn, 1.0)
    return None if found == TEN.tolist() else f"expected all of {TEN.tolist()}, got {found}"


@START.property("rounded down, but at least one step; 0.58 of 50 are 29")
def _(fn):
    for strength, steps, right in ((0.39, 10, 3), (0.01, 10, 1), (0.58, 50, 29)):
        found = len(_levels(fn, strength, steps))
        if found != right:
            why = {0: ": at least one step is walked", 10: ": at least one step is walked, and a slice [-0:] is the whole",
                   28: ": 0.58 * 50 is 28.999999999999996 to a computer: add 1e-9 first", 4: ": rounded down"}.get(found, "")
            return f"strength {strength} of {steps} steps are {right}, got {found}{why}"


@START.hygiene("leaves the latent and the noise as they were")
def _(fn):
    return touched(lambda z0, noise: fn(z0, noise, TEN, 0.5, SCHEDULE), *_pair())


# ---- 6 · keep a part

KNOWN = Exercise("pipeline.keep_known", points=3, minutes=10, reference=keep_known)


def _scene():
    x, known, eps = (normal((2, 4, 4, 4), seed) for seed in (3, 4, 5))
    keep = torch.zeros(1, 1, 4, 4)
    keep[..., :2] = 1                                          # the left half stays
    return x, known, eps, keep


def _asked(fn, t: float = 400.0, keep=None):
    x, known, eps, left = _scene()
    return fn(lambda x, t: eps, known, left if keep is None else keep, SCHEDULE)(x, t)


@KNOWN.gate("returns a function (x, t) -> eps like x")
def _(fn):
    x, known, eps, keep = _scene()
    out = fn(lambda x, t: eps, known, keep, SCHEDULE)
    if not callable(out):
        return f"expected a function blended(x, t), got {type(out).__name__}: return the inner function itself"
    return tensor_like(out(x, 400.0), (2, 4, 4, 4))


@KNOWN.property("where keep is 0 the denoiser is believed")
def _(fn):
    right = keep_known(lambda x, t: _scene()[2], _scene()[1], _scene()[3], SCHEDULE)
    x, known, eps, keep = _scene()
    found = _asked(fn)
    if torch.allclose(found[..., :2], eps[..., :2], atol=1e-5) and not torch.allclose(found[..., 2:], eps[..., 2:], atol=1e-3):
        return "the mask is the wrong way round: where keep is 1 the picture stays"
    return compare(found[..., 2:], right(x, 400.0)[..., 2:])


@KNOWN.property("where keep is 1 the answer is the eps that leads back to the known latent")
def _(fn):
    x, known, eps, keep = _scene()
    for t in (400.0, 950.0):
        right = SCHEDULE.to_eps(x, known, t, given="x0")
        if problem := compare(_asked(fn, t)[..., :2], right[..., :2], {
                "this is the known latent: a denoiser answers eps, schedule.to_eps(x, known, t, given=\"x0\")": known[..., :2],
                "this is the denoiser's answer: the known part is not used": eps[..., :2],
                "the known latent is an x_0, not a v: given=\"x0\"": SCHEDULE.to_eps(x, known, t, given="v")[..., :2],
                "this is the known latent with noise: the answer must be an eps": SCHEDULE.add_noise(known, eps, t)[..., :2],
                "this is x - known: eps has the factors of its level, schedule.to_eps": (x - known)[..., :2]}):
            return problem


@KNOWN.property("a soft mask mixes the two")
def _(fn):
    x, known, eps, keep = _scene()
    soft = torch.full((1, 1, 4, 4), 0.25)
    return compare(_asked(fn, keep=soft), keep_known(lambda x, t: eps, known, soft, SCHEDULE)(x, 400.0), {
        "the mask is the wrong way round": keep_known(lambda x, t: eps, known, 1 - soft, SCHEDULE)(x, 400.0)})


@KNOWN.property("the denoiser sees all of x: the hole has to fit what is around it")
def _(fn):
    x, known, _, keep = _scene()
    seen = []
    fn(lambda x, t: seen.append((x.clone(), t)) or x, known, keep, SCHEDULE)(x.clone(), 250.0)
    if not seen:
        return "the denoiser was not asked"
    if not torch.equal(seen[0][0], x):
        return "the denoiser was shown something else than x"
    if float(seen[0][1]) != 250.0:
        return f"the denoiser was asked about level {float(seen[0][1]):g} in place of 250"


@KNOWN.property("through a whole sampler: what is kept comes out as it was")
def _(fn):
    x, known, _, keep = _scene()
    denoiser = fn(lambda x, t: 0.3 * x, known, keep, SCHEDULE)
    levels = SCHEDULE.timesteps(6)
    bars = [*SCHEDULE.alpha_bar(levels).tolist(), 1.0]
    for t, bar, after in zip(levels.tolist(), bars, bars[1:], strict=False):
        eps = denoiser(x.clone(), float(t))
        x = after**0.5 * (x - (1 - bar) ** 0.5 * eps) / bar**0.5 + (1 - after) ** 0.5 * eps
    return compare(x[..., :2], known[..., :2], rtol=1e-3)


@KNOWN.hygiene("leaves its inputs as they were")
def _(fn):
    x, known, eps, keep = _scene()
    return touched(lambda x, known, keep: fn(lambda x, t: eps, known, keep, SCHEDULE)(x, 400.0), x, known, keep)
