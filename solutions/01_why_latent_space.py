# %% [markdown]
# # 01 · Why latent space
#
# A diffusion model can be trained on pixels. This chapter asks what that costs, how much of it buys anything that one
# can see, and what could be diffused instead.
#
# **You will be able to**
#
# - count the operations of a convolution and of attention, and of a whole U-Net without running it;
# - say what grows with the resolution, and check it by the clock;
# - take the factor 48 apart: values, positions, pairs, bits, operations;
# - see a picture by its frequencies, and measure which of them carry the words that describe it;
# - build the best linear code of patches, and compare it with averages and with a trained autoencoder;
# - read a choice of $f$ off two curves, cost and quality.
#
# **Time** about 2 hours, of which 75 minutes are exercises. **You need** tensors, convolution, mean and variance; no
# other chapter and no GPU. **In the library** this is `course/training/flops.py`, `course/evaluation/cost.py`,
# `course/data/oracle.py` and `course/vae.py`; in the article, sections 1.1, 1.2 and 2.1.
#
# An exercise that you leave open does not stop you: the course's own part stands in, and an orange banner says so.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from course import attention as attentions
from course import presets
from course.classroom import begin, check, figure_style, use
from course.data import Scenes, oracle
from course.evaluation import cost
from course.pipeline import StableDiffusion
from course.training import flops

session = begin(needs="0.1", seed=1)
COUNT = {"quick": 4, "cpu": 192, "gpu": 512}[session.profile]  # pictures to read
FIT = {"quick": 24, "cpu": 512, "gpu": 1024}[session.profile]   # pictures to fit a code to
SIDES = {"quick": (8, 16), "cpu": (8, 16, 32, 64), "gpu": (8, 16, 32, 64)}[session.profile]
ROUNDS = {"quick": 1, "cpu": 5, "gpu": 7}[session.profile]      # of each timing
BATCH = {"quick": 1, "cpu": 8, "gpu": 16}[session.profile]      # pictures a step

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


# %% [markdown]
# ## How much of a picture do you need?
#
# `Scenes` draws captioned pictures on demand, here 64 × 64 with one object each; values lie in [-1, 1]. Below, each
# $f \times f$ block is replaced by its average; above it is the number of values left. Under the pictures stands what the
# course's *oracle* reads in the first row. It knows how every shape, colour and texture is drawn and tries them all,
# without learning: it measures what can still be told from a picture.

# %%
scenes = Scenes(64, split="test", objects=(1, 1), degraded=0.0)
images, truth = scenes.images(range(COUNT)), scenes.scenes(range(COUNT))  # (COUNT,3,64,64)
FACTORS = (1, 4, 8) if session.profile == "quick" else (1, 2, 4, 8, 16)


def averaged(x, f):
    """Every f x f block by its mean, at the old size; (B,3,H,W) -> same."""
    return F.interpolate(F.avg_pool2d(x, f), scale_factor=f)


def words(picture):
    """What the oracle reads in one picture (3,H,W)."""
    reading = oracle.read(picture[None].clamp(-1, 1))[0]
    if not reading.objects:
        return "nothing"
    thing = reading.objects[0]
    return f"{thing.texture or '?'} {thing.color or '?'} {thing.shape or '?'} on {reading.background or '?'}"


pick = [i for i, s in enumerate(truth) if s.objects[0].texture != "plain"][:2]
rows = [torch.cat([averaged(images[i: i + 1], f) for f in FACTORS]) for i in pick]  # each (5,3,64,64)
strip(rows, [f"f = {f}: {3 * (64 // f) ** 2:,}" for f in FACTORS])
for f, picture in zip(FACTORS, rows[0], strict=True):
    print(f"f = {f:2d}  {words(picture)}")

# %% [markdown]
# Not everything is lost at the same time. At $f = 16$ shape and texture are read wrongly, while colour and background
# are still right. A model that works on pixels spends its effort on all values alike. What does that cost (section
# 1)? And can fewer values keep more than averages do (section 4)?
#
# ## 1 · What a pixel costs
#
# The work of convolutions and attention can be counted on paper. The convention, here and in the library: a multiply
# and an add are *two* floating point operations (FLOPs); biases and norms are not counted.
#
# A convolution computes each output value as a product of a kernel with its window:
#
# $$\mathrm{FLOPs} = 2\; h' w' \cdot c_\text{out} \cdot \frac{c_\text{in}}{g}\, k^2,\qquad
# h' = \left\lfloor\frac{h + 2p - k}{s}\right\rfloor + 1$$
#
# and $w'$ likewise, with kernel $k$, padding $p$ on each side, stride $s$ and $g$ groups.

# %% [markdown] exercise="flops.conv" role="prompt"
# ### Exercise 1 · The price of a convolution
#
# `conv(in_channels, out_channels, kernel, height, width, stride, padding, groups)` returns the FLOPs of a 2-D
# convolution of one picture, as a number. The kernel is square, stride and padding are the same along both sides,
# and height and width may differ. The bias is not counted.

# %% exercise="flops.conv" role="solution"
def conv(in_channels, out_channels, kernel, height, width, stride=1, padding=0, groups=1):
    """FLOPs of a convolution: two for each multiply-add."""
    ### BEGIN SOLUTION
    out_height = (height + 2 * padding - kernel) // stride + 1
    out_width = (width + 2 * padding - kernel) // stride + 1
    outputs = out_height * out_width * out_channels
    products = in_channels // groups * kernel**2                # for each output value
    return 2 * outputs * products
    ### END SOLUTION


# %% exercise="flops.conv" role="check"
check("flops.conv", conv)

# %% [markdown] exercise="flops.conv" role="hint"
# Count the output values, then the multiply-adds behind one of them.
#
# ---
#
# There are $h' w' c_\text{out}$ output values. One of them reads a $k \times k$ window in $c_\text{in} / g$ channels.
#
# ---
#
# `2 * out_height * out_width * out_channels * (in_channels // groups) * kernel**2`

# %%
conv = use("flops.conv", conv)
print("the first 3 x 3 convolution inside Stable Diffusion's U-Net, 320 to 320 channels, on")
for side, what in ((64, "the latent of a 512 x 512 picture"), (512, "the picture itself")):
    print(f"{side:4d} x {side:3d} ({what}): {conv(320, 320, 3, side, side, padding=1) / 1e9:8.1f} GFLOPs")

# %% [markdown]
# 64 times more positions, 64 times more work: a convolution is linear in positions. Attention is not. Among $N$ tokens
# of width $D$, every token meets every other. With $M$ keys of width $C$ (in self-attention $M = N$, $C = D$):
#
# | step | shapes | multiply-adds |
# |---|---|---|
# | $q$, and the output | (N,D) · (D,D), twice | $2ND^2$ |
# | $k$ and $v$ | (M,C) · (C,D), twice | $2MCD$ |
# | scores $q k^\top$ | (N,D) · (D,M) | $NMD$ |
# | weights · $v$ | (N,M) · (M,D) | $NMD$ |

# %% [markdown] exercise="flops.attention" role="prompt"
# ### Exercise 2 · The price of attention
#
# `attention(queries, dim, keys, context_dim)` returns the FLOPs of one attention layer with its four projections.
# `queries` is $N$, `dim` is $D$; `keys` is $M$ and `context_dim` is $C$, where None means self-attention: $M = N$,
# $C = D$. Softmax and biases are not counted; the number of heads does not matter.

# %% exercise="flops.attention" role="solution"
def attention(queries, dim, keys=None, context_dim=None):
    """FLOPs of an attention layer: q, k, v, scores, weighted sum, output."""
    ### BEGIN SOLUTION
    keys = queries if keys is None else keys
    context_dim = dim if context_dim is None else context_dim
    q_and_out = 2 * queries * dim * dim
    k_and_v = 2 * keys * context_dim * dim
    scores_and_sum = 2 * queries * keys * dim
    return 2 * (q_and_out + k_and_v + scores_and_sum)
    ### END SOLUTION


# %% exercise="flops.attention" role="check"
check("flops.attention", attention)

# %% [markdown] exercise="flops.attention" role="hint"
# A product of an (a,b) with a (b,c) matrix takes $abc$ multiply-adds, so $2abc$ FLOPs.
#
# ---
#
# Add the four rows of the table, and double the sum.
#
# ---
#
# `2 * (2 * queries * dim * dim + 2 * keys * context_dim * dim + 2 * queries * keys * dim)`

# %%
attention = use("flops.attention", attention)
WIDTH = 64
layers = {"convolution 3 x 3": nn.Conv2d(WIDTH, WIDTH, 3, padding=1), "self-attention": attentions.CrossAttention(
    WIDTH, heads=1, dim_head=WIDTH)}
counted = {"convolution 3 x 3": lambda s: conv(WIDTH, WIDTH, 3, s, s, padding=1),
           "self-attention": lambda s: attention(s * s, WIDTH)}
seconds = {name: [] for name in layers}
for side in SIDES:
    x = torch.randn(1, WIDTH, side, side)
    given = {"convolution 3 x 3": x, "self-attention": x.flatten(2).transpose(1, 2)}  # (1,C,s,s), (1,s*s,C)
    with torch.no_grad():
        took = cost.interleaved({name: lambda n=name, x=given: layers[n](x[n]) for name in layers}, ROUNDS)
    for name in layers:
        seconds[name].append(took[name])

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9))
for (name, formula), (color, mark) in zip(counted.items(), ((BLUE, "o"), (RED, "s")), strict=True):
    fine = [8, 16, 32, 64, 128, 256, 512]
    left.plot(fine, [formula(s) / 1e9 for s in fine], color=color, marker=mark, ms=4, label=name)
    right.plot(SIDES, [1000 * s for s in seconds[name]], color=color, marker=mark, ms=4, label=name)
left.set(title="counted", xlabel="side", ylabel="GFLOPs", xscale="log", yscale="log", xticks=fine, xticklabels=fine)
right.set(title="by the clock", xlabel="side", ylabel="milliseconds", xscale="log", yscale="log", xticks=SIDES,
          xticklabels=SIDES)
for axis in (left, right):
    axis.minorticks_off()
left.legend()
plt.show()
even = next(s for s in range(4, 999) if attention(s * s, WIDTH) > conv(WIDTH, WIDTH, 3, s, s, padding=1))
print(f"{WIDTH} channels: from side {even} on, attention takes more operations than the convolution")

# %% [markdown]
# Both axes are logarithmic, so a slope is a power: 2 for the convolution (work grows with the area), nearly 4 for
# attention once tokens far outnumber channels (with the *square* of the area). The clock agrees where layers are large
# enough for it to measure work and not overhead.
#
# Now a whole network: a hook on every layer reports its shapes to your two formulas. A `Linear` is a 1 × 1
# convolution over its tokens. On PyTorch's `meta` device tensors have shapes and no values, so the 860 million
# parameters of Stable Diffusion 1.5 cost no memory.

# %%
def count(model, *inputs):
    """{kind: FLOPs} of model(*inputs), by `conv` and `attention`."""
    found = {"convolutions": 0, "attention": 0, "other linear layers": 0}
    known = [m for m in model.modules() if isinstance(m, attentions.CrossAttention)]
    inside = {part for m in known for part in m.modules()} - set(known)

    def note(layer, given, out):
        if isinstance(layer, nn.Conv2d):
            c = layer
            found["convolutions"] += conv(c.in_channels, c.out_channels, c.kernel_size[0], *given[0].shape[2:],
                                          c.stride[0], c.padding[0], c.groups)
        elif isinstance(layer, attentions.CrossAttention):
            x, context = given[0], given[-1]                    # (1,N,D), (1,M,C): the same tensor in self-attention
            found["attention"] += attention(x.shape[1], x.shape[2], context.shape[1], context.shape[2])
        elif isinstance(layer, nn.Linear) and layer not in inside:
            found["other linear layers"] += conv(layer.in_features, layer.out_features, 1, given[0].shape[:-1].numel(), 1)

    hooks = [m.register_forward_hook(note) for m in model.modules()]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return found


with torch.device("meta"):
    sd = presets.build("sd15")

    def sd_inputs(side):
        return torch.empty(1, 4, side, side), torch.zeros(1), torch.empty(1, 77, 768)

    print(f"Stable Diffusion 1.5, one pass for one picture: {cost.parameters(sd):,} parameters at every size")
    print("picture  positions  parameters     TFLOPs  in attention")
    sides = (64, 128, 512) if session.profile == "quick" else (16, 32, 64, 128, 256, 512)
    sd_work = {side: count(sd, *sd_inputs(side)) for side in sides}
    sd_flops = {side: sum(work.values()) for side, work in sd_work.items()}
    for picture, f in ((256, 8), (512, 8), (1024, 8), (512, 1)):
        side = picture // f
        if side not in sides:
            continue
        print(f"{picture:5d}    {side:3d} x {side:3d}  {cost.parameters(sd) / 1e6:7.1f} M  {sd_flops[side] / 1e12:9.2f}"
              f"  {sd_work[side]['attention'] / sd_flops[side]:11.0%}{'' if f > 1 else '   <- no autoencoder'}")

# %% [markdown]
# > **The article says** (section 1.1) that the U-Net grows from about 100 M parameters at 64² to 2 B at 1024², **but** a
# > layer's weights do not know how large the picture is: the same 859,520,964 numbers serve every row above. Published
# > models agree: ADM (Dhariwal & Nichol 2021) has 554 M parameters at 256² and 559 M at 512²; LDM-1, in pixels, has
# > 396 M, and LDM-32 has 395 M. The article's "pixels" are values, $3HW$, and its memory column names no source.
#
# What does grow is operations, time, and what training keeps in memory for the backward pass. Here is the article's
# table again, measured: one network, several sizes.

# %%
def kept(model, *inputs):
    """Bytes that a forward pass keeps for the backward pass, parameters aside."""
    storages, weights = {}, {p.data_ptr() for p in model.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(*inputs)                                    # held, so that no address is used twice
    return sum(storages.values()) + 0 * out.numel()


net = presets.unet.UNet(replace(presets.UNETS["demo-latent"], in_channels=3, out_channels=3))
given = {s: (torch.randn(1, 3, s, s), torch.zeros(1), torch.randn(1, 16, 128)) for s in SIDES}
with torch.no_grad():
    took = cost.interleaved({s: lambda s=s: net(*given[s]) for s in SIDES}, ROUNDS)
print("side  values  parameters    MFLOPs  MB kept to train      ms a pass")
for s in SIDES:
    print(f"{s:4d}  {3 * s * s:6,}  {cost.parameters(net) / 1e6:8.2f} M  {sum(count(net, *given[s]).values()) / 1e6:8,.0f}"
          f"  {kept(net, *given[s]) / 1e6:16.1f}  {1000 * took[s]:13.1f}")
own = [flops.forward(net, *given[s]) == sum(count(net, *given[s]).values()) for s in SIDES]
print("PyTorch's own counter agrees with your formulas:", all(own))

# %% [markdown]
# Memory grows with the area only: PyTorch's fused attention never stores its $N \times N$ weights.
#
# But a sensible pixel network would not be built like this one: it would be narrow where pictures are large. The
# library has a fair pair for 64 × 64 pictures, `demo-pixel` and `demo-latent` ($f = 8$), with about as many parameters.
# A clock drifts, so the two are timed in turns, and only the ratio of the medians is used.

# %%
pair = {name: presets.PIPELINES[name] for name in ("demo-pixel", "demo-latent")}
train = cost.interleaved({n: cost.training_step(c, BATCH) for n, c in pair.items()}, ROUNDS)
sample = cost.interleaved({n: cost.sampling_step(c, BATCH) for n, c in pair.items()}, ROUNDS)
decode = cost.interleaved({"decode": cost.decoding(pair["demo-latent"], BATCH)}, ROUNDS)["decode"]
models = {n: (cost.denoiser(c, "meta"), cost.inputs(c, 1, "meta")) for n, c in pair.items()}
size = {n: cost.parameters(model.unet) for n, (model, _) in models.items()}
words_in = torch.empty(1, 16, 128, device="meta")               # 16 encoded words
work = {n: flops.forward(model.unet, x, t, words_in) for n, (model, (x, t, _)) in models.items()}


def ratio(of):
    return of["demo-pixel"] / of["demo-latent"]


print(f"parameters of the U-Net  {size['demo-pixel'] / 1e6:.2f} M in pixels, {size['demo-latent'] / 1e6:.2f} M in latents")
print(f"pixel / latent:  FLOPs of a pass {ratio(work):.0f}, time of a training step {ratio(train):.0f}, "
      f"of a sampling step {ratio(sample):.0f}")
print(f"decoding, once a picture, takes as long as {decode / sample['demo-latent']:.1f} sampling steps in latents")

# %% [markdown]
# Operations, training time and sampling time fall by different factors, since small tensors keep a processor less busy.
# None of them is 48, the number that is usually quoted.
#
# ## 2 · The factor 48
#
# Stable Diffusion's autoencoder turns $512 \times 512 \times 3$ values into $64 \times 64 \times 4$. In general, $f$ is how
# many times shorter each side becomes, and $c$ is the number of channels of the latent.

# %% [markdown] exercise="vae.compression" role="prompt"
# ### Exercise 3 · Three ratios
#
# `compression(height, width, f, channels)` returns `(values, positions, pairs)`, each as picture divided by latent:
#
# - `values`: numbers in the picture (3 a pixel) by numbers in the latent;
# - `positions`: pixels by places in the latent;
# - `pairs`: pairs of positions, which is what self-attention computes.
#
# If `f` does not divide both sides, raise `ValueError`.

# %% exercise="vae.compression" role="solution"
def compression(height, width, f, channels):
    """(values, positions, pairs) of a picture, each by that of its latent."""
    ### BEGIN SOLUTION
    if height % f or width % f:
        raise ValueError(f"{height} x {width} cannot be divided by {f}")
    pixels, places = height * width, (height // f) * (width // f)
    values = 3 * pixels / (channels * places)
    positions = pixels / places
    return values, positions, positions**2
    ### END SOLUTION


# %% exercise="vae.compression" role="check"
check("vae.compression", compression)

# %% [markdown] exercise="vae.compression" role="hint"
# The latent has `height // f` rows.
#
# ---
#
# Values count channels, 3 on one side and `channels` on the other. Positions do not.
#
# ---
#
# `positions = height * width / ((height // f) * (width // f))`; then `3 * positions / channels` and `positions**2`.

# %%
compression = use("vae.compression", compression)
print("                    f   c   values  positions      pairs")
for name in ("vae-sd", "kl-f4", "kl-f16", "demo-vae"):
    c = presets.VAES[name]
    v, p, q = compression(512, 512, c.factor, c.latent_channels)
    print(f"{name:18s} {c.factor:2d}  {c.latent_channels:2d}  {v:6.0f}x  {p:8.0f}x  {q:8,.0f}x")
print(f"bits, SD: 8 a pixel's value, 32 a latent's float: {512 * 512 * 3 * 8 / (64 * 64 * 4 * 32):.0f}x")
print(f"operations of the same U-Net: {sd_flops[512] / sd_flops[64]:.0f}x")

# %% [markdown]
# > **The article says** (section 2.1) "48× compression". The arithmetic is right, **but** it counts values. Positions,
# > which set the cost of convolutions, fall 64 times; pairs, which set that of attention, 4,096 times; bits, if the
# > latent is kept in 32-bit floats, 12 times. More channels would lower the 48 and leave the cost almost as it was:
# > channels only touch the first and the last layer of the U-Net.
#
# So the count of values is not what saves work. It is a budget for *quality*: how much may the latent know?
#
# ## 3 · Two kinds of detail
#
# Any picture is a sum of waves; the Fourier transform finds them. Frequencies are counted in cycles per picture, up to
# 32 for 64 pixels. We ask not for a wave's direction but for its radius $\sqrt{u^2 + v^2}$, with $u$ cycles down and
# $v$ across. The *power spectrum* says how much power sits at each radius.

# %% [markdown] exercise="pixels.power_spectrum" role="prompt"
# ### Exercise 4 · Power by frequency
#
# `power_spectrum(images)` takes (B,C,S,S) and returns (S // 2 + 1,): entry $k$ is the mean of $|\hat x(u, v)|^2$ over all
# pictures, all channels, and all frequencies whose radius rounds to $k$.
#
# - $\hat x$ is `torch.fft.fft2(images, norm="ortho")`, so that white noise of variance 1 has power 1 everywhere.
# - Index $j$ of the transform is the frequency `fftfreq(S)[j] * S`: 0, 1, 2, … and, from the middle on, negative ones.
# - Ring 0 is the mean of the pictures and stays in. Radii beyond S // 2 (the corners) are left out.

# %% exercise="pixels.power_spectrum" role="solution"
def power_spectrum(images):
    """Mean power at each radius; (B,C,S,S) -> (S//2+1,)."""
    ### BEGIN SOLUTION
    side = images.shape[-1]
    line = torch.fft.fftfreq(side) * side                       # (S,) 0, 1, ..., -2, -1
    ring = (line[:, None] ** 2 + line[None, :] ** 2).sqrt().round().long().flatten()  # (S*S,)
    power = torch.fft.fft2(images, norm="ortho").abs() ** 2     # (B,C,S,S)
    power = power.mean((0, 1)).flatten()                        # (S*S,)
    total = torch.bincount(ring, weights=power)
    return (total / torch.bincount(ring))[: side // 2 + 1]
    ### END SOLUTION


# %% exercise="pixels.power_spectrum" role="check"
check("pixels.power_spectrum", power_spectrum)

# %% [markdown] exercise="pixels.power_spectrum" role="hint"
# You need two (S,S) arrays: the power of each frequency, and the number of its ring.
#
# ---
#
# `line = torch.fft.fftfreq(S) * S`; `line[:, None]` and `line[None, :]` broadcast to (S,S). Round the radius.
#
# ---
#
# `torch.bincount(ring.flatten(), weights=power.flatten())` sums over each ring, `torch.bincount(ring.flatten())` counts.

# %%
power_spectrum = use("pixels.power_spectrum", power_spectrum)
k = torch.arange(1, 33)
spectrum = power_spectrum(images)[1:]
line = torch.linalg.lstsq(torch.stack([k[3:24].log(), torch.ones(21)], 1), spectrum[3:24].log()[:, None]).solution
slope = float(line[0])
noise = torch.randn(COUNT, 3, 64, 64, generator=torch.Generator().manual_seed(1))
figure, axis = plt.subplots(figsize=(6.5, 3))
axis.plot(k, spectrum, color=BLUE, marker="o", ms=3, label="Scenes, 64 x 64")
axis.plot(k, spectrum[3] * (k / 4.0) ** -2, color=ORANGE, ls="--", label="$k^{-2}$: photographs, about")
axis.plot(k, power_spectrum(noise)[1:], color=GREY, ls=":", label="white noise of variance 1")
axis.set(xlabel="cycles per picture, k", ylabel="power", xscale="log", yscale="log", xticks=[1, 2, 4, 8, 16, 32],
         xticklabels=[1, 2, 4, 8, 16, 32])
axis.legend()
plt.show()
print(f"slope between 4 and 24 cycles: {slope:.1f}")

# %% [markdown]
# Slow waves are strong and fast ones weak, because neighbouring pixels agree. Photographs fall by about $k^{-2}$ (Field
# 1987), these drawings faster. Does little power mean little importance? Take the fast waves away and look.

# %% [markdown] exercise="pixels.low_pass" role="prompt"
# ### Exercise 5 · Keep the slow waves
#
# `low_pass(x, cutoff)` takes (B,C,S,S) and returns the same shape: all frequencies with radius up to and including
# `cutoff` cycles per picture are kept as they are, the others are set to 0. The result is real.

# %% exercise="pixels.low_pass" role="solution"
def low_pass(x, cutoff):
    """Only the waves of at most `cutoff` cycles; (B,C,S,S) -> same."""
    ### BEGIN SOLUTION
    side = x.shape[-1]
    line = torch.fft.fftfreq(side) * side                       # (S,)
    radius = (line[:, None] ** 2 + line[None, :] ** 2).sqrt()   # (S,S)
    spectrum = torch.fft.fft2(x)                                # (B,C,S,S), complex
    return torch.fft.ifft2(spectrum * (radius <= cutoff)).real
    ### END SOLUTION


# %% exercise="pixels.low_pass" role="check"
check("pixels.low_pass", low_pass)

# %% [markdown] exercise="pixels.low_pass" role="hint"
# Transform, multiply by 1 or 0, transform back.
#
# ---
#
# The mask is (S,S) and broadcasts over batch and channels. The radius is that of exercise 4, without rounding.
#
# ---
#
# `torch.fft.ifft2(torch.fft.fft2(x) * (radius <= cutoff)).real`

# %%
low_pass = use("pixels.low_pass", low_pass)
CUTOFFS = (8, 46) if session.profile == "quick" else (1, 2, 4, 6, 8, 12, 16, 24, 46)
show = (2, 4, 8, 16, 46)
two = images[pick]                                              # (2,3,64,64)
slow = [torch.cat([low_pass(two[i: i + 1], c) for c in show]) for i in range(2)]  # each (5,3,64,64)
strip([slow[0], slow[1], two[1:] - slow[1]], [f"up to {c} cycles" if c < 46 else "all" for c in show],
      ["kept", "kept", "left out"])

variance = (images - low_pass(images, 0)).pow(2).mean()
shares, readings = [], []
for c in CUTOFFS:
    y = low_pass(images, c)
    shares.append(float(1 - (images - y).pow(2).mean() / variance))
    readings.append(oracle.rates(y.clamp(-1, 1), truth))

LINES = {"background": (GREY, "-."), "color": (ORANGE, "--"), "shape": (BLUE, "-"), "texture": (RED, ":")}
figure, axis = plt.subplots(figsize=(6.5, 3))
axis.plot(CUTOFFS, shares, color="black", lw=0.8, label="share of the variance")
for key, (color, style) in LINES.items():
    axis.plot(CUTOFFS, [r[key] for r in readings], color=color, ls=style, marker="o", ms=4, label=f"{key} read rightly")
axis.set(xlabel="waves kept, up to cycles per picture", ylabel="share", xscale="log", xticks=CUTOFFS, xticklabels=CUTOFFS)
axis.minorticks_off()
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
spike = torch.zeros(1, 1, 64, 64)
spike[..., 0, 0] = 1                                            # all waves alike: what is left of it is their number
print("cycles    waves  variance ", "  ".join(f"{key:>10s}" for key in LINES))
for c, share, r in zip(CUTOFFS, shares, readings, strict=True):
    print(f"{c:5d}   {float(low_pass(spike, c)[0, 0, 0, 0]):6.1%}  {share:8.1%} ", "  ".join(f"{r[key]:10.0%}" for key in LINES))

# %% [markdown]
# Read the table from below. Waves above 16 cycles are four fifths of all waves, hold 3 % of the variance, and hardly a
# word depends on them: they make edges crisp. Below that the words go one after the other: texture, shape, colour. One
# cycle is enough for the background. And variance is no measure of meaning: at 4 cycles three quarters of it are there,
# and half of the shapes cannot be told.
#
# Rombach et al. (2022) name the two regimes in their figure 2. *Perceptual* compression takes away detail that nobody
# misses, and that is most of the bits. *Semantic* compression changes what the picture shows. A model of pixels has to
# learn both. Their proposal: let an autoencoder do the first, once, and diffusion learn the second.
#
# > **The article says** (section 1.2), as a quotation, that high frequencies are perceptually important but semantically
# > redundant, **but** that is a paraphrase, not a sentence of Rombach et al., and where semantics end depends on the
# > words: here texture, a word of the caption, needs higher frequencies than the rest.
#
# ## 4 · The same values, better spent
#
# An average is one *code* among many. To compare codes we need a distance, commonly the peak signal-to-noise ratio in
# decibels:
#
# $$\mathrm{PSNR}(x, y) = 10 \log_{10} \frac{\text{peak}^2}{\text{mean squared error}}$$
#
# where the peak is the width of the range of values: 2, for pictures in [-1, 1].

# %% [markdown] exercise="pixels.psnr" role="prompt"
# ### Exercise 6 · Decibels
#
# `psnr(x, y)` takes two batches (B,C,H,W) with values in [-1, 1] and returns (B,): one number for each picture.

# %% exercise="pixels.psnr" role="solution"
def psnr(x, y):
    """PSNR of each picture in dB; (B,C,H,W), (B,C,H,W) -> (B,)."""
    ### BEGIN SOLUTION
    error = (x - y).flatten(1)                                  # (B,CHW)
    mse = (error**2).mean(1)                                    # (B,)
    peak = 2.0
    ratio = peak**2 / mse
    return 10 * torch.log10(ratio)
    ### END SOLUTION


# %% exercise="pixels.psnr" role="check"
check("pixels.psnr", psnr)

# %% [markdown] exercise="pixels.psnr" role="hint"
# Square the difference, average over everything but the batch, then take the logarithm.
#
# ---
#
# `.mean((1, 2, 3))` averages each picture by itself.
#
# ---
#
# `10 * torch.log10(4 / (x - y).pow(2).mean((1, 2, 3)))`

# %%
psnr = use("pixels.psnr", psnr)
for f in FACTORS[1:]:
    print(f"averages, f = {f:2d}: {psnr(averaged(images, f), images).mean():.1f} dB")

# %% [markdown]
# An average keeps 3 numbers of each $f \times f$ patch. Which 3 would be best? If encoder and decoder are linear, the
# answer is principal component analysis (PCA; Pearson 1901): treat each patch as a vector of $3f^2$ numbers, subtract the
# mean patch, and keep its products with the first $c$ eigenvectors of the covariance. No other linear code of $c$ numbers
# has a smaller squared error on the pictures it was fitted to.
#
# | | shape | |
# |---|---|---|
# | picture | (B,3,H,W) | |
# | patches | (B,3f²,H/f,W/f) | `F.pixel_unshuffle(x, f)`; no arithmetic, only order |
# | latent | (B,c,H/f,W/f) | $z = V^\top(p - \bar p)$, with $V$ of shape (3f²,c) |
# | picture | (B,3,H,W) | $\hat p = V z + \bar p$, then `F.pixel_shuffle` |
#
# It has the shapes of Stable Diffusion's autoencoder. Only the convolutions between are missing.

# %% [markdown] exercise="vae.PatchPCA" role="prompt"
# ### Exercise 7 · The best linear autoencoder
#
# `PatchPCA(images, f, channels)` is fitted to `images` (B,3,H,W) when it is made.
#
# - `.encode(x)`: (B,3,H,W) → (B,channels,H/f,W/f), for pictures of any size that `f` divides.
# - `.decode(z)`: back to (B,3,H,W).
# - Channel 0 has the largest variance, then channel 1, and so on. Eigenvectors have length 1; their signs are free.

# %% exercise="vae.PatchPCA" role="solution"
class PatchPCA:
    """A linear autoencoder of f x f patches, in closed form."""

    def __init__(self, images, f, channels):
        ### BEGIN SOLUTION
        self.f = f
        patches = F.pixel_unshuffle(images, f)                  # (B,3ff,H/f,W/f)
        rows = patches.movedim(1, -1).flatten(0, 2)             # (n,3ff)
        self.mean = rows.mean(0)                                # (3ff,)
        covariance = torch.cov(rows.T.double())                 # (3ff,3ff)
        vectors = torch.linalg.eigh(covariance).eigenvectors    # smallest variance first
        self.basis = vectors.flip(1)[:, :channels].to(images)   # (3ff,c)
        ### END SOLUTION

    def encode(self, x):
        ### BEGIN SOLUTION
        patches = F.pixel_unshuffle(x, self.f).movedim(1, -1)   # (B,h,w,3ff)
        return ((patches - self.mean) @ self.basis).movedim(-1, 1)  # (B,c,h,w)
        ### END SOLUTION

    def decode(self, z):
        ### BEGIN SOLUTION
        patches = z.movedim(1, -1) @ self.basis.T + self.mean   # (B,h,w,3ff)
        return F.pixel_shuffle(patches.movedim(-1, 1), self.f)  # (B,3,H,W)
        ### END SOLUTION


# %% exercise="vae.PatchPCA" role="check"
check("vae.PatchPCA", PatchPCA)

# %% [markdown] exercise="vae.PatchPCA" role="hint"
# Put the patches into the rows of a matrix (n,3f²) first.
#
# ---
#
# `F.pixel_unshuffle(x, f).movedim(1, -1)` is (B,H/f,W/f,3f²): the last axis is a patch. `torch.linalg.eigh` returns
# eigenvectors as columns, those of the smallest eigenvalues first.
#
# ---
#
# `self.basis = torch.linalg.eigh(torch.cov(rows.T)).eigenvectors.flip(1)[:, :channels]`; encode with `@ self.basis`,
# decode with `@ self.basis.T`, and mind the mean in both.

# %%
PatchPCA = use("vae.PatchPCA", PatchPCA)
fitted = Scenes(64, objects=(1, 1), degraded=0.0).images(range(FIT))  # the training split
code = PatchPCA(fitted, 8, 18)
z = code.encode(fitted)                                         # (FIT,18,8,8)
patterns = code.decode(torch.eye(18)[:, :, None, None]) - code.decode(torch.zeros(1, 18, 1, 1))  # (18,3,8,8)
patterns = patterns / patterns.abs().amax((1, 2, 3), keepdim=True)
share = z.var((0, 2, 3)) / F.pixel_unshuffle(fitted, 8).var((0, 2, 3)).sum()
strip([patterns[:9], patterns[9:]], [""] * 9, width=6)
print("share of the variance:", *[f"{s:.1%}" for s in share[:9]])

# %% [markdown]
# The first three patterns are flat: they are the averages again, in other coordinates, and hold most of the variance.
# Slopes come next, then finer waves, much like the cosines of JPEG, though nobody told it about waves.

# %%
pipe = StableDiffusion.load("scenes64")                         # a text-to-image model; here only its autoencoder
CHANNELS, FACTOR = pipe.config.vae.latent_channels, pipe.config.vae.factor
learned = pipe.decode(pipe.encode_image(images))                # (COUNT,3,64,64)


def pca(f, c):
    code = PatchPCA(fitted, f, c)
    return code.decode(code.encode(images)).clamp(-1, 1)


results = {}                                                    # (kind, f, c): (values, dB, rates, pictures)


def measure(kind, f, c, pictures):
    results[kind, f, c] = (c * (64 // f) ** 2, float(psnr(pictures, images).mean()), oracle.rates(pictures, truth), pictures)


for f in FACTORS[1:]:
    measure("averages", f, 3, averaged(images, f))
    measure("PCA of patches", f, 3, pca(f, 3))
for c in (1, CHANNELS) if session.profile == "quick" else (1, CHANNELS, 12, 24, 48):
    measure("PCA, f = 8", 8, c, pca(8, c))
measure("learned", FACTOR, CHANNELS, learned)
measure("the picture", 1, 3, images + 1e-5)

print(f"{'code':15s}   f   c  values     dB   ", "  ".join(f"{key:>10s}" for key in (*LINES, "all but texture")))
for (kind, f, c), (values, dB, rates, _) in sorted(results.items(), key=lambda item: -item[1][0]):
    print(f"{kind:15s}  {f:2d}  {c:2d}  {values:6,}  {min(dB, 99):5.1f}   ",
          "  ".join(f"{rates[key]:10.0%}" for key in (*LINES, "all")))

# %%
titles = ["picture", "averages", "PCA", f"PCA, c = {CHANNELS}", "learned"]
keys = [("the picture", 1, 3), ("averages", 8, 3), ("PCA of patches", 8, 3), ("PCA, f = 8", 8, CHANNELS),
        ("learned", FACTOR, CHANNELS)]
strip([torch.stack([results[key][3][i] for key in keys]) for i in pick], titles, width=6.5)

figure, axes = plt.subplots(1, 2, figsize=(8, 3))
marks = {"averages": (GREY, "o", ":"), "PCA of patches": (ORANGE, "s", "--"), "PCA, f = 8": (GREEN, "^", "-."),
         "learned": (BLUE, "*", "")}
for axis, value, label in ((axes[0], lambda r: r[1], "PSNR, dB"), (axes[1], lambda r: r[2]["shape"], "shape read rightly")):
    for kind, (color, mark, style) in marks.items():
        points = sorted((r[0], value(r)) for (name, *_), r in results.items() if name == kind)
        axis.plot(*zip(*points, strict=True), color=color, marker=mark, ls=style, ms=14 if mark == "*" else 5, label=kind)
    axis.set(xlabel="values kept, of 12,288", ylabel=label, xscale="log", xticks=[48, 192, 768, 3072],
             xticklabels=[48, 192, 768, "3,072"])
    axis.minorticks_off()
axes[0].legend(fontsize=9)
plt.show()

# %% [markdown]
# With 3 numbers a patch, PCA is hardly better than averages, for the reason seen above. With *as many values*, larger
# patches with more channels are better: compare $f = 8$, $c = 12$ with $f = 4$, $c = 3$. And the learned code, with the $f$
# and $c$ of the linear one, is well ahead of it: a network need not add up fixed patterns, it can say where an outline
# runs.
#
# It was trained on plain Scenes, which explains its loss of textures: it never saw one. So its lead says nothing about
# photographs. And no later model can draw what the decoder cannot: its row is a ceiling for what diffusion can generate
# from such latents.
#
# Where does the error sit, and where is room wasted? We know every outline, since we drew it.

# %%
edges = F.max_pool2d(scenes.controls(truth)["edges"], 5, stride=1, padding=2) > 0.5  # (COUNT,1,64,64): within ~2 pixels
print(f"{'near an outline':27s} {edges.float().mean():.0%} of the area")
for key in (("averages", 8, 3), ("PCA, f = 8", 8, CHANNELS), ("learned", FACTOR, CHANNELS)):
    error = (results[key][3] - images).pow(2).mean(1, keepdim=True)  # (COUNT,1,64,64)
    print(f"   {key[0]:24s} {float((error * edges).sum() / error.sum()):.0%} of the squared error")
patches = F.pixel_unshuffle(images, 8).unflatten(1, (3, 64))    # (COUNT,3,64,8,8)
flat = (patches.amax(2) - patches.amin(2)).amax(1) < 0.02       # (COUNT,8,8): one colour all over
print(f"8 x 8 patches of one colour: {flat.float().mean():.0%}")

# %% [markdown]
# Outlines are a small part of the area and most of the error, for every code. At the same time most patches have one
# colour, for which three numbers would do, and a fixed grid gives each of them $c$ values all the same. That is the
# price of a latent that is itself a small picture: convolutions can work on it, and a U-Net can diffuse it.
#
# ## 5 · Which f
#
# A larger $f$ makes diffusion cheaper. What does it cost in quality? Count a whole picture of 512 × 512: 50 steps with
# guidance, so 100 passes of Stable Diffusion's U-Net, and one pass of the decoder of each of the paper's autoencoders.
# Beside it their PSNR on ImageNet (Rombach et al. 2022, table 8), and that of our linear code with the same $f$ and $c$.

# %%
PAPER = {2: ("kl-f2", 32.47), 4: ("kl-f4", 27.53), 8: ("kl-f8", 24.19), 16: ("kl-f16", 24.08), 32: ("kl-f32", 22.27)}
PAPER = {f: PAPER[f] for f in FACTORS[1:]} if session.profile == "quick" else PAPER
table = {}
with torch.device("meta"):
    for f in (1, *PAPER):
        passes = 100 * sd_flops[512 // f] / 1e12
        table[f] = (3, passes, 0.0, None)
        if f in PAPER:
            name, dB = PAPER[f]
            c = presets.VAES[name].latent_channels
            decoder = presets.build(name).decoder
            table[f] = (c, passes, flops.forward(decoder, torch.empty(1, c, 512 // f, 512 // f)) / 1e12, dB)
mine = {f: float(psnr(pca(f, table[f][0]), images).mean()) for f in FACTORS[1:]}
print(" f   c   values      U-Net, TFLOPs  decoder, TFLOPs   PSNR, paper (ImageNet)   PSNR, PCA (Scenes)")
for f, (c, passes, decoder, dB) in table.items():
    print(f"{f:2d}  {c:2d}  {c * (512 // f) ** 2:7,}  {passes:15,.0f}  {decoder:15.1f}  {dB or '-':>15}  "
          f"{f'{mine[f]:.1f}' if f in mine else '-':>22}")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.9))
left.plot(list(table), [row[1] for row in table.values()], color=RED, marker="o", label="100 passes of the U-Net")
left.plot(list(PAPER), [table[f][2] for f in PAPER], color=GREY, marker="s", ls="--", label="decoder, once")
left.set(title="cost of a picture", ylabel="TFLOPs", yscale="log")
right.plot(list(PAPER), [dB for _, dB in PAPER.values()], color=BLUE, marker="o", label="learned, ImageNet (paper)")
right.plot(list(mine), list(mine.values()), color=GREEN, marker="^", ls="-.", label="linear, Scenes (here)")
right.set(title="what the code keeps", ylabel="PSNR, dB")
for axis in (left, right):
    axis.set(xlabel="f", xscale="log", xticks=list(table), xticklabels=list(table))
    axis.minorticks_off()
    axis.legend(fontsize=9)
plt.show()

# %% [markdown]
# On the left, most is gained early: to $f = 4$ the work falls more than a hundredfold, to $f = 8$ by nearly 700. Beyond
# $f = 16$ the decoder begins to matter. On the right, a larger $f$ costs quality unless channels make up for it:
# $f = 16$ with 16 channels keeps about as much as $f = 8$ with 4 in the paper, and more here. Rombach et al. found
# $f = 4$ to $16$ the best trade: after 2 M steps on one GPU LDM-1, in pixels, was 38 FID points behind LDM-8, though
# with batches of 7 pictures instead of 64. Neither curve shows how hard a latent is to *learn*; chapter 08 asks that.
#
# > **The article's title** goes from 512² to 1024². Stable Diffusion 1.x was trained at 512²; 1024² came with SDXL, at the
# > same $f = 8$, and at the price in the table of section 1.
#
# ## Questions to think about
#
# 1. If the U-Net kept attention at its lowest level only, would you still need a latent at $512^2$?
# 2. On which pictures might a learned code do worse than PCA with as many values?
# 3. JPEG also transforms 8 × 8 patches, but spends few bits on flat ones. Why would a latent of varying size be awkward
#    for a U-Net?
# 4. An autoencoder with $f = 8$ and $c = 192$ could store every pixel. What would diffusion gain from it, and what lose?
#
# ## Recap
#
# - Parameters do not grow with the resolution. Convolutions and memory grow with the area, attention with its
#   square, time with both.
# - 48 counts values; positions fall 64 times and pairs 4,096 times. Positions set the cost, values the quality.
# - A picture's power lies in its slow waves. Words need more than power suggests, and each word its own frequencies.
# - Fewer values can keep more, if the code fits the data: larger patches with more channels, and a network over PCA.
# - Errors gather at outlines, room is wasted in flat patches.
#
# **Next**, chapter 02 builds the learned code: an autoencoder whose latents are small, smooth, and fit to be diffused.
