"""The names in CompVis' single files (SD 1.x, 2.x, SDXL, ControlNet), as functions of ours.

Theirs are numbers of list entries: `input_blocks.4.1` is the second thing in the fifth entry on the way down. We go
through our own names and compute where each tensor lies in the file, so that nothing can be left out silently.
"""

import re

import torch
from torch import Tensor

from course.errors import CheckpointError

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ENDS = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0", "conv_out": "out.2", "controlnet_mid_block": "middle_block_out.0"}
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
            "self_attn.out_proj": "attn.out_proj"}


def unet_name(name: str, layers_per_block: int, with_attention: list[bool]) -> str:
    """Our name of a U-Net's or ControlNet's tensor -> theirs, without the prefix of the file.

    Args:
        with_attention: for each level of the way up, are there transformers (the upsampler stands behind them)?
    """
    path, leaf = name.rsplit(".", 1)
    if path in ENDS:
        return f"{ENDS[path]}.{leaf}"
    if hint := re.fullmatch(r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d+))", path):
        place = {"conv_in": 0, "conv_out": 14}.get(hint[1], 2 + 2 * int(hint[2] or 0))  # a SiLU lies between two
        return f"input_hint_block.{place}.{leaf}"
    if zero := re.fullmatch(r"controlnet_down_blocks\.(\d+)", path):
        return f"zero_convs.{zero[1]}.0.{leaf}"
    if middle := re.match(r"mid_block\.((?:resnets|attentions)\.\d)\.", name):
        return f"middle_block.{MIDDLE[middle[1]]}.{_inside(name[middle.end():])}"
    level = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name)
    way, i, kind, j = level[1], int(level[2]), level[3], int(level[4])
    rest = _inside(name[level.end():])
    if way == "down":
        entry = 1 + i * (layers_per_block + 1)                 # the first entry is conv_in; one more a level halves it
        if kind == "downsamplers":
            return f"input_blocks.{entry + layers_per_block}.0.op.{leaf}"
        return f"input_blocks.{entry + j}.{0 if kind == 'resnets' else 1}.{rest}"
    entry = i * (layers_per_block + 1)
    if kind == "upsamplers":
        return f"output_blocks.{entry + layers_per_block}.{2 if with_attention[i] else 1}.conv.{leaf}"
    return f"output_blocks.{entry + j}.{0 if kind == 'resnets' else 1}.{rest}"


def _inside(rest: str) -> str:
    """Within a residual block; transformers have the same names on both sides."""
    part, _, leaf = rest.rpartition(".")
    return f"{RESNET[part]}.{leaf}" if part in RESNET else rest


def vae_name(name: str, levels: int) -> str:
    """Our name of an autoencoder's tensor -> theirs; their decoder counts its levels from the picture's end."""
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"down_blocks\.(\d+)\.(?:resnets|(attentions))", lambda m: f"down.{m[1]}.{'attn' if m[2] else 'block'}", name)
    name = re.sub(r"up_blocks\.(\d+)\.(?:resnets|(attentions))",
                  lambda m: f"up.{levels - 1 - int(m[1])}.{'attn' if m[2] else 'block'}", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    if ".attn" in name:
        for ours, theirs in ATTENTION.items():
            name = re.sub(rf"\.{re.escape(ours)}\.(weight|bias)$", rf".{theirs}.\1", name)
    return name


def unet(tensors: dict[str, Tensor], module, prefix: str = "model.diffusion_model.") -> dict[str, Tensor]:
    """The tensors of `module` (a UNet or a ControlNet) under our names; what is not in the file is left out."""
    c = module.config
    with_attention = [bool(depth) for depth in c.depth[::-1]]
    return _pick(tensors, {n: prefix + unet_name(n, c.layers_per_block, with_attention) for n in module.state_dict()})


def vae(tensors: dict[str, Tensor], module, prefix: str = "first_stage_model.") -> dict[str, Tensor]:
    """The tensors of an autoencoder under our names; their attention is made of 1x1 convolutions."""
    levels = len(module.config.block_channels)
    found = _pick(tensors, {n: prefix + vae_name(n, levels) for n in module.state_dict()})
    return {n: t.flatten(1) if ".attentions." in n and t.ndim == 4 else t for n, t in found.items()}


def clip(tensors: dict[str, Tensor], module, prefix: str = "cond_stage_model.transformer.") -> dict[str, Tensor]:
    """A CLIP text encoder: our names are theirs, behind a prefix."""
    return _pick(tensors, {n: prefix + n for n in module.state_dict()})


def openclip(tensors: dict[str, Tensor], module, prefix: str = "conditioner.embedders.1.model.") -> dict[str, Tensor]:
    """An OpenCLIP text encoder: q, k and v in one matrix, and the projection the other way round."""
    found = {}
    for name in module.state_dict():
        if name == "text_projection.weight":
            theirs, change = "text_projection", lambda t: t.T.contiguous()
        elif name.endswith("token_embedding.weight"):
            theirs, change = "token_embedding.weight", None
        elif name.endswith("position_embedding.weight"):
            theirs, change = "positional_embedding", None
        elif "final_layer_norm" in name:
            theirs, change = name.replace("text_model.final_layer_norm", "ln_final"), None
        else:
            _, _, _, i, part, leaf = re.match(r"(text_model)\.(encoder)\.(layers)\.(\d+)\.(.+)\.(weight|bias)$", name).groups()
            block = f"transformer.resblocks.{i}"
            if part in OPENCLIP:
                theirs, change = f"{block}.{OPENCLIP[part]}.{leaf}", None
            else:
                third = ("q_proj", "k_proj", "v_proj").index(part.split(".")[1])
                theirs, change = f"{block}.attn.in_proj_{leaf}", lambda t, third=third: t.chunk(3)[third].contiguous()
        if prefix + theirs in tensors:
            tensor = tensors[prefix + theirs]
            found[name] = change(tensor) if change else tensor
    return found


def average(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same file with the U-Net's weights replaced by their running average, where the file has one."""
    names = {f"model_ema.{n.removeprefix('model.').replace('.', '')}": n for n in tensors
             if n.startswith("model.diffusion_model.")}
    averaged = {names[ema]: tensors[ema] for ema in names if ema in tensors}
    if averaged and len(averaged) != len(names):
        raise CheckpointError(f"the file has a running average of {len(averaged)} of its {len(names)} U-Net tensors")
    return tensors | {n: t.to(torch.float32) for n, t in averaged.items()}


def _pick(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}
