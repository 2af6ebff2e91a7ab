# %% [markdown]
# # 08 · Latent diffusion
#
# An autoencoder that makes pictures small, and a diffusion model that makes small things: this chapter puts the two
# together. What is new is little code, and most of it stands between the two: a cache, a factor, a draw.
#
# **You will be able to**
#
# - encode a data set once, and train on the result ever after;
# - measure the factor that Stable Diffusion calls 0.18215, and say what happens without it;
# - write the training step of latent diffusion, with captions dropped at random, and its sampler;
# - say what the autoencoder buys, in measured training and sampling time, and what it costs.
#
# **Time** about 2.5 hours, of which 75 minutes are exercises. **You need** chapters 02 (the autoencoder), 05 (noise and
# velocity), 06 (the U-Net) and 07 (DDIM). No GPU. **In the library** this chapter is `course/data/latents.py`,
# `course/training/diffusion.py` and `course/pipeline.py`; in the article, sections 3.3, 3.4 and 6.3.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
import statistics
import time

import matplotlib.pyplot as plt
import torch
from torch import nn

from course import samplers, schedule
from course.classroom import begin, check, figure_style, latent_mixer, track, use
from course.data import oracle
from course.data.scenes import draw
from course.data.vocabulary import POSITIONS, Object, Scene
from course.pipeline import StableDiffusion
from course.unet import UNet, UNetConfig

session = begin(needs="0.1", seed=8)
COUNT = {"quick": 64, "cpu": 1536, "gpu": 8192}[session.profile]  # pictures to train on
TRIAL = {"quick": 3, "cpu": 300, "gpu": 3000}[session.profile]  # training steps of a latent model
BATCH = {"quick": 4, "cpu": 16, "gpu": 128}[session.profile]
STEPS = {"quick": 2, "cpu": 20, "gpu": 50}[session.profile]     # of the sampler
ROUNDS = {"quick": 1, "cpu": 3, "gpu": 9}[session.profile]      # of the benchmark
TRIES = {"quick": 1, "cpu": 4, "gpu": 16}[session.profile]      # pictures for each of 12 captions
SHOWN = {"quick": 2, "cpu": 6, "gpu": 6}[session.profile]  # pictures in a row

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
            axes[r, c].spines[:].set_visible(False)
        if labels:
            axes[r, 0].set_ylabel(labels[r])
    plt.show()


def noise_like(x, seed=0):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)


# %% [markdown]
# ## Two stages
#
# The autoencoder comes trained, with the course's model `scenes64`. It turns 64 × 64 pixels into a small grid of
# vectors and back; nothing in it will be trained again. The data are a small world, so that a minute or two of training
# is enough: one large thing on white, in four colours and three shapes, at one of five places.

# %%
shipped = StableDiffusion.load("scenes64").to(session.device)
vae, noise_schedule = shipped.vae, schedule.NoiseSchedule()
THINGS = [(color, shape) for color in ("red", "green", "blue", "black") for shape in ("circle", "square", "triangle")]


def world(count, seed):
    """`count` scenes, and which of THINGS each shows; the place is jittered a little."""
    generator = torch.Generator().manual_seed(seed)
    kinds, places = (torch.randint(n, (count,), generator=generator) for n in (12, 5))
    made = []
    for kind, place, jitter in zip(kinds, places, torch.rand(count, 3, generator=generator).tolist(), strict=True):
        (color, shape), (name, (x, y)) = THINGS[kind], list(POSITIONS.items())[place]
        thing = Object(shape, color, "large", "plain", name, x + 0.06 * jitter[0] - 0.03, y + 0.06 * jitter[1] - 0.03,
                       0.25 + 0.025 * jitter[2])
        made.append(Scene((thing,), "white"))
    return made, kinds


scenes, kinds = world(COUNT, seed=0)
images = (2 * draw(scenes, 64) - 1).to(session.device)          # (COUNT,3,64,64) in [-1,1]
with torch.no_grad():
    posterior = vae.encode(images[:SHOWN])                      # mean and logvar, each (SHOWN,c,h,w)
    rebuilt = vae.decode(posterior.mean)                        # (SHOWN,3,64,64)
widest = int(posterior.mean.std((0, 2, 3)).argmax())
maps = posterior.mean[:, [widest] * 3] / posterior.mean[:, widest].abs().max()
strip([images[:SHOWN], maps, rebuilt], [""] * SHOWN, ["picture", "latent", "decoded"], width=5.2)
print("picture", tuple(images.shape[1:]), images[0].numel(), "values")
print("latent ", tuple(posterior.mean.shape[1:]), posterior.mean[0].numel(), "values,",
      f"{images[0].numel() // posterior.mean[0].numel()} times fewer")

# %% [markdown]
# The middle row is the channel of the latent that varies most: coarse, yet laid out like the picture. A denoiser has to
# work on this grid only. The last row is all that it can ever reach: detail that the autoencoder loses, no denoiser
# brings back.
#
# $$x \xrightarrow{\;\text{encode}\;} z \xrightarrow{\;\times\, c\;} z_0
# \xrightarrow{\;\text{diffuse, denoise}\;} \hat z_0 \xrightarrow{\;/\, c\;} \hat z \xrightarrow{\;\text{decode}\;} \hat x$$
#
# Two of the arrows are chapters 02 and 03, the middle 05 to 07; new is the factor $c$ (in shapes, c counts channels).
#
# ## 1 · Encode once
#
# The autoencoder is frozen, so a picture has the same posterior in every epoch: compute it once, and keep the mean *and*
# the standard deviation. The decoder was trained on draws, so a denoiser may learn from draws.

# %% [markdown] exercise="latents.encode_all" role="prompt"
# ### Exercise 1 · The cache
#
# `encode_all(vae, images, batch_size)` returns `(mean, std)` of all posteriors.
#
# - `images` is (N,3,H,W) in [-1, 1]; both results are (N,c,h,w).
# - `vae.encode(x)` returns an object with `.mean` and `.logvar`, the logarithm of the *variance*, each (B,c,h,w).
# - Show the encoder `batch_size` pictures at a time; the last batch may be smaller. Keep no graph.

# %% exercise="latents.encode_all" role="solution"
def encode_all(vae, images, batch_size=64):
    """Mean and std of q(z|x): (N,3,H,W) -> (N,c,h,w) twice, unscaled."""
    ### BEGIN SOLUTION
    means, stds = [], []
    with torch.no_grad():
        for chunk in images.split(batch_size):                  # (B,3,H,W)
            posterior = vae.encode(chunk)
            means.append(posterior.mean)
            stds.append(torch.exp(0.5 * posterior.logvar))
    return torch.cat(means), torch.cat(stds)
    ### END SOLUTION


# %% exercise="latents.encode_all" role="check"
check("latents.encode_all", encode_all)

# %% [markdown] exercise="latents.encode_all" role="hint"
# `images.split(n)` yields pieces of at most n. `torch.cat` joins pieces of unequal length; `torch.stack` does not.
#
# ---
#
# logvar is $\ln \sigma^2$, so $\sigma = e^{\mathrm{logvar}/2}$. `with torch.no_grad():` goes round the loop.
#
# ---
#
# `means.append(posterior.mean)` and `stds.append(torch.exp(0.5 * posterior.logvar))`, then `torch.cat` of each.

# %%
encode_all = use("latents.encode_all", encode_all)
begun = time.perf_counter()
mean, std = encode_all(vae, images)                             # (COUNT,c,h,w) twice
ENCODING = (time.perf_counter() - begun) / COUNT                # seconds a picture
cache, pixels = mean[0].numel() + std[0].numel(), images[0].numel()
print(f"{1000 * ENCODING:.1f} ms a picture; kept: {cache} numbers of a picture's {pixels}")

channels = range(mean.shape[1])
figure, axis = plt.subplots(figsize=(7, 2.6))
axis.bar([c - 0.2 for c in channels], mean.std((0, 2, 3)).cpu(), 0.4, color=BLUE, label="std of the means")
axis.bar([c + 0.2 for c in channels], std.pow(2).mean((0, 2, 3)).sqrt().cpu(), 0.4, color=ORANGE,
         label="the posterior's own std")
axis.set(xlabel="channel of the latent", ylim=(0, 1.5))
axis.legend(ncols=2, loc="upper left")
plt.show()

# %% [markdown]
# Blue is what the channel says about the picture, orange the noise that the encoder adds to it. Where orange is near 1
# and blue near 0, the KL term has won: the channel is a plain $\mathcal N(0, 1)$ draw that carries nothing (*posterior
# collapse*, chapter 02), and the decoder does not listen to it. A denoiser has to predict every channel, though, and
# that noise nobody can predict. So the models below learn from the means, as the shipped model did in the end. Where all
# spreads are small, as in Stable Diffusion, it makes no difference, and draws are taken.
#
# ## 2 · The scale
#
# The schedule of chapter 05 was made for data of variance 1. Pictures in [-1, 1] are near enough; a latent has whatever
# scale the autoencoder settled on. Rombach et al. (2022, appendix G) therefore multiply it by one number, $c =
# 1/\sigma$ with $\sigma$ the standard deviation of a first batch; for Stable Diffusion 1.x it is 0.18215. A value that
# is drawn has the variance of the means plus the mean of the variances:
#
# $$c = \frac{1}{\sqrt{\operatorname{Var}[\mu] + \overline{\sigma^2}}}$$

# %% [markdown] exercise="latents.measured_scale" role="prompt"
# ### Exercise 2 · One over the spread
#
# `measured_scale(mean, std)` returns $c$, one number for all channels and places.
#
# - `mean` and `std` are (N,c,h,w): what is in the cache.
# - The variance is about the overall mean, which need not be 0. Work in float64: there are many values to add.

# %% exercise="latents.measured_scale" role="solution"
def measured_scale(mean, std):
    """1 / std of draws from the cached posteriors; (N,c,h,w) twice -> float."""
    ### BEGIN SOLUTION
    mean, std = mean.double().cpu(), std.double().cpu()
    of_the_means = (mean - mean.mean()).square().mean()
    of_the_noise = std.square().mean()
    variance = of_the_means + of_the_noise
    return float(variance.rsqrt())
    ### END SOLUTION


# %% exercise="latents.measured_scale" role="check"
check("latents.measured_scale", measured_scale)

# %% [markdown] exercise="latents.measured_scale" role="hint"
# Variances add where standard deviations do not: the two parts are summed before the root.
#
# ---
#
# The first part is `mean.var()` over everything; the second is the mean of `std ** 2`, not the square of the mean.
#
# ---
#
# `float((mean.double().var() + std.double().square().mean()).rsqrt())`

# %%
measured_scale = use("latents.measured_scale", measured_scale)
still = torch.zeros_like(std)                                   # no draw: the means themselves
SCALE = measured_scale(mean, still)
print(f"scale of the means, used below      {SCALE:.3f}")
print(f"from the first 16 pictures          {measured_scale(mean[:16], still[:16]):.3f}")
print(f"scale of draws                      {measured_scale(mean, std):.3f}")
print(f"in the config of the shipped model  {vae.scaling_factor:.3f}")
print("Stable Diffusion 1.x (published)    0.18215, that is a std of 5.49")

# %% [markdown]
# Sixteen pictures give nearly the number of all: one batch suffices, as in the paper. It is a property of the
# *autoencoder and its data*, so it is stored with the weights. The config's factor was measured on the shipped model's own
# training pictures, with up to three objects; so much do the data matter. With draws the factor is smaller, since three
# channels of pure noise count, too. The factors of two autoencoders say nothing about each other.
#
# ## 3 · Without it
#
# If $z_0$ has standard deviation $\sigma$ in place of 1, every level has $\sigma^2$ times the intended SNR. Our latents
# are mild, Stable Diffusion's are not: 5.49 squared is 30. To see the difference on one autoencoder, take $c$ so that
# $z_0$ has the std 1, our raw one, and that of Stable Diffusion, add the noise of the *last* level, bring the result to
# the scale that the decoder knows, and decode.

# %%
arms = {"measured": SCALE, "none": 1.0, "like SD's raw": SCALE / 0.18215}


def seen_through(c, t):
    """Latents noised at level t with factor c, decoded at the contrast of the data."""
    z0 = c * mean[:SHOWN]
    z_t = noise_schedule.add_noise(z0, noise_like(z0, 1), torch.full((SHOWN,), t))
    with torch.no_grad():
        return vae.decode(z_t / z_t.std() / SCALE)


strip([seen_through(c, 999) for c in arms.values()], [""] * SHOWN, list(arms), width=5.2)
for name, c in arms.items():
    share = noise_schedule.snr(torch.tensor(999)) * (c / SCALE) ** 2
    half = int((noise_schedule.alphas_cumprod * (c / SCALE) ** 2 >= 1 - noise_schedule.alphas_cumprod).sum())
    print(f"{name:14s} std of z_0 {c / SCALE:4.2f}   SNR at t = 999: {float(share):6.4f}  ",
          f"noise takes over at t = {half}")

# %% [markdown]
# With the factor, the noise takes over after about a third of the levels, and little is left at the end. At Stable
# Diffusion's raw scale it takes over late, and at the level meant to be pure noise about an eighth of the power is
# still picture: things begin to show in the last row that the first two do not have. The sampler starts from noise
# without any picture in it, so the network is first asked about something that never occurred in its training. Whether
# that harms a model is an empirical question. We train one of each, and need the rest of the code for it.
#
# ## 4 · A batch and its captions
#
# A training batch is a few indices into the cache, and a draw from each posterior: new every time, though the cache
# stays.

# %% [markdown] exercise="diffusion.latent_batch" role="prompt"
# ### Exercise 3 · A fresh draw
#
# `latent_batch(mean, std, chosen, scale, generator)` returns $z_0 = c\,(\mu + \sigma\epsilon)$ for the chosen pictures.
#
# - `mean`, `std` are the cache (N,c,h,w); `chosen` is (B,) int64, repetitions allowed; `scale` is $c$.
# - $\epsilon$ comes from `torch.randn(..., generator=generator)`, one number for each value of the batch. The result is
#   (B,c,h,w).

# %% exercise="diffusion.latent_batch" role="solution"
def latent_batch(mean, std, chosen, scale, generator=None):
    """z_0 at unit variance, drawn anew: (N,c,h,w) twice, (B,) -> (B,c,h,w)."""
    ### BEGIN SOLUTION
    mu, sigma = mean[chosen], std[chosen]                       # (B,c,h,w) twice
    noise = torch.randn(mu.shape, generator=generator)
    noise = noise.to(mu)                                        # the device and dtype of the cache
    z = mu + sigma * noise
    return scale * z
    ### END SOLUTION


# %% exercise="diffusion.latent_batch" role="check"
check("diffusion.latent_batch", latent_batch)

# %% [markdown] exercise="diffusion.latent_batch" role="hint"
# `mean[chosen]` with a tensor of indices makes a new tensor (B,c,h,w).
#
# ---
#
# The factor belongs to the whole draw, not to the mean alone.
#
# ---
#
# `scale * (mean[chosen] + std[chosen] * torch.randn(mean[chosen].shape, generator=generator).to(mean))`

# %% [markdown]
# The caption comes with it. For a minute of training we say the least: two words, colour and shape, as two numbers; the
# place is not told. The number 0 is kept for "nothing said". So that the model can also draw without a caption, which
# guidance (chapter 10) needs, the caption is dropped in one case of ten: `""` takes its place. Stable Diffusion does so
# in 10 % of the cases, too.

# %% [markdown] exercise="diffusion.drop_conditions" role="prompt"
# ### Exercise 4 · Say nothing, sometimes
#
# `drop_conditions(conditions, nothing, p, generator)` returns the conditions with some captions replaced.
#
# - `conditions` is (B,N) int64, `nothing` is (N,): the empty caption. The result is (B,N) int64.
# - Each caption is replaced *whole*, with probability `p`, by a draw of its own from `torch.rand(...,
#   generator=generator)`.
# - The tensor handed in stays as it was: it may be part of the data set.

# %% exercise="diffusion.drop_conditions" role="solution"
def drop_conditions(conditions, nothing, p=0.1, generator=None):
    """Captions, each replaced by `nothing` with probability p; (B,N), (N,) -> (B,N)."""
    ### BEGIN SOLUTION
    draws = torch.rand(len(conditions), generator=generator)    # (B,)
    dropped = (draws < p).to(conditions.device)
    kept = conditions.clone()
    kept[dropped] = nothing.to(kept)
    return kept
    ### END SOLUTION


# %% exercise="diffusion.drop_conditions" role="check"
check("diffusion.drop_conditions", drop_conditions)

# %% [markdown] exercise="diffusion.drop_conditions" role="hint"
# `torch.rand(B) < p` is true with probability p, for each caption by itself. Shape (B,), not (B,N).
#
# ---
#
# `x[mask] = y` writes into x, so x must be a copy.
#
# ---
#
# `kept = conditions.clone()`, then `kept[torch.rand(len(kept), generator=generator) < p] = nothing`

# %%
latent_batch = use("diffusion.latent_batch", latent_batch)
drop_conditions = use("diffusion.drop_conditions", drop_conditions)
COLORS, SHAPES = ([name for name in dict.fromkeys(column)] for column in zip(*THINGS, strict=True))
NOTHING = torch.zeros(2, dtype=torch.int64)


def ids_of(color, shape):
    """Two words as two numbers; 0 is nothing said."""
    return [1 + COLORS.index(color), 1 + len(COLORS) + SHAPES.index(shape)]


captions = torch.tensor([ids_of(*THINGS[kind]) for kind in kinds])                      # (COUNT,2)
own = measured_scale(mean, std)                                 # of draws
draws = [latent_batch(mean, std, torch.arange(SHOWN), own, torch.Generator().manual_seed(k)) for k in (1, 2)]
with torch.no_grad():
    decoded = [vae.decode(z / own) for z in draws]
strip(decoded, [""] * SHOWN, ["draw 1", "draw 2"], width=5.2)
print(f"std of one batch of {SHOWN}: {float(draws[0].std()):.2f}")
print(f"two draws of a latent differ by {float((draws[0] - draws[1]).pow(2).mean().sqrt()):.2f},",
      f"their decoded pictures by {float((decoded[0] - decoded[1]).pow(2).mean().sqrt()):.3f} (rms)")
lost = drop_conditions(captions, NOTHING, 0.1, torch.Generator().manual_seed(1)).eq(0).all(1)
print(f"captions dropped: {int(lost.sum())} of {COUNT}")

# %% [markdown]
# Two draws of a latent are far apart and their pictures nearly alike: that is what the decoder was trained for, and why
# small errors of a denoiser do little harm.
#
# ## 5 · The training step
#
# Nothing below knows whether $z_0$ is a latent or a picture. The network is asked for the velocity $v =
# \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1-\bar\alpha_t}\,z_0$ of chapter 05:
#
# $$L = \mathbb E_{z_0, y, \epsilon, t}\,\big\lVert v - v_\theta(z_t, t, y) \big\rVert^2$$
#
# It is equation 3 of Rombach et al. (2022), with $v$ for $\epsilon$.
#
# > **The article says** (section 3.3) `z = vae.encode(x)` and goes on with it, **but** an encoder returns a
# > distribution: it must be drawn from, and multiplied by $c$. Its listing does neither, and never drops the caption.

# %% [markdown] exercise="diffusion.training_step" role="prompt"
# ### Exercise 5 · One step
#
# `training_step(model, optimizer, x0, conditions, schedule, generator, max_norm)` takes one step, returns the loss as a
# Python float.
#
# - `x0` is (B,C,H,W) and `conditions` (B,N), on the device of the model; `model(x_t, t, conditions)` predicts $v$.
# - $t$ is (B,) int64, uniform over all of `schedule.num_steps` levels; noise is normal, of the shape of `x0`.
# - `schedule.add_noise(x0, noise, t)` and `schedule.to_v(x0, noise, t)` are yours from chapter 05. The loss is the mean
#   over all values.
# - Old gradients are cleared; the norm of the new one is cut to `max_norm`.

# %% exercise="diffusion.training_step" role="solution"
def training_step(model, optimizer, x0, conditions, schedule, generator=None, max_norm=1.0):
    """One step of the optimiser on the velocity's mean squared error; returns the loss."""
    ### BEGIN SOLUTION
    t = torch.randint(schedule.num_steps, (len(x0),), generator=generator)  # (B,)
    noise = torch.randn(x0.shape, generator=generator).to(x0)   # (B,C,H,W)
    x_t = schedule.add_noise(x0, noise, t)
    prediction = model(x_t, t.to(x0.device), conditions)        # (B,C,H,W)
    target = schedule.to_v(x0, noise, t)
    loss = (prediction - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item()
    ### END SOLUTION


# %% exercise="diffusion.training_step" role="check"
check("diffusion.training_step", training_step)

# %% [markdown] exercise="diffusion.training_step" role="hint"
# The same noise goes into $x_t$ and into the target. `torch.randint(high, size, generator=...)` excludes `high`.
#
# ---
#
# The order is zero_grad, backward, clip, step. Clipping before `backward` finds no gradient to clip.
#
# ---
#
# `loss = (model(schedule.add_noise(x0, noise, t), t, conditions) - schedule.to_v(x0, noise, t)).square().mean()`

# %% [markdown]
# The sampler is chapter 07's, with two lines around it.

# %% [markdown] exercise="pipeline.sample" role="prompt"
# ### Exercise 6 · From noise to a picture
#
# `sample(model, vae, schedule, conditions, noise, scale, steps)` returns pictures (B,3,H,W) in [-1, 1].
#
# - `noise` is (B,c,h,w), where sampling starts; `conditions` is (B,N). `model(x, t, conditions)` with t (B,) predicts
#   $v$.
# - `samplers.ddim(denoiser, x, timesteps, schedule=schedule)` wants `denoiser(x, t)` to return $\epsilon$ and hands it
#   one number t. `schedule.to_eps(x, v, t, given="v")` converts; `schedule.timesteps(steps)` are the trailing levels.
# - The decoder reads *unscaled* latents: divide by `scale`. Clamp the pictures, not the latents. Keep no graph.

# %% exercise="pipeline.sample" role="solution"
def sample(model, vae, schedule, conditions, noise, scale, steps=20):
    """Noise -> sampler -> unscale -> decode; (B,c,h,w) -> (B,3,H,W) in [-1,1]."""
    ### BEGIN SOLUTION
    def denoiser(x, t):
        v = model(x, torch.full((len(x),), int(t), device=x.device), conditions)
        return schedule.to_eps(x, v, t, given="v")

    with torch.no_grad():
        z0 = samplers.ddim(denoiser, noise, schedule.timesteps(steps), schedule=schedule)  # (B,c,h,w)
        return vae.decode(z0 / scale).clamp(-1, 1)              # (B,3,H,W)
    ### END SOLUTION


# %% exercise="pipeline.sample" role="check"
check("pipeline.sample", sample)

# %% [markdown] exercise="pipeline.sample" role="hint"
# Write an inner function `denoiser(x, t)` that asks the model and converts its answer.
#
# ---
#
# `torch.full((len(x),), int(t))` makes a level for each picture. Everything stands under `torch.no_grad()`.
#
# ---
#
# `vae.decode(samplers.ddim(denoiser, noise, schedule.timesteps(steps), schedule=schedule) / scale).clamp(-1, 1)`

# %%
training_step = use("diffusion.training_step", training_step)
sample = use("pipeline.sample", sample)


class Denoiser(nn.Module):
    """The library's U-Net and a table of words: (x_t, t, ids (B,2)) -> v."""

    def __init__(self, channels, **sizes):
        super().__init__()
        self.words = nn.Embedding(1 + len(COLORS) + len(SHAPES), 64)
        self.unet = UNet(UNetConfig(in_channels=channels, out_channels=channels, context_dim=64,
                                    layers_per_block=1, **sizes))

    def forward(self, x_t, t, ids):
        return self.unet(x_t, t, self.words(ids))               # words (B,2,64) are the context


def latent_model():
    torch.manual_seed(0)
    return Denoiser(mean.shape[1], block_channels=(64, 64), depth=(1, 1), heads=(2, 2)).to(session.device)


def train(model, draw_batch, steps, title):
    """`steps` of yours; draw_batch(chosen, generator) gives x_0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(8)
    for step in track(range(steps), title, lines=2):
        for group in optimizer.param_groups:                    # warm up, then fall to 0
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        chosen = torch.randint(COUNT, (BATCH,), generator=generator)
        asked = drop_conditions(captions[chosen], NOTHING, 0.1, generator).to(session.device)
        training_step(model, optimizer, draw_batch(chosen.to(session.device), generator), asked, noise_schedule, generator)
    return model


wanted = THINGS * TRIES
asked = torch.tensor([ids_of(*words) for words in wanted]).to(session.device)           # (12 TRIES,2)
start = torch.randn(len(wanted), *mean.shape[1:], generator=torch.Generator().manual_seed(3)).to(session.device)


def right(pictures):
    """How many show one thing, of the colour and shape that were asked for; the oracle reads them."""
    readings = oracle.read(pictures.cpu())
    return sum([(o.color, o.shape) for o in r.objects] == [want] for r, want in zip(readings, wanted, strict=True))


models, samples = {}, {}
for name in ("measured", "like SD's raw"):
    c = arms[name]
    models[name] = train(latent_model(), lambda chosen, g, c=c: latent_batch(mean, still, chosen, c, g), TRIAL, name)
    samples[name] = sample(models[name], vae, noise_schedule, asked, start, c, STEPS)
    print(f"{name:14s} right: {right(samples[name])} of {len(wanted)}")
blank = sample(models["measured"], vae, noise_schedule, torch.zeros_like(asked), start, SCALE, STEPS)
print(f"measured, with nothing said: {right(blank)} of {len(wanted)}")
strip([row[2:2 + SHOWN] for row in (*samples.values(), blank)], ["\n".join(w) for w in wanted[2:2 + SHOWN]],
      ["measured", "like SD's", "not told"], width=5.2)

# %% [markdown]
# After 4,800 pictures, each of which passed the autoencoder once, the first model draws most of what it is told, at places
# of its own choice: 41 of 48. The second differs from it only in the unit of its latents, and gets 32: some pictures have
# two things, or half a one. Its SNR at the last level is 30 times the intended one, so that it starts from a state that it
# never saw, and few of its levels are noisy enough to practise where things go. With 48 pictures the gap is not far from
# chance (95 % intervals, by chapter 00: 73 to 93 % and 53 to 78 %); another seed would be the next experiment. Told
# nothing, the first model draws things of its world, and dark mixtures of several.
#
# Rombach et al. (2022, appendix D.1) report the same kind of harm elsewhere: samples larger than those of the training
# depend strongly on the variance of the latents.
#
# ## 6 · What the autoencoder buys
#
# Now the comparison the method is named for: the same U-Net code with about as many parameters, once on latents and once
# on pixels. The pixel model needs four levels, narrow where the grid is large. First the price of a step. Machines that
# do other work give unsteady times, so the two are timed *in turns*, and the medians are compared.

# %%
def pixel_model():
    torch.manual_seed(0)
    sizes = dict(block_channels=(32, 32, 64, 64), depth=(0, 0, 1, 1), mid_depth=0, heads=(1, 1, 2, 2))
    return Denoiser(3, **sizes).to(session.device)


def seconds(work):
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


rivals = {"latent": models["measured"], "pixel": pixel_model()}
few = torch.arange(BATCH)
x0s = {"latent": SCALE * mean[few], "pixel": images[few]}
idle = {name: torch.optim.AdamW(model.parameters(), lr=0.0) for name, model in rivals.items()}
ids = captions[few].to(session.device)
times = {(name, what): [] for name in rivals for what in ("training step", "denoising step")} | {("decoder", "once"): []}
for _ in range(ROUNDS):
    for name, model in rivals.items():
        times[name, "training step"].append(
            seconds(lambda n=name, m=model: training_step(m, idle[n], x0s[n], ids, noise_schedule)))
        with torch.no_grad():
            times[name, "denoising step"].append(
                seconds(lambda n=name, m=model: m(x0s[n], torch.full((BATCH,), 500, device=session.device), ids)))
    with torch.no_grad():
        times["decoder", "once"].append(seconds(lambda: vae.decode(mean[few])))
median = {key: statistics.median(values) for key, values in times.items()}
for (name, what), value in median.items():
    print(f"{name:8s} {what:15s} {1000 * value / BATCH:8.1f} ms a picture")
trained = median["pixel", "training step"] / median["latent", "training step"]
drawn = {n: 50 * median[n, "denoising step"] for n in rivals}
whole = drawn["pixel"] / (drawn["latent"] + median["decoder", "once"])
print(f"pixel : latent, a training step           {trained:5.1f}")
print(f"pixel : latent, a picture of 50 steps     {whole:5.1f}  (decoder included)")
share = ENCODING / (median["latent", "training step"] / BATCH)
print(f"to encode a picture, once, costs as much as {share:.1f} training steps on it")

# %% [markdown]
# Now both get the same *time*: the latent model its steps from above, the pixel model as many of its own as take as long.

# %%
class NoAutoencoder:
    """Pixels are their own latents."""

    def decode(self, z):
        return z


budget = max(2, round(TRIAL / trained))
train(rivals["pixel"], lambda chosen, g: images[chosen], budget, "pixel")
start_pixels = torch.randn(len(wanted), 3, 64, 64, generator=torch.Generator().manual_seed(3)).to(session.device)
samples["pixel"] = sample(rivals["pixel"], NoAutoencoder(), noise_schedule, asked, start_pixels, 1.0, STEPS)
for name, key, steps in (("latent", "measured", TRIAL), ("pixel", "pixel", budget)):
    print(f"{name:7s} {sum(p.numel() for p in rivals[name].parameters()):9,d} parameters, {steps:4d} steps,",
          f"{steps * BATCH:5d} pictures seen, right: {right(samples[key])} of {len(wanted)}")
strip([samples[key][2:2 + SHOWN] for key in ("measured", "pixel")], ["\n".join(w) for w in wanted[2:2 + SHOWN]],
      ["latent", "pixel"], width=5.2)

# %% [markdown]
# In the time of the latent model's 300 steps the pixel model takes about a tenth as many. It has found that the ground
# is light and that something dark is on it; that is no answer to a caption yet. This says who starts sooner, on a
# schedule made for latents: given time the pixel model learns. The losses of the two cannot be compared, since they
# are errors in different units; time and pictures can.
#
# | | pixels : latents, training | pixels : latents, sampling | at which scale |
# |---|---|---|---|
# | here | first ratio above | second ratio above | 64 × 64, f = 8, 1.7 million parameters, this machine |
# | Rombach et al. (2022), table 18 | 962 : 271 = 3.5 | 0.4 : 0.07 = 5.7 | ImageNet 256 × 256, ADM-G and LDM-4-G |
# | the same, table 6 (inpainting) | 0.33 : 0.11 = 3.0 | 0.34 : 0.07 = 4.9 | 512 × 512 for sampling, LDM-1 and LDM-4 |
#
# Table 18 gives V100 days and pictures a second, table 6 pictures a second for both.
#
# > **The article says** (section 6.3) that latents make training 20 and sampling 25 times cheaper, **but** these
# > figures appear nowhere in the paper. Its own are in the table; with the first stage (29 V100 days) the training
# > ratio is 3.2.
#
# With hours in place of seconds, table J (`docs/tables/cpu`): after 2 minutes latents were better than pixels after 40, 20
# times sooner; with the 3 minutes of the autoencoder, 8 times. A guided picture of equal steps took 11 times less.
#
# Three reasons why our ratios need not be theirs. We compare at equal parameters on grids that differ by 64 in area;
# ADM-G is another network of 608 million parameters and LDM-4-G one of 400 million, whose grids differ by 16. In deep
# networks the narrow levels dominate, in ours the widest grid does. And a CPU is not a GPU. Nor is our autoencoder
# free: it was trained before, for 50 minutes, and its time is in no ratio above.
#
# How far should one compress? Rombach et al. trained LDM-1 (pixels) to LDM-32 with the same budget of steps on one
# A100. After 2 million steps LDM-1's FID on ImageNet lies 38 above LDM-8's; LDM-32 suffers from what its autoencoder
# lost; LDM-4 to LDM-16 are good. One caution from table 13: the batch was 7 for LDM-1 and 64 for LDM-8, so at an equal
# number of *steps* one had seen 14 million pictures and the other 128 million.
#
# ## 7 · The same code after hours
#
# The shipped model `scenes64` is this code: the same cache, factor, dropped captions, step and sampler. It has a text
# encoder in place of our table of words (chapter 09), guidance (chapter 10), and hours in place of seconds. Its prompts
# may name size, place and ground, and up to three objects.

# %%
prompts = ["a large red circle in the center on a white background",
           "a small blue square on the left on a gray background",
           "a large green star on the right on a cream background",
           "a small red ring left of a large blue square on a gray background",
           "a large yellow star above a small black cross on a pink background",
           "a large brown triangle right of a small purple ring and below a small red square on a sky background"][-SHOWN:]
z0 = shipped.latents(prompts, steps=STEPS, seed=8)              # (SHOWN,c,h,w), at the scale that is diffused
pictures = shipped.decode(z0)                                   # (SHOWN,3,64,64)
strip([pictures], range(1, SHOWN + 1), width=7)
for number, (prompt, reading) in enumerate(zip(prompts, oracle.read(pictures.cpu()), strict=True), start=1):
    things = [" ".join(word or "?" for word in (o.size, o.color, o.shape)) for o in reading.objects]
    print(f"{number}. {prompt}\n   read: {', '.join(things)} on {reading.background}")
print(f"std of these latents: {float(z0.std()):.2f}")

# %% [markdown]
# The latents come out at the scale that was diffused, near 1, and are divided by the factor before they are decoded: all
# in `decode`.
#
# Latents can be mixed, before the sampler and after it. Below, first two *noises* on the arc of chapter 00, each then drawn
# as "a large star". Then finished latents: $a + u\,(c - b)$, so that the way ends at $a - b + c$. Red circle minus green
# circle plus green square: is that a red square? And can a thing be moved like this? (Live, $u$ is a slider.)

# %%
def draw_noise(noise, titles):
    """Pictures of one prompt from noises (K,c,h,w)."""
    says = {"context": shipped.encode_text(["a large star"])["context"].expand(len(noise), -1, -1)}
    with torch.no_grad():
        z0 = samplers.ddim(lambda x, t: shipped.predict_eps(x, t, says), noise, shipped.schedule.timesteps(STEPS),
                           schedule=shipped.schedule)
    strip([shipped.decode(z0)], titles, ["noise"], width=5.2)


def draw_latents(z0, titles):
    """Pictures of finished latents (K,c,h,w)."""
    strip([shipped.decode(z0)], titles, ["latent"], width=5.2)


def told(color, shape, place):
    where = {"center": "in the center", "left": "on the left"}[place]
    return f"a large {color} {shape} {where} on a white background"


def seen(latents):
    """What the oracle reads in each: a list of (color, shape, position)."""
    return [[(o.color, o.shape, o.position) for o in r.objects] for r in oracle.read(shipped.decode(latents).cpu())]


latent_mixer(*[noise_like(z0[0], seed) for seed in (1, 2)], draw_noise)
sums = {"a color": [], "a place": []}                           # a - b + c: was it what was meant?
for k in range(3 * TRIES):
    one, two = COLORS[k % 4], COLORS[(k + 1 + k // 4 % 3) % 4]
    this, that = SHAPES[k % 3], SHAPES[(k + 1 + k // 12 % 2) % 3]
    for what, trio, meant in (
            ("a color", [(one, this, "center"), (two, this, "center"), (two, that, "center")], (one, that, "center")),
            ("a place", [(one, this, "left"), (one, this, "center"), (two, that, "center")], (two, that, "left"))):
        a, b, c = shipped.latents([told(*thing) for thing in trio], steps=STEPS, seed=[k] * 3)
        if k == 0:
            latent_mixer(a, b, draw_latents, c)
        if seen(torch.stack([a, b, c])) == [[thing] for thing in trio]:                 # else the model is to blame
            sums[what].append(seen((a - b + c)[None]) == [[meant]])
for what, right_ones in sums.items():
    print(f"{what} exchanged by a - b + c: read as meant {sum(right_ones)} of {len(right_ones)}")

# %% [markdown]
# On the arc every picture is one that the model might have drawn. The sums are another matter. A colour is exchanged in 9 of
# 12 cases, since all that differs lies in one place; a place in none, however well the three pictures came out. A latent is
# a small map, and what is added is added place by place: it knows red *here*, not "red", and not "left".
#
# ## Questions to think about
#
# 1. The cache makes random cropping and flipping of pictures harder. What would you store to keep flips possible?
# 2. A collapsed channel is pure noise. Trained on draws, what is the best velocity that a denoiser can answer there, and
#    what loss is left?
# 3. One factor for all channels, or one for each? What would change for the collapsed ones?
# 4. What does training on the means only, without a draw, do to a denoiser whose decoder was trained on draws?
# 5. Half the decoder's errors are a matter of taste. Which errors of a sample can you blame on the denoiser for
#    certain?
# 6. Latents are not clamped during sampling, pixels often are. Why?
#
# ## Recap
#
# - Stage one is frozen, so its posteriors are computed once, mean and standard deviation.
# - $c = 1/\sigma$ of what is diffused, draws or means, brings latents to the variance the schedule was made for; it belongs
#   to the autoencoder.
# - Multiply before diffusion, divide before decoding. Forgetting one of the two is the commonest bug of all.
# - Draw anew, or take means; drop the whole caption in one case of ten, in a copy.
# - The training step and the sampler are those of pixels; they become cheaper because the grid is smaller.
# - Compare times in turns, by medians, and say what was held equal.
#
# **Next**, chapter 09 replaces our table of words by language: attention, a tokenizer, and a text encoder.
