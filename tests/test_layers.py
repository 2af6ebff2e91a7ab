import pytest
import torch
import torch.nn.functional as F

from course import layers
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


def test_activated_overwrites_only_what_nobody_needs():
    x = torch.randn(2, 32, 4, 4)
    kept, norm = x.clone(), layers.group_norm(32, 1e-5)
    with torch.no_grad():
        assert torch.allclose(layers.activated(norm, x), F.silu(norm(x))) and torch.equal(x, kept)
        assert torch.equal(layers.activated(torch.nn.Identity(), x), F.silu(kept)) and torch.equal(x, kept)
    x.requires_grad_()
    grad, = torch.autograd.grad(layers.activated(norm, x).square().sum(), x)
    expected, = torch.autograd.grad(F.silu(norm(x)).square().sum(), x)
    assert torch.equal(grad, expected)


def test_resblock_in_place_sums_have_the_right_gradients():
    block = layers.ResBlock(32, 32, 8).double()
    torch.nn.init.normal_(block.conv2.weight, std=0.1)
    x, time = torch.randn(2, 32, 4, 4).double().requires_grad_(), torch.randn(2, 8).double().requires_grad_()
    before = x.detach().clone()
    h = block.conv1(F.silu(block.norm1(x))) + block.time_emb_proj(F.silu(time))[:, :, None, None]
    expected = block.conv2(F.silu(block.norm2(h))) + x
    found = block(x, time)
    assert torch.equal(found, expected) and torch.equal(x, before)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), [x, time, *block.parameters()]) for y in (found, expected)),
                    strict=True):
        assert torch.allclose(a, b)
