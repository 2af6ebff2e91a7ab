"""Floating point operations, by one convention: a multiply and an add are two, attention is counted, norms are not."""

import torch
from torch.utils.flop_counter import FlopCounterMode


def forward(module: torch.nn.Module, *inputs) -> int:
    """FLOPs of `module(*inputs)`. On the meta device this costs nothing, however large the model is."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()


def training(module: torch.nn.Module, *inputs) -> int:
    """Of forward and backward: each product of two matrices needs two more for the gradients of both, so three times."""
    return 3 * forward(module, *inputs)
