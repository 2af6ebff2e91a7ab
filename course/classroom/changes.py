"""What has changed in a tensor, a generator, a list or a dict since the other side of a bridge last heard of it."""

import torch
from torch import Tensor

from course.classroom.wire import put


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
        return value.requires_grad == known[2] and equal(value.detach(), known[0]) and equal(slope_of(value), known[1])
    if isinstance(value, torch.Generator):
        return torch.equal(value.get_state(), known)
    if isinstance(value, dict):
        return len(value) == len(known) and all(k is p and v is q for (k, v), (p, q) in zip(value.items(), known, strict=True))
    return len(value) == len(known) and all(v is q for v, q in zip(value, known, strict=True))


def describe(bridge, value, known, tensors) -> dict:
    """The change since the snapshot, for the other side."""
    if isinstance(value, torch.Generator):
        return {"state": put(value.get_state(), tensors)}
    if not isinstance(value, Tensor):
        return {"items": bridge.encode(value, tensors) | {"id": None}}
    code, slope = {}, slope_of(value)
    if not equal(value.detach(), known[0]):
        code["data"], code["twin"] = put(value.detach(), tensors), bridge.twin(value)
    if not equal(slope, known[1]):
        code["slope"] = None if slope is None else put(slope, tensors)
    if value.requires_grad != known[2]:
        code["grad"] = value.requires_grad
    return code


def refill(value, new) -> None:
    """Make a list or a dict hold what another of its kind holds."""
    if type(value) is list is type(new):
        value[:] = new
    elif type(value) is dict is type(new):
        value.clear()
        value.update(new)
    else:
        raise TypeError("another kind of container")


def slope_of(value: Tensor) -> Tensor | None:
    return value.grad if value.is_leaf else None


def equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and torch.equal(a, b))
