"""Released checkpoints: diffusers folders, CompVis single files, ControlNets, LoRAs, into the classes of this course.

Files in diffusers' format need no map, because our modules have its names; others go through `compvis` and `lora`.
"""

from dataclasses import replace
from pathlib import Path

from torch import nn

from course import controlnet, files, presets, text, tokenizer, unet
from course.errors import CheckpointError
from course.published import compvis, configs, lora, weights
from course.published.lora import LoRAWeights

__all__ = ["LoRAWeights", "load_controlnet", "load_lora", "load_text_encoder", "load_tokenizer", "load_unet", "load_vae"]

# preset, how its names are found, where it lies in a single file, and how its tensors begin there
TEXT_PLACES = (
    ("clip-l", compvis.clip, "cond_stage_model.transformer.", "text_model."),                    # SD 1.x
    ("openclip-h", compvis.openclip, "cond_stage_model.model.", "transformer."),                 # SD 2.x
    ("clip-l", compvis.clip, "conditioner.embedders.0.transformer.", "text_model."),             # SDXL, the first
    ("openclip-bigg", compvis.openclip, "conditioner.embedders.1.model.", "transformer."),       # SDXL, the second
    ("openclip-bigg", compvis.openclip, "conditioner.embedders.0.model.", "transformer."),       # SDXL's refiner
    ("clip-l", compvis.clip, "", "text_model."),                                                 # a text encoder alone
)


def load_unet(source: str | Path, preset: str | None = None, prefer_average: bool = True) -> nn.Module:
    """A U-Net from diffusers' `unet/` folder, or from a single file as CompVis released SD 1.x, 2.x and SDXL.

    Args:
        preset: which U-Net to expect; None: what the file itself says.
        prefer_average: take the running average of the weights where a single file has both.
    """
    source = Path(source)
    if source.is_dir():
        config = configs.unet_config(configs.read(source / "config.json"))
        return _filled(unet.UNet(presets.UNETS[preset] if preset else config), weights.read(source), source)
    tensors = weights.read(source)
    if "conv_in.weight" in tensors:                            # diffusers' file without its folder
        return _filled(presets.build(preset or "sd15"), tensors, source)
    tensors = compvis.average(tensors) if prefer_average else tensors
    found = configs.unet_preset(tensors, "model.diffusion_model.")
    module = presets.build(preset or found)
    return _filled(module, compvis.unet(tensors, module), source)


def load_vae(source: str | Path, preset: str | None = None) -> nn.Module:
    """An autoencoder, KL or VQ: diffusers' `vae/` or `vqvae/` folder, a whole single file, or an autoencoder alone."""
    source = Path(source)
    if source.is_dir():
        config = configs.vae_config(configs.read(source / "config.json"))
        return _filled(presets.autoencoder(presets.VAES[preset] if preset else config), _modern(weights.read(source)), source)
    tensors = weights.read(source)
    whole_sdxl = any(n.startswith("conditioner.") for n in tensors)
    module = presets.build(preset or ("vae-sdxl" if whole_sdxl else "vae-sd"))
    if "encoder.down_blocks.0.resnets.0.norm1.weight" in tensors:
        return _filled(module, _modern(tensors), source)
    prefix = "first_stage_model." if any(n.startswith("first_stage_model.") for n in tensors) else ""
    return _filled(module, compvis.vae(tensors, module, prefix), source)


def load_text_encoder(source: str | Path, preset: str | None = None, skip: int = 0) -> nn.Module:
    """A text encoder: a `text_encoder/` folder, or out of a single file (`preset` says which: SDXL holds two).

    `skip`: how many of the last layers are not read; SDXL reads both of its encoders with 1.
    """
    source = Path(source)
    if source.is_dir():
        config = configs.text_config(configs.read(source / "config.json"), skip)
        tensors = {n: t for n, t in weights.read(source).items() if not n.endswith("position_ids")}
        if any(n.startswith("vision_model.") for n in tensors):                         # a whole CLIP: its text half
            tensors = {n: t for n, t in tensors.items() if n.startswith("text_model.")}
        tensors = {n if n.startswith(("text_model.", "text_projection.")) else f"text_model.{n}": t for n, t in tensors.items()}
        return _filled(text.TextEncoder(config), tensors, source)
    tensors = weights.read(source)
    for name, pick, prefix, first in TEXT_PLACES:
        if preset in (None, name) and any(n.startswith(prefix + first) for n in tensors):
            config = presets.TEXTS[name]
            module = text.TextEncoder(replace(config, skip=skip or config.skip))
            return _filled(module, pick(tensors, module, prefix), source)
    raise CheckpointError(f"no text encoder{f' {preset}' if preset else ''} in {source}")


def load_tokenizer(source: str | Path) -> "tokenizer.Tokenizer":
    """CLIP's tokenizer from a released `tokenizer/` folder, or from a merges file (.txt or .txt.gz). None is shipped."""
    return tokenizer.Tokenizer.from_released(source)


def load_controlnet(source: str | Path, preset: str = "controlnet-sd15") -> nn.Module:
    """A ControlNet: a diffusers folder, or the authors' .pth and .safetensors, with or without the SD model around it."""
    source = Path(source)
    if source.is_dir():
        config = configs.controlnet_config(configs.read(source / "config.json"))
        return _filled(controlnet.ControlNet(config), weights.read(source), source)
    tensors, module = weights.read(source), presets.build(preset)
    if "controlnet_mid_block.weight" in tensors:
        return _filled(module, tensors, source)
    prefix = "control_model." if any(n.startswith("control_model.") for n in tensors) else ""
    return _filled(module, compvis.unet(tensors, module, prefix), source)


def load_lora(source: str | Path, modules: dict[str, nn.Module]) -> dict[str, dict[str, LoRAWeights]]:
    """Which of `modules` (`pipe.modules()`) a LoRA file changes, and how: see `lora.read`."""
    return lora.read(source, modules)


def _filled(module: nn.Module, tensors: dict, source: Path) -> nn.Module:
    cause = configs.likely_cause(module.config, tensors) if hasattr(getattr(module, "config", None), "context_dim") else ""
    files.load_into(module, tensors, str(source), cause)
    return module.eval()


def _modern(tensors: dict) -> dict:
    """Older diffusers named the autoencoder's attention query, key, value and proj_attn."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    out = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if len(parts) > 1 and parts[-2] in names and ".attentions." in name:
            name = ".".join([*parts[:-2], names[parts[-2]], parts[-1]])
        out[name] = tensor.flatten(1) if ".attentions." in name and tensor.ndim == 4 else tensor
    return out
