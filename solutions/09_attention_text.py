# %% [markdown]
# # 09 · Attention and text
#
# Chapter 08 told its model what to draw by two words from a table. Such a table cannot tell "a red ring left of a blue
# square" from "a blue ring left of a red square": the words are the same. This chapter builds what can: tokens, a text
# encoder that reads in order, and attention, by which every place of a picture looks up what the text says about it.
#
# **You will be able to**
#
# - write attention with its mask, and say what the root of $d$ is for;
# - write the cross-attention, the gated layers and the transformer block of Stable Diffusion, by its released names;
# - learn a byte-pair encoding, and take a word apart that nobody has seen;
# - write the pass through a causal text transformer, and pool a sentence into one vector;
# - see where a picture looks at each word, and measure how far that can be trusted.
#
# **Time** about 3 hours, of which 120 minutes are exercises. **You need** chapter 06 (the U-Net) and 08 (latents). No
# GPU, and nothing is trained. **In the library** this chapter is `course/attention.py`, `course/tokenizer.py`,
# `course/text.py` and `course/heatmaps.py`; in the article, sections 4.1, 4.2 and 5.2.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
from collections import Counter

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from course import heatmaps, parts, samplers, text, tokenizer
from course.classroom import attention_hover, begin, check, figure_style, use
from course.data import Scenes, captions, oracle
from course.pipeline import SHIPPED, StableDiffusion
from course.training import saved

session = begin(needs="0.1", seed=9)
STEPS = {"quick": 2, "cpu": 20, "gpu": 50}[session.profile]     # of the sampler
PROMPTS = {"quick": 2, "cpu": 48, "gpu": 256}[session.profile]  # pictures of an experiment
TEXTS = {"quick": 100, "cpu": 2000, "gpu": 2000}[session.profile]  # captions to learn merges from
SENTENCES = {"quick": 20, "cpu": 400, "gpu": 400}[session.profile]  # whose vectors are compared
LOOKS = {"quick": 2, "cpu": 32, "gpu": 128}[session.profile]    # pictures whose attention is measured

# %% tags=["setup"]
BLUE, ORANGE, GREEN, RED, GREY = figure_style()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def show_maps(picture, words, maps):
    """A PIL picture, and (K,H,W) heat maps over it in grey, each stretched from its least to its largest."""
    figure, axes = plt.subplots(1, len(words) + 1, figsize=(8, 8 / (len(words) + 1) + 0.3))
    axes[0].imshow(picture)
    for axis, word, heat in zip(axes[1:], words, maps, strict=True):
        share = (heat - heat.min()) / (heat.max() - heat.min())
        axis.imshow(picture.convert("L"), cmap="gray", vmin=-300, vmax=255)
        axis.imshow(share, cmap="YlOrRd", alpha=(0.9 * share).numpy(), vmin=0, vmax=1)
        axis.set_title(f"{word}, {float(heat.max()):.0%}", fontsize=10)
    for axis in axes:
        axis.axis("off")
    plt.show()


# %% [markdown]
# ## Where a picture looks
#
# The course's model `scenes64` draws a prompt of 14 words. While it draws, every place of the latent spends one unit of
# attention on the tokens of the text, in each of seven layers and at each step. Averaged over all of them, and laid over
# the picture (point at a marked word, or press Tab; the number is its largest share anywhere):

# %%
shipped = StableDiffusion.load("scenes64").to(session.device)
PROMPT = "a small red ring left of a large blue square on a gray background"
WORDS = ["red", "ring", "left", "blue", "square", "background"]
picture, maps = shipped.attention_maps(PROMPT, WORDS, steps=STEPS, seed=9)
attention_hover(picture, maps, WORDS, PROMPT)

# %% [markdown]
# Nobody told the model where the ring would be, nor which pixels are "ring". Every place that became ring looked there.
# Below you write all of it; at the end the same maps come out of your own code.
#
# ## 1 · A lookup that is soft
#
# A dictionary returns the value whose key equals the query. Attention returns a *mixture* of all values, the more of one
# the better its key fits the query. Each query $q$, each key $k$ is a vector of $d$ numbers, and fitting is their dot
# product:
#
# $$A = \operatorname*{softmax}_{\text{keys}}\!\left(\frac{Q K^\top}{\sqrt d}\right) \qquad \text{result} = A\,V$$
#
# | symbol | shape | |
# |---|---|---|
# | $Q$ | (B,h,N,d) | what N places ask, in h heads |
# | $K$, $V$ | (B,h,M,d) | how M tokens can be found, and what they then hand over |
# | $A$ | (B,h,N,M) | who listens to whom: each row sums to 1 |
#
# In *cross*-attention the queries come from the picture, keys and values from the text; in *self*-attention all three
# come from one sequence. In a text that is read from left to right, token $i$ must not see what comes later: its scores
# there are set to $-\infty$ before the softmax, so that their weights are exactly 0 (*causal* attention).

# %% [markdown] exercise="attention.weights" role="prompt"
# ### Exercise 1 · Who listens to whom
#
# `attention_weights(q, k, causal)` returns $A$.
#
# - `q` is (B,h,N,d), `k` is (B,h,M,d), the result (B,h,N,M); the scale is $1/\sqrt d$ with the $d$ of `q`.
# - With `causal=True` (then $N = M$) token $i$ sees tokens $0 \ldots i$, itself included.

# %% exercise="attention.weights" role="solution"
def attention_weights(q, k, causal=False):
    """softmax(q k^T / sqrt(d)) over the keys; (B,h,N,d), (B,h,M,d) -> (B,h,N,M)."""
    ### BEGIN SOLUTION
    scores = q @ k.transpose(-1, -2)                            # (B,h,N,M)
    scores = scores * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1)
    ### END SOLUTION


# %% exercise="attention.weights" role="check"
check("attention.weights", attention_weights)

# %% [markdown] exercise="attention.weights" role="hint"
# All dot products at once are a matrix product: `q @ k.transpose(-1, -2)`.
#
# ---
#
# `.softmax(dim=-1)` runs over the keys. The mask must come before it: a 0 put there afterwards leaves a row that sums to
# less than 1.
#
# ---
#
# `torch.ones(N, N).triu(1).bool()` is True above the diagonal; `scores.masked_fill(future, float("-inf"))`.

# %%
attention_weights = use("attention.weights", attention_weights)
dims = [2, 8, 32, 128, 512]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.7), width_ratios=[3, 2])
for label, factor, color, mark in (("divided by root d", 1.0, BLUE, "o"), ("not divided", None, RED, "s")):
    largest = []
    for d in dims:
        q, k = normal(1, 1, 500, d, seed=1), normal(1, 1, 16, d, seed=2)
        weights = attention_weights(q * (factor or d**0.5), k)  # (1,1,500,16)
        largest.append(float(weights.amax(-1).mean()))
    left.plot(dims, largest, color=color, marker=mark, label=label)
    print(f"{label:18s} largest of 16 weights, d = {dims}:", *[f"{w:.2f}" for w in largest])
left.axhline(1 / 16, color=GREY, ls=":")
left.set(xscale="log", xticks=dims, xticklabels=dims, xlabel="d", ylim=(0, 1), title="largest of 16 weights")
left.minorticks_off()
left.legend()
q, k = normal(1, 1, 10, 8, seed=3), normal(1, 1, 10, 8, seed=4)
image = right.imshow(attention_weights(q, k, causal=True)[0, 0], cmap="Blues", vmin=0, vmax=1)
right.set(title="causal weights", xlabel="key", ylabel="query", xticks=range(0, 10, 3), yticks=range(0, 10, 3))
right.grid(False)
figure.colorbar(image, ax=right)
plt.show()

# %% [markdown]
# A dot product of $d$ random pairs has the standard deviation $\sqrt d$. Undivided, the softmax of a wide head gives nearly
# everything to one key: attention is a hard choice before anything was learned, and a hard choice has almost no gradient.
# Divided, the weights do not depend on $d$. On the right the mask: the first token has only itself to listen to.
#
# The result is then $A V$. It becomes a part of your pipeline:

# %% part="attention.attend" is="attend"
def attend(q, k, v, fused=True, causal=False):
    """Your weights times the values; `fused` would choose torch's kernel for the same."""
    return attention_weights(q, k, causal) @ v                  # (B,h,N,d)


# %% [markdown]
# ## 2 · From picture and text to queries, keys, values
#
# Three learned matrices make $Q$, $K$ and $V$ out of what the picture and the text hold. A softmax can point at one thing
# at a time, so the width is cut into $h$ *heads* of $d$ numbers each, which point independently; a last layer mixes what
# they found.
#
# | | shape | name |
# |---|---|---|
# | picture, text | (B,N,query_dim), (B,M,context_dim) | `x`, `context` |
# | $W_Q$, $W_K$, $W_V$, no bias | → (B,N,h·d), (B,M,h·d), (B,M,h·d) | `to_q`, `to_k`, `to_v` |
# | split into heads | → (B,h,·,d), head $i$ takes numbers $i\,d \ldots (i+1)\,d - 1$ | `"B N (h d) -> B h N d"` |
# | $A V$, joined, mixed, with bias | → (B,h,N,d) → (B,N,h·d) → (B,N,query_dim) | `to_out.0` |

# %% [markdown] exercise="attention.CrossAttention" role="prompt"
# ### Exercise 2 · CrossAttention
#
# `CrossAttention(query_dim, context_dim=None, heads=8, dim_head=64)` with `forward(x, context=None)`.
#
# - Attributes as in the table, so that released weights load. `to_out` is a *list* whose first entry is the layer:
#   `nn.ModuleList([nn.Linear(...), nn.Identity()])`; the second was a dropout.
# - `context_dim=None` means `query_dim`; without a `context`, `x` attends to itself.
# - Your `attention_weights` may be used. No residual here: the block adds.

# %% exercise="attention.CrossAttention" role="solution"
class CrossAttention(nn.Module):
    """(B,N,query_dim), (B,M,context_dim) -> (B,N,query_dim)"""

    def __init__(self, query_dim, context_dim=None, heads=8, dim_head=64):
        super().__init__()
        ### BEGIN SOLUTION
        inner_dim = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, query_dim), nn.Identity()])
        ### END SOLUTION

    def forward(self, x, context=None):
        ### BEGIN SOLUTION
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (rearrange(a, "B N (h d) -> B h N d", h=self.heads) for a in (q, k, v))
        out = attention_weights(q, k) @ v                       # (B,h,N,d)
        return self.to_out[0](rearrange(out, "B h N d -> B N (h d)"))
        ### END SOLUTION


# %% exercise="attention.CrossAttention" role="check"
check("attention.CrossAttention", CrossAttention)

# %% [markdown] exercise="attention.CrossAttention" role="hint"
# Only `to_q` reads `x`. Keys and values read the context, which may have another width.
#
# ---
#
# `rearrange(a, "B N (h d) -> B h N d", h=self.heads)` splits, and `"B h N d -> B N (h d)"` joins. A `reshape` straight to
# (B,h,N,d) mixes tokens with heads.
#
# ---
#
# `self.to_out[0](rearrange(attention_weights(q, k) @ v, "B h N d -> B N (h d)"))`

# %%
CrossAttention = use("attention.CrossAttention", CrossAttention)
theirs = shipped.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
width, heads = theirs.to_q.in_features, theirs.heads
mine = CrossAttention(width, theirs.to_k.in_features, heads, theirs.to_q.out_features // heads)
mine.load_state_dict(theirs.state_dict())
places = normal(1, 64, width, seed=5)                           # (1,64,96): an 8 x 8 latent
with torch.no_grad():
    said = shipped.encode_text([PROMPT])["context"].cpu()       # (1,32,128)
    shuffled = said[:, torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    own, other_order = mine(places, said), mine(places, shuffled)
    print(f"a trained layer in your class: largest difference {(own - theirs(places, said)).abs().max():.0e}")
    print(f"the same words in another order: largest difference {(own - other_order).abs().max():.0e}")

# %% [markdown]
# The last line is a warning. A weighted sum does not know the order of what it sums: cross-attention reads a *set*. If
# "left of" is to mean anything, order must be in the vectors themselves before they come here. Section 6 puts it there.
#
# > **The article says** (section 4.1) nearly this class, **but** its `to_out` is a bare `Linear`, which released files
# > (`to_out.0.weight`) do not fit, and `context` is not optional. Its block (section 5.2) calls `CrossAttention(dim,
# > context_dim, num_heads)` and leaves `dim_head` at 64, whatever `dim` is:

# %%
print(" width   Stable Diffusion 1.5: 8 heads of   the article: 8 heads of 64   cross-attention, parameters")
for dim in (320, 640, 1280):
    with torch.device("meta"):
        both = [CrossAttention(dim, 768, 8, dim_head) for dim_head in (dim // 8, 64)]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in both]
    print(f"{dim:6d} {dim // 8:34d} {'= 512 in all':>28s}   {sizes[0]:11,d} against {sizes[1]:9,d}")

# %% [markdown]
# None of the article's fits the released weights: at 320 its heads are too wide, at 1280 too narrow.
#
# ## 3 · Think
#
# What attention brought has to be worked on, place by place. Stable Diffusion does it by two layers with a *gate* between
# them (GEGLU, Shazeer 2020): one matrix makes twice $4D$ numbers, half of them values, half of them gates that let
# values pass:
#
# $$\text{value}, \text{gate} = W_1 x + b_1 \qquad
# \text{FF}(x) = W_2\,(\text{value} \odot \operatorname{GELU}(\text{gate})) + b_2$$
#
# with $\operatorname{GELU}(g) = g\,\Phi(g)$, a ReLU with a soft corner. Shapes: (B,N,D) → (B,N,8D) → twice (B,N,4D) →
# (B,N,4D) → (B,N,D). The article calls a `FeedForward` that it does not define.

# %% [markdown] exercise="attention.FeedForward" role="prompt"
# ### Exercise 3 · The gated layers
#
# `FeedForward(dim, mult=4)`: (B,N,dim) → (B,N,dim), with a `GEGLU(dim_in, dim_out)` in it.
#
# - `FeedForward.net` is a list of three: a `GEGLU`, an `nn.Identity()` (it was a dropout), the second `nn.Linear`.
# - `GEGLU.proj` is one `nn.Linear` for both halves: value first, gate second. GELU is `F.gelu`.

# %% exercise="attention.FeedForward" role="solution"
class FeedForward(nn.Module):
    """Two layers on each token, `mult` times as wide in the middle; (B,N,dim) -> (B,N,dim)."""

    def __init__(self, dim, mult=4):
        super().__init__()
        ### BEGIN SOLUTION
        inner_dim = mult * dim
        self.net = nn.ModuleList([
            GEGLU(dim, inner_dim),
            nn.Identity(),
            nn.Linear(inner_dim, dim),
        ])
        ### END SOLUTION

    def forward(self, x):
        ### BEGIN SOLUTION
        return self.net[2](self.net[0](x))                      # (B,N,dim)
        ### END SOLUTION


class GEGLU(nn.Module):
    """value * GELU(gate), both from one layer; (B,N,dim_in) -> (B,N,dim_out)."""

    def __init__(self, dim_in, dim_out):
        super().__init__()
        ### BEGIN SOLUTION
        self.proj = nn.Linear(dim_in, 2 * dim_out)
        ### END SOLUTION

    def forward(self, x):
        ### BEGIN SOLUTION
        value, gate = self.proj(x).chunk(2, dim=-1)             # (B,N,dim_out) twice
        return value * F.gelu(gate)
        ### END SOLUTION


# %% exercise="attention.FeedForward" role="check"
check("attention.FeedForward", FeedForward)

# %% [markdown] exercise="attention.FeedForward" role="hint"
# The first layer is twice as wide as the middle: `nn.Linear(dim_in, 2 * dim_out)`.
#
# ---
#
# `.chunk(2, dim=-1)` cuts the last axis into two halves, the value first.
#
# ---
#
# `return value * F.gelu(gate)`, and in `FeedForward`: `self.net[2](self.net[0](x))`.

# %%
FeedForward = use("attention.FeedForward", FeedForward)
layers = FeedForward(320), CrossAttention(320, 768, 8, 40)
sizes = {type(m).__name__: sum(p.numel() for p in m.parameters()) for m in layers}
print("parameters at width 320:", ", ".join(f"{name} {count:,d}" for name, count in sizes.items()))

# %% [markdown]
# ## 4 · The block
#
# Look at the picture, look at the text, think. Each of the three reads the stream through a LayerNorm and is *added* to
# it, as in the ResBlocks of chapter 06:
#
# $$x \leftarrow x + \text{attn}_1(\text{norm}_1(x)) \qquad x \leftarrow x + \text{attn}_2(\text{norm}_2(x), \text{context})
# \qquad x \leftarrow x + \text{FF}(\text{norm}_3(x))$$

# %% [markdown] exercise="attention.BasicTransformerBlock" role="prompt"
# ### Exercise 4 · BasicTransformerBlock
#
# `BasicTransformerBlock(dim, context_dim, heads, dim_head)` with `forward(x, context=None)`: (B,N,dim) → (B,N,dim).
#
# - Attributes `norm1`, `attn1`, `norm2`, `attn2`, `norm3`, `ff`: three `nn.LayerNorm(dim)`, two `CrossAttention`, one
#   `FeedForward`. Hand `dim_head` on.
# - `attn1` looks at the picture only; `attn2` gets the context, which is *not* normalised here.

# %% exercise="attention.BasicTransformerBlock" role="solution"
class BasicTransformerBlock(nn.Module):
    """(B,N,dim), (B,M,context_dim) -> (B,N,dim)"""

    def __init__(self, dim, context_dim, heads, dim_head):
        super().__init__()
        ### BEGIN SOLUTION
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = CrossAttention(dim, None, heads, dim_head)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)
        ### END SOLUTION

    def forward(self, x, context=None):
        ### BEGIN SOLUTION
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))                       # (B,N,dim)
        ### END SOLUTION


# %% exercise="attention.BasicTransformerBlock" role="check"
check("attention.BasicTransformerBlock", BasicTransformerBlock)

# %% [markdown] exercise="attention.BasicTransformerBlock" role="hint"
# Six attributes, three lines. Each line reads the x that the line before has made.
#
# ---
#
# `CrossAttention(dim, None, heads, dim_head)` is self-attention: it has no context, and is given none.
#
# ---
#
# `x = x + self.attn2(self.norm2(x), context)`

# %% [markdown]
# In the U-Net the block sits in a `SpatialTransformer`: a group norm, a layer in, the block on the $H W$ places as tokens,
# a layer out, the input added. `scenes64` has seven of them. What does each of the three thirds do? Silence one at a time,
# in all seven, and let the oracle read what is drawn. (The model was not trained to do without, so this measures what it
# relies on, not what a model could learn.)

# %%
BasicTransformerBlock = use("attention.BasicTransformerBlock", BasicTransformerBlock)
world = Scenes(64, "test", objects=(1, 2), textures=("plain",), degraded=0.0)
asked = world.captions(range(PROMPTS), full=True)


def scores(pictures, prompts):
    """The share of pictures that show what was asked, by the oracle."""
    found = [oracle.heeds(r, captions.parse(p)) for r, p in zip(oracle.read(pictures), prompts, strict=True)]
    keys = ("count", "shape", "color", "place", "background", "all")
    return {key: sum(f[key] for f in found) / len(found) for key in keys}


def silenced(name):
    """Pictures of the shipped model, with every layer of this name answering 0."""
    handles = [m.register_forward_hook(lambda module, given, out: torch.zeros_like(out))
               for n, m in shipped.unet.named_modules() if n.endswith(f".{name}")]
    drawn = shipped.decode(shipped.latents(asked, steps=STEPS, seed=0)).cpu()
    for handle in handles:
        handle.remove()
    return drawn


drawn = {title: silenced(name) for title, name in (("complete", "nothing"), ("no self-attention", "attn1"),
                                                   ("no cross-attention", "attn2"), ("no feed-forward", "ff"))}
print(f"{'right, of ' + str(PROMPTS):20s}", *[f"{key:>10s}" for key in scores(drawn["complete"], asked)])
for title, pictures in drawn.items():
    print(f"{title:20s}", *[f"{share:10.0%}" for share in scores(pictures, asked).values()])
figure, axes = plt.subplots(4, 6, figsize=(8, 4.7))
for (title, pictures), row in zip(drawn.items(), axes, strict=True):
    for axis, picture in zip(row, pictures[torch.arange(6) % PROMPTS], strict=True):
        axis.imshow((picture.permute(1, 2, 0) + 1) / 2)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="#dddddd")
    row[0].set_ylabel(title.replace("no ", "no\n"), rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# Without the text nothing is right: what is drawn is what is probable when nothing is known. Without self-attention each
# place decides alone, and things come twice. Without the feed-forward layers things stand near their places, in about
# their colours, and their shapes fall apart.
#
# ## 5 · Words that nobody has listed
#
# A network reads integers. One for each word would need a list of all words, and would still meet one that is not in it;
# one for each letter makes texts long. *Byte-pair encoding* (Sennrich et al. 2016) takes the middle: begin with single
# symbols, join the pair of neighbours that is most frequent in a large text, and again, and again. Frequent words end as
# one token, rare ones as a few pieces, and since the symbols are bytes in the end, no text is out of the vocabulary.
#
# The last symbol of a word carries the mark `</w>`, so that "ring" in *ring* and in *rings* can be told apart.

# %% [markdown] exercise="tokenizer.learn_merges" role="prompt"
# ### Exercise 5 · What belongs together
#
# `learn_merges(words, num_merges)` returns the list of pairs that were joined, the first one first.
#
# - `words` says how often each word occurs: `{("l", "o", "w</w>"): 5, ...}`. A pair counts as often as its word.
# - Each round: count all pairs of neighbours inside words, choose the most frequent one (of equally frequent ones the
#   first in the alphabet), put it together in all words. Stop early when no pair is left.
# - `tokenizer.merge_pair(pieces, pair)` puts a pair together: `["l", "o", "w</w>"]`, `("l", "o")` → `["lo", "w</w>"]`.

# %% exercise="tokenizer.learn_merges" role="solution"
def learn_merges(words, num_merges):
    """{tuple of symbols: how often} -> list of pairs, in the order they were joined."""
    ### BEGIN SOLUTION
    pieces, merges = {word: list(word) for word in words}, []
    for _ in range(num_merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(pieces[word], pieces[word][1:], strict=False):
                pairs[pair] += count
        if not pairs:                                           # every word is one symbol by now
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {word: tokenizer.merge_pair(own, best) for word, own in pieces.items()}
    return merges
    ### END SOLUTION


# %% exercise="tokenizer.learn_merges" role="check"
check("tokenizer.learn_merges", learn_merges)

# %% [markdown] exercise="tokenizer.learn_merges" role="hint"
# `zip(pieces, pieces[1:])` are the pairs of neighbours; a `Counter` adds up.
#
# ---
#
# Keep the present pieces of each word beside `words`, and renew them in each round: the counts change with every merge.
#
# ---
#
# `best = min(pairs, key=lambda pair: (-pairs[pair], pair))` takes the most frequent, and of those the first in the
# alphabet.

# %% [markdown] exercise="tokenizer.encode_word" role="prompt"
# ### Exercise 6 · A word, put together
#
# `encode_word(pieces, rank)` returns the tokens of one word, a list of symbols.
#
# - `pieces` are its symbols, `["l", "o", "w</w>"]`; `rank` says in which order the pairs were learned: `{("l", "o"): 0,
#   ...}`.
# - As long as any pair of neighbours is in `rank`: take the one of the *lowest* rank, wherever it stands, and join it
#   wherever it occurs. `pieces` itself must stay as it was.

# %% exercise="tokenizer.encode_word" role="solution"
def encode_word(pieces, rank):
    """Symbols of a word -> its tokens, by the merges that were learned."""
    ### BEGIN SOLUTION
    pieces = list(pieces)
    while True:
        known = [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in rank]
        if not known:
            return pieces
        pieces = tokenizer.merge_pair(pieces, min(known, key=rank.get))
    ### END SOLUTION


# %% exercise="tokenizer.encode_word" role="check"
check("tokenizer.encode_word", encode_word)

# %% [markdown] exercise="tokenizer.encode_word" role="hint"
# Left to right is wrong: a pair that was learned early may stand at the end of the word.
#
# ---
#
# `min(known, key=rank.get)` is the pair of the lowest rank.
#
# ---
#
# Loop: the known pairs among the neighbours; none, then return; otherwise `pieces = tokenizer.merge_pair(pieces, best)`.

# %%
learn_merges = use("tokenizer.learn_merges", learn_merges)
encode_word = use("tokenizer.encode_word", encode_word)


# %% part="tokenizer.Tokenizer" is="MyTokenizer"
def spell(word):
    """A word as the symbols of its bytes, the last one marked."""
    pieces = [tokenizer.byte_alphabet()[b] for b in word.encode("utf-8")]
    return (*pieces[:-1], pieces[-1] + "</w>")


class MyTokenizer(tokenizer.Tokenizer):
    """The library's, with your two functions inside."""

    @classmethod
    def train(cls, texts, num_merges=400, length=77):
        words = Counter(spell(word) for line in texts for word in tokenizer.split_words(line))
        return cls(learn_merges(words, num_merges), length=length)

    def _merge_word(self, word):
        if word in self.special:
            return super()._merge_word(word)
        return tuple(self.ids[piece] for piece in encode_word(spell(word), self.rank))


# %%
lines = Scenes(64, objects=(1, 3), textures=("plain",)).captions(range(TEXTS))
counts = [0, 10, 20, 40, 60, 80, 100, 120, 140]
trained = MyTokenizer.train(lines, 400)
cut = {n: MyTokenizer(trained.merges[:n]) for n in counts}
tokens = [sum(len(cut[n].encode(line)) for line in lines) / len(lines) for n in counts]
words_each = sum(len(tokenizer.split_words(line)) for line in lines) / len(lines)
figure, axis = plt.subplots(figsize=(6, 2.5))
axis.plot(counts, tokens, color=BLUE, marker="o", ms=4)
axis.axhline(words_each, color=GREY, ls=":")
axis.text(140, words_each + 2, "words", ha="right", color=GREY)
axis.set(xlabel="merges", ylabel="tokens of a caption", ylim=(0, None))
plt.show()
print(f"after {len(trained.merges)} merges every word of the captions is one token; the first:\n   ",
      *["".join(m).replace("</w>", "_") for m in trained.merges[:12]])
for word in ("background", "rings", "turquoise", "원"):
    for n in (20, 140):
        found = [cut[n].symbols[i].replace("</w>", "_") for i in cut[n].encode(word)]
        print(f"{word:12s} {n:4d} merges:", " · ".join(found))

# %% [markdown]
# (`_` marks the end of a word.) The endings come early: `nd_`, `all_`. A word of the captions needs 140 merges at most to be
# one token; one that never occurred falls into pieces that did, down to single bytes, of which the Korean syllable for
# *circle* has three. A word in pieces is readable, not understood: no picture ever taught what "turquoise" looks like.
#
# | | our captions | CLIP, as in Stable Diffusion 1.x |
# |---|---|---|
# | merges | learned above, until nothing is left | 48,894 |
# | vocabulary: 256 bytes, twice, merges, two marks | 512 + merges + 2 | 49,408 |
# | tokens of a text, both marks included | 32 | 77 |
#
# ## 6 · A text that is read in order
#
# Now each token becomes a vector, from a table; a second table adds *where* it stands. Then come layers like those of
# section 4 without the cross-attention: causal self-attention, then two layers on each token. CLIP's text half (Radford et
# al. 2021) is this, and so is the encoder that `scenes64` trained along with its U-Net, as the LDM paper did.
#
# $$x_i = \text{token}[\text{id}_i] + \text{place}[i] \qquad x \leftarrow x + \text{attn}(\text{norm}_1(x)) \qquad
# x \leftarrow x + \text{MLP}(\text{norm}_2(x)) \qquad \text{context} = \text{norm}(x)$$

# %% [markdown] exercise="text.encode_text" role="prompt"
# ### Exercise 7 · The pass through the encoder
#
# `encode_text(net, ids)` returns the context (B,N,D) for `ids` (B,N) int64. `net` holds the weights, by released names:
#
# - `net.embeddings.token_embedding(ids)` is (B,N,D); `net.embeddings.position_embedding.weight` is (length,D), of which
#   the first N rows are used.
# - `net.encoder["layers"]`, each with `layer_norm1`, `self_attn`, `layer_norm2`, `mlp`. `self_attn` has `heads`, and the
#   layers `q_proj`, `k_proj`, `v_proj`, `out_proj`, all (B,N,D) → (B,N,D).
# - `net.final_layer_norm` at the end. Causal; heads are split as in exercise 2.

# %% exercise="text.encode_text" role="solution"
def encode_text(net, ids):
    """(B,N) int64 -> (B,N,D)."""
    ### BEGIN SOLUTION
    places = net.embeddings.position_embedding.weight[: ids.shape[1]]  # (N,D)
    x = net.embeddings.token_embedding(ids) + places            # (B,N,D)
    for layer in net.encoder["layers"]:
        own, h = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (rearrange(proj(h), "B N (h d) -> B h N d", h=own.heads)
                   for proj in (own.q_proj, own.k_proj, own.v_proj))
        out = attention_weights(q, k, causal=True) @ v          # (B,h,N,d)
        x = x + own.out_proj(rearrange(out, "B h N d -> B N (h d)"))
        x = x + layer.mlp(layer.layer_norm2(x))
    return net.final_layer_norm(x)
    ### END SOLUTION


# %% exercise="text.encode_text" role="check"
check("text.encode_text", encode_text)

# %% [markdown] exercise="text.encode_text" role="hint"
# `q_proj`, `k_proj` and `v_proj` all read `layer.layer_norm1(x)`; the result of the attention is added to `x` itself.
#
# ---
#
# Split into heads, `attention_weights(q, k, causal=True) @ v`, join, `out_proj`, add. Then the MLP.
#
# ---
#
# `x = x + own.out_proj(rearrange(out, "B h N d -> B N (h d)"))`, then `x = x + layer.mlp(layer.layer_norm2(x))`

# %% [markdown] exercise="text.pooled" role="prompt"
# ### Exercise 8 · A sentence as one vector
#
# Cross-attention reads all N vectors. To compare whole texts, CLIP takes one: that of the END token, which stands behind
# the last word and, reading causally, has seen everything.
#
# `pooled(hidden, ids, end_id, projection)` returns (B,P), each row of length 1.
#
# - `hidden` is (B,N,D), `ids` (B,N). Take the row at the *first* `end_id` of each text: padding repeats it.
# - `projection` is (P,D), used as `nn.Linear` does; then divide each row by its norm.

# %% exercise="text.pooled" role="solution"
def pooled(hidden, ids, end_id, projection):
    """The projected vector of the first END, at length 1; (B,N,D), (B,N) -> (B,P)."""
    ### BEGIN SOLUTION
    is_end = (ids == end_id).int()                              # (B,N)
    first = is_end.argmax(dim=1)                                # (B,)
    rows = torch.arange(len(ids), device=ids.device)
    vector = hidden[rows, first] @ projection.T                 # (B,P)
    return vector / vector.norm(dim=-1, keepdim=True)
    ### END SOLUTION


# %% exercise="text.pooled" role="check"
check("text.pooled", pooled)

# %% [markdown] exercise="text.pooled" role="hint"
# `.argmax(dim=1)` returns the first of several equal maxima.
#
# ---
#
# `hidden[torch.arange(B), first]` picks one row for each text: (B,D).
#
# ---
#
# `vector = hidden[rows, first] @ projection.T`, then `vector / vector.norm(dim=-1, keepdim=True)`.

# %%
encode_text = use("text.encode_text", encode_text)
pooled = use("text.pooled", pooled)


# %% part="text.TextEncoder" is="MyTextEncoder"
class MyTextEncoder(text.TextEncoder):
    """The library's weights, your pass; the lengths of pooled vectors are not used by SDXL."""

    def forward(self, ids):
        if self.config.skip:                                    # SDXL reads an earlier layer: chapter 15
            return super().forward(ids)
        return encode_text(self.text_model, self.check(ids))    # (B,N,D)


# %% [markdown]
# What does a context know? Exchange one word of a prompt for another, and see which of the N vectors move, and how far
# (the change divided by the vector's length).

# %%
said_words = PROMPT.split()
other = {"small": "large", "red": "green", "ring": "star", "left": "right", "large": "small", "blue": "purple",
         "square": "cross", "gray": "pink"}
net = shipped.text_encoder.text_model
places = [i for i, word in enumerate(said_words) if word in other]
changes = []
with torch.no_grad():
    base = encode_text(net, shipped.tokenizer([PROMPT]))[0, : len(said_words) + 2]  # (N,D): START, words, END
    for i in places:
        edited = [*said_words[:i], other[said_words[i]], *said_words[i + 1:]]
        row = encode_text(net, shipped.tokenizer([" ".join(edited)]))[0, : len(base)]
        changes.append((row - base).norm(dim=-1) / base.norm(dim=-1))
figure, axis = plt.subplots(figsize=(7, 3.2))
image = axis.imshow(torch.stack(changes), cmap="viridis", vmin=0, aspect="auto")
labels = ["START", *said_words, "END"]
rows = [f"{said_words[i]} → {other[said_words[i]]}" for i in places]
axis.set(xticks=range(len(labels)), yticks=range(len(rows)), yticklabels=rows, title="change of each vector")
axis.set_xticklabels(labels, rotation=60, ha="right")
axis.grid(False)
figure.colorbar(image, ax=axis)
plt.show()

# %% [markdown]
# Left of the diagonal all is 0, exactly: the mask. A colour changes its own vector and hardly another; a size also changes
# the colour and the shape behind it, `gray` the `background`.
#
# So which vector tells the picture a colour? Take the contexts of two prompts that differ in the colour only; give the first
# some rows of the second, and read the colour that is drawn.

# %%
a, b = (shipped.encode_text([f"a large {color} circle in the center on a white background"])["context"]
        for color in ("red", "blue"))                           # (1,32,128) twice
at = {"color": [3], "shape": [4], "words behind": list(range(5, 12)), "END, padding": list(range(12, 32))}
mixes = {"nothing": [], **at, "all but color": [0, 1, 2, *range(4, 32)], "all of them": list(range(32))}
count = max(2, PROMPTS // 4)


def colors_of(context):
    """Of `count` pictures of this context, one thing each: how many are blue, red, something else."""
    predict = {"context": context.expand(count, -1, -1)}
    noise = torch.cat([normal(1, *shipped.latent_shape(64, 64), seed=s) for s in range(count)])
    with torch.no_grad():
        z = samplers.ddim(lambda x, t: shipped.predict_eps(x, t, predict), noise.to(session.device),
                          shipped.schedule.timesteps(STEPS), schedule=shipped.schedule)
    found = [r.objects[0].color if r.objects else None for r in oracle.read(shipped.decode(z).cpu())]
    return [found.count("blue"), found.count("red"), count - found.count("blue") - found.count("red")]


print(f"{'rows from the blue prompt':28s}   blue    red  other   of {count}")
for title, rows in mixes.items():
    mixed = a.clone()
    mixed[:, rows] = b[:, rows]
    print(f"{title:28s}", *[f"{n:6d}" for n in colors_of(mixed)])

# %% [markdown]
# All of it is in one row. The vector of the colour word, one of 32, turns every picture blue; the 31 others together turn
# none. That is this model's habit, not a law.
#
# ## 7 · Are two sentences about the same picture?
#
# The course has a small CLIP, `clip-cond`, trained to find the caption of a picture among others. Its pooled vectors should
# be near each other for two wordings of one scene, and apart for captions that differ in a word, or in the *order* of the
# same words. Beside it, what a bag of words can tell: the mean of the token vectors, from the same table.

# %%
clip, clip_tokens = saved.contrastive(SHIPPED / "clip-cond")
scenes = Scenes(64, "test", objects=(2, 2), textures=("plain",)).scenes(range(SENTENCES))
first, second = ([captions.caption(scene, template) for scene in scenes] for template in (0, 1))
exchanged, replaced = zip(*[captions.near_misses(line, i, 2) for i, line in enumerate(first)], strict=True)


def by_clip(lines):
    ids, net = clip_tokens(list(lines)), clip.text_encoder
    return pooled(encode_text(net.text_model, ids), ids, clip_tokens.end_id, net.text_projection.weight)


def by_bag(lines):
    table = clip.text_encoder.text_model.embeddings.token_embedding.weight
    return F.normalize(torch.stack([table[clip_tokens.encode(line)].mean(0) for line in lines]), dim=-1)


rivals = {"another wording": (second, GREEN, "-"), "two words exchanged": (exchanged, RED, "--"),
          "a word replaced": (replaced, ORANGE, "-.")}
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
with torch.no_grad():
    for axis, (name, vectors) in zip(axes, (("bag of words", by_bag), ("pooled", by_clip)), strict=True):
        own, found = vectors(first), {}
        for label, (lines, color, style) in rivals.items():
            found[label] = (own * vectors(lines)).sum(-1).sort().values
            axis.plot(found[label], torch.linspace(0, 1, SENTENCES), color=color, ls=style, label=label)
            print(f"{name:14s} {label:20s} mean similarity {float(found[label].mean()):.3f},",
                  f"above 0.98: {float((found[label] > 0.98).float().mean()):.0%}")
        axis.set(title=name, xlabel="cosine similarity to the caption", xlim=(0, 1.02))
axes[0].set_ylabel("share of captions below")
axes[0].legend(fontsize=9, loc="upper left")
plt.show()

# %% [markdown]
# The bag cannot tell an exchange from the caption itself. The pooled vector can, and knows two wordings of one scene as the
# same; but it misses more than half of the exchanges.
#
# ## 8 · Your code in the finished model
#
# Six parts are yours now. Swapped into the library, they load the shipped weights and draw:

# %%
MINE = {"attention.attend": attend, "attention.CrossAttention": CrossAttention,
        "attention.FeedForward": FeedForward, "attention.BasicTransformerBlock": BasicTransformerBlock,
        "tokenizer.Tokenizer": MyTokenizer, "text.TextEncoder": MyTextEncoder}
with parts.swapped(MINE):
    yours = StableDiffusion.load("scenes64").to(session.device)
picture, maps = yours.attention_maps(PROMPT, WORDS, steps=STEPS, seed=9)
show_maps(picture, WORDS, maps.cpu())
pair = [pipe.decode(pipe.latents(PROMPT, steps=STEPS, seed=9)) for pipe in (shipped, yours)]
print(f"largest difference to the library's picture: {127.5 * (pair[0] - pair[1]).abs().max():.2f} of 255")

# %% [markdown]
# Same picture, same maps.
#
# Do such maps tell where a thing is? Draw prompts with two things of different shapes and colours, keep the pictures that
# came out right, and ask whether the place where a word's map is largest lies in the circle around the thing it names.
# Beside it, how much attention goes to words at all.

# %%
SHAPES = ["circle", "square", "triangle", "ring", "star", "cross"]
COLORS = ["red", "blue", "green", "black", "purple", "brown"]
hits, chance, spent = {"shape": [], "color": []}, [], []
for i in range(LOOKS):
    things = [(COLORS[i % 6], SHAPES[i % 5]), (COLORS[(i + 1 + i // 6) % 6], SHAPES[(i + 1 + i // 5 % 4) % 6])]
    prompt = "a large {} {} left of a large {} {} on a white background".format(*things[0], *things[1])
    n = len(shipped.tokenizer.encode(prompt))
    with heatmaps.recorded(shipped.unet, pictures=1) as maps:
        drawn = shipped.decode(shipped.latents(prompt, steps=STEPS, seed=i)).cpu()
    everything = maps.of([[0], [*range(1, n + 1)], [n + 1], [*range(n + 2, 32)]], 64, 64)[0].mean((1, 2)).cpu()
    spent.append(everything * torch.tensor([1, n, 1, 30 - n]))
    reading = oracle.read(drawn)[0]
    if not oracle.heeds(reading, captions.parse(prompt))["all"]:
        continue
    for color, shape in things:
        thing = next(o for o in reading.objects if (o.color, o.shape) == (color, shape))
        chance.append(3.14159 * thing.radius**2)
        for kind, word in (("shape", shape), ("color", color)):
            heat = maps.of([heatmaps.places_of(shipped.tokenizer, prompt, word)], 64, 64)[0, 0].cpu()
            y, x = ((place + 0.5) / 64 for place in divmod(int(heat.argmax()), 64))
            hits[kind].append((x - thing.cx) ** 2 + (y - thing.cy) ** 2 <= thing.radius**2)
print(f"pictures that came out right: {len(chance) // 2} of {LOOKS}")
for kind, found in hits.items():
    print(f"the map of the {kind} is largest on its thing: {sum(found)} of {len(found)};",
          f"by chance {sum(chance) / max(len(chance), 1):.0%}")
shares = zip(("START", "words", "END", "padding"), torch.stack(spent).mean(0).tolist(), strict=True)
print("attention spent on", ", ".join(f"{name} {share:.0%}" for name, share in shares))

# %% [markdown]
# The maps do point at things. They are no proof: a map says what a place *read*. The exchange of rows in section 6 changed
# one thing and saw what followed, which is stronger evidence. A quarter of the attention goes to padding, which says
# nothing here; Stable Diffusion reads its padding, too.
#
# ## Questions to think about
#
# 1. Attention over the places of a picture costs $N^2$. By how much does it grow from a 64 × 64 latent to pixels at 512 × 512?
# 2. The picture's places get no position vectors in this U-Net. How does self-attention know where things are?
# 3. In a causal text "red" cannot know what it colours. Who brings the two together?
#
# ## Recap
#
# - Attention is a soft lookup: $\operatorname{softmax}(QK^\top/\sqrt d)\,V$. The root keeps it soft.
# - A block looks at the picture, looks at the text, thinks, and adds each to the stream.
# - Byte pairs spell any text with a fixed list of tokens.
# - Cross-attention reads a set; order enters by place vectors and the causal mask.
# - Names matter: `to_out.0`, `net.0.proj`, `norm3` are where released weights go.
#
# **Next**, chapter 10 asks twice, with the text and without, and goes further in the difference.
