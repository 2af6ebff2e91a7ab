"""Exercise 7: the layer, put together."""

import torch

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch04.answers import VectorQuantizer, ema_update

VECTOR_QUANTIZER = Exercise("vq.VectorQuantizer", points=4, minutes=20, reference=VectorQuantizer)
NAMES = ("z_q", "loss", "indices")


def _made(fn, *sizes, codes=None, **options):
    """The student's layer with given codes."""
    module = fn(*sizes, **options)
    if codes is not None:
        with torch.no_grad():
            module.embedding.weight.copy_(codes)
    return module


def _names(module, expected: dict[str, tuple]) -> str | None:
    found = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if lacking := sorted(set(expected) - set(found)):
        return (f"{lacking[0]!r} is missing among the saved names, which are {sorted(found)}: weights of the library "
                "would not load")
    if more := sorted(set(found) - set(expected)):
        return f"{more[0]!r} is saved too, but has no place in the library's file"
    wrong = [name for name in expected if found[name] != expected[name]]
    return f"{wrong[0]} has shape {found[wrong[0]]}, expected {expected[wrong[0]]}" if wrong else None


@VECTOR_QUANTIZER.gate("VectorQuantizer(K, c) is a module; forward gives (z_q (B,c,h,w), loss (), indices (B,h,w))")
def _(fn):
    module = fn(7, 3)
    if not isinstance(module, torch.nn.Module):
        return f"expected a torch.nn.Module, got a {type(module).__name__}"
    out = module(normal((2, 3, 4, 5), 1))
    return several(out, NAMES) or tensor_like(out[0], (2, 3, 4, 5)) or tensor_like(out[1], ()) \
        or tensor_like(out[2], (2, 4, 5), floating=False)


@VECTOR_QUANTIZER.property("the names of the weights: embedding.weight; with ema_decay also count and total")
def _(fn):
    book = {"embedding.weight": (7, 3)}
    return _names(fn(7, 3), book) or _names(fn(7, 3, ema_decay=0.9), book | {"count": (7,), "total": (7, 3)})


@VECTOR_QUANTIZER.property("the codes start within -1/K ... 1/K")
def _(fn):
    weight = fn(200, 4).embedding.weight.detach()
    largest = float(weight.abs().max())
    if largest > 1 / 200:
        return f"with K = 200 a code has the value {largest:.3g}: nn.init.uniform_(weight, -1 / K, 1 / K)"
    return None if float(weight.std()) > 0.002 else "the codes start all alike: nearest could never tell them apart"


@VECTOR_QUANTIZER.property("worked by hand: z = 1, 4 with the codes 0 and 3 gives 0, 3 and the loss 1.25")
def _(fn):
    z_q, loss, indices = _made(fn, 2, 1, codes=torch.tensor([[0.0], [3.0]]))(torch.tensor([[[[1.0, 4.0]]]]))
    return compare(z_q, torch.tensor([[[[0.0, 3.0]]]])) or compare(indices.double(), torch.tensor([[[0.0, 1.0]]])) \
        or compare(loss, torch.tensor(1.25), {
            "the loss lacks the codebook's term": torch.tensor(0.25), "the loss lacks the commitment": torch.tensor(1.0),
            "the loss ignores beta": torch.tensor(2.0)})


@VECTOR_QUANTIZER.property("gradients: straight through to z; from the loss to the codes and to z, in the order of beta")
def _(fn):
    module, z = _made(fn, 9, 2, beta=0.5, codes=normal((9, 2), 2)), normal((2, 2, 3, 3), 3).requires_grad_()
    weight = normal((2, 2, 3, 3), 4)
    z_q, loss, _ = module(z)
    if not z_q.requires_grad:
        return "z_q is cut off from z"
    to_z, = torch.autograd.grad((z_q * weight).sum(), z, retain_graph=True, allow_unused=True)
    if to_z is None:
        return "no gradient of z_q reaches z: return z_q, which goes straight through, not codes"
    if problem := compare(to_z, weight):
        return f"z_q to z: {problem}"
    to_z, to_book = torch.autograd.grad(loss, (z, module.embedding.weight), allow_unused=True)
    if to_book is None or not to_book.any():
        return "no gradient of the loss reaches embedding.weight: the codes would never learn"
    if to_z is None:
        return "no gradient of the loss reaches z: the commitment is missing"
    unit = 2 * (z - z_q).detach() / z.numel()
    return compare(to_z, 0.5 * unit, {"beta is on the wrong term (legacy order)": unit,
                                      "beta is not read: it was 0.5, and 0.25 was used": 0.25 * unit})


@VECTOR_QUANTIZER.property("ema_decay: the loss is beta times the commitment alone, and the codes want no gradient")
def _(fn):
    module = _made(fn, 2, 1, ema_decay=0.9, codes=torch.tensor([[0.0], [3.0]]))
    if module.embedding.weight.requires_grad:
        return "the codes follow averages, so an optimiser must leave them alone: embedding.weight.requires_grad_(False)"
    return compare(module(torch.tensor([[[[1.0, 4.0]]]]))[1], torch.tensor(0.25), {
        "the codebook's term is still in the loss": torch.tensor(1.25), "beta is missing": torch.tensor(1.0)})


@VECTOR_QUANTIZER.property("ema_decay: forward moves the codes in training, and only in training")
def _(fn):
    codes, z = normal((6, 2), 5), normal((2, 2, 4, 4), 6)
    module = _made(fn, 6, 2, ema_decay=0.9, codes=codes).eval()
    _, _, indices = module(z)
    if not torch.equal(module.embedding.weight, codes) or module.count.any():
        return "the codes or the counts have changed in eval(): look at self.training"
    module.train()(z)
    flat = z.permute(0, 2, 3, 1).reshape(-1, 2)
    right = ema_update(codes, torch.zeros(6), torch.zeros(6, 2), flat, indices.flatten(), 0.9)
    if torch.equal(module.embedding.weight, codes):
        return "in training the codes have not moved: call self.follow(...), and write the new values with copy_"
    for name, mine, expected in zip(("embedding.weight", "count", "total"),
                                    (module.embedding.weight, module.count, module.total), right, strict=True):
        if problem := compare(mine, expected):
            return f"{name} after one batch: {problem}"


@VECTOR_QUANTIZER.property("restart_below: after one batch of training no dead code is left")
def _(fn):
    far = torch.cat([torch.zeros(1, 2), torch.full((7, 2), 100.0)])
    module = _made(fn, 8, 2, ema_decay=0.9, restart_below=0.01, codes=far)
    module.train()(normal((2, 2, 4, 4), 7))
    left = int((module.embedding.weight > 50).any(1).sum())
    return f"{left} of 7 codes that nobody can reach are still there: pass restart_below on to restart" if left else None


@VECTOR_QUANTIZER.property("with the weights of the course's layer it gives the course's results")
def _(fn):
    for options in ({}, {"ema_decay": 0.99}):
        right, mine = _made(VectorQuantizer, 40, 4, codes=normal((40, 4), 8), **options).eval(), fn(40, 4, **options).eval()
        mine.load_state_dict(right.state_dict())
        z = normal((2, 4, 6, 6), 9)
        for name, a, b in zip(NAMES, mine(z), right(z), strict=True):
            if problem := compare(a.double(), b.detach().double()):
                return f"{name}: {problem}"


@VECTOR_QUANTIZER.hygiene("leaves z as it was")
def _(fn):
    return touched(_made(fn, 5, 2, ema_decay=0.9), normal((1, 2, 3, 3), 10))
