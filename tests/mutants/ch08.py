"""Answers to the exercises of chapter 08: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import torch
import torch.nn.functional as F

from course import samplers

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- latents.encode_all

ENCODE = "latents.encode_all"


def encode_with(mean=lambda p: p.mean, std=lambda p: (0.5 * p.logvar).exp(), join=torch.cat, pieces=lambda x, n: x.split(n)):
    def encode_all(vae, images, batch_size=64):
        with torch.no_grad():
            found = [vae.encode(chunk) for chunk in pieces(images, batch_size)]
            return join([mean(p) for p in found]), join([std(p) for p in found])
    return encode_all


WRONG[ENCODE] = [
    ("log_variance", encode_with(std=lambda p: p.logvar), "this is the log-variance"),
    ("variance", encode_with(std=lambda p: p.logvar.exp()), "this is the variance"),
    ("not_exponentiated", encode_with(std=lambda p: p.logvar / 2), "take its exponential"),
    ("stacked", encode_with(join=torch.stack), "torch.stack does not"),
    ("a_draw", encode_with(mean=lambda p: p.sample()), "a draw from the posterior"),
    ("scaled", encode_with(mean=lambda p: 0.18215 * p.mean), "are scaled already"),
    ("all_at_once", encode_with(pieces=lambda x, n: [x]), "batch_size 2"),
    ("one_by_one", encode_with(pieces=lambda x, n: x.split(1)), "batch_size 2"),
    ("last_batch_lost", encode_with(pieces=lambda x, n: x[: len(x) // n * n].split(n)), "expected shape (5, 3, 2, 2)"),
    ("only_the_mean", lambda vae, x, n=64: encode_with()(vae, x, n)[0], "(mean, std)"),
]


@wrong(ENCODE, "torch.no_grad()")
def graph_kept(vae, images, batch_size=64):
    found = [vae.encode(chunk) for chunk in images.split(batch_size)]
    return torch.cat([p.mean for p in found]), torch.cat([(p.logvar / 2).exp() for p in found])


@right(ENCODE)
def into_an_empty_tensor(vae, images, batch_size=64):
    mean = std = None
    with torch.inference_mode():
        for i in range(0, len(images), batch_size):
            p = vae.encode(images[i: i + batch_size])
            if mean is None:
                mean, std = (torch.empty(len(images), *p.mean.shape[1:]) for _ in range(2))
            mean[i: i + batch_size], std[i: i + batch_size] = p.mean, p.logvar.exp().sqrt()
    return mean, std


@right(ENCODE)
def by_slices_and_sqrt(vae, x, n=64):
    def pieces(x, n):
        return [x[i: i + n] for i in range(0, len(x), n)]
    return encode_with(std=lambda p: p.logvar.exp().sqrt(), pieces=pieces)(vae, x, n)


@right(ENCODE)
def as_a_list_of_pairs(vae, images, batch_size=64):
    with torch.no_grad():
        pairs = [(p.mean, math.e ** (p.logvar / 2)) for p in map(vae.encode, torch.split(images, batch_size))]
    return [torch.cat(part, dim=0) for part in zip(*pairs, strict=True)]


# ---- latents.measured_scale

SCALE = "latents.measured_scale"

WRONG[SCALE] = [
    ("without_the_noise", lambda m, s: float(1 / m.std()), "posterior's own noise is missing"),
    ("the_std", lambda m, s: float((m.var() + (s**2).mean()).sqrt()), "the scale is one over it"),
    ("one_over_variance", lambda m, s: float(1 / (m.var() + (s**2).mean())), "take the square root"),
    ("the_variance", lambda m, s: float(m.var() + (s**2).mean()), "this is the variance"),
    ("stds_added", lambda m, s: float(1 / (m.std() + s.mean())), "standard deviations do not add"),
    ("std_not_squared", lambda m, s: float((m.var() + s.mean()).rsqrt()), "std enters squared"),
    ("rms", lambda m, s: float((m.square() + s.square()).mean().rsqrt()), "must be subtracted"),
    ("square_of_the_mean", lambda m, s: float((m.var() + s.mean() ** 2).rsqrt()), "mean of its squares"),
    ("only_std", lambda m, s: float(s.square().mean().rsqrt()), "not the means"),
    ("per_channel_mean", lambda m, s: float((m.var(dim=(0, 2, 3)).mean() + s.square().mean()).rsqrt()), "per channel"),
    ("per_channel", lambda m, s: (m.var(dim=(0, 2, 3)) + s.square().mean((0, 2, 3))).rsqrt(), "one number"),
    ("sd_s_constant", lambda m, s: 0.18215, "expected 0.2"),
]


@right(SCALE)
def in_three_sums(mean, std):
    n = mean.numel()
    total = mean.double().sum()
    squares = (mean.double() ** 2).sum() + (std.double() ** 2).sum()
    return 1 / math.sqrt(squares / n - (total / n) ** 2)


@right(SCALE)
def as_a_tensor(m, s):
    return torch.rsqrt(torch.var(m, unbiased=False) + torch.mean(s * s))


@right(SCALE)
def by_numpy(mean, std):
    import numpy as np
    return 1 / np.sqrt(mean.numpy().astype("f8").var() + (std.numpy().astype("f8") ** 2).mean())


# ---- diffusion.latent_batch

DRAW = "diffusion.latent_batch"


def draw_with(rule=lambda m, s, n, scale: scale * (m + s * n), noise=None):
    noise = noise or (lambda m, generator: torch.randn(m.shape, generator=generator))

    def latent_batch(mean, std, chosen, scale, generator=None):
        return rule(mean[chosen], std[chosen], noise(mean[chosen], generator), scale)
    return latent_batch


WRONG[DRAW] = [
    ("scale_forgotten", draw_with(lambda m, s, n, c: m + s * n), "the scale is missing"),
    ("divided", draw_with(lambda m, s, n, c: (m + s * n) / c), "the scale divides"),
    ("noise_not_scaled", draw_with(lambda m, s, n, c: c * m + s * n), "the noise is not scaled"),
    ("only_the_mean", draw_with(lambda m, s, n, c: c * m), "no noise was added"),
    ("variance_for_std", draw_with(lambda m, s, n, c: c * (m + s**2 * n)), "std was squared"),
    ("std_not_used", draw_with(lambda m, s, n, c: c * (m + n)), "expected"),
    ("seeded_inside", draw_with(noise=lambda m, g: torch.randn(m.shape, generator=torch.Generator().manual_seed(0))),
     "do not seed"),
    ("generator_ignored", draw_with(noise=lambda m, g: torch.randn(m.shape)), "pass generator"),
    ("one_noise_for_the_batch", draw_with(noise=lambda m, g: torch.randn(m[:1].shape, generator=g)), "same noise twice"),
    ("one_noise_for_the_channels", draw_with(noise=lambda m, g: torch.randn(m[:, :1].shape, generator=g)), "share their noise"),
    ("uniform", draw_with(noise=lambda m, g: 3.46 * torch.rand(m.shape, generator=g)), "not normal"),
    ("first_ones", lambda m, s, i, c, g=None: c * (m[: len(i)] + s[i] * torch.randn(m[: len(i)].shape, generator=g)),
     "chosen is not used"),
    ("wrong_std", lambda m, s, i, c, g=None: c * (m[i] + s[: len(i)] * torch.randn(m[i].shape, generator=g)), "std[chosen]?"),
]


@wrong(DRAW, "was changed in place")
def cache_overwritten(mean, std, chosen, scale, generator=None):
    out = draw_with()(mean, std, chosen, scale, generator)
    mean[chosen] = out
    return out


@right(DRAW)
def by_normal(mean, std, chosen, scale, generator=None):
    return torch.normal(mean[chosen], std[chosen], generator=generator) * scale


@right(DRAW)
def by_index_select(mean, std, chosen, scale, generator=None):
    z, spread = mean.index_select(0, chosen), std.index_select(0, chosen)
    return torch.addcmul(z, spread, torch.empty_like(z).normal_(generator=generator)).mul(scale)


@right(DRAW)
def by_a_loop(mean, std, chosen, scale, generator=None):
    return torch.stack([scale * mean[i] + scale * std[i] * torch.randn(mean[i].shape, generator=generator)
                        for i in chosen.tolist()])


# ---- diffusion.drop_conditions

DROP = "diffusion.drop_conditions"


def drop_with(mask=lambda c, p, g: torch.rand(len(c), generator=g) < p, nothing=lambda n: n):
    def drop_conditions(conditions, empty, p=0.1, generator=None):
        m = mask(conditions, p, generator)
        return torch.where(m if m.ndim == 2 else m[:, None], nothing(empty), conditions)
    return drop_conditions


WRONG[DROP] = [
    ("kept_for_dropped", drop_with(lambda c, p, g: torch.rand(len(c), generator=g) >= p), "not to keep"),
    ("by_token", drop_with(lambda c, p, g: torch.rand(c.shape, generator=g) < p), "single tokens"),
    ("whole_batch", drop_with(lambda c, p, g: (torch.rand(1, generator=g) < p).expand(len(c))), "shares one draw"),
    ("normal_numbers", drop_with(lambda c, p, g: (torch.randn(len(c), generator=g) < p) & (p > 0) | (p == 1)), "uniform"),
    ("first_ones", drop_with(lambda c, p, g: torch.arange(len(c)) < p * len(c)), "always exactly p"),
    ("zeros", drop_with(nothing=torch.zeros_like), "these are zeros"),
    ("generator_ignored", drop_with(lambda c, p, g: torch.rand(len(c)) < p), "pass generator"),
    ("tenth_fixed", drop_with(lambda c, p, g: (torch.rand(len(c), generator=g) < 0.1) & (p > 0) | (p == 1)), "it was 0."),
    ("dropped_removed", lambda c, n, p=0.1, generator=None: c[torch.rand(len(c), generator=generator) >= p], "expected shape"),
    ("floats", lambda c, n, p=0.1, generator=None: drop_with()(c, n, p, generator).float(), "an integer dtype"),
]


@wrong(DROP, "changed in place")
def in_place(conditions, nothing, p=0.1, generator=None):
    conditions[torch.rand(len(conditions), generator=generator) < p] = nothing
    return conditions


@right(DROP)
def by_index(conditions, nothing, p=0.1, generator=None):
    out = conditions.clone()
    for i, u in enumerate(torch.rand(len(out), generator=generator).tolist()):
        if u < p:
            out[i] = nothing
    return out


@right(DROP)
def by_bernoulli(conditions, nothing, p=0.1, generator=None):
    m = torch.bernoulli(torch.full((len(conditions), 1), float(p)), generator=generator).long()
    return m * nothing + (1 - m) * conditions


@right(DROP)
def by_where(conditions, nothing, p=0.1, generator=None):
    return torch.where(torch.rand(len(conditions), 1, generator=generator) < p, nothing, conditions)


# ---- diffusion.training_step

STEP = "diffusion.training_step"


def step_with(levels=lambda T, B, g: torch.randint(T, (B,), generator=g), noise=lambda x, g: torch.randn(x.shape, generator=g),
              target=lambda s, x, n, t: s.to_v(x, n, t), loss=F.mse_loss, zero=True, clip="before", step=True, back=float,
              noised=lambda s, x, n, t: s.add_noise(x, n, t)):
    def training_step(model, optimizer, x0, conditions, schedule, generator=None, max_norm=1.0):
        t, n = levels(schedule.num_steps, len(x0), generator), noise(x0, generator)
        error = loss(model(noised(schedule, x0, n, t), t, conditions), target(schedule, x0, n, t))
        if zero:
            optimizer.zero_grad()
        if clip == "early":
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        error.backward()
        if clip == "before":
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        if step:
            optimizer.step()
        return back(error.detach()) if back else None
    return training_step


def summed(prediction, target):
    return F.mse_loss(prediction, target, reduction="sum")


WRONG[STEP] = [
    ("returns_a_tensor", step_with(back=lambda e: e), "as a Python float"),
    ("returns_nothing", step_with(back=None), "is the `return` missing?"),
    ("one_level", step_with(lambda T, B, g: torch.randint(T, (1,), generator=g).expand(B)), "all pictures got one t"),
    ("levels_to_100", step_with(lambda T, B, g: torch.randint(100, (B,), generator=g)), "use all of 0 ... 999"),
    ("never_0", step_with(lambda T, B, g: torch.randint(20, T, (B,), generator=g)), "use all of 0 ... 999"),
    ("float_levels", step_with(lambda T, B, g: torch.rand(B, generator=g) * T), "levels are integers"),
    ("uniform_noise", step_with(noise=lambda x, g: torch.rand(x.shape, generator=g)), "noise from torch.randn"),
    ("one_noise_a_picture", step_with(noise=lambda x, g: torch.randn(len(x), 1, 1, 1, generator=g).expand(x.shape)),
     "share their noise"),
    ("no_schedule", step_with(noised=lambda s, x, n, t: x + n), "is it schedule.add_noise"),
    ("target_eps", step_with(target=lambda s, x, n, t: n), "the target is the noise"),
    ("target_x0", step_with(target=lambda s, x, n, t: x), "the target is x0"),
    ("v_turned", step_with(target=lambda s, x, n, t: -s.to_v(x, n, t)), "the sign of v"),
    ("fresh_noise_in_the_target", step_with(target=lambda s, x, n, t: s.to_v(x, torch.randn_like(x), t)), "noise of its own"),
    ("sum", step_with(loss=summed), "a sum for a mean"),
    ("absolute", step_with(loss=F.l1_loss), "absolute differences"),
    ("grad_not_zeroed", step_with(zero=False), "optimizer.zero_grad()"),
    ("no_step", step_with(step=False), "did not move"),
    ("no_clip", step_with(clip=""), "not clipped"),
    ("clip_before_backward", step_with(clip="early"), "not clipped"),
]


@wrong(STEP, "did not move")
def zeroed_after_backward(model, optimizer, x0, conditions, schedule, generator=None, max_norm=1.0):
    t, noise = torch.randint(schedule.num_steps, (len(x0),), generator=generator), torch.randn(x0.shape, generator=generator)
    loss = F.mse_loss(model(schedule.add_noise(x0, noise, t), t, conditions), schedule.to_v(x0, noise, t))
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss.item()


RIGHT[STEP] = [
    ("noise_first", step_with(noise=lambda x, g: torch.empty_like(x).normal_(generator=g))),
    ("levels_by_floor", step_with(lambda T, B, g: (torch.rand(B, generator=g) * T).long())),
    ("mean_of_squares", step_with(loss=lambda p, v: (p - v).square().mean(), back=lambda e: e.item())),
]


@right(STEP)
def by_hand_and_stratified(net, opt, x0, cond, s, generator=None, max_norm=1.0):
    B = len(x0)
    t = ((torch.randperm(B, generator=generator) + torch.rand(B, generator=generator)) / B * s.num_steps).long().clamp(max=999)
    eps = torch.randn(x0.shape, generator=generator)
    a, b = s.coefficients(t, x0)
    net.zero_grad()
    loss = ((net(a * x0 + b * eps, t, cond) - (a * eps - b * x0)) ** 2).mean()
    loss.backward()
    length = torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt()
    for p in net.parameters():
        p.grad *= min(1.0, max_norm / float(length))
    opt.step()
    return loss.item()


# ---- pipeline.sample

SAMPLE = "pipeline.sample"


def sample_with(levels=lambda s, n: s.timesteps(n), eps=lambda s, x, v, t: s.to_eps(x, v, t, given="v"), back=lambda x, c: x / c,
                last=lambda x: x.clamp(-1, 1), told=lambda c: c, sampler=samplers.ddim, clip=None):
    @torch.no_grad()
    def sample(model, vae, schedule, conditions, noise, scale, steps=20):
        def denoiser(x, t):
            return eps(schedule, x, model(x, torch.full((len(x),), int(t)), told(conditions)), t)
        x = sampler(denoiser, noise, levels(schedule, steps), schedule=schedule, clip_x0=clip)
        return last(vae.decode(back(x, scale)))
    return sample


WRONG[SAMPLE] = [
    ("scale_forgotten", sample_with(back=lambda x, c: x), "the scale is missing"),
    ("multiplied", sample_with(back=lambda x, c: x * c), "the scale multiplies"),
    ("v_as_eps", sample_with(eps=lambda s, x, v, t: v), "schedule.to_eps"),
    ("v_as_x0", sample_with(eps=lambda s, x, v, t: s.to_eps(x, v, t, given="x0")), "schedule.to_eps"),
    ("rising", sample_with(lambda s, n: s.timesteps(n).flip(0)), "must fall from high to low"),
    ("the_article_s_levels", sample_with(lambda s, n: torch.arange(n).flip(0)), "the levels should be"),
    ("leading", sample_with(lambda s, n: s.timesteps(n, "leading")), "the levels should be"),
    ("too_many_steps", sample_with(lambda s, n: s.timesteps(2 * n)), "should be asked 5 times"),
    ("no_clamp", sample_with(last=lambda x: x), "clamp the pictures"),
    ("latents_clamped", sample_with(clip=1.0), "latents were clamped"),
    ("not_told", sample_with(told=lambda c: torch.zeros_like(c)), "handed the conditions"),
    ("not_decoded", lambda m, vae, s, c, noise, scale, steps=20: noise[:, :3], "expected shape (2, 3, 6, 6)"),
    ("noise_decoded", lambda m, vae, s, c, noise, scale, steps=20: vae.decode(noise / scale).clamp(-1, 1), "the noise itself"),
]


@wrong(SAMPLE, "torch.no_grad()")
def graph_of_every_step(model, vae, schedule, conditions, noise, scale, steps=20):
    x = samplers.ddim(lambda x, t: schedule.to_eps(x, model(x, torch.full((len(x),), int(t)), conditions), t, given="v"),
                      noise, schedule.timesteps(steps), schedule=schedule)
    return vae.decode(x / scale).clamp(-1, 1)


RIGHT[SAMPLE] = [
    ("by_dpmpp", sample_with(sampler=samplers.dpmpp_2m)),
    ("clamped_by_min_and_max", sample_with(last=lambda x: x.minimum(torch.tensor(1.0)).maximum(torch.tensor(-1.0)))),
    ("eps_by_hand", sample_with(eps=lambda s, x, v, t: sum(f * u for f, u in zip(s.coefficients(t, x), (v, x), strict=True)))),
]
