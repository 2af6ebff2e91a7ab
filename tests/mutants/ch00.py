"""Answers to the exercises of chapter 00: wrong ones that students write, and right ones that look different.

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


# ---- pixels.convert

CONVERT = "pixels.convert"


def convert_with(up=lambda raw: raw / 127.5 - 1, down=lambda v: ((v.clamp(-1, 1) + 1) * 127.5).round(),
                 front=lambda p: p.permute(0, 3, 1, 2), back=lambda p: p.permute(0, 2, 3, 1)):
    def convert(pictures):
        if pictures.dtype == torch.uint8:
            return front(up(pictures.float()))
        return back(down(pictures).to(torch.uint8))
    return convert


WRONG[CONVERT] = [
    ("to_0_1", convert_with(up=lambda raw: raw / 255), "this maps to 0 ... 1"),
    ("minus_one_missing", convert_with(up=lambda raw: raw / 127.5), "the -1 is missing"),
    ("divided_by_128", convert_with(up=lambda raw: raw / 128 - 1), "divide by 127.5"),
    ("half_range", convert_with(up=lambda raw: raw / 255 - 0.5), "-0.5 ... 0.5"),
    ("only_a_cast", convert_with(up=lambda raw: raw), "these are still bytes"),
    ("plus_one_missing", convert_with(down=lambda v: (v.clamp(-1, 1) * 127.5).round()), "expected the bytes"),
    ("times_255", convert_with(down=lambda v: ((v.clamp(-1, 1) + 1) * 255).long() % 256), "multiplied by 255"),
    ("not_rounded", convert_with(down=lambda v: (v.clamp(-1, 1) + 1) * 127.5), "round first"),
    ("not_clamped", convert_with(down=lambda v: ((v + 1) * 127.5).round().long() % 256), "clamp to -1 ... 1 first"),
    ("reshaped", convert_with(front=lambda p: p.reshape(len(p), 3, *p.shape[1:3]),
                              back=lambda p: p.reshape(len(p), *p.shape[2:], 3)), "use permute(0, 3, 1, 2)"),
    ("not_permuted", convert_with(front=lambda p: p), "the colours in front of the rows"),
    ("columns_before_rows", convert_with(front=lambda p: p.permute(0, 3, 2, 1)), "expected shape (2, 3, 4, 5)"),
    ("colours_stay_in_front", convert_with(back=lambda p: p), "expected shape (2, 4, 5, 3)"),
    ("stays_float", lambda p: convert_with()(p) if p.dtype == torch.uint8 else convert_with()(p).float(), "torch.uint8"),
    ("one_way_only", lambda p: (p.float() / 127.5 - 1).permute(0, 3, 1, 2), "for values"),
]


@wrong(CONVERT, "was changed in place")
def writes_into_the_input(pictures):
    if pictures.dtype == torch.uint8:
        return convert_with()(pictures)
    pictures.clamp_(-1, 1)
    return convert_with()(pictures)


@right(CONVERT)
def by_einops(pictures):
    if pictures.dtype == torch.uint8:
        return rearrange(pictures, "b h w c -> b c h w") / 255 * 2 - 1
    return rearrange((pictures * 127.5 + 127.5).round().clamp(0, 255).byte(), "b c h w -> b h w c")


@right(CONVERT)
def by_numpy(pictures):
    if pictures.dtype == torch.uint8:
        return torch.from_numpy(np.moveaxis(pictures.numpy() / np.float32(127.5) - 1, 3, 1).copy())
    levels = np.rint((np.clip(pictures.numpy(), -1, 1) + 1) * 127.5).astype(np.uint8)
    return torch.from_numpy(np.moveaxis(levels, 1, 3).copy())


@right(CONVERT)
def colour_by_colour_through_a_table(pictures):
    if not pictures.is_floating_point():
        table = torch.linspace(-1, 1, 256)
        return torch.stack([table[pictures[..., k].long()] for k in range(3)], dim=1)
    planes = [torch.floor((pictures[:, k].clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8) for k in range(3)]
    return torch.stack(planes, dim=-1)


# ---- pixels.make_grid

GRID = "pixels.make_grid"


def grid_with(rows=lambda n, c: -(-n // c), cell=lambda i, c, r: (i // c, i % c), border=0, last=0, blank=None, exchange=False):
    def make_grid(images, columns, gap=2, value=1.0):
        N, C, H, W = images.shape
        R, K = rows(N, columns), columns
        if exchange:
            R, K = K, R
        fill = value if blank is None else blank
        first = border * gap
        sheet = images.new_full((C, R * (H + gap) - gap + (2 * border + last) * gap,
                                 K * (W + gap) - gap + (2 * border + last) * gap), fill)
        for i, image in enumerate(images[: R * K]):
            r, c = cell(i, K, R)
            top, left = first + r * (H + gap), first + c * (W + gap)
            sheet[:, top: top + H, left: left + W] = image
        return sheet
    return make_grid


WRONG[GRID] = [
    ("gap_after_the_last", grid_with(last=1), "a gap after each picture, the last too"),
    ("border_all_round", grid_with(border=1), "a border all round"),
    ("rows_rounded_down", grid_with(rows=lambda n, c: n // c), "round up"),
    ("exchanged", grid_with(exchange=True), "rows and columns are exchanged"),
    ("column_by_column", grid_with(cell=lambda i, c, r: (i % r, i // r)), "filled column by column"),
    ("gaps_of_zero", grid_with(blank=0.0), "gaps are 0"),
    ("gaps_of_one", grid_with(blank=1.0), "gaps are 1"),
    ("one_row_too_many", grid_with(rows=lambda n, c: n // c + 1), "in 1 columns"),
    ("bottom_up", grid_with(cell=lambda i, c, r: (r - 1 - i // c, i % c)), "upside down"),
    ("no_gap", lambda images, columns, gap=2, value=1.0: grid_with()(images, columns, 0, value), "there is no gap"),
    ("no_rows", lambda images, columns, gap=2, value=1.0: torch.cat(list(images), dim=2), "expected shape (3, 10, 22)"),
    ("detached", lambda images, *a, **k: grid_with()(images.detach(), *a, **k), "cut off from the pictures"),
]


@wrong(GRID, "the empty cell is 0")
def empty_cells_black(images, columns, gap=2, value=1.0):
    missing = -len(images) % columns
    return grid_with()(torch.cat([images, images.new_zeros(missing, *images.shape[1:])]), columns, gap, value)


@wrong(GRID, "without gap and value")
def default_gap_of_one(images, columns, gap=1, value=1.0):
    return grid_with()(images, columns, gap, value)


@wrong(GRID, "was changed in place")
def negates_its_input(images, columns, gap=2, value=1.0):
    out = grid_with()(images, columns, gap, value)
    with torch.no_grad():
        images.mul_(-1)
    return out


@right(GRID)
def by_padding_and_rearranging(images, columns, gap=2, value=1.0):
    missing = -len(images) % columns
    full = torch.cat([images, images.new_full((missing, *images.shape[1:]), value)])
    padded = F.pad(full, (0, gap, 0, gap), value=value)
    sheet = rearrange(padded, "(r k) c h w -> c (r h) (k w)", k=columns)
    return sheet[:, : sheet.shape[1] - gap, : sheet.shape[2] - gap]


@right(GRID)
def row_after_row(images, columns, gap=2, value=1.0):
    C, H, W = images.shape[1:]
    beside, below, rows = torch.full((C, H, gap), value), None, []
    while len(images):
        now, images = list(images[:columns]), images[columns:]
        now += [torch.full((C, H, W), value)] * (columns - len(now))
        pieces = [now[0]]
        for picture in now[1:]:
            pieces += [beside, picture]
        rows.append(torch.cat(pieces, dim=2))
        below = torch.full((C, gap, rows[0].shape[2]), value)
        rows.append(below)
    return torch.cat(rows[:-1], dim=1)


@right(GRID)
def by_divmod(pictures, columns, gap=2, value=1.0):
    height, width = pictures.shape[2] + gap, pictures.shape[3] + gap
    count = math.ceil(len(pictures) / columns)
    out = torch.full((pictures.shape[1], count * height, columns * width), value)
    for i in range(len(pictures)):
        row, column = divmod(i, columns)
        out[:, row * height: (row + 1) * height - gap, column * width: (column + 1) * width - gap] = pictures[i]
    return out[:, : count * height - gap, : columns * width - gap]


# ---- pipeline.start_noise

START = "pipeline.start_noise"


@wrong(START, "pass it as generator=")
def seeds_ignored(shape, seeds):
    return torch.randn(len(seeds), *shape)


@wrong(START, "torch.rand is uniform")
def uniform(shape, seeds):
    return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


@wrong(START, "one generator ran on")
def one_generator_runs_on(shape, seeds):
    generator = torch.Generator().manual_seed(seeds[0])
    return torch.stack([torch.randn(shape, generator=generator) for _ in seeds])


@wrong(START, "one generator ran on")
def the_batch_from_the_first_seed(shape, seeds):
    return torch.randn((len(seeds), *shape), generator=torch.Generator().manual_seed(seeds[0]))


@wrong(START, "the same noise")
def always_the_first_seed(shape, seeds):
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seeds[0])) for _ in seeds])


@wrong(START, "everybody's random numbers")
def seeds_the_global_state(shape, seeds):
    rows = []
    for seed in seeds:
        torch.manual_seed(seed)
        rows.append(torch.randn(shape))
    return torch.stack(rows)


@wrong(START, "a generator of its own")
def sum_of_the_seeds(shape, seeds):
    generator = torch.Generator().manual_seed(sum(seeds))
    return torch.stack([torch.randn(shape, generator=generator) for _ in seeds])


@wrong(START, "off by one")
def one_seed_further(shape, seeds):
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s + 1)) for s in seeds])


@wrong(START, "got a list")
def not_stacked(shape, seeds):
    return [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]


@wrong(START, "expected shape (3, 4, 8, 6), got (12, 8, 6)")
def joined_not_stacked(shape, seeds):
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


@right(START)
def one_generator_seeded_anew(shape, seeds):
    generator, out = torch.Generator(), torch.empty(len(seeds), *shape)
    for row, seed in zip(out, seeds, strict=True):
        row.copy_(torch.randn(shape, generator=generator.manual_seed(seed)))
    return out


@right(START)
def in_a_forked_state(shape, seeds):
    with torch.random.fork_rng(devices=[]):
        rows = []
        for seed in seeds:
            torch.manual_seed(seed)
            rows.append(torch.randn(*shape)[None])
    return torch.cat(rows)


@right(START)
def by_map(shape, seeds):
    def one(seed):
        own = torch.Generator(device="cpu")
        own.manual_seed(int(seed))
        return torch.zeros(shape).normal_(generator=own)
    return torch.stack(tuple(map(one, seeds)))


# ---- guidance.guide

GUIDE = "guidance.guide"


def guide_with(rule=lambda c, u, w: u + w * (c - u), shortcut=True):
    def guide(predict, x, t, cond, uncond, scale):
        with_text = predict(x, t, cond)
        if shortcut and scale == 1:
            return with_text
        return rule(with_text, predict(x, t, uncond), scale)
    return guide


WRONG[GUIDE] = [
    ("from_the_answer_with_text", guide_with(lambda c, u, w: c + w * (c - u)), "start from the one without"),
    ("sign", guide_with(lambda c, u, w: u + w * (u - c)), "wrong sign"),
    ("exchanged", guide_with(lambda c, u, w: c + w * (u - c)), "the two answers are exchanged"),
    ("not_the_difference", guide_with(lambda c, u, w: u + w * c), "not the difference"),
    ("difference_only", guide_with(lambda c, u, w: w * (c - u)), "this is the difference only"),
    ("scale_ignored", guide_with(lambda c, u, w: c), "w is not used"),
    ("mean", guide_with(lambda c, u, w: (c + u) / 2), "or a mean"),
    ("no_shortcut", guide_with(shortcut=False), "at w = 1 the network was asked 2 times"),
    ("clamped_scale", guide_with(lambda c, u, w: u + max(w, 1) * (c - u)), "w = 0"),
    ("detached", guide_with(lambda c, u, w: u + w * (c - u).detach()), "gradient"),
    ("without_gradient", torch.no_grad()(guide_with()), "cut off from the network's answers"),
]


@wrong(GUIDE, "asked 3 times")
def asks_three_times(predict, x, t, cond, uncond, scale):
    if scale == 1:
        return predict(x, t, cond)
    return predict(x, t, uncond) + scale * (predict(x, t, cond) - predict(x, t, uncond))


@wrong(GUIDE, "another x")
def second_question_about_the_first_answer(predict, x, t, cond, uncond, scale):
    with_text = predict(x, t, cond)
    return with_text if scale == 1 else predict(x * 0 + with_text, t, uncond) * (1 - scale) + scale * with_text


@wrong(GUIDE, "was changed in place")
def works_in_place(predict, x, t, cond, uncond, scale):
    with_text = predict(x, t, cond)
    if scale == 1:
        return with_text
    without = predict(x, t, uncond)
    return (with_text.sub_(without)).mul_(scale).add_(without)


@wrong(GUIDE, "got None")
def return_forgotten(predict, x, t, cond, uncond, scale):
    guide_with()(predict, x, t, cond, uncond, scale)


@right(GUIDE)
def weighted_mean(predict, x, t, cond, uncond, scale):
    c = predict(x, t, cond)
    return c if scale == 1 else scale * c + (1 - scale) * predict(x, t, uncond)


@right(GUIDE)
def as_ho_and_salimans_write_it(model, latent, step, text, nothing, w):
    strength = w - 1
    answer = model(latent, step, text)
    if strength == 0:
        return answer
    return (1 + strength) * answer - strength * model(latent, step, nothing)


@right(GUIDE)
def by_lerp(predict, x, t, cond, uncond, scale):
    if scale == 1:
        return predict(x, t, cond)
    without, with_text = (predict(x, t, condition) for condition in (uncond, cond))
    return torch.lerp(without, with_text, scale)


# ---- fidelity.share_with_interval

SHARE = "fidelity.share_with_interval"


def share_with(centre=lambda p, n, z: (p + z * z / (2 * n)) / (1 + z * z / n),
               half=lambda p, n, z: z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)),
               share=lambda k, n: k / n):
    def share_with_interval(right, total, z=1.96):
        p = share(right, total)
        middle, width = centre(p, total, z), half(p, total, z)
        return p, middle - width, middle + width
    return share_with_interval


WRONG[SHARE] = [
    ("without_wilson", share_with(lambda p, n, z: p, lambda p, n, z: z * math.sqrt(p * (1 - p) / n)),
     "without Wilson's correction"),
    ("no_root", share_with(half=lambda p, n, z: z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n))),
     "forget the square root"),
    ("second_term_missing", share_with(half=lambda p, n, z: z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n)),
     "under the root is missing"),
    ("half_not_divided", share_with(half=lambda p, n, z: z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))),
     "not divided by 1 + z² / total"),
    ("z_missing", share_with(half=lambda p, n, z: 1 / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))),
     "z is missing"),
    ("centre_is_the_share", share_with(lambda p, n, z: p), "the interval leaves 1"),
    ("percent", lambda right, total, z=1.96: tuple(100 * v for v in share_with()(right, total, z)), "percent"),
    ("z_fixed", lambda right, total, z=1.96: share_with()(right, total, 1.96), "expected"),
    ("other_default", lambda right, total, z=2.0: share_with()(right, total, z), "0 of 7"),
    ("interval_only", lambda right, total, z=1.96: share_with()(right, total, z)[1:], "expected (share, low, high)"),
    ("low_and_high_exchanged", lambda right, total, z=1.96: share_with(half=lambda p, n, z: -0.1)(right, total, z),
     "expected low <= high"),
]


@wrong(SHARE, "the centre is returned")
def centre_for_share(right, total, z=1.96):
    _, low, high = share_with()(right, total, z)
    return (low + high) / 2, low, high


@right(SHARE)
def by_numpy_scalars(right, total, z=1.96):
    n, p = np.float64(total), np.float64(right) / total
    spread = z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return p, (p + z**2 / (2 * n) - spread) / (1 + z**2 / n), (p + z**2 / (2 * n) + spread) / (1 + z**2 / n)


@right(SHARE)
def as_roots_of_a_quadratic(right, total, z=1.96):
    a, b, c = total + z**2, 2 * right + z**2, right**2 / total     # the shares p with (share - p)² = z² p (1 - p) / n
    root = math.sqrt(max(b**2 - 4 * a * c, 0.0))
    return right / total, (b - root) / (2 * a), (b + root) / (2 * a)


@right(SHARE)
def with_tensors(right, total, z=1.96):
    k, n = torch.tensor(float(right)).double(), torch.tensor(float(total)).double()
    wrong_ones = n - k
    centre = (k + z**2 / 2) / (n + z**2)
    half = z * (k * wrong_ones / n + z**2 / 4).sqrt() / (n + z**2)
    return [k / n, centre - half, centre + half]


# ---- pipeline.slerp

SLERP = "pipeline.slerp"


def slerp_with(cosine=lambda a, b: (a * b).sum() / (a.norm() * b.norm()), mix=None, guard=True):
    def slerp(a, b, weights):
        u = weights.reshape(-1, 1, 1, 1)
        angle = torch.acos(cosine(a, b).clamp(-1, 1)) if guard else torch.acos(cosine(a, b))
        if guard and float(angle.min()) < 1e-3:
            return (1 - u) * a + u * b
        if mix is not None:
            return mix(a, b, u, angle)
        return (torch.sin((1 - u) * angle) * a + torch.sin(u * angle) * b) / torch.sin(angle)
    return slerp


WRONG[SLERP] = [
    ("straight_line", lambda a, b, w: (1 - w.reshape(-1, 1, 1, 1)) * a + w.reshape(-1, 1, 1, 1) * b, "straight line"),
    ("ends_exchanged", lambda a, b, w: slerp_with()(b, a, w), "they are exchanged"),
    ("unit_length", lambda a, b, w: slerp_with()(a, b, w) / a.norm(), "the length is lost"),
    ("sine_of_the_angle_missing", slerp_with(mix=lambda a, b, u, o: torch.sin((1 - u) * o) * a + torch.sin(u * o) * b),
     "not divided by sin(angle)"),
    ("always_a_right_angle", slerp_with(mix=lambda a, b, u, o: torch.cos(u * torch.pi / 2) * a + torch.sin(u * torch.pi / 2) * b),
     "for a right one"),
    ("lengths_forgotten", slerp_with(cosine=lambda a, b: (a * b).sum(), guard=False), "divided by both lengths"),
    ("no_case_for_equal_ends", slerp_with(guard=False), "NaN"),
    ("one_angle_a_row", slerp_with(cosine=lambda a, b: torch.cosine_similarity(a, b, dim=-1)[..., None]), "straight line"),
    ("one_angle_a_channel", slerp_with(cosine=lambda a, b: torch.cosine_similarity(a, b, dim=0)[None]),
     "one dot product over all values"),
    ("detached", lambda a, b, w: slerp_with()(a.detach(), b.detach(), w), "cut off from a and b"),
    ("flat", lambda a, b, w: slerp_with()(a, b, w).flatten(1), "expected shape (5, 2, 3, 4)"),
]


@wrong(SLERP, "was changed in place")
def scales_the_weights_in_place(a, b, weights):
    angle = torch.acos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1)).detach()
    if angle < 1e-3:
        return slerp_with()(a, b, weights)
    weights *= angle
    u = weights.reshape(-1, 1, 1, 1)
    return (torch.sin(angle - u) * a + torch.sin(u) * b) / torch.sin(angle)


@wrong(SLERP, "inplace operation")
def normalises_in_place(a, b, weights):
    out = slerp_with()(a, b, weights)
    with torch.no_grad():
        a /= a.norm()
    return out


@wrong(SLERP, "expected")
def radius_of_the_first(a, b, weights):
    u = weights.reshape(-1, 1, 1, 1)
    line = (1 - u) * a + u * b
    return line / line.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * a.norm()


@right(SLERP)
def weight_by_weight(a, b, weights):
    theta = math.acos(min(1.0, max(-1.0, float((a.flatten() @ b.flatten()) / (a.norm() * b.norm())))))
    rows = []
    for u in weights.tolist():
        if theta < 1e-4:
            rows.append(a + u * (b - a))
        else:
            rows.append((math.sin((1 - u) * theta) * a + math.sin(u * theta) * b) / math.sin(theta))
    return torch.stack(rows)


@right(SLERP)
def by_cosine_similarity(start, end, at):
    angle = torch.cosine_similarity(start.reshape(1, -1), end.reshape(1, -1)).clamp(-1, 1).acos()
    if angle.item() < 1e-3:
        return torch.lerp(start[None], end[None], at[:, None, None, None])
    one, two = (torch.sin((1 - at) * angle) / angle.sin(), torch.sin(at * angle) / angle.sin())
    return torch.einsum("k,chw->kchw", one, start) + torch.einsum("k,chw->kchw", two, end)


@right(SLERP)
def in_double_precision(a, b, weights):
    x, y = a.double().flatten(), b.double().flatten()
    angle = torch.atan2((x / x.norm() - y / y.norm()).norm(), (x / x.norm() + y / y.norm()).norm()) * 2
    u = weights.double()[:, None]
    if angle < 1e-6:
        out = (1 - u) * x + u * y
    else:
        out = (torch.sin((1 - u) * angle) * x + torch.sin(u * angle) * y) / torch.sin(angle)
    return out.reshape(len(weights), *a.shape).to(a.dtype)
