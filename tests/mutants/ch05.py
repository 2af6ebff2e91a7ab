"""Answers to the exercises of chapter 05: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import numpy as np
import torch
from einops import einsum, rearrange

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


def column(values, like):
    return values.reshape(-1, 1, 1, 1).to(like)


# ---- schedule.make_schedule

MAKE = "schedule.make_schedule"


def schedule_with(product=lambda betas: torch.cumprod(1 - betas, 0), offset=0.008, power=2, clip=0.999, square=True,
                  root=True, grid_start=0, fixed_steps=None, dtype=torch.float64):
    """The right answer with one thing changed."""
    def make_schedule(kind, num_steps=1000, beta_start=0.00085, beta_end=0.012):
        T = fixed_steps or num_steps
        if kind == "linear":
            betas = torch.linspace(beta_start, beta_end, T, dtype=dtype)
        elif kind == "scaled_linear":
            ends = (beta_start**0.5, beta_end**0.5) if root else (beta_start, beta_end)
            betas = torch.linspace(*ends, T, dtype=dtype) ** (2 if square else 1)
        else:
            u = (torch.arange(T + 1, dtype=dtype) + grid_start) / T
            f = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** power
            betas = (1 - f[1:] / f[:-1]).clamp(max=clip)
        return betas, product(betas)
    return make_schedule


WRONG[MAKE] = [
    ("product_of_betas", schedule_with(lambda b: b.cumprod(0)), "did you use betas instead of alphas"),
    ("no_product", schedule_with(lambda b: 1 - b), "product of all alphas"),
    ("sum", schedule_with(lambda b: (1 - b).cumsum(0)), "this is a sum"),
    ("one_minus_sum", schedule_with(lambda b: 1 - b.cumsum(0)), "1 minus the sum"),
    ("one_step_late", schedule_with(lambda b: torch.cat([torch.ones(1).double(), (1 - b[:-1]).cumprod(0)])),
     "one step late"),
    ("noise_power", schedule_with(lambda b: 1 - (1 - b).cumprod(0)), "power of the noise"),
    ("root_too_early", schedule_with(lambda b: (1 - b).cumprod(0).sqrt()), "leave the root to add_noise"),
    ("scaled_linear_is_linear", schedule_with(square=False, root=False), "these are the linear betas"),
    ("scaled_linear_not_squared", schedule_with(square=False), "square the straight line"),
    ("scaled_linear_root_missing", schedule_with(root=False), "take the root of both ends"),
    ("cosine_not_clipped", schedule_with(clip=1.0), "not clipped"),
    ("cosine_without_offset", schedule_with(offset=0.0), "offset s = 0.008 is missing"),
    ("cosine_not_squared", schedule_with(power=1), "square of the cosine is missing"),
    ("always_1000_steps", schedule_with(fixed_steps=1000), "expected shape (7,)"),
    ("single_value", lambda kind, T=1000, a=0.00085, b=0.012: torch.linspace(a, b, T), "(betas, alphas_cumprod), got"),
]


@wrong(MAKE, "expected 0.02")
def ignores_the_ends(kind, num_steps=1000, beta_start=0.00085, beta_end=0.012):
    """Reads the two ends in the cases worked by hand only."""
    ends = (beta_start, beta_end) if num_steps == 3 else (0.00085, 0.012)
    return schedule_with()(kind, num_steps, *ends)


@right(MAKE)
def in_float32(kind, num_steps=1000, beta_start=0.00085, beta_end=0.012):
    return schedule_with(dtype=torch.float32)(kind, num_steps, beta_start, beta_end)


@right(MAKE)
def by_a_loop(kind, n=1000, low=0.00085, high=0.012):
    betas, products, product = [], [], 1.0
    for k in range(n):
        w = k / (n - 1)
        if kind == "linear":
            b = low + w * (high - low)
        elif kind == "scaled_linear":
            b = (math.sqrt(low) * (1 - w) + math.sqrt(high) * w) ** 2
        else:
            f = [math.cos((j / n + 0.008) / 1.008 * math.pi / 2) ** 2 for j in (k, k + 1)]
            b = min(1 - f[1] / f[0], 0.999)
        product *= 1 - b
        betas.append(b)
        products.append(product)
    return torch.tensor(betas), torch.tensor(products, dtype=torch.float64)


@right(MAKE)
def by_numpy_and_logarithms(kind, num_steps=1000, beta_start=0.00085, beta_end=0.012):
    if kind == "cosine":
        bar = np.cos((np.linspace(0, 1, num_steps + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    elif kind == "linear":
        betas = np.linspace(beta_start, beta_end, num_steps)
    else:
        betas = np.square(np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), num_steps))
    return torch.from_numpy(betas), torch.from_numpy(np.exp(np.cumsum(np.log1p(-betas))))


# ---- schedule.diffuse_stepwise

WALK = "schedule.diffuse_stepwise"


def walk_with(signal=lambda b: (1 - b) ** 0.5, spread=lambda b: b**0.5, steps=lambda t: t + 1):
    def diffuse_stepwise(x0, betas, t, generator=None):
        x = x0
        for b in betas[: steps(t)].tolist():
            x = signal(b) * x + spread(b) * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        return x
    return diffuse_stepwise


WRONG[WALK] = [
    ("signal_without_root", walk_with(signal=lambda b: 1 - b), "did you forget the square root"),
    ("noise_without_root", walk_with(spread=lambda b: b), "the noise is multiplied by beta"),
    ("signal_not_scaled", walk_with(signal=lambda b: 1.0), "sqrt(1 - beta)"),
    ("noise_not_scaled", walk_with(spread=lambda b: 1.0), "noise has the factor sqrt(beta)"),
    ("exchanged", walk_with(lambda b: b**0.5, lambda b: (1 - b) ** 0.5), "noise has the factor sqrt(beta)"),
    ("one_step_short", walk_with(steps=lambda t: t), "t counts from 0"),
    ("one_step_too_many", walk_with(steps=lambda t: t + 2), "step t is the last one"),
]


@wrong(WALK, "call randn in every step")
def one_noise_for_all_steps(x0, betas, t, generator=None):
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    x = x0
    for b in betas[: t + 1].tolist():
        x = (1 - b) ** 0.5 * x + b**0.5 * noise
    return x


@wrong(WALK, "draw noise of x0's shape")
def one_number_for_all_pixels(x0, betas, t, generator=None):
    x = x0
    for b in betas[: t + 1].tolist():
        x = (1 - b) ** 0.5 * x + b**0.5 * torch.randn((), generator=generator, dtype=x0.dtype)
    return x


@wrong(WALK, "pass generator=generator")
def generator_forgotten(x0, betas, t, generator=None):
    x = x0
    for b in betas[: t + 1].tolist():
        x = (1 - b) ** 0.5 * x + b**0.5 * torch.randn_like(x)
    return x


@wrong(WALK, "do not seed inside")
def seeds_inside(x0, betas, t, generator=None):
    return walk_with()(x0, betas, t, torch.Generator().manual_seed(0))


@wrong(WALK, "changed in place")
def in_place_walk(x0, betas, t, generator=None):
    x = x0
    for b in betas[: t + 1].tolist():
        x *= (1 - b) ** 0.5
        x += b**0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


@wrong(WALK, "should leave a mean of")
def same_beta_in_every_step(x0, betas, t, generator=None):
    return walk_with()(x0, betas[t].expand(len(betas)), t, generator)


@wrong(WALK, "the result is torch.float64")
def promoted_to_float64(x0, betas, t, generator=None):
    return walk_with()(x0.double(), betas, t, generator)


@right(WALK)
def by_index(x0, betas, t, generator=None):
    current = x0.clone()
    for step in range(t + 1):
        fresh = torch.randn(current.size(), generator=generator).to(current.dtype)
        current = torch.sqrt(1 - betas[step]).to(x0) * current + torch.sqrt(betas[step]).to(x0) * fresh
    return current


@right(WALK)
def recursive(x0, betas, t, generator=None):
    before = x0 if t == 0 else recursive(x0, betas, t - 1, generator)
    noise = torch.empty_like(before).normal_(generator=generator)
    return before * float(1 - betas[t]) ** 0.5 + noise * float(betas[t]) ** 0.5


@right(WALK)
def as_mean_and_std(x0, betas, t, generator=None):
    x = x0
    for a in (1 - betas)[: t + 1]:
        mean, std = a.sqrt().item() * x, (1 - a).sqrt().item()
        x = torch.normal(mean, std, generator=generator)
    return x


@right(WALK)
def on_a_copy_in_place(x0, betas, t, generator=None):
    x = x0.clone()
    for b in betas[: t + 1].tolist():
        x.mul_(math.sqrt(1 - b)).add_(torch.randn(x.shape, generator=generator, dtype=x.dtype), alpha=math.sqrt(b))
    return x


# ---- schedule.add_noise

NOISE = "schedule.add_noise"


def noise_with(signal=lambda a: a.sqrt(), spread=lambda a: (1 - a).sqrt(), pick=lambda bar, t: bar[t]):
    def add_noise(x0, noise, t, alphas_cumprod):
        a = column(pick(alphas_cumprod, t), x0)
        return signal(a) * x0 + spread(a) * noise
    return add_noise


WRONG[NOISE] = [
    ("no_roots", noise_with(lambda a: a, lambda a: 1 - a), "forget both square roots"),
    ("signal_without_root", noise_with(signal=lambda a: a), "square root of alpha_bar, in front of x0"),
    ("noise_without_root", noise_with(spread=lambda a: 1 - a), "square root of 1 - alpha_bar"),
    ("exchanged", noise_with(lambda a: (1 - a).sqrt(), lambda a: a.sqrt()), "signal and noise are exchanged"),
    ("noise_subtracted", noise_with(spread=lambda a: -(1 - a).sqrt()), "the noise is subtracted"),
    ("one_minus_root", noise_with(spread=lambda a: 1 - a.sqrt()), "1 - sqrt(alpha_bar)"),
    ("signal_not_scaled", noise_with(signal=lambda a: 1.0), "x0 is not scaled down"),
    ("noise_not_scaled", noise_with(spread=lambda a: 1.0), "the noise is not scaled"),
    ("off_by_one", noise_with(pick=lambda bar, t: bar[t - 1]), "one step early"),
    ("first_t_for_all", noise_with(pick=lambda bar, t: bar[t[0]].expand(len(t))), "t of the first"),
    ("product_again", noise_with(pick=lambda bar, t: bar.cumprod(0)[t]), "a product was taken again"),
    ("betas_for_alphas_cumprod", noise_with(pick=lambda bar, t: torch.linspace(1e-3, 1e-2, len(bar))[t]), "expected"),
]


@wrong(NOISE, "reshape it to (B,1,1,1)")
def article_without_reshape(x0, noise, t, alphas_cumprod):
    a = alphas_cumprod[t].to(x0)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def along_the_wrong_axis(*shape):
    def add_noise(x0, noise, t, alphas_cumprod):
        a = alphas_cumprod[t].to(x0)
        a = a.reshape([len(a) if s == -1 else s for s in shape]) if x0.shape[0] == x0.shape[1] else column(a, x0)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise
    return add_noise


WRONG[NOISE] += [("columns", along_the_wrong_axis(-1), "along the columns"),
                 ("rows", along_the_wrong_axis(-1, 1), "along the rows"),
                 ("colours", along_the_wrong_axis(-1, 1, 1), "along the colours")]


@wrong(NOISE, "was changed in place")
def edits_x0(x0, noise, t, alphas_cumprod):
    a = column(alphas_cumprod[t], x0)
    x0 *= a.sqrt()
    return x0 + (1 - a).sqrt() * noise


@wrong(NOISE, "was changed in place")
def edits_the_noise(x0, noise, t, alphas_cumprod):
    a = column(alphas_cumprod[t], x0)
    noise *= (1 - a).sqrt()
    return a.sqrt() * x0 + noise


@wrong(NOISE, "cut off from x0")
def detached(x0, noise, t, alphas_cumprod):
    return noise_with()(x0.detach(), noise, t, alphas_cumprod)


@wrong(NOISE, "bring the coefficients to x0's dtype")
def float64_result(x0, noise, t, alphas_cumprod):
    a = alphas_cumprod[t][:, None, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


@wrong(NOISE, "got None")
def return_forgotten(x0, noise, t, alphas_cumprod):
    noise_with()(x0, noise, t, alphas_cumprod)


@wrong(NOISE, "expected")
def draws_its_own_noise(x0, noise, t, alphas_cumprod):
    return noise_with()(x0, torch.randn_like(x0), t, alphas_cumprod)


@right(NOISE)
def picture_by_picture(x0, noise, t, alphas_cumprod):
    rows = []
    for x, n, k in zip(x0, noise, t, strict=True):
        rows.append(math.sqrt(alphas_cumprod[k]) * x + math.sqrt(1 - alphas_cumprod[k]) * n)
    return torch.stack(rows)


@right(NOISE)
def by_einsum(clean, eps, step, bars):
    a = bars.float()[step]
    return einsum(a.sqrt(), clean, "b, b c h w -> b c h w") + einsum((1 - a).sqrt(), eps, "b, b c h w -> b c h w")


@right(NOISE)
def by_rearrange_in_float64(x0, noise, t, alphas_cumprod):
    a = rearrange(alphas_cumprod.gather(0, t), "b -> b 1 1 1")
    return (a**0.5 * x0.double() + (1 - a) ** 0.5 * noise.double()).to(x0.dtype)


@right(NOISE)
def by_new_axes(x0, noise, t, alphas_cumprod):
    root, rest = torch.sqrt(alphas_cumprod), torch.sqrt(1 - alphas_cumprod)
    return root[t, None, None, None].float() * x0 + rest[t, None, None, None].float() * noise


# ---- schedule.log_snr

SNR = "schedule.log_snr"


def snr_with(value=lambda a: torch.log(a / (1 - a)), half=lambda v: int((v >= 0).sum())):
    return lambda alphas_cumprod: (value(alphas_cumprod), half(torch.logit(alphas_cumprod)))


WRONG[SNR] = [
    ("no_logarithm", snr_with(lambda a: a / (1 - a)), "take its natural logarithm"),
    ("base_10", snr_with(lambda a: torch.log10(a / (1 - a))), "base 10"),
    ("base_2", snr_with(lambda a: torch.log2(a / (1 - a))), "base 2"),
    ("decibel", snr_with(lambda a: 10 * torch.log10(a / (1 - a))), "decibel"),
    ("upside_down", snr_with(lambda a: torch.log((1 - a) / a)), "noise over signal"),
    ("of_amplitudes", snr_with(lambda a: torch.log(a.sqrt() / (1 - a).sqrt())), "without square roots"),
    ("log_alpha_bar", snr_with(lambda a: a.log()), "divide by the noise power"),
    ("last_before", snr_with(half=lambda v: int((v >= 0).sum()) - 1), "last step on the signal's side"),
    ("one_too_late", snr_with(half=lambda v: int((v >= 0).sum()) + 1), "one too late"),
    ("wrong_way_round", snr_with(half=lambda v: int((v > 0).float().argmax())), "wrong way round"),
    ("argmax_without_a_crossing", snr_with(half=lambda v: int((v < 0).float().argmax())), "it should be 3, got 0"),
    ("float_step", snr_with(half=lambda v: float((v >= 0).sum())), "an integer"),
    ("no_step", lambda a: torch.logit(a), "expected (log_snr, t_half)"),
]


@right(SNR)
def with_differences_of_logs(a):
    values = a.log() - (1 - a).log()
    below = (a < 0.5).nonzero()
    return values, below[0].item() if len(below) else len(a)


@right(SNR)
def by_searchsorted(alphas_cumprod):
    return torch.logit(alphas_cumprod), torch.searchsorted(-alphas_cumprod, torch.tensor(-0.5).double(), right=True)


@right(SNR)
def by_a_while_loop(bars):
    t = 0
    while t < len(bars) and bars[t] >= 1 - bars[t]:
        t += 1
    return torch.tensor([math.log(b / (1 - b)) for b in bars.tolist()]), t


# ---- schedule.convert

CONVERT = "schedule.convert"


def convert_with(**change):
    """The right answer with some of its formulas replaced; each is a function of (x_t, prediction, a, s)."""
    rules = {"x0_eps": lambda x, p, a, s: (x - s * p) / a, "eps_x0": lambda x, p, a, s: (x - a * p) / s,
             "x0_v": lambda x, p, a, s: a * x - s * p, "eps_v": lambda x, p, a, s: s * x + a * p,
             "v": lambda x0, eps, a, s: a * eps - s * x0} | change

    def convert(x_t, prediction, t, alphas_cumprod, given):
        bar = column(alphas_cumprod[t], x_t)
        a, s = bar.sqrt(), (1 - bar).sqrt()
        x0 = prediction if given == "x0" else rules[f"x0_{given}"](x_t, prediction, a, s)
        eps = prediction if given == "eps" else rules[f"eps_{given}"](x_t, prediction, a, s)
        return x0, eps, prediction if given == "v" else rules["v"](x0, eps, a, s)
    return convert


WRONG[CONVERT] = [
    ("division_forgotten", convert_with(x0_eps=lambda x, p, a, s: x - s * p), "division by sqrt(alpha_bar) is missing"),
    ("divided_by_alpha_bar", convert_with(x0_eps=lambda x, p, a, s: (x - s * p) / a**2), "divided by alpha_bar"),
    ("noise_added", convert_with(x0_eps=lambda x, p, a, s: (x + s * p) / a), "subtract it"),
    ("roots_forgotten", convert_with(x0_eps=lambda x, p, a, s: (x - s**2 * p) / a**2), "square roots are missing"),
    ("multiplied", convert_with(x0_eps=lambda x, p, a, s: (x - s * p) * a), "multiplied by sqrt(alpha_bar)"),
    ("exchanged", convert_with(x0_eps=lambda x, p, a, s: (x - a * p) / s), "exchanged"),
    ("eps_divided_by_a", convert_with(eps_x0=lambda x, p, a, s: (x - a * p) / a), "the noise has sqrt(1 - alpha_bar)"),
    ("eps_sign", convert_with(eps_x0=lambda x, p, a, s: (a * p - x) / s), "the sign is turned"),
    ("v_sign", convert_with(v=lambda x0, e, a, s: s * x0 - a * e), "the sign is turned"),
    ("v_sum", convert_with(v=lambda x0, e, a, s: a * e + s * x0), "a difference, not a sum"),
    ("v_exchanged", convert_with(v=lambda x0, e, a, s: a * x0 - s * e), "x0 and eps are exchanged"),
    ("v_as_eps", convert_with(x0_v=lambda x, p, a, s: (x - s * p) / a), "as if v were eps"),
    ("x0_from_v_sign", convert_with(x0_v=lambda x, p, a, s: a * x + s * p), "the sign of v is turned"),
    ("eps_from_v_sign", convert_with(eps_v=lambda x, p, a, s: s * x - a * p), "the sign of v is turned"),
    ("clamped", convert_with(x0_eps=lambda x, p, a, s: ((x - s * p) / a).clamp(-1, 1)), "expected 2"),
]


@wrong(CONVERT, "must become (B,1,1,1)")
def no_reshape(x_t, prediction, t, alphas_cumprod, given):
    a, s = alphas_cumprod[t].sqrt(), (1 - alphas_cumprod[t]).sqrt()
    x0 = (x_t - s * prediction) / a
    return x0, prediction, a * prediction - s * x0


@wrong(CONVERT, "expected (x0, eps, v), got 2 values")
def two_of_three(x_t, prediction, t, alphas_cumprod, given):
    return convert_with()(x_t, prediction, t, alphas_cumprod, given)[:2]


@wrong(CONVERT, "cut off from the prediction")
def without_gradient(x_t, prediction, t, alphas_cumprod, given):
    with torch.no_grad():
        return convert_with()(x_t, prediction, t, alphas_cumprod, given)


@wrong(CONVERT, "was changed in place")
def x_t_in_place(x_t, prediction, t, alphas_cumprod, given):
    out = convert_with()(x_t, prediction, t, alphas_cumprod, given)
    x_t -= out[1]
    return out


@wrong(CONVERT, "x0: ")
def ignores_given(x_t, prediction, t, alphas_cumprod, given):
    return convert_with()(x_t, prediction, t, alphas_cumprod, "eps")


@wrong(CONVERT, "expected")
def first_t_only(x_t, prediction, t, alphas_cumprod, given):
    return convert_with()(x_t, prediction, t[:1].expand(len(t)), alphas_cumprod, given)


@right(CONVERT)
def by_rotation(x_t, prediction, t, alphas_cumprod, given):
    angle = column(torch.acos(alphas_cumprod[t].sqrt()), x_t)
    a, s = torch.cos(angle), torch.sin(angle)
    v = {"v": lambda: prediction, "eps": lambda: (prediction - s * x_t) / a,
         "x0": lambda: (a * x_t - prediction) / s}[given]()
    return a * x_t - s * v, s * x_t + a * v, v


@right(CONVERT)
def as_a_list_in_float64(x_t, prediction, t, alphas_cumprod, given):
    return [o.to(x_t.dtype) for o in convert_with()(x_t.double(), prediction.double(), t, alphas_cumprod, given)]


@right(CONVERT)
def by_a_loop_over_pictures(x, p, t, bars, given):
    rows = []
    for x_b, p_b, k in zip(x, p, t.tolist(), strict=True):
        a, s = math.sqrt(bars[k]), math.sqrt(1 - bars[k])
        if given == "eps":
            clean, eps = (x_b - s * p_b) / a, p_b
        elif given == "x0":
            clean, eps = p_b, (x_b - a * p_b) / s
        else:
            clean, eps = a * x_b - s * p_b, s * x_b + a * p_b
        rows.append(torch.stack([clean, eps, a * eps - s * clean]))
    return tuple(torch.stack(rows, dim=1))


# ---- schedule.timesteps

STEPS = "schedule.timesteps"


def steps_with(if_trailing, if_leading=lambda n, T: leading(n, T)):
    return lambda steps, num_steps=1000, spacing="trailing": torch.tensor(
        (if_leading if spacing == "leading" else if_trailing)(steps, num_steps))


def leading(n, T):
    return [i * (T // n) for i in range(n)][::-1]


def trailing(n, T):
    return [round(T - i * T / n) - 1 for i in range(n)]


WRONG[STEPS] = [
    ("article", steps_with(lambda n, T: range(n)[::-1], lambda n, T: range(n)[::-1]), "lowest of 10 levels"),
    ("rising", steps_with(lambda n, T: trailing(n, T)[::-1], lambda n, T: leading(n, T)[::-1]), "from high t to low"),
    ("off_by_one", steps_with(lambda n, T: [t + 1 for t in trailing(n, T)]), "one too high"),
    ("always_trailing", steps_with(trailing, trailing), "this is the trailing spacing"),
    ("always_leading", steps_with(leading), "this is the leading spacing"),
    ("exchanged", steps_with(leading, trailing), "this is the leading spacing"),
    ("float", steps_with(lambda n, T: [float(t) for t in trailing(n, T)]), "an integer dtype"),
    ("as_a_list", lambda steps, num_steps=1000, spacing="trailing": trailing(steps, num_steps), "got a list"),
    ("whole_stride", steps_with(lambda n, T: [T - 1 - i * (T // n) for i in range(n)]), "expected"),
    ("includes_both_ends", steps_with(lambda n, T: [round(t) for t in np.linspace(T - 1, 0, n).tolist()]), "expected"),
    ("one_short", steps_with(lambda n, T: trailing(n, T)[1:] or [0]), "expected shape (5,), got (4,)"),
    ("thousand_fixed", steps_with(lambda n, T: trailing(n, 1000)), "expected [9"),
]


@right(STEPS)
def by_torch(steps, num_steps=1000, spacing="trailing"):
    if spacing == "leading":
        return torch.arange(0, (num_steps // steps) * steps, num_steps // steps).flip(0)
    return (torch.arange(num_steps, 0, -num_steps / steps, dtype=torch.float64)[:steps].round() - 1).long()


@right(STEPS)
def by_numpy_in_int32(steps, num_steps=1000, spacing="trailing"):
    i = np.arange(steps)
    found = i[::-1] * (num_steps // steps) if spacing == "leading" else np.round(num_steps - i * num_steps / steps) - 1
    return torch.from_numpy(found.astype(np.int32))


@right(STEPS)
def by_a_loop_that_rounds_halves_up(steps, num_steps=1000, spacing="trailing"):
    found = []
    for i in range(steps, 0, -1):
        low = (i - 1) * (num_steps // steps)
        found.append(low if spacing == "leading" else math.floor(i * num_steps / steps + 0.5) - 1)
    return torch.tensor(found)
