"""Encode the pictures once, train on latents ever after: an autoencoder pass costs more than a latent training step."""

from pathlib import Path

import torch
from torch import Tensor

from course import files, pixels
from course.errors import CheckpointError


@torch.no_grad()
def encode_all(vae, images: Tensor, device: str = "cpu", batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of q(z|x) for uint8 images (B,3,H,W): (B,c,h,w) twice, on the CPU, unscaled."""
    means, stds = [], []
    for chunk in images.split(batch_size):
        posterior = vae.encode(pixels.to_unit(chunk.to(device)))
        means.append(posterior.mean.cpu())
        stds.append(torch.exp(0.5 * posterior.logvar).cpu())
    return torch.cat(means), torch.cat(stds)


def measured_scale(mean: Tensor, std: Tensor) -> float:
    """1 / std of all latents, so that diffusion sees unit variance (Rombach et al. 2022, app. G; SD's 0.18215)."""
    return float((mean.var() + (std**2).mean()) ** -0.5)


def cached(path: str | Path, vae, images: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """`encode_all`, kept in a file beside the run; made anew where the file is missing or of another number of pictures."""
    path = Path(path)
    if path.exists():
        try:
            tensors, _ = files.load_tensors(path)
            if len(tensors["mean"]) == len(images):
                return tensors["mean"], tensors["std"]
        except (CheckpointError, KeyError):
            pass                                               # a damaged cache is no loss: make it again
    mean, std = encode_all(vae, images, device)
    files.save_tensors(path, {"mean": mean, "std": std}, {})
    return mean, std
