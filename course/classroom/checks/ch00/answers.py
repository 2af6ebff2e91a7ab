"""The course's own answers: plain tensors and numbers, nothing of the library."""

import torch
from torch import Tensor


def convert(pictures: Tensor) -> Tensor:
    if pictures.dtype == torch.uint8:
        return (pictures.float() / 127.5 - 1).permute(0, 3, 1, 2)                       # (B,3,H,W)
    levels = ((pictures.clamp(-1, 1) + 1) * 127.5).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1)                                   # (B,H,W,3)


def make_grid(images: Tensor, columns: int, gap: int = 2, value: float = 1.0) -> Tensor:
    N, C, H, W = images.shape
    rows = -(-N // columns)                                     # rounded up
    sheet = images.new_full((C, rows * (H + gap) - gap, columns * (W + gap) - gap), value)
    for i, image in enumerate(images):
        top, left = i // columns * (H + gap), i % columns * (W + gap)
        sheet[:, top: top + H, left: left + W] = image
    return sheet


def start_noise(shape: tuple[int, ...], seeds) -> Tensor:
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def guide(predict, x: Tensor, t: float, cond, uncond, scale: float) -> Tensor:
    with_text = predict(x, t, cond)
    if scale == 1:
        return with_text
    without = predict(x, t, uncond)
    return without + scale * (with_text - without)


def share_with_interval(right: int, total: int, z: float = 1.96) -> tuple[float, float, float]:
    share, stretch = right / total, 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / stretch
    half = z / stretch * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return share, centre - half, centre + half


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    u = weights.reshape(-1, *[1] * a.ndim)                      # (K,1,1,1)
    angle = torch.acos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1))
    if angle < 1e-3:
        return (1 - u) * a + u * b
    return (torch.sin((1 - u) * angle) * a + torch.sin(u * angle) * b) / torch.sin(angle)
