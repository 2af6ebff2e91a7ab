"""LoRA files of every dialect -> which of our modules, and the two thin matrices for it.

kohya writes `lora_unet_` and the path with underscores for dots. That cannot be undone (`to_q` has one of its own), so the
map is built the other way: every path of our modules is written as kohya would write it, and looked up.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from course.errors import CheckpointError
from course.published import compvis, weights

KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
# what stands between a module's path and the tensor -> which tensor it is
DOWN = ("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "_lora.down.weight", "lora.down.weight",
        "lora_linear_layer.down.weight")
UP = ("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "_lora.up.weight", "lora.up.weight",
      "lora_linear_layer.up.weight")


@dataclass(frozen=True)
class LoRAWeights:
    """What is added to one linear layer or convolution: alpha / r * up @ down.

    down (r,in) or (r,in,k,k), up (out,r) or (out,r,1,1); alpha is r where the file has none.
    """

    down: Tensor
    up: Tensor
    alpha: float


def read(source: str | Path, modules: dict[str, nn.Module]) -> dict[str, dict[str, LoRAWeights]]:
    """{"unet": {path of a module in our U-Net: LoRAWeights}, "text_encoder": ..., ...}

    Args:
        source: a kohya, PEFT or diffusers (new or old) file.  modules: our parts by those names, e.g. `pipe.modules()`.

    Raises CheckpointError that lists what has no place in `modules`, or does not fit it.
    """
    tensors = weights.read(source)
    if odd := [n for n in tensors if re.search(r"hada_|lokr_|dora_scale|lora_mid|magnitude", n)]:
        raise CheckpointError(f"{source} is no plain LoRA (it has {odd[0]}); LoHa, LoKr, DoRA and Tucker are not known here")
    places = _places(modules)
    found: dict[tuple[str, str], dict] = {}
    strangers = []
    for name, tensor in tensors.items():
        stem, kind = _split(name)
        place = places.get(stem)
        if kind is None or place is None:
            strangers.append(name)
        else:
            found.setdefault(place, {})[kind] = tensor
    if strangers or not found:
        shown = ", ".join(strangers[:6]) + (f" and {len(strangers) - 6} more" if len(strangers) > 6 else "")
        raise CheckpointError(f"{source} does not fit {', '.join(modules)}: no module for {shown or 'anything in it'}")
    out: dict[str, dict[str, LoRAWeights]] = {}
    for (part, path), pair in found.items():
        out.setdefault(part, {})[path] = _checked(f"{source}: {part}.{path}", pair, modules[part].get_submodule(path))
    return out


def _split(name: str) -> tuple[str, str | None]:
    """(what names the module, which of its tensors)."""
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha"), "alpha"
    for kind, endings in (("down", DOWN), ("up", UP)):
        for ending in endings:
            if name.endswith(ending):
                return name.removesuffix(ending).rstrip("."), kind
    return name, None


def _places(modules: dict[str, nn.Module]) -> dict[str, tuple[str, str]]:
    """Every way in which a file may name one of our layers -> (part, path)."""
    places = {}
    for part, root in modules.items():
        for path, module in root.named_modules():
            if not (hasattr(module, "weight") and module.weight is not None and module.weight.ndim in (2, 4)):
                continue
            here = (part, path)
            # transformers 5 has no text_model above its encoder any more, and neither have the files it writes
            for written in {path, path.removeprefix("text_model.")}:
                places[f"{part}.{written}"] = places[f"base_model.model.{written}"] = here
                places[f"{part}.base_model.model.{written}"] = here
            if part == "unet":                                 # old diffusers hung its matrices on a "processor"
                old = re.sub(r"\.(attn[12])\.(to_q|to_k|to_v|to_out)(\.0)?$", r".\1.processor.\2", path)
                places[f"unet.{old}"] = places[old] = here
            for prefix, whose in KOHYA.items():
                if whose == part:
                    places[prefix + path.replace(".", "_")] = here
                    if part == "unet":                         # SDXL files often speak CompVis' names
                        with_attention = [bool(depth) for depth in root.config.depth[::-1]]
                        theirs = compvis.unet_name(f"{path}.weight", root.config.layers_per_block, with_attention)
                        places[prefix + theirs.removesuffix(".weight").replace(".", "_")] = here
    return places


def _checked(name: str, pair: dict, module: nn.Module) -> LoRAWeights:
    if not {"down", "up"} <= set(pair):
        raise CheckpointError(f"{name} has only {', '.join(pair)} in the file; both matrices are needed")
    down, up, weight = pair["down"], pair["up"], module.weight
    rank = down.shape[0]
    if up.shape[1] != rank or up.shape[0] != weight.shape[0] or down.shape[1] != weight.shape[1]:
        raise CheckpointError(f"{name} is ({', '.join(map(str, weight.shape))}), but the file has up {tuple(up.shape)} and down "
                              f"{tuple(down.shape)}: was it made for another model?")
    alpha = float(pair["alpha"]) if "alpha" in pair else float(rank)
    return LoRAWeights(down.float(), up.float(), alpha)
