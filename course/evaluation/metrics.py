"""How far are pictures from real ones? Distances between two clouds of features, and between two pictures.

Features (n,d) come from a network, see `features`; which one decides what a distance means, so its name belongs beside every
figure: FD of the course's network is FD-course, never FID. All of this is computed in float64: a covariance in float32 makes the
distance of a cloud from itself negative.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from course.errors import ShapeError, UsageError

# ---- clouds of features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians with the means and covariances of features (n,d) and (m,d).

        FD = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)           Heusel et al. 2017; Dowson & Landau 1982

    The last root is never taken: its trace is the sum of the square roots of the eigenvalues of a symmetric matrix.
    It falls as n grows, by about c / n with a c that depends on the model: compare at equal n, or see `without_bias`.
    """
    check(a, b)
    (mu_a, S_a), (mu_b, S_b) = gaussian(a), gaussian(b)
    return frechet_of_gaussians(mu_a, S_a, mu_b, S_b)


def frechet_of_gaussians(mu_a: Tensor, S_a: Tensor, mu_b: Tensor, S_b: Tensor) -> float:
    """The same from means (d,) and covariances (d,d)."""
    values, vectors = torch.linalg.eigh(S_a.double())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T                             # S_a^1/2
    cross = torch.linalg.eigvalsh(root @ S_b.double() @ root).clamp(min=0).sqrt().sum()
    return ((mu_a - mu_b).double().square().sum() + S_a.trace() + S_b.trace() - 2 * cross).item()


def gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d,d), float64."""
    x = x.double()
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def without_bias(real: Tensor, fake: Tensor, sizes: int = 8, seed: int = 0) -> tuple[float, float, list[tuple[int, float]]]:
    """(FD at n -> infinity, slope c, [(n, FD)]): FD(n) = FD_inf + c / n, a line in 1 / n (Chong & Forsyth 2020).

    Each n takes its own n of the m pictures of `fake`, from a half of them to all; `real` stays whole. Drawing with
    replacement instead, a bootstrap, would be wrong: duplicates look like too small a variety and double the distance.
    """
    order = torch.randperm(len(fake), generator=torch.Generator().manual_seed(seed))
    points = []
    for n in torch.linspace(len(fake) / 2, len(fake), sizes).long().tolist():
        points.append((n, frechet_distance(real, fake[order[:n]])))
    X = torch.tensor([[1.0, 1 / n] for n, _ in points], dtype=torch.float64)            # (sizes,2)
    y = torch.tensor([fd for _, fd in points], dtype=torch.float64)
    (intercept, slope) = torch.linalg.lstsq(X, y).solution.tolist()
    return intercept, slope, points


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID: squared maximum mean discrepancy with k(x, y) = (x.y / d + 1)^3, unbiased, so that it may be negative.

        mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean k(a_i, b_j)            Binkowski et al. 2018, eq. 4
    """
    check(a, b)
    a, b = a.double(), b.double()
    n, m, d = len(a), len(b), a.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / d + 1) ** 3

    within_a, within_b = kernel(a, a), kernel(b, b)
    return ((within_a.sum() - within_a.diagonal().sum()) / (n * (n - 1)) + (within_b.sum() - within_b.diagonal().sum())
            / (m * (m - 1)) - 2 * kernel(a, b).mean()).item()


def kernel_distance_interval(a: Tensor, b: Tensor, size: int = 256, draws: int = 100, seed: int = 0
                             ) -> tuple[float, float, float]:
    """(KID of all, low, high): the 95 % interval of its mean over `draws` subsets of `size`, drawn without replacement.

    Being unbiased, KID may be averaged over subsets, as FD may not; their spread is scaled down to the whole sample.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(a), len(b))
    found = torch.tensor([kernel_distance(a[torch.randperm(len(a), generator=generator)[:size]],
                                          b[torch.randperm(len(b), generator=generator)[:size]]) for _ in range(draws)])
    middle, half = kernel_distance(a, b), 1.96 * found.std().item() * math.sqrt(size / min(len(a), len(b)))
    return middle, middle - half, middle + half


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of `fake` (n,d) near some of `real` (m,d), and of `real` near some of `fake` (Kynkaanniemi et al. 2019, eq. 1-2).

    Near: within the ball around a picture that reaches to its k-th nearest neighbour of its own kind.
    """
    check(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise UsageError(f"k must lie in 1 ... n - 1, got {k} with {len(real)} and {len(fake)} pictures")

    def radius(x: Tensor) -> Tensor:
        return torch.cdist(x, x).kthvalue(k + 1, dim=1).values                          # the nearest is itself

    real, fake = real.double(), fake.double()
    apart = torch.cdist(fake, real)                                                     # (n,m)
    precision = (apart <= radius(real)[None]).any(1).double().mean().item()
    recall = (apart <= radius(fake)[:, None]).any(0).double().mean().item()
    return precision, recall


def inception_score(probabilities: Tensor, splits: int = 1) -> tuple[float, float]:
    """(mean, std over splits) of exp E KL(p(y|x) || p(y)) from a classifier's (n,K); Salimans et al. 2016, section 4.

    1 where every picture looks alike to it, K where it is sure of each and all K are as frequent.
    """
    if probabilities.ndim != 2 or len(probabilities) < splits or (probabilities.sum(1) - 1).abs().max() > 1e-3:
        raise ShapeError(f"expected probabilities (n,K), n at least {splits}, that sum to 1, got {tuple(probabilities.shape)}")
    scores = []
    for part in probabilities.double().chunk(splits):
        marginal = part.mean(0, keepdim=True)                                           # (1,K)
        divergence = (torch.xlogy(part, part) - torch.xlogy(part, marginal)).sum(1)     # (n,)
        scores.append(divergence.mean().exp())
    found = torch.stack(scores)
    return found.mean().item(), found.std(correction=0).item()


def check(a: Tensor, b: Tensor) -> None:
    """Raises ShapeError for what are not two clouds of features."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ShapeError(f"expected features (n,d) and (m,d), at least two of each, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise UsageError("expected finite features")


# ---- two pictures

def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures (B,3,H,W) in [-1, 1], a picture each: (B,). Equal pictures: infinite."""
    return 10 * torch.log10(4 / (a - b).double().square().mean((1, 2, 3)))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13) of pictures (B,3,H,W) in [-1, 1], a picture each: (B,), at most 1.

    Local means, variances and covariance under a Gaussian window of 11 x 11, sigma 1.5, where it fits into the picture.
    """
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[2:]) < 11:
        raise ShapeError(f"expected two pictures (B,C,H,W) of one size, at least 11 x 11, got {tuple(a.shape)}, {tuple(b.shape)}")
    a, b, C = (a.double() + 1) / 2, (b.double() + 1) / 2, a.shape[1]
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2)).to(a)
    window = (line[:, None] * line / line.sum() ** 2).expand(C, 1, 11, 11)

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=C)                                            # (B,C,H-10,W-10)

    mu_a, mu_b = local(a), local(b)
    var_a, var_b, both = local(a * a) - mu_a**2, local(b * b) - mu_b**2, local(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mu_a * mu_b + c1) * (2 * both + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return found.mean((1, 2, 3))
