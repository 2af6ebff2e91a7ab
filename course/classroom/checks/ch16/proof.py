"""Exercises 1 to 4: swap a part, compare pictures, find who broke them, and prove which weights drew them."""

import hashlib
import math
from types import SimpleNamespace

import torch

from course.classroom.checks import Exercise, normal, several, touched
from course.classroom.checks.ch16.answers import culprits, fingerprint, picture_distance, swapped

# ---- 1 · swap a part

SWAPPED = Exercise("capstone.swapped", points=3, minutes=10, reference=swapped)


def _place():
    return SimpleNamespace(part="the library's", other=1)


@SWAPPED.gate("is a context manager")
def _(fn):
    with fn(_place(), "part", "mine"):
        pass


@SWAPPED.property("inside the block the attribute is yours")
def _(fn):
    place = _place()
    manager = fn(place, "part", "mine")
    if place.part != "the library's":
        return "the part is replaced before the block begins"
    with manager:
        if place.part != "mine":
            return f"inside the block the part is {place.part!r}: setattr(module, name, mine)"
        if place.other != 1:
            return "another attribute has changed"


@SWAPPED.property("after the block it is the library's again")
def _(fn):
    place = _place()
    with fn(place, "part", "mine"):
        pass
    if not hasattr(place, "part"):
        return "after the block the attribute is gone: put back what was there before"
    if place.part == "mine":
        return "after the block the part is still yours: keep what was there before you replace it, and put it back"
    if place.part != "the library's":
        return f"after the block the part is {place.part!r}, not what it was before"


@SWAPPED.property("also where the block raised, and the error goes on")
def _(fn):
    place = _place()
    try:
        with fn(place, "part", "mine"):
            raise KeyError("from the block")
    except KeyError:
        pass
    else:
        return "the block raised a KeyError, and nobody heard of it: do not catch it, use `finally`"
    if place.part != "the library's":
        return "where the block raises, the part stays yours: put it back in a `finally`"


@SWAPPED.property("blocks nest, and the same block can be entered anew")
def _(fn):
    place, seen = _place(), []
    for _ in range(2):
        with fn(place, "part", "one"):
            with fn(place, "part", "two"):
                seen.append(place.part)
            seen.append(place.part)
        seen.append(place.part)
    if seen != ["two", "one", "the library's"] * 2:
        return f"one inside the other should give two, one and the library's; got {', '.join(map(str, seen[:3]))}"


# ---- 2 · how far apart

DISTANCE = Exercise("capstone.picture_distance", points=2, minutes=8, reference=picture_distance)


def _bytes(seed, shape=(3, 5, 7)):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@DISTANCE.gate("returns (largest, share), two numbers")
def _(fn):
    out = fn(_bytes(1), _bytes(2))
    if problem := several(out, ("largest", "share")):
        return problem
    for value in out:
        try:
            float(value)
        except (TypeError, ValueError, RuntimeError):
            return "expected two plain numbers"


@DISTANCE.property("worked by hand: 3 and 5 are 2 apart, either way round")
def _(fn):
    a, b = torch.full((3, 2, 2), 3, dtype=torch.uint8), torch.full((3, 2, 2), 5, dtype=torch.uint8)
    for first, second in ((b, a), (a, b)):
        found = float(fn(first, second)[0])
        if found == 254:
            return "3 - 5 is 254 in bytes, which wrap around: go to int first"
        if found == -2 or found == 0 and first is a:
            return "a difference may be negative: take its absolute value"
        if abs(found - 2 / 255) < 1e-3:
            return "the distance is counted in steps of a byte, 0 ... 255: do not divide by 255"
        if found == 4:
            return "this is the square of the difference"
        if found != 2:
            return f"expected 2, got {found:g}"


@DISTANCE.property("the largest of all, not the mean or the sum")
def _(fn):
    a = torch.zeros(3, 4, 4, dtype=torch.uint8)
    b = a.clone()
    b[1, 2, 3], b[0, 0, 0] = 200, 10
    found = float(fn(a, b)[0])
    if found != 200:
        return {True: "this is the mean: one wrong pixel must not hide among many right ones"}.get(
            abs(found - 210 / 48) < 1e-3, f"expected 200, got {found:g}")


@DISTANCE.property("the share of places where a channel is off by more than one")
def _(fn):
    a = torch.full((3, 4, 5), 100, dtype=torch.uint8)
    b = a.clone()
    b[0, 0, 0], b[1, 0, 0], b[2, 1, 1], b[:, 3, :] = 90, 90, 103, 101          # two places off, one row by one only
    found = float(fn(a, b)[1])
    for bug, wrong in {"a difference of 1 is rounding: count more than one": 7 / 20,
                       "this counts values: a place counts once, whichever of its channels is off": 3 / 60,
                       "a place counts where any channel is off, not all three": 0.0,
                       "this is their number: the share of all places": 2.0,
                       "this is the share of places that agree": 18 / 20,
                       "this is a percentage: a share lies in 0 ... 1": 10.0,
                       "this counts values, also those off by one": 18 / 60}.items():
        if abs(found - wrong) < 1e-6:
            return bug
    if abs(found - 2 / 20) > 1e-6:
        return f"expected 0.1, got {found:.4g}"


@DISTANCE.property("equals the library's")
def _(fn):
    for seed in range(3):
        a, b = _bytes(seed), _bytes(seed + 10)
        out, right = [float(v) for v in fn(a, b)], picture_distance(a, b)
        if any(abs(x - y) > 1e-5 for x, y in zip(out, right, strict=True)):
            return f"expected {right[0]} and {right[1]:.4f}, got {out[0]:g} and {out[1]:.4f}"
    if [float(v) for v in fn(_bytes(1), _bytes(1))] != [0.0, 0.0]:
        return "equal pictures are 0 apart"


@DISTANCE.hygiene("leaves both pictures as they were")
def _(fn):
    return touched(fn, _bytes(4), _bytes(5))


# ---- 3 · who was it?

CULPRITS = Exercise("capstone.culprits", points=4, minutes=15, reference=culprits)
NAMES = [f"part {i}" for i in range(16)]


class Trial:
    """Draws right unless a broken part is among those swapped in; counts the pictures."""

    def __init__(self, broken):
        self.broken, self.asked = set(broken), []

    def __call__(self, names):
        self.asked.append(list(names))
        return not self.broken & set(names)


@CULPRITS.gate("returns a list of names")
def _(fn):
    out = fn(list(NAMES), Trial(["part 5"]))
    if not isinstance(out, (list, tuple)):
        return "expected a list of names" + (": is the `return` missing?" if out is None else f", got a {type(out).__name__}")


@CULPRITS.property("one of sixteen, wherever it stands; none where the picture is right; none of none")
def _(fn):
    for i in range(16):
        if (out := list(fn(list(NAMES), Trial([NAMES[i]])))) != [NAMES[i]]:
            return f"{NAMES[i]} breaks the picture, found were {', '.join(out) or 'none'}"
    if out := list(fn(list(NAMES), Trial([]))):
        return f"nothing is broken, found was {out[0]}: a part is a culprit only where `same` says False"
    if list(fn([], Trial([]))):
        return "of no parts none is a culprit"
    if list(fn(["part 0"], Trial(["part 0"]))) != ["part 0"]:
        return "a single part that breaks the picture is the culprit"


@CULPRITS.property("an odd number of parts")
def _(fn):
    for n in (3, 5, 7, 11):
        for i in range(n):
            if list(fn(NAMES[:n], Trial([NAMES[i]]))) != [NAMES[i]]:
                return f"{NAMES[i]} of {n} parts breaks the picture and was not found: names[:half] and names[half:] hold all"


@CULPRITS.property("several, in the order of `names`")
def _(fn):
    for broken in (["part 0", "part 1"], ["part 3", "part 12"], ["part 2", "part 9", "part 15"], NAMES):
        out = list(fn(list(NAMES), Trial(broken)))
        if sorted(out) == sorted(broken) and out != list(broken):
            return "all are found, not in the order of `names`"
        if out != list(broken):
            return f"{len(broken)} parts are broken, found were {len(out)}: a broken half does not acquit the other"


@CULPRITS.property("few pictures: one for all, and at most two for each halving")
def _(fn):
    names = [f"part {i}" for i in range(64)]
    for broken in ([], ["part 17"], ["part 63"]):
        fn(list(names), trial := Trial(broken))
        most = 1 if not broken else 1 + 2 * math.ceil(math.log2(64))
        if len(trial.asked) > most:
            return (f"{len(trial.asked)} pictures for {len(broken)} broken of 64 parts, {most} are enough: "
                    + ("ask about all at once first" if not broken else "halve, do not try one after the other"))


@CULPRITS.hygiene("leaves the list of names as it was")
def _(fn):
    names = list(NAMES)
    fn(names, Trial(["part 3"]))
    if names != NAMES:
        return "the caller's list was changed"


# ---- 4 · fingerprint

FINGERPRINT = Exercise("capstone.fingerprint", points=3, minutes=10, reference=fingerprint)


def _state(seed=0):
    return {"conv.weight": normal((2, 3), seed), "conv.bias": normal((2,), seed + 1), "steps": torch.tensor([7, 8])}


@FINGERPRINT.gate("returns 64 hexadecimal digits")
def _(fn):
    out = fn(_state())
    if not isinstance(out, str) or len(out) != 64 or set(out) - set("0123456789abcdef"):
        return "expected hashlib.sha256(...).hexdigest(), a string of 64 digits" + (
            ": is the `return` missing?" if out is None else "")


@FINGERPRINT.property("the same again, also for a dictionary in another order")
def _(fn):
    state = _state()
    if fn(state) != fn(dict(_state())):
        return "the same tensors give another fingerprint: only names, shapes, dtypes and bytes may enter"
    if fn(state) != fn(dict(reversed(state.items()))):
        return "the order of the dictionary changes the fingerprint: go through sorted(state)"


@FINGERPRINT.property("any changed value, name, shape or dtype gives another")
def _(fn):
    base, found = fn(_state()), {}
    changed = _state()
    changed["conv.weight"][1, 2] += 1e-6
    found["one value, by a millionth: the bytes must enter, not a rounded text"] = changed
    changed = _state()
    changed["conv.bias2"] = changed.pop("conv.bias")
    found["a name"] = changed
    changed = _state()
    changed["conv.weight"] = changed["conv.weight"].reshape(3, 2)
    found["a shape: the bytes alone are the same"] = changed
    changed = _state()
    changed["steps"] = changed["steps"].view(torch.float64)
    found["a dtype: the bytes alone are the same"] = changed
    one, two = _state(), _state()
    one["conv.bias"], two["conv.bias"] = normal((2,), 5), normal((2,), 6)
    if fn(one) == fn(two):
        return "other values give the same fingerprint: tensor.numpy().tobytes() must enter"
    for what, state in found.items():
        if fn(state) == base:
            return f"the fingerprint does not see {what}"


@FINGERPRINT.property("equals the library's, for tensors that are views, too")
def _(fn):
    turned = {"a": normal((4, 3), 3).T, "b": normal((6,), 4)[::2]}
    right = fingerprint(turned)
    if fn(turned) != right or fn(_state()) != fingerprint(_state()):
        sep = hashlib.sha256()
        for name in sorted(turned):
            sep.update(name.encode())
            sep.update(turned[name].contiguous().numpy().tobytes())
        if fn(turned) == sep.hexdigest():
            return "shape and dtype are missing"
        return ("another fingerprint than the library's: for each name in order first "
                'f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), then the bytes of the contiguous tensor')


@FINGERPRINT.hygiene("leaves the tensors as they were")
def _(fn):
    state = _state()
    return touched(lambda *_: fn(state), *state.values())
