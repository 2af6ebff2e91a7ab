import pytest
import torch

from course.controlnet import ControlNet, ControlNetConfig
from course.errors import ShapeError
from course.unet import UNet
from tests.conftest import TINY_UNET, randomise


def test_starts_without_any_influence():
    """Every way from the copy to the U-Net begins as zeros."""
    net = ControlNet(ControlNetConfig(TINY_UNET, (16, 32)))
    unet = randomise(UNet(TINY_UNET)).eval()
    x, context, hint = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16), torch.rand(2, 3, 16, 16)
    residuals = net(x, 7, context, hint)
    assert [tuple(r.shape) for r in residuals] == [(2, 32, 8, 8), (2, 32, 8, 8), (2, 32, 4, 4), (2, 64, 4, 4), (2, 64, 4, 4)]
    assert torch.equal(unet(x, 7, context, control=residuals), unet(x, 7, context))
    # ... and yet it learns: the gradient reaches the zeros at once, and all the rest one step later
    (unet(x, 7, context, control=residuals) ** 2).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.controlnet_mid_block.parameters())
    net = randomise(net)
    (unet(x, 7, context, control=net(x, 7, context, hint)) ** 2).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_from_unet_copies_the_trunk():
    unet = randomise(UNet(TINY_UNET))
    net = ControlNet.from_unet(unet, (16, 32))
    shared = set(net.state_dict()) & set(unet.state_dict())
    assert all(torch.equal(net.state_dict()[n], unet.state_dict()[n]) for n in shared)
    assert {n.split(".")[0] for n in set(net.state_dict()) - shared} == {
        "controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"}


@pytest.mark.parametrize("guess", [False, True])
def test_against_diffusers(guess):
    diffusers = pytest.importorskip("diffusers")
    theirs = randomise(diffusers.ControlNetModel(
        in_channels=4, block_out_channels=(128, 256), layers_per_block=1, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=16,
        conditioning_embedding_out_channels=(16, 32, 96, 256))).eval()
    config = ControlNetConfig(TINY_UNET.__class__(block_channels=(128, 256), layers_per_block=1, depth=(1, 0), heads=(4, 4),
                                                  context_dim=16))
    ours = ControlNet(config).eval()
    ours.load_state_dict(theirs.state_dict())
    x, context, hint = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16), torch.rand(2, 3, 64, 64)
    down, mid = theirs(x, torch.tensor([5, 900]), context, hint, conditioning_scale=0.7, guess_mode=guess, return_dict=False)
    found = ours(x, torch.tensor([5, 900]), context, hint, scale=0.7, guess=guess)
    for mine, expected in zip(found, [*down, mid], strict=True):
        assert (mine - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_wrong_hints_are_named():
    net = ControlNet(ControlNetConfig(TINY_UNET, (16, 32)))
    with pytest.raises(ShapeError, match=r"\(B,3,16,16\)"):
        net(torch.randn(1, 4, 8, 8), 7, torch.randn(1, 5, 16), torch.rand(1, 3, 8, 8))
