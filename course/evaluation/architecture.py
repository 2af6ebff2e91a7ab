"""What a model is made of, found out by running it once: every block's name, class, shapes and parameters, and what reaches it.

Nothing is written down by hand. Hooks see what goes into each block and what comes out; and which skip goes where is seen at
`torch.cat`, which joins two feature maps that blocks have made before. On the meta device tensors have shapes and no values, so
Stable Diffusion's U-Net runs in a moment and needs no memory.

    record = architecture.record("sd15")            # or "scenes64", or a run's folder
    record.parameters("unet")                       # 859520964
"""

from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from course import presets, sdxl, text, unet
from course.errors import UsageError
from course.pipeline import SHIPPED, StableDiffusion

# released models, which run here without their weights
RELEASED = {
    "sd15": presets.PipelineConfig(presets.UNETS["sd15"], presets.VAES["vae-sd"], presets.TEXTS["clip-l"],
                                   presets.ScheduleConfig(), image_size=512),
    "sd21": presets.PipelineConfig(presets.UNETS["sd21"], presets.VAES["vae-sd"], presets.TEXTS["openclip-h"],
                                   presets.ScheduleConfig(), image_size=768, predict="v"),
    "sdxl": presets.PipelineConfig(presets.UNETS["sdxl-base"], presets.VAES["vae-sdxl"], replace(presets.TEXTS["clip-l"], skip=1),
                                   presets.ScheduleConfig(), image_size=1024, guidance_scale=5.0,
                                   text_2=presets.TEXTS["openclip-bigg"], zero_empty_prompt=True, vae_float32=True),
}
OPENED = ("encoder", "decoder", "down_blocks", "mid_block", "up_blocks", "resnets", "attentions", "downsamplers", "upsamplers")
NUMBERED = ("down_blocks", "up_blocks", "resnets", "attentions", "downsamplers", "upsamplers")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """One box of a drawing. Shapes are without the batch: (C,H,W), (N,D) or (D,)."""

    name: str                              # down_blocks.0.resnets.0
    kind: str                              # its class
    input: Shape
    output: Shape
    parameters: int
    reads: tuple[str, ...] = ()            # what it is handed beside the features: "time", "text"


@dataclass(frozen=True)
class Record:
    """A model, and what one run of it showed."""

    model: str
    weights: bool                          # False: only shapes, on the meta device
    networks: dict[str, int]               # unet, text_encoder, text_encoder_2, vae -> parameters
    tensors: dict[str, Shape]              # ids, context, pooled, noise, answer, picture; without the batch
    unet: tuple[Block, ...]                # in the order in which they ran
    vae: tuple[Block, ...]                 # encoder, then decoder; empty for a model in pixel space
    skips: tuple[tuple[str, str], ...]     # (from, to) of the U-Net, as they are used
    vocabulary: int
    guidance: float
    predict: str                           # eps, v or x0

    def parameters(self, network: str) -> int:
        return self.networks[network]

    def to_json(self) -> dict:
        return asdict(self)


def names() -> list[str]:
    """Models that are known by name; any other is a folder or a file."""
    return sorted({*RELEASED, *presets.PIPELINES, *(p.parent.name for p in SHIPPED.glob("*/pipeline.json"))})


def record(source: str | Path) -> Record:
    """Run a model once and write down what it is made of.

    source: one that comes with the course, a run or pipeline folder, a released folder: these are run with their weights; or
        sd15, sd21, sdxl, or a preset such as demo-pixel-gpu, whose shapes alone are run.
    Raises UsageError for an unknown name, CheckpointError for what cannot be opened.
    """
    name = str(source)
    if name not in RELEASED and (Path(name).exists() or (SHIPPED / name / "pipeline.json").is_file()):
        pipe = StableDiffusion.load(name)
        return observe(Path(name).name or name, pipe.config, pipe.modules(), "cpu")
    if name not in RELEASED | presets.PIPELINES:
        raise UsageError(f"unknown model {name!r}, expected a folder, or one of {', '.join(names())}")
    config = (RELEASED | presets.PIPELINES)[name]
    return observe(name, config, built(config), "meta")


def built(config: "presets.PipelineConfig") -> dict[str, nn.Module]:
    """The networks of a pipeline without values."""
    with torch.device("meta"):
        found = {"unet": unet.UNet(config.unet), "text_encoder": text.TextEncoder(config.text),
                 "text_encoder_2": text.TextEncoder(config.text_2) if config.text_2 else None,
                 "vae": presets.autoencoder(config.vae) if config.vae else None}
    return {name: module.eval() for name, module in found.items() if module is not None}


@torch.no_grad()
def observe(name: str, config: "presets.PipelineConfig", networks: dict[str, nn.Module], device: str) -> Record:
    """Text encoders, U-Net and autoencoder, each once, with one picture of the size that the model was made for."""
    denoiser, factor = networks["unet"], config.vae.factor if config.vae else 1
    side = config.image_size // factor
    with torch.device(device):
        x = torch.zeros(1, config.unet.in_channels, side, side)                         # (1,C,h,w)
        ids = torch.zeros(1, config.text.length, dtype=torch.int64)                     # (1,N)
        encoders = [networks[n] for n in ("text_encoder", "text_encoder_2") if n in networks]
        condition = {"context": encoders[0](ids)}                                       # (1,N,D)
        if config.unet.added_dim:
            condition = sdxl.encode(encoders, [ids] * len(encoders))
            sizes = (config.unet.added_dim - condition["text_embeds"].shape[-1]) // config.unet.size_embedding_dim
            condition["time_ids"] = torch.zeros(1, sizes)
        context = condition["context"] if config.unet.context_dim else None
        with watched(denoiser, context) as seen:
            answer = denoiser(x, 500.0, context, sdxl.added(condition))
        tensors = {"ids": ids, "context": condition["context"], "noise": x, "answer": answer}
        if "text_embeds" in condition:
            tensors["pooled"] = condition["text_embeds"]
        autoencoder, tensors["picture"] = [], answer
        if "vae" in networks:
            with watched(networks["vae"]) as seen_vae:
                code = networks["vae"].encode(torch.zeros(1, config.vae.in_channels, *[config.image_size] * 2))
                code = code if isinstance(code, Tensor) else code.mode()                # (1,c,h,w)
                tensors["picture"] = networks["vae"].decode(code)                       # (1,3,H,W)
            autoencoder = seen_vae.blocks
    return Record(name, device != "meta", {n: count(m) for n, m in networks.items()},
                  {n: tuple(t.shape[1:]) for n, t in tensors.items()}, tuple(seen.blocks), tuple(autoencoder), tuple(seen.skips),
                  config.text.vocab_size, config.guidance_scale, config.predict)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- the watching

def blocks_of(module: nn.Module, path: tuple[str, ...] = ()):
    """(name, module) of each block: what remains when the boxes that only hold others are opened. No parameter is in two."""
    for name, child in module.named_children():
        if name in OPENED or path and path[-1] in NUMBERED[:2]:
            yield from blocks_of(child, (*path, name))
        else:
            yield ".".join((*path, name)), child


class Seen(TorchFunctionMode):
    """What was run, in order, and who had made what was joined. Tensors are told apart by identity, so all are kept."""

    def __init__(self):
        super().__init__()
        self.blocks, self.skips = [], []
        self.kept, self.maker, self.joined = [], {}, {}        # every tensor; id -> block's name; id -> ids of its halves

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if function in (torch.cat, torch.concat, torch.concatenate):
            self.kept += [out, *args[0]]
            self.joined[id(out)] = [id(half) for half in args[0]]
        return out

    def add(self, name: str, module: nn.Module, inputs: tuple, out: Tensor, context: Tensor | None) -> None:
        first, *others = (i for i in inputs if isinstance(i, Tensor))
        reads = ["time"] if any(o.ndim == 2 for o in others) else []                    # one vector a picture, not a sequence
        reads += ["text"] if any(o is context for o in others) else []
        self.blocks.append(Block(name, type(module).__name__, tuple(first.shape[1:]), tuple(out.shape[1:]), count(module),
                                 tuple(reads)))
        # the newest map is what came up from below; an older one beside it came across
        _, *across = self.joined.get(id(first), [None])
        self.skips += [(self.maker[half], name) for half in across if half in self.maker]
        self.kept.append(out)
        self.maker[id(out)] = name


@contextmanager
def watched(module: nn.Module, context: Tensor | None = None):
    """Watch the blocks of a network until the `with` ends; what was seen comes from a `Seen`."""
    seen = Seen()

    def hook(name):
        return lambda block, inputs, out: seen.add(name, block, inputs, out[0] if isinstance(out, tuple) else out, context)

    handles = [block.register_forward_hook(hook(name)) for name, block in blocks_of(module)]
    try:
        with seen:
            yield seen
    finally:
        for handle in handles:
            handle.remove()
