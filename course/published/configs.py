"""The sizes of a released model: from the config.json beside it, or, in a single file, from the shapes of its tensors.

A config can ask for things that our classes do not have. That is an error which names them, never a model that is
quietly another.
"""

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from course import controlnet, presets, text, unet, vae, vq
from course.errors import CheckpointError

# options that must have this value, or be absent, for our classes to be the same model
UNET_FIXED = {"act_fn": "silu", "norm_num_groups": 32, "norm_eps": 1e-5, "center_input_sample": False, "flip_sin_to_cos": True,
              "freq_shift": 0, "downsample_padding": 1, "mid_block_scale_factor": 1, "class_embed_type": None,
              "encoder_hid_dim_type": None, "num_class_embeds": None, "resnet_time_scale_shift": "default",
              "time_embedding_type": "positional", "timestep_post_act": None, "time_cond_proj_dim": None,
              "conv_in_kernel": 3, "conv_out_kernel": 3, "dual_cross_attention": False, "only_cross_attention": False,
              "mid_block_type": "UNetMidBlock2DCrossAttn", "resnet_skip_time_act": False, "mid_block_only_cross_attention": None}
VAE_FIXED = {"act_fn": "silu", "norm_num_groups": 32, "in_channels": 3, "out_channels": 3, "norm_type": "group",
             "shift_factor": None, "latents_mean": None, "latents_std": None, "use_quant_conv": True,
             "use_post_quant_conv": True, "lookup_from_codebook": False}
TEXT_FIXED = {"layer_norm_eps": 1e-5, "attention_dropout": 0.0}


def read(path: Path) -> dict:
    """A config.json. Raises CheckpointError where it is missing or no JSON object."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(f"no {path.name} in {path.parent}: is this the folder of a released model?") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, expected an object")
    return config


def unet_config(c: dict) -> "unet.UNetConfig":
    """diffusers' UNet2DConditionModel, or the trunk of its ControlNetModel."""
    _refuse(c, UNET_FIXED, "U-Net")
    widths = tuple(c["block_out_channels"])
    levels = len(widths)
    # "attention_head_dim" is the number of heads, not their width: an old mistake that every released file relies on
    heads = _each(c.get("num_attention_heads") or c["attention_head_dim"], levels)
    blocks = _each(c.get("transformer_layers_per_block", 1), levels)
    depth = tuple(n if "CrossAttn" in kind else 0 for n, kind in zip(blocks, c["down_block_types"], strict=True))
    text_time = c.get("addition_embed_type") == "text_time"
    if c.get("addition_embed_type") not in (None, "text_time"):
        raise CheckpointError(f"addition_embed_type {c['addition_embed_type']!r} is not known here; expected text_time or none")
    _groups(widths)
    return unet.UNetConfig(
        in_channels=c["in_channels"], out_channels=c.get("out_channels", 4), block_channels=widths,
        layers_per_block=c["layers_per_block"], depth=depth, mid_depth=blocks[-1], heads=heads,
        context_dim=c["cross_attention_dim"], linear_proj=bool(c.get("use_linear_projection")),
        added_dim=c["projection_class_embeddings_input_dim"] if text_time else None,
        size_embedding_dim=c.get("addition_time_embed_dim") or 256)


def controlnet_config(c: dict) -> "controlnet.ControlNetConfig":
    if c.get("controlnet_conditioning_channel_order", "rgb") != "rgb":
        raise CheckpointError("this ControlNet reads its hint as BGR; only RGB is known here")
    return controlnet.ControlNetConfig(unet_config(c), tuple(c["conditioning_embedding_out_channels"]))


def vae_config(c: dict) -> "vae.VAEConfig | vq.VQConfig":
    """diffusers' AutoencoderKL or VQModel."""
    _refuse(c, VAE_FIXED, "autoencoder")
    widths = tuple(c["block_out_channels"])
    _groups(widths)
    options = {"latent_channels": c["latent_channels"], "block_channels": widths, "layers_per_block": c["layers_per_block"],
               "mid_attention": c.get("mid_block_add_attention", True), "scaling_factor": c.get("scaling_factor", 0.18215)}
    attention = tuple(kind.startswith("Attn") for kind in c["down_block_types"])
    options |= {"level_attention": attention} if any(attention) else {}
    if "num_vq_embeddings" not in c:
        return vae.VAEConfig(**options)
    if c.get("vq_embed_dim") not in (None, c["latent_channels"]):
        raise CheckpointError(f"codes of width {c['vq_embed_dim']} for {c['latent_channels']} latent channels are not known here")
    return vq.VQConfig(**options, num_codes=c["num_vq_embeddings"])


def text_config(c: dict, skip: int = 0) -> "text.TextConfig":
    """transformers' CLIPTextModel, or CLIPTextModelWithProjection."""
    c = c.get("text_config", c) | {k: c[k] for k in ("architectures",) if k in c}
    _refuse(c, TEXT_FIXED, "text encoder")
    width, vocabulary = c["hidden_size"], c["vocab_size"]
    if c["intermediate_size"] != 4 * width:
        raise CheckpointError(f"an intermediate_size of {c['intermediate_size']} is not known here; expected {4 * width}")
    projected = any("WithProjection" in name for name in c.get("architectures") or [])
    # old configs say 2 and mean "the highest id", which is the end token of CLIP's vocabulary
    end = c.get("eos_token_id", 2)
    return text.TextConfig(vocab_size=vocabulary, length=c["max_position_embeddings"], width=width,
                           layers=c["num_hidden_layers"], heads=c["num_attention_heads"], activation=c["hidden_act"],
                           skip=skip, projection=c["projection_dim"] if projected else None,
                           eos_id=vocabulary - 1 if end == 2 else end)


def schedule_options(c: dict) -> dict:
    """A scheduler_config.json as arguments of presets.PipelineConfig: schedule, predict, spacing, offset."""
    kinds = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
    predictions = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    kind, predict = c.get("beta_schedule", "linear"), c.get("prediction_type", "epsilon")
    if kind not in kinds or predict not in predictions or c.get("trained_betas"):
        raise CheckpointError(f"a scheduler with beta_schedule {kind!r}, prediction_type {predict!r} and its own betas "
                              f"{bool(c.get('trained_betas'))} is not known here")
    config = presets.ScheduleConfig(c.get("num_train_timesteps", 1000), kinds[kind], c.get("beta_start", 1e-4),
                                    c.get("beta_end", 0.02), zero_terminal_snr=bool(c.get("rescale_betas_zero_snr")))
    if c.get("set_alpha_to_one", True) is False:
        config = replace(config, final_alpha_cumprod=float(config.build().alphas_cumprod[0]))
    return {"schedule": config, "predict": predictions[predict], "spacing": c.get("timestep_spacing", "leading"),
            "offset": c.get("steps_offset", 0), "clip_x0": c.get("clip_sample_range", 1.0) if c.get("clip_sample") else None}


def unet_preset(tensors: dict[str, Tensor], prefix: str) -> str:
    """Which released U-Net a single file holds: it follows from the width of the text and the number of channels."""
    first = tensors.get(f"{prefix}input_blocks.0.0.weight")
    if first is None:
        raise CheckpointError(f"no U-Net in the file: no tensor is called {prefix}input_blocks.0.0.weight")
    context = next((t.shape[1] for n, t in tensors.items() if n.startswith(prefix) and n.endswith("attn2.to_k.weight")), None)
    known = {(768, 4): "sd15", (768, 9): "sd15-inpaint", (1024, 4): "sd21", (2048, 4): "sdxl-base", (1280, 4): "sdxl-refiner"}
    if (context, first.shape[1]) not in known:
        raise CheckpointError(f"a U-Net with {first.shape[1]} channels that reads text of width {context} is not known here; "
                              f"known are {', '.join(f'{name} ({c} channels, width {w})' for (w, c), name in known.items())}")
    return known[context, first.shape[1]]


def likely_cause(config: "unet.UNetConfig", tensors: dict[str, Tensor]) -> str:
    """Why a file does not fit a U-Net, where two shapes tell; otherwise nothing."""
    said = []
    context = next((t.shape[1] for n, t in tensors.items() if n.endswith("attn2.to_k.weight")), config.context_dim)
    if context != config.context_dim:
        whose = {768: "an SD 1.x", 1024: "an SD 2.x", 2048: "an SDXL base", 1280: "an SDXL refiner"}.get(context, "another")
        said.append(f"this is {whose} U-Net: context {context}, preset has {config.context_dim}")
    channels = tensors["conv_in.weight"].shape[1] if "conv_in.weight" in tensors else config.in_channels
    if channels != config.in_channels:
        said.append(f"it reads {channels} channels, preset has {config.in_channels}" + (
            ": 9 channels are an inpainting model" if channels == 9 else ""))
    return "; ".join(said)


def _refuse(config: dict, fixed: dict, what: str) -> None:
    other = {k: config[k] for k, value in fixed.items() if k in config and config[k] != value}
    if other:
        shown = ", ".join(f"{k} = {v!r} (expected {fixed[k]!r})" for k, v in other.items())
        raise CheckpointError(f"this {what} has options that are not known here: {shown}")


def _groups(widths: tuple[int, ...]) -> None:
    if min(widths) < 128:
        raise CheckpointError(f"widths {widths} with 32 groups leave fewer than four channels a group; expected at least 128")


def _each(value, levels: int) -> tuple[int, ...]:
    """One number for all levels, or one for each."""
    return (value,) * levels if isinstance(value, int) else tuple(value)
