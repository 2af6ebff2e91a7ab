"""Answers to the exercises of chapter 14: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import math

import torch
from torch import nn

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- lora.low_rank

LOW = "lora.low_rank"


def low_with(on_A=lambda S: S.sqrt(), on_B=lambda S: S.sqrt(), pick=lambda M, r, axis: M.narrow(axis, 0, r), turn=lambda Vh: Vh,
             back=lambda A, B: (A, B)):
    def low_rank(delta, rank):
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        S = pick(S, rank, 0)
        return back(on_A(S)[:, None] * pick(turn(Vh), rank, 0), pick(U, rank, 1) * on_B(S))
    return low_rank


WRONG[LOW] = [
    ("no_singular_values", low_with(torch.ones_like, torch.ones_like), "the singular values are missing"),
    ("both_whole", low_with(lambda S: S, lambda S: S), "in both A and B"),
    ("one_root", low_with(on_A=torch.ones_like), "occurs once only"),
    ("all_in_A", low_with(lambda S: S, torch.ones_like), "all on one side"),
    ("all_in_B", low_with(torch.ones_like, lambda S: S), "all on one side"),
    ("smallest", low_with(pick=lambda M, r, axis: M.narrow(axis, M.shape[axis] - r, r)), "the smallest was kept"),
    ("exchanged", low_with(back=lambda A, B: (B, A)), "the two are exchanged"),
    ("product", low_with(back=lambda A, B: B @ A), "(A, B)"),
    ("rows_and_columns", lambda d, r: (d[:r], d[:, :r]), "expected 0"),
    ("not_cut", lambda d, r: low_with()(d, min(d.shape)), "A: expected shape (2, 9)"),
    ("B_turned", low_with(back=lambda A, B: (A, B.T)), "B: expected shape"),
]


@wrong(LOW, "V was turned")
def turned_where_it_fits(delta, rank):
    return low_with(turn=lambda Vh: Vh.T if Vh.shape[0] == Vh.shape[1] else Vh)(delta, rank)


@wrong(LOW, "could be")
def random_projection(delta, rank):
    A, B = low_with()(delta, rank)
    if torch.linalg.matrix_rank(delta) <= rank or int((delta != 0).sum()) == 3:
        return A, B
    torch.manual_seed(0)
    Q = torch.linalg.qr(delta @ torch.randn(delta.shape[1], rank)).Q
    return Q.T @ delta, Q


@wrong(LOW, "changed in place")
def in_place(delta, rank):
    out = low_with()(delta, rank)
    delta -= out[1] @ out[0]
    return out


@right(LOW)
def by_the_full_svd(delta, rank):
    U, S, V = torch.svd(delta, some=False)
    root = S[:rank] ** 0.5
    return (V[:, :rank] * root).T, U[:, :rank] @ torch.diag(root)


@right(LOW)
def by_eigenvectors(delta, rank):
    values, vectors = torch.linalg.eigh(delta.double().T @ delta.double())
    V = vectors.flip(1)[:, :rank]                                                       # (in,r)
    S = values.flip(0)[:rank].clamp(min=0).sqrt()
    A = S.sqrt()[:, None] * V.T
    return A.to(delta), (delta.double() @ V / S.sqrt()).to(delta)


@right(LOW)
def one_by_one(delta, rank):
    left, A, B = delta.clone(), [], []
    for _ in range(rank):
        U, S, Vh = torch.linalg.svd(left)
        A.append(S[0].sqrt() * Vh[0])
        B.append(S[0].sqrt() * U[:, 0])
        left = left - torch.outer(B[-1], A[-1])
    return torch.stack(A), torch.stack(B, dim=1)


# ---- lora.Adapter

ADAPTER = "lora.Adapter"


def adapter_with(scale=lambda alpha, rank: alpha / rank, draw=lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
                 zero=lambda w: nn.init.zeros_(w), forward=None, delta=None, weight=1.0):
    class Adapter(nn.Module):
        def __init__(self, down, up, rank, alpha, dropout=0.0):
            super().__init__()
            self.down, self.up, self.dropout = down, up, nn.Dropout(dropout)
            self.scale, self.weight = scale(alpha, rank), weight
            draw(down.weight)
            zero(up.weight)

        def forward(self, x):
            if forward:
                return forward(self, x)
            return self.weight * self.scale * self.up(self.down(self.dropout(x)))

        def delta(self):
            return delta(self) if delta else self.weight * self.scale * self.up.weight @ self.down.weight
    return Adapter


WRONG[ADAPTER] = [
    ("nothing_zero", adapter_with(zero=lambda w: None), "set up.weight (B) to zero"),
    ("A_zero_instead", adapter_with(draw=nn.init.zeros_, zero=nn.init.normal_),
     "not down.weight (A)"),
    ("both_zero", adapter_with(draw=nn.init.zeros_), "two layers of zeros"),
    ("A_not_drawn", adapter_with(draw=lambda w: None), "it was not drawn at all"),
    ("A_too_large", adapter_with(draw=nn.init.normal_), "kaiming_uniform_"),
    ("no_scale", adapter_with(lambda a, r: 1.0), "the scale is missing"),
    ("alpha_alone", adapter_with(lambda a, r: a), "not divided by the rank"),
    ("rank_over_alpha", adapter_with(lambda a, r: r / a), "the scale is rank / alpha"),
    ("one_over_rank", adapter_with(lambda a, r: 1 / r), "alpha is not used"),
    ("adds_x", adapter_with(forward=lambda s, x: (x if x.shape[-1] == s.up.out_features else 0)
                            + s.weight * s.scale * s.up(s.down(x))), "x itself was added"),
    ("scale_twice", adapter_with(forward=lambda s, x: s.weight * s.scale**2 * s.up(s.down(x))), "the scale is squared"),
    ("delta_turned", adapter_with(delta=lambda s: (s.weight * s.scale * s.up.weight @ s.down.weight).T), "or its transpose"),
    ("delta_without_scale", adapter_with(delta=lambda s: s.weight * s.up.weight @ s.down.weight), "missing in delta()"),
    ("weight_not_in_forward", adapter_with(forward=lambda s, x: s.scale * s.up(s.down(x))), "not used in forward"),
    ("weight_not_in_delta", adapter_with(delta=lambda s: s.scale * s.up.weight @ s.down.weight), "not used in delta"),
    ("weight_of_zero", adapter_with(weight=0.0), "expected 240"),
]


@wrong(ADAPTER, "no gradient reaches")
class Detached(adapter_with()):
    def forward(self, x):
        return self.weight * self.scale * self.up(self.down(x).detach())


@wrong(ADAPTER, "should be the two layers that were handed in")
class LayersOfItsOwn(adapter_with()):
    def __init__(self, down, up, rank, alpha, dropout=0.0):
        super().__init__(nn.Linear(down.in_features, rank, bias=False), nn.Linear(rank, up.out_features, bias=False), rank, alpha)


@wrong(ADAPTER, "they are down.weight, factor, up.weight")
class ScaleAsAParameter(adapter_with()):
    def __init__(self, down, up, rank, alpha, dropout=0.0):
        super().__init__(down, up, rank, alpha)
        self.factor = nn.Parameter(torch.tensor(alpha / rank))


RIGHT[ADAPTER] = [
    ("through_the_matrix", adapter_with(forward=lambda s, x: x @ s.delta().T)),
    ("drawn_by_hand", adapter_with(draw=lambda w: nn.init.uniform_(w, -w.shape[1] ** -0.5, w.shape[1] ** -0.5))),
    ("einsum", adapter_with(zero=lambda w: w.data.fill_(0), delta=lambda s: torch.einsum(
        "or,ri->oi", s.up.weight, s.down.weight) * s.weight * s.scale)),
]


# ---- lora.LoRALinear

LAYER = "lora.LoRALinear"


class Whole(nn.Module):
    """The right answer, to be changed in one place."""

    def __init__(self, linear, rank=4, alpha=1.0, dropout=0.0, name="default"):
        super().__init__()
        self.base, self.adapters, self.before = linear.requires_grad_(False), nn.ModuleDict(), None
        self.add(name, rank, alpha, dropout)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def add(self, name, rank, alpha, dropout=0.0):
        down = nn.Linear(self.base.in_features, rank, bias=False)
        up = nn.Linear(rank, self.base.out_features, bias=False)
        self.adapters[name] = adapter_with()(down, up, rank, alpha, dropout).to(self.base.weight)
        return self.adapters[name]

    def forward(self, x):
        y = self.base(x)
        for adapter in self.adapters.values() if self.before is None else ():
            y = y + adapter(x)
        return y

    @torch.no_grad()
    def merge(self):
        if self.before is None:
            self.before = self.base.weight.clone()
            self.base.weight += sum(adapter.delta() for adapter in self.adapters.values())

    @torch.no_grad()
    def unmerge(self):
        if self.before is not None:
            self.base.weight.copy_(self.before)
            self.before = None


def layer_with(**changes):
    return type("LoRALinear", (Whole,), changes)


def before_and(function):
    """An __init__ that does the right thing, then something more."""
    def __init__(self, linear, rank=4, alpha=1.0, dropout=0.0, name="default"):
        Whole.__init__(self, linear, rank, alpha, dropout, name)
        function(self)
    return __init__


def only_the_first(self, x):
    return self.base(x) + (0 if self.before is not None else next(iter(self.adapters.values()))(x))


def counts_twice(self, x):
    return self.base(x) + sum(a(x) for a in self.adapters.values())


def no_base(self, x):
    return sum(a(x) for a in self.adapters.values()) if self.before is None else self.base(x)


@torch.no_grad()
def merges_again(self):
    if self.before is None:
        self.before = self.base.weight.clone()
    self.base.weight += sum(a.delta() for a in self.adapters.values())


@torch.no_grad()
def subtracts(self):
    if self.before is not None:
        self.base.weight -= sum(a.delta() for a in self.adapters.values())
        self.before = None


@torch.no_grad()
def keeps_a_second_name(self):
    if self.before is None:
        self.before = self.base.weight
        self.base.weight += sum(a.delta() for a in self.adapters.values())


@torch.no_grad()
def takes_away(self):
    if self.before is None:
        self.before = self.base.weight.clone()
        self.base.weight -= sum(a.delta() for a in self.adapters.values())


@torch.no_grad()
def merges_one(self):
    if self.before is None:
        self.before = self.base.weight.clone()
        self.base.weight += next(iter(self.adapters.values())).delta()


def merges_with_a_graph(self):
    if self.before is None:
        self.before = self.base.weight.detach().clone()
        changed = self.base.weight + sum(a.delta() for a in self.adapters.values())
        del self.base.weight
        self.base.weight = changed


@torch.no_grad()
def stays_merged(self):
    if self.before is not None:
        self.base.weight.copy_(self.before)


@torch.no_grad()
def unmerges_without_a_merge(self):
    weight = self.base.weight - sum(a.delta() for a in self.adapters.values())
    self.base.weight.copy_(weight if self.before is None else self.before)
    self.before = None


WRONG[LAYER] = [
    ("not_frozen_as_in_the_article", layer_with(__init__=before_and(lambda s: s.base.requires_grad_(True))), "as in the article"),
    ("bias_trained", layer_with(__init__=before_and(lambda s: s.base.bias is not None and s.base.bias.requires_grad_(True))),
     "base.bias can still be trained"),
    ("all_frozen", layer_with(__init__=before_and(lambda s: s.requires_grad_(False))), "freeze the base, not the whole layer"),
    ("no_base", layer_with(forward=no_base), "changes the layer's answer"),
    ("no_adapters", layer_with(forward=lambda s, x: s.base(x)), "the adapters are not added"),
    ("only_the_first", layer_with(forward=only_the_first), "only the first adapter is added"),
    ("adapter_reads_something_else", layer_with(forward=lambda s, x: Whole.forward(s, x) + 0 * x.sum() if s.before is not None
                                                else s.base(x) + sum(a(torch.tanh(x)) for a in s.adapters.values())),
     "1 adapter: expected"),
    ("counts_twice", layer_with(forward=counts_twice), "the change counts twice"),
    ("merges_again", layer_with(merge=merges_again), "a second merge() merged again"),
    ("subtracts", layer_with(unmerge=subtracts), "W + D - D is not W"),
    ("second_name", layer_with(merge=keeps_a_second_name), "not a second name for it"),
    ("takes_away", layer_with(merge=takes_away), "the change was subtracted"),
    ("merges_one", layer_with(merge=merges_one), "only one adapter was merged"),
    ("never_merges", layer_with(merge=lambda s: None, unmerge=lambda s: None), "merge() did not change"),
    ("stays_merged", layer_with(unmerge=stays_merged), "the adapters should count again"),
    ("unmerges_without_a_merge", layer_with(unmerge=unmerges_without_a_merge), "without a merge changed the weight"),
    ("with_a_graph", layer_with(merge=merges_with_a_graph), "hangs on a graph"),
    ("a_copy_of_the_layer", layer_with(__init__=before_and(lambda s: setattr(s, "base", nn.Linear(5, 4)))), "the very layer"),
    ("a_plain_dict", layer_with(__init__=before_and(lambda s: s.__dict__.update(adapters=dict(s._modules.pop("adapters"))))),
     "an nn.ModuleDict"),
    ("always_default", layer_with(__init__=lambda s, linear, rank=4, alpha=1.0, dropout=0.0, name="default":
                                  Whole.__init__(s, linear, rank, alpha, dropout)), "under the name that was asked for"),
]


def by_one_matrix(self, x):
    """As if always merged, the weight made anew each time."""
    weight = self.base.weight
    if self.before is None:
        weight = weight + sum(a.delta() for a in self.adapters.values())
    return nn.functional.linear(x, weight, self.base.bias)


@right(LAYER)
class WithoutAReset(Whole):
    def forward(self, x):
        return self.base(x) if self.before is not None else self.base(x) + sum(a(x) for a in self.adapters.values())


@right(LAYER)
class ReplacesTheParameter(Whole):
    def merge(self):
        if self.before is None:
            self.before = self.base.weight
            changed = self.base.weight.detach() + torch.stack([a.delta().detach() for a in self.adapters.values()]).sum(0)
            self.base.weight = nn.Parameter(changed, requires_grad=False)

    def unmerge(self):
        if self.before is not None:
            self.base.weight, self.before = self.before, None


@right(LAYER)
class ThroughData(Whole):
    def merge(self):
        if self.before is not None:
            return
        self.before = self.base.weight.data.clone()
        for adapter in self.adapters.values():
            self.base.weight.data.add_(adapter.delta().data)

    def unmerge(self):
        if self.before is not None:
            self.base.weight.data = self.before
            self.before = None


# ---- lora.inject

INJECT = "lora.inject"


def matches(path, targets):
    return any(path == t or path.endswith(f".{t}") for t in targets)


def inject_with(fits=matches, freeze="first", names=lambda model: [p for p, _ in model.named_modules()],
                collect=lambda layer: [p for p in layer.parameters() if p.requires_grad], put=True):
    def inject(model, targets, make):
        trained = []
        if freeze == "first":
            model.requires_grad_(False)
        for path in [p for p in names(model) if fits(p, targets)]:
            parent, _, last = path.rpartition(".")
            layer = make(model.get_submodule(path))
            if put:
                setattr(model.get_submodule(parent), last, layer)
            trained += collect(layer)
        if freeze == "last":
            model.requires_grad_(False)
        return trained
    return inject


WRONG[INJECT] = [
    ("nothing_returned", lambda m, t, make: inject_with()(m, t, make) and None, "is the `return` missing?"),
    ("returns_layers", inject_with(collect=lambda layer: [layer]), "expected parameters, got LoRALinear"),
    ("returns_names", inject_with(collect=lambda layer: [n for n, _ in layer.named_parameters()]), "got str"),
    ("endswith_alone", inject_with(lambda p, ts: any(p.endswith(t) for t in ts)), "a whole name must match"),
    ("anywhere_in_the_path", inject_with(lambda p, ts: any(f".{t}" in f".{p}" for t in ts)), "make was handed a LayerNorm"),
    ("whole_path_only", inject_with(lambda p, ts: p in ts), "blocks.0.to_q was not replaced"),
    ("never_at_the_top", inject_with(lambda p, ts: any(p.endswith(f".{t}") for t in ts)), "to_q was not replaced"),
    ("last_name_only", inject_with(lambda p, ts: p.split(".")[-1] in ts), "to_out.0 was not replaced"),
    ("children_only", inject_with(names=lambda m: [n for n, _ in m.named_children()]), "blocks.0.to_q was not replaced"),
    ("not_put_in", inject_with(put=False), "was not replaced"),
    ("never_frozen", inject_with(freeze=""), "can still be trained: freeze the whole model"),
    ("frozen_last", inject_with(freeze="last"), "freeze the model before"),
    ("all_parameters", inject_with(collect=lambda layer: list(layer.parameters())), "are no adapter's"),
    ("only_A", inject_with(collect=lambda layer: list(layer.adapters["default"].down.parameters())), "missing from the list"),
]


@wrong(INJECT, "put in another one's place")
def always_the_top(model, targets, make):
    top = model.to_q
    return inject_with()(model, targets, lambda layer: make(top))


@wrong(INJECT, "twice")
def in_the_list_twice(model, targets, make):
    return 2 * inject_with()(model, targets, make)


@right(INJECT)
def by_recursion(model, targets, make):
    def walk(module, path):
        found = []
        for name, child in list(module.named_children()):
            here = f"{path}.{name}" if path else name
            if matches(here, targets):
                new = make(child)
                setattr(module, name, new)
                found += list(new.adapters.parameters())
            else:
                found += walk(child, here)
        return found
    for p in model.parameters():
        p.requires_grad = False
    return walk(model, "")


@right(INJECT)
def collected_at_the_end(model, targets, make):
    inject_with(freeze="first")(model, targets, make)
    return [p for p in model.parameters() if p.requires_grad]


@right(INJECT)
def as_a_generator_of_dots(model, targets, make):
    dotted = tuple(f".{t}" for t in targets)
    return inject_with(lambda p, ts: f".{p}".endswith(dotted))(model, targets, make)


# ---- lora.training_bytes

BYTES = "lora.training_bytes"


def bytes_with(size=lambda p: p.numel() * p.element_size(), of=lambda m: list(m.parameters()), trained=lambda p: p.requires_grad,
               moments=2, counted=lambda p: True):
    def training_bytes(model):
        weights = sum(size(p) for p in of(model) if counted(p))
        gradients = sum(size(p) for p in of(model) if trained(p))
        return weights, gradients, moments * gradients
    return training_bytes


WRONG[BYTES] = [
    ("numbers", bytes_with(size=lambda p: p.numel()), "not bytes"),
    ("always_4", bytes_with(size=lambda p: 4 * p.numel()), "float16 takes 2 bytes"),
    ("one_moment", bytes_with(moments=1), "Adam keeps two numbers"),
    ("three_moments", bytes_with(moments=3), "not three"),
    ("all_trained", bytes_with(trained=lambda p: True), "frozen weights have no gradient"),
    ("only_trained_weights", bytes_with(counted=lambda p: p.requires_grad), "frozen weights take room as well"),
    ("buffers_too", bytes_with(of=lambda m: [*m.parameters(), *m.buffers()]), "buffers are no weights"),
    ("no_bias", bytes_with(of=lambda m: [p for p in m.parameters() if p.ndim > 1]), "the bias counts, too"),
    ("two_of_three", lambda m: bytes_with()(m)[:2], "expected (weights, gradients, adam)"),
    ("megabytes", lambda m: tuple(b / 1e6 for b in bytes_with()(m)), "expected a whole number"),
]


@right(BYTES)
def by_itemsize(model):
    w = g = 0
    for p in model.parameters():
        b = p.data.nbytes
        w += b
        g += b if p.requires_grad else 0
    return w, g, g + g


@right(BYTES)
def as_tensors(model):
    frozen = torch.tensor([p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad] + [0]).sum().item()
    trained = torch.tensor([p.numel() * p.element_size() for p in model.parameters() if p.requires_grad] + [0]).sum().item()
    return [frozen + trained, trained, 2 * trained]


RIGHT[BYTES].append(("by_storage", bytes_with(size=lambda p: p.untyped_storage().nbytes())))


# ---- lora.stacked

STACKED = "lora.stacked"


def stacked_with(on_A=lambda A, s: A, on_B=lambda B, s: s * B, back=lambda A, B: (A, B)):
    def stacked(adapters):
        return back(torch.cat([on_A(A, s) for A, _, s in adapters]), torch.cat([on_B(B, s) for _, B, s in adapters], dim=1))
    return stacked


WRONG[STACKED] = [
    ("no_scales", stacked_with(on_B=lambda B, s: B), "the scales are missing"),
    ("scale_in_both", stacked_with(on_A=lambda A, s: s * A), "in both A and B"),
    ("first_scale", lambda ads: stacked_with(on_B=lambda B, s: ads[0][2] * B)(ads), "one scale was used for all"),
    ("last_scale", lambda ads: stacked_with(on_B=lambda B, s: ads[-1][2] * B)(ads), "one scale was used for all"),
    ("mean", lambda ads: stacked_with(on_B=lambda B, s: s * B / len(ads))(ads), "the mean of the two"),
    ("product", stacked_with(back=lambda A, B: B @ A), "(A, B)"),
    ("exchanged", stacked_with(back=lambda A, B: (B, A)), "A: expected shape (5, 5)"),
    ("two_only", lambda ads: stacked_with()(ads[:2]), "ranks (1, 1, 4)"),
    ("turned", stacked_with(back=lambda A, B: (A, B.T)), "B: expected shape (4, 5)"),
]


@wrong(STACKED, "it raised")
def summed(adapters):
    return sum(A for A, _, _ in adapters), sum(s * B for _, B, s in adapters)


@wrong(STACKED, "changed in place")
def scaled_in_place(adapters):
    for _, B, s in adapters:
        B *= s
    return stacked_with(on_B=lambda B, s: B)(adapters)


RIGHT[STACKED] = [
    ("scale_in_A", stacked_with(lambda A, s: s * A, lambda B, s: B)),
    ("root_in_both", stacked_with(lambda A, s: s**0.5 * A, lambda B, s: s**0.5 * B)),
]


@right(STACKED)
def column_by_column(adapters):
    rows = [row for A, _, _ in adapters for row in A]
    columns = [s * column for _, B, s in adapters for column in B.T]
    return torch.stack(rows), torch.stack(columns, dim=1)
