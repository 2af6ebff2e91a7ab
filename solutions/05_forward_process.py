# %% [markdown]
# # 05 · The forward process
#
# A diffusion model learns to undo damage. This chapter builds the damage: a thousand small steps that turn any picture
# into pure noise, and the formula that jumps to any of them at once.
#
# **You will be able to**
#
# - write the three noise schedules in use, and say what each does to a picture;
# - confirm by simulation that a thousand small steps equal one large one, and use that in a batch;
# - read a schedule by its signal-to-noise ratio;
# - convert between the three things a network may predict, and say which of them fails where;
# - choose the noise levels a sampler visits, and see what the article's choice does;
# - measure why pictures and latents need different schedules.
#
# **Time** about 2 hours, of which 65 minutes are exercises. **You need** tensors, broadcasting, mean and variance. No
# other chapter is needed, no GPU, and nothing is trained. **In the library** this chapter is `course/schedule.py`;
# in the article, sections 3.1, 3.3 and 3.4.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from course import parts, samplers, schedule
from course.classroom import begin, check, figure_style, slider, use
from course.data import Scenes

session = begin(needs="0.1", seed=5)
COUNT = {"quick": 64, "cpu": 512, "gpu": 2048}[session.profile]  # pictures to measure on
CHAINS = {"quick": 2_000, "cpu": 20_000, "gpu": 20_000}[session.profile]  # random walks

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
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


# %% [markdown]
# ## A picture dissolves
#
# `Scenes` draws captioned pictures on demand, here 48 × 48; values lie in [-1, 1]. Below is one at seven of the 1,000 noise
# levels of Stable Diffusion, drawn with the library's schedule. By the end of the chapter every line of it is yours.

# %%
scenes = Scenes(48, degraded=0.0)
picture = scenes[3]["image"][None]                              # (1,3,48,48)
levels = torch.tensor([0, 50, 150, 300, 450, 700, 999])         # (7,)
library = schedule.NoiseSchedule()
many = picture.expand(7, -1, -1, -1)                            # (7,3,48,48)
strip([library.add_noise(many, noise_like(many), levels)], [f"t = {t}" for t in levels])
print(scenes[3]["caption"])

# %% [markdown]
# Two things to notice before any formula. Small detail goes first: at $t = 450$ the stripes and dots are gone, and the
# star is still a star. And a thousand steps are not spent evenly: by eye most of the picture is lost before the middle.
# Whether it is gone then, or only hidden from the eye, is the question of section 7.
#
# ## 1 · How much noise, when
#
# One step takes a little signal away and adds a little noise:
#
# $$q(x_t \mid x_{t-1}) = \mathcal N\!\left(\sqrt{1-\beta_t}\; x_{t-1},\; \beta_t I\right)$$
#
# The two factors belong together. If $x_{t-1}$ has variance 1, so has $x_t$: $(1-\beta_t) + \beta_t = 1$. This is called
# *variance-preserving*. A schedule is nothing but the list of $\beta_t$. From it come
#
# $$\alpha_t = 1 - \beta_t \qquad\qquad \bar\alpha_t = \alpha_0\,\alpha_1 \cdots \alpha_t$$
#
# and $\bar\alpha_t$ will be the share of the signal's power that is left. We count $t = 0 \ldots T-1$, as code does; Ho
# et al. write $1 \ldots T$. So $\bar\alpha_0 = \alpha_0$: the first level already carries a little noise.

# %% [markdown] exercise="schedule.make_schedule" role="prompt"
# ### Exercise 1 · Three schedules
#
# `make_schedule(kind, num_steps, beta_start, beta_end)` returns `(betas, alphas_cumprod)`, both of shape (T,), float64.
#
# | kind | rule | used by |
# |---|---|---|
# | `linear` | $\beta_t$ on a straight line from `beta_start` to `beta_end`, both ends included | DDPM |
# | `scaled_linear` | $\sqrt{\beta_t}$ on a straight line between the roots of both | Stable Diffusion |
# | `cosine` | choose $\bar\alpha$ first, as $f$: $\beta_t = 1 - f(t+1)/f(t)$, at most 0.999 | Improved DDPM |
#
# $$f(u) = \cos^2\!\left(\frac{u/T + 0.008}{1.008}\cdot\frac{\pi}{2}\right)$$
#
# `cosine` ignores `beta_start` and `beta_end`. For every kind $\bar\alpha$ is the running product of $1 - \beta$, after
# clipping. Work in float64: a product of a thousand factors loses four digits in float32.

# %% exercise="schedule.make_schedule" role="solution"
def make_schedule(kind, num_steps=1000, beta_start=0.00085, beta_end=0.012):
    """(betas, alphas_cumprod), each (T,) float64."""
    ### BEGIN SOLUTION
    if kind == "linear":
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2
    else:
        u = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps  # (T+1,)
        f = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)           # (T,)
    return betas, torch.cumprod(1 - betas, dim=0)
    ### END SOLUTION


# %% exercise="schedule.make_schedule" role="check"
check("schedule.make_schedule", make_schedule)

# %% [markdown] exercise="schedule.make_schedule" role="hint"
# `torch.linspace(a, b, n, dtype=torch.float64)` includes both ends. `torch.cumprod` is the running product.
#
# ---
#
# For `scaled_linear` take the root of both ends, draw the line, and square it. For `cosine` you need $f$ at $T + 1$
# points, because a ratio of neighbours takes two.
#
# ---
#
# `u = torch.arange(num_steps + 1) / num_steps`, then `betas = (1 - f[1:] / f[:-1]).clamp(max=0.999)`.

# %%
make_schedule = use("schedule.make_schedule", make_schedule)
KINDS = {"linear (DDPM)": ("linear", 1000, 1e-4, 0.02), "scaled_linear (SD)": ("scaled_linear",),
         "cosine": ("cosine",)}
STYLES = dict(zip(KINDS, [(ORANGE, "--"), (BLUE, "-"), (GREEN, "-.")], strict=True))
alpha_bars = {name: make_schedule(*arguments)[1] for name, arguments in KINDS.items()}

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
for name, arguments in KINDS.items():
    color, line = STYLES[name]
    left.plot(make_schedule(*arguments)[0], color=color, ls=line, label=name)
    right.plot(alpha_bars[name], color=color, ls=line, label=name)
left.set(title="noise added in step t", xlabel="t", ylabel=r"$\beta_t$", ylim=(0, 0.04))
right.set(title="signal power left after step t", xlabel="t", ylabel=r"$\bar\alpha_t$")
right.legend()
plt.show()
for name, a in alpha_bars.items():
    print(f"{name:20s} alpha_bar after the last step: {a[-1]:.1e}")

# %% [markdown]
# Betas of a few thousandths, multiplied up a thousand times, take nearly everything, and small differences between them
# become large ones. Look at the printed numbers: Stable Diffusion stops at $\bar\alpha = 0.0047$, so that
# $\sqrt{0.0047} = 6.8\,\%$ of the picture's amplitude is still there at the "pure noise" end. Sampling, however, starts
# from noise without any picture in it. Lin et al. (2023) trace to this mismatch that the model hardly makes very dark
# or very bright pictures.
#
# ## 2 · One step after the other
#
# A schedule is a recipe for a random walk. Let us walk it literally, before any shortcut.

# %% [markdown] exercise="schedule.diffuse_stepwise" role="prompt"
# ### Exercise 2 · Walk the chain
#
# `diffuse_stepwise(x0, betas, t, generator)` applies the steps $0, 1, \ldots, t$ to `x0`, one after the other, and
# returns $x_t$.
#
# - `x0` has any shape; the result has its shape and dtype.
# - `betas` is (T,) and `t` an integer: `t = 0` is one step, `t = T - 1` is all of them.
# - Every step draws fresh standard normal noise by `torch.randn(..., generator=generator)`.
# - `x0` itself must stay as it was.

# %% exercise="schedule.diffuse_stepwise" role="solution"
def diffuse_stepwise(x0, betas, t, generator=None):
    """x_t by t + 1 steps of q(x_t | x_{t-1}); any shape -> the same shape."""
    ### BEGIN SOLUTION
    x = x0
    for beta in betas[: t + 1].tolist():
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        x = (1 - beta) ** 0.5 * x + beta**0.5 * noise
    return x
    ### END SOLUTION


# %% exercise="schedule.diffuse_stepwise" role="check"
check("schedule.diffuse_stepwise", diffuse_stepwise)

# %% [markdown] exercise="schedule.diffuse_stepwise" role="hint"
# $\mathcal N(\mu, \sigma^2)$ is drawn as $\mu + \sigma\,\epsilon$ with $\epsilon \sim \mathcal N(0, 1)$. The formula
# gives the variance $\beta_t$; you need its root.
#
# ---
#
# Loop over `betas[: t + 1]`. Assign a new tensor in each round (`x = ...`), so that `x0` is not overwritten.
#
# ---
#
# `x = (1 - beta) ** 0.5 * x + beta ** 0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype)`

# %%
diffuse_stepwise = use("schedule.diffuse_stepwise", diffuse_stepwise)
betas, alphas_cumprod = make_schedule("scaled_linear")
stops = [20, 100, 400]
walks = []
for seed in (1, 2):
    steps = [diffuse_stepwise(picture, betas, t, torch.Generator().manual_seed(seed)) for t in stops]
    walks.append(torch.cat(steps))                              # (3,3,48,48)
strip(walks, [f"t = {t}" for t in stops], ["walk 1", "walk 2"], width=4.2)

# %% [markdown]
# Two walks from one picture: different noise, the same amount of damage. The amount depends on $t$ alone, so we can
# compute it in advance.
#
# ## 3 · All steps at once
#
# Put one step into the next:
#
# $$x_1 = \sqrt{\alpha_1}\left(\sqrt{\alpha_0}\,x_0 + \sqrt{\beta_0}\,\epsilon_0\right) + \sqrt{\beta_1}\,\epsilon_1
# = \sqrt{\alpha_0\alpha_1}\,x_0 + \underbrace{\sqrt{\alpha_1\beta_0}\,\epsilon_0 + \sqrt{\beta_1}\,\epsilon_1}_{
# \text{variance } \alpha_1\beta_0 + \beta_1 \,=\, 1 - \alpha_0\alpha_1}$$
#
# A sum of independent Gaussians is a Gaussian and the variances add, so the two draws are worth one. By induction
#
# $$q(x_t \mid x_0) = \mathcal N\!\left(\sqrt{\bar\alpha_t}\,x_0,\; (1-\bar\alpha_t) I\right)
# \qquad x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\;\epsilon$$
#
# This is equation 4 of Ho et al. (2020). It is what makes training cheap: any level costs one line, and each picture of
# a batch can have its own. In latent diffusion the same line acts on $z_0$, the latent, in place of $x_0$.
#
# | symbol | shape | |
# |---|---|---|
# | $x_0$, $\epsilon$, $x_t$ | (B,C,H,W) | pictures, noise, noisy pictures |
# | $t$ | (B,) | one level for each picture |
# | $\bar\alpha_t$ | (B,) → (B,1,1,1) | must multiply a whole picture |

# %% [markdown] exercise="schedule.add_noise" role="prompt"
# ### Exercise 3 · The closed form
#
# `add_noise(x0, noise, t, alphas_cumprod)` returns $x_t$.
#
# - `x0`, `noise`: (B,C,H,W); `t`: (B,) int64; `alphas_cumprod`: (T,) float64.
# - The result is (B,C,H,W), in the dtype of `x0`; picture `b` is at level `t[b]`.

# %% exercise="schedule.add_noise" role="solution"
def add_noise(x0, noise, t, alphas_cumprod):
    """A draw of q(x_t | x_0); (B,C,H,W), (B,C,H,W), (B,), (T,) -> (B,C,H,W)."""
    ### BEGIN SOLUTION
    alpha_bar = alphas_cumprod[t]                               # (B,)
    alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)                  # (B,1,1,1)
    signal = alpha_bar.sqrt().to(x0)
    spread = (1 - alpha_bar).sqrt().to(x0)
    return signal * x0 + spread * noise                         # (B,C,H,W)
    ### END SOLUTION


# %% exercise="schedule.add_noise" role="check"
check("schedule.add_noise", add_noise)

# %% [markdown] exercise="schedule.add_noise" role="hint"
# `alphas_cumprod[t]` picks one number for each picture: shape (B,). Broadcasting lines shapes up from the right, so
# (B,) meets W. Which shape meets B instead?
#
# ---
#
# `.reshape(-1, 1, 1, 1)`. The coefficients are float64: `.to(x0)` gives them the dtype (and device) of the pictures.
#
# ---
#
# `alpha_bar.sqrt().to(x0) * x0 + (1 - alpha_bar).sqrt().to(x0) * noise`

# %%
add_noise = use("schedule.add_noise", add_noise)
value = 0.8                                                     # one pixel, many random walks
start = torch.full((CHAINS, 1, 1, 1), value)
figure, axes = plt.subplots(1, 3, figsize=(8, 2.6), sharey=True)
print("   t    mean: walk  closed  formula     std: walk  closed  formula")
for axis, t in zip(axes, (20, 200, 999), strict=True):
    walked = diffuse_stepwise(start, betas, t, torch.Generator().manual_seed(1)).flatten()
    jumped = add_noise(start, noise_like(start, 2), torch.full((CHAINS,), t), alphas_cumprod).flatten()
    mean, std = float(alphas_cumprod[t].sqrt()) * value, float((1 - alphas_cumprod[t]).sqrt())
    print(f"{t:4d}  {walked.mean():10.3f} {jumped.mean():7.3f} {mean:8.3f}"
          f"  {walked.std():12.3f} {jumped.std():7.3f} {std:8.3f}")
    bins = torch.linspace(-3.5, 3.5, 71)
    axis.hist(walked, bins, density=True, color=ORANGE, alpha=0.55, label=f"{t + 1} steps")
    axis.hist(jumped, bins, density=True, histtype="step", color=BLUE, lw=1.4, label="closed form")
    axis.axvline(value, color=GREY, ls=":")
    axis.set(title=f"t = {t}", xlabel="value of the pixel")
    axis.legend(loc="upper left", handlelength=1)
plt.show()

# %% [markdown]
# The dotted line is the clean value, 0.8. The histograms of the walk and of the jump agree, and so do the moments,
# within the sampling error of 20,000 draws (0.007 at most). At $t = 999$ the mean is 0.055, not 0: the 6.8 % from above.
#
# Now any level costs one line, so you can move through them: one picture and one noise under the three schedules. The
# titles say which share of the power is signal. (A page that was only executed shows $t = 300$.)

# %%
def at(t):
    level = torch.full((1,), t)
    row = [add_noise(picture, noise_like(picture), level, a) for a in alpha_bars.values()]  # 3 times (1,3,48,48)
    strip([torch.cat(row)], [f"{name.split()[0]}: {float(a[t]):.0%}" for name, a in alpha_bars.items()], width=5)


slider(at, 0, 999, start=300)

# %% [markdown]
# > **The article says** (section 3.3) `z_t = sqrt(alpha_bar[t]) * z + sqrt(1 - alpha_bar[t]) * noise` with `t` of shape
# > (B,), **but** this line stops for most batch sizes, and where the batch size equals the width it runs and is wrong.
# > The next cell measures both. In the same listing `vae.encode` returns three tensors (section 2.3), which
# > `randn_like` refuses; `sqrt`, `T` and `batch_size` are not defined; and the latent is not multiplied by 0.18215
# > (chapter 08 shows what that costs).

# %%
def article_line(z, noise, t, alpha_bar):
    return torch.sqrt(alpha_bar[t]) * z + torch.sqrt(1 - alpha_bar[t]) * noise


for B in (4, 64):
    z = torch.zeros(B, 4, 64, 64)                               # blank latents: only noise can show
    t = torch.linspace(0, 999, B).long()                        # from the cleanest to the noisiest
    try:
        z_t = article_line(z, noise_like(z), t, alphas_cumprod.float())
    except RuntimeError as error:
        print(f"B = {B}: RuntimeError: {error}")
        continue
    right = add_noise(z, noise_like(z), t, alphas_cumprod)
    for name, result in (("the article's line", z_t), ("add_noise", right)):
        first, last = result[0].std(), result[-1].std()
        print(f"B = {B}: {name:18s} noise in the first picture {first:.2f}, in the last {last:.2f}")

# %% [markdown]
# At B = 64 there is no error and no warning, and every picture has the same mixture of all levels, one for each column.
# A network trained on this is told `t = 0` and shown noise of strength 0.79 in place of 0.03. This is the most expensive
# kind of bug in diffusion code, since nothing stops.
#
# ## 4 · Signal against noise
#
# $\beta$, $\alpha$ and $\bar\alpha$ describe one thing in three ways, and none of them compares well across schedules.
# The ratio of powers does:
#
# $$\mathrm{SNR}(t) = \frac{\bar\alpha_t}{1-\bar\alpha_t} \qquad\qquad \lambda(t) = \ln \mathrm{SNR}(t)$$
#
# At $\lambda = 0$ signal and noise are equally strong. Kingma et al. (2021) show that the curve between the two ends
# changes only how often training visits each level, not what the ideal model is.

# %% [markdown] exercise="schedule.log_snr" role="prompt"
# ### Exercise 4 · Where the noise takes over
#
# `log_snr(alphas_cumprod)` returns `(log_snr, t_half)`.
#
# - `alphas_cumprod`: (T,), falling. `log_snr`: (T,), natural logarithm.
# - `t_half`: an `int`, the first step with $\lambda(t) < 0$; $T$ if there is none.

# %% exercise="schedule.log_snr" role="solution"
def log_snr(alphas_cumprod):
    """(lambda (T,), the first t at which noise is stronger than signal)."""
    ### BEGIN SOLUTION
    values = torch.log(alphas_cumprod / (1 - alphas_cumprod))   # (T,)
    for t, value in enumerate(values.tolist()):
        if value < 0:
            return values, t
    return values, len(values)
    ### END SOLUTION


# %% exercise="schedule.log_snr" role="check"
check("schedule.log_snr", log_snr)

# %% [markdown] exercise="schedule.log_snr" role="hint"
# The SNR is a ratio of powers (variances), so no square roots; `torch.log` is the natural logarithm.
#
# ---
#
# $\lambda$ only falls. So the number of steps with $\lambda \ge 0$ is also the index of the first one below.
#
# ---
#
# `t_half = int((values >= 0).sum())` covers the case without a crossing too.

# %%
log_snr = use("schedule.log_snr", log_snr)
figure, axis = plt.subplots(figsize=(6.5, 3))
for name, a in alpha_bars.items():
    values, t_half = log_snr(a)
    color, line = STYLES[name]
    axis.plot(values, color=color, ls=line, label=f"{name}: noise takes over at t = {t_half}")
    axis.plot(t_half, 0, "o", color=color)
axis.axhline(0, color=GREY, lw=0.8)
axis.set(xlabel="t", ylabel=r"log SNR  $\lambda(t)$", ylim=(-12, 10))
axis.legend(loc="lower left", fontsize=9)
plt.show()
half = torch.tensor([log_snr(a)[1] for a in alpha_bars.values()])
stack = torch.stack([alpha_bars[n][h] for n, h in zip(alpha_bars, half, strict=True)])
fixed = torch.stack([a[300] for a in alpha_bars.values()])
same, noise = picture.expand(3, -1, -1, -1), noise_like(picture).expand(3, -1, -1, -1)
strip([add_noise(same, noise, torch.arange(3), row) for row in (fixed, stack)],
      [name.split()[0] for name in alpha_bars], ["t = 300", "equal SNR"], width=4.2)

# %% [markdown]
# The upper row has equal $t$ and unequal damage; the lower row has the unequal $t$ of the dots and the same damage.
# The number $t$ has no meaning of its own; $\lambda$ has.
#
# ## 5 · Three names for one thing
#
# Given $x_t$ and $t$, the two unknowns $x_0$ and $\epsilon$ are tied by one equation. Know either and you know both. A
# third choice, the velocity, is a rotation of the two (Salimans & Ho 2022). With $a = \sqrt{\bar\alpha_t}$ and
# $s = \sqrt{1-\bar\alpha_t}$, so that $a^2 + s^2 = 1$:
#
# $$\begin{pmatrix} x_t \\ v \end{pmatrix} = \begin{pmatrix} a & s \\ -s & a \end{pmatrix}
# \begin{pmatrix} x_0 \\ \epsilon \end{pmatrix} \qquad\qquad
# \begin{pmatrix} x_0 \\ \epsilon \end{pmatrix} = \begin{pmatrix} a & -s \\ s & a \end{pmatrix}
# \begin{pmatrix} x_t \\ v \end{pmatrix}$$
#
# Stable Diffusion 1 predicts $\epsilon$, Stable Diffusion 2 (768) predicts $v$; a sampler needs $x_0$ and $\epsilon$.

# %% [markdown] exercise="schedule.convert" role="prompt"
# ### Exercise 5 · Convert
#
# `convert(x_t, prediction, t, alphas_cumprod, given)` returns `(x0, eps, v)`, whichever one `given` names.
#
# - `x_t`, `prediction` and the three results: (B,C,H,W); `t`: (B,); `alphas_cumprod`: (T,).
# - `given` is `"eps"`, `"x0"` or `"v"`: what `prediction` is.

# %% exercise="schedule.convert" role="solution"
def convert(x_t, prediction, t, alphas_cumprod, given):
    """(x0, eps, v), each (B,C,H,W), from x_t and any one of them."""
    ### BEGIN SOLUTION
    alpha_bar = alphas_cumprod[t].reshape(-1, 1, 1, 1)          # (B,1,1,1)
    a, s = alpha_bar.sqrt().to(x_t), (1 - alpha_bar).sqrt().to(x_t)
    if given == "eps":
        eps = prediction
        x0 = (x_t - s * eps) / a
    elif given == "x0":
        x0 = prediction
        eps = (x_t - a * x0) / s
    else:
        x0 = a * x_t - s * prediction
        eps = s * x_t + a * prediction
    return x0, eps, a * eps - s * x0
    ### END SOLUTION


# %% exercise="schedule.convert" role="check"
check("schedule.convert", convert)

# %% [markdown] exercise="schedule.convert" role="hint"
# Make `a` and `s` of shape (B,1,1,1), as in exercise 3. Solve $x_t = a\,x_0 + s\,\epsilon$ for the one you lack.
#
# ---
#
# For `"v"` read the second matrix row by row: $x_0 = a\,x_t - s\,v$. There is no division.
#
# ---
#
# Find `x0` and `eps` in three branches, then compute `v = a * eps - s * x0` once, after them.

# %%
convert = use("schedule.convert", convert)
ERROR = 0.1                                                     # the network is off by 10 % of a unit
batch = scenes.images(range(16))                                # (16,3,48,48)
measured = {"eps": [], "v": [], "x0": []}
ts = torch.tensor([1, 50, 150, 300, 450, 600, 750, 900, 999])
for t in ts:
    t_all, noise = t.expand(16), noise_like(batch, 3)
    x_t = add_noise(batch, noise, t_all, alphas_cumprod)
    truth = dict(zip(("x0", "eps", "v"), convert(x_t, noise, t_all, alphas_cumprod, "eps"), strict=True))
    for given, errors in measured.items():
        x0 = convert(x_t, truth[given] + ERROR * noise_like(batch, 4), t_all, alphas_cumprod, given)[0]
        errors.append(float((x0 - batch).pow(2).mean().sqrt()))

a, s = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
figure, axis = plt.subplots(figsize=(6.5, 3))
theory = {"eps": (s / a, RED, "-", "o"), "x0": (torch.ones(1000), GREY, ":", "^"), "v": (s, BLUE, "--", "s")}
for given, (factor, color, line, mark) in theory.items():
    axis.plot(ERROR * factor, color=color, ls=line)
    axis.plot(ts, measured[given], mark, color=color, label=f"network predicts {given}")
axis.set(xlabel="t", ylabel="error of $x_0$ (rms)", yscale="log", ylim=(2e-3, 3))
axis.legend(loc="lower right")
plt.show()

# %%
shown = torch.tensor([150, 600, 999])
three, noise = picture.expand(3, -1, -1, -1), noise_like(picture, 5).expand(3, -1, -1, -1)
x_t = add_noise(three, noise, shown, alphas_cumprod)
v = convert(x_t, noise, shown, alphas_cumprod, "eps")[2]
off = ERROR * noise_like(three, 6)
from_eps = convert(x_t, noise + off, shown, alphas_cumprod, "eps")[0]
from_v = convert(x_t, v + off, shown, alphas_cumprod, "v")[0]
labels = [r"$x_0$ from $\epsilon$", "$x_0$ from $v$"]
strip([from_eps, from_v], [f"t = {t}" for t in shown], labels, width=4.2)

# %% [markdown]
# Points are measured, lines are $0.1\,s/a$, $0.1$ and $0.1\,s$. The same error of 0.1 costs almost nothing at small $t$
# if the network predicts $\epsilon$, and is amplified 14.6 times at $t = 999$: there $x_t$ holds almost no signal, and
# dividing by $a = 0.068$ blows up whatever is wrong. So samplers clip $x_0$ in pixel space, and models that start from exactly
# zero signal must not predict $\epsilon$ (they would divide by 0). The velocity is never amplified.
#
# ## 6 · Which levels to visit
#
# Training needs all 1,000 levels. Sampling does not: chapter 07 shows that 5 to 50 of them are enough, *if they span
# the whole way from noise to picture*.

# %% [markdown] exercise="schedule.timesteps" role="prompt"
# ### Exercise 6 · Strides
#
# `timesteps(steps, num_steps, spacing)` returns an int64 tensor (steps,), from high $t$ to low.
#
# - `"trailing"`: each stride ends at its high end: $\mathrm{round}(T - i\,T/\mathrm{steps}) - 1$ for $i = 0, 1, \ldots$
#   With 5 of 10: 9, 7, 5, 3, 1.
# - `"leading"`: each stride starts at its low end: the multiples of `num_steps // steps`, beginning with 0, sorted
#   downwards. With 5 of 10: 8, 6, 4, 2, 0.

# %% exercise="schedule.timesteps" role="solution"
def timesteps(steps, num_steps=1000, spacing="trailing"):
    """The levels a sampler visits, high to low, int64 (steps,)."""
    ### BEGIN SOLUTION
    if spacing == "leading":
        stride = num_steps // steps
        return torch.arange(steps).flip(0) * stride
    stride = num_steps / steps
    return torch.tensor([round(num_steps - i * stride) - 1 for i in range(steps)])
    ### END SOLUTION


# %% exercise="schedule.timesteps" role="check"
check("schedule.timesteps", timesteps)

# %% [markdown] exercise="schedule.timesteps" role="hint"
# `torch.arange(steps)` counts up; `.flip(0)` turns it round.
#
# ---
#
# Trailing uses the exact quotient `num_steps / steps` and rounds at the end; leading uses the whole number
# `num_steps // steps`.
#
# ---
#
# `torch.tensor([round(num_steps - i * num_steps / steps) - 1 for i in range(steps)])`

# %%
timesteps = use("schedule.timesteps", timesteps)
choices = {"trailing": (timesteps(50), BLUE), "leading": (timesteps(50, 1000, "leading"), GREEN),
           "the article": (torch.arange(50).flip(0), RED)}
figure, axis = plt.subplots(figsize=(8, 1.9))
for row, (visited, color) in enumerate(choices.values()):
    axis.plot(visited, [-row] * 50, "|", color=color, ms=14, mew=1.5)
    first = f"first: t = {visited[0]}, {100 * float(1 - alphas_cumprod[visited[0]]):.1f} % noise"
    axis.text(1015, -row, first, va="center", fontsize=9, color=color)
axis.set(xlim=(-15, 1400), xticks=range(0, 1001, 200))
axis.set(ylim=(-2.6, 0.6), yticks=[0, -1, -2], yticklabels=list(choices))
axis.set_xlabel("t", x=0.36)
axis.grid(False, axis="y")
axis.spines["left"].set_visible(False)
axis.spines["bottom"].set_bounds(0, 1000)
plt.show()

# %% [markdown]
# > **The article says** (section 3.4) `for t in reversed(range(num_steps))` with `num_steps=50`, which visits
# > $t = 49 \ldots 0$, **but** the model was trained on 1,000 levels and these are the 50 cleanest. The loop hands it
# > pure noise and declares it 5 % noise.
#
# To see what that does we need a denoiser, and one exists without any training. Among all *linear* denoisers the best
# one is known in closed form (Wiener 1949): go to Fourier space, where each frequency of power $P$ can be treated alone,
# and keep the share of it that is signal,
#
# $$\hat x_0 = \mu + \frac{a\,P}{a^2 P + s^2}\,(x_t - a\,\mu).$$
#
# It knows the mean $\mu$ of our pictures and how smooth they are, not what a circle is. So its samples are clouds; but
# clouds of the right smoothness and colour, if the loop is right.

# %%
class LinearDenoiser:
    """The best linear estimate of x_0, for pictures like those it was given."""

    def __init__(self, images):
        self.mean = images.mean(0)                              # (C,H,W)
        self.power = torch.fft.fft2(images - self.mean, norm="ortho").abs().pow(2).mean(0)  # (C,H,W)

    def x0(self, x_t, t):
        alpha_bar = float(alphas_cumprod[int(t)])
        a, noise_power = alpha_bar**0.5, 1 - alpha_bar
        gain = a * self.power / (alpha_bar * self.power + noise_power)  # (C,H,W)
        return self.mean + torch.fft.ifft2(gain * torch.fft.fft2(x_t - a * self.mean)).real  # (B,C,H,W)

    def __call__(self, x_t, t):                                 # what a sampler asks for
        return convert(x_t, self.x0(x_t, t), torch.full((len(x_t),), int(t)), alphas_cumprod, "x0")[1]


# %% part="schedule.NoiseSchedule" is="MySchedule"
class MySchedule(schedule.NoiseSchedule):
    """The library's schedule, with your functions inside."""

    def __init__(self, num_steps=1000, kind="scaled_linear", beta_start=0.00085, beta_end=0.012, **more):
        super().__init__(num_steps, kind, beta_start, beta_end, **more)
        self.betas, self.alphas_cumprod = make_schedule(kind, num_steps, beta_start, beta_end)
        self.alphas = 1 - self.betas

    def add_noise(self, x0, noise, t):
        t = torch.as_tensor(t).long().expand(len(x0))           # a pipeline also says one number for all
        return add_noise(x0, noise, t, self.alphas_cumprod)

    def timesteps(self, steps, spacing="trailing", offset=0):
        return timesteps(steps, self.num_steps, spacing) + offset


# %%
images = scenes.images(range(COUNT))                            # (COUNT,3,48,48)
denoiser, noise = LinearDenoiser(images), noise_like(images[:16], 7)
with parts.swapped({"schedule.NoiseSchedule": MySchedule}):
    mine = schedule.NoiseSchedule()                             # yours, wherever the library asks for one
samples = {name: samplers.ddim(denoiser, noise, ts, schedule=mine) for name, (ts, _) in choices.items()}


def roughness(x):
    """Root mean square difference of horizontal neighbours."""
    return float((x[..., 1:] - x[..., :-1]).pow(2).mean().sqrt())


strip([x[:3] for x in (images, *samples.values())], [""] * 3, ["data", *samples], width=3.2)
print(f"{'roughness of the data':32s} {roughness(images):.2f}")
for name, x in samples.items():
    kept = torch.corrcoef(torch.stack([x.flatten(), noise.flatten()]))[0, 1]
    print(f"{name:11s} roughness of samples {roughness(x):.2f}, correlation with the start {kept:.2f}")

# %% [markdown]
# The schedule and the steps in that loop were yours, swapped into the library by `parts.swapped`. Chapter 16 builds the
# whole pipeline in this way.
#
# With 50 steps from 999 or 980 down, the clouds are about as smooth as the data. The article's loop removes 5 % of noise
# from something that is all noise, and returns the rest. A trained network has the same trouble: a picture of pure
# noise labelled $t = 49$ never occurred in its training.
#
# ## 7 · The same schedule, different damage
#
# A schedule adds noise to each *value*. How much of a *picture* that destroys depends on how much its values repeat
# each other: neighbours that agree can be averaged, the signal stays and the noise falls. Averaging $k \times k$ values
# divides the noise power by $k^2$, so the SNR of the average is $k^2$ times larger. Draw the same scene at 48, 192 and
# 768, add noise at the same $t$, and bring all to 48 by averaging (contrast raised for the eye):

# %%
shown = torch.tensor([600, 999])
rows = {}
for size in (48, 192, 768):
    k, clean = size // 48, Scenes(size, degraded=0.0).images([3]).expand(2, -1, -1, -1)  # the same scene
    x_t = F.avg_pool2d(add_noise(clean, noise_like(clean, 8), shown, alphas_cumprod), k)  # (2,3,48,48)
    signal = F.avg_pool2d(clean, k) * alphas_cumprod[shown].sqrt().float().reshape(2, 1, 1, 1)
    snr = signal.pow(2).mean((1, 2, 3)) / (x_t - signal).pow(2).mean((1, 2, 3))
    rows[size] = 0.6 * x_t / x_t.std((1, 2, 3), keepdim=True)
    print(f"drawn at {size:3d}, averaged {k:2d} x {k:2d}: measured SNR",
          *[f"{s:7.4f} at t = {t}" for s, t in zip(snr, shown, strict=True)])
strip(rows.values(), [f"t = {t}" for t in shown], list(rows), width=3.2)

# %% [markdown]
# (This picture's power is 0.26, so its SNR lies that far below $\bar\alpha_t/(1-\bar\alpha_t)$, which assumes 1.) The
# SNR rises by 16 with each row, at every $t$, and at 768 the picture is still there at $t = 999$, the level meant to
# be pure noise. So a schedule tuned at one resolution is too gentle at the next; Hoogeboom et al. (2023) shift $\lambda$
# by $-2\ln k$ to make up for it.
#
# A latent should be the opposite case: an autoencoder squeezes out what neighbours share, so fewer values are left and
# each has to stand for itself. To measure redundancy, ask our linear denoiser what share of the variance it can
# recover, on scenes it has not seen: for pictures; for $8 \times 8$ averages of them, a crude stand-in for a latent at
# $f = 8$; and for white noise, which has no redundancy at all. All are scaled to variance 1, as a latent is.

# %%
test = Scenes(48, split="test", degraded=0.0).images(range(COUNT))  # (COUNT,3,48,48)


def scaled(x, like):
    return (x - like.mean()) / like.std()


pooled, pooled_test = F.avg_pool2d(images, 8), F.avg_pool2d(test, 8)  # (COUNT,3,6,6)
white = noise_like(images, 10)
kinds = {"pictures, 48 x 48": (scaled(images, images), scaled(test, images), BLUE, "-"),
         "8 x 8 averages of them": (scaled(pooled, pooled), scaled(pooled_test, pooled), ORANGE, "--"),
         "white noise": (white, noise_like(images, 11), GREY, ":")}
ts = torch.tensor([0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999])
figure, axis = plt.subplots(figsize=(6.5, 3))
print("share of variance recovered at t =", *[f"{t:5d}" for t in ts[1::2]])
for name, (seen, unseen, color, line) in kinds.items():
    model, recovered = LinearDenoiser(seen), []
    spread = (unseen - model.mean).pow(2).mean()
    for t in ts:
        x_t = add_noise(unseen, noise_like(unseen, 12), t.expand(len(unseen)), alphas_cumprod)
        recovered.append(float(1 - (model.x0(x_t, t) - unseen).pow(2).mean() / spread))
    print(f"{name:33s}", *[f"{r:5.2f}" for r in recovered[1::2]])
    axis.plot(ts, recovered, color=color, ls=line, marker="o", ms=4, label=name)
axis.plot(alphas_cumprod, color="black", lw=0.8, label=r"$\bar\alpha_t$")
axis.set(xlabel="t", ylabel="share of variance recovered", ylim=(-0.02, 1.02))
axis.legend(loc="lower left", fontsize=9)
plt.show()

# %% [markdown]
# White noise follows $\bar\alpha_t$, as theory says it must: nothing can be borrowed from neighbours. Averages lie
# above it, pictures far above. At $t = 500$, where the schedule leaves 28 % of the signal power, a linear filter still
# recovers about 80 % of a picture's variance and half of its averages', but just those 28 % of white noise's.
#
# What this does and does not show. It shows, for these drawn scenes, that the useful range of $t$ depends on the data:
# levels that ruin averages hardly touch a picture. That is why `scenes64-pixel` has a schedule of its own; chapter 08
# gives both its models the latents'. It does not show how a trained VAE's latent behaves: an average is not an
# encoder. And a network, being more than a linear filter, can recover more of the first two (not of white noise).
#
# ## Questions to think about
#
# 1. `cosine` clips $\beta$ at 0.999. What would go wrong in exercise 5 without it?
# 2. Latents of Stable Diffusion are multiplied by 0.18215, so that their variance is near 1. What would variance 30
#    do to the $\mathrm{SNR}$ curve? At which $t$ would the noise take over?
# 3. The chain of section 2 is random and the closed form draws a single $\epsilon$. Why must training use the
#    same $\epsilon$ in $x_t$ and in the loss?
# 4. Leading spacing never visits 999, and the released Stable Diffusion samples so. What does the model believe about
#    its first input?
# 5. By which $\lambda$ would you shift the schedule for 512 × 512 pictures, if it was good at 64 × 64?
#
# ## Recap
#
# - A schedule is a list of $\beta_t$; what matters is $\bar\alpha_t$, and what compares is $\ln \mathrm{SNR}$.
# - $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$: a thousand steps in one line, (B,) reshaped to (B,1,1,1).
# - $\epsilon$, $x_0$ and $v$ carry the same information, not the same error: $\epsilon$ fails at high noise.
# - A sampler's levels must span the schedule it was trained with.
# - How much a level destroys depends on the redundancy of the data.
#
# **Next**, chapter 06 builds the network that is handed $x_t$ and $t$ and has to say what $\epsilon$ was: timestep
# embedding, residual blocks, U-Net, and the first training run.
