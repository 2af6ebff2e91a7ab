"""Exercises 1 to 4: two clouds of features, compared."""

import math

import torch

from course.classroom.checks import Exercise, normal, several, touched
from course.classroom.checks.ch12.answers import extrapolated, frechet_distance, kernel_distance, precision_recall


def plain(value, right: float, bugs: dict[str, float] | None = None, rtol: float = 1e-4, atol: float = 1e-9) -> str | None:
    """None where `value` is `right`; otherwise the first bug that would give it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = "None: is the `return` missing?" if value is None else f"a {type(value).__name__}: float(...) makes one"
        return f"expected a plain number, got {kind}"
    if math.isnan(value):
        return "the result is NaN: the root of a negative number? Rounding makes zeros slightly negative, clamp(min=0)"
    if abs(value - right) <= rtol * abs(right) + atol:
        return None
    return next((bug for bug, wrong in (bugs or {}).items() if abs(value - wrong) <= rtol * abs(wrong) + atol),
                f"expected {right:.6g}, got {value:.6g}")


def white(n: int, d: int, seed: int) -> torch.Tensor:
    """(n,d) with the mean 0 and the unbiased covariance 1, exactly."""
    x = normal((n, d), seed, torch.float64)
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T


# ---- 1 · the Frechet distance

FRECHET = Exercise("metrics.frechet_distance", points=4, minutes=20, reference=frechet_distance)


@FRECHET.gate("returns one plain number")
def _(fn):
    value = fn(normal((20, 3), 1), normal((30, 3), 2))
    return plain(value, value)


@FRECHET.property("worked by hand: N(0, 1) and N(3, diag(4, 9, 1)) in three dimensions are 27 + 1 + 4 + 0 apart")
def _(fn):
    a = white(200, 3, 3)
    b = white(150, 3, 4) * torch.tensor([2.0, 3.0, 1.0]).double() + 3
    return plain(fn(a, b), 32.0, {
        "the means are not in it": 5.0, "the covariances are not in it": 27.0,
        "the distance of the means has to be squared": 27**0.5 + 5,
        "this is the root of it: no root is taken at the end": 32**0.5,
        "the factor 2 before the root is missing": 32.0 + 6, "the last term is added: it is subtracted": 32.0 + 24,
        "the root is missing: tr (S_a S_b)^1/2": 27 + 3 + 14 - 28.0,
        "the mean over the dimensions was taken: sum the squares": 9 + 5.0}, rtol=3e-3)


def _turned():
    a, b = white(300, 4, 5), white(200, 4, 6)
    one, other = (torch.linalg.qr(normal((4, 4), seed, torch.float64)).Q for seed in (7, 8))
    return a * torch.tensor([3.0, 1.0, 0.5, 2.0]).double() @ one, b * torch.tensor([0.5, 2.0, 4.0, 1.0]).double() @ other


@FRECHET.property("covariances that do not lie along the same axes")
def _(fn):
    a, b = _turned()
    S, R = torch.cov(a.T), torch.cov(b.T)

    def root(x):
        values, vectors = torch.linalg.eigh(x)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T
    traces = float((a.mean(0) - b.mean(0)).square().sum() + S.trace() + R.trace())
    return plain(fn(a, b), frechet_distance(a, b), {
        "divided by n: the unbiased covariance divides by n - 1": _biased(a, b),
        "a root of every entry: the root of a matrix is another thing, take the roots of eigenvalues":
            traces - 2 * float((S @ R).clamp(min=0).sqrt().trace()),
        "the product of two roots is not the root of the product: S_a^1/2 S_b S_a^1/2":
            traces - 2 * float((root(S) @ root(R)).trace()),
        "only the diagonals were read": traces - 2 * float((S.diagonal() * R.diagonal()).sqrt().sum()),
        "each eigenvalue met another: multiply the matrices first":
            traces - 2 * float((torch.linalg.eigvalsh(S) * torch.linalg.eigvalsh(R)).sqrt().sum())})


def _biased(a, b) -> float:
    """FD if both covariances were divided by n and m."""
    p, q = (len(a) - 1) / len(a), (len(b) - 1) / len(b)
    S, R = torch.cov(a.double().T), torch.cov(b.double().T)
    means = float((a.double().mean(0) - b.double().mean(0)).square().sum())
    cross = (float(S.trace() + R.trace()) - (frechet_distance(a, b) - means)) / 2
    return means + float(S.trace()) * p + float(R.trace()) * q - 2 * cross * (p * q) ** 0.5


@FRECHET.property("covariances are unbiased, divided by n - 1")
def _(fn):
    a, b = normal((5, 2), 8), 2 * normal((4, 2), 9)
    return plain(fn(a, b), frechet_distance(a, b), {"divided by n: the unbiased covariance divides by n - 1": _biased(a, b)})


@FRECHET.property("fewer pictures than dimensions: no NaN, and a cloud is at distance 0 from itself")
def _(fn):
    a, b = normal((10, 24), 10), normal((12, 24), 11)
    if problem := plain(fn(a, b), frechet_distance(a, b)):
        return problem
    same = fn(*(2 * [normal((500, 24), 12)]))
    return None if abs(same) < 1e-5 else f"a cloud should be at distance 0 from itself, got {same:.2g}: compute in float64"


@FRECHET.hygiene("leaves the features as they were")
def _(fn):
    return touched(fn, normal((9, 3), 13), normal((8, 3), 14))


# ---- 2 · without end

EXTRAPOLATED = Exercise("metrics.extrapolated", points=2, minutes=10, reference=extrapolated)


@EXTRAPOLATED.gate("returns (limit, slope), two plain numbers")
def _(fn):
    out = fn([10, 20, 40], [3.0, 2.0, 1.5])
    return several(out, ("limit", "slope")) or next((p for v in out if (p := plain(v, v))), None)


@EXTRAPOLATED.property("worked by hand: 3 + 50 / n")
def _(fn):
    sizes = [10, 20, 50, 100]
    limit, slope = fn(sizes, [3 + 50 / n for n in sizes])
    x, y = torch.tensor(sizes).double(), torch.tensor([3 + 50 / n for n in sizes]).double()
    in_n = _line(x, y)
    in_root = _line(x.rsqrt(), y)
    return plain(limit, 3.0, {
        "limit and slope are exchanged": 50.0, "this is the last value: follow the line on to 1/n = 0": 3.5,
        "the line is in 1/n, not in n": in_n[0], "the line is in 1/n, not in its root": in_root[0],
        "this is the mean of the values": float(y.mean())}) or plain(slope, 50.0, {
            "the sign of the slope is turned": -50.0, "the line is in 1/n, not in n": in_n[1]})


def _line(x, y):
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean()), float(slope)


@EXTRAPOLATED.property("values off the line: least squares over all of them")
def _(fn):
    sizes, values = [100, 125, 160, 200, 400], [2.0, 1.1, 1.3, 0.7, 0.9]
    x, y = 1 / torch.tensor(sizes).double(), torch.tensor(values).double()
    ends = values[-1] - (values[0] - values[-1]) / float(x[0] - x[-1]) * float(x[-1])
    last = values[-1] - (values[-2] - values[-1]) / float(x[-2] - x[-1]) * float(x[-1])
    limit, slope = fn(sizes, values)
    right = _line(x, y)
    return plain(limit, right[0], {"only the first and the last value were used": ends,
                                   "only the last two values were used": last,
                                   "the line was forced through 0": 0.0}) or plain(slope, right[1])


@EXTRAPOLATED.property("no bias: equal values give themselves and the slope 0")
def _(fn):
    limit, slope = fn([50, 100, 150], [0.7, 0.7, 0.7])
    return plain(limit, 0.7) or plain(slope, 0.0)


# ---- 3 · the kernel distance

KERNEL = Exercise("metrics.kernel_distance", points=3, minutes=15, reference=kernel_distance)


@KERNEL.gate("returns one plain number")
def _(fn):
    value = fn(normal((9, 3), 1), normal((8, 3), 2))
    return plain(value, value)


def _variants(a, b):
    """What one mistake would give."""
    a, b = a.double(), b.double()
    n, m, d = len(a), len(b), a.shape[1]

    def whole(kernel, cross=2.0, unbiased=True, squared=True):
        ka, kb, kab = kernel(a, a), kernel(b, b), kernel(a, b)
        if unbiased:
            inside = (ka.sum() - ka.trace()) / (n * (n - 1)) + (kb.sum() - kb.trace()) / (m * (m - 1))
        else:
            inside = ka.mean() + kb.mean()
        return float(inside - cross * kab.mean())

    def cubic(x, y):
        return (x @ y.T / d + 1) ** 3
    return {"a picture was compared with itself: leave the diagonal out of both sums, divide by n (n - 1)":
                whole(cubic, unbiased=False),
            "the diagonal is left out, but the sum divided by n squared": float(
                (cubic(a, a).sum() - cubic(a, a).trace()) / n**2 + (cubic(b, b).sum() - cubic(b, b).trace()) / m**2
                - 2 * cubic(a, b).mean()),
            "the product is divided by d before 1 is added": whole(lambda x, y: (x @ y.T + 1) ** 3),
            "the 1 in the kernel is missing": whole(lambda x, y: (x @ y.T / d) ** 3),
            "the kernel is a cube": whole(lambda x, y: (x @ y.T / d + 1) ** 2),
            "the mixed term counts twice": whole(cubic, cross=1.0),
            "the mixed term is subtracted": whole(cubic, cross=-2.0)}


@KERNEL.property("worked by hand: 0 and 2 against 1 and 3, in one dimension, are 1 + 64 - 186")
def _(fn):
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])
    return plain(fn(a, b), 1 + 64 - 186.0, _variants(a, b) | {
        "an unbiased estimate may be negative: neither clamp it nor take its magnitude": 121.0})


@KERNEL.property("several dimensions, and n and m that differ")
def _(fn):
    a, b = normal((7, 5), 3), normal((11, 5), 4) + 0.5
    return plain(fn(a, b), kernel_distance(a, b), _variants(a, b))


@KERNEL.property("unbiased: of two samples of one distribution it is 0 on average, and sometimes below")
def _(fn):
    found = [fn(normal((12, 4), 2 * seed), normal((12, 4), 2 * seed + 1)) for seed in range(200)]
    if min(found) >= 0:
        return "never below 0: an unbiased estimate of 0 has to be, now and then; do not clamp or take a magnitude"
    found = torch.tensor(found, dtype=torch.float64)
    if found.mean().abs() > 5 * found.std() / len(found) ** 0.5:    # five standard errors
        return f"the mean over 200 pairs of samples should be near 0, got {float(found.mean()):.3f}"


@KERNEL.hygiene("leaves the features as they were")
def _(fn):
    return touched(fn, normal((9, 3), 13), normal((8, 3), 14))


# ---- 4 · precision and recall

PRECISION = Exercise("metrics.precision_recall", points=3, minutes=15, reference=precision_recall)


@PRECISION.gate("returns (precision, recall), two plain numbers")
def _(fn):
    out = fn(normal((9, 3), 1), normal((8, 3), 2), 2)
    return several(out, ("precision", "recall")) or next((p for v in out if (p := plain(v, v))), None)


REAL, FAKE = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([[-1.0], [1.5], [30.0], [31.0]])


@PRECISION.property("worked by hand, k = 1: real 0, 1, 3, 10 and generated -1, 1.5, 30, 31")
def _(fn):
    # radii of the real ones, 1, 1, 2, 7, cover -1 (on the border of 0's) and 1.5; those of the generated, 2.5, 2.5, 1, 1: 0, 1, 3
    precision, recall = fn(REAL, FAKE, 1)
    if (precision, recall) == (0.0, 0.0):
        return "every radius is 0: the nearest of a point is the point itself, so the k-th neighbour is the one after"
    if (precision, recall) == (0.75, 0.5):
        return "precision and recall are exchanged: precision asks about generated pictures, recall about real ones"
    return plain(precision, 0.5, {"a point on the border is inside: <=, not <": 0.25}) or plain(recall, 0.75)


@PRECISION.property("a radius belongs to the point that covers, not to the one that is covered")
def _(fn):
    real, fake = 3 * normal((50, 2), 6), normal((30, 2), 7) + 1
    for k in (1, 3, 5):
        found, right = fn(real, fake, k), precision_recall(real, fake, k)

        def share(points, by, radius, axis=1):
            return float((torch.cdist(points.double(), by.double()) <= radius).any(axis).double().mean())

        def radii(x, k=k):
            return torch.cdist(x.double(), x.double()).kthvalue(k + 1).values
        own = (share(fake, real, radii(fake)[:, None]), share(real, fake, radii(real)[:, None]))
        even = (share(fake, real, radii(real).mean()), share(real, fake, radii(fake).mean()))
        one_less = precision_recall(real, fake, k - 1) if k > 1 else None
        one_more = precision_recall(real, fake, k + 1)
        for value, part, name in ((0, 0, "precision"), (1, 1, "recall")):
            problem = plain(found[value], right[part], {
                "the radius is that of the point asked about: take that of the point that covers it": own[part],
                "each point has a radius of its own: no mean": even[part],
                "k is not used: this is the ball to the nearest neighbour": precision_recall(real, fake, 1)[part],
                **({"the nearest of a point is itself: the k-th neighbour comes after it": one_less[part]} if one_less else {}),
                "this counts one neighbour too many": one_more[part]})
            if problem:
                return f"k = {k}, {name}: {problem}"


@PRECISION.property("a model that draws one kind only: precise, and of little recall")
def _(fn):
    real = torch.cat([normal((40, 2), 3), normal((40, 2), 4) + 20])
    fake = 0.5 * normal((60, 2), 5)
    found, right = fn(real, fake, 3), precision_recall(real, fake, 3)
    if [round(v, 6) for v in found] == [round(v, 6) for v in right[::-1]]:
        return "precision and recall are exchanged: precision asks about generated pictures, recall about real ones"
    return plain(found[0], right[0]) or plain(found[1], right[1])


@PRECISION.property("the same cloud covers itself; clouds far apart cover nothing")
def _(fn):
    x = normal((20, 3), 8)
    for other, right in ((x.clone(), 1.0), (x + 100, 0.0)):
        for value in fn(x, other, 3):
            if problem := plain(value, right):
                return problem


@PRECISION.hygiene("leaves the features as they were")
def _(fn):
    return touched(lambda a, b: fn(a, b, 2), normal((9, 3), 13), normal((8, 3), 14))
