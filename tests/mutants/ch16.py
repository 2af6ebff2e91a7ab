"""Answers to the exercises of chapter 16: wrong ones that students write, and right ones that look different.

`WRONG[id]` holds (name, answer, words the report must contain); `RIGHT[id]` holds (name, answer).
"""

import contextlib
import hashlib
import io
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

WRONG: dict[str, list[tuple]] = {}
RIGHT: dict[str, list[tuple]] = {}


def wrong(id: str, words: str):
    return lambda function: WRONG.setdefault(id, []).append((function.__name__, function, words)) or function


def right(id: str):
    return lambda function: RIGHT.setdefault(id, []).append((function.__name__, function)) or function


# ---- capstone.swapped

SWAPPED = "capstone.swapped"


@wrong(SWAPPED, "in a `finally`")
@contextlib.contextmanager
def no_finally(module, name, mine):
    before = getattr(module, name)
    setattr(module, name, mine)
    yield
    setattr(module, name, before)


@wrong(SWAPPED, "nobody heard of it")
@contextlib.contextmanager
def swallows(module, name, mine):
    before = getattr(module, name)
    setattr(module, name, mine)
    with contextlib.suppress(Exception):
        yield
    setattr(module, name, before)


@wrong(SWAPPED, "the part is still yours")
@contextlib.contextmanager
def kept_too_late(module, name, mine):
    setattr(module, name, mine)
    before = getattr(module, name)
    try:
        yield
    finally:
        setattr(module, name, before)


@wrong(SWAPPED, "the attribute is gone")
@contextlib.contextmanager
def deletes(module, name, mine):
    setattr(module, name, mine)
    try:
        yield
    finally:
        delattr(module, name)


@wrong(SWAPPED, "the part is still yours")
@contextlib.contextmanager
def never_back(module, name, mine):
    setattr(module, name, mine)
    yield


@wrong(SWAPPED, "setattr(module, name, mine)")
@contextlib.contextmanager
def only_a_variable(module, name, mine):
    before = getattr(module, name)
    part = mine
    try:
        yield part
    finally:
        setattr(module, name, before)


@wrong(SWAPPED, "setattr(module, name, mine)")
@contextlib.contextmanager
def called_name(module, name, mine):
    module.name = mine
    try:
        yield
    finally:
        del module.name


@wrong(SWAPPED, "not what it was before")
@contextlib.contextmanager
def none_left(module, name, mine):
    setattr(module, name, mine)
    try:
        yield
    finally:
        setattr(module, name, None)


@wrong(SWAPPED, "it raised TypeError")
def no_context_manager(module, name, mine):
    setattr(module, name, mine)


@wrong(SWAPPED, "before the block begins")
class AtOnce:
    def __init__(self, module, name, mine):
        self.place, self.before = (module, name), getattr(module, name)
        setattr(module, name, mine)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        setattr(*self.place, self.before)


KEPT: dict = {}


@wrong(SWAPPED, "one inside the other")
@contextlib.contextmanager
def one_memory_for_all(module, name, mine):
    KEPT.setdefault(id(module), getattr(module, name))
    setattr(module, name, mine)
    try:
        yield
    finally:
        setattr(module, name, KEPT[id(module)])


@right(SWAPPED)
class AsAClass:
    def __init__(self, module, name, mine):
        self.module, self.name, self.mine = module, name, mine

    def __enter__(self):
        self.before = getattr(self.module, self.name)
        setattr(self.module, self.name, self.mine)

    def __exit__(self, *error):
        setattr(self.module, self.name, self.before)


@right(SWAPPED)
def by_mock(module, name, mine):
    return mock.patch.object(module, name, mine)


@right(SWAPPED)
@contextlib.contextmanager
def by_an_exit_stack(module, name, mine):
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, mine)
        yield mine


# ---- capstone.picture_distance

DISTANCE = "capstone.picture_distance"


def distance_with(off=lambda a, b: (a.int() - b.int()).abs(), largest=lambda d: d.max(), places=lambda d: d.amax(0), more=1,
                  share=lambda hit: hit.float().mean()):
    def picture_distance(mine, reference):
        d = off(mine, reference)
        return float(largest(d)), float(share(places(d) > more))
    return picture_distance


WRONG[DISTANCE] = [
    ("bytes", distance_with(lambda a, b: a - b), "wrap around"),
    ("bytes_then_abs", distance_with(lambda a, b: (a - b).int().abs()), "wrap around"),
    ("no_abs", distance_with(lambda a, b: a.int() - b.int()), "absolute value"),
    ("of_1", distance_with(lambda a, b: (a.int() - b.int()).abs() / 255), "do not divide by 255"),
    ("squared", distance_with(lambda a, b: (a.int() - b.int()) ** 2), "the square"),
    ("mean", distance_with(largest=lambda d: d.float().mean()), "one wrong pixel"),
    ("sum", distance_with(largest=lambda d: d.sum()), "expected"),
    ("rounding_counts", distance_with(more=0), "a difference of 1 is rounding"),
    ("values", distance_with(places=lambda d: d), "a place counts once"),
    ("all_channels", distance_with(places=lambda d: d.amin(0)), "any channel"),
    ("number", distance_with(share=lambda hit: hit.sum()), "this is their number"),
    ("agreeing", distance_with(share=lambda hit: 1 - hit.float().mean()), "that agree"),
    ("percent", distance_with(share=lambda hit: 100 * hit.float().mean()), "a percentage"),
    ("only_the_largest", lambda a, b: float((a.int() - b.int()).abs().max()), "(largest, share)"),
]


@right(DISTANCE)
def by_numpy(mine, reference):
    off = np.abs(mine.numpy().astype(int) - reference.numpy().astype(int))
    return int(off.max()), float((off > 1).any(axis=0).mean())


@right(DISTANCE)
def as_tensors(mine, reference):
    off = (mine.double() - reference).abs()
    return off.max(), ((off > 1).sum(0) > 0).double().mean()


@right(DISTANCE)
def by_max_minus_min(mine, reference):
    off = (torch.maximum(mine, reference) - torch.minimum(mine, reference)).flatten(1)
    return off.max().item(), sum(1 for place in off.T.tolist() if max(place) > 1) / off.shape[1]


# ---- capstone.culprits

CULPRITS = "capstone.culprits"


def culprits_with(first=lambda n: n[:len(n) // 2], second=lambda n: n[len(n) // 2:], single=lambda names: list(names),
                  stop=lambda names, same: not names or same(names), join=lambda a, b: a + b):
    def culprits(names, same):
        if stop(names, same):
            return []
        if len(names) == 1:
            return single(names)
        return join(culprits(first(names), same), culprits(second(names), same))
    return culprits


@wrong(CULPRITS, "do not try one after the other")
def one_by_one(names, same):
    return [] if not names or same(names) else [name for name in names if not same([name])]


@wrong(CULPRITS, "ask about all at once first")
def one_by_one_at_once(names, same):
    return [name for name in names if not same([name])]


@wrong(CULPRITS, "does not acquit the other")
def one_culprit_only(names, same):
    if not names or same(names):
        return []
    while len(names) > 1:
        half = names[:len(names) // 2]
        names = half if not same(half) else names[len(names) // 2:]
    return list(names)


@wrong(CULPRITS, "only where `same` says False")
def never_acquitted(names, same):
    while len(names) > 1:
        half = names[:len(names) // 2]
        names = half if not same(half) else names[len(names) // 2:]
    return list(names)


WRONG[CULPRITS] += [
    ("turned", culprits_with(stop=lambda names, same: not names or not same(names)), "found were none"),
    ("middle_lost", culprits_with(second=lambda n: n[len(n) // 2 + 1:]), "found were"),
    ("odd_one_lost", culprits_with(second=lambda n: n[len(n) // 2: 2 * (len(n) // 2)]), "names[:half] and names[half:]"),
    ("halves_turned", culprits_with(join=lambda a, b: b + a), "not in the order"),
    ("name_alone", culprits_with(single=lambda names: names[0], join=lambda a, b: list(a) + list(b)), "found were"),
    ("nothing", lambda names, same: None, "is the `return` missing?"),
    ("first_only", culprits_with(join=lambda a, b: a or b), "does not acquit the other"),
]


@wrong(CULPRITS, "the caller's list was changed")
def eats_the_list(names, same):
    found = culprits_with()(names, same)
    names.clear()
    return found


@right(CULPRITS)
def with_a_stack(names, same):
    waiting, found = [list(names)], []
    while waiting:
        group = waiting.pop()
        if not group or same(group):
            continue
        if len(group) == 1:
            found += group
        else:
            waiting += [group[len(group) // 2:], group[:len(group) // 2]]
    return found


@right(CULPRITS)
def in_a_tuple(names, same):
    return tuple(culprits_with()(names, same))


@right(CULPRITS)
def one_at_a_time_by_bisection(names, same):
    found, rest = [], list(names)
    while rest and not same(rest):
        low, high = 0, len(rest)                               # rest[:low] is right, rest[:high] is not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if same(rest[:middle]) else (low, middle)
        found.append(rest[low])
        rest = rest[low + 1:]
    return found


# ---- capstone.fingerprint

FINGERPRINT = "capstone.fingerprint"


def fingerprint_with(order=sorted, head=lambda name, t: f"{name} {tuple(t.shape)} {t.dtype}",
                     body=lambda t: t.contiguous().numpy().tobytes(), end=lambda d: d.hexdigest(), hash=hashlib.sha256):
    def fingerprint(state):
        digest = hash()
        for name in order(state):
            digest.update(head(name, state[name]).encode())
            digest.update(body(state[name].detach().cpu()))
        return end(digest)
    return fingerprint


WRONG[FINGERPRINT] = [
    ("unsorted", fingerprint_with(order=list), "go through sorted(state)"),
    ("no_names", fingerprint_with(head=lambda name, t: f"{tuple(t.shape)} {t.dtype}"), "does not see a name"),
    ("no_shape", fingerprint_with(head=lambda name, t: f"{name} {t.dtype}"), "does not see a shape"),
    ("no_dtype", fingerprint_with(head=lambda name, t: f"{name} {tuple(t.shape)}"), "does not see a dtype"),
    ("bytes_alone", fingerprint_with(head=lambda name, t: name), "does not see a"),
    ("as_text", fingerprint_with(body=lambda t: str(t).encode()), "by a millionth"),
    ("sum_only", fingerprint_with(body=lambda t: f"{float(t.double().sum()):.3f}".encode()), "by a millionth"),
    ("no_bytes", fingerprint_with(body=lambda t: b""), "other values give the same"),
    ("digest", fingerprint_with(end=lambda d: d.digest()), "hexdigest()"),
    ("md5", fingerprint_with(hash=hashlib.md5), "64 digits"),
    ("python_hash", lambda state: f"{abs(hash(str(sorted(state)))):064x}"[-64:], "other values give the same"),
    ("pickled", lambda state: hashlib.sha256(pickled(state)).hexdigest(), "the order of the dictionary"),
    ("bytes_first", lambda state: hashlib.sha256(b"".join(
        state[n].contiguous().numpy().tobytes() + f"{n} {tuple(state[n].shape)} {state[n].dtype}".encode()
        for n in sorted(state))).hexdigest(), "another fingerprint than the library's"),
]


def pickled(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@right(FINGERPRINT)
def at_once(state):
    pieces = [f"{n} {tuple(t.shape)} {t.dtype}".encode() + np.ascontiguousarray(t.detach().numpy()).tobytes()
              for n, t in sorted(state.items())]
    return hashlib.sha256(b"".join(pieces)).hexdigest()


@right(FINGERPRINT)
def by_new(state):
    digest = hashlib.new("sha256")
    for name in sorted(state.keys()):
        t = state[name].clone(memory_format=torch.contiguous_format)
        digest.update(bytes(f"{name} {tuple(t.shape)!s} {t.dtype!s}", "utf-8"))
        digest.update(memoryview(t.numpy()).cast("B"))
    return digest.digest().hex()


@right(FINGERPRINT)
def tensor_by_tensor(state):
    return fingerprint_with(body=lambda t: bytes(t.contiguous().view(torch.uint8).flatten().tolist()))(state)


# ---- dit.Patchify

PATCHIFY = "dit.Patchify"


def patches_with(name, there="B C (h p) (w q) -> B (h w) (p q C)", back=None):
    left, _, tokens = there.partition(" -> ")
    back = back or f"{tokens} -> {left}"

    class Patches:
        def __init__(self, p):
            self.p = p

        def to_tokens(self, x):
            return rearrange(x, there, p=self.p, q=self.p)

        def to_picture(self, tokens, height, width):
            return rearrange(tokens, back, p=self.p, q=self.p, h=height // self.p, w=width // self.p)
    return name, Patches


WRONG[PATCHIFY] = [
    (*patches_with("channels_outermost", "B C (h p) (w q) -> B (h w) (C p q)"), "channels stand outermost"),
    (*patches_with("down_first", "B C (h p) (w q) -> B (w h) (p q C)"), "down first"),
    (*patches_with("columns_first", "B C (h p) (w q) -> B (h w) (q p C)"), "columns come before rows"),
    (*patches_with("spread_out", "B C (p h) (q w) -> B (h w) (p q C)"), "from all over the picture"),
    (*patches_with("transposed_back", back="B (h w) (p q C) -> B C (h q) (w p)"), "is another picture"),
    (*patches_with("one_token", "B C (h p) (w q) -> B (p q) (h w C)"), "expected shape"),
]


class Reshaped:
    def __init__(self, p):
        self.p = p

    def to_tokens(self, x):
        return x.reshape(len(x), -1, x.shape[1] * self.p**2)

    def to_picture(self, tokens, height, width):
        return tokens.reshape(len(tokens), -1, height, width)


class SquareOnly(patches_with("")[1]):
    def to_picture(self, tokens, height, width):
        side = int(tokens.shape[1] ** 0.5) * self.p
        return super().to_picture(tokens, side, side)


WRONG[PATCHIFY] += [("reshaped", Reshaped, "rows of the picture"), ("square_only", SquareOnly, "it raised")]


class ByUnfold:
    def __init__(self, p):
        self.p = p

    def to_tokens(self, x):
        columns = F.unfold(x, self.p, stride=self.p)           # (B,C*p*p,N)
        return rearrange(columns, "B (C k) N -> B N (k C)", C=x.shape[1])

    def to_picture(self, tokens, height, width):
        columns = rearrange(tokens, "B N (k C) -> B (C k) N", k=self.p**2)
        return F.fold(columns, (height, width), self.p, stride=self.p)


class ByUnshuffle:
    def __init__(self, p):
        self.p = p

    def to_tokens(self, x):
        h = F.pixel_unshuffle(x, self.p)                       # (B,C*p*p,h,w)
        return rearrange(h, "B (C k) h w -> B (h w) (k C)", C=x.shape[1])

    def to_picture(self, tokens, height, width):
        h = rearrange(tokens, "B (h w) (k C) -> B (C k) h w", h=height // self.p, k=self.p**2)
        return F.pixel_shuffle(h, self.p)


RIGHT[PATCHIFY] = [patches_with("by_einops"), ("by_unfold", ByUnfold), ("by_unshuffle", ByUnshuffle)]


# ---- dit.Block

BLOCK = "dit.Block"


def block_with(name, order=(0, 1, 2, 3, 4, 5), one=1.0, gate=lambda g: g, silu=True, norm=True, affine=False, zero="modulation",
               stream=False, scale=lambda d: d**-0.5, causal=False, axis=1, outer=False, out=True):
    class Block(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.heads = heads
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
            self.modulation = nn.Sequential(nn.SiLU() if silu else nn.Identity(), nn.Linear(dim, 6 * dim))
            if affine:
                self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            for module in {"modulation": [self.modulation[1]], "branches": [self.proj, self.mlp[2]],
                           "all": [self.modulation[1], self.proj, self.mlp[2]], "": []}[zero]:
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

        def normed(self, x, which):
            return which(x) if affine else F.layer_norm(x, x.shape[-1:], eps=1e-6) if norm else x

        def attend(self, x):
            q, k, v = rearrange(self.qkv(x), "B N (three h d) -> three B h N d", three=3, h=self.heads)
            out_ = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale(q.shape[-1]))
            out_ = rearrange(out_, "B h N d -> B N (h d)")
            return self.proj(out_) if out else out_

        def forward(self, x, c):
            m = self.modulation(c)[:, None].chunk(6, -1)
            if axis == 0:
                m = [part.mean(0, keepdim=True) for part in m]
            a, b, g, d, e, f = (m[i] for i in order)
            h = gate(g) * (self.attend(self.normed(x, getattr(self, "norm1", None)) * (one + b) + a) + (x if outer else 0))
            h = h if outer else x + h
            return h + gate(f) * self.mlp(self.normed(x if stream else h, getattr(self, "norm2", None)) * (one + e) + d)
    return name, Block


WRONG[BLOCK] = [
    (*block_with("not_zeroed", zero=""), "start at zero"),
    (*block_with("branches_zeroed", zero="branches"), "weight and bias of modulation[1] start at zero"),
    (*block_with("all_zeroed", zero="all"), "no gradient reaches a gate"),
    (*block_with("scale_first", (1, 0, 2, 4, 3, 5)), "scale and shift have changed places"),
    (*block_with("gate_first", (1, 2, 0, 4, 5, 3)), "the gate stands first"),
    (*block_with("mlp_first", (3, 4, 5, 0, 1, 2)), "the attention's first"),
    (*block_with("in_pairs", (0, 2, 4, 1, 3, 5)), "in pairs"),
    (*block_with("scale_alone", one=0.0), "by 1 + scale"),
    (*block_with("gate_of_one", gate=lambda g: 1 + g), "only the scale is"),
    (*block_with("no_silu", silu=False), "the SiLU before"),
    (*block_with("no_norm", norm=False), "the norm is missing"),
    (*block_with("affine_norms", affine=True), "one too many"),
    (*block_with("mlp_reads_x", stream=True), "not what the attention left"),
    (*block_with("no_scale", scale=lambda d: 1.0), "expected"),
    (*block_with("causal", causal=True), "expected"),
    (*block_with("sum_gated", outer=True), "not the sum"),
    (*block_with("c_averaged", axis=0), "expected"),
    ("plain_function", lambda dim, heads: lambda x, c: x, "a class of modules"),
]


class BySteps(block_with("")[1]):
    def forward(self, x, c):
        B, N, D = x.shape
        table = self.modulation[1](F.silu(c)).reshape(B, 2, 3, 1, D)
        for branch, three in zip((self.attend, self.mlp), table.unbind(1), strict=True):
            shift, scale, gate = three.unbind(1)               # (B,1,D) each
            mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            h = (x - mean) / (var + 1e-6).sqrt()
            x = x + gate * branch(h * (1 + scale) + shift)
        return x


class WithNormModules(block_with("")[1]):
    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False) for _ in range(2))

    def forward(self, x, c):
        a, b, g, d, e, f = (p.unsqueeze(1) for p in torch.tensor_split(self.modulation(c), 6, dim=1))
        x = x + g * self.attend(torch.addcmul(a, self.norm1(x), 1 + b))
        return torch.addcmul(x, f, self.mlp(torch.addcmul(d, self.norm2(x), 1 + e)))


RIGHT[BLOCK] = [block_with("by_sdpa"), ("by_steps", BySteps), ("with_norm_modules", WithNormModules)]
