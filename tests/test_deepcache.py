import pytest
import torch

from course import deepcache, unet
from course.errors import UsageError
from tests.conftest import randomise

CONFIG = unet.UNetConfig(block_channels=(32, 64), layers_per_block=2, depth=(1, 1), heads=(1, 2), context_dim=16)


@pytest.fixture
def net():
    return randomise(unet.UNet(CONFIG)).eval()


def counted(net) -> list[str]:
    """Names of the residual blocks, as they are computed."""
    seen = []
    for name, module in net.named_modules():
        if hasattr(module, "time_emb_proj"):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("outer", [1, 2, 3])
def test_the_same_x_gives_the_same_answer_with_fewer_layers(net, outer):
    """At the same x and t nothing below has changed, so what is kept is exact."""
    x, context, seen = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16), counted(net)
    expected, everything = net(x, 500.0, context), len(seen)
    with deepcache.cached(net, 3, outer):
        assert torch.equal(net(x, 500.0, context), expected)
        seen.clear()
        assert torch.allclose(net(x, 500.0, context), expected, atol=1e-6)
        assert len(seen) == 2 * outer - 1                      # `outer` on the way up, one less on the way down
        seen.clear()
        net(x, 490.0, context), net(x, 480.0, context)
        assert len(seen) == 2 * outer - 1 + everything         # the fourth call is in full again
    assert "forward" not in vars(net) and torch.equal(net(x, 500.0, context), expected)


@torch.no_grad()
def test_another_x_is_seen_at_once(net):
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with deepcache.cached(net, 9):
        first = net(x, 500.0, context)
        assert not torch.allclose(first, net(x + 1, 500.0, context), atol=1e-3)
        assert net(x[:1], 500.0, context[:1]).shape[0] == 1    # another batch: in full


def test_a_run_of_every_step_is_the_run_itself_and_others_are_close(pipe):
    randomise(pipe.unet)
    with pytest.raises(UsageError, match="1 or more steps"):
        pipe.latents("a red ring", steps=2, seed=0, deep_cache=0)
    exact, cached = (pipe.latents("a red ring", steps=20, seed=0, deep_cache=n) for n in (1, 2))
    other = pipe.latents("a red ring", steps=20, seed=1)
    assert 0 < (exact - cached).norm() < (exact - other).norm()


def test_a_controlnet_is_refused(net):
    with torch.no_grad(), deepcache.cached(net, 2), pytest.raises(UsageError, match="ControlNet"):
        net(torch.randn(1, 4, 8, 8), 5.0, torch.randn(1, 5, 16), control=[torch.zeros(1)])
