"""The course's own answers, out of reach of `parts.swapped`, which may be in force."""

import math

import torch
from torch import Tensor, nn


def low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)                             # (out,k), (k,), (k,in)
    root = S[:rank].sqrt()                                                              # (r,)
    return root[:, None] * Vh[:rank], U[:, :rank] * root                                # (r,in), (out,r)


class Adapter(nn.Module):
    def __init__(self, down: nn.Module, up: nn.Module, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.down, self.up = down, up
        self.dropout = nn.Dropout(dropout)
        self.scale, self.weight = alpha / rank, 1.0
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.scale * self.up(self.down(self.dropout(x)))

    def delta(self) -> Tensor:
        return self.weight * self.scale * self.up.weight @ self.down.weight             # (out,in)


class LoRALinear(nn.Module):
    def __init__(self, linear: nn.Linear, rank: int = 4, alpha: float = 1.0, dropout: float = 0.0, name: str = "default"):
        super().__init__()
        self.base = linear.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.before = None
        self.add(name, rank, alpha, dropout)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def add(self, name: str, rank: int, alpha: float, dropout: float = 0.0) -> Adapter:
        n, m = self.base.in_features, self.base.out_features
        self.adapters[name] = Adapter(nn.Linear(n, rank, bias=False), nn.Linear(rank, m, bias=False), rank, alpha, dropout)
        return self.adapters[name].to(self.base.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)                                                                # (...,out)
        for adapter in self.adapters.values() if self.before is None else ():
            y = y + adapter(x)
        return y

    @torch.no_grad()
    def merge(self) -> None:
        if self.before is None:
            self.before = self.base.weight.clone()
            self.base.weight += sum(adapter.delta() for adapter in self.adapters.values())

    @torch.no_grad()
    def unmerge(self) -> None:
        if self.before is not None:
            self.base.weight.copy_(self.before)
            self.before = None


def inject(model: nn.Module, targets: tuple[str, ...], make) -> list[nn.Parameter]:
    model.requires_grad_(False)
    paths = [p for p, _ in model.named_modules() if any(p == t or p.endswith(f".{t}") for t in targets)]
    trained = []
    for path in paths:
        parent, _, last = path.rpartition(".")
        layer = make(model.get_submodule(path))
        setattr(model.get_submodule(parent), last, layer)
        trained += [p for p in layer.parameters() if p.requires_grad]
    return trained


def training_bytes(model: nn.Module) -> tuple[int, int, int]:
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    gradients = sum(size for size, trained in sizes if trained)
    return sum(size for size, _ in sizes), gradients, 2 * gradients


def stacked(adapters: list[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    return torch.cat([A for A, _, _ in adapters]), torch.cat([scale * B for _, B, scale in adapters], dim=1)
