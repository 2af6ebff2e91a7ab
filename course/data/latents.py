"""Encode once, train on what came out ever after: an autoencoder's pass costs more than a latent training step.

The same holds for captions, where the text encoder is frozen.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from course import pixels
from course.data import shards


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


def cached(folder: str | Path, vae, images: Tensor, device: str = "cpu", size: int = 16_384) -> tuple[shards.Rows, shards.Rows]:
    """`encode_all`, kept as `latents-00000.safetensors` ... in `folder`, each with the latents of `size` pictures."""
    def compute(start: int, stop: int) -> dict[str, Tensor]:
        return dict(zip(("mean", "std"), encode_all(vae, images[start: stop], device), strict=True))
    rows = shards.cached(folder, "latents", len(images), compute, fingerprint(vae), size)
    return rows["mean"], rows["std"]


def measured_scale(mean: shards.Rows, std: shards.Rows) -> float:
    """1 / std of all latents, so that diffusion sees unit variance (Rombach et al. 2022, app. G; SD's 0.18215)."""
    count = sum(p.numel() for p in mean.pieces)
    total = sum(p.double().sum() for p in mean.pieces)
    squares = sum((m.double() ** 2).sum() + (s.double() ** 2).sum() for m, s in zip(mean.pieces, std.pieces, strict=True))
    return float((squares / count - (total / count) ** 2) ** -0.5)


class Contexts:
    """What a frozen text encoder makes of K captions of each of n pictures: `contexts[chosen, which]` -> (B,N,D).

    Many pictures share a caption, and each is encoded once: see `shards.cached`.
    """

    def __init__(self, folder: str | Path, encoder: nn.Module, ids: Tensor, device: str = "cpu", size: int = 8_192):
        n, K, N = ids.shape
        different, place = ids.view(-1, N).unique(dim=0, return_inverse=True)           # (m,N), (n*K,)
        self.place, self.shape = place.view(n, K), (n, K, N, encoder.config.width)

        @torch.no_grad()
        def compute(start: int, stop: int) -> dict[str, Tensor]:
            parts = different[start: stop].split(256)
            return {"context": torch.cat([encoder(part.to(device)).cpu() for part in parts])}
        key = fingerprint(encoder) + hashlib.sha256(different.numpy().tobytes()).hexdigest()[:16]
        self.rows = shards.cached(folder, "captions", len(different), compute, key, size)["context"]

    def __getitem__(self, which: tuple[Tensor, Tensor]) -> Tensor:
        return self.rows[self.place[which]]


def fingerprint(module: nn.Module) -> str:
    """Sixteen hexadecimal digits of a network's weights: another network must not find this one's cache."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
