"""Stage one: train the autoencoder, so that there is a latent space to diffuse in."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from course import pixels
from course.training import loop


@dataclass(frozen=True)
class AutoencoderLoss:
    """Reconstruction plus a whiff of KL; every term summed over a sample and averaged over the batch, as in the real code.

    The article's average over pixels with a KL weight of 1e-3 would be some 48,000 times stronger than this at 256 x 256.
    """

    l1: float = 0.5
    l2: float = 4.0                       # the larger share: colours of small objects settle much sooner than under L1
    kl: float = 1e-6

    def __call__(self, x: Tensor, reconstruction: Tensor, posterior) -> Tensor:
        difference = (reconstruction.float() - x).flatten(1)                            # (B,3HW)
        rec = self.l1 * difference.abs().sum(1) + self.l2 * difference.pow(2).sum(1)    # (B,)
        # dividing the whole by the number of values leaves the balance as it is and keeps the printed loss readable
        return (rec + self.kl * posterior.kl().float()).mean() / difference.shape[1]


def train(vae, images: Tensor, folder: str | Path, budget: loop.Budget, config: loop.LoopConfig,
          loss: AutoencoderLoss = AutoencoderLoss(), device: str = "cpu", precision: str = "fp32", **how) -> dict:
    """Train `vae` in place on uint8 `images` (n,3,H,W); returns what `loop.fit` does."""
    images = images.to(device)

    def loss_of_batch(model, generator):
        chosen = torch.randint(len(images), (config.batch_size,), generator=generator)
        x = pixels.to_unit(images[chosen.to(device)])                                   # (B,3,H,W)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            reconstruction, posterior = model(x, generator)
        return loss(x, reconstruction, posterior)

    return loop.fit(vae, loss_of_batch, config, budget, folder, **how)
