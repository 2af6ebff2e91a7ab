"""Pictures as numbers: bytes on disk and on screen, values in [-1, 1] for every network."""

import torch
from torch import Tensor


def to_unit(images: Tensor) -> Tensor:
    """uint8 0 ... 255 -> float32 -1 ... 1, any shape."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """float -1 ... 1 -> uint8 0 ... 255, any shape; what lies outside is clipped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
