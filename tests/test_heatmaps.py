import pytest
import torch
from PIL import Image

from course import heatmaps, parts
from course.errors import UsageError
from course.pipeline import StableDiffusion
from tests.conftest import TINY, randomise


@pytest.fixture
def words(pipe):
    randomise(pipe.unet), randomise(pipe.text_encoder)
    return pipe


def test_one_layer_is_the_softmax_written_out(words):
    """One step without guidance: hook a layer's inputs and compute softmax(q k^T / sqrt d) head by head."""
    layer, seen = words.unet.mid_block.attentions[0].transformer_blocks[0].attn2, []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with heatmaps.recorded(words.unet, 1) as maps:
        words.latents("a red circle", steps=1, seed=0, guidance_scale=1.0)
    (x, context), = seen
    q, k = layer.to_q(x)[0], layer.to_k(context)[0]            # (N,hd), (M,hd)
    expected = sum((q[:, 32 * h: 32 * h + 32] @ k[:, 32 * h: 32 * h + 32].T / 32**0.5).softmax(-1) for h in range(2)) / 2
    assert torch.allclose(maps.total["mid_block.attentions.0.transformer_blocks.0.attn2"][0], expected, atol=1e-5)


def test_over_all_tokens_the_maps_sum_to_one(words):
    with heatmaps.recorded(words.unet, 2) as maps:
        words.latents(["a red circle", "a ring"], steps=2, seed=0, sampler="heun", height=32, width=48)
    every = maps.of([[i] for i in range(TINY.text.length)], 32, 48)
    assert every.shape == (2, 16, 32, 48) and every.min() >= 0
    assert torch.allclose(every.sum(1), torch.ones(2, 32, 48), atol=1e-5)
    assert set(maps.steps.values()) == {3} and len(maps.total) == 4    # heun asks twice but for the last step; 1 + 1 + 2 layers


def test_guidance_does_not_change_whose_attention_it_is(words):
    """Guided passes hold the pictures twice, without the prompt first. At the first step both see the same x."""
    def first_step(scale):
        with heatmaps.recorded(words.unet, 1) as maps:
            words.latents("a red circle", steps=1, seed=0, guidance_scale=scale)
        return maps.of([[2]], 32, 32)
    assert torch.allclose(first_step(1.0), first_step(5.0), atol=1e-5)


def test_places_of_words(tokens):
    prompt = "a small red circle on a white background"
    assert len(tokens.encode(prompt)) == 8                     # one token a word
    assert heatmaps.places_of(tokens, prompt, "red") == [3]
    assert heatmaps.places_of(tokens, prompt, "Red circle") == [3, 4]
    assert heatmaps.places_of(tokens, prompt, "a") == [1, 6]
    for missing in ("dog", "circle red", "", "red " * 30):
        with pytest.raises(UsageError, match="not in what the model reads"):
            heatmaps.places_of(tokens, prompt, missing)
    with pytest.raises(UsageError, match="white"):             # cut off: 14 tokens are read
        heatmaps.places_of(tokens, "red " * 14 + "white", "white")


def test_the_pipeline_gives_picture_and_maps(words):
    picture, maps = words.attention_maps("a small red circle", ["red", "small red"], steps=2, seed=0)
    assert isinstance(picture, Image.Image) and picture.size == (32, 32) and maps.shape == (2, 32, 32)
    assert picture.tobytes() == words.generate("a small red circle", steps=2, seed=0)[0].tobytes()
    _, alone = words.attention_maps("a small red circle", "red", steps=2, seed=0)
    assert torch.equal(alone[0], maps[0])
    small = words.attention_maps("a small red circle", "small", steps=2, seed=0)[1][0]
    assert torch.allclose(maps[1], (small + maps[0]) / 2, atol=1e-6)
    assert not any(m._forward_hooks for m in words.unet.modules())
    with pytest.raises(UsageError, match="one prompt"):
        words.attention_maps(["a", "b"], "a")


def test_a_students_attention_is_watched_too(tokens):
    from course import attention

    class Mine(torch.nn.Module):
        def __init__(self, query_dim, context_dim=None, heads=8, dim_head=64):
            super().__init__()
            self.n, inner = heads, heads * dim_head
            self.to_q = torch.nn.Linear(query_dim, inner, bias=False)
            self.to_k = torch.nn.Linear(context_dim or query_dim, inner, bias=False)
            self.to_v = torch.nn.Linear(context_dim or query_dim, inner, bias=False)
            self.to_out = torch.nn.ModuleList([torch.nn.Linear(inner, query_dim)])

        def forward(self, x, context=None):
            context = x if context is None else context
            k, q, v = (f(a).unflatten(-1, (self.n, -1)).transpose(1, 2)
                       for f, a in ((self.to_k, context), (self.to_q, x), (self.to_v, context)))
            return self.to_out[0](attention.attend(q, k, v, fused=False).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    ours = StableDiffusion(TINY, tokens)
    with parts.swapped({"attention.CrossAttention": Mine}):
        theirs = StableDiffusion(TINY, tokens)
    randomise(ours.unet), randomise(ours.text_encoder)
    theirs.unet.load_state_dict(ours.unet.state_dict()), theirs.text_encoder.load_state_dict(ours.text_encoder.state_dict())
    maps = [pipe.attention_maps("a red circle", "red", steps=2, seed=0)[1] for pipe in (ours, theirs)]
    assert torch.allclose(*maps, atol=1e-5)


def test_a_model_without_text_says_so():
    with heatmaps.recorded(torch.nn.Linear(1, 1), 1) as maps:
        pass
    with pytest.raises(UsageError, match="no cross-attention"):
        maps.of([[1]], 8, 8)
