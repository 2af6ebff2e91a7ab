"""The course's own answers of chapter 03 equal the library."""

import pytest
import torch
from torch import nn

from course import losses
from course.classroom.checks.ch03 import answers


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3, 2)

    def forward(self, x):
        return [h := self.one(x), self.two(h)]


def test_the_distance_and_the_sum_equal_the_librarys():
    features, x, y = Stages(), torch.randn(2, 3, 9, 9), torch.randn(2, 3, 9, 9)
    mine, library = answers.Perceptual(features), losses.Perceptual(features)
    torch.testing.assert_close(mine(x, y), library(x, y))
    torch.testing.assert_close(answers.reconstruction(x, y, mine, 0.7),
                               losses.reconstruction(x, y, perceptual=library, perceptual_weight=0.7))


@pytest.mark.parametrize("sizes", [(3, 16, 3), (3, 8, 1), (1, 8, 5)])
def test_the_critic_equals_the_librarys(sizes):
    mine, library = answers.PatchDiscriminator(*sizes), losses.PatchDiscriminator(*sizes)
    mine.load_state_dict(library.state_dict())
    x = torch.randn(1, sizes[0], 96, 96)
    torch.testing.assert_close(mine.eval()(x), library.eval()(x))


def test_hinge_and_weight_equal_the_librarys():
    real, fake = torch.randn(2, 1, 5, 5), torch.randn(2, 1, 5, 5)
    assert answers.hinge(real, fake) == (losses.hinge_discriminator(real, fake), losses.hinge_generator(fake))
    layer = nn.Conv2d(2, 3, 3)
    out = layer(torch.randn(1, 2, 6, 6))
    rec, adversarial = out.abs().sum(), out.square().mean()
    torch.testing.assert_close(answers.adaptive_weight(rec, adversarial, layer),
                               losses.adaptive_weight(rec, adversarial, layer.weight))


def test_a_verdict_of_the_library_sees_what_the_formula_says():
    assert [answers.receptive_field([(4, 2)] * n + [(4, 1)] * 2) for n in (1, 2, 3)] == [(16, 2), (34, 4), (70, 8)]


def test_the_fine_share_of_noise_is_the_area_outside_the_disk():
    x = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(answers.fine_share(x).mean(), torch.tensor(1 - torch.pi / 16), atol=0.02, rtol=0)
