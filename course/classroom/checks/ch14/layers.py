"""Exercises 2 and 3: the adapter, and the layer that holds it."""

import copy
import math

import torch
from torch import nn

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch14.answers import Adapter, LoRALinear

# ---- 2 · the adapter

ADAPTER = Exercise("lora.Adapter", points=4, minutes=15, reference=Adapter)


def _made(fn, rank: int = 2, alpha: float = 6.0, seed: int = 1, n: int = 5, m: int = 4):
    """An adapter with random A and B, n -> m."""
    adapter = fn(nn.Linear(n, rank, bias=False), nn.Linear(rank, m, bias=False), rank, alpha)
    with torch.no_grad():
        adapter.down.weight.copy_(normal((rank, n), seed))
        adapter.up.weight.copy_(normal((m, rank), seed + 1))
    return adapter


@ADAPTER.gate("Adapter(down, up, rank, alpha) holds down and up, and maps (...,in) -> (...,out)")
def _(fn):
    down, up = nn.Linear(5, 2, bias=False), nn.Linear(2, 4, bias=False)
    adapter = fn(down, up, 2, 6.0)
    if not isinstance(adapter, nn.Module):
        return f"expected a torch module, got {type(adapter).__name__}: class Adapter(nn.Module)"
    if getattr(adapter, "down", None) is not down or getattr(adapter, "up", None) is not up:
        return "self.down and self.up should be the two layers that were handed in"
    names = set(adapter.state_dict())
    if names != {"down.weight", "up.weight"}:
        return f"its weights should be down.weight and up.weight, they are {', '.join(sorted(names))}"
    return tensor_like(adapter(normal((3, 7, 5), 1)), (3, 7, 4))


@ADAPTER.property("starts at zero change: B is zero and A is not")
def _(fn):
    torch.manual_seed(0)
    down, up = nn.Linear(64, 4, bias=False), nn.Linear(4, 48, bias=False)
    nn.init.constant_(down.weight, 7.0)
    adapter = fn(down, up, 4, 4.0)
    if adapter.up.weight.any():
        return "a new adapter must change nothing: set up.weight (B) to zero" + (
            "" if adapter.down.weight.any() else ", not down.weight (A)")
    if not adapter.down.weight.any():
        return "A is zero as well: two layers of zeros in a row never learn (chapter 13)"
    size, right = float(adapter.down.weight.detach().std()), 1 / math.sqrt(3 * 64)
    if not 0.7 * right < size < 1.4 * right or abs(float(adapter.down.weight.detach().mean())) > right / 2:
        return (f"A should be drawn by kaiming_uniform_ with a = sqrt(5), of standard deviation {right:.3f} here; "
                f"found {size:.3f}" + (": it was not drawn at all" if size == 0 else ""))


@ADAPTER.property("worked by hand: A 2, B 3, alpha 8, rank 2, x 5 give 4 * 3 * 2 * 5 for each of the two ranks")
def _(fn):
    adapter = fn(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False), 2, 8.0)
    nn.init.constant_(adapter.down.weight, 2.0), nn.init.constant_(adapter.up.weight, 3.0)
    return compare(adapter(torch.tensor([[5.0]])), torch.tensor([[240.0]]), {
        "alpha is not used": torch.tensor([[30.0]]), "the scale is missing: alpha / rank": torch.tensor([[60.0]]),
        "alpha is not divided by the rank": torch.tensor([[480.0]]),
        "the scale is rank / alpha: it is alpha / rank": torch.tensor([[15.0]]),
        "the scale is squared": torch.tensor([[960.0]]), "x itself was added: that is the layer's part": torch.tensor([[245.0]])})


@ADAPTER.property("delta() is the same change as a matrix (out,in)")
def _(fn):
    adapter, x = _made(fn), normal((6, 5), 3)
    delta = adapter.delta()
    if problem := tensor_like(delta, (4, 5)):
        return f"{problem}" + (": B A, not A B or its transpose" if tuple(getattr(delta, "shape", ())) == (5, 4) else "")
    right = 3.0 * adapter.up.weight @ adapter.down.weight
    return compare(delta, right, {"the scale is missing in delta()": right / 3}) or compare(adapter(x), x @ right.T, rtol=1e-3)


@ADAPTER.property("weight says how much of it is wanted, both in forward and in delta")
def _(fn):
    adapter, x = _made(fn), normal((6, 5), 4)
    if getattr(adapter, "weight", None) != 1.0:
        return "self.weight should be 1.0 at first: how much of the adapter is wanted"
    whole, change = adapter(x).detach(), adapter.delta().detach()
    adapter.weight = 0.25
    return compare(adapter(x), whole / 4, {"weight is not used in forward": whole}) or compare(
        adapter.delta(), change / 4, {"weight is not used in delta": change})


@ADAPTER.property("a gradient reaches x, A and B")
def _(fn):
    adapter, x = _made(fn), normal((6, 5), 5).requires_grad_()
    adapter(x).square().sum().backward()
    given = {"x": x, "A": adapter.down.weight, "B": adapter.up.weight}
    missing = [name for name, p in given.items() if p.grad is None or not p.grad.any()]
    return f"no gradient reaches {', '.join(missing)}" if missing else None


@ADAPTER.hygiene("leaves x as it was")
def _(fn):
    return touched(_made(fn), normal((3, 5), 6))


# ---- 3 · the layer

LORA_LINEAR = Exercise("lora.LoRALinear", points=5, minutes=25, reference=LoRALinear)


def _layer(fn, rank: int = 2, alpha: float = 4.0, seed: int = 1, names=("default",), bias: bool = True):
    """(the student's layer with random adapters, a copy of the linear layer it was made of)."""
    torch.manual_seed(seed)
    linear = nn.Linear(5, 4, bias=bias)
    base = copy.deepcopy(linear)
    layer = fn(linear, rank, alpha, name=names[0])
    for name in names[1:]:
        layer.add(name, rank + 1, alpha)
    with torch.no_grad():
        for k, adapter in enumerate(layer.adapters.values()):
            adapter.up.weight.copy_(normal(tuple(adapter.up.weight.shape), seed + k))
    return layer, base


def _wanted(layer, base, x):
    return base(x) + x @ sum(a.delta() for a in layer.adapters.values()).T


@LORA_LINEAR.gate("LoRALinear(linear, rank, alpha, dropout, name): .base, one adapter in .adapters, (...,in) -> (...,out)")
def _(fn):
    linear = nn.Linear(5, 4)
    layer = fn(linear, 2, 4.0)
    if not isinstance(layer, nn.Module):
        return f"expected a torch module, got {type(layer).__name__}: class LoRALinear(nn.Module)"
    if getattr(layer, "base", None) is not linear:
        return "self.base should be the very layer that was handed in"
    if not isinstance(getattr(layer, "adapters", None), nn.ModuleDict):
        return "self.adapters should be an nn.ModuleDict: a plain dict hides its parameters from torch"
    if list(layer.adapters) != ["default"] or list(fn(nn.Linear(5, 4), 2, 4.0, name="mine").adapters) != ["mine"]:
        return "there should be one adapter, under the name that was asked for: self.add(name, rank, alpha, dropout)"
    if getattr(layer, "in_features", None) != 5 or getattr(layer, "out_features", None) != 4:
        return "in_features and out_features should be those of the layer: attention asks for them"
    return tensor_like(layer(normal((3, 7, 5), 1)), (3, 7, 4))


@LORA_LINEAR.property("the layer itself is frozen, its adapter is not")
def _(fn):
    layer = fn(nn.Linear(5, 4), 2, 4.0)
    loose = [name for name, p in layer.base.named_parameters() if p.requires_grad]
    if loose:
        return f"base.{loose[0]} can still be trained, as in the article: freeze the base"
    frozen = [name for name, p in layer.adapters.named_parameters() if not p.requires_grad]
    return f"{frozen[0]} is frozen, too: freeze the base, not the whole layer" if frozen else None


@LORA_LINEAR.property("a new one answers as the layer did, to the bit")
def _(fn):
    linear, x = nn.Linear(5, 4), normal((6, 5), 2)
    right = linear(x).detach().clone()
    return None if torch.equal(fn(linear, 2, 4.0)(x), right) else "a new adapter changes the layer's answer"


@LORA_LINEAR.property("its answer is the layer's plus that of every adapter")
def _(fn):
    for names in (("default",), ("a", "b")):
        layer, base = _layer(fn, names=names)
        x = normal((6, 5), 3)
        first = layer.adapters[names[0]]
        if problem := compare(layer(x), _wanted(layer, base, x), {
                "the layer's own answer is missing": _wanted(layer, base, x) - base(x),
                "the adapters are not added": base(x),
                "only the first adapter is added": base(x) + x @ first.delta().T,
                "the adapters read the layer's answer: they read x": base(x)}, rtol=1e-3):
            return f"{len(names)} adapter{'s' * (len(names) > 1)}: {problem}"


@LORA_LINEAR.property("merged it answers the same, with the change in base.weight; merging twice is merging once")
def _(fn):
    layer, base = _layer(fn, names=("a", "b"))
    x = normal((6, 5), 4)
    right, change = _wanted(layer, base, x).detach(), sum(a.delta() for a in layer.adapters.values()).detach()
    layer.merge()
    if problem := compare(layer.base.weight, base.weight + change, {
            "merge() did not change base.weight": base.weight,
            "only one adapter was merged": base.weight + layer.adapters["a"].delta(),
            "the change was subtracted": base.weight - change}, rtol=1e-3):
        return f"base.weight: {problem}"
    twice = right + x @ change.T
    bugs = {"the change counts twice: once in base.weight, once by the adapters": twice}
    if problem := compare(layer(x), right, bugs, rtol=1e-3):
        return problem
    layer.merge()
    return compare(layer(x), right, {"a second merge() merged again": twice}, rtol=1e-3)


@LORA_LINEAR.property("unmerged it is the layer it was, to the bit; unmerging without a merge does nothing")
def _(fn):
    for seed in range(4):
        layer, base = _layer(fn, seed=seed + 5)
        layer.unmerge()
        if not torch.equal(layer.base.weight, base.weight):
            return "unmerge() without a merge changed the weight"
        for _ in range(2):
            layer.merge(), layer.unmerge()
        if not torch.equal(layer.base.weight, base.weight):
            close = (layer.base.weight - base.weight).abs().max() < 1e-4
            return ("base.weight is nearly what it was: W + D - D is not W in floating point, so keep a copy of W" if close else
                    "base.weight is not what it was before the merge: keep a copy of it, not a second name for it")
        x = normal((6, 5), 6)
        if problem := compare(layer(x), _wanted(layer, base, x), rtol=1e-3):
            return f"after unmerge() the adapters should count again: {problem}"


@LORA_LINEAR.property("a gradient reaches A and B, none reaches the base; merged weights are no part of a graph")
def _(fn):
    layer, _ = _layer(fn)
    layer(normal((6, 5), 7)).square().sum().backward()
    missing = [n for n, p in layer.adapters.named_parameters() if p.grad is None or not p.grad.any()]
    if missing:
        return f"no gradient reaches {missing[0]}"
    layer.merge()
    if layer.base.weight.grad is not None or layer.base.weight.requires_grad or not layer.base.weight.is_leaf:
        return "base.weight hangs on a graph or gets a gradient: merge under torch.no_grad()"
    return None if isinstance(layer.base.weight, nn.Parameter) else "base.weight should stay a parameter"


@LORA_LINEAR.hygiene("leaves x as it was, and works without a bias")
def _(fn):
    layer, base = _layer(fn, bias=False)
    x = normal((3, 5), 8)
    return compare(layer(x), _wanted(layer, base, x), rtol=1e-3) or touched(layer, x)
