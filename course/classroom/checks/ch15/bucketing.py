"""Exercises 6 to 8: resolution buckets, who goes where, and batches of one shape."""

import torch

from course.classroom.checks import Exercise, compare, several, tensor_like, touched
from course.classroom.checks.ch15.answers import assign, batches, sides

# ---- 6 · the shapes on offer

SIDES = Exercise("buckets.sides", points=2, minutes=8, reference=sides)


def _pairs(out):
    """The pairs as tuples of int, or a sentence."""
    try:
        found = [(int(h), int(w)) for h, w in out]
    except (TypeError, ValueError):
        return None, "expected a list of pairs (height, width)" + (": is the `return` missing?" if out is None else "")
    return found, None


@SIDES.gate("returns a list of (height, width)")
def _(fn):
    return _pairs(fn(64, 2, 4, 16, 0.9))[1]


@SIDES.property("worked by hand: 64 pixels, sides 4, 6, ... 16, at least nine tenths full: five shapes")
def _(fn):
    found, right = _pairs(fn(64, 2, 4, 16, 0.9))[0], [(4, 16), (6, 10), (8, 8), (10, 6), (16, 4)]
    if found == right:
        return None
    if sorted(found) == right:
        return "all shapes are there, not sorted by height and then by width"
    if len(set(found)) < len(found):
        return "a shape occurs twice"
    if found == [p for p in right if p[0] <= p[1]] or found == [p for p in right if p[0] >= p[1]]:
        return "tall and wide shapes are both wanted"
    if set(right) - set(found) in ({(4, 16), (16, 4)}, {(16, 4)}):
        return "the longest side is included: range(shortest, longest + 1, step)"
    if too_large := [p for p in found if p[0] * p[1] > 64]:
        return f"{too_large[0]} has more than 64 pixels: h * w <= pixels"
    if too_small := [p for p in found if p[0] * p[1] < 0.9 * 64]:
        return f"{too_small[0]} is less than nine tenths full: h * w >= fill * pixels"
    return f"expected {right}, got {found}"


@SIDES.property("SDXL's: 41 shapes of a megapixel, from 512 x 2048 to 2048 x 512, with 1024 x 1024 and 832 x 1216")
def _(fn):
    found, right = _pairs(fn())[0], sides()
    if found != right:
        more, fewer = sorted(set(found) - set(right)), sorted(set(right) - set(found))
        return f"{len(found)} shapes, expected 41" + (f"; too many: {more[:3]}" if more else "") + (
            f"; missing: {fewer[:3]}" if fewer else "")


@SIDES.property("`fill` and `step` are used")
def _(fn):
    for arguments in ((64, 2, 4, 16, 0.7), (64, 4, 4, 16, 0.9), (100, 5, 5, 20, 1.0)):
        if (found := _pairs(fn(*arguments))[0]) != (right := sides(*arguments)):
            return f"sides{arguments} should give {right}, got {found}"


# ---- 7 · who goes where

ASSIGN = Exercise("buckets.assign", points=3, minutes=12, reference=assign)
OFFER = [(4, 16), (6, 10), (8, 8), (10, 6), (16, 4)]


def _sizes(*pairs):
    return torch.tensor([h for h, _ in pairs]), torch.tensor([w for _, w in pairs])


@ASSIGN.gate("returns (index (N,) of integers, kept (N,) of floats)")
def _(fn):
    out = fn(*_sizes((8, 8), (3, 5), (100, 30)), OFFER)
    if problem := several(out, ("index", "kept")):
        return problem
    return tensor_like(out[0], (3,), floating=False) or tensor_like(out[1], (3,))


@ASSIGN.property("a picture of a bucket's own proportions goes there, at any size, and loses nothing")
def _(fn):
    for scale in (1, 3, 50):
        height, width = _sizes(*[(scale * h, scale * w) for h, w in OFFER])
        index, kept = fn(height, width, OFFER)
        if index.tolist() != [0, 1, 2, 3, 4]:
            if index.tolist() == [4, 3, 2, 1, 0]:
                return "tall pictures go to wide buckets: is one ratio w/h and the other h/w?"
            return f"expected the buckets [0, 1, 2, 3, 4], got {index.tolist()}: compare proportions, not pixels"
        if problem := compare(kept, torch.ones(5)):
            return f"nothing is lost where the proportions agree: {problem}"


@ASSIGN.property("nearest as a ratio: 1 : 1.3 is as far from a square as 1.3 : 1")
def _(fn):
    pairs = [(10, 26), (26, 10), (100, 130), (130, 100), (10, 200), (200, 10)]
    right = assign(*_sizes(*pairs), OFFER)[0]
    offered = torch.tensor([w / h for h, w in OFFER], dtype=torch.float64)
    height, width = _sizes(*pairs)
    index = fn(height, width, OFFER)[0]
    if index.tolist() == right.tolist():
        return None
    for ratio, plain in (((width / height), offered), ((height / width), 1 / offered)):
        if index.tolist() == (ratio[:, None] - plain).abs().argmin(1).tolist():
            return "the difference of ratios favours one side: a wide picture and the same turned upright are to be alike (log)"
    return f"the pictures {pairs} belong to {right.tolist()}, got {index.tolist()}"


@ASSIGN.property("worked by hand: of a 2 : 1 picture a square keeps a half")
def _(fn):
    index, kept = fn(*_sizes((20, 10), (10, 20), (10, 10)), [(8, 8)])
    return compare(kept, torch.tensor([0.5, 0.5, 1.0]), {
        "this is the share that is lost: return what is kept": torch.tensor([0.5, 0.5, 0.0]),
        "more than everything is kept: exp(-distance), or the smaller ratio over the larger": torch.tensor([2.0, 2.0, 1.0]),
        "this is one ratio over the other, which may exceed 1: the smaller over the larger": torch.tensor([0.5, 2.0, 1.0]),
        "this is one ratio over the other, and may exceed 1: the smaller over the larger": torch.tensor([2.0, 0.5, 1.0]),
        "this is the distance of the logarithms: exp(-distance) is kept": torch.tensor([2.0, 2.0, 1.0]).log()})


@ASSIGN.property("equals the library's for a thousand sizes")
def _(fn):
    sizes = torch.randint(100, 3000, (2, 1000), generator=torch.Generator().manual_seed(0))
    index, kept = fn(*sizes, sides())
    right, share = assign(*sizes, sides())
    if not torch.equal(index, right):
        return f"{int((index != right).sum())} of 1,000 pictures went to another bucket"
    return compare(kept, share)


@ASSIGN.hygiene("leaves the sizes as they were")
def _(fn):
    return touched(lambda h, w: fn(h, w, OFFER), *_sizes((8, 9), (7, 3)))


# ---- 8 · batches of one shape

BATCHES = Exercise("buckets.batches", points=3, minutes=12, reference=batches)
BUCKET = torch.randint(4, (203,), generator=torch.Generator().manual_seed(1))
BUCKET[BUCKET == 3] = 0
BUCKET[:2] = 3                                                  # a bucket of two pictures, fewer than a batch


def _made(fn, bucket=BUCKET, size=8, seed=0):
    return fn(bucket, size, torch.Generator().manual_seed(seed))


@BATCHES.gate("returns a list of index tensors, batch_size each; what is left over makes no batch")
def _(fn):
    made = _made(fn)
    if not isinstance(made, (list, tuple)):
        return "expected a list of batches" + (": is the `return` missing?" if made is None else f", got a {type(made).__name__}")
    for batch in made:
        if problem := tensor_like(batch, (8,), floating=False):
            if isinstance(batch, torch.Tensor) and batch.numel() == 0:
                return "a batch is empty: a bucket with fewer pictures than a batch makes none"
            return problem + ": leftovers are dropped"


@BATCHES.property("all pictures of a batch come from one bucket")
def _(fn):
    for batch in _made(fn):
        if len(BUCKET[batch].unique()) > 1:
            return "a batch mixes buckets, so its pictures cannot be stacked"


@BATCHES.property("as many batches as fit, no picture twice")
def _(fn):
    made = _made(fn)
    whole = torch.cat(list(made))
    if len(whole.unique()) < len(whole):
        return "a picture occurs twice in one epoch"
    right = sum(int((BUCKET == k).sum()) // 8 for k in range(4))
    if len(made) != right:
        return f"expected {right} batches, got {len(made)}"


@BATCHES.property("pictures are shuffled within their bucket, from the generator")
def _(fn):
    first, again, other = (_made(fn, seed=s) for s in (0, 0, 1))
    if any(not torch.equal(a, b) for a, b in zip(first, again, strict=True)):
        return "two runs with the same seed differ: pass generator=generator to torch.randperm"
    if all((batch.diff() > 0).all() for batch in first):
        return "the pictures of a bucket stand in their first order: shuffle them before they are cut into batches"
    groups = ({tuple(sorted(b.tolist())) for b in made} for made in (first, other))
    if len(set.intersection(*groups)) > 2:
        return "another epoch has the same batches: shuffle the pictures before they are cut, not after"
    lost = (set(range(203)) - set(torch.cat(list(made)).tolist()) for made in (first, other))
    if len(set.intersection(*lost)) > 6:
        return "the same pictures are left over in each epoch: shuffle before you cut"


@BATCHES.property("the buckets take turns at random: batches are shuffled, too")
def _(fn):
    order = torch.tensor([int(BUCKET[b[0]]) for b in _made(fn)])
    changes = int((order.diff() != 0).sum())
    if changes <= 3:
        return "one bucket comes after the other: shuffle the list of batches"
    other = torch.tensor([int(BUCKET[b[0]]) for b in _made(fn, seed=5)])
    if torch.equal(order, other):
        return "the buckets take turns in the same order in each epoch: draw the order, too"


@BATCHES.hygiene("leaves the buckets as they were")
def _(fn):
    return touched(lambda b: fn(b, 8, torch.Generator().manual_seed(0)), BUCKET.clone())
