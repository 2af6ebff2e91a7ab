"""The course's own answers. None of them uses a part that `parts.swapped` can replace."""

import torch
import torch.nn.functional as F
from torch import Tensor


def conv(in_channels: int, out_channels: int, kernel: int, height: int, width: int, stride: int = 1, padding: int = 0,
         groups: int = 1) -> int:
    out_height, out_width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    return 2 * out_height * out_width * out_channels * (in_channels // groups) * kernel**2


def attention(queries: int, dim: int, keys: int | None = None, context_dim: int | None = None) -> int:
    keys, context_dim = keys or queries, context_dim or dim
    projections = 2 * queries * dim * dim + 2 * keys * context_dim * dim                # q and out, k and v
    return 2 * (projections + 2 * queries * keys * dim)


def compression(height: int, width: int, f: int, channels: int) -> tuple[float, float, float]:
    if height % f or width % f:
        raise ValueError(f"{height} x {width} cannot be divided by f = {f}")
    positions = height * width / ((height // f) * (width // f))
    return 3 * positions / channels, positions, positions**2


def radii(side: int) -> Tensor:
    """Distance of every frequency from zero, in cycles per picture; (S,S)."""
    line = torch.fft.fftfreq(side, dtype=torch.float64) * side
    return (line[:, None] ** 2 + line[None, :] ** 2).sqrt()


def power_spectrum(images: Tensor) -> Tensor:
    side = images.shape[-1]
    ring = radii(side).round().long().flatten()                                         # (S*S,)
    power = torch.fft.fft2(images.double(), norm="ortho").abs().pow(2).mean((0, 1)).flatten()
    total = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add_(0, ring, power)
    return (total / torch.bincount(ring))[: side // 2 + 1].to(images.dtype)


def low_pass(x: Tensor, cutoff: float) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(x) * (radii(x.shape[-1]) <= cutoff)).real


def psnr(x: Tensor, y: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (x - y).pow(2).mean((1, 2, 3)))


class PatchPCA:
    def __init__(self, images: Tensor, f: int, channels: int):
        self.f = f
        rows = F.pixel_unshuffle(images, f).movedim(1, -1).flatten(0, 2).double()       # (n,3ff)
        self.mean = rows.mean(0)                                                        # (3ff,)
        centred = rows - self.mean
        vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors                   # (3ff,3ff), smallest first
        self.basis = vectors.flip(1)[:, :channels]                                      # (3ff,c)
        self.mean, self.basis = self.mean.to(images.dtype), self.basis.to(images.dtype)

    def encode(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, self.f).movedim(1, -1)                           # (B,h,w,3ff)
        return ((patches - self.mean) @ self.basis).movedim(-1, 1)                      # (B,c,h,w)

    def decode(self, z: Tensor) -> Tensor:
        patches = z.movedim(1, -1) @ self.basis.T + self.mean                           # (B,h,w,3ff)
        return F.pixel_shuffle(patches.movedim(-1, 1), self.f)                          # (B,3,H,W)
