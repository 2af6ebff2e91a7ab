"""Exercise 3: the residual block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch06.answers import ResBlock, randomise

RES_BLOCK = Exercise("layers.ResBlock", points=4, minutes=20, reference=ResBlock)


def _pair(fn, *sizes, seed: int = 20, **options):
    """The student's block with the random weights of the course's."""
    ours = randomise(ResBlock(*sizes, **options), seed)
    theirs = fn(*sizes, **options)
    try:
        theirs.load_state_dict(ours.state_dict())
    except RuntimeError:
        raise ValueError("its weights have not the names and shapes of the released files, so this was not tried") from None
    return theirs, ours


@RES_BLOCK.gate("ResBlock(in, out, time_emb_dim)(x, time_emb): (B,in,H,W), (B,time) -> (B,out,H,W)")
def _(fn):
    for sizes in ((16, 8, 12), (8, 8, 12)):
        block = fn(*sizes)
        if not isinstance(block, nn.Module):
            return f"expected a torch module, got {type(block).__name__}: class ResBlock(nn.Module)"
        try:
            out = block(normal((2, sizes[0], 4, 6), 1), normal((2, 12), 2))
        except RuntimeError as error:
            if "must match" not in str(error):
                raise
            return "the projected time is (B,out) and would meet H and W: give it two more axes, [:, :, None, None]"
        if problem := tensor_like(out, (2, 8, 4, 6)):
            return problem


@RES_BLOCK.property("the names and shapes of its weights are those of the released files")
def _(fn):
    for sizes in ((16, 32, 12), (16, 16, 12), (16, 16)):
        right = {k: tuple(v.shape) for k, v in ResBlock(*sizes).state_dict().items()}
        have = {k: tuple(v.shape) for k, v in fn(*sizes).state_dict().items()}
        title = f"ResBlock{sizes}"
        if missing := [k for k in right if k not in have]:
            return f"{title}: the weights {', '.join(missing)} are missing: a released file brings them under this name"
        if more := [k for k in have if k not in right]:
            why = ": equal widths need no shortcut weights" if "conv_shortcut.weight" in more else ""
            why = ": no time_emb_dim, no projection" if "time_emb_proj.weight" in more else why
            return f"{title}: {', '.join(more)} is in no released file{why}"
        if wrong := [k for k in right if right[k] != have[k]]:
            return f"{title}: {wrong[0]} should have shape {right[wrong[0]]}, has {have[wrong[0]]}"


@RES_BLOCK.property("starts by doing nothing: conv2 is zero, so that the block equals its shortcut")
def _(fn):
    block, x, e = fn(8, 8, 12), normal((2, 8, 4, 4), 3), normal((2, 12), 4)
    if problem := compare(block(x, e), x):
        zero = not any(p.any() for p in block.conv2.parameters())
        return "conv2 is zero, yet the block changes x: is the input added, as it is, at the end?" if zero else \
            f"a new block with equal widths must return x: set conv2's weight and bias to zero ({problem})"
    if not float(fn(8, 8, 12).conv1.weight.abs().sum()):
        return "conv1 is zero as well: then no gradient ever reaches it; only conv2 starts at zero"


@RES_BLOCK.property("equals the course's block with the same weights, both where widths agree and where they differ")
def _(fn):
    for sizes in ((16, 16, 12), (16, 32, 12)):
        theirs, ours = _pair(fn, *sizes)
        x, e = normal((2, sizes[0], 5, 5), 5), normal((2, 12), 6)
        if problem := compare(theirs(x, e), ours(x, e), _variants(ours, x, e), rtol=1e-3):
            return f"ResBlock{sizes}: {problem}"


@RES_BLOCK.property("norms have min(32, channels // 4) groups and the eps that is asked for")
def _(fn):
    for channels, groups in ((16, 4), (256, 32)):
        block = fn(channels, channels, 8, eps=1e-3)
        for name in ("norm1", "norm2"):
            norm = getattr(block, name)
            if getattr(norm, "num_groups", groups) != groups:
                return f"{name} of {channels} channels has {norm.num_groups} groups, expected {groups}"
            if abs(getattr(norm, "eps", 1e-3) - 1e-3) > 1e-9:
                return f"{name} has eps {norm.eps:g}, asked was 0.001: hand eps on to both norms"
    theirs, ours = _pair(fn, 16, 16, 12)
    x, e = normal((2, 16, 4, 4), 7), normal((2, 12), 8)
    if compare(theirs(x, e), ours(x, e), rtol=1e-3):
        return None                                             # something else is wrong with it, and said above
    theirs, ours = _pair(fn, 16, 16, 12, eps=0.5)               # eps that acts, wherever it is kept
    return compare(theirs(x, e), ours(x, e), rtol=1e-3)


@RES_BLOCK.property("without time_emb_dim it needs no time embedding, as in the autoencoder")
def _(fn):
    theirs, ours = _pair(fn, 16, 32)
    x = normal((2, 16, 4, 4), 9)
    return compare(theirs(x), ours(x), rtol=1e-3)


@RES_BLOCK.property("a gradient reaches x, the time embedding and every weight")
def _(fn):
    block = randomise(fn(16, 32, 12), 30)
    x, e = normal((2, 16, 4, 4), 10).requires_grad_(), normal((2, 12), 11).requires_grad_()
    block(x, e).square().sum().backward()
    given = {"x": x, "time_emb": e} | dict(block.named_parameters())
    missing = [name for name, p in given.items() if p.grad is None or not p.grad.any()]
    return f"no gradient reaches {', '.join(missing[:4])}" if missing else None


@RES_BLOCK.hygiene("leaves its inputs as they were")
def _(fn):
    theirs, _ = _pair(fn, 8, 8, 12)
    return touched(theirs, normal((2, 8, 4, 4), 12), normal((2, 12), 13))


@torch.no_grad()
def _variants(block: nn.Module, x: Tensor, e: Tensor) -> dict[str, Tensor]:
    """What likely bugs make of the course's block."""
    first = block.conv1(F.silu(block.norm1(x)))

    def column(values):
        return values[:, :, None, None]

    def end(h, activate=F.silu):
        return block.conv2(activate(block.norm2(h)))

    time = column(block.time_emb_proj(F.silu(e)))
    across = x if block.conv_shortcut is None else block.conv_shortcut(x)
    h = first + time
    return {
        "the input is not added at the end": end(h),
        "the time embedding is not added": end(first) + across,
        "the time embedding goes through no SiLU before its projection": end(first + column(block.time_emb_proj(e))) + across,
        "SiLU stands behind the projection of the time embedding, not in front of it":
            end(first + F.silu(column(block.time_emb_proj(e)))) + across,
        "the time embedding is added behind norm2: add it between conv1 and norm2":
            block.conv2(F.silu(block.norm2(first) + time)) + across,
        "the time embedding is added at the end: add it between conv1 and norm2": end(first) + time + across,
        "the time embedding is multiplied: add it": end(first * time) + across,
        "there is no SiLU behind norm2": end(h, lambda v: v) + across,
        "there is no SiLU behind norm1": end(block.conv1(block.norm1(x)) + time) + across,
        "ReLU instead of SiLU": block.conv2(F.relu(block.norm2(
            block.conv1(F.relu(block.norm1(x))) + column(block.time_emb_proj(F.relu(e)))))) + across,
        "SiLU stands in front of the norms: norm, then SiLU, then the convolution": block.conv2(block.norm2(F.silu(
            block.conv1(block.norm1(F.silu(x))) + time))) + across,
    }
