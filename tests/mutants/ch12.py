"""Answers to the exercises of chapter 12: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- metrics.frechet_distance

FD = "metrics.frechet_distance"


def root(S, least=0.0):
    values, vectors = torch.linalg.eigh(S)
    return vectors * values.clamp(min=least).sqrt() @ vectors.T


def cross_term(S, R):
    A = root(S)
    return torch.linalg.eigvalsh(A @ R @ A).clamp(min=0).sqrt().sum()


def fd_with(cov=lambda x: torch.cov(x.T), mean=lambda x, y: (x.mean(0) - y.mean(0)).square().sum(), cross=cross_term,
            total=lambda m, s, r, c: m + s + r - 2 * c, last=float, dtype=torch.float64):
    def frechet_distance(a, b):
        a, b = a.to(dtype), b.to(dtype)
        S, R = cov(a), cov(b)
        return last(total(mean(a, b), S.trace(), R.trace(), cross(S, R)))
    return frechet_distance


def eigenvalues_of_the_product(S, R):
    return torch.linalg.eigvals(S @ R).real.clamp(min=0).sqrt().sum()


WRONG[FD] = [
    ("no_means", fd_with(mean=lambda x, y: 0.0), "the means are not in it"),
    ("means_only", fd_with(total=lambda m, s, r, c: m), "the covariances are not in it"),
    ("length_of_the_means", fd_with(mean=lambda x, y: (x.mean(0) - y.mean(0)).norm()), "has to be squared"),
    ("root_of_it", fd_with(last=lambda x: float(x.sqrt())), "no root is taken at the end"),
    ("factor_2_missing", fd_with(total=lambda m, s, r, c: m + s + r - c), "the factor 2"),
    ("added", fd_with(total=lambda m, s, r, c: m + s + r + 2 * c), "it is subtracted"),
    ("no_root", fd_with(cross=lambda S, R: (S @ R).trace()), "the root is missing"),
    ("root_of_entries", fd_with(cross=lambda S, R: (S @ R).clamp(min=0).sqrt().trace()), "a root of every entry"),
    ("product_of_roots", fd_with(cross=lambda S, R: (root(S) @ root(R)).trace()), "is not the root of the product"),
    ("diagonals", fd_with(cross=lambda S, R: (S.diagonal() * R.diagonal()).sqrt().sum()), "only the diagonals"),
    ("eigenvalues_paired", fd_with(cross=lambda S, R: (torch.linalg.eigvalsh(S) * torch.linalg.eigvalsh(R)).sqrt().sum()),
     "multiply the matrices first"),
    ("biased", fd_with(cov=lambda x: torch.cov(x.T, correction=0)), "divides by n - 1"),
    ("not_clamped", fd_with(cross=lambda S, R: torch.linalg.eigvalsh(root(S) @ R @ root(S)).sqrt().sum()), "clamp(min=0)"),
    ("a_tensor", fd_with(last=lambda x: x), "float(...)"),
    ("covariance_over_the_wrong_axis", fd_with(cov=lambda x: torch.cov(x)), "it raised"),
]
RIGHT[FD] = [("by_eigenvalues_of_the_product", fd_with(cross=eigenvalues_of_the_product))]


@right(FD)
def by_singular_values(a, b):
    """tr (S^1/2 R S^1/2)^1/2 is the nuclear norm of X Y^T for centred X^T X = S, Y^T Y = R."""
    x, y = (c.double() for c in (a, b))
    X, Y = ((c - c.mean(0)) / math.sqrt(len(c) - 1) for c in (x, y))
    cross = torch.linalg.svdvals(X @ Y.T).sum()
    return ((x.mean(0) - y.mean(0)).pow(2).sum() + X.pow(2).sum() + Y.pow(2).sum() - 2 * cross).item()


@right(FD)
def by_numpy(a, b):
    x, y = a.numpy().astype("f8"), b.numpy().astype("f8")
    S, R = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    w, V = np.linalg.eigh(S)
    A = (V * np.sqrt(np.maximum(w, 0))) @ V.T
    values = np.linalg.eigvalsh(A @ R @ A)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(S) + np.trace(R) - 2 * np.sqrt(np.maximum(values, 0)).sum())


# ---- metrics.extrapolated

LINE = "metrics.extrapolated"


def line_with(x=lambda n: 1 / n, pick=lambda x, y: (x, y), last=lambda a, b: (a, b)):
    def extrapolated(sizes, values):
        u, y = pick(x(np.array(sizes, "f8")), np.array(values, "f8"))
        slope = ((u - u.mean()) * (y - y.mean())).sum() / ((u - u.mean()) ** 2).sum()
        return last(float(y.mean() - slope * u.mean()), float(slope))
    return extrapolated


WRONG[LINE] = [
    ("exchanged", line_with(last=lambda a, b: (b, a)), "are exchanged"),
    ("in_n", line_with(lambda n: n), "not in n"),
    ("in_the_root", line_with(lambda n: n**-0.5), "not in its root"),
    ("sign_turned", line_with(last=lambda a, b: (a, -b)), "sign of the slope"),
    ("both_ends", line_with(pick=lambda x, y: (x[[0, -1]], y[[0, -1]])), "only the first and the last"),
    ("last_two", line_with(pick=lambda x, y: (x[-2:], y[-2:])), "only the last two"),
    ("last_value", lambda sizes, values: (values[-1], 50.0), "this is the last value"),
    ("mean", lambda sizes, values: (sum(values) / len(values), 0.0), "mean of the values"),
    ("only_the_limit", lambda sizes, values: line_with()(sizes, values)[0], "(limit, slope), got"),
    ("tensors", lambda sizes, values: tuple(map(torch.tensor, line_with()(sizes, values))), "float(...)"),
]
RIGHT[LINE] = [("by_formula", line_with())]


@right(LINE)
def by_polyfit(sizes, values):
    slope, limit = np.polyfit(1 / np.array(sizes), np.array(values), 1)
    return float(limit), float(slope)


@right(LINE)
def by_lstsq(sizes, values):
    X = torch.stack([torch.ones(len(sizes)).double(), 1 / torch.tensor(sizes).double()], dim=1)
    return tuple(torch.linalg.lstsq(X, torch.tensor(values).double()[:, None]).solution.flatten().tolist())


# ---- metrics.kernel_distance

KID = "metrics.kernel_distance"


def kid_with(kernel=lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3, cross=2.0, last=float, inside=None):
    inside = inside or (lambda k: (k.sum() - k.trace()) / (len(k) * (len(k) - 1)))

    def kernel_distance(a, b):
        a, b = a.double(), b.double()
        return last(inside(kernel(a, a)) + inside(kernel(b, b)) - cross * kernel(a, b).mean())
    return kernel_distance


WRONG[KID] = [
    ("diagonal_kept", kid_with(inside=lambda k: k.mean()), "leave the diagonal out"),
    ("divided_by_n_squared", kid_with(inside=lambda k: (k.sum() - k.trace()) / len(k) ** 2), "divided by n squared"),
    ("not_divided_by_d", kid_with(lambda x, y: (x @ y.T + 1) ** 3), "divided by d"),
    ("no_1", kid_with(lambda x, y: (x @ y.T / x.shape[1]) ** 3), "the 1 in the kernel"),
    ("squared", kid_with(lambda x, y: (x @ y.T / x.shape[1] + 1) ** 2), "the kernel is a cube"),
    ("mixed_once", kid_with(cross=1.0), "counts twice"),
    ("mixed_added", kid_with(cross=-2.0), "is subtracted"),
    ("clamped", kid_with(last=lambda x: max(0.0, float(x))), "expected -121"),
    ("magnitude", kid_with(last=lambda x: abs(float(x))), "may be negative"),
    ("a_tensor", kid_with(last=lambda x: x), "float(...)"),
    ("gaussian_kernel", kid_with(lambda x, y: torch.exp(-torch.cdist(x, y) ** 2 / 2)), "expected"),
]
RIGHT[KID] = [("all_at_once", kid_with())]


@right(KID)
def by_three_loops(a, b):
    a, b = a.double().tolist(), b.double().tolist()
    d = len(a[0])

    def k(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / d + 1) ** 3

    def inside(c):
        return sum(k(x, y) for i, x in enumerate(c) for j, y in enumerate(c) if i != j) / (len(c) * (len(c) - 1))
    return inside(a) + inside(b) - 2 * sum(k(x, y) for x in a for y in b) / (len(a) * len(b))


@right(KID)
def with_a_mask(a, b):
    both, n = torch.cat([a, b]).double(), len(a)
    K = (torch.einsum("id,jd->ij", both, both) / both.shape[1] + 1).pow(3)
    free = ~torch.eye(len(both), dtype=torch.bool)
    return (K[:n, :n][free[:n, :n]].mean() + K[n:, n:][free[n:, n:]].mean() - 2 * K[:n, n:].mean()).item()


# ---- metrics.precision_recall

PR = "metrics.precision_recall"


def pr_with(nth=lambda k: k, radius=lambda d: d, own=False, order=lambda p, r: (p, r), less=lambda a, b: a <= b):
    def precision_recall(real, fake, k=3):
        real, fake = real.double(), fake.double()

        def radii(x):
            return radius(torch.cdist(x, x).sort(1).values[:, nth(k)])

        def share(points, by):
            r = radii(points)[:, None] if own else radii(by)[None]
            return float(less(torch.cdist(points, by), r).any(1).double().mean())
        return order(share(fake, real), share(real, fake))
    return precision_recall


WRONG[PR] = [
    ("exchanged", pr_with(order=lambda p, r: (r, p)), "are exchanged"),
    ("itself_counts", pr_with(nth=lambda k: k - 1), "every radius is 0"),
    ("one_too_many", pr_with(nth=lambda k: min(k + 1, 3) if k < 3 else k + 1), "expected"),
    ("radius_of_the_covered", pr_with(own=True), "of the point asked about"),
    ("mean_radius", pr_with(radius=lambda r: r.mean().expand(len(r))), "no mean"),
    ("strictly_within", pr_with(less=lambda a, b: a < b * (1 - 1e-12)), "on the border"),
    ("nearest_neighbour_always", pr_with(nth=lambda k: 1), "k is not used"),
    ("only_precision", lambda real, fake, k=3: pr_with()(real, fake, k)[0], "(precision, recall), got"),
    ("tensors", pr_with(order=lambda p, r: (torch.tensor(p), torch.tensor(r))), "float(...)"),
]
RIGHT[PR] = [("by_sorting", pr_with())]


@right(PR)
def by_kthvalue(real, fake, k=3):
    real, fake = real.double(), fake.double()
    apart = torch.cdist(fake, real)
    r, f = (torch.cdist(x, x).kthvalue(k + 1).values for x in (real, fake))
    return (apart <= r).any(1).double().mean().item(), (apart <= f[:, None]).any(0).double().mean().item()


@right(PR)
def point_by_point(real, fake, k=3):
    def covered(points, by):
        reach = [torch.sort((by - y).double().norm(dim=1)).values[k].item() for y in by]
        hits = [any((x - y).double().norm().item() <= r + 1e-12 for y, r in zip(by, reach, strict=True)) for x in points]
        return sum(hits) / len(hits)
    return covered(fake, real), covered(real, fake)


# ---- metrics.clip_score

CLIP = "metrics.clip_score"


def clip_with(norm_u=lambda u: F.normalize(u, dim=-1), norm_v=lambda v: F.normalize(v, dim=-1), score=lambda c: c[:, 0].mean(),
              found=lambda c: (c.argmax(1) == 0).double().mean(), last=lambda s, f: (float(s), float(f))):
    def clip_score(pictures, captions):
        cosines = torch.einsum("nd,nmd->nm", norm_u(pictures), norm_v(captions))
        return last(score(cosines), found(cosines))
    return clip_score


WRONG[CLIP] = [
    ("not_normalised", clip_with(lambda u: u, lambda v: v), "divide by both lengths"),
    ("pictures_not_normalised", clip_with(norm_u=lambda u: u), "the pictures' vectors"),
    ("captions_not_normalised", clip_with(norm_v=lambda v: v), "the captions' vectors"),
    ("mean_of_all_captions", clip_with(score=lambda c: c.mean()), "only the first caption"),
    ("best_of_all_captions", clip_with(score=lambda c: c.amax(1).mean()), "this is the largest"),
    ("hessel_s_factor", clip_with(score=lambda c: 2.5 * c[:, 0].clamp(min=0).mean()), "2.5"),
    ("per_cent", clip_with(score=lambda c: 100 * c[:, 0].mean()), "100 times"),
    ("clamped", clip_with(score=lambda c: c[:, 0].clamp(min=0).mean()), "were cut off"),
    ("not_found", clip_with(found=lambda c: (c.argmax(1) != 0).double().mean()), "a near miss is nearer"),
    ("number_found", clip_with(found=lambda c: (c.argmax(1) == 0).sum()), "divide by n"),
    ("tensors", clip_with(last=lambda s, f: (s, f)), "float(...)"),
    ("only_the_score", lambda u, v: clip_with()(u, v)[0], "(score, found), got"),
    ("normalised_over_pictures", clip_with(lambda u: F.normalize(u, dim=0), lambda v: F.normalize(v, dim=0)), "the wrong axis"),
]


@wrong(CLIP, "do not count")
def among_all_pictures(pictures, captions):
    u, v = F.normalize(pictures, dim=-1), F.normalize(captions, dim=-1)
    nearest = (u @ v[:, 0].T).argmax(1)
    score = float((u * v[:, 0]).sum(-1).mean())
    return score, float((nearest == torch.arange(len(u))).double().mean()) if len(u) > 1 else 0.0


RIGHT[CLIP] = [("by_einsum", clip_with())]


@right(CLIP)
def by_cosine_similarity(pictures, captions):
    c = F.cosine_similarity(pictures[:, None], captions, dim=2)
    return c.select(1, 0).mean().item(), sum(row.max() == row[0] for row in c).item() / len(c)


@right(CLIP)
def by_hand(pictures, captions):
    total = hits = 0
    for u, row in zip(pictures.double(), captions.double(), strict=True):
        cosines = [(u @ v / (u.norm() * v.norm())).item() for v in row]
        total += cosines[0]
        hits += cosines[0] >= max(cosines)
    return total / len(pictures), hits / len(pictures)


# ---- metrics.verdict

VERDICT = "metrics.verdict"


def verdict_with(above=lambda a, b: a[0] > b[1], below=lambda a, b: a[1] < b[0], some=any, every=all, empty="inconclusive",
                 words=("contradicted", "supported", "inconclusive")):
    def verdict(pairs):
        if not pairs:
            return empty
        if some(above(a, b) for a, b in pairs):
            return words[0]
        return words[1] if every(below(a, b) for a, b in pairs) else words[2]
    return verdict


def middle(interval):
    return sum(interval) / 2


WRONG[VERDICT] = [
    ("middles", verdict_with(lambda a, b: middle(a) > middle(b), lambda a, b: middle(a) < middle(b)), "have a value in common"),
    ("touching_is_apart", verdict_with(lambda a, b: a[0] >= b[1], lambda a, b: a[1] <= b[0]), "have a value in common"),
    ("either_way_round", verdict_with(words=("supported", "contradicted", "inconclusive")), "the first interval ends below"),
    ("any_supports", verdict_with(every=any), "decides nothing"),
    ("all_contradict", verdict_with(some=all), "the claim is about every pair"),
    ("empty_supports", verdict_with(empty="supported"), "nothing was measured"),
    ("first_pair_only", lambda pairs: verdict_with()(pairs[:1]), "the claim is about every pair"),
    ("not_supported_is_contradicted", verdict_with(words=("contradicted", "supported", "contradicted")), "a value in common"),
    ("other_words", verdict_with(words=("no", "yes", "open"), empty="open"), "expected one of"),
    ("upper_ends", verdict_with(lambda a, b: a[1] > b[1], lambda a, b: a[1] < b[1]), "have a value in common"),
]
RIGHT[VERDICT] = [("by_any_and_all", verdict_with())]


@right(VERDICT)
def by_a_loop(pairs):
    open_ = not pairs
    for (low, high), (other_low, other_high) in pairs:
        if low > other_high:
            return "contradicted"
        open_ = open_ or high >= other_low
    return "inconclusive" if open_ else "supported"


@right(VERDICT)
def by_signs(pairs):
    signs = {-1 if a[1] < b[0] else 1 if a[0] > b[1] else 0 for a, b in pairs}
    if 1 in signs:
        return "contradicted"
    return "supported" if signs == {-1} else "inconclusive"


# ---- metrics.rows_with

ROWS = "metrics.rows_with"


def rows_by(fits=lambda x, y, tolerance: x is not None and abs(x - y) <= tolerance + 1e-9, combine=all, get=lambda r, k: r.get(k),
            shown=lambda r: r["model"]):
    def rows_with(rows, figures, tolerance=0.05):
        parts = {k: [shown(r) for r in rows if fits(get(r, k), v, tolerance)] for k, v in figures.items()}
        whole = [shown(r) for r in rows if combine(fits(get(r, k), v, tolerance) for k, v in figures.items())]
        return whole, parts
    return rows_with


WRONG[ROWS] = [
    ("any_figure", rows_by(combine=any), "not any"),
    ("equal_to_the_digit", rows_by(fits=lambda x, y, t: x == y), "within 0.05"),
    ("upwards_only", rows_by(fits=lambda x, y, t: x is not None and 0 <= y - x <= t + 1e-9), "within 0.05"),
    ("tolerance_not_read", rows_by(fits=lambda x, y, t: x is not None and abs(x - y) <= 0.05 + 1e-9),
     "the tolerance is an argument"),
    ("relative", rows_by(fits=lambda x, y, t: x is not None and abs(x - y) <= t * abs(y)), "is more than 0.05 away"),
    ("key_error", rows_by(get=lambda r, k: r[k]), "it raised KeyError"),
    ("missing_is_0", rows_by(get=lambda r, k: r.get(k) or 0.0), "a missing figure is not 0"),
    ("whole_rows", rows_by(shown=lambda r: r), "names"),
    ("only_the_models", lambda rows, figures, tolerance=0.05: rows_by()(rows, figures, tolerance)[0], "(models, by figure)"),
    ("sign_lost", rows_by(fits=lambda x, y, t: x is not None and x - y <= t), "expected"),
]
RIGHT[ROWS] = [("by_comprehension", rows_by())]


@right(ROWS)
def by_sets(rows, figures, tolerance=0.05):
    parts = {}
    for key, value in figures.items():
        parts[key] = []
        for row in rows:
            if row.get(key) is not None and math.isclose(row[key], value, rel_tol=0, abs_tol=tolerance + 1e-12):
                parts[key].append(row["model"])
    whole = set.intersection(*(set(names) for names in parts.values()))
    return [row["model"] for row in rows if row["model"] in whole], parts


@right(ROWS)
def by_a_loop_over_rows(rows, figures, tolerance=0.05):
    whole, parts = [], {key: [] for key in figures}
    for row in rows:
        hits = [key for key in figures if isinstance(row.get(key), (int, float)) and -tolerance - 1e-9 <= row[key] - figures[key]
                <= tolerance + 1e-9]
        for key in hits:
            parts[key].append(row["model"])
        if len(hits) == len(figures):
            whole.append(row["model"])
    return whole, parts
