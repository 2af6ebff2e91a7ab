"""The course's own answers, out of reach of `parts.swapped`, which may be in force."""

from collections import Counter

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from course.tokenizer import merge_pair


def attention_weights(q: Tensor, k: Tensor, causal: bool = False) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5                              # (B,h,N,M)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1)


class CrossAttention(nn.Module):
    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = 8, dim_head: int = 64):
        super().__init__()
        inner, context_dim = heads * dim_head, query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim), nn.Identity()])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (rearrange(a, "B N (h d) -> B h N d", h=self.heads)
                   for a in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out[0](rearrange(attention_weights(q, k) @ v, "B h N d -> B N (h d)"))


class GEGLU(nn.Module):
    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int, mult: int = 4):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, mult * dim), nn.Identity(), nn.Linear(mult * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nn.Module):
    def __init__(self, dim: int, context_dim: int | None, heads: int, dim_head: int):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(dim), CrossAttention(dim, None, heads, dim_head)
        self.norm2, self.attn2 = nn.LayerNorm(dim), CrossAttention(dim, context_dim, heads, dim_head)
        self.norm3, self.ff = nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


def learn_merges(words: dict[tuple[str, ...], int], num_merges: int) -> list[tuple[str, str]]:
    pieces, merges = {word: list(word) for word in words}, []
    for _ in range(num_merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(pieces[word], pieces[word][1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        merges.append(best := min(pairs, key=lambda pair: (-pairs[pair], pair)))
        pieces = {word: merge_pair(own, best) for word, own in pieces.items()}
    return merges


def encode_word(pieces: list[str], rank: dict[tuple[str, str], int]) -> list[str]:
    pieces = list(pieces)
    while found := [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in rank]:
        pieces = merge_pair(pieces, min(found, key=rank.get))
    return pieces


def encode_text(net: nn.Module, ids: Tensor) -> Tensor:
    x = net.embeddings.token_embedding(ids) + net.embeddings.position_embedding.weight[: ids.shape[1]]
    for layer in net.encoder["layers"]:
        h, own = layer.layer_norm1(x), layer.self_attn
        q, k, v = (rearrange(proj(h), "B N (h d) -> B h N d", h=own.heads) for proj in (own.q_proj, own.k_proj, own.v_proj))
        x = x + own.out_proj(rearrange(attention_weights(q, k, causal=True) @ v, "B h N d -> B N (h d)"))
        x = x + layer.mlp(layer.layer_norm2(x))
    return net.final_layer_norm(x)


def pooled(hidden: Tensor, ids: Tensor, end_id: int, projection: Tensor) -> Tensor:
    ends = (ids == end_id).int().argmax(dim=1)                                          # (B,): the first of them
    vector = hidden[torch.arange(len(ids), device=ids.device), ends] @ projection.T     # (B,P)
    return vector / vector.norm(dim=-1, keepdim=True)


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn anew, norms near 1, so that nothing is hidden by a zero or by an even start."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 1.5 * noise / max(p[0].numel(), 4) ** 0.5)
    return module
