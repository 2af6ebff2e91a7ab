"""Every model of the course as a frozen config, by name, with what to expect of it beside it.

`build(name)` makes the bare module on the current default device (`with torch.device("meta")` costs no memory);
`PIPELINES` says which parts make a text-to-image model, and how it is sampled.
"""

from dataclasses import asdict, dataclass

from torch import nn

from course import schedule as schedules
from course import text, unet, vae
from course.errors import UsageError


@dataclass(frozen=True)
class ScheduleConfig:
    """Arguments of schedule.NoiseSchedule; the defaults are Stable Diffusion's."""

    num_steps: int = 1000
    kind: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    final_alpha_cumprod: float = 1.0

    def build(self) -> "schedules.NoiseSchedule":
        return schedules.NoiseSchedule(**asdict(self))


@dataclass(frozen=True)
class PipelineConfig:
    """A text-to-image model: its parts, what it predicts, and how it is sampled unless the caller says otherwise."""

    unet: unet.UNetConfig
    vae: vae.VAEConfig | None                 # None: diffusion in pixel space
    text: text.TextConfig
    schedule: ScheduleConfig
    image_size: int
    predict: str = "eps"                      # see objectives.TARGETS
    guidance_scale: float = 7.5
    spacing: str = "leading"                  # see schedule.NoiseSchedule.timesteps
    offset: int = 1
    clip_x0: float | None = None

    @classmethod
    def from_dict(cls, d: dict) -> "PipelineConfig":
        def tuples(section: dict) -> dict:    # JSON has lists where the dataclasses have tuples
            return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}
        return cls(**d | {
            "unet": unet.UNetConfig(**tuples(d["unet"])),
            "vae": vae.VAEConfig(**tuples(d["vae"])) if d["vae"] else None,
            "text": text.TextConfig(**d["text"]),
            "schedule": ScheduleConfig(**d["schedule"]),
        })


UNETS = {
    # Stable Diffusion 1.5: 859,520,964 parameters
    "sd15": unet.UNetConfig(),
    # the demo's denoisers; parameters within 5 % of each other: `course demo` prints both
    "demo-latent": unet.UNetConfig(block_channels=(64, 128), layers_per_block=1, depth=(0, 1), heads=(2, 4),
                                   context_dim=128),
    "demo-pixel": unet.UNetConfig(in_channels=3, out_channels=3, block_channels=(32, 32, 64, 128), layers_per_block=1,
                                  depth=(0, 0, 0, 1), heads=(1, 1, 2, 4), context_dim=128),
    # the same, grown for a GPU; not measured on a GPU
    "demo-latent-gpu": unet.UNetConfig(block_channels=(192, 320), depth=(1, 1), heads=(6, 10), context_dim=128),
    "demo-pixel-gpu": unet.UNetConfig(in_channels=3, out_channels=3, block_channels=(64, 128, 192, 320),
                                      depth=(0, 0, 1, 1), heads=(2, 4, 6, 10), context_dim=128),
}

VAES = {
    # Stable Diffusion's autoencoder, f = 8: 83,653,863 parameters
    "vae-sd": vae.VAEConfig(),
    # the demo's, f = 8: the first factor of four is a pixel-unshuffle, which costs nothing
    "demo-vae": vae.VAEConfig(block_channels=(32, 64), layers_per_block=1, stem=4, mid_attention=False),
    "demo-vae-gpu": vae.VAEConfig(block_channels=(64, 128, 256), layers_per_block=2, stem=2),
}

TEXTS = {
    # CLIP ViT-L/14's text half: 123,060,480 parameters
    "clip-l": text.TextConfig(),
    # the demo's, trained jointly with the U-Net
    "demo-text": text.TextConfig(vocab_size=1024, length=16, width=128, layers=2, heads=4, activation="gelu"),
}



def _demo(size: str) -> dict[str, PipelineConfig]:
    """The two arms of the demo: one U-Net code, each with the schedule that suits what it diffuses."""
    latent = PipelineConfig(UNETS[f"demo-latent{size}"], VAES[f"demo-vae{size}"], TEXTS["demo-text"], ScheduleConfig(),
                            image_size=64, predict="v", guidance_scale=3.0, spacing="trailing", offset=0)
    # pixels: a schedule that leaves more of the picture for longer, and estimates clamped to the range of a picture
    pixel = PipelineConfig(UNETS[f"demo-pixel{size}"], None, TEXTS["demo-text"], ScheduleConfig(kind="cosine"),
                           image_size=64, predict="v", guidance_scale=3.0, spacing="trailing", offset=0, clip_x0=1.0)
    return {f"demo-latent{size}": latent, f"demo-pixel{size}": pixel}


# one object, 64 x 64 pixels, 8 x 8 x 4 latents: 48 times fewer values
PIPELINES = _demo("") | _demo("-gpu")


def build(name: str) -> nn.Module:
    """The module of a preset, freshly initialised. Raises UsageError for an unknown name."""
    if name in UNETS:
        return unet.UNet(UNETS[name])
    if name in VAES:
        return vae.AutoencoderKL(VAES[name])
    if name in TEXTS:
        return text.TextEncoder(TEXTS[name])
    raise UsageError(f"unknown preset {name!r}, expected one of {', '.join([*UNETS, *VAES, *TEXTS])}")
