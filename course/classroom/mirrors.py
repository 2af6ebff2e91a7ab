"""Modules across two processes: a mirror has the names, weights and switches of a module that lives on the other side.

Names and weights are by value and are kept equal in both directions, so that `state_dict`, `load_state_dict`, optimisers,
`train` and `eval` work on a mirror as on any module; its `forward` and its other attributes are asked of the other side. A
mirror of one of torch's own modules is an instance of that class, so that `isinstance(layer, nn.Linear)` holds.
"""

import functools

import torch
from torch import nn

from course.classroom.wire import Interrupted, Reader

CONTAINERS = {"ModuleList": nn.ModuleList, "Sequential": nn.Sequential, "ModuleDict": nn.ModuleDict}
LARGEST = 4000                                                  # modules in one exercise


class Mirror(nn.Module):
    """A module of the other side."""

    def __init__(self, bridge, number: int):
        nn.Module.__init__(self)
        self.__dict__["_bridge"], self.__dict__["_number"] = bridge, number

    def forward(self, *arguments, **options):
        return self._bridge.call(self._number, arguments, options)

    def __getattr__(self, name):
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            if name.startswith("_") or "_bridge" not in self.__dict__:
                raise
        return self._bridge.ask("get", self._number, name)

    def __setattr__(self, name, value):
        told = value is None or isinstance(value, (bool, int, float, str))
        known = "_modules" not in self.__dict__ or name in {**self._parameters, **self._buffers, **self._modules}
        if not told or known or name.startswith("_") or name == "training":
            return nn.Module.__setattr__(self, name, value)
        self._bridge.set(self._number, name, value)

    def __deepcopy__(self, memo):
        return self._bridge.ask("copy", self._number)


def make(bridge, number: int, kind: str, native: str | None) -> nn.Module:
    if native in CONTAINERS:
        base = CONTAINERS[native]
        made = type(kind, (base,), {"__deepcopy__": Mirror.__deepcopy__})()
        made.__dict__["_bridge"], made.__dict__["_number"] = bridge, number
        return made
    torchs = getattr(nn, native, None) if isinstance(native, str) else None
    known = isinstance(torchs, type) and issubclass(torchs, nn.Module) and torchs is not nn.Module
    return type(kind, (Mirror, torchs) if known else (Mirror,), {"__init__": Mirror.__init__})(bridge, number)


class Modules:
    """The modules that both sides know, and what each was last known to be made of."""

    def __init__(self, bridge):
        self.bridge = bridge
        self.known: dict[int, nn.Module] = {}                   # number -> module, whoever owns it
        self.mine: set[int] = set()
        self.shape: dict[int, tuple] = {}                       # number -> (training, parts) last told

    def encode(self, module: nn.Module, tensors) -> dict:
        number = module.__dict__.get("_number") if module.__dict__.get("_bridge") is self.bridge else None
        if number is not None and self.known.get(number) is module:
            return {"yours": number}
        number = self.bridge.number(module)
        if number in self.known:
            return {"module": number}
        native = type(module).__name__ if type(module).__module__.startswith("torch.nn.modules") else None
        self.known[number] = module
        self.mine.add(number)
        parts = self._parts(module)
        code = {"module": number, "kind": type(module).__name__[:80], "native": native, "training": module.training,
                "parts": [[kind, name, self.bridge.encode(value, tensors)] for kind, name, value in parts]}
        self.shape[number] = self._shape(module)
        return code

    def decode(self, code, reader: Reader) -> nn.Module:
        number = code["module"]
        if "kind" not in code:
            return self.known[number]
        if number in self.known or len(self.known) > LARGEST or number in self.bridge.objects:
            raise KeyError(number)
        module = make(self.bridge, int(number), str(code["kind"]), code["native"])
        self.known[number] = module
        for kind, name, value in code["parts"]:
            self._set(module, kind, name, self.bridge.decode(value, reader))
        module.training = code["training"] is True
        self.shape[number] = self._shape(module)
        return module

    def changes(self, changed: dict, tensors) -> None:
        """Append what has changed in any module since the other side was last told."""
        for number, module in list(self.known.items()):
            now, before = self._shape(module), self.shape[number]
            if now != before:
                old = {(kind, name): i for kind, name, i in before[1]}
                new = {(kind, name): i for kind, name, i in now[1]}
                parts = [[kind, name, self.bridge.encode(value, tensors)] for kind, name, value in self._parts(module)
                         if old.get((kind, name)) != new[kind, name]]
                gone = [list(key) for key in old if key not in new]
                self.shape[number] = now
                changed.setdefault("modules", []).append(
                    {"on": number, "training": module.training, "parts": parts, "gone": gone})

    def take(self, changes: list, reader: Reader) -> None:
        for code in changes:
            number = code["on"]
            module = self.known[number]
            lent = number in self.mine and not self.bridge.lend_for_change
            for kind, name, value in code["parts"]:
                value = self.bridge.decode(value, reader)
                if kind == "t" and number in self.mine and name not in {**module._parameters, **module._buffers, **loose(module)}:
                    raise Interrupted("killed", f"a part called {name!r}")      # no other attribute of mine can be set so
                if not lent:
                    self._set(module, kind, name, value)
            self.bridge.refusals += lent and bool(code["parts"] or code["gone"])
            for kind, name in code["gone"]:
                if not lent and (kind != "t" or name in loose(module)):
                    _drawer(module, kind).pop(name, None)
            module.training = code["training"] is True
            self.shape[number] = self._shape(module)

    @staticmethod
    def _parts(module: nn.Module):
        return [("p", n, p) for n, p in module._parameters.items()] + [("b", n, b) for n, b in module._buffers.items()] + \
            [("m", n, m) for n, m in module._modules.items()] + [("t", n, t) for n, t in loose(module).items()]

    def _shape(self, module: nn.Module) -> tuple:
        return module.training, [(kind, name, id(value)) for kind, name, value in self._parts(module)]

    @staticmethod
    def _set(module: nn.Module, kind: str, name, value) -> None:
        if not isinstance(name, str) or name.startswith("_") or "." in name:
            raise Interrupted("killed", f"a part called {name!r}")
        want = {"p": nn.Parameter, "b": torch.Tensor, "m": nn.Module, "t": torch.Tensor}[kind]
        if value is not None and not isinstance(value, want):
            raise Interrupted("killed", f"a {type(value).__name__} for the part {name!r}")
        for parts in (module._parameters, module._buffers, module._modules, *([vars(module)] if name in loose(module) else ())):
            parts.pop(name, None)
        _drawer(module, kind)[name] = value


def loose(module: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that one of torch's layers holds as plain attributes: after `del layer.weight` a sum may take its place."""
    if not _of_torch(type(module)):
        return {}
    return {n: t for n, t in vars(module).items() if isinstance(t, torch.Tensor) and not n.startswith("_")}


@functools.lru_cache(1000)
def _of_torch(kind: type) -> bool:
    return any(k.__module__.startswith("torch.nn.modules") and k is not nn.Module for k in kind.__mro__)


def _drawer(module: nn.Module, kind: str) -> dict:
    """Where a module keeps its parameters, buffers, modules and loose tensors."""
    return {"p": module._parameters, "b": module._buffers, "m": module._modules, "t": vars(module)}[kind]
