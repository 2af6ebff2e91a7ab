"""Exercises 7 and 8: the pass through the text transformer, and one vector for a sentence."""

import torch
from einops import rearrange
from torch import Tensor

from course import text
from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch09.answers import attention_weights, encode_text, pooled, randomise

ENCODE_TEXT = Exercise("text.encode_text", points=4, minutes=20, reference=encode_text)
POOLED = Exercise("text.pooled", points=3, minutes=10, reference=pooled)


# ---- 7 · the pass

def _net(layers: int = 2, heads: int = 2, seed: int = 1):
    return randomise(text.TextModel(text.TextConfig(vocab_size=20, length=9, width=8, layers=layers, heads=heads)), seed)


def _ids(n: int = 6, seed: int = 2, batch: int = 2) -> Tensor:
    return torch.randint(20, (batch, n), generator=torch.Generator().manual_seed(seed))


@ENCODE_TEXT.gate("(net, (B,N) int64) -> (B,N,D), for N up to the model's length")
def _(fn):
    for n in (6, 9, 1):
        try:
            problem = tensor_like(fn(_net(), _ids(n)), (2, n, 8))
        except RuntimeError as error:
            if "size of tensor" in str(error) or "must match" in str(error):
                return (f"{n} tokens of 9: shapes do not meet ({str(error)[:60]}): take the first N rows of the positions, and "
                        "bring the heads together again")
            raise
        if problem:
            return f"{n} tokens: {problem}"


@ENCODE_TEXT.property("a later word changes nothing before it")
def _(fn):
    ids = _ids()
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 3) % 20
    a, b = fn(_net(), ids), fn(_net(), other)
    if not torch.allclose(a[:, :4], b[:, :4], rtol=1e-4, atol=1e-5):
        return "word 4 was exchanged, and vectors before it changed: the attention must be causal"
    if torch.allclose(a[:, 5], b[:, 5]):
        return "word 4 was exchanged, and the one after it does not notice: token i reads all of 0 ... i"


@ENCODE_TEXT.property("equals the course's pass, for one layer and for several, for one head and for several")
def _(fn):
    for layers, heads in ((1, 1), (1, 4), (3, 2)):
        net, ids = _net(layers, heads, seed=3), _ids(seed=4)
        if problem := compare(fn(net, ids), encode_text(net, ids), _variants(net, ids), rtol=1e-3):
            return f"{layers} layers, {heads} heads: {problem}"


@torch.no_grad()
def _variants(net, ids):
    def go(places=True, residual=(1, 1), mlp=True, end=net.final_layer_norm, count=None, heads=None, norm1=True, norm2=True,
           scale=lambda d: d**-0.5, split="B N (h d) -> B h N d"):
        x = net.embeddings.token_embedding(ids)
        x = x + net.embeddings.position_embedding.weight[: ids.shape[1]] if places else x
        for layer in list(net.encoder["layers"])[:count]:
            own, h = layer.self_attn, layer.layer_norm1(x) if norm1 else x
            q, k, v = (rearrange(p(h), split, h=heads or own.heads) for p in (own.q_proj, own.k_proj, own.v_proj))
            q = q * scale(q.shape[-1]) * q.shape[-1] ** 0.5
            join = "B h N d -> B N (h d)" if "(h d)" in split else "B h N d -> B N (d h)"
            x = residual[0] * x + own.out_proj(rearrange(attention_weights(q, k, True) @ v, join))
            x = residual[1] * x + layer.mlp(layer.layer_norm2(x) if norm2 else x) if mlp else x
        return end(x)
    bugs = {
        "the places are not added: the same words in another order would be the same": dict(places=False),
        "the last norm is missing": dict(end=lambda x: x),
        "the attention is not added to x": dict(residual=(0, 1)),
        "the MLP is not added to x": dict(residual=(1, 0)),
        "neither attention nor MLP is added to x": dict(residual=(0, 0)),
        "the MLP is left out": dict(mlp=False),
        "layer_norm1 is not used": dict(norm1=False),
        "layer_norm2 is not used": dict(norm2=False),
        "neither of the norms of a layer is used": dict(norm1=False, norm2=False),
        "there is only one head: self_attn.heads says how many": dict(heads=1),
        "the heads are interleaved: head 0 takes the first d numbers": dict(split="B N (d h) -> B h N d"),
        "the scale of the scores is missing": dict(scale=lambda d: 1.0),
        "only the first layer was used": dict(count=1),
        "no layer was used": dict(count=0)}
    return {words: go(**how) for words, how in bugs.items()}


@ENCODE_TEXT.property("texts of a batch do not see each other")
def _(fn):
    ids = _ids(seed=5)
    return compare(fn(_net(), ids[:1]), fn(_net(), ids)[:1], rtol=1e-3)


@ENCODE_TEXT.property("a gradient reaches every weight that is used")
def _(fn):
    net = _net(seed=6)
    fn(net, _ids(9)).square().sum().backward()
    missing = [name for name, p in net.named_parameters() if not name.endswith("k_proj.bias")   # softmax does not feel it
               and (p.grad is None or not p.grad.any())]
    return f"no gradient reaches {', '.join(missing[:3])}" if missing else None


@ENCODE_TEXT.hygiene("leaves the ids and the network as they were")
def _(fn):
    net = _net()
    return touched(lambda ids: fn(net, ids), _ids()) or touched(lambda *p: fn(net, _ids()), *net.parameters())


# ---- 8 · one vector

END = 7                                                         # neither the largest id nor the last place
IDS = torch.tensor([[2, 9, 4, END, END, END], [2, 9, 9, 9, 8, END], [2, END, 0, 0, 0, 0]])
FIRST = torch.tensor([3, 5, 1])


def _case(seed: int = 1):
    return normal((3, 6, 4), seed), IDS.clone(), END, normal((4, 4), seed + 1)


def _unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@POOLED.gate("(B,N,D), (B,N), id, (P,D) -> (B,P)")
def _(fn):
    try:
        return tensor_like(fn(normal((3, 6, 4), 1), IDS.clone(), END, normal((5, 4), 2)), (3, 5))
    except RuntimeError as error:
        if "multipl" in str(error) or "shapes" in str(error):
            return "the projection is (P,D), as in nn.Linear: multiply by its transpose"
        raise


@POOLED.property("worked by hand: the vector at the end token, divided by its length: (3, 4) becomes (0.6, 0.8)")
def _(fn):
    hidden = torch.zeros(1, 4, 2)
    hidden[0] = torch.tensor([[1.0, 0], [0, 1], [3, 4], [-1, 0]])
    out = fn(hidden, torch.tensor([[5, 6, END, END]]), END, torch.eye(2))
    return compare(out, torch.tensor([[0.6, 0.8]]), {
        "its length is missing: divide by the norm": torch.tensor([[3.0, 4.0]]),
        "divided by the squared length: by the root of it": torch.tensor([[3 / 25, 4 / 25]]),
        "this is the first token, START: it has read nothing": torch.tensor([[1.0, 0.0]]),
        "this is the last place, where padding stands: the first END": torch.tensor([[-1.0, 0.0]]),
        "this is the token before END, which has not read that the text is over": torch.tensor([[0.0, 1.0]]),
        "this is the mean over all places": _unit(hidden.mean(1))})


@POOLED.property("the first END of each text, wherever it stands and whatever its number is")
def _(fn):
    hidden, ids, end, w = _case()
    rows = torch.arange(3)
    right = _unit(hidden[rows, FIRST] @ w.T)
    last = (ids.shape[1] - 1 - (ids == end).flip(1).int().argmax(1))
    return compare(fn(hidden, ids, end, w), right, {
        "the last END was taken: padding repeats it, and the first one ends the text": _unit(hidden[rows, last] @ w.T),
        "the largest id was taken: CLIP's END happens to be the largest, another tokenizer's is not":
            _unit(hidden[rows, ids.argmax(1)] @ w.T),
        "all texts were read at the place of the first one's END": _unit(hidden[:, 3] @ w.T),
        "this is the last place, where padding stands": _unit(hidden[:, -1] @ w.T),
        "the projection is turned round: multiply by its transpose, as nn.Linear does": _unit(hidden[rows, FIRST] @ w),
        "the projection is not used": _unit(hidden[rows, FIRST]),
        "the length was taken before the projection: behind it": _unit(hidden[rows, FIRST]) @ w.T})


@POOLED.property("each text has length 1 of its own")
def _(fn):
    hidden, ids, end, w = _case(3)
    hidden = hidden * torch.tensor([1.0, 100.0, 0.01]).reshape(3, 1, 1)
    return compare(fn(hidden, ids, end, w).norm(dim=-1), torch.ones(3))


@POOLED.property("a gradient reaches the hidden states and the projection")
def _(fn):
    hidden, ids, end, w = _case(5)
    hidden, w = hidden.requires_grad_(), w.requires_grad_()
    out = fn(hidden, ids, end, w)
    if not out.requires_grad:
        return "the vector is cut off from the hidden states: no .detach(), no no_grad()"
    (out * normal(out.shape, 7)).sum().backward()
    missing = [n for n, x in (("the hidden states", hidden), ("the projection", w)) if x.grad is None or not x.grad.any()]
    return f"no gradient reaches {', '.join(missing)}" if missing else None


@POOLED.hygiene("leaves its inputs as they were")
def _(fn):
    hidden, ids, end, w = _case()
    return touched(lambda h, i, p: fn(h, i, end, p), hidden, ids, w)
