"""Exercise 6: what the network is trained on."""

import torch
from torch import Tensor

from course.classroom.checks import Exercise, normal, tensor_like, touched
from course.classroom.checks.ch06.answers import simple_loss

SIMPLE_LOSS = Exercise("objectives.simple_loss", points=3, minutes=10, reference=simple_loss)
EASY = torch.tensor([0.64, 0.0784, 0.36], dtype=torch.float64)  # roots 0.8, 0.28, 0.6; of the rest 0.6, 0.96, 0.8


class Spy:
    """A "network" that knows the clean pictures: it keeps what it was shown and answers by `answer(x_t, t)`."""

    def __init__(self, answer):
        self.answer, self.seen = answer, []

    def __call__(self, x_t, t):
        self.seen.append((x_t.detach().clone(), t.clone() if isinstance(t, Tensor) else t))
        return self.answer(x_t, t)


def _loss(fn, x0, answer, alphas_cumprod=EASY, seed=0):
    spy = Spy(answer)
    return fn(spy, x0, alphas_cumprod, generator=torch.Generator().manual_seed(seed)), spy


def _knows(x0, alphas_cumprod, square_roots=True, subtract=True):
    """Who knows x_0 knows the noise."""
    def answer(x_t, t):
        a = alphas_cumprod[t].reshape(-1, 1, 1, 1).to(x_t)
        a, s = (a.sqrt(), (1 - a).sqrt()) if square_roots else (a, 1 - a)
        return (x_t - a * x0) / s * (1 if subtract else -1)
    return answer


@SIMPLE_LOSS.gate("a scalar; the network is asked once, with (B,C,H,W) and one level t (B,) for each picture")
def _(fn):
    x0 = normal((6, 2, 3, 4), 1)
    try:
        loss, spy = _loss(fn, x0, lambda x_t, t: torch.zeros_like(x_t))
    except IndexError as error:
        if "out of" not in str(error):
            raise
        return "a level t beyond the table was drawn: there are T = len(alphas_cumprod) levels, not always 1000"
    except RuntimeError as error:
        if "must match" not in str(error):
            raise
        return "alpha_bar_t is (B,) and would meet W: reshape it to (B,1,1,1)"
    if len(spy.seen) != 1:
        return f"expected one call of the network, got {len(spy.seen)}"
    x_t, t = spy.seen[0]
    if problem := tensor_like(x_t, (6, 2, 3, 4)):
        return f"the noisy pictures: {problem}"
    if x_t.dtype != x0.dtype:
        return f"x0 is {x0.dtype}, the noisy pictures are {x_t.dtype}: bring the coefficients to x0's dtype"
    if problem := tensor_like(t, (6,), floating=False):
        return f"the levels t: {problem}"
    if isinstance(loss, Tensor) and tuple(loss.shape) == (6, 2, 3, 4):
        return "the loss is one number: take the mean of the squared errors"
    return tensor_like(loss, ())


@SIMPLE_LOSS.property("every value of every picture gets fresh noise")
def _(fn):
    x_t, t = _loss(fn, torch.zeros(64, 3, 2, 2), lambda x_t, t: torch.zeros_like(x_t))[1].seen[0]
    noise = (x_t / (1 - EASY[t]).sqrt().reshape(-1, 1, 1, 1).to(x_t)).double()
    for axis, what in ((0, "all pictures"), (1, "all channels"), (2, "all rows"), (3, "all columns")):
        if float(noise.std(axis).max()) < 1e-3:
            return f"{what} have the same noise: draw it with the shape of x0"
    if float(noise.min()) >= 0:
        return "the noise is never negative: torch.randn is normal, torch.rand is uniform"


@SIMPLE_LOSS.property("worked out: an answer of 0 costs the variance of the noise, 1")
def _(fn):
    loss, _ = _loss(fn, normal((64, 1, 16, 16), 2), lambda x_t, t: torch.zeros_like(x_t))
    loss = float(loss)                                          # 16,384 values: standard error 0.011
    if abs(loss - 1) < 0.06:
        return None
    bugs = {"the errors are summed: take their mean": 16_384, "the errors are summed within each picture: take the mean": 256,
            "the absolute error, not the squared one": 0.798, "half the squared error: there is no factor 1/2": 0.5}
    known = next((bug for bug, value in bugs.items() if abs(loss / value - 1) < 0.04), None)
    return known or f"16,384 values of standard normal noise should cost about 1, got {loss:.4g}"


@SIMPLE_LOSS.property("who knows x_0 can answer exactly: the loss is 0")
def _(fn):
    x0 = 2 + normal((32, 1, 4, 4), 3)
    loss = float(_loss(fn, x0, _knows(x0, EASY))[0])
    if abs(loss) < 1e-6:
        return None
    others = {
        "the target is x_0: the network predicts the noise": lambda x_t, t: x0,
        "the target is x_t: the network predicts the noise": lambda x_t, t: x_t,
        "the square roots are missing: sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise": _knows(x0, EASY, False),
        "the sign of the target or of the noise is turned": _knows(x0, EASY, subtract=False),
        "signal and noise are exchanged: sqrt(alpha_bar) belongs to x_0": _knows(x0, 1 - EASY),
    }
    for sentence, answer in others.items():
        if abs(float(_loss(fn, x0, answer)[0])) < 1e-6:
            return sentence
    if abs(loss - 2) < 0.35:
        return "the target is not the noise that is in x_t: draw the noise once and use it twice"
    return (f"expected 0, got {loss:.4g}: is x_t made at the level that the network is told, and is the target the very "
            "noise that is in it?")


@SIMPLE_LOSS.property("each picture gets its own level, all levels equally often, the last one included")
def _(fn):
    x0 = torch.zeros(600, 1, 1, 1)
    t = _loss(fn, x0, lambda x_t, t: torch.zeros_like(x_t))[1].seen[0][1]
    counts = torch.bincount(t, minlength=3)
    if int((counts > 0).sum()) == 1:
        return f"all 600 pictures are at level {int(t[0])}: draw t of shape (B,)"
    if len(counts) > 3 or int(t.min()) < 0:
        return f"there are 3 levels, 0, 1 and 2, but t = {int(t.max())} was drawn"
    if not counts[2]:
        return "level T - 1 is never drawn: torch.randint(0, T) leaves T out by itself"
    if not counts[0]:
        return "level 0 is never drawn: t counts from 0"
    return None if int(counts.min()) > 150 else f"600 pictures should share 3 levels evenly, got {counts.tolist()}"


@SIMPLE_LOSS.property("the generator decides: same seed, same loss; another seed, another")
def _(fn):
    x0 = normal((4, 1, 3, 3), 5)
    one, same, other = (float(_loss(fn, x0, lambda x_t, t: x_t, seed=seed)[0]) for seed in (1, 1, 2))
    if one != same:
        return "two runs with the same seed differ: pass generator=generator to both draws"
    return None if one != other else "two seeds give the same loss: do not seed inside the function"


@SIMPLE_LOSS.property("a gradient reaches the network's weights")
def _(fn):
    weight = torch.ones(1, requires_grad=True)
    loss, _ = _loss(fn, normal((4, 1, 3, 3), 6), lambda x_t, t: weight * x_t)
    if not loss.requires_grad:
        return "the loss is cut off from the network: no no_grad, .detach() or .item() around its answer"
    loss.backward()
    return None if weight.grad is not None and weight.grad.any() else "the gradient of the network's weights is zero"


@SIMPLE_LOSS.hygiene("leaves x0 and alphas_cumprod as they were")
def _(fn):
    return touched(lambda x0, ac: fn(lambda x_t, t: x_t, x0, ac, generator=torch.Generator().manual_seed(0)),
                   normal((4, 1, 3, 3), 7), EASY)
