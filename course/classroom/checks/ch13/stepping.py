"""Exercise 6: one step of training, through a network that stays as it is."""

import torch
import torch.nn.functional as F

from course.classroom.checks import Exercise, normal, tensor_like, touched
from course.classroom.checks.ch13.answers import training_step
from course.schedule import NoiseSchedule

STEP = Exercise("control.training_step", points=4, minutes=20, reference=training_step)
SCHEDULE = NoiseSchedule()


class Copy(torch.nn.Module):
    """Answers one residual, w times the mean of its hint, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = torch.nn.Parameter(torch.tensor(0.5)), []

    def forward(self, x, t, context, hint, *more):
        self.calls.append((x.detach().clone(), t, context, hint.detach().clone()))
        return [self.weight * hint.mean((1, 2, 3)).reshape(-1, 1, 1, 1).expand(-1, *x.shape[1:])]


class Locked(torch.nn.Module):
    """Predicts x / 2 plus its control; its own weight is frozen."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = torch.nn.Parameter(torch.tensor(0.5), requires_grad=False), []

    def forward(self, x, t, context=None, added=None, control=None):
        self.calls.append((x.detach().clone(), t, context, control))
        return self.weight * x + (torch.zeros(1, requires_grad=True) if control is None else control[0])


def _step(fn, z0, seed=0, lr=0.1, max_norm=1e9, copy=None, hint=None):
    copy, unet = copy or Copy(), Locked()
    context = torch.arange(len(z0), dtype=torch.float32)[:, None, None]
    hint = torch.ones(len(z0), 3, 4, 4) if hint is None else hint
    optimizer = torch.optim.SGD(copy.parameters(), lr=lr)
    loss = fn(copy, unet, optimizer, z0, context, hint, SCHEDULE, torch.Generator().manual_seed(seed), max_norm)
    return copy, unet, loss, context


def _noise(z0, z_t, t):
    bar = SCHEDULE.alphas_cumprod[t.long()].reshape(-1, 1, 1, 1).to(z0)
    a, s = bar.sqrt(), (1 - bar).sqrt()
    eps = (z_t - a * z0) / s
    return eps, a * eps - s * z0


@STEP.gate("asks each network once, with the same z_t, t and text, and returns the loss as a float")
def _(fn):
    hint = normal((4, 3, 4, 4), 2).abs().clamp(max=1)
    copy, unet, loss, context = _step(fn, normal((4, 2, 3, 3), 1), hint=hint)
    for name, net in (("the ControlNet", copy), ("the U-Net", unet)):
        if len(net.calls) != 1:
            return f"{name} should be asked once, it was asked {len(net.calls)} times"
        x, t, asked = net.calls[0][:3]
        if problem := tensor_like(x, (4, 2, 3, 3)):
            return f"{name}, z_t: {problem}"
        if not isinstance(t, torch.Tensor) or tuple(t.shape) != (4,) or t.is_floating_point():
            return f"{name}, t: one whole level for each picture, shape (B,)"
        if asked is None or not torch.equal(asked, context):
            return f"{name} must be handed the text"
    if unet.calls[0][3] is None:
        return "the U-Net was asked without control=...: hand it the residuals"
    if not torch.equal(copy.calls[0][1], unet.calls[0][1]):
        return "the two networks were asked about different levels: draw t once"
    if not torch.equal(copy.calls[0][0], unet.calls[0][0]):
        return "the two networks should read the same z_t" + (": the ControlNet got something else: it reads the noisy latent")
    shown = copy.calls[0][3]
    if not torch.equal(shown, hint):
        return "the ControlNet must be shown the hint as it came" + (
            ": it stays in [0, 1]" if torch.allclose(shown, 2 * hint - 1) else "")
    if not isinstance(loss, float):
        return f"expected the loss as a Python float, got {type(loss).__name__}: " + (
            "is the `return` missing?" if loss is None else "a tensor would keep its graph alive: loss.item()")


@STEP.property("every level is drawn, from 0 to 999, one a picture")
def _(fn):
    t = _step(fn, normal((20_000, 1, 1, 1), 2), hint=torch.ones(20_000, 1, 1, 1))[0].calls[0][1]
    if int(t.min()) == int(t.max()):
        return "all pictures got one t: draw (B,) of them"
    if not (int(t.min()) <= 4 and 995 <= int(t.max()) <= 999):
        return f"of 20,000 levels the lowest was {int(t.min())}, the highest {int(t.max())}: use all of 0 ... 999"
    if abs(float(t.double().mean()) - 499.5) > 15:
        return "the levels are not drawn uniformly"


@STEP.property("z_t is z0 with normal noise, by schedule.add_noise")
def _(fn):
    z0 = 3 + 0 * normal((2000, 1, 2, 2), 3)
    z_t, t = _step(fn, z0, hint=torch.ones(2000, 1, 1, 1))[0].calls[0][:2]
    eps = _noise(z0, z_t, t)[0][t > 100]
    if abs(float(eps.mean())) > 0.06 or abs(float(eps.std()) - 1) > 0.05:
        return "z_t is not z0 with its noise: is it schedule.add_noise(z0, noise, t), with noise from torch.randn?"


@STEP.property("the loss is the mean squared error of the velocity")
def _(fn):
    z0 = 2 * normal((64, 2, 3, 3), 4)
    copy, _, loss, _ = _step(fn, z0)
    z_t, t = copy.calls[0][:2]
    (eps, v), prediction = _noise(z0, z_t, t), 0.5 * z_t + 0.5
    right = float(F.mse_loss(prediction, v))
    bugs = {"the target is the noise: this model predicts v": F.mse_loss(prediction, eps),
            "the target is z0: this model predicts v": F.mse_loss(prediction, z0),
            "the sign of v is turned": F.mse_loss(prediction, -v),
            "a sum for a mean": F.mse_loss(prediction, v, reduction="sum"),
            "absolute differences for squared ones": F.l1_loss(prediction, v)}
    if abs(loss - right) < 1e-3 * right:
        return None
    return next((bug for bug, value in bugs.items() if abs(loss - float(value)) < 1e-3 * float(value)),
                f"expected {right:.5g}, got {loss:.5g}")


@STEP.property("the ControlNet moves by this gradient, and by nothing left over")
def _(fn):
    copy, z0 = Copy(), normal((64, 2, 3, 3), 5)
    copy.weight.grad = torch.tensor(100.0)
    _step(fn, z0, copy=copy)
    z_t, t = copy.calls[0][:2]
    right = float((2 * (0.5 * z_t + 0.5 - _noise(z0, z_t, t)[1])).mean())               # dL/dw, the hint being 1
    moved = float(copy.weight.detach() - 0.5) / -0.1
    if moved == 0:
        return "the ControlNet did not move: loss.backward(), then optimizer.step()"
    if abs(moved - right) > 0.02 * abs(right) + 1e-3:
        if abs(moved - 100) < 5:
            return "gradients of the step before were added: optimizer.zero_grad() before backward"
        return "the ControlNet did not move by the gradient of this loss"


@STEP.property("a gradient longer than max_norm is cut to it")
def _(fn):
    moved = abs(float(_step(fn, 50 + normal((64, 2, 3, 3), 6), max_norm=1.0)[0].weight.detach()) - 0.5) / 0.1
    if moved > 1.01:
        return "the gradient is not clipped when the step is taken: clip_grad_norm_ after backward, before step"
    if moved < 0.9:
        return f"a long gradient should be cut to the length 1, got {moved:.3f}"


@STEP.hygiene("leaves the U-Net, z0 and the hint as they were")
def _(fn):
    _, unet, _, _ = _step(fn, normal((2, 2, 3, 3), 8))
    if unet.weight.requires_grad or float(unet.weight) != 0.5:
        return "the U-Net was changed or made trainable: it stays as it is"
    return touched(lambda z0, hint: _step(fn, z0, hint=hint), normal((2, 2, 3, 3), 7), torch.ones(2, 3, 4, 4))
