"""Exercises 4 to 7: what a critic sees, the critic, what both sides want, and how much the critic may say."""

import torch
from torch import nn

from course.classroom.checks import Exercise, compare, normal, several, tensor_like
from course.classroom.checks.ch03.answers import PatchDiscriminator, adaptive_weight, hinge, receptive_field

# ---- 4 · the receptive field

RECEPTIVE = Exercise("losses.receptive_field", points=2, minutes=10, reference=receptive_field)


@RECEPTIVE.gate("returns (size, jump), two integers")
def _(fn):
    out = fn([(3, 1)])
    if problem := several(out, ("size", "jump")):
        return problem
    return None if all(isinstance(v, int) for v in out) else f"expected two integers, got {out}"


def _field(fn, layers, right, bugs=None):
    got = tuple(fn(layers))
    if got == right:
        return None
    said = f"for {layers} expected {right}, got {got}"
    return f"{said}: {bugs[got]}" if got in (bugs or {}) else said


@RECEPTIVE.property("worked by hand: two 3 x 3 layers of stride 1 see 5, one step apart")
def _(fn):
    return _field(fn, [(3, 1), (3, 1)], (5, 1), {
        (6, 1): "a layer adds kernel - 1 pixels, since its windows overlap", (7, 1): "a layer adds kernel - 1 pixels",
        (4, 1): "start from size 1: one output value is one value wide", (9, 1): "sizes are added, not multiplied"})


@RECEPTIVE.property("worked by hand: a 4 x 4 layer of stride 2, then one of stride 1, see 4 + 3 * 2 = 10, two apart")
def _(fn):
    return _field(fn, [(4, 2), (4, 1)], (10, 2), {
        (7, 2): "the second layer's steps are 2 pixels wide: multiply kernel - 1 by the strides before; "
                "or the list was read from the wrong end",
        (7, 1): "jump is the product of all strides, and widens the windows of later layers",
        (13, 2): "a layer's own stride does not widen its own window: multiply by the strides before it only",
        (10, 1): "jump is the product of all strides", (10, 3): "strides multiply, they do not add",
        (8, 2): "the list runs from the picture to the verdict: it was read from the wrong end"})


@RECEPTIVE.property("the order counts: stride last widens nothing")
def _(fn):
    return _field(fn, [(4, 1), (4, 2)], (7, 2), {
        (10, 2): "the list runs from the picture to the verdict: it was read from the wrong end, or the own stride was used"})


@RECEPTIVE.property("PatchGAN: 70, 34 and 16 pixels; and no layer at all sees one")
def _(fn):
    for depth, right in ((3, (70, 8)), (2, (34, 4)), (1, (16, 2))):
        if problem := _field(fn, [(4, 2)] * depth + [(4, 1)] * 2, right):
            return problem
    return _field(fn, [], (1, 1)) or _field(fn, [(3, 1), (2, 2), (5, 3), (1, 2)], receptive_field(
        [(3, 1), (2, 2), (5, 3), (1, 2)]))


# ---- 5 · the critic

PATCH = Exercise("losses.PatchDiscriminator", points=3, minutes=20, reference=PatchDiscriminator)


@PATCH.gate("a map of verdicts: PatchDiscriminator(3, 8, 2) takes (2,3,32,32) to (2,1,6,6)")
def _(fn):
    out = fn(3, 8, 2)(normal((2, 3, 32, 32), 1))
    if hasattr(out, "shape") and tuple(out.shape) in ((2, 1, 8, 8), (2, 1, 4, 4), (2, 1, 3, 3)):
        return (f"expected (2,1,6,6), got {tuple(out.shape)}: 4 x 4 kernels, padding 1; the first num_layers convolutions "
                "have stride 2, the last two stride 1")
    if hasattr(out, "shape") and out.ndim < 4:
        return f"got shape {tuple(out.shape)}: the verdicts stay a map, one for each patch, no mean and no flatten"
    return tensor_like(out, (2, 1, 6, 6))


@PATCH.property("the weights have the names and shapes of the released critic")
def _(fn):
    for arguments in ((3, 64, 3), (3, 16, 1), (1, 8, 5)):
        with torch.device("meta"):
            right, got = PatchDiscriminator(*arguments).state_dict(), fn(*arguments).state_dict()
        said = f"PatchDiscriminator{arguments}: "
        for name, tensor in right.items():
            if name not in got:
                why = ": are the layers in self.main, an nn.Sequential, in the order of the table?"
                return f"{said}{name} is missing{why}"
            if got[name].shape != tensor.shape:
                hint = ": widths double and stop at 8 * channels" if name.endswith("weight") else ""
                return f"{said}{name} should have shape {tuple(tensor.shape)}, has {tuple(got[name].shape)}{hint}"
        if extra := sorted(set(got) - set(right)):
            return f"{said}{extra[0]} is too much: a convolution before a norm has no bias, the others have one"


def _filled(fn, *arguments):
    right, mine = PatchDiscriminator(*arguments), fn(*arguments)
    weights = {n: (0.3 * normal(t.shape, i) if t.dtype.is_floating_point else t) for i, (n, t) in
               enumerate(right.state_dict().items())}
    weights = {n: t.abs() + 0.5 if "running_var" in n else t for n, t in weights.items()}
    for model in (right, mine):
        model.load_state_dict(weights)
    return right, mine


@PATCH.property("equals the course's critic with the same weights, in training and in eval mode")
def _(fn):
    x = normal((2, 3, 24, 24), 2)
    for arguments in ((3, 8, 2), (3, 4, 1)):
        for training in (True, False):
            right, mine = (m.train(training) for m in _filled(fn, *arguments))
            with torch.no_grad():
                expected = right(x)
                got = mine(x)
            variants = {}
            for slope, words in ((0.01, "the slope of LeakyReLU is 0.2, not torch's 0.01"), (0.0, "LeakyReLU(0.2), not ReLU")):
                for module in right.modules():
                    if isinstance(module, nn.LeakyReLU):
                        module.negative_slope = slope
                with torch.no_grad():
                    variants[words] = right(x)
            bugs = {"a sigmoid at the end: the hinge loss wants raw verdicts": expected.sigmoid(),
                    "a tanh at the end: the hinge loss wants raw verdicts": expected.tanh(), **variants}
            if problem := compare(got, expected, bugs, rtol=1e-3):
                return problem


@PATCH.property("one verdict sees 16 x 16 pixels with one layer and 34 x 34 with two")
def _(fn):
    for depth, side in ((1, 16), (2, 34)):
        mine = _filled(fn, 1, 4, depth)[1].eval()
        x = normal((1, 1, 64, 64), 3).requires_grad_()
        out = mine(x)
        seen = torch.autograd.grad(out[0, 0, out.shape[2] // 2, out.shape[3] // 2], x)[0][0, 0] != 0
        rows, columns = int(seen.any(1).sum()), int(seen.any(0).sum())
        if (rows, columns) != (side, side):
            return f"with num_layers={depth} a verdict sees {rows} x {columns} pixels, not {side} x {side}"


@PATCH.property("gradients reach the picture and every weight")
def _(fn):
    mine, x = fn(3, 4, 2), normal((2, 3, 16, 16), 4).requires_grad_()
    mine(x).square().sum().backward()
    if x.grad is None:
        return "no gradient reaches the picture: the autoencoder could not learn from it"
    idle = [n for n, p in mine.named_parameters() if p.grad is None]
    return f"no gradient reaches {idle[0]}" if idle else None


# ---- 6 · what both want

HINGE = Exercise("losses.hinge", points=2, minutes=10, reference=hinge)


@HINGE.gate("returns (critic, generator), two scalars")
def _(fn):
    out = fn(normal((2, 1, 3, 3), 1), normal((2, 1, 3, 3), 2))
    return several(out, ("critic", "generator")) or tensor_like(out[0], ()) or tensor_like(out[1], ())


@HINGE.property("worked by hand: real verdicts 2 and 0, fake -3 and 0.5: the critic loses (0.5 + 0.75) / 2")
def _(fn):
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])
    return compare(fn(real, fake)[0], torch.tensor(0.625), {
        "the factor 1/2 is missing, or the sum over verdicts was taken": torch.tensor(1.25),
        "real and fake are exchanged: the critic wants real above 1 and fake below -1": torch.tensor(2.125),
        "the loss goes on beyond the margin: relu(1 - real), relu(1 + fake)": torch.tensor(-0.125),
        "the margin 1 is missing": torch.tensor(0.125),
        "one sign is turned: relu(1 - real), relu(1 + fake)": torch.tensor(1.375),
    })


@HINGE.property("worked by hand: the generator's loss of fake verdicts -3 and 0.5 is 1.25")
def _(fn):
    return compare(fn(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5]))[1], torch.tensor(1.25), {
        "the sign is turned: the generator wants high verdicts, so its loss is -mean(fake)": torch.tensor(-1.25),
        "the generator has no margin: -mean(fake), without relu": torch.tensor(2.25),
        "this is the loss of the real verdicts": torch.tensor(-1.0), "the factor 1/2 is the critic's alone": torch.tensor(0.625),
        "the sum over verdicts was taken: the mean": torch.tensor(2.5)})


@HINGE.property("a critic that is sure (real above 1, fake below -1) has nothing more to learn; the generator has")
def _(fn):
    real, fake = torch.full((2, 1, 2, 2), 1.5).requires_grad_(), torch.full((2, 1, 2, 2), -2.0).requires_grad_()
    critic, generator = fn(real, fake)
    if float(critic.detach()) != 0:
        return f"the critic's loss should be 0, got {float(critic.detach()):.3g}"
    if not generator.requires_grad:
        return "the generator's loss is cut off from the verdicts: no .detach() or .item()"
    if not critic.requires_grad:
        return "the critic's loss is cut off from the verdicts: no .detach() or .item()"
    return compare(torch.autograd.grad(generator, fake)[0], torch.full((2, 1, 2, 2), -1 / 8))


@HINGE.property("equals the course's, also for different numbers of verdicts")
def _(fn):
    real, fake = 2 * normal((2, 1, 3, 3), 3), 2 * normal((4, 1, 2, 3), 4)
    for mine, right in zip(fn(real, fake), hinge(real, fake), strict=True):
        if problem := compare(mine, right):
            return problem


# ---- 7 · how much the critic may say

ADAPTIVE = Exercise("losses.adaptive_weight", points=3, minutes=15, reference=adaptive_weight)


def _losses(rec_scale=1.0, adversarial_scale=1.0):
    """(rec, adversarial, layer) with gradients (3, 4) and (0, 2) at the layer's weight, times the scales."""
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.zeros_(layer.bias)
    rec = rec_scale * layer(torch.tensor([3.0, 4.0])).sum()
    return rec, adversarial_scale * layer(torch.tensor([0.0, 2.0])).sum(), layer


@ADAPTIVE.gate("returns a scalar tensor")
def _(fn):
    return tensor_like(fn(*_losses()), ())


@ADAPTIVE.property("worked by hand: gradients (3, 4) and (0, 2) have lengths 5 and 2: weight 2.5")
def _(fn):
    return compare(fn(*_losses()), torch.tensor(2.5), {
        "upside down: the reconstruction's gradient is the numerator": torch.tensor(0.4),
        "this is the ratio of the losses, or of sums of absolute values: Euclidean lengths of gradients": torch.tensor(3.5),
        "this is the ratio of squared lengths: take the root": torch.tensor(6.25),
        "this is the ratio of largest entries: use the Euclidean length": torch.tensor(2.0),
        "the bias was counted: use layer.weight": torch.tensor(26**0.5 / 5**0.5),
    }, rtol=1e-3)


@ADAPTIVE.property("times ten on the critic's side, a tenth of the weight: their product stands still")
def _(fn):
    return compare(fn(*_losses(1, 10)), torch.tensor(0.25), rtol=1e-3) or \
        compare(fn(*_losses(10, 1)), torch.tensor(25.0), rtol=1e-3)


@ADAPTIVE.property("a silent critic gives neither infinity nor more than `most`")
def _(fn):
    value = fn(*_losses(1e3, 0.0))
    if not torch.isfinite(value):
        return "the division by zero is not prevented: add 1e-4 to the length below"
    if problem := compare(value, torch.tensor(1e4), {"the weight is not clamped to `most`": torch.tensor(5e7)}):
        return problem
    return compare(fn(*_losses(1.0, 1.0), 2.0), torch.tensor(2.0), {"the argument `most` is not used": torch.tensor(2.5)},
                   rtol=1e-3) or compare(fn(*_losses(1e-3, 1e-4)), torch.tensor(5e-3 / 3e-4), {
                       "add 1e-4 to the length of the critic's gradient": torch.tensor(25.0)}, rtol=1e-2)


@ADAPTIVE.property("the weight is a constant, and both losses can be differentiated afterwards")
def _(fn):
    rec, adversarial, layer = _losses()
    rec, adversarial = rec**2, adversarial**2                  # their gradients depend on the weight
    value = fn(rec, adversarial, layer)
    if value.requires_grad:
        return "a gradient would flow through the weight itself: .detach()"
    if layer.weight.grad is not None:
        return "gradients were added to layer.weight.grad: torch.autograd.grad returns them and stores nothing"
    try:
        (rec + value * adversarial).backward()
    except RuntimeError:
        return "the graph is gone: retain_graph=True in both calls of torch.autograd.grad"
