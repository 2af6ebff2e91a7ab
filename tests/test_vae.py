import pytest
import torch

from course.errors import ShapeError
from course.vae import AutoencoderKL, DiagonalGaussian, VAEConfig
from tests.conftest import TINY_VAE, randomise


def test_kl_against_torch_distributions():
    moments = torch.randn(3, 8, 4, 4)
    q = DiagonalGaussian(moments)
    theirs = torch.distributions.kl_divergence(torch.distributions.Normal(q.mean, (0.5 * q.logvar).exp()),
                                               torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(q.kl(), theirs, rtol=1e-5)


def test_samples_have_the_moments_and_follow_the_generator():
    moments = torch.cat([torch.full((1, 1, 300, 300), 0.4), torch.full((1, 1, 300, 300), -1.0)], dim=1)
    q = DiagonalGaussian(moments)
    z = q.sample(torch.Generator().manual_seed(0))
    assert z.mean().item() == pytest.approx(0.4, abs=0.01) and z.var().item() == pytest.approx(0.3679, rel=0.03)
    assert torch.equal(z, q.sample(torch.Generator().manual_seed(0))) and torch.equal(q.mode(), q.mean)


def test_extreme_log_variances_stay_finite():
    q = DiagonalGaussian(torch.tensor([0.0, 1e4]).view(1, 2, 1, 1))
    assert torch.isfinite(q.kl()).all() and torch.isfinite(q.sample()).all()


def test_against_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = randomise(diffusers.AutoencoderKL(
        block_out_channels=(128, 256), layers_per_block=1, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2)).eval()
    ours = AutoencoderKL(VAEConfig(block_channels=(128, 256), layers_per_block=1))
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    q, expected = ours.encode(x), theirs.encode(x).latent_dist
    assert (q.mean - expected.mean).abs().max() <= 1e-4 * expected.mean.abs().max()
    assert (q.logvar - expected.logvar).abs().max() <= 1e-4 * expected.logvar.abs().max()
    z = torch.randn(2, 4, 8, 8)
    picture = theirs.decode(z).sample
    assert (ours.decode(z) - picture).abs().max() <= 1e-4 * picture.abs().max()


def test_shapes_stem_and_gradients():
    model = randomise(AutoencoderKL(TINY_VAE))
    x = torch.randn(2, 3, 32, 32)
    reconstruction, q = model(x, torch.Generator().manual_seed(0))
    assert TINY_VAE.factor == 4 and q.mean.shape == (2, 4, 8, 8) and reconstruction.shape == x.shape
    (reconstruction.square().sum() + q.kl().sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_the_demo_compresses_48_times():
    from course import presets
    config = presets.VAES["demo-vae"]
    assert config.factor == 8 and 64 * 64 * 3 / (8 * 8 * config.latent_channels) == 48


@pytest.mark.parametrize("x", [torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 30, 32), torch.zeros(3, 32, 32)])
def test_wrong_shapes_are_named(x):
    with pytest.raises(ShapeError, match="multiples of 4"):
        AutoencoderKL(TINY_VAE).encode(x)
    with pytest.raises(ShapeError, match="latents"):
        AutoencoderKL(TINY_VAE).decode(torch.zeros(1, 3, 8, 8))
