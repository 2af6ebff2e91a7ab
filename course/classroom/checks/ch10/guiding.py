"""Exercises 1 to 4: forget the text now and then, go further in the difference, where, and with what spread."""

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch10.answers import drop_texts, guided, limited, rescaled

# ---- 1 · drop the text

DROP = Exercise("guidance.drop_texts", points=2, minutes=10, reference=drop_texts)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _texts(n):
    return [f"text {i} of many" for i in range(n)]


@DROP.gate("returns a list of as many texts")
def _(fn):
    out = fn(_texts(5), 0.5, _generator())
    if not isinstance(out, (list, tuple)) or len(out) != 5 or not all(isinstance(text, str) for text in out):
        return f"expected a list of 5 strings, got {out!r:.80}" + (": is the `return` missing?" if out is None else "")


@DROP.property("p = 0 keeps all, p = 1 drops all")
def _(fn):
    if list(fn(_texts(50), 0.0, _generator())) != _texts(50):
        return "with p = 0 every text must stay, in its place"
    if any(fn(_texts(50), 1.0, _generator())):
        return "with p = 1 every text must be the empty one, \"\""


@DROP.property("a text is kept whole or dropped whole")
def _(fn):
    out = fn(_texts(200), 0.5, _generator(1))
    for text, was in zip(out, _texts(200), strict=True):
        if text not in ("", was):
            return f"{was!r} became {text!r}: drop the whole text, not words of it, and do not move the others"


@DROP.property("about p of them are dropped, each decided by itself")
def _(fn):
    for p in (0.1, 0.3):
        share = sum(text == "" for text in fn(_texts(4000), p, _generator(2))) / 4000
        if share in (0.0, 1.0):
            return "all of a batch were kept, or all dropped: draw a number for each text"
        if abs(share - (1 - p)) < 0.03:
            return f"a share of {share:.2f} was dropped, {p} was asked: p is the share that is dropped"
        if abs(share - p) > 0.03:
            return f"a share of {share:.2f} was dropped, {p} was asked"
    few = [sum(text == "" for text in fn(_texts(10), 0.3, _generator(s))) for s in range(40)]
    if len(set(few)) == 1:
        return f"of ten texts exactly {few[0]} are dropped each time: each text is decided by itself"


@DROP.property("new draws in every call, and the generator decides them")
def _(fn):
    g = _generator(3)
    if list(fn(_texts(100), 0.5, g)) == list(fn(_texts(100), 0.5, g)):
        return "two calls dropped the same texts: do not seed inside the function"
    if list(fn(_texts(100), 0.5, _generator(4))) != list(fn(_texts(100), 0.5, _generator(4))):
        return "two runs with the same seed differ: pass generator=generator to torch.rand"


@DROP.hygiene("leaves the list of texts as it was")
def _(fn):
    texts = _texts(20)
    fn(texts, 0.9, _generator())
    return None if texts == _texts(20) else "the list was changed: make a new one, the captions are used again"


# ---- 2 · guidance

GUIDED = Exercise("guidance.guided", points=4, minutes=20, reference=guided)


class Network:
    """predict(x, t, condition) = x/10 + the mean of the context + t/1000; it notes what it was shown."""

    def __init__(self):
        self.rows, self.levels, self.xs, self.missing = [], [], [], False

    def __call__(self, x, t, condition):
        self.rows.append(len(x))
        self.levels.append(float(torch.as_tensor(t).flatten()[0]))
        self.xs.append(x.clone())
        self.missing = self.missing or "more" not in condition
        return x / 10 + condition["context"].mean((1, 2)).reshape(-1, 1, 1, 1) + torch.as_tensor(t).flatten()[0] / 1000


def _told(cond: float, uncond: float, B: int = 2):
    return tuple({"context": torch.full((B, 3, 4), value), "more": torch.full((B, 5), value)} for value in (cond, uncond))


@GUIDED.gate("returns a function: (x (B,C,H,W), t) -> (B,C,H,W)")
def _(fn):
    cond, uncond = _told(3.0, 1.0)
    denoiser = fn(Network(), cond, uncond, 2.0)
    if not callable(denoiser):
        kind = type(denoiser).__name__
        return f"expected a function denoiser(x, t), got {'None: is `return denoiser` missing?' if denoiser is None else kind}"
    return tensor_like(denoiser(normal((2, 3, 4, 4), 1), 500), (2, 3, 4, 4))


@GUIDED.property("worked by hand: without text 1, with text 3, w = 2 gives 5")
def _(fn):
    out = fn(Network(), *_told(3.0, 1.0, 1), 2.0)(torch.zeros(1, 1, 1, 1), 0)

    def all_of(value):
        return torch.full((1, 1, 1, 1), float(value))
    return compare(out, all_of(5), {
        "this is cond + w (cond - uncond), Ho and Salimans' w: begin at uncond": all_of(7),
        "the two halves are exchanged: uncond + w (cond - uncond)": all_of(-1),
        "the sign of the difference is turned": all_of(-3),
        "this is w times cond: take the difference": all_of(6),
        "this is w times the difference: uncond is missing": all_of(4),
        "this is the mean of both": all_of(2),
        "w is not used: this is the conditional answer": all_of(3),
        "this is the unconditional answer": all_of(1)})


@GUIDED.property("w = 0 is the model without text, w = 1 the plain conditional one")
def _(fn):
    x = normal((2, 3, 4, 4), 2)
    for w, value in ((0.0, 1.0), (1.0, 3.0)):
        if problem := compare(fn(Network(), *_told(3.0, 1.0), w)(x, 0), x / 10 + value):
            return f"w = {w:g}: {problem}"


@GUIDED.property("the network sees every picture twice, and once where w = 1")
def _(fn):
    for w, rows in ((7.5, 4), (1.0, 2)):
        net = Network()
        fn(net, *_told(3.0, 1.0), w)(normal((2, 3, 4, 4), 3), 500)
        if sum(net.rows) != rows:
            why = ": at w = 1 uncond cancels, so do not ask for it" if w == 1 else ""
            return f"w = {w:g}: 2 pictures are {rows} rows for the network, it saw {sum(net.rows)}{why}"


@GUIDED.property("both halves get the same x and the same t, and all of the condition")
def _(fn):
    net, x = Network(), normal((2, 3, 4, 4), 4)
    out = fn(net, *_told(3.0, 1.0), 2.0)(x, 250)
    seen = torch.cat(net.xs)
    if seen.shape != (4, 3, 4, 4) or not torch.allclose(seen, torch.cat([x, x])):
        return "the network must be shown x twice, as it is: torch.cat([x, x])"
    if set(net.levels) != {250.0}:
        return f"the network was told t = {net.levels[0]:g}, asked was 250"
    if net.missing:
        return "an entry of the condition was lost: join all of `cond`, whatever their names are"
    return compare(out, x / 10 + 5 + 0.25)


@GUIDED.property("each picture is guided by its own text")
def _(fn):
    cond, uncond = ({"context": torch.tensor(v).reshape(2, 1, 1).expand(2, 3, 4), "more": torch.zeros(2, 5)}
                    for v in ((3.0, -2.0), (1.0, 0.5)))
    out = fn(Network(), cond, uncond, 3.0)(torch.zeros(2, 1, 2, 2), 0)
    right = torch.tensor([1 + 3 * 2.0, 0.5 - 3 * 2.5]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    return compare(out, right, {"the texts of the two pictures are exchanged": right.flip(0)})


@GUIDED.hygiene("leaves x and both conditions as they were")
def _(fn):
    cond, uncond = _told(3.0, 1.0)
    if problem := touched(fn(Network(), cond, uncond, 2.0), normal((2, 3, 4, 4), 5), torch.tensor(3)):
        return problem
    same = all(torch.equal(now[k], was[k]) for now, was in zip((cond, uncond), _told(3.0, 1.0), strict=True) for k in was)
    return None if same else "a condition was changed: make new tensors"


# ---- 3 · an interval

LIMITED = Exercise("guidance.limited", points=3, minutes=15, reference=limited)
BARS = torch.tensor([0.9, 0.5, 0.2, 0.01], dtype=torch.float64)      # sigma 1/3, 1, 2, 9.95


class Answer:
    """A denoiser that answers with a constant and counts how often it is asked."""

    def __init__(self, value):
        self.value, self.asked = value, []

    def __call__(self, x, t):
        self.asked.append((x, t))
        return torch.full_like(x, self.value)


def _where(fn, low, high, bars=BARS):
    """At which t the guided denoiser answers."""
    denoiser = fn(Answer(0.0), Answer(1.0), bars, low, high)
    return [t for t in range(len(bars)) if float(denoiser(torch.zeros(1, 1, 2, 2), t).mean()) > 0.5]


@LIMITED.gate("returns a function: (x (B,C,H,W), t) -> (B,C,H,W)")
def _(fn):
    denoiser = fn(Answer(0.0), Answer(1.0), BARS, 0.5, 3.0)
    if not callable(denoiser):
        return "expected a function denoiser(x, t)" + (": is the `return` missing?" if denoiser is None else "")
    return tensor_like(denoiser(normal((2, 3, 4, 4), 1), 1), (2, 3, 4, 4))


@LIMITED.property("worked by hand: alpha_bar 0.9, 0.5, 0.2, 0.01 are sigma 0.33, 1, 2, 9.95; 0.9 ... 3.5 holds two")
def _(fn):
    found = _where(fn, 0.9, 3.5)
    return None if found == [1, 2] else {
        (0, 3): "guided and plain are exchanged: guide inside the interval",
        (1,): "this is sigma squared, (1 - alpha_bar) / alpha_bar: take its root",
        (): "no level lies inside: sigma is the root of (1 - alpha_bar) / alpha_bar",
        (0, 1): "this is one over sigma: noise over signal, (1 - alpha_bar) / alpha_bar",
        (3,): "this is the root of 1 - alpha_bar: divide by alpha_bar under the root",
        (0, 1, 2, 3): "every level is guided: compare with both ends",
        (1, 2, 3): "the upper end is not looked at, or t was compared in place of sigma",
        (0, 1, 2): "the lower end is not looked at",
    }.get(tuple(found), f"guided at t = {found}, expected [1, 2]")


@LIMITED.property("both ends of the interval belong to it")
def _(fn):
    if _where(fn, 1.0, 1.0, torch.tensor([0.5], dtype=torch.float64)) != [0]:
        return "sigma = 1 lies in [1, 1]: compare with <="


@LIMITED.property("equals the course's over a thousand levels")
def _(fn):
    bars = torch.linspace(0.999, 0.004, 1000, dtype=torch.float64)
    found, right = _where(fn, 0.28, 2.9, bars), _where(limited, 0.28, 2.9, bars)
    return None if found == right else f"guided at {len(found)} levels, expected {len(right)}"


@LIMITED.property("only the one of the two that answers is asked, with the same x and t")
def _(fn):
    plain, strong, x = Answer(0.0), Answer(1.0), normal((1, 1, 2, 2), 2)
    denoiser = fn(plain, strong, BARS, 0.9, 2.1)
    denoiser(x, 1)
    denoiser(x, 3)
    if len(plain.asked) + len(strong.asked) > 2:
        return "both denoisers are asked at every level: outside the interval the second pass is what is saved"
    for seen, t in ((strong.asked, 1), (plain.asked, 3)):
        if len(seen) != 1 or not torch.equal(seen[0][0], x) or int(seen[0][1]) != t:
            return "hand x and t on as they are"


@LIMITED.hygiene("leaves x and alphas_cumprod as they were")
def _(fn):
    return touched(lambda x, bars: fn(Answer(0.0), Answer(1.0), bars, 0.9, 2.1)(x, 1), normal((1, 1, 2, 2), 3), BARS.clone())


# ---- 4 · rescale

RESCALED = Exercise("guidance.rescaled", points=3, minutes=10, reference=rescaled)


@RESCALED.gate("(B,C,H,W), (B,C,H,W), share -> (B,C,H,W)")
def _(fn):
    return tensor_like(fn(normal((2, 3, 4, 4), 1), normal((2, 3, 4, 4), 2), 0.5), (2, 3, 4, 4))


def _unit(x):
    return (x - x.mean()) / x.std()


@RESCALED.property("worked by hand: spreads 6 and 2, share 1: the answer is divided by 3")
def _(fn):
    one = _unit(normal((1, 2, 4, 4), 3))
    g, c = 6 * one + 5, 2 * one.flip(-1)
    return compare(fn(g, c, 1.0), g / 3, {
        "the factor is turned round: std(cond) / std(guided)": 3 * g,
        "these are variances: the ratio of standard deviations": g / 9,
        "the answer was brought to the spread 1: to that of cond": g / 6,
        "nothing was rescaled": g, "cond itself came back": c,
        "the mean was subtracted: only multiply": (g - g.mean()) / 3,
        "only the deviation from the mean was rescaled: multiply all of it": (g - g.mean()) / 3 + g.mean(),
        "the root mean square was taken: the standard deviation is about the mean":
            g * c.square().mean().sqrt() / g.square().mean().sqrt()})


@RESCALED.property("share mixes: 0 changes nothing, 0.7 takes 0.7 of the rescaled one")
def _(fn):
    one = _unit(normal((1, 2, 4, 4), 4))
    g, c = 6 * one, 2 * one.flip(-1)
    if problem := compare(fn(g, c, 0.0), g, {"share is not used: at 0 nothing changes": g / 3, "mixed with cond": c}):
        return problem
    return compare(fn(g, c, 0.7), 0.7 * g / 3 + 0.3 * g, {
        "the shares are exchanged: share belongs to the rescaled one": 0.3 * g / 3 + 0.7 * g,
        "the rest of the mixture is missing: (1 - share) of the guided answer": 0.7 * g / 3})


@RESCALED.property("each picture has one spread of its own, over all its values")
def _(fn):
    g = normal((2, 3, 4, 4), 5) * torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1) * torch.tensor([1.0, 2, 4]).reshape(1, 3, 1, 1)
    c = normal((2, 3, 4, 4), 6)
    return compare(fn(g, c, 1.0), rescaled(g, c, 1.0), {
        "one spread for the whole batch: of each picture, dim=(1, 2, 3)": g * c.std() / g.std(),
        "one spread for each channel: for each picture, dim=(1, 2, 3)":
            g * c.std((2, 3), keepdim=True) / g.std((2, 3), keepdim=True),
        "one spread for each value, across the batch": g * c.std(0, keepdim=True) / g.std(0, keepdim=True)}, rtol=1e-3)


@RESCALED.hygiene("leaves its inputs as they were")
def _(fn):
    return touched(lambda g, c: fn(g, c, 0.7), normal((2, 3, 4, 4), 7), normal((2, 3, 4, 4), 8))


