"""Answers to the exercises of chapter 07: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import numpy as np
import torch
from einops import einsum, rearrange, reduce

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- samplers.exact_x0

EXACT = "samplers.exact_x0"


def denoiser_with(scale=lambda ab: ab**0.5, two=2, sign=-1, dim=1, weigh=True, square=True, in_weights=True, in_gain=True,
                  gain=True, centre=True, mean_scale=False, hard=False, scale_in_gain=True, total=False):
    """The right answer with one thing changed."""
    def exact_x0(x_t, alpha_bar, data, spread=0.0):
        flat, m = x_t.flatten(1), data.flatten(1)
        a, p = alpha_bar**0.5, spread**2 if square else spread
        variance = alpha_bar * p + 1 - alpha_bar
        distance = (flat[:, None] - scale(alpha_bar) * m[None]).pow(2).sum(-1)
        weights = torch.softmax(sign * distance / (two * (variance if in_weights else 1 - alpha_bar)), dim=dim)
        if hard:
            weights = torch.nn.functional.one_hot(distance.argmin(1), len(m)).to(flat)
        if not weigh:
            weights = torch.full_like(weights, 1 / len(m))
        mean = weights @ m * (len(m) if total else 1)
        out = mean * a if mean_scale else mean
        if gain:
            out = out + (a if scale_in_gain else 1) * p / (variance if in_gain else 1 - alpha_bar) * (
                flat - (a if centre else 1) * mean)
        return out.reshape(x_t.shape)
    return exact_x0


WRONG[EXACT] = [
    ("data_not_scaled", denoiser_with(scale=lambda ab: 1.0), "distances are to the data"),
    ("scaled_by_alpha_bar", denoiser_with(scale=lambda ab: ab), "by its square root"),
    ("no_two", denoiser_with(two=1), "the 2 is missing"),
    ("sign", denoiser_with(sign=1), "near points must weigh more"),
    ("nearest", denoiser_with(hard=True), "this is the nearest point"),
    ("no_weights", denoiser_with(weigh=False), "all points weigh the same"),
    ("mean_of_a_x0", denoiser_with(mean_scale=True), "use the data, unscaled"),
    ("no_second_term", denoiser_with(gain=False), "second term is missing"),
    ("spread_not_squared", denoiser_with(square=False), "square it"),
    ("no_a_in_the_gain", denoiser_with(scale_in_gain=False), "missing in the gain"),
    ("difference_to_m", denoiser_with(centre=False), "the mean belongs to a x_0"),
    ("gain_without_spread", denoiser_with(in_gain=False), "the variance of x_t is"),
    ("weights_without_spread", denoiser_with(in_weights=False), "the weights ignore the spread"),
]


@wrong(EXACT, "use softmax")
def bare_exponentials(x_t, alpha_bar, data, spread=0.0):
    flat, m, a = x_t.flatten(1), data.flatten(1), alpha_bar**0.5
    v = alpha_bar * spread**2 + 1 - alpha_bar
    w = torch.exp(-(flat[:, None] - a * m[None]).pow(2).sum(-1) / (2 * v) - 200)
    mean = (w / w.sum(1, keepdim=True)) @ m
    return (mean + a * spread**2 / v * (flat - a * mean)).reshape(x_t.shape)


@wrong(EXACT, "expected shape")
def stays_flat(x_t, alpha_bar, data, spread=0.0):
    return denoiser_with()(x_t, alpha_bar, data, spread).flatten(1)


@right(EXACT)
def by_einops(x_t, alpha_bar, data, spread=0.0):
    x, m = rearrange(x_t, "b ... -> b (...)"), rearrange(data, "n ... -> n (...)").to(x_t)
    a, v = math.sqrt(alpha_bar), alpha_bar * spread**2 + 1 - alpha_bar
    apart = rearrange(x, "b d -> b 1 d") - a * m
    w = torch.softmax(reduce(apart**2, "b n d -> b n", "sum") / (-2 * v), -1)
    each = m + a * spread**2 / v * apart
    return einsum(w, each, "b n, b n d -> b d").reshape_as(x_t)


@right(EXACT)
def by_a_loop_over_the_batch(x_t, alpha_bar, data, spread=0.0):
    a, v, out = alpha_bar**0.5, alpha_bar * spread**2 + 1 - alpha_bar, []
    for x in x_t:
        log = torch.stack([-(x - a * m).square().sum() / (2 * v) for m in data])
        w = (log - log.logsumexp(0)).exp()
        out.append(sum(w[k] * (m + a * spread**2 / v * (x - a * m)) for k, m in enumerate(data)))
    return torch.stack(out)


@right(EXACT)
def by_cdist(x_t, alpha_bar, data, spread=0.0):
    a, v = alpha_bar**0.5, alpha_bar * spread**2 + 1 - alpha_bar
    x, m = x_t.flatten(1), data.flatten(1).to(x_t.dtype)
    far = torch.cdist(x, a * m, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    mean = torch.softmax(-0.5 * far / v, 1).matmul(m)
    return (mean * (1 - alpha_bar * spread**2 / v) + a * spread**2 / v * x).view(x_t.shape)


# ---- samplers.posterior

POST = "samplers.posterior"


def posterior_with(c0=lambda n, m: m**0.5 * (1 - n / m) / (1 - n), c1=lambda n, m: (n / m) ** 0.5 * (1 - m) / (1 - n),
                   small=lambda n, m: (1 - m) / (1 - n) * (1 - n / m), large=lambda n, m: 1 - n / m):
    def posterior(x_t, x0, alpha_bar, alpha_bar_next, kind="small"):
        n, m = alpha_bar, alpha_bar_next
        return c0(n, m) * x0 + c1(n, m) * x_t, (large if kind == "large" else small)(n, m)
    return posterior


WRONG[POST] = [
    ("exchanged", posterior_with(lambda n, m: (n / m) ** 0.5 * (1 - m) / (1 - n), lambda n, m: m**0.5 * (1 - n / m) / (1 - n)),
     "exchanged"),
    ("no_root_of_alpha_bar", posterior_with(c0=lambda n, m: m * (1 - n / m) / (1 - n)), "square root of alpha_bar_next"),
    ("no_root_of_alpha", posterior_with(c1=lambda n, m: (n / m) * (1 - m) / (1 - n)), "square root of alpha, in front"),
    ("this_alpha_bar", posterior_with(c0=lambda n, m: n**0.5 * (1 - n / m) / (1 - n)), "alpha_bar stands where"),
    ("not_divided", posterior_with(lambda n, m: m**0.5 * (1 - n / m), lambda n, m: (n / m) ** 0.5 * (1 - m)),
     "division by 1 - alpha_bar is missing"),
    ("alpha_is_alpha_bar", posterior_with(lambda n, m: m**0.5, lambda n, m: n**0.5 * (1 - m) / (1 - n)),
     "alpha of this stride"),
    ("deviation", posterior_with(small=lambda n, m: ((1 - m) / (1 - n) * (1 - n / m)) ** 0.5), "standard deviation"),
    ("variances_exchanged", posterior_with(small=lambda n, m: 1 - n / m,
                                           large=lambda n, m: (1 - m) / (1 - n) * (1 - n / m)), "exchanged"),
    ("upside_down", posterior_with(small=lambda n, m: (1 - n) / (1 - m) * (1 - n / m) if m < 1 else 0.0), "upside down"),
    ("one_variance", posterior_with(large=lambda n, m: (1 - m) / (1 - n) * (1 - n / m)), "the small one again"),
    ("mean_only", lambda x_t, x0, *rest: x0, "expected (mean, variance)"),
]


@wrong(POST, "both")
def writes_into_x_t_and_stops(x_t, x0, alpha_bar, alpha_bar_next, kind="small"):
    return posterior_with()(x_t, x0, alpha_bar, alpha_bar_next)[0], 0.1


@right(POST)
def by_products_of_precisions(x_t, x0, alpha_bar, alpha_bar_next, kind="small"):
    alpha = alpha_bar / alpha_bar_next
    if alpha_bar_next == 1:
        return x0.clone(), (1 - alpha if kind == "large" else 0.0)
    precision = alpha / (1 - alpha) + 1 / (1 - alpha_bar_next)
    mean = (alpha**0.5 / (1 - alpha) * x_t + alpha_bar_next**0.5 / (1 - alpha_bar_next) * x0) / precision
    return mean, {"small": 1 / precision, "large": 1 - alpha}[kind]


@right(POST)
def variance_as_a_tensor(x_t, x0, alpha_bar, alpha_bar_next, kind="small"):
    mean, variance = posterior_with()(x_t, x0, alpha_bar, alpha_bar_next, kind)
    return mean, torch.tensor(variance, dtype=torch.float64)


@right(POST)
def by_numpy(x_t, x0, alpha_bar, alpha_bar_next, kind="small"):
    now, after = np.float64(alpha_bar), np.float64(alpha_bar_next)
    beta = 1 - now / after
    variance = beta * (1 - after) / (1 - now) if kind == "small" else beta
    mean = np.sqrt(after) * beta / (1 - now) * x0.numpy() + np.sqrt(now / after) * (1 - after) / (1 - now) * x_t.numpy()
    return torch.from_numpy(mean).to(x_t), float(variance)


# ---- samplers.ddim_step

STEP = "samplers.ddim_step"


def step_with(x0_of=lambda x, e, n, m: (x - (1 - n) ** 0.5 * e) / n**0.5, signal=lambda n, m: m**0.5,
              kept=lambda m, sigma: (1 - m - sigma**2) ** 0.5, factor=lambda eta, v: eta * v**0.5,
              variance=lambda n, m: (1 - m) / (1 - n) * (1 - n / m)):
    def ddim_step(x_t, eps, alpha_bar, alpha_bar_next, eta=0.0, noise=None):
        n, m = alpha_bar, alpha_bar_next
        x0 = x0_of(x_t, eps, n, m)
        sigma = factor(eta, variance(n, m)) if eta > 0 else 0.0
        x = signal(n, m) * x0 + kept(m, sigma) * eps
        return (x + sigma * noise if eta > 0 else x), x0
    return ddim_step


WRONG[STEP] = [
    ("not_divided", step_with(lambda x, e, n, m: x - (1 - n) ** 0.5 * e), "division by sqrt(alpha_bar)"),
    ("no_roots", step_with(lambda x, e, n, m: (x - (1 - n) * e) / n), "square roots are missing"),
    ("noise_added", step_with(lambda x, e, n, m: (x + (1 - n) ** 0.5 * e) / n**0.5), "the noise is added"),
    ("x0_at_next", step_with(lambda x, e, n, m: (x - (1 - m) ** 0.5 * e) / m**0.5), "x_t is at alpha_bar"),
    ("old_signal", step_with(signal=lambda n, m: n**0.5), "the signal in it is that of the old level"),
    ("eps_left_out", step_with(kept=lambda m, sigma: 0.0), "eps is left out"),
    ("eps_keeps_its_share", step_with(kept=lambda m, sigma: (1 - m) ** 0.5), "eps keeps its full share"),
    ("variance_for_deviation", step_with(factor=lambda eta, v: eta * v), "multiplied by the variance"),
    ("eta_squared", step_with(factor=lambda eta, v: eta**2 * v**0.5), "eta = 0.5"),
    ("large_variance", step_with(variance=lambda n, m: min(1 - n / m, 1 - m)), "eta = 0.5: expected"),
    ("eta_ignored", step_with(factor=lambda eta, v: v**0.5), "eta is not used"),
    ("x_alone", lambda *a, **k: step_with()(*a, **k)[0], "expected (x_next, x0)"),
]


@wrong(STEP, "old level")
def old_noise(x_t, eps, alpha_bar, alpha_bar_next, eta=0.0, noise=None):
    x0 = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return alpha_bar_next**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps, x0


@wrong(STEP, "no fresh noise")
def forgets_the_noise(x_t, eps, alpha_bar, alpha_bar_next, eta=0.0, noise=None):
    return step_with()(x_t, eps, alpha_bar, alpha_bar_next, eta, None if noise is None else 0 * noise)


@right(STEP)
def by_numpy_roots(x_t, eps, alpha_bar, alpha_bar_next, eta=0.0, noise=None):
    x0 = (x_t - np.sqrt(1 - alpha_bar).item() * eps) / np.sqrt(alpha_bar).item()
    sigma = 0.0
    if eta:
        sigma = eta * np.sqrt((1 - alpha_bar_next) * (1 - alpha_bar / alpha_bar_next) / (1 - alpha_bar)).item()
    x = np.sqrt(alpha_bar_next).item() * x0 + np.sqrt(1 - alpha_bar_next - sigma**2).item() * eps
    return (x, x0) if not eta else (x + sigma * noise, x0)


@right(STEP)
def in_sigma_space(x_t, eps, alpha_bar, alpha_bar_next, eta=0.0, noise=None):
    x0 = x_t / alpha_bar**0.5 - ((1 - alpha_bar) / alpha_bar) ** 0.5 * eps
    if eta == 0:
        y = x_t / alpha_bar**0.5
        change = ((1 - alpha_bar_next) / alpha_bar_next) ** 0.5 - ((1 - alpha_bar) / alpha_bar) ** 0.5
        return alpha_bar_next**0.5 * (y + change * eps), x0
    return step_with()(x_t, eps, alpha_bar, alpha_bar_next, eta, noise)


@right(STEP)
def as_a_list(x_t, eps, alpha_bar, alpha_bar_next, eta=0.0, noise=None):
    return list(step_with()(x_t, eps, alpha_bar, alpha_bar_next, eta, noise))


# ---- samplers.ddim

LOOP, GOOD_STEP = "samplers.ddim", step_with()


def loop_with(after=lambda bars, i, ts, schedule: bars[i + 1], last=lambda schedule: 1.0, told=lambda i, t: t,
              order=lambda ts: ts, stop=0, draw=None, early=False, hand_over=True, step=GOOD_STEP):
    def ddim(denoiser, x, timesteps, *, schedule, eta=0.0, generator=None, callback=None, **others):
        ts = order(timesteps.tolist())
        bars = [*schedule.alpha_bar(torch.tensor(ts, dtype=torch.float64)).tolist(), last(schedule)]
        for i, t in enumerate(ts[: len(ts) - stop]):
            noise = (draw or (lambda x, g: torch.randn(x.shape, generator=g).to(x)))(x, generator) if eta > 0 else None
            before = x
            x, x0 = step(x, denoiser(x, told(i, t)), bars[i], after(bars, i, ts, schedule), eta if hand_over else 0.0, noise)
            if callback:
                callback(i, t, before if early else x, x0)
        return x
    return ddim


def neighbour(bars, i, ts, schedule):
    return float(schedule.alphas_cumprod[ts[i] - 1]) if ts[i] > 0 else 1.0


WRONG[LOOP] = [
    ("goes_to_t_minus_1", loop_with(neighbour), "alpha_bar of the neighbour"),
    ("neighbour_but_for_the_last", loop_with(lambda b, i, ts, s: 1.0 if i + 1 == len(ts) else neighbour(b, i, ts, s)),
     "the step goes to t - 1"),
    ("stops_at_alpha_bar_0", loop_with(last=lambda s: float(s.alphas_cumprod[0])), "stops at alpha_bar_0"),
    ("tells_the_index", loop_with(told=lambda i, t: i), "the number of the step"),
    ("walks_upwards", loop_with(order=lambda ts: ts[::-1]), "in reverse"),
    ("no_last_step", loop_with(stop=1), "the denoiser was asked at"),
    ("eta_forgotten", loop_with(hand_over=False), "two seeds give the same"),
    ("own_noise", loop_with(draw=lambda x, g: torch.randn(x.shape).to(x)), "pass generator"),
    ("callback_gets_the_old_x", loop_with(early=True), "call it after the step"),
    ("uniform_noise", loop_with(draw=lambda x, g: torch.rand(x.shape, generator=g).to(x)), "standard normal"),
    ("one_number_of_noise", loop_with(draw=lambda x, g: torch.randn(1, generator=g).to(x)), "x's shape"),
]


@right(LOOP)
def by_pairs(denoiser, x, timesteps, *, schedule, eta=0.0, generator=None, callback=None, **others):
    bars = [float(schedule.alpha_bar(t)) for t in timesteps]
    pairs = zip(timesteps, bars, bars[1:] + [1.0], strict=True)
    for i, (t, now, after) in enumerate(pairs):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x, x0 = GOOD_STEP(x, denoiser(x, float(t)), now, after, eta, noise)
        if callback is not None:
            callback(i, float(t), x, x0)
    return x


RIGHT[LOOP] += [("a_plain_loop", loop_with()), ("another_step", loop_with(step=by_numpy_roots)),
                ("with_final_alpha_cumprod", loop_with(last=lambda s: s.final_alpha_cumprod))]


# ---- samplers.ddim_invert

INVERT = "samplers.ddim_invert"


def climb_with(asks=lambda up: [up[0], *up[:-1]], start=lambda bars: [1.0, *bars], turn=True, stop=0, sign=1):
    def ddim_invert(denoiser, x0, timesteps, *, schedule):
        up = timesteps.tolist()[::-1] if turn else timesteps.tolist()
        bars, x = start(schedule.alpha_bar(torch.tensor(up)).tolist()), x0
        asked = asks(up)
        for i in range(min(len(bars) - 1, len(asked)) - stop):
            x, _ = GOOD_STEP(x, sign * denoiser(x, asked[i]), bars[i], bars[i + 1])
        return x
    return ddim_invert


WRONG[INVERT] = [
    ("asks_where_it_goes", climb_with(asks=lambda up: up), "at the level where x is"),
    ("walks_down", climb_with(asks=lambda up: up, turn=False), "from high to low"),
    ("starts_at_the_lowest_level", climb_with(start=lambda bars: [bars[0], *bars]), "one step late"),
    ("stops_below_the_top", climb_with(stop=1), "expected to be asked"),
    ("stays_below_the_top", climb_with(start=lambda bars: [1.0, *bars[:-1], bars[-2]]), "top level is not reached"),
    ("subtracts", climb_with(sign=-1), "the noise is subtracted"),
]


@wrong(INVERT, "expected to be asked")
def adds_noise_instead(denoiser, x0, timesteps, *, schedule):
    return schedule.add_noise(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0), timesteps[0])


@right(INVERT)
def in_sigma(denoiser, x0, timesteps, *, schedule):
    y, sigma, now, a = x0, 0.0, None, 1.0
    for t in reversed(timesteps.tolist()):
        slope = denoiser(a * y, t if now is None else now)
        bar = float(schedule.alpha_bar(t))
        higher, now, a = math.sqrt((1 - bar) / bar), t, math.sqrt(bar)
        y, sigma = y + (higher - sigma) * slope, higher
    return a * y


RIGHT[INVERT] += [("by_lists", climb_with()),
                  ("asks_in_floats", climb_with(asks=lambda up: [float(up[0]), *map(float, up[:-1])]))]


# ---- samplers.heun

HEUN = "samplers.heun"


def heun_with(share=0.5, total=1, scaled=True, from_y=True, at_next=True, divide=True, ask_second=True, sign=1, last=True):
    def heun(denoiser, x, timesteps, *, schedule, **others):
        ts = timesteps.tolist()
        bars = [*schedule.alpha_bar(timesteps).tolist(), 1.0]
        a, sigma = [b**0.5 for b in bars], [((1 - b) / b) ** 0.5 for b in bars]
        y = x / a[0] if divide else x
        for i, t in enumerate(ts if last else ts[:-1]):
            h, slope = sign * (sigma[i + 1] - sigma[i]), denoiser(a[i] * y, t)
            there = y + h * slope
            if ask_second and i + 1 < len(ts):
                second = denoiser((a[i + 1] if scaled else 1) * there, ts[i + 1] if at_next else t)
                there = (y if from_y else there) + total * h * ((1 - share) * slope + share * second)
            y = there
        return y
    return heun


WRONG[HEUN] = [
    ("second_slope_only", heun_with(share=1.0), "only the second slope"),
    ("first_slope_only", heun_with(share=0.0), "computed but not used"),
    ("hands_over_y", heun_with(scaled=False), "the denoiser was handed y"),
    ("on_top_of_the_first_step", heun_with(from_y=False), "start again"),
    ("asks_at_t_twice", heun_with(at_next=False), "asked at t"),
    ("is_euler", heun_with(ask_second=False), "asked once a step"),
    ("never_divided", heun_with(divide=False), "never divided by a"),
    ("sign", heun_with(sign=-1), "sign of the step"),
    ("sum_of_slopes", heun_with(total=2), "take the mean of both"),
]


@right(HEUN)
def by_means(denoiser, x, timesteps, *, schedule, **others):
    bars = [float(schedule.alpha_bar(t)) for t in timesteps]
    for i, now in enumerate(bars):
        t, s = float(timesteps[i]), math.sqrt(1 / now - 1)
        e = denoiser(x, t)
        if i == len(bars) - 1:
            return (x - math.sqrt(1 - now) * e) / math.sqrt(now)
        after, u = bars[i + 1], math.sqrt(1 / bars[i + 1] - 1)
        guess = GOOD_STEP(x, e, now, after)[0]
        e = torch.stack([e, denoiser(guess, float(timesteps[i + 1]))]).mean(0)
        x = math.sqrt(after) * (x / math.sqrt(now) + (u - s) * e)


@right(HEUN)
def by_ddim_steps(denoiser, x, timesteps, *, schedule, **others):
    ts = timesteps.tolist()
    bars = [*schedule.alpha_bar(timesteps).tolist(), 1.0]
    for i, t in enumerate(ts):
        first = denoiser(x, t)
        there, _ = GOOD_STEP(x, first, bars[i], bars[i + 1])
        if t != ts[-1]:
            there, _ = GOOD_STEP(x, (first + denoiser(there, ts[i + 1])) / 2, bars[i], bars[i + 1])
        x = there
    return x


RIGHT[HEUN] += [("by_a_loop", heun_with())]


# ---- samplers.dpmpp_2m

DPMPP = "samplers.dpmpp_2m"


def two_m_with(weight=lambda h, b: h / (2 * b), exponent=lambda h: math.expm1(-h), linear=lambda s, n: n / s, last=True,
               extra_last=False, calls=1):
    def dpmpp_2m(denoiser, x, timesteps, *, schedule, **others):
        ts, bars = timesteps.tolist(), schedule.alpha_bar(timesteps).tolist()
        a, s = [b**0.5 for b in bars], [(1 - b) ** 0.5 for b in bars]
        lam, before = [math.log(p / q) for p, q in zip(a, s, strict=True)], None
        for i, t in enumerate(ts):
            for _ in range(calls):
                eps = denoiser(x, t)
            x0 = (x - s[i] * eps) / a[i]
            if i + 1 == len(ts):
                if extra_last and before is not None:
                    x0 = x0 + 0.5 * (x0 - before)
                return x0 if last else x
            h, D = lam[i + 1] - lam[i], x0
            if before is not None:
                D = x0 + weight(h, lam[i] - lam[i - 1]) * (x0 - before)
            x, before = linear(s[i], s[i + 1]) * x - a[i + 1] * exponent(h) * D, x0
    return dpmpp_2m


WRONG[DPMPP] = [
    ("no_memory", two_m_with(lambda h, b: 0.0), "no memory"),
    ("upside_down", two_m_with(lambda h, b: b / (2 * h)), "upside down"),
    ("no_two", two_m_with(lambda h, b: h / b), "the 2 is missing"),
    ("sign", two_m_with(lambda h, b: -h / (2 * b)), "wrong sign"),
    ("equal_strides", two_m_with(lambda h, b: 0.5), "r = 1 is assumed"),
    ("exponent_sign", two_m_with(exponent=lambda h: math.expm1(h)), "the exponent is -h"),
    ("no_minus_one", two_m_with(exponent=lambda h: math.exp(-h)), "the -1 is missing"),
    ("ratio_upside_down", two_m_with(linear=lambda s, n: s / n), "upside down"),
    ("last_x", two_m_with(last=False), "the last step"),
    ("extrapolates_to_infinity", two_m_with(extra_last=True), "two steps must equal"),
    ("asks_twice", two_m_with(calls=2), "the denoiser was asked at"),
]


@right(DPMPP)
def with_r(denoiser, x, timesteps, *, schedule, **others):
    bars = [float(schedule.alpha_bar(t)) for t in timesteps]
    lam = [0.5 * math.log(b / (1 - b)) for b in bars]
    history = []
    for i, t in enumerate(timesteps.tolist()):
        history.append((x - (1 - bars[i]) ** 0.5 * denoiser(x, t)) / bars[i] ** 0.5)
        if i + 1 == len(bars):
            break
        h, D = lam[i + 1] - lam[i], history[-1]
        if i:
            r = (lam[i] - lam[i - 1]) / h
            D = (1 + 1 / (2 * r)) * history[-1] - 1 / (2 * r) * history[-2]
        x = ((1 - bars[i + 1]) / (1 - bars[i])) ** 0.5 * x + bars[i + 1] ** 0.5 * (1 - math.exp(-h)) * D
    return history[-1]


@right(DPMPP)
def in_sigma_units(denoiser, x, timesteps, *, schedule, **others):
    bars = [*schedule.alpha_bar(timesteps).tolist(), 1.0]
    sigma = [((1 - b) / b) ** 0.5 for b in bars]
    y, old = x / bars[0] ** 0.5, None
    for i, t in enumerate(timesteps.tolist()):
        x0 = D = y - sigma[i] * denoiser(bars[i] ** 0.5 * y, t)
        if old is not None and sigma[i + 1] > 0:
            D = x0 + math.log(sigma[i] / sigma[i + 1]) / (2 * math.log(sigma[i - 1] / sigma[i])) * (x0 - old)
        y, old = sigma[i + 1] / sigma[i] * (y - D) + D, x0
    return y


RIGHT[DPMPP] += [("by_a_loop", two_m_with())]
