"""Exercise 2: the encoder, from levels to moments."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch02.answers import Encoder
from course.vae import VAEConfig

ENCODER = Exercise("vae.Encoder", points=4, minutes=20, reference=Encoder)
SMALL = VAEConfig(latent_channels=2, block_channels=(32, 64), layers_per_block=1, stem=2, mid_attention=False)
CONFIGS = (SMALL,
           VAEConfig(latent_channels=3, block_channels=(64, 32, 32), layers_per_block=2, level_attention=(False, False, True)))


@torch.no_grad()
def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Weights of which none is zero, so that no branch hides."""
    for i, p in enumerate(module.parameters()):
        p.copy_(0.2 * normal(p.shape, seed + i) + (1 if p.ndim == 1 else 0))
    return module


def _pair(fn, config: VAEConfig, seed: int = 20):
    """The student's encoder with the random weights of the course's."""
    ours, theirs = randomise(Encoder(config), seed), fn(config)
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


@ENCODER.gate("Encoder(config)(x): (B,3,H,W) -> (B,2c,H/f,W/f), mean and log-variance")
def _(fn):
    for config in CONFIGS:
        encoder, f = fn(config), config.factor
        if not isinstance(encoder, nn.Module):
            return f"expected a torch module, got {type(encoder).__name__}: class Encoder(nn.Module)"
        out = encoder(normal((2, 3, 2 * f, 3 * f), 1))
        if isinstance(out, Tensor) and tuple(out.shape) == (2, config.latent_channels, 2, 3):
            return f"the result has c = {config.latent_channels} channels: 2c are needed, a mean and a log-variance each"
        if isinstance(out, Tensor) and tuple(out.shape) == (2, config.encoder_channels, 1, 1):
            return "H and W are halved once too often: the last level has down=False"
        if problem := tensor_like(out, (2, config.encoder_channels, 2, 3)):
            return f"block_channels {config.block_channels}, stem {config.stem}: {problem}"


@ENCODER.property("the names and shapes of its weights are those of the released files")
def _(fn):
    for config in CONFIGS:
        right = {k: tuple(v.shape) for k, v in Encoder(config).state_dict().items()}
        have = {k: tuple(v.shape) for k, v in fn(config).state_dict().items()}
        title = f"block_channels {config.block_channels}, {config.layers_per_block} a level"
        if missing := [k for k in right if k not in have]:
            return f"{title}: {missing[0]} is missing: a released file brings it under this name"
        if more := [k for k in have if k not in right]:
            why = {"down": ": the last level has down=False", "atte": ": attention only where the config asks for it"}
            part = more[0].split(".")[2 if more[0].startswith("down_blocks") else 1]
            return f"{title}: {more[0]} is in no released file{why.get(part[:4], '')}"
        if wrong := [k for k in right if right[k] != have[k]]:
            return f"{title}: {wrong[0]} should have shape {right[wrong[0]]}, has {have[wrong[0]]}"


@ENCODER.property("equals the course's encoder with the same weights")
def _(fn):
    for config in CONFIGS:
        theirs, ours = _pair(fn, config)
        x = normal((2, 3, 2 * config.factor, 2 * config.factor), 2)
        with torch.no_grad():
            if problem := compare(theirs(x), ours(x), _variants(ours, x), rtol=1e-3):
                return f"block_channels {config.block_channels}: {problem}"


@ENCODER.property("conv_norm_out is layers.group_norm(channels, 1e-6)")
def _(fn):
    norm = fn(SMALL).conv_norm_out
    if getattr(norm, "num_groups", 16) != 16:
        return f"conv_norm_out of 64 channels has {norm.num_groups} groups, expected 16: use layers.group_norm"
    if abs(getattr(norm, "eps", 1e-6) - 1e-6) > 1e-9:
        return f"conv_norm_out has eps {norm.eps:g}: the autoencoder's norms have 1e-6, the U-Net's 1e-5"


@ENCODER.property("a gradient reaches the picture and every weight")
def _(fn):
    encoder, x = randomise(fn(SMALL), 30), normal((1, 3, 8, 8), 4).requires_grad_()
    encoder(x).square().sum().backward()
    given = {"x": x} | dict(encoder.named_parameters())
    missing = [name for name, p in given.items() if p.grad is None or not p.grad.any()]
    return f"no gradient reaches {', '.join(missing[:3])}" if missing else None


@ENCODER.hygiene("leaves its input as it was")
def _(fn):
    return touched(fn(SMALL), normal((1, 3, 8, 8), 5))


def _variants(e: Encoder, x: Tensor) -> dict[str, Tensor]:
    """What likely bugs make of the course's encoder."""
    h = e.conv_in(e.stem(x))
    for level in e.down_blocks:
        h = level(h)
    middle = e.mid_block(h)

    def end(h):
        return e.conv_out(F.silu(e.conv_norm_out(h)))
    return {
        "mid_block is not applied": end(h),
        "there is no SiLU between conv_norm_out and conv_out": e.conv_out(e.conv_norm_out(middle)),
        "conv_norm_out is not applied": e.conv_out(F.silu(middle)),
        "SiLU stands in front of conv_norm_out: norm, then SiLU, then the convolution":
            e.conv_out(e.conv_norm_out(F.silu(middle))),
        "ReLU instead of SiLU": e.conv_out(F.relu(e.conv_norm_out(middle))),
        "the input of mid_block is added again: it has its own shortcut": end(middle + h),
    }
