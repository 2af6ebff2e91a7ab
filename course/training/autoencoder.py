"""Stage one: train the autoencoder, so that there is a latent space to diffuse in."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from course import losses, pixels, vq
from course.training import loop


@dataclass(frozen=True)
class AutoencoderLoss:
    """The weights of `course.losses`; every term is summed over a sample and averaged over the batch, as in the real code.

    The article's average over pixels with a KL weight of 1e-3 would be some 48,000 times stronger than 1e-6 at 256 x 256.
    """

    l1: float = 0.5
    l2: float = 4.0                       # the larger share: colours of small objects settle much sooner than under L1
    kl: float = 1e-6
    codebook: float = 1.0                 # VQ only; a mean in the released code, and here
    perceptual: float = 0.0
    perceptual_net: str = "auto"          # see training.perceptual
    perceptual_trunk: str | None = None
    adversarial: float = 0.0
    critic_learns: float = 0.4            # share of the budget after which the critic is trained ...
    critic_counts: float = 0.5            # ... and after which it is heard: an untrained one only does damage
    critic_pace: float = 0.1              # its learning rate as a share of the autoencoder's; at the full one it stayed at chance
    critic_channels: int = 64             # of its first layer; as in the paper, and many times the cost of a small autoencoder
    critic_layers: int = 3                # a verdict sees 70 x 70 pixels, or with two layers 34 x 34


class Trainee(nn.Module):
    """Autoencoder and critic in one module with one optimiser: forward(x, noise, used) -> (loss, figures).

    One backward serves both: the autoencoder sees the critic's weights as constants, the critic sees the rebuilt picture
    as one. AdamW does not mind that the two losses are of different size.
    """

    def __init__(self, autoencoder: nn.Module, loss: AutoencoderLoss, perceptual: nn.Module | None = None):
        super().__init__()
        self.autoencoder, self.loss = autoencoder, loss
        self.critic = losses.PatchDiscriminator(3, loss.critic_channels, loss.critic_layers) if loss.adversarial else None
        self.paces = {"critic.": loss.critic_pace}
        self.frozen = [perceptual]                             # in a list, so that it is not among what is trained

    def forward(self, x: Tensor, noise: Tensor | None, used: float) -> tuple[Tensor, dict[str, Tensor]]:
        w, values = self.loss, x[0].numel()
        if noise is None:                                      # a codebook has nothing random
            rebuilt, term, indices = self.autoencoder(x)
            regulariser, figures = w.codebook * values * term, {"perplexity": perplexity(indices, self.autoencoder)}
        else:
            rebuilt, posterior = self.autoencoder(x, noise=noise)
            regulariser, figures = w.kl * posterior.kl().float().mean(), {}
        rec = losses.reconstruction(x, rebuilt, w.l1, w.l2, self.frozen[0], w.perceptual).mean()
        # dividing the whole by the number of values leaves the balance as it is and keeps the printed loss readable
        total = (rec + regulariser) / values
        figures["psnr"] = -10 * torch.log10((rebuilt.detach().float() - x).square().mean() / 4)
        if self.critic is not None:
            total = total + self._adversarial(x, rebuilt, rec, used, figures)
        return total, figures

    def _adversarial(self, x: Tensor, rebuilt: Tensor, rec: Tensor, used: float, figures: dict) -> Tensor:
        w, values = self.loss, x[0].numel()
        if used < w.critic_learns:                             # times zero: processes wait for everybody's gradients
            return 0.0 * sum(p.sum() for p in self.critic.parameters())
        real, fake = self.critic(x), self.critic(rebuilt.detach())
        total = critic = losses.hinge_discriminator(real.float(), fake.float())
        figures["critic"] = critic.detach()
        if weight := losses.delayed(w.adversarial, used, w.critic_counts):
            constants = {n: t.detach() for n, t in [*self.critic.named_parameters(), *self.critic.named_buffers()]}
            adversarial = losses.hinge_generator(torch.func.functional_call(self.critic, constants, rebuilt).float())
            if torch.is_grad_enabled():
                adaptive = losses.adaptive_weight(rec, adversarial, self.autoencoder.decoder.conv_out.weight)
                total = total + weight * adaptive * adversarial / values
        return total


def perplexity(indices: Tensor, autoencoder) -> Tensor:
    """How many codes are in use, if all were used alike: exp of the entropy of this batch."""
    return torch.tensor(vq.usage(indices, autoencoder.config.num_codes)["perplexity"])


def train(autoencoder, images: Tensor, folder: str | Path, budget: loop.Budget, config: loop.LoopConfig,
          loss: AutoencoderLoss = AutoencoderLoss(), perceptual: nn.Module | None = None, **how) -> dict:
    """Train `autoencoder` (KL or VQ) in place; returns what `loop.fit` does.

    images: uint8 (n,3,H,W), or anything that gives such a tensor for a tensor of indices.
    """
    shape = latent_shape(autoencoder.config, images[torch.zeros(1, dtype=torch.int64)].shape)

    def loss_of_batch(model, step):
        chosen = step.integers(len(images))
        own = next(model.parameters())
        x = pixels.to_unit(images[chosen].to(own.device)).to(own.dtype)                 # (B,3,H,W)
        noise = step.normal(*shape).to(x) if shape else None                            # (B,c,h,w)
        value, figures = model(x, noise, step.used)
        step.figures = {name: float(figure) for name, figure in figures.items()}
        return value

    trainee = Trainee(autoencoder, loss, perceptual)
    return loop.fit(trainee, loss_of_batch, config, budget, folder, **how)


def latent_shape(config, image_shape) -> tuple[int, ...] | None:
    """(c,h,w) of the noise that a KL posterior is drawn with; None for a codebook."""
    if hasattr(config, "num_codes"):
        return None
    return (config.latent_channels, image_shape[2] // config.factor, image_shape[3] // config.factor)
