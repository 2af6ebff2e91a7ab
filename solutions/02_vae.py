# %% [markdown]
# # 02 · The variational autoencoder
#
# Latent diffusion works on a code instead of a picture. This chapter builds the network that makes the code and turns it
# back, and the loss that keeps it fit to be diffused.
#
# **You will be able to**
#
# - build the encoder of Stable Diffusion, down to the side on which its zeros stand;
# - draw from what the encoder says in a way that a gradient can pass, and measure what that is worth;
# - derive the KL term, check it by drawing, and say in which units it is counted;
# - turn $\beta$ through seven orders of magnitude and see the code collapse;
# - say why random latents are not pictures, and why latents are rescaled before diffusion.
#
# **Time** about 2.5 hours, of which 105 minutes are exercises. **You need** convolutions, autograd, mean and variance. No
# GPU; five tiny autoencoders are trained. **In the library** this is `course/vae.py`, `course/layers.py`,
# `course/losses.py` and `course/training/autoencoder.py`; in the article, sections 2.2, 2.3 and a line of 3.3.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from course import layers, parts, presets, vae
from course.classroom import begin, check, figure_style, use
from course.data import Scenes, oracle
from course.pipeline import StableDiffusion

session = begin(needs="0.1", seed=2)
COUNT = {"quick": 24, "cpu": 512, "gpu": 2048}[session.profile]  # pictures to measure on
READ = {"quick": 2, "cpu": 32, "gpu": 128}[session.profile]     # pictures to read back into words
DRAWS = {"quick": 200, "cpu": 4000, "gpu": 4000}[session.profile]
STEPS = {"quick": 6, "cpu": 500, "gpu": 4000}[session.profile]  # of each training

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
            axes[r, c].set(xticks=[], yticks=[], title=titles[c] if r == 0 else "")
            axes[r, c].spines[:].set_visible(False)
        if labels:
            axes[r, 0].set_ylabel(labels[r])
    plt.show()


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def psnr(x, y):
    """Of all pictures together, in dB; values lie in [-1, 1], so the peak is 2."""
    return float(-10 * torch.log10((x - y).square().mean() / 4))


# %% [markdown]
# ## A code that bears noise
#
# Below, the autoencoder that comes with the course encodes a picture. Its latent (three of its channels, shown as
# colours) is a small picture itself. Then noise is added to the latent, as a share of the latents' standard deviation,
# and the result is decoded.

# %%
shipped = StableDiffusion.load("scenes64").vae.requires_grad_(False)
scenes = Scenes(64, split="test", objects=(1, 1), degraded=0.0)
pictures = scenes.images(range(COUNT))                          # (COUNT,3,64,64)
picture, shares = pictures[2:3], (0, 0.3, 1.0)
z = shipped.encode(picture).mode()                              # (1,c,8,8)
colours = F.interpolate(z[:, :3] / z.abs().max(), scale_factor=8)  # (1,3,64,64)
decoded = [shipped.decode(z + s * z.std() * random(*z.shape, seed=1)) for s in shares]
strip([torch.cat([picture, colours, *decoded])], ["picture", "latent", "decoded", "noise 0.3", "noise 1"], width=7)
print(f"{picture.numel():,} values -> {z.numel()}, {picture.numel() // z.numel()} times fewer")

# %% [markdown]
# The latent is a map: what is above in the picture is above in the latent. This is what a diffusion model will work on,
# and it asks for three things. The code must be small; it must keep what the eye needs; and it must forgive, since what
# diffusion delivers is never quite a latent that the encoder would have made. The first is a matter of architecture,
# the second of the loss, the third of the noise this chapter adds on purpose.
#
# ## 1 · Halving, with an accident
#
# An encoder is a stack of residual blocks (chapter 06 builds one), and now and then a convolution of stride 2 that halves
# both sides. A 3 × 3 kernel at the border needs values outside the picture. The U-Net of Stable Diffusion puts a row or
# column of zeros on all four sides. Its encoder puts one on the right and one at the bottom only:
#
# $$\underbrace{0\;[x_0\;x_1]\;x_2\;x_3 \cdots}_{\text{symmetric: first window } 0,\,x_0,\,x_1} \qquad\qquad
# \underbrace{[x_0\;x_1\;x_2]\;x_3 \cdots x_{n-1}\;0}_{\text{asymmetric: first window } x_0,\,x_1,\,x_2}$$
#
# Neither is better, but the weights know only one.

# %% [markdown] exercise="layers.Downsample" role="prompt"
# ### Exercise 1 · Downsample
#
# `Downsample(channels, asymmetric=False)` is a module, (B,C,H,W) → (B,C,H/2,W/2), for even H and W.
#
# - `conv`: a 3 × 3 convolution, C to C channels, stride 2, with bias.
# - Symmetric: one zero on all four sides. Asymmetric: one on the right, one at the bottom.

# %% exercise="layers.Downsample" role="solution"
class Downsample(nn.Module):
    """Halve H and W; (B,C,H,W) -> (B,C,H/2,W/2)."""

    def __init__(self, channels, asymmetric=False):
        super().__init__()
        ### BEGIN SOLUTION
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(
            channels, channels, kernel_size=3, stride=2,
            padding=0 if asymmetric else 1,
        )
        ### END SOLUTION

    def forward(self, x):
        ### BEGIN SOLUTION
        if self.asymmetric:
            x = F.pad(x, (0, 1, 0, 1))                          # (B,C,H+1,W+1)
        return self.conv(x)                                     # (B,C,H/2,W/2)
        ### END SOLUTION


# %% exercise="layers.Downsample" role="check"
check("layers.Downsample", Downsample)

# %% [markdown] exercise="layers.Downsample" role="hint"
# `nn.Conv2d` pads all sides alike. For the asymmetric case give it `padding=0` and pad before.
#
# ---
#
# `F.pad(x, (left, right, top, bottom))`: the last axis comes first.
#
# ---
#
# `F.pad(x, (0, 1, 0, 1))`, then `self.conv`.

# %%
Downsample = use("layers.Downsample", Downsample)


class Symmetric(Downsample):
    def __init__(self, channels, asymmetric=False):
        super().__init__(channels, asymmetric=False)


def shipped_with(replacement):
    """The shipped weights in an autoencoder that halves in another way."""
    with parts.swapped({"layers.Downsample": replacement}):
        copy = presets.autoencoder(shipped.config)
    copy.load_state_dict(shipped.state_dict())
    return copy.requires_grad_(False)


some = pictures[:16]
yours, other = (net.decode(net.encode(some).mode()) for net in map(shipped_with, (Downsample, Symmetric)))
strip([torch.cat([some[2:3], yours[2:3], other[2:3], (other - yours)[2:3]])],
      ["picture", "yours", "zeros all round", "difference"], width=5.6)
print(f"your Downsample: {psnr(yours, some):.1f} dB; zeros on all four sides: {psnr(other, some):.1f} dB")
print(f"the latter, moved up and left by 4 pixels: {psnr(other[..., 4:, 4:], some[..., :-4, :-4]):.1f} dB")

# %% [markdown]
# No error, no missing key, and a picture that has moved: every window began one position early, which is four pixels of the
# picture at this depth. In Stable Diffusion, with three halvings, it is 1 + 2 + 4 = 7 pixels
# of 512: the eye may pass it.
#
# ## 2 · The encoder
#
# | part | shape, Stable Diffusion at 512² | |
# |---|---|---|
# | `stem` | (B,3,512,512) | none here; our small models fold 4 × 4 pixels into channels |
# | `conv_in` | (B,128,512,512) | 3 × 3 |
# | `down_blocks` | (B,512,64,64) | levels of residual blocks; all but the last halve |
# | `mid_block` | (B,512,64,64) | block, self-attention, block |
# | `conv_norm_out`, SiLU, `conv_out` | (B,8,64,64) | 2c channels: c means, c log-variances |
#
# A 1 × 1 convolution, `quant_conv`, follows the encoder; another, `post_quant_conv`, precedes the decoder, which is the
# encoder's mirror with one more block a level. Released files carry both.

# %% [markdown] exercise="vae.Encoder" role="prompt"
# ### Exercise 2 · The encoder
#
# `Encoder(config)`: (B,3,H,W) → (B,2c,H/f,W/f), with the attributes of the table, in its order. `config` has
# `in_channels`, `latent_channels` (c), `block_channels` (a width for each level), `layers_per_block`, `stem`,
# `mid_attention`, and `has_attention(i)`. You have:
#
# - `nn.PixelUnshuffle(stem)`, which multiplies the channels by `stem ** 2`; `conv_in` goes to the first width;
# - `vae.Level(in_channels, out_channels, blocks, down=..., with_attention=...)`, in a `ModuleList`; a level starts from
#   the width of the one before, the first from its own;
# - `vae.Middle(channels, with_attention)` and `layers.group_norm(channels, 1e-6)`; `conv_out` is 3 × 3.

# %% exercise="vae.Encoder" role="solution"
class Encoder(nn.Module):
    """(B,3,H,W) -> (B,2c,H/f,W/f)."""

    def __init__(self, config):
        super().__init__()
        ### BEGIN SOLUTION
        widths = config.block_channels
        self.stem = nn.PixelUnshuffle(config.stem)
        self.conv_in = nn.Conv2d(config.in_channels * config.stem**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            self.down_blocks.append(vae.Level(before, width, config.layers_per_block, down=not last,
                                              with_attention=config.has_attention(i)))
            before = width
        self.mid_block = vae.Middle(before, config.mid_attention)
        self.conv_norm_out = layers.group_norm(before, 1e-6)
        self.conv_out = nn.Conv2d(before, 2 * config.latent_channels, 3, padding=1)
        ### END SOLUTION

    def forward(self, x):
        ### BEGIN SOLUTION
        h = self.conv_in(self.stem(x))                          # (B,C,H/stem,W/stem)
        for level in self.down_blocks:
            h = level(h)                                        # (B,C_i,H/2,W/2)
        h = self.mid_block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))     # (B,2c,H/f,W/f)
        ### END SOLUTION


# %% exercise="vae.Encoder" role="check"
check("vae.Encoder", Encoder)

# %% [markdown] exercise="vae.Encoder" role="hint"
# Walk over `enumerate(config.block_channels)` and remember the width before. A plain Python list hides its modules from
# `state_dict`; `nn.ModuleList` does not.
#
# ---
#
# `down=` is true for all levels but the last. The blocks of a level are `config.layers_per_block`.
#
# ---
#
# The end is `self.conv_out(F.silu(self.conv_norm_out(h)))`, with `2 * config.latent_channels` channels.

# %%
Encoder = use("vae.Encoder", Encoder)
with torch.device("meta"), parts.swapped({"layers.Downsample": Downsample, "vae.Encoder": Encoder}):
    sd = presets.build("vae-sd")                                # shapes only: costs no memory
    h = sd.encoder.conv_in(torch.empty(1, 3, 512, 512))
    for i, level in enumerate(sd.encoder.down_blocks):
        h = level(h)
        print(f"down_blocks.{i}     {tuple(h.shape)}")
print(f"moments           {tuple(sd.quant_conv(sd.encoder(torch.empty(1, 3, 512, 512, device='meta'))).shape)}")
counts = {name: sum(p.numel() for p in part.parameters()) for name, part in sd.named_children()}
print(f"parameters        {sum(counts.values()):,}: encoder {counts['encoder']:,}, decoder {counts['decoder']:,}")

# %% [markdown]
# 83,653,863 is the number of parameters in the released file. The decoder is the larger half, by one block a level.
#
# ## 3 · A gradient through a draw
#
# The encoder answers with a Gaussian $q(z|x) = \mathcal N(\mu, \sigma^2)$ for every value of the latent, and the decoder
# gets a *draw*. Training needs $\nabla_\mu\, \mathbb E_q[f(z)]$, where $f$ is the decoder's error: how would the error change
# if the mean moved? There are two ways to estimate it from draws:
#
# $$\underbrace{\nabla_\mu \mathbb E_q[f] = \mathbb E\left[f'(\mu + \sigma\epsilon)\right]}_{\text{pathwise: } z = \mu +
# \sigma\epsilon,\ \epsilon \sim \mathcal N(0, I)} \qquad\qquad
# \underbrace{\nabla_\mu \mathbb E_q[f] = \mathbb E\left[f(z)\, \nabla_\mu \ln q(z)\right]}_{\text{score function}}
# \qquad \nabla_\mu \ln q(z) = \frac{z - \mu}{\sigma^2} = \frac{\epsilon}{\sigma}$$
#
# The left one moves the randomness out: $\epsilon$ is an input like any other, and $z$ a differentiable function of
# $\mu$. This is the *reparametrisation* of Kingma & Welling (2014). The right one (Williams 1992) needs only the value
# of $f$, not its derivative. Both are unbiased.

# %% [markdown] exercise="vae.gradient_estimates" role="prompt"
# ### Exercise 3 · Two estimates
#
# `gradient_estimates(f, mean, std, noise)` returns `(pathwise, score)`, both (N,d), detached: for each draw, the estimated
# gradient with respect to `mean`.
#
# - `mean`, `std`: (d,); `noise`: (N,d), standard normal. `f` maps (N,d) to (N,), each row by itself.

# %% exercise="vae.gradient_estimates" role="solution"
def gradient_estimates(f, mean, std, noise):
    """(pathwise (N,d), score (N,d))."""
    ### BEGIN SOLUTION
    z = (mean + std * noise).requires_grad_()                   # (N,d)
    value = f(z)                                                # (N,)
    pathwise, = torch.autograd.grad(value.sum(), z)             # (N,d)
    score = value.detach()[:, None] * noise / std               # (N,d)
    return pathwise, score
    ### END SOLUTION


# %% exercise="vae.gradient_estimates" role="check"
check("vae.gradient_estimates", gradient_estimates)

# %% [markdown] exercise="vae.gradient_estimates" role="hint"
# $\partial z / \partial \mu = 1$, so the pathwise gradient is that of $f$ with respect to `z`.
#
# ---
#
# `torch.autograd.grad(f(z).sum(), z)` gives all rows at once: row n of the sum depends on row n of `z` only.
#
# ---
#
# `score = f(z).detach()[:, None] * noise / std`: one value for each draw, times d numbers.

# %%
gradient_estimates = use("vae.gradient_estimates", gradient_estimates)
dims, spread = [1, 4, 16, 64, 256, 1024], {"pathwise": [], "score": []}
for d in dims:                                                  # f: squared distance to 0, from mean 0.5 with std 0.3
    noise = random(DRAWS, d, seed=d)
    estimates = gradient_estimates(lambda z: z.square().sum(1), torch.full((d,), 0.5), torch.full((d,), 0.3), noise)
    for name, values in zip(spread, estimates, strict=True):
        spread[name].append(float(values[:, 0].std()))
figure, axis = plt.subplots(figsize=(6, 2.7))
for (name, values), color, mark in zip(spread.items(), (BLUE, RED), "os", strict=True):
    axis.plot(dims, values, color=color, marker=mark, label=name)
axis.axhline(1.0, color=GREY, ls=":")
axis.set(xlabel="values in the latent, d", ylabel="std of one estimate", xscale="log", yscale="log")
axis.legend()
plt.show()
ratio = (spread["score"][4] / spread["pathwise"][4]) ** 2
print(f"d = 256: the score function needs {ratio:,.0f} times as many draws for the same accuracy")

mean, std = torch.tensor(0.5, requires_grad=True), torch.tensor(0.3)
for name, z in {"mean + std * noise": mean + std * random(), "torch.normal(mean, std)": torch.normal(mean, std),
                "Normal(mean, std).sample()": torch.distributions.Normal(mean, std).sample()}.items():
    found = f"{float(torch.autograd.grad(z.square(), mean)[0]):.2f}" if z.requires_grad else "none: cut off"
    print(f"{name:27s} z = {float(z.detach()):5.2f}   gradient {found}")

# %% [markdown]
# The gradient to be found is 1 (dotted). The pathwise estimate scatters by 0.6 at any size; the score's scatter grows
# with $d$, since it learns from one number how all $d$ values did. (Subtracting a baseline from $f$ slows the growth.)
# With a single draw for each picture and step, as VAEs are trained, only the first is usable. Where $f$ has no derivative,
# only the second is.
#
# The three lines say what happens to a draw made otherwise. `Normal.sample` cuts the graph. `torch.normal` is worse: it
# pretends to have a gradient, and that gradient is 0.
#
# ## 4 · The price of information
#
# Nothing so far keeps the encoder from answering with a tiny $\sigma$ and means far apart, so that the noise does
# nothing. The VAE charges for it: the KL divergence from $p(z) = \mathcal N(0, I)$,
#
# $$\mathrm{KL}(q\,\|\,p) = \mathbb E_q\left[\ln q(z|x) - \ln p(z)\right]$$
#
# counted in *nats* (1 nat is 1.44 bits), is what it takes to tell the receiver of $z$, who expects $\mathcal N(0, I)$,
# which picture this is. It is 0 only if the answer is $\mathcal N(0, I)$ whatever the picture. As an average it can be
# estimated by drawing; that works for any $q$ and $p$.

# %% [markdown] exercise="vae.monte_carlo_kl" role="prompt"
# ### Exercise 4 · KL by drawing
#
# `monte_carlo_kl(mean, logvar, noise)`, with (B,c,h,w), (B,c,h,w) and (S,B,c,h,w), returns (B,): $\ln q(z) - \ln p(z)$,
# summed over the values of a latent and averaged over the S draws $z = \mu + \sigma\epsilon$.
#
# - `logvar` is $\ln \sigma^2$. For one value $\ln q(z) = -\tfrac12\left(\epsilon^2 + \ln\sigma^2 + \ln 2\pi\right)$.

# %% exercise="vae.monte_carlo_kl" role="solution"
def monte_carlo_kl(mean, logvar, noise):
    """An estimate of KL(q || N(0, I)) in nats; (B,)."""
    ### BEGIN SOLUTION
    std = torch.exp(0.5 * logvar)                               # (B,c,h,w)
    z = mean + std * noise                                      # (S,B,c,h,w)
    log_q = -0.5 * (noise.square() + logvar + math.log(2 * math.pi))
    log_p = -0.5 * (z.square() + math.log(2 * math.pi))
    return (log_q - log_p).flatten(2).sum(2).mean(0)            # (B,)
    ### END SOLUTION


# %% exercise="vae.monte_carlo_kl" role="check"
check("vae.monte_carlo_kl", monte_carlo_kl)

# %% [markdown] exercise="vae.monte_carlo_kl" role="hint"
# $\ln p(z)$ is the same formula with $\mu = 0$, $\sigma = 1$: the square is then that of $z$ itself.
#
# ---
#
# `std = torch.exp(0.5 * logvar)`. Independent values: log densities add up over c, h and w.
#
# ---
#
# `(log_q - log_p).flatten(2).sum(2).mean(0)`, where axis 0 holds the draws.

# %% [markdown]
# For two Gaussians the average can be taken once and for all. With $\mathbb E[\epsilon^2] = 1$ and
# $\mathbb E[z^2] = \mu^2 + \sigma^2$, and $\ln 2\pi$ cancelling,
#
# $$\mathrm{KL} = -\tfrac12\left(1 + \ln\sigma^2\right) + \tfrac12\left(\mu^2 + \sigma^2\right)
# = \tfrac12\left(\mu^2 + \sigma^2 - 1 - \ln\sigma^2\right) \quad\text{for each value.}$$

# %% [markdown] exercise="vae.DiagonalGaussian" role="prompt"
# ### Exercise 5 · The encoder's answer
#
# `DiagonalGaussian(moments)` takes (B,2c,h,w): c channels of means, then c of log-variances.
#
# - `.mean`, `.logvar`: (B,c,h,w), the latter clamped to [-30, 20].
# - `.sample(generator=None, noise=None)`: a draw (B,c,h,w), from `noise` if it is given, else from
#   `torch.randn(shape, generator=generator)`, moved `.to(self.mean)`.
# - `.mode()`: the most likely value. `.kl()`: (B,), in nats, in closed form, summed over the values of a latent.

# %% exercise="vae.DiagonalGaussian" role="solution"
class DiagonalGaussian:
    """q(z|x) from the encoder's moments (B,2c,h,w)."""

    def __init__(self, moments):
        ### BEGIN SOLUTION
        mean, logvar = moments.chunk(2, dim=1)                  # (B,c,h,w) twice
        self.mean = mean
        self.logvar = logvar.clamp(-30, 20)
        self.var = self.logvar.exp()
        self.std = torch.exp(0.5 * self.logvar)
        ### END SOLUTION

    def sample(self, generator=None, noise=None):
        ### BEGIN SOLUTION
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean + self.std * noise.to(self.mean)       # (B,c,h,w)
        ### END SOLUTION

    def mode(self):
        ### BEGIN SOLUTION
        return self.mean
        ### END SOLUTION

    def kl(self):
        ### BEGIN SOLUTION
        each = 0.5 * (self.mean.square() + self.var - 1 - self.logvar)  # (B,c,h,w)
        return each.flatten(1).sum(1)                           # (B,)
        ### END SOLUTION


# %% exercise="vae.DiagonalGaussian" role="check"
check("vae.DiagonalGaussian", DiagonalGaussian)

# %% [markdown] exercise="vae.DiagonalGaussian" role="hint"
# `moments.chunk(2, dim=1)` splits the channels. Use the clamped log-variance everywhere, not the raw one.
#
# ---
#
# A standard deviation is the root of a variance: `torch.exp(0.5 * logvar)`.
#
# ---
#
# `(0.5 * (mean ** 2 + logvar.exp() - 1 - logvar)).flatten(1).sum(1)`

# %%
monte_carlo_kl = use("vae.monte_carlo_kl", monte_carlo_kl)
DiagonalGaussian = use("vae.DiagonalGaussian", DiagonalGaussian)
means, stds = torch.linspace(-3, 3, 25), torch.logspace(-1.5, 0.5, 25)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
for axis, values, moments, label in (
        (axes[0], means, torch.stack([means, torch.zeros(25)], 1), r"mean $\mu$, with $\sigma = 1$"),
        (axes[1], stds, torch.stack([torch.zeros(25), 2 * stds.log()], 1), r"$\sigma$, with $\mu = 0$")):
    q = DiagonalGaussian(moments[:, :, None, None])             # 25 latents of one value
    axis.plot(values, q.kl(), color=BLUE, label="closed form")
    for draws, mark, color in ((1, "x", GREY), (DRAWS, "o", ORANGE)):
        drawn = monte_carlo_kl(q.mean, q.logvar, random(draws, 25, 1, 1, 1, seed=draws))
        axis.plot(values, drawn, mark, color=color, ms=4, label="1 draw" if draws == 1 else f"{draws:,} draws")
    axis.set(xlabel=label, ylim=(-1.5, 6))
axes[0].set_ylabel("KL, nats")
axes[1].set_xscale("log")
axes[1].legend()
plt.show()
wild = torch.tensor([0.0, 100.0]).reshape(1, 2, 1, 1)           # a log-variance of 100
print(f"log-variance 100: KL {float(DiagonalGaussian(wild).kl()):.3g} with the clamp, "
      f"{float(0.5 * (wild[:, 1].exp() - 1 - wild[:, 1])):.3g} without")

# %% [markdown]
# Moving the mean costs quadratically. A $\sigma$ ten times smaller costs about 2.3 nats more, $\ln 10$, and never stops
# costing. A single draw may even be negative; the closed form has no scatter, which is why it is used.
#
# > **The article says** (section 2.3) $z = \mu + \sigma\epsilon$ right after `h.chunk(2, dim=1)`, **but** the released
# > code clamps the log-variance: without that one wild value makes the loss infinite, as printed above. The listing also
# > lacks both 1 × 1 convolutions, without which the released weights do not load, and it always draws.
#
# ## 5 · The loss, and its units
#
# $$L = \underbrace{\tfrac1B \sum_b \lVert x_b - \hat x_b\rVert^2}_{\text{distortion}} \;+\; \beta\;
# \underbrace{\tfrac1B \sum_b \mathrm{KL}_b}_{\text{rate}}$$
#
# Both are *summed* over the values of a picture and of its latent, and averaged over the batch. So $\beta$ is an exchange
# rate: how much squared error one nat may cost. (If the decoder's error is taken as Gaussian noise of variance $s^2$,
# then with $\beta = 2 s^2$ the loss is the negative ELBO, a bound on the likelihood, up to a factor and a constant.)

# %% [markdown] exercise="losses.vae_loss" role="prompt"
# ### Exercise 6 · The loss
#
# `vae_loss(x, rebuilt, mean, logvar, beta)` returns `(loss, distortion, rate)`, three scalar tensors.
#
# - `x`, `rebuilt`: (B,3,H,W); `mean`, `logvar`: (B,c,h,w). Distortion and rate as above; the rate is without $\beta$.

# %% exercise="losses.vae_loss" role="solution"
def vae_loss(x, rebuilt, mean, logvar, beta):
    """(distortion + beta * rate, distortion, rate), scalars."""
    ### BEGIN SOLUTION
    error = (rebuilt - x).square().flatten(1).sum(1)            # (B,)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)      # (B,c,h,w)
    distortion = error.mean()
    rate = kl.flatten(1).sum(1).mean()
    return distortion + beta * rate, distortion, rate
    ### END SOLUTION


# %% exercise="losses.vae_loss" role="check"
check("losses.vae_loss", vae_loss)

# %% [markdown] exercise="losses.vae_loss" role="hint"
# `.flatten(1)` keeps the batch and joins the rest.
#
# ---
#
# For both terms: first `.flatten(1).sum(1)`, which gives (B,), then `.mean()`.
#
# ---
#
# Only the first of the three results contains `beta`.

# %%
vae_loss = use("losses.vae_loss", vae_loss)


def article_loss(x, x_recon, z_mean, z_logvar):
    """Section 2.2, reconstruction and KL as printed there."""
    kl_loss = -0.5 * torch.mean(1 + z_logvar - z_mean.pow(2) - z_logvar.exp())
    return F.mse_loss(x_recon, x) + 0.001 * kl_loss


x, rebuilt = random(2, 3, 256, 256, seed=1), random(2, 3, 256, 256, seed=2).requires_grad_()
mean, logvar = random(2, 4, 32, 32, seed=3).requires_grad_(), random(2, 4, 32, 32, seed=4)


def pull(loss):
    """How hard the KL term pulls at the means, in units of the pull of the pictures."""
    picture_side, mean_side = torch.autograd.grad(loss, (rebuilt, mean))
    return float(mean_side.norm() / picture_side.norm())


released = pull(vae_loss(x, rebuilt, mean, logvar, 1e-6)[0])
article = pull(article_loss(x, rebuilt, mean, logvar))
print(f"values: picture {x[0].numel():,}, latent {mean[0].numel():,}, quotient {x[0].numel() // mean[0].numel()}")
print(f"the article's KL is {article / released:,.0f} times stronger than 1e-6 with sums")
print(f"it is beta = {1e-6 * article / released:.3f} in our units")

# %% [markdown]
# > **The article says** (section 2.2) `0.001 * kl_loss` and, a page on, a weight of 0.00001, **but** the released
# > configuration has 0.000001, and sums where the article has means. A mean over a latent divides by 4,096, a mean over a
# > picture by 196,608. Measured against reconstruction the article's KL thus weighs
# > $0.001 \cdot 196{,}608 / 4{,}096 = 0.048$, which is 48,000 times 0.000001. (Also: the released code has L1 in place of
# > `mse_loss`, LPIPS with weight 1, and an adaptive adversarial weight, which chapter 03 builds; `z` is never used.)
#
# The factor is $3f^2/c = 48$ for $f = 8$, $c = 4$ at every size. So we can try all this on pictures of 32 × 32, with
# latents of 4 × 4 × 4.
#
# ## 6 · Turning β
#
# Which of the 64 values of a latent does the encoder still use? Burda et al. (2016) call a value *active* if its mean moves
# from picture to picture: $\operatorname{Var}_x[\mu(x)] > 0.01$. A value that always says $\mathcal N(0, 1)$ costs nothing
# and says nothing. If all are like that, the *posterior has collapsed*.

# %% [markdown] exercise="vae.active_units" role="prompt"
# ### Exercise 7 · Active units
#
# `active_units(means, threshold=0.01)` returns `(count, variance)`.
#
# - `means`: (N,c,h,w), for N pictures. `variance`: (c,h,w), over the pictures, divided by N - 1, as `torch.var` does.
# - `count`: an `int`, how many of the c h w values have a variance above the threshold.

# %% exercise="vae.active_units" role="solution"
def active_units(means, threshold=0.01):
    """(how many values of the latent vary, their variances (c,h,w))."""
    ### BEGIN SOLUTION
    centred = means - means.mean(dim=0)                         # (N,c,h,w)
    total = centred.square().sum(dim=0)                         # (c,h,w)
    variance = total / (len(means) - 1)
    active = variance > threshold
    return int(active.sum()), variance
    ### END SOLUTION


# %% exercise="vae.active_units" role="check"
check("vae.active_units", active_units)

# %% [markdown] exercise="vae.active_units" role="hint"
# The variance is taken over axis 0, the pictures.
#
# ---
#
# A value that is 5 for every picture is not active: subtract the mean over the pictures first.
#
# ---
#
# `variance = means.var(dim=0)`; `int((variance > threshold).sum())`.

# %%
active_units = use("vae.active_units", active_units)
small = Scenes(32, objects=(1, 1), degraded=0.0)
train = small.images(range(2 * COUNT)).to(session.device)       # (2 COUNT,3,32,32)
test = Scenes(32, split="test", objects=(1, 1), degraded=0.0).images(range(COUNT)).to(session.device)
CONFIG = vae.VAEConfig(block_channels=(32, 32), layers_per_block=1, stem=4, mid_attention=False)
MINE = {"layers.Downsample": Downsample, "vae.Encoder": Encoder, "vae.DiagonalGaussian": DiagonalGaussian}


def train_vae(beta, steps=STEPS, batch=16, rate=2e-3):
    """A tiny autoencoder made of your parts, trained with your loss."""
    torch.manual_seed(session.seed)
    draw = torch.Generator().manual_seed(session.seed)
    with parts.swapped(MINE):
        net = vae.AutoencoderKL(CONFIG).to(session.device)
        optimiser = torch.optim.Adam(net.parameters(), rate)
        for step in range(steps):
            for group in optimiser.param_groups:                # warm up, then fall to 0
                group["lr"] = rate * min(1, (step + 1) / 50) * (1 - step / steps)
            x = train[torch.randint(len(train), (batch,), generator=draw)]
            rebuilt, q = net(x, generator=draw)
            loss = vae_loss(x, rebuilt, q.mean, q.logvar, beta)[0]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.requires_grad_(False)


BETAS = (1e-6, 0.048, 1.0, 5.0, 30.0)
trained = {beta: train_vae(beta) for beta in BETAS}

# %%
found, print_row = {}, "{:>9} {:>12} {:>9} {:>12} {:>13} {:>6} {:>9}".format
print(print_row("beta", "distortion", "PSNR, dB", "rate, bits", "active of 64", "sigma", "std of z"))
for beta, net in trained.items():
    q = net.encode(test)
    rebuilt = net.decode(q.sample(torch.Generator().manual_seed(1)))
    _, distortion, rate = vae_loss(test, rebuilt, q.mean, q.logvar, beta)
    count, variance = active_units(q.mean)
    found[beta] = (float(rate) / math.log(2), float(distortion), variance, rebuilt[2:8])
    sigma, size = torch.exp(0.5 * q.logvar).mean(), q.sample(torch.Generator().manual_seed(2)).std()
    print(print_row(f"{beta:g}", f"{distortion:.0f}", f"{psnr(rebuilt, test):.1f}", f"{found[beta][0]:.0f}", count,
                    f"{sigma:.2f}", f"{size:.2f}"))
mean_picture = float((test - train.mean(0)).square().flatten(1).sum(1).mean())
print(f"always answering with the mean picture: distortion {mean_picture:.0f}")
labels = [f"β = {beta:g}" for beta in BETAS]
strip([test[2:8], *[row[3] for row in found.values()]], [""] * 6, ["test", *labels], width=5.2)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), width_ratios=(1, 1.15))
colors = (BLUE, GREEN, ORANGE, RED, GREY)
left.plot([row[0] for row in found.values()], [row[1] for row in found.values()], color="black", lw=0.8)
for (bits, distortion, variance, _), color, label, mark in zip(found.values(), colors, labels, "os^Dv", strict=True):
    left.plot(bits, distortion, mark, color=color, label=label)
    right.plot(range(1, 65), variance.flatten().sort(descending=True)[0].cpu().clamp(min=1e-8), color=color, marker=mark,
               markevery=7, ms=4)
left.set(xlabel="rate, bits a picture", ylabel="distortion", ylim=(0, None))
left.legend(fontsize=8.5)
right.axhline(0.01, color="black", lw=0.8, ls=":")
right.set(xlabel="values of the latent, sorted", ylabel=r"variance of $\mu$", yscale="log")
plt.show()

# %% [markdown]
# After 500 steps pictures are soft, but the order is plain. At $\beta = 30$ no value is active, $\sigma$ is 1, and every
# picture is answered with the mean picture: distortion 372 against 370. At 5 there are 9 bits, enough for where and how
# dark. At 1 all 64 values count as active, with half a bit each: the threshold is a crude gauge, the rate a better one.
# The article's 0.048 collapses nothing: in this run it saves 88 of 298 bits for 13 % more distortion.
#
# ## 7 · Random latents are not pictures
#
# A VAE is sold as a generator: draw $z \sim \mathcal N(0, I)$ and decode. Try it, with the five small models.

# %%
prior = random(6, 4, 4, 4, seed=7).to(session.device)
strip([net.decode(prior) for net in trained.values()], [""] * 6, labels, width=5.2)

# %% [markdown]
# At tiny $\beta$ the decoder never met such latents: they were made to be told apart, not to fill $\mathcal N(0, I)$. As
# $\beta$ grows, random latents become more like those it knows, and those say less and less. No $\beta$ here gives
# pictures. So latent diffusion divides the work: a tiny $\beta$, for good reconstructions, and a second model for the
# distribution of the latents.
#
# Could it be only the scale? The shipped model, larger and trained for longer, gets its latents from better and better
# guesses: $\mathcal N(0, I)$; a Gaussian with the right mean and variance for each value; and one with the right
# covariance of every pair of values too. The course's oracle, which reads pictures by drawing hypotheses (chapter 01),
# counts those with one object whose shape, colour and texture, and whose background, it can name.

# %%
answers = [shipped.encode(batch) for batch in pictures.split(64)]
codes = torch.cat([q.mode() for q in answers])                  # (COUNT,c,8,8)
middle, noise = codes.mean(0), random(READ, *codes.shape[1:], seed=8)
mix = random(READ, COUNT, seed=9) / (COUNT - 1) ** 0.5
guesses = {"encoded pictures": codes[:READ], "N(0, I)": noise, "own mean and variance": middle + codes.std(0) * noise,
           "own covariance": middle + torch.einsum("nk,kchw->nchw", mix, codes - middle)}
shown = []
for name, guess in guesses.items():
    images = shipped.decode(guess).clamp(-1, 1)
    readings = oracle.read(images)
    whole = [len(r.objects) == 1 and None not in (r.background, r.objects[0].shape, r.objects[0].color,
                                                  r.objects[0].texture) for r in readings]
    shown.append(images[:4])
    print(f"{name:22s} read whole: {sum(whole):2d} of {READ}")
strip(shown, [""] * 4, ["encoded", "N(0, I)", "variance", "covariance"], width=4)

# %% [markdown]
# What is missing is neither scale nor covariance. It is all that goes beyond pairs: that an outline closes, that a thing
# has one colour and the ground another. (Where a draw leaves one blot on an even ground, the oracle may still name it.)
# This is what a diffusion model has to learn.
#
# ## 8 · What diffusion is given
#
# Chapter 05 assumes data of variance 1. Nothing in the loss asks for it when $\beta$ is tiny. So latents are multiplied by
# one number, $1/\mathrm{std}$, before diffusion, and divided by it before decoding: 0.18215 for Stable Diffusion (its
# latents' standard deviation is 5.5), 0.13025 for SDXL.

# %% [markdown] exercise="vae.scaling_factor" role="prompt"
# ### Exercise 8 · The scale
#
# `scaling_factor(batches)` returns $1/\mathrm{std}$ as a float, one for all channels.
#
# - `batches` yields latents (b,c,h,w), with b not always the same, and can be read only once. Keep running sums rather
#   than all latents; sum in float64.

# %% exercise="vae.scaling_factor" role="solution"
def scaling_factor(batches):
    """1 / std over all values of all batches."""
    ### BEGIN SOLUTION
    count, total, squares = 0, 0.0, 0.0
    for z in batches:
        count += z.numel()
        total += float(z.double().sum())
        squares += float(z.double().square().sum())
    variance = squares / count - (total / count) ** 2
    return variance**-0.5
    ### END SOLUTION


# %% exercise="vae.scaling_factor" role="check"
check("vae.scaling_factor", scaling_factor)

# %% [markdown] exercise="vae.scaling_factor" role="hint"
# The mean of the batches' deviations is not the deviation of all: what lies between their means is lost.
#
# ---
#
# $\operatorname{Var}[z] = \mathbb E[z^2] - \mathbb E[z]^2$, so three sums are enough: of 1, of $z$, of $z^2$.
#
# ---
#
# `(squares / count - (total / count) ** 2) ** -0.5`

# %%
scaling_factor = use("vae.scaling_factor", scaling_factor)
draw = torch.Generator().manual_seed(1)
one, two = (torch.cat([q.sample(draw) for q in answers]) for _ in range(2))                     # (COUNT,c,8,8) each
print(f"scale of the shipped model: of its means {scaling_factor(codes.split(100)):.3f}, of draws "
      f"{scaling_factor(one.split(100)):.3f}, stored with it {shipped.scaling_factor:.3f}")
sigma = torch.cat([(0.5 * q.logvar).exp() for q in answers]).mean((0, 2, 3))                     # (c,)
print("channel         ", *[f"{c + 1:5d}" for c in range(len(sigma))])
print("std of its means", *[f"{s:5.2f}" for s in codes.std((0, 2, 3))])
print("its sigma       ", *[f"{s:5.2f}" for s in sigma])
mode, one, two = (shipped.decode(z[:16]) for z in (codes, one, two))
print(f"decoded means {psnr(mode, some):.2f} dB, decoded draw {psnr(one, some):.2f} dB, "
      f"two draws against each other {psnr(one, two):.1f} dB")


def article_encode(x):
    """Section 2.3: what encode returns there."""
    q = shipped.encode(x)
    return q.sample(), q.mean, q.logvar


try:
    torch.randn_like(article_encode(picture))                   # section 3.3
except TypeError as error:
    print(f"section 3.3, noise = torch.randn_like(vae.encode(x)): {type(error).__name__}")

# %% [markdown]
# (The stored scale is that of the training pictures' means, with up to three objects.) One factor for all channels keeps
# their proportions. The table shows section 6 at work: a channel with small $\sigma$ is used; one whose means stand still,
# with $\sigma$ nearly 1, has collapsed. The decoder does not listen to it: two draws decode to much the same picture. But a
# diffusion model has to predict every channel, and this noise nobody can predict. So the course's recipe diffuses the
# means; Stable Diffusion, whose $\sigma$ are tiny, takes draws.
#
# > **The article says** (section 3.3) `z = vae.encode(x)`, **but** its own `encode` (section 2.3) returns three tensors,
# > and `randn_like` refuses them, as printed. It needs `encode(x).sample() * scaling_factor`. Without the factor 0.18215, Stable
# > Diffusion's latents would have variance 30: at every $t$ the signal would be 30 times as strong as the schedule means.
# > The article's remark that such a VAE acts "almost deterministically" holds.
#
# ## Questions to think about
#
# 1. Double the resolution with $f$ fixed. What happens to distortion, to rate and to the best $\beta$? And with means?
# 2. The KL is summed over pictures' latents. Why is its average over $x$ at least the mutual information of $x$ and $z$?
# 3. If $\beta = 0$, what will the encoder do with $\sigma$, given long enough?
#
# ## Recap
#
# - The encoder pads on the right and at the bottom; the wrong side shifts the picture and raises no error.
# - $z = \mu + \sigma\epsilon$ lets the gradient through, with a scatter that does not grow with the latent.
# - $\mathrm{KL} = \frac12\sum(\mu^2 + \sigma^2 - 1 - \ln\sigma^2)$, in nats, summed; then averaged over the batch.
# - $\beta$ is an exchange rate, and means something only with its units: 0.001 with means is 0.048 with sums.
# - Large $\beta$ collapses the code. Tiny $\beta$ leaves no prior to draw from: diffusion learns it.
# - Latents are scaled by 1/std, once, and back before decoding.
#
# **Next**, chapter 03 asks why these reconstructions are soft, and what a network's features and a critic do about it.
