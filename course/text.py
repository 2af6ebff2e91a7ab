"""The text encoder: integers -> the context that cross-attention reads. A causal transformer (Radford et al. 2021).

Stable Diffusion 1.x freezes the text half of CLIP ViT-L/14; the LDM paper, and this course's small models, train one
jointly with the U-Net. Module names are those of the released files (`transformers` naming).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course import attention
from course.errors import ShapeError, UsageError


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU; CLIP-L was trained with it, so it has to stay."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder; the defaults are CLIP ViT-L/14's (123,060,480 parameters)."""

    vocab_size: int = 49_408
    length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: str = "quick_gelu"
    skip: int = 0                             # read the stream so many layers before the end, without the last norm: SDXL 1
    projection: int | None = None             # width of the pooled vector; None: there is none
    eos_id: int = 49_407                      # the token whose place the pooled vector is read from

    def __post_init__(self):
        if self.width % self.heads:
            raise UsageError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        if not 0 <= self.skip < self.layers:
            raise UsageError(f"skip must lie in 0 ... layers - 1, got {self.skip} of {self.layers}")
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"unknown activation {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")


class TextEncoder(nn.Module):
    """forward(ids (B,N) int64) -> context (B,N,width), after the final LayerNorm. No padding mask, as in CLIP.

    With `skip` layers left out the context is the stream as it is there, not normalised: SDXL reads the last but one.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(config.width, config.projection, bias=False) if config.projection else None

    def forward(self, ids: Tensor) -> Tensor:
        return self.text_model(self.check(ids), self.config.skip)                       # (B,N,D)

    def pooled(self, ids: Tensor) -> Tensor:
        """One vector a text, (B,projection): the end token after all layers, which has read everything before it."""
        if self.text_projection is None:
            raise UsageError("this text encoder has no projection, so no pooled vector: see TextConfig.projection")
        last = self.text_model(self.check(ids), 0)                                      # (B,N,D)
        ends = (ids == self.config.eos_id).int().argmax(dim=1)                          # (B,): the first of them
        return self.text_projection(last[torch.arange(len(ids)), ends])                 # (B,P)

    def check(self, ids: Tensor) -> Tensor:
        c = self.config
        if ids.ndim != 2 or ids.shape[1] > c.length or ids.dtype != torch.long:
            raise ShapeError(f"expected int64 token ids (B,N), N at most {c.length}, got {ids.dtype} {tuple(ids.shape)}")
        return ids


class TextModel(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([Layer(config) for _ in range(config.layers)])})
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor, skip: int = 0) -> Tensor:
        x = self.embeddings(ids)                                                        # (B,N,D)
        layers = self.encoder["layers"]
        for layer in layers[: len(layers) - skip]:
            x = layer(x)                                                                # (B,N,D)
        return x if skip else self.final_layer_norm(x)


class Embeddings(nn.Module):
    """What the token is plus where it stands; (B,N) -> (B,N,D)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.length, config.width)
        # CLIP starts both near 0.02, which suits 400 million captions. A short run needs words that differ from the
        # first step on (std 1, torch's own), and by more than their places do.
        nn.init.normal_(self.position_embedding.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class Layer(nn.Module):
    """Self-attention, then two layers on each token, each after a LayerNorm and added to the stream; (B,N,D) -> same."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.self_attn = CausalSelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CausalSelfAttention(nn.Module):
    """Each token attends to itself and to those before it: CLIP's text half was built like a language model."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))                 # (B,h,N,d), three times
        out = attention.attend(q, k, v, causal=True)                                    # (B,h,N,d)
        return self.out_proj(out.transpose(1, 2).flatten(2))                            # (B,N,D)


class MLP(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.width, 4 * config.width)
        self.fc2 = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))                                   # (B,N,D)
