"""The course's own answers, out of reach of `parts.swapped`."""

import hashlib
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def swapped(module, name: str, mine):
    before = getattr(module, name)
    setattr(module, name, mine)
    try:
        yield
    finally:
        setattr(module, name, before)


def picture_distance(mine: Tensor, reference: Tensor) -> tuple[int, float]:
    off = (mine.int() - reference.int()).abs()                                          # (3,H,W)
    return int(off.max()), float((off.amax(dim=0) > 1).float().mean())


def culprits(names: list[str], same) -> list[str]:
    if not names or same(names):
        return []
    if len(names) == 1:
        return list(names)
    half = len(names) // 2
    return culprits(names[:half], same) + culprits(names[half:], same)


def fingerprint(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


class Patchify:
    def __init__(self, p: int):
        self.p = p

    def to_tokens(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        p = self.p
        x = x.reshape(B, C, H // p, p, W // p, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * C)

    def to_picture(self, tokens: Tensor, height: int, width: int) -> Tensor:
        B, p = len(tokens), self.p
        x = tokens.reshape(B, height // p, width // p, p, p, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, height, width)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c)[:, None].chunk(6, dim=-1)      # (B,1,D) each
        x = x + gate_1 * self.attend(normed(x) * (1 + scale_1) + shift_1)
        return x + gate_2 * self.mlp(normed(x) * (1 + scale_2) + shift_2)

    def attend(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)   # (B,h,N,d) each
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, N, D))


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
