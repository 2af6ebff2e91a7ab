"""Exercises 5 and 6: who is used, and what becomes of those who are not."""

import math

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch04.answers import restart, usage

# ---- 5 · perplexity and usage

USAGE = Exercise("vq.usage", points=2, minutes=10, reference=usage)


def _number(fn, indices: list, K: int, key: str, right: float, bugs: dict[str, float]) -> str | None:
    value = float(fn(torch.tensor(indices), K)[key])
    if math.isnan(value):
        return f"{key} is NaN: 0 log 0 counts as 0 (torch.special.xlogy, or leave out codes that do not occur)"
    if math.isclose(value, right, rel_tol=1e-4):
        return None
    told = [sentence for sentence, wrong in bugs.items() if math.isclose(value, wrong, rel_tol=1e-4)]
    return told[0] if told else f"{key} of {indices} with {K} codes is {right:.4g}, got {value:.4g}"


@USAGE.gate("returns a dict with the numbers 'perplexity' and 'used'")
def _(fn):
    out = fn(torch.tensor([[[0, 1], [1, 3]]]), 4)
    if not isinstance(out, dict) or set(out) != {"perplexity", "used"}:
        return f"expected a dict with the keys 'perplexity' and 'used', got {sorted(out) if isinstance(out, dict) else out!r}"
    for key, value in out.items():
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            return f"{key} is one number, got a tensor of shape {tuple(value.shape)}"
        float(value)


@USAGE.property("worked by hand: three of four positions have code 0, one has code 1: perplexity 1.755")
def _(fn):
    p = (0.75, 0.25)
    bits, nats = (-sum(q * log(q) for q in p) for log in (math.log2, math.log))
    return _number(fn, [0, 0, 0, 1], 2, "perplexity", math.exp(nats), {
        "this is the entropy in nats: perplexity is its exponential": nats,
        "this is the entropy in bits: perplexity is 2 to that power": bits,
        "exponential and logarithm have different bases: exp with log, 2** with log2": math.exp(bits),
        "exponential and logarithm have different bases: exp with log, or 2** with log2": 2**nats,
        "the minus sign of the entropy is missing": math.exp(-nats),
        "this is a number of codes, however unevenly they are used: take the exponential of the entropy": 2.0,
        "this is divided by the number of codes": math.exp(nats) / 2,
        "the shares are averaged, not summed": math.exp(nats / 2),
        "the entropy is taken of counts: divide them by their sum": math.exp(-3 * math.log(3)),
        "this is 1 / sum of p^2, another measure of spread": 1 / (0.75**2 + 0.25**2),
    })


@USAGE.property("K codes used alike have perplexity K, one code alone has 1")
def _(fn):
    return _number(fn, list(range(16)), 16, "perplexity", 16.0, {}) or _number(fn, [3] * 9, 16, "perplexity", 1.0, {})


@USAGE.property("used: the share of the K codes that occur")
def _(fn):
    return _number(fn, [0, 0, 0, 1, 2], 12, "used", 0.25, {
        "this is a number of codes, not a share: divide by num_codes": 3.0,
        "this divides by the number of positions: divide by num_codes": 3 / 5,
        "this divides by the largest index that occurs: divide by num_codes": 1.0,
        "this is the share of codes that do not occur": 0.75,
        "this is perplexity / num_codes: count the codes that occur at all":
            usage(torch.tensor([0, 0, 0, 1, 2]), 12)["perplexity"] / 12,
    })


@USAGE.property("equals the course's figures for indices (B,h,w) with many codes unused")
def _(fn):
    indices = normal((4, 8, 8), 1).mul(6).abs().long()
    right = usage(indices, 64)
    for key, value in fn(indices, 64).items():
        if not math.isclose(float(value), right[key], rel_tol=1e-4):
            return f"{key}: expected {right[key]:.6g}, got {float(value):.6g}"


@USAGE.hygiene("leaves the indices as they were")
def _(fn):
    return touched(lambda i: fn(i, 4), torch.tensor([[0, 1], [1, 3]]))


# ---- 6 · restarts

RESTART = Exercise("vq.restart", points=3, minutes=15, reference=restart)
CODES = torch.tensor([[0.0], [10.0], [50.0], [60.0]])
COUNT = torch.tensor([3.0, 5.0, 0.2, 0.8])
ROWS = torch.tensor([0.0, 1, 2, 10, 10, 13, 17, 9])[:, None]   # 17 and 13 lie farthest from a code


@RESTART.gate("returns (codebook, count) of shapes (K,c) and (K,)")
def _(fn):
    out = fn(normal((5, 3), 1), torch.tensor([2.0, 0, 0, 2, 2]), normal((10, 3), 2), 0.5)
    return several(out, ("codebook", "count")) or tensor_like(out[0], (5, 3)) or tensor_like(out[1], (5,))


@RESTART.property("worked by hand: 8 rows, 4 codes, threshold 0.5: below 1 use a code is dead; codes 2 and 3 move, 0 and 1 stay")
def _(fn):
    moved = (fn(CODES, COUNT, ROWS, 0.5)[0] != CODES).flatten().tolist()
    if moved == [False, False, True, True]:
        return None
    return {
        (False, False, False, False): "no code has moved: index the codebook with the dead ones and assign",
        (True, True, False, False): "the busiest codes were moved: dead is whose count lies below threshold * due",
        (False, False, True, False): "code 3 with count 0.8 stayed: compare with threshold * due, due = N / K = 2 uses a code",
        (False, False, False, True): "code 2 stayed, code 3 moved",
        (True, True, True, True): "all codes were moved: only those below threshold * due are dead",
    }.get(tuple(moved), f"these codes have moved: {[k for k, m in enumerate(moved) if m]}; it should be 2 and 3")


@RESTART.property("they go to the two rows that are represented worst, 17 and 13, each to one of its own")
def _(fn):
    new = fn(CODES, COUNT, ROWS, 0.5)[0].flatten()[2:]
    if sorted(new.tolist()) == [13.0, 17.0]:
        return None
    if set(new.tolist()) <= {0.0, 10.0}:
        return "they went to rows that lie on a code already: take the largest errors"
    if new[0] == new[1]:
        return f"both dead codes went to the same row, {float(new[0]):g}: two codes in one place are one code (topk, not argmax)"
    if set(new.tolist()) <= set(ROWS.flatten().tolist()):
        return (f"they went to {sorted(new.tolist())}: take the rows with the largest distance to their nearest code")
    return f"codes 2 and 3 should be rows of flat, 17 and 13, got {new.tolist()}"


@RESTART.property("a moved code starts with its due, N / K, so that it is not moved again at once")
def _(fn):
    return compare(fn(CODES, COUNT, ROWS, 0.5)[1], torch.tensor([3.0, 5.0, 2.0, 2.0]), {
        "the counts of the moved codes are still low: set them to due = N / K": COUNT,
        "the counts start at 1: a code's due is N / K uses, here 2": torch.tensor([3.0, 5.0, 1.0, 1.0]),
        "the counts start at threshold * due, and any use less is death: start at due": torch.tensor([3.0, 5.0, 1.0, 1.0]),
        "the counts start at 0: set them to due = N / K": torch.tensor([3.0, 5.0, 0.0, 0.0]),
        "all counts were reset: only the moved codes start again": torch.full((4,), 2.0),
        "due is N / K, rows over codes: here 2": torch.tensor([3.0, 5.0, 0.5, 0.5]),
        "due is N / K uses, here 2, not all N": torch.tensor([3.0, 5.0, 8.0, 8.0]),
    })


@RESTART.property("where every code is alive nothing happens")
def _(fn):
    codebook, count = fn(CODES, torch.tensor([3.0, 3.0, 1.5, 2.0]), ROWS, 0.5)
    return compare(codebook, CODES) or compare(count, torch.tensor([3.0, 3.0, 1.5, 2.0]))


@RESTART.property("more dead codes than rows: as many move as there are rows")
def _(fn):
    codebook, rows = normal((9, 2), 3), normal((4, 2), 4)
    new = fn(codebook, torch.zeros(9), rows, 0.1)[0]
    if problem := tensor_like(new, (9, 2)):
        return problem
    moved = int((new != codebook).any(1).sum())
    return None if moved == 4 else f"9 dead codes and 4 rows: 4 codes should move, {moved} did"


@RESTART.property("equals the course's restart in several dimensions")
def _(fn):
    codebook, rows = normal((12, 3), 5), 2 * normal((60, 3), 6)
    count = torch.arange(12) % 4 * 2.0
    (mine, my_count), (right, right_count) = fn(codebook, count, rows, 0.1), restart(codebook, count, rows, 0.1)
    dead = count < 0.5
    return compare(mine[~dead], right[~dead]) or compare(mine[dead].sort(0).values, right[dead].sort(0).values) \
        or compare(my_count, right_count)


@RESTART.hygiene("leaves the codebook, the counts and the rows as they were")
def _(fn):
    return touched(lambda *inputs: fn(*inputs, 0.5), CODES.clone(), COUNT.clone(), ROWS.clone())
