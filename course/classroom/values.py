"""Values on their way between two processes: what stands for each in JSON, and how it is found again.

Numbers, strings, lists, dicts and tensors go by value, under a key, so that a thing that comes back is recognised; modules go as
mirrors; everything else goes by number, and is a `Thing` over there. Nothing that comes is executed, and what is malformed
ends the run (`wire.Interrupted`).
"""

import contextlib
import dataclasses
import importlib
import itertools

import numpy as np
import torch
from torch import Tensor, nn

from course.classroom import mirrors
from course.classroom.changes import equal, refill, snapshot
from course.classroom.wire import DTYPES, Interrupted, Reader, put

NESTING = 24                               # lists inside lists
METHODS = ("__call__", "__iter__", "__next__", "__len__", "__getitem__", "__contains__", "__float__", "__int__", "__bool__",
           "__enter__", "__exit__")


class Thing:
    """An object of the other side; what it can do was told when it came."""

    def __init__(self, bridge, number: int):
        self.__dict__["_bridge"], self.__dict__["_number"] = bridge, number

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return self._bridge.ask("get", self._number, name)

    def __setattr__(self, name, value):
        self._bridge.set(self._number, name, value)

    def __delattr__(self, name):
        self._bridge.delete(self._number, name)

    def __deepcopy__(self, memo):
        return self


def _forward(method: str):
    def call(self, *arguments, **options):
        if method == "__exit__":                                # the error of the block, told as any error is
            arguments = [arguments[1] and self._bridge.tell(arguments[1])]
        return self._bridge.call(self._number, arguments, options, method)
    return call


class Values:
    """The half of a bridge that knows all values of both sides."""

    def __init__(self, strict: bool):
        self.strict, self.side = strict, "g" if strict else "s"
        self.counter = itertools.count(1)

    def forget(self) -> None:
        self.objects: dict[int, object] = {}                    # number -> mine, for the other side
        self.numbers: dict[int, int] = {}                       # id(object) -> number
        self.things: dict[int, Thing] = {}                      # number -> theirs, as it looks here
        self.tensors: dict[str, object] = {}                    # key -> tensor, generator, list or dict, of either side
        self.keys: dict[int, str] = {}                          # id(tensor) -> key
        self.mine: set[str] = set()                             # keys of what was made here
        self.kept: list = []                                    # objects whose id is in use
        self.frames: list[dict] = []                            # of each call that runs, the keys of what was handed over
        self.told: dict[str, object] = {}                       # key -> what the other side takes it to be
        self.edited: set[str] = set()                           # keys of theirs that were changed in place here
        self.refused: set[str] = set()                          # keys of mine that are as they were, but changed over there
        self.arguments: set[str] = set()                        # keys of what was handed over as an argument

    def encode(self, value, tensors: list[Tensor], deep: int = 0):
        """What stands for `value` in JSON; its tensors are appended to `tensors`."""
        if deep > NESTING:
            raise ValueError("lists inside lists inside lists")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, (int, float, str)) and not isinstance(value, np.generic) or isinstance(value, np.float64):
            return {int: int, float: float, str: str}[next(k for k in (int, float, str) if isinstance(value, k))](value)
        if isinstance(value, Tensor):
            return self._encode_tensor(value, tensors)
        if isinstance(value, (tuple, list)):
            items = [self.encode(v, tensors, deep + 1) for v in value]
            if type(value) is list:
                return {"list": items, "id": self._container(value)}
            return {"size" if isinstance(value, torch.Size) else "tuple" if isinstance(value, tuple) else "list": items}
        if type(value) is dict:
            pairs = [[self.encode(k, tensors, deep + 1), self.encode(v, tensors, deep + 1)] for k, v in value.items()]
            return {"dict": pairs, "id": self._container(value)}
        if isinstance(value, (set, frozenset)):
            return {"set": [self.encode(v, tensors, deep + 1) for v in value]}
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
            array = torch.from_numpy(np.ascontiguousarray(value)).reshape(np.shape(value))
            return {"array": put(array, tensors), "number": isinstance(value, np.generic)}
        if isinstance(value, torch.Generator):
            return {"generator": self._key(value), "state": put(value.get_state(), tensors)}
        if isinstance(value, (torch.dtype, torch.device)):
            return {"dtype" if isinstance(value, torch.dtype) else "device": str(value).removeprefix("torch.")}
        if isinstance(value, slice):
            return {"slice": [self.encode(v, tensors, deep + 1) for v in (value.start, value.stop, value.step)]}
        if value is Ellipsis or value is NotImplemented:
            return {"constant": str(value)}
        if isinstance(value, Thing) and value._bridge is self:
            return {"yours": value._number}
        if isinstance(value, nn.Module):
            return self.modules.encode(value, tensors)
        return self._encode_object(value, tensors)

    def _encode_object(self, value, tensors):
        number = self.number(value)
        can = [m for m in METHODS if _can(value, m)]
        found = {"object": number, "can": can, "name": type(value).__name__[:80]}
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__module__.startswith("course."):
            found["fields"] = [[f.name, self.encode(getattr(value, f.name), tensors, 4)] for f in dataclasses.fields(value)]
            found["class"] = [type(value).__module__, type(value).__qualname__]
        return found

    def decode(self, code, reader: Reader, deep: int = 0):
        """The value for what came. Raises Interrupted for anything that `encode` does not make."""
        if deep > NESTING:
            raise Interrupted("killed", "lists inside lists")
        if code is None or isinstance(code, (bool, int, float, str)):
            return code
        try:
            if "tensor" in code:
                return self._decode_tensor(code, reader)
            if "tuple" in code:
                return tuple(self.decode(v, reader, deep + 1) for v in code["tuple"])
            if "size" in code:
                return torch.Size(code["size"])
            if "list" in code:
                return self._contained([self.decode(v, reader, deep + 1) for v in code["list"]], code.get("id"))
            if "dict" in code:
                found = {self.decode(k, reader, deep + 1): self.decode(v, reader, deep + 1) for k, v in code["dict"]}
                return self._contained(found, code.get("id"))
            if "set" in code:
                return {self.decode(v, reader, deep + 1) for v in code["set"]}
            if "array" in code:
                array = reader.take(code["array"]).numpy()
                return array.reshape(-1)[0] if code["number"] is True else array
            if "generator" in code:
                return self._decode_generator(code, reader)
            if "dtype" in code:
                return getattr(torch, code["dtype"]) if code["dtype"] in DTYPES else torch.float32
            if "device" in code:
                return torch.device("cpu")
            if "slice" in code:
                return slice(*(self.decode(v, reader, deep + 1) for v in code["slice"]))
            if "constant" in code:
                return Ellipsis if code["constant"] == "Ellipsis" else NotImplemented
            if "yours" in code:
                return self.objects[code["yours"]]
            if "module" in code:
                return self.modules.decode(code, reader)
            if "object" in code:
                return self._decode_object(code, reader)
        except Interrupted:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise Interrupted("killed", f"a value that is none ({type(error).__name__})") from None
        raise Interrupted("killed", "a value that is none")

    def _decode_object(self, code, reader):
        number = code["object"]
        fields = [(k, self.decode(v, reader, 4)) for k, v in code.get("fields", [])]
        if fields and not self.strict:                          # a config of the course, where the class is at hand
            with contextlib.suppress(ImportError, AttributeError, TypeError):
                kind = getattr(importlib.import_module(code["class"][0]), code["class"][1])
                made = kind(**dict(fields))
                self.numbers[id(made)] = number
                self.kept.append(made)
                return made
        if number not in self.things:
            kind = type(str(code["name"]), (Thing,), {m: _forward(m) for m in METHODS if m in code["can"]})
            self.things[number] = kind(self, int(number))
        return self.things[number]

    def number(self, value) -> int:
        """The number under which the other side knows an object of this one."""
        if id(value) not in self.numbers:
            number = 2 * next(self.counter) + self.strict
            self.objects[number], self.numbers[id(value)] = value, number
            self.kept.append(value)
        return self.numbers[id(value)]

    # ---- tensors

    def _key(self, thing) -> str:
        if id(thing) not in self.keys:
            key = f"{self.side}{next(self.counter)}"
            self.keys[id(thing)], self.tensors[key] = key, thing
            self.mine.add(key)
        return self.keys[id(thing)]

    def _encode_tensor(self, value: Tensor, tensors):
        if type(value) not in (Tensor, nn.Parameter):           # a subclass is worth its numbers, nothing more
            value = value.detach().as_subclass(Tensor)
        key = self.keys.get(id(value))
        if key is not None and not self._worked_on(key, value):
            self._watch(key, value)
            return {"tensor": key}
        if key is not None:                                     # it comes back as another tensor than the one that came
            del self.keys[id(value)]
        key = self._key(value)
        self._watch(key, value)
        leaf, twin = value.is_leaf, self.twin(value)
        self.told[key] = (value.detach().clone(), None, value.requires_grad)    # its .grad is told as a change
        code = {"tensor": key, "like": put(value.detach(), tensors), "grad": value.requires_grad, "leaf": leaf,
                "parameter": type(value) is nn.Parameter, "twin": twin}
        return code

    def _watch(self, key: str, value) -> None:
        """While the call lasts, changes of this in place are told to the other side."""
        self.told.setdefault(key, snapshot(value))
        if self.frames:
            self.frames[-1][key] = None

    def weights(self) -> dict:
        """The keys of all weights of all modules that both sides know."""
        return {self.keys[id(t)]: None for m in self.modules.known.values()
                for parts in (m._parameters, m._buffers, mirrors.loose(m))
                for t in parts.values() if t is not None and id(t) in self.keys}

    def _worked_on(self, key: str, value: Tensor) -> bool:
        """Whether a tensor that came from the other side was changed in place on this one."""
        if key not in self.mine and not equal(value.detach(), self.told[key][0]):
            self.edited.add(key)
        return key in self.edited

    def may_change(self, key: str) -> bool:
        """Whether the other side may change this in place: what is its own, and of what it was lent only arguments."""
        return key not in self.mine or not self.strict or (self.lend_for_change and key in self.arguments)

    def twin(self, value: Tensor):
        """The key of a known tensor with the very same memory: `p.data` is p, said otherwise."""
        for key in {k: None for frame in self.frames for k in frame} | self.weights():
            other = self.tensors[key]
            if isinstance(other, Tensor) and other is not value and other.numel() and other.data_ptr() == value.data_ptr() \
                    and other.shape == value.shape and other.stride() == value.stride():
                return key
        return None

    def _decode_tensor(self, code, reader: Reader):
        key = code["tensor"]
        if "like" not in code:
            value = self.tensors[key]
            if not isinstance(value, Tensor):
                raise TypeError("no tensor")
        else:
            if key in self.tensors or not str(key).startswith("s" if self.strict else "g"):
                raise KeyError(key)
            value = reader.take(code["like"])
            if code["twin"] is not None and isinstance(self.tensors.get(code["twin"]), Tensor):
                value = self.tensors[code["twin"]].detach()
            value = self.graph.take(key, value, code)
            self.tensors[key], self.keys[id(value)] = value, key
        self._watch(key, value)
        return value

    def _decode_generator(self, code, reader):
        key, state = code["generator"], reader.take(code["state"])
        if key not in self.tensors:
            generator = torch.Generator()
            self.tensors[key], self.keys[id(generator)] = generator, key
        generator = self.tensors[key]
        generator.set_state(state)
        self._watch(key, generator)
        return generator

    def _container(self, value) -> str:
        key = self._key(value)
        self._watch(key, value)
        return key

    def _contained(self, value, key):
        if key is None:
            return value
        if key in self.tensors:
            old = self.tensors[key]
            if key in self.mine:                                # what was lent may have come back as something else
                return old if self.may_change(key) else value
            refill(old, value)
            self.told[key] = snapshot(old)
            self._watch(key, old)
            return old
        self.tensors[key], self.keys[id(value)] = value, key
        self._watch(key, value)
        return value


def leaves(values, deep: int = 0):
    """The modules, and the tensors at which a graph begins, in arguments and in lists and dicts among them."""
    for value in values if deep < NESTING else ():
        if isinstance(value, (list, tuple, dict)):
            yield from leaves(value.values() if isinstance(value, dict) else value, deep + 1)
        elif isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.is_leaf and value.requires_grad):
            yield value


def _can(value, method: str) -> bool:
    if method == "__call__":
        return callable(value)
    return not isinstance(value, type) and hasattr(type(value), method)
