"""Something new for a trained model: adapters of low rank, or, to compare, all of its weights (Hu et al. 2021)."""

from dataclasses import dataclass

from torch import nn

from course import lora
from course.errors import UsageError
from course.training import diffusion


@dataclass(frozen=True)
class LoRALoss(diffusion.DiffusionLoss):
    """What is trained, and on what beside the new pictures."""

    predict: str = "v"
    draw_latents: bool = False
    rank: int | None = 4                   # None: full fine-tuning
    alpha: float | None = None             # None: as large as the rank
    dropout: float = 0.0
    targets: tuple[str, ...] = lora.TARGETS
    replay: float = 0.5                    # share of pictures of the old kind, lest it be forgotten; 0: none

    def __post_init__(self):
        if not 0 <= self.replay < 1:
            raise UsageError(f"replay must lie in 0 ... 1, 1 excluded, got {self.replay}")
        if self.rank is not None:
            lora.check(self.rank, self.rank if self.alpha is None else self.alpha)


def trained(loss: LoRALoss, networks: list[nn.Module]) -> list[nn.Parameter]:
    """Prepare `networks` in place; returns the parameters that are to be trained."""
    if loss.rank is None:
        return [p for network in networks for p in network.requires_grad_(True).parameters()]
    return [p for network in networks for p in lora.inject(network, loss.rank, loss.alpha, loss.targets, loss.dropout)]
