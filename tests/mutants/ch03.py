"""Answers to the exercises of chapter 03: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import reduce
from torch import nn

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda thing: WRONG.setdefault(id, []).append((thing.__name__, thing, words)) or thing


def right(id: str):
    return lambda thing: RIGHT.setdefault(id, []).append((thing.__name__, thing)) or thing


# ---- losses.fine_share

FINE = "losses.fine_share"


def fine_with(centre=True, of=lambda p: p**2, length=lambda v, u: (v**2 + u**2) ** 0.5, pick=lambda r, c: r > c,
              divide=True, axes=(1, 2, 3), fixed=None):
    """The right answer with one thing changed."""
    def fine_share(x, cutoff=0.25):
        height, width = x.shape[-2:]
        p = of(torch.fft.fft2(x - x.mean((-2, -1), keepdim=True) if centre else x).abs())
        radius = length(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
        fine = (p * pick(radius, fixed or cutoff)).sum(axes)
        return fine / p.sum(axes) if divide else fine
    return fine_share


WRONG[FINE] = [
    ("amplitudes", fine_with(of=lambda p: p), "share of amplitudes"),
    ("mean_counted", fine_with(centre=False), "mean of the picture"),
    ("coarse", fine_with(pick=lambda r, c: r <= c), "coarse share"),
    ("not_divided", fine_with(divide=False), "divide by the whole"),
    ("each_axis", fine_with(length=lambda v, u: torch.maximum(v.abs(), u.abs())), "each axis was compared"),
    ("across_only", fine_with(length=lambda v, u: u.abs() * math.sqrt(2) + 0 * v), "only one direction"),
    ("whole_batch", fine_with(axes=(0, 1, 2, 3)), "expected shape (2,), got ()"),
    ("per_channel", fine_with(axes=(2, 3)), "expected shape (2,), got (2, 3)"),
    ("cutoff_fixed", fine_with(fixed=0.25), "cutoff is not used"),
]


@wrong(FINE, "changed in place")
def centred_in_place(x, cutoff=0.25):
    x -= x.mean((-2, -1), keepdim=True)
    return fine_with()(x, cutoff)


RIGHT[FINE] = [("squared_length", fine_with(pick=lambda r, c: r**2 > c**2))]


@right(FINE)
def by_numpy(x, cutoff=0.25):
    p = np.abs(np.fft.fft2(x.double().numpy())) ** 2
    p[..., 0, 0] = 0
    v, u = np.fft.fftfreq(x.shape[-2])[:, None], np.fft.fftfreq(x.shape[-1])
    return torch.tensor((p * (np.hypot(v, u) > cutoff)).sum((1, 2, 3)) / p.sum((1, 2, 3))).float()


@right(FINE)
def by_a_loop_without_zero(pictures, cutoff=0.25):
    shares = []
    for picture in pictures:
        power = torch.view_as_real(torch.fft.fft2(picture, norm="ortho")).square().sum(-1)
        power[:, 0, 0] = 0
        v, u = torch.meshgrid(*(torch.fft.fftfreq(n) for n in picture.shape[-2:]), indexing="ij")
        shares.append(power[:, torch.hypot(v, u) > cutoff].sum() / power.sum())
    return torch.stack(shares)


# ---- losses.Perceptual

PERCEPTUAL = "losses.Perceptual"


def perceptual_with(unit=lambda f: f / (f.square().sum(1, keepdim=True) + 1e-10).sqrt(),
                    one=lambda a, b: (a - b).square().sum(1).mean((1, 2)), together=sum, frozen=True, evaluated=True,
                    end=lambda d: d):
    class Perceptual(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.features = features.requires_grad_(not frozen).train(not evaluated)

        def forward(self, x, y):
            return end(together([one(unit(a), unit(b)) for a, b in zip(self.features(x), self.features(y), strict=True)]))
    return Perceptual


WRONG[PERCEPTUAL] = [
    ("not_normalised", perceptual_with(lambda f: f), "not normalised"),
    ("mean_over_channels", perceptual_with(one=lambda a, b: (a - b).square().mean((1, 2, 3))), "mean over channels"),
    ("sum_over_places", perceptual_with(one=lambda a, b: (a - b).square().sum((1, 2, 3))), "sum over places"),
    ("root", perceptual_with(end=torch.sqrt), "root was taken at the end"),
    ("absolute", perceptual_with(one=lambda a, b: (a - b).abs().sum(1).mean((1, 2))), "absolute difference"),
    ("squared_length", perceptual_with(lambda f: f / (f.square().sum(1, keepdim=True) + 1e-10)), "squared length"),
    ("over_places", perceptual_with(lambda f: F.normalize(f, dim=(2, 3))), "over the places"),
    ("whole_picture", perceptual_with(lambda f: F.normalize(f, dim=(1, 2, 3))), "whole picture"),
    ("batch_mean", perceptual_with(end=lambda d: d.mean()), "expected shape (2,), got ()"),
    ("last_layer", perceptual_with(together=lambda d: d[-1]), "only the last layer"),
    ("mean_of_layers", perceptual_with(together=lambda d: sum(d) / len(d)), "mean over layers"),
    ("no_epsilon", perceptual_with(lambda f: f / f.square().sum(1, keepdim=True).sqrt()), "0 / 0"),
    ("epsilon_after", perceptual_with(lambda f: f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)), "gradient is NaN"),
    ("trainable", perceptual_with(frozen=False), "would be trained"),
    ("in_training_mode", perceptual_with(evaluated=False), "expected"),
]


@wrong(PERCEPTUAL, "does not require grad")
class WithoutGradient(perceptual_with()):
    @torch.no_grad()
    def forward(self, x, y):
        return super().forward(x, y)


RIGHT[PERCEPTUAL] = [
    ("by_normalize", perceptual_with(lambda f: F.normalize(f, dim=1))),
    ("by_cosine", perceptual_with(one=lambda a, b: (a.square() + b.square() - 2 * a * b).sum(1).flatten(1).mean(1))),
    ("by_einops", perceptual_with(one=lambda a, b: reduce((a - b) ** 2, "b c h w -> b", "sum") / a[0, 0].numel())),
]

# ---- losses.reconstruction

RECONSTRUCTION = "losses.reconstruction"


def sum_with(error=lambda d: d.abs().sum(1), count=lambda x: x[0].numel(), judged=lambda j: j.flatten(),
             join=lambda e, w, n, j: e + w * n * j):
    return lambda x, rebuilt, perceptual, weight=1.0: join(
        error((rebuilt - x).flatten(1)), weight, count(x), judged(perceptual(x, rebuilt)))


WRONG[RECONSTRUCTION] = [
    ("judge_once", sum_with(count=lambda x: 1), "the judge counts once"),
    ("mean", sum_with(lambda d: d.abs().mean(1)), "mean over values"),
    ("all_means", sum_with(lambda d: d.abs().mean(1), lambda x: 1), "everything is a mean"),
    ("squared", sum_with(lambda d: d.square().sum(1)), "squared"),
    ("no_weight", sum_with(join=lambda e, w, n, j: e + n * j), "weight is not used"),
    ("places_only", sum_with(count=lambda x: x[0, 0].numel()), "only H * W"),
    ("no_judge", sum_with(join=lambda e, w, n, j: e), "judge is missing"),
    ("signed", sum_with(lambda d: d.sum(1)), "kept their sign"),
    ("weight_for_all", sum_with(join=lambda e, w, n, j: w * (e + n * j)), "belongs to the judge"),
    ("broadcast", sum_with(judged=lambda j: j), "flatten what the judge says"),
    ("batch_mean", sum_with(join=lambda e, w, n, j: (e + w * n * j).mean()), "expected shape (2,), got ()"),
    ("judge_of_the_batch", sum_with(judged=lambda j: j.mean()), "expected"),
    ("detached", sum_with(lambda d: d.detach().abs().sum(1), judged=lambda j: j.detach().flatten()), "cut off"),
]


@wrong(RECONSTRUCTION, "changed in place")
def subtracts_in_place(x, rebuilt, perceptual, weight=1.0):
    judged = perceptual(x, rebuilt).flatten()
    x -= rebuilt
    return x.abs().flatten(1).sum(1) + weight * x[0].numel() * judged


@right(RECONSTRUCTION)
def by_l1_loss(x, rebuilt, perceptual, weight=1.0):
    return F.l1_loss(rebuilt, x, reduction="none").sum((1, 2, 3)) + weight * x[0].numel() * perceptual(x, rebuilt).view(-1)


@right(RECONSTRUCTION)
def value_by_value(x, rebuilt, perceptual, weight=1.0):
    judged = perceptual(x, rebuilt).reshape(-1, 1, 1, 1)
    return ((x - rebuilt).abs() + weight * judged).sum((1, 2, 3))


@right(RECONSTRUCTION)
def by_vector_norm(x, rebuilt, perceptual, weight=1.0):
    _, channels, height, width = x.shape
    return torch.linalg.vector_norm(rebuilt - x, 1, (1, 2, 3)) + perceptual(x, rebuilt).reshape(
        len(x)) * weight * channels * height * width


# ---- losses.receptive_field

RECEPTIVE = "losses.receptive_field"


def field_with(size=1, add=lambda k, s, jump: (k - 1) * jump, times=lambda jump, s: jump * s, backwards=False):
    def receptive_field(layers):
        total, jump = size, 1
        for kernel, stride in (layers[::-1] if backwards else layers):
            total += add(kernel, stride, jump)
            jump = times(jump, stride)
        return total, jump
    return receptive_field


WRONG[RECEPTIVE] = [
    ("whole_kernels", field_with(0, lambda k, s, j: k * j), "adds kernel - 1"),
    ("starts_at_1_whole_kernels", field_with(1, lambda k, s, j: k * j), "adds kernel - 1"),
    ("starts_at_0", field_with(0), "start from size 1"),
    ("no_jump", field_with(add=lambda k, s, j: k - 1), "steps are 2 pixels wide"),
    ("own_stride", field_with(add=lambda k, s, j: (k - 1) * j * s), "own stride does not widen"),
    ("strides_added", field_with(times=lambda j, s: j + s - 1), "expected (70, 8)"),
    ("jump_stays", field_with(times=lambda j, s: 1), "jump is the product"),
    ("backwards", field_with(backwards=True), "from the wrong end"),
    ("size_only", lambda layers: field_with()(layers)[0], "expected (size, jump)"),
]
RIGHT[RECEPTIVE] = [("as_defined", field_with())]


@right(RECEPTIVE)
def from_the_end(layers):
    size = 1
    for kernel, stride in reversed(layers):
        size = (size - 1) * stride + kernel
    return size, math.prod(stride for _, stride in layers)


@right(RECEPTIVE)
def by_recursion(layers):
    if not layers:
        return 1, 1
    size, jump = by_recursion(layers[:-1])
    return [size + (layers[-1][0] - 1) * jump, jump * layers[-1][1]]


# ---- losses.PatchDiscriminator

PATCH = "losses.PatchDiscriminator"


def critic_with(kernel=4, padding=1, slope=0.2, bias=False, most=8, last_stride=1, norm=nn.BatchNorm2d, end=lambda y: y,
                attribute="main", first_norm=False, last_bias=True, activation=None):
    class PatchDiscriminator(nn.Module):
        def __init__(self, in_channels=3, channels=64, num_layers=3):
            super().__init__()
            widths = [channels * min(2**i, most) for i in range(num_layers + 1)]
            stack = []
            for i, (a, b) in enumerate(zip([in_channels, *widths], widths, strict=False)):
                stride = 2 if i < num_layers else last_stride
                normed = i > 0 or first_norm
                stack.append(nn.Conv2d(a, b, kernel, stride, padding, bias=bias or not normed))
                stack += [norm(b)] if normed else []
                stack.append(activation() if activation else nn.LeakyReLU(slope))
            stack.append(nn.Conv2d(widths[-1], 1, kernel, 1, padding, bias=last_bias))
            setattr(self, attribute, nn.Sequential(*stack))

        def forward(self, x):
            return end(getattr(self, attribute)(x))
    return PatchDiscriminator


WRONG[PATCH] = [
    ("sigmoid", critic_with(end=torch.sigmoid), "a sigmoid at the end"),
    ("slope_of_torch", critic_with(slope=0.01), "slope of LeakyReLU"),
    ("relu", critic_with(activation=nn.ReLU), "not ReLU"),
    ("one_verdict", critic_with(end=lambda y: y.mean((1, 2, 3))), "stay a map"),
    ("stride_2_to_the_end", critic_with(last_stride=2), "have stride 2"),
    ("kernel_3", critic_with(kernel=3), "have stride 2"),
    ("no_padding", critic_with(padding=0), "input size"),
    ("widths_without_end", critic_with(most=64), "stop at 8"),
    ("bias_before_norm", critic_with(bias=True), "no bias"),
    ("norm_everywhere", critic_with(first_norm=True), "is missing"),
    ("no_bias_at_the_end", critic_with(last_bias=False), "is missing"),
    ("other_name", critic_with(attribute="layers"), "in self.main"),
    ("group_norm", critic_with(norm=lambda c: nn.GroupNorm(1, c)), "is missing"),
    ("detached", critic_with(end=torch.detach), "does not require grad"),
]
RIGHT[PATCH] = [("by_a_loop", critic_with())]


@right(PATCH)
class ByHand(nn.Module):
    def __init__(self, in_channels=3, channels=64, num_layers=3):
        super().__init__()
        main = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        have = channels
        for depth in range(1, num_layers + 1):
            want = min(channels * 2**depth, channels * 8)
            main.append(nn.Conv2d(have, want, 4, stride=1 if depth == num_layers else 2, padding=1, bias=False))
            main.extend([nn.BatchNorm2d(want), nn.LeakyReLU(0.2, inplace=True)])
            have = want
        main.append(nn.Conv2d(have, 1, 4, padding=1))
        self.main = nn.Sequential(*main)
        self.apply(self.start)

    @staticmethod
    def start(module):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, 0.02)

    def forward(self, x):
        return self.main(x)


@right(PATCH)
class LayerByLayer(critic_with()):
    def forward(self, x):
        for layer in self.main:
            x = layer(x)
        return x


# ---- losses.hinge

HINGE = "losses.hinge"


def hinge_with(critic=lambda r, f: 0.5 * (F.relu(1 - r).mean() + F.relu(1 + f).mean()), generator=lambda r, f: -f.mean()):
    return lambda real, fake: (critic(real, fake), generator(real, fake))


WRONG[HINGE] = [
    ("no_half", hinge_with(lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean()), "factor 1/2"),
    ("sum", hinge_with(lambda r, f: 0.5 * (F.relu(1 - r).sum() + F.relu(1 + f).sum())), "or the sum over verdicts"),
    ("exchanged", hinge_with(lambda r, f: 0.5 * (F.relu(1 + r).mean() + F.relu(1 - f).mean())), "exchanged"),
    ("no_relu", hinge_with(lambda r, f: 0.5 * ((1 - r).mean() + (1 + f).mean())), "beyond the margin"),
    ("no_margin", hinge_with(lambda r, f: 0.5 * (F.relu(-r).mean() + F.relu(f).mean())), "margin 1 is missing"),
    ("sign_of_fake", hinge_with(lambda r, f: 0.5 * (F.relu(1 - r).mean() + F.relu(1 - f).mean())), "one sign"),
    ("generator_sign", hinge_with(generator=lambda r, f: f.mean()), "-mean(fake)"),
    ("generator_margin", hinge_with(generator=lambda r, f: F.relu(1 - f).mean()), "no margin"),
    ("generator_half", hinge_with(generator=lambda r, f: -0.5 * f.mean()), "the critic's alone"),
    ("generator_of_real", hinge_with(generator=lambda r, f: -r.mean()), "real verdicts"),
    ("generator_detached", hinge_with(generator=lambda r, f: -f.detach().mean()), "cut off"),
    ("map_of_losses", hinge_with(generator=lambda r, f: -f), "expected shape ()"),
    ("critic_only", lambda real, fake: hinge_with()(real, fake)[0], "expected (critic, generator)"),
]
RIGHT[HINGE] = [
    ("by_clamp", hinge_with(lambda r, f: ((1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean()) / 2)),
    ("by_minimum", hinge_with(lambda r, f: -0.5 * (torch.minimum(r - 1, torch.zeros(())).mean()
                                                   + torch.minimum(-f - 1, torch.zeros(())).mean()))),
    ("by_where", hinge_with(lambda r, f: 0.5 * torch.where(r < 1, 1 - r, 0.0 * r).mean()
                            + 0.5 * torch.where(f > -1, 1 + f, 0.0 * f).mean(), lambda r, f: torch.mean(-f))),
]

# ---- losses.adaptive_weight

ADAPTIVE = "losses.adaptive_weight"


def weight_with(ratio=lambda a, b: a.norm() / (b.norm() + 1e-4), of=lambda layer: layer.weight, retain=True,
                end=lambda v, most: v.clamp(0, most).detach()):
    def adaptive_weight(rec, adversarial, layer, most=1e4):
        a, = torch.autograd.grad(rec, of(layer), retain_graph=True)
        b, = torch.autograd.grad(adversarial, of(layer), retain_graph=retain or None)
        return end(ratio(a, b), most)
    return adaptive_weight


WRONG[ADAPTIVE] = [
    ("upside_down", weight_with(lambda a, b: b.norm() / (a.norm() + 1e-4)), "upside down"),
    ("squared", weight_with(lambda a, b: a.square().sum() / (b.square().sum() + 1e-4)), "take the root"),
    ("absolute_sums", weight_with(lambda a, b: a.abs().sum() / (b.abs().sum() + 1e-4)), "Euclidean"),
    ("largest", weight_with(lambda a, b: a.abs().max() / (b.abs().max() + 1e-4)), "largest entries"),
    ("no_epsilon", weight_with(lambda a, b: a.norm() / b.norm(), end=lambda v, m: v.detach()), "division by zero"),
    ("epsilon_hidden_by_the_clamp", weight_with(lambda a, b: a.norm() / b.norm()), "add 1e-4"),
    ("not_clamped", weight_with(end=lambda v, m: v.detach()), "not clamped"),
    ("most_ignored", weight_with(end=lambda v, m: v.clamp(0, 1e4).detach()), "`most` is not used"),
    ("graph_freed", weight_with(retain=False), "retain_graph=True"),
    ("a_number", weight_with(end=lambda v, m: float(v.clamp(0, m))), "expected a torch tensor"),
]


@wrong(ADAPTIVE, "ratio of the losses")
def of_losses(rec, adversarial, layer, most=1e4):
    return (rec / (adversarial + 1e-4)).clamp(0, most).detach()


@wrong(ADAPTIVE, "would flow through the weight")
def not_detached(rec, adversarial, layer, most=1e4):
    a, = torch.autograd.grad(rec, layer.weight, create_graph=True)
    b, = torch.autograd.grad(adversarial, layer.weight, create_graph=True)
    return (a.norm() / (b.norm() + 1e-4)).clamp(0, most)


@wrong(ADAPTIVE, "layer.weight.grad")
def by_backward(rec, adversarial, layer, most=1e4):
    layer.weight.grad = None
    rec.backward(retain_graph=True)
    a = layer.weight.grad.norm()
    layer.weight.grad = None
    adversarial.backward(retain_graph=True)
    return (a / (layer.weight.grad.norm() + 1e-4)).clamp(0, most).detach()


RIGHT[ADAPTIVE] = [
    ("by_vector_norm", weight_with(lambda a, b: torch.linalg.vector_norm(a) / (1e-4 + torch.linalg.vector_norm(b)))),
    ("by_flatten", weight_with(lambda a, b: a.flatten().dot(a.flatten()).sqrt() / (b.square().sum().sqrt() + 1e-4))),
    ("by_minimum", weight_with(end=lambda v, m: torch.minimum(v, torch.tensor(float(m))).detach())),
]
