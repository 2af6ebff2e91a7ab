"""Checks of chapter 05, the forward process."""

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched

KINDS = ("linear", "scaled_linear", "cosine")
EASY = torch.tensor([0.64, 0.0784], dtype=torch.float64)       # roots 0.8 and 0.28, of the rest 0.6 and 0.96


# ---- the course's own answers: as in `course.schedule`, but out of reach of `parts.swapped`, which may be in force

def make_schedule(kind: str, num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012):
    if kind == "cosine":
        u = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        f = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    else:
        power = 2 if kind == "scaled_linear" else 1
        ends = (beta_start ** (1 / power), beta_end ** (1 / power))
        betas = torch.linspace(*ends, num_steps, dtype=torch.float64) ** power
    return betas, torch.cumprod(1 - betas, dim=0)


def diffuse_stepwise(x0: Tensor, betas: Tensor, t: int, generator=None) -> Tensor:
    x = x0
    for beta in betas[: t + 1].tolist():
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        x = (1 - beta) ** 0.5 * x + beta**0.5 * noise
    return x


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    a, s = _coefficients(x0, t, alphas_cumprod)
    return a * x0 + s * noise


def log_snr(alphas_cumprod: Tensor) -> tuple[Tensor, int]:
    values = torch.logit(alphas_cumprod)
    return values, int((values >= 0).sum())                    # it only falls, so counting is finding


def convert(x_t: Tensor, prediction: Tensor, t: Tensor, alphas_cumprod: Tensor, given: str):
    a, s = _coefficients(x_t, t, alphas_cumprod)
    if given == "v":
        return a * x_t - s * prediction, s * x_t + a * prediction, prediction
    x0 = (x_t - s * prediction) / a if given == "eps" else prediction
    eps = (x_t - a * prediction) / s if given == "x0" else prediction
    return x0, eps, a * eps - s * x0


def timesteps(steps: int, num_steps: int = 1000, spacing: str = "trailing") -> Tensor:
    if spacing == "leading":
        return torch.arange(steps).flip(0) * (num_steps // steps)
    return torch.tensor([round(num_steps - i * num_steps / steps) - 1 for i in range(steps)])


def _coefficients(like: Tensor, t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt().to(like), (1 - alpha_bar).sqrt().to(like)


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


# ---- 2 · one step after the other

DIFFUSE = Exercise("schedule.diffuse_stepwise", points=3, minutes=10, reference=diffuse_stepwise)


def _diffuse(fn, x0, betas, t, seed=0):
    return fn(x0, torch.tensor(betas, dtype=torch.float64), t, generator=torch.Generator().manual_seed(seed))


@DIFFUSE.gate("returns a tensor of the shape and dtype of x0")
def _(fn):
    x0 = normal((2, 3, 4, 5), 1)
    out = _diffuse(fn, x0, [0.1, 0.2], 1)
    if problem := tensor_like(out, (2, 3, 4, 5)):
        return problem
    return None if out.dtype == x0.dtype else f"x0 is {x0.dtype}, the result is {out.dtype}"


@DIFFUSE.property("worked by hand: steps with beta = 0 change nothing, a step with beta = 1 leaves noise only")
def _(fn):
    x0 = torch.full((4, 1000), 5.0)
    one, before, after = (_diffuse(fn, x0, [0.0, 0.0, 1.0, 0.0], t) for t in (0, 1, 2))
    if not torch.allclose(one, x0):
        return "one step with beta = 0 has changed x0: the noise has the factor sqrt(beta), the signal sqrt(1 - beta)"
    if not torch.allclose(before, x0):
        return "betas are 0, 0, 1 and t = 1, yet x0 has changed: step t is the last one, step t + 1 must not run"
    if torch.allclose(after, x0):
        return "betas are 0, 0, 1 and t = 2, yet x0 is unchanged: t counts from 0, so steps 0 ... t are t + 1 steps"
    if float(after.std()) < 1e-3:
        return "all values got the same noise: draw noise of x0's shape"
    if abs(float(after.mean())) > 0.1:
        return f"a step with beta = 1 must leave mean 0, got {float(after.mean()):.2f}: x0's factor is sqrt(1 - beta)"


@DIFFUSE.property("mean and variance after ten steps are sqrt(alpha_bar) x0 and 1 - alpha_bar")
def _(fn):
    b, n, level = 0.1, 10, 4.0
    a = (1 - b) ** n
    out = _diffuse(fn, torch.full((1, 60_000), level), [b] * n, n - 1).double()
    mean, var = float(out.mean()), float(out.var())
    if var < 1e-6:
        return "all values got the same noise: draw noise of x0's shape"
    # the standard errors are 0.0033 and 0.0047
    if abs(mean - a**0.5 * level) > 0.02:
        return _first(mean, 0.03, {
            "the signal is multiplied by 1 - beta: did you forget the square root?": (1 - b) ** n * level,
            "the signal is not scaled down: its factor is sqrt(1 - beta)": level,
            "the signal is multiplied by sqrt(beta): signal and noise are exchanged": b ** (n / 2) * level,
        }) or f"the mean of 60,000 values should be {a**0.5 * level:.3f}, got {mean:.3f}"
    if abs(var - (1 - a)) > 0.03:
        chain = sum((1 - b) ** (k / 2) for k in range(n))
        return _first(var, 0.04, {
            "the noise of all steps is one and the same draw: call randn in every step": b * chain**2,
            "the noise is multiplied by beta: did you forget the square root?": b * (1 - a),
            "the noise is not scaled: its factor is sqrt(beta)": (1 - a) / b,
            "only one draw of noise was added: every step adds its own": b,
        }) or f"the variance of 60,000 values should be {1 - a:.3f}, got {var:.3f}"


@DIFFUSE.property("each step uses its own beta")
def _(fn):
    betas = [0.5, 0.02, 0.02, 0.02, 0.02]
    a = float((1 - torch.tensor(betas)).prod())
    mean = float(_diffuse(fn, torch.full((1, 40_000), 4.0), betas, 4).double().mean())
    if abs(mean - a**0.5 * 4) > 0.03:
        return f"betas 0.5, 0.02, 0.02, 0.02, 0.02 should leave a mean of {a**0.5 * 4:.3f}, got {mean:.3f}"


@DIFFUSE.property("the generator decides the noise: same seed, same result; another seed, another")
def _(fn):
    x0 = normal((2, 50), 2)
    one, same, other = (_diffuse(fn, x0, [0.1] * 5, 4, seed) for seed in (1, 1, 2))
    if not torch.equal(one, same):
        return "two runs with the same seed differ: pass generator=generator to torch.randn"
    if torch.equal(one, other):
        return "two seeds give the same result: do not seed inside the function"


@DIFFUSE.hygiene("leaves x0 and betas as they were")
def _(fn):
    return touched(lambda x0, betas: fn(x0, betas, 2, generator=torch.Generator().manual_seed(0)),
                   normal((2, 3), 3), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))


def _first(value: float, tolerance: float, bugs: dict[str, float]) -> str | None:
    """The first bug whose value is within `tolerance`, relative where the value is large."""
    return next((bug for bug, wrong in bugs.items() if abs(value - wrong) < tolerance * max(1, abs(wrong))), None)


# ---- 3 · all steps at once

ADD_NOISE = Exercise("schedule.add_noise", points=3, minutes=10, reference=add_noise)


@ADD_NOISE.gate("one t per picture: (B,C,H,W), (B,C,H,W), (B,) -> (B,C,H,W), in the dtype of x0")
def _(fn):
    x0, noise, ac = normal((2, 3, 4, 5), 1), normal((2, 3, 4, 5), 2), make_schedule("linear", 10)[1]
    try:
        out = fn(x0, noise, torch.tensor([0, 9]), ac)
    except RuntimeError as error:
        if "must match" in str(error) or "size of tensor" in str(error):
            return ("alphas_cumprod[t] has shape (B,) and torch lines shapes up from the right, against W: "
                    "reshape it to (B,1,1,1)")
        raise
    if problem := tensor_like(out, (2, 3, 4, 5)):
        return problem
    if out.dtype != x0.dtype:
        return f"x0 is {x0.dtype}, the result is {out.dtype}: bring the coefficients to x0's dtype"


@ADD_NOISE.property("worked by hand: alpha_bar 0.64 and 0.0784, x0 = 1, noise = 10 give 6.8 and 9.88")
def _(fn):
    x0, noise = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), 10.0)
    a = EASY.reshape(2, 1, 1, 1)
    r, s, n, again = a.sqrt(), (1 - a).sqrt(), 10, a.cumprod(0)
    return compare(fn(x0, noise, torch.tensor([0, 1]), EASY), r + s * n, {
        "did you forget both square roots? sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise": a + (1 - a) * n,
        "did you forget the square root of alpha_bar, in front of x0?": a + s * n,
        "did you forget the square root of 1 - alpha_bar, in front of the noise?": r + (1 - a) * n,
        "signal and noise are exchanged: sqrt(alpha_bar) belongs to x0": s + r * n,
        "the noise is subtracted: it is added": r - s * n,
        "the noise has the factor 1 - sqrt(alpha_bar): it is sqrt(1 - alpha_bar)": r + (1 - r) * n,
        "x0 is not scaled down: its factor is sqrt(alpha_bar)": 1 + s * n,
        "the noise is not scaled: its factor is sqrt(1 - alpha_bar)": r + n,
        "did you read t one step early? alphas_cumprod[t] already counts from 0": r.roll(1, 0) + s.roll(1, 0) * n,
        "all pictures got the t of the first: use t[b] for picture b": (r + s * n)[:1].expand(2, 1, 1, 1),
        "a product was taken again: alphas_cumprod is one already": again.sqrt() + (1 - again).sqrt() * n,
    })


@ADD_NOISE.property("each picture has its own t, also where B = C = W hides a wrong broadcast")
def _(fn):
    ac = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    x0, noise, t = normal((3, 3, 3, 3), 3), normal((3, 3, 3, 3), 4), torch.tensor([2, 0, 1])
    a = ac[t]

    def along(*shape):
        return a.reshape(shape).sqrt() * x0 + (1 - a.reshape(shape)).sqrt() * noise
    return compare(fn(x0, noise, t, ac), along(3, 1, 1, 1), {
        "t runs along the columns of the pictures: reshape alphas_cumprod[t] to (B,1,1,1), not (B,)": along(3),
        "t runs along the rows of the pictures: reshape alphas_cumprod[t] to (B,1,1,1), not (B,1)": along(3, 1),
        "t runs along the colours: reshape alphas_cumprod[t] to (B,1,1,1), not (B,1,1)": along(3, 1, 1),
    })


@ADD_NOISE.property("a picture of unit variance keeps unit variance at every t")
def _(fn):
    ac = make_schedule("linear", 1000, 1e-4, 0.02)[1]
    t = torch.tensor([0, 250, 500, 999])
    var = fn(normal((4, 3, 64, 64), 5), normal((4, 3, 64, 64), 6), t, ac).double().var(dim=(1, 2, 3))
    if (var - 1).abs().max() > 0.06:                           # the standard error is 0.013
        return f"the variances at t = 0, 250, 500, 999 are {', '.join(f'{v:.2f}' for v in var)}, all should be 1"


@ADD_NOISE.property("equals the course's add_noise for random pictures and t")
def _(fn):
    for kind in KINDS:
        ac = make_schedule(kind)[1]
        x0, noise = normal((8, 4, 6, 6), 7), normal((8, 4, 6, 6), 8)
        t = torch.tensor([0, 1, 17, 250, 500, 901, 998, 999])
        if problem := compare(fn(x0, noise, t, ac), add_noise(x0, noise, t, ac)):
            return f"kind {kind!r}: {problem}"


@ADD_NOISE.property("a gradient flows back to x0, multiplied by sqrt(alpha_bar)")
def _(fn):
    x0 = torch.zeros(2, 1, 2, 2, requires_grad=True)
    out = fn(x0, torch.ones(2, 1, 2, 2), torch.tensor([0, 1]), EASY)
    if not out.requires_grad:
        return "the result is cut off from x0: no .detach(), .item() or numpy on the way"
    return compare(torch.autograd.grad(out.sum(), x0)[0], EASY.sqrt().reshape(2, 1, 1, 1).expand(2, 1, 2, 2))


@ADD_NOISE.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(lambda x0, noise, ac: fn(x0, noise, torch.tensor([0, 1]), ac),
                   normal((2, 1, 2, 2), 9), normal((2, 1, 2, 2), 10), EASY)


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


# ---- 5 · three names for one thing

CONVERT = Exercise("schedule.convert", points=4, minutes=15, reference=convert)
NAMES = ("x0", "eps", "v")


def _triple(ac: Tensor, t: Tensor, shape, seed: int, dtype=torch.float64):
    """x_t and the (x0, eps, v) it was made of, by the definitions."""
    x0, eps = normal(shape, seed, dtype), normal(shape, seed + 1, dtype)
    a, s = (c.reshape(-1, 1, 1, 1).to(dtype) for c in (ac[t].sqrt(), (1 - ac[t]).sqrt()))
    return a * x0 + s * eps, (x0, eps, a * eps - s * x0)


@CONVERT.gate("returns (x0, eps, v), each (B,C,H,W), whichever of the three is given")
def _(fn):
    ac, t = make_schedule("linear", 10)[1], torch.tensor([0, 9])
    for given in NAMES:
        try:
            out = fn(normal((2, 3, 4, 5), 1), normal((2, 3, 4, 5), 2), t, ac, given)
        except RuntimeError as error:
            if "must match" in str(error) or "size of tensor" in str(error):
                return f"given {given!r}: alphas_cumprod[t] must become (B,1,1,1), as in add_noise"
            raise
        if problem := several(out, NAMES) or next(filter(None, (tensor_like(o, (2, 3, 4, 5)) for o in out)), None):
            return f"given {given!r}: {problem}"


def _by_hand(given: str, bugs):
    """alpha_bar 0.64, x0 = 2, eps = -1: x_t = 0.8 * 2 - 0.6 = 1.0 and v = -0.8 - 0.6 * 2 = -2.0."""
    def run(fn):
        right = torch.tensor([2.0, -1.0, -2.0], dtype=torch.float64)
        x_t, prediction = torch.full((1, 1, 1, 1), 1.0).double(), right[NAMES.index(given)].reshape(1, 1, 1, 1)
        out = fn(x_t, prediction, torch.tensor([0]), EASY, given)
        for name, value, expected in zip(NAMES, out, right, strict=True):
            known = {bug: torch.full((1, 1, 1, 1), wrong).double() for bug, wrong in bugs.get(name, {}).items()}
            if problem := compare(value, expected.reshape(1, 1, 1, 1), known):
                return f"{name}: {problem}"
    return run


_V_BUGS = {"the sign is turned: v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0": 2.0,
           "it should be a difference, not a sum: sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0": 0.4,
           "x0 and eps are exchanged: sqrt(alpha_bar) belongs to eps here": 2.2,
           "the square roots are missing": -0.64 - 0.36 * 2}
CONVERT.property("worked by hand: from eps")(_by_hand("eps", {"v": _V_BUGS, "x0": {
    "the division by sqrt(alpha_bar) is missing": 1.6,
    "it is divided by alpha_bar: by its square root instead": 1.6 / 0.64,
    "the noise is added: subtract it from x_t": 0.5,
    "the square roots are missing": (1 + 0.36) / 0.64,
    "the factor of eps lacks its square root: sqrt(1 - alpha_bar)": (1 + 0.36) / 0.8,
    "sqrt(alpha_bar) and sqrt(1 - alpha_bar) are exchanged": 1.8 / 0.6,
    "it is multiplied by sqrt(alpha_bar): divide": 1.6 * 0.8}}))
CONVERT.property("worked by hand: from x0")(_by_hand("x0", {"v": _V_BUGS, "eps": {
    "the division by sqrt(1 - alpha_bar) is missing": -0.6,
    "it is divided by sqrt(alpha_bar): the noise has sqrt(1 - alpha_bar)": -0.6 / 0.8,
    "the sign is turned: x_t minus the signal": 1.0,
    "the square roots are missing": (1 - 1.28) / 0.36,
    "it is divided by 1 - alpha_bar: by its square root instead": -0.6 / 0.36}}))
CONVERT.property("worked by hand: from v")(_by_hand("v", {"x0": {
    "the sign of v is turned: x0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v": 0.8 - 1.2,
    "it is divided by sqrt(alpha_bar), as if v were eps: x0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v": 2.2 / 0.8,
    "the square roots are missing": 0.64 + 0.72}, "eps": {
    "the sign of v is turned: eps = sqrt(1 - alpha_bar) x_t + sqrt(alpha_bar) v": 0.6 + 1.6,
    "the square roots are missing": 0.36 - 1.28}}))


@CONVERT.property("going round (eps to v, v to x0, x0 to eps) comes back, for many t at once")
def _(fn):
    ac, t = make_schedule("scaled_linear")[1], torch.tensor([3, 250, 600, 999])
    x_t, (_, eps, _) = _triple(ac, t, (4, 2, 3, 3), 20)
    v = fn(x_t, eps, t, ac, "eps")[2]
    x0 = fn(x_t, v, t, ac, "v")[0]
    if compare(fn(x_t, x0, t, ac, "x0")[1], eps, rtol=1e-3):
        return "eps -> v -> x0 -> eps does not give the same eps: two of the three branches contradict each other"


@CONVERT.property("equals the course's conversions, and each picture has its own t where B = C = W")
def _(fn):
    ac, t = make_schedule("linear", 1000, 1e-4, 0.02)[1], torch.tensor([900, 10, 400])
    x_t, right = _triple(ac, t, (3, 3, 3, 3), 30)
    for given, prediction in zip(NAMES, right, strict=True):
        for name, value, expected in zip(NAMES, fn(x_t, prediction, t, ac, given), right, strict=True):
            if problem := compare(value, expected, rtol=1e-3):
                return f"{name} from {given}: {problem}"


@CONVERT.property("a gradient flows back to the prediction")
def _(fn):
    for given in NAMES:
        prediction = torch.ones(1, 1, 2, 2, requires_grad=True)
        x0, eps, v = fn(torch.ones(1, 1, 2, 2), prediction, torch.tensor([0]), EASY, given)
        if not (x0.requires_grad and eps.requires_grad and v.requires_grad):
            return f"given {given!r}: the results are cut off from the prediction: no .detach() or numpy on the way"


@CONVERT.hygiene("leaves its inputs as they were")
def _(fn):
    for given in NAMES:
        if problem := touched(lambda x_t, p, ac, given=given: fn(x_t, p, torch.tensor([0, 1]), ac, given),
                              normal((2, 1, 2, 2), 40), normal((2, 1, 2, 2), 41), EASY):
            return f"given {given!r}: {problem}"


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


EXERCISES = [MAKE_SCHEDULE, DIFFUSE, ADD_NOISE, LOG_SNR, CONVERT, TIMESTEPS]
