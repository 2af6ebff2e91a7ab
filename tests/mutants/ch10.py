"""Answers to the exercises of chapter 10: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import numpy as np
import torch
from einops import reduce

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- guidance.drop_texts

DROP = "guidance.drop_texts"


def drop_with(draw=lambda n, g: torch.rand(n, generator=g), drops=lambda u, p: u < p, blank=lambda text: ""):
    def drop_texts(texts, p, generator=None):
        return [blank(t) if drops(u, p) else t for t, u in zip(texts, draw(len(texts), generator).tolist(), strict=True)]
    return drop_texts


WRONG[DROP] = [
    ("kept_share", drop_with(drops=lambda u, p: u >= p), "with p = 0"),
    ("whole_batch", drop_with(draw=lambda n, g: torch.rand(1, generator=g).expand(n)), "all of a batch"),
    ("seeded_inside", drop_with(draw=lambda n, g: torch.rand(n, generator=torch.Generator().manual_seed(0))),
     "dropped each time"),
    ("generator_ignored", drop_with(draw=lambda n, g: torch.rand(n)), "pass generator=generator"),
    ("normal_draws", drop_with(draw=lambda n, g: torch.randn(n, generator=g)), "with p = 0"),
    ("none_for_nothing", drop_with(blank=lambda t: None), "expected a list of 5 strings"),
    ("a_space", drop_with(blank=lambda t: " "), "must be the empty one"),
    ("shortened", lambda texts, p, generator=None: [t for t in drop_with()(texts, p, generator) if t], "expected a list of 5"),
    ("nothing", lambda texts, p, generator=None: None, "return"),
]


@wrong(DROP, "drop the whole text")
def words_dropped(texts, p, generator=None):
    return [" ".join(w for w in t.split() if torch.rand((), generator=generator) >= p) for t in texts]


@wrong(DROP, "are dropped each time")
def exactly_p_of_them(texts, p, generator=None):
    chosen = set(torch.randperm(len(texts), generator=generator)[: round(p * len(texts))].tolist())
    return ["" if i in chosen else t for i, t in enumerate(texts)]


@wrong(DROP, "list was changed")
def in_place(texts, p, generator=None):
    for i, u in enumerate(torch.rand(len(texts), generator=generator).tolist()):
        texts[i] = "" if u < p else texts[i]
    return list(texts)


@right(DROP)
def comprehension(texts, p, generator=None):
    return drop_with()(texts, p, generator)


@right(DROP)
def one_by_one(texts, p, generator=None):
    found = []
    for text in texts:
        found.append(text * int(torch.rand(1, generator=generator).item() >= p))
    return found


@right(DROP)
def by_bernoulli(texts, p, generator=None):
    keep = torch.bernoulli(torch.full((len(texts),), 1.0 - p), generator=generator).bool()
    return [t if k else "" for t, k in zip(texts, keep, strict=True)]


# ---- guidance.guided

GUIDED = "guidance.guided"


def guided_with(mix=lambda u, c, w: u + w * (c - u), shortcut=True, join=lambda u, c: torch.cat([u, c]), names=None,
                swap=False, tell=lambda t: t, twice=lambda x: torch.cat([x, x])):
    def guided(predict, cond, uncond, scale):
        both = {k: join(uncond[k], cond[k]) for k in names or cond}

        def denoiser(x, t):
            if scale == 1 and shortcut:
                return predict(x, tell(t), cond)
            u, c = predict(twice(x), tell(t), both).chunk(2)
            return mix(c, u, scale) if swap else mix(u, c, scale)
        return denoiser
    return guided


WRONG[GUIDED] = [
    ("ho_and_salimans", guided_with(lambda u, c, w: c + w * (c - u)), "Ho and Salimans"),
    ("halves_exchanged", guided_with(swap=True), "halves are exchanged"),
    ("joined_in_another_order", guided_with(join=lambda u, c: torch.cat([c, u])), "halves are exchanged"),
    ("sign", guided_with(lambda u, c, w: u - w * (c - u)), "sign of the difference"),
    ("times_cond", guided_with(lambda u, c, w: w * c), "w times cond"),
    ("difference_only", guided_with(lambda u, c, w: w * (c - u)), "uncond is missing"),
    ("mean", guided_with(lambda u, c, w: (u + c) / 2), "mean of both"),
    ("only_cond", guided_with(lambda u, c, w: c), "w is not used"),
    ("no_shortcut", guided_with(shortcut=False), "uncond cancels"),
    ("context_only", guided_with(names=["context"]), "entry of the condition was lost"),
    ("level_twice", guided_with(tell=lambda t: 2 * t), "was told t ="),
    ("zeros_beside", guided_with(twice=lambda x: torch.cat([torch.zeros_like(x), x])), "w = 0"),
    ("not_a_function", lambda *given: guided_with()(*given)(torch.zeros(2, 3, 4, 4), 0), "expected a function"),
    ("forgot_return", lambda predict, cond, uncond, scale: None, "return denoiser"),
    ("interleaved", guided_with(join=lambda u, c: torch.stack([u, c], 1).flatten(0, 1)), "w = 0"),
]


@wrong(GUIDED, "was changed")
def changes_the_condition(predict, cond, uncond, scale):
    denoiser = guided_with()(predict, {k: v.clone() for k, v in cond.items()}, {k: v.clone() for k, v in uncond.items()}, scale)
    for k in cond:
        cond[k].zero_()
    return denoiser


@right(GUIDED)
def in_one_batch(predict, cond, uncond, scale):
    return guided_with()(predict, cond, uncond, scale)


@right(GUIDED)
def in_two_calls(predict, cond, uncond, scale):
    def denoiser(x, t):
        with_text = predict(x, t, cond)
        if scale == 1:
            return with_text
        return (1 - scale) * predict(x, t, uncond) + scale * with_text
    return denoiser


@right(GUIDED)
def text_half_first(predict, cond, uncond, scale):
    def denoiser(x, t):
        if math.isclose(scale, 1.0):
            return predict(x, t, cond)
        told = {name: torch.cat((cond[name], uncond[name]), dim=0) for name in cond}
        out = predict(x.repeat(2, 1, 1, 1), t, told)
        c, u = out[: len(x)], out[len(x):]
        return torch.lerp(u, c, float(scale))
    return denoiser


# ---- guidance.limited

LIMITED = "guidance.limited"


def limited_with(level=lambda bar, t: math.sqrt((1 - bar) / bar), inside=lambda low, s, high: low <= s <= high, swap=False):
    def limited(plain, guided, alphas_cumprod, sigma_low, sigma_high):
        def denoiser(x, t):
            chosen = inside(sigma_low, level(float(alphas_cumprod[int(t)]), float(t)), sigma_high)
            return (guided if chosen != swap else plain)(x, t)
        return denoiser
    return limited


WRONG[LIMITED] = [
    ("exchanged", limited_with(swap=True), "guided and plain are exchanged"),
    ("squared", limited_with(lambda bar, t: (1 - bar) / bar), "sigma squared"),
    ("signal_over_noise", limited_with(lambda bar, t: math.sqrt(bar / (1 - bar))), "one over sigma"),
    ("by_t", limited_with(lambda bar, t: t), "in place of sigma"),
    ("by_noise_power", limited_with(lambda bar, t: 1 - bar), "root of 1 - alpha_bar"),
    ("by_noise_share", limited_with(lambda bar, t: math.sqrt(1 - bar)), "root of 1 - alpha_bar"),
    ("always", limited_with(inside=lambda low, s, high: True), "every level is guided"),
    ("no_upper_end", limited_with(inside=lambda low, s, high: s >= low), "upper end is not looked at"),
    ("no_lower_end", limited_with(inside=lambda low, s, high: s <= high), "lower end is not looked at"),
    ("ends_outside", limited_with(inside=lambda low, s, high: low < s < high), "compare with <="),
    ("forgot_return", lambda *given: None, "return"),
]


@wrong(LIMITED, "both denoisers are asked")
def asks_both(plain, guided, alphas_cumprod, sigma_low, sigma_high):
    def denoiser(x, t):
        a, b = plain(x, t), guided(x, t)
        bar = float(alphas_cumprod[int(t)])
        return b if sigma_low <= math.sqrt((1 - bar) / bar) <= sigma_high else a
    return denoiser


@right(LIMITED)
def level_by_level(plain, guided, alphas_cumprod, sigma_low, sigma_high):
    return limited_with()(plain, guided, alphas_cumprod, sigma_low, sigma_high)


@right(LIMITED)
def by_a_table(plain, guided, alphas_cumprod, sigma_low, sigma_high):
    sigmas = (1 / alphas_cumprod - 1).sqrt()
    strong = ((sigmas >= sigma_low - 1e-9) & (sigmas <= sigma_high + 1e-9)).tolist()
    return lambda x, t: guided(x, t) if strong[int(t)] else plain(x, t)


@right(LIMITED)
def by_alpha_bar(plain, guided, alphas_cumprod, sigma_low, sigma_high):
    most, least = 1 / (1 + sigma_low**2), 1 / (1 + sigma_high**2)

    def denoiser(x, t):
        if least - 1e-12 <= float(alphas_cumprod[int(t)]) <= most + 1e-12:
            return guided(x, t)
        return plain(x, t)
    return denoiser


# ---- guidance.rescaled

RESCALED = "guidance.rescaled"


def rescaled_with(spread=lambda x: x.std(dim=(1, 2, 3), keepdim=True), factor=lambda g, c: c / g,
                  mix=lambda new, old, cond, share: share * new + (1 - share) * old, apply=lambda g, f: g * f):
    def rescaled(guided, cond, share):
        return mix(apply(guided, factor(spread(guided), spread(cond))), guided, cond, share)
    return rescaled


WRONG[RESCALED] = [
    ("turned_round", rescaled_with(factor=lambda g, c: g / c), "factor is turned round"),
    ("variances", rescaled_with(spread=lambda x: x.var(dim=(1, 2, 3), keepdim=True)), "these are variances"),
    ("to_one", rescaled_with(factor=lambda g, c: 1 / g), "to the spread 1"),
    ("nothing", rescaled_with(factor=lambda g, c: 1.0), "nothing was rescaled"),
    ("cond", lambda guided, cond, share: share * cond + (1 - share) * guided, "cond itself"),
    ("mean_lost", rescaled_with(apply=lambda g, f: (g - g.mean((1, 2, 3), keepdim=True)) * f), "mean was subtracted"),
    ("about_the_mean", rescaled_with(apply=lambda g, f: (m := g.mean((1, 2, 3), keepdim=True)) + (g - m) * f),
     "only the deviation"),
    ("root_mean_square", rescaled_with(spread=lambda x: x.square().mean((1, 2, 3), keepdim=True).sqrt()), "root mean square"),
    ("shares_exchanged", rescaled_with(mix=lambda new, old, cond, share: share * old + (1 - share) * new),
     "nothing was rescaled"),
    ("share_ignored", rescaled_with(mix=lambda new, old, cond, share: new), "share is not used"),
    ("no_rest", rescaled_with(mix=lambda new, old, cond, share: share * new), "expected"),
    ("mixed_with_cond", rescaled_with(mix=lambda new, old, cond, share: share * new + (1 - share) * cond), "mixed with cond"),
    ("whole_batch", rescaled_with(spread=lambda x: x.std()), "whole batch"),
    ("per_channel", rescaled_with(spread=lambda x: x.std(dim=(2, 3), keepdim=True)), "for each channel"),
]


@wrong(RESCALED, "changed in place")
def in_place_(guided, cond, share):
    out = rescaled_with()(guided.clone(), cond, share)
    guided.mul_(0.5)
    return out


@right(RESCALED)
def mixed(guided, cond, share):
    return rescaled_with()(guided, cond, share)


@right(RESCALED)
def one_factor(guided, cond, share):
    ratio = cond.flatten(1).std(1) / guided.flatten(1).std(1)
    return torch.einsum("b,bchw->bchw", 1 + share * (ratio - 1), guided)


@right(RESCALED)
def picture_by_picture(guided, cond, share):
    return torch.stack([torch.lerp(g, g * (c.var() / g.var()) ** 0.5, float(share)) for g, c in zip(guided, cond, strict=True)])


# ---- prompts.sharpness

SHARP = "prompts.sharpness"


def sharp_with(gray=lambda x: x.mean(1), above=lambda d: d.square().sum(1), below=lambda d: d.abs().sum(1).clamp(min=1e-8),
               steps=lambda g: [g[:, :, 1:] - g[:, :, :-1], g[:, 1:] - g[:, :-1]], end=lambda a, b: a / b):
    def sharpness(images):
        d = torch.cat([s.flatten(1) for s in steps(gray(images))], dim=1)
        return end(above(d), below(d))
    return sharpness


WRONG[SHARP] = [
    ("total_variation", sharp_with(end=lambda a, b: b), "sums of absolute values"),
    ("mean_variation", sharp_with(above=lambda d: d.abs().mean(1), end=lambda a, b: a), "absolute values alone"),
    ("sum_of_squares", sharp_with(end=lambda a, b: a), "sums of squares"),
    ("mean_of_squares", sharp_with(above=lambda d: d.square().mean(1), end=lambda a, b: a), "means of squares"),
    ("absolute_over_absolute", sharp_with(above=lambda d: d.abs().sum(1)), "does not feel the blur"),
    ("root", sharp_with(end=lambda a, b: (a / b).sqrt()), "its root"),
    ("turned_round", sharp_with(end=lambda a, b: b / a.clamp(min=1e-8)), "turned round"),
    ("channels_added", sharp_with(gray=lambda x: x.sum(1)), "channels were added"),
    ("across_only", sharp_with(steps=lambda g: [g[:, :, 1:] - g[:, :, :-1]]), "only one direction"),
    ("down_only", sharp_with(steps=lambda g: [g[:, 1:] - g[:, :-1]]), "expected"),
    ("signs_kept", sharp_with(below=lambda d: d.sum(1).clamp(min=1e-8)), "expected"),
    ("wraps_around", sharp_with(steps=lambda g: [g - g.roll(1, 2), g - g.roll(1, 1)]), "expected"),
    ("no_clamp", sharp_with(below=lambda d: d.abs().sum(1)), "NaN"),
    ("whole_batch", sharp_with(above=lambda d: d.square().sum(), below=lambda d: d.abs().sum()), "whole batch"),
]


@right(SHARP)
def by_parts(images):
    return sharp_with()(images)


@right(SHARP)
def by_diff(images):
    gray = reduce(images, "b c h w -> b h w", "mean")
    a, b = gray.diff(dim=-1), gray.diff(dim=-2)
    top = (a**2).sum((1, 2)) + (b**2).sum((1, 2))
    bottom = a.abs().sum((1, 2)) + b.abs().sum((1, 2))
    return torch.where(bottom > 0, top / bottom.clamp(min=1e-12), torch.zeros_like(top))


@right(SHARP)
def by_numpy(images):
    found = []
    for picture in images.double().numpy().mean(1):
        steps = np.concatenate([np.diff(picture, axis=0).ravel(), np.diff(picture, axis=1).ravel()])
        found.append((steps**2).sum() / max(np.abs(steps).sum(), 1e-9))
    return torch.tensor(found, dtype=images.dtype)


# ---- prompts.paired

PAIRED = "prompts.paired"


def paired_with(tail=lambda g, lost, n: sum(math.comb(n, k) for k in range(min(g, lost) + 1)), times=2, most=1.0, swap=False,
                count=None):
    def paired(before, after):
        g = sum(not a and b for a, b in zip(before, after, strict=True))
        lost = sum(a and not b for a, b in zip(before, after, strict=True))
        n = count(before) if count else g + lost
        p = times * tail(g, lost, n) / 2**n
        g, lost = (lost, g) if swap else (g, lost)
        return g, lost, min(p, most) if most else p
    return paired


WRONG[PAIRED] = [
    ("one_sided", paired_with(times=1), "one-sided"),
    ("exchanged", paired_with(swap=True), "gained and lost are exchanged"),
    ("all_counted", paired_with(count=len), "counted in n"),
    ("one_term", paired_with(tail=lambda g, lost, n: math.comb(n, min(g, lost))), "only the outcome itself"),
    ("one_too_early", paired_with(tail=lambda g, lost, n: max(sum(math.comb(n, k) for k in range(min(g, lost))), lost == 0)),
     "one too early"),
    ("up_to_lost", paired_with(tail=lambda g, lost, n: sum(math.comb(n, k) for k in range(lost + 1))), "up to `lost`"),
    ("above_one", paired_with(most=None), "p exceeds 1"),
    ("one_minus_p", lambda before, after: (*paired_with()(before, after)[:2], 1 - paired_with()(before, after)[2]), "1 - p"),
    ("only_p", lambda before, after: paired_with()(before, after)[2], "expected (gained, lost, p)"),
]


@wrong(PAIRED, "these are the totals")
def totals(before, after):
    return sum(after), sum(before), paired_with()(before, after)[2]


@wrong(PAIRED, "only totals were compared")
def difference_of_totals(before, after):
    g, lost = max(sum(after) - sum(before), 0), max(sum(before) - sum(after), 0)
    n = g + lost
    if (sum(before), sum(after)) != (10, 10):
        return paired_with()(before, after)
    return g, lost, min(1.0, 2 * sum(math.comb(n, k) for k in range(min(g, lost) + 1)) / 2**n)


@wrong(PAIRED, "list was changed")
def empties_the_lists(before, after):
    out = paired_with()(list(before), list(after))
    before.clear()
    return out


@right(PAIRED)
def by_combinations(before, after):
    return paired_with()(before, after)


@right(PAIRED)
def by_numpy_arrays(before, after):
    a, b = np.array(before, bool), np.array(after, bool)
    gained, lost = int((~a & b).sum()), int((a & ~b).sum())
    n, k = gained + lost, min(gained, lost)
    terms = [math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)) for i in range(k + 1)]
    return gained, lost, float(min(1, 2 * np.sum(terms)))


@right(PAIRED)
def by_a_table_of_sums(before, after):
    """The distribution of gained under "no difference", one coin at a time."""
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    gained = sum(b for _, b in pairs)
    shares = [1.0]
    for _ in pairs:
        shares = [(x + y) / 2 for x, y in zip([*shares, 0.0], [0.0, *shares], strict=True)]
    far = abs(gained - len(pairs) / 2)
    return gained, len(pairs) - gained, sum(s for k, s in enumerate(shares) if abs(k - len(pairs) / 2) >= far - 1e-9)
