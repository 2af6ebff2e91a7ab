# %% [markdown]
# # 14 · LoRA
#
# To teach a trained model one new thing, must all of its weights move? This chapter looks at how they move when they may,
# finds that a few directions would do, and trains only those.
#
# **You will be able to**
#
# - take a real weight update apart by singular values, and say how much of it a rank of 4 holds;
# - write the adapter, put it beside every layer of a model, freeze the rest, and train;
# - count what is saved: parameters, gradients, and what Adam keeps;
# - merge an adapter into the weights and take it out again, to the bit;
# - stack two adapters that were trained apart, and say which rank their sum has;
# - say what alpha / rank does, and what the article's choice of it costs.
#
# **Time** about 2.5 hours, of which 95 minutes are exercises. **You need** chapters 08 (the training step), 09 (attention)
# and 13 (what a layer of zeros learns); singular values. No GPU. **In the library** this chapter is `course/lora.py` and
# `course/training/adapters.py`; in the article, section 8.2.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
import copy
import math
import statistics
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from torch import nn

from course import lora, parts
from course.adapt import low_rank as adapted
from course.classroom import begin, check, figure_style, track, use
from course.data import Scenes, oracle
from course.pipeline import StableDiffusion

session = begin(needs="0.1", seed=14)
COUNT = {"quick": 8, "cpu": 512, "gpu": 2048}[session.profile]  # pictures to train on, of each kind
FULL = {"quick": 2, "cpu": 80, "gpu": 500}[session.profile]     # steps of full fine-tuning
STEPS = {"quick": 2, "cpu": 100, "gpu": 900}[session.profile]   # steps of each LoRA
BATCH = {"quick": 3, "cpu": 16, "gpu": 16}[session.profile]
ASKED = {"quick": 2, "cpu": 16, "gpu": 128}[session.profile]    # unseen prompts of each kind
DRAWN = {"quick": 2, "cpu": 12, "gpu": 25}[session.profile]     # steps of the sampler
SHOWN = {"quick": 2, "cpu": 6, "gpu": 6}[session.profile]       # pictures in a row
ROUNDS = {"quick": 1, "cpu": 9, "gpu": 25}[session.profile]     # of timing

# %% tags=["setup"]
BLUE, ORANGE, GREEN, RED, GREY = figure_style()


def strip(rows, titles, labels=None, width=8.0):
    """Rows of pictures (N,3,H,W) in [-1,1]; a title over each column, a label before each row."""
    rows = [row.detach().float().clamp(-1, 1) for row in rows]
    columns, side = len(rows[0]), (width - 0.3 * bool(labels)) / len(rows[0])
    figure, axes = plt.subplots(len(rows), columns, squeeze=False, figsize=(width, side * len(rows) + 0.25))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            axes[r, c].imshow((picture.permute(1, 2, 0) + 1) / 2, interpolation="nearest")
            axes[r, c].set(xticks=[], yticks=[], title=titles[c] if r == 0 else "")
            axes[r, c].spines[:].set(visible=True, color="#dddddd")
        if labels:
            axes[r, 0].set_ylabel(labels[r])
    plt.show()


# %% [markdown]
# ## A word that it does not know
#
# No picture that `scenes64` was trained on shows a heart, and none is teal. Ask for hearts anyway; then put
# `scenes64-heart`, a file of 0.4 MB, beside the model's layers, and ask again.

# %%
def scenes_of(split, count, shape=None, color=None, objects=(1, 1)):
    """(the drawer, its scenes), with one shape or colour in place of every other."""
    drawer = Scenes(64, split, objects=objects, textures=("plain",), degraded=0.0)
    change = {key: value for key, value in (("shape", shape), ("color", color)) if value}
    scenes = drawer.scenes(range(count))
    return drawer, [replace(s, objects=tuple(replace(o, **change) for o in s.objects)) for s in scenes]


class Asked:
    """Unseen prompts of one kind, and how many of the pictures drawn from them are right."""

    def __init__(self, **kind):
        drawer, self.scenes = scenes_of("test", ASKED, **kind)
        self.prompts = drawer.captions(range(ASKED), full=True, scenes=self.scenes)
        self.real = drawer.images(range(ASKED), self.scenes)

    def draw(self, pipe, count=ASKED):
        return pipe.decode(pipe.latents(self.prompts[:count], steps=DRAWN, seed=14)).cpu()

    def right(self, pictures):
        return oracle.rates(pictures, self.scenes)["all"]


hearts, teals, known = Asked(shape="heart"), Asked(color="teal"), Asked(objects=(1, 2))
base = StableDiffusion.load("scenes64").to(session.device)
shipped = StableDiffusion.load("scenes64").to(session.device)
adapted.add(shipped, "scenes64-heart", "heart")
before, after, old = hearts.draw(base), hearts.draw(shipped), known.draw(shipped)
strip([before[:SHOWN], after[:SHOWN], old[:SHOWN]], [""] * SHOWN, ["without", "with", "old"], width=6.6)
print(f"hearts right: {hearts.right(before):.0%} without, {hearts.right(after):.0%} with;",
      f"old prompts right: {known.right(known.draw(base)):.0%} without, {known.right(old):.0%} with")

# %% [markdown]
# The model draws circles, triangles, whatever is near; with 4 % of its size beside it, hearts, and old prompts still work.
#
# $$y = W x \qquad\longrightarrow\qquad y = W x + \frac{\alpha}{r}\, B A\, x \qquad A: (r, \text{in}),\quad B: (\text{out}, r)$$
#
# This is equation 3 of Hu et al. (2021). Is there a reason to believe that an update fits into two matrices so thin?
#
# ## 1 · What an update looks like
#
# Train everything, for once, on hearts, with old pictures among them lest they be forgotten. Then compare.

# %%
def material(pipe, **kind):
    """(z_0, token ids) of COUNT pictures to train on."""
    drawer, shown = scenes_of("train", COUNT, **kind)
    said = drawer.captions(range(COUNT), full=True, scenes=shown)
    images = drawer.images(range(COUNT), shown).to(session.device)
    return pipe.encode_image(images), pipe.tokenizer(said).to(session.device)


def velocity_loss(pipe, z0, ids, generator):
    """The loss of chapter 08, at levels that are rather noisy: shapes are decided there."""
    t = (torch.sigmoid(1 + torch.randn(len(z0), generator=generator)) * 1000).long().to(z0.device)  # (B,)
    noise = torch.randn(z0.shape, generator=generator).to(z0)
    z_t = pipe.schedule.add_noise(z0, noise, t)                 # (B,C,h,w)
    prediction = pipe.unet(z_t, t, pipe.text_encoder(ids))
    return (prediction - pipe.schedule.to_v(z0, noise, t)).square().mean()


def train(pipe, parameters, new, steps, lr, title):
    """Two thirds new pictures, one third old ones; one caption of ten left out."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99))
    generator, few = torch.Generator().manual_seed(1), BATCH // 3
    for step in track(range(steps), title, lines=2):
        for group in optimizer.param_groups:                    # warm up, then fall to 0
            group["lr"] = lr * min(1, (step + 1) / 20) * (1 - step / steps)
        picks = [torch.randint(COUNT, (n,), generator=generator) for n in (BATCH - few, few)]
        z0, ids = (torch.cat([new[k][picks[0]], past[k][picks[1]]]) for k in (0, 1))
        ids[torch.rand(BATCH, generator=generator) < 0.1] = pipe.tokenizer("")[0].to(ids)
        loss = velocity_loss(pipe, z0, ids, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return pipe


past = material(base, objects=(1, 3))
of_hearts, of_teals = material(base, shape="heart"), material(base, color="teal")
full = StableDiffusion.load("scenes64").to(session.device)
everything = [p for part in (full.unet, full.text_encoder) for p in part.parameters()]
train(full, everything, of_hearts, FULL, 1e-3, "all weights")
weights, moved = base.unet.state_dict(), full.unet.state_dict()
matrices = {name: W for name, W in weights.items() if W.ndim > 1}
updates = {name: (moved[name] - W).flatten(1) for name, W in matrices.items()}  # (out,in) or (out,in*9)
print(f"{sum(p.numel() for p in everything):,} weights moved; {len(updates)} matrices of the U-Net among them")

# %% [markdown]
# A matrix of rank $r$ is a product $BA$. Which product comes nearest to a given $\Delta W$? Eckart and Young (1936): write
# $\Delta W = \sum_k s_k\, u_k v_k^\top$ with falling singular values $s_k$, and keep the first $r$ terms. What is missing
# then is $\sum_{k > r} s_k^2$, and no other choice is better.

# %% [markdown] exercise="lora.low_rank" role="prompt"
# ### Exercise 1 · The nearest of rank r
#
# `low_rank(delta, rank)` returns `(A, B)`, of shapes (r,in) and (out,r), such that $BA$ is the best approximation of `delta`
# (out,in) of that rank.
#
# - The singular values are split evenly: each of A and B carries their square roots.

# %% exercise="lora.low_rank" role="solution"
def low_rank(delta, rank):
    """The best B A of rank r; (out,in) -> A (r,in), B (out,r)."""
    ### BEGIN SOLUTION
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)     # (out,k), (k,), (k,in); S falls
    root = S[:rank].sqrt()                                      # (r,)
    A = root[:, None] * Vh[:rank]                               # (r,in)
    B = U[:, :rank] * root                                      # (out,r)
    return A, B
    ### END SOLUTION


# %% exercise="lora.low_rank" role="check"
check("lora.low_rank", low_rank)

# %% [markdown] exercise="lora.low_rank" role="hint"
# `torch.linalg.svd(delta, full_matrices=False)` returns U, S, Vh with `U @ diag(S) @ Vh == delta`, largest first.
#
# ---
#
# Columns of U and rows of Vh belong to the singular values. Multiplying a column by a number needs no matrix: broadcasting
# does it.
#
# ---
#
# `S[:rank].sqrt()[:, None] * Vh[:rank]` is A, `U[:, :rank] * S[:rank].sqrt()` is B.

# %%
low_rank = use("lora.low_rank", low_rank)


def held(matrix):
    """Share of the squared singular values in the first 1, 2, ... of them; (k,)."""
    squares = torch.linalg.svdvals(matrix).square()
    return (squares.cumsum(0) / squares.sum()).cpu()


MOST = 32
noise = {name: torch.randn(d.shape, generator=torch.Generator().manual_seed(0)) for name, d in updates.items()}
kinds = {"the update": updates, "the weights themselves": {n: weights[n].flatten(1) for n in updates},
         "random numbers": noise}
figure, axis = plt.subplots(figsize=(6.5, 3))
for (name, some), color, line in zip(kinds.items(), (BLUE, ORANGE, GREY), ("-o", "--s", ":^"), strict=True):
    wide = torch.stack([held(m)[:MOST] for m in some.values() if min(m.shape) >= MOST])   # (layers,MOST)
    axis.plot(range(1, MOST + 1), wide.mean(0), line, ms=3, color=color, label=name)
    print(f"{name:24s}", ", ".join(f"rank {r} holds {wide[:, r - 1].mean():.0%}" for r in (1, 4, 16)))
axis.set(xlabel="rank", ylabel="share of the squared norm", ylim=(0, 1.02))
axis.legend(fontsize=9)
plt.show()

# %% [markdown]
# The mean over all matrices with at least 32 rows and columns. No singular value of the update is zero, so its rank is not
# low in the strict sense. But they fall fast: four directions of about a hundred hold two thirds of it or more, much more than
# of random numbers of the same shapes, and more than of the weights themselves. Does what is left out matter? Ask the pictures.

# %%
def with_update(rank=None):
    """The base, moved by the U-Net's update, whole or cut to `rank`; where it is cut, vectors stay."""
    pipe = StableDiffusion.load("scenes64").to(session.device)
    pipe.text_encoder.load_state_dict(full.text_encoder.state_dict())
    new = dict(moved if rank is None else weights)
    for name, delta in updates.items() if rank else ():
        A, B = low_rank(delta, rank)
        new[name] = weights[name] + (B @ A).reshape(weights[name].shape)
    pipe.unet.load_state_dict(new)
    return pipe


cuts = {"rank 1": 1, "rank 4": 4, "rank 16": 16, "whole": None}
drawn = {name: hearts.draw(with_update(rank)) for name, rank in cuts.items()}
for name, pictures in drawn.items():
    print(f"U-Net's update, {name:8s} hearts right: {hearts.right(pictures):.0%}")
strip([p[:SHOWN] for p in drawn.values()], [""] * SHOWN, list(drawn), width=6.6)

# %% [markdown]
# Shares of the norm are not shares of the picture. Cut to four directions, the update keeps two thirds of its squared norm
# and a fifth of its hearts; with sixteen directions most are there. But cutting afterwards is the wrong way round: *train*
# with few directions, and what matters can find its way into them.
#
# ## 2 · The adapter
#
# So train $A$ and $B$ and leave $W$ alone. Chapter 13 says how to start: $B$ at zero, so that nothing changes at first, and
# $A$ *not* at zero, for between two layers of zeros nothing ever moves. $\alpha/r$ is a fixed factor, of which more below.

# %% [markdown] exercise="lora.Adapter" role="prompt"
# ### Exercise 2 · Two thin layers
#
# `Adapter(down, up, rank, alpha)` holds two linear layers without bias: `down`, whose weight is A (r,in), and `up`, whose
# weight is B (out,r).
#
# - At the start A is drawn by `nn.init.kaiming_uniform_(..., a=math.sqrt(5))` and B is zero.
# - `self.scale` is alpha / rank; `self.weight = 1.0` says how much of the adapter is wanted, and may be changed later.
# - `forward(x)` returns `weight * scale * B A x`, (...,in) -> (...,out): what is *added* to the layer's answer.
# - `delta()` returns the same as a matrix, (out,in).

# %% exercise="lora.Adapter" role="solution"
class Adapter(nn.Module):
    """alpha / r B A, beside one layer."""

    def __init__(self, down, up, rank, alpha, dropout=0.0):
        super().__init__()
        ### BEGIN SOLUTION
        self.down, self.up = down, up
        self.scale, self.weight = alpha / rank, 1.0
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        ### END SOLUTION
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        ### BEGIN SOLUTION
        h = self.down(self.dropout(x))                          # (...,r)
        return self.weight * self.scale * self.up(h)            # (...,out)
        ### END SOLUTION

    def delta(self):
        ### BEGIN SOLUTION
        return self.weight * self.scale * self.up.weight @ self.down.weight  # (out,in)
        ### END SOLUTION


# %% exercise="lora.Adapter" role="check"
check("lora.Adapter", Adapter)

# %% [markdown] exercise="lora.Adapter" role="hint"
# `down.weight` and `up.weight` are parameters; functions of `nn.init` that end in `_` write into them.
#
# ---
#
# In `forward` go through the thin middle: `self.up(self.down(x))`. To multiply B and A first would cost as much as the layer.
#
# ---
#
# `self.weight * self.scale * self.up(self.down(x))`, and `self.weight * self.scale * self.up.weight @ self.down.weight`.

# %%
Adapter = use("lora.Adapter", Adapter)

# %% [markdown]
# The layer that holds it answers $W x$ plus all adapters. And it can *merge*: add the change to $W$ once, and answer at the
# old price. $W + \Delta - \Delta$ is not always $W$ in floating point (of the shipped adapter
# 3 % of the values would not come back), so it keeps a copy of $W$.

# %% [markdown] exercise="lora.LoRALinear" role="prompt"
# ### Exercise 3 · The layer
#
# `LoRALinear(linear, rank, alpha, dropout, name)` wraps a linear layer. `add` is given; write the rest.
#
# - `self.base` is the layer itself, its parameters frozen. `self.adapters` is an `nn.ModuleDict` with one adapter, made by
#   `self.add(name, rank, alpha, dropout)`. `self.before` is None as long as nothing is merged.
# - `forward(x)` adds what every adapter says to what the base says; while merged, the base says it all.
# - `merge()` keeps a copy of `base.weight` in `self.before` and adds every adapter's `delta()` to it, in place and without a
#   graph. Merging what is merged does nothing.
# - `unmerge()` puts back the very numbers that were there. Without a merge it does nothing.

# %% exercise="lora.LoRALinear" role="solution"
class LoRALinear(nn.Module):
    """A frozen linear layer and adapters beside it; (...,in) -> (...,out)."""

    def __init__(self, linear, rank=4, alpha=1.0, dropout=0.0, name="default"):
        super().__init__()
        ### BEGIN SOLUTION
        self.base = linear.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.before = None
        self.add(name, rank, alpha, dropout)
        ### END SOLUTION
        self.in_features = linear.in_features                   # attention asks for both
        self.out_features = linear.out_features

    def add(self, name, rank, alpha, dropout=0.0):
        down = nn.Linear(self.base.in_features, rank, bias=False)
        up = nn.Linear(rank, self.base.out_features, bias=False)
        self.adapters[name] = Adapter(down, up, rank, alpha, dropout).to(self.base.weight)
        return self.adapters[name]

    def forward(self, x):
        ### BEGIN SOLUTION
        y = self.base(x)                                        # (...,out)
        if self.before is None:
            for adapter in self.adapters.values():
                y = y + adapter(x)
        return y
        ### END SOLUTION

    @torch.no_grad()
    def merge(self):
        ### BEGIN SOLUTION
        if self.before is None:
            self.before = self.base.weight.clone()
            for adapter in self.adapters.values():
                self.base.weight += adapter.delta()
        ### END SOLUTION

    @torch.no_grad()
    def unmerge(self):
        ### BEGIN SOLUTION
        if self.before is not None:
            self.base.weight.copy_(self.before)
            self.before = None
        ### END SOLUTION


# %% exercise="lora.LoRALinear" role="check"
check("lora.LoRALinear", LoRALinear)

# %% [markdown] exercise="lora.LoRALinear" role="hint"
# `linear.requires_grad_(False)` freezes all parameters of a layer and returns the layer.
#
# ---
#
# While merged, `base.weight` holds the change already: adding the adapters once more would count it twice.
#
# ---
#
# `merge`: if `self.before` is None, `self.before = self.base.weight.clone()`, then `self.base.weight += a.delta()` for each.
# `unmerge`: `self.base.weight.copy_(self.before)`, then `self.before = None`.

# %% [markdown]
# > **The article says** (section 8.2) much the same, **but** its layer never freezes the original: whoever hands
# > `model.parameters()` to the optimiser trains all of $W$ and the adapter on top. Its `alpha=1.0` with `rank=4` is a factor of
# > 1/4; section 5 measures what that does.
#
# ## 3 · Into a whole model
#
# Which layers? Hu et al. took the matrices of attention, and so does most of what is published for Stable Diffusion
# (`lora.TARGETS`). A shape that was never drawn needs the convolutions, too (`lora.BROAD`).

# %% [markdown] exercise="lora.inject" role="prompt"
# ### Exercise 4 · Freeze, and replace by name
#
# `inject(model, targets, make)` freezes the model, puts `make(layer)` in the place of every layer whose path *ends* in one of
# `targets`, and returns the list of parameters that are to be trained.
#
# - Paths are those of `model.named_modules()`, like `blocks.0.attn1.to_out.0`. The target `to_out.0` matches it, as it
#   matches a layer that is called just so; `to_q` does not match `not_to_q`.
# - `make(layer)` returns a `LoRALinear` round the layer. Trained is what has `requires_grad` in the new layers.

# %% exercise="lora.inject" role="solution"
def inject(model, targets, make):
    """Freeze `model`, wrap the layers named in `targets`; returns what is to be trained."""
    ### BEGIN SOLUTION
    model.requires_grad_(False)
    paths = [p for p, _ in model.named_modules() if any(p == t or p.endswith(f".{t}") for t in targets)]
    trained = []
    for path in paths:                                          # a list: the model changes under way
        parent, _, last = path.rpartition(".")
        layer = make(model.get_submodule(path))
        setattr(model.get_submodule(parent), last, layer)
        trained += [p for p in layer.parameters() if p.requires_grad]
    return trained
    ### END SOLUTION


# %% exercise="lora.inject" role="check"
check("lora.inject", inject)

# %% [markdown] exercise="lora.inject" role="hint"
# Freeze first: what is put in later is not frozen.
#
# ---
#
# `"a.b.c".rpartition(".")` is `("a.b", ".", "c")`. `model.get_submodule("a.b")` is the parent, and `""` is the model itself.
#
# ---
#
# `setattr(model.get_submodule(parent), last, make(model.get_submodule(path)))`, for every path that equals a target or ends
# in `"." + target`.

# %% [markdown]
# What does training take? The weights; a gradient for each that is trained; and Adam keeps two running means for each of
# those, of the gradient and of its square. (Activations come on top; LoRA hardly changes them.)

# %% [markdown] exercise="lora.training_bytes" role="prompt"
# ### Exercise 5 · What training takes
#
# `training_bytes(model)` returns `(weights, gradients, adam)` in bytes, whole numbers.
#
# - Weights are all parameters, frozen or not; gradients and Adam's two means are kept for those with `requires_grad`, in the
#   dtype of the parameter.

# %% exercise="lora.training_bytes" role="solution"
def training_bytes(model):
    """Bytes of a model's weights, of its gradients, and of what Adam keeps."""
    ### BEGIN SOLUTION
    weights = gradients = 0
    for p in model.parameters():
        size = p.numel() * p.element_size()
        weights += size
        gradients += size if p.requires_grad else 0
    return weights, gradients, 2 * gradients
    ### END SOLUTION


# %% exercise="lora.training_bytes" role="check"
check("lora.training_bytes", training_bytes)

# %% [markdown] exercise="lora.training_bytes" role="hint"
# `p.numel()` is how many numbers, `p.element_size()` how many bytes each takes.
#
# ---
#
# Two sums over `model.parameters()`: one over all, one over those with `p.requires_grad`. Adam's part is twice the second.

# %%
LoRALinear = use("lora.LoRALinear", LoRALinear)
inject = use("lora.inject", inject)
training_bytes = use("lora.training_bytes", training_bytes)


def maker(rank, alpha, name="default"):
    def make(layer):                                            # a convolution gets the library's layer
        kind = LoRALinear if layer.weight.ndim == 2 else lora.LoRAConv2d
        return kind(layer, rank, alpha, name=name)
    return make


def mega(*sizes):
    return "  ".join(f"{size / 1e6:9.2f}" for size in sizes)


print(f"{'U-Net and text encoder':30s} {'trained':>9s}   weights, gradients, Adam in MB")
for name, rank, targets in (("all weights", None, ()), ("rank 1, attention", 1, lora.TARGETS),
                            ("rank 4, attention", 4, lora.TARGETS),
                            ("rank 4, convolutions, too", 4, lora.BROAD),
                            ("rank 16, convolutions, too", 16, lora.BROAD)):
    nets = nn.ModuleList([copy.deepcopy(base.unet), copy.deepcopy(base.text_encoder)]).requires_grad_(True)
    trained = nets.parameters()
    if rank:
        trained = [p for net in nets for p in inject(net, targets, maker(rank, rank))]
    print(f"{name:30s} {sum(p.numel() for p in trained):9,d} {mega(*training_bytes(nets))}")

# %% [markdown]
# | U-Net and text encoder | trained weights, full | trained weights, LoRA | share |
# |---|---|---|---|
# | here, rank 4, `BROAD` | 4,605,960 | 196,096 | 4.3 % |
# | here, rank 4, `TARGETS` | 4,605,960 | 57,088 | 1.2 % |
# | Stable Diffusion 1.5, rank 4, `TARGETS` (counted) | 982,581,444 | 1,092,096 | 0.11 % |
# | GPT-3, a text model of 175 billion (Hu et al. 2021, abstract) | | 10,000 times fewer | 0.01 % |
#
# The thin matrices grow with the *side* of a layer and the layer with its square, so the larger the model, the smaller the
# share. Hu et al. report a third of the GPU memory; here the weights themselves are so small a part that gradients and Adam
# shrink to almost nothing, and activations remain.
#
# ## 4 · Hearts, once more
#
# Rank 4, on the same pictures. The learning rate may be higher than for all weights.

# %%
def adapted_pipe(name, data, rank=4, alpha=4.0):
    """A new pipeline with an adapter called `name`, trained on `data`."""
    torch.manual_seed(0)
    pipe = StableDiffusion.load("scenes64").to(session.device)
    make = maker(rank, alpha, name)
    parameters = [p for net in (pipe.unet, pipe.text_encoder) for p in inject(net, lora.BROAD, make)]
    return train(pipe, parameters, data, STEPS, LR, f"{name}, alpha {alpha:g}")


LR = 8e-3
mine = adapted_pipe("heart", of_hearts)
weak = adapted_pipe("heart", of_hearts, alpha=1.0)
teal = adapted_pipe("teal", of_teals)
rows = {"before": base, f"all weights, {FULL} steps": full, f"rank 4, alpha 4, {STEPS} steps": mine,
        f"rank 4, alpha 1, {STEPS} steps": weak, "scenes64-heart, 961 steps": shipped}
drawn = {name: (hearts.draw(pipe), known.draw(pipe)) for name, pipe in rows.items()}
print(f"{ASKED} unseen prompts of each kind      hearts right   old prompts right")
for name, (new, old) in drawn.items():
    print(f"{name:34s} {hearts.right(new):9.0%} {known.right(old):15.0%}")
short = ["before", "all weights", "alpha 4", "alpha 1", "shipped"]
strip([new[:SHOWN] for new, _ in drawn.values()], [""] * SHOWN, short, width=6.6)

# %% [markdown]
# Four per cent of the weights learn most of the heart in a hundred steps; all weights together learn it sooner. So LoRA
# saves memory and space on disk, not steps: given 200 of them, the same adapter drew all of 32 prompts right. Sixteen
# prompts a row say little more: by chapter 00's interval 69 % may be 44 to 86 %, and the two alphas cannot be told apart.
# The shipped file had 961 steps at a rate of 0.003, and 128 prompts: 100 % of hearts, and 88 % of old prompts of one to
# three objects, as against 89 % before.
#
# ## 5 · What alpha is for
#
# Adam's step does not depend on the scale of the gradient, so after as many steps $A$ and $B$ have moved about as far
# whatever $\alpha$ is, and $\alpha/r$ multiplies what that amounts to. It is a second learning rate. How far has $W$ moved?

# %%
def change(pipe, name):
    """The norm of the whole change, over the U-Net's layers."""
    squares = [layer.adapters[name].delta().square().sum() for _, layer in lora.adapted(pipe.unet)]
    return float(torch.stack(squares).sum().sqrt().detach())


size = float(torch.stack([W.square().sum() for W in weights.values() if W.ndim > 1]).sum().sqrt())
moves = {"all weights": float(torch.stack([d.square().sum() for d in updates.values()]).sum().sqrt()),
         "rank 4, alpha 4": change(mine, "heart"), "rank 4, alpha 1": change(weak, "heart"),
         "scenes64-heart": change(shipped, "heart")}
for name, length in moves.items():
    print(f"{name:18s} |change| / |W| = {length / size:.3f}")

# %% [markdown]
# Compare the two adapters: the same rate, as many steps, a quarter of the scale, and about half of the way. (Not a quarter:
# where an adapter has less effect, its gradients go on pointing in one direction for longer.) Nothing else is wrong with
# alpha = 1. But who changes $r$ and leaves $\alpha$ has changed the learning rate, too. Hu et al. set $\alpha$ to the first
# $r$ they try and leave it there; many training scripts take $\alpha = r$, as this course does. The first row is worth a
# thought: all weights together went the shortest way and drew the most hearts. With few directions to go, a way may be longer.
#
# ## 6 · Merge
#
# Trained, the adapter is two more products in every layer. Merged, it is free. Here your layer stands in the library's place,
# by `parts.swapped`; times are taken in turns.

# %%
with parts.swapped({"lora.LoRALinear": LoRALinear}):
    guest = StableDiffusion.load("scenes64").to(session.device)
    adapted.add(guest, "scenes64-heart", "heart")
z, ids = past[0][:BATCH], past[1][:BATCH]


@torch.no_grad()
def answer(pipe):
    return pipe.unet(z, 500, pipe.text_encoder(ids))


beside = answer(guest)
lora.merge(guest.unet), lora.merge(guest.text_encoder)
merged = answer(guest)
for name, other in (("beside", beside), ("base", answer(base))):
    print(f"merged and {name} differ by up to {float((merged - other).abs().max()):.1e}")
times = {"base": [], "beside": [], "merged": []}
for _ in range(ROUNDS):
    for name, pipe in (("base", base), ("beside", shipped), ("merged", guest)):
        begun = time.perf_counter()
        answer(pipe)
        times[name].append(time.perf_counter() - begun)
middle = {name: statistics.median(values) for name, values in times.items()}
print("time of a pass, base = 1:", *[f"{name} {value / middle['base']:.2f}" for name, value in middle.items()])
MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
lora.unmerge(guest.unet), lora.unmerge(guest.text_encoder)
print("unmerged, answers as before the merge, to the bit:", torch.equal(answer(guest), beside))

# %% [markdown]
# ## 7 · Two at once
#
# Changes add up, so adapters that were trained apart can stand side by side, each with its weight. Two of them are one of
# rank $r_1 + r_2$:
#
# $$s_1 B_1 A_1 + s_2 B_2 A_2 = \begin{pmatrix} s_1 B_1 & s_2 B_2 \end{pmatrix} \begin{pmatrix} A_1 \\ A_2 \end{pmatrix}$$

# %% [markdown] exercise="lora.stacked" role="prompt"
# ### Exercise 6 · Several as one
#
# `stacked(adapters)` returns one pair `(A, B)` whose product is the sum of all changes.
#
# - `adapters` is a list of `(A, B, scale)` with A (r,in) and B (out,r); ranks may differ. The results are (R,in) and (out,R),
#   with R the sum of the ranks, and need no scale any more.

# %% exercise="lora.stacked" role="solution"
def stacked(adapters):
    """[(A (r,in), B (out,r), scale), ...] -> A (R,in), B (out,R)."""
    ### BEGIN SOLUTION
    rows = [A for A, _, _ in adapters]
    columns = [scale * B for _, B, scale in adapters]
    A = torch.cat(rows, dim=0)                                  # (R,in)
    B = torch.cat(columns, dim=1)                               # (out,R)
    return A, B
    ### END SOLUTION


# %% exercise="lora.stacked" role="check"
check("lora.stacked", stacked)

# %% [markdown] exercise="lora.stacked" role="hint"
# Row k of A and column k of B belong together: the product is a sum over k.
#
# ---
#
# `torch.cat` of the A along axis 0, of the B along axis 1. The scale goes into one of the two, not into both.

# %%
stacked = use("lora.stacked", stacked)
both = copy.deepcopy(mine.unet), copy.deepcopy(mine.text_encoder)
for net, other in zip(both, (teal.unet, teal.text_encoder), strict=True):
    for (_, layer), (_, its) in zip(lora.adapted(net), lora.adapted(other), strict=True):
        layer.adapters["teal"] = its.adapters["teal"]
stack = StableDiffusion(base.config, base.tokenizer, both[0], both[1], base.vae)
teal_hearts = Asked(shape="heart", color="teal")
with torch.no_grad():
    ceiling = base.decode(base.encode_image(teal_hearts.real.to(session.device))).cpu()
drawn = {"base": teal_hearts.draw(base), "heart": teal_hearts.draw(mine), "teal": teal_hearts.draw(teal),
         "both": teal_hearts.draw(stack), "rebuilt": ceiling}
print(f"{ASKED} prompts for teal hearts     heart   teal   all right")
for name, pictures in drawn.items():
    rates = oracle.rates(pictures, teal_hearts.scenes)
    print(f"{name:30s} {rates['shape']:6.0%} {rates['color']:6.0%} {rates['all']:9.0%}")
strip([p[:SHOWN] for p in drawn.values()], [""] * SHOWN, list(drawn), width=6.6)
layer = stack.unet.get_submodule(MIDDLE)
pairs = [(a.down.weight.detach(), a.up.weight.detach(), a.scale) for a in layer.adapters.values()]
A, B = stacked(pairs)
ranks = [int(torch.linalg.matrix_rank(m)) for m in (pairs[0][1] @ pairs[0][0], B @ A)]
print(f"rank of one {ranks[0]}, of both {ranks[1]};",
      f"the best of rank 4 holds {float(held(B @ A)[3]):.0%} of both")

# %% [markdown]
# Neither adapter has seen a teal heart, and no picture of one was ever in any training. Side by side, each does its part: the
# one brings the shape, the other the colour, each a little less surely than alone. The last row is the ceiling: the
# autoencoder has never seen teal either, and the oracle reads many of its reconstructions as something else. Of this layer's
# eight directions four hold nearly all of the change, so the pair could be cut to rank 4 again, by exercise 1.
#
# ## Questions to think about
#
# 1. Weight decay acts on $A$ and $B$, not on $W$. Towards which model does it pull?
# 2. Why does $A$ get no gradient in the very first step, and $B$ does? Compare chapter 13.
# 3. A vector (a bias, the gain of a norm) has no rank. What can a LoRA not learn?
# 4. Two adapters for *the same* layer and concept, each trained alone: what happens with both at weight 1?
# 5. Full fine-tuning to $W'$, then `low_rank(W' - W, 4)`: how does this differ from training at rank 4 from the start?
# 6. When would you merge, and when keep the adapter beside the layer?
#
# ## Recap
#
# - $W x + \frac{\alpha}{r} B A x$: A drawn, B zero, W frozen. What is trained grows with the side of a layer, not its area.
# - The best product of rank $r$ is the SVD, cut; real updates have fast falling, not vanishing, singular values.
# - Freeze first, then put adapters in; hand the optimiser only their parameters.
# - $\alpha/r$ multiplies the change: a second learning rate, to be kept in mind when ranks are compared.
# - Merging costs nothing at inference; keep the old $W$ to undo it. Stacked adapters add up; their ranks, too.
#
# **Next**, chapter 15 makes the model larger instead: SDXL, two text encoders, sizes and crops told to the U-Net, a refiner.
