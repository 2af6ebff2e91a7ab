"""Exercises 1 and 2: which code is nearest, and how a gradient gets past the choice."""

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch04.answers import nearest, quantize

# ---- 1 · the nearest code

NEAREST = Exercise("vq.nearest", points=3, minutes=15, reference=nearest)


@NEAREST.gate("(B,c,h,w) and (K,c) give one integer a position: (B,h,w)")
def _(fn):
    return tensor_like(fn(normal((2, 3, 4, 5), 1), normal((7, 3), 2)), (2, 4, 5), floating=False)


@NEAREST.property("worked by hand: of the codes 0, 1, 3 the nearest to 0.4, 0.9, 1.8, 2.5, -2 are 0, 1, 1, 3, 0")
def _(fn):
    z, e = torch.tensor([0.4, 0.9, 1.8, 2.5, -2.0]), torch.tensor([0.0, 1.0, 3.0])
    norm, product = e.square(), z[:, None] * e
    out = fn(z.reshape(1, 1, 1, 5), e[:, None])
    problem = tensor_like(out, (1, 1, 5), floating=False)
    return problem or compare(out.double().flatten(), (norm - 2 * product).argmin(1), {
        "these are the farthest codes: take the argmin of the distances": (norm - 2 * product).argmax(1),
        "the squared norm of the codes is missing: without ||e||^2 the longest code wins": (-2 * product).argmin(1),
        "the product is taken once: (z - e)^2 = z^2 - 2 z e + e^2": (norm - product).argmin(1),
        "the product is added: (z - e)^2 = z^2 - 2 z e + e^2": (norm + 2 * product).argmin(1),
        "the product alone was maximised after adding the norm: the sign of ||e||^2 is wrong":
            (norm + 2 * product).argmax(1),
        "the norm of the codes enters unsquared: ||e||^2 is a sum of squares": (norm.sqrt() - 2 * product).argmin(1),
    })


@NEAREST.property("a row of distances belongs to a position: its c numbers lie along the channels")
def _(fn):
    z, e = normal((2, 2, 3, 3), 3), normal((9, 2), 4)

    def of(rows):
        return torch.cdist(rows, e).argmin(1).reshape(2, 3, 3).double()
    return compare(fn(z, e).double(), nearest(z, e), {
        "the c numbers of a row are neighbours in the picture, not the channels of a position: move the channels to "
        "the end (permute) before you flatten": of(z.reshape(-1, 2)),
        "rows and columns are exchanged": of(z.permute(0, 3, 2, 1).reshape(-1, 2)),
        "the batch and the positions are mixed up: permute to (B,h,w,c), then flatten": of(z.permute(2, 3, 0, 1).reshape(-1, 2)),
    })


@NEAREST.property("every code is nearest to itself")
def _(fn):
    e = normal((30, 5), 5)
    out = fn(e.T.reshape(1, 5, 5, 6), e).flatten()
    wrong = int((out != torch.arange(30)).sum())
    return f"given the 30 codes themselves, {wrong} of them are mapped to another code" if wrong else None


@NEAREST.property("equals the smallest distance by definition, for 500 codes of 4 numbers")
def _(fn):
    z, e = 2 * normal((2, 4, 8, 8), 6) + 1, normal((500, 4), 7)
    distance = (z.permute(0, 2, 3, 1)[..., None, :] - e).square().sum(-1)               # (B,h,w,K)
    out = fn(z, e)
    if problem := tensor_like(out, (2, 8, 8), floating=False):
        return problem
    if int(out.min()) < 0 or int(out.max()) >= 500:
        return f"an index must lie in 0 ... 499, got {int(out.min())} ... {int(out.max())}"
    gap = distance.gather(-1, out.long()[..., None])[..., 0] - distance.min(-1).values  # ties may fall either way
    far = int((gap > 1e-4).sum())
    return f"{far} of 128 positions got a code that is not the nearest" if far else None


@NEAREST.hygiene("leaves z and the codebook as they were")
def _(fn):
    return touched(fn, normal((1, 2, 3, 3), 8), normal((4, 2), 9))


# ---- 2 · look up, and let the gradient through

QUANTIZE = Exercise("vq.quantize", points=3, minutes=10, reference=quantize)
INDICES = torch.tensor([[[0, 2], [1, 1]], [[2, 0], [0, 1]]])


@QUANTIZE.gate("returns (z_q, codes), both (B,c,h,w)")
def _(fn):
    try:
        out = fn(normal((2, 3, 4, 5), 1), normal((7, 3), 2), torch.arange(40).reshape(2, 4, 5) % 7)
    except RuntimeError as error:
        if "must match" in str(error):
            return "codebook[indices] has shape (B,h,w,c), z has (B,c,h,w): permute(0, 3, 1, 2) brings them together"
        raise
    if problem := several(out, ("z_q", "codes")):
        return problem
    for name, value in zip(("z_q", "codes"), out, strict=True):
        if problem := tensor_like(value, (2, 3, 4, 5)):
            hint = ": the lookup gives (B,h,w,c), move the channels back" if "(2, 4, 5, 3)" in problem else ""
            return f"{name}: {problem}{hint}"


@QUANTIZE.property("worked by hand: z = 0.9 with the codes 0 and 1 becomes 1")
def _(fn):
    z = torch.tensor([[[[0.9, -0.3]]]])
    z_q, codes = fn(z, torch.tensor([[0.0], [1.0]]), torch.tensor([[[1, 0]]]))
    right = torch.tensor([[[[1.0, 0.0]]]])
    if problem := compare(codes, right, {"codes is z itself: look the indices up in the codebook": z}):
        return f"codes: {problem}"
    if problem := compare(z_q, right, {
            "this is z itself, nothing is quantised: the value of z_q is the code's, its gradient is z's": z,
            "the difference has the wrong sign: z + (codes - z)": 2 * z - right,
            "z and the code are added: z + (codes - z).detach()": z + right,
            "this is the difference alone: add it to z": right - z}):
        return f"z_q: {problem}"


@QUANTIZE.property("position (b, i, j) of the result is the code number indices[b, i, j], its numbers along the channels")
def _(fn):
    codebook = normal((3, 2), 3)
    z_q, codes = fn(normal((2, 2, 2, 2), 4), codebook, INDICES)
    rows = codebook[INDICES]                                                            # (B,h,w,c)
    bugs = {"the lookup was reshaped to (B,c,h,w): permute it, a reshape mixes codes with positions":
            rows.reshape(2, 2, 2, 2),
            "the channels ended up in a wrong place: permute(0, 3, 1, 2)": rows.permute(0, 3, 2, 1)}
    return compare(codes, rows.permute(0, 3, 1, 2), bugs) or compare(z_q, rows.permute(0, 3, 1, 2), bugs)


def _gradients(fn, which: int) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Of output `which`, weighted at random, with respect to z and to the codebook."""
    z = normal((2, 2, 2, 2), 5).requires_grad_()
    codebook, weight = normal((3, 2), 6).requires_grad_(), normal((2, 2, 2, 2), 7)
    out = fn(z, codebook, INDICES)[which]
    if not out.requires_grad:
        return None, None, weight
    return *torch.autograd.grad((out * weight).sum(), (z, codebook), allow_unused=True), weight


@QUANTIZE.property("straight through: the gradient of z_q arrives at z unchanged, as if nothing had happened")
def _(fn):
    to_z, _, weight = _gradients(fn, 0)
    if to_z is None or not to_z.any():
        return "no gradient reaches z: return z + (codes - z).detach(), not the codes"
    return compare(to_z, weight, {"the gradient arrives with the wrong sign": -weight,
                                  "the gradient arrives twice: z stands outside the detach once": 2 * weight})


@QUANTIZE.property("the gradient of z_q does not reach the codebook; that of codes reaches the codebook alone")
def _(fn):
    _, to_book, _ = _gradients(fn, 0)
    if to_book is not None and to_book.any():
        return "the decoder's gradient reaches the codebook through z_q: detach codes - z as a whole"
    to_z, to_book, weight = _gradients(fn, 1)
    if to_book is None:
        return "codes is cut off from the codebook: return it without detach, the loss of exercise 3 needs it"
    if to_z is not None and to_z.any():
        return "codes depends on z: it is the codebook's rows, nothing else"
    right = torch.zeros(3, 2).index_add(0, INDICES.flatten(), weight.permute(0, 2, 3, 1).reshape(-1, 2))
    return compare(to_book, right)


@QUANTIZE.hygiene("leaves z and the codebook as they were")
def _(fn):
    return touched(lambda z, e: fn(z, e, INDICES), normal((2, 2, 2, 2), 8), normal((3, 2), 9))
