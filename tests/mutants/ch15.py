"""Answers to the exercises of chapter 15: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

from course import layers, samplers

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- sdxl.size_embedding

WAVES = "sdxl.size_embedding"


def waves_with(scale=1.0, divisor=lambda dim: dim // 2, parts=lambda a: [a.cos(), a.sin()],
               join=lambda parts: torch.cat(parts, -1).flatten(1)):
    def size_embedding(numbers, dim=256):
        frequencies = 10_000.0 ** (-torch.arange(dim // 2) / divisor(dim))
        return join(parts(numbers.float()[:, :, None] * scale * frequencies))
    return size_embedding


WRONG[WAVES] = [
    ("sines_first", waves_with(parts=lambda a: [a.sin(), a.cos()]), "sines stand before cosines"),
    ("all_cosines_first", waves_with(join=lambda parts: torch.cat([p.flatten(1) for p in parts], -1)), "belong together"),
    ("not_flattened", waves_with(join=lambda parts: torch.cat(parts, -1)), "expected shape (2, 192)"),
    ("summed", waves_with(join=lambda parts: torch.cat(parts, -1).sum(1)), "expected shape (2, 192)"),
    ("half_minus_one", waves_with(divisor=lambda dim: max(dim // 2 - 1, 1)), "as in DDPM"),
    ("divided_by_dim", waves_with(divisor=lambda dim: dim), "divided by dim"),
    ("whole_circles", waves_with(scale=2 * math.pi), "expected -1"),
    ("scaled_down", waves_with(scale=1 / 1024), "expected -1"),
    ("columns_first", waves_with(join=lambda parts: torch.cat(parts, -1).transpose(1, 2).flatten(1)), "belong together"),
    ("integers", lambda numbers, dim=256: waves_with()(numbers, dim).long(), "a floating dtype"),
    ("mean_of_all", lambda numbers, dim=256: waves_with()(numbers.mean(1, keepdim=True).expand_as(numbers), dim), "expected 1"),
]


@right(WAVES)
def by_the_library(numbers, dim=256):
    return layers.timestep_embedding(numbers.reshape(-1), dim).reshape(len(numbers), -1)


@right(WAVES)
def number_by_number(numbers, dim=256):
    return torch.cat([layers.timestep_embedding(column, dim) for column in numbers.T], dim=-1)


@right(WAVES)
def by_einops_and_complex(numbers, dim=256):
    k = torch.arange(dim // 2, dtype=torch.float64)
    angles = torch.einsum("bn,k->bnk", numbers.double(), torch.pow(10_000.0, -2 * k / dim))
    turned = torch.polar(torch.ones_like(angles), angles)
    return rearrange(torch.view_as_real(turned), "b n k two -> b (n two k)").float()


# ---- sdxl.join_texts

JOIN = "sdxl.join_texts"


def join_with(streams=lambda a, b, last: [a, b], read=lambda b, last: last, ends=lambda ids, eos: (ids == eos).int().argmax(1),
              project=lambda v, m: v @ m.T, dim=-1, keep=lambda kept: kept, drop=(True, True)):
    def join_texts(stream_1, stream_2, last_2, ids_2, eos_id, projection, kept):
        context, kept = torch.cat(streams(stream_1, stream_2, last_2), dim), keep(kept).float()
        at = read(stream_2, last_2)[torch.arange(len(ids_2)), ends(ids_2, eos_id)]
        pooled = project(at, projection)
        return context * kept[:, None, None] if drop[0] else context, pooled * kept[:, None] if drop[1] else pooled
    return join_texts


WRONG[JOIN] = [
    ("second_first", join_with(lambda a, b, last: [b, a]), "features stand first"),
    ("last_layer_read", join_with(lambda a, b, last: [a, last]), "it is stream_2 that is read"),
    ("pooled_from_the_stream", join_with(read=lambda b, last: b), "after the last layer"),
    ("last_place", join_with(ends=lambda ids, eos: torch.full((len(ids),), ids.shape[1] - 1)), "the last place"),
    ("first_place", join_with(ends=lambda ids, eos: torch.zeros(len(ids), dtype=torch.long)), "has read nothing yet"),
    ("largest_id", join_with(ends=lambda ids, eos: ids.argmax(1)), "the largest id"),
    ("before_the_end", join_with(ends=lambda ids, eos: (ids == eos).int().argmax(1) - 1), "the place before the end token"),
    ("transposed", join_with(project=lambda v, m: v @ m), "projection is (P,D2)"),
    ("not_projected", join_with(project=lambda v, m: v), "expected shape (3, 6)"),
    ("kept_turned", join_with(keep=lambda kept: ~kept), "expected"),
    ("only_context_dropped", join_with(drop=(True, False)), "the pooled vector of a dropped prompt"),
    ("only_pooled_dropped", join_with(drop=(False, True)), "the context of a dropped prompt"),
    ("pooled_alone", lambda *a: join_with()(*a)[1], "(context, pooled)"),
    ("squared_transposed", join_with(project=lambda v, m: v @ (m if m.shape[0] == m.shape[1] else m.T)), "is transposed"),
]


@wrong(JOIN, "join the features")
def one_after_the_other(stream_1, stream_2, last_2, ids_2, eos_id, projection, kept):
    wide = F.pad(stream_1, (0, stream_2.shape[-1] - stream_1.shape[-1]))
    return torch.cat([wide, stream_2], dim=1)[..., :stream_1.shape[-1]], join_with()(
        stream_1, stream_2, last_2, ids_2, eos_id, projection, kept)[1]


@wrong(JOIN, "mean over the tokens")
def mean_pooled(stream_1, stream_2, last_2, ids_2, eos_id, projection, kept):
    context, _ = join_with()(stream_1, stream_2, last_2, ids_2, eos_id, projection, kept)
    return context, (last_2.mean(1) @ projection.T) * kept[:, None]


@right(JOIN)
def by_where(stream_1, stream_2, last_2, ids_2, eos_id, projection, kept):
    first = (ids_2 == eos_id).cumsum(1).eq(1) & (ids_2 == eos_id)
    pooled = F.linear((last_2 * first[..., None]).sum(1), projection)
    context = torch.cat((stream_1, stream_2), 2)
    return torch.where(kept[:, None, None], context, 0.0), torch.where(kept[:, None], pooled, 0.0)


@right(JOIN)
def text_by_text(stream_1, stream_2, last_2, ids_2, eos_id, projection, kept):
    contexts, pooled = [], []
    for a, b, last, ids, k in zip(stream_1, stream_2, last_2, ids_2.tolist(), kept.tolist(), strict=True):
        contexts.append(float(k) * torch.cat([a, b], -1))
        pooled.append(float(k) * (projection @ last[ids.index(eos_id)]))
    return torch.stack(contexts), torch.stack(pooled)


@right(JOIN)
def by_gather_and_mask(stream_1, stream_2, last_2, ids_2, eos_id, projection, kept):
    context = torch.cat([stream_1, stream_2], -1).masked_fill(~kept.reshape(-1, 1, 1), 0)
    at = (ids_2 == eos_id).float().argmax(-1).reshape(-1, 1, 1).expand(-1, 1, last_2.shape[-1])
    pooled = torch.einsum("bd,pd->bp", last_2.gather(1, at).squeeze(1), projection)
    return [context, pooled.masked_fill(~kept[:, None], 0)]


# ---- sdxl.embed_time

EMBED = "sdxl.embed_time"


def embed_with(order=lambda text, sizes: [text, sizes], add=lambda time, added: time + added, sizes=None,
               t_waves=layers.timestep_embedding, expand=True):
    sizes = sizes or (lambda ids, dim: layers.timestep_embedding(ids.flatten(), dim).reshape(len(ids), -1))

    def embed_time(unet, t, text_embeds, time_ids):
        if expand:
            t = torch.as_tensor(t).expand(len(text_embeds))
        both = torch.cat(order(text_embeds, sizes(time_ids, unet.config.size_embedding_dim)), -1)
        return add(unet.time_embedding(t_waves(t, unet.config.block_channels[0])), unet.add_embedding(both))
    return embed_time


WRONG[EMBED] = [
    ("sizes_first", embed_with(lambda text, sizes: [sizes, text]), "[text_embeds, sizes]"),
    ("multiplied", embed_with(add=lambda a, b: a * b), "add them"),
    ("time_alone", embed_with(add=lambda a, b: a), "this is the time alone"),
    ("added_alone", embed_with(add=lambda a, b: b), "the noise level is missing"),
    ("activated", embed_with(add=lambda a, b: F.silu(a) + F.silu(b)), "a SiLU too many"),
    ("no_text", embed_with(lambda text, sizes: [0 * text, sizes]), "the pooled text is missing"),
    ("no_sizes", embed_with(lambda text, sizes: [text, 0 * sizes]), "the sizes are missing"),
    ("raw_t", embed_with(t_waves=lambda t, dim: t.float()[:, None].expand(-1, dim)), "not turned into waves"),
    ("raw_sizes", embed_with(sizes=lambda ids, dim: ids), "add_embedding reads"),
    ("other_dim", embed_with(sizes=lambda ids, dim: embed_sizes(ids, 32)), "add_embedding reads"),
    ("only_a_batch_of_t", embed_with(expand=False), "returns (B,time_emb_dim)"),
    ("detached", embed_with(add=lambda a, b: a + b.detach()), "no gradient reaches add_embedding"),
    ("without_gradient", torch.no_grad()(embed_with()), "it raised RuntimeError"),
]


def embed_sizes(ids, dim):
    return layers.timestep_embedding(ids.flatten(), dim).reshape(len(ids), -1)


@right(EMBED)
def by_the_u_net_itself(unet, t, text_embeds, time_ids):
    return unet.embed_time(t, text_embeds, {"text_embeds": text_embeds, "time_ids": time_ids})


@right(EMBED)
def layer_by_layer(unet, t, text_embeds, time_ids):
    def through(module, x):
        return module.linear_2(F.silu(module.linear_1(x)))
    t = torch.full((len(text_embeds),), float(t)) if not torch.is_tensor(t) else t
    added = torch.cat([text_embeds, *[layers.timestep_embedding(c, unet.config.size_embedding_dim) for c in time_ids.T]], 1)
    return through(unet.add_embedding, added) + through(unet.time_embedding, layers.timestep_embedding(
        t, unet.config.block_channels[0]))


@right(EMBED)
def by_two_matrices(unet, t, text_embeds, time_ids):
    times = layers.timestep_embedding(torch.as_tensor(t).repeat(len(text_embeds) if not torch.is_tensor(t) else 1),
                                      unet.config.block_channels[0])
    first, P = unet.add_embedding.linear_1, text_embeds.shape[1]
    h = text_embeds @ first.weight[:, :P].T + embed_sizes(time_ids, unet.config.size_embedding_dim) @ first.weight[:, P:].T
    return unet.time_embedding(times) + unet.add_embedding.linear_2(F.silu(h + first.bias))


# ---- sdxl.crop_and_tell

CROP = "sdxl.crop_and_tell"


def crop_with(numbers=lambda H, W, h, w, top, left, side: [H, W, top, left, side, side], places=1, antialias=True,
              mode="bilinear", cut=lambda x, top, left, side: x[:, top: top + side, left: left + side], whole=min, to=int):
    def crop_and_tell(picture, side, corner):
        H, W = picture.shape[1:]
        h, w = round(H * side / whole(H, W)), round(W * side / whole(H, W))
        small = F.interpolate(picture[None], (h, w), mode=mode, antialias=antialias)[0]
        top, left = to(corner[0] * (h - side + places)), to(corner[1] * (w - side + places))
        return cut(small, top, left, side), torch.tensor(numbers(H, W, h, w, top, left, side), dtype=torch.float32)
    return crop_and_tell


WRONG[CROP] = [
    ("left_first", crop_with(lambda H, W, h, w, t, x, s: [H, W, x, t, s, s]), "(top, left)"),
    ("width_first", crop_with(lambda H, W, h, w, t, x, s: [W, H, t, x, s, s]), "(height, width)"),
    ("size_of_the_crop", crop_with(lambda H, W, h, w, t, x, s: [s, s, t, x, s, s]), "note it before you resize"),
    ("size_after_resizing", crop_with(lambda H, W, h, w, t, x, s: [h, w, t, x, s, s]), "note H, W first"),
    ("target_before_crop", crop_with(lambda H, W, h, w, t, x, s: [H, W, s, s, t, x]), "original, crop, target"),
    ("target_is_the_original", crop_with(lambda H, W, h, w, t, x, s: [H, W, t, x, H, W]), "target is the crop's size"),
    ("crop_in_original_pixels", crop_with(lambda H, W, h, w, t, x, s: [H, W, t * H // h, x * W // w, s, s]),
     "in the original's pixels"),
    ("last_place_missing", crop_with(places=0), "leaves seven places"),
    ("rounded", crop_with(to=round, places=0), "each of seven places"),
    ("not_antialiased", crop_with(antialias=False), "antialias=True is missing"),
    ("nearest", crop_with(antialias=False, mode="nearest"), "the nearest pixel"),
    ("longer_side", crop_with(whole=max), "the shorter side becomes"),
    ("axes_swapped", crop_with(cut=lambda x, top, left, side: x[:, left: left + side, top: top + side]), "expected shape"),
    ("first_corner_cut", crop_with(cut=lambda x, top, left, side: x[:, :side, :side]), "was cut elsewhere"),
    ("only_the_picture", lambda x, side, corner: crop_with()(x, side, corner)[0], "(picture, numbers)"),
    ("integers", lambda x, side, corner: (crop_with()(x, side, corner)[0], crop_with()(x, side, corner)[1].long()),
     "a floating dtype"),
]

@wrong(CROP, "in the original's pixels")
def squared_first(picture, side, corner):
    H, W = picture.shape[1:]
    short = min(H, W)
    top, left = int(corner[0] * (H - short + 1)), int(corner[1] * (W - short + 1))
    square = picture[None, :, top: top + short, left: left + short]
    small = F.interpolate(square, (side, side), mode="bilinear", antialias=True)[0]
    return small, torch.tensor([H, W, top, left, side, side], dtype=torch.float32)


@right(CROP)
def side_by_side(picture, side, corner):
    _, H, W = picture.shape
    new = (side, round(W * side / H)) if H <= W else (round(H * side / W), side)
    small = F.interpolate(picture.unsqueeze(0), size=new, mode="bilinear", antialias=True, align_corners=False).squeeze(0)
    top, left = (math.floor(u * (n - side + 1)) for u, n in zip(corner, new, strict=True))
    return small.narrow(1, top, side).narrow(2, left, side), torch.tensor([H, W, top, left, side, side]).float()


@right(CROP)
def by_torchvision_free_indexing(picture, side, corner):
    H, W = picture.shape[-2:]
    small = F.interpolate(picture[None], [round(n * (side / min(H, W))) for n in (H, W)], mode="bilinear", antialias=True)
    rows, columns = (int(u * (n - side + 1)) + torch.arange(side) for u, n in zip(corner, small.shape[-2:], strict=True))
    return small[0][:, rows][:, :, columns], torch.cat([torch.tensor([H, W, rows[0], columns[0]]),
                                                       torch.tensor([side, side])]).float()


@right(CROP)
def as_a_list(picture, side, corner):
    cut, numbers = crop_with()(picture, side, corner)
    return [cut.clone(), numbers.double()]


# ---- sdxl.hand_over

HAND_OVER = "sdxl.hand_over"


def hand_over_with(who=lambda t, i, n, share, T: t >= (1 - share) * T, again=lambda x, x0: x, last=1.0, grad=False, swap=False):
    def hand_over(base, refiner, x, timesteps, schedule, share=0.8):
        with torch.set_grad_enabled(grad):
            levels, before, x0 = timesteps.tolist(), True, None
            base, refiner = (refiner, base) if swap else (base, refiner)
            for i, (t, after) in enumerate(zip(levels, [*levels[1:], None], strict=True)):
                is_base = who(t, i, len(levels), share, schedule.num_steps)
                if before and not is_base:
                    x = again(x, x0)
                before = is_base
                bar = float(schedule.alphas_cumprod[t])
                bar_after = last if after is None else float(schedule.alphas_cumprod[after])
                eps = (base if is_base else refiner)(x, t)
                x0 = (x - (1 - bar) ** 0.5 * eps) / bar**0.5
                x = bar_after**0.5 * x0 + (1 - bar_after) ** 0.5 * eps
            return x
    return hand_over


WRONG[HAND_OVER] = [
    ("swapped", hand_over_with(swap=True), "have changed places"),
    ("share_of_the_steps", hand_over_with(lambda t, i, n, share, T: i < share * n), "compare the level t"),
    ("whole_steps", hand_over_with(lambda t, i, n, share, T: i < int(share * n)), "compare the level t"),
    ("switch_excluded", hand_over_with(lambda t, i, n, share, T: t > round((1 - share) * T)), "at t = 200 itself"),
    ("share_for_its_rest", hand_over_with(lambda t, i, n, share, T: t >= share * T), "the base should be asked at"),
    ("x0_handed_over", hand_over_with(again=lambda x, x0: x0), "was handed the base's x_0"),
    ("noise_added", hand_over_with(again=lambda x, x0: x + torch.randn_like(x)), "fresh noise"),
    ("graph_kept", hand_over_with(grad=True), "torch.no_grad()"),
    ("still_noisy", hand_over_with(last=0.9), "expected"),
    ("to_alpha_bar_0", hand_over_with(last=0.99915), "ends at alpha_bar_0"),
    ("base_alone", hand_over_with(lambda t, i, n, share, T: True), "the base should be asked at"),
]


@wrong(HAND_OVER, "each level belongs to one")
def both_all_the_way(base, refiner, x, timesteps, schedule, share=0.8):
    with torch.no_grad():
        mixed = lambda x, t: share * base(x, t) + (1 - share) * refiner(x, t)           # noqa: E731
        return samplers.ddim(mixed, x, timesteps, schedule=schedule)


@wrong(HAND_OVER, "was handed the base's x_0")
def two_whole_ways(base, refiner, x, timesteps, schedule, share=0.8):
    with torch.no_grad():
        early = timesteps >= (1 - share) * schedule.num_steps
        x0 = samplers.ddim(base, x, timesteps[early], schedule=schedule)
        return samplers.ddim(refiner, x0, timesteps[~early], schedule=schedule)


@right(HAND_OVER)
def one_denoiser_for_ddim(base, refiner, x, timesteps, schedule, share=0.8):
    def denoiser(x, t):
        return (base if float(t) >= round(schedule.num_steps * (1 - share)) else refiner)(x, t)
    with torch.no_grad():
        return samplers.ddim(denoiser, x, timesteps, schedule=schedule)


@right(HAND_OVER)
@torch.inference_mode()
def in_sigma_space(base, refiner, x, timesteps, schedule, share=0.8):
    bars = [*schedule.alphas_cumprod[timesteps].tolist(), 1.0]
    for i, t in enumerate(timesteps.tolist()):
        eps = refiner(x, t) if t < schedule.num_steps - share * schedule.num_steps else base(x, t)
        now, after = (((1 - bar) / bar) ** 0.5 for bar in bars[i: i + 2])
        x = bars[i + 1] ** 0.5 * (x / bars[i] ** 0.5 + (after - now) * eps)
    return x


@right(HAND_OVER)
def in_two_loops(base, refiner, x, timesteps, schedule, share=0.8):
    levels, z = [int(t) for t in timesteps], x.clone()
    many = sum(t >= (1 - share) * schedule.num_steps for t in levels)
    with torch.no_grad():
        for expert, part in ((base, range(many)), (refiner, range(many, len(levels)))):
            for i in part:
                eps = expert(z, levels[i])
                a, s = (float(c) for c in schedule.coefficients(levels[i], z))
                x0 = (z - s * eps) / a
                z = x0 if i + 1 == len(levels) else schedule.add_noise(x0, eps, levels[i + 1])
    return z


# ---- buckets.sides

SIDES = "buckets.sides"


def sides_with(test=lambda h, w, pixels, fill: fill * pixels <= h * w <= pixels, end=1, order=sorted):
    def sides(pixels=1024**2, step=64, shortest=512, longest=2048, fill=0.9):
        lengths = range(shortest, longest + end, step)
        return order([(h, w) for w in lengths for h in lengths if test(h, w, pixels, fill)])
    return sides


WRONG[SIDES] = [
    ("longest_missing", sides_with(end=0), "the longest side is included"),
    ("too_large", sides_with(lambda h, w, p, f: f * p <= h * w <= 1.25 * p), "more than 64 pixels"),
    ("too_small", sides_with(lambda h, w, p, f: h * w <= p), "less than nine tenths full"),
    ("tall_only", sides_with(lambda h, w, p, f: f * p <= h * w <= p and h >= w), "tall and wide"),
    ("wide_only", sides_with(lambda h, w, p, f: f * p <= h * w <= p and h <= w), "tall and wide"),
    ("by_width", sides_with(order=list), "not sorted"),
    ("fill_fixed", sides_with(lambda h, w, p, f: 0.9 * p <= h * w <= p), "should give"),
    ("strict", sides_with(lambda h, w, p, f: f * p < h * w < p), "expected ["),
    ("twice", sides_with(order=lambda found: sorted(found * 2)), "occurs twice"),
    ("one_a_height", lambda pixels=1024**2, step=64, shortest=512, longest=2048, fill=0.9: [
        (h, pixels // h // step * step) for h in range(shortest, longest + 1, step)
        if shortest <= pixels // h // step * step and h * (pixels // h // step * step) >= fill * pixels], "shapes, expected 41"),
]


@right(SIDES)
def by_two_loops(pixels=1024**2, step=64, shortest=512, longest=2048, fill=0.9):
    found, h = [], shortest
    while h <= longest:
        w = shortest
        while w <= longest:
            if h * w <= pixels and h * w >= fill * pixels:
                found.append((h, w))
            w += step
        h += step
    return found


@right(SIDES)
def as_lists(pixels=1024**2, step=64, shortest=512, longest=2048, fill=0.9):
    return [list(pair) for pair in sides_with()(pixels, step, shortest, longest, fill)]


@right(SIDES)
def by_a_table(pixels=1024**2, step=64, shortest=512, longest=2048, fill=0.9):
    n = torch.arange(shortest, longest + 1, step)
    area = n[:, None] * n
    rows, columns = torch.nonzero((area <= pixels) & (area >= fill * pixels), as_tuple=True)
    return list(zip(n[rows].tolist(), n[columns].tolist(), strict=True))


# ---- buckets.assign

ASSIGN = "buckets.assign"


def assign_with(ratio=lambda h, w: w / h, scale=torch.log, offered=lambda h, w: w / h, kept=lambda off, r, o: torch.exp(-off)):
    def assign(height, width, sides):
        found = torch.tensor([offered(h, w) for h, w in sides], dtype=torch.float64)
        mine = ratio(height.double(), width.double())
        off, index = (scale(mine)[:, None] - scale(found)).abs().min(1)
        return index, kept(off, mine, found[index])
    return assign


def smaller_over_larger(off, r, o):
    return torch.minimum(r, o) / torch.maximum(r, o)


WRONG[ASSIGN] = [
    ("plain_difference", assign_with(scale=lambda x: x, kept=smaller_over_larger), "favours one side"),
    ("plain_difference_h_over_w", assign_with(ratio=lambda h, w: h / w, offered=lambda h, w: h / w, scale=lambda x: x,
                                              kept=smaller_over_larger), "favours one side"),
    ("turned", assign_with(ratio=lambda h, w: h / w), "tall pictures go to wide buckets"),
    ("lost", assign_with(kept=lambda off, r, o: 1 - torch.exp(-off)), "nothing is lost where"),
    ("distance", assign_with(kept=lambda off, r, o: off), "nothing is lost where"),
    ("more_than_all", assign_with(kept=lambda off, r, o: torch.exp(off)), "more than everything"),
    ("plain_ratio", assign_with(kept=lambda off, r, o: o / r), "the smaller over the larger"),
    ("turned_ratio", assign_with(kept=lambda off, r, o: r / o), "the smaller over the larger"),
    ("index_alone", lambda h, w, sides: assign_with()(h, w, sides)[0], "(index, kept)"),
    ("whole_ratios", assign_with(ratio=lambda h, w: (w // h).clamp(min=1)), "expected the buckets"),
]


@wrong(ASSIGN, "compare proportions, not pixels")
def nearest_in_pixels(height, width, sides):
    offer = torch.tensor(sides).double()
    own = torch.stack([height, width], 1).double()
    return torch.cdist(own, offer).argmin(1), torch.ones(len(height))


@wrong(ASSIGN, "an integer dtype")
def the_shape_itself(height, width, sides):
    index, kept = assign_with()(height, width, sides)
    return index.double(), kept


@right(ASSIGN)
def picture_by_picture(height, width, sides):
    index, kept = [], []
    for h, w in zip(height.tolist(), width.tolist(), strict=True):
        shares = [min(w * H, h * W) / max(w * H, h * W) for H, W in sides]
        index.append(max(range(len(sides)), key=shares.__getitem__))
        kept.append(max(shares))
    return torch.tensor(index), torch.tensor(kept, dtype=torch.float64)


@right(ASSIGN)
def by_the_share_kept(height, width, sides):
    offer = torch.tensor(sides, dtype=torch.float64)
    cross = width[:, None].double() * offer[:, 0], height[:, None].double() * offer[:, 1]
    share = torch.minimum(*cross) / torch.maximum(*cross)
    best = share.max(dim=1)
    return best.indices, best.values


@right(ASSIGN)
def tall_over_wide(height, width, sides):
    return assign_with(ratio=lambda h, w: h / w, offered=lambda h, w: h / w, kept=smaller_over_larger)(height, width, sides)


# ---- buckets.batches

BATCHES = "buckets.batches"


def batches_with(shuffle=lambda m, g: m[torch.randperm(len(m), generator=g)],
                 cut=lambda m, n: list(m[: len(m) // n * n].reshape(-1, n)),
                 order=lambda made, g: [made[i] for i in torch.randperm(len(made), generator=g)]):
    def batches(bucket, batch_size, generator=None):
        made = []
        for k in bucket.unique():
            made += cut(shuffle(torch.nonzero(bucket == k).flatten(), generator), batch_size)
        return order(made, generator)
    return batches


WRONG[BATCHES] = [
    ("leftovers_kept", batches_with(cut=lambda m, n: list(m.split(n))), "leftovers are dropped"),
    ("empty_batch", batches_with(cut=lambda m, n: list(m[: len(m) // n * n].split(n))), "a batch is empty"),
    ("not_shuffled", batches_with(shuffle=lambda m, g: m), "shuffle them before they are cut"),
    ("one_bucket_after_the_other", batches_with(order=lambda made, g: made), "shuffle the list of batches"),
    ("generator_ignored", batches_with(shuffle=lambda m, g: m[torch.randperm(len(m))]), "pass generator"),
    ("shuffled_after_cutting", batches_with(shuffle=lambda m, g: m, cut=lambda m, n: [
        b[torch.randperm(n, generator=torch.Generator().manual_seed(int(b[0])))] for b in m[: len(m) // n * n].reshape(-1, n)]),
     "not after"),
    ("with_replacement", batches_with(shuffle=lambda m, g: m[torch.randint(len(m), (len(m),), generator=g)]), "occurs twice"),
    ("last_batch_lost", batches_with(cut=lambda m, n: list(m[: len(m) // n * n].reshape(-1, n))[:-1]), "batches, got"),
    ("places_in_the_bucket", batches_with(shuffle=lambda m, g: torch.randperm(len(m), generator=g)), "mixes buckets"),
    ("nothing", lambda bucket, batch_size, generator=None: None, "is the `return` missing?"),
]


@wrong(BATCHES, "mixes buckets")
def buckets_forgotten(bucket, batch_size, generator=None):
    order = torch.randperm(len(bucket), generator=generator)
    return list(order[: len(order) // batch_size * batch_size].reshape(-1, batch_size))


@right(BATCHES)
def one_shuffle_for_all(bucket, batch_size, generator=None):
    waiting, made = {}, []
    for i in torch.randperm(len(bucket), generator=generator).tolist():
        line = waiting.setdefault(int(bucket[i]), [])
        line.append(i)
        if len(line) == batch_size:
            made.append(torch.tensor(line))
            line.clear()
    return made


@right(BATCHES)
def by_where_and_chunks(bucket, batch_size, generator=None):
    made = []
    for k in range(int(bucket.max()) + 1):
        members = torch.where(bucket == k)[0]
        members = members[torch.rand(len(members), generator=generator).argsort()]
        made += [members[i: i + batch_size] for i in range(0, len(members) - batch_size + 1, batch_size)]
    return [made[i] for i in torch.rand(len(made), generator=generator).argsort().tolist()]


@right(BATCHES)
def as_a_tuple(bucket, batch_size, generator=None):
    return tuple(batches_with()(bucket, batch_size, generator))
