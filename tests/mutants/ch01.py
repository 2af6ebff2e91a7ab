"""Answers to the exercises of chapter 01: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- flops.conv

CONV = "flops.conv"


def conv_with(factor=2, area=lambda k: k * k, pads=2, plus=1, reads=lambda i, g: i // g, writes=lambda o, g: o,
              strides=lambda s: (s, s), bias=0):
    """The right answer with one thing changed."""
    def conv(in_channels, out_channels, kernel, height, width, stride=1, padding=0, groups=1):
        sides = [(side + pads * padding - kernel) // s + plus
                 for side, s in zip((height, width), strides(stride), strict=True)]
        n = sides[0] * sides[1]
        out = writes(out_channels, groups)
        return factor * n * out * reads(in_channels, groups) * area(kernel) + bias * n * out_channels
    return conv


WRONG[CONV] = [
    ("multiply_adds", conv_with(factor=1), "a multiply and an add are two"),
    ("kernel_not_squared", conv_with(area=lambda k: k), "kernel * kernel"),
    ("no_input_channels", conv_with(reads=lambda i, g: 1), "every output value reads all of them"),
    ("no_output_channels", conv_with(writes=lambda o, g: 1), "output channels are missing"),
    ("no_padding", conv_with(pads=0), "the padding is missing"),
    ("padding_on_one_side", conv_with(pads=1), "padding counts on both sides"),
    ("off_by_one", conv_with(plus=0), "one position too few"),
    ("stride_ignored", conv_with(strides=lambda s: (1, 1)), "the stride is ignored"),
    ("stride_on_one_axis", conv_with(strides=lambda s: (s, 1)), "stride squared"),
    ("groups_ignored", conv_with(reads=lambda i, g: i), "groups are ignored"),
    ("groups_twice", conv_with(writes=lambda o, g: o // g), "only the input channels are divided"),
    ("with_bias", conv_with(bias=1), "the bias is not counted"),
]


@wrong(CONV, "not at every position")
def weights_once(in_channels, out_channels, kernel, height, width, stride=1, padding=0, groups=1):
    return 2 * in_channels // groups * out_channels * kernel**2


@wrong(CONV, "fits at height - 2 places")
def always_same(in_channels, out_channels, kernel, height, width, stride=1, padding=0, groups=1):
    return 2 * (height // stride) * (width // stride) * out_channels * in_channels // groups * kernel**2


@wrong(CONV, "expected a number, got NoneType")
def returns_nothing(in_channels, out_channels, kernel, height, width, stride=1, padding=0, groups=1):
    conv_with()(in_channels, out_channels, kernel, height, width, stride, padding, groups)


@right(CONV)
def by_a_real_layer(in_channels, out_channels, kernel, height, width, stride=1, padding=0, groups=1):
    with torch.device("meta"):
        layer = torch.nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        out = layer(torch.empty(1, in_channels, height, width))
    return 2 * layer.weight.numel() * out.shape[2] * out.shape[3]


@right(CONV)
def by_counting_places(in_channels, out_channels, kernel, height, width, stride=1, padding=0, groups=1):
    rows = len(range(0, height + 2 * padding - kernel + 1, stride))
    columns = len(range(0, width + 2 * padding - kernel + 1, stride))
    return 2.0 * rows * columns * out_channels * in_channels * kernel * kernel / groups


@right(CONV)
def by_numpy(cin, cout, k, h, w, stride=1, padding=0, groups=1):
    sides = (np.array([h, w]) + 2 * padding - k) // stride + 1
    return 2 * np.prod(sides) * cout * (cin // groups) * k**2


# ---- flops.attention

ATTENTION = "flops.attention"


def attention_with(projections=lambda N, M, D, C: 2 * N * D * D + 2 * M * C * D, pairs=lambda N, M, D: 2 * N * M * D,
                   factor=2):
    def attention(queries, dim, keys=None, context_dim=None):
        keys, context_dim = keys or queries, context_dim or dim
        return factor * (projections(queries, keys, dim, context_dim) + pairs(queries, keys, dim))
    return attention


WRONG[ATTENTION] = [
    ("multiply_adds", attention_with(factor=1), "a multiply and an add are two"),
    ("no_output_projection", attention_with(lambda N, M, D, C: N * D * D + 2 * M * C * D), "projection of the output"),
    ("no_projections", attention_with(lambda N, M, D, C: 0), "four projections are missing"),
    ("no_pairs", attention_with(pairs=lambda N, M, D: 0), "queries and keys are missing"),
    ("no_weighted_sum", attention_with(pairs=lambda N, M, D: N * M * D), "the weighted sum of the values is not"),
    ("linear_in_tokens", attention_with(pairs=lambda N, M, D: 2 * N * D), "N * N, not N"),
    ("scores_without_width", attention_with(pairs=lambda N, M, D: 2 * N * M), "over all D channels"),
    ("projection_without_matrix", attention_with(lambda N, M, D, C: 2 * N * D + 2 * M * C), "D x D matrix"),
    ("keys_ignored", lambda n, d, keys=None, context_dim=None: attention_with()(n, d), "keys are ignored"),
    ("k_and_v_of_queries", attention_with(lambda N, M, D, C: 2 * N * D * D + 2 * N * C * D), "not of the N queries"),
    ("context_width_ignored", attention_with(lambda N, M, D, C: 2 * N * D * D + 2 * M * D * D), "context_dim wide"),
    ("context_squared", attention_with(lambda N, M, D, C: 2 * N * D * D + 2 * M * C * C), "context_dim x dim"),
    ("pairs_of_queries", attention_with(pairs=lambda N, M, D: 2 * N * N * D), "not with N"),
]


@right(ATTENTION)
def one_by_one(queries, dim, keys=None, context_dim=None):
    keys = queries if keys is None else keys
    width = dim if context_dim is None else context_dim
    q = out = 2 * queries * dim**2
    k = v = 2 * keys * width * dim
    scores = weighted = 2 * queries * keys * dim
    return q + k + v + scores + weighted + out


@right(ATTENTION)
def as_convolutions(queries, dim, keys=None, context_dim=None):
    keys, width, conv = keys or queries, context_dim or dim, conv_with()
    linear = 2 * conv(dim, dim, 1, queries, 1) + 2 * conv(width, dim, 1, keys, 1)
    return linear + conv(dim, keys, 1, queries, 1) + conv(keys, dim, 1, queries, 1)


@right(ATTENTION)
def as_a_tensor(queries, dim, keys=None, context_dim=None):
    return torch.tensor(attention_with()(queries, dim, keys, context_dim), dtype=torch.float64)


# ---- vae.compression

COMPRESSION = "vae.compression"


def compression_with(values=lambda p, c: 3 * p / c, positions=lambda p, f: p, pairs=lambda p, v: p * p, refuses=True):
    def compression(height, width, f, channels):
        if refuses and (height % f or width % f):
            raise ValueError("does not fit")
        p = height * width / ((height // f) * (width // f))
        v = values(p, channels)
        return v, positions(p, f), pairs(p, v)
    return compression


WRONG[COMPRESSION] = [
    ("channels_ignored", compression_with(lambda p, c: p), "this compares positions"),
    ("turned_round", compression_with(lambda p, c: c / 3 / p), "turn the ratio round"),
    ("f_not_squared", compression_with(lambda p, c: 3 * math.sqrt(p) / c), "positions fall by f squared"),
    ("colours_missing", compression_with(lambda p, c: p / c), "3 colours are missing"),
    ("latent_channels_missing", compression_with(lambda p, c: 3 * p), "divide by the latent's channels"),
    ("channels_exchanged", compression_with(lambda p, c: p * c / 3), "not the other way round"),
    ("positions_f", compression_with(positions=lambda p, f: float(f)), "positions: f shortens both sides"),
    ("positions_are_values", compression_with(positions=lambda p, f: 48.0), "leave the channels out"),
    ("pairs_not_squared", compression_with(pairs=lambda p, v: p), "a pair has two members"),
    ("pairs_of_values", compression_with(pairs=lambda p, v: v * v), "pairs of positions, not of values"),
    ("never_refuses", compression_with(refuses=False), "raise ValueError"),
    ("one_number", lambda h, w, f, c: 3 * f * f / c, "(values, positions, pairs), got"),
]


@wrong(COMPRESSION, "raise ValueError")
def looks_at_the_height_only(height, width, f, channels):
    if height % f:
        raise ValueError
    return 3 * f * f / channels, f**2, f**4


@right(COMPRESSION)
def by_f_alone(height, width, f, channels):
    if (height % f, width % f) != (0, 0):
        raise ValueError(f)
    return 3 * f**2 / channels, f**2, f**4


@right(COMPRESSION)
def by_tensors(height, width, f, channels):
    try:
        with torch.device("meta"):
            x = torch.empty(1, 3, height, width)
            z = F.pixel_unshuffle(x, f)[:, :1].expand(1, channels, -1, -1)
    except RuntimeError as error:
        raise ValueError("f") from error
    positions = x[0, 0].numel() / z[0, 0].numel()
    return [x.numel() / z.numel(), positions, positions * positions]


@right(COMPRESSION)
def by_fractions(height, width, f, channels):
    rows, columns = height / f, width / f
    if not (rows.is_integer() and columns.is_integer()):
        raise ValueError
    return height * width * 3 / (rows * columns * channels), height * width / rows / columns, (height * width / rows / columns)**2


# ---- pixels.power_spectrum

SPECTRUM = "pixels.power_spectrum"


def spectrum_with(line=lambda n: torch.fft.fftfreq(n) * n, radius=lambda y, x: (y * y + x * x).sqrt(), norm="ortho",
                  power=lambda f: f.abs() ** 2, mean=lambda p: p.mean((0, 1)), ring=torch.round, divide=True,
                  before=lambda x: x):
    def power_spectrum(images):
        n = images.shape[-1]
        y = line(n)
        rings = ring(radius(y[:, None], y[None, :])).long()
        p = mean(power(torch.fft.fft2(before(images), norm=norm)))
        sums = torch.bincount(rings.flatten(), weights=p.flatten(), minlength=n)
        counts = torch.bincount(rings.flatten(), minlength=n).clamp(min=1)
        return (sums / counts if divide else sums)[: n // 2 + 1]
    return power_spectrum


WRONG[SPECTRUM] = [
    ("summed", spectrum_with(divide=False), "the ring's power is summed"),
    ("not_orthonormal", spectrum_with(norm=None), "norm='ortho' is missing"),
    ("amplitude", spectrum_with(power=lambda f: f.abs()), "square it"),
    ("frequencies_count_up", spectrum_with(line=lambda n: torch.arange(n).float()), "then the negative ones"),
    ("centred_frequencies", spectrum_with(line=lambda n: torch.arange(n).float() - n // 2), "then the negative ones"),
    ("cycles_per_pixel", spectrum_with(line=torch.fft.fftfreq), "fftfreq(S) * S"),
    ("square_rings", spectrum_with(radius=lambda y, x: torch.maximum(y.abs(), x.abs())), "the radius is sqrt"),
    ("diamond_rings", spectrum_with(radius=lambda y, x: y.abs() + x.abs()), "the radius is sqrt"),
    ("mean_subtracted", spectrum_with(before=lambda x: x - x.mean((2, 3), keepdim=True)), "the mean of the picture was"),
    ("channels_summed", spectrum_with(mean=lambda p: p.mean(0).sum(0)), "the channels are summed"),
    ("radii_cut_off", spectrum_with(ring=torch.floor), "round them"),
    ("all_rings", lambda x: spectrum_with()(F.pad(x, (0, 8, 0, 8))), "expected shape"),
]


@right(SPECTRUM)
def by_a_loop_over_rings(images):
    n = images.shape[-1]
    f = torch.fft.fft2(images.double(), norm="ortho")
    power = (f.real**2 + f.imag**2).mean(dim=(0, 1))
    k = torch.fft.fftfreq(n).double() * n
    r = torch.hypot(k[:, None].expand(n, n), k[None, :].expand(n, n))
    return torch.stack([power[(r >= i - 0.5) & (r < i + 0.5)].mean() for i in range(n // 2 + 1)])


@right(SPECTRUM)
def by_numpy_shifted(images):
    x = images.numpy()
    n = x.shape[-1]
    power = (np.abs(np.fft.fftshift(np.fft.fft2(x), axes=(-2, -1))) ** 2).mean(axis=(0, 1)) / n**2
    y, z = np.indices((n, n)) - n // 2
    ring = np.rint(np.sqrt(y**2 + z**2)).astype(int)
    return torch.from_numpy(np.array([power[ring == i].mean() for i in range(n // 2 + 1)]))


@right(SPECTRUM)
def by_scatter(images):
    n = images.shape[-1]
    k = torch.fft.fftfreq(n, 1 / n)
    ring = torch.cdist(torch.cartesian_prod(k, k), torch.zeros(1, 2))[:, 0].round().long()
    power = (torch.fft.fft2(images).abs() / n).square().mean((0, 1)).reshape(-1)
    out = torch.zeros(int(ring.max()) + 1).scatter_reduce_(0, ring, power, "mean", include_self=False)
    return out[: n // 2 + 1]


# ---- pixels.low_pass

LOW_PASS = "pixels.low_pass"


def low_pass_with(line=lambda n: torch.fft.fftfreq(n) * n, radius=lambda y, x: (y * y + x * x).sqrt(),
                  keep=lambda r, c: r <= c, last=lambda z: z.real):
    def low_pass(x, cutoff):
        y = line(x.shape[-1])
        return last(torch.fft.ifft2(torch.fft.fft2(x) * keep(radius(y[:, None], y[None, :]), cutoff)))
    return low_pass


WRONG[LOW_PASS] = [
    ("high_pass", low_pass_with(keep=lambda r, c: r > c), "fast ones kept"),
    ("strictly_below", low_pass_with(keep=lambda r, c: r < c), "radius <= cutoff"),
    ("cycles_per_pixel", low_pass_with(line=torch.fft.fftfreq), "still there"),
    ("frequencies_count_up", low_pass_with(line=lambda n: torch.arange(n).float()), "expected"),
    ("square", low_pass_with(radius=lambda y, x: torch.maximum(y.abs(), x.abs())), "a circle, not a square"),
    ("diamond", low_pass_with(radius=lambda y, x: y.abs() + x.abs()), "sqrt(down * down"),
    ("complex", low_pass_with(last=lambda z: z), "take the real part"),
    ("magnitude", low_pass_with(last=lambda z: z.abs()), "expected"),
    ("mean_lost", low_pass_with(keep=lambda r, c: (r <= c) & (r > 0)), "the mean of each picture is lost"),
    ("too_gentle", low_pass_with(keep=lambda r, c: torch.exp(-0.5 * (r / max(c, 1e-6)) ** 2)), "expected"),
    ("no_gradient", lambda x, cutoff: low_pass_with()(x.detach(), cutoff), "cut off from x"),
]


@wrong(LOW_PASS, "expected")
def only_one_direction(x, cutoff):
    y = torch.fft.fftfreq(x.shape[-1]) * x.shape[-1]
    return torch.fft.ifft2(torch.fft.fft2(x) * ((y >= 0) & (y <= cutoff))).real


@right(LOW_PASS)
def by_shifting(x, cutoff):
    n = x.shape[-1]
    k = torch.arange(n) - n // 2
    keep = k[:, None] ** 2 + k[None, :] ** 2 <= cutoff**2
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * keep, dim=(-2, -1))).real


@right(LOW_PASS)
def by_the_real_transform(x, cutoff):
    n = x.shape[-1]
    rows, columns = torch.fft.fftfreq(n, 1 / n), torch.fft.rfftfreq(n, 1 / n)
    keep = torch.hypot(*torch.meshgrid(rows, columns, indexing="ij")) <= cutoff + 1e-5
    return torch.fft.irfft2(torch.fft.rfft2(x) * keep, s=(n, n))


@right(LOW_PASS)
def by_matrices(x, cutoff):
    n = x.shape[-1]
    k = torch.arange(n)
    dft = torch.exp(-2j * math.pi * k[:, None] * k / n) / math.sqrt(n)                  # (n,n)
    signed = torch.where(k > n // 2, k - n, k)
    keep = (signed[:, None] ** 2 + signed**2) <= cutoff**2
    return (dft.conj() @ ((dft @ x.to(dft.dtype) @ dft) * keep) @ dft.conj()).real


# ---- pixels.psnr

PSNR = "pixels.psnr"
EACH = (1, 2, 3)
WRONG[PSNR] = [
    ("peak_one", lambda x, y: 10 * torch.log10(1 / (x - y).pow(2).mean(EACH)), "the peak is 2, not 1"),
    ("peak_not_squared", lambda x, y: 10 * torch.log10(2 / (x - y).pow(2).mean(EACH)), "the peak is squared"),
    ("sign", lambda x, y: 10 * torch.log10((x - y).pow(2).mean(EACH) / 4), "the sign is turned"),
    ("bels", lambda x, y: torch.log10(4 / (x - y).pow(2).mean(EACH)), "the factor 10 is missing"),
    ("twenty", lambda x, y: 20 * torch.log10(4 / (x - y).pow(2).mean(EACH)), "mse is a power"),
    ("natural_logarithm", lambda x, y: 10 * torch.log(4 / (x - y).pow(2).mean(EACH)), "not the natural logarithm"),
    ("bytes", lambda x, y: 10 * torch.log10(255**2 / (x - y).pow(2).mean(EACH)), "not 255"),
    ("one_for_the_batch", lambda x, y: (10 * torch.log10(4 / (x - y).pow(2).mean())).expand(len(x)),
     "the mean of the batch"),
    ("summed", lambda x, y: 10 * torch.log10(4 / (x - y).pow(2).sum(EACH)), "take their mean"),
    ("scalar", lambda x, y: 10 * torch.log10(4 / (x - y).pow(2).mean()), "expected shape (2,)"),
    ("absolute", lambda x, y: 10 * torch.log10(4 / (x - y).abs().mean(EACH)), "square it"),
    ("mean_of_decibels", lambda x, y: (10 * torch.log10(4 / (x - y).pow(2))).mean(EACH), "average the squares first"),
]


@right(PSNR)
def by_root_mean_square(x, y):
    return 20 * torch.log10(2 / torch.linalg.vector_norm(x - y, dim=(1, 2, 3)) * math.sqrt(x[0].numel()))


@right(PSNR)
def by_a_loop(x, y):
    return torch.stack([10 * math.log10(4) - 10 * torch.log10(F.mse_loss(a, b)) for a, b in zip(x, y, strict=True)])


@right(PSNR)
def in_bytes_by_numpy(x, y):
    a, b = ((v.double().numpy() + 1) * 127.5 for v in (x, y))
    with np.errstate(divide="ignore"):
        return torch.from_numpy(10 * np.log10(255**2 / ((a - b) ** 2).mean(axis=(1, 2, 3))))


# ---- vae.PatchPCA

PATCH_PCA = "vae.PatchPCA"


class Eigen:
    """The right answer, in pieces that can be changed."""

    def __init__(self, images, f, channels):
        self.f, self.channels = f, channels
        rows = self.cut(images).flatten(0, 2)
        self.mean = self.middle(rows)
        self.basis = self.directions(rows - self.mean)

    def cut(self, x):
        return rearrange(x, "B C (h a) (w b) -> B h w (C a b)", a=self.f, b=self.f)

    def middle(self, rows):
        return rows.mean(0)

    def directions(self, rows):
        return torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, : self.channels]

    def encode(self, x):
        return ((self.cut(x) - self.mean) @ self.basis).permute(0, 3, 1, 2)

    def decode(self, z):
        patches = z.permute(0, 2, 3, 1) @ self.basis.T + self.mean
        return rearrange(patches, "B h w (C a b) -> B C (h a) (w b)", a=self.f, b=self.f)


@wrong(PATCH_PCA, "smallest variance up")
class Smallest(Eigen):
    def directions(self, rows):
        return torch.linalg.eigh(rows.T @ rows)[1][:, : self.channels]


@wrong(PATCH_PCA, "in order of variance")
class Unordered(Eigen):
    def directions(self, rows):
        return torch.linalg.eigh(rows.T @ rows)[1][:, -self.channels:]


@wrong(PATCH_PCA, "is the mean subtracted")
class NoMean(Eigen):
    def middle(self, rows):
        return torch.zeros(rows.shape[1])


@wrong(PATCH_PCA, "offset that all patches share")
class MeanNotAdded(Eigen):
    def decode(self, z):
        patches = z.permute(0, 2, 3, 1) @ self.basis.T
        return rearrange(patches, "B h w (C a b) -> B C (h a) (w b)", a=self.f, b=self.f)


@wrong(PATCH_PCA, "is the mean subtracted")
class MeanNotSubtracted(Eigen):
    def encode(self, x):
        return (self.cut(x) @ self.basis).permute(0, 3, 1, 2)


@wrong(PATCH_PCA, "another order")
class PutBackInAnotherOrder(Eigen):
    def decode(self, z):
        patches = z.permute(0, 2, 3, 1) @ self.basis.T + self.mean
        return rearrange(patches, "B h w (C a b) -> B C (h b) (w a)", a=self.f, b=self.f)


@wrong(PATCH_PCA, "orthonormal")
class Whitened(Eigen):
    """Divides by the standard deviation, and multiplies by it again."""

    def __init__(self, images, f, channels):
        super().__init__(images, f, channels)
        self.scale = ((self.cut(images).flatten(0, 2) - self.mean) @ self.basis).std(0) + 1e-6

    def encode(self, x):
        # in order of variance all the same, so that only the length of a latent gives it away
        order = torch.linspace(2, 1, self.channels)
        return super().encode(x) / self.scale[:, None, None] * order[:, None, None]

    def decode(self, z):
        order = torch.linspace(2, 1, self.channels)
        return super().decode(z * self.scale[:, None, None] / order[:, None, None])


@wrong(PATCH_PCA, "decode: expected shape")
class FlatDecode(Eigen):
    def decode(self, z):
        return super().decode(z).flatten(1)


@wrong(PATCH_PCA, "encode: expected shape")
class ChannelsLast(Eigen):
    def encode(self, x):
        return (self.cut(x) - self.mean) @ self.basis


@wrong(PATCH_PCA, "tensor argument 1 was changed")
class InPlace(Eigen):
    def __init__(self, images, f, channels):
        super().__init__(images, f, channels)
        images -= images.mean()


@right(PATCH_PCA)
class BySingularValues:
    def __init__(self, images, f, channels):
        self.f = f
        patches = F.unfold(images, f, stride=f).transpose(1, 2).flatten(0, 1)           # (n,3ff)
        self.centre = patches.mean(0, keepdim=True)
        self.v = torch.linalg.svd(patches - self.centre, full_matrices=False)[2][:channels]

    def encode(self, x):
        B, _, H, W = x.shape
        patches = F.unfold(x, self.f, stride=self.f).transpose(1, 2)
        return torch.einsum("bnp,cp->bcn", patches - self.centre, self.v).reshape(B, -1, H // self.f, W // self.f)

    def decode(self, z):
        patches = torch.einsum("bcn,cp->bpn", z.flatten(2), self.v) + self.centre.T
        return F.fold(patches, (z.shape[2] * self.f, z.shape[3] * self.f), self.f, stride=self.f)


@right(PATCH_PCA)
class ByConvolution(Eigen):
    """Encoder and decoder as strided convolutions with the same weights."""

    def encode(self, x):
        weight = self.basis.T.reshape(-1, 3, self.f, self.f)
        return F.conv2d(x, weight, -self.mean @ self.basis, stride=self.f)

    def decode(self, z):
        weight = self.basis.T.reshape(-1, 3, self.f, self.f)
        back = F.conv_transpose2d(z, weight, stride=self.f)
        return back + self.mean.reshape(1, 3, self.f, self.f).repeat(1, 1, *z.shape[2:])


@right(PATCH_PCA)
class ByNumpy(Eigen):
    def directions(self, rows):
        values, vectors = np.linalg.eig(np.cov(rows.double().numpy().T))
        order = np.argsort(-values.real)[: self.channels]
        return torch.from_numpy(vectors.real[:, order].copy()).float()
