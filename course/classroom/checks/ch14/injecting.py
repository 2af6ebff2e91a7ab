"""Exercises 4 and 5: into a whole model, and what training it takes."""

import torch
from torch import nn

from course.classroom.checks import Exercise, normal
from course.classroom.checks.ch14.answers import LoRALinear, inject, training_bytes

# ---- 4 · into the model

INJECT = Exercise("lora.inject", points=4, minutes=20, reference=inject)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.not_to_q = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.to_out = nn.ModuleList([nn.Linear(6, 6), nn.Dropout(0.0)])
        self.to_q_norm = nn.LayerNorm(6)

    def forward(self, x):
        return self.to_out[0](self.to_q_norm(self.to_q(x)) + self.not_to_q(x))


class Model(nn.Module):
    """Four layers are called to_q or to_out.0, in two blocks; one to_q more stands at the top."""

    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Attention(), nn.Sequential(Attention(), nn.Linear(6, 6))])
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x + self.to_q(x))


TARGETS = ("to_q", "to_out.0")
PLACES = ("to_q", "blocks.0.to_q", "blocks.0.to_out.0", "blocks.1.0.to_q", "blocks.1.0.to_out.0")


def _injected(fn, rank: int = 2):
    torch.manual_seed(0)
    model, seen = Model(), []

    def make(linear):
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"make was handed a {type(linear).__name__}: only a layer whose path ends in a target is replaced")
        seen.append(linear)
        return LoRALinear(linear, rank, 1.0)

    return model, seen, fn(model, TARGETS, make)


@INJECT.gate("returns a list of parameters")
def _(fn):
    out = _injected(fn)[2]
    if out is None:
        return "expected a list of parameters, got None: is the `return` missing?"
    out = list(out)
    if not out:
        return "the list is empty: of each new layer, the parameters with requires_grad"
    wrong = [type(p).__name__ for p in out if not isinstance(p, nn.Parameter)]
    return f"expected parameters, got {wrong[0]}" if wrong else None


@INJECT.property("every layer whose path ends in a target is replaced, wherever it is, and no other one")
def _(fn):
    model, seen, _ = _injected(fn)
    for path, layer in model.named_modules():
        if path in PLACES and not hasattr(layer, "adapters"):
            return f"{path} was not replaced"
        if hasattr(layer, "adapters") and path not in PLACES:
            return f"{path} was replaced, though its path does not end in to_q or to_out.0" + (
                ": a whole name must match, .to_q" if "not_to_q" in path else "")
    if len(seen) != len(PLACES):
        return f"make should be called once for each of {len(PLACES)} layers, it was called {len(seen)} times"
    if any(type(layer) is not nn.Linear for layer in seen):
        return "make should be handed the layer that stood there"


@INJECT.property("the model answers as before: every new layer has the weights of the old")
def _(fn):
    torch.manual_seed(0)
    x, right = normal((3, 6), 1), Model()
    right = right(x)
    return None if torch.allclose(_injected(fn)[0](x), right, atol=1e-6) else \
        "the answer has changed, though all adapters are zero: was a layer put in another one's place?"


@INJECT.property("all weights that were there are frozen, those of the adapters are not")
def _(fn):
    model, _, _ = _injected(fn)
    loose = [n for n, p in model.named_parameters() if p.requires_grad and ".adapters." not in n]
    if loose:
        return f"{loose[0]} can still be trained: freeze the whole model first"
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and ".adapters." in n]
    return f"{frozen[0]} is frozen: freeze the model before the adapters are put in" if frozen else None


@INJECT.property("the list holds exactly the adapters' parameters, each once")
def _(fn):
    model, _, out = _injected(fn)
    right = {id(p): n for n, p in model.named_parameters() if ".adapters." in n}
    got = [id(p) for p in out]
    if more := [p for p in out if id(p) not in right]:
        return f"{len(more)} of the parameters returned are no adapter's: an optimiser would train or decay them"
    if missing := [n for i, n in right.items() if i not in got]:
        return f"{missing[0]} is missing from the list"
    return "some parameters are in the list twice" if len(got) != len(set(got)) else None


# ---- 5 · what training takes

BYTES = Exercise("lora.training_bytes", points=2, minutes=10, reference=training_bytes)
WHAT = ("weights", "gradients", "Adam")


def _mixed() -> nn.Module:
    """80 numbers of 4 bytes, 30 of them frozen; 20 of 2 bytes, trained."""
    net = nn.Module()
    net.a, net.b = nn.Parameter(torch.zeros(5, 10)), nn.Parameter(torch.zeros(30), requires_grad=False)
    net.c = nn.Parameter(torch.zeros(4, 5, dtype=torch.float16))
    net.register_buffer("kept", torch.zeros(1000))
    return net


@BYTES.gate("returns three whole numbers: bytes of weights, gradients, and what Adam keeps")
def _(fn):
    out = fn(nn.Linear(3, 2))
    if not isinstance(out, (tuple, list)) or len(out) != 3:
        return "expected (weights, gradients, adam)" + (": is the `return` missing?" if out is None else f", got {out!r:.60}")
    wrong = [n for n, v in zip(WHAT, out, strict=True) if isinstance(v, bool) or not isinstance(v, (int, float)) or v != int(v)]
    return f"{wrong[0]}: expected a whole number" if wrong else None


def _compare(out, right, bugs) -> str | None:
    for name, value, expected in zip(WHAT, out, right, strict=True):
        if value != expected:
            return f"{name}: " + bugs.get((name, int(value)), f"expected {expected} bytes, got {value}")


@BYTES.property("worked by hand: a linear layer 3 -> 2 has 8 numbers: 32 bytes, 32, and 64")
def _(fn):
    return _compare(fn(nn.Linear(3, 2)), (32, 32, 64), {
        ("weights", 8): "these are numbers, not bytes: a float32 takes 4", ("weights", 24): "the bias counts, too",
        ("Adam", 32): "Adam keeps two numbers for each that is trained: the means of the gradient and of its square",
        ("Adam", 96): "Adam keeps two numbers for each, not three"})


@BYTES.property("frozen weights take room, but no gradient and nothing of Adam's")
def _(fn):
    net = nn.Sequential(nn.Linear(3, 2).requires_grad_(False), nn.Linear(2, 1))
    return _compare(fn(net), (44, 12, 24), {
        ("weights", 12): "frozen weights take room as well", ("gradients", 44): "frozen weights have no gradient",
        ("Adam", 88): "Adam keeps nothing for frozen weights"})


@BYTES.property("a number takes as many bytes as its dtype says")
def _(fn):
    return _compare(fn(_mixed()), (360, 240, 480), {
        ("weights", 400): "float16 takes 2 bytes: p.element_size()", ("weights", 4360): "buffers are no weights: parameters()"})
