"""The course's own answers, out of reach of `parts.swapped`: the sampler is written out."""

import torch
from torch import Tensor


def count_blocks(in_channels: int, out_channels: int, time_dim: int, context_dim: int, depth: int = 1) -> tuple[int, int]:
    i, o = in_channels, out_channels
    residual = 2 * i + 9 * i * o + o + time_dim * o + o + 2 * o + 9 * o * o + o + (i * o + o if i != o else 0)
    block = 6 * o + (4 * o * o + o) + (2 * o * o + 2 * context_dim * o + o) + (12 * o * o + 9 * o)
    return residual, depth * block + 2 * o * o + 4 * o if depth else 0


def count_unet(config) -> int:
    widths, n, depth = config.block_channels, config.layers_per_block, config.depth
    first, last, time_dim = widths[0], widths[-1], 4 * widths[0]

    def pair(i: int, o: int, d: int) -> int:
        return sum(count_blocks(i, o, time_dim, config.context_dim, d))

    total = 9 * config.in_channels * first + first + first * time_dim + time_dim + time_dim**2 + time_dim
    now, skips = first, [first]
    for level, width in enumerate(widths):
        for _ in range(n):
            total, now = total + pair(now, width, depth[level]), width
            skips.append(width)
        if level < len(widths) - 1:
            total += 9 * width**2 + width
            skips.append(width)
    total += pair(last, last, config.mid_depth) + pair(last, last, 0)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(n + 1):
            total, now = total + pair(now + skips.pop(), width, depth[level]), width
        total += 9 * width**2 + width if level else 0
    return total + 2 * first + 9 * first * config.out_channels + config.out_channels


def guided_denoiser(unet, cond: Tensor, uncond: Tensor, scale: float, schedule, predicts: str = "eps"):
    def denoiser(x: Tensor, t: float) -> Tensor:
        without, told = unet(torch.cat([x, x]), t, torch.cat([uncond, cond])).chunk(2)          # (B,C,h,w) twice
        return schedule.to_eps(x, torch.lerp(without, told, scale), t, given=predicts)
    return denoiser


@torch.no_grad()
def text_to_image(pipe, prompts: list[str], seeds: list[int], negative: str = "", steps: int = 20, scale: float = 7.5) -> Tensor:
    c, s = pipe.config, pipe.schedule
    cond, uncond = (pipe.text_encoder(pipe.tokenizer(words).to(pipe.device))
                    for words in (list(prompts), [negative] * len(prompts)))
    shape = pipe.latent_shape(c.image_size, c.image_size)                               # (C,h,w)
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(pipe.device)
    denoiser = guided_denoiser(pipe.unet, cond, uncond, scale, s, c.predict)
    levels = s.timesteps(steps, c.spacing, c.offset)
    bars = [*s.alpha_bar(levels).tolist(), s.final_alpha_cumprod]
    for t, bar, after in zip(levels.tolist(), bars, bars[1:], strict=False):
        eps = denoiser(x, float(t))
        x = after**0.5 * (x - (1 - bar) ** 0.5 * eps) / bar**0.5 + (1 - after) ** 0.5 * eps
    return pipe.vae.decode(x / pipe.vae.scaling_factor).clamp(-1, 1)


def start_from_image(z0: Tensor, noise: Tensor, timesteps: Tensor, strength: float, schedule) -> tuple[Tensor, Tensor]:
    left = timesteps[len(timesteps) - max(1, int(strength * len(timesteps) + 1e-9)):]
    return schedule.add_noise(z0, noise, float(left[0])), left


def keep_known(denoiser, known: Tensor, keep: Tensor, schedule):
    def blended(x: Tensor, t: float) -> Tensor:
        return torch.lerp(denoiser(x, t), schedule.to_eps(x, known, t, given="x0"), keep.expand_as(x))
    return blended


def unet_entry(way: str, level: int, kind: str, index: int, layers_per_block: int = 2,
               attention: tuple[bool, ...] = (True, True, True, False)) -> str:
    entry, side = level * (layers_per_block + 1) + (way == "down"), "input_blocks" if way == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{side}.{entry + layers_per_block}.0.op"
    if kind == "upsamplers":
        return f"{side}.{entry + layers_per_block}.{1 + attention[len(attention) - 1 - level]}.conv"
    return f"{side}.{entry + index}.{int(kind == 'attentions')}"


def survey(tensors: list[Tensor], dtype: torch.dtype) -> dict:
    x = torch.cat([tensor.detach().flatten().double().cpu() for tensor in tensors])
    y = x.to(dtype).double()
    there = torch.isfinite(y)
    return {"bytes": len(x) * dtype.itemsize, "overflowed": int((~there).sum()), "vanished": int(((y == 0) & (x != 0)).sum()),
            "relative": float((y - x)[there].norm() / x[there].norm())}
