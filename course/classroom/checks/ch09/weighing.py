"""Exercise 1: who listens to whom, and how much."""

import math

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch09.answers import attention_weights

WEIGHTS = Exercise("attention.weights", points=3, minutes=15, reference=attention_weights)


def _qk(n=4, m=6, d=8, seed=1):
    return normal((2, 3, n, d), seed), normal((2, 3, m, d), seed + 1)


@WEIGHTS.gate("(B,h,N,d), (B,h,M,d) -> (B,h,N,M)")
def _(fn):
    out = fn(*_qk())
    if hasattr(out, "shape") and tuple(out.shape) == (2, 3, 4, 8):
        return "this has the shape of a result (B,h,N,d): return the weights themselves, before they meet v"
    return tensor_like(out, (2, 3, 4, 6))


@WEIGHTS.property("each query spends exactly 1, and never less than 0 on a key")
def _(fn):
    out = fn(*_qk())
    if problem := compare(out.sum(-1), torch.ones(2, 3, 4)):
        if torch.allclose(out.sum(-2), torch.ones(2, 3, 6), atol=1e-4):
            return "the softmax runs over the queries: over the keys, dim=-1, so that each query spends 1"
        if torch.allclose(out.sum(1), torch.ones(2, 4, 6), atol=1e-4) or torch.allclose(out.sum(), torch.tensor(1.0)):
            return "the softmax runs over the wrong axis: over the keys, dim=-1"
        return f"over the keys the weights of a query must sum to 1: is the softmax missing? ({problem})"
    return "a weight is negative" if (out < 0).any() else None


@WEIGHTS.property("worked by hand: d = 4, scores ln 3 and 0 give 3/4 and 1/4")
def _(fn):
    q, k = torch.tensor([2 * math.log(3), 0, 0, 0]), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])

    def row(score):
        share = 1 / (1 + math.exp(-score))
        return torch.tensor([[[[share, 1 - share]]]])
    return compare(fn(q.reshape(1, 1, 1, 4), k.reshape(1, 1, 2, 4)), row(math.log(3)), {
        "the scale is missing: divide the scores by the root of d": row(2 * math.log(3)),
        "the scores are divided by d: by its root": row(math.log(3) / 2),
        "the scores are multiplied by the root of d: divide": row(4 * math.log(3)),
        "the scale is the root of d's root: q and k were each scaled by d ** -0.25 and the scores once more":
            row(math.log(3) / 2**0.5)})


@WEIGHTS.property("the scale depends on d, not on the number of tokens or heads")
def _(fn):
    for n, m, d in ((5, 3, 16), (1, 9, 2)):
        q, k = _qk(n, m, d, seed=3)
        if problem := compare(fn(q, k), attention_weights(q, k)):
            return f"N = {n}, M = {m}, d = {d}: {problem}"


@WEIGHTS.property("causal: token i sees tokens 0 ... i, and still spends 1")
def _(fn):
    q, k = _qk(5, 5, seed=5)
    out, right, scores = fn(q, k, causal=True), attention_weights(q, k, True), q @ k.transpose(-1, -2) * 8**-0.5
    future = torch.ones(5, 5).triu(1).bool()
    if torch.isnan(out).any():
        return "NaN: a row in which everything is masked, or 0 times infinity. A token sees itself: mask above the diagonal only"
    return compare(out, right, {
        "causal=True changes nothing: mask what comes later": attention_weights(q, k),
        "the mask came behind the softmax: rows no longer sum to 1. Set scores to -inf before it":
            attention_weights(q, k).masked_fill(future, 0),
        "masked scores are 0, and exp(0) = 1 still takes a share: set them to -inf": scores.masked_fill(future, 0).softmax(-1),
        "the mask is turned round: token i sees i, i + 1, ...; it must see 0 ... i":
            scores.masked_fill(future.T, float("-inf")).softmax(-1)})


@WEIGHTS.property("without causal, later keys count as much as earlier ones")
def _(fn):
    q, k = _qk(5, 5, seed=7)
    return compare(fn(q, k).flip(-1), fn(q, k.flip(-2)), {
        "the mask is there without causal=True": attention_weights(q, k, True).flip(-1)})


@WEIGHTS.property("large scores give no NaN, and a gradient reaches q and k")
def _(fn):
    q, k = _qk(seed=9)
    if not torch.isfinite(fn(300 * q, 300 * k)).all():
        return "large scores overflow in exp: torch's softmax subtracts the largest first"
    q, k = q.requires_grad_(), k.requires_grad_()
    out = fn(q, k)
    if not out.requires_grad:
        return "the weights are cut off from q and k: no .detach(), no no_grad()"
    (out * normal(out.shape, 3)).sum().backward()
    missing = [name for name, x in (("q", q), ("k", k)) if x.grad is None or not x.grad.any()]
    return f"no gradient reaches {', '.join(missing)}" if missing else None


@WEIGHTS.hygiene("leaves q and k as they were")
def _(fn):
    return touched(fn, *_qk())
