"""The course's own answers, out of reach of `parts.swapped`; only the sampler's step is written out in full."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def encode_all(vae, images: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    means, stds = [], []
    for chunk in images.split(batch_size):
        posterior = vae.encode(chunk)
        means.append(posterior.mean)
        stds.append((0.5 * posterior.logvar).exp())
    return torch.cat(means), torch.cat(stds)


def measured_scale(mean: Tensor, std: Tensor) -> float:
    mean, std = mean.double(), std.double()
    return float(((mean - mean.mean()).square().mean() + std.square().mean()).rsqrt())


def latent_batch(mean: Tensor, std: Tensor, chosen: Tensor, scale: float, generator=None) -> Tensor:
    z = mean[chosen]                                                                    # (B,c,h,w)
    return scale * (z + std[chosen] * torch.randn(z.shape, generator=generator).to(z))


def drop_conditions(conditions: Tensor, nothing: Tensor, p: float = 0.1, generator=None) -> Tensor:
    dropped = torch.rand(len(conditions), generator=generator) < p                      # (B,)
    kept = conditions.clone()
    kept[dropped.to(kept.device)] = nothing.to(kept)
    return kept


def training_step(model, optimizer, x0: Tensor, conditions: Tensor, schedule, generator=None, max_norm: float = 1.0) -> float:
    t = torch.randint(schedule.num_steps, (len(x0),), generator=generator)              # (B,)
    noise = torch.randn(x0.shape, generator=generator).to(x0)                           # (B,c,h,w)
    prediction = model(schedule.add_noise(x0, noise, t), t.to(x0.device), conditions)
    loss = F.mse_loss(prediction, schedule.to_v(x0, noise, t))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def sample(model, vae, schedule, conditions: Tensor, noise: Tensor, scale: float, steps: int = 20) -> Tensor:
    levels = schedule.timesteps(steps).tolist()
    x = noise
    for t, after in zip(levels, [*levels[1:], None], strict=True):
        bar = float(schedule.alphas_cumprod[t])
        bar_after = 1.0 if after is None else float(schedule.alphas_cumprod[after])
        v = model(x, torch.full((len(x),), t, device=x.device), conditions)
        z, eps = bar**0.5 * x - (1 - bar) ** 0.5 * v, (1 - bar) ** 0.5 * x + bar**0.5 * v
        x = bar_after**0.5 * z + (1 - bar_after) ** 0.5 * eps
    return vae.decode(x / scale).clamp(-1, 1)
