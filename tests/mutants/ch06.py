"""Answers to the exercises of chapter 06: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, reduce

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- layers.timestep_embedding

EMBED = "layers.timestep_embedding"


def embedding_with(frequencies=lambda i, half, top: top ** (-i / half), order="cs", alternate=False, prepare=lambda t: t.float(),
                   factor=1.0, fixed=None):
    """The right answer with one thing changed."""
    def timestep_embedding(t, dim, max_period=10_000):
        i = torch.arange(dim // 2, dtype=torch.float32)
        angles = factor * prepare(t)[:, None] * frequencies(i, dim // 2, fixed or max_period)
        parts = [{"c": angles.cos(), "s": angles.sin()}[p] for p in order]
        return torch.stack(parts, -1).flatten(1) if alternate else torch.cat(parts, dim=-1)
    return timestep_embedding


WRONG[EMBED] = [
    ("sine_first", embedding_with(order="sc"), "sines come first"),
    ("alternating", embedding_with(alternate=True), "alternate"),
    ("cosine_twice", embedding_with(order="cc"), "two times the cosine"),
    ("shift_one", embedding_with(lambda i, half, top: top ** (-i / (half - 1))), "dim/2 - 1"),
    ("divided_by_dim", embedding_with(lambda i, half, top: top ** (-i / (2 * half))), "divided by dim, not by dim/2"),
    ("rising", embedding_with(lambda i, half, top: top ** (i / half)), "the frequencies rise"),
    ("from_one", embedding_with(lambda i, half, top: top ** (-(i + 1) / half)), "highest frequency is missing"),
    ("straight_line", embedding_with(lambda i, half, top: 1 - i / half), "straight line"),
    ("two_pi", embedding_with(factor=2 * math.pi), "no factor 2 pi"),
    ("rounded", embedding_with(prepare=lambda t: t.long().float()), "rounded to whole numbers"),
    ("fixed_period", embedding_with(fixed=10_000), "max_period is ignored"),
    ("one_level_for_all", embedding_with(prepare=lambda t: t[:1].expand(len(t)).float()), "expected"),
    ("no_batch", lambda t, dim, max_period=10_000: embedding_with()(t, dim, max_period)[0], "expected shape (3, 8)"),
]


@wrong(EMBED, "make t (B,1)")
def t_not_broadcast(t, dim, max_period=10_000):
    angles = t.float() * max_period ** (-torch.arange(dim // 2) / (dim // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@right(EMBED)
def by_numpy(t, dim, max_period=10_000):
    angles = np.outer(t.double().numpy(), np.logspace(0, -1, dim // 2, base=max_period, endpoint=False))
    return torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)], axis=1)).float()


@right(EMBED)
def by_complex_numbers(t, dim, max_period=10_000):
    frequencies = max_period ** (-torch.arange(dim // 2, dtype=torch.float64) * 2 / dim)
    turned = torch.polar(torch.ones(len(t), dim // 2, dtype=torch.float64), torch.einsum("b,f->bf", t.double(), frequencies))
    return torch.cat([turned.real, turned.imag], 1)


@right(EMBED)
def by_loops(t, dim, max_period=10_000):
    half = dim // 2
    rows = []
    for level in t.tolist():
        angles = [level / max_period ** (i / half) for i in range(half)]
        rows.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    return torch.tensor(rows)


# ---- layers.normalise_groups

NORM = "layers.normalise_groups"


def norm_with(shape="b (g c) h w -> b g (c h w)", axes=-1, unbiased=False, scale=lambda var, eps: (var + eps).sqrt(),
              affine=lambda v, w, b: v * w.reshape(1, -1, 1, 1) + b.reshape(1, -1, 1, 1), keep_mean=False, groups_used=None):
    def normalise_groups(x, groups, weight, bias, eps=1e-5):
        _, C, H, W = x.shape
        sizes = dict(g=groups_used or groups, h=H, w=W)
        v = rearrange(x, shape, **sizes)
        var, mean = torch.var_mean(v, axes, unbiased=unbiased, keepdim=True)
        v = (v if keep_mean else v - mean) / scale(var, eps)
        left, _, packed = shape.partition(" -> ")
        return affine(rearrange(v, f"{packed} -> {left}", c=C // sizes["g"], **sizes), weight, bias)
    return normalise_groups


WRONG[NORM] = [
    ("no_root", norm_with(scale=lambda var, eps: var + eps), "forget the square root"),
    ("mean_kept", norm_with(keep_mean=True), "mean is not subtracted"),
    ("unbiased", norm_with(unbiased=True), "n - 1"),
    ("not_divided", norm_with(scale=lambda var, eps: 1), "not divided by the standard deviation"),
    ("over_the_batch", norm_with(axes=(0, 2)), "neighbours in the batch"),
    ("one_group", norm_with(groups_used=1), "`groups` is not used"),
    ("interleaved", norm_with("b (c g) h w -> b g (c h w)"), "channels side by side"),
    ("no_affine", norm_with(affine=lambda v, w, b: v), "weight and bias are not used"),
    ("along_the_width", norm_with(affine=lambda v, w, b: v * w + b), "would meet W"),
    ("bias_first", norm_with(affine=lambda v, w, b: (v + b.reshape(1, -1, 1, 1)) * w.reshape(1, -1, 1, 1)), "before the weight"),
    ("eps_outside", norm_with(scale=lambda var, eps: var.sqrt() + eps), "under the root"),
    ("eps_ignored", norm_with(scale=lambda var, eps: (var + 1e-5).sqrt()), "default whatever is asked"),
]


@wrong(NORM, "each channel has statistics of its own")
def per_channel(x, groups, weight, bias, eps=1e-5):
    return F.instance_norm(x, weight=weight, bias=bias, eps=eps)


@wrong(NORM, "was changed in place")
def in_place(x, groups, weight, bias, eps=1e-5):
    out = norm_with()(x, groups, weight, bias, eps)
    x.data -= x.data.mean()
    return out


@wrong(NORM, "is cut off from x")
def without_gradient(x, groups, weight, bias, eps=1e-5):
    return norm_with()(x.detach(), groups, weight.detach(), bias.detach(), eps)


@right(NORM)
def by_torch(x, groups, weight, bias, eps=1e-5):
    return nn.functional.group_norm(x, groups, weight, bias, eps)


@right(NORM)
def by_a_loop_over_groups(x, groups, weight, bias, eps=1e-5):
    parts = []
    for part in x.chunk(groups, dim=1):
        centred = part - part.mean((1, 2, 3), keepdim=True)
        parts.append(centred * (centred.square().mean((1, 2, 3), keepdim=True) + eps).rsqrt())
    return torch.einsum("bchw,c->bchw", torch.cat(parts, 1), weight) + bias[:, None, None]


@right(NORM)
def by_moments_in_float64(x, groups, weight, bias, eps=1e-5):
    v = rearrange(x.double(), "b (g c) h w -> b g c h w", g=groups)
    mean, square = (reduce(m, "b g c h w -> b g 1 1 1", "mean") for m in (v, v**2))
    v = ((v - mean) / torch.sqrt(square - mean**2 + eps)).flatten(1, 2).to(x.dtype)
    return v * weight[None, :, None, None] + bias[None, :, None, None]


# ---- layers.ResBlock

BLOCK = "layers.ResBlock"


class Block(nn.Module):
    """The right answer, in pieces to be changed."""

    def __init__(self, in_channels, out_channels, time_emb_dim=None, eps=1e-5):
        super().__init__()
        self.norm1 = nn.GroupNorm(min(32, in_channels // 4), in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding="same")
        self.time_emb_proj = None if time_emb_dim is None else nn.Linear(time_emb_dim, out_channels)
        self.norm2 = nn.GroupNorm(min(32, out_channels // 4), out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding="same")
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        for p in self.conv2.parameters():
            nn.init.zeros_(p)

    def time(self, time_emb):
        return 0 if self.time_emb_proj is None else self.time_emb_proj(F.silu(time_emb))[..., None, None]

    def first(self, x):
        return self.conv1(F.silu(self.norm1(x)))

    def second(self, h):
        return self.conv2(F.silu(self.norm2(h)))

    def across(self, x):
        return x if self.conv_shortcut is None else self.conv_shortcut(x)

    def forward(self, x, time_emb=None):
        return self.across(x) + self.second(self.first(x) + self.time(time_emb))


def block(name, words, init=None, **methods):
    """A wrong block: `init` runs after the right __init__."""
    def __init__(self, in_channels, out_channels, time_emb_dim=None, eps=1e-5):
        Block.__init__(self, in_channels, out_channels, time_emb_dim, eps)
        if init:
            init(self)
    WRONG.setdefault(BLOCK, []).append((name, type(name, (Block,), {"__init__": __init__, **methods}), words))


def rename(old, new):
    def init(self):
        module = getattr(self, old)
        delattr(self, old)
        setattr(self, new, module)
    return init


def regroup(self):
    self.norm1 = nn.GroupNorm(1, self.norm1.num_channels, self.norm1.eps)


def forget_eps(self):
    self.norm1.eps = self.norm2.eps = 1e-5


block("article_names", "conv_shortcut.weight",
      lambda self: self.conv_shortcut and rename("conv_shortcut", "skip_connection")(self),
      across=lambda self, x: x if getattr(self, "conv_shortcut", 1) is None else self.skip_connection(x))
block("always_a_shortcut", "equal widths need no shortcut",
      lambda self: setattr(self, "conv_shortcut", nn.Conv2d(self.conv1.in_channels, self.conv1.out_channels, 1)))
block("not_zeroed", "set conv2's weight and bias to zero", lambda self: self.conv2.reset_parameters())
block("both_zeroed", "only conv2 starts at zero", lambda self: nn.init.zeros_(self.conv1.weight))
block("no_residual", "is the input added", forward=lambda self, x, e=None: self.second(self.first(x) + self.time(e)))
block("no_time", "time embedding is not added", forward=lambda self, x, e=None: self.across(x) + self.second(self.first(x)))
block("time_without_silu", "no SiLU before its projection",
      time=lambda self, e: 0 if self.time_emb_proj is None else self.time_emb_proj(e)[..., None, None])
block("time_behind_norm2", "between conv1 and norm2", forward=lambda self, x, e=None: self.across(x) + self.conv2(
    F.silu(self.norm2(self.first(x)) + self.time(e))))
block("no_silu", "no SiLU behind norm2", second=lambda self, h: self.conv2(self.norm2(h)))
block("relu", "ReLU instead of SiLU", first=lambda self, x: self.conv1(F.relu(self.norm1(x))),
      second=lambda self, h: self.conv2(F.relu(self.norm2(h))),
      time=lambda self, e: 0 if self.time_emb_proj is None else self.time_emb_proj(F.relu(e))[..., None, None])
block("one_group", "expected", regroup)
block("eps_forgotten", "hand eps on", forget_eps)
block("needs_time", "raised", forward=lambda self, x, e=None: self.across(x) + self.second(
    self.first(x) + self.time_emb_proj(F.silu(e))[:, :, None, None]))
block("time_not_broadcast", "give it two more axes", time=lambda self, e: self.time_emb_proj(F.silu(e)))
block("time_detached", "no gradient reaches time_emb",
      time=lambda self, e: 0 if self.time_emb_proj is None else self.time_emb_proj(F.silu(e.detach()))[..., None, None])


@right(BLOCK)
class InPieces(Block):
    pass


@right(BLOCK)
class FromSequences(nn.Module):
    """Activations as modules, the shortcut an Identity, zeros by multiplication."""

    def __init__(self, in_channels, out_channels, time_emb_dim=None, eps=1e-5):
        super().__init__()
        groups = [c // 4 if c < 128 else 32 for c in (in_channels, out_channels)]
        self.norm1, self.norm2 = (nn.GroupNorm(g, c, eps=eps) for g, c in zip(groups, (in_channels, out_channels), strict=True))
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        self.conv2.weight.data *= 0
        self.conv2.bias.data *= 0
        self.time_emb_proj = nn.Linear(time_emb_dim, out_channels) if time_emb_dim else nn.Identity()
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.nonlinearity = nn.SiLU()

    def forward(self, x, time_emb=None):
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        if time_emb is not None:
            h = h + rearrange(self.time_emb_proj(self.nonlinearity(time_emb)), "b c -> b c 1 1")
        return self.conv2(self.nonlinearity(self.norm2(h))) + self.conv_shortcut(x)


@right(BLOCK)
class ByFunctions(Block):
    """No module is called: only its weights are used."""

    def forward(self, hidden_states, temb=None):
        def swish(v):
            return v * torch.sigmoid(v)

        def norm(m, v):
            return F.group_norm(v, m.num_groups, m.weight, m.bias, m.eps)
        h = F.conv2d(swish(norm(self.norm1, hidden_states)), self.conv1.weight, self.conv1.bias, padding=1)
        if temb is not None:
            h = h + (swish(temb) @ self.time_emb_proj.weight.T + self.time_emb_proj.bias).unsqueeze(-1).unsqueeze(-1)
        h = F.conv2d(swish(norm(self.norm2, h)), self.conv2.weight, self.conv2.bias, padding=1)
        if self.conv_shortcut is None:
            return hidden_states + h
        w = self.conv_shortcut.weight[:, :, 0, 0]
        return torch.einsum("oi,bihw->bohw", w, hidden_states) + self.conv_shortcut.bias[:, None, None] + h


# ---- unet.up_inputs

UP = "unet.up_inputs"


def up_with(add=lambda h, s: h + s, last_first=True, conv_in=True, downs=True, more=1, reverse=True, narrow=True):
    def up_inputs(widths, layers_per_block):
        skips = [widths[0]] if conv_in else []
        for i, width in enumerate(widths):
            skips += [width] * layers_per_block
            skips += [width] if downs and i < len(widths) - 1 else []
        if not last_first:
            skips = skips[::-1]
        current, found = widths[-1], []
        for width in widths[::-1]:
            row = []
            for _ in range(layers_per_block + more):
                row.append(add(current, skips.pop() if skips else 0))
                current = width if narrow else current
            found.append(row)
        return found if reverse else found[::-1]
    return up_inputs


WRONG[UP] = [
    ("way_down_order", up_with(reverse=False), "lowest resolution comes first"),
    ("first_in_first_out", up_with(last_first=False), "last one made is the first"),
    ("h_only", up_with(lambda h, s: h), "the skip is not counted"),
    ("skip_only", up_with(lambda h, s: s), "channels of h are not counted"),
    ("no_extra_block", up_with(more=0), "three a level up"),
    ("conv_in_forgotten", up_with(conv_in=False), "one skip is missing"),
    ("downsampling_forgotten", up_with(downs=False), "one skip is missing"),
    ("h_stays_wide", up_with(narrow=False), "h keeps its channels"),
    ("flat", lambda widths, layers: sum(up_with()(widths, layers), []), "three levels up"),
    ("floats", up_with(lambda h, s: float(h + s)), "whole numbers"),
    ("skip_of_same_width", lambda widths, layers: [[2 * w] * (layers + 1) for w in widths[::-1]], "expected"),
]


@wrong(UP, "list of widths was changed")
def pops_the_widths(widths, layers_per_block):
    found = up_with()(tuple(widths), layers_per_block)
    if isinstance(widths, list):
        widths.pop()
    return found


@right(UP)
def by_the_sums(widths, layers_per_block):
    """No stack: inside a level the skips are known, the last one is the width above."""
    found, n = [], len(widths)
    for i in reversed(range(n)):
        w, below, above = widths[i], widths[min(i + 1, n - 1)], widths[max(i - 1, 0)]
        found.append([below + w] + [w + w] * (layers_per_block - 1) + [w + above])
    return found


@right(UP)
def by_numpy_arrays(widths, layers_per_block):
    w = np.array(widths)
    skips = np.concatenate([w[:1], *([np.repeat(v, layers_per_block + 1)] for v in w)], axis=None)[:-1][::-1]
    h = np.concatenate([w[-1:], np.repeat(w[::-1], layers_per_block + 1)])[:-1]
    return (skips + h).reshape(len(w), -1).tolist()


@right(UP)
def by_recursion(widths, layers_per_block, above=None, below=None):
    w, above = widths[0], above or widths[0]
    inner = by_recursion(widths[1:], layers_per_block, w) if len(widths) > 1 else []
    below = widths[1] if len(widths) > 1 else w
    return [*inner, [below + w, *[2 * w] * (layers_per_block - 1), w + above]]


# ---- unet.unet_forward

PASS = "unet.unet_forward"


def pass_with(join=lambda h, s: torch.cat([h, s], dim=1), take=lambda skips: skips.pop(), middle=2, conv_in_skip=True,
              down_skip=True, up_first=False, end=lambda net, h: net.conv_out(F.silu(net.conv_norm_out(h))), up=True,
              time=lambda e: e, start=lambda net, x: net.conv_in(x)):
    def unet_forward(net, x, time_emb):
        e, h = time(time_emb), start(net, x)
        skips = [h] if conv_in_skip else []
        for level in net.down_blocks:
            for resnet in level.resnets:
                h = resnet(h, e)
                skips.append(h)
            if level.downsamplers is not None:
                h = level.downsamplers[0](h)
                skips += [h] if down_skip else []
        for resnet in list(net.mid_block.resnets)[:middle]:
            h = resnet(h, e)
        for level in net.up_blocks:
            if up_first and level.upsamplers is not None:
                h = level.upsamplers[0](h)
            for resnet in level.resnets:
                h = resnet(join(h, take(skips)), e)
            if up and not up_first and level.upsamplers is not None:
                h = level.upsamplers[0](h)
        return end(net, h)
    return unet_forward


WRONG[PASS] = [
    ("skip_first", pass_with(lambda h, s: torch.cat([s, h], 1)), "the skip stands in front of h"),
    ("added", pass_with(lambda h, s: h + s if h.shape == s.shape else h), "concatenate h and its skip"),
    ("zeros", pass_with(lambda h, s: torch.cat([h, torch.zeros_like(s)], 1)), "replaced by zeros"),
    ("first_in_first_out", pass_with(take=lambda skips: skips.pop(0)), "differ in resolution"),
    ("no_middle", pass_with(middle=0), "the middle is left out"),
    ("half_a_middle", pass_with(middle=1), "only one of the two blocks"),
    ("conv_in_forgotten", pass_with(conv_in_skip=False), "ran empty"),
    ("downsampling_forgotten", pass_with(down_skip=False), "keep what each downsampling gives"),
    ("upsample_too_early", pass_with(up_first=True), "differ in resolution"),
    ("no_silu", pass_with(end=lambda net, h: net.conv_out(net.conv_norm_out(h))), "no SiLU between"),
    ("no_norm", pass_with(end=lambda net, h: net.conv_out(F.silu(h))), "conv_norm_out is not used"),
    ("no_conv_out", pass_with(end=lambda net, h: F.silu(net.conv_norm_out(h))), "expected shape"),
    ("no_time", pass_with(time=torch.zeros_like), "no time embedding"),
    ("wrong_axis", pass_with(lambda h, s: torch.cat([h, s], 2)), "another number of channels"),
    ("detached", pass_with(lambda h, s: torch.cat([h.detach(), s], 1)), "no gradient reaches"),
]


@wrong(PASS, "a ModuleList cannot be called")
def calls_the_list(net, x, time_emb):
    h = net.conv_in(x)
    for level in net.down_blocks:
        for resnet in level.resnets:
            h = resnet(h, time_emb)
        h = level.downsamplers(h)
    return h


@wrong(PASS, "test for it")
def no_look_for_none(net, x, time_emb):
    h = net.conv_in(x)
    for level in net.down_blocks:
        for resnet in level.resnets:
            h = resnet(h, time_emb)
        h = level.downsamplers[0](h)
    return h


@right(PASS)
def in_pieces(net, x, time_emb):
    return pass_with()(net, x, time_emb)


@right(PASS)
def by_a_recursion(net, x, time_emb):
    n = len(net.down_blocks)

    def level(i, h, above):
        down, up, made = net.down_blocks[i], net.up_blocks[n - 1 - i], [above]
        for resnet in down.resnets:
            h = resnet(h, time_emb)
            made.append(h)
        if down.downsamplers is not None:
            below = down.downsamplers[0](h)
            h = level(i + 1, below, below)
        else:
            for resnet in net.mid_block.resnets:
                h = resnet(h, time_emb)
        for resnet, skip in zip(up.resnets, made[::-1], strict=True):
            h = resnet(torch.cat((h, skip), 1), time_emb)
        return h if up.upsamplers is None else up.upsamplers[0](h)

    h = net.conv_in(x)
    return net.conv_out(nn.SiLU()(net.conv_norm_out(level(0, h, h))))


@right(PASS)
def by_counting(net, x, time_emb):
    kept = {0: net.conv_in(x)}
    for level in net.down_blocks:
        for module in [*level.resnets, *(level.downsamplers or [])]:
            last = kept[len(kept) - 1]
            kept[len(kept)] = module(last, time_emb) if hasattr(module, "conv1") else module(last)
    h, k = kept[len(kept) - 1], len(kept)
    h = net.mid_block.resnets[1](net.mid_block.resnets[0](h, time_emb), time_emb)
    for level in net.up_blocks:
        for resnet in level.resnets:
            k -= 1
            h = resnet(torch.hstack([h, kept[k]]), time_emb)
        for upsample in level.upsamplers or ():
            h = upsample(h)
    h = net.conv_norm_out(h)
    return net.conv_out(h * h.sigmoid())


# ---- objectives.simple_loss

LOSS = "objectives.simple_loss"


def loss_with(target=lambda x0, noise, x_t: noise, measure=F.mse_loss, a=torch.sqrt, s=lambda ab: (1 - ab).sqrt(),
              t=lambda T, B, g: torch.randint(T, (B,), generator=g), draw=lambda x, g: torch.randn(x.shape, generator=g),
              tell=lambda t, T: t, seeded=None, ask=lambda model, x_t, t: model(x_t, t)):
    def simple_loss(model, x0, alphas_cumprod, generator=None):
        g, T = torch.Generator().manual_seed(seeded) if seeded is not None else generator, len(alphas_cumprod)
        level = t(T, len(x0), g)
        noise = draw(x0, g).to(x0)
        bars = alphas_cumprod[level].reshape(-1, 1, 1, 1)
        x_t = a(bars).to(x0) * x0 + s(bars).to(x0) * noise
        return measure(ask(model, x_t, tell(level, T)), target(x0, noise, x_t))
    return simple_loss


WRONG[LOSS] = [
    ("target_x0", loss_with(lambda x0, noise, x_t: x0), "the target is x_0"),
    ("target_x_t", loss_with(lambda x0, noise, x_t: x_t), "the target is x_t"),
    ("noise_drawn_twice", loss_with(lambda x0, noise, x_t: torch.randn_like(noise)), "draw the noise once"),
    ("summed", loss_with(measure=lambda p, y: (p - y).square().sum()), "✗ worked out"),
    ("l1", loss_with(measure=F.l1_loss), "✗ worked out"),
    ("half", loss_with(measure=lambda p, y: 0.5 * F.mse_loss(p, y)), "factor 1/2"),
    ("not_reduced", loss_with(measure=lambda p, y: (p - y).square()), "take the mean of the squared errors"),
    ("no_roots", loss_with(a=lambda ab: ab, s=lambda ab: 1 - ab), "square roots are missing"),
    ("exchanged", loss_with(a=lambda ab: (1 - ab).sqrt(), s=torch.sqrt), "signal and noise are exchanged"),
    ("turned", loss_with(lambda x0, noise, x_t: -noise), "sign of the target"),
    ("one_level", loss_with(t=lambda T, B, g: torch.randint(T, (1,), generator=g).expand(B)), "draw t of shape (B,)"),
    ("last_level_missing", loss_with(t=lambda T, B, g: torch.randint(T - 1, (B,), generator=g)), "leaves T out"),
    ("level_zero_missing", loss_with(t=lambda T, B, g: torch.randint(1, T, (B,), generator=g)), "level 0 is never drawn"),
    ("other_level_told", loss_with(tell=lambda t, T: T - 1 - t), "at the level that the network is told"),
    ("t_as_share", loss_with(tell=lambda t, T: t / T), "an integer dtype"),
    ("one_noise_for_all", loss_with(draw=lambda x, g: torch.randn(x[:1].shape, generator=g).expand(x.shape)), "same noise"),
    ("seeded_inside", loss_with(seeded=0), "do not seed inside"),
    ("generator_ignored", loss_with(draw=lambda x, g: torch.randn(x.shape)), "pass generator=generator"),
    ("no_grad", loss_with(ask=lambda model, x_t, t: model(x_t, t).detach()), "cut off from the network"),
    ("asked_twice", loss_with(ask=lambda model, x_t, t: (model(x_t, t) + model(x_t, t)) / 2), "one call of the network"),
    ("float64", loss_with(ask=lambda model, x_t, t: model(x_t.double(), t)), "dtype"),
]


@right(LOSS)
def in_one_piece(model, x0, alphas_cumprod, generator=None):
    return loss_with()(model, x0, alphas_cumprod, generator)


@right(LOSS)
def noise_before_t_and_a_loop(model, x0, alphas_cumprod, generator=None):
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    t = (torch.rand(len(x0), generator=generator) * len(alphas_cumprod)).long()
    x_t = torch.stack([math.sqrt(alphas_cumprod[k]) * x + math.sqrt(1 - alphas_cumprod[k]) * e
                       for x, e, k in zip(x0, noise, t.tolist(), strict=True)])
    return ((noise - model(x_t, t)) ** 2).flatten(1).mean(1).mean()


@right(LOSS)
def stratified_with_einsum(model, x0, alphas_cumprod, generator=None):
    B, T = len(x0), len(alphas_cumprod)
    t = ((torch.randperm(B, generator=generator) + torch.rand(B, generator=generator)) / B * T).long()
    noise = torch.empty_like(x0).normal_(generator=generator)
    rows = torch.stack([alphas_cumprod[t].sqrt(), (1 - alphas_cumprod[t]).sqrt()]).to(x0)
    error = model(torch.einsum("kb,kbchw->bchw", rows, torch.stack([x0, noise])), t) - noise
    return torch.einsum("bchw,bchw->", error, error) / error.numel()


# ---- loop.update_average

EMA = "loop.update_average"


def average_with(share=lambda step, decay: min(decay, (1 + step) / (10 + step)), mix=lambda a, p, d: d * a + (1 - d) * p):
    def update_average(average, model, step, decay=0.999):
        with torch.no_grad():
            for name, p in model.named_parameters():
                average[name] = mix(average[name], p, share(step, decay))
    return update_average


WRONG[EMA] = [
    ("exchanged", average_with(mix=lambda a, p, d: (1 - d) * a + d * p), "shares are exchanged"),
    ("share_missing", average_with(mix=lambda a, p, d: d * a + p), "do not add up to 1"),
    ("weights_missing", average_with(mix=lambda a, p, d: d * a), "weights are not mixed in"),
    ("copy", average_with(mix=lambda a, p, d: p.clone()), "weights replace the average"),
    ("no_warm_up", average_with(lambda step, decay: decay), "warm-up is missing"),
    ("larger_share", average_with(lambda step, decay: max(decay, (1 + step) / (10 + step))), "✗ worked by hand"),
    ("step_from_one", average_with(lambda step, decay: min(decay, (2 + step) / (11 + step))), "counted from 1"),
    ("decay_fixed", average_with(lambda step, decay: min(0.999, (1 + step) / (10 + step))), "expected 11"),
]


@wrong(EMA, "has not changed")
def new_dictionary(average, model, step, decay=0.999):
    average = dict(average)
    average_with()(average, model, step, decay)


@wrong(EMA, "has a gradient")
def keeps_the_graph(average, model, step, decay=0.999):
    d = min(decay, (1 + step) / (10 + step))
    for name, p in model.named_parameters():
        average[name] = d * average[name] + (1 - d) * p


@wrong(EMA, "of the model was changed")
def moves_the_model(average, model, step, decay=0.999):
    average_with()(average, model, step, decay)
    for name, p in model.named_parameters():
        p.data.copy_(average[name])


@wrong(EMA, "raised KeyError")
def buffers_as_well(average, model, step, decay=0.999):
    d = min(decay, (1 + step) / (10 + step))
    for name, p in model.state_dict().items():
        average[name].lerp_(p, 1 - d)


@right(EMA)
def in_place_by_lerp(average, model, step, decay=0.999):
    d = min(decay, (1 + step) / (10 + step))
    for name, p in model.named_parameters():
        average[name].lerp_(p.detach(), 1 - d)


@right(EMA)
def by_the_difference(average, model, step, decay=0.999):
    rate = max(1 - decay, 9 / (10 + step))
    for name, p in model.named_parameters():
        average[name] += rate * (p.data - average[name])


@right(EMA)
@torch.no_grad()
def by_a_fused_call(average, model, step, decay=0.999):
    parameters = dict(model.named_parameters())
    d = min(decay, (1 + step) / (10 + step))
    mine = [average[name] for name in parameters]
    torch._foreach_mul_(mine, d)
    torch._foreach_add_(mine, list(parameters.values()), alpha=1 - d)
