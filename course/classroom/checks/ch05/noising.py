"""Exercises 2 and 3: noise in many small steps, and in one."""

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch05.answers import EASY, KINDS, add_noise, diffuse_stepwise, make_schedule

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
