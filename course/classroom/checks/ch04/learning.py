"""Exercises 3 and 4: how the codes learn, by gradient or by running averages."""

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch04.answers import codebook_loss, ema_update

# ---- 3 · two losses

CODEBOOK_LOSS = Exercise("vq.codebook_loss", points=3, minutes=10, reference=codebook_loss)


@CODEBOOK_LOSS.gate("returns one number, in both orders")
def _(fn):
    for legacy in (False, True):
        if problem := tensor_like(fn(normal((2, 3, 4, 5), 1), normal((2, 3, 4, 5), 2), 0.25, legacy), ()):
            return problem


@CODEBOOK_LOSS.property("worked by hand: mean squared distance 1, so the loss is 1 + 0.25")
def _(fn):
    z, codes = torch.zeros(2, 2, 1, 1), torch.tensor([2.0, 0, 0, 0]).reshape(2, 2, 1, 1)
    return compare(fn(z, codes, 0.25), torch.tensor(1.25), {
        "this is the sum of the squares: take their mean over all values": torch.tensor(5.0),
        "this is summed over the channels and averaged over positions: take the mean over all values": torch.tensor(2.5),
        "beta is missing: one of the two terms counts a quarter": torch.tensor(2.0),
        "one term is missing: this is the codebook's alone": torch.tensor(1.0),
        "one term is missing: this is the commitment alone": torch.tensor(0.25),
        "this is the absolute distance: square it": torch.tensor(0.625),
        "the commitment is subtracted: both terms are added": torch.tensor(0.75),
    })


def _gradients(fn, beta, legacy):
    z, codes = normal((2, 3, 2, 2), 3).requires_grad_(), normal((2, 3, 2, 2), 4).requires_grad_()
    found = torch.autograd.grad(fn(z, codes, beta, legacy), (z, codes), allow_unused=True)
    unit = 2 * (z - codes).detach() / z.numel()                # of a mean of squares, with respect to z
    return *found, unit


def _speeds(fn, beta: float, legacy: bool, of_z: float, of_codes: float) -> str | None:
    z, codes, unit = _gradients(fn, beta, legacy)
    if codes is None or z is None:
        who = "the codes" if codes is None else "z"
        return f"no gradient reaches {who}: each term holds one of the two still, and moves the other"
    both = {"both terms move both: a stop-gradient (.detach()) is missing in each": (1 + beta) * unit}
    return compare(z, of_z * unit, both | {
        "z gets the speed of the codes: beta is on the wrong term": of_codes * unit,
        "z is pushed away from its code": -of_z * unit,
        "nothing moves z: a detach too many": 0 * unit,
    }) or compare(codes, -of_codes * unit, both | {"both terms move the codes: hold them still in one": -(1 + beta) * unit})


@CODEBOOK_LOSS.property("the code goes to z at full speed, z to the code at beta times that")
def _(fn):
    return _speeds(fn, 0.25, False, 0.25, 1.0)


@CODEBOOK_LOSS.property("legacy: the same value, and the two speeds exchanged")
def _(fn):
    z, codes = normal((2, 3, 2, 2), 5), normal((2, 3, 2, 2), 6)
    return compare(fn(z, codes, 0.25, True), fn(z, codes, 0.25, False).detach()) or _speeds(fn, 0.25, True, 1.0, 0.25)


@CODEBOOK_LOSS.property("beta is read, not a fixed 0.25")
def _(fn):
    return _speeds(fn, 0.7, False, 0.7, 1.0)


@CODEBOOK_LOSS.hygiene("leaves z and the codes as they were")
def _(fn):
    return touched(fn, normal((1, 2, 3, 3), 7), normal((1, 2, 3, 3), 8))


# ---- 4 · running averages

EMA_UPDATE = Exercise("vq.ema_update", points=3, minutes=15, reference=ema_update)
NAMES = ("codebook", "count", "total")


def _small():
    """Three codes on a line; two z chose the first, one the second, none the third, which has an old count."""
    column = torch.tensor([[0.0], [10.0], [20.0]])
    count = torch.tensor([2.0, 2.0, 1.0])
    return column, count, column * count[:, None], torch.tensor([[2.0], [4.0], [16.0]]), torch.tensor([0, 0, 1])


@EMA_UPDATE.gate("returns (codebook, count, total) of shapes (K,c), (K,), (K,c)")
def _(fn):
    out = fn(*_small(), 0.75)
    if problem := several(out, NAMES):
        return problem
    for name, value, shape in zip(NAMES, out, ((3, 1), (3,), (3, 1)), strict=True):
        if problem := tensor_like(value, shape):
            return f"{name}: {problem}"


@EMA_UPDATE.property("worked by hand: counts 2, 2, 1 and uses 2, 1, 0 at decay 0.75 give 2, 1.75, 0.75")
def _(fn):
    count, used = _small()[1], torch.tensor([2.0, 1.0, 0.0])
    return compare(fn(*_small(), 0.75)[1], 0.75 * count + 0.25 * used, {
        "decay belongs to the old count, 1 - decay to the new one": 0.25 * count + 0.75 * used,
        "the factor 1 - decay in front of the new count is missing": 0.75 * count + used,
        "the old count is forgotten": used,
        "the old count does not decay": count + used,
        "the count has not changed": count,
        "a code is counted once even where two z chose it (count[indices] += 1 does that): use torch.bincount":
            0.75 * count + 0.25 * (used > 0),
    })


@EMA_UPDATE.property("worked by hand: totals 0, 20, 20 and sums 6, 16, 0 give 1.5, 19, 15")
def _(fn):
    total, summed = _small()[2], torch.tensor([[6.0], [16.0], [0.0]])

    def mixed(new):
        return 0.75 * total + 0.25 * new
    return compare(fn(*_small(), 0.75)[2], mixed(summed), {
        "decay belongs to the old total, 1 - decay to the new one": 0.25 * total + 0.75 * summed,
        "the factor 1 - decay in front of the new sum is missing": 0.75 * total + summed,
        "of two z with one code only one was added (total[indices] += flat does that): use index_add":
            mixed(torch.tensor([[4.0], [16.0], [0.0]])),
        "of two z with one code only one was added": mixed(torch.tensor([[2.0], [16.0], [0.0]])),
        "this adds the mean of the z of a code: add their sum, the count does the dividing":
            mixed(torch.tensor([[3.0], [16.0], [0.0]])),
        "the total has not changed": total,
        "the old total is forgotten": summed,
    })


@EMA_UPDATE.property("a code is total / count; who was not chosen this time stays where it is")
def _(fn):
    old, count, total, flat, indices = _small()
    right, *_ = ema_update(*_small(), 0.75)
    batch = torch.tensor([[3.0], [16.0], [20.0]])
    return compare(fn(*_small(), 0.75)[0], right, {
        "the codebook has not changed: it is total / count": old,
        "this is the mean of this batch: divide the running total by the running count": batch,
        "this is the total: divide it by the count": 0.75 * total + 0.25 * torch.tensor([[6.0], [16.0], [0.0]]),
        "the code itself is averaged with the mean of the batch: a large batch must weigh more, divide total by count":
            0.75 * old + 0.25 * batch,
        "the code itself is averaged with the mean of the batch, which is 0 for codes that nobody chose":
            0.75 * old + 0.25 * torch.tensor([[3.0], [16.0], [0.0]]),
    })


@EMA_UPDATE.property("a code that was never chosen (count 0) stays, and makes no NaN")
def _(fn):
    flat, indices = normal((6, 2), 1), torch.tensor([0, 0, 0, 2, 2, 2])
    old = normal((4, 2), 2)
    new = fn(old, torch.zeros(4), torch.zeros(4, 2), flat, indices, 0.9)[0]
    if problem := tensor_like(new, (4, 2)):
        return problem
    if not torch.isfinite(new).all():
        return "0 / 0: where the count is 0 keep the old code (torch.where)"
    if not torch.allclose(new[[1, 3]], old[[1, 3]]):
        return "a code whose count is 0 has moved: keep the old code there (torch.where)"
    return compare(new[[0, 2]], torch.stack([flat[:3].mean(0), flat[3:].mean(0)]))


@EMA_UPDATE.property("at decay 0 a code is the mean of the z that chose it: one round of k-means")
def _(fn):
    flat, indices = normal((50, 3), 3), torch.arange(50) % 5
    new = fn(normal((5, 3), 4), torch.ones(5), normal((5, 3), 5), flat, indices, 0.0)[0]
    return compare(new, torch.stack([flat[indices == k].mean(0) for k in range(5)]))


@EMA_UPDATE.property("equals the course's update, three times in a row")
def _(fn):
    mine = right = (normal((8, 2), 6), torch.rand(8, generator=torch.Generator().manual_seed(1)), normal((8, 2), 7))
    for seed in range(3):
        flat, indices = normal((40, 2), 10 + seed), torch.arange(40) * (seed + 3) % 7
        mine, right = fn(*mine, flat, indices, 0.9), ema_update(*right, flat, indices, 0.9)
    for name, a, b in zip(NAMES, mine, right, strict=True):
        if problem := compare(a, b):
            return f"{name}: {problem}"


@EMA_UPDATE.hygiene("leaves its inputs as they were")
def _(fn):
    *state, flat, indices = _small()
    return touched(lambda *state: fn(*state, flat, indices, 0.75), *state)
