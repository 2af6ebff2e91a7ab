"""Swap any part of the library for your own, everywhere at once.

    with parts.swapped({"attention.CrossAttention": Mine}):
        pipe = StableDiffusion.load("runs/demo")

works because every file that composes parts says `from course import attention` and looks `attention.CrossAttention` up
when it builds. A pipeline remembers the mapping it was built under and re-enters it when it generates, so that parts
that are used at run time (samplers, guidance, the timestep embedding) are swapped too. `from_notebooks` collects the parts
that a student wrote.
"""

import importlib
from contextlib import contextmanager

from course.errors import UsageError

PARTS = (
    "schedule.NoiseSchedule",
    "objectives.training_target", "objectives.min_snr_weight", "objectives.diffusion_loss", "objectives.flow_matching_loss",
    "layers.timestep_embedding", "layers.group_norm", "layers.TimestepEmbedding", "layers.ResBlock",
    "layers.Downsample", "layers.Upsample",
    "attention.attend", "attention.CrossAttention", "attention.GEGLU", "attention.FeedForward",
    "attention.BasicTransformerBlock", "attention.SpatialTransformer",
    "unet.UNet",
    "vae.DiagonalGaussian", "vae.Encoder", "vae.Decoder", "vae.AutoencoderKL",
    "vq.VectorQuantizer", "vq.VQAutoencoder",
    "tokenizer.Tokenizer",
    "text.TextEncoder",
    "samplers.ddim", "samplers.ddpm", "samplers.euler", "samplers.heun", "samplers.dpmpp_2m", "samplers.unipc",
    "guidance.classifier_free_guidance",
    "controlnet.HintNet", "controlnet.ControlNet",
    "lora.LoRALinear", "lora.LoRAConv2d",
)

_active: dict[str, object] = {}


def active() -> dict[str, object]:
    """The swaps in force now: part name -> replacement."""
    return dict(_active)


@contextmanager
def swapped(mapping: dict[str, object]):
    """Replace the named parts until the block ends; blocks may nest. Raises UsageError for a name that is no part."""
    unknown = sorted(set(mapping) - set(PARTS))
    if unknown:
        raise UsageError(f"no such part: {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    before = {name: getattr(*_place(name)) for name in mapping}
    active_before = dict(_active)
    try:
        for name, replacement in mapping.items():
            setattr(*_place(name), replacement)
        _active.update(mapping)
        yield
    finally:
        for name, original in before.items():
            setattr(*_place(name), original)
        _active.clear()
        _active.update(active_before)


def _place(name: str):
    module, attribute = name.split(".")
    return importlib.import_module(f"course.{module}"), attribute


def from_notebooks(folder) -> dict[str, object]:
    """A student's own parts, collected from the notebooks in `folder`: see `classroom.collect`."""
    from course.classroom import collect  # the one import that points up, and only when asked
    return collect.from_notebooks(folder)
