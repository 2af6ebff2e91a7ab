"""The autoencoder: a picture becomes a small latent that still holds all that the eye needs, and comes back.

    z = E(x),  x' = D(z)          512 x 512 x 3 -> 64 x 64 x 4: 48 times fewer values      Rombach et al. 2022, sec. 3.1

The encoder answers with a Gaussian, not a point, and a tiny KL term keeps that Gaussian near N(0, I): just enough that
latents have a sane scale and no holes. It is far too weak to make N(0, I) a source of pictures; diffusion does that.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from course import attention, layers
from course.errors import ShapeError, UsageError


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are Stable Diffusion's (83,653,863 parameters)."""

    in_channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)   # one entry a level; each but the last halves H and W
    layers_per_block: int = 2                                # residual blocks a level; the decoder has one more
    stem: int = 1                                            # fold stem x stem pixels into channels at both ends
    mid_attention: bool = True
    level_attention: tuple[bool, ...] = ()                   # levels with self-attention too; () is none
    scaling_factor: float = 0.18215                          # 1 / std of the latents, so that diffusion sees unit scale

    def __post_init__(self):
        if any(channels % 32 for channels in self.block_channels):
            raise UsageError(f"block_channels must be multiples of 32 (GroupNorm), got {self.block_channels}")
        if self.level_attention and len(self.level_attention) != len(self.block_channels):
            raise UsageError(f"level_attention needs one entry a level or none, got {self.level_attention}")

    def has_attention(self, level: int) -> bool:
        return bool(self.level_attention) and self.level_attention[level]

    @property
    def encoder_channels(self) -> int:
        return 2 * self.latent_channels                      # mean and log-variance

    @property
    def factor(self) -> int:
        """f: how many times smaller the latent's sides are."""
        return self.stem * 2 ** (len(self.block_channels) - 1)


class DiagonalGaussian:
    """q(z|x) = N(mean, diag(exp(logvar))), from the encoder's 2C channels; (B,2C,H,W) -> .mean, .logvar (B,C,H,W)."""

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.chunk(2, dim=1)                                     # (B,C,H,W) twice
        self.logvar = logvar.clamp(-30, 20)                  # exp() must neither vanish nor overflow

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """mean + std * noise: the reparametrisation that lets gradients through (Kingma & Welling 2014)."""
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=generator)                   # drawn on the CPU
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)           # (B,C,H,W)

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) in nats, summed over each latent; (B,)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class AutoencoderKL(nn.Module):
    """encode(x (B,3,H,W) in [-1,1]) -> DiagonalGaussian over (B,c,H/f,W/f); decode(z) -> (B,3,H,W)

    Latents are unscaled here; who diffuses them multiplies by `scaling_factor`, and divides before decoding.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config, self.scaling_factor = config, config.scaling_factor
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1)
        self.post_quant_conv = nn.Conv2d(c, c, 1)
        # start almost without noise: at the usual logvar = 0 it drowns the mean, and hundreds of steps go by before
        # the network has learned to turn it down
        nn.init.constant_(self.quant_conv.bias[c:], -6.0)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        check_image(x, self.config)
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))                       # (B,2c,H/f,W/f)

    def decode(self, z: Tensor) -> Tensor:
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise ShapeError(f"expected latents (B,{self.config.latent_channels},h,w), got {tuple(z.shape)}")
        return self.decoder(self.post_quant_conv(z))                                    # (B,3,H,W)

    def forward(self, x: Tensor, generator: torch.Generator | None = None,
                noise: Tensor | None = None) -> tuple[Tensor, DiagonalGaussian]:
        """(reconstruction of one draw, the distribution it was drawn from)."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(generator, noise)), posterior


def check_image(x: Tensor, config: VAEConfig) -> None:
    """Raises ShapeError for what cannot be encoded."""
    if x.ndim != 4 or x.shape[1] != config.in_channels or x.shape[2] % config.factor or x.shape[3] % config.factor:
        raise ShapeError(f"expected (B,{config.in_channels},H,W) with H and W multiples of {config.factor}, "
                         f"got {tuple(x.shape)}")


class Encoder(nn.Module):
    """(B,3,H,W) -> (B,2c,H/f,W/f): mean and log-variance, before quant_conv; (B,c,H/f,W/f) for a VQConfig."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.block_channels
        self.stem = nn.PixelUnshuffle(config.stem)                                      # no parameters
        self.conv_in = nn.Conv2d(config.in_channels * config.stem**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            self.down_blocks.append(Level(widths[max(i - 1, 0)], width, config.layers_per_block, down=not last,
                                          with_attention=config.has_attention(i)))
        self.mid_block = Middle(widths[-1], config.mid_attention)
        self.conv_norm_out = layers.group_norm(widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.encoder_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(self.stem(x))                                                  # (B,C,H/stem,W/stem)
        for level in self.down_blocks:
            h = level(h)                                                                # (B,C_i,H/2,W/2)
        h = self.mid_block(h)
        return self.conv_out(layers.activated(self.conv_norm_out, h))              # (B,2c,H/f,W/f)


class Decoder(nn.Module):
    """(B,c,H/f,W/f), after post_quant_conv -> (B,3,H,W)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.block_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], config.mid_attention)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            self.up_blocks.append(Level(widths[max(i - 1, 0)], width, config.layers_per_block + 1, up=not last,
                                        with_attention=config.has_attention(len(widths) - 1 - i)))
        self.conv_norm_out = layers.group_norm(widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels * config.stem**2, 3, padding=1)
        self.stem = nn.PixelShuffle(config.stem)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))                                             # (B,C,H/f,W/f)
        for level in self.up_blocks:
            h = level(h)                                                                # (B,C_i,2H,2W)
        return self.stem(self.conv_out(layers.activated(self.conv_norm_out, h)))   # (B,3,H,W)


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if asked, then the step to the next."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, down: bool = False, up: bool = False,
                 with_attention: bool = False):
        super().__init__()
        inputs = [in_channels] + [out_channels] * (blocks - 1)
        self.resnets = nn.ModuleList([layers.ResBlock(n, out_channels, None, eps=1e-6) for n in inputs])
        self.attentions = nn.ModuleList([SelfAttention(out_channels) for _ in inputs]) if with_attention else None
        self.downsamplers = nn.ModuleList([layers.Downsample(out_channels, asymmetric=True)]) if down else None
        self.upsamplers = nn.ModuleList([layers.Upsample(out_channels)]) if up else None

    def forward(self, h: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(h)                                                               # (B,C,H,W)
            if self.attentions is not None:
                h = self.attentions[i](h)
        for step in self.downsamplers or self.upsamplers or []:
            h = step(h)                                                                 # (B,C,H/2,W/2) or (B,C,2H,2W)
        return h


class Middle(nn.Module):
    """Residual block, one head of self-attention over all positions, residual block; (B,C,h,w) -> same."""

    def __init__(self, channels: int, with_attention: bool):
        super().__init__()
        self.resnets = nn.ModuleList([layers.ResBlock(channels, channels, None, eps=1e-6) for _ in range(2)])
        self.attentions = nn.ModuleList([SelfAttention(channels)]) if with_attention else None

    def forward(self, h: Tensor) -> Tensor:
        h = self.resnets[0](h)
        if self.attentions is not None:
            h = self.attentions[0](h)
        return self.resnets[1](h)


class SelfAttention(nn.Module):
    """The autoencoder's older attention: one head as wide as the features, and biases everywhere; (B,C,h,w) -> same."""

    def __init__(self, channels: int):
        super().__init__()
        self.group_norm = layers.group_norm(channels, 1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.group_norm(x), "B C h w -> B 1 (h w) C")                # one head
        out = attention.attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + rearrange(self.to_out[0](out), "B 1 (h w) C -> B C h w", h=x.shape[-2])
