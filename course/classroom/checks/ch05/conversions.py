"""Exercise 5: x_0, eps and v say the same; each is computed from each."""

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch05.answers import EASY, convert, make_schedule

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
