import copy

import pytest
import torch

from course import controlnet
from course.controlnet import ControlNet, ControlNetConfig
from course.errors import CourseError, ShapeError
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


def steered(pipe):
    """A pipeline's ControlNet whose zero convolutions are no longer zero, and a hint for it."""
    torch.manual_seed(1)
    network = controlnet.ControlNet.from_unet(pipe.unet, (8, 8, 16)).eval()             # the tiny pipeline has f = 4
    untouched = copy.deepcopy(network)
    for conv in (*network.controlnet_down_blocks, network.controlnet_mid_block, network.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(conv.weight, std=0.3)
    return network, untouched, torch.rand(1, 3, 32, 32)


def test_in_the_pipeline_a_new_controlnet_changes_no_bit(pipe):
    network, untouched, hint = steered(pipe)
    how = {"steps": 3, "seed": 0}
    base = pipe.latents(["a ring", "a star"], **how)
    assert torch.equal(pipe.latents(["a ring", "a star"], control=controlnet.Control(untouched, hint), **how), base)
    assert torch.equal(pipe.latents(["a ring", "a star"], control=controlnet.Control(network, hint, weight=0.0), **how), base)
    assert not torch.allclose(pipe.latents(["a ring", "a star"], control=controlnet.Control(network, hint), **how), base)


def test_several_controls_add_up_and_may_end_early(pipe):
    network, _, hint = steered(pipe)
    how = {"steps": 4, "seed": 0, "prompt": "a ring"}
    half = controlnet.Control(network, hint, weight=0.5)
    whole = controlnet.Control(network, hint)
    assert torch.allclose(pipe.latents(control=[half, half], **how), pipe.latents(control=whole, **how), atol=1e-4)
    never = controlnet.Control(network, hint, start=0.5, end=0.6)                       # no step lies wholly within
    assert torch.equal(pipe.latents(control=never, **how), pipe.latents(**how))
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    pipe.latents(control=controlnet.Control(network, hint, start=0.25, end=0.75), **how)
    assert len(calls) == 2
    guessed = pipe.latents(control=controlnet.Control(network, hint, guess=True), **how)
    assert not torch.allclose(guessed, pipe.latents(control=whole, **how))


@pytest.mark.parametrize("change, said", [({"hint": torch.rand(1, 1, 32, 32)}, r"\(1, 1, 32, 32\)"),
                                          ({"hint": 2 * torch.ones(1, 3, 32, 32)}, "values in"),
                                          ({"start": 0.8, "end": 0.2}, "0.8"),
                                          ({"weight": float("nan")}, "nan")])
def test_a_control_that_cannot_be(pipe, change, said):
    network, _, hint = steered(pipe)
    with pytest.raises(CourseError, match=said):
        controlnet.Control(**{"network": network, "hint": hint} | change)


def test_a_control_picture_of_another_size(pipe):
    network, _, _ = steered(pipe)
    with pytest.raises(ShapeError, match=r"expected a control picture \(1,3,32,32\)"):
        pipe.latents("a ring", steps=1, seed=0, control=controlnet.Control(network, torch.rand(1, 3, 16, 16)))
