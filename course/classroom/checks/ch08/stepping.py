"""Exercises 4 and 5: drop captions, and one step of training."""

import torch
import torch.nn.functional as F

from course.classroom.checks import Exercise, normal, tensor_like, touched
from course.classroom.checks.ch08.answers import drop_conditions, training_step
from course.schedule import NoiseSchedule

# ---- 4 · drop the caption

DROP = Exercise("diffusion.drop_conditions", points=3, minutes=10, reference=drop_conditions)
EMPTY = torch.tensor([9, 8])


def _drop(fn, B=4000, p=0.25, seed=0):
    conditions = torch.arange(2 * B).reshape(B, 2) + 100
    out = fn(conditions, EMPTY, p, torch.Generator().manual_seed(seed))
    return conditions, out, (out == EMPTY).all(1)


@DROP.gate("returns (B,N), integers like the conditions")
def _(fn):
    return tensor_like(_drop(fn, 6)[1], (6, 2), floating=False)


@DROP.property("worked by hand: p = 0 keeps every caption, p = 1 none")
def _(fn):
    conditions, kept, _ = _drop(fn, 50, 0.0)
    if not torch.equal(kept, conditions):
        return "p = 0 must keep every caption: p is the probability to drop, not to keep"
    _, out, gone = _drop(fn, 50, 1.0)
    if not gone.all():
        return "p = 1 must put `nothing` in the place of every caption" + (
            ": these are zeros" if (out == 0).all() else "")


@DROP.property("a caption is dropped whole or not at all")
def _(fn):
    conditions, out, gone = _drop(fn)
    kept = (out == conditions).all(1)
    if ((out == EMPTY).any(1) & ~gone).any():
        return "single tokens were replaced: one draw per caption, shape (B,)"
    if not (kept | gone).all():
        return "a dropped caption must become `nothing`, all others must stay as they were"


@DROP.property("the share of dropped captions is p, each by its own draw")
def _(fn):
    share = float(_drop(fn)[2].double().mean())
    if share in (0.0, 1.0):
        return "the whole batch shares one draw: each caption needs its own"
    if abs(share - 0.25) > 0.035:                              # five standard errors
        return f"of 4,000 captions a quarter should be dropped, it was {share:.3f}" + (
            ": p is the probability to drop, not to keep" if abs(share - 0.75) < 0.035 else
            ": torch.rand is uniform, torch.randn is not" if share > 0.5 else "")
    counts = {int(_drop(fn, 40, 0.25, seed)[2].sum()) for seed in range(8)}
    if counts == {10}:
        return "always exactly p of the batch: each caption is dropped by a draw of its own"


@DROP.property("the generator decides which")
def _(fn):
    one, same, other = (_drop(fn, seed=seed)[2] for seed in (1, 1, 2))
    if not torch.equal(one, same):
        return "two runs with the same seed differ: pass generator=generator to torch.rand"
    if torch.equal(one, other):
        return "two seeds drop the same captions: do not seed inside the function"


@DROP.hygiene("leaves the captions as they were")
def _(fn):
    problem = touched(lambda c, n: fn(c, n, 1.0, torch.Generator().manual_seed(0)), torch.arange(8).reshape(4, 2), EMPTY.clone())
    return problem and "the captions were changed in place: work on conditions.clone()"


# ---- 5 · one step

STEP = Exercise("diffusion.training_step", points=4, minutes=20, reference=training_step)
SCHEDULE = NoiseSchedule()


class Recorder(torch.nn.Module):
    """Predicts w x_t + b, and remembers what it was asked."""

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.tensor(weight)), torch.nn.Parameter(torch.tensor(0.1))
        self.calls = []

    def forward(self, x_t, t, conditions):
        self.calls.append((x_t.detach().clone(), t, conditions))
        return self.weight * x_t + self.bias


def _step(fn, x0, seed=0, lr=0.1, max_norm=1e9, model=None):
    model = model or Recorder()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    conditions = torch.arange(len(x0))[:, None]
    loss = fn(model, optimizer, x0, conditions, SCHEDULE, torch.Generator().manual_seed(seed), max_norm)
    return model, loss, conditions


def _noise(x0, x_t, t):
    bar = SCHEDULE.alphas_cumprod[t.long()].reshape(-1, 1, 1, 1).to(x0)
    a, s = bar.sqrt(), (1 - bar).sqrt()
    eps = (x_t - a * x0) / s
    return eps, a * eps - s * x0


@STEP.gate("asks the model once, about (x_t, t, conditions) with t (B,) integers, and returns the loss as a float")
def _(fn):
    model, loss, conditions = _step(fn, normal((4, 2, 3, 3), 1))
    if len(model.calls) != 1:
        return f"the model should be asked once, it was asked {len(model.calls)} times"
    x_t, t, asked = model.calls[0]
    if problem := tensor_like(x_t, (4, 2, 3, 3)):
        return f"x_t: {problem}"
    if not isinstance(t, torch.Tensor) or tuple(t.shape) != (4,):
        return "t: one level for each picture, shape (B,)"
    if t.is_floating_point():
        return "t: levels are integers: torch.randint"
    if not torch.equal(asked, conditions):
        return "the model must be handed the conditions as they came"
    if not isinstance(loss, float):
        return f"expected the loss as a Python float, got {type(loss).__name__}: " + (
            "is the `return` missing?" if loss is None else "a tensor would keep its graph alive: loss.item()")


@STEP.property("every level is drawn, from 0 to 999, one a picture")
def _(fn):
    t = _step(fn, normal((20_000, 1, 1, 1), 2))[0].calls[0][1]
    if int(t.min()) == int(t.max()):
        return "all pictures got one t: draw (B,) of them"
    if int(t.min()) < 0 or int(t.max()) > 999:
        return f"t must lie in 0 ... 999, got {int(t.min())} ... {int(t.max())}"
    if int(t.max()) < 995 or int(t.min()) > 4:
        return f"of 20,000 levels the lowest was {int(t.min())}, the highest {int(t.max())}: use all of 0 ... 999"
    if abs(float(t.double().mean()) - 499.5) > 15:
        return "the levels are not drawn uniformly"


@STEP.property("x_t is sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise, with normal noise")
def _(fn):
    x0 = 3 + 0 * normal((2000, 1, 2, 2), 3)
    x_t, t, _ = _step(fn, x0)[0].calls[0]
    eps = _noise(x0, x_t, t)[0][t > 100]
    if abs(float(eps.mean())) > 0.06 or abs(float(eps.std()) - 1) > 0.05:
        return "x_t is not x0 with its noise: is it schedule.add_noise(x0, noise, t), with noise from torch.randn?"
    if torch.allclose(eps[:, :, :1, :1].expand_as(eps), eps, atol=1e-3):
        return "all values of a picture share their noise: draw noise of x0's shape"


@STEP.property("the loss is the mean squared error of the velocity")
def _(fn):
    x0 = 2 * normal((64, 2, 3, 3), 4)
    model, loss, _ = _step(fn, x0)
    x_t, t, _ = model.calls[0]
    eps, v = _noise(x0, x_t, t)
    prediction = 0.5 * x_t + 0.1
    right = float(F.mse_loss(prediction, v))
    bugs = {"the target is the noise: this model predicts v": F.mse_loss(prediction, eps),
            "the target is x0: this model predicts v": F.mse_loss(prediction, x0),
            "the sign of v is turned": F.mse_loss(prediction, -v),
            "a sum for a mean": F.mse_loss(prediction, v, reduction="sum"),
            "absolute differences for squared ones": F.l1_loss(prediction, v),
            "the sum over each picture: take the mean of all values": F.mse_loss(prediction, v) * 18,
            "the target holds noise of its own: use the noise that went into x_t":
                F.mse_loss(prediction, v - (_a(t) * eps)) + (_a(t) ** 2).mean()}
    if abs(loss - right) < 1e-3 * right:
        return None
    for bug, value in bugs.items():
        if abs(loss - float(value)) < (0.06 if "of its own" in bug else 1e-3) * float(value):
            return bug
    return f"expected {right:.5g}, got {loss:.5g}"


def _a(t):
    return SCHEDULE.alphas_cumprod[t.long()].sqrt().float().reshape(-1, 1, 1, 1)


@STEP.property("the parameters move by this gradient, and by nothing left over")
def _(fn):
    model, x0 = Recorder(), normal((64, 2, 3, 3), 5)
    model.weight.grad, model.bias.grad = torch.tensor(100.0), torch.tensor(100.0)
    _step(fn, x0, model=model)
    x_t, t, _ = model.calls[0]
    twin = Recorder()
    F.mse_loss(twin(x_t, t, None), _noise(x0, x_t, t)[1]).backward()
    moved = torch.stack([model.weight - twin.weight, model.bias - twin.bias]).detach() / -0.1
    right = torch.stack([twin.weight.grad, twin.bias.grad])
    if moved.abs().max() == 0:
        return "the parameters did not move: loss.backward(), then optimizer.step()"
    if (moved - right).abs().max() > 0.02 * right.abs().max() + 1e-3:
        if (moved - 100).abs().max() < 5:
            return "gradients of the step before were added: optimizer.zero_grad() before backward"
        return "the parameters did not move by the gradient of this loss"


@STEP.property("a gradient longer than max_norm is cut to it")
def _(fn):
    model, _, _ = _step(fn, 50 * normal((64, 2, 3, 3), 6), max_norm=1.0)
    moved = float(((model.weight - 0.5) ** 2 + (model.bias - 0.1) ** 2).detach().sqrt()) / 0.1
    if moved > 1.01:
        return "the gradient is not clipped when the step is taken: clip_grad_norm_ after backward, before step"
    if moved < 0.9:
        return f"a long gradient should be cut to the length 1, got {moved:.3f}"


@STEP.hygiene("leaves x0 as it was")
def _(fn):
    return touched(lambda x0: _step(fn, x0), normal((2, 2, 3, 3), 7))
