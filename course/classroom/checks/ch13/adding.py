"""Exercises 4 and 5: what the copy finds, and how it is added."""

import torch
from torch import Tensor

from course.classroom.checks import Exercise, compare, normal, several, tensor_like, touched
from course.classroom.checks.ch13.answers import SmallControl, add_control, control_forward

# ---- 4 · the ControlNet's forward

FORWARD = Exercise("controlnet.control_forward", points=4, minutes=15, reference=control_forward)
SHAPES = ((2, 6, 4, 4), (2, 8, 2, 2), (2, 8, 2, 2))


def _given(seed: int = 1):
    hint = normal((2, 3, 16, 16), seed + 2).abs()
    return normal((2, 4, 4, 4), seed), torch.tensor([100, 900]), normal((2, 3, 5), seed + 1), hint


@FORWARD.gate("returns a list: one residual for each skip, of its shape, and one for the middle")
def _(fn):
    found = fn(SmallControl(), *_given())
    if not isinstance(found, (list, tuple)):
        return f"expected a list of tensors, got {type(found).__name__}" + (": is the `return` missing?" if found is None else "")
    if len(found) != 3:
        why = {2: ": the middle has a residual, too, last in the list"}.get(len(found), "")
        return f"of a trunk with 2 skips 3 residuals are expected, got {len(found)}{why}"
    for i, (value, shape) in enumerate(zip(found, SHAPES, strict=True)):
        if problem := tensor_like(value, shape):
            return f"residual {i}: {problem}"


@FORWARD.property("zero convolutions give zeros, whatever the rest holds")
def _(fn):
    net = SmallControl()
    for conv in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.zeros_(conv.weight), torch.nn.init.zeros_(conv.bias)
    wrong = [i for i, r in enumerate(fn(net, *_given())) if r.any()]
    return f"residual {wrong[0]} does not come from its zero convolution, or not from it alone" if wrong else None


@FORWARD.property("equals the course's, for t of shape (B,) and for a number")
def _(fn):
    for t in (torch.tensor([100, 900]), 250):
        net, (x, _, context, hint) = SmallControl(), _given(3)
        given = (net, x, t, context, hint)
        found, right, bugs = fn(*given), control_forward(*given), _variants(*given)
        for i, (mine, expected) in enumerate(zip(found, right, strict=True)):
            if problem := compare(mine, expected, {bug: wrong[i] for bug, wrong in bugs.items()}):
                return f"residual {i}: {problem}"


@FORWARD.property("scale multiplies every residual, and 0 leaves the U-Net alone")
def _(fn):
    net, given = SmallControl(), _given(5)
    one, half = fn(net, *given), fn(net, *given, 0.5)
    for i, (a, b) in enumerate(zip(one, half, strict=True)):
        if problem := compare(b, 0.5 * a.detach(), {
                "scale is not used": a.detach(),
                "scale divides: it multiplies": 2 * a.detach()}, rtol=1e-3):
            return f"scale 0.5, residual {i}: {problem}"
    if any(r.any() for r in fn(net, *given, 0.0)):
        return "scale 0 must give zeros"


@FORWARD.property("a gradient reaches x, the hint, the text and every weight")
def _(fn):
    net, (x, t, context, hint) = SmallControl(), _given(7)
    inputs = {"x": x.requires_grad_(), "hint": hint.requires_grad_(), "context": context.requires_grad_()}
    sum(r.square().sum() for r in fn(net, x, t, context, hint)).backward()
    missing = [n for n, p in (inputs | dict(net.named_parameters())).items() if p.grad is None or not p.grad.any()]
    return f"no gradient reaches {', '.join(missing[:3])}" if missing else None


@FORWARD.hygiene("leaves its inputs as they were")
def _(fn):
    x, t, context, hint = _given(9)
    net = SmallControl()
    return touched(lambda x, context, hint: fn(net, x, t, context, hint), x, context, hint)


@torch.no_grad()
def _variants(net, x: Tensor, t, context: Tensor, hint: Tensor) -> dict[str, list[Tensor]]:
    seen, time = net.controlnet_cond_embedding(hint), net.embed_time(t, x)

    def ends(h, time=time, context=context, first=None):
        middle, skips = net.go_down(h, time, context)
        skips = skips if first is None else [skips[0] + first, *skips[1:]]
        return [c(s) for c, s in zip(net.controlnet_down_blocks, skips, strict=True)] + [net.controlnet_mid_block(middle)]

    middle, skips = net.go_down(net.conv_in(x) + seen, time, context)
    return {"the hint comes too late: the trunk must see it, so add it before go_down": ends(net.conv_in(x), first=seen),
            "the hint is not added: h = conv_in(x) + the embedded hint": ends(net.conv_in(x)),
            "x is not used, as in the article: the copy reads the noisy latent, too": ends(seen),
            "the hint is multiplied: add it": ends(net.conv_in(x) * seen),
            "the time embedding is not used": ends(net.conv_in(x) + seen, time=0 * time),
            "the text is not used": ends(net.conv_in(x) + seen, context=0 * context),
            "the zero convolution is missing: this is what the trunk found": [*skips, middle],
            "the zero convolution is added to what it read": [a + b for a, b in zip(ends(net.conv_in(x) + seen),
                                                                                   [*skips, middle], strict=True)]}


# ---- 5 · added to the U-Net

ADD = Exercise("controlnet.add_control", points=3, minutes=10, reference=add_control)


def _found(seed: int, count: int = 2):
    """(skips, middle, `count` controls) of a U-Net with two skips."""
    shapes = ((1, 2, 4, 4), (1, 3, 2, 2), (1, 3, 2, 2))
    lists = [[normal(s, seed + 10 * k + i) for i, s in enumerate(shapes)] for k in range(count + 1)]
    return lists[0][:2], lists[0][2], lists[1:]


def _call(fn, skips, middle, controls, weights):
    """On lists of their own: who changes them is told so at the end."""
    return fn(list(skips), middle, [list(c) for c in controls], list(weights))


@ADD.gate("returns (skips, middle): as many skips as before, of their shapes")
def _(fn):
    skips, middle, controls = _found(1)
    out = _call(fn, skips, middle, controls, [1.0, 1.0])
    if problem := several(out, ("skips", "middle")):
        return problem
    if not isinstance(out[0], (list, tuple)) or len(out[0]) != 2:
        return "skips: expected a list of 2 tensors, as many as came in"
    for i, (value, shape) in enumerate(zip([*out[0], out[1]], ((1, 2, 4, 4), (1, 3, 2, 2), (1, 3, 2, 2)), strict=True)):
        if problem := tensor_like(value, shape):
            return f"{f'skip {i}' if i < 2 else 'middle'}: {problem}"


def _full(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value)


@ADD.property("worked by hand: skips 1, 2, middle 3, residuals 10, 20, 30 at weight 0.5 give 6, 12, 18")
def _(fn):
    skips, middle = fn([_full(1.0), _full(2.0)], _full(3.0), [[_full(10.0), _full(20.0), _full(30.0)]], [0.5])
    found = torch.cat([*skips, middle]).flatten()
    return compare(found, torch.tensor([6.0, 12.0, 18.0]), {
        "the weight is not used": torch.tensor([11.0, 22.0, 33.0]),
        "the weight multiplies the U-Net's own, too: only the residual is weighed": torch.tensor([5.5, 11.0, 16.5]),
        "the middle gets none: the last residual belongs to it": torch.tensor([6.0, 12.0, 3.0]),
        "the middle's residual is not weighed": torch.tensor([6.0, 12.0, 33.0]),
        "the skips' residuals are not weighed": torch.tensor([11.0, 22.0, 18.0]),
        "the residuals replace what was there: add them": torch.tensor([5.0, 10.0, 15.0]),
        "the first residual was taken for the middle: it is the last": torch.tensor([11.0, 17.0, 8.0]),
        "the order of the residuals is turned: high resolution first, the middle last": torch.tensor([16.0, 12.0, 8.0]),
        "the residuals of the skips are turned: high resolution first": torch.tensor([11.0, 7.0, 18.0]),
        "the residuals are subtracted": torch.tensor([-4.0, -8.0, -12.0])})


@ADD.property("several controls add up, each with its own weight")
def _(fn):
    skips, middle, controls = _found(2)
    right = add_control(skips, middle, controls, [0.3, 2.0])
    found = _call(fn, skips, middle, controls, [0.3, 2.0])
    for which, pick in (("skip 0", lambda r: r[0][0]), ("skip 1", lambda r: r[0][1]), ("middle", lambda r: r[1])):
        problem = compare(pick(found), pick(right), {
            "the weights are exchanged": pick(add_control(skips, middle, controls, [2.0, 0.3])),
            "only the last control was added": pick(add_control(skips, middle, controls[1:], [2.0])),
            "only the first control was added": pick(add_control(skips, middle, controls[:1], [0.3])),
            "the first weight was used for all": pick(add_control(skips, middle, controls, [0.3, 0.3])),
            "the mean of the controls was taken: they add up": pick(add_control(skips, middle, controls, [0.15, 1.0])),
            "the weights were brought to the sum 1: use them as they are":
                pick(add_control(skips, middle, controls, [0.3 / 2.3, 2 / 2.3]))})
        if problem:
            return f"{which}: {problem}"


@ADD.property("no control, or weights of zero, change nothing")
def _(fn):
    skips, middle, controls = _found(3)
    for given, weights in (([], []), (controls, [0.0, 0.0])):
        found, on_middle = _call(fn, skips, middle, given, weights)
        if not all(torch.equal(a, b) for a, b in zip([*found, on_middle], [*skips, middle], strict=True)):
            return f"with {'no control' if not given else 'weights 0'} everything should be as it was"


@ADD.hygiene("leaves the lists and the tensors it was given as they were")
def _(fn):
    skips, middle, controls = _found(4)
    given = [*skips, middle, *(r for c in controls for r in c)]
    copies, lists = [v.clone() for v in given], (list(skips), [list(c) for c in controls])
    fn(skips, middle, controls, [1.0, 0.5])
    now, before = [skips, *controls], [lists[0], *lists[1]]
    if any(len(a) != len(b) or any(x is not y for x, y in zip(a, b, strict=True)) for a, b in zip(now, before, strict=True)):
        return "a list was changed in place: pop() and skips[i] = ... write into the caller's list; make a new one"
    if not all(torch.equal(a, b) for a, b in zip(given, copies, strict=True)):
        return "a tensor was changed in place: `s = s + r` makes a new tensor, `s += r` writes into the caller's"
