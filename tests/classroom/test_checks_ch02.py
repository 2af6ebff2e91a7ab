"""The course's own answers of chapter 02 equal the library's."""

import pytest
import torch

from course import layers, parts, presets, vae
from course.classroom import checks
from course.classroom.checks import ch02
from course.classroom.checks.ch02 import answers
from course.classroom.checks.ch02.encoder import randomise
from course.classroom.mutants import own


@pytest.mark.parametrize("asymmetric", [False, True])
def test_downsample(asymmetric):
    mine, library = answers.Downsample(8, asymmetric), layers.Downsample(8, asymmetric)
    mine.load_state_dict(library.state_dict())
    x = torch.randn(2, 8, 6, 4)
    torch.testing.assert_close(mine(x), library(x))


@pytest.mark.parametrize("name", ["demo-vae", "scenes64-vae"])
def test_encoder(name):
    config = presets.VAES[name]
    mine, library = answers.Encoder(config), randomise(vae.Encoder(config), 1)
    mine.load_state_dict(library.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(mine(x), library(x))


def test_gaussian_and_loss():
    moments, noise = 20 * torch.randn(3, 8, 4, 4), torch.randn(3, 4, 4, 4)
    mine, library = answers.DiagonalGaussian(moments), vae.DiagonalGaussian(moments)
    for one, two in ((mine.mean, library.mean), (mine.logvar, library.logvar), (mine.kl(), library.kl()),
                     (mine.sample(noise=noise), library.sample(noise=noise)), (mine.mode(), library.mode())):
        torch.testing.assert_close(one, two)
    assert torch.equal(mine.sample(torch.Generator().manual_seed(1)), library.sample(torch.Generator().manual_seed(1)))
    small = vae.DiagonalGaussian(torch.randn(3, 8, 4, 4))
    rate = answers.vae_loss(noise, noise, small.mean, small.logvar, 1.0)[2]
    torch.testing.assert_close(rate, small.kl().mean())
    drawn = answers.monte_carlo_kl(small.mean, small.logvar, torch.randn(4000, 3, 4, 4, 4))
    torch.testing.assert_close(drawn, small.kl(), rtol=0.05, atol=0)


def test_units_and_scale():
    z = 3 * torch.randn(50, 4, 2, 2) + 1
    assert answers.scaling_factor(z.split(7)) == pytest.approx(1 / float(z.std()), rel=5e-3)
    count, variance = answers.active_units(z)
    assert count == 16 and variance.shape == (4, 2, 2)


def test_swapped_parts_do_not_reach_the_checks():
    class Broken:
        def __init__(self, *arguments, **options):
            raise RuntimeError
    names = ("vae.DiagonalGaussian", "vae.Encoder", "vae.AutoencoderKL")
    with parts.swapped(dict.fromkeys(names, Broken)):
        assert all(checks.find(e.id).run(own(e.id)).passed for e in ch02.EXERCISES)
