import pytest
import torch
from torch import nn

from course import presets
from course.training import flops


def test_a_multiply_and_an_add_are_two():
    assert flops.forward(nn.Linear(3, 5), torch.zeros(7, 3)) == 2 * 7 * 3 * 5
    assert flops.training(nn.Conv2d(2, 4, 3, padding=1), torch.zeros(1, 2, 8, 8)) == 3 * 2 * 8 * 8 * 2 * 4 * 9


def test_stable_diffusion():
    """401.6 GMACs at 64 x 64, attention included: the figure that is often printed as 'GFLOPs'."""
    with torch.device("meta"):
        unet = presets.build("sd15")
        found = flops.forward(unet, torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768))
    assert found / 2 == pytest.approx(401.6e9, rel=2e-3)
