"""Gradients across two processes: a tensor that was computed on the other side is a node of the graph on this one.

Its inputs are all tensors by which the two sides' graphs may be connected: those that went over from here, and leaves that
came from there (weights of a module). Its backward asks the other side for the product with the Jacobian with respect to
these. While a side computes such a product, its own nodes of this kind answer with nothing: what lies behind them is the
asking side's to go through, so that every path is counted once.
"""

import torch
from torch import Tensor, nn


class Crossing(torch.autograd.Function):
    """The value of a tensor of the other side, as a function of what connects the graphs."""

    @staticmethod
    def forward(ctx, graph, key, value, wanted, *inputs):
        ctx.graph, ctx.key, ctx.wanted = graph, key, wanted
        ctx.save_for_backward(value)                            # freed with the graph, by which `freed` sees that it is
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        _ = ctx.saved_tensors                                   # raises where the graph is gone, as torch's own nodes do
        nothing = (None,) * (4 + 1 + len(ctx.wanted))
        if ctx.graph.cutting:
            return nothing
        ctx.graph.running += 1
        try:
            found = ctx.graph.bridge.vjp(ctx.key, gradient, ctx.wanted, torch.is_grad_enabled())
        finally:
            ctx.graph.running -= 1
        if len(found) != len(ctx.wanted):
            raise RuntimeError("gradients that do not fit")
        inputs = [ctx.graph.bridge.tensors[key] for key in ctx.wanted]
        return None, None, None, None, *(g if isinstance(g, Tensor) and g.shape == x.shape else None
                                         for g, x in zip(found, inputs, strict=True)), None


class Graph:
    """Of one bridge."""

    def __init__(self, bridge):
        self.bridge, self.cutting, self.running = bridge, False, 0
        self.nodes: dict[str, Tensor] = {}                      # key -> the tensor of the other side, as a node here
        self.dead: set[str] = set()                             # keys of mine whose graph was used up on the other side
        self.alive: set[str] = set()                            # ... whose graph was not used up yet
        self.anchor = torch.zeros(1, requires_grad=True)        # makes a node where nothing connects the graphs

    def take(self, key: str, value: Tensor, code: dict) -> Tensor:
        """The tensor that came under `key`, with its place in the graph."""
        if code["grad"] is not True or not (value.is_floating_point() or value.is_complex()):
            return nn.Parameter(value, requires_grad=False) if code["parameter"] is True else value
        if code["leaf"] is True:
            return nn.Parameter(value) if code["parameter"] is True else value.requires_grad_()
        wanted, inputs = [], []
        for other, tensor in self.bridge.tensors.items():
            tied = isinstance(tensor, Tensor) and tensor.requires_grad and (other in self.bridge.mine or tensor.is_leaf)
            if tied and other not in self.dead:
                wanted.append(other)
                inputs.append(tensor)
        with torch.enable_grad():
            out = Crossing.apply(self, key, value, wanted, *inputs, self.anchor)
        self.nodes[key] = out
        self.alive.add(key)
        return out.clone()                                      # an answer may work in place: the node stays what it was

    def product(self, key: str, gradient: Tensor, wanted: list[str], create: bool):
        """The vector-Jacobian product for the tensor under `key`, which was computed here."""
        out = self.bridge.tensors[key]
        inputs = [self.nodes.get(k, self.bridge.tensors[k]) for k in wanted]
        tracked = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        if not tracked or not out.requires_grad:
            return [None] * len(inputs)
        before, self.cutting = self.cutting, True
        try:
            found = iter(self._slopes(out, tracked, gradient, create))
        finally:
            self.cutting = before
        return [next(found) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs]

    @staticmethod
    def _slopes(out: Tensor, inputs: list[Tensor], gradient: Tensor, create: bool) -> list[Tensor | None]:
        options = {"retain_graph": True, "create_graph": create, "allow_unused": True}
        try:
            return list(torch.autograd.grad(out, inputs, gradient, **options))
        except RuntimeError as error:
            # some of the inputs may lie behind a graph of an earlier call that was used up: these are not ours to go through
            found, failed = [], 0
            for x in inputs:
                try:
                    found += torch.autograd.grad(out, x, gradient, **options)
                except RuntimeError:
                    found.append(None)
                    failed += 1
            if failed == len(inputs):
                raise error
            return found

    def freed(self) -> list[str]:
        """The tensors of the other side whose graph was used up here (a backward without retain_graph), since last asked."""
        gone = []
        for key in list(self.alive) if not self.running else ():        # in the middle of a backward nothing is settled
            try:
                _ = self.nodes[key].grad_fn.saved_tensors
            except RuntimeError:
                gone.append(key)
                self.alive.remove(key)
        return gone

    def free(self, keys: list[str]) -> None:
        """Use up the graph of these tensors, as it was used up on the other side."""
        for key in keys:
            self.dead.add(key)
            out = self.bridge.tensors.get(key)
            leaves = [t for t in self.bridge.tensors.values() if isinstance(t, Tensor) and t.requires_grad and t is not out]
            if key in self.bridge.mine and isinstance(out, Tensor) and out.grad_fn is not None and leaves:
                before, self.cutting = self.cutting, True
                try:
                    torch.autograd.grad(out, leaves, torch.zeros_like(out), allow_unused=True)
                except RuntimeError:
                    pass                                        # used up already
                finally:
                    self.cutting = before
