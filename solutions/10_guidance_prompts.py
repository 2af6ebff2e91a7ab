# %% [markdown]
# # 10 · Guidance and prompts
#
# A model that was trained on captions heeds them, more or less. *Classifier-free guidance* is the knob that makes it more,
# and it costs: pictures become alike, colours overshoot, every step takes two passes. Around it a folklore of prompts has
# grown. In our world a program reads every picture, so here the folklore is tested.
#
# **You will be able to**
#
# - say why a model must forget its captions in training, and measure what happens if it never does;
# - write guidance, and explain $w$ as a power of $p(c \mid x)$ in a world where that is exact;
# - sweep $w$ and the number of steps, with intervals, and see where each stops to help;
# - limit guidance to an interval of noise levels, and bring its spread back;
# - test whether a quality word or a negative prompt does anything, by pairs of pictures and an exact p-value.
#
# **Time** about 2.5 hours, of which 85 minutes are exercises. **You need** chapters 05 ($\bar\alpha$), 07 (DDIM) and 08
# (dropped captions). No GPU. **In the library** this chapter is `course/guidance.py` and `course/evaluation/sweep.py`; in
# the article, sections 4.3 and 9.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
from collections import Counter
from math import comb, log2

import matplotlib.pyplot as plt
import torch
from torch import nn

from course import parts, samplers
from course.classroom import begin, check, figure_style, prompt_box, slider, use
from course.data import Scenes, captions, oracle
from course.evaluation.sweep import wilson
from course.pipeline import StableDiffusion

session = begin(needs="0.1", seed=10)
POINTS = {"quick": 100, "cpu": 1000, "gpu": 1000}[session.profile]  # samples in the plane
TRAIN = {"quick": 20, "cpu": 1000, "gpu": 3000}[session.profile]  # training steps in the plane
PROMPTS = {"quick": 1, "cpu": 32, "gpu": 256}[session.profile]  # pictures for each setting
STEPS = {"quick": 2, "cpu": 10, "gpu": 25}[session.profile]     # of the sampler, where nothing else is said
SCALES = [1.0, 7.5] if session.profile == "quick" else [0.0, 1.0, 1.5, 3.0, 5.0, 7.5, 12.0]
COUNTS = [2, *{"quick": [], "cpu": [5, 10, 20, 50], "gpu": [5, 10, 25, 50, 200]}[session.profile]]  # steps

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
            axes[r, c].spines[:].set(visible=True, color="#dddddd")
        if labels:
            axes[r, 0].set_ylabel(labels[r])
    plt.show()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# %% [markdown]
# ## One prompt, one noise, one knob
#
# The shipped model draws a prompt from the same noise, with the guidance scale $w$ from 0 to 20. At $w = 0$ it is not told
# anything; at $w = 1$ it does what it was trained to do.

# %%
shipped = StableDiffusion.load("scenes64").to(session.device)
levels = shipped.schedule.alphas_cumprod                        # (1000,)
PROMPT = "a large blue square above a small yellow star on a mint background"
knob = [0.0, 1.0, 1.5, 3.0, 7.5, 12.0, 20.0]
rows = []
for seed in (1, 2):
    z = [shipped.latents(PROMPT, steps=STEPS, seed=seed, guidance_scale=w) for w in knob]
    rows.append(shipped.decode(torch.cat(z)))                   # (7,3,64,64)
strip(rows, [f"w = {w:g}" for w in knob], ["seed 1", "seed 2"])

# %% [markdown]
# Turn the knob yourself; seed 1 is drawn anew at each stop. (A page that was only executed shows one.)

# %%
def turned(w):
    """Seed 1 at a guidance scale of w."""
    z = shipped.latents(PROMPT, steps=STEPS, seed=1, guidance_scale=float(w))  # (1,8,8,8)
    strip([shipped.decode(z)], [f"w = {w}"], width=1.8)


slider(turned, 0, 20, start=5)

# %% [markdown]
# Up to 3 nothing is lost. At 7.5 edges fray, at 20 a blue square is black: the answers have left the range that the decoder
# knows. Where a model breaks is its own affair; this small one breaks early.
#
# ## 1 · Two answers, and the line through them
#
# Ask the network twice, with the text $c$ and without, and go further in the direction of the difference:
#
# $$\tilde\epsilon = \epsilon(x_t, \varnothing) + w\,\big(\epsilon(x_t, c) - \epsilon(x_t, \varnothing)\big)$$
#
# Why would that help? A denoiser knows the slope of the log-density, $\epsilon(x_t, c) = -\sqrt{1-\bar\alpha_t}\;\nabla \log
# p(x_t \mid c)$. By Bayes $\log p(x \mid c) = \log p(x) + \log p(c \mid x) + \text{const}$, so the difference of the two
# answers is the slope of $\log p(c \mid x)$: of a *classifier* that nobody trained. Hence the name, and
#
# $$\tilde\epsilon \;\widehat{=}\; p(x)\; p(c \mid x)^w$$
#
# at each noise level: the text counts $w$ times. Ho and Salimans (2022) begin at $\epsilon(x_t, c)$ instead; their $w$ is
# this one minus 1.
#
# | symbol | shape | |
# |---|---|---|
# | $x$, both answers, the result | (B,C,H,W) | |
# | $c$, $\varnothing$ | dictionaries of tensors with B in front | `{"context": (B,N,D)}`; $\varnothing$ is the text "" |
#
# Both passes go through the network as one batch of 2B, the unconditional half first: on a GPU that takes less than twice
# the time.

# %% [markdown] exercise="guidance.guided" role="prompt"
# ### Exercise 1 · Guidance
#
# `guided(predict, cond, uncond, scale)` returns a function `denoiser(x, t)` → (B,C,H,W).
#
# - `predict(x, t, condition)` is the network. `cond` and `uncond` are dictionaries with the same names in them; take all
#   that are there.
# - `x` is (B,C,H,W), `t` is handed on as it is.
# - At `scale` 1 the unconditional answer cancels: one pass over B pictures is enough.

# %% exercise="guidance.guided" role="solution"
def guided(predict, cond, uncond, scale):
    """(x (B,C,H,W), t) -> the guided answer (B,C,H,W)."""
    ### BEGIN SOLUTION
    both = {name: torch.cat([uncond[name], cond[name]]) for name in cond}  # (2B,...)

    def denoiser(x, t):
        if scale == 1:
            return predict(x, t, cond)
        answers = predict(torch.cat([x, x]), t, both)           # (2B,C,H,W)
        without, with_text = answers.chunk(2)
        return without + scale * (with_text - without)

    return denoiser
    ### END SOLUTION


# %% exercise="guidance.guided" role="check"
check("guidance.guided", guided)

# %% [markdown] exercise="guidance.guided" role="hint"
# Write an inner function `denoiser(x, t)` and return it.
#
# ---
#
# `torch.cat([x, x])` for the pictures, `torch.cat([uncond[name], cond[name]])` for each entry; `.chunk(2)` takes the answer
# apart in the same order.
#
# ---
#
# `without + scale * (with_text - without)`

# %% [markdown]
# A world where all of it is exact: nine blobs in the plane, three of them called *left*, three *right*, three *both*. The
# best denoiser of blobs is chapter 07's formula; a word forbids some of them.

# %% part="guidance.classifier_free_guidance" is="classifier_free_guidance"
def classifier_free_guidance(eps_uncond, eps_cond, scale):
    """Your `guided`, asked about a network whose two answers are known already."""
    with_text, without = {"answer": eps_cond}, {"answer": eps_uncond}
    known = guided(lambda x, t, condition: condition["answer"], with_text, without, scale)
    return known(eps_cond, 0)


# %%
guided = use("guidance.guided", guided)
angles = torch.arange(9) * 2 * torch.pi / 9 + 0.2
CENTRES = 1.5 * torch.stack([angles.cos(), angles.sin()], 1)    # (9,2)
R = 0.15                                                        # spread of a blob
ALLOWED = {"": torch.ones(9), "left": (CENTRES[:, 0] < 0.6).float(), "right": (CENTRES[:, 0] > -0.6).float()}


def exact(x, t, condition):
    """The best eps for x (B,2,1,1), where the centres marked in `allowed` (B,9) may occur."""
    bar = float(levels[int(t)])
    spread = bar * R**2 + 1 - bar
    off = x.flatten(1)[:, None] - bar**0.5 * CENTRES            # (B,9,2)
    weights = (-off.square().sum(-1) / (2 * spread) + condition["allowed"].log()).softmax(-1)  # (B,9)
    x0 = (weights[..., None] * (CENTRES + bar**0.5 * R**2 / spread * off)).sum(1)  # (B,2)
    return ((x.flatten(1) - bar**0.5 * x0) / (1 - bar) ** 0.5).reshape(x.shape)


def points(w, word="left", predict=exact):
    """Samples (POINTS,2) of the word, guided by w."""
    told = [{"allowed": ALLOWED[text].expand(POINTS, 9)} for text in (word, "")]
    start, table = normal(POINTS, 2, 1, 1, seed=1), shipped.schedule
    return samplers.ddim(guided(predict, *told, w), start, table.timesteps(50), schedule=table).flatten(1)


only = (ALLOWED["left"] - ALLOWED["right"]).clamp(min=0).bool()  # centres that are left and not right


def rings(axis, title):
    """A ring around each centre, a thick red one where it is left and not right."""
    axis.scatter(*CENTRES.T, s=60, facecolors="none", linewidths=[2.2 if k else 1.2 for k in only],
                 edgecolors=[RED if k else GREY for k in only])
    axis.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", title=title)


figure, axes = plt.subplots(1, 4, figsize=(8, 2.3))
print("   w  in a blob of left only  distance to the nearest centre  spread")
for axis, w in zip(axes, (0.0, 1.0, 3.0, 7.5), strict=True):
    x = points(w)
    near = torch.cdist(x, CENTRES)
    inside = only[near.argmin(1)].float().mean()
    print(f"{w:4g} {inside:23.0%} {near.min(1).values.mean():31.2f} {x.std(0).norm():7.2f}")
    axis.scatter(*x.T, s=3, color=BLUE, alpha=0.5)
    rings(axis, f"left, w = {w:g}")
plt.show()

# %% [markdown]
# Ringed in red: what is *left* and not *right*. At $w = 1$ samples are spread over all that *left* allows. Guidance prefers
# what no other text explains: 46, then 69, then 85 % lie in the red rings. The price is in the last column, and in the
# picture on the right: points sit on the outer side of their blobs, where hardly any data were. The text counts more often
# than it is true.
#
# ## 2 · A model has to know what nothing is
#
# The second answer, without text, needs a network that was trained without text. One network serves both if in training a
# share $p$ of the captions is replaced by "" (chapter 08; Stable Diffusion 1.5 took 10 %).

# %% [markdown] exercise="guidance.drop_texts" role="prompt"
# ### Exercise 2 · Forget a caption now and then
#
# `drop_texts(texts, p, generator)` returns a new list, in which each text is replaced by "" with probability `p`.
#
# - Each text is decided by itself, whole or not at all, by a number from `torch.rand(..., generator=generator)`.
# - The list that came in stays as it was: its captions are needed again.

# %% exercise="guidance.drop_texts" role="solution"
def drop_texts(texts, p, generator=None):
    """A list of B strings -> one of B strings, some of them empty."""
    ### BEGIN SOLUTION
    draws = torch.rand(len(texts), generator=generator).tolist()
    kept = []
    for text, u in zip(texts, draws, strict=True):
        kept.append("" if u < p else text)
    return kept
    ### END SOLUTION


# %% exercise="guidance.drop_texts" role="check"
check("guidance.drop_texts", drop_texts)

# %% [markdown] exercise="guidance.drop_texts" role="hint"
# One number for each text, uniform in [0, 1).
#
# ---
#
# A uniform number lies below p with probability p.
#
# ---
#
# `["" if u < p else text for text, u in zip(texts, draws)]`

# %%
drop_texts = use("guidance.drop_texts", drop_texts)
WORDS = {"": 0, "left": 1, "right": 2}


class Small(nn.Module):
    """(x (B,2,1,1), t, ids (B,)) -> eps; three layers."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(3, 16)
        self.net = nn.Sequential(nn.Linear(2 + 16 + 2, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(),
                                 nn.Linear(96, 2))

    def forward(self, x, t, ids):
        time = (torch.as_tensor(t).float() / 1000).expand(len(x))[:, None]  # (B,1)
        given = torch.cat([x.flatten(1), self.words(ids), time, time**2], 1)
        return self.net(given).reshape(x.shape)


def trained(p):
    """A network that met the word "" in a share p of its training."""
    torch.manual_seed(0)
    model, g = Small(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(TRAIN):
        texts = ["left" if b else "right" for b in torch.rand(256, generator=g) < 0.5]
        which = torch.multinomial(torch.stack([ALLOWED[text] for text in texts]), 1, generator=g)[:, 0]
        x0 = CENTRES[which] + R * torch.randn(256, 2, generator=g)
        t = torch.randint(1000, (256,), generator=g)
        noise = torch.randn(256, 2, generator=g)
        bar = levels[t].float()[:, None]
        ids = torch.tensor([WORDS[text] for text in drop_texts(texts, p, g)])
        x_t = bar.sqrt() * x0 + (1 - bar).sqrt() * noise        # (256,2)
        loss = (model(x_t[..., None, None], t, ids)[..., 0, 0] - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def error(model, text):
    """How far its answers are from the exact ones, over the levels."""
    which = torch.multinomial(ALLOWED[text], POINTS, True, generator=torch.Generator().manual_seed(3))
    x0 = CENTRES[which] + R * normal(POINTS, 2, seed=4)
    total = 0
    for t in range(50, 1000, 100):
        bar = float(levels[t])
        x = (bar**0.5 * x0 + (1 - bar) ** 0.5 * normal(POINTS, 2, seed=t))[..., None, None]
        truth = exact(x, t, {"allowed": ALLOWED[text].expand(POINTS, 9)})
        total += float((model(x, t, torch.full((POINTS,), WORDS[text])) - truth).square().mean())
    return (total / 10) ** 0.5


figure, axes = plt.subplots(1, 4, figsize=(8, 2.3))
print("   p  error, told left  error, told nothing  w = 3: in a blob of left only")
axes[0].scatter(*points(3.0).T, s=3, color=BLUE, alpha=0.5)
rings(axes[0], "exact, w = 3")
for axis, p in zip(axes[1:], (0.0, 0.1, 0.5), strict=True):
    model = trained(p)

    def asked(x, t, condition, model=model):
        told = condition["allowed"].sum(1) < 9                  # (B,): with nothing said all nine are allowed
        return model(x, t, WORDS["left"] * told.long())

    with torch.no_grad():
        x = points(3.0, predict=asked)
        near = torch.cdist(x, CENTRES)
        share = float((only[near.argmin(1)] & (near.min(1).values < 3 * R)).float().mean())
        print(f"{p:4g} {error(model, 'left'):17.3f} {error(model, ''):20.3f} {share:30.0%}")
    axis.scatter(*x.T, s=3, color=BLUE, alpha=0.5)
    rings(axis, f"p = {p:g}, w = 3")
plt.show()

# %% [markdown]
# A network that never met "" ($p = 0$) answers it with an error of 0.56, and guidance multiplies that: nothing arrives. A
# tenth mends it. One might expect that a half spoils the told answers; here it does not, for the plane is easy. Crescents in
# place of blobs are the small network's own.
#
# ## 3 · How much
#
# Back to pictures. Below, `draw` is the course's sampler around *your* guidance. The prompts are of two and three objects
# that the model was not trained on; the oracle reads every picture, and a picture is right if all that was said is there:
# count, shapes, colours, sizes, places, ground. All settings share prompts and noise.

# %%
def latents(prompts, seeds, w=1.5, negative=None, steps=STEPS, answer=None):
    """z_0 (B,c,h,w); `answer(plain, strong)` makes a denoiser of the two; none means the strong one alone."""
    cond, uncond = shipped.conditions(prompts, negative, 64, 64)
    plain, strong = (lambda x, t: shipped.predict(x, t, cond)), guided(shipped.predict, cond, uncond, w)
    says = answer(plain, strong) if answer else strong
    start = torch.cat([normal(1, *shipped.latent_shape(64, 64), seed=s) for s in seeds]).to(session.device)
    with torch.no_grad():
        return samplers.ddim(lambda x, t: shipped.schedule.to_eps(x, says(x, t), t, given="v"), start,
                             shipped.schedule.timesteps(steps), schedule=shipped.schedule)


def draw(*given, **how):
    """Pictures (B,3,64,64)."""
    return shipped.decode(latents(*given, **how)).cpu()


def right(pictures, prompts):
    """For each picture: does it show all that was asked for?"""
    readings = oracle.read(pictures)
    return [oracle.heeds(r, captions.parse(p))["all"] for r, p in zip(readings, prompts, strict=True)]


unseen = Scenes(64, "test", objects=(2, 3), textures=("plain",), degraded=0.0)
hard, seeds = unseen.captions(range(PROMPTS), full=True), range(PROMPTS)
swept = {w: draw(hard, seeds, w) for w in SCALES}
by_scale = {w: sum(right(pictures, hard)) for w, pictures in swept.items()}
by_steps = {n: by_scale[1.5] if n == STEPS and 1.5 in by_scale
            else sum(right(draw(hard, seeds, 1.5, steps=n), hard)) for n in COUNTS}
figure, axes = plt.subplots(1, 2, figsize=(8, 2.7), sharey=True)
for axis, found, label in ((axes[0], by_scale, "guidance scale w"), (axes[1], by_steps, "steps, at w = 1.5")):
    bands = [wilson(n, PROMPTS) for n in found.values()]
    axis.plot(list(found), [n / PROMPTS for n in found.values()], color=BLUE, marker="o")
    axis.fill_between(list(found), *zip(*bands, strict=True), color=BLUE, alpha=0.2, lw=0)
    axis.set(xlabel=label, ylim=(-0.03, 1.03))
axes[0].axvspan(7, 12, color=ORANGE, alpha=0.2, lw=0)
axes[1].axvspan(20, 50, color=ORANGE, alpha=0.2, lw=0)
axes[1].set_xscale("log", base=10)
axes[1].set_xticks(COUNTS, COUNTS)
axes[1].minorticks_off()
axes[0].set_ylabel("share right")
plt.show()
for name, unit, found in (("w", f"at {STEPS} steps", by_scale), ("steps", "at w = 1.5", by_steps)):
    print(f"{name:>5s}  right, of {PROMPTS}    95 % interval   {unit}")
    for k, n in found.items():
        low, high = wilson(n, PROMPTS)
        print(f"{k:5g} {n:13d} {low:8.0%} to {high:4.0%}")

# %% [markdown]
# (Orange: what the article recommends. Bands: 95 % intervals.) At 1.5 there are 28 right, at w = 1 there are 24:
# within chance. At 12 there are 7, and that is not. Five steps do about as well as fifty.
#
# | | measure | w, and what it gave | at which scale |
# |---|---|---|---|
# | here | share right | printed above | 64 × 64, course's model, 32 prompts |
# | Rombach et al. (2022), table 2 | FID | 1: 23.31, 1.5: **12.63** | 256 × 256, COCO, 250 steps, 1.45 billion parameters |
# | Stable Diffusion 1.4, its card | FID | 1.5: 22.4, 3: **15.6**, 8: 20.9 | 512 × 512, COCO, 50 steps; read from a plot |
# | the same | CLIP score | 1.5: 0.240, 3: 0.258, 8: **0.266** | |
#
# > **The article says** (section 9.3) 7 to 12 for the scale and 20 to 50 steps, the more the better, **but** this model is
# > best at 1.5 and gets 7 of 32 at 12, and 10, 20 and 50 steps all get 28. Stable Diffusion's own card has its best FID
# > at 3, while the CLIP score still rises at 8. Both numbers belong to a model, a sampler and a measure. (FID: chapter 12.)
#
# ## 4 · Where
#
# At high noise a step decides what is drawn, at low noise how its edges look. Kynkäänniemi et al. (2024) find that
# guidance at the highest levels makes all pictures of a prompt alike, and at the lowest ones does nothing: guide in between.
# Levels are named by $\sigma$, noise over signal, which does not depend on how many steps a schedule has:
#
# $$\sigma_t = \sqrt{\frac{1 - \bar\alpha_t}{\bar\alpha_t}}$$

# %% [markdown] exercise="guidance.limited" role="prompt"
# ### Exercise 3 · An interval
#
# `limited(plain, guided, alphas_cumprod, sigma_low, sigma_high)` returns `denoiser(x, t)`: the guided one's answer where
# `sigma_low` $\le \sigma_t \le$ `sigma_high`, the plain one's elsewhere.
#
# - `plain` and `guided` are denoisers, (x, t) → (B,C,H,W); `alphas_cumprod` is (T,), `t` a number that `int(t)` makes an
#   index.
# - Ask only the one that answers: outside the interval a pass is saved.

# %% exercise="guidance.limited" role="solution"
def limited(plain, guided, alphas_cumprod, sigma_low, sigma_high):
    """(x, t) -> guided between two noise levels, plain outside."""
    ### BEGIN SOLUTION
    def denoiser(x, t):
        alpha_bar = float(alphas_cumprod[int(t)])
        sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
        if sigma_low <= sigma <= sigma_high:
            return guided(x, t)
        return plain(x, t)

    return denoiser
    ### END SOLUTION


# %% exercise="guidance.limited" role="check"
check("guidance.limited", limited)

# %% [markdown] exercise="guidance.limited" role="hint"
# Again a function that returns a function.
#
# ---
#
# `float(alphas_cumprod[int(t)])` is one number; compute $\sigma$ from it.
#
# ---
#
# `if sigma_low <= sigma <= sigma_high: return guided(x, t)`, else `return plain(x, t)`.

# %% [markdown]
# A second remedy is for what large $w$ does to the *size* of an answer: extrapolated, it has a larger spread than any answer
# the network gives, and colours leave their range. Lin et al. (2023, equations 15 and 16) bring the spread of each picture
# back to that of the conditional answer, and mix:
#
# $$\tilde v \leftarrow \phi\; \tilde v\, \frac{\operatorname{std}(v_c)}{\operatorname{std}(\tilde v)} + (1 - \phi)\, \tilde v$$

# %% [markdown] exercise="guidance.rescaled" role="prompt"
# ### Exercise 4 · The spread of an answer
#
# `rescaled(guided, cond, share)` returns the mixture, (B,C,H,W); `share` is $\phi$.
#
# - `guided` and `cond` are both (B,C,H,W). The standard deviation is over all values of *one* picture, each picture by
#   itself: (B,1,1,1).

# %% exercise="guidance.rescaled" role="solution"
def rescaled(guided, cond, share):
    """`guided` with the spread of `cond`, mixed with itself; (B,C,H,W), (B,C,H,W) -> (B,C,H,W)."""
    ### BEGIN SOLUTION
    spread = guided.std(dim=(1, 2, 3), keepdim=True)            # (B,1,1,1)
    wanted = cond.std(dim=(1, 2, 3), keepdim=True)              # (B,1,1,1)
    brought_back = guided * wanted / spread
    mixture = share * brought_back + (1 - share) * guided
    return mixture
    ### END SOLUTION


# %% exercise="guidance.rescaled" role="check"
check("guidance.rescaled", rescaled)

# %% [markdown] exercise="guidance.rescaled" role="hint"
# `x.std(dim=(1, 2, 3), keepdim=True)` is one number for each picture, ready to be broadcast.
#
# ---
#
# The factor is what is wanted over what there is.
#
# ---
#
# `share * guided * wanted / spread + (1 - share) * guided`

# %% [markdown]
# To measure what is lost, a prompt that leaves the ground open. How many bits of choice are left over many seeds, $-\sum_k
# p_k \log_2 p_k$ over the grounds that the oracle reads (six grounds alike would be 2.58)? And what is the spread of the
# latents?

# %%
limited = use("guidance.limited", limited)
rescaled = use("guidance.rescaled", rescaled)
OPEN = "a large red circle in the center"


def bits(things):
    return -sum(n / len(things) * log2(n / len(things)) for n in Counter(things).values())


def with_rescale(plain, strong):
    return lambda x, t: rescaled(strong(x, t), plain(x, t), 0.7)


arms = {"w = 1": (1.0, None), "w = 1.5": (1.5, None), "w = 7.5": (7.5, None),
        "between": (7.5, lambda plain, strong: limited(plain, strong, levels, 0.3, 5.0)),
        "rescaled": (7.5, with_rescale)}
shown = {}
print(f"{'':10s} right  bits of choice  spread of z_0    hard prompts: right")
for title, (w, answer) in arms.items():
    z = latents([OPEN] * PROMPTS, seeds, w, answer=answer)
    pictures = shipped.decode(z).cpu()
    choice = [reading.background for reading in oracle.read(pictures)]
    told = sum(right(swept[w] if answer is None and w in swept else draw(hard, seeds, w, answer=answer), hard))
    shown[title] = pictures[:8]
    kept = sum(right(pictures, [OPEN] * PROMPTS))
    print(f"{title:10s} {kept:5d} {bits(choice):15.2f} {float(z.std()):14.2f} {told:22d}   of {PROMPTS}")
strip(shown.values(), [""] * 8, list(shown), width=6.4)

# %% [markdown]
# At 7.5 nearly every ground is mint or near white: of 2.5 bits 1.1 are left. The interval, 0.3 to 5, gives back a part, and
# its hard prompts get *worse*, 14 right for 20: that part of the claim failed here, with this interval. Rescaling gives no
# choice back, and brings the hard prompts from 20 to 25. Neither is as good as a smaller $w$.
#
# ## 5 · Two instruments
#
# Before testing prompts, two instruments. *How sharp* is a picture? Summing the differences of neighbours does not tell: a
# blur spreads an edge of height $h$ over $k$ pixels, and $k$ steps of $h/k$ have the same sum. Squares do: $k\,(h/k)^2 =
# h^2/k$. Their ratio is the mean steepness of the edges, however many there are:
#
# $$\text{sharpness} = \frac{\sum d^2}{\sum |d|} \qquad d = \text{steps to neighbours, across and down, of the grey picture}$$

# %% [markdown] exercise="prompts.sharpness" role="prompt"
# ### Exercise 5 · How steep are the edges?
#
# `sharpness(images)` returns (B,), one number for each picture of (B,3,H,W).
#
# - Grey is the mean of the three channels. The steps across, (B,H,W-1), and down, (B,H-1,W), enter the same two sums.
# - An even picture has the sharpness 0: keep the sum below from being 0 by `.clamp(min=1e-8)`.

# %% exercise="prompts.sharpness" role="solution"
def sharpness(images):
    """Mean steepness of the edges; (B,3,H,W) -> (B,)."""
    ### BEGIN SOLUTION
    gray = images.mean(dim=1)                                   # (B,H,W)
    across = gray[:, :, 1:] - gray[:, :, :-1]                   # (B,H,W-1)
    down = gray[:, 1:, :] - gray[:, :-1, :]                     # (B,H-1,W)
    steps = torch.cat([across.flatten(1), down.flatten(1)], dim=1)
    return steps.square().sum(dim=1) / steps.abs().sum(dim=1).clamp(min=1e-8)
    ### END SOLUTION


# %% exercise="prompts.sharpness" role="check"
check("prompts.sharpness", sharpness)

# %% [markdown] exercise="prompts.sharpness" role="hint"
# `gray[:, :, 1:] - gray[:, :, :-1]` are all steps across.
#
# ---
#
# `.flatten(1)` makes a row of each picture; then steps across and down can be joined.
#
# ---
#
# `steps.square().sum(1) / steps.abs().sum(1).clamp(min=1e-8)`

# %% [markdown]
# *Did a change help?* Two settings share prompt and noise, so compare picture by picture. Pictures that are right under
# both, or wrong under both, say nothing. Of the $n$ that changed, $g$ were gained and $n - g$ lost; if the change did
# nothing, each is a fair coin. The p-value is the chance of a split at least as uneven (McNemar's exact test):
#
# $$p = \min\Big(1,\; 2 \sum_{k=0}^{\min(g,\,n-g)} \binom{n}{k}\, 2^{-n}\Big)$$

# %% [markdown] exercise="prompts.paired" role="prompt"
# ### Exercise 6 · Fair coins
#
# `paired(before, after)` returns `(gained, lost, p)` for two lists of booleans, right or not, in the same order.
#
# - `gained`: wrong before, right after; `lost`: the other way round. `math.comb(n, k)` is the binomial coefficient.
# - Where nothing changed p is 1.

# %% exercise="prompts.paired" role="solution"
def paired(before, after):
    """Two lists of bool -> (gained, lost, two-sided p)."""
    ### BEGIN SOLUTION
    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    n = gained + lost
    tail = sum(comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return gained, lost, min(1.0, 2 * tail)
    ### END SOLUTION


# %% exercise="prompts.paired" role="check"
check("prompts.paired", paired)

# %% [markdown] exercise="prompts.paired" role="hint"
# Only pictures that changed count: n is gained plus lost.
#
# ---
#
# The smaller of the two numbers is the tail's end, itself included: `range(min(gained, lost) + 1)`.
#
# ---
#
# `min(1.0, 2 * sum(comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)`

# %% [markdown]
# ## 6 · Does it help to ask nicely?
#
# The article's section 9.1 calls a prompt good that adds "highly detailed, 8k resolution, professional photography ...".
# Our captions hold quality words, too: a tenth of the training pictures is blurred, noisy, cropped or watermarked, and is
# captioned so; of the others some are called "sharp". First the instrument on pictures that we know, then the model:

# %%
sharpness = use("prompts.sharpness", sharpness)
paired = use("prompts.paired", paired)
sources = Scenes(64, degraded=0.5)
known = {"clean": [], "blurry": [], "noisy": []}
for i in range(12 if session.profile == "quick" else 80):
    item = sources.batch([i])
    if (how := item["scene"][0].degradation or "clean") in known:
        known[how].append(float(sharpness(item["image"])[0]))
means = {how: sum(values) / max(len(values), 1) for how, values in known.items()}
print("sharpness of drawn scenes:", ", ".join(f"{how} {mean:.2f}" for how, mean in means.items()))

two = Scenes(64, "test", objects=(2, 2), textures=("plain",), degraded=0.0).captions(range(PROMPTS), full=True)
ways = {"as it is": ("{}", None), "a sharp picture of": ("a sharp picture of {}", None),
        "a blurry picture of": ("a blurry picture of {}", None),
        "highly detailed, 8k": ("{}, highly detailed, 8k", None),
        "negative: blurry": ("{}", "a blurry picture"),
        "blurry, negative: blurry": ("a blurry picture of {}", "a blurry picture")}
base, examples = None, {}
print(f"\n{'':26s} right  gained  lost      p   sharpness")
for title, (frame, negative) in ways.items():
    asked = [frame.format(line) for line in two]
    assert not any(map(shipped.tokenizer.cut_off, asked)), "a prompt is too long"
    pictures = draw(asked, seeds, 3.0, negative)
    found = right(pictures, two)
    base = base or found
    gained, lost, p = paired(base, found)
    examples[title] = pictures[:6]
    print(f"{title:26s} {sum(found):5d} {gained:7d} {lost:5d} {p:6.2f} {sharpness(pictures).mean():11.2f}")
short = {"as it is": "as it is", "a blurry picture of": "blurry", "highly detailed, 8k": "8k",
         "negative: blurry": "negative"}
strip([examples[title] for title in short], [""] * 6, list(short.values()), width=5.2)

# %% [markdown]
# The instrument can tell. *Blurry* is understood: edges lose half of their steepness, and half of the pictures can no longer
# be read. *Sharp* is not its opposite: edges get no steeper, and 9 pictures are lost for one that is gained. The captions
# called some pictures sharp that were like all others, so the word could teach nothing. Words that nobody taught may harm
# (p = 0.11: it may be chance). A negative *blurry* does steepen the edges, and ruins the rest.
#
# > **The article says** (sections 9.1 and 9.2) that "highly detailed, 8k" makes a prompt good and a negative "blurry" a
# > picture better, **but** here the first loses 8 pictures and gains 2, the second loses 24 and gains 1. A large
# > model has seen such words beside pictures that people liked; whether they help there is the same experiment with
# > another judge.
#
# Ask for something yourself: any words, at $w = 3$ and always from one noise. (A page that was only executed shows four
# prompts.)

# %%
def ask(prompts):
    """A picture of each prompt from the noise of seed 3, and what the oracle reads in it."""
    pictures = draw(prompts, [3] * len(prompts), 3.0)
    strip([pictures], range(1, len(prompts) + 1), width=1.6 * len(prompts))
    for number, (prompt, reading) in enumerate(zip(prompts, oracle.read(pictures), strict=True), start=1):
        things = [" ".join(word or "?" for word in (o.size, o.color, o.shape, o.position)) for o in reading.objects]
        print(f"{number}. {prompt}\n   read: {', '.join(things) or 'nothing'} on {reading.background}")


prompt_box(ask, ["a large green star on the left on a cream background",
                 "a large green star not on the left on a cream background",
                 "two large green stars on a cream background", "a photograph of an astronaut on a horse"])

# %% [markdown]
# It was taught neither *not* nor *two* nor horses, and draws what is left of the sentence: the star stays on the left, "stars"
# is not its word "star", and the astronaut is a brown blot on sky blue.
#
# ## 7 · Instead of nothing
#
# A negative prompt is no new mechanism: it takes the place of "" in the difference. Guidance then leads *away* from it.
# Whether that works like "not" can be counted: let the prompt leave the ground open, and name one ground as negative.

# %%
grounds = {}
negatives = {"none": None, "on white": f"{OPEN} on a white background",
             "on pink": f"{OPEN} on a pink background", "white background": "a white background"}
for title, negative in negatives.items():
    pictures = draw([OPEN] * PROMPTS, range(PROMPTS), 3.0, negative)
    found = Counter(r.background or "unread" for r in oracle.read(pictures))
    grounds[title] = [found[g] for g in ("white", "gray", "pink", "cream", "mint", "sky", "unread")]
    grounds[title].append(sum(right(pictures, [OPEN] * PROMPTS)))
print(f"{'negative prompt':18s} white  gray  pink cream  mint   sky unread   right, of {PROMPTS}")
for title, found in grounds.items():
    print(f"{title:18s}", *[f"{n:5d}" for n in found[:-2]], f"{found[-2]:6d} {found[-1]:14d}")

# %% [markdown]
# It is a *not*: white falls from 20 pictures to 1. But what comes instead is no fair draw from the rest. Away from white, of
# all grounds the lightest, is nearly always gray; away from pink, which two pictures had, is mint, and the white ones go,
# too. A negative prompt is a direction to leave in, not an option crossed out.
#
# ## 8 · Your guidance in the library

# %%
with parts.swapped({"guidance.classifier_free_guidance": classifier_free_guidance}):
    yours = StableDiffusion.load("scenes64").to(session.device)
both = [p.decode(p.latents(PROMPT, steps=STEPS, seed=1, guidance_scale=3.0)) for p in (shipped, yours)]
difference = 127.5 * (both[0] - both[1]).abs().max()
print(f"largest difference to the library's picture: {difference:.2f} of 255")

# %% [markdown]
# ## Questions to think about
#
# 1. In the plane guided points overshoot their blobs. Why does the formula at *each* noise level not add up to samples of
#    $p(x)\,p(c \mid x)^w$?
# 2. Which $w$ would make a model draw anything *but* the caption? What is its sign, and what would the picture be of?
# 3. A distilled model (the library's `scenes64-fast`, chapter 16) answers for a fixed $w$ in one pass. What can its user
#    no longer do?
# 4. The interval left out $\sigma > 5$. What is decided up there that the hard prompts miss? Which interval would you try?
# 5. Of twenty quality words one has p = 0.04. How much would you bet on it?
#
# ## Recap
#
# - Guidance is a line through two answers, $w$ says how far; $w = 1$ is the plain model, 7.5 is Ho and Salimans' 6.5.
# - The second answer has to be learned: drop the caption in one case of ten.
# - It counts the text $w$ times: more adherence, less choice, larger answers.
# - An interval of noise levels and a rescaled spread mend part of it, and are a few lines each.
# - A negative prompt replaces "". A word means what the training captions made it mean.
# - Compare in pairs, count what changed, and say p.
#
# **Next**, chapter 11 puts all parts together: Stable Diffusion whole, with its 859,520,964 parameters.
