import pytest
import torch

from course.errors import ShapeError, UsageError
from course.text import TextConfig, TextEncoder
from tests.conftest import TINY_TEXT, randomise


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_against_transformers(activation):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(vocab_size=100, hidden_size=32, intermediate_size=128, num_hidden_layers=3,
                                         num_attention_heads=4, max_position_embeddings=12, hidden_act=activation)
    theirs = randomise(transformers.CLIPTextModel(config)).eval()
    ours = TextEncoder(TextConfig(vocab_size=100, length=12, width=32, layers=3, heads=4, activation=activation))
    weights = {n if n.startswith("text_model.") else f"text_model.{n}": t for n, t in theirs.state_dict().items()
               if not n.endswith("position_ids")}
    ours.load_state_dict(weights)
    ids = torch.randint(0, 99, (2, 12))
    expected = theirs(ids).last_hidden_state
    assert (ours(ids) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_causal():
    """What comes later changes nothing before it."""
    model = randomise(TextEncoder(TINY_TEXT)).eval()
    ids = torch.randint(0, 600, (1, 16))
    changed = ids.clone()
    changed[0, 10] += 1
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :10], after[:, :10]) and not torch.allclose(before[:, 10:], after[:, 10:])


def test_gradients_and_shapes():
    model = TextEncoder(TINY_TEXT)
    ids = torch.arange(16)[None]
    out = model(ids)
    assert out.shape == (1, 16, 16)
    (out * torch.randn_like(out)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_misuse():
    with pytest.raises(ShapeError, match="token ids"):
        TextEncoder(TINY_TEXT)(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(UsageError, match="relu"):
        TextConfig(activation="relu")
