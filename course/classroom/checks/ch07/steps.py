"""Exercises 2 and 3: one step down, drawn from the posterior (DDPM) and along DDIM's family."""

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch07.answers import ddim_step, posterior

NOW, NEXT = 0.36, 0.64                                          # alpha_bar before and after a step: roots 0.6 and 0.8


def _scalar(value) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64).reshape(())


# ---- 2 · the posterior

POSTERIOR = Exercise("samplers.posterior", points=3, minutes=15, reference=posterior)


@POSTERIOR.gate("returns (mean, variance): a tensor like x_t, and a number")
def _(fn):
    out = fn(normal((2, 3, 4, 5), 1), normal((2, 3, 4, 5), 2), NOW, NEXT, "small")
    if problem := several(out, ("mean", "variance")) or tensor_like(out[0], (2, 3, 4, 5)):
        return problem
    if not isinstance(out[1], (int, float)) and not (isinstance(out[1], torch.Tensor) and out[1].numel() == 1):
        return f"the variance should be one number, got {type(out[1]).__name__}"


@POSTERIOR.property("worked by hand: alpha_bar 0.36 -> 0.64, x_t = 1, x0 = 10: the mean")
def _(fn):
    alpha = NOW / NEXT
    beta, x, x0 = 1 - alpha, 1.0, 10.0
    def value(c0, c1):
        return torch.tensor([[c0 * x0 + c1 * x]]).double()
    one = torch.ones(1, 1).double()
    right = value(0.8 * beta / 0.64, alpha**0.5 * 0.36 / 0.64)
    return compare(fn(x * one, x0 * one, NOW, NEXT, "small")[0], right, {
        "the coefficients of x0 and x_t are exchanged": value(alpha**0.5 * 0.36 / 0.64, 0.8 * beta / 0.64),
        "did you forget the square root of alpha_bar_next?": value(0.64 * beta / 0.64, alpha**0.5 * 0.36 / 0.64),
        "did you forget the square root of alpha, in front of x_t?": value(0.8 * beta / 0.64, alpha * 0.36 / 0.64),
        "alpha_bar stands where alpha_bar_next belongs, in front of x0": value(0.6 * beta / 0.64, alpha**0.5 * 0.36 / 0.64),
        "the division by 1 - alpha_bar is missing": value(0.8 * beta, alpha**0.5 * 0.36),
        "it is divided by 1 - alpha_bar_next: by 1 - alpha_bar": value(0.8 * beta / 0.36, alpha**0.5),
        "alpha of this stride is alpha_bar / alpha_bar_next: did you use alpha_bar itself?":
            value(0.8 * 0.64 / 0.64, 0.6 * 0.36 / 0.64),
        "1 - alpha_bar stands where 1 - alpha_bar_next belongs, in front of x_t": value(0.8 * beta / 0.64, alpha**0.5)})


@POSTERIOR.property("worked by hand: both variances, 0.246 and 0.4375")
def _(fn):
    beta, x = 1 - NOW / NEXT, torch.ones(1, 1).double()
    small, large = 0.36 / 0.64 * beta, beta
    found = [_scalar(fn(x, x, NOW, NEXT, kind)[1]) for kind in ("small", "large")]
    if problem := compare(found[0], _scalar(small), {
            "this is a standard deviation: return the variance": _scalar(small**0.5),
            "small and large are exchanged": _scalar(large),
            "the ratio is upside down: (1 - alpha_bar_next) / (1 - alpha_bar) is at most 1": _scalar(0.64 / 0.36 * beta)}):
        return f"small: {problem}"
    if problem := compare(found[1], _scalar(large), {
            "this is a standard deviation: return the variance": _scalar(large**0.5),
            "this is the small one again: the large one is beta itself": _scalar(small)}):
        return f"large: {problem}"


@POSTERIOR.property("Bayes: one step of q after a draw of the posterior gives back q(x_t | x_0)")
def _(fn):
    # x_t = sqrt(alpha) x_next + ...: the regression of x_next on x_t, from the covariance of the two
    for now, after in ((0.1, 0.3), (0.5, 0.5001), (0.01, 0.9)):
        x0, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
        gain = float(fn(x0, zero, now, after, "small")[0])
        expected = (now / after) ** 0.5 * (1 - after) / (1 - now)
        if abs(gain - expected) > 1e-6:
            return f"from alpha_bar {now} to {after} x_t should weigh {expected:.4f}, got {gain:.4f}"
        mean = float(fn(now**0.5 * x0, x0, now, after, "small")[0])
        if abs(mean - after**0.5) > 1e-6:
            return f"for x_t = a x0 (no noise) the mean must be a_next x0 = {after**0.5:.4f}, got {mean:.4f}"


@POSTERIOR.property("the last step, to alpha_bar_next = 1, gives x0 itself and variance 0")
def _(fn):
    x_t, x0 = normal((3, 2), 3), normal((3, 2), 4)
    mean, variance = fn(x_t, x0, 0.9, 1.0, "small")
    return compare(mean, x0) or (None if abs(float(variance)) < 1e-9 else f"variance {float(variance):.3g}, not 0")


@POSTERIOR.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(lambda x_t, x0: fn(x_t, x0, NOW, NEXT, "small"), normal((3, 2), 5), normal((3, 2), 6))


# ---- 3 · one step of DDIM

DDIM_STEP = Exercise("samplers.ddim_step", points=3, minutes=15, reference=ddim_step)


@DDIM_STEP.gate("returns (x_next, x0), both shaped like x_t; noise may be None at eta = 0")
def _(fn):
    out = fn(normal((2, 3, 4, 5), 1), normal((2, 3, 4, 5), 2), NOW, NEXT, 0.0, None)
    return several(out, ("x_next", "x0")) or tensor_like(out[0], (2, 3, 4, 5)) or tensor_like(out[1], (2, 3, 4, 5))


@DDIM_STEP.property("worked by hand: alpha_bar 0.36 -> 0.64, x_t = 1, eps = 2: x0 = -1, x_next = 0.4")
def _(fn):
    one = torch.ones(1, 1).double()
    x, x0 = fn(one, 2 * one, NOW, NEXT, 0.0, None)
    if problem := compare(x0, -one, {
            "the division by sqrt(alpha_bar) is missing": -0.6 * one,
            "the square roots are missing": (1 - 0.64 * 2) / 0.36 * one,
            "the noise is added: subtract it": 2.6 / 0.6 * one,
            "alpha_bar_next was used for x0: x_t is at alpha_bar": (1 - 1.2) / 0.8 * one}):
        return f"x0: {problem}"
    if problem := compare(x, 0.4 * one, {
            "the noise in it is that of the old level: sqrt(1 - alpha_bar_next) eps": (-0.8 + 1.6) * one,
            "the signal in it is that of the old level: sqrt(alpha_bar_next) x0": (-0.6 + 1.2) * one,
            "the square roots are missing": (-0.64 + 0.36 * 2) * one,
            "eps is left out: only its random part is replaced by fresh noise": -0.8 * one,
            "this is x_t noised afresh: use x0 and eps": 0.8 * one}):
        return f"x_next: {problem}"


@DDIM_STEP.property("eta scales the fresh noise, and the predicted noise gives way to it")
def _(fn):
    one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    for eta in (0.5, 1.0):                                    # at 1 an unsquared sigma has a negative number under the root
        small = (1 - NEXT) / (1 - NOW) * (1 - NOW / NEXT)
        sigma = eta * small**0.5
        x_of_noise = fn(zero, zero, NOW, NEXT, eta, one)[0]
        if problem := compare(x_of_noise, sigma * one, {
                "the noise is multiplied by the variance: by sigma, its root": eta * small * one,
                "eta is not used": small**0.5 * one,
                "sigma is that of the large variance: the factor (1 - alpha_bar_next) / (1 - alpha_bar) is missing":
                    eta * (1 - NOW / NEXT) ** 0.5 * one,
                "no fresh noise is added": zero,
                "eta is squared": eta**2 * small**0.5 * one}):
            return f"eta = {eta:g}: {problem}"
        left = fn(0.8 * one, one, NOW, NEXT, eta, zero)[0]      # x_t = s eps, so x0 = 0 and only eps is left
        if problem := compare(left, (1 - NEXT - sigma**2) ** 0.5 * one, {
                "eps keeps its full share: with fresh noise it has sqrt(1 - alpha_bar_next - sigma^2)": 0.6 * one,
                "sigma is not squared in the share of eps": (1 - NEXT - sigma) ** 0.5 * one if sigma < 0.36 else zero,
                "the share of eps lacks its square root": (1 - NEXT - sigma**2) * one}):
            return f"eta = {eta:g}: {problem}"


@DDIM_STEP.property("eta = 1 is a draw of the posterior")
def _(fn):
    x_t, eps, noise = (normal((4, 3), k, torch.float64) for k in (11, 12, 13))
    x0 = (x_t - (1 - 0.2) ** 0.5 * eps) / 0.2**0.5
    mean, variance = posterior(x_t, x0, 0.2, 0.7)
    return compare(fn(x_t, eps, 0.2, 0.7, 1.0, noise)[0], mean + variance**0.5 * noise)


@DDIM_STEP.property("at eta = 0 a step there and a step back cancel; the last step gives x0")
def _(fn):
    x_t, eps = normal((4, 3), 14, torch.float64), normal((4, 3), 15, torch.float64)
    there = fn(x_t, eps, 0.2, 0.7, 0.0, None)[0]
    if problem := compare(fn(there, eps, 0.7, 0.2, 0.0, None)[0], x_t):
        return f"the way back (0.7 -> 0.2): {problem}"
    last, x0 = fn(x_t, eps, 0.9, 1.0, 1.0, normal((4, 3), 16, torch.float64))
    return compare(last, x0)


@DDIM_STEP.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(lambda x, e, n: fn(x, e, NOW, NEXT, 0.5, n), *(normal((3, 2), k) for k in (17, 18, 19)))
