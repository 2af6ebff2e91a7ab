"""Exercises 5 and 6: a look ahead, patches and the block of a diffusion transformer."""

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch16.answers import Block, Patchify, normed

# ---- 5 · patches

PATCHIFY = Exercise("dit.Patchify", points=3, minutes=12, reference=Patchify)


@PATCHIFY.gate("to_tokens gives (B,N,p*p*C), to_picture (B,C,H,W)")
def _(kind):
    patches = kind(2)
    tokens = patches.to_tokens(normal((2, 3, 4, 6), 1))
    return tensor_like(tokens, (2, 6, 12)) or tensor_like(patches.to_picture(normal((2, 6, 12), 2), 4, 6), (2, 3, 4, 6))


@PATCHIFY.property("worked by hand: 4 x 4 numbers, the first token is the top left patch, row by row")
def _(kind):
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    right = torch.tensor([[[0.0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]])
    return compare(kind(2).to_tokens(x), right, {
        "the tokens hold rows of the picture, not patches: H is (H/p, p), and the two p belong together": x.reshape(1, 4, 4),
        "the patches go down first, then to the right": right[:, [0, 2, 1, 3]],
        "inside a patch columns come before rows": right[:, :, [0, 2, 1, 3]],
        "each token holds pixels from all over the picture: H splits into (H/p, p), in this order":
            x.reshape(1, 2, 2, 2, 2).permute(0, 2, 4, 1, 3).reshape(1, 4, 4)})


@PATCHIFY.property("channels stand innermost: (p, p, C)")
def _(kind):
    x = torch.stack([torch.arange(4.0).reshape(2, 2), 10 + torch.arange(4.0).reshape(2, 2)])[None]     # (1,2,2,2)
    return compare(kind(2).to_tokens(x), torch.tensor([[[0.0, 10, 1, 11, 2, 12, 3, 13]]]), {
        "channels stand outermost, (C, p, p): DiT's released weights want (p, p, C)":
            torch.tensor([[[0.0, 1, 2, 3, 10, 11, 12, 13]]])})


@PATCHIFY.property("to_picture undoes to_tokens, also for pictures that are not square and other p")
def _(kind):
    for p, shape in ((2, (2, 3, 4, 6)), (4, (1, 4, 8, 4)), (1, (2, 2, 3, 5)), (3, (1, 1, 3, 9))):
        x = normal(shape, 3)
        if compare(kind(p).to_picture(kind(p).to_tokens(x), *shape[2:]), x):
            return f"to_picture(to_tokens(x)) is another picture for p = {p} and x of shape {shape}"


@PATCHIFY.property("equals the library's, both ways")
def _(kind):
    x, tokens = normal((2, 4, 8, 12), 4), normal((2, 24, 16), 5)
    return (compare(kind(2).to_tokens(x), Patchify(2).to_tokens(x))
            or compare(kind(2).to_picture(tokens, 8, 12), Patchify(2).to_picture(tokens, 8, 12)))


@PATCHIFY.hygiene("leaves its inputs as they were")
def _(kind):
    both = lambda x, t: (kind(2).to_tokens(x), kind(2).to_picture(t, 4, 4))             # noqa: E731
    return touched(both, normal((1, 3, 4, 4), 6), normal((1, 4, 12), 7))


# ---- 6 · the block

BLOCK = Exercise("dit.Block", points=4, minutes=20, reference=Block)
KEYS = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias",
        "modulation.1.weight", "modulation.1.bias")


def _shaken(kind, dim=12, heads=3, seed=0):
    """A block of this kind and the library's, with the same random weights."""
    mine, right = kind(dim, heads), Block(dim, heads)
    state = {name: 0.3 * normal(tuple(p.shape), seed + i) for i, (name, p) in enumerate(right.state_dict().items())}
    mine.load_state_dict(state)
    right.load_state_dict(state)
    return mine.eval(), right.eval()


@BLOCK.gate("has the parameters of the prompt, and returns (B,N,D)")
def _(kind):
    block = kind(12, 3)
    if not isinstance(block, torch.nn.Module):
        return "expected a class of modules: class Block(nn.Module)"
    state = block.state_dict()
    if missing := [key for key in KEYS if key not in state]:
        return f"the parameter {missing[0]} is missing: names are fixed, so that weights load"
    if more := [key for key in state if key not in KEYS]:
        return f"the parameter {more[0]} is one too many: the norms have none, scale and shift come from c"
    for key, value in Block(12, 3).state_dict().items():
        if state[key].shape != value.shape:
            return f"{key} should have shape {tuple(value.shape)}, got {tuple(state[key].shape)}"
    return tensor_like(block(normal((2, 5, 12), 1), normal((2, 12), 2)), (2, 5, 12))


@BLOCK.property("a new block passes x on, whatever c says")
def _(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        block, x = kind(12, 3), normal((2, 5, 12), 3)
    with torch.no_grad():
        if block.modulation[1].weight.abs().max() > 0 or block.modulation[1].bias.abs().max() > 0:
            return "weight and bias of modulation[1] start at zero: nn.init.zeros_"
        return compare(block(x, normal((2, 12), 4)), x, {
            "at zero gates nothing is left of x: the branch is gated, not the sum": 0 * x,
            "the gate is 1 + gate: only the scale is, a gate of zero closes": opened(block, x)})


def opened(block, x):
    """The block with gates of 1 and nothing else modulated."""
    other = Block(12, 3)
    other.load_state_dict(block.state_dict())
    x = x + other.attend(normed(x))
    return x + other.mlp(normed(x))


def _variant(block, x, c, order=(0, 1, 2, 3, 4, 5), one=1.0, silu=True, norm=normed, stream=False):
    m = block.modulation[1](block.modulation[0](c) if silu else c)[:, None].chunk(6, -1)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (m[i] for i in order)
    h = x + gate_1 * block.attend(norm(x) * (one + scale_1) + shift_1)
    return h + gate_2 * block.mlp(norm(x if stream else h) * (one + scale_2) + shift_2)


@BLOCK.property("modulated attention, then a modulated MLP, each with its shift, scale and gate, in this order")
def _(kind):
    mine, right = _shaken(kind)
    x, c = normal((2, 5, 12), 5), normal((2, 12), 6)
    with torch.no_grad():
        return compare(mine(x, c), right(x, c), {
            "scale and shift have changed places: shift, scale, gate": _variant(right, x, c, (1, 0, 2, 4, 3, 5)),
            "the gate stands first: shift, scale, gate": _variant(right, x, c, (1, 2, 0, 4, 5, 3)),
            "the MLP's three numbers come last, the attention's first": _variant(right, x, c, (3, 4, 5, 0, 1, 2)),
            "shifts, scales and gates stand in pairs: three for the attention, then three for the MLP":
                _variant(right, x, c, (0, 2, 4, 1, 3, 5)),
            "the norm is multiplied by scale: by 1 + scale": _variant(right, x, c, one=0.0),
            "the SiLU before modulation[1] is missing": _variant(right, x, c, silu=False),
            "the norm is missing": _variant(right, x, c, norm=lambda x: x),
            "the MLP reads x, not what the attention left": _variant(right, x, c, stream=True)})


@BLOCK.property("each picture has its own c, and every token sees every other")
def _(kind):
    mine, _ = _shaken(kind, seed=20)
    x, c = normal((2, 5, 12), 7), normal((2, 12), 8)
    with torch.no_grad():
        base, other = mine(x, c), mine(x, torch.cat([c[:1], c[1:] + 1]))
        if not torch.allclose(base[0], other[0], atol=1e-5) or torch.allclose(base[1], other[1], atol=1e-3):
            return "another c for picture 1 should change picture 1, and only that"
        moved = x.clone()
        moved[:, 4] += torch.arange(12.0)
        if (mine(moved, c)[:, :4] - base[:, :4]).abs().amax((0, 2)).min() < 1e-5:
            return "the last token changed, and others did not notice: attention is not causal here"
        order = [3, 1, 0, 4, 2]
        return compare(mine(x[:, order], c), base[:, order])


@BLOCK.property("the gradient reaches the gates of a new block, so that it can open")
def _(kind):
    block = kind(12, 3)
    block(normal((2, 5, 12), 9), normal((2, 12), 10)).square().sum().backward()
    grad = block.modulation[1].weight.grad
    if grad is None or grad.reshape(6, 12, 12)[2].abs().max() == 0 or grad.reshape(6, 12, 12)[5].abs().max() == 0:
        return "no gradient reaches a gate: are proj or mlp[2] zero, too? Only modulation[1] starts at zero"


@BLOCK.hygiene("leaves its inputs as they were")
def _(kind):
    return touched(kind(12, 3).eval(), normal((2, 5, 12), 11), normal((2, 12), 12))
