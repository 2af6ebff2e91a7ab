import pytest
import torch

from course.errors import ShapeError
from course.layers import Downsample, ResBlock, TimestepEmbedding, Upsample, timestep_embedding
from tests.conftest import randomise


def test_timestep_embedding_by_hand():
    e = timestep_embedding(torch.tensor([0.0, 3.0]), 4)
    assert torch.allclose(e[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    expected = torch.tensor([3.0, 0.03]).cos(), torch.tensor([3.0, 0.03]).sin()
    assert torch.allclose(e[1], torch.cat(expected), atol=1e-6)
    with pytest.raises(ShapeError, match="even"):
        timestep_embedding(torch.zeros(1), 5)


def test_timestep_embedding_against_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    t = torch.tensor([0, 1, 17, 999])
    theirs = embeddings.get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.allclose(timestep_embedding(t, 320), theirs, atol=1e-5)


@pytest.mark.parametrize("channels_in, channels_out", [(128, 256), (128, 128)])
def test_resblock_against_diffusers(channels_in, channels_out):
    resnet = pytest.importorskip("diffusers.models.resnet")
    theirs = randomise(resnet.ResnetBlock2D(in_channels=channels_in, out_channels=channels_out, temb_channels=16, eps=1e-5))
    ours = ResBlock(channels_in, channels_out, 16)
    ours.load_state_dict(theirs.state_dict())
    x, time = torch.randn(2, channels_in, 8, 8), torch.randn(2, 16)
    assert torch.allclose(ours(x, time), theirs(x, time), atol=1e-5)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_downsample_against_diffusers(asymmetric):
    down = pytest.importorskip("diffusers.models.downsampling")
    theirs = randomise(down.Downsample2D(32, use_conv=True, padding=0 if asymmetric else 1, name="op"))
    ours = Downsample(32, asymmetric)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k.startswith("conv.")})
    x = torch.randn(1, 32, 8, 8)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5) and ours(x).shape == (1, 32, 4, 4)


def test_shapes_and_gradients():
    x, time = torch.randn(2, 32, 6, 6), torch.randn(2, 8)
    block = randomise(ResBlock(32, 64, 8))
    out = Upsample(64)(Downsample(64)(block(x, time)))
    assert out.shape == (2, 64, 6, 6)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    assert ResBlock(32, 32)(x).shape == x.shape                                 # no time: the autoencoder's
    assert TimestepEmbedding(8, 16)(time).shape == (2, 16)
