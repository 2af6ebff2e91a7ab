# %% [markdown]
# # 11 · Stable Diffusion, whole
#
# Every part exists by now: tokenizer and text encoder, U-Net, sampler, guidance, autoencoder. This chapter puts them
# together, counts them to the last parameter, and opens what others have trained: released files fit your classes, if a
# handful of details are right.
#
# **You will be able to**
#
# - derive Stable Diffusion 1.5's 859,520,964 U-Net parameters with a pencil;
# - write the whole way from words to pictures, with a seed for each;
# - begin at a picture instead of noise, and repaint a hole in one;
# - translate between the two families of names in which models are released, and load either;
# - prove equality where the eye sees no difference, and say what half precision costs.
#
# **Time** about 3 hours, of which 130 minutes are exercises. **You need** chapters 06 (U-Net), 07 (DDIM), 08 (latents), 09
# (text) and 10 (guidance). No GPU, and nothing is trained. **In the library** this chapter is `course/pipeline.py`,
# `course/presets.py` and `course/published/`; in the article, sections 7 and 8.3's table.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
import importlib.util
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from course import attention, files, layers, parts, presets, samplers
from course.classroom import begin, check, figure_style, use
from course.data import Scenes, oracle
from course.data.scenes import draw
from course.data.vocabulary import Object, Scene
from course.evaluation.cost import parameters as number
from course.evaluation.metrics import psnr
from course.pipeline import StableDiffusion
from course.published import compvis
from course.training import flops

session = begin(needs="0.1", seed=11)
STEPS = {"quick": 2, "cpu": 20, "gpu": 50}[session.profile]     # of the sampler
COUNT = {"quick": 2, "cpu": 24, "gpu": 256}[session.profile]    # prompts behind a rate
HALF = {"quick": 1, "cpu": 12, "gpu": 64}[session.profile]      # pictures in half precision: slow on a CPU
SHOWN = {"quick": 2, "cpu": 6, "gpu": 6}[session.profile]       # pictures in a row

# %% tags=["setup"]
BLUE, ORANGE, GREEN, RED, GREY = figure_style(**{"image.interpolation": "nearest", "axes.titlesize": 9})


def strip(rows, titles, labels=None, width=8.0):
    """Rows of pictures (N,3,H,W) in [-1,1]; a title over each column, a label before each row."""
    rows = [row.detach().float().cpu().clamp(-1, 1) for row in rows]
    columns, side = len(rows[0]), (width - 0.3 * bool(labels)) / len(rows[0])
    figure, axes = plt.subplots(len(rows), columns, squeeze=False, figsize=(width, side * len(rows) + 0.25))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            axes[r, c].imshow((picture.permute(1, 2, 0) + 1) / 2)
            axes[r, c].set(xticks=[], yticks=[], title=titles[c] if r == 0 else "")
            axes[r, c].spines[:].set(visible=True, color="#dddddd")
        axes[r, 0].set_ylabel(labels[r] if labels else "", fontsize=9)
    plt.show()


# %% [markdown]
# ## The machine on one page
#
# The shipped model `scenes64` has the shape of Stable Diffusion at a 200th of the size. Here is one sentence on its way
# through; each panel is the real tensor.

# %%
pipe = StableDiffusion.load("scenes64", session.device)
PROMPT = "a large red star on the left on a sky background"


def one_page(pipe, prompt):
    ids, seen = pipe.tokenizer([prompt])[0], []                 # (N,)
    used = len(pipe.tokenizer.encode(prompt)) + 2
    z0 = pipe.latents(prompt, steps=STEPS, seed=2, callback=lambda i, t, x, x0: seen.append(x0))
    context = pipe.encode_text([prompt])["context"][0]          # (N,D)
    shape = pipe.latent_shape(64, 64)                           # (C,h,w)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))

    def colors(z):                                              # the three channels that vary most, as colors
        chosen = z0[0].flatten(1).std(1).topk(3).indices.cpu()
        return (z[chosen] / 4 + 0.5).clamp(0, 1).permute(1, 2, 0)

    figure, axes = plt.subplots(1, 6, figsize=(9, 2.5), gridspec_kw={"width_ratios": [0.75, 1.1, 1, 1, 1, 1]})
    for row, i in enumerate(ids[:used].tolist()):
        word = pipe.tokenizer.decode([i]).strip() or ("start" if row == 0 else "end")
        axes[0].text(0, row, f"{i:4d}  {word}", fontsize=7, va="center", family="monospace")
    axes[0].set(xlim=(0, 1), ylim=(used, -1))
    axes[1].imshow(context[:used].cpu(), aspect="auto", cmap="RdBu_r", vmin=-2.5, vmax=2.5)
    for axis, z in zip(axes[2:5], (noise, seen[len(seen) // 2][0].cpu(), z0[0].cpu()), strict=True):
        axis.imshow(colors(z))
    axes[5].imshow((pipe.decode(z0)[0].permute(1, 2, 0).cpu() + 1) / 2)
    titles = [f"first {used} of\n{len(ids)} ids", f"context\n{tuple(context.shape)}", f"noise\n{shape}",
              "x0, half way", f"z_0\n{shape}", "picture\n(3, 64, 64)"]
    million = [f"{number(p) / 1e6:.1f} million" for p in (pipe.text_encoder, pipe.unet, pipe.vae.decoder)]
    below = ["tokenizer", f"text encoder\n{million[0]}", "a seed", f"U-Net, {2 * STEPS} times\n{million[1]}",
             "", f"decoder\n{million[2]}"]
    for axis, title, text in zip(axes, titles, below, strict=True):
        axis.set(xticks=[], yticks=[], frame_on=False, title=title)
        axis.set_xlabel(text, fontsize=8)
    plt.show()


one_page(pipe, PROMPT)

# %% [markdown]
# Below each panel stands who made it. Stable Diffusion does the same with larger numbers:
#
# | | `scenes64` | Stable Diffusion 1.5 |
# |---|---|---|
# | ids → context | (B,32) → (B,32,128) | (B,77) → (B,77,768) |
# | noise, $z_0$ | (B,8,8,8) | (B,4,64,64) |
# | picture | (B,3,64,64) | (B,3,512,512) |
# | the network predicts | $v$ | $\epsilon$ |
# | levels of 50 steps | 999, 979, … 19 (*trailing*) | 981, 961, … 1 (*leading*, offset 1) |
# | last $\bar\alpha$ | 1 | $\bar\alpha_0 = 0.99915$ |
# | guidance scale | 1.5 | 7.5 |
#
# ## 1 · What it weighs
#
# A convolution from $i$ to $o$ channels with a kernel of $k \times k$ has $k^2 i\,o$ weights and $o$ biases; a linear
# layer is the case $k = 1$; a norm over $n$ channels has $2n$ numbers. The size of the picture does not occur.
#
# A **residual block** $i \to o$: norm over $i$, $3 \times 3$ convolution $i \to o$, linear layer from the time embedding
# (width $T$) to $o$, norm over $o$, $3 \times 3$ convolution $o \to o$; a $1 \times 1$ convolution $i \to o$ beside it, only
# where $i \ne o$. The **transformer** behind it, all of width $o$: a norm and `proj_in` ($o \to o$) before, `proj_out`
# ($o \to o$) after, and between them $d$ times this block:
#
# | part | layers |
# |---|---|
# | three norms | over $o$ each |
# | attention to itself | q, k, v: $o \to o$ without bias; out: $o \to o$ with |
# | attention to the text (width $c$) | q: $o \to o$, k and v: $c \to o$, without bias; out: $o \to o$ with |
# | feed-forward, GEGLU | $o \to 8o$ (values and gates), $4o \to o$, both with bias |

# %% [markdown] exercise="unet.count_blocks" role="prompt"
# ### Exercise 1 · Two kinds of block
#
# `count_blocks(in_channels, out_channels, time_dim, context_dim, depth)` returns two whole numbers: the parameters of a
# residual block, and of the transformer behind it with `depth` blocks. `depth = 0` means that there is no transformer:
# 0.

# %% exercise="unet.count_blocks" role="solution"
def count_blocks(in_channels, out_channels, time_dim, context_dim, depth=1):
    """(residual, transformer): parameters."""
    ### BEGIN SOLUTION
    def layer(i, o, kernel=1, bias=True):
        return kernel**2 * i * o + o * bias

    i, o = in_channels, out_channels
    residual = 2 * i + layer(i, o, 3) + layer(time_dim, o) + 2 * o + layer(o, o, 3) + (i != o) * layer(i, o)
    itself = 3 * layer(o, o, bias=False) + layer(o, o)
    text = layer(o, o, bias=False) + 2 * layer(context_dim, o, bias=False) + layer(o, o)
    block = 3 * 2 * o + itself + text + layer(o, 8 * o) + layer(4 * o, o)
    return residual, 2 * o + 2 * layer(o, o) + depth * block if depth else 0
    ### END SOLUTION


# %% exercise="unet.count_blocks" role="check"
check("unet.count_blocks", count_blocks)

# %% [markdown] exercise="unet.count_blocks" role="hint"
# Write a helper for a layer, with its kernel, with or without bias; then add up the lists above.
#
# ---
#
# `a + b if depth else 0` reads as `(a + b) if depth else 0`.
#
# ---
#
# The transformer of one block comes to $20 o^2 + 2 c\,o + 21 o$, of which $18 o^2 + 2 c\,o + 17 o$ are the block.

# %% [markdown]
# Now walk through the U-Net. On the way down each level has `layers_per_block` pairs of blocks and, but for the last, a
# $3 \times 3$ convolution that halves the picture. On the way up there is one pair more a level, each reading a **skip**
# beside its input: the channels add up. What is left behind on the way down, the output of `conv_in`, of each pair and of
# each halving, is taken up in reverse order.

# %% [markdown] exercise="unet.count_unet" role="prompt"
# ### Exercise 2 · The whole U-Net
#
# `count_unet(config)` returns the number of parameters of `unet.UNet(config)`. Read from the config: `in_channels`,
# `out_channels`, `block_channels` (a width for each level, $w_0$ first), `layers_per_block`, `depth` (one a level),
# `mid_depth`, `context_dim`. Beside the pairs:
#
# - `conv_in` $3 \times 3$ to $w_0$; a norm and `conv_out` $3 \times 3$ from $w_0$;
# - the time embedding: $w_0 \to T$ and $T \to T$, both with bias, $T = 4 w_0$;
# - halving: below each level but the last; doubling: above each level but the highest; each $3 \times 3$, width kept;
# - the middle: a pair with `mid_depth`, then a residual block alone, at the last width.

# %% exercise="unet.count_unet" role="solution"
def count_unet(config):
    """Parameters of unet.UNet(config)."""
    ### BEGIN SOLUTION
    widths, T = config.block_channels, 4 * config.block_channels[0]

    def pair(i, o, depth):
        return sum(count_blocks(i, o, T, config.context_dim, depth))

    now, skips = widths[0], [widths[0]]
    total = 9 * config.in_channels * now + now + now * T + T + T * T + T
    for level, width in enumerate(widths):
        for _ in range(config.layers_per_block):
            total, now = total + pair(now, width, config.depth[level]), width
            skips.append(now)
        if level < len(widths) - 1:
            total += 9 * now * now + now
            skips.append(now)
    total += pair(now, now, config.mid_depth) + pair(now, now, 0)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(config.layers_per_block + 1):
            total, now = total + pair(now + skips.pop(), width, config.depth[level]), width
        total += 9 * now * now + now if level else 0
    return total + 2 * now + 9 * now * config.out_channels + config.out_channels
    ### END SOLUTION


# %% exercise="unet.count_unet" role="check"
check("unet.count_unet", count_unet)

# %% [markdown] exercise="unet.count_unet" role="hint"
# Keep two things while you walk: the width of what comes in, and a list of the skips' widths.
#
# ---
#
# Down: `skips.append(width)` after every pair and every halving. Up: `pair(now + skips.pop(), width, ...)`.
#
# ---
#
# `for level, width in reversed(list(enumerate(widths)))` goes up, with `range(config.layers_per_block + 1)`.

# %%
count_blocks = use("unet.count_blocks", count_blocks)
count_unet = use("unet.count_unet", count_unet)
with torch.device("meta"):                                      # shapes without memory
    built = {name: presets.build(name) for name in ("sd15", "clip-l", "vae-sd")}
    net, words = built["sd15"], torch.empty(1, 77, 768)
    one_pass = flops.forward(net, torch.empty(1, 4, 64, 64), torch.zeros(1), words)
    decoding = flops.forward(built["vae-sd"].decoder, torch.empty(1, 4, 64, 64))
print(f"U-Net by your formula        {count_unet(presets.UNETS['sd15']):13,d}")
print(f"U-Net, built on meta         {number(net):13,d} in {len(net.state_dict())} tensors")
print(f"  to inpaint, 9 channels     {count_unet(presets.UNETS['sd15-inpaint']):13,d}")
print(f"text encoder, CLIP ViT-L/14  {number(built['clip-l']):13,d};",
      f"autoencoder {number(built['vae-sd']):,d}; together {sum(map(number, built.values())):,d}")
print(f"scenes64's U-Net             {count_unet(pipe.config.unet):13,d}, by its file {number(pipe.unet):,d}")
print(f"operations: one pass {one_pass / 1e12:.2f} TFLOPs, decoder {decoding / 1e12:.2f} TFLOPs;",
      f"a picture of 50 guided steps {(100 * one_pass + decoding) / 1e12:.0f} TFLOPs")

sides = [64, 32, 16, 8, 8, 8, 16, 32, 64]
groups = [*net.down_blocks, net.mid_block, *net.up_blocks]
names = [*(f"down {i}" for i in range(4)), "middle", *(f"up {i}" for i in range(4))]
kinds = {"resnets": (BLUE, "residual blocks"), "attentions": (ORANGE, "transformers"),
         "downsamplers": (GREY, "halving, doubling"), "upsamplers": (GREY, None)}
figure, axis = plt.subplots(figsize=(8, 2.9))
left = torch.zeros(9)
for kind, (color, title) in kinds.items():
    millions = torch.tensor([number(getattr(g, kind, None) or torch.nn.Identity()) / 1e6 for g in groups])
    axis.barh(range(9), millions, left=left, color=color, label=title)
    left += millions
axis.set_yticks(range(9), [f"{n}, {s} × {s}" for n, s in zip(names, sides, strict=True)], fontsize=8)
axis.set(xlabel="million parameters", ylim=(8.6, -0.6))         # the first level on top
axis.legend()
plt.show()

# %% [markdown]
# | | here | published | scale |
# |---|---|---|---|
# | U-Net of SD 1.5 | 859,520,964 | 860 million (Podell et al. 2023, table 1) | the same model |
# | tensors of its file | 686 | 686 | the same model |
# | `scenes64`'s U-Net | 3,875,720 | none | 1/222 of it |
#
# The article's 860 million (section 8.3) are right. The way up is heavier than the way down: the skips widen what its
# blocks read. Parameters sit where channels are many, operations where pixels are many.
#
# ## 2 · Put together
#
# Guidance (chapter 10) needs the U-Net's answer with and without the text. Both go through it as *one* batch of $2B$.
# The sampler of chapter 07 wants a function `denoiser(x, t)` that gives $\epsilon$, whatever the network predicts.

# %% [markdown] exercise="pipeline.guided_denoiser" role="prompt"
# ### Exercise 3 · One question a step
#
# `guided_denoiser(unet, cond, uncond, scale, schedule, predicts)` returns a function `denoiser(x, t)`.
#
# - `unet(x, t, context)` takes any batch, with one number t for all; `cond` and `uncond` are (B,N,D); `x` is (B,C,h,w).
# - Ask the U-Net once, with the unconditional half first. The guided answer is $y_{\varnothing} + w\,(y_c -
#   y_{\varnothing})$.
# - `predicts` is `"eps"`, `"v"` or `"x0"`: `schedule.to_eps(x, y, t, given=predicts)` makes $\epsilon$ of it.

# %% exercise="pipeline.guided_denoiser" role="solution"
def guided_denoiser(unet, cond, uncond, scale, schedule, predicts="eps"):
    """(x (B,C,h,w), t) -> guided eps (B,C,h,w)."""
    ### BEGIN SOLUTION
    context = torch.cat([uncond, cond])                         # (2B,N,D)

    def denoiser(x, t):
        without, told = unet(torch.cat([x, x]), t, context).chunk(2)  # (B,C,h,w) twice
        guided = without + scale * (told - without)
        return schedule.to_eps(x, guided, t, given=predicts)

    return denoiser
    ### END SOLUTION


# %% exercise="pipeline.guided_denoiser" role="check"
check("pipeline.guided_denoiser", guided_denoiser)

# %% [markdown] exercise="pipeline.guided_denoiser" role="hint"
# `torch.cat` puts one half behind the other, and `.chunk(2)` takes them apart again: the order must be the same.
#
# ---
#
# Guidance may come before or after the conversion: at one x and t it is linear.
#
# ---
#
# `without, told = unet(torch.cat([x, x]), t, torch.cat([uncond, cond])).chunk(2)`

# %% [markdown]
# That leaves the frame: words in front, noise at the start, the decoder at the end.
#
# > **The article says** (section 7.2) `self.encode_text(prompt)` and `torch.randn(1, 4, 64, 64)`, **but** it defines no
# > tokenizer and no `encode_text`, takes no negative prompt (which its section 9.2 uses), no seed and no batch, and
# > returns values of about -1 … 1 as "the picture". Below we measure what the missing seed and the missing last step do.

# %% [markdown] exercise="pipeline.text_to_image" role="prompt"
# ### Exercise 4 · From words to a picture
#
# `text_to_image(pipe, prompts, seeds, negative, steps, scale)` returns pictures (B,3,H,W) in [-1, 1].
#
# - `prompts` is a list of B strings, `seeds` one of B numbers. `pipe.tokenizer(list of strings)` gives ids (B,N),
#   `pipe.text_encoder(ids)` a context (B,N,D). The unconditional text is `negative`, for every picture.
# - Picture i starts from `torch.randn(shape, generator=...)` with a generator of its own, seeded with `seeds[i]`;
#   `shape = pipe.latent_shape(side, side)` with `side = pipe.config.image_size`. Draw on the CPU, then `.to(pipe.device)`,
#   as the ids.
# - The levels are `pipe.schedule.timesteps(steps, pipe.config.spacing, pipe.config.offset)`; `pipe.config.predict` says
#   what `pipe.unet` answers.
# - `samplers.ddim(denoiser, x, timesteps, schedule=pipe.schedule)`; then divide by `pipe.vae.scaling_factor`,
#   `pipe.vae.decode`, clamp. Keep no graph.

# %% exercise="pipeline.text_to_image" role="solution"
@torch.no_grad()
def text_to_image(pipe, prompts, seeds, negative="", steps=20, scale=7.5):
    """B prompts, B seeds -> (B,3,H,W) in [-1,1]."""
    ### BEGIN SOLUTION
    c, device = pipe.config, pipe.device
    cond = pipe.text_encoder(pipe.tokenizer(list(prompts)).to(device))  # (B,N,D)
    uncond = pipe.text_encoder(pipe.tokenizer([negative] * len(prompts)).to(device))
    shape = pipe.latent_shape(c.image_size, c.image_size)       # (C,h,w)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    x = torch.stack(noise).to(device)                           # (B,C,h,w)
    timesteps = pipe.schedule.timesteps(steps, c.spacing, c.offset)
    denoiser = guided_denoiser(pipe.unet, cond, uncond, scale, pipe.schedule, c.predict)
    z0 = samplers.ddim(denoiser, x, timesteps, schedule=pipe.schedule)  # (B,C,h,w)
    return pipe.vae.decode(z0 / pipe.vae.scaling_factor).clamp(-1, 1)
    ### END SOLUTION


# %% exercise="pipeline.text_to_image" role="check"
check("pipeline.text_to_image", text_to_image)

# %% [markdown] exercise="pipeline.text_to_image" role="hint"
# In this order: words, contexts, noise, levels, sampler, decoder.
#
# ---
#
# A generator for each seed: `torch.Generator().manual_seed(seed)`. `torch.stack` makes the batch.
#
# ---
#
# `guided_denoiser(pipe.unet, cond, uncond, scale, pipe.schedule, pipe.config.predict)` is what `samplers.ddim` asks.

# %%
guided_denoiser = use("pipeline.guided_denoiser", guided_denoiser)
text_to_image = use("pipeline.text_to_image", text_to_image)
W = pipe.config.guidance_scale                                  # 1.5
prompts = [PROMPT, "a small blue ring in the center on a cream background",
           "a large yellow cross at the top on a gray background",
           "a large black circle left of a small red square on a white background",
           "a small purple star above a large brown ring on a pink background",
           "a small red cross below a large blue triangle on a mint background"][:SHOWN]


def named(reading):
    return ", ".join(" ".join(w or "?" for w in (o.size, o.color, o.shape)) for o in reading.objects)


mine = text_to_image(pipe, prompts, range(SHOWN), steps=STEPS, scale=W)
strip([mine], range(1, SHOWN + 1), width=7)
for i, (prompt, reading) in enumerate(zip(prompts, oracle.read(mine.cpu()), strict=True), 1):
    print(f"{i}. {prompt}\n   read: {named(reading)} on {reading.background}")
library = pipe.decode(pipe.latents(prompts, steps=STEPS, seed=0))
alone = text_to_image(pipe, prompts[-1:], [SHOWN - 1], steps=STEPS, scale=W)
print(f"from the library's pipeline it differs by at most {float((mine - library).abs().max()):.1e}")
print(f"the last picture, alone instead of in the batch:  {float((mine[-1:] - alone).abs().max()):.1e}")

# %% [markdown]
# Here is the article's start, run twice on a prompt that leaves some choice, and its end, shown as it is returned:

# %%
free = ["a large brown square above a small purple ring on a gray background"]
runs = [text_to_image(pipe, free, [int(torch.randint(2**31, ()))], steps=STEPS, scale=W) for _ in range(2)]
as_returned = runs[1].clamp(min=0) * 2 - 1                      # a viewer of 0 ... 1 cuts off what is below 0
strip([torch.cat([*runs, as_returned])], ["run 1", "run 2", "run 2, [-1, 1]\nshown as [0, 1]"], width=3.6)
print(f"the two runs differ by {float((runs[0] - runs[1]).pow(2).mean().sqrt()):.2f} (rms, of a range of 2)")
print(f"of the values of run 2 {float((runs[1] < 0).float().mean()):.0%} lie below 0")

# %% [markdown]
# ## 3 · Begin at a picture
#
# Encode a picture, add the noise of a level in between, and denoise from there: what is coarser than the noise is kept, what
# is finer is made anew. The share of the way that is walked is the **strength**.
#
# $$z_0 = c\,\mathcal E(x) \qquad z_t = \sqrt{\bar\alpha_t}\,z_0 + \sqrt{1-\bar\alpha_t}\;\epsilon
# \qquad t = \text{the first level that is left}$$

# %% [markdown] exercise="pipeline.start_from_image" role="prompt"
# ### Exercise 5 · Strength
#
# `start_from_image(z0, noise, timesteps, strength, schedule)` returns `(x, timesteps)`: where to start, and the levels
# that are left.
#
# - `z0` and `noise` are (B,C,h,w), `timesteps` (S,) falls from high to low, `strength` lies in (0, 1].
# - The last $\lfloor \text{strength} \cdot S + 10^{-9} \rfloor$ levels are left, at least one. (To a computer 0.58 · 50 is
#   28.999999999999996.)
# - `schedule.add_noise(z0, noise, t)` with one number t, the first level that is left.

# %% exercise="pipeline.start_from_image" role="solution"
def start_from_image(z0, noise, timesteps, strength, schedule):
    """(x (B,C,h,w), the levels that are left)."""
    ### BEGIN SOLUTION
    steps = int(strength * len(timesteps) + 1e-9)
    steps = max(1, steps)
    left = timesteps[len(timesteps) - steps:]
    x = schedule.add_noise(z0, noise, float(left[0]))
    return x, left
    ### END SOLUTION


# %% exercise="pipeline.start_from_image" role="check"
check("pipeline.start_from_image", start_from_image)

# %% [markdown] exercise="pipeline.start_from_image" role="hint"
# High noise decides what is drawn, low noise the detail: which end of `timesteps` is walked at a small strength?
#
# ---
#
# `timesteps[-0:]` is the whole list. `max(1, ...)` comes before the slice.
#
# ---
#
# `left = timesteps[len(timesteps) - max(1, int(strength * len(timesteps) + 1e-9)):]`

# %%
start_from_image = use("pipeline.start_from_image", start_from_image)


@torch.no_grad()
def edit(pipe, image, prompts, seed=0, strength=1.0, keep=None, scale=W):
    """Pictures (B,3,H,W) from `image` (1,3,H,W), one a prompt; it stays where `keep` (1,1,h,w) is 1."""
    known = pipe.encode_image(image.to(pipe.device)).expand(len(prompts), -1, -1, -1)
    noise = torch.randn(known.shape[1:], generator=torch.Generator().manual_seed(seed)).to(known)
    cond, uncond = (pipe.encode_text(list(texts))["context"] for texts in (prompts, [""] * len(prompts)))
    denoiser = guided_denoiser(pipe.unet, cond, uncond, scale, pipe.schedule, pipe.config.predict)
    timesteps = pipe.schedule.timesteps(STEPS, pipe.config.spacing, pipe.config.offset)
    x, left = start_from_image(known, noise.expand_as(known), timesteps, strength, pipe.schedule)
    if keep is not None:
        denoiser = keep_known(denoiser, known, keep, pipe.schedule)
    return pipe.decode(samplers.ddim(denoiser, x, left, schedule=pipe.schedule))


source = Scenes(64, "test", objects=(2, 2), textures=("plain",), degraded=0.0)[6]
image, caption = source["image"][None], source["caption"]       # (1,3,64,64)
wish = "a large green star on a sky background"
strengths = [0.2, 0.4, 0.6, 0.7, 0.8, 1.0][:SHOWN]
texts = {"own caption": caption, "red → green": caption.replace("red", "green"), "another": wish}
rows = {name: torch.cat([image, *[edit(pipe, image, [text], 3, s).cpu() for s in strengths]])
        for name, text in texts.items()}
strip(rows.values(), ["given", *[f"strength {s}" for s in strengths]], list(rows))
print(f"given:   {caption}\nanother: {wish}\nPSNR to the picture given, in dB, by strength:\n{'':12s}",
      *[f"{s:5.1f}" for s in strengths])
for name, row in rows.items():
    print(f"{name:12s}", *[f"{decibel:5.1f}" for decibel in psnr(image, row[1:]).tolist()])

# %% [markdown]
# Told its own caption, the picture survives to 0.6; from 0.7 on the small square is drawn elsewhere. One exchanged word
# repaints the square in its place, at 0.2 already; at 0.8 the model is of two minds. A quite different wish takes over at once.
#
# ## 4 · Fill a hole
#
# A mask says where a picture may change. The trick is to let the sampler believe that it asked a better network, one
# that already *knows* $z_0$ where the picture stays. There the noise in $z_t$ can be computed:
#
# $$\hat\epsilon = m \odot \underbrace{\frac{z_t - \sqrt{\bar\alpha_t}\,z_0}{\sqrt{1-\bar\alpha_t}}}_{\text{leads back to what
# was there}} + (1 - m) \odot \epsilon_\theta(z_t, t)$$
#
# The network still sees all of $z_t$, so that what it paints into the hole fits what is around.

# %% [markdown] exercise="pipeline.keep_known" role="prompt"
# ### Exercise 6 · What is known
#
# `keep_known(denoiser, known, keep, schedule)` returns a function `blended(x, t)` that gives $\hat\epsilon$.
#
# - `denoiser(x, t)` gives $\epsilon_\theta$; `known` is $z_0$, (B,C,h,w); `keep` is $m$, (1,1,h,w): 1 where the picture
#   stays, in between it mixes.
# - `schedule.to_eps(x, known, t, given="x0")` is the fraction.

# %% exercise="pipeline.keep_known" role="solution"
def keep_known(denoiser, known, keep, schedule):
    """A denoiser (x, t) -> eps that knows x_0 where `keep` is 1."""
    ### BEGIN SOLUTION
    def blended(x, t):
        guess = denoiser(x, t)                                  # (B,C,h,w)
        certain = schedule.to_eps(x, known, t, given="x0")
        return keep * certain + (1 - keep) * guess

    return blended
    ### END SOLUTION


# %% exercise="pipeline.keep_known" role="check"
check("pipeline.keep_known", keep_known)

# %% [markdown] exercise="pipeline.keep_known" role="hint"
# The shape is that of exercise 3: an inner function, which is returned.
#
# ---
#
# Mix two things of the same kind: two $\epsilon$, not a latent and an $\epsilon$.
#
# ---
#
# `keep * schedule.to_eps(x, known, t, given="x0") + (1 - keep) * denoiser(x, t)`

# %%
keep_known = use("pipeline.keep_known", keep_known)
hole = F.pad(torch.ones(1, 1, 52, 40), (0, 24, 6, 6))           # (1,1,64,64): the square, and around it
keep = 1 - F.max_pool2d(hole, 8)                                # (1,1,8,8): 0 in cells that the hole touches
scene = Scene((Object("square", "blue", "large", "plain", "left", 0.28, 0.5, 0.2),
               Object("ring", "red", "small", "plain", "right", 0.76, 0.5, 0.13)), "cream")
base = 2 * draw([scene], 64) - 1                                # (1,3,64,64)
things = ["orange star", "green triangle", "black circle", "purple cross", "brown ring"][:SHOWN - 1]
asked = [f"a large {thing} left of a small red ring on a cream background" for thing in things]
filled = torch.cat([edit(pipe, base, [text], seed=1, keep=keep.to(pipe.device)) for text in asked]).cpu()
gray = torch.where(F.interpolate(keep, (64, 64)) == 1, base, 0.4)
strip([torch.cat([base, gray, filled])], ["given", "may change", *[f"large\n{t}" for t in things]], width=7)
for thing, reading in zip(things, oracle.read(filled), strict=True):
    print(f"asked: large {thing:14s} read: {named(reading)}")
rebuilt = pipe.decode(pipe.encode_image(base.to(pipe.device))).cpu()
change = (filled - rebuilt).abs().amax((0, 1))                  # (64,64): not what the autoencoder changes
print(f"largest change inside the hole {change[:, :40].amax():.2f};\nto its right, by distance in pixels:",
      ", ".join(f"{d}: {change[:, 39 + d].amax():.2f}" for d in (1, 2, 4, 8, 16)))

# %% [markdown]
# All five come out as asked, and the ring stays: in latents to the last bit, in pixels nearly, because a decoded pixel reads
# its neighbours in the latent; programs for users paste the old pixels back. A mask acts by whole cells of the latent,
# here 8 × 8 pixels. Stable Diffusion also comes with a U-Net trained for this, which reads the mask and what is left in five
# more channels: the 14,400 parameters of the difference above.
#
# ## 5 · Released weights
#
# Stable Diffusion was released by CompVis as one file, and diffusers later gave every tensor another name. Our modules
# have the names of diffusers; `course/published/` translates. In the authors' code the U-Net is three flat lists.
# `input_blocks.0` is `conv_in`; then every level has an entry for each pair of blocks, `.0` the residual block and `.1` the
# transformer, and one entry for the halving, `.0.op`. `output_blocks` starts at the lowest level with entry 0; a level has
# an entry for each pair, and the doubling stands *inside* the last of them: `.2.conv` behind a transformer, `.1.conv`
# where there is none.

# %% [markdown] exercise="published.unet_entry" role="prompt"
# ### Exercise 7 · The other names
#
# `unet_entry(way, level, kind, index, layers_per_block, attention)` returns where a part lies in the authors' file.
#
# | ours, `way_blocks.level.kind.index` | theirs |
# |---|---|
# | `down_blocks.0.resnets.0` | `input_blocks.1.0` |
# | `down_blocks.0.downsamplers.0` | `input_blocks.3.0.op` |
# | `up_blocks.0.upsamplers.0` | `output_blocks.2.1.conv` |
# | `up_blocks.1.attentions.1` | `output_blocks.4.1` |
#
# - `way` is `"down"` or `"up"`; `kind` is `"resnets"`, `"attentions"`, `"downsamplers"` or `"upsamplers"`.
# - `attention` says for each level *on the way down* whether it has transformers; level 0 on the way up is the last of
#   them.

# %% exercise="published.unet_entry" role="solution"
def unet_entry(way, level, kind, index, layers_per_block=2, attention=(True, True, True, False)):
    """Where CompVis' file has `{way}_blocks.{level}.{kind}.{index}`."""
    ### BEGIN SOLUTION
    first = level * (layers_per_block + 1) + (way == "down")    # entry 0 on the way down is conv_in
    place = 0 if kind == "resnets" else 1
    if way == "down":
        if kind == "downsamplers":
            return f"input_blocks.{first + layers_per_block}.0.op"
        return f"input_blocks.{first + index}.{place}"
    if kind == "upsamplers":
        behind = 2 if attention[::-1][level] else 1
        return f"output_blocks.{first + layers_per_block}.{behind}.conv"
    return f"output_blocks.{first + index}.{place}"
    ### END SOLUTION


# %% exercise="published.unet_entry" role="check"
check("published.unet_entry", unet_entry)

# %% [markdown] exercise="published.unet_entry" role="hint"
# Both ways take `layers_per_block + 1` entries a level: down two pairs and a halving, up three pairs.
#
# ---
#
# Only on the way down the count begins at 1. The halving is the last entry of its level, the doubling is inside the last.
#
# ---
#
# `first = level * (layers_per_block + 1)`, plus 1 on the way down; the last entry is `first + layers_per_block` on both.

# %%
unet_entry = use("published.unet_entry", unet_entry)
ENDS = compvis.ENDS | {f"mid_block.{ours}": f"middle_block.{place}" for ours, place in compvis.MIDDLE.items()}


def theirs(name, **shape):
    """Our name of a U-Net's tensor -> CompVis' name."""
    pieces = name.split(".")
    if pieces[0] in ("down_blocks", "up_blocks"):
        head = unet_entry(pieces[0].split("_")[0], int(pieces[1]), pieces[2], int(pieces[3]), **shape)
        rest = [p for p in pieces[4:] if not (pieces[2].endswith("samplers") and p == "conv")]
    else:
        cut = next(n for n in (1, 2, 3) if ".".join(pieces[:n]) in ENDS)
        head, rest = ENDS[".".join(pieces[:cut])], pieces[cut:]
    if "resnets" in pieces:                                     # norm1, conv1 -> in_layers.0, in_layers.2
        rest = [compvis.RESNET.get(p, p) for p in rest]
    return "model.diffusion_model." + ".".join([head, *rest])


names = {name: theirs(name) for name in built["sd15"].state_dict()}
agree = sum(compvis.unet_name(ours, 2, [False, True, True, True]) in other for ours, other in names.items())
print(f"{len(set(names.values()))} different names for {len(names)} tensors; {agree} as the library has them")
for name in list(names)[40:640:100]:
    print(f"{name}\n    {names[name].removeprefix('model.diffusion_model.')}")

# %% [markdown]
# A map is proved by a file. Write the weights of `scenes64` under CompVis' names, and let the library's loader for released
# files read them back:

# %%
with tempfile.TemporaryDirectory() as folder:
    shape = {"layers_per_block": 1, "attention": (True, True)}
    path = Path(folder) / "model.safetensors"
    save_file({theirs(n, **shape): t.cpu().contiguous() for n, t in pipe.unet.state_dict().items()}, path)
    tensors, _ = files.load_tensors(path)
    again = presets.build("scenes64")
    files.load_into(again, compvis.unet(tensors, again), "model.safetensors")
came_back = all(torch.equal(again.state_dict()[n], t.cpu()) for n, t in pipe.unet.state_dict().items())
print("every tensor came back to its place:", came_back)

# %% [markdown]
# A wrong *name* is an error that names it. A wrong *detail* fits: the shapes agree, the file loads, and the model is another
# one. Here are five such details, put into `scenes64` by swapping one part each; the weights are the same in all:

# %%
norm, waves = layers.group_norm, layers.timestep_embedding
attend, heads = attention.attend, attention.CrossAttention


class GateFirst(attention.GEGLU):
    def forward(self, x):
        gate, value = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


TRAPS = {
    "as it is": {},
    "epsilon 1e-5\nfor 1e-6": {"layers.group_norm": lambda channels, eps: norm(channels, max(eps, 1e-5))},
    "text looks\nahead": {"attention.attend": lambda q, k, v, causal=False, **how: attend(q, k, v, **how)},
    "heads: 96 wide,\nnot 32": {"attention.CrossAttention": lambda dim, c, h, d: heads(dim, c, 1, h * d)},
    "gate before\nvalue": {"attention.GEGLU": GateFirst},
    "sine before\ncosine": {"layers.timestep_embedding": lambda t, dim: waves(t, dim).roll(dim // 2, dims=-1)},
}
unseen = Scenes(64, "test", textures=("plain",), degraded=0.0)
said, scenes = unseen.captions(range(COUNT), full=True), unseen.scenes(range(COUNT))


def drawn(model, texts):
    return model.decode(model.latents(texts, steps=STEPS, seed=0)).cpu()


def right(images):
    """Of pictures of `said`, or of the first of them: how many show every word?"""
    return sum(oracle.score(r, s)["all"] for r, s in zip(oracle.read(images), scenes, strict=False))


first, rows = drawn(pipe, prompts), []
for name, swaps in TRAPS.items():
    with parts.swapped(swaps):
        model = StableDiffusion.load("scenes64", session.device)    # loads without a word
    rows.append(drawn(model, prompts))
    print(f"{' '.join(name.split()):30s} largest difference {float((rows[-1] - first).abs().max()):7.1e},",
          f"all words right {right(drawn(model, said)):3d} of {COUNT}")
strip([torch.stack([row[i] for row in rows]) for i in range(min(3, SHOWN))], list(TRAPS), width=8)

# %% [markdown]
# All loaded. The first mistake is far too small to see, though ten times the rounding of a batch
# (section 2). The last one changes every picture and is as often right, within chance. Only three of five would be noticed
# by somebody who looks.
#
# So equality is a number. If `diffusers` is installed, the next cell makes a small model in *its* classes, with every weight
# random, since what starts at zero or one hides mistakes; saves it as a released folder; opens that folder here; and lets
# *your* `text_to_image` and its pipeline draw from the same noise.

# %%
def beside_diffusers():
    """(diffusers' pictures, yours): (2,3,16,16) in [-1,1], from one folder."""
    import diffusers

    from course.evaluation import parity_pipelines
    diffusers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        reference, ours = parity_pipelines.stable_diffusion(Path(folder))
        texts = ["a small red circle", "a large blue ring"]
        pictures = reference(texts, negative_prompt=["red", "red"], num_inference_steps=10, guidance_scale=7.5,
                             latents=parity_pipelines.noise(seed=0), output_type="pt").images
        return 2 * pictures - 1, text_to_image(ours, texts, [0, 1], "red", 10, 7.5)


if session.profile == "quick":
    print("the profile `quick` leaves this comparison out: importing diffusers takes longer than the chapter")
elif missing := [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name) is None]:
    print(f"{' and '.join(missing)} not installed: nothing to compare. pip install -e '.[bench]' brings it")
else:
    reference, yours = beside_diffusers()
    difference = float((reference - yours).abs().max())
    print(f"ten guided steps and the decoder: they differ by at most {difference:.1e} of a range of 2;",
          f"one step of 255 is {2 / 255:.1e}")

# %% [markdown]
# `course bench parity` does this for U-Nets, autoencoders, text encoders, ControlNet, LoRA, samplers and pipelines.
#
# **A released model.** If you have one, name it before you start Jupyter, and the next cell draws with *your* code and
# *its* weights:
#
# ```
# # the folder as diffusers saved it, or the one .safetensors:
# export COURSE_RELEASED=/path/to/stable-diffusion-v1-5
# # only for a single file, which has no vocabulary:
# export COURSE_TOKENIZER=/path/to/tokenizer
# ```
#
# It has to be an SD 1.x or 2.x (SDXL is chapter 15). Nothing is downloaded here: accept the licence yourself. In
# float32 the weights take 4.3 GB, and a picture of 20 steps some 35 TFLOPs by the count above: minutes on a CPU.

# %%
RELEASED = os.environ.get("COURSE_RELEASED")
if RELEASED and session.profile != "quick":
    big = StableDiffusion.load(RELEASED, session.device, os.environ.get("COURSE_TOKENIZER"))
    wanted = ["a photograph of an astronaut riding a horse"]
else:
    print("COURSE_RELEASED names no model (or the profile is quick): the same lines run on the shipped one")
    big, wanted = pipe, ["a large orange ring on a gray background"]
total, c = sum(map(number, big.modules().values())), big.config
print(f"{big.origin.split(',')[0]}: {total:,d} parameters, pictures of {c.image_size} pixels,\n   ",
      f"predicts {c.predict}, {c.spacing} steps, offset {c.offset}, guidance {c.guidance_scale}")
strip([text_to_image(big, wanted, [1], steps=STEPS, scale=c.guidance_scale)], wanted, width=2.6)

# %% [markdown]
# One more trap: CompVis' sampler takes the levels `range(0, 1000, 1000 // S)`: 31 of them for S = 30.
#
# ## 6 · Half of the bits
#
# A float32 has a sign, 8 bits of exponent and 23 of fraction. Two formats keep 16 bits: **float16** with 5 and 10 ends at
# 65,504; **bfloat16** with 8 and 7 reaches as far as float32, in steps eight times coarser than float16's. Memory halves,
# and GPUs multiply several times faster. What is lost?

# %% [markdown] exercise="weights.survey" role="prompt"
# ### Exercise 8 · What is lost
#
# `survey(tensors, dtype)` converts a list of float tensors to `dtype` and returns a dict of plain numbers over all of
# them:
#
# - `"bytes"`: how much memory they take then; `dtype.itemsize` is the size of one value;
# - `"overflowed"`: how many values have become infinite;
# - `"vanished"`: how many have become 0 that were not;
# - `"relative"`: $\lVert x' - x\rVert / \lVert x\rVert$ over all values that did not overflow. Take it in float64.

# %% exercise="weights.survey" role="solution"
def survey(tensors, dtype):
    """{"bytes", "overflowed", "vanished", "relative"} of tensors, if they were converted to dtype."""
    ### BEGIN SOLUTION
    x = torch.cat([tensor.flatten().double() for tensor in tensors])
    y = x.to(dtype).double()
    there = torch.isfinite(y)
    return {"bytes": len(x) * dtype.itemsize, "overflowed": int((~there).sum()),
            "vanished": int(((y == 0) & (x != 0)).sum()),
            "relative": float((y - x)[there].norm() / x[there].norm())}
    ### END SOLUTION


# %% exercise="weights.survey" role="check"
check("weights.survey", survey)

# %% [markdown] exercise="weights.survey" role="hint"
# Join all tensors to one long vector first; then each answer is a line.
#
# ---
#
# `x.to(dtype).double()` is what is left of x. `torch.isfinite` says what did not overflow.
#
# ---
#
# `(y - x)[there].norm() / x[there].norm()`, with `int(...)` and `float(...)` around the tensors.

# %%
survey = use("weights.survey", survey)
NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def outputs_of(model, texts):
    """What every layer of a module says on the way to pictures: tensors, in float32."""
    seen, every = [], [layer for module in model.modules().values() for layer in module.modules()]
    hooks = [layer.register_forward_hook(lambda m, i, out: seen.append(out.detach().cpu()))
             for layer in every if not list(layer.children())]
    drawn(model, texts)
    for hook in hooks:
        hook.remove()
    return [t for t in seen if t.is_floating_point()]


said_inside = outputs_of(pipe, prompts[:1])
trained = [p.detach().cpu() for module in pipe.modules().values() for p in module.parameters()]
print(f"the largest value inside: {max(t.abs().max() for t in said_inside):.0f}; float16 ends at 65,504")
for what, tensors in (("weights", trained), ("what the layers say", said_inside)):
    for dtype in (torch.float16, torch.bfloat16):
        lost = survey(tensors, dtype)
        print(f"{what:20s} {NAMES[dtype]:9s}", "".join(f"{name} {lost[name]:<10.3g}" for name in lost))

exact, found = drawn(pipe, said[:HALF]), {}
for dtype in NAMES:
    found[dtype] = drawn(StableDiffusion.load("scenes64").to(session.device, dtype), said[:HALF])
    off = psnr(found[dtype], exact)
    print(f"{NAMES[dtype]:9s} all words right {right(found[dtype]):3d} of {HALF};",
          f"PSNR to float32: median {float(off.median()):.1f} dB, worst {float(off.min()):.1f} dB")
gap = (found[torch.bfloat16] - exact).abs()
worst = int(gap.mean((1, 2, 3)).argmax())
strip([torch.stack([*(f[worst] for f in found.values()), 100 * gap[worst] - 1])],
      [*NAMES.values(), "bfloat16:\nerror × 100"], width=4.6)

# %% [markdown]
# The shipped weights come in float16, so that it loses nothing of them; of what the layers say it loses 2 · 10⁻⁴, and
# bfloat16 eight times as much, as its bits predict. Nothing overflows: 199 is far from 65,504. SDXL's autoencoder does
# overflow in float16, so `config.vae_float32` leaves it in float32, and so is the way from noise to $z_0$ always. In pictures
# bfloat16 costs 59 dB, as much as rounding to bytes does anyway, and float16 a tenth of that error; the oracle reads all
# three alike. A CPU without 16-bit instructions is slower with halves.
#
# ## Questions to think about
#
# 1. How many parameters would the U-Net have if skips were added instead of joined? Change one line of `count_unet`.
# 2. Both halves of guidance share one batch. When would you rather ask twice?
# 3. At strength 1 there is 6.8 % of the given picture's amplitude left (chapter 05). Does it still steer?
# 4. Which of the five traps would a test on freshly *initialised* networks miss, and why?
#
# ## Recap
#
# - Parameters follow from widths: $20 o^2 + 2c\,o + 21 o$ a transformer, some $18\,o^2$ a residual block; the resolution does
#   not occur.
# - Image to image walks the last levels; inpainting answers with the $\epsilon$ that it knows.
# - A wrong name is loud, a wrong detail quiet: compare numbers with the reference, on random weights.
# - float16 can overflow, bfloat16 is coarse; keep the sampler in float32.
#
# **Next**, chapter 12 asks how good such pictures are: distances between sets of pictures, how they mislead, and the
# tables of the paper, measured anew.
