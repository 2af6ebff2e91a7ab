"""What a sampling run remembers is what it would have computed, and is forgotten when the run ends."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course import controlnet, layers, memo, parts, pipeline, samplers, unet
from course.controlnet import Control
from course.pipeline import StableDiffusion
from tests.conftest import TINY, randomise


def counted(module: nn.Module) -> list:
    """Calls of `module`, as they come."""
    calls, forward = [], module.forward

    def counting(x):
        calls.append(x)
        return forward(x)
    module.forward = counting
    return calls


@pytest.fixture
def drawn(pipe):
    randomise(pipe.unet)
    return pipe


def plainly(monkeypatch):
    monkeypatch.setattr(pipeline, "remembering", lambda networks, levels: nullcontext())


@pytest.mark.parametrize("how", [{}, {"sampler": "heun"}, {"guidance_interval": (300, 700)}, {"guidance_scale": 1.0}],
                         ids=["guided", "heun", "interval", "unguided"])
def test_a_run_gives_what_it_gave(drawn, monkeypatch, how):
    found = drawn.latents(["a red ring", "a blue square"], steps=5, seed=1, **how)
    plainly(monkeypatch)
    assert torch.allclose(found, drawn.latents(["a red ring", "a blue square"], steps=5, seed=1, **how), atol=1e-5)


def test_keys_and_time_are_computed_once_a_run(drawn):
    keys = counted(drawn.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k)
    block = drawn.unet.mid_block.resnets[0]
    shifts = counted(block.time_emb_proj)
    drawn.latents("a red ring", steps=6, seed=0)
    assert len(keys) == 1 and keys[0].shape[0] == 2            # both halves of guidance in one
    assert len(shifts) == 1 and len(shifts[0]) == 6            # all levels in one
    drawn.latents("a red ring", steps=6, seed=0, guidance_interval=(0, 500))
    assert [len(x) for x in keys[1:]] == [1, 2]                # a run of its own: without guidance, and with


def test_another_prompt_and_other_weights_are_noticed(drawn, monkeypatch):
    first = drawn.latents("a red ring", steps=3, seed=0)
    assert not torch.equal(first, drawn.latents("white", steps=3, seed=0))
    attn = drawn.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn2
    with torch.no_grad():
        attn.to_v.weight *= -1
    changed = drawn.latents("a red ring", steps=3, seed=0)
    assert not torch.allclose(first, changed, atol=1e-4)
    plainly(monkeypatch)
    assert torch.allclose(changed, drawn.latents("a red ring", steps=3, seed=0), atol=1e-5)


def test_everything_is_put_back_also_after_an_error(drawn):
    def patched():
        return [n for n, m in drawn.unet.named_modules() if {"forward", "embed_time", "time_shift"} & set(vars(m))]
    drawn.latents("a red ring", steps=2, seed=0)
    assert patched() == []
    with pytest.raises(ZeroDivisionError), memo.remembering([drawn.unet], torch.tensor([5, 3])):
        assert len(patched()) > 3
        raise ZeroDivisionError
    assert patched() == []


def test_a_level_that_was_not_announced_is_computed(drawn):
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)
    with torch.no_grad():
        expected = [drawn.unet(x, t, context) for t in (900, 7.5, torch.tensor([3, 900]))]
        with memo.remembering([drawn.unet], torch.tensor([900, 400])):
            found = [drawn.unet(x, t, context) for t in (900, 7.5, torch.tensor([3, 900]))]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_what_was_remembered_goes_with_its_context():
    seen = []
    twice = memo.Remembered(lambda x: (seen.append(len(x)), 2 * x)[1])
    a, b = torch.ones(1), torch.ones(1)
    assert torch.equal(twice(a), twice(a)) and len(seen) == 1
    twice(b)                                                   # equal, but another
    assert len(seen) == 2 and len(twice.answers) == 2
    del a
    assert len(twice.answers) == 1


class Own(nn.Module):
    """A student's attention, with names of its own."""

    def __init__(self, query_dim, context_dim=None, heads=8, dim_head=64):
        super().__init__()
        self.query = nn.Linear(query_dim, dim_head)
        self.key_value = nn.Linear(context_dim or query_dim, 2 * dim_head)
        self.out = nn.Linear(dim_head, query_dim)

    def forward(self, x, context=None):
        k, v = self.key_value(x if context is None else context).chunk(2, -1)
        return self.out(F.scaled_dot_product_attention(self.query(x), k, v))


class SameNames(Own):
    """Another, whose key reads more than the context, so that nothing of it may be kept."""

    def __init__(self, query_dim, context_dim=None, heads=8, dim_head=64):
        super().__init__(query_dim, context_dim, heads, dim_head)
        self.to_k = nn.Linear(context_dim or query_dim, dim_head)

    def forward(self, x, context=None):
        context = x if context is None else context
        k = self.to_k(context + x.mean())
        return self.out(F.scaled_dot_product_attention(self.query(x), k, self.key_value(context).chunk(2, -1)[1]))


class RowForEach(layers.ResBlock):
    """A student's block that counts on a row of the time embedding for each picture."""

    def forward(self, x, time_emb=None):
        h = self.conv1(F.silu(self.norm1(x)))
        if time_emb is not None:
            h = h + self.time_emb_proj(F.silu(time_emb)).view(len(x), -1, 1, 1)
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


@pytest.mark.parametrize("swap", [{"attention.CrossAttention": Own}, {"attention.CrossAttention": SameNames},
                                  {"layers.ResBlock": RowForEach}], ids=["names of its own", "same names", "time"])
def test_a_students_part_works_and_gives_its_own_answer(tokens, monkeypatch, swap):
    with parts.swapped(swap):
        pipe = StableDiffusion(TINY, tokens)
    randomise(pipe.unet)
    found = pipe.latents(["a red ring", "white"], steps=4, seed=0)
    plainly(monkeypatch)
    assert torch.allclose(found, pipe.latents(["a red ring", "white"], steps=4, seed=0), atol=1e-5)


def test_controlnets_remember_too(drawn, monkeypatch):
    net = randomise(controlnet.ControlNet(controlnet.ControlNetConfig(TINY.unet, (16, 16, 16)))).eval()
    control = Control(net, torch.rand(1, 3, 32, 32))
    keys = counted(net.mid_block.attentions[0].transformer_blocks[0].attn2.to_k)
    found = drawn.latents("a red ring", steps=4, seed=0, control=control)
    assert len(keys) == 1
    plainly(monkeypatch)
    assert torch.allclose(found, drawn.latents("a red ring", steps=4, seed=0, control=control), atol=1e-5)


def test_sdxl_levels_are_left_alone(drawn):
    """Its time embedding also holds the pooled text."""
    config = unet.UNetConfig(block_channels=(32,), layers_per_block=1, depth=(1,), heads=(1,), context_dim=16, added_dim=24,
                             size_embedding_dim=4)
    net = randomise(unet.UNet(config)).eval()
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)
    added = [{"text_embeds": torch.randn(2, 4), "time_ids": torch.rand(2, 5)} for _ in range(2)]
    with torch.no_grad():
        expected = [net(x, 5, context, a) for a in added]
        with memo.remembering([net], torch.tensor([5])):
            found = [net(x, 5, context, a) for a in added]
    assert not torch.allclose(*expected)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_packed_convolutions_answer_the_same(drawn, monkeypatch):
    monkeypatch.setattr(memo, "LARGE", 1)
    if not memo.can_pack(drawn.unet.conv_in):
        pytest.skip("weights are packed on x86 processors only")
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)
    with torch.no_grad():
        expected = drawn.unet(x, 5.0, context)
        with memo.remembering([drawn.unet]):
            packed = drawn.unet.conv_in.forward
            found, again = drawn.unet(x, 5.0, context), drawn.unet(x, 5.0, context)
            first = packed.weight
            assert drawn.unet(x[:1], 5.0, context[:1]).shape[0] == 1 and packed.weight is not first      # another size
            with torch.enable_grad():
                assert drawn.unet(x, 5.0, context).requires_grad
    assert isinstance(packed, memo.Packed) and torch.equal(found, again)
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())
    assert torch.equal(drawn.unet(x, 5.0, context), expected)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_finds_its_levels(drawn, name):
    asked = []
    embed = type(drawn.unet).embed_time

    def watched(self, t, x, added=None):
        asked.append(t)
        return embed(self, t, x, added)
    with parts.swapped({}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(drawn.unet), "embed_time", watched)
        drawn.latents("a red ring", steps=4, seed=0, sampler=name)
    assert len(asked) == 1 and len(asked[0]) == 4              # the table; no level was computed by itself
