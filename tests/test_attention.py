import pytest
import torch

from course.attention import BasicTransformerBlock, CrossAttention, FeedForward, SpatialTransformer, attend
from course.errors import ShapeError
from tests.conftest import randomise


@pytest.mark.parametrize("causal", [False, True])
def test_fused_equals_written_out(causal):
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=torch.float64) for _ in range(3))
    assert torch.allclose(attend(q, k, v, fused=True, causal=causal), attend(q, k, v, fused=False, causal=causal), atol=1e-12)


def test_attention_by_hand():
    """Equal keys share the weight: the answer is the mean of the values; a matching key takes nearly all of it."""
    q, v = torch.ones(1, 1, 1, 4), torch.arange(8.0).view(1, 1, 2, 4)
    assert torch.allclose(attend(q, torch.ones(1, 1, 2, 4), v), v.mean(2, keepdim=True))
    k = torch.tensor([[50.0] * 4, [-50.0] * 4]).view(1, 1, 2, 4)
    assert torch.allclose(attend(q, k, v), v[:, :, :1])


def test_cross_attention_ignores_the_order_of_the_context():
    a = CrossAttention(32, 16, heads=2, dim_head=8)
    x, context = torch.randn(2, 5, 32), torch.randn(2, 7, 16)
    assert torch.allclose(a(x, context), a(x, context[:, torch.randperm(7)]), atol=1e-6)
    with pytest.raises(ShapeError, match="width 16"):
        a(x, torch.randn(2, 7, 32))


@pytest.mark.parametrize("context_dim", [None, 24])
def test_block_against_diffusers(context_dim):
    attention = pytest.importorskip("diffusers.models.attention")
    theirs = randomise(attention.BasicTransformerBlock(32, 2, 16, cross_attention_dim=context_dim, activation_fn="geglu",
                                                       double_self_attention=context_dim is None))
    ours = BasicTransformerBlock(32, context_dim, 2, 16)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 32)
    context = None if context_dim is None else torch.randn(2, 5, context_dim)
    expected = theirs(x, encoder_hidden_states=context)
    assert (ours(x, context) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("linear", [False, True])
def test_spatial_transformer_against_diffusers(linear):
    models = pytest.importorskip("diffusers.models.transformers.transformer_2d")
    theirs = randomise(models.Transformer2DModel(2, 64, in_channels=128, num_layers=2, cross_attention_dim=24,
                                                 use_linear_projection=linear)).eval()
    ours = SpatialTransformer(128, 24, 2, 64, depth=2, linear_proj=linear)
    ours.load_state_dict(theirs.state_dict())
    x, context = torch.randn(2, 128, 4, 6), torch.randn(2, 5, 24)
    expected = theirs(x, encoder_hidden_states=context).sample
    assert (ours(x, context) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_gradients_reach_every_parameter():
    block, ff = randomise(SpatialTransformer(32, 16, 2, 16)), FeedForward(8)
    block(torch.randn(1, 32, 4, 4), torch.randn(1, 3, 16)).square().sum().backward()
    ff(torch.randn(1, 3, 8)).square().sum().backward()
    for p in [*block.parameters(), *ff.parameters()]:
        assert p.grad is not None and p.grad.abs().sum() > 0
