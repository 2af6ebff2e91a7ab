"""LoRA: teach a trained network something new by a change of low rank, and leave the network itself alone.

    y = W x + alpha / r  B A x            A (r,in), B (out,r), r << in, out              Hu et al. 2021, eq. 3

B starts at zero, so nothing changes before training. Instead of in * out numbers r * (in + out) are trained and kept, and
once trained they can be added to W, so that nothing is slower (their section 4.1; the article's 8.2, which forgets to freeze W).
For a convolution A is one with as large a kernel and r channels, and B one of 1 x 1.

    inject(pipe.unet, rank=4)             # every layer named in TARGETS gets an adapter; all other weights are frozen
    ...                                   # train what `requires_grad`
    save(pipe.modules(), "mine.safetensors")
    load(pipe.modules(), "mine.safetensors", name="mine", weight=0.8)
"""

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from course import files
from course import published as released
from course.errors import ShapeError, UsageError

# what is adapted by default: the four matrices of every attention, in the U-Net and in the text encoder
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
# ... and, where something is to be drawn that was never seen, the convolutions and the layers behind every attention, too
BROAD = (*TARGETS, "conv1", "conv2", "proj_in", "proj_out", "net.0.proj", "net.2", "fc1", "fc2")


class Adapter(nn.Module):
    """alpha / r B A, beside one layer; forward(x) -> what is added to the layer's answer."""

    def __init__(self, down: nn.Module, up: nn.Module, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.down, self.up = down, up                          # A, B
        self.dropout = nn.Dropout(dropout)
        self.scale, self.weight = alpha / rank, 1.0            # weight: how much of it the user wants
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.scale * self.up(self.down(self.dropout(x)))

    def delta(self) -> Tensor:
        """What this adapter amounts to as a change of W, of the shape of W."""
        A, B = self.down.weight, self.up.weight                                         # (r,in,...), (out,r,...)
        return self.weight * self.scale * (B.flatten(1) @ A.flatten(1)).reshape(len(B), *A.shape[1:])


class LoRALayer(nn.Module):
    """A frozen layer, `base`, and adapters beside it by name; as long as they are merged, W holds their change.

    forward(x) -> what the layer would answer with W + the sum of all adapters' changes.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.before: Tensor | None = None                      # W without the change, while merged

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.before is None:
            for adapter in self.adapters.values():
                y = y + adapter(x)
        return y

    def add(self, name: str, rank: int, alpha: float, dropout: float = 0.0) -> Adapter:
        check(rank, alpha, name, self)
        adapter = Adapter(*self.thin(rank), rank, float(alpha), dropout).to(self.base.weight)
        self.adapters[name] = adapter
        return adapter

    def merge(self) -> None:
        if self.before is None:
            self.before = self.base.weight.detach().clone()    # W + D - D is not W in floating point, so W is kept
            with torch.no_grad():
                self.base.weight += sum(adapter.delta() for adapter in self.adapters.values())

    def unmerge(self) -> None:
        if self.before is not None:
            with torch.no_grad():
                self.base.weight.copy_(self.before)
            self.before = None

    def __getattr__(self, name: str):
        """in_features and the like are the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class LoRALinear(LoRALayer):
    """A linear layer with an adapter; (...,in) -> (...,out)."""

    def __init__(self, linear: nn.Linear, rank: int = 4, alpha: float = 1.0, dropout: float = 0.0, name: str = "default"):
        super().__init__(linear)
        self.add(name, rank, alpha, dropout)

    def thin(self, rank: int) -> tuple[nn.Module, nn.Module]:
        return (nn.Linear(self.base.in_features, rank, bias=False), nn.Linear(rank, self.base.out_features, bias=False))


class LoRAConv2d(LoRALayer):
    """A convolution with an adapter; (B,in,H,W) -> (B,out,H',W')."""

    def __init__(self, conv: nn.Conv2d, rank: int = 4, alpha: float = 1.0, dropout: float = 0.0, name: str = "default"):
        super().__init__(conv)
        if conv.groups != 1:
            raise ShapeError(f"a convolution of one group expected, got {conv.groups}")
        self.add(name, rank, alpha, dropout)

    def thin(self, rank: int) -> tuple[nn.Module, nn.Module]:
        c = self.base
        return (nn.Conv2d(c.in_channels, rank, c.kernel_size, c.stride, c.padding, c.dilation, bias=False),
                nn.Conv2d(rank, c.out_channels, 1, bias=False))


def inject(model: nn.Module, rank: int = 4, alpha: float | None = None, targets: tuple[str, ...] = TARGETS,
           dropout: float = 0.0, name: str = "default") -> list[nn.Parameter]:
    """Freeze `model`, put an adapter beside every layer whose path ends in one of `targets`; returns what is to be trained.

    Args:
        rank: r.  alpha: None takes r, so that the factor alpha / r is 1.  dropout: of the adapters' input, in training.
        name: of the adapter; a model can hold several.

    Raises UsageError for a rank below 1, an alpha that is no number, a name that is taken, and targets that match nothing.
    """
    alpha = rank if alpha is None else alpha
    check(rank, alpha, name)
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout must lie in 0 ... 1, 1 excluded, got {dropout}")
    paths = [path for path, layer in layers(model) if any(path == t or path.endswith(f".{t}") for t in targets)]
    if not paths:
        raise UsageError(f"no layer is called {', '.join(targets)} in this {type(model).__name__}")
    for path in paths:                                         # all or none
        check(rank, alpha, name, model.get_submodule(path))
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for path in paths:
        trained += adapt(model, path, rank, alpha, dropout, name).requires_grad_(True).parameters()
    return trained


def adapt(model: nn.Module, path: str, rank: int, alpha: float, dropout: float = 0.0, name: str = "default") -> Adapter:
    """Put one adapter beside the layer at `path`."""
    layer = model.get_submodule(path)
    if not hasattr(layer, "adapters"):
        kind = LoRALinear if layer.weight.ndim == 2 else LoRAConv2d
        _replace(model, path, kind(layer, rank, alpha, dropout, name))
        return model.get_submodule(path).adapters[name]
    return layer.add(name, rank, alpha, dropout)


def layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, layer) of all that can have an adapter or has one: linear layers and convolutions."""
    found = [(path, m) for path, m in model.named_modules() if hasattr(m, "adapters") or type(m) in (nn.Linear, nn.Conv2d)]
    inside = tuple(f"{path}." for path, m in found if hasattr(m, "adapters"))
    return [(path, m) for path, m in found if not path.startswith(inside)]


def adapted(model: nn.Module) -> list[tuple[str, LoRALayer]]:
    """(path, layer) of all that has adapters."""
    return [(path, layer) for path, layer in layers(model) if hasattr(layer, "adapters")]


def merge(model: nn.Module) -> None:
    """Add every adapter's change to its layer's W: the same answers at the base's cost, until `unmerge`."""
    for _, layer in adapted(model):
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, to the bit."""
    for _, layer in adapted(model):
        layer.unmerge()


def remove(model: nn.Module, name: str | None = None) -> None:
    """Take away the adapter called `name`, or all; a layer without any is the layer it was, to the bit."""
    if name is not None and not any(name in layer.adapters for _, layer in adapted(model)):
        raise UsageError(f"no adapter is called {name!r}")
    for path, layer in adapted(model):
        layer.unmerge()
        if name in layer.adapters:
            del layer.adapters[name]
        if name is None or not layer.adapters:
            _replace(model, path, layer.base)


def weigh(model: nn.Module, weights: dict[str, float]) -> None:
    """How much of each adapter is wanted: 0 none, 1 all. Raises UsageError for a name that is not there."""
    there = {name for _, layer in adapted(model) for name in layer.adapters}
    for name, weight in weights.items():
        if name not in there or not math.isfinite(weight):
            raise UsageError(f"expected a finite weight for one of {', '.join(sorted(there)) or 'no adapter'}, "
                             f"got {name!r}: {weight}")
    for _, layer in adapted(model):
        was_merged = layer.before is not None
        layer.unmerge()
        for name in weights.keys() & layer.adapters.keys():
            layer.adapters[name].weight = float(weights[name])
        if was_merged:
            layer.merge()


def save(modules: dict[str, nn.Module], path: str | Path, name: str = "default") -> None:
    """Write one adapter of {"unet": ..., "text_encoder": ...} in the form that PEFT and diffusers read.

    The factor alpha / r is multiplied into B: who does not look for an alpha, too, gets the same pictures.
    """
    tensors = {}
    for part, module in modules.items():
        for place, layer in adapted(module):
            if name in layer.adapters:
                adapter = layer.adapters[name]
                tensors[f"{part}.{place}.lora_A.weight"] = adapter.down.weight
                tensors[f"{part}.{place}.lora_B.weight"] = adapter.scale * adapter.up.weight
    if not tensors:
        raise UsageError(f"no adapter is called {name!r}: there is nothing to save")
    files.save_tensors(path, tensors, {"adapter": name})


def load(modules: nn.Module | dict[str, nn.Module], path: str | Path, name: str = "default", weight: float = 1.0) -> None:
    """Put the adapters of a kohya, PEFT or diffusers file beside the layers they were made for.

    Args:
        modules: a U-Net, or parts by name, as `pipe.modules()`.  weight: how much of it.

    Raises CheckpointError where the file was made for another model, UsageError where `name` is taken.
    """
    modules = modules if isinstance(modules, dict) else {"unet": modules}
    found = released.load_lora(path, {part: bare(module) for part, module in modules.items()})
    for part, places in found.items():
        for place in places:
            check(1, 1.0, name, modules[part].get_submodule(place))
    for part, places in found.items():
        for place, thin in places.items():
            adapter = adapt(modules[part], place, len(thin.down), thin.alpha, name=name)
            with torch.no_grad():
                adapter.down.weight.copy_(thin.down.reshape(adapter.down.weight.shape))
                adapter.up.weight.copy_(thin.up.reshape(adapter.up.weight.shape))
            adapter.requires_grad_(False)
            adapter.weight = float(weight)


def bare(module: nn.Module) -> nn.Module:
    """A shadow of `module` without adapters, on the meta device: what a file's names are compared with."""
    if not adapted(module):
        return module
    shadow = copy.deepcopy(module).to("meta")
    remove(shadow)
    return shadow


def check(rank: int, alpha: float, name: str = "default", layer: nn.Module | None = None) -> None:
    """Raises UsageError for what cannot be an adapter's, and for a name that `layer` has already."""
    if not isinstance(rank, int) or rank < 1:
        raise UsageError(f"the rank must be a whole number, at least 1, got {rank}")
    if not math.isfinite(alpha):
        raise UsageError(f"alpha must be a finite number, got {alpha}")
    if "." in name or not name:
        raise UsageError(f"an adapter's name must not be empty or have a dot in it, got {name!r}")
    if layer is not None and name in getattr(layer, "adapters", {}):
        raise UsageError(f"there is an adapter called {name!r} already; choose another name, or remove that one")


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
