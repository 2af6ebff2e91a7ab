"""How the picture reads the text: attention, and the transformer block that the U-Net is threaded with.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V          Rombach et al. 2022, section 3.3

Q comes from the picture, K and V from the text (cross-attention) or from the picture itself (self-attention).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from course import layers
from course.errors import ShapeError


def attend(q: Tensor, k: Tensor, v: Tensor, fused: bool = True, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v; (B,h,N,d), (B,h,M,d), (B,h,M,d) -> (B,h,N,d).

    `fused=False` writes it out; `fused=True` is PyTorch's kernel for the same, which never stores the (N,M) weights.
    """
    if fused:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5                              # (B,h,N,M)
    if causal:                                                                          # token i sees tokens 0 ... i
        future = scores.new_ones(scores.shape[-2:]).triu(1).bool()                      # (N,M)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1) @ v                                                   # (B,h,N,d)


class CrossAttention(nn.Module):
    """Multi-head attention of x to `context`, or to itself where there is none (the article's section 4.1).

    Args:
        query_dim: width of x.  context_dim: width of the context; None means self-attention.
        heads, dim_head: h heads of d numbers each; the inner width is heads * dim_head.
        fused: use PyTorch's kernel (see `attend`).

    forward(x (B,N,query_dim), context (B,M,context_dim) or None) -> (B,N,query_dim)
    """

    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = 8, dim_head: int = 64,
                 fused: bool = True):
        super().__init__()
        inner_dim = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads, self.fused = heads, fused
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        # a list of two in the released files (the second was dropout), hence the name to_out.0
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, query_dim), nn.Identity()])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        if context.shape[-1] != self.to_k.in_features:
            raise ShapeError(f"expected a context of width {self.to_k.in_features}, got {tuple(context.shape)}")
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)                  # (B,N,hd), (B,M,hd), (B,M,hd)
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (q, k, v))        # (B,h,N,d), (B,h,M,d) twice
        out = attend(q, k, v, fused=self.fused)                                         # (B,h,N,d)
        return self.to_out[0](out.transpose(1, 2).flatten(2))                           # (B,N,query_dim)


class GEGLU(nn.Module):
    """A gated linear unit: half of the features, value, times GELU of the other half, gate (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)                                     # (B,N,dim_out) twice
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two layers on each token by itself, four times as wide in the middle; (B,N,D) -> (B,N,D)."""

    def __init__(self, dim: int, mult: int = 4):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, mult * dim), nn.Identity(), nn.Linear(mult * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))                                              # (B,N,D)


class BasicTransformerBlock(nn.Module):
    """Look at the picture, look at the text, think: each after a LayerNorm and added to the stream (section 5.2).

    forward(x (B,N,dim), context (B,M,context_dim)) -> (B,N,dim)
    """

    def __init__(self, dim: int, context_dim: int | None, heads: int, dim_head: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = CrossAttention(dim, None, heads, dim_head)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))                                               # (B,N,D)


class SpatialTransformer(nn.Module):
    """Transformer blocks over a feature map, each of its H*W positions a token (missing from the article).

    Args:
        channels: C of the feature map.  depth: number of blocks.
        linear_proj: SDXL and SD 2 project by a linear layer on tokens, SD 1.5 by the same thing as a 1x1 convolution.

    forward(x (B,C,H,W), context (B,M,context_dim)) -> (B,C,H,W)
    """

    def __init__(self, channels: int, context_dim: int | None, heads: int, dim_head: int, depth: int = 1,
                 linear_proj: bool = False):
        super().__init__()
        inner_dim = heads * dim_head
        self.linear_proj = linear_proj
        self.norm = layers.group_norm(channels, 1e-6)
        self.proj_in = nn.Linear(channels, inner_dim) if linear_proj else nn.Conv2d(channels, inner_dim, 1)
        self.transformer_blocks = nn.ModuleList(
            [BasicTransformerBlock(inner_dim, context_dim, heads, dim_head) for _ in range(depth)])
        self.proj_out = nn.Linear(inner_dim, channels) if linear_proj else nn.Conv2d(inner_dim, channels, 1)
        # The released code starts proj_out at zero, so that the block does nothing at first. Here it starts at random:
        # behind a zero the text learns late, and short runs end before it is heeded (trials in CONTRIBUTING.md).

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.norm(x)                                                           # (B,C,H,W)
        if self.linear_proj:
            tokens = self.proj_in(tokens.flatten(2).transpose(1, 2))                    # (B,HW,D)
        else:
            tokens = self.proj_in(tokens).flatten(2).transpose(1, 2)                    # (B,HW,D)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)                                             # (B,HW,D)
        if self.linear_proj:
            return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])  # (B,C,H,W)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))      # (B,C,H,W)
