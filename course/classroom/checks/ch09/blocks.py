"""Exercises 2 to 4: attention in several heads, the gated layers, and the block made of both."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch09.answers import BasicTransformerBlock, CrossAttention, FeedForward, attention_weights, randomise

CROSS_ATTENTION = Exercise("attention.CrossAttention", points=4, minutes=20, reference=CrossAttention)
FEED_FORWARD = Exercise("attention.FeedForward", points=3, minutes=10, reference=FeedForward)
BLOCK = Exercise("attention.BasicTransformerBlock", points=3, minutes=15, reference=BasicTransformerBlock)


def _pair(fn, ours, *sizes, seed: int = 20, **options):
    """The student's module with the random weights of the course's; it sees copies, so that `hygiene` tells of edits."""
    ours, theirs = randomise(ours(*sizes, **options), seed), fn(*sizes, **options)
    theirs.load_state_dict(ours.state_dict())
    return (lambda *given: theirs(*(x.clone() for x in given))), ours


def _names(fn, ours, whys: dict[str, str], *cases):
    """What is wrong with the names and shapes of the weights; whys: part of a name -> what to say of it."""
    for sizes in cases:
        right = {k: tuple(v.shape) for k, v in ours(*sizes).state_dict().items()}
        have = {k: tuple(v.shape) for k, v in fn(*sizes).state_dict().items()}
        title = f"{ours.__name__}{sizes}"
        if missing := [k for k in right if k not in have]:
            why = next((words for name, words in whys.items() if name in have), "")
            return f"{title}: the weights {', '.join(missing[:3])} are missing: a released file brings them under this name{why}"
        if more := [k for k in have if k not in right]:
            return f"{title}: {', '.join(more[:3])} is in no released file" + whys.get(more[0], "")
        if wrong := [k for k in right if right[k] != have[k]]:
            return f"{title}: {wrong[0]} should have shape {right[wrong[0]]}, has {have[wrong[0]]}" + whys.get("shape", "")


def _gradient(module, *inputs):
    randomise(module, 30)
    inputs = [x.requires_grad_() for x in inputs]
    module(*inputs).square().sum().backward()
    given = {f"input {i + 1}": x for i, x in enumerate(inputs)} | dict(module.named_parameters())
    missing = [name for name, p in given.items() if p.grad is None or not p.grad.any()]
    return f"no gradient reaches {', '.join(missing[:3])}" if missing else None


# ---- 2 · CrossAttention

@CROSS_ATTENTION.gate("CrossAttention(16, 12, heads, dim_head)(x, context): (B,N,16), (B,M,12) -> (B,N,16)")
def _(fn):
    module = fn(16, 12, 3, 5)
    if not isinstance(module, nn.Module):
        return f"expected a torch module, got {type(module).__name__}: class CrossAttention(nn.Module)"
    return tensor_like(module(normal((2, 5, 16), 1), normal((2, 7, 12), 2)), (2, 5, 16))


@CROSS_ATTENTION.property("the names and shapes of its weights are those of the released files")
def _(fn):
    no_bias = ": queries, keys and values have no bias"
    return _names(fn, CrossAttention, {
        "to_out.weight": ". The output layer is the first of a list: to_out = nn.ModuleList([nn.Linear(...), nn.Identity()])",
        "to_q.bias": no_bias, "to_k.bias": no_bias, "to_v.bias": no_bias,
        "shape": ". The inner width is heads * dim_head; keys and values read the context"},
        (16, 12, 3, 5), (16, None, 2, 4), (32,))


@CROSS_ATTENTION.property("equals the course's with the same weights")
def _(fn):
    theirs, ours = _pair(fn, CrossAttention, 16, 12, 3, 5)
    x, context = normal((2, 6, 16), 3), normal((2, 4, 12), 4)
    return compare(theirs(x, context), ours(x, context), _attention_bugs(ours, x, context), rtol=1e-3)


@torch.no_grad()
def _attention_bugs(m, x, context):
    def go(split="B N (h d) -> B h N d", join="B h N d -> B N (h d)", weigh=attention_weights, heads=m.heads, out=m.to_out[0]):
        q, k, v = (rearrange(a, split, h=heads) for a in (m.to_q(x), m.to_k(context), m.to_v(context)))
        return out(rearrange(weigh(q, k) @ v, join))
    bugs = {
        "the heads are interleaved: head 0 takes the first d numbers, '(h d)', not every h-th": dict(
            split="B N (d h) -> B h N d", join="B h N d -> B N (d h)"),
        "the heads are joined in another order than they were split": dict(join="B h N d -> B N (d h)"),
        "there is only one head: split the inner width into heads": dict(heads=1),
        "the scale is missing": dict(weigh=lambda q, k: (q @ k.transpose(-1, -2)).softmax(-1)),
        "the scale is that of the inner width: each head has d = dim_head numbers": dict(
            weigh=lambda q, k: (q @ k.transpose(-1, -2) * (m.heads * q.shape[-1]) ** -0.5).softmax(-1)),
        "the scale is the root of query_dim: of dim_head": dict(
            weigh=lambda q, k: (q @ k.transpose(-1, -2) * x.shape[-1] ** -0.5).softmax(-1)),
        "the softmax runs over the queries: over the keys": dict(
            weigh=lambda q, k: (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-2)),
        "the attention is causal: a picture has no order, and may read every word": dict(
            weigh=lambda q, k: attention_weights(q, k, True))}
    return {words: go(**how) for words, how in bugs.items()} | {
        "x is added to the result: the block does that": go() + x,
        "all heads were averaged": m.to_out[0](torch.cat([rearrange(attention_weights(*(rearrange(
            a, "B N (h d) -> B h N d", h=m.heads) for a in (m.to_q(x), m.to_k(context)))) @ rearrange(
            m.to_v(context), "B N (h d) -> B h N d", h=m.heads), "B h N d -> B h N d").mean(1)] * m.heads, -1))}


@CROSS_ATTENTION.property("without a context it attends to itself")
def _(fn):
    theirs, ours = _pair(fn, CrossAttention, 16, None, 2, 8)
    x, other = normal((2, 6, 16), 5), normal((2, 3, 16), 6)
    return compare(theirs(x), ours(x), rtol=1e-3) or compare(theirs(x, other), ours(x, other), {
        "a context is given, and it attends to itself": ours(x)}, rtol=1e-3)


@CROSS_ATTENTION.property("the order of the context does not matter, and each picture reads its own text")
def _(fn):
    theirs, _ = _pair(fn, CrossAttention, 16, 12, 2, 8)
    x, context = normal((2, 5, 16), 7), normal((2, 6, 12), 8)
    out = theirs(x, context)
    if problem := compare(theirs(x, context.flip(1)), out, rtol=1e-3):
        return f"words in another order changed the result: {problem}"
    return compare(theirs(x[:1], context[:1]), out[:1], rtol=1e-3)


@CROSS_ATTENTION.property("a gradient reaches x, the context and every weight")
def _(fn):
    return _gradient(fn(16, 12, 2, 8), normal((2, 5, 16), 9), normal((2, 4, 12), 10))


@CROSS_ATTENTION.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(fn(16, 12, 2, 8), normal((2, 5, 16), 11), normal((2, 4, 12), 12))


# ---- 3 · FeedForward

@FEED_FORWARD.gate("FeedForward(dim, mult=4)(x): (B,N,dim) -> (B,N,dim)")
def _(fn):
    module = fn(16)
    if not isinstance(module, nn.Module):
        return f"expected a torch module, got {type(module).__name__}: class FeedForward(nn.Module)"
    return tensor_like(module(normal((2, 5, 16), 1)), (2, 5, 16))


@FEED_FORWARD.property("the names and shapes of its weights are those of the released files")
def _(fn):
    return _names(fn, FeedForward, {
        "net.1.weight": ". The list has three parts: GEGLU, nn.Identity() in place of the dropout, the second layer",
        "shape": ". The first layer makes value and gate, each mult * dim wide"}, (16,), (8, 2))


@FEED_FORWARD.property("equals the course's with the same weights")
def _(fn):
    theirs, ours = _pair(fn, FeedForward, 16)
    x = normal((2, 5, 16), 2)
    value, gate = (a.detach() for a in ours.net[0].proj(x).chunk(2, -1))
    end = ours.net[2]
    with torch.no_grad():
        return compare(theirs(x), ours(x), {
            "value and gate are exchanged: GELU is on the second half": end(gate * F.gelu(value)),
            "there is no GELU on the gate": end(value * gate),
            "GELU is on both halves": end(F.gelu(value) * F.gelu(gate)),
            "GELU stands around the product: on the gate alone": end(F.gelu(value * gate)),
            "the gate goes through a sigmoid: GELU here, so GEGLU": end(value * gate.sigmoid()),
            "the gate goes through SiLU: GELU here": end(value * F.silu(gate)),
            "the gate goes through ReLU: GELU here": end(value * F.relu(gate)),
            "the halves are added: the gate multiplies": end(value + F.gelu(gate)),
            "the value is not used": end(F.gelu(gate)),
            "the gate is not used": end(value),
            "x is added to the result: the block does that": ours(x) + x}, rtol=1e-3)


@FEED_FORWARD.property("each token by itself: the others do not change it")
def _(fn):
    theirs, _ = _pair(fn, FeedForward, 8, 2)
    x = normal((2, 5, 8), 3)
    return compare(theirs(x[:, 2:3]), theirs(x)[:, 2:3], rtol=1e-3)


@FEED_FORWARD.property("a gradient reaches x and every weight")
def _(fn):
    return _gradient(fn(8), normal((2, 5, 8), 4))


@FEED_FORWARD.hygiene("leaves x as it was")
def _(fn):
    return touched(fn(8), normal((2, 5, 8), 5))


# ---- 4 · the block

@BLOCK.gate("BasicTransformerBlock(16, 12, heads, dim_head)(x, context): (B,N,16), (B,M,12) -> (B,N,16)")
def _(fn):
    module = fn(16, 12, 2, 8)
    if not isinstance(module, nn.Module):
        return f"expected a torch module, got {type(module).__name__}: class BasicTransformerBlock(nn.Module)"
    return tensor_like(module(normal((2, 5, 16), 1), normal((2, 7, 12), 2)), (2, 5, 16))


@BLOCK.property("the names and shapes of its weights are those of the released files")
def _(fn):
    return _names(fn, BasicTransformerBlock, {
        "shape": ": is dim_head handed on to both attentions, and does attn2, not attn1, read the context?"},
        (16, 12, 2, 8), (16, 24, 4, 4))


@BLOCK.property("equals the course's with the same weights: three times x + f(norm(x))")
def _(fn):
    theirs, ours = _pair(fn, BasicTransformerBlock, 16, 16, 2, 8)
    x, context = normal((2, 6, 16), 3), normal((2, 4, 16), 4)
    return compare(theirs(x, context), ours(x, context), _block_bugs(ours, x, context), rtol=1e-3)


@torch.no_grad()
def _block_bugs(m, x, context):
    def go(first=lambda x: m.attn1(m.norm1(x)), second=lambda x: m.attn2(m.norm2(x), context), third=lambda x: m.ff(m.norm3(x)),
           keep=(1, 1, 1), order=(0, 1, 2)):
        y = x
        for i in order:
            y = keep[i] * y + (first, second, third)[i](y)
        return y
    return {
        "x is not added: each of the three is added to the stream": go(keep=(0, 0, 0)),
        "the self-attention is not added to x": go(keep=(0, 1, 1)),
        "the cross-attention is not added to x": go(keep=(1, 0, 1)),
        "the feed-forward is not added to x": go(keep=(1, 1, 0)),
        "the norms are missing": go(m.attn1, lambda x: m.attn2(x, context), m.ff),
        "the norms stand behind the additions: x + f(norm(x))": m.norm3((y := m.norm2((z := m.norm1(x + m.attn1(x))) + m.attn2(
            z, context))) + m.ff(y)),
        "attn2 gets no context": go(second=lambda x: m.attn2(m.norm2(x))),
        "attn1 reads the text: it is the self-attention": go(first=lambda x: m.attn1(m.norm1(x), context)),
        "the keys of attn1 are not normalised: norm1(x) on both sides": go(first=lambda x: m.attn1(m.norm1(x), x)),
        "the context went through norm2: it comes normalised from the text encoder": go(
            second=lambda x: m.attn2(m.norm2(x), m.norm2(context))),
        "the text is read before the picture: attn1 comes first": go(order=(1, 0, 2)),
        "the feed-forward comes first": go(order=(2, 0, 1)),
        "the feed-forward is missing": go(order=(0, 1)),
        "the cross-attention is missing": go(order=(0, 2)),
        "all three read the same x: each reads what the one before has made": x + m.attn1(m.norm1(x)) + m.attn2(
            m.norm2(x), context) + m.ff(m.norm3(x))}


@BLOCK.property("without a text both attentions read the picture")
def _(fn):
    theirs, ours = _pair(fn, BasicTransformerBlock, 16, None, 2, 8)
    x = normal((2, 6, 16), 5)
    return compare(theirs(x), ours(x), rtol=1e-3)


@BLOCK.property("a gradient reaches x, the context and every weight")
def _(fn):
    return _gradient(fn(16, 12, 2, 8), normal((2, 5, 16), 6), normal((2, 4, 12), 7))


@BLOCK.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(fn(16, 12, 2, 8), normal((2, 5, 16), 8), normal((2, 4, 12), 9))
