"""A whole released text-to-image model: which parts it has, and how it wants to be sampled."""

from dataclasses import replace
from pathlib import Path

from course import presets, published
from course.errors import CheckpointError
from course.published import configs, weights

# pipelines of diffusers that are this course's, and the guidance they start from
GUIDANCE = {"StableDiffusionPipeline": 7.5, "StableDiffusionImg2ImgPipeline": 7.5, "StableDiffusionInpaintPipeline": 7.5,
            "StableDiffusionXLPipeline": 5.0, "StableDiffusionXLImg2ImgPipeline": 5.0}


def read(source: str | Path, tokenizer_source: str | Path | None = None) -> dict:
    """Arguments of pipeline.StableDiffusion, from a folder that diffusers saved or from a single file."""
    source = Path(source)
    return _folder(source, tokenizer_source) if source.is_dir() else _file(source, tokenizer_source)


def _folder(folder: Path, tokenizer_source) -> dict:
    index = configs.read(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in GUIDANCE:
        raise CheckpointError(f"{folder} holds a {kind}; known here are {', '.join(GUIDANCE)}")

    def has(part: str) -> bool:
        return (index.get(part) or [None])[0] is not None and (folder / part).is_dir()

    xl = "XL" in kind
    denoiser = published.load_unet(folder / "unet")
    autoencoder = published.load_vae(folder / ("vqvae" if has("vqvae") else "vae"))
    encoders = [published.load_text_encoder(folder / part, skip=int(xl))
                for part in ("text_encoder", "text_encoder_2") if has(part)]
    tokens = [published.load_tokenizer(tokenizer_source or folder / part)
              for part in ("tokenizer", "tokenizer_2") if has(part)]
    if not encoders or len(encoders) != len(tokens):
        raise CheckpointError(f"{folder} has {len(encoders)} text encoders and {len(tokens)} tokenizers; expected as many, "
                              "one or two")
    side = configs.read(folder / "unet" / "config.json").get("sample_size") or 64
    config = presets.PipelineConfig(
        denoiser.config, autoencoder.config, encoders[0].config, image_size=side * autoencoder.config.factor,
        guidance_scale=GUIDANCE[kind], text_2=encoders[1].config if len(encoders) > 1 else None,
        zero_empty_prompt=xl and index.get("force_zeros_for_empty_prompt", True),
        vae_float32=xl and has("vae") and configs.read(folder / "vae" / "config.json").get("force_upcast", True),
        **configs.schedule_options(configs.read(folder / "scheduler" / "scheduler_config.json")))
    return _parts(config, denoiser, autoencoder, encoders, tokens, f"{kind}, a folder that diffusers saved")


def _file(path: Path, tokenizer_source) -> dict:
    if tokenizer_source is None:
        raise CheckpointError(f"{path} has no vocabulary in it: name a released tokenizer folder, or CLIP's merges, "
                              "as tokenizer_source")
    tensors = weights.read(path)
    preset = configs.unet_preset(tensors, "model.diffusion_model.")
    denoiser, autoencoder = published.load_unet(path), published.load_vae(path)
    whose = {"sdxl-base": ["clip-l", "openclip-bigg"], "sdxl-refiner": ["openclip-bigg"], "sd21": ["openclip-h"]}
    xl = preset.startswith("sdxl")
    encoders = [published.load_text_encoder(path, name, skip=int(xl)) for name in whose.get(preset, ["clip-l"])]
    tokens = [published.load_tokenizer(tokenizer_source) for _ in encoders]
    if preset != "sdxl-base" and preset in whose:
        tokens[0].fill_with("!")                               # OpenCLIP pads with token 0
    elif preset == "sdxl-base":
        tokens[1].fill_with("!")
    schedule = presets.ScheduleConfig()
    config = presets.PipelineConfig(
        denoiser.config, autoencoder.config, encoders[0].config,
        replace(schedule, final_alpha_cumprod=float(schedule.build().alphas_cumprod[0])),
        image_size={"sd21": 768, "sdxl-base": 1024, "sdxl-refiner": 1024}.get(preset, 512),
        predict="v" if preset == "sd21" else "eps", guidance_scale=5.0 if xl else 7.5,
        text_2=encoders[1].config if len(encoders) > 1 else None, zero_empty_prompt=preset == "sdxl-base", vae_float32=xl)
    averaged = ", the running average of its weights" if any(n.startswith("model_ema.") for n in tensors) else ""
    return _parts(config, denoiser, autoencoder, encoders, tokens, f"{preset}, a single file in CompVis' names{averaged}")


def _parts(config, denoiser, autoencoder, encoders: list, tokens: list, origin: str) -> dict:
    second = {"tokens_2": tokens[1], "text_encoder_2": encoders[1]} if len(encoders) > 1 else {}
    return {"config": config, "tokens": tokens[0], "denoiser": denoiser, "text_encoder": encoders[0],
            "autoencoder": autoencoder, "origin": origin} | second
