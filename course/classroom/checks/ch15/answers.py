"""The course's own answers, out of reach of `parts.swapped`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def waves(numbers: Tensor, dim: int) -> Tensor:
    """(B,) -> (B,dim): cosines, then sines."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=numbers.device) / (dim // 2))
    angles = numbers.float()[:, None] * frequencies                                     # (B,dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def size_embedding(numbers: Tensor, dim: int = 256) -> Tensor:
    return waves(numbers.flatten(), dim).reshape(len(numbers), -1)                      # (B,n*dim)


def join_texts(stream_1: Tensor, stream_2: Tensor, last_2: Tensor, ids_2: Tensor, eos_id: int, projection: Tensor,
               kept: Tensor) -> tuple[Tensor, Tensor]:
    context = torch.cat([stream_1, stream_2], dim=-1)                                   # (B,N,D1+D2)
    ends = (ids_2 == eos_id).int().argmax(dim=1)                                        # (B,): the first of them
    pooled = last_2[torch.arange(len(ids_2), device=last_2.device), ends] @ projection.T        # (B,P)
    kept = kept.to(context)
    return context * kept[:, None, None], pooled * kept[:, None]


def embed_time(unet, t, text_embeds: Tensor, time_ids: Tensor) -> Tensor:
    t = torch.as_tensor(t, device=text_embeds.device).expand(len(text_embeds))          # (B,)
    sizes = size_embedding(time_ids, unet.config.size_embedding_dim)                    # (B,n*dim)
    added = torch.cat([text_embeds, sizes.to(text_embeds)], dim=-1)                     # (B,P+n*dim)
    time = waves(t, unet.config.block_channels[0]).to(text_embeds)                      # (B,C)
    return unet.time_embedding(time) + unet.add_embedding(added)                        # (B,D)


def crop_and_tell(picture: Tensor, side: int, corner: tuple[float, float]) -> tuple[Tensor, Tensor]:
    H, W = picture.shape[1:]
    h, w = round(H * side / min(H, W)), round(W * side / min(H, W))
    small = F.interpolate(picture[None], (h, w), mode="bilinear", antialias=True)[0]    # (3,h,w)
    top, left = int(corner[0] * (h - side + 1)), int(corner[1] * (w - side + 1))
    numbers = torch.tensor([H, W, top, left, side, side], dtype=torch.float32)
    return small[:, top: top + side, left: left + side], numbers


@torch.no_grad()
def hand_over(base, refiner, x: Tensor, timesteps: Tensor, schedule, share: float = 0.8) -> Tensor:
    levels = timesteps.tolist()
    for t, after in zip(levels, [*levels[1:], None], strict=True):
        expert = base if t >= (1 - share) * schedule.num_steps else refiner
        bar = float(schedule.alphas_cumprod[t])
        bar_after = 1.0 if after is None else float(schedule.alphas_cumprod[after])
        eps = expert(x, t)                                                              # (B,C,h,w)
        x0 = (x - (1 - bar) ** 0.5 * eps) / bar**0.5
        x = bar_after**0.5 * x0 + (1 - bar_after) ** 0.5 * eps
    return x


def sides(pixels: int = 1024**2, step: int = 64, shortest: int = 512, longest: int = 2048,
          fill: float = 0.9) -> list[tuple[int, int]]:
    lengths = range(shortest, longest + 1, step)
    return [(h, w) for h in lengths for w in lengths if fill * pixels <= h * w <= pixels]


def assign(height: Tensor, width: Tensor, sides: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    offered = torch.tensor([w / h for h, w in sides], dtype=torch.float64).log()        # (K,)
    wanted = (width.double() / height.double()).log()                                   # (N,)
    off, index = (wanted[:, None] - offered).abs().min(dim=1)                           # (N,)
    return index, torch.exp(-off)


def batches(bucket: Tensor, batch_size: int, generator: torch.Generator | None = None) -> list[Tensor]:
    made = []
    for k in bucket.unique().tolist():
        members = torch.nonzero(bucket == k).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        whole = len(members) // batch_size * batch_size
        made += list(members[:whole].reshape(-1, batch_size))
    return [made[i] for i in torch.randperm(len(made), generator=generator).tolist()]
