# %% [markdown]
# # 04 · Vector quantisation
#
# The latents of chapter 02 are numbers. Here they become words, each the nearest entry of a learned book.
#
# **You will be able to**
#
# - find the nearest of thousands of codes, and pass a gradient through that choice;
# - say which term of the loss moves whom, and teach a codebook by gradient or by running averages;
# - watch codes die, measure it, and revive them;
# - count the bits of a latent, and compare codes with the KL latents of chapter 02;
# - measure what a codebook does to the small errors of a diffusion model.
#
# **Time** about 2.5 hours, of which 95 minutes are exercises. **You need** tensors, `permute`, autograd; chapter 02 for
# the KL autoencoder. No GPU; two small autoencoders are trained at the end. **In the library** this chapter is
# `course/vq.py`; in the article, section 2.4.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from course import parts, presets, vae, vq
from course.classroom import begin, check, figure_style, use
from course.data import Scenes

session = begin(needs="0.1", seed=4)
PICTURES = {"quick": 48, "cpu": 256, "gpu": 1024}[session.profile]  # to learn words from
ROUNDS = {"quick": 8, "cpu": 60, "gpu": 200}[session.profile]  # of learning words
STEPS = {"quick": 6, "cpu": 900, "gpu": 6000}[session.profile]  # of training an autoencoder
HELD_OUT = {"quick": 16, "cpu": 256, "gpu": 1024}[session.profile]  # pictures to measure on

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


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arrow(axis, start, end, color):
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": color})


def psnr(x, y):
    """Mean over pictures, in dB; values lie in [-1, 1], so the peak is 2."""
    return float(-10 * torch.log10((x - y).square().flatten(1).mean(1) / 4).mean())


# %% [markdown]
# ## A picture in words
#
# Cut a picture into patches of 4 × 4 pixels, take a list of K patches from other pictures, and replace each patch by
# the one on the list that is most like it. Then one number below K stands for each patch.

# %%
def to_patches(x):
    return F.pixel_unshuffle(x, 4)                              # (B,3,H,W) -> (B,48,H/4,W/4)


def to_picture(z):
    return F.pixel_shuffle(z, 4)                                # and back


train, test = Scenes(64, degraded=0.0), Scenes(64, split="test", degraded=0.0)
words = to_patches(train.images(range(PICTURES))).permute(0, 2, 3, 1).reshape(-1, 48)  # (N,48)
words = words[torch.randperm(len(words), generator=torch.Generator().manual_seed(0))]
shown = test.images([86])                                       # (1,3,64,64)
rows = to_patches(shown).permute(0, 2, 3, 1)                    # (1,16,16,48)
versions = [shown]
for K in (4, 32, 256, 2048):
    choice = torch.cdist(rows.reshape(-1, 48), words[:K]).argmin(1)  # (256,)
    versions.append(to_picture(words[choice].reshape(rows.shape).permute(0, 3, 1, 2)))
strip([torch.cat(versions)], ["original", *[f"K = {K}" for K in (4, 32, 256, 2048)]])

# %% [markdown]
# A number below K takes $\log_2 K$ bits: 2, 5, 8 and 11 for a patch, which has 384 in the original. These patches were
# drawn at random, so most are background. Three things would help: a *learned* list, a network before and after it,
# and care that no place on the list is wasted. That is a VQ-VAE (van den Oord et al. 2017), the first stage of many
# latent diffusion models.
# ## 1 · The nearest code
#
# An encoder gives $z$ of shape (B,c,h,w): at each position a vector of $c$ numbers. The *codebook* holds K vectors of
# this length, the *codes* $e_j$. Quantising means
#
# $$q(z) = e_k \qquad k = \operatorname*{argmin}_j \lVert z - e_j\rVert^2 \qquad
# \lVert z - e_j\rVert^2 = \lVert z\rVert^2 - 2\,z\cdot e_j + \lVert e_j\rVert^2$$
#
# at every position by itself. Taken literally, $z - e_j$ is a tensor of N × K × c numbers, N = B h w. The expanded
# form needs one matrix product and N × K numbers; and $\lVert z \rVert^2$ is the same for all $j$, so it has no say.
# %% [markdown] exercise="vq.nearest" role="prompt"
# ### Exercise 1 · Which code
#
# `nearest(z, codebook)` returns the index of the nearest code at each position.
#
# - `z`: (B,c,h,w); `codebook`: (K,c); the result is int64 (B,h,w).
# - Use the expanded form: no tensor of N × K × c numbers.

# %% exercise="vq.nearest" role="solution"
def nearest(z, codebook):
    """The code nearest to each position; (B,c,h,w), (K,c) -> (B,h,w) int64."""
    ### BEGIN SOLUTION
    B, c, h, w = z.shape
    flat = z.permute(0, 2, 3, 1).reshape(-1, c)                 # (N,c), N = B h w
    product = flat @ codebook.T                                 # (N,K)
    length = codebook.square().sum(dim=1)                       # (K,)
    indices = (length - 2 * product).argmin(dim=1)              # (N,)
    return indices.reshape(B, h, w)
    ### END SOLUTION


# %% exercise="vq.nearest" role="check"
check("vq.nearest", nearest)

# %% [markdown] exercise="vq.nearest" role="hint"
# The channels of one position must become one row. A `reshape` alone cannot do that: it keeps the order of the numbers
# in memory, where neighbours in the picture are neighbours, not the channels.
#
# ---
#
# `z.permute(0, 2, 3, 1)` is (B,h,w,c); then `.reshape(-1, c)`. `flat @ codebook.T` holds all products $z\cdot e_j$.
#
# ---
#
# `(codebook.square().sum(1) - 2 * flat @ codebook.T).argmin(1).reshape(B, h, w)`

# %%
nearest = use("vq.nearest", nearest)
few = random(9, 2, seed=3)                                      # nine codes in the plane
line = torch.linspace(-3, 3, 241)
plane = torch.stack(torch.meshgrid(line, line, indexing="xy"))[None]  # (1,2,241,241): every point of the plane
some = 1.1 * random(1, 2, 5, 6, seed=5)                         # 30 vectors z
figure, axis = plt.subplots(figsize=(4.2, 4.2))
axis.imshow(nearest(plane, few)[0], extent=(-3, 3, -3, 3), origin="lower", cmap="Pastel1", interpolation="nearest")
for point, k in zip(some[0].flatten(1).T, nearest(some, few).flatten(), strict=True):
    axis.plot(*torch.stack([point, few[k]]).T, color=GREY, lw=0.8)
axis.plot(*some[0].flatten(1), ".", color=BLUE, label="z")
axis.plot(*few.T, "*", color=RED, ms=12, label="codes")
axis.set(title="every z goes to the code of its cell", xlim=(-3, 3), ylim=(-3, 3))
axis.legend(loc="lower left")
plt.show()
N, K, c = 64 * 64, 8192, 3                                      # one 256 × 256 picture in the paper's VQ-f4
print(f"VQ-f4, one picture of 256 × 256: N × K × c takes {4 * N * K * c / 1e6:.0f} MB, N × K {4 * N * K / 1e6:.0f} MB")

# %% [markdown]
# The book divides space into cells, and whatever falls into a cell becomes the same. That loses information; what is
# left can be written down as an index.
# ## 2 · A step has no slope
#
# Between two borders $q(z)$ is constant and its derivative 0; on a border it jumps. So the decoder's complaint never
# reaches the encoder. The way out is the *straight-through* gradient (Bengio et al. 2013): forward, take the code;
# backward, pretend that $q$ was the identity,
#
# $$z_q = z + \mathrm{sg}[e_k - z]$$
#
# where $\mathrm{sg}$, *stop-gradient*, is the identity forward and has derivative 0; in torch, `.detach()`.

# %% [markdown] exercise="vq.quantize" role="prompt"
# ### Exercise 2 · Look up, and let the gradient through
#
# `quantize(z, codebook, indices)` returns `(z_q, codes)`, both (B,c,h,w).
#
# - `codes`: the rows of `codebook` that `indices` (B,h,w) names; its gradient goes to the codebook.
# - `z_q`: the same *values*, but the gradient goes to `z`, unchanged, and nowhere else.

# %% exercise="vq.quantize" role="solution"
def quantize(z, codebook, indices):
    """(z_q, codes): equal values, gradient to z and to the codebook; (B,c,h,w), (K,c), (B,h,w) -> twice (B,c,h,w)."""
    ### BEGIN SOLUTION
    rows = codebook[indices]                                    # (B,h,w,c)
    codes = rows.permute(0, 3, 1, 2)                            # (B,c,h,w)
    gap = (codes - z).detach()                                  # a constant
    z_q = z + gap
    return z_q, codes
    ### END SOLUTION


# %% exercise="vq.quantize" role="check"
check("vq.quantize", quantize)

# %% [markdown] exercise="vq.quantize" role="hint"
# Indexing a (K,c) tensor with a (B,h,w) tensor gives (B,h,w,c). Where do the channels belong?
#
# ---
#
# `permute(0, 3, 1, 2)`, never `reshape`. For `z_q`, write something whose value is `codes` and whose derivative by `z`
# is 1.
#
# ---
#
# `z + (codes - z).detach()`: the values of z cancel, and autograd sees `z` plus a constant.

# %%
quantize = use("vq.quantize", quantize)
ladder, target = torch.arange(-2.0, 3.0)[:, None], 1.25         # five codes on a line; the decoder would like 1.25
z = torch.linspace(-2.4, 2.4, 13).reshape(1, 1, 1, 13)
gradients = {}
for name, which in (("straight through", 0), ("true", 1)):
    z.requires_grad_().grad = None
    result = quantize(z, ladder, nearest(z, ladder))[which]
    loss = (result - target).square().sum() + 0 * z.sum()       # + 0: so that z is in the graph in both cases
    gradients[name], = torch.autograd.grad(loss, z)
    print(f"{name:17s}", *[f"{g:6.2f}" for g in gradients[name].flatten()])

fine = torch.linspace(-2.5, 2.5, 501)
step = ladder.flatten()[nearest(fine.reshape(1, 1, 1, -1), ladder).flatten()]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9))
left.plot(fine, step, color=BLUE, label="q(z): forward")
left.plot(fine, fine, color=ORANGE, ls="--", label="identity: backward")
left.set(xlabel="z", title="the step and its replacement")
right.plot(fine, (step - target) ** 2, color=BLUE, label="loss through q")
right.axvline(target, color=GREY, ls=":", label="target")
at, height = z.detach().flatten(), (quantize(z, ladder, nearest(z, ladder))[1].detach().flatten() - target) ** 2
for x, y, g in zip(at, height, gradients["straight through"].flatten(), strict=True):
    arrow(right, (float(x), float(y)), (float(x - 0.07 * g), float(y)), ORANGE)
right.set(xlabel="z", title="arrows: where the gradient pushes z", ylim=(-0.7, 12))
left.legend()
right.legend(loc="center right")
plt.show()

# %% [markdown]
# The true gradient is 0 everywhere: an encoder would stay as it was made. The straight-through gradient is the slope
# that the decoder sees *at the code*, and it points the right way. Left of 1.5, where the code is 1, it pushes $z$
# right; right of it, where the code is 2, it pushes $z$ left. Something else has to make $z$ settle.
# ## 3 · Who moves whom
#
# The decoder's loss moves the decoder and, straight through, the encoder, but not the codes. Two more terms do:
#
# $$L = \underbrace{\lVert \mathrm{sg}[z] - e\rVert^2}_{\text{codebook: moves } e}
# + \beta\,\underbrace{\lVert z - \mathrm{sg}[e]\rVert^2}_{\text{commitment: moves } z} \qquad \beta = 0.25$$
#
# The first pulls a code to the vectors that chose it. The second keeps an encoder from running away from its code;
# with $\beta < 1$ the book follows the encoder more than the encoder the book.
# %% [markdown] exercise="vq.codebook_loss" role="prompt"
# ### Exercise 3 · Two pulls
#
# `codebook_loss(z, codes, beta, legacy)` returns one number.
#
# - `z`, `codes`: (B,c,h,w). Squares are *averaged* over all values.
# - `legacy=False`: as in the formula. `legacy=True`: $\beta$ on the codebook's term, 1 on the commitment.

# %% exercise="vq.codebook_loss" role="solution"
def codebook_loss(z, codes, beta=0.25, legacy=False):
    """Codebook and commitment loss, a scalar; (B,c,h,w), (B,c,h,w)."""
    ### BEGIN SOLUTION
    codebook = F.mse_loss(codes, z.detach())                    # moves the codes
    commitment = F.mse_loss(z, codes.detach())                  # moves z
    if legacy:
        return beta * codebook + commitment
    return codebook + beta * commitment
    ### END SOLUTION


# %% exercise="vq.codebook_loss" role="check"
check("vq.codebook_loss", codebook_loss)

# %% [markdown] exercise="vq.codebook_loss" role="hint"
# Both terms have the same value. They differ in which of the two is detached.
#
# ---
#
# `F.mse_loss(a, b)` averages over all values. The codebook's term moves the codes, so there `z` is the constant.
#
# ---
#
# `F.mse_loss(codes, z.detach()) + beta * F.mse_loss(z, codes.detach())`; exchange the factors for `legacy`.

# %%
codebook_loss = use("vq.codebook_loss", codebook_loss)
cases = {"codebook term alone": (0.0, False), "commitment alone": (0.0, True), "both, β = 0.25": (0.25, False),
         "both, legacy order": (0.25, True)}
figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.5), sharex=True, sharey=True)
some = torch.tensor([[1.0, 0.6], [-1.2, -0.4]]).repeat(5, 1) + 0.4 * random(10, 2, seed=1)  # (10,2): two heaps
some = some.T.reshape(1, 2, 2, 5)
pair = torch.tensor([[0.2, 1.3], [-0.5, -1.2]])
for axis, (name, (beta, legacy)) in zip(axes, cases.items(), strict=True):
    z, book = some.clone().requires_grad_(), pair.clone().requires_grad_()
    loss = codebook_loss(z, quantize(z, book, nearest(z, book))[1], beta, legacy)
    to_z, to_book = torch.autograd.grad(loss, (z, book))
    points, pulls = z[0].detach().flatten(1).T, -8 * to_z[0].flatten(1).T  # (10,2)
    axis.plot(*points.T, ".", color=BLUE)
    axis.plot(*pair.T, "*", color=RED, ms=11)
    for place, pull in zip([*points, *pair], [*pulls, *(-2 * to_book)], strict=True):
        if pull.norm() > 1e-6:
            arrow(axis, place.tolist(), (place + pull).tolist(), GREY)
    axis.set_title(name, fontsize=10)
    print(f"{name:20s} loss {loss.detach():.3f}, gradient at z {to_z.norm():.3f}, at the codes {to_book.norm():.3f}")
plt.show()

# %% [markdown]
# Stars are codes, dots are $z$ (arrows from dots are drawn four times longer). The printed loss is the same in either
# order of $\beta$: **the value of this loss does not tell which one you have**, only the gradients do. So the other
# order could slip into the released code of VQGAN, where it stayed for compatibility under the name `legacy`; it is
# the default of the diffusers library too.
#
# Does it matter? The codes get their gradient from this term alone, and Adam divides a gradient by its own typical
# size, so that a constant factor cancels:
# %%
for optimiser, lr in ((torch.optim.SGD, 0.1), (torch.optim.Adam, 0.01)):
    moved = []
    for legacy in (False, True):
        book = pair.clone().requires_grad_()
        steps = optimiser([book], lr=lr)
        for _ in range(5):
            steps.zero_grad()
            codebook_loss(some, quantize(some, book, nearest(some, book))[1], 0.25, legacy).backward()
            steps.step()
        moved.append(float((book.detach() - pair).norm()))
    print(f"{optimiser.__name__:4s}: the codes have moved by {moved[0]:.3f}; in the legacy order by {moved[1]:.3f}")

# %% [markdown]
# Under Adam the legacy order leaves the codes' speed as it is and makes the commitment four times stronger against the
# decoder's loss. Van den Oord et al. saw no difference for $\beta$ between 0.1 and 2.0.
# ## 4 · Running averages
#
# For fixed choices the codebook term is least where each code is the *mean* of the $z$ that chose it. There is no need
# to creep there by gradient: keep a running count $n_k$ and a running sum $m_k$ for each code, and divide,
# $$n_k \leftarrow \gamma\,n_k + (1-\gamma)\,\bigl|\{i : k_i = k\}\bigr| \qquad
# m_k \leftarrow \gamma\,m_k + (1-\gamma) \sum_{i:\,k_i = k} z_i \qquad e_k = m_k / n_k$$
#
# (van den Oord et al., appendix A.1). At $\gamma = 0$ this is a round of k-means on the batch; $\gamma = 0.99$
# remembers about a hundred batches. The codebook term then leaves the loss, and the codes leave the optimiser.
# %% [markdown] exercise="vq.ema_update" role="prompt"
# ### Exercise 4 · The book follows its readers
#
# `ema_update(codebook, count, total, flat, indices, decay)` returns the new `(codebook, count, total)`.
#
# - `codebook`, `total`: (K,c); `count`: (K,); `flat`: (N,c), the $z$ of a batch; `indices`: (N,), what they chose.
# - A code whose new count is 0 (below $10^{-6}$) has never been chosen: it stays.
# - The inputs stay as they were.

# %% exercise="vq.ema_update" role="solution"
def ema_update(codebook, count, total, flat, indices, decay=0.99):
    """(codebook (K,c), count (K,), total (K,c)) after a batch flat (N,c) with indices (N,)."""
    ### BEGIN SOLUTION
    used = torch.bincount(indices, minlength=len(codebook)).to(flat)  # (K,)
    summed = torch.zeros_like(codebook).index_add(0, indices, flat)  # (K,c)
    count = decay * count + (1 - decay) * used
    total = decay * total + (1 - decay) * summed
    mean = total / count.clamp(min=1e-6)[:, None]               # (K,c)
    chosen = (count > 1e-6)[:, None]                            # (K,1)
    return torch.where(chosen, mean, codebook), count, total
    ### END SOLUTION


# %% exercise="vq.ema_update" role="check"
check("vq.ema_update", ema_update)

# %% [markdown] exercise="vq.ema_update" role="hint"
# You need two things of the batch: how often each code was chosen, and the sum of the rows that chose it.
# `total[indices] += flat` looks right and is not: where an index occurs twice, one of the two rows is lost.
#
# ---
#
# `torch.bincount(indices, minlength=K)` counts; `torch.zeros_like(codebook).index_add(0, indices, flat)` sums.
#
# ---
#
# `torch.where((count > 1e-6)[:, None], total / count.clamp(min=1e-6)[:, None], codebook)`

# %%
ema_update = use("vq.ema_update", ema_update)
angle = torch.arange(6) * math.pi / 3
centres = torch.stack([4 + 2 * angle.cos(), 3 + 2 * angle.sin()], 1)  # (6,2)
cloud = centres.repeat(100, 1) + 0.25 * random(600, 2, seed=2)  # (600,2): six heaps
cloud_z = cloud.T.reshape(1, 2, 20, 30)
K_TOY = 12
start = (2 * torch.rand(K_TOY, 2, generator=torch.Generator().manual_seed(1)) - 1) / K_TOY


def watch(kind, rounds=150, after=None):
    """Where the codes are after each round; (rounds + 1, K, 2). `after` may change (codebook, count) after a round."""
    book, count, total = start.clone().requires_grad_(kind == "gradient"), torch.zeros(K_TOY), torch.zeros(K_TOY, 2)
    adam, trace = torch.optim.Adam([book], lr=0.05) if kind == "gradient" else None, [start]
    for _ in range(rounds):
        indices = nearest(cloud_z, book)
        if kind == "gradient":
            adam.zero_grad()
            codebook_loss(cloud_z, quantize(cloud_z, book, indices)[1]).backward()
            adam.step()
        else:
            book, count, total = ema_update(book, count, total, cloud, indices.flatten(), decay=0.8)
        if after is not None:
            book, count = after(book, count)
            total = book * count[:, None]
        trace.append(book.detach().clone())
    return torch.stack(trace)


def draw_trace(axis, trace, title):
    last = trace[-1]
    alive = torch.bincount(nearest(cloud_z, last).flatten(), minlength=len(last)) > 0
    error = float((cloud_z - quantize(cloud_z, last, nearest(cloud_z, last))[1]).square().sum(1).mean())
    axis.plot(*cloud.T, ".", color=GREY, ms=2, alpha=0.3)
    for k in range(len(last)):
        axis.plot(*trace[:, k].T, "-", color=BLUE if alive[k] else RED, lw=0.8)
        axis.plot(*last[k], "*" if alive[k] else "X", color=BLUE if alive[k] else RED, ms=11 if alive[k] else 7)
    axis.set_title(f"{title}: {int(alive.sum())} of {len(last)} alive", fontsize=10)
    print(f"{title:20s} {int(alive.sum()):2d} of {len(last)} codes in use, mean squared distance {error:.2f}")


figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharex=True, sharey=True)
for axis, kind in zip(axes, ("gradient", "running averages"), strict=True):
    draw_trace(axis, watch(kind), kind)
plt.show()

# %% [markdown]
# Eleven of twelve codes end as crosses, twice. All start near 0, as in the library; the heaps lie to one side, and one
# code is nearer to all of them by a hair. It takes every $z$, moves to their mean, and from then on no other code is
# nearest to anything. The others are *dead*: both rules move only codes that were chosen.
# ## 5 · Who is in use
#
# Two figures describe how a book is read. `used` is the share of its codes that occur at all. *Perplexity* asks how
# evenly: with $p_k$ the share of positions that have code $k$,
# $$\text{perplexity} = \exp\Bigl(-\sum_k p_k \ln p_k\Bigr)$$
#
# is the number of codes that, all used alike, would be as hard to guess. It is K at most and 1 at least.

# %% [markdown] exercise="vq.usage" role="prompt"
# ### Exercise 5 · Perplexity and usage
#
# `usage(indices, num_codes)` returns `{"perplexity": ..., "used": ...}`, two floats.
#
# - `indices`: an integer tensor of any shape. Codes that do not occur count for `used`, and add nothing to the entropy.

# %% exercise="vq.usage" role="solution"
def usage(indices, num_codes):
    """{"perplexity", "used"} of integer indices of any shape."""
    ### BEGIN SOLUTION
    count = torch.bincount(indices.flatten(), minlength=num_codes).double()  # (K,)
    share = count / count.sum()
    occurs = share[share > 0]
    entropy = -(occurs * occurs.log()).sum()                    # nats
    return {"perplexity": float(entropy.exp()), "used": len(occurs) / num_codes}
    ### END SOLUTION


# %% exercise="vq.usage" role="check"
check("vq.usage", usage)

# %% [markdown] exercise="vq.usage" role="hint"
# Count with `torch.bincount(..., minlength=num_codes)` and divide by the sum to get shares.
#
# ---
#
# `0 * log(0)` is NaN in floating point. Leave the zeros out: `share[share > 0]`.
#
# ---
#
# `math.exp(-(p * p.log()).sum())` with `p` the shares above 0; `used` is `len(p) / num_codes`.

# %%
usage = use("vq.usage", usage)
test_patches = to_patches(test.images(range(HELD_OUT // 4)))    # (B,48,16,16)


def learn_words(K, threshold=None, rounds=ROUNDS):
    """A book of K patches by running averages, from codes near 0; restarts where `threshold` is given."""
    generator = torch.Generator().manual_seed(K)
    book = (2 * torch.rand(K, 48, generator=generator) - 1) / K
    count, total = torch.zeros(K), torch.zeros(K, 48)
    for _ in range(rounds):
        flat = words[torch.randint(len(words), (4096,), generator=generator)]  # (N,48)
        indices = nearest(flat.T.reshape(1, 48, -1, 1), book).flatten()
        book, count, total = ema_update(book, count, total, flat, indices, decay=0.9)
        if threshold is not None:
            book, count = restart(book, count, flat, threshold)
            total = book * count[:, None]
    return book


def rebuilt(book, z=test_patches):
    """Patches -> (pictures from the book's words, indices)."""
    indices = nearest(z, book)
    return to_picture(quantize(z, book, indices)[1]), indices


def report(name, book):
    pictures, indices = rebuilt(book)
    figures = usage(indices, len(book))
    print(f"{name:16s} K = {len(book):4d}: {100 * figures['used']:5.1f} % used, perplexity {figures['perplexity']:4.1f}, "
          f"{math.log2(len(book)):4.1f} bits a patch, PSNR {psnr(pictures, to_picture(test_patches)):.2f} dB")


plain = {K: learn_words(K) for K in (16, 64, 256, 1024)}
for book in plain.values():
    report("running averages", book)

# %% [markdown]
# Up to K = 64 all codes are in use, at 256 fewer than half, at 1024 one in seven; and the largest book is *worse* than
# the one of 256. Perplexity is far below K everywhere, in part for an honest reason: most patches are plain
# background. Uneven use may lie in the data; codes without any use are wasted.
# ## 6 · Restarts
#
# A code that nobody reads can be moved at no cost. So move it to where a code is missing: onto a $z$ of the current
# batch. Dhariwal et al. (2020) take one at random; the library takes those that are represented worst.
# %% [markdown] exercise="vq.restart" role="prompt"
# ### Exercise 6 · Move the dead to where they are needed
#
# `restart(codebook, count, flat, threshold)` returns the new `(codebook, count)`.
#
# - A code's *due* is N / K uses a batch, N = `len(flat)`. It is dead if its running `count` is below `threshold` × due.
# - Dead codes move onto the rows of `flat` (N,c) with the largest squared distance to their nearest code, each to one of
#   its own. Are there more dead codes than rows, the first N of them move.
# - The count of a moved code becomes its due. The inputs stay as they were.

# %% exercise="vq.restart" role="solution"
def restart(codebook, count, flat, threshold=0.01):
    """(codebook (K,c), count (K,)) with dead codes moved onto the rows of flat (N,c) that are represented worst."""
    ### BEGIN SOLUTION
    due = len(flat) / len(codebook)
    dead = (count < threshold * due).nonzero().flatten()[: len(flat)]  # (D,)
    distance = flat.square().sum(1, keepdim=True) - 2 * flat @ codebook.T + codebook.square().sum(1)  # (N,K)
    error = distance.min(dim=1).values                          # (N,)
    worst = error.topk(len(dead)).indices                       # (D,)
    codebook, count = codebook.clone(), count.clone()
    codebook[dead] = flat[worst]
    count[dead] = due
    return codebook, count
    ### END SOLUTION


# %% exercise="vq.restart" role="check"
check("vq.restart", restart)

# %% [markdown] exercise="vq.restart" role="hint"
# Three steps: which codes are dead, which rows are worst, assign one to the other on a clone.
#
# ---
#
# `(count < threshold * due).nonzero().flatten()` gives the dead as numbers, `x.topk(n).indices` the places of the n
# largest values.
#
# ---
#
# `error = torch.cdist(flat, codebook).min(1).values`, then `codebook[dead] = flat[error.topk(len(dead)).indices]`.

# %%
restart = use("vq.restart", restart)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharex=True, sharey=True)
draw_trace(axes[0], watch("running averages"), "running averages")
draw_trace(axes[1], watch("", after=lambda book, count: restart(book, count, cloud, 0.1)), "with restarts")
plt.show()

# %%
revived = {K: learn_words(K, threshold=0.01) for K in (4, 16, 64, 256, 1024)}
for book in revived.values():
    report("with restarts", book)
figure, axes = plt.subplots(1, 2, figsize=(8, 4))
for axis, title, book in zip(axes, ("running averages", "with restarts"), (plain[256], revived[256]), strict=True):
    times = torch.bincount(rebuilt(book)[1].flatten(), minlength=256)
    tiles = to_picture(book[times.argsort(descending=True)][..., None, None])  # (256,3,4,4), the busiest first
    tiles = F.pad(tiles, (0, 1, 0, 1), value=1.0).reshape(16, 16, 3, 5, 5).permute(0, 3, 1, 4, 2).reshape(80, 80, 3)
    axis.imshow((tiles.clamp(-1, 1) + 1) / 2, interpolation="nearest")
    axis.set(xticks=[], yticks=[], title=f"{title}: {int((times > 0).sum())} of 256 in use")
    axis.spines[:].set_visible(False)
plt.show()
strip([torch.cat([shown, *[rebuilt(book, to_patches(shown))[0] for book in (plain[256], *revived.values())]])],
      ["original", "256, plain", *[f"K = {K}" for K in revived]], width=8.4)

# %% [markdown]
# In the toy all twelve codes live and the error falls from 4.15 to 0.09. The grey tiles on the left are codes that
# never left their place near 0; on the right nearly all are in use. That is worth 1.2 dB at K = 256, and 4.6 dB at K =
# 1024.
#
# At K = 16, where no code was dead, restarts made the book **worse**, 18.79 dB against 20.63 dB. They send codes to
# the *largest* errors, rare patches of strong contrast, and a book of sixteen needs its places for what is frequent.
# The lower perplexity fits this reading.
#
# **Rate.** From K = 64 to 1024 four more bits a patch buy 6.8 dB. If frequent codes are written shorter,
# $\log_2(\text{perplexity})$ bits are enough on average: at K = 1024, 4.4 in place of 10.
# ## 7 · The layer
#
# All parts are there. The layer has the signature of the library's, so that `parts.swapped` can put it in its place.
# %% [markdown] exercise="vq.VectorQuantizer" role="prompt"
# ### Exercise 7 · Put it together
#
# `VectorQuantizer(num_codes, dim, beta, ema_decay, restart_below)` is a module; `forward(z)` returns
# `(z_q (B,c,h,w), loss (), indices (B,h,w))`. `follow` is given.
#
# - `self.embedding`: an `nn.Embedding(num_codes, dim)` whose weight starts uniform in $-1/K \ldots 1/K$.
# - `ema_decay=None`: the loss is that of exercise 3.
# - `ema_decay` given: the loss is $\beta$ × commitment alone; the embedding's weight wants no gradient; buffers `count`
#   (K,) and `total` (K,c) of zeros exist, and in training `self.follow(flat, indices)` is called with (N,c) and (N,).
# - Without `ema_decay` there are no buffers: names and shapes are those of the library's files.

# %% exercise="vq.VectorQuantizer" role="solution"
class VectorQuantizer(nn.Module):
    """forward(z (B,c,h,w)) -> (z_q (B,c,h,w), loss, indices (B,h,w))."""

    def __init__(self, num_codes, dim, beta=0.25, ema_decay=None, restart_below=None):
        super().__init__()
        self.beta, self.ema_decay, self.restart_below = beta, ema_decay, restart_below
        ### BEGIN SOLUTION
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)
        if ema_decay is not None:
            self.embedding.weight.requires_grad_(False)
            self.register_buffer("count", torch.zeros(num_codes))
            self.register_buffer("total", torch.zeros(num_codes, dim))
        ### END SOLUTION

    def forward(self, z):
        ### BEGIN SOLUTION
        codebook = self.embedding.weight
        indices = nearest(z, codebook)
        z_q, codes = quantize(z, codebook, indices)
        if self.ema_decay is None:
            return z_q, codebook_loss(z, codes, self.beta), indices
        loss = self.beta * F.mse_loss(z, codes.detach())
        if self.training:
            flat = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # (N,c)
            self.follow(flat, indices.flatten())
        return z_q, loss, indices
        ### END SOLUTION

    @torch.no_grad()
    def follow(self, flat, indices):
        state = self.embedding.weight, self.count, self.total
        codebook, count, total = ema_update(*state, flat, indices, self.ema_decay)
        if self.restart_below is not None:
            codebook, count = restart(codebook, count, flat, self.restart_below)
            total = codebook * count[:, None]
        for old, new in zip(state, (codebook, count, total), strict=True):
            old.copy_(new)


# %% exercise="vq.VectorQuantizer" role="check"
check("vq.VectorQuantizer", VectorQuantizer)

# %% [markdown] exercise="vq.VectorQuantizer" role="hint"
# `forward` is exercise 1, exercise 2 and exercise 3, one after the other; only the running averages need an `if`.
#
# ---
#
# `self.register_buffer("count", torch.zeros(num_codes))` makes a tensor that is saved with the module, but not trained.
# `self.training` is what `.train()` and `.eval()` set.
#
# ---
#
# `self.follow(z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1]), indices.flatten())`, after `z_q` and the loss.

# %%
VectorQuantizer = use("vq.VectorQuantizer", VectorQuantizer)
layer = VectorQuantizer(K_TOY, 2, ema_decay=0.8, restart_below=0.1)
for batch in range(31):
    _, loss, indices = layer(cloud_z)
    if batch % 10 == 0:
        print(f"batch {batch:2d}: loss {loss:.3f}, perplexity {usage(indices, K_TOY)['perplexity']:4.1f} of {K_TOY}")

# %% [markdown]
# ## 8 · The same autoencoder, twice
#
# Two autoencoders of the library, of the same widths, on the same pictures, for the same number of steps: $f = 4$, so
# 8 × 8 positions of 4 numbers for 32 × 32 pixels. One has the KL term of chapter 02 with its weight of $10^{-6}$; the
# other has your layer, with 512 codes. Both are small, trained for a minute and without the losses of chapter 03,
# hence blurred. Which is more so?
# %%
SAME = dict(latent_channels=4, block_channels=(64,), layers_per_block=1, stem=4, mid_attention=False)  # f = 4
CONFIGS = {"KL": vae.VAEConfig(**SAME), "VQ": vq.VQConfig(**SAME, num_codes=512, ema_decay=0.99, restart_below=0.01)}
small, small_test = (Scenes(32, split=split, objects=(1, 1), degraded=0.0) for split in ("train", "test"))
pictures = small.images(range(16 * PICTURES)).to(session.device)  # (n,3,32,32)
unseen = small_test.images(range(HELD_OUT)).to(session.device)


def train(name):
    """An autoencoder of the library, with your layer inside where it has a codebook; prints as it goes."""
    torch.manual_seed(session.seed)
    with parts.swapped({"vq.VectorQuantizer": VectorQuantizer}):
        model = presets.autoencoder(CONFIGS[name]).to(session.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=3e-3, betas=(0.9, 0.99))
    pace = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, total_steps=STEPS, pct_start=0.1, cycle_momentum=False)
    for step in range(STEPS):
        x = pictures[torch.randint(len(pictures), (8,))]        # (8,3,32,32)
        y, more, *_ = model(x)
        regulariser = 1e-6 * more.kl().mean() / x[0].numel() if name == "KL" else more
        loss = 0.5 * (y - x).abs().mean() + 4 * (y - x).square().mean() + regulariser
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        pace.step()
        if (step + 1) % max(STEPS // 3, 1) == 0:
            print(f"{name}: step {step + 1:4d}, PSNR of the batch {psnr(x, y.detach()):.1f} dB")
    return model.eval().requires_grad_(False)


models = {name: train(name) for name in CONFIGS}

# %%
kl, book = models["KL"], models["VQ"]
posterior, z_vq = kl.encode(unseen), book.encode(unseen)        # a Gaussian; (B,4,8,8) before quantisation
indices = nearest(z_vq, book.quantize.embedding.weight)         # (B,8,8)
rebuilt_by = {"KL": kl.decode(posterior.mode()), "VQ": book.decode(z_vq)}
strip([unseen[:8], *[y[:8] for y in rebuilt_by.values()]], [""] * 8, ["data", *rebuilt_by])
figures = usage(indices, 512)
bits = {"KL": float(posterior.kl().mean()) / math.log(2), "VQ": 64 * math.log2(512)}
bits["VQ, by frequency"] = 64 * math.log2(figures["perplexity"])  # what an entropy coder would need
print(f"VQ: {100 * figures['used']:.0f} % of 512 codes used, perplexity {figures['perplexity']:.0f}: "
      f"{bits['VQ, by frequency']:.0f} bits if frequent codes are written shorter")
for name, model in models.items():
    size = sum(p.numel() for p in model.parameters())
    print(f"{name}: {size:,} parameters, {bits[name]:.0f} bits a picture, PSNR {psnr(unseen, rebuilt_by[name]):.2f} dB")

# %% [markdown]
# | PSNR in dB | this notebook, 32 × 32, $f = 4$ | ImageNet 256 × 256, $f = 2$ | $f = 4$ | $f = 8$ |
# |---|---|---|---|---|
# | KL | 26.05 | 32.47 | 27.53 | 24.19 |
# | VQ | 25.61 (K = 512) | 30.85 (K = 2048) | 27.43 (K = 8192) | 23.07 (K = 16384) |
#
# The right columns are table 8 of Rombach et al. (2022): other pictures, networks and losses, so compare within a
# column. Ours is one run of each kind, and a few tenths of a decibel are within reach of luck; the paper's columns
# point the same way.
# > **The article says** (section 2.4) that a VQ-VAE has "better reconstruction", **but** it is the other way round: VQ
# > first stages "slightly fall behind" (Rombach et al. 2022, section 4), here by 0.1 to 1.6 dB. It also lists "no
# > posterior collapse". A KL term of $10^{-6}$ is too weak for that collapse (see the bits above), and a codebook has
# > one of its own (section 4). Straight-through and commitment, without which its formula cannot be trained, are
# > missing.
#
# The comparison is also unequal. A KL latent can pass on as many bits as its KL term holds, nats / ln 2 (Hinton & van
# Camp 1993): here three times what the codes have. To compare at equal size, round every number of the KL latent to a
# coarse grid, and count bits by frequency:
# %%
curve, z = [], posterior.mode()                                 # (B,4,8,8)
for width in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
    step = torch.round(z / width)                               # every number by itself
    level = (step - step.min()).long()
    entropy = sum(math.log2(usage(level[:, c], int(level.max()) + 1)["perplexity"]) for c in range(4))
    curve.append((64 * entropy, psnr(unseen, kl.decode(step * width))))
    print(f"KL rounded to steps of {width:4.2f}: {curve[-1][0]:6.0f} bits a picture, PSNR {curve[-1][1]:.2f} dB")
figure, axis = plt.subplots(figsize=(6.5, 3))
axis.plot(*zip(*curve, strict=True), "o-", color=BLUE, label="KL, each number rounded")
axis.plot(bits["KL"], psnr(unseen, rebuilt_by["KL"]), "D", color=GREEN, label="KL, as it is (its KL term in bits)")
axis.plot([bits["VQ"], bits["VQ, by frequency"]], [psnr(unseen, rebuilt_by["VQ"])] * 2, "*-", color=RED, ms=13,
          label="VQ: 9 bits a position, and by frequency")
axis.set(xlabel="bits a picture", ylabel="PSNR, dB")
axis.legend()
plt.show()

# %% [markdown]
# Given equally many bits, the order turns round: near 580 bits the rounded KL latents are 0.8 dB behind the codes, and
# further if the codes too are counted by frequency. This KL autoencoder was not trained to be rounded, so the curve is
# no limit; but it explains the table. VQ loses against a competitor that may say more.
# ## 9 · What a diffusion model hands back
#
# Does a diffusion model for a VQ first stage work on the codes? In Rombach et al. (2022, appendix G) it sees the
# continuous $z$ *before* quantisation, and quantising becomes the first layer of the decoder; so in `VQAutoencoder`.
# The hope: a sampler's small errors are absorbed, since what lands in the right cell becomes exactly the right code.
# Put noise in place of those errors:
# %%
def decode_raw(z):                                              # the VQ decoder without its first layer
    return book.decoder(book.post_quant_conv(z))


codes = quantize(z_vq, book.quantize.embedding.weight, indices)[1]
noise = random(*z_vq.shape, seed=8).to(z_vq)
inputs = {"KL": (z, kl.decode, BLUE, "--"), "VQ, z, quantised in the decoder": (z_vq, book.decode, RED, "-"),
          "VQ, z, not quantised": (z_vq, decode_raw, ORANGE, "-."),
          "VQ, codes, quantised in the decoder": (codes, book.decode, GREEN, "-"),
          "VQ, codes, not quantised": (codes, decode_raw, GREY, ":")}
sizes = torch.tensor([0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8])
figure, axis = plt.subplots(figsize=(6.5, 3.2))
print("noise, of std(z)", " " * 19, *[f"{s:5.2f}" for s in sizes])
for name, (latent, decode, color, line) in inputs.items():
    values = [psnr(unseen, decode(latent + s * latent.std() * noise)) for s in sizes]
    print(f"{name:36s}", *[f"{v:5.2f}" for v in values])
    axis.plot(sizes, values, marker="o", ms=4, color=color, ls=line, label=name)
for name, latent in (("z", z_vq), ("codes", codes)):
    choices = [nearest(latent + s * latent.std() * noise, book.quantize.embedding.weight) for s in sizes]
    kept = [100 * float((choice == indices).float().mean()) for choice in choices]
    print(f"{f'{name}: % with the same code':36s}", *[f"{v:5.0f}" for v in kept])
axis.set(xlabel="noise added, in units of the latents' standard deviation", ylabel="PSNR, dB")
axis.legend(fontsize=9)
plt.show()

# %% [markdown]
# Codes do forgive: without noise KL is ahead by 0.4 dB, from 0.15 on it is behind, at 0.5 by 2.2 dB. But **the snap is
# hardly the reason here**. Without the quantiser (orange) nothing is lost up to 0.3, and noise of 0.1 has already
# changed the code of half of the positions; 512 cells in four dimensions are small, and neighbours look alike.
#
# What absorbs is the *decoder*. Behind a codebook it never saw $z$ more precisely than a cell, and learned that
# smaller differences mean nothing; the KL decoder, fed 1,808 bits, reads every digit. The snap adds a little from 0.5
# on (24.48 against 24.39 dB, then 23.10 against 22.86).
# ## Questions to think about
#
# 1. Without the commitment, what keeps the encoder of section 2 from making its outputs ever larger?
# 2. Restart onto *random* rows in place of the worst. What do you expect at K = 16 and at K = 1024? Try it.
# 3. Where would the snap of section 9 matter more: at larger or at smaller K?
#
# ## Recap
#
# - The nearest code needs one matrix product, with the channels as last axis.
# - $z + \mathrm{sg}[e - z]$ has the value of the code and the gradient of the identity; the true gradient is 0.
# - The codebook term moves codes, the commitment moves $z$; the value of the loss does not show where $\beta$ is.
# - Running averages replace the codebook term. Neither moves unread codes; restarts do.
# - A position costs $\log_2 K$ bits. VQ reconstructs slightly worse than KL, from far fewer bits.
# - A latent diffusion model works on $z$ before quantisation; the decoder quantises.
#
# **Next**, chapter 05 takes a picture, or a latent, and destroys it step by step: the forward process.
