"""The course's own answers: what `course.vq` does, but out of reach of `parts.swapped`, which may be in force."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])                                # (N,c)
    distance = codebook.square().sum(1) - 2 * flat @ codebook.T                         # (N,K), up to ||z||^2
    return distance.argmin(1).view(len(z), *z.shape[2:])                                # (B,h,w)


def quantize(z: Tensor, codebook: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    codes = codebook[indices].permute(0, 3, 1, 2)                                       # (B,c,h,w)
    return z + (codes - z).detach(), codes


def codebook_loss(z: Tensor, codes: Tensor, beta: float = 0.25, legacy: bool = False) -> Tensor:
    codebook, commitment = F.mse_loss(codes, z.detach()), F.mse_loss(z, codes.detach())
    return commitment + beta * codebook if legacy else codebook + beta * commitment


def ema_update(codebook: Tensor, count: Tensor, total: Tensor, flat: Tensor, indices: Tensor, decay: float = 0.99):
    used = torch.bincount(indices, minlength=len(codebook)).to(flat)                    # (K,)
    summed = torch.zeros_like(codebook).index_add(0, indices, flat)                     # (K,c)
    count = decay * count + (1 - decay) * used
    total = decay * total + (1 - decay) * summed
    moved = total / count.clamp(min=1e-8)[:, None]
    return torch.where((count > 1e-6)[:, None], moved, codebook), count, total


def usage(indices: Tensor, num_codes: int) -> dict[str, float]:
    share = torch.bincount(indices.flatten(), minlength=num_codes).double()
    share = share / share.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return {"perplexity": float(entropy.exp()), "used": float((share > 0).double().mean())}


def restart(codebook: Tensor, count: Tensor, flat: Tensor, threshold: float = 0.01) -> tuple[Tensor, Tensor]:
    due = len(flat) / len(codebook)
    dead = (count < threshold * due).nonzero().flatten()[: len(flat)]                   # (D,)
    errors = torch.cdist(flat, codebook).min(1).values                                  # (N,)
    codebook, count = codebook.clone(), count.clone()
    codebook[dead] = flat[errors.topk(len(dead)).indices]
    count[dead] = due
    return codebook, count


class VectorQuantizer(nn.Module):
    """forward(z (B,c,h,w)) -> (z_q (B,c,h,w), loss, indices (B,h,w))."""

    def __init__(self, num_codes: int, dim: int, beta: float = 0.25, ema_decay: float | None = None,
                 restart_below: float | None = None):
        super().__init__()
        self.beta, self.ema_decay, self.restart_below = beta, ema_decay, restart_below
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)
        if ema_decay is not None:
            self.embedding.weight.requires_grad_(False)
            self.register_buffer("count", torch.zeros(num_codes))
            self.register_buffer("total", torch.zeros(num_codes, dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = nearest(z, self.embedding.weight)
        z_q, codes = quantize(z, self.embedding.weight, indices)
        if self.ema_decay is None:
            return z_q, codebook_loss(z, codes, self.beta), indices
        loss = self.beta * F.mse_loss(z, codes.detach())
        if self.training:
            self.follow(z.detach().permute(0, 2, 3, 1).flatten(0, 2), indices.flatten())
        return z_q, loss, indices

    @torch.no_grad()
    def follow(self, flat: Tensor, indices: Tensor) -> None:
        codebook, count, total = ema_update(self.embedding.weight, self.count, self.total, flat, indices, self.ema_decay)
        if self.restart_below is not None:
            codebook, count = restart(codebook, count, flat, self.restart_below)
            total = codebook * count[:, None]
        for mine, new in ((self.embedding.weight, codebook), (self.count, count), (self.total, total)):
            mine.copy_(new)
