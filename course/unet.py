"""The denoiser: one U-Net for pixels and for latents, for this course's laptop models and for Stable Diffusion.

Down: residual blocks (and, where the config says so, attention to the text), then half the resolution, again and again.
Up: the same mirrored, each block also reading the feature map that its twin on the way down left behind (the skip).
Only the config differs between models. Rombach et al. 2022, section 3.2; the shape of Ho et al. 2020, appendix B.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course import attention, layers
from course.errors import ShapeError, UsageError


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net; the defaults are Stable Diffusion 1.5 (859,520,964 parameters)."""

    in_channels: int = 4
    out_channels: int = 4
    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)   # one entry a level, high resolution first
    layers_per_block: int = 2                                  # residual blocks a level; one more on the way up
    depth: tuple[int, ...] = (1, 1, 1, 0)                      # transformer blocks behind each residual block
    mid_depth: int = 1                                         # and in the middle; 0: no attention there
    heads: tuple[int, ...] = (8, 8, 8, 8)                      # attention heads a level; dim_head = channels / heads
    context_dim: int | None = 768                              # width of the text; None: every attention is to itself
    linear_proj: bool = False                                  # see attention.SpatialTransformer
    added_dim: int | None = None                               # SDXL: width of [pooled text, embedded sizes]
    size_embedding_dim: int = 256                              # SDXL: cosines and sines a size

    def __post_init__(self):
        if not len(self.block_channels) == len(self.depth) == len(self.heads):
            raise UsageError(f"one entry a level expected: block_channels {self.block_channels}, depth {self.depth}, "
                             f"heads {self.heads}")
        for channels, heads in zip(self.block_channels, self.heads, strict=True):
            if channels % 32 or channels % heads:
                raise UsageError(f"channels must be multiples of 32 (GroupNorm) and of heads, got {channels}, {heads}")

    @property
    def time_emb_dim(self) -> int:
        return 4 * self.block_channels[0]

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return 2 ** (len(self.block_channels) - 1)


class Trunk(nn.Module):
    """The way down and the middle: the half of a U-Net that a ControlNet copies (see `controlnet`)."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = c = config
        widths = c.block_channels
        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.time_embedding = layers.TimestepEmbedding(widths[0], c.time_emb_dim)
        self.add_embedding = layers.TimestepEmbedding(c.added_dim, c.time_emb_dim) if c.added_dim else None
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            inputs = [widths[max(i - 1, 0)]] + [width] * (c.layers_per_block - 1)
            self.down_blocks.append(Level(c, i, inputs, down=i < len(widths) - 1))
        self.mid_block = Middle(c)

    def go_down(self, h: Tensor, time_emb: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """conv_in's output (B,C,H,W) -> (the middle's output (B,C_n,h,w), the skips, high resolution first)."""
        skips = [h]
        for level in self.down_blocks:
            for i in range(len(level.resnets)):
                h = level.layer(i, h, time_emb, context)       # (B,C_i,H,W)
                skips.append(h)
            if level.downsamplers is not None:
                h = level.downsamplers[0](h)                   # (B,C_i,H/2,W/2)
                skips.append(h)
        return self.mid_block(h, time_emb, context), skips

    def embed_time(self, t: Tensor | float, x: Tensor, added: dict | None = None) -> Tensor:
        """Noise level (and SDXL's sizes and pooled text) -> (B,time_emb_dim)."""
        t = torch.as_tensor(t, device=x.device).expand(len(x))                           # (B,)
        waves = layers.timestep_embedding(t, self.config.block_channels[0]).to(x.dtype)  # (B,C)
        time_emb = self.time_embedding(waves)
        if self.add_embedding is None:
            return time_emb
        if not added or {"text_embeds", "time_ids"} - set(added):
            raise UsageError('this U-Net needs added={"text_embeds": (B,D), "time_ids": (B,n)}')
        sizes = layers.timestep_embedding(added["time_ids"].flatten(), self.config.size_embedding_dim)
        sizes = sizes.reshape(len(x), -1).to(x.dtype)                                    # (B,6*256)
        return time_emb + self.add_embedding(torch.cat([added["text_embeds"], sizes], dim=-1))

    def check(self, x: Tensor, context: Tensor | None) -> None:
        """Raises ShapeError for what this U-Net cannot read."""
        c = self.config
        if x.ndim != 4 or x.shape[1] != c.in_channels:
            raise ShapeError(f"expected x of shape (B,{c.in_channels},H,W), got {tuple(x.shape)}")
        if x.shape[2] % c.multiple or x.shape[3] % c.multiple:
            raise ShapeError(f"height and width must be multiples of {c.multiple}, got {tuple(x.shape[2:])}")
        if c.context_dim is not None and (context is None or context.shape[-1] != c.context_dim):
            found = None if context is None else tuple(context.shape)
            raise ShapeError(f"expected a context of shape (B,N,{c.context_dim}), got {found}")


class UNet(Trunk):
    """forward(x, t, context=None, added=None, control=None) -> the predicted quantity, (B,out_channels,H,W)

    Args:
        x: (B,in_channels,H,W).   t: (B,) or a number, the noise level; may be fractional.
        context: (B,N,context_dim), what cross-attention reads.
        added: SDXL's {"text_embeds": (B,D), "time_ids": (B,n)}.
        control: residuals of a ControlNet, one for each skip and, last, one for the middle.
    """

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        c, widths = config, config.block_channels
        skips = skip_channels(c)
        self.up_blocks = nn.ModuleList()
        current = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            inputs = []
            for _ in range(c.layers_per_block + 1):
                inputs.append(current + skips.pop())           # the skip is concatenated, so the channels add up
                current = width
            self.up_blocks.append(Level(c, i, inputs, up=i > 0))
        self.conv_norm_out = layers.group_norm(widths[0], 1e-5)
        self.conv_out = nn.Conv2d(widths[0], c.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor | None = None, added: dict | None = None,
                control: list[Tensor] | None = None) -> Tensor:
        self.check(x, context)
        time_emb = self.embed_time(t, x, added)                # (B,time_emb_dim)
        h, skips = self.go_down(self.conv_in(x), time_emb, context)
        if control is not None:
            *on_skips, on_middle = control
            skips = [s + c for s, c in zip(skips, on_skips, strict=True)]
            h = h + on_middle
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                h = torch.cat([h, skips.pop()], dim=1)         # (B,C_i+skip,H,W)
                h = level.layer(i, h, time_emb, context)       # (B,C_i,H,W)
            if level.upsamplers is not None:
                h = level.upsamplers[0](h)                     # (B,C_i,2H,2W)
        return self.conv_out(layers.activated(self.conv_norm_out, h))      # (B,out_channels,H,W)


def skip_channels(config: UNetConfig) -> list[int]:
    """Channels of every feature map that goes across, in the order in which they are made."""
    widths, found = config.block_channels, [config.block_channels[0]]
    for i, width in enumerate(widths):
        found += [width] * (config.layers_per_block + (i < len(widths) - 1))
    return found


class Level(nn.Module):
    """The residual blocks and transformers of one resolution, on the way down or up. Released files name it a block."""

    def __init__(self, config: UNetConfig, i: int, inputs: list[int], down: bool = False, up: bool = False):
        super().__init__()
        width, depth = config.block_channels[i], config.depth[i]
        self.resnets = nn.ModuleList([layers.ResBlock(n, width, config.time_emb_dim) for n in inputs])
        self.attentions = nn.ModuleList([spatial_transformer(config, i, depth) for _ in inputs]) if depth else None
        self.downsamplers = nn.ModuleList([layers.Downsample(width)]) if down else None
        self.upsamplers = nn.ModuleList([layers.Upsample(width)]) if up else None

    def layer(self, i: int, h: Tensor, time_emb: Tensor, context: Tensor | None) -> Tensor:
        h = self.resnets[i](h, time_emb)                       # (B,C,H,W)
        return h if self.attentions is None else self.attentions[i](h, context)


class Middle(nn.Module):
    """The lowest resolution: residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        width = config.block_channels[-1]
        self.resnets = nn.ModuleList([layers.ResBlock(width, width, config.time_emb_dim) for _ in range(2)])
        last = len(config.block_channels) - 1
        depth = config.mid_depth
        self.attentions = nn.ModuleList([spatial_transformer(config, last, depth)]) if depth else None

    def forward(self, h: Tensor, time_emb: Tensor, context: Tensor | None) -> Tensor:
        h = self.resnets[0](h, time_emb)
        if self.attentions is not None:
            h = self.attentions[0](h, context)
        return self.resnets[1](h, time_emb)                    # (B,C,H,W)


def spatial_transformer(config: UNetConfig, i: int, depth: int) -> nn.Module:
    width, heads = config.block_channels[i], config.heads[i]
    return attention.SpatialTransformer(width, config.context_dim, heads, width // heads, depth, config.linear_proj)
