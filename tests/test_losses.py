"""The autoencoder's losses against closed forms, and against what the released code does."""

import pytest
import torch
from torch import nn

from course import losses
from course.errors import UsageError


def test_reconstruction_is_summed_over_a_sample():
    x, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    y[1] = 0.5
    assert losses.reconstruction(x, y).tolist() == [0.0, 24.0]
    assert losses.reconstruction(x, y, l1=0.0, l2=2.0).tolist() == [0.0, 24.0]
    # a perceptual distance, one number a picture, counts once for each of the 48 values
    assert losses.reconstruction(x, y, perceptual=lambda a, b: torch.ones(2, 1, 1, 1)).tolist() == [48.0, 72.0]


def test_a_verdict_sees_seventy_pixels():
    critic = losses.PatchDiscriminator().eval()
    x = torch.zeros(1, 3, 160, 160, requires_grad=True)
    out = critic(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70
    assert sum(p.numel() for p in critic.parameters()) == 2_765_633           # as in the paper's code at 64 channels


def test_hinge():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert losses.hinge_discriminator(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.5))
    assert losses.hinge_generator(fake).item() == 1.5


def test_adaptive_weight_makes_both_gradients_as_long():
    layer = nn.Linear(3, 3)
    out = layer(torch.randn(4, 3))
    rec, adversarial = 100 * out.square().mean(), 0.01 * out.sum()
    weight = losses.adaptive_weight(rec, adversarial, layer.weight)
    a, = torch.autograd.grad(rec, layer.weight, retain_graph=True)
    b, = torch.autograd.grad(weight * adversarial, layer.weight)
    assert b.norm().item() == pytest.approx(a.norm().item(), rel=1e-2) and not weight.requires_grad


def test_delay():
    assert losses.delayed(0.5, 0.29, 0.3) == 0.0 and losses.delayed(0.5, 0.3, 0.3) == 0.5
    with pytest.raises(UsageError, match="share"):
        losses.delayed(0.5, 0.0, 1.5)


def test_perceptual_forgives_brightness_and_sees_structure():
    class Edges(nn.Module):
        def forward(self, x):
            return [torch.cat([x.diff(dim=2)[..., :-1], x.diff(dim=3)[:, :, :-1]], 1)]
    distance = losses.Perceptual(Edges())
    x = torch.randn(2, 3, 8, 8)
    assert distance(x, x).abs().max() == 0
    assert distance(x, 2 * x + 1).max() < 1e-6 and distance(x, x.flip(3)).min() > 0.1
    assert distance(x, torch.randn(2, 3, 8, 8)).shape == (2,)
