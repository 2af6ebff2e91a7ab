"""Exercises 4 and 5: which feature map meets which on the way up, and the whole pass through a U-Net."""

import torch
import torch.nn.functional as F
from torch import nn

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch06.answers import SmallUNet, unet_forward, up_inputs

# ---- 4 · the sums

UP_INPUTS = Exercise("unet.up_inputs", points=3, minutes=15, reference=up_inputs)
HAND = [[128, 96], [96, 64]]                                    # widths 32, 64; one block a level
SD15 = [[2560, 2560, 2560], [2560, 2560, 1920], [1920, 1280, 960], [960, 640, 640]]


def _lists(value):
    return [[int(n) for n in row] for row in value]


@UP_INPUTS.gate("returns one list a level, each of layers_per_block + 1 whole numbers")
def _(fn):
    try:
        out = fn((32, 64, 96), 2)
    except IndexError:
        return "the list of skips ran empty: conv_in, every block and every downsampling each leave one behind"
    if not isinstance(out, (list, tuple)):
        return several(out, ("level", "level", "level"))
    if len(out) != 3:
        return f"three levels down are three levels up, got {len(out)} lists"
    for row in out:
        if not isinstance(row, (list, tuple)) or len(row) != 3:
            length = len(row) if hasattr(row, "__len__") else "no list"
            return f"two blocks a level down are three a level up (one more skip than blocks), got {length}"
        if not all(isinstance(n, int) for n in row):
            return f"expected whole numbers of channels, got {row[0]!r}"


@UP_INPUTS.property("worked by hand: widths 32, 64 with one block a level give [[128, 96], [96, 64]]")
def _(fn):
    out = _lists(fn((32, 64), 1))
    bugs = {
        "the levels are in the order of the way down: the lowest resolution comes first": HAND[::-1],
        "the skips are taken first in, first out: the last one made is the first one used": [[96, 96], [96, 96]],
        "the skip is not counted: it is concatenated, so the channels add up": [[64, 64], [64, 32]],
        "the channels of h are not counted: the skip is concatenated to h": [[64, 32], [32, 32]],
        "h keeps its channels here: after the first block of a level it has the width of that level": [[128, 96], [96, 96]],
        "h enters a level with the width below: the first block of a level reads the level beneath it": [[128, 96], [64, 64]],
        "one skip is missing: conv_in, every block and every downsampling leave one behind": [[128, 96], [96, 32]],
    }
    for sentence, wrong in bugs.items():
        if out == wrong:
            return sentence
    return None if out == HAND else f"expected {HAND}, got {out}"


@UP_INPUTS.property("equal widths: every block reads twice that width")
def _(fn):
    out = _lists(fn((32, 32, 32), 2))
    return None if out == [[64] * 3] * 3 else f"expected 64 everywhere, got {out}"


@UP_INPUTS.property("fits Stable Diffusion: widths 320, 640, 1280, 1280, two blocks a level")
def _(fn):
    out = _lists(fn((320, 640, 1280, 1280), 2))
    for level, (row, right) in enumerate(zip(out, SD15, strict=True)):
        if row != right:
            return f"up level {level} should read {right}, got {row}"


@UP_INPUTS.property("equals the course's for other shapes, one level included")
def _(fn):
    for widths, layers in (((64,), 2), ((32, 64, 96, 128, 160), 1), ((96, 32), 3)):
        if (out := _lists(fn(widths, layers))) != (right := up_inputs(widths, layers)):
            return f"widths {widths}, {layers} a level: expected {right}, got {out}"


@UP_INPUTS.hygiene("leaves the widths as they were")
def _(fn):
    widths = [32, 64, 96]
    fn(widths, 1)
    return None if widths == [32, 64, 96] else "the list of widths was changed: copy it, or count without .pop() on it"


# ---- 5 · down, across and up

UNET_FORWARD = Exercise("unet.unet_forward", points=4, minutes=20, reference=unet_forward)


def _inputs(size: int = 4, channels: int = 1, dim: int = 8, batch: int = 2):
    return normal((batch, channels, size, size), 1), normal((batch, dim), 2)


@UNET_FORWARD.gate("(net, (B,C,H,W), (B,time)) -> (B,C,H,W)")
def _(fn):
    try:
        return tensor_like(fn(SmallUNet(), *_inputs()), (2, 1, 4, 4))
    except IndexError:
        return "the list of skips ran empty: conv_in, every block and every downsampling each leave one behind"
    except TypeError as error:
        if "NoneType" in str(error):
            return "the last level has no downsampler, and the last one up no upsampler: they are None, so test for it"
        raise
    except RuntimeError as error:
        text = str(error)
        if "Sizes of tensors must match" in text:
            return ("h and its skip differ in resolution: take the skips from the end (the last one made first), upsample "
                    "after the blocks of a level, and keep what each downsampling gives as well")
        if "channels" in text or "num_channels" in text or "weight of size" in text or "normalized_shape" in text:
            return ("a block got another number of channels than it was built for: concatenate h and its skip, taken behind the "
                    f"block that made it ({text[:70]})")
        raise


@UNET_FORWARD.property("the order of concatenation is h, then the skip, and each skip goes to its twin")
def _(fn):
    for widths in ((8, 16), (8, 8, 8)):
        net = SmallUNet(widths=widths, layers=2, seed=3)
        x, e = _inputs()
        if problem := compare(fn(net, x, e), unet_forward(net, x, e), _variants(net, x, e), rtol=1e-3):
            return f"widths {widths}: {problem}"


@UNET_FORWARD.property("every part of the network is used, each as often as there are of it")
def _(fn):
    net, calls = SmallUNet(layers=2, seed=4), {}
    for name, module in net.named_modules():
        if name.rpartition(".")[0].endswith(("resnets", "downsamplers", "upsamplers")) or name in ("conv_in", "conv_out",
                                                                                                  "conv_norm_out"):
            module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
    fn(net, *_inputs())
    used = set(calls)
    unet_forward(net, *_inputs())                               # counts once more
    for name, count in calls.items():
        if name not in used:
            return f"{name} is never called"
        if count > 2:
            return f"{name} is called {count - 1} times"


@UNET_FORWARD.property("equals the course's pass for another number of levels, blocks and channels, with a gradient")
def _(fn):
    net = SmallUNet(channels=3, widths=(8, 8, 16), layers=1, seed=5)
    x, e = _inputs(8, 3, batch=1)
    out = fn(net, x.requires_grad_(), e.requires_grad_())
    if problem := compare(out, unet_forward(net, x, e), rtol=1e-3):
        return problem
    out.square().sum().backward()
    given = {"x": x, "time_emb": e} | dict(net.named_parameters())
    missing = [name for name, p in given.items() if p.grad is None or not p.grad.any()]
    return f"no gradient reaches {', '.join(missing[:3])}" if missing else None


@UNET_FORWARD.hygiene("leaves its inputs and the network as they were")
def _(fn):
    net = SmallUNet()
    return touched(lambda x, e: fn(net, x, e), *_inputs()) or touched(lambda *p: fn(net, *_inputs()), *net.parameters())


@torch.no_grad()
def _variants(net: nn.Module, x, e) -> dict[str, torch.Tensor]:
    """What likely bugs make of this net."""
    def go(join=lambda h, s: torch.cat([h, s], 1), middle=2, activate=F.silu, norm=True, time=e):
        h = net.conv_in(x)
        skips = [h]
        for level in net.down_blocks:
            for resnet in level.resnets:
                skips.append(h := resnet(h, time))
            if level.downsamplers is not None:
                skips.append(h := level.downsamplers[0](h))
        for resnet in list(net.mid_block.resnets)[:middle]:
            h = resnet(h, time)
        for level in net.up_blocks:
            for resnet in level.resnets:
                h = resnet(join(h, skips.pop()), time)
            if level.upsamplers is not None:
                h = level.upsamplers[0](h)
        return net.conv_out(activate(net.conv_norm_out(h) if norm else h))

    bugs = {
        "the skip stands in front of h: torch.cat([h, skip], dim=1)": dict(join=lambda h, s: torch.cat([s, h], 1)),
        "the skips are replaced by zeros, or h is concatenated to nothing": dict(
            join=lambda h, s: torch.cat([h, torch.zeros_like(s)], 1)),
        "the middle is left out: run mid_block.resnets between the way down and the way up": dict(middle=0),
        "only one of the two blocks of the middle runs": dict(middle=1),
        "there is no SiLU between conv_norm_out and conv_out": dict(activate=lambda v: v),
        "conv_norm_out is not used": dict(norm=False),
        "neither the norm nor SiLU stands in front of conv_out": dict(norm=False, activate=lambda v: v),
        "the blocks get no time embedding": dict(time=torch.zeros_like(e)),
    }
    return {sentence: go(**how) for sentence, how in bugs.items()}
