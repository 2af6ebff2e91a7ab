# %% [markdown]
# # 00 · Tour
#
# Type a sentence, get a picture that nobody has drawn. Today you take such a model apart, step by step, and put
# questions to it that have measurable answers. The other chapters build every part.
#
# **You will be able to**
#
# - turn words into pictures, and name each thing that happens on the way: tokens, context, noise, steps, decoder;
# - say what prompt, seed, guidance scale and number of steps do, from sweeps that you ran;
# - judge a model by a count with an interval, not by its prettiest picture;
# - say what the latent space buys, and find your way through the course and the article.
#
# **Time** about 2 hours, of which 70 minutes are exercises. **You need** tensors and indexing. No GPU, and nothing is
# trained. **In the library** this chapter is `course/pipeline.py`, `course/pixels.py`, `course/guidance.py` and
# `course/evaluation/fidelity.py`; in the article, sections 1 and 7, with a look at all others.

# %%
import json

import matplotlib.pyplot as plt
import torch

from course import pipeline, samplers
from course.classroom import begin, check, checks, figure_style, use
from course.data import Scenes, oracle
from course.data.captions import caption
from course.data.vocabulary import Object, Scene
from course.evaluation import cost, fidelity
from course.pipeline import StableDiffusion

session = begin(needs="0.1", seed=0)
COUNT = {"quick": 4, "cpu": 40, "gpu": 256}[session.profile]        # pictures behind each point of a sweep
STEPS = {"quick": 2, "cpu": 16, "gpu": 25}[session.profile]         # denoising steps, where nothing else is said
ROUNDS = {"quick": 1, "cpu": 5, "gpu": 20}[session.profile]         # of a time measurement

# %% tags=["setup"]
BLUE, ORANGE, GREEN, RED, GREY = figure_style()


def strip(rows, titles, labels=None, width=8.0):
    """Rows of pictures (N,3,H,W) in [-1,1]; a title over each column, a label before each row."""
    rows = [row.detach().float().cpu().clamp(-1, 1) for row in rows]
    columns, side = len(rows[0]), (width - 0.3 * bool(labels)) / len(rows[0])
    figure, axes = plt.subplots(len(rows), columns, squeeze=False, figsize=(width, side * len(rows) + 0.25))
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            axes[r, c].imshow((picture.permute(1, 2, 0) + 1) / 2, interpolation="nearest")
            axes[r, c].set_xticks([])
            axes[r, c].set_yticks([])
            axes[r, c].set_title(titles[c] if r == 0 else "", fontsize=9)
            axes[r, c].spines[:].set_visible(False)
        if labels:
            axes[r, 0].set_ylabel(labels[r], fontsize=9)
    plt.show()


# %% [markdown]
# ## Words in, pictures out
#
# The model comes with the course. It was trained from scratch on `Scenes`, drawings of coloured shapes with captions:
# small enough for a laptop, and made of the same parts, in the same order, as Stable Diffusion. Six sentences, and what
# it makes of them:

# %%
pipe = StableDiffusion.load("scenes64", session.device)


def wish(size, color, shape, position, background):
    """A scene with one object: what we ask for, and what the picture is compared with."""
    return Scene((Object(shape, color, size, "plain", position),), background)


wishes = [wish("large", "yellow", "ring", "center", "pink"), wish("small", "black", "cross", "bottom", "mint"),
          wish("large", "blue", "circle", "left", "cream"), wish("large", "red", "star", "center", "white"),
          wish("small", "green", "square", "right", "sky"), wish("large", "purple", "triangle", "top", "gray")]
pairs = [Scene((Object("ring", "red", "small", "plain", "left", 0.28, 0.5),         # words, and a place for each
                Object("square", "blue", "large", "plain", "right", 0.70, 0.5)), "gray"),
         Scene((Object("star", "yellow", "large", "plain", "top", 0.5, 0.28),
                Object("cross", "black", "small", "plain", "bottom", 0.5, 0.75)), "pink")]
prompts = [caption(scene) for scene in wishes]
pictures = pipe.decode(pipe.latents(prompts, steps=STEPS, seed=0)).cpu()        # (6,3,64,64) in [-1,1]
strip([pictures], [f"{o.size} {o.color}\n{o.shape}\n{o.position}\non {s.background}" for s in wishes for o in s.objects],
      width=7.5)

# %% [markdown]
# Did it draw what was asked? Here a program can tell, because the world is small: `oracle.read` finds shape, colour,
# size, place and background by drawing hypotheses and comparing, without any learning. Where nothing fits it abstains
# (`?`). `oracle.score` compares what it read with the wish.

# %%
def judge(images, scenes):
    """For each picture: does it show all that was asked for?"""
    return [oracle.score(reading, scene)["all"] for reading, scene in zip(oracle.read(images), scenes, strict=True)]


for scene, reading, right in zip(wishes, oracle.read(pictures), judge(pictures, wishes), strict=True):
    read = "; ".join(" ".join(word or "?" for word in (o.size, o.color, o.shape, o.position)) for o in reading.objects)
    asked = scene.objects[0]
    print(f"{'✓' if right else '✗'}  asked {asked.size} {asked.color} {asked.shape} {asked.position}, "
          f"{scene.background:6s} read {read or 'nothing'}, {reading.background or '?'}")

# %% [markdown]
# In a terminal, `course sample "a large red star on a white background"` draws one more.
#
# ## How these notebooks work
#
# An **exercise** is four cells: what to write, a stub, a locked **check**, and folded **hints** that say more and more.
# A check tries properties of your function and says in words what is wrong; it gives **points**, also for a part of
# the way. Run it as often as you like. While an exercise is open, the course's own answer stands in and an orange
# **banner** says so: you can always read on. Here is a check at work on a wrong answer to the first exercise, which
# scales bytes to 0 … 1 and forgets to round:

# %%
def hasty(pictures):
    if pictures.dtype == torch.uint8:
        return (pictures.float() / 255).permute(0, 3, 1, 2)
    return (pictures * 255).to(torch.uint8).permute(0, 2, 3, 1)


print(checks.text(checks.find("pixels.convert").run(hasty)))

# %% [markdown]
# `course start` copies the notebooks to a folder of yours, `course lab` opens the first one with an open exercise, and
# `course progress` shows your points. The environment variable `COURSE_PROFILE` sets how much is computed: `quick`
# (seconds), `cpu` (minutes, the default) or `gpu`.
#
# ## 1 · A picture is a tensor
#
# On disk and on the screen a picture is bytes: rows, columns, then three colours, 0 … 255. Networks want small numbers
# around zero, and the colours (channels) in front:
#
# | | shape | dtype | range |
# |---|---|---|---|
# | bytes | (B,H,W,3) | uint8 | 0 … 255 |
# | values | (B,3,H,W) | float32 | -1 … 1 |

# %% [markdown] exercise="pixels.convert" role="prompt"
# ### Exercise 1 · Bytes and values
#
# `convert(pictures)` goes both ways; the dtype says which.
#
# - uint8 (B,H,W,3) becomes float32 (B,3,H,W): byte 0 is -1, byte 255 is exactly 1, linear in between.
# - float (B,3,H,W) becomes uint8 (B,H,W,3): what lies outside -1 … 1 is cut off, then rounded to the nearest byte.
# - `pictures` itself must stay as it was.

# %% exercise="pixels.convert" role="solution"
def convert(pictures):
    """uint8 (B,H,W,3) -> float (B,3,H,W) in [-1,1], and back."""
    ### BEGIN SOLUTION
    if pictures.dtype == torch.uint8:
        values = pictures.float() / 127.5 - 1
        return values.permute(0, 3, 1, 2)                       # (B,3,H,W)
    levels = (pictures.clamp(-1, 1) + 1) * 127.5                # 0 ... 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1)   # (B,H,W,3)
    ### END SOLUTION


# %% exercise="pixels.convert" role="check"
check("pixels.convert", convert)

# %% [markdown] exercise="pixels.convert" role="hint"
# Ask for the way with `pictures.dtype == torch.uint8`. The range -1 … 1 is 2 wide, 0 … 255 is 255 wide.
#
# ---
#
# `permute` exchanges axes; `reshape` would keep the order in memory and mix colours with rows. `.to(torch.uint8)` cuts
# fractions off, so `.round()` comes first; and `.clamp(-1, 1)` before both.
#
# ---
#
# `pictures.float() / 127.5 - 1` and `((pictures.clamp(-1, 1) + 1) * 127.5).round()`, with `permute(0, 3, 1, 2)` and
# `permute(0, 2, 3, 1)`.

# %%
convert = use("pixels.convert", convert)
star = pictures[3:4]                                            # (1,3,64,64)
bytes_ = convert(star)                                          # (1,64,64,3) uint8
panels = torch.cat([star, *[torch.where(torch.eye(3)[k].reshape(1, 3, 1, 1) > 0, star, -1.0) for k in range(3)]])
strip([panels], ["all three", "red plane", "green plane", "blue plane"], width=5)
print("the pixel in the middle:", bytes_[0, 32, 32].tolist(), "as values:",
      [round(v, 3) for v in star[0, :, 32, 32].tolist()])
print("largest change by rounding to bytes:", f"{float((convert(bytes_) - star).abs().max()):.5f}")

# %% [markdown]
# White is all three planes at full; a red star is a star-shaped hole in the other two. Rounding moves a value by at
# most half a step, 1/255 = 0.0039.

# %% [markdown] exercise="pixels.make_grid" role="prompt"
# ### Exercise 2 · A contact sheet
#
# One picture proves little, so we will look at many. `make_grid(images, columns, gap=2, value=1.0)` puts `images`
# (N,C,H,W) on one sheet, row by row, and returns it as (C, rows · (H + gap) - gap, columns · (W + gap) - gap).
#
# - Gaps of `gap` pixels stand between pictures only, not around the sheet.
# - Gaps, and cells for which no picture is left, have the value `value`.

# %% exercise="pixels.make_grid" role="solution"
def make_grid(images, columns, gap=2, value=1.0):
    """(N,C,H,W) -> one sheet (C, rows, columns), filled row by row."""
    ### BEGIN SOLUTION
    N, C, H, W = images.shape
    rows = -(-N // columns)                                     # rounded up
    sheet = images.new_full((C, rows * (H + gap) - gap, columns * (W + gap) - gap), value)
    for i, image in enumerate(images):
        top, left = i // columns * (H + gap), i % columns * (W + gap)
        sheet[:, top: top + H, left: left + W] = image
    return sheet
    ### END SOLUTION


# %% exercise="pixels.make_grid" role="check"
check("pixels.make_grid", make_grid)

# %% [markdown] exercise="pixels.make_grid" role="hint"
# How many rows do N pictures need? 5 pictures in 3 columns need 2: round up.
#
# ---
#
# Begin with a sheet full of `value` (`images.new_full(shape, value)`). Picture i goes to row `i // columns` and column
# `i % columns`.
#
# ---
#
# `top, left = i // columns * (H + gap), i % columns * (W + gap)`, then
# `sheet[:, top: top + H, left: left + W] = image`.

# %%
make_grid = use("pixels.make_grid", make_grid)


def gallery(images, columns, marks=None, names=None, labels=None, width=5.0):
    """Your grid on the screen; a tick or a cross in the corner says what the oracle thinks."""
    H, W = images.shape[2] + 2, images.shape[3] + 2
    sheet = make_grid(images.detach().float().cpu(), columns)   # (3,rows,columns)
    figure, axis = plt.subplots(figsize=(width, width * sheet.shape[1] / sheet.shape[2]))
    axis.imshow(convert(sheet[None])[0], interpolation="nearest")
    for i, right in enumerate(marks or []):
        axis.text(i % columns * W + 60, i // columns * H + 60, "✓" if right else "✗", color="white", fontsize=8, ha="right",
                  bbox={"boxstyle": "circle,pad=0.15", "color": BLUE if right else RED})
    axis.set_xticks([c * W + 32 for c in range(columns)] if names else [], names or [], fontsize=9)
    rows = -(-len(images) // columns)
    axis.set_yticks([r * H + 32 for r in range(rows)] if labels else [], labels or [], fontsize=9)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    plt.show()


SEEDS = range(2 if session.profile == "quick" else 6)
chosen = [wishes[0], wishes[3], *pairs]                         # one row each, one column for each seed
drawn = torch.cat([pipe.decode(pipe.latents([caption(scene)] * len(SEEDS), steps=STEPS, seed=0)).cpu() for scene in chosen])
names = ["\n".join(f"{o.color} {o.shape}" for o in s.objects) for s in chosen]
print("\n".join(caption(scene) for scene in chosen))
gallery(drawn, len(SEEDS), judge(drawn, [s for s in chosen for _ in SEEDS]), [f"seed {s}" for s in SEEDS], names)

# %% [markdown]
# Each row is one sentence, each column one seed. A picture is decided by both, and by nothing else: the same sentence
# and seed give the same picture again. Where a sentence says where things are, seeds have little left to decide; in the
# lower rows it says only how two things lie to each other. The oracle's marks are strict: every word must hold.
#
# ## 2 · Inside one generation
#
# Four things happen, one after the other. (B pictures, N tokens, width D; C channels of h × w.)
#
# ```
# "a large red star …" ─ tokenizer ─► ids (B,N) ─ text encoder ─► context (B,N,D)
#                                                                        │
# seed ─► noise z_T (B,C,h,w) ───────────────────────────────► U-Net, asked in each step
#                                                                        │
# picture (B,3,H,W) in [-1,1] ◄─ VAE decoder ◄───────────────── latent z_0 (B,C,h,w)
# ```
#
# **Text.** The tokenizer cuts words into known pieces and numbers them. The text encoder, a transformer, turns each
# number into a vector that has also read what stands *before* it. What happens if one word is exchanged?

# %%
said = "a large red star in the center"
other = said.replace("red", "blue")
ids = pipe.tokenizer([said, other])                             # (2,N)
context = pipe.encode_text([said, other])["context"].cpu()      # (2,N,D)
print(f"ids {tuple(ids.shape)}, context {tuple(context.shape)}")
print("ids:", ids[0, : len(pipe.tokenizer.encode(said)) + 2].tolist(), "... padded to", ids.shape[1])

tokens = ["start", *[pipe.tokenizer.decode([i]).strip() for i in pipe.tokenizer.encode(said)], "end"]
where = int((ids[0] != ids[1]).nonzero()[0])                    # the first token that differs
change = (context[0] - context[1]).norm(dim=-1) / context[0].norm(dim=-1)       # (N,)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), gridspec_kw={"width_ratios": [3, 2]}, sharey=True)
left.imshow(context[0, : len(tokens)], aspect="auto", cmap="RdBu_r", vmin=-2.5, vmax=2.5, interpolation="nearest")
left.set_yticks(range(len(tokens)), tokens)
left.set(title="context: one row for each token", xlabel="component of D")
left.grid(False)
right.barh(range(len(tokens)), change[: len(tokens)], color=[ORANGE if c > 0 else GREY for c in change])
right.set(title="change if red becomes blue", xlabel="relative to the row's length")
plt.show()
print("rows before the word that change:", int((change[:where] > 1e-6).sum()), "of", where)

# %% [markdown]
# Rows before the exchanged word are identical; that word and everything after it change, for the encoder reads from
# left to right, as CLIP's does. The U-Net looks at all rows by cross-attention (chapter 09).
#
# **Latents.** What is denoised is not the picture but a smaller tensor, its *latent*. How much smaller?

# %%
def count_values(name, size, factor, channels):
    picture, latent = size * size * 3, (size // factor) ** 2 * channels
    print(f"{name:22s} {picture:9,d} values -> {latent:6,d}: {picture / latent:3.0f} times fewer values, "
          f"{factor**2} times fewer positions")


channels, side, _ = pipe.latent_shape(64, 64)
count_values("this model", 64, 64 // side, channels)
count_values("Stable Diffusion 1.5", 512, 8, 4)
count_values("SDXL", 1024, 8, 4)

# %% [markdown]
# > **The article says** (section 1.1) that 512 × 512 pictures have 786,432 pixels and (section 2.1) that the latent is
# > compressed 48 times, **but** 786,432 counts values, three to a pixel; 48 compares numbers of values, not bits and not
# > computation. Positions, which convolution and attention are paid by, fall 64 times. And the title credits latents
# > with the way from 512 to 1024: Stable Diffusion 1.x was trained at 512; 1024 arrived with SDXL.

# %% [markdown] exercise="pipeline.start_noise" role="prompt"
# ### Exercise 3 · A seed is a place to start
#
# `start_noise(shape, seeds)` returns standard normal noise (B,C,h,w) for `shape` (C,h,w) and B integer seeds.
#
# - Picture i depends on `seeds[i]` alone, not on the batch it is made in: give each seed its own `torch.Generator`.
# - The global random state stays as it was.

# %% exercise="pipeline.start_noise" role="solution"
def start_noise(shape, seeds):
    """(C,h,w) and B seeds -> (B,C,h,w)."""
    ### BEGIN SOLUTION
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.randn(shape, generator=generator))    # (C,h,w)
    return torch.stack(rows)                                    # (B,C,h,w)
    ### END SOLUTION


# %% exercise="pipeline.start_noise" role="check"
check("pipeline.start_noise", start_noise)

# %% [markdown] exercise="pipeline.start_noise" role="hint"
# `torch.manual_seed` would seed everybody's random numbers. A `torch.Generator` is a private source of them.
#
# ---
#
# Inside the loop over the seeds make a new generator, seed it, and hand it to `torch.randn` by its keyword.
#
# ---
#
# `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` for each seed, then `torch.stack`.

# %%
start_noise = use("pipeline.start_noise", start_noise)
seen = []


def watch(i, t, x, x0):                                         # called after each step
    seen.append((int(t), x.cpu().clone(), x0.cpu().clone()))


prompt = caption(pairs[0])
print(prompt)
z0 = pipe.latents(prompt, steps=STEPS, seed=4, callback=watch)  # (1,C,h,w)
first = start_noise(pipe.latent_shape(64, 64), [4])             # yours: the noise that `latents` began with
stops = [round(i * (len(seen) - 1) / 5) for i in range(6)] if len(seen) > 5 else range(len(seen))
noisy = torch.cat([first, *[seen[i][1] for i in stops]])        # (7,C,h,w)
guess = torch.cat([seen[0][2], *[seen[min(i + 1, len(seen) - 1)][2] for i in stops]])  # x_0 as seen from each z_t
rows = [noisy[:, :3] / 2.5, pipe.decode(noisy.to(pipe.device)), pipe.decode(guess.to(pipe.device))]
strip(rows, ["noise", *[f"step {i + 1}" for i in stops]], ["$z_t$, 3 channels", "$z_t$ decoded", "$x_0$ estimate"], width=6.5)
print("largest difference of the last z_t and z_0:", float((noisy[-1:] - z0.cpu()).abs().max()))

# %% [markdown]
# Read the rows. **Top**: the latent, three of its channels shown as colours, as coarse as it is. **Middle**: the same
# latents decoded, that is, noise seen through the decoder, until the last steps. **Bottom**: in each step the U-Net
# predicts the noise, and whoever knows the noise knows the latent under it: an estimate of $z_0$. The sampler does not
# trust the first one. It goes a little in its direction, lowers the noise level, and asks again (chapter 07).
#
# ## 3 · Asking twice: guidance
#
# The U-Net is asked for the noise $\epsilon$ with the text $c$ and once more with the empty text $\varnothing$. The
# difference is what the text changes; go further in that direction by a factor $w$, the *guidance scale*:
#
# $$\tilde\epsilon = \epsilon(z_t, t, \varnothing) + w\,\bigl(\epsilon(z_t, t, c) - \epsilon(z_t, t, \varnothing)\bigr)$$

# %% [markdown] exercise="guidance.guide" role="prompt"
# ### Exercise 4 · Classifier-free guidance
#
# `guide(predict, x, t, cond, uncond, scale)` returns $\tilde\epsilon$, of the shape of `x`.
#
# - `predict(x, t, condition)` is the network: (B,C,h,w) in, (B,C,h,w) out.
# - Ask once with `cond` (the text) and once with `uncond` (the empty text).
# - At `scale == 1` the second answer cancels: ask once only. That halves the cost.

# %% exercise="guidance.guide" role="solution"
def guide(predict, x, t, cond, uncond, scale):
    """The network's answer, pushed `scale` times as far as the text moves it; (B,C,h,w)."""
    ### BEGIN SOLUTION
    with_text = predict(x, t, cond)                             # (B,C,h,w)
    if scale == 1:
        return with_text
    without = predict(x, t, uncond)                             # (B,C,h,w)
    return without + scale * (with_text - without)
    ### END SOLUTION


# %% exercise="guidance.guide" role="check"
check("guidance.guide", guide)

# %% [markdown] exercise="guidance.guide" role="hint"
# What should come out at w = 0, and what at w = 1? Put both into the formula.
#
# ---
#
# Start from the answer *without* text and add w times (with minus without). Keep both answers in variables, so that the
# network is asked twice, not three times.
#
# ---
#
# `without + scale * (with_text - without)`, after `if scale == 1: return with_text`.

# %%
guide = use("guidance.guide", guide)


@torch.no_grad()
def draw(noise, texts, scale=None, steps=STEPS, model=pipe):
    """The whole generation in six lines: noise (B,C,h,w) and B texts -> pictures (B,3,H,W)."""
    scale = model.config.guidance_scale if scale is None else scale
    cond, uncond = model.conditions(texts, None, 64, 64)        # {"context": (B,N,D)} twice
    levels = model.schedule.timesteps(steps, model.config.spacing, model.config.offset)
    x0 = samplers.ddim(lambda x, t: guide(model.predict_eps, x, t, cond, uncond, scale), noise.to(model.device), levels,
                       schedule=model.schedule, clip_x0=model.config.clip_x0)       # (B,C,h,w)
    return model.decode(x0).cpu()


shape = pipe.latent_shape(64, 64)
mine, library = draw(start_noise(shape, [4]), [prompt]), pipe.decode(z0).cpu()
apart = (convert(mine).int() - convert(library).int()).abs().max()
print(f"your loop against pipe.generate: bytes differ by at most {int(apart)}")

SCALES = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0][:: 2 if session.profile == "quick" else 1]
two = [wishes[3], pairs[0]]
swept = torch.cat([draw(start_noise(shape, [1]), [caption(scene)], w) for scene in two for w in SCALES])
gallery(swept, len(SCALES), judge(swept, [scene for scene in two for _ in SCALES]), [f"w = {w:g}" for w in SCALES],
        ["\n".join(f"{o.color} {o.shape}" for o in s.objects) for s in two])

# %% [markdown]
# Noise, guidance and loop were yours. At $w = 0$ the text has no say, so both rows, which share their noise, agree
# there. At $w = 1$ the text is heard. Larger $w$ insists on it, and too large a $w$ drives values out of their range:
# colours and outlines suffer.
#
# ## 4 · Counting
#
# How often does it draw what was asked? A share of successes is an estimate, and few pictures make it a poor one.
# Wilson (1927) gives the interval of true rates $p$ that lie within $z$ standard errors of the observed share $\hat p$
# of n; $z = 1.96$ covers 95 %:
#
# $$\text{centre} = \frac{\hat p + z^2/2n}{1 + z^2/n} \qquad
# \text{half width} = \frac{z}{1 + z^2/n}\sqrt{\frac{\hat p(1-\hat p)}{n} + \frac{z^2}{4n^2}}$$

# %% [markdown] exercise="fidelity.share_with_interval" role="prompt"
# ### Exercise 5 · What a share is worth
#
# `share_with_interval(right, total, z=1.96)` returns `(share, low, high)`, three numbers between 0 and 1: the observed
# share, and centre minus and plus half width of Wilson's interval.

# %% exercise="fidelity.share_with_interval" role="solution"
def share_with_interval(right, total, z=1.96):
    """The share of successes, and where the true rate lies; (share, low, high)."""
    ### BEGIN SOLUTION
    share = right / total
    stretch = 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / stretch
    half = z / stretch * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return share, centre - half, centre + half
    ### END SOLUTION


# %% exercise="fidelity.share_with_interval" role="check"
check("fidelity.share_with_interval", share_with_interval)

# %% [markdown] exercise="fidelity.share_with_interval" role="hint"
# The share is `right / total`; it is not the centre, which is pulled towards a half.
#
# ---
#
# Both parts are divided by $1 + z^2/n$. Compute that once.
#
# ---
#
# `half = z / stretch * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5`

# %%
share_with_interval = use("fidelity.share_with_interval", share_with_interval)
asked = Scenes(64, "test", objects=(2, 2), textures=("plain",), degraded=0.0)       # two things each, never trained on
tests, texts = asked.scenes(range(COUNT)), asked.captions(range(COUNT), full=True)
noise = start_noise(shape, range(COUNT))                        # (COUNT,C,h,w)
clean = asked.images(range(COUNT)).to(pipe.device)              # (COUNT,3,64,64): the pictures themselves
WORDS = ("shape", "color", "size", "relation", "background")
print(f"of {COUNT} pictures          all words right   95 % interval      word by word")


def percent(*values):
    return [f"{abs(100 * v):5.1f}" for v in values]


def count_right(name, images):
    """(share with all words right, low, high, share of single words right)"""
    rates = oracle.rates(images, tests)
    share, low, high = share_with_interval(round(rates["all"] * COUNT), COUNT)
    single = sum(rates[word] for word in WORDS) / len(WORDS)
    print("{:24s} {:>9s} %   {:>8s} ... {} % {:>13s} %".format(name, *percent(share, low, high, single)))
    return share, low, high, single


count_right("drawn by Scenes", clean)
ceiling = count_right("through the autoencoder", pipe.decode(pipe.encode_image(clean)).cpu())
sweeps = {"guidance scale w": ([0.0, 1.0, 2.0, 4.0, 8.0], "scale"), "steps": ([1, 2, 4, 8, 16, 32], "steps")}
sweeps = {name: (values[:4:2] if session.profile == "quick" else values, keyword) for name, (values, keyword) in sweeps.items()}
figure, axes = plt.subplots(1, 2, figsize=(8, 2.9), sharey=True)
for axis, (name, (values, keyword)) in zip(axes, sweeps.items(), strict=True):
    found = torch.tensor([count_right(f"{name} {v:g}", draw(noise, texts, **{keyword: v})) for v in values])  # (K,4)
    share, low, high, single = 100 * found.T
    reach = torch.stack([share - low, high - share]).clamp(min=0)                   # (2,K)
    axis.errorbar(range(len(values)), share, reach, fmt="o-", color=BLUE, capsize=3, label="all words right")
    axis.plot(range(len(values)), single, "s:", color=ORANGE, label="single words right")
    axis.axhline(100 * ceiling[0], color=GREY, ls="--", label="all words, autoencoder only")
    axis.set_xticks(range(len(values)), [f"{v:g}" for v in values])
    axis.set(xlabel=name, ylim=(-4, 104))
axes[0].set_ylabel("%")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
plt.show()

# %% [markdown]
# The first line tests the oracle, on pictures drawn by `Scenes`; the second shows what the autoencoder loses, before any
# generation. The sentences ask for two things each. Shape, colour and size of both, their relation and the background
# must all be right, so "all" is far stricter than "word by word": at 80 % a word it would be $0.8^5 = 33\,\%$ if words
# failed independently. Without the text ($w = 0$) a full hit is luck. Beyond a moderate $w$ nothing is gained. And with
# more steps the share rises at first, then levels off.
#
# > **The article says** (section 9.3) that more steps give better quality, **but** the gain saturates: compare the
# > last intervals in the right panel. It recommends $w$ of 7 to 12; that holds for Stable Diffusion, if for any
# > model, and is no law: this one's preset is printed below, with the score that it reaches on harder questions.

# %%
print(f"the preset's guidance scale: {pipe.config.guidance_scale:g}")
most = 3 if pipe.tokenizer.length > 16 else 1                   # several objects need a longer sentence
found, _ = fidelity.measure(pipe, COUNT * 2, objects=(1, most), steps=STEPS, seed=1)
print("split    objects  prompts   share   95 % interval")
for row in found:
    n = row["prompts"]
    share, low, high = share_with_interval(round(row["all"] * n), n)
    print("{:8s} {:5d} {:9d}    {} %  {} ... {} %".format(row["split"], row["objects"], n, *percent(share, low, high)))

# %% [markdown]
# `test` prompts describe scenes that training has not shown; `heldout` ones pair shapes with colours that it never saw
# *together* (no purple circle, no orange square): can the model compose? With several objects the relation between
# them ("left of") must hold too. So few prompts leave wide intervals: two that overlap much do not say which is better.
# Chapter 12 turns intervals into verdicts.
#
# ## 5 · Between two seeds
#
# Noise is a place. What lies between two of them? On the straight line the mean of two independent draws has variance
# 1/2, not 1: no noise that the model was trained on. In many dimensions noise lives near a sphere, so walk along it:
#
# $$\mathrm{slerp}(a, b, u) = \frac{\sin((1-u)\,\theta)}{\sin\theta}\,a + \frac{\sin(u\,\theta)}{\sin\theta}\,b,
# \qquad \cos\theta = \frac{a \cdot b}{\lVert a\rVert\,\lVert b\rVert}$$

# %% [markdown] exercise="pipeline.slerp" role="prompt"
# ### Exercise 6 · A walk on the sphere
#
# `slerp(a, b, weights)` returns the points between `a` and `b`, both (C,h,w), at `weights` (K,), as (K,C,h,w).
#
# - A latent is one vector: one dot product over all its values, one angle.
# - Where the angle is below 0.001, take the straight line $(1-u)\,a + u\,b$: both sines vanish there.
# - Rounding can push a cosine a little past ±1; clamp it before `torch.acos`.

# %% exercise="pipeline.slerp" role="solution"
def slerp(a, b, weights):
    """Points on the arc from a to b; (C,h,w), (C,h,w), (K,) -> (K,C,h,w)."""
    ### BEGIN SOLUTION
    u = weights.reshape(-1, 1, 1, 1)                            # (K,1,1,1)
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-3:
        return (1 - u) * a + u * b
    return (torch.sin((1 - u) * angle) * a + torch.sin(u * angle) * b) / torch.sin(angle)
    ### END SOLUTION


# %% exercise="pipeline.slerp" role="check"
check("pipeline.slerp", slerp)

# %% [markdown] exercise="pipeline.slerp" role="hint"
# `(a * b).sum()` is the dot product over all values, `a.norm()` the length of the whole tensor.
#
# ---
#
# Reshape the weights to (K,1,1,1), so that they broadcast over whole latents. The sine of the *full* angle divides.
#
# ---
#
# `(torch.sin((1 - u) * angle) * a + torch.sin(u * angle) * b) / torch.sin(angle)`

# %%
slerp = use("pipeline.slerp", slerp)
PLACES = 3 if session.profile == "quick" else 7
u = torch.linspace(0, 1, PLACES)
a, b = start_noise(shape, [0, 3])
ways = {"sphere": slerp(a, b, u), "line": torch.lerp(a[None], b[None], u[:, None, None, None])}     # (K,C,h,w) each
walk = torch.cat([draw(way, [caption(pairs[0])] * PLACES) for way in ways.values()])
gallery(walk, PLACES, judge(walk, [pairs[0]] * (2 * PLACES)), [f"u = {v:.2g}" for v in u], list(ways))
for name, way in ways.items():
    print(f"{name:7s} standard deviation of the noise:", *[f"{s:.2f}" for s in way.flatten(1).std(dim=1)])

# %% [markdown]
# Every place on the arc has noise of variance 1 and is as good a start as any seed. On the straight line the middle is
# too quiet, by about $\sqrt{1/2} = 0.71$, as printed; the model removes noise that is not there. (This prompt bears it.)
#
# ## 6 · Why latent at all?
#
# Diffusion works on pixels too (Ho et al. 2020), and `scenes64-pixel` is such a model: the same U-Net code, without an
# autoencoder. It was trained beside the latent one. The cell reads both budgets from the notes that lie beside the
# weights, times one guided U-Net call on equal batches, and draws the same wishes with both.

# %%
pixel = StableDiffusion.load("scenes64-pixel", session.device)
models = {"latent": (pipe, "scenes64"), "pixel": (pixel, "scenes64-pixel")}


def budget(name):
    """What the note beside the weights says of the training, also of runs that it went on from."""
    note, minutes, seen = json.loads((pipeline.SHIPPED / name / "provenance.json").read_text("utf-8")), 0.0, 0
    while note:
        figures = note.get("metrics") or note["stopped"]
        minutes, seen = minutes + figures["seconds"] / 60, seen + figures.get("images_seen", figures.get("images", 0))
        note = note.get("start")
    return f"trained {minutes:.0f} minutes, {seen / 1e6:.2f} million pictures seen"


@torch.no_grad()
def one_step(model, batch=1 if session.profile == "quick" else 8):
    x = torch.zeros(2 * batch, *model.latent_shape(64, 64), device=model.device)
    context = model.conditions(["a red circle"] * 2 * batch, None, 64, 64)[0]["context"]
    return lambda: model.unet(x, 500.0, context).sum().item()


with torch.no_grad():
    times = cost.interleaved({name: one_step(model) for name, (model, _) in models.items()}, ROUNDS, session.device)
for name, (model, file) in models.items():
    shape_ = " x ".join(map(str, model.latent_shape(64, 64)))
    print(f"{name:7s} diffuses {shape_:12s} U-Net {cost.parameters(model.unet) / 1e6:4.1f} million parameters; {budget(file)}")
ratio = times["pixel"] / times["latent"]
print(f"one U-Net call takes {ratio:.0f} times as long on pixels")

trials = wishes if session.profile != "quick" else wishes[:2]
both = torch.cat([draw(start_noise(m.latent_shape(64, 64), range(len(trials))), [caption(s) for s in trials], model=m)
                  for m, _ in models.values()])
marks = judge(both, trials * 2)
gallery(both, len(trials), marks, ["\n".join((s.objects[0].color, s.objects[0].shape)) for s in trials], list(models))
for name, right in (("latent", marks[: len(trials)]), ("pixel", marks[len(trials):])):
    share, low, high = share_with_interval(sum(right), len(right))
    print(f"{name:7s} all words right: {sum(right)} of {len(right)}, 95 % interval {abs(100 * low):.0f} ... {100 * high:.0f} %")

# %% [markdown]
# This is no proof that pixels cannot do it: with enough training they can. It shows what comparable patience buys. The
# decoder runs once per picture, the U-Net in every step, so the ratio above is paid again and again. (The latent
# model had nearly three times the minutes, and its autoencoder 50 more before; but the pixel model has not begun to hear words.)
#
# |source|scale|training|sampling|
# |---|---|---|---|
# |article, section 6.3|256 × 256|20 ×|25 ×|
# |Rombach et al. (2022), table 18|256 × 256, ADM-G and LDM-4-G|962/271 = 3.5 ×|0.4/0.07 = 5.7 ×|
# |this notebook|64 × 64, one U-Net call|not measured|printed above|
#
# > **The article says** (section 6.3) 20 and 25 times, **but** its days and seconds appear nowhere in the paper, whose
# > own give 3.5 and 5.7. The factor depends on $f$ and the networks: chapters 01 and 08 measure it.
#
# ## The map
#
# The course follows an article in Korean; where it errs, the chapter says so and measures.
#
# |chapter|article|library|erratum|
# |---|---|---|---|
# |01 why latent space|1|`evaluation/cost.py`|values called pixels; parameters need not grow with resolution|
# |02 VAE|2.2, 2.3|`vae.py`|KL weight 1e-3 or 1e-5, really 1e-6; no logvar clamp; always samples|
# |03 perceptual, adversarial losses|2.2|`losses.py`|MSE for L1; LPIPS weight 0.5 for 1; fixed "optional" adversarial term|
# |04 VQ|2.4|`vq.py`|"better reconstruction" is reversed; straight-through gradient missing|
# |05 forward process|3.1, 3.3, 3.4|`schedule.py`|$\bar\alpha_t$ not reshaped to (B,1,1,1)|
# |06 U-Net, pixel DDPM|3.2, 5.1, 5.3|`layers.py`, `unet.py`|correct mathematics; zero-init and dropout missing|
# |07 reverse process|3.4, 9.3|`samplers.py`|visits only t = 49 … 0 of 1,000; `ddim_step` undefined|
# |08 latent diffusion|3.3|`data/latents.py`, `training/diffusion.py`|`encode` gives three tensors; no 0.18215, no dropping|
# |09 attention, text|4.1, 4.2, 5.2|`attention.py`, `text.py`|`to_out` is no list; heads too wide; `FeedForward` undefined|
# |10 guidance|4.3, 9|`guidance.py`|w = 7.5 is Ho and Salimans' 6.5; more steps saturate|
# |11 Stable Diffusion|7|`pipeline.py`, `published/`|tokenizer, negative prompt, generator missing|
# |12 evaluation|6, 10|`evaluation/`|table rows mixed; 7.3 is Imagen's; 20 and 25 times; "SOTA" only guided|
# |13 ControlNet|8.1|`controlnet.py`|`unet.encoder` does not exist; latent and text unused|
# |14 LoRA|8.2|`lora.py`|base weights not frozen|
# |15 SDXL|8.3|`sdxl.py`|encoders are CLIP ViT-L and OpenCLIP ViT-bigG|
# |16 capstone|7, 10|`parts.py`|your own parts in the pipeline|
#
# ## Glossary
#
# Korean as in the article; * marks a usual translation where the article keeps the English word.
#
# |한국어|English|meaning|
# |---|---|---|
# |해상도|resolution|height and width in pixels|
# |픽셀 공간|pixel space|pictures as values, uncompressed|
# |잠재 공간*|latent space|where the compressed pictures live|
# |압축률|compression factor|values before over values after|
# |차원|dimension|one number of a vector|
# |표현|representation|the same thing in other numbers|
# |인코딩|encoding|picture to latent, text to vectors|
# |디코딩|decoding|latent to picture|
# |재구성*|reconstruction|decoding what was encoded|
# |고주파 디테일|high-frequency detail|what changes from pixel to pixel|
# |저차원 구조|low-dimensional structure|few numbers would describe it|
# |확산*|diffusion|adding noise; learning to undo it|
# |노이즈 추가|adding noise|one jump to level t|
# |노이즈 예측|noise prediction|what the U-Net answers|
# |학습 목표|training objective|the loss to be minimised|
# |샘플링|sampling|drawing from a distribution; generating|
# |조건|condition|what the model is told|
# |텍스트 조건|text condition|the prompt as context|
# |주입|injection|how a condition enters the network|
# |어텐션*|attention|a weighted mean, weights by similarity|
# |초기화|initialisation|weights before training|
# |미세 조정*|fine-tuning|training on from given weights|
# |파라미터|parameter|a learned number; also a setting|
# |계산량|computation|operations needed|
# |재현성|reproducibility|same seed, same picture|
# |권장 범위|recommended range|where a setting usually works|
#
# ## Questions to think about
#
# 1. In the bottom row of section 2, of what might the first estimate be an average?
# 2. What would a *negative* guidance scale draw? Predict, then try it with `draw`.
# 3. Eight of eight pictures are right. What is the lowest true rate that you cannot exclude?
#
# ## Recap
#
# - Words become ids, then context vectors (B,N,D); a seed becomes noise (B,C,h,w); a U-Net, asked twice a step, turns noise
#   into a latent; the decoder turns that into a picture.
# - Prompt and seed decide the picture, guidance how strictly the prompt is taken, steps how finely the way is walked.
# - A share comes with its interval, and with the ceiling that the autoencoder sets.
# - A latent has fewer values, so each of the many steps is cheaper.
#
# **Next**, chapter 01 asks what the pixels are spent on: how much of a picture is needed to see what it shows, and what
# a step costs at each resolution.
