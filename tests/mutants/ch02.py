"""Answers to the exercises of chapter 02: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from einops.layers.torch import Rearrange
from torch import nn

from course import layers, vae

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- layers.Downsample

DOWN = "layers.Downsample"


def down_with(where=(0, 1, 0, 1), mode="constant", stride=2, size=3, bias=True, symmetric=1, name="conv", change=None):
    """The right answer with one thing changed."""
    class Downsample(nn.Module):
        def __init__(self, channels, asymmetric=False):
            super().__init__()
            self.asymmetric = asymmetric
            setattr(self, name, nn.Conv2d(channels, channels, size, stride, 0 if asymmetric else symmetric, bias=bias))

        def forward(self, x):
            x = F.pad(x, where, mode=mode) if self.asymmetric and where else x
            return (change or (lambda h: h))(getattr(self, name)(x))
    return Downsample


WRONG[DOWN] = [
    ("no_padding", down_with(where=None), "pad before the convolution"),
    ("left_and_top", down_with(where=(1, 0, 1, 0)), "or on the left and at the top"),
    ("right_and_top", down_with(where=(0, 1, 1, 0)), "F.pad counts (left, right, top, bottom)"),
    ("left_and_bottom", down_with(where=(1, 0, 0, 1)), "on the right *and* at the bottom"),
    ("all_four_sides", down_with(where=(1, 1, 1, 1)), "on all four sides"),
    ("border_repeated", down_with(mode="replicate"), "not with copies of the border"),
    ("no_stride", down_with(stride=1), "needs stride=2"),
    ("no_bias", down_with(bias=False), "conv.bias are missing"),
    ("other_name", down_with(name="op"), "are missing: a released file"),
    ("detached", down_with(change=lambda h: h.detach()), "it raised RuntimeError"),
]


@wrong(DOWN, "yours pads on the right and at the bottom")
class AlwaysAsymmetric(down_with()):
    def __init__(self, channels, asymmetric=False):
        super().__init__(channels, True)


@wrong(DOWN, "on all four sides")
class NeverAsymmetric(down_with()):
    def __init__(self, channels, asymmetric=False):
        super().__init__(channels, False)


@wrong(DOWN, "conv.weight should have shape")
class OneGroupAChannel(down_with()):
    def __init__(self, channels, asymmetric=False):
        super().__init__(channels, asymmetric)
        self.conv = nn.Conv2d(channels, channels, 3, 2, 0 if asymmetric else 1, groups=channels)


@wrong(DOWN, "are missing: a released file")
class AveragePooling(nn.Module):
    def __init__(self, channels, asymmetric=False):
        super().__init__()

    def forward(self, x):
        return F.avg_pool2d(x, 2)


@right(DOWN)
class ByZeroPad(nn.Module):
    def __init__(self, channels, asymmetric=False):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)
        self.sides = (0, 1, 0, 1) if asymmetric else (1, 1, 1, 1)

    def forward(self, x):
        return self.conv(nn.ZeroPad2d(self.sides)(x))


@right(DOWN)
class ByFunctionalConvolution(nn.Module):
    def __init__(self, n, asymmetric=False):
        super().__init__()
        self.odd, self.conv = asymmetric, nn.Conv2d(n, n, (3, 3))

    def forward(self, h):
        if self.odd:
            return F.conv2d(F.pad(h, [0, 1, 0, 1]), self.conv.weight, self.conv.bias, stride=2)
        return F.conv2d(h, self.conv.weight, self.conv.bias, stride=(2, 2), padding=1)


@right(DOWN)
class ByPickingEverySecond(nn.Module):
    """Convolve everywhere, keep the odd positions: the same windows."""

    def __init__(self, channels, asymmetric=False):
        super().__init__()
        self.first = int(asymmetric)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(x)[:, :, self.first::2, self.first::2]


@right(DOWN)
class ByConcatenation(nn.Module):
    def __init__(self, channels, asymmetric=False):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=(not asymmetric) * 1)

    def forward(self, x):
        if self.asymmetric:
            x = torch.cat([x, torch.zeros_like(x[..., :1])], dim=3)
            x = torch.cat([x, torch.zeros_like(x[..., :1, :])], dim=2)
        return self.conv(x)


# ---- vae.Encoder

ENCODE = "vae.Encoder"


def encoder_with(moments=2, last_down=False, blocks=0, middle=lambda self, h: self.mid_block(h), attention=True,
                 end=lambda self, h: self.conv_out(F.silu(self.conv_norm_out(h))), eps=1e-6, groups=None, name="conv_in",
                 stem=True, kernel=3, mid_attention=None):
    class Encoder(nn.Module):
        def __init__(self, config):
            super().__init__()
            widths = config.block_channels
            self.stem = nn.PixelUnshuffle(config.stem) if stem else nn.AvgPool2d(config.stem)
            inputs = config.in_channels * (config.stem**2 if stem else 1)
            setattr(self, name, nn.Conv2d(inputs, widths[0], 3, padding=1))
            self.down_blocks, before = nn.ModuleList(), widths[0]
            for i, width in enumerate(widths):
                self.down_blocks.append(vae.Level(before, width, config.layers_per_block + blocks,
                                                  down=last_down or i < len(widths) - 1,
                                                  with_attention=attention and config.has_attention(i)))
                before = width
            asked = config.mid_attention if mid_attention is None else mid_attention
            self.mid_block = vae.Middle(before, asked)
            self.conv_norm_out = nn.GroupNorm(groups or min(32, before // 4), before, eps=eps)
            self.conv_out = nn.Conv2d(before, moments * config.latent_channels, kernel, padding=kernel // 2)

        def forward(self, x):
            h = getattr(self, name)(self.stem(x))
            for level in self.down_blocks:
                h = level(h)
            return end(self, middle(self, h))
    return Encoder


WRONG[ENCODE] = [
    ("mean_only", encoder_with(moments=1), "a mean and a log-variance each"),
    ("one_level_too_deep", encoder_with(last_down=True), "halved once too often"),
    ("one_block_more", encoder_with(blocks=1), "is in no released file"),
    ("middle_forgotten", encoder_with(middle=lambda self, h: h), "mid_block is not applied"),
    ("middle_added", encoder_with(middle=lambda self, h: h + self.mid_block(h)), "it has its own shortcut"),
    ("no_silu", encoder_with(end=lambda s, h: s.conv_out(s.conv_norm_out(h))), "no SiLU between"),
    ("no_norm", encoder_with(end=lambda s, h: s.conv_out(F.silu(h))), "conv_norm_out is not applied"),
    ("silu_first", encoder_with(end=lambda s, h: s.conv_out(s.conv_norm_out(F.silu(h)))), "norm, then SiLU"),
    ("relu", encoder_with(end=lambda s, h: s.conv_out(F.relu(s.conv_norm_out(h)))), "ReLU instead of SiLU"),
    ("eps_of_the_unet", encoder_with(eps=1e-5), "autoencoder's norms have 1e-6"),
    ("other_name", encoder_with(name="conv_first"), "conv_in.weight is missing"),
    ("no_stem", encoder_with(stem=False), "conv_in.weight should have shape"),
    ("one_by_one_at_the_end", encoder_with(kernel=1), "conv_out.weight should have shape"),
    ("attention_forgotten", encoder_with(attention=False), "attentions.0.group_norm.weight is missing"),
    ("attention_always", encoder_with(mid_attention=True), "only where the config asks for it"),
    ("detached", encoder_with(end=lambda s, h: s.conv_out(F.silu(s.conv_norm_out(h.detach())))), "no gradient reaches x"),
]


@wrong(ENCODE, "is missing: a released file")
class LevelsInAPlainList(encoder_with()):
    def __init__(self, config):
        super().__init__(config)
        levels = list(self.down_blocks)
        del self.down_blocks
        self.down_blocks = levels


@right(ENCODE)
class ByTheLibrary(vae.Encoder):
    pass


@right(ENCODE)
class AsASequence(nn.Module):
    def __init__(self, c):
        super().__init__()
        n = len(c.block_channels)
        pairs = zip((c.block_channels[0], *c.block_channels[:-1]), c.block_channels, range(n), strict=True)
        self.conv_in = nn.Conv2d(3 * c.stem * c.stem, c.block_channels[0], (3, 3), padding="same")
        self.down_blocks = nn.Sequential(*[vae.Level(a, b, c.layers_per_block, i + 1 < n, False, c.has_attention(i))
                                           for a, b, i in pairs])
        self.mid_block = vae.Middle(c.block_channels[-1], with_attention=c.mid_attention)
        self.conv_norm_out = layers.group_norm(c.block_channels[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(c.block_channels[-1], 2 * c.latent_channels, 3, 1, 1)
        self.factor = c.stem

    def forward(self, x):
        h = self.mid_block(self.down_blocks(self.conv_in(F.pixel_unshuffle(x, self.factor))))
        h = self.conv_norm_out(h)
        return self.conv_out(h * torch.sigmoid(h))


@right(ENCODE)
class FoldedByRearrange(encoder_with()):
    def __init__(self, config):
        super().__init__(config)
        self.stem = Rearrange("B C (h a) (w b) -> B (C a b) h w", a=config.stem, b=config.stem)


# ---- vae.gradient_estimates

GRAD = "vae.gradient_estimates"


def square_root_free(mean, std, noise):
    return noise / std


def estimates_with(factor=square_root_free, place=lambda mean, std, noise: mean + std * noise,
                   times=lambda path, mean, std, noise: path, value=lambda v, path: v[:, None]):
    def gradient_estimates(f, mean, std, noise):
        z = place(mean, std, noise).detach().requires_grad_()
        path, = torch.autograd.grad(f(z).sum(), z)
        with torch.no_grad():
            score = value(f(mean + std * noise), path) * factor(mean, std, noise)
        return times(path, mean, std, noise), score
    return gradient_estimates


WRONG[GRAD] = [
    ("not_divided", estimates_with(lambda m, s, n: n), "division by std is missing"),
    ("divided_by_the_variance", estimates_with(lambda m, s, n: n / s**2), "divided by std^2"),
    ("multiplied_by_std", estimates_with(lambda m, s, n: n * s), "multiplied by std"),
    ("sign", estimates_with(lambda m, s, n: -n / s), "the sign is turned"),
    ("mean_not_subtracted", estimates_with(lambda m, s, n: (m + s * n) / s**2), "z stands where z - mean should"),
    ("without_the_value", estimates_with(value=lambda v, path: torch.ones_like(path)), "the factor f(z) is missing"),
    ("derivative_in_the_score", estimates_with(value=lambda v, path: path * 1.0), "f' stands where f should"),
    ("wrong_axis", estimates_with(value=lambda v, path: v if path.shape[0] == path.shape[1] else v[:, None]),
     "value[:, None]"),
    ("value_averaged", estimates_with(value=lambda v, path: v.mean()), "each has its own"),
    ("derivative_at_the_mean", estimates_with(place=lambda m, s, n: m + 0 * n), "taken at the mean"),
    ("noise_not_scaled", estimates_with(place=lambda m, s, n: m + n), "the noise has the factor std"),
    ("derivative_by_noise", estimates_with(times=lambda p, m, s, n: p * s), "with respect to the noise"),
    ("derivative_by_std", estimates_with(times=lambda p, m, s, n: p * n), "with respect to std"),
    ("averaged", estimates_with(times=lambda p, m, s, n: p.mean(0)), "leave the mean to the caller"),
]


@wrong(GRAD, "the order is (pathwise, score)")
def exchanged(f, mean, std, noise):
    return estimates_with()(f, mean, std, noise)[::-1]


@wrong(GRAD, "still hangs on a graph")
def not_detached(f, mean, std, noise):
    z = (mean + std * noise).requires_grad_()
    value = f(z)
    path, = torch.autograd.grad(value.sum(), z, retain_graph=True)
    return path, value[:, None] * noise / std


@wrong(GRAD, "was changed in place")
def noise_in_place(f, mean, std, noise):
    out = estimates_with()(f, mean, std, noise)
    noise *= std
    return out


@right(GRAD)
def by_backward(f, mean, std, noise):
    z = torch.nn.Parameter(torch.addcmul(mean, std, noise))
    f(z).sum().backward()
    value = f(z.detach()).reshape(-1, 1)
    return z.grad, value * (z.detach() - mean) / std.square()


@right(GRAD)
def by_a_mean_for_each_draw(f, mean, std, noise):
    means = mean.expand_as(noise).clone().requires_grad_()
    value = f(means + std * noise)
    path, = torch.autograd.grad(value, means, torch.ones_like(value))
    return path.detach(), torch.einsum("n,nd,d->nd", value.detach(), noise, 1 / std)


@right(GRAD)
def by_log_prob(f, mean, std, noise):
    means = mean.expand_as(noise).clone().requires_grad_()
    z = (mean + std * noise).detach()
    density = torch.distributions.Normal(means, std.expand_as(noise)).log_prob(z).sum()
    slope, = torch.autograd.grad(density, means)
    leaf = z.clone().requires_grad_()
    path = torch.autograd.grad(f(leaf).sum(), leaf)[0]
    return [path, slope * f(z)[:, None]]


# ---- vae.monte_carlo_kl

CARLO = "vae.monte_carlo_kl"
LOG_2PI = math.log(2 * math.pi)


def carlo_with(std=lambda v: torch.exp(0.5 * v), q=lambda n, v: -0.5 * (n**2 + v + LOG_2PI),
               p=lambda z, n: -0.5 * (z**2 + LOG_2PI), collect=lambda d: d.flatten(2).sum(2).mean(0), sign=1):
    def monte_carlo_kl(mean, logvar, noise):
        z = mean + std(logvar) * noise
        return collect(sign * (q(noise, logvar) - p(z, noise)))
    return monte_carlo_kl


WRONG[CARLO] = [
    ("variance_for_std", carlo_with(std=torch.exp), "z was drawn with std = exp(logvar)"),
    ("noise_not_scaled", carlo_with(std=torch.ones_like), "z was drawn with std = 1"),
    ("no_log_std", carlo_with(q=lambda n, v: -0.5 * (n**2 + LOG_2PI)), "lacks its term -logvar / 2"),
    ("whole_logvar", carlo_with(q=lambda n, v: -0.5 * (n**2 + LOG_2PI) - v), "it is -logvar / 2"),
    ("logvar_added", carlo_with(q=lambda n, v: -0.5 * (n**2 - v + LOG_2PI)), "sign of logvar"),
    ("sign", carlo_with(sign=-1), "the sign is turned"),
    ("p_at_the_noise", carlo_with(p=lambda z, n: -0.5 * (n**2 + LOG_2PI)), "take it at z"),
    ("no_half", carlo_with(q=lambda n, v: -(n**2) - v, p=lambda z, n: -(z**2)), "the factor 1/2 is missing"),
    ("no_half_in_the_squares", carlo_with(q=lambda n, v: -(n**2) - v / 2, p=lambda z, n: -(z**2)), "1/2 in front of"),
    ("constant_in_p_only", carlo_with(q=lambda n, v: -0.5 * (n**2 + v)), "in one of the two densities only"),
    ("values_averaged", carlo_with(collect=lambda d: d.flatten(2).mean(2).mean(0)), "values of a picture were averaged"),
    ("draws_summed", carlo_with(collect=lambda d: d.flatten(2).sum(2).sum(0)), "the draws were summed"),
    ("first_draw", carlo_with(collect=lambda d: d[0].flatten(1).sum(1)), "only the first draw"),
    ("pictures_averaged", carlo_with(collect=lambda d: d.flatten(2).sum(2).mean(1)), "average over the first axis"),
    ("one_number", carlo_with(collect=lambda d: d.mean()), "one estimate for each of the B pictures"),
    ("detached", carlo_with(collect=lambda d: d.detach().flatten(2).sum(2).mean(0)), "cut off from mean and logvar"),
]


@wrong(CARLO, "whatever is drawn")
def closed_form_plus_its_own_noise(mean, logvar, noise):
    exact = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)
    return carlo_with()(mean, logvar, noise) if mean.numel() < 50 and mean.any() else exact + 0.1


WRONG[CARLO][-1] = ("adds_a_constant", closed_form_plus_its_own_noise, "log q(z) - log p(z) is 0 for each z")


@wrong(CARLO, "was changed in place")
def in_place(mean, logvar, noise):
    mean += torch.exp(0.5 * logvar) * noise.mean(0)
    return carlo_with()(mean - torch.exp(0.5 * logvar) * noise.mean(0), logvar, noise)


@right(CARLO)
def by_distributions(mean, logvar, noise):
    q = torch.distributions.Normal(mean, (logvar / 2).exp())
    z = q.loc + q.scale * noise
    return (q.log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)).sum((2, 3, 4)).mean(0)


@right(CARLO)
def draw_by_draw(mean, logvar, noise):
    total = torch.zeros(len(mean), dtype=mean.dtype)
    for eps in noise:
        z = mean + logvar.exp().sqrt() * eps
        total = total + 0.5 * (z.square() - eps.square() - logvar).reshape(len(mean), -1).sum(-1)
    return total / len(noise)


@right(CARLO)
def by_reduce_in_float64(mu, lv, eps):
    z = mu.double() + torch.sqrt(torch.exp(lv.double())) * eps
    ratio = -(((z - mu) ** 2) / lv.double().exp()) / 2 - lv / 2 + z**2 / 2
    return reduce(ratio, "s b c h w -> b", "sum") / eps.shape[0]


# ---- vae.DiagonalGaussian

GAUSS = "vae.DiagonalGaussian"


def gaussian_with(split=lambda m: m.chunk(2, 1), clamp=lambda v: v.clamp(-30, 20), std=lambda v: torch.exp(0.5 * v),
                  kl=lambda m, v: 0.5 * (m**2 + v.exp() - 1 - v).flatten(1).sum(1), mode=lambda g: g.mean,
                  draw=lambda g, shape, generator: torch.randn(shape, generator=generator)):
    class DiagonalGaussian:
        def __init__(self, moments):
            self.mean, v = split(moments)
            self.logvar = clamp(v)

        def sample(self, generator=None, noise=None):
            noise = draw(self, self.mean.shape, generator) if noise is None else noise
            return self.mean + std(self.logvar) * noise

        def mode(self):
            return mode(self)

        def kl(self):
            return kl(self.mean, self.logvar)
    return DiagonalGaussian


WRONG[GAUSS] = [
    ("exchanged", gaussian_with(split=lambda m: m.chunk(2, 1)[::-1]), "the halves are exchanged"),
    ("alternating", gaussian_with(split=lambda m: (m[:, ::2], m[:, 1::2])), "taken alternately"),
    ("split_the_batch", gaussian_with(split=lambda m: m.chunk(2, 0)), "split the channels, dim=1"),
    ("split_the_rows", gaussian_with(split=lambda m: m.chunk(2, 2)), "split the channels, dim=1"),
    ("no_clamp", gaussian_with(clamp=lambda v: v), "more than float32 can hold"),
    ("clamped_to_20", gaussian_with(clamp=lambda v: v.clamp(-20, 20)), "should become -30, 0, 20"),
    ("clamped_above_only", gaussian_with(clamp=lambda v: v.clamp(max=20)), "a log-variance of -100 stays"),
    ("keeps_the_variance", gaussian_with(clamp=lambda v: v.exp()), "keep its logarithm"),
    ("std_is_the_variance", gaussian_with(std=torch.exp), "multiplied by the variance"),
    ("std_is_logvar", gaussian_with(std=lambda v: v), "multiplied by logvar:"),
    ("std_without_exp", gaussian_with(std=lambda v: 0.5 * v), "take exp of it"),
    ("std_sign", gaussian_with(std=lambda v: torch.exp(-0.5 * v)), "the sign of logvar is turned"),
    ("not_scaled", gaussian_with(std=lambda v: 1.0), "the noise is not scaled"),
    ("std_detached", gaussian_with(std=lambda v: torch.exp(0.5 * v).detach()), "is std detached"),
    ("uniform_noise", gaussian_with(draw=lambda g, shape, gen: torch.rand(shape, generator=gen)), "not torch.rand"),
    ("generator_forgotten", gaussian_with(draw=lambda g, s, gen: torch.randn(s)), "pass generator=generator"),
    ("seeds_inside", gaussian_with(draw=lambda g, s, gen: torch.randn(s, generator=torch.Generator().manual_seed(0))),
     "do not seed inside"),
    ("mode_is_zero", gaussian_with(mode=lambda g: torch.zeros_like(g.mean)), "the mean"),
    ("kl_no_half", gaussian_with(kl=lambda m, v: (m**2 + v.exp() - 1 - v).flatten(1).sum(1)), "factor 1/2 is missing"),
    ("kl_sign", gaussian_with(kl=lambda m, v: 0.5 * (1 + v - m**2 - v.exp()).flatten(1).sum(1)), "never negative"),
    ("kl_no_one", gaussian_with(kl=lambda m, v: 0.5 * (m**2 + v.exp() - v).flatten(1).sum(1)), "the 1 is missing"),
    ("kl_mean_not_squared", gaussian_with(kl=lambda m, v: 0.5 * (m + v.exp() - 1 - v).flatten(1).sum(1)), "not squared"),
    ("kl_logvar_added", gaussian_with(kl=lambda m, v: 0.5 * (m**2 + v.exp() - 1 + v).flatten(1).sum(1)),
     "it is subtracted"),
    ("kl_averaged", gaussian_with(kl=lambda m, v: 0.5 * (m**2 + v.exp() - 1 - v).flatten(1).mean(1)), "were averaged: sum"),
    ("kl_of_the_article", gaussian_with(kl=lambda m, v: -0.5 * (1 + v - m**2 - v.exp()).mean()), "a single number"),
]


@wrong(GAUSS, "the noise that was given is not used")
class ReturnsTheMean(gaussian_with()):
    def sample(self, generator=None, noise=None):
        if noise is not None:
            return self.mean
        return super().sample(generator)


@wrong(GAUSS, "the sample is cut off from the moments")
class WithoutGradient(gaussian_with()):
    @torch.no_grad()
    def sample(self, generator=None, noise=None):
        return super().sample(generator, noise)


@wrong(GAUSS, "was changed in place")
class ClampedInPlace(gaussian_with(lambda m: (m[:, :m.shape[1] // 2], m[:, m.shape[1] // 2:]), lambda v: v.clamp_(-30, 20))):
    pass


@wrong(GAUSS, "it has no .mode")
class WithoutMode:
    def __init__(self, moments):
        self.mean, self.logvar = moments.chunk(2, 1)

    def sample(self, generator=None, noise=None):
        return self.mean

    def kl(self):
        return self.mean.sum(1)


@right(GAUSS)
class BySlices:
    def __init__(self, moments):
        c = moments.size(1) // 2
        self.mean, self.logvar = moments[:, :c], torch.clamp(moments[:, c:], min=-30.0, max=20.0)
        self.std, self.var = torch.exp(self.logvar / 2), torch.exp(self.logvar)

    def sample(self, generator=None, noise=None):
        if noise is None:
            noise = torch.empty_like(self.mean).normal_(generator=generator)
        return torch.addcmul(self.mean, self.std, noise)

    def mode(self):
        return self.mean.clone()

    def kl(self):
        return (0.5 * (self.mean.pow(2) + self.var - self.logvar) - 0.5).sum(dim=(1, 2, 3))


@right(GAUSS)
class ByRearrange:
    def __init__(self, moments):
        self.mean, logvar = rearrange(moments, "b (two c) h w -> two b c h w", two=2)
        self.logvar = torch.minimum(torch.maximum(logvar, torch.tensor(-30.0)), torch.tensor(20.0))

    def sample(self, generator=None, noise=None):
        eps = torch.randn(*self.mean.shape, generator=generator) if noise is None else noise
        return self.logvar.exp().sqrt() * eps + self.mean

    def mode(self):
        return self.mean

    def kl(self):
        return reduce((self.mean**2 + torch.expm1(self.logvar) - self.logvar) / 2, "b c h w -> b", "sum")


@right(GAUSS)
class ByDistributions:
    def __init__(self, moments):
        self.mean, self.logvar = torch.tensor_split(moments, 2, dim=1)
        self.logvar = F.hardtanh(self.logvar, -30, 20)
        self.normal = torch.distributions.Normal(self.mean, torch.exp(0.5 * self.logvar))

    def sample(self, generator=None, noise=None):
        if noise is None:
            noise = torch.normal(0.0, 1.0, self.mean.shape, generator=generator)
        return self.normal.loc + self.normal.scale * noise

    def mode(self):
        return self.normal.mean

    def kl(self):
        return 0.5 * torch.einsum("bchw->b", self.mean**2 + self.logvar.exp() - 1 - self.logvar)


# ---- losses.vae_loss

LOSS = "losses.vae_loss"


def loss_with(error=lambda d: (d**2).flatten(1).sum(1).mean(), kl=lambda m, v: 0.5 * (m**2 + v.exp() - 1 - v),
              collect=lambda k: k.flatten(1).sum(1).mean(), total=lambda d, r, beta: d + beta * r):
    def vae_loss(x, rebuilt, mean, logvar, beta):
        distortion, rate = error(rebuilt - x), collect(kl(mean, logvar))
        return total(distortion, rate, beta), distortion, rate
    return vae_loss


WRONG[LOSS] = [
    ("article_means", loss_with(lambda d: d.square().mean(), collect=lambda k: k.mean()), "sum over the values of a picture"),
    ("rate_averaged", loss_with(collect=lambda k: k.mean()), "sum over the values of a latent"),
    ("distortion_summed", loss_with(error=lambda d: d.square().sum()), "average over the batch"),
    ("rate_summed", loss_with(collect=lambda k: k.sum()), "rate: the pictures were summed"),
    ("absolute", loss_with(error=lambda d: d.abs().flatten(1).sum(1).mean()), "absolute error, or half"),
    ("half", loss_with(error=lambda d: 0.5 * d.square().flatten(1).sum(1).mean()), "absolute error, or half"),
    ("kl_sign", loss_with(kl=lambda m, v: 0.5 * (1 + v - m**2 - v.exp())), "never negative"),
    ("beta_forgotten", loss_with(total=lambda d, r, b: d + r), "not multiplied by beta"),
    ("beta_at_the_distortion", loss_with(total=lambda d, r, b: b * d + r), "it belongs to the rate"),
    ("rate_subtracted", loss_with(total=lambda d, r, b: d - b * r), "both terms are costs"),
    ("rate_missing", loss_with(total=lambda d, r, b: d), "loss: the rate is missing"),
    ("divided", loss_with(total=lambda d, r, b: d + r / b), "divided by beta"),
    ("rate_detached", loss_with(total=lambda d, r, b: d + b * r.detach()), "no gradient reaches mean"),
    ("distortion_detached", loss_with(total=lambda d, r, b: d.detach() + b * r), "no gradient reaches rebuilt"),
    ("logvar_as_variance", loss_with(kl=lambda m, v: 0.5 * (m**2 + v - 1 - v.abs().log())), "rate: "),
    ("no_reduction", loss_with(error=lambda d: d.square().flatten(1).sum(1)), "expected shape ()"),
]


@wrong(LOSS, "beta belongs to the loss")
def beta_in_the_rate(x, rebuilt, mean, logvar, beta):
    d, r = loss_with()(x, rebuilt, mean, logvar, 1.0)[1:]
    return d + beta * r, d, beta * r


@wrong(LOSS, "was changed in place")
def difference_in_place(x, rebuilt, mean, logvar, beta):
    out = loss_with()(x, rebuilt, mean, logvar, beta)
    x -= rebuilt.detach()
    return out


@right(LOSS)
def by_mse_loss(x, rebuilt, mean, logvar, beta):
    d = F.mse_loss(rebuilt, x, reduction="sum") / x.shape[0]
    r = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp()) / x.shape[0]
    return d + r * beta, d, r


@right(LOSS)
def by_means_times_counts(x, rebuilt, mean, logvar, beta):
    d = F.mse_loss(x, rebuilt) * x[0].numel()
    r = (mean.square() + logvar.exp() - logvar - 1).mean() / 2 * mean[0].numel()
    return torch.add(d, r, alpha=beta), d, r


@right(LOSS)
def picture_by_picture(x, rebuilt, mean, logvar, beta):
    rows = [torch.stack([((a - b) ** 2).sum(), 0.5 * (m**2 + v.exp() - v - 1).sum()])
            for a, b, m, v in zip(x, rebuilt, mean, logvar, strict=True)]
    d, r = torch.stack(rows).mean(0)
    return [d + beta * r, d, r]


# ---- vae.active_units

UNITS = "vae.active_units"


def units_with(spread=lambda m: m.var(0), score=lambda spread, m: spread, compare=lambda s, t: s > t, cast=int):
    def active_units(means, threshold=0.01):
        spread_ = spread(means)
        return cast(compare(score(spread_, means), threshold).sum()), spread_
    return active_units


WRONG[UNITS] = [
    ("std_for_variance", units_with(lambda m: m.std(0)), "the variance has no root"),
    ("biased", units_with(lambda m: m.var(0, unbiased=False)), "divided by N: by N - 1"),
    ("not_centred", units_with(lambda m: m.square().sum(0) / (len(m) - 1)), "was not subtracted"),
    ("mean_square", units_with(lambda m: m.square().mean(0)), "was not subtracted"),
    ("over_units", units_with(lambda m: m.flatten(1).var(1)), "taken over the pictures"),
    ("channels", units_with(lambda m: m.var((0, 2, 3))), "not a channel"),
    ("size_for_variance", units_with(score=lambda s, m: m.abs().mean(0)), "a unit that is always 5 is dead too"),
    ("all_of_them", units_with(compare=lambda s, t: s >= 0), "above the threshold"),
    ("fixed_threshold", units_with(compare=lambda s, t: s > 0.01), "threshold 0.001"),
    ("inactive", units_with(compare=lambda s, t: s <= t), "count: expected 24, got 0"),
    ("a_tensor", units_with(cast=lambda n: n), "got a tensor: int(...)"),
    ("share", units_with(cast=lambda n: float(n) / 24), "count should be an int"),
]


@wrong(UNITS, "was changed in place")
def centred_in_place(means, threshold=0.01):
    means -= means.mean(0)
    variance = means.square().sum(0) / (len(means) - 1)
    return int((variance > threshold).sum()), variance


@right(UNITS)
def by_sums(means, threshold=0.01):
    centred = means - means.mean(dim=0, keepdim=True)
    variance = torch.einsum("nchw,nchw->chw", centred, centred) / (means.shape[0] - 1)
    return torch.count_nonzero(variance > threshold).item(), variance


@right(UNITS)
def by_numpy(means, threshold=0.01):
    variance = np.var(means.numpy(), axis=0, ddof=1)
    return int(np.sum(variance > threshold)), torch.from_numpy(variance)


@right(UNITS)
def by_a_loop(means, threshold=0.01):
    columns = means.flatten(1).double().T.tolist()
    found = []
    for column in columns:
        middle = sum(column) / len(column)
        found.append(sum((v - middle) ** 2 for v in column) / (len(column) - 1))
    return sum(v > threshold for v in found), torch.tensor(found).reshape(means.shape[1:])


# ---- vae.scaling_factor

SCALE = "vae.scaling_factor"


def scale_with(function):
    return lambda batches: function([z.double() for z in batches])


WRONG[SCALE] = [
    ("std", scale_with(lambda zs: float(torch.cat(zs).std())), "this is std"),
    ("variance", scale_with(lambda zs: float(1 / torch.cat(zs).var())), "the root is missing"),
    ("rms", scale_with(lambda zs: float(torch.cat(zs).square().mean() ** -0.5)), "the mean was not subtracted"),
    ("mean_square", scale_with(lambda zs: float(1 / torch.cat(zs).square().mean())), "subtract the mean, and take"),
    ("first_batch", lambda zs: float(1 / next(iter(zs)).std()), "only the first batch"),
    ("last_batch", scale_with(lambda zs: float(1 / zs[-1].std())), "only the last batch"),
    ("stds_averaged", scale_with(lambda zs: 1 / float(torch.stack([z.std() for z in zs]).mean())),
     "stds of the batches were averaged"),
    ("a_factor_for_each_channel", scale_with(lambda zs: 1 / torch.cat(zs).std(dim=(0, 2, 3))), "one number for all channels"),
    ("channels_averaged", scale_with(lambda zs: 1 / float(torch.cat(zs).std(dim=(0, 2, 3)).mean())),
     "the stds of the channels were averaged"),
    ("factors_of_channels_averaged", scale_with(lambda zs: float((1 / torch.cat(zs).std(dim=(0, 2, 3))).mean())),
     "the factors of the channels were averaged"),
    ("nothing", scale_with(lambda zs: None), "is the `return` missing?"),
]


@wrong(SCALE, "weigh them by their number of values")
def batches_count_alike(batches):
    moments = [(float(z.mean()), float(z.square().mean())) for z in batches]
    mean, square = (sum(v) / len(moments) for v in zip(*moments, strict=True))
    return (square - mean**2) ** -0.5


@wrong(SCALE, "read the batches once")
def read_twice(batches):
    n = sum(z.numel() for z in batches)
    mean = sum(float(z.sum()) for z in batches) / n
    return (sum(float((z.double() - mean).square().sum()) for z in batches) / n) ** -0.5


@wrong(SCALE, "was changed in place")
def centred_scale(batches):
    zs = list(batches)
    mean = torch.cat([z.flatten() for z in zs]).mean()
    for z in zs:
        z -= mean
    return float(torch.cat([z.flatten() for z in zs]).square().mean() ** -0.5)


@right(SCALE)
def by_joining(batches):
    return 1 / torch.cat([z.flatten() for z in batches]).std()


@right(SCALE)
def by_numpy_in_one_pass(batches):
    n, mean, spread = 0, 0.0, 0.0
    for z in batches:
        values = z.numpy().astype(np.float64)
        m, step = values.size, values.mean() - mean
        spread += ((values - values.mean()) ** 2).sum() + step**2 * n * m / (n + m)
        mean, n = mean + step * m / (n + m), n + m
    return float(np.sqrt(n / spread))


@right(SCALE)
def by_a_list(batches):
    zs = list(batches)
    n = sum(z.numel() for z in zs)
    mean = sum(z.double().sum() for z in zs) / n
    return float((sum((z - mean).double().pow(2).sum() for z in zs) / (n - 1)).rsqrt())
