"""Every model of the course as a frozen config, by name, with what to expect of it beside it.

`build(name)` makes the bare module on the current default device (`with torch.device("meta")` costs no memory);
`PIPELINES` says which parts make a text-to-image model, and how it is sampled.
"""

from dataclasses import asdict, dataclass, replace

from torch import nn

from course import controlnet, text, unet, vae, vq
from course import schedule as schedules
from course.errors import UsageError


@dataclass(frozen=True)
class ScheduleConfig:
    """Arguments of schedule.NoiseSchedule; the defaults are Stable Diffusion's."""

    num_steps: int = 1000
    kind: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    final_alpha_cumprod: float = 1.0
    zero_terminal_snr: bool = False

    def build(self) -> "schedules.NoiseSchedule":
        return schedules.NoiseSchedule(**asdict(self))


@dataclass(frozen=True)
class PipelineConfig:
    """A text-to-image model: its parts, what it predicts, and how it is sampled unless the caller says otherwise."""

    unet: unet.UNetConfig
    vae: vae.VAEConfig | vq.VQConfig | None   # None: diffusion in pixel space
    text: text.TextConfig
    schedule: ScheduleConfig
    image_size: int
    predict: str = "eps"                      # see objectives.TARGETS
    guidance_scale: float = 7.5
    spacing: str = "leading"                  # see schedule.NoiseSchedule.timesteps
    offset: int = 1
    clip_x0: float | None = None
    text_2: text.TextConfig | None = None     # SDXL's second text encoder: see sdxl
    zero_empty_prompt: bool = False           # SDXL: no negative prompt is zeros, not the text ""
    steps: int | None = None                  # for which a distilled model was made; None: the more, the better
    vae_float32: bool = False                 # SDXL: the autoencoder overflows in float16, so it stays in float32

    @classmethod
    def from_dict(cls, d: dict) -> "PipelineConfig":
        return cls(**d | {
            "unet": unet.UNetConfig(**_tuples(d["unet"])),
            "vae": vae_from_dict(d["vae"]) if d["vae"] else None,
            "text": text.TextConfig(**d["text"]),
            "text_2": text.TextConfig(**d["text_2"]) if d.get("text_2") else None,
            "schedule": ScheduleConfig(**d["schedule"]),
        })


def vae_from_dict(d: dict) -> "vae.VAEConfig | vq.VQConfig":
    return (vq.VQConfig if "num_codes" in d else vae.VAEConfig)(**_tuples(d))


def controlnet_from_dict(d: dict) -> "controlnet.ControlNetConfig":
    return controlnet.ControlNetConfig(unet.UNetConfig(**_tuples(d["unet"])), tuple(d["hint_channels"]))


def _tuples(section: dict) -> dict:
    """JSON has lists where the dataclasses have tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


UNETS = {
    # Stable Diffusion 1.5: 859,520,964 parameters; to inpaint it also reads a mask and what is left: 859,535,364
    "sd15": unet.UNetConfig(),
    "sd15-inpaint": unet.UNetConfig(in_channels=9),
    # Stable Diffusion 2.1: heads of 64 numbers, another text encoder: 865,910,724
    "sd21": unet.UNetConfig(heads=(5, 10, 20, 20), context_dim=1024, linear_proj=True),
    # SDXL: three levels, most transformers at the lowest: 2,567,463,684, and the refiner, 2,259,526,660
    "sdxl-base": unet.UNetConfig(block_channels=(320, 640, 1280), depth=(0, 2, 10), mid_depth=10, heads=(5, 10, 20),
                                 context_dim=2048, linear_proj=True, added_dim=2816),
    "sdxl-refiner": unet.UNetConfig(block_channels=(384, 768, 1536, 1536), depth=(0, 4, 4, 0), mid_depth=4,
                                    heads=(6, 12, 24, 24), context_dim=1280, linear_proj=True, added_dim=2560),
    # the demo's denoisers; parameters within 5 % of each other: `course demo` prints both
    "demo-latent": unet.UNetConfig(block_channels=(64, 64), layers_per_block=1, depth=(1, 1), heads=(2, 2),
                                   context_dim=128),
    "demo-pixel": unet.UNetConfig(in_channels=3, out_channels=3, block_channels=(32, 32, 64, 64), layers_per_block=1,
                                  depth=(0, 0, 1, 1), mid_depth=0, heads=(1, 1, 2, 2), context_dim=128),
    # the model that comes with the course: one to three objects, 64 x 64
    "scenes64": unet.UNetConfig(in_channels=8, out_channels=8, block_channels=(96, 96), layers_per_block=1, depth=(1, 1),
                                heads=(3, 3), context_dim=128),
    # SDXL in small, on scenes64's latents: two text encoders side by side, most attention at the lowest level, told of sizes
    "scenes64-xl": unet.UNetConfig(in_channels=8, out_channels=8, block_channels=(64, 64), layers_per_block=1, depth=(1, 2),
                                   mid_depth=2, heads=(2, 2), context_dim=96 + 128, linear_proj=True,
                                   added_dim=128 + 6 * 32, size_embedding_dim=32),
    # its refiner reads the second text encoder, and a score in place of the target's height and width
    "scenes64-xl-refiner": unet.UNetConfig(in_channels=8, out_channels=8, block_channels=(64, 64), layers_per_block=1,
                                           depth=(1, 1), heads=(2, 2), context_dim=128, linear_proj=True,
                                           added_dim=128 + 5 * 32, size_embedding_dim=32),
    # the demo's, grown for a GPU; not measured on a GPU
    "demo-latent-gpu": unet.UNetConfig(block_channels=(192, 320), depth=(1, 1), heads=(6, 10), context_dim=128),
    "demo-pixel-gpu": unet.UNetConfig(in_channels=3, out_channels=3, block_channels=(64, 128, 192, 320),
                                      depth=(0, 0, 1, 1), heads=(2, 4, 6, 10), context_dim=128),
}


def _f8(**options):
    return vq.VQConfig(latent_channels=4, block_channels=(128, 256, 256, 512),
                       level_attention=(False, False, False, True), **options)


def _f16(kind, **options):
    return kind(block_channels=(128, 128, 256, 256, 512), level_attention=(False,) * 4 + (True,), **options)


def _f32(kind, **options):
    return kind(block_channels=(128, 128, 256, 256, 512, 512), level_attention=(False,) * 4 + (True, True), **options)


VAES = {
    # Stable Diffusion's autoencoder, f = 8: 83,653,863 parameters; SDXL's is the same, trained again
    "vae-sd": vae.VAEConfig(),
    "vae-sdxl": vae.VAEConfig(scaling_factor=0.13025),
    # the first stages of Rombach et al. 2022, table 8: f and the regulariser (PSNR in dB on ImageNet behind each)
    "kl-f2": vae.VAEConfig(latent_channels=2, block_channels=(128, 256)),                                    # 32.47
    "kl-f4": vae.VAEConfig(latent_channels=3, block_channels=(128, 256, 512)),                               # 27.53
    "kl-f8": vae.VAEConfig(latent_channels=4),                                                               # 24.19
    "kl-f16": _f16(vae.VAEConfig, latent_channels=16),                                                       # 24.08
    "kl-f16-c8": _f16(vae.VAEConfig, latent_channels=8),                                                     # 21.94
    "kl-f32": _f32(vae.VAEConfig, latent_channels=64),                                                       # 22.27
    "kl-f32-c16": _f32(vae.VAEConfig, latent_channels=16),                                                   # 20.38
    "vq-f2": vq.VQConfig(latent_channels=2, block_channels=(128, 256), num_codes=2048),                      # 30.85
    "vq-f4": vq.VQConfig(),                                                                                  # 27.43
    "vq-f4-noattn": vq.VQConfig(mid_attention=False),                                                        # 25.21
    "vq-f8": _f8(num_codes=16_384),                                                                          # 23.07
    "vq-f8-n256": _f8(num_codes=256),                                                                        # 22.35
    "vq-f16": _f16(vq.VQConfig, latent_channels=8, num_codes=16_384),                                        # 20.83
    "vq-f32": _f32(vq.VQConfig, latent_channels=16, num_codes=16_384),                                       # 17.45
    # the demo's, f = 8: the first factor of four is a pixel-unshuffle, which costs nothing
    "demo-vae": vae.VAEConfig(block_channels=(32, 64), layers_per_block=1, stem=4, mid_attention=False),
    # the same with a codebook: 64 words of 10 bits for a picture, dead ones moved to where they are needed
    "demo-vq": vq.VQConfig(latent_channels=4, block_channels=(32, 64), layers_per_block=1, stem=4, mid_attention=False,
                           num_codes=1024, ema_decay=0.99, restart_below=0.01),
    # several small objects: eight channels lose fewer of them than four do (CONTRIBUTING.md has the trial)
    "scenes64-vae": vae.VAEConfig(latent_channels=8, block_channels=(64, 128), layers_per_block=1, stem=4, mid_attention=False),
    "demo-vae-gpu": vae.VAEConfig(block_channels=(64, 128, 256), layers_per_block=2, stem=2),
}

TEXTS = {
    # CLIP ViT-L/14's text half: 123,060,480 parameters
    "clip-l": text.TextConfig(),
    # OpenCLIP ViT-H/14, as Stable Diffusion 2.x reads it: the last of its 24 layers is left out
    "openclip-h": text.TextConfig(width=1024, layers=23, heads=16, activation="gelu"),
    # OpenCLIP ViT-bigG/14: 694,659,840; SDXL reads the last layer but one, and the pooled vector
    "openclip-bigg": text.TextConfig(width=1280, layers=32, heads=20, activation="gelu", skip=1, projection=1280),
    # the demo's, trained jointly with the U-Net
    "demo-text": text.TextConfig(vocab_size=1024, length=16, width=128, layers=2, heads=4, activation="gelu"),
    # long enough for three objects
    "scenes64-text": text.TextConfig(vocab_size=1024, length=32, width=128, layers=3, heads=4, activation="gelu"),
    # SDXL in small: two that differ, both read at the last layer but one; the second gives the pooled vector
    "scenes64-xl-text": text.TextConfig(vocab_size=1024, length=16, width=96, layers=3, heads=3, skip=1),
    "scenes64-xl-text-2": text.TextConfig(vocab_size=1024, length=16, width=128, layers=3, heads=4, activation="gelu", skip=1,
                                          projection=128),
}

CONTROLNETS = {
    # 361,279,120 and 1,251,014,160 parameters
    "controlnet-sd15": controlnet.ControlNetConfig(UNETS["sd15"]),
    "controlnet-sdxl": controlnet.ControlNetConfig(UNETS["sdxl-base"]),
}


def _demo(size: str) -> dict[str, PipelineConfig]:
    """The two arms of the demo: one U-Net code, each with the schedule that suits what it diffuses."""
    latent = PipelineConfig(UNETS[f"demo-latent{size}"], VAES[f"demo-vae{size}"], TEXTS["demo-text"], ScheduleConfig(),
                            image_size=64, predict="v", guidance_scale=1.5, spacing="trailing", offset=0)
    # pixels: a schedule that leaves more of the picture for longer, and estimates clamped to the range of a picture
    pixel = PipelineConfig(UNETS[f"demo-pixel{size}"], None, TEXTS["demo-text"], ScheduleConfig(kind="cosine"),
                           image_size=64, predict="v", guidance_scale=1.5, spacing="trailing", offset=0, clip_x0=1.0)
    return {f"demo-latent{size}": latent, f"demo-pixel{size}": pixel}


# one object, 64 x 64 pixels, 8 x 8 x 4 latents: 48 times fewer values
PIPELINES = _demo("") | _demo("-gpu")
PIPELINES["demo-vq"] = replace(PIPELINES["demo-latent"], vae=VAES["demo-vq"])
PIPELINES["scenes64"] = replace(PIPELINES["demo-latent"], unet=UNETS["scenes64"], vae=VAES["scenes64-vae"],
                                text=TEXTS["scenes64-text"])
PIPELINES["scenes64-xl"] = replace(PIPELINES["scenes64"], unet=UNETS["scenes64-xl"], text=TEXTS["scenes64-xl-text"],
                                   text_2=TEXTS["scenes64-xl-text-2"], zero_empty_prompt=True)
PIPELINES["scenes64-xl-refiner"] = replace(PIPELINES["scenes64-xl"], unet=UNETS["scenes64-xl-refiner"],
                                           text=TEXTS["scenes64-xl-text-2"], text_2=None)
# real pictures with real words: the demo's networks, with a longer memory for text
PIPELINES["emoji"] = replace(PIPELINES["demo-latent"], text=TEXTS["scenes64-text"])
# beside scenes64, small: the demo's pixel model, with the longer captions
PIPELINES["scenes64-pixel"] = replace(PIPELINES["demo-pixel"], text=TEXTS["scenes64-text"])


def build(name: str) -> nn.Module:
    """The module of a preset, freshly initialised. Raises UsageError for an unknown name."""
    if name in UNETS:
        return unet.UNet(UNETS[name])
    if name in VAES:
        return autoencoder(VAES[name])
    if name in TEXTS:
        return text.TextEncoder(TEXTS[name])
    if name in CONTROLNETS:
        return controlnet.ControlNet(CONTROLNETS[name])
    raise UsageError(f"unknown preset {name!r}, expected one of {', '.join([*UNETS, *VAES, *TEXTS, *CONTROLNETS])}")


def autoencoder(config: "vae.VAEConfig | vq.VQConfig") -> nn.Module:
    """The autoencoder of a config: one with a codebook has a number of codes."""
    return vq.VQAutoencoder(config) if hasattr(config, "num_codes") else vae.AutoencoderKL(config)
