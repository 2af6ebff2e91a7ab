"""Vector quantisation: a latent made of words from a learned book instead of numbers (van den Oord et al. 2017).

    q(z) = e_k,  k = argmin_j ||z - e_j||^2

argmin has no gradient, so the decoder's gradient is handed to the encoder as if q were the identity (straight-through),
and the codes themselves learn by a loss of their own:

    L = ||sg[z] - e||^2 + beta ||z - sg[e]||^2           eq. 3: the code goes to z, and z, more slowly, to the code

The released code of VQGAN, and diffusers by default (`legacy=True`), have beta on the other term; it is a bug that was
kept for compatibility, and harmless because beta only sets the ratio of two speeds.

A latent diffusion model on top diffuses the z before quantisation and quantises as the first layer of the decoder
(Rombach et al. 2022, appendix G).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from course import vae
from course.errors import ShapeError, UsageError


@dataclass(frozen=True)
class VQConfig(vae.VAEConfig):
    """Sizes of a VQ autoencoder; the defaults are the paper's VQ-f4 (Table 8: f = 4, 8192 codes, c = 3)."""

    latent_channels: int = 3
    block_channels: tuple[int, ...] = (128, 256, 512)
    scaling_factor: float = 1.0
    num_codes: int = 8192
    beta: float = 0.25
    ema_decay: float | None = None            # learn the codes by running averages instead of by gradient
    restart_below: float | None = None        # a code used less often than this share of its due is moved

    @property
    def encoder_channels(self) -> int:
        return self.latent_channels           # one point, no variance


class VectorQuantizer(nn.Module):
    """forward(z (B,c,h,w)) -> (z_q (B,c,h,w), loss, indices (B,h,w)); z_q carries the straight-through gradient.

    Args:
        num_codes, dim: size of the book, and of each code (= c).  beta: weight of the commitment.
        ema_decay: the codes follow the mean of the z that chose them (appendix A.1); the loss is then commitment alone.
        restart_below: in training, a code whose running share of uses falls below this fraction of 1 / num_codes is
            moved onto the z of the batch that is represented worst. Without it most of a large book can stay unread.
    """

    def __init__(self, num_codes: int, dim: int, beta: float = 0.25, ema_decay: float | None = None,
                 restart_below: float | None = None):
        super().__init__()
        if num_codes < 1 or dim < 1:
            raise UsageError(f"num_codes and dim must be at least 1, got {num_codes} and {dim}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise UsageError(f"ema_decay must lie in [0, 1), got {ema_decay}")
        self.num_codes, self.dim, self.beta = num_codes, dim, beta
        self.ema_decay, self.restart_below = ema_decay, restart_below
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)
        if ema_decay is not None:
            self.embedding.weight.requires_grad_(False)
            self.register_buffer("total", torch.zeros(num_codes, dim))                  # running sum of the z of a code
        if ema_decay is not None or restart_below is not None:
            self.register_buffer("count", torch.zeros(num_codes))                       # running number of them

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if z.ndim != 4 or z.shape[1] != self.dim:
            raise ShapeError(f"expected z of shape (B,{self.dim},h,w), got {tuple(z.shape)}")
        z = z.to(self.embedding.weight.dtype)                  # in mixed precision: eight bits do not say which code is nearest
        flat = rearrange(z, "B c h w -> (B h w) c")                                     # (N,c)
        indices = self.nearest(flat)                                                    # (N,)
        codes = self.lookup(indices.view(len(z), *z.shape[2:]))                         # (B,c,h,w)
        loss = self.beta * F.mse_loss(z, codes.detach())
        if self.ema_decay is None:
            loss = loss + F.mse_loss(codes, z.detach())
        if self.training:
            self._follow(flat.detach(), indices)
        z_q = z + (codes - z).detach()                         # forward: the code; backward: the identity
        return z_q, loss, indices.view(len(z), *z.shape[2:])

    def nearest(self, flat: Tensor) -> Tensor:
        """The code nearest to each row; (N,c) -> (N,). ||z - e||^2 = ||z||^2 - 2 z e + ||e||^2, and ||z||^2 is no choice."""
        codes = self.embedding.weight                                                   # (K,c)
        with torch.autocast("cpu" if flat.is_meta else flat.device.type, enabled=False):
            return torch.argmin(codes.square().sum(1) - 2 * flat @ codes.T, dim=1)

    def lookup(self, indices: Tensor) -> Tensor:
        """(B,h,w) -> (B,c,h,w)."""
        return rearrange(self.embedding(indices), "B h w c -> B c h w")

    @torch.no_grad()
    def _follow(self, flat: Tensor, indices: Tensor) -> None:
        """After the batch: running averages, and dead codes."""
        if self.ema_decay is None and self.restart_below is None:
            return
        decay = 0.99 if self.ema_decay is None else self.ema_decay
        used = torch.bincount(indices, minlength=self.num_codes).to(flat)               # (K,)
        self.count.lerp_(used, 1 - decay)
        if self.ema_decay is not None:
            self.total.lerp_(torch.zeros_like(self.total).index_add_(0, indices, flat), 1 - decay)
            seen = self.count > 1e-6 * len(flat)               # nobody has chosen the others yet: they stay
            self.embedding.weight.data[seen] = self.total[seen] / self.count[seen, None]
        if self.restart_below is not None:
            due = len(flat) / self.num_codes
            dead = (self.count < self.restart_below * due).nonzero().flatten()
            errors = (flat - self.embedding.weight[self.nearest(flat)]).square().sum(1)  # (N,)
            dead = dead[: len(flat)]
            worst = errors.topk(len(dead)).indices                                      # (D,)
            self.embedding.weight.data[dead] = flat[worst]
            self.count[dead] = due                             # a fresh code gets the time to find its readers
            if self.ema_decay is not None:
                self.total[dead] = due * flat[worst]


def usage(indices: Tensor, num_codes: int) -> dict[str, float]:
    """{"perplexity", "used"}: exp of the entropy of the codes' shares, and the share of codes that occur at all."""
    share = torch.bincount(indices.flatten(), minlength=num_codes).double()
    share = share / share.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return {"perplexity": float(entropy.exp()), "used": float((share > 0).double().mean())}


class VQAutoencoder(nn.Module):
    """encode(x (B,3,H,W)) -> z (B,c,H/f,W/f), before quantisation; decode(z) quantises, then decodes -> (B,3,H,W)."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config, self.scaling_factor = config, config.scaling_factor
        c = config.latent_channels
        self.encoder = vae.Encoder(config)
        self.quant_conv = nn.Conv2d(c, c, 1)
        self.quantize = VectorQuantizer(config.num_codes, c, config.beta, config.ema_decay, config.restart_below)
        self.post_quant_conv = nn.Conv2d(c, c, 1)
        self.decoder = vae.Decoder(config)

    def encode(self, x: Tensor) -> Tensor:
        vae.check_image(x, self.config)
        return self.quant_conv(self.encoder(x))                                         # (B,c,H/f,W/f)

    def decode(self, z: Tensor) -> Tensor:
        return self._decode(self.quantize(z)[0])                                        # (B,3,H,W)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction (B,3,H,W), loss of the quantiser, indices (B,h,w))."""
        z_q, loss, indices = self.quantize(self.encode(x))
        return self._decode(z_q), loss, indices

    def _decode(self, z_q: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z_q))
