# %% [markdown]
# # 16 · Capstone: your own code draws the picture
#
# For sixteen chapters you wrote parts, and the library stood in where one was missing. Now the library steps back. This chapter
# collects what you wrote, builds the pipeline from it, loads trained weights into your classes, and draws. If the picture is
# the library's, everything you wrote on the way is right. If it is not, you will find out which part it was.
#
# **You will be able to**
#
# - swap a part of a running system for your own, and put it back whatever happens;
# - say how far two pictures are apart, and why "it looks the same" is not enough;
# - find one broken part of sixteen with nine pictures;
# - prove which weights drew a picture, and write the model's card;
# - build the block that follows the U-Net: patches and adaLN-Zero, the diffusion transformer.
#
# **Time** about 2.5 hours, of which 75 minutes are exercises. **You need** your own notebooks of the other chapters beside this
# one; any number of them will do. No GPU. **In the library** this chapter is `course/parts.py`, `course/classroom/collect.py` and
# `course/classroom/capstone.py`; in the article, section 7, and the outlook of section 10.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
import hashlib
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from course import attention, layers, parts, pixels, samplers, schedule
from course.classroom import begin, capstone, check, figure_style, house, use, working
from course.data import Scenes, oracle
from course.evaluation.sweep import wilson
from course.pipeline import StableDiffusion

session = begin(needs="0.1", seed=16)
STEPS = {"quick": 4, "cpu": 25, "gpu": 50}[session.profile]     # of the sampler, for pictures to look at
TRIES = {"quick": 2, "cpu": 4, "gpu": 4}[session.profile]       # of the sampler, to find who broke a picture
PROMPTS = {"quick": 2, "cpu": 48, "gpu": 256}[session.profile]  # for the model's card
FOLDER = Path()                                                 # your notebooks lie beside this one

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
            axes[r, c].set(xticks=[], yticks=[])
            axes[r, c].set_title(titles[c] if r == 0 else "", fontsize=9)
            axes[r, c].spines[:].set(visible=True, color="#dddddd")
        if labels:
            axes[r, 0].set_ylabel(labels[r])
    plt.show()


# %% [markdown]
# ## The house
#
# Below is the library as a house. Each room is one of its parts, from the tokenizer in the cellar to the samplers under the
# roof; a lit room is yours. `parts.from_notebooks` reads the notebooks beside this one, without running their trainings: it
# takes imports, functions and classes, checks each answer, and keeps those that pass. Bricked-up rooms are parts that no
# exercise asks for.

# %%
mine = parts.from_notebooks(FOLDER)
chapters = working.progress(FOLDER)
points, most = sum(c.points for c in chapters), sum(c.maximum for c in chapters)
solved, asked = sum(c.solved for c in chapters), sum(len(c.exercises) for c in chapters)
house.draw(mine.status, plate=f"{solved} of {asked} exercises solved, {points:g} of {most:g} points")
plt.show()
print(mine or "no part of yours yet: are your notebooks beside this one?")

# %% [markdown]
# The score below the house is what the check cells last said in your saved notebooks; this one, while it runs, counts as it
# was saved.
#
# ## 1 · One part for another
#
# Why can a class from a notebook end up inside `StableDiffusion`? Because the library never holds on to a part: it says
# `layers.ResBlock(...)`, and looks the name up when it builds. Whoever sets that one attribute changes every block of the
# U-Net and of the autoencoder. And must put it back, or the next pipeline is built of it, too; above all when something
# went wrong in between.

# %% [markdown] exercise="capstone.swapped" role="prompt"
# ### Exercise 1 · Swap, and put back
#
# `swapped(module, name, mine)` is a context manager: inside `with swapped(layers, "ResBlock", Mine):` the attribute `name` of
# `module` is `mine`, afterwards it is what it was before.
#
# - Also where the block raises: then the attribute is put back, and the error goes on.
# - Nothing happens before the block is entered. Blocks may stand inside each other.
# - With `@contextmanager`, what stands before `yield` runs at the start of the block, what stands behind it at its end.

# %% exercise="capstone.swapped" role="solution"
@contextmanager
def swapped(module, name, mine):
    """Replace module.name by `mine` until the block ends."""
    ### BEGIN SOLUTION
    before = getattr(module, name)
    setattr(module, name, mine)
    try:
        yield
    finally:
        setattr(module, name, before)
    ### END SOLUTION


# %% exercise="capstone.swapped" role="check"
check("capstone.swapped", swapped)

# %% [markdown] exercise="capstone.swapped" role="hint"
# `getattr(module, name)` reads, `setattr(module, name, value)` writes an attribute whose name is a string.
#
# ---
#
# An error in the block is raised at the `yield`. What must happen in any case belongs in `finally`.
#
# ---
#
# `before = getattr(...)`, `setattr(...)`, then `try: yield` and `finally: setattr(module, name, before)`.

# %%
swapped = use("capstone.swapped", swapped)


class CountedBlock(layers.ResBlock):
    """The library's block, which counts how many are built."""

    built = 0

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        CountedBlock.built += 1


with swapped(layers, "ResBlock", CountedBlock):
    StableDiffusion.load("scenes64")
print(f"one attribute, {CountedBlock.built} residual blocks;",
      f"the library's afterwards: {layers.ResBlock is not CountedBlock}")

# %% [markdown]
# `parts.swapped` of the library is this for many parts at once, and refuses names that are none. A pipeline remembers what it
# was built under and swaps it in again when it draws, for parts that are looked up at run time: samplers, guidance.
#
# ## 2 · The same picture
#
# The weights are those of `scenes64`, in a file. They load into your classes if the names and shapes of your parameters
# are right, which is why the prompts insisted on them. One seed, one prompt, the library's parts and yours:

# %%
prompt = "a large yellow star above a small black cross on a pink background"
library = StableDiffusion.load("scenes64")
with parts.swapped(mine):
    yours = StableDiffusion.load("scenes64")                    # built of your parts, then given the weights
drawn = {name: pipe.decode(pipe.latents(prompt, steps=STEPS, seed=16))
         for name, pipe in (("library", library), ("yours", yours))}
reading = oracle.read(drawn["yours"])[0]
things = ", ".join(f"{o.size} {o.color} {o.shape}" for o in reading.objects)
print("in yours the oracle reads:", things, "on", reading.background)

# %% [markdown]
# Are they the same? The eye is no judge of a few grey levels in a corner. A distance is needed, and there is a trap in it:
# pictures are bytes.

# %% [markdown] exercise="capstone.picture_distance" role="prompt"
# ### Exercise 2 · How far apart
#
# `picture_distance(mine, reference)` returns `(largest, share)`, two numbers.
#
# - Both pictures are (3,H,W) uint8, 0 … 255. `largest` is the largest absolute difference of a value, 0 … 255.
# - `share` is the share of the H·W *places* at which some channel differs by more than 1: a difference of 1 is rounding.

# %% exercise="capstone.picture_distance" role="solution"
def picture_distance(mine, reference):
    """(3,H,W) uint8 twice -> largest difference, share of places that differ by more than 1."""
    ### BEGIN SOLUTION
    off = (mine.int() - reference.int()).abs()                  # (3,H,W); bytes would wrap around
    largest = int(off.max())
    worst = off.amax(dim=0)                                     # (H,W)
    share = float((worst > 1).float().mean())
    return largest, share
    ### END SOLUTION


# %% exercise="capstone.picture_distance" role="check"
check("capstone.picture_distance", picture_distance)

# %% [markdown] exercise="capstone.picture_distance" role="hint"
# In uint8 3 − 5 is 254. Change the dtype before you subtract.
#
# ---
#
# `.int()` of both, `.abs()` of the difference. `amax(dim=0)` is the worst channel of each place.
#
# ---
#
# `off = (mine.int() - reference.int()).abs()`, then `int(off.max())` and `float((off.amax(0) > 1).float().mean())`

# %%
picture_distance = use("capstone.picture_distance", picture_distance)
as_bytes = {name: pixels.to_bytes(picture)[0] for name, picture in drawn.items()}
largest, share = picture_distance(as_bytes["yours"], as_bytes["library"])
amplified = 255 * (drawn["yours"] - drawn["library"]).abs() - 1
strip([torch.cat([drawn["library"], drawn["yours"], amplified])],
      ["the library's", f"yours: {len(mine)} parts", "difference x 255"], width=6.4)
print(f"largest difference {largest} of 255, {share:.1%} of the places differ; before rounding to bytes "
      f"{127.5 * float((drawn['yours'] - drawn['library']).abs().max()):.5f} of 255")

# %% [markdown]
# Where your code is the library's, the bits are the same. Where you computed the same thing in another order, as in the
# waves of chapter 06, floats round differently: 25 steps later the difference is still thousands of times smaller than a
# byte. That is the standard: *within one step of a byte*, and the library's own tests ask for no more.
#
# ## 3 · Who was it?
#
# To practise, let us break things. Each part below is wrong in a way that is easy to write; alone in an otherwise right
# pipeline, each leaves its own trace.

# %%
# the library's, before any swap
attend, waves, ddim = attention.attend, layers.timestep_embedding, samplers.ddim


class NoTime(layers.ResBlock):
    def forward(self, x, time_emb=None):                        # the noise level never arrives
        return super().forward(x, None if time_emb is None else torch.zeros_like(time_emb))


class GateFirst(attention.GEGLU):
    def forward(self, x):                                       # value and gate have changed places
        gate, value = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class LinearSchedule(schedule.NoiseSchedule):
    def __init__(self, num_steps=1000, kind="scaled_linear", *more, **options):
        super().__init__(num_steps, "linear", *more, **options)


class Smooth(layers.Upsample):
    def forward(self, x):                                       # bilinear, for nearest
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear"))


def not_scaled(q, k, v, fused=True, causal=False):              # 1 / sqrt(d) is forgotten
    return attend(q * q.shape[-1] ** 0.5, k, v, fused, causal)


def sines_first(t, dim, max_period=10_000):
    return torch.cat(waves(t, dim, max_period).chunk(2, dim=-1)[::-1], dim=-1)


def turned_round(eps_uncond, eps_cond, scale):
    return eps_uncond + scale * (eps_uncond - eps_cond)


def one_step_short(denoiser, x, timesteps, **how):              # the noisiest level is left out
    return ddim(denoiser, x, timesteps[1:], **how)


BROKEN = {"layers.ResBlock": NoTime, "attention.GEGLU": GateFirst, "schedule.NoiseSchedule": LinearSchedule,
          "layers.Upsample": Smooth, "attention.attend": not_scaled, "layers.timestep_embedding": sines_first,
          "guidance.classifier_free_guidance": turned_round, "samplers.ddim": one_step_short}
traces = {name: capstone.draw({name: part}, ("words",), steps=STEPS)["words"] for name, part in BROKEN.items()}
right = capstone.draw({}, ("words",), steps=STEPS)["words"]
shown = [right, *traces.values()]
names = ["right", *[part.__name__ for part in BROKEN.values()]]
strip([torch.stack(shown[:5])], names[:5], width=7)
strip([torch.stack(shown[5:])], names[5:], width=7 * 4 / 5)
for name, picture in traces.items():
    largest, share = picture_distance(pixels.to_bytes(picture), pixels.to_bytes(right))
    print(f"{name:34s} largest difference {largest:3d} of 255, {share:4.0%} of the places")

# %% [markdown]
# Guidance turned round draws the opposite, orange on white; the swapped gate paints over the prompt; bilinear upsampling blurs.
# But five of the eight still draw a red ring and a blue square on cream. Attention without its $1/\sqrt d$ is off by 75 of 255
# in places, and looks as good as the right one; a sampler that leaves out a step is off by 7. Nobody finds such a mistake by
# looking at pictures.
#
# In a pipeline of sixteen parts, one or two of which are of this kind, which are they? One can try each alone: sixteen
# pictures. Or ask about *groups*: if a group draws the right picture, all of it is acquitted at once; if not, halve it.

# %% [markdown] exercise="capstone.culprits" role="prompt"
# ### Exercise 3 · Halve and ask
#
# `culprits(names, same)` returns the names of the broken parts, in the order of `names`.
#
# - `names` is a list of n names. `same(group)` swaps in the parts of a list of names, draws, and says whether it is the
#   library's picture. It costs a picture each time; a group with a broken part in it never draws the right one.
# - There may be none, one, or several. If all is right, one picture must do; for one culprit, at most
#   $1 + 2\lceil\log_2 n\rceil$.
# - Leave the list as it is.

# %% exercise="capstone.culprits" role="solution"
def culprits(names, same):
    """The broken ones among names, by halving; a list."""
    ### BEGIN SOLUTION
    if not names or same(names):
        return []
    if len(names) == 1:
        return list(names)
    half = len(names) // 2
    first, second = names[:half], names[half:]
    return culprits(first, same) + culprits(second, same)
    ### END SOLUTION


# %% exercise="capstone.culprits" role="check"
check("capstone.culprits", culprits)

# %% [markdown] exercise="capstone.culprits" role="hint"
# A function may call itself: the culprits of a group are those of its first half and those of its second.
#
# ---
#
# Two cases end it: a group that draws the right picture has none, and a group of one that does not *is* the culprit.
#
# ---
#
# `return culprits(names[:half], same) + culprits(names[half:], same)`: both halves, for a broken one acquits nobody.

# %%
culprits = use("capstone.culprits", culprits)
OTHERS = ["tokenizer.Tokenizer", "text.TextEncoder", "layers.Downsample", "layers.TimestepEmbedding",
          "attention.FeedForward", "attention.CrossAttention", "attention.SpatialTransformer", "vae.Decoder"]
suspects = sorted([*BROKEN, *OTHERS])                           # sixteen names
guilty = [sorted(BROKEN)[k] for k in torch.randperm(8, generator=torch.Generator().manual_seed(16))[:2]]
expected, asked_about = capstone.draw({}, ("words",), steps=TRIES)["words"], []


def same(group):
    asked_about.append(len(group))
    wrong_ones = {name: BROKEN[name] for name in group if name in guilty}  # the others are the library's
    return torch.equal(capstone.draw(wrong_ones, ("words",), steps=TRIES)["words"], expected)


found = culprits(suspects, same)
print("found:", ", ".join(found), " guilty:", ", ".join(sorted(guilty)))
print(f"{len(asked_about)} pictures, of groups of", *asked_about)

# %% [markdown]
# Halving shines where culprits are few. With many, one alone at a time is as cheap, and says more: it shows each part's own
# trace. That is what `capstone.diagnose` does with your parts, after a first picture with all of them. It also tries what you
# wrote and what does not pass its check yet (`mine.attempts`), each in a pipeline that is otherwise right. Where a picture
# can show nothing (a loss, a codebook, how weights begin), the check of the exercise speaks.

# %%
findings = capstone.diagnose(mine | mine.attempts, steps=TRIES)
print(capstone.report(findings))
broken = tuple(f.part for f in findings if f.broken and f.part)
house.draw(mine.status, broken, f"{solved} of {asked} exercises solved, {points:g} of {most:g} points")
plt.show()
if tried := [f for f in findings if f.pictures and f.part in mine.attempts][:5]:
    names = [f.part.replace(".", ".\n") for f in tried]
    strip([torch.stack([next(iter(f.pictures.values())) for f in tried])], names, width=1.6 * len(tried))

# %% [markdown]
# Red rooms are yours and not right yet; the report says whether the picture or the check noticed.
#
# ## 4 · Which weights?
#
# A picture that anyone should be able to draw again needs three things written down: the code, the seed, and the
# weights. Weights have no version number; they have bytes. A *fingerprint* of the bytes says whether two files hold the
# same model, whatever they are called.

# %% [markdown] exercise="capstone.fingerprint" role="prompt"
# ### Exercise 4 · A fingerprint
#
# `fingerprint(state)` returns the SHA-256 of a state dict as 64 hexadecimal digits.
#
# - `state` is {name: tensor}. Go through the names in sorted order: a dictionary has whatever order it was filled in.
# - For each name, feed first `f"{name} {tuple(tensor.shape)} {tensor.dtype}"` in UTF-8, then the bytes of the tensor's values
#   in their logical order: a transposed view counts as what it shows.
# - `hashlib.sha256()` has `.update(bytes)` and `.hexdigest()`; `array.tobytes()` gives the bytes of a NumPy array.

# %% exercise="capstone.fingerprint" role="solution"
def fingerprint(state):
    """SHA-256 of names, shapes, dtypes and bytes, 64 hexadecimal digits."""
    ### BEGIN SOLUTION
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
    ### END SOLUTION


# %% exercise="capstone.fingerprint" role="check"
check("capstone.fingerprint", fingerprint)

# %% [markdown] exercise="capstone.fingerprint" role="hint"
# The values alone are not enough: a (2,3) and a (3,2) tensor may have the same bytes.
#
# ---
#
# `.detach().cpu().contiguous().numpy().tobytes()`, and `"text".encode()` for the rest.
#
# ---
#
# One `hashlib.sha256()` before the loop, two `.update(...)` in it, `.hexdigest()` after it.

# %%
fingerprint = use("capstone.fingerprint", fingerprint)
print("part           parameters   fingerprint in yours and in the library's pipeline")
for name, module in yours.modules().items():
    ours, theirs = (fingerprint(pipe.modules()[name].state_dict()) for pipe in (yours, library))
    print(f"{name:14s} {sum(p.numel() for p in module.parameters()):10,d}   {ours[:16]}  {theirs[:16]}")

data = Scenes(64, "test", textures=("plain",), degraded=0.0)
wanted, scenes = data.captions(range(PROMPTS), full=True), data.scenes(range(PROMPTS))
pictures = torch.cat([yours.decode(yours.latents(wanted[i: i + 16], steps=STEPS, seed=i))
                      for i in range(0, PROMPTS, 16)])          # (PROMPTS,3,64,64)
scores = [oracle.score(reading, scene) for reading, scene in zip(oracle.read(pictures), scenes, strict=True)]
print(f"\nModel card: scenes64 in {len(mine)} parts of yours;",
      f"{STEPS} steps, {PROMPTS} unseen prompts of one to three objects")
for key in ("shape", "color", "all"):
    hits = sum(score[key] for score in scores)
    low, high = wilson(hits, PROMPTS)                           # chapter 00's interval
    print(f"  {key:6s} right: {hits / PROMPTS:.0%} ({low:.0%} to {high:.0%})")

# %% [markdown]
# | | here, with your parts | published for this model |
# |---|---|---|
# | all right, one to three objects | `all` above, with its interval | 90.3 % of 1,024 prompts (README: 100, 91.2 and 80.5 %) |
# | within a byte of the library | section 2 | the library within 1e-4 of diffusers (`course bench parity`) |
#
# The fingerprints agree: your classes hold the same numbers under the same names. The oracle's count agrees with the README
# within its interval; 48 prompts say no more than that.
#
# ## 5 · The course, counted

# %%
figure, axis = plt.subplots(figsize=(8, 0.24 * len(chapters) + 0.9))
for row, chapter in enumerate(chapters):
    axis.barh(row, chapter.maximum, color="#DDDDDD")
    axis.barh(row, chapter.points, color=BLUE)
    axis.text(chapter.maximum + 0.4, row, working.dots(chapter), va="center", fontsize=8)
axis.set(yticks=range(len(chapters)), xlabel="points", xlim=(0, 1.35 * max(c.maximum for c in chapters)))
axis.set_yticklabels([c.title for c in chapters], fontsize=8)
axis.invert_yaxis()
axis.grid(False, axis="y")
plt.show()
print(working.LEGEND)

# %% [markdown]
# ## 6 · What comes after the U-Net
#
# The article ends with a promise: the diffusion transformer (DiT, Peebles & Xie 2023), which replaces the U-Net. You
# have all its parts but two. It cuts the latent into patches, reads each as a token, and passes them through equal blocks, with
# no down, no up and no skip.

# %% [markdown] exercise="dit.Patchify" role="prompt"
# ### Exercise 5 · Patches and back
#
# `Patchify(p)` has two methods.
#
# - `to_tokens(x)`: (B,C,H,W) → (B,N,p·p·C) with N = (H/p)(W/p). Tokens go through the picture row by row; inside a token the
#   order is (row, column, channel), channels innermost.
# - `to_picture(tokens, height, width)` undoes it: (B,N,p·p·C) → (B,C,H,W). H and W may differ.

# %% exercise="dit.Patchify" role="solution"
class Patchify:
    """(B,C,H,W) <-> (B,N,p*p*C)"""

    def __init__(self, p):
        self.p = p

    def to_tokens(self, x):
        ### BEGIN SOLUTION
        B, C, H, W = x.shape
        p = self.p
        grid = x.reshape(B, C, H // p, p, W // p, p)            # (B,C,h,p,w,p)
        grid = grid.permute(0, 2, 4, 3, 5, 1)                   # (B,h,w,p,p,C)
        return grid.reshape(B, -1, p * p * C)                   # (B,N,p*p*C)
        ### END SOLUTION

    def to_picture(self, tokens, height, width):
        ### BEGIN SOLUTION
        p = self.p
        grid = tokens.reshape(len(tokens), height // p, width // p, p, p, -1)           # (B,h,w,p,p,C)
        grid = grid.permute(0, 5, 1, 3, 2, 4)                   # (B,C,h,p,w,p)
        return grid.reshape(len(tokens), -1, height, width)     # (B,C,H,W)
        ### END SOLUTION


# %% exercise="dit.Patchify" role="check"
check("dit.Patchify", Patchify)

# %% [markdown] exercise="dit.Patchify" role="hint"
# H is (H/p, p): which patch, and which row in it. Split both sides, bring the two "which patch" together, join.
#
# ---
#
# `reshape` never moves a value; `permute` does. Write the shape after each step behind the line.
#
# ---
#
# `rearrange(x, "B C (h p) (w q) -> B (h w) (p q C)", p=p, q=p)`, and the same with its sides changed for the way back.

# %% [markdown]
# A block is told the noise level and the class by one vector $c$. In the U-Net it was added between two convolutions; here
# it *modulates*: $c$ gives each branch a shift, a scale and a gate.
#
# $$x \leftarrow x + g_1\,\mathrm{Attn}\big(\mathrm{LN}(x)(1+s_1)+b_1\big) \qquad
# x \leftarrow x + g_2\,\mathrm{MLP}\big(\mathrm{LN}(x)(1+s_2)+b_2\big)$$
# $$(b_1,s_1,g_1,b_2,s_2,g_2) = W\,\mathrm{silu}(c)+v$$
#
# With $W$ and $v$ at zero all gates are closed, and a new block passes $x$ on: *adaLN-Zero*, the zero convolution of
# chapter 13 and the `conv2` of chapter 06 once more.

# %% [markdown] exercise="dit.Block" role="prompt"
# ### Exercise 6 · adaLN-Zero
#
# `Block(dim, heads)` with `forward(x, c)`: (B,N,dim), (B,dim) → (B,N,dim).
#
# - `qkv`: Linear dim → 3·dim, queries first, then keys, then values, each split into `heads`; `proj`: Linear dim → dim.
# - `mlp`: `nn.Sequential` of Linear dim → 4·dim, `nn.GELU(approximate="tanh")`, Linear 4·dim → dim.
# - `modulation`: `nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))`, the linear layer all zero. Its six outputs are, in order,
#   shift, scale, gate of the attention, then shift, scale, gate of the MLP.
# - LN is `F.layer_norm(x, x.shape[-1:], eps=1e-6)`, without parameters. `attention.attend(q, k, v)` takes (B,h,N,d) each.

# %% exercise="dit.Block" role="solution"
class Block(nn.Module):
    """(B,N,dim), (B,dim) -> (B,N,dim)"""

    def __init__(self, dim, heads):
        super().__init__()
        ### BEGIN SOLUTION
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)
        ### END SOLUTION

    def forward(self, x, c):
        ### BEGIN SOLUTION
        six = self.modulation(c)[:, None].chunk(6, dim=-1)      # (B,1,dim) each
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = six
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_1) + shift_1
        q, k, v = rearrange(self.qkv(h), "B N (three h d) -> three B h N d", three=3, h=self.heads)
        h = rearrange(attention.attend(q, k, v), "B h N d -> B N (h d)")                # (B,N,dim)
        x = x + gate_1 * self.proj(h)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_2) + shift_2
        return x + gate_2 * self.mlp(h)                         # (B,N,dim)
        ### END SOLUTION


# %% exercise="dit.Block" role="check"
check("dit.Block", Block)

# %% [markdown] exercise="dit.Block" role="hint"
# `self.modulation(c)` is (B,6·dim); with `[:, None]` it is (B,1,6·dim) and broadcasts over the tokens.
#
# ---
#
# `.chunk(6, dim=-1)` gives the six in order. Only the scale is `1 + scale`; the gate multiplies what a branch adds, not the sum.
#
# ---
#
# `q, k, v = rearrange(self.qkv(h), "B N (three h d) -> three B h N d", three=3, h=self.heads)`

# %%
Patchify, Block = use("dit.Patchify", Patchify), use("dit.Block", Block)
with torch.device("meta"):
    blocks = nn.ModuleList([Block(1152, 16) for _ in range(28)])                        # DiT-XL
print(f"28 blocks of DiT-XL: {sum(p.numel() for p in blocks.parameters()):,} parameters")

z0 = library.encode_image(data.images(range(1)))                # (1,8,8,8)
noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1))
patches = Patchify(2)
torch.manual_seed(0)
into, out_of = nn.Linear(2 * 2 * 8, 64), nn.Linear(64, 2 * 2 * 8)
stack, place = nn.ModuleList([Block(64, 4) for _ in range(4)]), nn.Parameter(0.02 * torch.randn(1, 16, 64))
levels = nn.Linear(64, 64)
everything = nn.ModuleList([into, out_of, stack, levels])
optimizer = torch.optim.AdamW([*everything.parameters(), place], lr=2e-3)


def dit(x, t):
    """(B,8,8,8), (B,) -> (B,8,8,8)"""
    tokens = into(patches.to_tokens(x)) + place                 # (B,16,64)
    c = levels(layers.timestep_embedding(t, 64))                # (B,64)
    for block in stack:
        tokens = block(tokens, c)                               # (B,16,64)
    return patches.to_picture(out_of(tokens), 8, 8)


openness, losses = [], []
for _ in range({"quick": 3, "cpu": 300, "gpu": 1000}[session.profile]):
    t = torch.randint(1000, (32,))
    x0, eps = z0.expand(32, -1, -1, -1), torch.randn(32, *z0.shape[1:])
    loss = F.mse_loss(dit(library.schedule.add_noise(x0, eps, t), t), library.schedule.to_v(x0, eps, t))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    with torch.no_grad():
        gates = stack[0].modulation(levels(layers.timestep_embedding(t, 64))).chunk(6, -1)
    openness.append([float(gates[i].abs().mean()) for i in (2, 5)])
figure, (left, right_axis) = plt.subplots(1, 2, figsize=(8, 2.4))
left.plot(losses, color=BLUE)
left.set(xlabel="step", ylabel="loss (v)", title="one picture, learned by heart", ylim=(0, None))
for name, which, color, line in (("attention", 0, ORANGE, "-"), ("MLP", 1, GREEN, "--")):
    right_axis.plot([gates[which] for gates in openness], color=color, ls=line, label=name)
right_axis.set(xlabel="step", title="how far the gates of block 1 are open")
right_axis.legend()
plt.show()

# %% [markdown]
# The gates start closed, so at the first step they are all of a block that learns. One picture learned by heart is a test of the
# code and no more: a network that cannot do that can do nothing. The 28 blocks hold 669 of DiT-XL/2's 675 million parameters.
#
# | ImageNet 256 × 256, guided | parameters | FID |
# |---|---|---|
# | LDM-4-G, a U-Net (Rombach et al. 2022, table 3) | 400 million | 3.60 |
# | DiT-XL/2 (Peebles & Xie 2023) | 675 million | 2.27 |
#
# Both diffuse latents, with other autoencoders and other budgets, so the table does not say which *block* is better.
#
# ## Your project
#
# Three directions, each with what would show that it failed. Write that down *before* you train, as this course tried to.
#
# 1. **Text to emoji.** Real pictures, few of them: the 3,600 emoji of Noto with their names as captions.
#    `course train vae --preset emoji --set data.source=FOLDER_OR_TAR`, then
#    `course train ldm --preset emoji --set data.source=FOLDER_OR_TAR --autoencoder runs/vae-emoji`. There is no oracle for
#    emoji: how will you count? Failure: pictures that are copies of training pictures; look for the nearest one of each sample.
# 2. **128 × 128 on a GPU.** Four times the latents. Which schedule (chapter 05, question 5)? Does an autoencoder of f = 8
#    lose the same details? Keep the number of parameters and change one thing at a time. Failure: no better by the oracle's
#    count at 128 than `scenes64` enlarged.
# 3. **Fewer steps.** `course train distill --preset scenes64` halves the steps in each round; `scenes64-fast` draws in two.
#    Put consistency or flow matching (`objectives.flow_matching_loss`) beside it, at equal training time. Failure: worse at
#    four passes of the network than `dpmpp_2m` at four.
#
# And a fourth, if you like to take things apart: put your `Block` in place of the U-Net. `parts.swapped({"unet.UNet":
# YourDiT})` builds the pipeline with it; what you need is `forward(x, t, context=None, added=None, control=None)`, and hours.
#
# ## Questions to think about
#
# 1. Your picture equals the library's to the bit, and yet the check of one part fails. Name two mistakes of this kind.
# 2. Two parts are right alone and wrong together. How could that be, and what does halving find then?
# 3. `scenes64` is stored in half precision, 14 MB. Where in this chapter would you notice if it were stored in 8 bits?
# 4. The oracle counts 48 prompts and the README 1,024. What would convince you that your pipeline is *worse* than the library's?
# 5. A DiT block costs the same at each depth, a U-Net level does not. Where does a transformer of 16 tokens spend its time,
#    where one of 4,096?
#
# ## Recap, of everything
#
# - A picture is squeezed into a latent (01 to 04), noised by a formula (05), and a network learns to say what was added (06).
# - Samplers walk back (07), in latents for a fraction of the price (08), led by words (09) and pushed by guidance (10).
# - Put together that is Stable Diffusion (11); measured honestly it is good at some things (12); it can be steered (13), taught
#   (14) and told more (15).
# - What you did not write you cannot be sure to understand; what you did not measure you do not know. You have done both.
#
# **Next** is yours.
