"""Exercises 1 to 4: six numbers, two texts, where both enter, and where the numbers come from."""

import math

import torch
import torch.nn.functional as F

from course import unet
from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch15.answers import crop_and_tell, embed_time, join_texts, size_embedding, waves

# ---- 1 · numbers as waves

WAVES = Exercise("sdxl.size_embedding", points=3, minutes=10, reference=size_embedding)
SIX = torch.tensor([[64.0, 48.0, 0.0, 16.0, 64.0, 64.0], [512.0, 768.0, 3.0, 0.0, 1024.0, 960.0]])


@WAVES.gate("returns (B,n*dim) in float32, for six numbers and for the refiner's five")
def _(fn):
    return tensor_like(fn(SIX, 32), (2, 6 * 32)) or tensor_like(fn(SIX[:, :5], 8), (2, 5 * 8))


@WAVES.property("worked by hand: pi and 0 at dim 2 give -1, 0 and 1, 0")
def _(fn):
    return compare(fn(torch.tensor([[math.pi, 0.0]]), 2), torch.tensor([[-1.0, 0.0, 1.0, 0.0]]), {
        "sines stand before cosines": torch.tensor([[0.0, -1.0, 0.0, 1.0]]),
        "all cosines stand before all sines: each number's waves belong together": torch.tensor([[-1.0, 1.0, 0.0, 0.0]]),
    })


@WAVES.property("a number's waves are chapter 06's of that number, with dim/2 frequencies from 1 down")
def _(fn):
    numbers = torch.tensor([[7.0], [500.0]])
    half = torch.arange(8)
    for_bugs = {
        "the exponent is divided by dim/2 - 1, as in DDPM: divide by dim/2": numbers * 10_000.0 ** (-half / 7),
        "the exponent is divided by dim: divide by dim/2": numbers * 10_000.0 ** (-half / 16),
        "the numbers are turned into full circles: no factor 2 pi": 2 * math.pi * numbers * 10_000.0 ** (-half / 8),
        "the numbers were scaled down: they enter in pixels": numbers / 1000 * 10_000.0 ** (-half / 8),
        "the numbers were scaled down: they go in as pixels": numbers / 1024 * 10_000.0 ** (-half / 8),
    }
    return compare(fn(numbers, 16), waves(numbers.flatten(), 16),
                   {bug: torch.cat([angles.cos(), angles.sin()], -1) for bug, angles in for_bugs.items()})


@WAVES.property("number k has block k for itself")
def _(fn):
    changed = SIX.clone()
    changed[:, 2] += 5
    moved = (fn(changed, 8) - fn(SIX, 8)).abs().reshape(2, 6, 8).amax(-1) > 1e-6         # (2,6)
    if moved.sum() != 2 or not moved[:, 2].all():
        return (f"another `top` changed the blocks {sorted(set(torch.nonzero(moved)[:, 1].tolist()))}, it should change block 2: "
                "[waves of the height, waves of the width, ...]")


@WAVES.property("equals the library's")
def _(fn):
    return compare(fn(SIX, 256), size_embedding(SIX, 256))


@WAVES.hygiene("leaves the numbers as they were")
def _(fn):
    return touched(lambda x: fn(x, 8), SIX.clone())


# ---- 2 · two texts

JOIN = Exercise("sdxl.join_texts", points=3, minutes=12, reference=join_texts)
IDS = torch.tensor([[90, 5, 99, 99, 99], [90, 5, 6, 7, 99], [90, 120, 99, 99, 99]])      # 99 ends; 120 is a word learned later


def _texts(D1=3, D2=4, P=6, kept=(True, True, True), seed=0):
    return (normal((3, 5, D1), seed), normal((3, 5, D2), seed + 1), normal((3, 5, D2), seed + 2), IDS, 99,
            normal((P, D2), seed + 3), torch.tensor(kept))


@JOIN.gate("returns (context (B,N,D1+D2), pooled (B,P))")
def _(fn):
    try:
        out = fn(*_texts())
    except RuntimeError as error:
        if "shapes cannot be multiplied" in str(error) or "must match" in str(error):
            return f"projection is (P,D2): a vector v (D2,) becomes projection @ v ({error})"[:150]
        raise
    if problem := several(out, ("context", "pooled")):
        return problem
    if getattr(out[0], "shape", None) == (3, 10, 3):
        return "the texts stand one after the other: join the features, dim=-1, not the tokens"
    return tensor_like(out[0], (3, 5, 7)) or tensor_like(out[1], (3, 6))


@JOIN.property("the first encoder's features come first, both from the layer before the last")
def _(fn):
    one, two, last, *rest = _texts()
    return compare(fn(one, two, last, *rest)[0], torch.cat([one, two], -1), {
        "the second encoder's features stand first": torch.cat([two, one], -1),
        "the context holds the second encoder's last layer: it is stream_2 that is read": torch.cat([one, last], -1)})


@JOIN.property("the pooled vector is the last layer's, at the end token, projected")
def _(fn):
    one, two, last, ids, eos, projection, kept = _texts(D2=6, seed=10)
    rows, ends = torch.arange(3), torch.tensor([2, 4, 2])
    return compare(fn(one, two, last, ids, eos, projection, kept)[1], last[rows, ends] @ projection.T, {
        "the projection is transposed: it is (P,D2), so a vector is multiplied by projection.T": last[rows, ends] @ projection,
        "the pooled vector comes from stream_2: it is read after the last layer": two[rows, ends] @ projection.T,
        "the pooled vector is not projected": last[rows, ends],
        "this is the last place: texts end at different places": last[:, -1] @ projection.T,
        "this is the first place, which has read nothing yet: take the end token's": last[:, 0] @ projection.T,
        "this is the mean over the tokens: take the end token's vector": last.mean(1) @ projection.T,
        "this is the place of the largest id, which may be a word learned later: look for eos_id":
            last[rows, torch.tensor([2, 4, 1])] @ projection.T,
        "this is the place before the end token": last[rows, ends - 1] @ projection.T,
    })


@JOIN.property("where there is no prompt both are zeros")
def _(fn):
    context, pooled = fn(*_texts(kept=(True, False, True)))
    whole, whole_pooled = join_texts(*_texts())
    for name, got, right in (("context", context, whole), ("pooled vector", pooled, whole_pooled)):
        if got[1].abs().max() > 0 and got[0].abs().max() == 0:
            return f"the {name} is zero where the prompt is kept: `kept` says which to keep"
        if got[1].abs().max() > 0:
            return f"the {name} of a dropped prompt should be zeros"
        if problem := compare(got[[0, 2]], right[[0, 2]]):
            return f"the {name} of the other prompts changed: {problem}"


@JOIN.hygiene("leaves its inputs as they were")
def _(fn):
    *inputs, eos, projection, kept = _texts(kept=(True, False, True))
    return touched(lambda a, b, c, i: fn(a, b, c, i, eos, projection, kept), *inputs)


# ---- 3 · where it enters

EMBED = Exercise("sdxl.embed_time", points=4, minutes=15, reference=embed_time)


def _small(added=6 + 6 * 8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return unet.UNet(unet.UNetConfig(block_channels=(32,), depth=(0,), mid_depth=0, heads=(1,), layers_per_block=1,
                                         context_dim=None, added_dim=added, size_embedding_dim=8))


def _bugs(net, t, text, ids):
    """What goes wrong -> what that gives; those that do not fit the layers are left out."""
    sizes, time = size_embedding(ids, 8), net.time_embedding(waves(t, 32))
    both = torch.cat([text, sizes], -1)
    return {
        "the sizes stand before the pooled text: [text_embeds, sizes]": time + net.add_embedding(torch.cat([sizes, text], -1)),
        "the noise level is missing: add the two embeddings": net.add_embedding(both),
        "the added embedding is missing: this is the time alone": time,
        "the embeddings are multiplied: add them": time * net.add_embedding(both),
        "the pooled text is missing": time + net.add_embedding(torch.cat([0 * text, sizes], -1)),
        "the sizes are missing": time + net.add_embedding(torch.cat([text, 0 * sizes], -1)),
        "a SiLU too many: linear_1, SiLU and linear_2 are inside both modules":
            F.silu(time) + F.silu(net.add_embedding(both)),
        "the noise level was not turned into waves of chapter 06":
            net.time_embedding(t.float()[:, None].expand(-1, 32)) + net.add_embedding(both),
    }


@EMBED.gate("returns (B,time_emb_dim), for a t of each picture and for one number")
def _(fn):
    net, text = _small(), normal((2, 6), 1)
    try:
        out = fn(net, torch.tensor([10, 900]), text, SIX)
    except RuntimeError as error:
        if "shapes cannot be multiplied" in str(error):
            return f"add_embedding reads [text_embeds, waves of the sizes at size_embedding_dim]: {error}"[:160]
        raise
    return tensor_like(out, (2, 128)) or tensor_like(fn(net, 500, text, SIX), (2, 128))


@EMBED.property("the embedding of the noise level and that of [text, sizes] are added")
def _(fn):
    net, text, t = _small(), normal((2, 6), 1), torch.tensor([10, 900])
    with torch.no_grad():
        return compare(fn(net, t, text, SIX).detach(), embed_time(net, t, text, SIX), _bugs(net, t, text, SIX))


@EMBED.property("a refiner's five numbers fit, too")
def _(fn):
    net = _small(6 + 5 * 8)
    with torch.no_grad():
        arguments = net, torch.tensor([10, 100]), normal((2, 6), 2), SIX[:, :5]
        return compare(fn(*arguments), embed_time(*arguments))


@EMBED.property("the same as the library's U-Net computes")
def _(fn):
    net, text = _small(), normal((3, 6), 4)
    ids = SIX[[0, 1, 0]]
    for t in (torch.tensor([0, 500, 999]), 250):
        with torch.no_grad():
            right = net.embed_time(t, text, {"text_embeds": text, "time_ids": ids})
            if problem := compare(fn(net, t, text, ids), right):
                return problem


@EMBED.property("the gradient reaches both modules")
def _(fn):
    net = _small()
    fn(net, torch.tensor([3, 4]), normal((2, 6), 5), SIX).square().sum().backward()
    for name in ("time_embedding", "add_embedding"):
        if any(p.grad is None or p.grad.abs().max() == 0 for p in getattr(net, name).parameters()):
            return f"no gradient reaches {name}: is something detached, or under no_grad?"


@EMBED.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(lambda text, ids: fn(_small(), torch.tensor([3, 4]), text, ids), normal((2, 6), 6), SIX.clone())


# ---- 4 · crop, and tell

CROP = Exercise("sdxl.crop_and_tell", points=3, minutes=12, reference=crop_and_tell)


def _ramp(H, W):
    """A picture whose red is its row and whose green is its column."""
    return torch.stack([torch.arange(H).float()[:, None].expand(H, W), torch.arange(W).float().expand(H, W), torch.zeros(H, W)])


@CROP.gate("returns (picture (3,side,side), numbers (6,)), of tall and of wide pictures, at every corner")
def _(fn):
    for shape in ((8, 14), (14, 8), (8, 8), (20, 11)):
        for corner in ((0.0, 0.0), (0.5, 0.3), (0.999, 0.999)):
            out = fn(_ramp(*shape), 8, corner)
            if problem := several(out, ("picture", "numbers")):
                return problem
            numbers = out[1] if isinstance(out[1], torch.Tensor) else None
            if problem := tensor_like(out[0], (3, 8, 8)):
                return f"{problem} of a {shape[0]} x {shape[1]} picture, side 8, corner {corner}: the shorter side becomes `side`"
            if problem := tensor_like(numbers, (6,)):
                return problem


@CROP.property("worked by hand: 8 x 14 at side 8 is only cropped; corner 0.5 of seven places is the fourth")
def _(fn):
    picture, numbers = fn(_ramp(8, 14), 8, (0.0, 0.5))
    if problem := compare(numbers, torch.tensor([8.0, 14, 0, 3, 8, 8]), {
            "left stands before top: the order is (top, left)": torch.tensor([8.0, 14, 3, 0, 8, 8]),
            "width stands before height: the order is (height, width)": torch.tensor([14.0, 8, 0, 3, 8, 8]),
            "the original's size is that of the crop: note it before you resize and cut": torch.tensor([8.0, 8, 0, 3, 8, 8]),
            "the target stands before the crop: original, crop, target": torch.tensor([8.0, 14, 8, 8, 0, 3]),
            "the target is the crop's size, not the original's": torch.tensor([8.0, 14, 0, 3, 8, 14])}):
        return problem
    return compare(picture, _ramp(8, 14)[:, :, 3:11], {
        "the numbers say left = 3, the picture was cut elsewhere: at the first corner": _ramp(8, 14)[:, :, :8]})


@CROP.property("every place can occur, the last one, too")
def _(fn):
    found = {int(fn(_ramp(14, 8), 8, (u / 700, 0.0))[1][2]) for u in range(700)}
    if found != set(range(7)):
        return (f"14 - 8 leaves seven places for `top`, 0 ... 6; u from 0 to 1 gave {sorted(found)}: int(u * (h - side + 1))")
    count = sum(int(fn(_ramp(14, 8), 8, (u / 700, 0.0))[1][2]) == 6 for u in range(700))
    if abs(count - 100) > 2:
        return f"each of seven places should come from a seventh of all u, the last one came from {count / 7:.0f} %: no rounding"


@CROP.property("the original's size is told as it was before resizing, the crop in pixels after it")
def _(fn):
    _, numbers = fn(_ramp(16, 40), 8, (0.0, 0.99))
    return compare(numbers, torch.tensor([16.0, 40, 0, 12, 8, 8]), {
        "the original's size is the one after resizing: note H, W first": torch.tensor([8.0, 20, 0, 12, 8, 8]),
        "the crop is told in the original's pixels: count after resizing": torch.tensor([16.0, 40, 0, 24, 8, 8]),
        "the crop was taken before resizing: resize first": torch.tensor([16.0, 40, 0, 31, 8, 8])})


@CROP.property("resizing averages, both ways: the library's picture")
def _(fn):
    for shape, corner in (((16, 40), (0.2, 0.6)), ((30, 20), (0.7, 0.1)), ((5, 9), (0.0, 0.4))):
        picture = normal((3, *shape), 7)
        right = crop_and_tell(picture, 8, corner)[0]
        h, w = (round(n * 8 / min(shape)) for n in shape)
        top, left = int(corner[0] * (h - 7)), int(corner[1] * (w - 7))
        plain = {mode: F.interpolate(picture[None], (h, w), mode=mode)[0][:, top: top + 8, left: left + 8]
                 for mode in ("bilinear", "nearest")}
        if problem := compare(fn(picture, 8, corner)[0], right, {
                "antialias=True is missing: a smaller picture then skips pixels": plain["bilinear"],
                "this is the nearest pixel: mode='bilinear', antialias=True": plain["nearest"]}):
            return problem


@CROP.hygiene("leaves the picture as it was")
def _(fn):
    return touched(lambda x: fn(x, 8, (0.1, 0.2)), normal((3, 8, 14), 8))
