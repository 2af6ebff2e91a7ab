# %% [markdown]
# # 07 · The reverse process: from DDPM to DDIM to DPM-Solver++
#
# A denoiser looks at a noisy picture and says what the clean one was, on average. That is not yet a picture. This
# chapter turns a denoiser into a sampler, then a thousand steps into twenty. For data that we know, the best possible
# denoiser is a formula, so that every error we see is the sampler's; a trained model comes last.
#
# **You will be able to**
#
# - write the exact denoiser of a known distribution, and say why no sampler should jump to its answer;
# - derive a step of DDPM from Bayes' rule, and choose between its two variances;
# - write DDIM with its $\eta$, over strides of any length, and run it backwards;
# - see sampling as a differential equation, and solve it at second order by Heun and by DPM-Solver++;
# - measure the order of a sampler, and how many steps a real text-to-image model needs.
#
# **Time** about 3.5 hours, of which 125 minutes are exercises. **You need** chapter 05:
# $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$ and strided timesteps. No GPU. **In the library** this
# chapter is `course/samplers.py`; in the article, sections 3.4 and 9.3.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
import math

import matplotlib.pyplot as plt
import torch

from course import samplers, schedule
from course.classroom import begin, check, figure_style, use
from course.data import Scenes, oracle
from course.pipeline import StableDiffusion

session = begin(needs="0.1", seed=7)
POINTS = {"quick": 400, "cpu": 2_000, "gpu": 5_000}[session.profile]  # samples in the plane
PROMPTS = {"quick": 2, "cpu": 24, "gpu": 200}[session.profile]  # pictures per setting of the shipped model
STEPS = {"quick": [2, 5], "cpu": [2, 5, 10, 20, 50], "gpu": [2, 5, 10, 20, 50]}[session.profile]  # of that model
ROWS = {"quick": [1, 2, 10], "cpu": [1, 2, 5, 10, 50], "gpu": [1, 2, 5, 10, 50]}[session.profile]  # steps in section 4
ORDERS = {"quick": [10, 20, 40], "cpu": [10, 20, 40, 80, 160], "gpu": [10, 20, 40, 80, 160]}[session.profile]  # in 6
FINE = {"quick": 160, "cpu": 1000, "gpu": 1000}[session.profile]  # steps of the reference solution

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


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# %% [markdown]
# ## A cloud that has to be sorted again
#
# Our first data live in the plane: five Gaussian blobs. The forward process melts them into one round cloud. Each
# point keeps here the colour of the blob it came from.

# %%
angles = torch.arange(5, dtype=torch.float64) * 2 * math.pi / 5 + 0.3
CENTRES = torch.stack([angles.cos(), angles.sin()], dim=1) * 1.3    # (5,2)
SPREAD = 0.12
noise_schedule = schedule.NoiseSchedule()
which = torch.arange(POINTS) % 5
data = CENTRES[which] + SPREAD * randn(POINTS, 2, seed=1)       # (POINTS,2)
COLORS = [BLUE, ORANGE, GREEN, RED, GREY]


def scatter(axis, x, title, color=None):
    axis.scatter(*x[:400].T, s=4, c=color or [COLORS[int(k)] for k in which[:400]])
    axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=title)


figure, axes = plt.subplots(1, 4, figsize=(8, 2.3))
for axis, t in zip(axes, (0, 200, 500, 999), strict=True):
    x_t = noise_schedule.add_noise(data, randn(POINTS, 2, seed=2), torch.tensor([t]).expand(POINTS))
    scatter(axis, x_t, f"t = {t}")
plt.show()

# %% [markdown]
# Going right is adding noise. Going left is the subject: from a cloud in which the colours are mixed, every point must
# find *a* blob, and each blob must get its fifth of the points. No point can find back to the blob it came from, since
# the noise has wiped that out; what can be restored is the distribution.
#
# ## 1 · The best answer there is
#
# A network trained by mean squared error learns the posterior mean $\mathbb E[x_0 \mid x_t]$. If the data are blobs
# of standard deviation $r$ (`spread`) around $N$ known centres $m_k$, equally likely, Bayes' rule gives it in closed
# form. Seen through the noise, blob $k$ is a Gaussian around $a\,m_k$, with $a = \sqrt{\bar\alpha}$:
#
# $$w_k = \operatorname*{softmax}_k\left(-\frac{\lVert x_t - a\,m_k\rVert^2}{2V}\right)
# \qquad V = \bar\alpha\, r^2 + 1 - \bar\alpha$$
# $$\mathbb E[x_0 \mid x_t] = \sum_k w_k \left(m_k + \frac{a\,r^2}{V}\,(x_t - a\,m_k)\right)$$
#
# The weights say which blob it probably was, the second term where in the blob. With $r = 0$ the data are the $m_k$
# themselves: a set of pictures, for instance. Then the best denoiser is a weighted average of all pictures.

# %% [markdown] exercise="samplers.exact_x0" role="prompt"
# ### Exercise 1 · The exact denoiser
#
# `exact_x0(x_t, alpha_bar, data, spread)` returns $\mathbb E[x_0 \mid x_t]$.
#
# - `x_t` is (B, ...), points (B,2) or pictures (B,C,H,W); the result has its shape and dtype.
# - `data` is (N, ...), the centres $m_k$; `alpha_bar` and `spread` are Python numbers.
# - Distances are over all values of a picture. Use `torch.softmax`: single exponentials would underflow.

# %% exercise="samplers.exact_x0" role="solution"
def exact_x0(x_t, alpha_bar, data, spread=0.0):
    """The posterior mean of x_0: (B,...), number, (N,...), number -> (B,...)."""
    ### BEGIN SOLUTION
    flat, centres = x_t.flatten(1), data.flatten(1).to(x_t)     # (B,D), (N,D)
    a = alpha_bar**0.5
    variance = alpha_bar * spread**2 + 1 - alpha_bar
    squared = (flat[:, None] - a * centres[None]).pow(2).sum(-1)  # (B,N)
    mean = torch.softmax(-squared / (2 * variance), dim=1) @ centres  # (B,D)
    mean = mean + a * spread**2 / variance * (flat - a * mean)
    return mean.reshape(x_t.shape)
    ### END SOLUTION


# %% exercise="samplers.exact_x0" role="check"
check("samplers.exact_x0", exact_x0)

# %% [markdown] exercise="samplers.exact_x0" role="hint"
# `x.flatten(1)` makes (B,D) of any shape. The differences of all pairs are `flat[:, None] - a * centres[None]`, (B,N,D).
#
# ---
#
# The second term is linear in $m_k$, so the average over $k$ may be taken first: with $M = \sum_k w_k m_k$ the result
# is $M + \frac{a r^2}{V}(x_t - a M)$.
#
# ---
#
# `weights = torch.softmax(-squared / (2 * variance), dim=1)`, `M = weights @ centres`, and `.reshape(x_t.shape)` at
# the end.

# %%
exact_x0 = use("samplers.exact_x0", exact_x0)


def exact(data, spread=0.0):
    """A denoiser (x_t, t) -> eps, as every sampler wants it."""
    def denoiser(x, t):
        alpha_bar = float(noise_schedule.alpha_bar(float(t)))
        return (x - alpha_bar**0.5 * exact_x0(x, alpha_bar, data, spread)) / (1 - alpha_bar) ** 0.5
    return denoiser


line = torch.linspace(-2.4, 2.4, 11, dtype=torch.float64)
grid = torch.cartesian_prod(line, line)                         # (121,2)
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8))
for axis, t in zip(axes, (900, 500, 200), strict=True):
    alpha_bar = float(noise_schedule.alpha_bar(t))
    arrow = exact_x0(grid, alpha_bar, CENTRES, SPREAD) - grid
    axis.quiver(*grid.T, *arrow.T, color=BLUE, angles="xy", scale_units="xy", scale=2.5, width=0.005)
    axis.plot(*CENTRES.T, "o", color=ORANGE, ms=5)
    axis.set(title=f"t = {t}", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
plt.show()

# %%
pictures = Scenes(32, objects=(1, 1), degraded=0.0).images(range(256))  # (256,3,32,32)
levels = [100, 300, 500, 700, 850, 999]
noisy = noise_schedule.add_noise(pictures[:1].expand(6, -1, -1, -1), randn(6, 3, 32, 32, seed=3, dtype=torch.float32),
                                 torch.tensor(levels))
guesses = [exact_x0(x[None], float(noise_schedule.alpha_bar(t)), pictures)[0] for x, t in zip(noisy, levels, strict=True)]
strip([noisy, torch.stack(guesses)], [f"t = {t}" for t in levels], ["$x_t$", "$E[x_0]$"])

# %% [markdown]
# The arrows go from $x_t$ towards $\mathbb E[x_0 \mid x_t]$. At high noise all point to the middle: the mean of all
# blobs is the best single answer, and no data are there. Only as the noise falls do the arrows part. With 256
# pictures the same happens: the answer at $t = 999$ is a mixture of many. So the answer to one question is not a
# sample. A sampler goes a little towards the answer, asks again, and lets the answer sharpen as it goes.
#
# ## 2 · A step by Bayes' rule: DDPM
#
# The forward step is random, so its reversal is, too. If $x_0$ were known, Bayes' rule on three Gaussians would give
# the level before (Ho et al. 2020, equations 6 and 7). With $\bar\alpha$ for where we are, $\bar\alpha'$ for where we
# go, and for this stride $\alpha = \bar\alpha/\bar\alpha'$, $\beta = 1 - \alpha$:
#
# $$q(x' \mid x_t, x_0) = \mathcal N(\mu, \tilde\beta I)\qquad
# \mu = \frac{\sqrt{\bar\alpha'}\,\beta}{1-\bar\alpha}\,x_0 + \frac{\sqrt{\alpha}\,(1-\bar\alpha')}{1-\bar\alpha}\,x_t
# \qquad \tilde\beta = \frac{1-\bar\alpha'}{1-\bar\alpha}\,\beta$$
#
# We do not know $x_0$, so the denoiser's answer stands in. That makes the draw a little too narrow, as $x_0$ was
# uncertain. Ho et al. therefore give two choices: $\tilde\beta$ ("small"), right if the data are a single point, and
# $\beta$ ("large"), right if the data are white noise of variance 1. For single steps of a thousand they hardly
# differ.

# %% [markdown] exercise="samplers.posterior" role="prompt"
# ### Exercise 2 · The posterior
#
# `posterior(x_t, x0, alpha_bar, alpha_bar_next, kind)` returns `(mean, variance)`: a tensor like `x_t` and a number.
# `kind` is `"small"` or `"large"`. `alpha_bar` belongs to `x_t`; `alpha_bar_next` is larger, less noisy.

# %% exercise="samplers.posterior" role="solution"
def posterior(x_t, x0, alpha_bar, alpha_bar_next, kind="small"):
    """(mean, variance) of q(x_next | x_t, x_0)."""
    ### BEGIN SOLUTION
    alpha = alpha_bar / alpha_bar_next
    beta = 1 - alpha
    from_x0 = alpha_bar_next**0.5 * beta / (1 - alpha_bar)
    from_x_t = alpha**0.5 * (1 - alpha_bar_next) / (1 - alpha_bar)
    variance = beta if kind == "large" else (1 - alpha_bar_next) / (1 - alpha_bar) * beta
    return from_x0 * x0 + from_x_t * x_t, variance
    ### END SOLUTION


# %% exercise="samplers.posterior" role="check"
check("samplers.posterior", posterior)

# %% [markdown] exercise="samplers.posterior" role="hint"
# `alpha` is not `alphas[t]`: it belongs to the stride.
#
# ---
#
# At $\bar\alpha' = 1$ the mean must be $x_0$ and the small variance 0.
#
# ---
#
# The factor of `x0` is `alpha_bar_next**0.5 * beta / (1 - alpha_bar)`; that of `x_t` is
# `alpha**0.5 * (1 - alpha_bar_next) / (1 - alpha_bar)`.

# %%
posterior = use("samplers.posterior", posterior)
plane = exact(CENTRES, SPREAD)


def ancestral(denoiser, x, timesteps, *, schedule, kind="small", generator=None):
    """Ho et al. (2020), algorithm 2, over strided timesteps."""
    bars = [*schedule.alpha_bar(timesteps).tolist(), 1.0]
    for i, t in enumerate(timesteps.tolist()):
        x0 = (x - (1 - bars[i]) ** 0.5 * denoiser(x, t)) / bars[i] ** 0.5
        x, variance = posterior(x, x0, bars[i], bars[i + 1], kind)
        if i + 1 < len(timesteps):                              # no noise after the last step
            x = x + variance**0.5 * torch.randn(x.shape, generator=generator).to(x)
    return x


def report(x):
    """How wide the blobs are, and how far their shares are from a fifth each."""
    distance, blob = torch.cdist(x, CENTRES).min(1)
    shares = torch.bincount(blob, minlength=5) / len(x)
    width = float(distance.median()) / math.log(4) ** 0.5       # of a Gaussian the median distance is width sqrt(ln 4)
    return width, float((shares - 0.2).abs().sum() / 2)


start = randn(POINTS, 2, seed=4)
figure, axes = plt.subplots(2, 3, figsize=(7, 4.8))
print(f"the data: width {report(data)[0]:.3f}")
for column, steps in enumerate((1000, 50, 10)):
    for row, kind in enumerate(("small", "large")):
        ts = noise_schedule.timesteps(steps, "linspace")        # 999 ... 0, both ends visited
        x = ancestral(plane, start, ts, schedule=noise_schedule, kind=kind, generator=torch.Generator().manual_seed(0))
        scatter(axes[row, column], x, f"{steps} steps, {kind}", [BLUE, ORANGE][row])
        print(f"{steps:4d} steps, {kind}: width {report(x)[0]:.3f}, shares off by {report(x)[1]:.3f}")
plt.show()

# %% [markdown]
# A thousand steps give the blobs nearly their width, and their shares to within chance. With fewer steps the two
# variances part. The small one ignores that $x_0$ was uncertain: the blobs come out too narrow, and with ten steps
# points are left on the lines between them. The large one adds more noise on the way than the last step, from
# $t = 0$, can take away. With few steps neither is right.
#
# ## 3 · How much chance: DDIM
#
# Song et al. (2021) noticed that training knows only $q(x_t \mid x_0)$, one level at a time. How levels are tied
# together is free. Given the true $x_0$ and $\epsilon$, this step has the right $q(x' \mid x_0)$ for every $\sigma$:
#
# $$x' = \underbrace{\sqrt{\bar\alpha'}\;\hat x_0}_{\text{signal}}
# + \underbrace{\sqrt{1-\bar\alpha'-\sigma^2}\;\hat\epsilon}_{\text{noise it had}}
# + \underbrace{\sigma\,\epsilon}_{\text{fresh noise}}
# \qquad \sigma = \eta\,\sqrt{\tilde\beta}$$
#
# The two noises have together the variance $1 - \bar\alpha'$. At $\eta = 1$ the step is DDPM's, at $\eta = 0$ nothing
# is random: the same start gives the same picture.

# %% [markdown] exercise="samplers.ddim_step" role="prompt"
# ### Exercise 3 · One step
#
# `ddim_step(x_t, eps, alpha_bar, alpha_bar_next, eta, noise)` returns `(x_next, x0)`, both shaped like `x_t`.
#
# - `x0` is the estimate that `x_t` and `eps` imply; $\tilde\beta$ is the small variance of exercise 2.
# - `noise` is the fresh noise, and is `None` at `eta = 0`.
# - At `eta = 0` the step must also work upwards, with `alpha_bar_next` below `alpha_bar`, even from `alpha_bar = 1`: do
#   not compute $\tilde\beta$ then (a root of a negative number, or a division by 0).

# %% exercise="samplers.ddim_step" role="solution"
def ddim_step(x_t, eps, alpha_bar, alpha_bar_next, eta=0.0, noise=None):
    """(x_next, x0), each like x_t."""
    ### BEGIN SOLUTION
    x0 = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    if eta == 0:
        return alpha_bar_next**0.5 * x0 + (1 - alpha_bar_next) ** 0.5 * eps, x0
    variance = (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)
    sigma = eta * variance**0.5
    x = alpha_bar_next**0.5 * x0 + (1 - alpha_bar_next - sigma**2) ** 0.5 * eps + sigma * noise
    return x, x0
    ### END SOLUTION


# %% exercise="samplers.ddim_step" role="check"
check("samplers.ddim_step", ddim_step)

# %% [markdown] exercise="samplers.ddim_step" role="hint"
# Solve $x_t = \sqrt{\bar\alpha}\,x_0 + \sqrt{1-\bar\alpha}\,\epsilon$ for $x_0$, as in chapter 05.
#
# ---
#
# Treat `eta == 0` first and return: two terms, no variance.
#
# ---
#
# Otherwise `sigma = eta * variance**0.5`, and `eps` has the factor `(1 - alpha_bar_next - sigma**2) ** 0.5`.

# %%
ddim_step = use("samplers.ddim_step", ddim_step)
x = randn(3, 2, seed=5)
eps, fresh = plane(x, 600), randn(3, 2, seed=6)
bar, bar_next = noise_schedule.alpha_bar(torch.tensor([600, 500])).tolist()
by_ddim, x0 = ddim_step(x, eps, bar, bar_next, 1.0, fresh)
mean, variance = posterior(x, x0, bar, bar_next, "small")
gap = by_ddim - (mean + variance**0.5 * fresh)
print(f"eta = 1 against the posterior: largest difference {float(gap.abs().max()):.0e}")

# %% [markdown]
# ## 4 · Long strides
#
# A step needs the level it comes from and the level it goes to. With 50 of 1,000 timesteps these are 20 apart. After
# the last one comes $\bar\alpha = 1$: no noise is left.

# %% [markdown] exercise="samplers.ddim" role="prompt"
# ### Exercise 4 · The loop
#
# `ddim(denoiser, x, timesteps, *, schedule, eta, generator, callback, **others)` returns $x_0$.
#
# - `denoiser(x, t)` gives $\hat\epsilon$; call it once at each of `timesteps`, which run from high to low.
# - `schedule.alpha_bar(timesteps)` gives all $\bar\alpha$, (S,); after the last one comes 1.0.
# - For `eta > 0` draw `torch.randn(x.shape, generator=generator).to(x)` for each step.
# - After step `i` call `callback(i, t, x, x0)` if there is one, with the new `x`. Ignore `others`.
#
# This is the signature of the library's samplers, so that your loop can take their place.

# %% exercise="samplers.ddim" role="solution"
def ddim(denoiser, x, timesteps, *, schedule, eta=0.0, generator=None, callback=None, **others):
    """From noise x (B,...) to x_0 (B,...)."""
    ### BEGIN SOLUTION
    alpha_bars = [*schedule.alpha_bar(timesteps).tolist(), 1.0]
    for i, t in enumerate(timesteps.tolist()):
        noise = torch.randn(x.shape, generator=generator).to(x) if eta > 0 else None
        x, x0 = ddim_step(x, denoiser(x, t), alpha_bars[i], alpha_bars[i + 1], eta, noise)
        if callback:
            callback(i, t, x, x0)
    return x
    ### END SOLUTION


# %% exercise="samplers.ddim" role="check"
check("samplers.ddim", ddim)

# %% [markdown] exercise="samplers.ddim" role="hint"
# `[*schedule.alpha_bar(timesteps).tolist(), 1.0]` is a list of S + 1 numbers.
#
# ---
#
# Step `i` goes from entry `i` of that list to entry `i + 1`. Neither is `alphas_cumprod[t - 1]`.
#
# ---
#
# `x, x0 = ddim_step(x, denoiser(x, t), alpha_bars[i], alpha_bars[i + 1], eta, noise)` in a loop over
# `enumerate(timesteps.tolist())`.

# %%
ddim = use("samplers.ddim", ddim)
few = randn(12, 2, seed=8)
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8))
for axis, (steps, eta) in zip(axes, ((100, 0.0), (100, 1.0), (8, 0.0)), strict=True):
    path = [few]
    ddim(plane, few, noise_schedule.timesteps(steps), schedule=noise_schedule, eta=eta,
         generator=torch.Generator().manual_seed(0), callback=lambda i, t, x, x0, path=path: path.append(x))
    for one in torch.stack(path, dim=1):                        # (12,steps+1,2)
        axis.plot(*one.T, color=GREY, lw=0.8, marker="." if steps < 10 else "", ms=3)
    axis.plot(*path[-1].T, "o", color=BLUE, ms=4)
    axis.plot(*CENTRES.T, "+", color=ORANGE, ms=9, mew=2)
    axis.set(title=rf"{steps} steps, $\eta$ = {eta:g}", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
plt.show()

# %% [markdown]
# Left, smooth curves, each to a blob; middle, the same starts with fresh noise in every step, which may change blob
# on the way; right, eight long chords in place of the curves, some of which miss.
#
# > **The article says** (section 3.4) `for t in reversed(range(num_steps))` with an undefined
# > `ddim_step(z, t, noise_pred)`, **but** such a step does not know the level it goes to, the loop visits only the 50
# > cleanest of 1,000 levels, and the result is decoded without division by the scale (0.18215 in Stable Diffusion).
# > What the loop alone does, with the exact denoiser:

# %%
choices = {"start": None, "t = 999 ... 19": noise_schedule.timesteps(50), "t = 49 ... 0": torch.arange(50).flip(0)}
figure, axes = plt.subplots(1, 3, figsize=(7, 2.5))
for axis, (name, ts) in zip(axes, choices.items(), strict=True):
    x = start if ts is None else ddim(plane, start, ts, schedule=noise_schedule)
    scatter(axis, x, name, RED if "49" in name else BLUE)
    distance = torch.cdist(x, CENTRES).min(1).values
    print(f"{name:14s} within three widths of a blob: {100 * float((distance < 3 * SPREAD).double().mean()):5.1f} %")
plt.show()

# %% [markdown]
# Blobs appear, because the exact denoiser knows where they are even for input that it should never see. But more than
# a third of the points lie outside: each moved only as far as 5 % of noise allows. A trained network never saw such
# input. Now pictures. The denoiser knows 256, and only these:

# %%
few_pictures, noise = [], randn(8, 3, 32, 32, seed=9, dtype=torch.float32)
for steps in ROWS:
    few_pictures.append(ddim(exact(pictures), noise, noise_schedule.timesteps(steps), schedule=noise_schedule))
strip(few_pictures, [""] * 8, [str(steps) for steps in ROWS], width=6.4)
nearest = torch.cdist(few_pictures[-1].flatten(1), pictures.flatten(1)).min(1).values / 32 / 3**0.5
print(f"{ROWS[-1]} steps: rms distance to the nearest of the 256 pictures, at most {float(nearest.max()):.4f}")

# %% [markdown]
# One step gives an average, two a mixture of a few; five still lead the first two samples to other pictures than ten.
# With 50 each sample is one of the 256, to the printed distance. The exact denoiser of a finite set *must* lead back to
# the set: a model makes new pictures because its network is not this denoiser.
#
# ## 5 · And back again
#
# At $\eta = 0$ a step is a function, and can be run upwards: a picture is *encoded* as the noise from which it would
# have been sampled. A step up should use $\hat\epsilon$ at the place where it ends, which is not known yet, so one
# takes it at the place where it begins. That is good if steps are small.

# %% [markdown] exercise="samplers.ddim_invert" role="prompt"
# ### Exercise 5 · DDIM inversion
#
# `ddim_invert(denoiser, x0, timesteps, *, schedule)` returns $x_T$ at the first, highest of `timesteps` (which are
# high to low, as for sampling).
#
# - It climbs from $\bar\alpha = 1$ through the levels of the timesteps, low to high, by `ddim_step` at `eta = 0`.
# - Ask the denoiser at the level where `x` is. The clean picture has none: ask there at the lowest timestep.
#   For timesteps 999, 700, 20 it is asked at 20, 20, 700.

# %% exercise="samplers.ddim_invert" role="solution"
def ddim_invert(denoiser, x0, timesteps, *, schedule):
    """From a picture x_0 (B,...) to its noise (B,...)."""
    ### BEGIN SOLUTION
    up = timesteps.flip(0)
    alpha_bars = [1.0, *schedule.alpha_bar(up).tolist()]
    asked = [float(up[0]), *up[:-1].tolist()]
    x = x0
    for i, t in enumerate(asked):
        x, _ = ddim_step(x, denoiser(x, t), alpha_bars[i], alpha_bars[i + 1])
    return x
    ### END SOLUTION


# %% exercise="samplers.ddim_invert" role="check"
check("samplers.ddim_invert", ddim_invert)

# %% [markdown] exercise="samplers.ddim_invert" role="hint"
# `timesteps.flip(0)` runs upwards. The levels are then `[1.0, *schedule.alpha_bar(up).tolist()]`.
#
# ---
#
# There are S steps. Step `i` goes from level `i` to level `i + 1` of that list.
#
# ---
#
# The times to ask at are `[up[0], *up[:-1]]`.

# %%
ddim_invert = use("samplers.ddim_invert", ddim_invert)
for steps in (10, 50, 250):
    ts = noise_schedule.timesteps(steps)
    code = ddim_invert(plane, data, ts, schedule=noise_schedule)
    back = ddim(plane, code, ts, schedule=noise_schedule)
    print(f"{steps:3d} steps: there and back, rms error {float((back - data).pow(2).mean().sqrt()):.4f}")
figure, axes = plt.subplots(1, 3, figsize=(7, 2.5))
for axis, x, title in zip(axes, (data, code, back), ("data", "their codes", "and back"), strict=True):
    scatter(axis, x, title)
plt.show()

# %% [markdown]
# The round trip becomes exact as the steps become small. The codes form one round cloud, as the noise should, but the
# colours are now *sorted*: each blob comes from a sector. Compare the first figure, where noise was added at random.
#
# ## 6 · The equation behind it
#
# Divide by the signal: $y = x/a = x_0 + \sigma\epsilon$, from here on with
# $\sigma = \sqrt{1-\bar\alpha}/\sqrt{\bar\alpha}$, from 14.6 down to 0. Then DDIM's step at $\eta = 0$ is
#
# $$y' = y + (\sigma' - \sigma)\,\hat\epsilon(x, t)\qquad\text{which is Euler's method for}\qquad
# \frac{dy}{d\sigma} = \hat\epsilon$$
#
# the *probability-flow* equation (Song et al. 2021b, in these letters Karras et al. 2022). Check it, with the library's
# Euler, which is written in $\sigma$:

# %%
ts = noise_schedule.timesteps(20)
gap = samplers.euler(plane, start, ts, schedule=noise_schedule) - ddim(plane, start, ts, schedule=noise_schedule)
print(f"Euler in sigma against your DDIM: largest difference {float(gap.abs().max()):.0e}")

# %% [markdown]
# Euler's error falls as 1/steps. Heun's method takes the step, looks at the slope there too, and goes again with the
# mean of both:
#
# $$\tilde y = y + h\,\hat\epsilon(y, \sigma)\qquad
# y' = y + h\,\tfrac12\left(\hat\epsilon(y, \sigma) + \hat\epsilon(\tilde y, \sigma')\right)\qquad h = \sigma' - \sigma$$

# %% [markdown] exercise="samplers.heun" role="prompt"
# ### Exercise 6 · Heun
#
# `heun(denoiser, x, timesteps, *, schedule, **others)` returns $x_0$.
#
# - `x` and what the denoiser sees are at the scale of $x$: multiply $y$ by $a$ of its level before you ask.
# - The last step goes to $\sigma = 0$ and is Euler's: no slope is known there.
# - So S timesteps cost 2S - 1 calls.

# %% exercise="samplers.heun" role="solution"
def heun(denoiser, x, timesteps, *, schedule, **others):
    """From noise x (B,...) to x_0 (B,...), second order."""
    ### BEGIN SOLUTION
    ts = timesteps.tolist()
    alpha_bars = [*schedule.alpha_bar(timesteps).tolist(), 1.0]
    a = [bar**0.5 for bar in alpha_bars]
    sigma = [(1 - bar) ** 0.5 / bar**0.5 for bar in alpha_bars]
    y = x / a[0]
    for i, t in enumerate(ts):
        h, slope = sigma[i + 1] - sigma[i], denoiser(a[i] * y, t)
        there = y + h * slope
        if i + 1 < len(ts):
            slope_there = denoiser(a[i + 1] * there, ts[i + 1])
            there = y + h * (slope + slope_there) / 2
        y = there
    return y
    ### END SOLUTION


# %% exercise="samplers.heun" role="check"
check("samplers.heun", heun)

# %% [markdown] exercise="samplers.heun" role="hint"
# Make the lists `a` and `sigma` of length S + 1 first; their last entries are 1 and 0.
#
# ---
#
# Keep `y` until the second slope is known: both guesses start from it.
#
# ---
#
# `slope_there = denoiser(a[i + 1] * there, ts[i + 1])`, then `y + h * (slope + slope_there) / 2`.

# %% [markdown]
# Heun pays with a second call. DPM-Solver++ (2M) by Lu et al. (2022) has second order for one call. First, in $\lambda
# = \ln(a/s)$, half of chapter 05's, with $s = \sqrt{1-\bar\alpha}$, the equation is linear but for $\hat x_0$, and
# solved exactly if $\hat x_0$ is held fixed over a stride $h = \lambda' - \lambda$:
#
# $$x' = \frac{s'}{s}\,x - a'\left(e^{-h} - 1\right) D$$
#
# With $D = \hat x_0$ this is DDIM once more. Second, $\hat x_0$ is not fixed, and the last answer tells us how it
# moves. Extend the line through both to the middle of the stride, $h_-$ being the length of the stride before:
#
# $$D = \hat x_0 + \frac{h}{2\,h_-}\left(\hat x_0 - \hat x_0^{\text{before}}\right)$$

# %%
heun = use("samplers.heun", heun)

# %% [markdown] exercise="samplers.dpmpp_2m" role="prompt"
# ### Exercise 7 · DPM-Solver++ (2M)
#
# `dpmpp_2m(denoiser, x, timesteps, *, schedule, **others)` returns $x_0$ after S calls.
#
# - The first step has no answer before it: $D = \hat x_0$.
# - The last step goes to $\lambda = \infty$: there the result is $\hat x_0$ itself.
# - `math.expm1(-h)` is $e^{-h} - 1$ without loss of digits.

# %% exercise="samplers.dpmpp_2m" role="solution"
def dpmpp_2m(denoiser, x, timesteps, *, schedule, **others):
    """From noise x (B,...) to x_0 (B,...), second order at one call a step."""
    ### BEGIN SOLUTION
    alpha_bars = schedule.alpha_bar(timesteps).tolist()
    a, s = [bar**0.5 for bar in alpha_bars], [(1 - bar) ** 0.5 for bar in alpha_bars]
    lam = [math.log(p / q) for p, q in zip(a, s, strict=True)]
    before = None
    for i, t in enumerate(timesteps.tolist()):
        x0 = (x - s[i] * denoiser(x, t)) / a[i]
        if i + 1 == len(lam):
            return x0
        h, D = lam[i + 1] - lam[i], x0
        if before is not None:
            D = x0 + h / (2 * (lam[i] - lam[i - 1])) * (x0 - before)
        x = s[i + 1] / s[i] * x - a[i + 1] * math.expm1(-h) * D
        before = x0
    ### END SOLUTION


# %% exercise="samplers.dpmpp_2m" role="check"
check("samplers.dpmpp_2m", dpmpp_2m)

# %% [markdown] exercise="samplers.dpmpp_2m" role="hint"
# Make lists of `a`, `s` and `lam` at the timesteps. First write it with `D = x0`, and compare with DDIM.
#
# ---
#
# Then keep the answer of the step before in a variable, and use it from the second step on.
#
# ---
#
# `D = x0 + h / (2 * (lam[i] - lam[i - 1])) * (x0 - before)`; return `x0` in the last round.

# %%
dpmpp_2m = use("samplers.dpmpp_2m", dpmpp_2m)
few = start[:200]
truth = heun(plane, few, noise_schedule.timesteps(FINE, "karras"), schedule=noise_schedule)
methods = {"DDIM = Euler": (ddim, 1, RED, "o"), "Heun": (heun, 2, ORANGE, "s"),
           "DPM-Solver++ 2M": (dpmpp_2m, 1, BLUE, "^")}
figure, axis = plt.subplots(figsize=(6.5, 3.2))
for name, (sampler, cost, color, mark) in methods.items():
    calls, errors = [], []
    for steps in ORDERS:
        ts = noise_schedule.timesteps(steps, "karras")          # evenly spaced in sigma^(1/7), the ends are fixed
        x = sampler(plane, few, ts, schedule=noise_schedule)
        calls.append(cost * steps)
        errors.append(float((x - truth).norm(dim=1).median()))
    c, e = (torch.tensor(values, dtype=torch.float64).log()[len(values) // 2:] for values in (calls, errors))
    slope = float(torch.cov(torch.stack([c, e]))[0, 1] / c.var())  # least squares over the right half
    axis.plot(calls, errors, color=color, marker=mark, label=f"{name}, slope {slope:.1f}")
    print(f"{name:16s} slope {slope:5.2f}; error at 40 calls {errors[calls.index(40)]:.4f}")
axis.set(xscale="log", yscale="log", xlabel="calls of the denoiser", ylabel="error (median)")
axis.legend()
plt.show()

# %% [markdown]
# Error against an almost exact solution (1,000 steps of Heun), on logarithmic axes, where a method of order $p$ is a
# line of slope $-p$. The slope is fitted to the right half. Euler comes out near order 1, the other two near 2. At
# equal cost 2M is ahead of Heun by its constant: it does not pay double.
#
# ## 7 · Why add noise at all?
#
# If deterministic steps are this good, what is $\eta$ for? A curve keeps what it was given: a wrong start, or a wrong
# turn of the denoiser, stays in. Fresh noise forgets. Start all points in one corner instead of everywhere:

# %%
corner = 0.3 * start + torch.tensor([1.2, 0.6])
right_answer = ddim(plane, start, noise_schedule.timesteps(200), schedule=noise_schedule)
print(f"right start, eta = 0: shares off by {report(right_answer)[1]:.2f}")
figure, axes = plt.subplots(1, 3, figsize=(7, 2.5))
scatter(axes[0], corner, "wrong start", BLUE)
for axis, eta in zip(axes[1:], (0.0, 1.0), strict=True):
    x = ddim(plane, corner, noise_schedule.timesteps(200), schedule=noise_schedule, eta=eta,
             generator=torch.Generator().manual_seed(1))
    scatter(axis, x, rf"$\eta$ = {eta:g}", BLUE)
    print(f"wrong start, eta = {eta:g}: shares off by {report(x)[1]:.2f}")
plt.show()

# %% [markdown]
# Deterministic steps stay with the blobs near the start; fresh noise shares the points out nearly as evenly as the
# right start does. The price: section 2 showed that random steps need to be many. Few steps: $\eta = 0$. Many steps
# and an imperfect network: some noise can help.
#
# ## 8 · A real model
#
# The shipped model draws scenes from a caption, in a latent space (chapter 08). Does the picture show what was asked?
# The `oracle` reads it off. Our captions leave open where the object is. The loops are yours; there is no guidance.

# %%
pipe = StableDiffusion.load("scenes64")
asked = Scenes(64, split="test", objects=(1, 1), textures=("plain",), degraded=0.0).scenes(range(PROMPTS))
captions = [f"a {o.size} {o.color} {o.shape} on a {scene.background} background" for scene in asked for o in scene.objects]
condition = pipe.conditions(captions, None, 64, 64)[0]
latent = randn(PROMPTS, *pipe.latent_shape(64, 64), seed=10, dtype=torch.float32)  # (PROMPTS,8,8,8)


def model(x, t):                                                # what the network predicts, turned into eps
    with torch.no_grad():
        return pipe.predict_eps(x, t, condition)


def shows(image, scene):
    """Is there an object of the shape and colour that was asked for?"""
    wanted = {(o.shape, o.color) for o in scene.objects}
    return bool(wanted & {(o.shape, o.color) for o in oracle.read(image)[0].objects})


tried = {"DDIM": (ddim, {}, STEPS), "DDPM, small": (ancestral, {"kind": "small"}, STEPS[:-1]),
         "DDPM, large": (ancestral, {"kind": "large"}, STEPS[:-1]), "DPM++ 2M": (dpmpp_2m, {}, STEPS)}
drawn, right = {}, {}
for name, (sampler, options, run) in tried.items():
    for steps in run:
        options = options | {"generator": torch.Generator().manual_seed(1)}
        z = sampler(model, latent, pipe.schedule.timesteps(steps, "linspace"), schedule=pipe.schedule, **options)
        drawn[name, steps] = pipe.decode(z)                     # (PROMPTS,3,64,64)
        right[name, steps] = sum(map(shows, drawn[name, steps], asked)) / PROMPTS
print(captions[1])
strip([torch.stack([drawn[name, steps][1] for steps in STEPS[:-1]]) for name in tried],
      [f"{s} steps" for s in STEPS[:-1]], list(tried), width=4.2)

# %%
PUBLISHED = {"DDIM": (13.36, 6.84, 4.67, 4.16, 4.04), "DDPM, small": (41.07, 18.36, 8.01, 5.78, 4.73),
             "DDPM, large": (367.43, 133.37, 32.72, 9.99, 3.17)}
print("scenes64: right shape and colour, per cent\nsteps       ", *[f"{steps:7d}" for steps in STEPS])
for name, (_, _, run) in tried.items():
    print(f"{name:12s}", *[f"{100 * right[name, steps]:7.0f}" for steps in run])
print("Song et al. (2021): FID of CIFAR-10\nsteps       ", *[f"{steps:7d}" for steps in (10, 20, 50, 100, 1000)])
for name, row in PUBLISHED.items():
    print(f"{name:12s}", *[f"{fid:7.2f}" for fid in row])

fine = drawn["DPM++ 2M", STEPS[-1]]
figure, (left, right_axis) = plt.subplots(1, 2, figsize=(8, 2.8))
for name, color, mark in zip(tried, (RED, ORANGE, GREY, BLUE), "osv^", strict=True):
    run = tried[name][2]
    left.plot(run, [100 * right[name, steps] for steps in run], color=color, marker=mark, label=name)
    if run == STEPS:
        moved = [float((drawn[name, steps] - fine).pow(2).mean().sqrt()) for steps in STEPS[:-1]]
        right_axis.plot(STEPS[:-1], moved, color=color, marker=mark, label=name)
        print(f"{name:12s} rms difference to {STEPS[-1]} steps of 2M", *[f"{value:.3f}" for value in moved])
left.set(ylabel="right shape and colour, %", ylim=(0, 103))
right_axis.set(ylabel=f"rms difference to {STEPS[-1]} steps", ylim=(0, None))
for axis in (left, right_axis):
    axis.set(xscale="log", xticks=STEPS, xticklabels=STEPS, xlabel="steps")
    axis.minorticks_off()
left.legend()
plt.show()

# %% [markdown]
# Two steps average over what the caption leaves open, here the place. From five on the shares hardly rise (of 24 pictures
# a share is uncertain by some ten points). The right plot is free of that chance: the two deterministic solvers converge
# to one picture. At 5 steps 2M gains next to nothing, its line through two answers being too long; from 10 on it is nearer.
# Random steps end elsewhere.
#
# FID (chapter 12) is a distance between distributions, low is good; Song et al. drew 32 × 32 photographs. With few
# steps the large variance is worst in both tables, as in section 2; with 1,000 it is their best. Our model needs fewer
# steps: its scenes are simple. The number is a property of model and question, not a law.
#
# > **The article says** (section 9.3) that quality rises with the number of steps, 20 to 50, **but** the gain ends:
# > the sampler converges to *its* answer, and from there on only the network could do better.
#
# ## Questions to think about
#
# 1. The exact denoiser of 256 pictures gives back these pictures. What does a network do instead at medium noise?
# 2. DDIM and DDPM use the same network. Which of them needs it to be right at more levels?
# 3. For which pictures does DDIM inversion go wrong?
# 4. 2M holds a line through two answers. Why not a parabola through three? Think of strong guidance.
#
# ## Recap
#
# - A denoiser answers with the posterior mean; at high noise this is an average, never a sample.
# - DDPM draws from the posterior; its two variances agree for small steps and err in opposite directions for large
#   ones.
# - DDIM sets the share of fresh noise by $\eta$. A step needs $\bar\alpha$ here and at the *next visited* level.
# - At $\eta = 0$ sampling is Euler's method for $dy/d\sigma = \hat\epsilon$, and can be run backwards.
# - Heun and DPM-Solver++ 2M have second order; 2M costs one call a step.
# - More steps help until the equation is solved; after that, only a better network.
#
# **Next**, chapter 08 puts this loop and the U-Net of chapter 06 into the latent space of chapter 02: latent diffusion.
