"""The course's own answers, out of reach of `parts.swapped`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    S_a, S_b = torch.cov(a.T), torch.cov(b.T)                                           # (d,d) twice
    values, vectors = torch.linalg.eigh(S_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ S_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + S_a.trace() + S_b.trace() - 2 * cross)


def extrapolated(sizes: list[int], values: list[float]) -> tuple[float, float]:
    x, y = 1 / torch.tensor(sizes, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean()), float(slope)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))
    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    real, fake = real.double(), fake.double()

    def covered(points: Tensor, by: Tensor) -> float:
        radius = torch.cdist(by, by).sort(dim=1).values[:, k]                           # the 0th is the point itself
        return float((torch.cdist(points, by) <= radius).any(1).double().mean())
    return covered(fake, real), covered(real, fake)


def clip_score(pictures: Tensor, captions: Tensor) -> tuple[float, float]:
    u, v = F.normalize(pictures, dim=-1), F.normalize(captions, dim=-1)                 # (n,D), (n,M,D)
    cosines = (u[:, None] * v).sum(-1)                                                  # (n,M)
    return float(cosines[:, 0].mean()), float((cosines.argmax(1) == 0).double().mean())


def verdict(pairs: list[tuple[tuple[float, float], tuple[float, float]]]) -> str:
    if any(first[0] > second[1] for first, second in pairs):
        return "contradicted"
    return "supported" if pairs and all(first[1] < second[0] for first, second in pairs) else "inconclusive"


def rows_with(rows: list[dict], figures: dict[str, float], tolerance: float = 0.05) -> tuple[list[str], dict[str, list[str]]]:
    parts = {key: [r["model"] for r in rows if r.get(key) is not None and abs(r[key] - value) <= tolerance + 1e-9]
             for key, value in figures.items()}
    return [r["model"] for r in rows if all(r["model"] in found for found in parts.values())], parts
