"""Answers to the exercises of chapter 11: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import torch
from torch import nn

from course import layers, samplers
from course.attention import SpatialTransformer
from course.unet import UNet

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- unet.count_blocks

BLOCKS = "unet.count_blocks"


def blocks_with(residual=lambda r, i, o, t: r, transformer=lambda n, D, c, d: n):
    """The right numbers, changed."""
    def count_blocks(in_channels, out_channels, time_dim, context_dim, depth=1):
        i, o, c = in_channels, out_channels, context_dim
        r = (2 * i) + (9 * i * o + o) + (time_dim * o + o) + (2 * o) + (9 * o * o + o) + (i * o + o) * (i != o)
        n = depth * (18 * o * o + 2 * c * o + 17 * o) + (2 * o * o + 4 * o) * (depth > 0)
        return residual(r, i, o, time_dim), transformer(n, o, c, depth)
    return count_blocks


WRONG[BLOCKS] = [
    ("shortcut_always", blocks_with(lambda r, i, o, t: r + (i * o + o) * (i == o)), "there is no 1 x 1 convolution"),
    ("shortcut_never", blocks_with(lambda r, i, o, t: r - (i * o + o) * (i != o)), "carries the input across"),
    ("norm_of_the_old_width", blocks_with(lambda r, i, o, t: r + 2 * i - 2 * o), "over the new width"),
    ("shortcut_without_bias", blocks_with(lambda r, i, o, t: r - o * (i != o)), "the 1 x 1 convolution has a bias"),
    ("no_time", blocks_with(lambda r, i, o, t: r - t * o - o), "brings the time in is missing"),
    ("no_bias_of_time", blocks_with(lambda r, i, o, t: r - o), "brings the time in has a bias"),
    ("no_biases", blocks_with(lambda r, i, o, t: r - 2 * o), "biases of the convolutions"),
    ("no_norms", blocks_with(lambda r, i, o, t: r - 2 * i - 2 * o), "both norms are missing"),
    ("norm_of_one_number", blocks_with(lambda r, i, o, t: r - i - o), "two numbers"),
    ("second_conv_from_in", blocks_with(lambda r, i, o, t: r - 9 * o * o + 9 * i * o), "from out to out"),
    ("kernel_of_one", blocks_with(lambda r, i, o, t: r - 8 * i * o - 8 * o * o), "nine weights"),
    ("biases_in_qkv", blocks_with(transformer=lambda n, D, c, d: n + 6 * D * d), "q, k and v have no bias"),
    ("text_ignored", blocks_with(transformer=lambda n, D, c, d: n + d * (2 * D * D - 2 * c * D)), "read the text"),
    ("self_attention_reads_text", blocks_with(transformer=lambda n, D, c, d: n - d * (2 * D * D - 2 * c * D)), "reads itself"),
    ("no_gates", blocks_with(transformer=lambda n, D, c, d: n - d * (4 * D * D + 4 * D)), "D to 8D"),
    ("second_layer_reads_8D", blocks_with(transformer=lambda n, D, c, d: n + d * 4 * D * D), "multiplied away"),
    ("no_projections", blocks_with(transformer=lambda n, D, c, d: n - 2 * D * D - 2 * D), "proj_in and proj_out"),
    ("no_layer_norms", blocks_with(transformer=lambda n, D, c, d: n - 6 * D * d), "three LayerNorms"),
    ("depth_ignored", blocks_with(transformer=lambda n, D, c, d: 20 * D * D + 2 * c * D + 21 * D), "depth is not read"),
    ("everything_times_depth", blocks_with(transformer=lambda n, D, c, d: d * (20 * D * D + 2 * c * D + 21 * D)),
     "stand there once"),
    ("projections_at_depth_0", blocks_with(transformer=lambda n, D, c, d: n + (2 * D * D + 4 * D) * (d == 0)),
     "no transformer at all"),
    ("floats", blocks_with(transformer=lambda n, D, c, d: n / 1), "whole number"),
    ("only_the_sum", lambda i, o, t, c, depth=1: sum(blocks_with()(i, o, t, c, depth)), "(residual, transformer), got"),
    ("input_width", lambda i, o, t, c, depth=1: (blocks_with()(i, o, t, c)[0], blocks_with()(i, i, t, c, depth)[1]),
     "the width is"),
]
RIGHT[BLOCKS] = [("as_a_polynomial", blocks_with())]


@right(BLOCKS)
def from_built_layers(in_channels, out_channels, time_dim, context_dim, depth=1):
    with torch.device("meta"):
        block = nn.ModuleList([layers.group_norm(in_channels, 1e-5), nn.Conv2d(in_channels, out_channels, 3),
                               nn.Linear(time_dim, out_channels), layers.group_norm(out_channels, 1e-5),
                               nn.Conv2d(out_channels, out_channels, 3)])
        if in_channels != out_channels:
            block.append(nn.Conv2d(in_channels, out_channels, 1))
        transformer = SpatialTransformer(out_channels, context_dim, 1, out_channels, depth)
    count = [sum(p.numel() for p in m.parameters()) for m in (block, transformer)]
    return count[0], count[1] if depth else 0


@right(BLOCKS)
def layer_by_layer(i, o, t, c, depth=1):
    def linear(a, b, bias=True):
        return a * b + b * bias

    def conv(a, b, k):
        return k * k * a * b + b

    def norm(n):
        return 2 * n

    def attention(d, e):
        return linear(d, d, False) + 2 * linear(e, d, False) + linear(d, d)

    residual = norm(i) + conv(i, o, 3) + linear(t, o) + norm(o) + conv(o, o, 3)
    if i != o:
        residual += conv(i, o, 1)
    block = 3 * norm(o) + attention(o, o) + attention(o, c) + linear(o, 8 * o) + linear(4 * o, o)
    return residual, 0 if depth == 0 else norm(o) + 2 * linear(o, o) + depth * block


# ---- unet.count_unet

COUNT = "unet.count_unet"
pairs = blocks_with()


def unet_with(conv_in=True, time=True, first_skip=True, n_up=1, halves=lambda level, last: level < last, doubles=True, skip=True,
              middle=2, norm=True, conv_out=True, channels=lambda c: (c.in_channels, c.out_channels), depth=lambda d: d,
              mid=lambda d: d, time_width=4, text=lambda c: c):
    def count_unet(config):
        widths, w, T = config.block_channels, config.block_channels[0], time_width * config.block_channels[0]
        (C_in, C_out), c, last = channels(config), text(config.context_dim), len(widths) - 1
        total = (9 * C_in * w + w) * conv_in + (w * T + T + T * T + T) * time
        waiting, here = [w] * first_skip, w
        for k, width in enumerate(widths):
            for _ in range(config.layers_per_block):
                total += sum(pairs(here, width, T, c, depth(config.depth[k])))
                here = width
                waiting.append(here)
            total += (9 * width * width + width) * halves(k, last)
            waiting += [width] * (k < last)
        total += sum(pairs(here, here, T, c, mid(config.mid_depth))) + (middle - 1) * pairs(here, here, T, c)[0]
        for k in range(last, -1, -1):
            width = widths[k]
            for _ in range(config.layers_per_block + n_up):
                beside = waiting.pop() if waiting else 0
                total += sum(pairs(here + beside * skip, width, T, c, depth(config.depth[k])))
                here = width
            total += (9 * width * width + width) * (k > 0) * doubles
        return total + 2 * w * norm + (9 * w * C_out + C_out) * conv_out
    return count_unet


WRONG[COUNT] = [
    ("no_conv_in", unet_with(conv_in=False), "conv_in is missing"),
    ("no_time_embedding", unet_with(time=False), "the two layers of the time embedding"),
    ("no_first_skip", unet_with(first_skip=False), "conv_in's output goes across"),
    ("as_many_up_as_down", unet_with(n_up=0), "layers_per_block + 1"),
    ("never_halved", unet_with(halves=lambda level, last: False), "that halve the picture are missing"),
    ("halved_at_the_bottom", unet_with(halves=lambda level, last: True), "the last level halves nothing"),
    ("no_upsampling", unet_with(doubles=False), "behind the doubling"),
    ("skips_added", unet_with(skip=False), "the channels add up"),
    ("one_block_in_the_middle", unet_with(middle=1), "two residual blocks"),
    ("no_last_norm", unet_with(norm=False), "the norm before conv_out"),
    ("no_conv_out", unet_with(conv_out=False), "conv_out is missing"),
    ("ends_exchanged", unet_with(channels=lambda c: (c.out_channels, c.in_channels)), "are exchanged"),
    ("no_transformer_in_the_middle", unet_with(mid=lambda d: 0), "the middle has a transformer"),
    ("depth_as_a_switch", unet_with(depth=bool, mid=bool), "how many blocks"),
    ("time_as_wide_as_the_first_level", unet_with(time_width=1), "expected"),
    ("text_of_768_always", unet_with(text=lambda c: 768), "expected"),
    ("a_constant", lambda config: 859_520_964, "expected"),
    ("a_float", lambda config: 1.0 * unet_with()(config), "whole number"),
]


@right(COUNT)
def built_on_the_meta_device(config):
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(config).parameters())


@right(COUNT)
def part_by_part(config):
    with torch.device("meta"):
        return sum(math.prod(t.shape) for t in UNet(config).state_dict().values())


RIGHT[COUNT].append(("in_one_walk", unet_with()))


# ---- pipeline.guided_denoiser

GUIDED = "pipeline.guided_denoiser"


def guided_with(mix=lambda u, c, w: u + w * (c - u), join=lambda c, u: torch.cat([u, c]), split=lambda y: y.chunk(2),
                back=lambda s, x, y, t, given: s.to_eps(x, y, t, given=given), level=lambda t: t,
                doubled=lambda x: torch.cat([x, x])):
    def guided_denoiser(unet, cond, uncond, scale, schedule, predicts="eps"):
        def denoiser(x, t):
            u, c = split(unet(doubled(x), level(t), join(cond, uncond)))
            return back(schedule, x, mix(u, c, scale), t, predicts)
        return denoiser
    return guided_denoiser


WRONG[GUIDED] = [
    ("halves_exchanged", guided_with(join=lambda c, u: torch.cat([c, u])), "are exchanged"),
    ("ho_and_salimans", guided_with(lambda u, c, w: c + w * (c - u)), "scale 1 more"),
    ("no_guidance", guided_with(lambda u, c, w: c), "are exchanged"),
    ("from_the_one_with_text", guided_with(lambda u, c, w: (u if w in (0.0, 1.0) else c) + w * (c - u)), "scale 1 more"),
    ("scale_not_used", guided_with(lambda u, c, w: c if w else u), "scale is not used"),
    ("interleaved", guided_with(doubled=lambda x: x.repeat_interleave(2, 0)), "expected"),
    ("always_eps", guided_with(back=lambda s, x, y, t, given: y), "a sampler wants eps"),
    ("always_v", guided_with(back=lambda s, x, y, t, given: s.to_eps(x, y, t, given="eps" if given == "eps" else "v")),
     "given=predicts"),
    ("returns_x0", guided_with(back=lambda s, x, y, t, given: s.to_x0(x, y, t, given="eps" if given == "x0" else given)),
     "expected"),
    ("level_0_always", guided_with(level=lambda t: 0.0), "expected"),
]


@wrong(GUIDED, "as one batch")
def two_calls(unet, cond, uncond, scale, schedule, predicts="eps"):
    def denoiser(x, t):
        u, c = unet(x, t, uncond), unet(x, t, cond)
        return schedule.to_eps(x, u + scale * (c - u), t, given=predicts)
    return denoiser


@wrong(GUIDED, "is the `return` missing?")
def inner_without_return(unet, cond, uncond, scale, schedule, predicts="eps"):
    return lambda x, t: None


@wrong(GUIDED, "return the inner function itself")
def outer_without_return(unet, cond, uncond, scale, schedule, predicts="eps"):
    guided_with()(unet, cond, uncond, scale, schedule, predicts)


@wrong(GUIDED, "changed in place")
def adds_into_x(unet, cond, uncond, scale, schedule, predicts="eps"):
    inner = guided_with()(unet, cond, uncond, scale, schedule, predicts)

    def denoiser(x, t):
        out = inner(x, t)
        x.mul_(0)
        return out
    return denoiser


RIGHT[GUIDED] = [
    ("with_text_first", guided_with(lambda c, u, w: w * c + (1 - w) * u, lambda c, u: torch.cat([c, u]))),
    ("levels_for_each", guided_with(level=lambda t: torch.full((4,), float(t)))),
    ("by_repeat_and_slices", guided_with(doubled=lambda x: x.repeat(2, 1, 1, 1), split=lambda y: y.unflatten(0, (2, -1)))),
]


@right(GUIDED)
def converted_before_it_is_mixed(unet, cond, uncond, scale, schedule, predicts="eps"):
    both = torch.cat((uncond, cond), 0)

    def denoiser(x, t):
        xx = torch.cat((x, x), 0)
        a, b = schedule.to_eps(xx, unet(xx, t, both), t, given=predicts).chunk(2)
        return (1 - scale) * a + scale * b
    return denoiser


# ---- pipeline.text_to_image

MAKE = "pipeline.text_to_image"


def make_noise(shape, seeds, draw=torch.randn):
    return torch.stack([draw(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


def make_with(guided=None, told=lambda p, n: (p, [n] * len(p)), scaled=lambda z, c: z / c, last=lambda x: x.clamp(-1, 1),
              start=make_noise,
              levels=lambda pipe, n: pipe.schedule.timesteps(n, pipe.config.spacing, pipe.config.offset),
              predict=lambda pipe: pipe.config.predict, shape=lambda pipe: pipe.latent_shape(*2 * [pipe.config.image_size]),
              sampler=samplers.ddim, clip=None, graph=False):
    def text_to_image(pipe, prompts, seeds, negative="", steps=20, scale=7.5):
        with torch.set_grad_enabled(graph):
            cond, uncond = (pipe.text_encoder(pipe.tokenizer(t)) for t in told(prompts, negative))
            denoiser = (guided or guided_with())(pipe.unet, cond, uncond, scale, pipe.schedule, predict(pipe))
            z = sampler(denoiser, start(shape(pipe), seeds), levels(pipe, steps), schedule=pipe.schedule, clip_x0=clip)
            return last(pipe.vae.decode(scaled(z, pipe.vae.scaling_factor)))
    return text_to_image


def one_generator(shape, seeds):
    g = torch.Generator().manual_seed(seeds[0])
    return torch.stack([torch.randn(shape, generator=g) for _ in seeds])


WRONG[MAKE] = [
    ("scale_forgotten", make_with(scaled=lambda z, c: z), "the scale of the latents is missing"),
    ("scale_multiplies", make_with(scaled=lambda z, c: z * c), "multiplies"),
    ("sd_s_scale", make_with(scaled=lambda z, c: z / 0.18215), "expected"),
    ("negative_not_read", make_with(told=lambda p, n: (p, [""] * len(p))), "the negative prompt is not read"),
    ("prompts_exchanged", make_with(told=lambda p, n: ([n] * len(p), p)), "are exchanged"),
    ("no_guidance", make_with(guided_with(lambda u, c, w: c)), "guidance is missing"),
    ("global_noise", make_with(start=lambda shape, seeds: torch.randn(len(seeds), *shape)), "pass the seeded generator"),
    ("one_generator", make_with(start=one_generator), "one generator ran on"),
    ("first_seed_for_all", make_with(start=lambda shape, seeds: make_noise(shape, seeds[:1] * len(seeds))), "the same picture"),
    ("uniform_noise", make_with(start=lambda shape, seeds: make_noise(shape, seeds, torch.rand)), "the noise is not torch.randn"),
    ("trailing_always", make_with(levels=lambda p, n: p.schedule.timesteps(n)), "config.spacing"),
    ("no_offset", make_with(levels=lambda p, n: p.schedule.timesteps(n, p.config.spacing)), "config.spacing"),
    ("the_article_s_levels", make_with(levels=lambda p, n: torch.arange(n).flip(0)), "the levels should be"),
    ("always_eps", make_with(predict=lambda p: "eps"), "config.predict"),
    ("not_clamped", make_with(last=lambda x: x), "clamp the pictures"),
    ("latents_clamped", make_with(clip=1.0), "the latents were clamped"),
    ("clamped_to_0_1", make_with(last=lambda x: x.clamp(0, 1)), "clamp to [-1, 1]"),
    ("graph_kept", make_with(graph=True), "torch.no_grad()"),
    ("returns_latents", make_with(last=lambda x: x[:, :, ::2, ::2]), "expected shape (2, 3, 6, 6)"),
]


@wrong(MAKE, "the list of prompts was changed")
def list_extended(pipe, prompts, seeds, negative="", steps=20, scale=7.5):
    wanted = list(prompts)
    prompts += [negative] * len(prompts)
    return make_with()(pipe, wanted, seeds, negative, steps, scale)


RIGHT[MAKE] = [
    ("with_euler", make_with(sampler=lambda d, x, t, schedule, clip_x0: ddim_by_hand(d, x, t, schedule))),
    ("clamped_by_min_and_max", make_with(last=lambda x: x.minimum(torch.tensor(1.0)).maximum(torch.tensor(-1.0)))),
]


def ddim_by_hand(denoiser, x, timesteps, schedule):
    levels = [float(t) for t in timesteps]
    for t, after in zip(levels, [*levels[1:], None], strict=True):
        now = float(schedule.alpha_bar(t))
        then = schedule.final_alpha_cumprod if after is None else float(schedule.alpha_bar(after))
        eps = denoiser(x, t)
        z = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        x = math.sqrt(then) * z + math.sqrt(1 - then) * eps
    return x


@right(MAKE)
@torch.inference_mode()
def one_call_of_the_encoder(pipe, prompts, seeds, negative="", steps=20, scale=7.5):
    B, c = len(prompts), pipe.config
    context = pipe.text_encoder(pipe.tokenizer([*prompts, *[negative] * B]))
    x = make_noise(pipe.latent_shape(c.image_size, c.image_size), seeds)
    denoiser = guided_with()(pipe.unet, context[:B], context[B:], scale, pipe.schedule, c.predict)
    z = samplers.ddim(denoiser, x, pipe.schedule.timesteps(steps, c.spacing, c.offset), schedule=pipe.schedule)
    return torch.clamp(pipe.vae.decode(z / pipe.vae.scaling_factor), min=-1, max=1)


# ---- pipeline.start_from_image

START = "pipeline.start_from_image"


def start_with(count=lambda s, n: max(1, int(s * n + 1e-9)), left=lambda t, k: t[len(t) - k:],
               x=lambda s, z, e, left, t: s.add_noise(z, e, float(left[0]))):
    def start_from_image(z0, noise, timesteps, strength, schedule):
        remaining = left(timesteps, count(strength, len(timesteps)))
        return x(schedule, z0, noise, remaining, timesteps), remaining
    return start_from_image


WRONG[START] = [
    ("first_steps", start_with(left=lambda t, k: t[:k]), "these are the first three"),
    ("share_that_is_kept", start_with(count=lambda s, n: max(1, int((1 - s) * n + 1e-9))), "not the share that is kept"),
    ("skipped_instead", start_with(left=lambda t, k: t[k:] if k < len(t) else t), "the share that is walked"),
    ("all_levels", start_with(left=lambda t, k: t), "all levels are left"),
    ("rising", start_with(left=lambda t, k: t[len(t) - k:].flip(0)), "the levels rise"),
    ("pure_noise", start_with(x=lambda s, z, e, left, t: e), "this is pure noise"),
    ("no_noise", start_with(x=lambda s, z, e, left, t: z), "no noise was added"),
    ("level_before", start_with(x=lambda s, z, e, left, t: s.add_noise(z, e, float(t[max(0, len(t) - len(left) - 1)]))),
     "the level before"),
    ("last_level", start_with(x=lambda s, z, e, left, t: s.add_noise(z, e, float(left[-1]))), "the last level"),
    ("first_of_all", start_with(x=lambda s, z, e, left, t: s.add_noise(z, e, float(t[0]))), "level 999"),
    ("noise_added_plainly", start_with(x=lambda s, z, e, left, t: z + e), "without a schedule"),
    ("no_1e_9", start_with(count=lambda s, n: max(1, int(s * n))), "28.999"),
    ("rounded", start_with(count=lambda s, n: max(1, round(s * n))), "rounded down"),
    ("negative_slice_of_0", start_with(count=lambda s, n: int(s * n + 1e-9), left=lambda t, k: t[-k:]), "at least one step"),
    ("only_x", lambda z0, noise, timesteps, strength, schedule: start_with()(z0, noise, timesteps, strength, schedule)[0],
     "(x, timesteps), got"),
]


@wrong(START, "changed in place")
def into_the_latent(z0, noise, timesteps, strength, schedule):
    x, left = start_with()(z0, noise, timesteps, strength, schedule)
    z0.copy_(x)
    return x, left


RIGHT[START] = [("by_a_slice_from_the_end", start_with(left=lambda t, k: t[-k:]))]


@right(START)
def by_the_number_that_is_skipped(z0, noise, timesteps, strength, schedule):
    S = len(timesteps)
    skipped = min(S - 1, S - math.floor(strength * S + 1e-9))
    rest = timesteps[skipped:]
    bar = schedule.alphas_cumprod[int(rest[0])]
    return float(bar.sqrt()) * z0 + float((1 - bar).sqrt()) * noise, rest


@right(START)
def with_a_level_for_each(z0, noise, timesteps, strength, schedule):
    rest = timesteps[len(timesteps) - max(int(round(strength * len(timesteps), 6)), 1):]
    return schedule.add_noise(z0, noise, rest[:1].expand(len(z0))), rest


# ---- pipeline.keep_known

KEEP = "pipeline.keep_known"


def keep_with(of_known=lambda s, x, z, t: s.to_eps(x, z, t, given="x0"), mask=lambda m: m, shown=lambda x, z, m: x,
              level=lambda t: t):
    def keep_known(denoiser, known, keep, schedule):
        def blended(x, t):
            m = mask(keep)
            return m * of_known(schedule, x, known, t) + (1 - m) * denoiser(shown(x, known, keep), level(t))
        return blended
    return keep_known


WRONG[KEEP] = [
    ("mask_reversed", keep_with(mask=lambda m: 1 - m), "the wrong way round"),
    ("known_itself", keep_with(lambda s, x, z, t: z), "this is the known latent"),
    ("as_v", keep_with(lambda s, x, z, t: s.to_eps(x, z, t, given="v")), "is an x_0, not a v"),
    ("not_used", lambda denoiser, known, keep, schedule: lambda x, t: denoiser(x, t), "the known part is not used"),
    ("difference", keep_with(lambda s, x, z, t: x - z), "the factors of its level"),
    ("hard_mask", keep_with(mask=lambda m: (m > 0.5).float()), "expected"),
    ("sees_the_known_part", keep_with(shown=lambda x, z, m: m * z + (1 - m) * x), "something else than x"),
    ("hole_cut_out", keep_with(shown=lambda x, z, m: (1 - m) * x), "something else than x"),
    ("no_inner_function", lambda denoiser, known, keep, schedule: known, "return the inner function itself"),
    ("level_lost", keep_with(level=lambda t: 0.0), "about level 0"),
]


@wrong(KEEP, "changed in place")
def into_x(denoiser, known, keep, schedule):
    inner = keep_with()(denoiser, known, keep, schedule)

    def blended(x, t):
        out = inner(x, t)
        x.mul_(1 - keep)
        return out
    return blended


RIGHT[KEEP] = [
    ("by_lerp", lambda denoiser, known, keep, s: lambda x, t: torch.lerp(
        denoiser(x, t), s.to_eps(x, known, t, given="x0"), keep.expand_as(x))),
]


@right(KEEP)
def through_x0(denoiser, known, keep, schedule):
    def blended(x, t):
        clean = schedule.to_x0(x, denoiser(x, t), t)
        mixed = known * keep + clean * (1 - keep)
        return schedule.to_eps(x, mixed, t)
    return blended


@right(KEEP)
def by_hand(denoiser, known, keep, schedule):
    def blended(x, t):
        bar = float(schedule.alpha_bar(t))
        certain = (x - math.sqrt(bar) * known) / math.sqrt(1 - bar)
        guess = denoiser(x, t)
        return guess + keep * (certain - guess)
    return blended


# ---- published.unet_entry

ENTRY = "published.unet_entry"


def entry_with(first_down=1, per_level=1, transformer=1, residual=0, behind=lambda there: 2 if there else 1, op="0.op",
               conv="conv", sides=("input_blocks", "output_blocks"), reversed_=True):
    def unet_entry(way, level, kind, index, layers_per_block=2, attention=(True, True, True, False)):
        n = layers_per_block + per_level
        there = attention[len(attention) - 1 - level] if reversed_ else attention[level]
        base = level * n + (first_down if way == "down" else 0)
        side = sides[way == "up"]
        if kind == "downsamplers":
            return f"{side}.{base + layers_per_block}.{op}"
        if kind == "upsamplers":
            return f"{side}.{base + layers_per_block}.{behind(there)}.{conv}"
        return f"{side}.{base + index}.{residual if kind == 'resnets' else transformer}"
    return unet_entry


WRONG[ENTRY] = [
    ("conv_in_forgotten", entry_with(first_down=0), "entry 0 is conv_in"),
    ("no_entry_for_sampling", entry_with(per_level=0), "a level takes layers_per_block + 1"),
    ("transformer_first", entry_with(transformer=0, residual=1), "the residual block is 0"),
    ("upsampler_always_second", entry_with(behind=lambda there: 1), "behind the transformer"),
    ("upsampler_always_third", entry_with(behind=lambda there: 2), "behind the transformer"),
    ("levels_not_reversed", entry_with(reversed_=False), "behind the transformer"),
    ("sides_exchanged", entry_with(sides=("output_blocks", "input_blocks")), "lies in input_blocks"),
    ("op_missing", entry_with(op="0"), ".op"),
    ("conv_missing", entry_with(conv="op"), ".conv"),
    ("our_own_names", lambda way, level, kind, index, **k: f"{way}_blocks.{level}.{kind}.{index}", "expected input_blocks"),
    ("a_tuple", lambda way, level, kind, index, **k: ("input_blocks", 1, 0), "a string"),
    ("two_layers_always", lambda way, level, kind, index, layers_per_block=2, attention=(True, True, True, False):
        entry_with()(way, level, kind, index, 2, attention), "layers_per_block 1"),
    ("sd_s_attention_always", lambda way, level, kind, index, layers_per_block=2, attention=None:
        entry_with()(way, level, kind, index, layers_per_block, (True, True, True, False)), "layers_per_block"),
]
RIGHT[ENTRY] = [("by_formula", entry_with())]


@right(ENTRY)
def by_walking(way, level, kind, index, layers_per_block=2, attention=(True, True, True, False)):
    """Lay the lists out as the authors' code does, and look the part up."""
    found, entry = {}, 0
    levels = range(len(attention))
    if way == "down":
        for i in levels:
            for j in range(layers_per_block):
                entry += 1
                found[i, "resnets", j], found[i, "attentions", j] = f"{entry}.0", f"{entry}.1"
            entry += 1
            found[i, "downsamplers", 0] = f"{entry}.0.op"
        return "input_blocks." + found[level, kind, index]
    for i in levels:
        for j in range(layers_per_block + 1):
            found[i, "resnets", j], found[i, "attentions", j] = f"{entry}.0", f"{entry}.1"
            if j == layers_per_block:
                found[i, "upsamplers", 0] = f"{entry}.{1 + bool(attention[::-1][i])}.conv"
            entry += 1
    return "output_blocks." + found[level, kind, index]


@right(ENTRY)
def by_joining(way, level, kind, index, layers_per_block=2, attention=(True, True, True, False)):
    n, down = layers_per_block, way == "down"
    number = level * (n + 1) + down + (index if kind in ("resnets", "attentions") else n)
    with_transformer = list(reversed(attention))[level]
    tail = {"resnets": ["0"], "attentions": ["1"], "downsamplers": ["0", "op"],
            "upsamplers": ["2" if with_transformer else "1", "conv"]}[kind]
    return ".".join(["input_blocks" if down else "output_blocks", str(number), *tail])


# ---- weights.survey

SURVEY = "weights.survey"


def survey_with(size=lambda x, dtype: x.numel() * dtype.itemsize, over=lambda x, y: ~torch.isfinite(y),
                gone=lambda x, y: (y == 0) & (x != 0), relative=None,
                joined=lambda ts: torch.cat([t.flatten().double() for t in ts])):
    relative = relative or (lambda x, y, ok: (x - y)[ok].norm() / x[ok].norm())

    def survey(tensors, dtype):
        x = joined(tensors)
        y = x.to(dtype).double()
        return {"bytes": size(x, dtype), "overflowed": int(over(x, y).sum()), "vanished": int(gone(x, y).sum()),
                "relative": float(relative(x, y, torch.isfinite(y)))}
    return survey


def each(x, y, ok):
    return (x - y)[ok].abs() / x[ok].abs().clamp(min=1e-30)


WRONG[SURVEY] = [
    ("values_for_bytes", survey_with(size=lambda x, d: x.numel()), "the number of values"),
    ("bytes_of_float32", survey_with(size=lambda x, d: 4 * x.numel()), "the size of the new dtype"),
    ("first_tensor_only", survey_with(joined=lambda ts: ts[0].flatten().double()), "all tensors count"),
    ("positive_overflow", survey_with(over=lambda x, y: y == torch.inf), "negative values"),
    ("above_65504_in_any_dtype", survey_with(over=lambda x, y: x.abs() > 65504), "become infinite in torch.bfloat16"),
    ("from_65504_on", survey_with(over=lambda x, y: (x.abs() >= 65504) & ~torch.isfinite(y) | (x == 65504) & (y == 65504)),
     "65,504 is the largest"),
    ("zeros_count", survey_with(gone=lambda x, y: y == 0), "zeros were zero before"),
    ("positive_vanished", survey_with(gone=lambda x, y: (y == 0) & (x > 0)), "negative values"),
    ("mean_relative", survey_with(relative=lambda x, y, ok: each(x, y, ok).mean()), "the mean of"),
    ("max_relative", survey_with(relative=lambda x, y, ok: each(x, y, ok).max()), "the largest"),
    ("not_relative", survey_with(relative=lambda x, y, ok: (x - y)[ok].norm()), "errors over values"),
    ("squares", survey_with(relative=lambda x, y, ok: (x - y)[ok].square().sum() / x[ok].square().sum()), "take norms"),
    ("infinite", survey_with(relative=lambda x, y, ok: (x - y).norm() / x.norm()), "leave out what overflowed"),
    ("tensors_as_counts", lambda ts, dtype: {k: torch.tensor(1.0) for k in survey_with()(ts, dtype)}, "plain number"),
    ("a_tuple", lambda ts, dtype: tuple(survey_with()(ts, dtype).values()), "a dict with the keys"),
]


@wrong(SURVEY, "was changed in place")
def in_place(tensors, dtype):
    found = survey_with()(tensors, dtype)
    for t in tensors:
        t.copy_(t.to(dtype).float())
    return found


RIGHT[SURVEY] = [("in_one_vector", survey_with())]


@right(SURVEY)
def tensor_by_tensor(tensors, dtype):
    size = lost = none = 0
    errors = values = 0.0
    for t in tensors:
        small = t.detach().to(dtype)
        ok = small.isfinite()
        size += t.numel() * small.element_size()
        lost += (~ok).sum().item()
        none += ((small == 0) & (t != 0)).sum().item()
        errors += (small.double() - t.double())[ok].pow(2).sum().item()
        values += t.double()[ok].pow(2).sum().item()
    return {"bytes": size, "overflowed": lost, "vanished": none, "relative": math.sqrt(errors / values)}


@right(SURVEY)
def by_numpy(tensors, dtype):
    x = torch.cat([t.reshape(-1) for t in tensors])
    y = x.to(dtype)
    x, y = x.numpy().astype("f8"), y.double().numpy()
    import numpy as np
    fine = np.isfinite(y)
    return {"relative": float(np.linalg.norm(y[fine] - x[fine]) / np.linalg.norm(x[fine])), "bytes": len(x) * dtype.itemsize,
            "vanished": int(np.count_nonzero((y == 0) & (x != 0))), "overflowed": int(np.count_nonzero(~fine))}
