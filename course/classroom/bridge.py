"""Objects of two processes that do not trust each other: the grader's check calls a student's function that lives elsewhere.

The grader holds a proxy of the student's function and runs the check of the exercise with it, as a notebook does. What crosses:

    numbers, strings, tuples, lists, dicts, tensors   by value
    modules                                           as mirrors (`mirrors.py`): names and weights by value, calls go back
    everything else (functions, recorders, iterators) by number: attributes and calls go back to where the object lives

Values come as JSON and raw tensors (`wire.py`), so nothing that a student sends is executed. Expected values never cross: the
check, its reference and all comparisons stay with the grader. Gradients cross too: a tensor that was computed on the other
side is a node of the graph here, whose backward asks there for the product with the Jacobian (`gradients.py`).

Both sides run this file. The grader's side is `strict`: of its objects only public attributes of the course's and torch's own
classes are shown, and tensors and modules that it lent are changed from outside only where the exercise asks for it.
"""

import builtins
import contextlib
import dataclasses
import importlib
import itertools
import os
import socket
import types

import numpy as np
import torch
from torch import Tensor, nn

from course.classroom import gradients, mirrors
from course.classroom.wire import Channel, Interrupted, Reader, put

DEPTH, NESTING = 40, 24                    # calls inside calls; lists inside lists
METHODS = ("__call__", "__iter__", "__next__", "__len__", "__getitem__", "__contains__", "__float__", "__int__", "__bool__")
ERRORS = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
SHOWN = ("course.", "torch.", "types")      # of these modules' classes the grader shows attributes


class Thing:
    """An object of the other side; what it can do was told when it came."""

    def __init__(self, bridge, number: int):
        self.__dict__["_bridge"], self.__dict__["_number"] = bridge, number

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return self._bridge.ask("get", self._number, name)

    def __setattr__(self, name, value):
        raise AttributeError(f"{name} of an object that was handed in cannot be set")

    def __deepcopy__(self, memo):
        return self


def _forward(method: str):
    def call(self, *arguments, **options):
        return self._bridge.call(self._number, arguments, options, method)
    return call


class Bridge:
    """One end. `strict` is the grader's."""

    def __init__(self, channel: Channel, strict: bool):
        self.channel, self.strict, self.side = channel, strict, "g" if strict else "s"
        self.namespace: dict[str, object] = {}                  # what the other side may ask for by name
        self.counter, self.depth = itertools.count(1), 0
        self.lend_for_change = not strict                       # may the other side change what it was lent?
        self._forget()

    def _forget(self):
        self.objects: dict[int, object] = {}                    # number -> mine, for the other side
        self.numbers: dict[int, int] = {}                       # id(object) -> number
        self.things: dict[int, Thing] = {}                      # number -> theirs, as it looks here
        self.tensors: dict[str, Tensor] = {}                    # key -> tensor, of either side
        self.keys: dict[int, str] = {}                          # id(tensor) -> key
        self.mine: set[str] = set()                             # keys of tensors that were made here
        self.kept: list = []                                    # objects whose id is in use
        self.frames: list[dict] = []                            # of each call that runs, the keys of what was handed over
        self.told: dict[str, object] = {}                       # key -> what the other side takes it to be
        self.edited: set[str] = set()                           # keys of theirs that were changed in place here
        self.arguments: set[str] = set()                        # keys of what was handed over as an argument
        self.modules = mirrors.Modules(self)
        self.graph = gradients.Graph(self)
        self.random = torch.empty(0) if self.strict else torch.get_rng_state()      # as the other side knows it

    # ---- asking

    def named(self, name: str):
        """What the other side calls by this name."""
        return self._request({"do": "named", "name": name}, [])

    def reset(self, lend_for_change: bool | None = None) -> None:
        """Begin anew: both sides forget what was handed over."""
        if lend_for_change is not None:
            self.lend_for_change = lend_for_change
        self._request({"do": "reset"}, [])
        self._forget()

    def call(self, number: int, arguments=(), options=None, method: str = "__call__"):
        with self._frame():
            tensors: list[Tensor] = []
            # leaves and modules first: the graph of a tensor beside them may begin there
            first = [self.encode(v, tensors) for v in _leaves([*arguments, *(options or {}).values()])]
            message = {"do": "call", "on": number, "method": method, "grad": torch.is_grad_enabled(), "first": first,
                       "args": [self.encode(a, tensors) for a in arguments],
                       "options": [[k, self.encode(v, tensors)] for k, v in (options or {}).items()]}
            self.arguments.update(self.frames[-1])
            return self._request(message, tensors)

    def ask(self, what: str, number: int, *given):
        return self._request({"do": what, "on": number, "given": list(given), "grad": torch.is_grad_enabled()}, [])

    def vjp(self, key: str, gradient: Tensor, wanted: list[str], create: bool):
        tensors: list[Tensor] = []
        return self._request({"do": "vjp", "of": key, "with": self.encode(gradient, tensors), "wanted": wanted, "create": create,
                              "grad": True}, tensors)

    def _request(self, message: dict, tensors: list[Tensor]):
        self._send(message, tensors)
        while True:
            reply, reader = self._receive()
            if "do" not in reply:
                break
            self._answer(reply, reader)
        if "error" in reply:
            self._synchronise(reply, reader)
            raise self._error(reply["error"])
        value = self.decode(reply.get("value"), reader)
        self._synchronise(reply, reader)
        return value

    @contextlib.contextmanager
    def _frame(self):
        if self.depth >= DEPTH:
            raise Interrupted("killed", "calls inside calls inside calls")
        self.depth += 1
        self.frames.append({})
        try:
            yield
        finally:
            self.frames.pop()
            self.depth -= 1

    # ---- answering

    def serve(self) -> None:
        """Answer until the other side closes."""
        while True:
            try:
                message, reader = self._receive()
            except Interrupted:
                return
            self._answer(message, reader)

    def _answer(self, message: dict, reader: Reader) -> None:
        reply, tensors = {}, []
        with self._frame():
            try:
                reply["value"] = self.encode(self._do(message, reader), tensors)
            except Interrupted:
                raise
            except BaseException as error:                      # noqa: B902 - whatever an answer raises is told, not raised here
                reply, tensors = {"error": self._told(error)}, []
            self._send(reply, tensors)
        if message.get("do") == "reset":
            self._forget()

    def _do(self, message: dict, reader: Reader):
        what = message.get("do")
        if what == "reset":
            return None
        if what == "named":
            return self.namespace[message["name"]]
        if what == "vjp":
            gradient = self.decode(message["with"], reader)
            self._synchronise(message, reader)
            return self.graph.product(message["of"], gradient, message["wanted"], message["create"] is True)
        try:
            target = self.objects[message["on"]]
        except (KeyError, TypeError):
            raise Interrupted("killed", "an object that was never handed out") from None
        if what == "call":
            for leaf in message["first"]:
                self.decode(leaf, reader)
            arguments = [self.decode(a, reader) for a in message["args"]]
            options = {str(k): self.decode(v, reader) for k, v in message["options"]}
            self._synchronise(message, reader)
            method = message["method"]
            if method not in METHODS:
                raise Interrupted("killed", f"a call of {method!r}")
            with torch.set_grad_enabled(message["grad"] is True):
                return target(*arguments, **options) if method == "__call__" else _special(target, method, arguments)
        self._synchronise(message, reader)
        with torch.set_grad_enabled(message["grad"] is True):
            if what == "get":
                return self._get(target, *message["given"])
            if what == "copy" and isinstance(target, nn.Module):
                import copy
                return copy.deepcopy(target)
        raise Interrupted("killed", f"a request for {what!r}")

    def _get(self, target, name):
        if not isinstance(name, str) or name.startswith("_"):
            raise AttributeError(f"{name} is not shown")
        if self.strict and not _shown(target, name):
            raise AttributeError(f"{type(target).__name__!r} object has no attribute {name!r}")
        value = getattr(target, name)
        if self.strict and isinstance(value, (type, types.ModuleType)):
            raise AttributeError(f"{name} is not shown")
        return value

    # ---- values

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
                return getattr(torch, code["dtype"]) if code["dtype"] in gradients.DTYPES else torch.float32
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
        leaf, twin = value.is_leaf, self._twin(value)
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
        return {self.keys[id(t)]: None for m in self.modules.known.values() for parts in (m._parameters, m._buffers)
                for t in parts.values() if t is not None and id(t) in self.keys}

    def _worked_on(self, key: str, value: Tensor) -> bool:
        """Whether a tensor that came from the other side was changed in place on this one."""
        if key not in self.mine and not _equal(value.detach(), self.told[key][0]):
            self.edited.add(key)
        return key in self.edited

    def _twin(self, value: Tensor):
        """The key of a known tensor with the very same memory: `p.data` is p, said otherwise."""
        for key in (k for frame in self.frames for k in frame):
            other = self.tensors[key]
            if isinstance(other, Tensor) and other.numel() and other.data_ptr() == value.data_ptr() \
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
            if key not in self.mine:
                _refill(old, value)
                self.told[key] = snapshot(old)
            self._watch(key, old)
            return old
        self.tensors[key], self.keys[id(value)] = value, key
        self._watch(key, value)
        return value

    # ---- what has changed since the other side last heard

    def _send(self, message: dict, tensors: list[Tensor]) -> None:
        changed = {}
        for key in {key: None for frame in self.frames for key in frame} | self.weights():
            value, known = self.tensors[key], self.told[key]
            if not unchanged(value, known):
                if key not in self.mine and isinstance(value, Tensor):
                    self._worked_on(key, value)
                self.told[key] = snapshot(value)
                changed.setdefault("values", []).append([key, describe(self, value, known, tensors)])
        self.modules.changes(changed, tensors)
        if freed := self.graph.freed():
            changed["freed"] = freed
        if not torch.equal(state := torch.get_rng_state(), self.random):
            self.random, changed["random"] = state, put(state, tensors)
        self.channel.send(message | {"changed": changed}, tensors)

    def _receive(self) -> tuple[dict, Reader]:
        message, raw = self.channel.receive()
        return message, Reader(raw)

    def _synchronise(self, message: dict, reader: Reader) -> None:
        """Take over what the other side changed. What the grader lent stays as it was, unless the exercise is to change it."""
        changed = message.get("changed", {})
        try:
            for key, what in changed.get("values", []):
                take_change(self, key, what, reader)
            self.modules.take(changed.get("modules", []), reader)
            self.graph.free(changed.get("freed", []))
            if "random" in changed:
                torch.set_rng_state(reader.take(changed["random"]))
                self.random = torch.get_rng_state()
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Interrupted("killed", f"a change that is none ({type(error).__name__}: {error})") from None

    # ---- errors

    def _told(self, error: BaseException) -> dict:
        kinds = [k.__name__ for k in type(error).__mro__ if k.__name__ in ERRORS or k is SystemExit]
        text = str(error.args[0]) if isinstance(error, KeyError) and len(error.args) == 1 else str(error)
        return {"name": type(error).__name__[:80], "kind": kinds[0] if kinds else "Exception", "text": text[:2000]}

    def _error(self, told: dict) -> Exception:
        kind = ERRORS.get(told.get("kind"), RuntimeError)
        name, text = str(told.get("name")), str(told.get("text"))
        if issubclass(kind, UnicodeError):
            kind = ValueError
        return (kind if kind.__name__ == name else type(name, (kind,), {}))(text)


def take_change(bridge: Bridge, key: str, code, reader: Reader) -> None:
    """Bring one tensor, generator, list or dict to where the other side has it."""
    value = bridge.tensors[key]
    lent = key in bridge.mine and not (bridge.lend_for_change and (key in bridge.arguments or not bridge.strict))
    if isinstance(value, Tensor):
        if "data" in code:
            data = reader.take(code["data"])
            if not lent and data.shape == value.shape:
                value.data.copy_(data)
        if "slope" in code:
            slope = None if code["slope"] is None else reader.take(code["slope"])
            if value.is_leaf and (slope is None or slope.shape == value.shape):
                value.grad = slope
        if "grad" in code and value.is_leaf and value.is_floating_point():
            value.requires_grad_(code["grad"] is True)
    elif isinstance(value, torch.Generator):
        value.set_state(reader.take(code["state"]))
    else:
        new = bridge.decode(code["items"], reader)
        if not lent:
            _refill(value, new)
    bridge.told[key] = snapshot(value)


def _refill(value, new) -> None:
    """Make a list or a dict hold what another of its kind holds."""
    if type(value) is list is type(new):
        value[:] = new
    elif type(value) is dict is type(new):
        value.clear()
        value.update(new)
    else:
        raise TypeError("another kind of container")


def _leaves(values, deep: int = 0):
    """The modules, and the tensors at which a graph begins, in arguments and in lists and dicts among them."""
    for value in values if deep < NESTING else ():
        if isinstance(value, (list, tuple, dict)):
            yield from _leaves(value.values() if isinstance(value, dict) else value, deep + 1)
        elif isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.is_leaf and value.requires_grad):
            yield value


def snapshot(value):
    """What tells later whether a tensor, a generator, a list or a dict has changed."""
    if isinstance(value, Tensor):
        slope = value.grad if value.is_leaf else None
        return value.detach().clone(), None if slope is None else slope.detach().clone(), value.requires_grad
    if isinstance(value, torch.Generator):
        return value.get_state()
    return list(value.items()) if isinstance(value, dict) else list(value)


def unchanged(value, known) -> bool:
    """Whether a value is as it was at its snapshot."""
    if isinstance(value, Tensor):
        return value.requires_grad == known[2] and _equal(value.detach(), known[0]) and _equal(_slope(value), known[1])
    if isinstance(value, torch.Generator):
        return torch.equal(value.get_state(), known)
    if isinstance(value, dict):
        return len(value) == len(known) and all(k is p and v is q for (k, v), (p, q) in zip(value.items(), known, strict=True))
    return len(value) == len(known) and all(v is q for v, q in zip(value, known, strict=True))


def describe(bridge: Bridge, value, known, tensors) -> dict:
    """The change since the snapshot, for the other side."""
    if isinstance(value, torch.Generator):
        return {"state": put(value.get_state(), tensors)}
    if not isinstance(value, Tensor):
        return {"items": bridge.encode(value, tensors) | {"id": None}}
    code, slope = {}, _slope(value)
    if not _equal(value.detach(), known[0]):
        code["data"] = put(value.detach(), tensors)
    if not _equal(slope, known[1]):
        code["slope"] = None if slope is None else put(slope, tensors)
    if value.requires_grad != known[2]:
        code["grad"] = value.requires_grad
    return code


def _slope(value: Tensor) -> Tensor | None:
    return value.grad if value.is_leaf else None


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and torch.equal(a, b))


def _special(target, method: str, arguments):
    """One of METHODS; built-in functions check that the type is right (`float` gives a float)."""
    plain = {"__iter__": iter, "__next__": next, "__len__": len, "__float__": float, "__int__": int, "__bool__": bool}
    if method in plain:
        return plain[method](target)
    return target[arguments[0]] if method == "__getitem__" else arguments[0] in target


def _can(value, method: str) -> bool:
    if method == "__call__":
        return callable(value)
    return not isinstance(value, type) and hasattr(type(value), method)


def _shown(target, name: str) -> bool:
    """Whether the grader shows this attribute: of instances of the course's, torch's and plain classes; of a module nothing
    that every module has, since `register_forward_hook` and the like would let a student change what the check runs."""
    if isinstance(target, (type, types.ModuleType)) or not type(target).__module__.startswith(SHOWN):
        return False
    return not (isinstance(target, nn.Module) and hasattr(nn.Module, name)) and not name.startswith(("register", "load"))


def serve(namespace: dict) -> None:
    """In the sandbox: connect to the grader and answer its calls of what `namespace` holds, until it has seen enough."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["COURSE_BRIDGE"])
    with connection:
        bridge = Bridge(Channel(connection), strict=False)
        bridge.namespace = namespace
        bridge.serve()
