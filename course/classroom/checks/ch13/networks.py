"""Exercises 2 and 3: the hint network, and the copy of the trunk."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch13.answers import HintNet, copy_trunk

# ---- 2 · the hint network

HINT_NET = Exercise("controlnet.HintNet", points=4, minutes=15, reference=HintNet)
SIZES = ((4, 6, 10), 8)


@torch.no_grad()
def _drawn(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn anew, so that no zero hides anything."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) / max(p[0].numel() / 2, 2) ** 0.5)
    return module


@HINT_NET.gate("HintNet(channels, out_channels)(hint): (B,3,H,W) -> (B,out,H/f,W/f), f = 2 for each step in width")
def _(fn):
    for channels, out, f in (((4, 6), 5, 2), ((4, 6, 10), 8, 4)):
        net = fn(channels, out)
        if not isinstance(net, nn.Module):
            return f"expected a torch module, got {type(net).__name__}: class HintNet(nn.Module)"
        if problem := tensor_like(net(normal((2, 3, 16, 24), 1)), (2, out, 16 // f, 24 // f)):
            return f"channels {channels}: {problem}"


@HINT_NET.property("the names and shapes of its weights are those of the released files")
def _(fn):
    right = {k: tuple(v.shape) for k, v in HintNet(*SIZES).state_dict().items()}
    have = {k: tuple(v.shape) for k, v in fn(*SIZES).state_dict().items()}
    if missing := [k for k in right if k not in have]:
        return f"the weights {', '.join(missing[:3])} are missing: a released file brings them under this name"
    if more := [k for k in have if k not in right]:
        return f"{more[0]} is in no released file"
    if wrong := [k for k in right if right[k] != have[k]]:
        return f"{wrong[0]} should have shape {right[wrong[0]]}, has {have[wrong[0]]}"


@HINT_NET.property("its answer is zero at the start, and only because its last layer is")
def _(fn):
    net = fn(*SIZES)
    if (size := net(normal((2, 3, 16, 16), 2)).abs().max()) > 0:
        bias = not net.conv_out.weight.any()
        return f"a new hint network must answer exactly 0, got values up to {size:.2g}: " + (
            "conv_out's bias is not zero" if bias else "conv_out starts with weight and bias zero, and nothing follows it")
    if dead := [name for name, p in net.named_parameters() if name.endswith("weight") and not p.any() and "conv_out" not in name]:
        return f"{dead[0]} is zero as well: then no gradient ever reaches it; only conv_out starts at zero"


@HINT_NET.property("equals the course's with the same weights")
def _(fn):
    ours, theirs, hint = _drawn(HintNet(*SIZES), 3), fn(*SIZES), normal((2, 3, 16, 16), 4).abs()
    theirs.load_state_dict(ours.state_dict())
    return compare(theirs(hint), ours(hint), _variants(ours, hint), rtol=1e-3)


@HINT_NET.property("a gradient reaches every weight, once the last layer is no longer zero")
def _(fn):
    net = _drawn(fn(*SIZES), 5)
    net(normal((2, 3, 16, 16), 6)).square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    return f"no gradient reaches {', '.join(missing[:3])}" if missing else None


@HINT_NET.hygiene("leaves the hint as it was")
def _(fn):
    return touched(fn(*SIZES), normal((2, 3, 16, 16), 7))


@torch.no_grad()
def _variants(net: nn.Module, hint: Tensor) -> dict[str, Tensor]:
    """What likely bugs make of the course's network."""
    def run(act=F.silu, first=F.silu, last=lambda h: h, blocks=net.blocks, x=hint, odd=F.silu):
        h = first(net.conv_in(x))
        for i, block in enumerate(blocks):
            h = (odd if i % 2 else act)(block(h))
        return last(net.conv_out(h))

    early = [nn.Conv2d(b.in_channels, b.out_channels, 3, padding=1, stride=2 - i % 2) for i, b in enumerate(net.blocks)]
    for mine, theirs in zip(early, net.blocks, strict=True):
        mine.load_state_dict(theirs.state_dict())
    return {"there is no SiLU behind conv_in": run(first=lambda h: h),
            "SiLU stands behind conv_out: the last layer is linear": run(last=F.silu),
            "ReLU instead of SiLU": run(F.relu, F.relu, odd=F.relu),
            "there is no SiLU between the blocks": run(lambda h: h, odd=lambda h: h),
            "SiLU follows only every other block": run(odd=lambda h: h),
            "SiLU follows only every other block ": run(act=lambda h: h),
            "the first convolution of a pair strides: it is the second that halves the picture": run(blocks=early),
            "the hint was brought to [-1, 1]: it is shown as it is, in [0, 1]": run(x=2 * hint - 1)}


# ---- 3 · the copy

COPY = Exercise("controlnet.copy_trunk", points=3, minutes=10, reference=copy_trunk)


def _pair() -> tuple[nn.Module, nn.Module]:
    """(a network, a source) with some names in common; the source has a buffer, and parts of its own come first."""
    class Norm(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.weight = nn.Parameter(normal((3,), seed))
            self.register_buffer("count", torch.full((1,), float(seed)))

    def made(seed, **more):
        net = nn.Module()
        for name, layer in more.items():
            net.add_module(name, _drawn(layer, seed))
        net.trunk = nn.ModuleList([_drawn(nn.Linear(3, 3), seed + 1), Norm(seed + 2)])
        net.time = _drawn(nn.Linear(2, 3), seed + 3)
        return net

    own = made(10, hint=nn.Linear(3, 3), zero=nn.Conv2d(3, 3, 1))
    return own, made(20, up=nn.Linear(3, 3), out=nn.Conv2d(3, 3, 1), last=nn.Linear(3, 3))


def _mine(names) -> bool:
    return set(names) == {"hint.weight", "hint.bias", "zero.weight", "zero.bias"}


@COPY.gate("returns the names that only the network has, as a list of strings")
def _(fn):
    network, source = _pair()
    out = fn(network, source)
    if out is None:
        return "expected a list of names, got None: is the `return` missing?"
    names = list(out)
    if not all(isinstance(n, str) for n in names):
        return f"expected names, that is strings, got {type(names[0]).__name__}"
    if not _mine(names):
        own, theirs = network.state_dict().keys(), source.state_dict().keys()
        why = {frozenset(own & theirs): ": these are the names that were copied",
               frozenset(theirs - own): ": these are the names that only the source has"}.get(frozenset(names), "")
        return f"expected hint.* and zero.*, got {', '.join(names[:4]) or 'no name'}{why}"


@COPY.property("what both have is the source's afterwards, buffers included")
def _(fn):
    network, source = _pair()
    fn(network, source)
    theirs = _pair()[1].state_dict()
    for name, tensor in network.state_dict().items():
        if name in theirs and not torch.equal(tensor, theirs[name]):
            why = ": it is a buffer, which parameters() does not list" if "count" in name else ""
            return f"{name} is not the source's{why}"


@COPY.property("what only the network has stays as it was")
def _(fn):
    network, source = _pair()
    before = copy.deepcopy(network.state_dict())
    fn(network, source)
    changed = [n for n in before if n.startswith(("hint", "zero")) and not torch.equal(before[n], network.state_dict()[n])]
    return f"{changed[0]} was changed, though the source has no tensor of this name" if changed else None


@COPY.property("it is a copy: training the one leaves the other alone")
def _(fn):
    network, source = _pair()
    fn(network, source)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    _, untouched = _pair()
    for (name, now), before in zip(source.state_dict().items(), untouched.state_dict().values(), strict=True):
        if not torch.equal(now, before):
            return f"{name} of the source moved with the network: the tensors are shared, not copied"
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    return f"{frozen[0]} can no longer be trained: requires_grad is False" if frozen else None


@COPY.hygiene("the source stays as it was")
def _(fn):
    network, source = _pair()
    before = copy.deepcopy(source.state_dict())
    fn(network, source)
    if set(source.state_dict()) != set(before):
        return "the source lost or gained tensors"
    wrong = [n for n, v in source.state_dict().items() if not torch.equal(v, before[n])]
    return f"{wrong[0]} of the source was overwritten: copy from the source into the network" if wrong else None
