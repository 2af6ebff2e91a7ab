"""Objects of two processes that do not trust each other: the grader's check calls a student's function that lives elsewhere.

The grader holds a proxy of the student's function and runs the check of the exercise with it, as a notebook does. What crosses:

    numbers, strings, tuples, lists, dicts, tensors   by value (`values.py`); changes in place are told (`changes.py`)
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
import copy
import os
import socket
import types

import torch
from torch import Tensor, nn

from course.classroom import gradients, mirrors
from course.classroom.changes import describe, refill, snapshot, unchanged
from course.classroom.values import METHODS, Values, leaves
from course.classroom.wire import Channel, Interrupted, Reader, put

DEPTH = 40                                 # calls inside calls
ERRORS = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
SHOWN = ("course.", "torch.", "types")      # of these modules' classes the grader shows attributes


class Bridge(Values):
    """One end. `strict` is the grader's."""

    def __init__(self, channel: Channel, strict: bool):
        super().__init__(strict)
        self.channel, self.depth = channel, 0
        self.namespace: dict[str, object] = {}                  # what the other side may ask for by name
        self.refusals = 0                                       # how often a change of what was lent was not taken over
        self.lend_for_change = not strict                       # may the other side change what it was lent?
        self._forget()

    def _forget(self):
        self.forget()
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
            if len(self.frames) == 1:                           # what was changed over there without leave goes over anew
                for key in self.refused:
                    self.keys.pop(id(self.tensors[key]), None)
                self.refused.clear()
            # leaves and modules first: the graph of a tensor beside them may begin there
            first = [self.encode(v, tensors) for v in leaves([*arguments, *(options or {}).values()])]
            message = {"do": "call", "on": number, "method": method, "grad": torch.is_grad_enabled(), "first": first,
                       "args": [self.encode(a, tensors) for a in arguments],
                       "options": [[k, self.encode(v, tensors)] for k, v in (options or {}).items()]}
            self.arguments.update(self.frames[-1])
            return self._request(message, tensors)

    def ask(self, what: str, number: int, *given):
        return self._request({"do": what, "on": number, "given": list(given), "grad": torch.is_grad_enabled()}, [])

    def set(self, number: int, name: str, value) -> None:
        tensors: list[Tensor] = []
        self._request({"do": "set", "on": number, "name": name, "value": self.encode(value, tensors)}, tensors)

    def delete(self, number: int, name: str) -> None:
        self._request({"do": "delete", "on": number, "name": name}, [])

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
                reply, tensors = {"error": self.tell(error)}, []
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
                if method == "__exit__":
                    error = arguments[0] and self._error(arguments[0])
                    return bool(target.__exit__(error and type(error), error, None))
                return target(*arguments, **options) if method == "__call__" else _special(target, method, arguments)
        if what in ("set", "delete"):
            value = self.decode(message.get("value"), reader)
            self._synchronise(message, reader)
            self._refuse_change(target, message["name"])
            return setattr(target, message["name"], value) if what == "set" else delattr(target, message["name"])
        self._synchronise(message, reader)
        with torch.set_grad_enabled(message["grad"] is True):
            if what == "get":
                return self._get(target, *message["given"])
            if what == "copy" and isinstance(target, nn.Module):
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

    def _refuse_change(self, target, name) -> None:
        """Only public attributes are set and deleted: of the grader's objects only where the exercise is to do so."""
        if not isinstance(name, str) or name.startswith("_") or (self.strict and not _shown(target, name)):
            raise AttributeError(f"{name} cannot be set")
        if self.strict and not self.lend_for_change:
            self.refusals += 1
            raise AttributeError(f"{name} of what was handed in cannot be set")

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
        try:                                                    # first of all: what follows may not be tied to such a graph
            self.graph.free([str(key) for key in message["changed"].get("freed", [])])
        except (KeyError, TypeError, AttributeError) as error:
            raise Interrupted("killed", f"a message that is none ({type(error).__name__})") from None
        return message, Reader(raw)

    def _synchronise(self, message: dict, reader: Reader) -> None:
        """Take over what the other side changed. What the grader lent stays as it was, unless the exercise is to change it."""
        changed = message.get("changed", {})
        try:
            for key, what in changed.get("values", []):
                self._take_change(key, what, reader)
            self.modules.take(changed.get("modules", []), reader)
            if "random" in changed:
                torch.set_rng_state(reader.take(changed["random"]))
                self.random = torch.get_rng_state()
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Interrupted("killed", f"a change that is none ({type(error).__name__}: {error})") from None

    def _take_change(self, key: str, code, reader: Reader) -> None:
        """Bring one tensor, generator, list or dict to where the other side has it."""
        value = self.tensors[key]
        lent = not self.may_change(key)
        if isinstance(value, Tensor):
            if "data" in code:
                data = reader.take(code["data"])
                if lent:
                    self.refused.add(key)
                    self.refusals += 1
                elif code["twin"] is not None and self.tensors[code["twin"]].shape == value.shape:
                    value.data = self.tensors[code["twin"]].data        # from now on they share their memory, as over there
                elif data.shape == value.shape:
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
            new = self.decode(code["items"], reader)
            if not lent:
                refill(value, new)
            self.refusals += lent
        self.told[key] = snapshot(value)

    # ---- errors

    def tell(self, error: BaseException) -> dict:
        kinds = [k.__name__ for k in type(error).__mro__ if k.__name__ in ERRORS or k is SystemExit]
        text = str(error.args[0]) if isinstance(error, KeyError) and len(error.args) == 1 else str(error)
        return {"name": type(error).__name__[:80], "kind": kinds[0] if kinds else "Exception", "text": text[:2000]}

    def _error(self, told: dict) -> Exception:
        kind = ERRORS.get(told.get("kind"), RuntimeError)
        name, text = str(told.get("name"))[:80].replace("\0", ""), str(told.get("text"))[:2000]
        if issubclass(kind, (UnicodeError, ExceptionGroup)):    # these are made of more than a text
            kind = ValueError
        return (kind if kind.__name__ == name else type(name, (kind,), {}))(text)


def _special(target, method: str, arguments):
    """One of METHODS; built-in functions check that the type is right (`float` gives a float)."""
    plain = {"__iter__": iter, "__next__": next, "__len__": len, "__float__": float, "__int__": int, "__bool__": bool,
             "__enter__": lambda manager: manager.__enter__()}
    if method in plain:
        return plain[method](target)
    return target[arguments[0]] if method == "__getitem__" else arguments[0] in target


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
