"""Answers to the exercises of chapter 09: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import heapq
import math
from collections import Counter, defaultdict

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import nn

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


def variants(id: str, base: type):
    """variant(name, words, init=None, **methods): a wrong class; `init` runs after the right __init__."""
    def variant(name, words, init=None, **methods):
        def __init__(self, *arguments, **options):
            base.__init__(self, *arguments, **options)
            if init:
                init(self)
        WRONG.setdefault(id, []).append((name, type(name, (base,), {"__init__": __init__, **methods}), words))
    return variant


# ---- attention.weights

WEIGHTS = "attention.weights"


def weigh_with(scale=lambda d: d**-0.5, axis=-1, mask=lambda s: torch.ones_like(s).triu(1).bool(), fill=float("-inf"),
               always=False, never=False, behind=False, prepare=lambda x: x):
    """The right answer with one thing changed."""
    def attention_weights(q, k, causal=False):
        scores = prepare(q) @ prepare(k).transpose(-1, -2) * scale(q.shape[-1])
        hide = (causal or always) and not never
        if hide and not behind:
            scores = scores.masked_fill(mask(scores), fill)
        weights = scores.softmax(axis)
        return weights.masked_fill(mask(scores), 0) if hide and behind else weights
    return attention_weights


WRONG[WEIGHTS] = [
    ("over_the_queries", weigh_with(axis=-2), "over the queries"),
    ("over_the_heads", weigh_with(axis=1), "wrong axis"),
    ("no_softmax", lambda q, k, causal=False: q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, "is the softmax missing"),
    ("no_scale", weigh_with(lambda d: 1.0), "the scale is missing"),
    ("divided_by_d", weigh_with(lambda d: 1 / d), "divided by d: by its root"),
    ("multiplied", weigh_with(math.sqrt), "multiplied by the root"),
    ("fixed_scale", weigh_with(lambda d: 0.5), "d = 16"),
    ("mask_behind", weigh_with(behind=True), "behind the softmax"),
    ("mask_of_zeros", weigh_with(fill=0.0), "exp(0) = 1"),
    ("mask_with_itself", weigh_with(mask=lambda s: torch.ones_like(s).triu(0).bool()), "NaN"),
    ("mask_of_the_past", weigh_with(mask=lambda s: torch.ones_like(s).tril(-1).bool()), "turned round"),
    ("never_causal", weigh_with(never=True), "changes nothing"),
    ("detached", weigh_with(prepare=lambda x: x.detach()), "cut off"),
    ("with_values", lambda q, k, causal=False: weigh_with()(q, k, causal) @ k, "before they meet v"),
]


@wrong(WEIGHTS, "the mask is there without causal")
def always_causal(q, k, causal=False):
    return weigh_with(always=q.shape[-2] == k.shape[-2])(q, k, causal)


@wrong(WEIGHTS, "overflow")
def softmax_by_hand(q, k, causal=False):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores + torch.full_like(scores, float("-inf")).triu(1)
    e = scores.exp()
    return e / e.sum(-1, keepdim=True)


@wrong(WEIGHTS, "changed in place")
def scales_in_place(q, k, causal=False):
    with torch.no_grad():
        q *= q.shape[-1] ** -0.5
    return weigh_with(lambda d: 1.0)(q, k, causal)


@right(WEIGHTS)
def by_einsum(q, k, causal=False):
    scores = einsum(q, k, "b h n d, b h m d -> b h n m") / math.sqrt(q.size(-1))
    if causal:
        n, m = scores.shape[-2:]
        scores = torch.where(torch.arange(m)[None] <= torch.arange(n)[:, None], scores, -torch.inf)
    return F.softmax(scores, dim=-1)


@right(WEIGHTS)
def by_log_sum_exp(q, k, causal=False):
    d = q.shape[-1]
    scores = torch.matmul(q / d**0.25, (k / d**0.25).mT)
    if causal:
        scores = scores + torch.full(scores.shape[-2:], float("-inf")).triu(diagonal=1)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp()


@right(WEIGHTS)
def by_torchs_kernel(q, k, causal=False):
    """The values are unit vectors, so that what comes back is the weights."""
    one_hot = torch.eye(k.shape[-2]).expand(*k.shape[:-1], -1)
    return F.scaled_dot_product_attention(q, k, one_hot, is_causal=causal)


# ---- attention.CrossAttention

CROSS = "attention.CrossAttention"


class Cross(nn.Module):
    """The right answer, in pieces to be changed."""

    def __init__(self, query_dim, context_dim=None, heads=8, dim_head=64):
        super().__init__()
        inner = heads * dim_head
        context_dim = context_dim or query_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Dropout(0.0))

    def split(self, a):
        return rearrange(a, "b n (h d) -> b h n d", h=self.heads)

    def join(self, a):
        return rearrange(a, "b h n d -> b n (h d)")

    def weigh(self, q, k):
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)

    def out(self, a, x):
        return self.to_out(a)

    def text(self, x, context):
        return x if context is None else context

    def forward(self, x, context=None):
        context = self.text(x, context)
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        return self.out(self.join(self.weigh(q, k) @ v), x)


cross = variants(CROSS, Cross)


def article_name(self):
    self.to_out = self.to_out[0]


def with_bias(self):
    self.to_q = nn.Linear(self.to_q.in_features, self.to_q.out_features)


def from_the_picture(self):
    self.to_v = nn.Linear(self.to_q.in_features, self.to_q.out_features, bias=False)


cross("articles_to_out", "first of a list", article_name)
cross("biased_queries", "have no bias", with_bias)
cross("values_from_the_picture", "to_v.weight should have shape", from_the_picture, out=lambda self, a, x: self.to_out(a),
      forward=lambda self, x, context=None: self.to_out(self.to_v(x)))
cross("interleaved", "interleaved", split=lambda self, a: rearrange(a, "b n (d h) -> b h n d", h=self.heads),
      join=lambda self, a: rearrange(a, "b h n d -> b n (d h)"))
cross("joined_otherwise", "another order than they were split", join=lambda self, a: rearrange(a, "b h n d -> b n (d h)"))
cross("reshaped", "expected", split=lambda self, a: a.reshape(len(a), self.heads, a.shape[1], -1),
      join=lambda self, a: a.reshape(len(a), a.shape[2], -1))
cross("one_head", "only one head", lambda self: setattr(self, "heads", 1))
cross("no_scale", "the scale is missing", weigh=lambda self, q, k: (q @ k.mT).softmax(-1))
cross("scale_of_all_heads", "scale is that of the inner width",
      weigh=lambda self, q, k: (q @ k.mT * (self.heads * q.shape[-1]) ** -0.5).softmax(-1))
cross("over_the_queries", "over the queries", weigh=lambda self, q, k: (q @ k.mT * q.shape[-1] ** -0.5).softmax(-2))
cross("residual_inside", "the block does that", out=lambda self, a, x: self.to_out(a) + x)
cross("causal", "is causal", weigh=lambda self, q, k: (q @ k.mT * q.shape[-1] ** -0.5 + torch.full(
    (q.shape[-2], k.shape[-2]), float("-inf")).triu(1)).softmax(-1))
cross("context_needed", "raised", text=lambda self, x, context: context)
cross("context_ignored_where_widths_agree", "attends to itself", text=lambda self, x, context: x if context is None
      or context.shape[-1] == x.shape[-1] else context)
cross("no_output_layer", "expected shape", out=lambda self, a, x: a)
cross("frozen_keys", "no gradient reaches", forward=lambda self, x, context=None: Cross.forward(
    self, x, None if context is None else context.detach()))
@right(CROSS)
class ByEinops(Cross):
    pass


@right(CROSS)
class ByTorchsKernel(Cross):
    def forward(self, hidden_states, encoder_hidden_states=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        B, N, _ = hidden_states.shape
        q, k, v = (f(a).view(B, a.shape[1], self.heads, -1).transpose(1, 2)
                   for f, a in ((self.to_q, hidden_states), (self.to_k, context), (self.to_v, context)))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, -1)
        for layer in self.to_out:
            out = layer(out)
        return out


@right(CROSS)
class HeadByHead(nn.Module):
    """A loop over the heads, each with its rows of the weights."""

    def __init__(self, query_dim, context_dim=None, heads=8, dim_head=64):
        super().__init__()
        width = query_dim if context_dim is None else context_dim
        self.h, self.d = heads, dim_head
        for name, size in (("to_q", query_dim), ("to_k", width), ("to_v", width)):
            setattr(self, name, nn.Linear(size, heads * dim_head, bias=False))
        self.to_out = nn.ModuleList([nn.Linear(heads * dim_head, query_dim)])

    def forward(self, x, context=None):
        context, parts = x if context is None else context, []
        for i in range(self.h):
            rows = slice(i * self.d, (i + 1) * self.d)
            q, k, v = x @ self.to_q.weight[rows].T, context @ self.to_k.weight[rows].T, context @ self.to_v.weight[rows].T
            parts.append(torch.softmax(torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(self.d), dim=2) @ v)
        return self.to_out[0](torch.cat(parts, dim=-1))


# ---- attention.FeedForward

FEED = "attention.FeedForward"


class Gate(nn.Module):
    def __init__(self, dim_in, dim_out):
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)


class Feed(nn.Module):
    def __init__(self, dim, mult=4):
        super().__init__()
        self.net = nn.ModuleList([Gate(dim, mult * dim), nn.Dropout(0.0), nn.Linear(mult * dim, dim)])

    def mix(self, value, gate):
        return value * F.gelu(gate)

    def forward(self, x):
        return self.net[2](self.mix(*self.net[0].proj(x).chunk(2, -1)))


feed = variants(FEED, Feed)


def without_dropout(self):
    self.net = nn.ModuleList([self.net[0], self.net[2]])


def fixed_width(self):
    dim = self.net[2].out_features
    self.net = nn.ModuleList([Gate(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])


def only_one_half(self):
    dim, inner = self.net[2].out_features, self.net[2].in_features
    self.net[0].proj = nn.Linear(dim, inner)


feed("no_second_place", "three parts", without_dropout, forward=lambda self, x: self.net[1](self.mix(
    *self.net[0].proj(x).chunk(2, -1))))
feed("mult_ignored", "should have shape", fixed_width)
feed("plain_mlp", "value and gate", only_one_half, forward=lambda self, x: self.net[2](F.gelu(self.net[0].proj(x))))
feed("halves_exchanged", "value and gate are exchanged", mix=lambda self, v, g: g * F.gelu(v))
feed("no_gelu", "no GELU on the gate", mix=lambda self, v, g: v * g)
feed("gelu_on_both", "GELU is on both halves", mix=lambda self, v, g: F.gelu(v) * F.gelu(g))
feed("gelu_around", "around the product", mix=lambda self, v, g: F.gelu(v * g))
feed("sigmoid", "through a sigmoid", mix=lambda self, v, g: v * g.sigmoid())
feed("silu", "through SiLU", mix=lambda self, v, g: v * F.silu(g))
feed("relu", "through ReLU", mix=lambda self, v, g: v * F.relu(g))
feed("added", "the halves are added", mix=lambda self, v, g: v + F.gelu(g))
feed("residual_inside", "the block does that", forward=lambda self, x: x + Feed.forward(self, x))
feed("every_second", "expected", forward=lambda self, x: self.net[2](self.mix(*rearrange(
    self.net[0].proj(x), "b n (d two) -> two b n d", two=2))))
feed("detached", "no gradient reaches", forward=lambda self, x: Feed.forward(self, x.detach()))


@right(FEED)
class InPieces(Feed):
    pass


@right(FEED)
class FromSequences(nn.Module):
    """As diffusers has it: a Sequential whose first part gates."""

    def __init__(self, dim, mult=4):
        super().__init__()

        class GEGLU(nn.Module):
            def __init__(self):
                super().__init__()
                self.proj = nn.Linear(dim, 2 * mult * dim)

            def forward(self, hidden):
                a, b = torch.split(self.proj(hidden), mult * dim, dim=-1)
                return a * nn.functional.gelu(b)
        self.net = nn.Sequential(GEGLU(), nn.Dropout(0.0), nn.Linear(dim * mult, dim))

    def forward(self, hidden):
        return self.net(hidden)


@right(FEED)
class ByErrorFunction(Feed):
    """GELU written out: g times the normal distribution function of g."""

    def forward(self, x):
        proj, end = self.net[0].proj, self.net[2]
        inner = end.in_features
        value = F.linear(x, proj.weight[:inner], proj.bias[:inner])
        gate = torch.einsum("bnd,ed->bne", x, proj.weight[inner:]) + proj.bias[inner:]
        return (value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))) @ end.weight.T + end.bias


# ---- attention.BasicTransformerBlock

BLOCK = "attention.BasicTransformerBlock"


class Block(nn.Module):
    def __init__(self, dim, context_dim, heads, dim_head):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = Cross(dim, None, heads, dim_head)
        self.attn2 = Cross(dim, context_dim, heads, dim_head)
        self.ff = Feed(dim)

    def first(self, x, context):
        return x + self.attn1(self.norm1(x))

    def second(self, x, context):
        return x + self.attn2(self.norm2(x), context)

    def third(self, x, context):
        return x + self.ff(self.norm3(x))

    def forward(self, x, context=None):
        return self.third(self.second(self.first(x, context), context), context)


block = variants(BLOCK, Block)


def article_heads(self):
    """The article's section 5.2: dim_head is left at 64."""
    dim, width = self.attn1.to_q.in_features, self.attn2.to_k.in_features
    self.attn1, self.attn2 = Cross(dim, dim, self.attn1.heads), Cross(dim, width, self.attn1.heads)


def context_first(self):
    self.attn1, self.attn2 = self.attn2, self.attn1


block("articles_heads", "is dim_head handed on", article_heads)
block("text_in_attn1", "not attn1", context_first, first=lambda self, x, c: x + self.attn1(self.norm1(x), c),
      second=lambda self, x, c: x + self.attn2(self.norm2(x)))
block("nothing_added", "x is not added", forward=lambda self, x, c=None: self.ff(self.norm3(self.attn2(self.norm2(
    self.attn1(self.norm1(x))), c))))
block("cross_not_added", "the cross-attention is not added", second=lambda self, x, c: self.attn2(self.norm2(x), c))
block("feed_forward_not_added", "the feed-forward is not added", third=lambda self, x, c: self.ff(self.norm3(x)))
block("no_norms", "the norms are missing", first=lambda self, x, c: x + self.attn1(x),
      second=lambda self, x, c: x + self.attn2(x, c), third=lambda self, x, c: x + self.ff(x))
block("norms_behind", "behind the additions", first=lambda self, x, c: self.norm1(x + self.attn1(x)),
      second=lambda self, x, c: self.norm2(x + self.attn2(x, c)), third=lambda self, x, c: self.norm3(x + self.ff(x)))
block("no_context", "attn2 gets no context", second=lambda self, x, c: x + self.attn2(
    self.norm2(x), None if c is None or c.shape[-1] == x.shape[-1] else c))
block("text_before_picture", "attn1 comes first", forward=lambda self, x, c=None: self.third(self.first(self.second(x, c), c), c))
block("raw_keys", "keys of attn1 are not normalised", first=lambda self, x, c: x + self.attn1(self.norm1(x), x))
block("context_normed", "went through norm2", second=lambda self, x, c: x + self.attn2(
    self.norm2(x), c if c is None or c.shape[-1] != x.shape[-1] else self.norm2(c)))
block("all_from_x", "all three read the same x",
      forward=lambda self, x, c=None: self.first(x, c) + self.second(x, c) + self.third(x, c) - 2 * x)
block("no_feed_forward", "the feed-forward is missing", third=lambda self, x, c: x)
block("adds_in_place", "changed in place", first=lambda self, x, c: x.add_(self.attn1(self.norm1(x))) if not x.requires_grad
      else Block.first(self, x, c))


@right(BLOCK)
class Plainly(Block):
    pass


@right(BLOCK)
class InALoop(Block):
    def forward(self, hidden_states, encoder_hidden_states=None):
        for norm, layer, more in ((self.norm1, self.attn1, ()), (self.norm2, self.attn2, (encoder_hidden_states,)),
                                  (self.norm3, self.ff, ())):
            hidden_states = layer(norm(hidden_states), *more) + hidden_states
        return hidden_states


@right(BLOCK)
class WithTorchsParts(nn.Module):
    """Norms by functions, attention by torch's kernel, the self-attention's keys given by hand as in the article."""

    def __init__(self, dim, context_dim, heads, dim_head):
        super().__init__()
        self.attn1 = ByTorchsKernel(dim, dim, heads=heads, dim_head=dim_head)
        self.attn2 = HeadByHead(dim, context_dim, heads=heads, dim_head=dim_head)
        self.ff = ByErrorFunction(dim)
        for i in (1, 2, 3):
            setattr(self, f"norm{i}", nn.LayerNorm(dim))

    def forward(self, x, context=None):
        def norm(m, v):
            return F.layer_norm(v, m.normalized_shape, m.weight, m.bias, m.eps)
        x = x + self.attn1(norm(self.norm1, x), norm(self.norm1, x))
        y = self.attn2(norm(self.norm2, x), context)
        return (x + y) + self.ff(norm(self.norm3, x + y))


# ---- tokenizer.learn_merges

LEARN = "tokenizer.learn_merges"


def join(pieces, pair):
    merged = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair and not getattr(merged[-1], "made", False):
            merged[-1] = merged[-1] + piece
        else:
            merged.append(piece)
    return merged


def learn_with(count=lambda n: n, best=lambda pairs: min(pairs, key=lambda p: (-pairs[p], p)), once=False, merging=True,
               stop=True, change=join):
    def learn_merges(words, num_merges):
        pieces, merges, pairs = [[list(w), n] for w, n in words.items()], [], None
        for _ in range(num_merges):
            if pairs is None or not once:
                pairs = Counter()
                for symbols, n in pieces:
                    for pair in zip(symbols, symbols[1:], strict=False):
                        pairs[pair] += count(n)
            if not pairs and stop:
                break
            merges.append(best(pairs))
            if once:
                del pairs[merges[-1]]
            if merging:
                pieces = [[change(symbols, merges[-1]), n] for symbols, n in pieces]
        return merges
    return learn_merges


WRONG[LEARN] = [
    ("counted_once", learn_with(once=True), "counted once, at the beginning"),
    ("never_merged", learn_with(merging=False), "the same pair twice"),
    ("rarest", learn_with(best=lambda pairs: min(pairs, key=lambda p: (pairs[p], p))), "rarest pairs"),
    ("turned_round", lambda words, n: learn_with()(words, n)[::-1], "turned round"),
    ("each_word_once", learn_with(count=lambda n: 1), "each word was counted once"),
    ("first_met", learn_with(best=lambda pairs: max(pairs, key=pairs.get)), "met first won"),
    ("last_in_the_alphabet", learn_with(best=lambda pairs: max(pairs, key=lambda p: (pairs[p], p))), "the last in the alphabet"),
    ("never_stops", learn_with(stop=False), "raised ValueError"),
    ("as_strings", lambda words, n: ["".join(pair) for pair in learn_with()(words, n)], "expected pairs of symbols"),
    ("one_too_few", lambda words, n: learn_with()(words, n - 1), "got nothing"),
    ("nothing", lambda words, n: None, "return"),
]


@wrong(LEARN, "merge")
def across_words(words, num_merges):
    line = [symbol for word, n in words.items() for _ in range(n) for symbol in word]
    merges = []
    for _ in range(num_merges):
        pairs = Counter(zip(line, line[1:], strict=False))
        if not pairs:
            break
        merges.append(min(pairs, key=lambda p: (-pairs[p], p)))
        line = join(line, merges[-1])
    return merges


@wrong(LEARN, "was changed")
def eats_the_words(words, num_merges):
    found = learn_with()(words, num_merges)
    words.clear()
    return found


@right(LEARN)
def plainly(words, num_merges):
    return learn_with()(words, num_merges)


@right(LEARN)
def by_a_sorted_list(words, num_merges):
    table, merges = {tuple(w): n for w, n in words.items()}, []
    while len(merges) < num_merges:
        counts = defaultdict(int)
        for symbols, n in table.items():
            for i in range(len(symbols) - 1):
                counts[symbols[i], symbols[i + 1]] += n
        if not counts:
            return merges
        a, b = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[0][0]
        merges.append((a, b))
        renewed = defaultdict(int)
        for symbols, n in table.items():
            out, i = [], 0
            while i < len(symbols):
                step = 2 if symbols[i: i + 2] == (a, b) else 1
                out.append("".join(symbols[i: i + step]))
                i += step
            renewed[tuple(out)] += n
        table = renewed
    return merges


@right(LEARN)
def by_a_heap(words, num_merges):
    pieces, merges = {w: w for w in words}, []
    for _ in range(num_merges):
        counts = Counter()
        for w, symbols in pieces.items():
            counts.update({pair: words[w] * k for pair, k in Counter(zip(symbols, symbols[1:], strict=False)).items()})
        heap = [(-n, pair) for pair, n in counts.items()]
        heapq.heapify(heap)
        if heap:
            merges.append(heap[0][1])
            pieces = {w: tuple(join(symbols, merges[-1])) for w, symbols in pieces.items()}
    return merges


# ---- tokenizer.encode_word

ENCODE = "tokenizer.encode_word"


def encode_with(choose=lambda found, rank: min(found, key=rank.get), change=join, rounds=99):
    def encode_word(pieces, rank):
        pieces = list(pieces)
        for _ in range(rounds):
            found = [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in rank]
            if not found:
                break
            pieces = change(pieces, choose(found, rank))
        return pieces
    return encode_word


def join_one(pieces, pair, turn=1):
    places = [i for i in range(len(pieces) - 1) if tuple(pieces[i: i + 2]) == pair]
    i = places[0 if turn == 1 else -1]
    return [*pieces[:i], "".join(pair), *pieces[i + 2:]]


WRONG[ENCODE] = [
    ("one_round", encode_with(rounds=1), "only one pair was joined"),
    ("no_round", lambda pieces, rank: list(pieces), "nothing was joined"),
    ("left_to_right", encode_with(choose=lambda found, rank: found[0], change=join_one), "from left to right"),
    ("highest_rank", encode_with(choose=lambda found, rank: max(found, key=rank.get)), "highest rank"),
    ("joined_string", lambda pieces, rank: " ".join(encode_with()(pieces, rank)), "expected a list of symbols"),
    ("nothing", lambda pieces, rank: encode_with()(pieces, rank) and None, "return"),
]


@wrong(ENCODE, "only the first occurrence")
def first_occurrence(pieces, rank):
    pieces = list(pieces)
    for pair in sorted(rank, key=rank.get):
        if pair in zip(pieces, pieces[1:], strict=False):
            pieces = join_one(pieces, pair)
    return pieces


@wrong(ENCODE, "joined across")
def pairs_at_any_distance(pieces, rank):
    pieces = list(pieces)
    for (a, b) in sorted(rank, key=rank.get):
        while (a, b) in zip(pieces, pieces[1:], strict=False) or (a in pieces and b in pieces and a != b):
            i = pieces.index(a)
            pieces[i] = a + b
            pieces.remove(b)
    return pieces


@wrong(ENCODE, "raised")
def unknown_pairs_break_it(pieces, rank):
    pieces = list(pieces)
    while len(pieces) > 1:
        best = min(zip(pieces, pieces[1:], strict=False), key=lambda pair: rank[pair])
        pieces = join(pieces, best)
    return pieces


@wrong(ENCODE, "was changed")
def joins_in_place(pieces, rank):
    found = encode_with()(pieces, rank)
    if isinstance(pieces, list):
        pieces[:] = found
    return found


@right(ENCODE)
def round_by_round(pieces, rank):
    return encode_with()(pieces, rank)


@right(ENCODE)
def one_by_one(pieces, rank):
    """The lowest pair, its leftmost occurrence, again and again: the next occurrence is the lowest pair once more."""
    return encode_with(change=join_one)(pieces, rank)


@right(ENCODE)
def in_the_order_learned(pieces, rank):
    for pair, _ in sorted(rank.items(), key=lambda item: item[1]):
        if pair[0] in pieces:
            pieces = join(pieces, pair)
    return list(pieces)


# ---- text.encode_text

TEXT = "text.encode_text"


def text_with(places=True, causal=True, end=lambda net, x: net.final_layer_norm(x), residual=(1, 1), heads=None,
              norms=(True, True), count=None, mlp=True, scale=lambda d: d**-0.5, split="b n (h d) -> b h n d",
              rows=lambda p, n: p[:n], start=None):
    def encode_text(net, ids):
        x = net.embeddings.token_embedding(ids)
        if places:
            x = x + rows(net.embeddings.position_embedding.weight, ids.shape[1])
        x = start(x) if start else x
        for layer in list(net.encoder["layers"])[:count]:
            own, h = layer.self_attn, layer.layer_norm1(x) if norms[0] else x
            q, k, v = (rearrange(f(h), split, h=heads or own.heads) for f in (own.q_proj, own.k_proj, own.v_proj))
            scores = q @ k.mT * scale(q.shape[-1])
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
            back = "b h n d -> b n (h d)" if "(h d)" in split else "b h n d -> b n (d h)"
            x = residual[0] * x + own.out_proj(rearrange(scores.softmax(-1) @ v, back))
            if mlp:
                x = residual[1] * x + layer.mlp(layer.layer_norm2(x) if norms[1] else x)
        return end(net, x)
    return encode_text


WRONG[TEXT] = [
    ("not_causal", text_with(causal=False), "must be causal"),
    ("no_places", text_with(places=False), "places are not added"),
    ("all_places", text_with(rows=lambda p, n: p), "first N rows"),
    ("last_places", text_with(rows=lambda p, n: p[-n:]), "expected"),
    ("no_last_norm", text_with(end=lambda net, x: x), "the last norm is missing"),
    ("attention_not_added", text_with(residual=(0, 1)), "the attention is not added"),
    ("mlp_not_added", text_with(residual=(1, 0)), "the MLP is not added"),
    ("no_mlp", text_with(mlp=False), "the MLP is left out"),
    ("no_norms", text_with(norms=(False, False)), "neither of the norms"),
    ("no_norm1", text_with(norms=(False, True)), "layer_norm1 is not used"),
    ("one_head", text_with(heads=1), "only one head"),
    ("interleaved", text_with(split="b n (d h) -> b h n d"), "interleaved"),
    ("no_scale", text_with(scale=lambda d: 1.0), "scale of the scores is missing"),
    ("first_layer", text_with(count=1), "only the first layer"),
    ("detached", text_with(start=lambda x: x.detach()), "no gradient reaches embeddings"),
    ("one_vector", text_with(end=lambda net, x: net.final_layer_norm(x)[:, -1]), "expected shape"),
]


@right(TEXT)
def layer_by_layer(net, ids):
    return text_with()(net, ids)


@right(TEXT)
def by_torchs_kernel_(net, ids):
    B, N = ids.shape
    x = net.embeddings.token_embedding(ids) + net.embeddings.position_embedding(torch.arange(N))
    for layer in net.encoder.layers if hasattr(net.encoder, "layers") else net.encoder["layers"]:
        a, h = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (f(h).reshape(B, N, a.heads, -1).transpose(1, 2) for f in (a.q_proj, a.k_proj, a.v_proj))
        x = x + a.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, N, -1))
        x = x + layer.mlp(layer.layer_norm2(x))
    return net.final_layer_norm(x)


@right(TEXT)
def word_by_word(net, ids):
    """Token i reads a text that ends with it: nothing needs a mask. Slow, and the same."""
    def last(part):
        x = net.embeddings.token_embedding(part) + net.embeddings.position_embedding.weight[: part.shape[1]]
        for layer in net.encoder["layers"]:
            a, h = layer.self_attn, layer.layer_norm1(x)
            d, parts = h.shape[-1] // a.heads, []
            for i in range(a.heads):
                q, k, v = (f(h)[..., i * d: (i + 1) * d] for f in (a.q_proj, a.k_proj, a.v_proj))
                scores = torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(d)
                hidden = torch.arange(x.shape[1])[None] > torch.arange(x.shape[1])[:, None]
                parts.append(torch.where(hidden, -torch.inf, scores).softmax(-1) @ v)
            x = x + a.out_proj(torch.cat(parts, -1))
            x = x + layer.mlp(layer.layer_norm2(x))
        return net.final_layer_norm(x)[:, -1]
    return torch.stack([last(ids[:, : i + 1]) for i in range(ids.shape[1])], dim=1)


# ---- text.pooled

POOLED = "text.pooled"


def pool_with(place=lambda ids, end: (ids == end).int().argmax(1), project=lambda h, w: h @ w.T, prepare=lambda h: h,
              unit=lambda v: v / v.norm(dim=-1, keepdim=True)):
    def pooled(hidden, ids, end_id, projection):
        rows = torch.arange(len(ids))
        return unit(project(prepare(hidden)[rows, place(ids, end_id)], projection))
    return pooled


WRONG[POOLED] = [
    ("not_normalised", pool_with(unit=lambda v: v), "its length is missing"),
    ("squared_length", pool_with(unit=lambda v: v / v.square().sum(-1, keepdim=True)), "squared length"),
    ("start", pool_with(place=lambda ids, end: torch.zeros(len(ids), dtype=torch.long)), "the first token, START"),
    ("last_place", pool_with(place=lambda ids, end: torch.full((len(ids),), ids.shape[1] - 1)), "the last place"),
    ("before_the_end", pool_with(place=lambda ids, end: (ids == end).int().argmax(1) - 1), "the token before END"),
    ("last_end", pool_with(place=lambda ids, end: ids.shape[1] - 1 - (ids == end).flip(1).int().argmax(1)), "the last place"),
    ("largest_id", pool_with(place=lambda ids, end: ids.argmax(1)), "the largest id"),
    ("place_of_the_first_text", pool_with(place=lambda ids, end: (ids[:1] == end).int().argmax(1).expand(len(ids))),
     "at the place of the first one's END"),
    ("not_transposed", lambda h, ids, end, w: pool_with(project=lambda a, p: a @ p)(h, ids, end, w), "(P,D)"),
    ("mean", lambda h, ids, end, w: F.normalize((h @ w.T).mean(1), dim=-1), "mean over all places"),
    ("one_length_for_all", pool_with(unit=lambda v: v / v.norm()), "expected"),
    ("detached", pool_with(prepare=lambda h: h.detach()), "no gradient reaches the hidden"),
]


@wrong(POOLED, "behind it")
def length_first(hidden, ids, end_id, projection):
    return F.normalize(pool_with(project=lambda h, w: h)(hidden, ids, end_id, projection), dim=-1) @ projection.T


@right(POOLED)
def by_normalize(hidden, ids, end_id, projection):
    at_the_end = pool_with(project=lambda h, w: h, unit=lambda v: v)(hidden, ids, end_id, None)
    return F.normalize(F.linear(at_the_end, projection), dim=-1)


@right(POOLED)
def text_by_text(hidden, ids, end_id, projection):
    rows = []
    for h, row in zip(hidden, ids.tolist(), strict=True):
        v = projection @ h[row.index(end_id)]
        rows.append(v / v.square().sum().sqrt())
    return torch.stack(rows)


@right(POOLED)
def by_a_mask(hidden, ids, end_id, projection):
    is_end = ids == end_id
    first = is_end & (is_end.cumsum(1) == 1)
    v = torch.einsum("bn,bnd,pd->bp", first.to(hidden), hidden, projection)
    return v * v.square().sum(-1, keepdim=True).rsqrt()
