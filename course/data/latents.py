"""Encode the pictures once, train on latents ever after: an autoencoder pass costs more than a latent training step."""

from pathlib import Path

import torch
from torch import Tensor

from course import files, pixels
from course.errors import CheckpointError


@torch.no_grad()
def encode_all(vae, images: Tensor, device: str = "cpu", batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of q(z|x) for uint8 images (B,3,H,W): (B,c,h,w) twice, on the CPU, unscaled.

    An autoencoder with a codebook has no spread: its z before quantisation, and zeros.
    """
    means, stds = [], []
    for chunk in images.split(batch_size):
        posterior = vae.encode(pixels.to_unit(chunk.to(device)))
        plain = isinstance(posterior, Tensor)
        means.append((posterior if plain else posterior.mean).cpu())
        stds.append(torch.zeros_like(means[-1]) if plain else torch.exp(0.5 * posterior.logvar).cpu())
    return torch.cat(means), torch.cat(stds)


def measured_scale(mean: Tensor, std: Tensor) -> float:
    """1 / std of all latents, so that diffusion sees unit variance (Rombach et al. 2022, app. G; SD's 0.18215)."""
    return float((mean.var() + (std**2).mean()) ** -0.5)


def cached(folder: str | Path, vae, images: Tensor, device: str = "cpu", shard: int = 16_384) -> tuple[Tensor, Tensor]:
    """`encode_all`, kept as `latents-00000.safetensors` ... in `folder`; made anew where one is missing or does not fit.

    Each file holds `shard` pictures, so that a run that is stopped while encoding goes on with the next one.
    """
    means, stds = [], []
    for number, start in enumerate(range(0, len(images), shard)):
        part, path = images[start: start + shard], Path(folder) / f"latents-{number:05d}.safetensors"
        try:
            tensors, _ = files.load_tensors(path)
            found = (tensors["mean"], tensors["std"]) if len(tensors["mean"]) == len(part) else None
        except (CheckpointError, KeyError):
            found = None                                       # none yet, or a damaged one: make it
        if found is None:
            found = encode_all(vae, part, device)
            files.save_tensors(path, {"mean": found[0], "std": found[1]}, {})
        means.append(found[0]), stds.append(found[1])
    return (means[0], stds[0]) if len(means) == 1 else (torch.cat(means), torch.cat(stds))
