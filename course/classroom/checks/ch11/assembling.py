"""Exercises 3 and 4: a denoiser that is told what to draw, and the whole way from words to a picture."""

from types import SimpleNamespace

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch11.answers import guided_denoiser, text_to_image
from course.schedule import NoiseSchedule

# ---- 3 · the guided denoiser

GUIDED = Exercise("pipeline.guided_denoiser", points=3, minutes=15, reference=guided_denoiser)
SCHEDULE = NoiseSchedule()


class Asked:
    """A U-Net that answers x / 2 + mean of the context + t / 1000, and notes what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, context):
        self.calls.append((x.detach().clone(), t, context.detach().clone()))
        level = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1, 1).to(x) / 1000
        return x / 2 + context.mean((1, 2)).reshape(-1, 1, 1, 1) + level


def _contexts(B: int = 2):
    return normal((B, 3, 5), 1) + 1, normal((B, 3, 5), 2) - 1


@GUIDED.gate("returns a function (x, t) -> eps like x")
def _(fn):
    cond, uncond = _contexts()
    denoiser = fn(Asked(), cond, uncond, 2.0, SCHEDULE, "eps")
    if not callable(denoiser):
        return f"expected a function denoiser(x, t), got {type(denoiser).__name__}: return the inner function itself"
    return tensor_like(denoiser(normal((2, 4, 3, 3), 3), 500.0), (2, 4, 3, 3))


def _guided(scale: float, predicts: str = "eps", t: float = 500.0):
    cond, uncond = _contexts()
    x = normal((2, 4, 3, 3), 3)
    return cond, uncond, x, guided_denoiser(Asked(), cond, uncond, scale, SCHEDULE, predicts)(x, t)


@GUIDED.property("worked by hand: at scale 1 it is the answer with text, at scale 0 the one without")
def _(fn):
    for scale in (1.0, 0.0):
        cond, uncond, x, right = _guided(scale)
        problem = compare(fn(Asked(), cond, uncond, scale, SCHEDULE, "eps")(x, 500.0), right, {
            "with and without text are exchanged: the first half of the answer belongs to the first half of the batch":
                _guided(1 - scale)[-1],
            "this is scale 1 more than asked: eps_uncond + scale * (eps_cond - eps_uncond)": _guided(scale + 1)[-1]})
        if problem:
            return f"scale {scale:g}: {problem}"


@GUIDED.property("further than the text: scale 7.5")
def _(fn):
    cond, uncond, x, right = _guided(7.5)
    told = _guided(1.0)[-1]
    return compare(fn(Asked(), cond, uncond, 7.5, SCHEDULE, "eps")(x, 500.0), right, {
        "this is scale 1 more than asked: eps_uncond + scale * (eps_cond - eps_uncond)": _guided(8.5)[-1],
        "with and without text are exchanged": _guided(-6.5)[-1],
        "scale is not used": told, "the difference is added to the answer with text: start from the one without":
            told + 7.5 * (told - _guided(0.0)[-1])})


@GUIDED.property("one call of the U-Net a step, about 2B pictures, each with its own context")
def _(fn):
    cond, uncond = _contexts()
    unet, x = Asked(), normal((2, 4, 3, 3), 4)
    fn(unet, cond, uncond, 2.0, SCHEDULE, "eps")(x.clone(), 300.0)
    if len(unet.calls) != 1:
        return f"the U-Net was asked {len(unet.calls)} times: both halves go through it as one batch, torch.cat([x, x])"
    seen, _, context = unet.calls[0]
    if len(seen) != 4:
        return f"the U-Net should see 2B = 4 pictures, it saw {len(seen)}"
    for i in range(4):
        which = next((k for k, c in enumerate((*cond, *uncond)) if torch.equal(context[i], c)), None)
        if which is None or not torch.equal(seen[i], x[which % 2]):
            return "a picture met the context of another: cat puts one half behind the other, so both must be joined alike"


@GUIDED.property("the level reaches the U-Net as it came")
def _(fn):
    cond, uncond = _contexts()
    for t in (981.0, 1.0):
        unet = Asked()
        fn(unet, cond, uncond, 2.0, SCHEDULE, "eps")(normal((2, 4, 3, 3), 5), t)
        asked = torch.as_tensor(unet.calls[0][1]).double().flatten()
        if not torch.allclose(asked, torch.full_like(asked, t)):
            return f"the U-Net was asked about level {float(asked[0]):g} in place of {t:g}"


@GUIDED.property("a network that predicts v or x_0: the result is eps all the same")
def _(fn):
    for predicts in ("v", "x0"):
        cond, uncond, x, right = _guided(3.0, predicts)
        problem = compare(fn(Asked(), cond, uncond, 3.0, SCHEDULE, predicts)(x, 500.0), right, {
            f"a sampler wants eps, this network says {predicts}: schedule.to_eps(x, answer, t, given=predicts)":
                _guided(3.0, "eps")[-1],
            "the conversion takes what the network predicts: given=predicts": _guided(3.0, "x0" if predicts == "v" else "v")[-1]})
        if problem:
            return problem


@GUIDED.hygiene("leaves x as it was")
def _(fn):
    cond, uncond = _contexts()
    return touched(lambda x: fn(Asked(), cond, uncond, 2.0, SCHEDULE, "eps")(x, 500.0), normal((2, 4, 3, 3), 6))


# ---- 4 · from words to a picture

GENERATE = Exercise("pipeline.text_to_image", points=4, minutes=20, reference=text_to_image)


class Words:
    """A tokenizer: three numbers a text."""

    def __init__(self):
        self.read = []

    def __call__(self, texts):
        self.read += list(texts)
        return torch.tensor([[len(text), sum(map(ord, text)) % 97, 1] for text in texts])


class Toy:
    """A pipeline whose networks are formulas. What the text says is one number, 0.05 ids[0]; see `unet`."""

    device = torch.device("cpu")

    def __init__(self, predict="eps", spacing="leading", offset=1, sensitive=True, final=1.0):
        self.config = SimpleNamespace(predict=predict, spacing=spacing, offset=offset, image_size=6, guidance_scale=2.0)
        self.schedule, self.tokenizer, self.sensitive = NoiseSchedule(final_alpha_cumprod=final), Words(), sensitive
        self.vae = SimpleNamespace(decode=self.decode, scaling_factor=4.0)
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.levels, self.decoded, self.graph = [], [], False

    def latent_shape(self, height, width):
        return 4, height // 2, width // 2

    def text_encoder(self, ids):
        return (0.05 * ids[..., None] * torch.ones(5)).float()                            # (B,3,5)

    def unet(self, x, t, context):
        """Knows x_0: what the text says, everywhere; a `sensitive` one also listens to x."""
        level = torch.as_tensor(t).flatten().float()
        self.levels.append(float(level[0]))
        x0 = context[:, 0, 0].reshape(-1, 1, 1, 1) * self.weight + (0.5 * torch.tanh(x) if self.sensitive else 0 * x)
        self.graph = self.graph or x0.requires_grad
        a, s = self.schedule.coefficients(float(level[0]), x)
        return (x - a * x0) / s if self.config.predict == "eps" else (a * x - x0) / s

    def decode(self, z):
        self.decoded.append(z.detach().clone())
        return z[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)


PROMPTS = ("a red ring", "blue")


@GENERATE.gate("returns pictures (B,3,H,W)")
def _(fn):
    return tensor_like(fn(Toy(), list(PROMPTS), [0, 1], "", 4, 2.0), (2, 3, 6, 6))


@GENERATE.property("worked by hand: a U-Net that answers what the text says arrives at it, guided, and unscaled")
def _(fn):
    toy = Toy(sensitive=False)
    fn(toy, list(PROMPTS), [0, 1], "bad", 4, 2.0)
    if not toy.decoded:
        return "vae.decode was not called"
    says = torch.tensor([0.5, 0.2]).reshape(2, 1, 1, 1).expand(2, 4, 3, 3)              # 10 and 4 letters
    guided = 0.15 + 2 * (says - 0.15)
    return compare(toy.decoded[-1], guided / 4, {
        "the scale of the latents is missing: divide by vae.scaling_factor before decoding": guided,
        "the scale of the latents multiplies: on the way back it divides": guided * 4,
        "the negative prompt is not read: it takes the place of the empty text": 2 * says / 4,
        "guidance is missing: this is the plain answer to the prompt": says / 4,
        "prompt and negative prompt are exchanged": (says + 2 * (0.15 - says)) / 4}, rtol=1e-3)


@GENERATE.property("every prompt is tokenised, and the negative prompt beside it")
def _(fn):
    toy = Toy()
    fn(toy, list(PROMPTS), [0, 1], "fog", 2, 2.0)
    for text, what in [(p, "the prompt") for p in PROMPTS] + [("fog", "the negative prompt")]:
        if text not in toy.tokenizer.read:
            return f"{what} {text!r} never reached the tokenizer"


@GENERATE.property("the levels are those of the model's config: spacing and offset")
def _(fn):
    for spacing, offset in (("leading", 1), ("trailing", 0)):
        toy = Toy(spacing=spacing, offset=offset)
        fn(toy, ["a"], [0], "", 5, 2.0)
        right = toy.schedule.timesteps(5, spacing, offset).double().tolist()
        if list(dict.fromkeys(toy.levels)) != right:
            return (f"with spacing {spacing} and offset {offset} the levels should be {[int(t) for t in right]}, got "
                    f"{[int(t) for t in dict.fromkeys(toy.levels)]}: schedule.timesteps(steps, config.spacing, config.offset)")


@GENERATE.property("pictures are clamped to [-1, 1], and no graph is kept")
def _(fn):
    toy = Toy(sensitive=False)
    out = fn(toy, ["a very, very, very long prompt, longer than forty-five letters"], [0], "", 2, 2.0)
    if float(out.detach().abs().max()) > 1:
        return "the decoder may leave [-1, 1]: clamp the pictures"
    if toy.decoded and float(toy.decoded[-1].abs().max()) <= 1.0 + 1e-6:
        return "the latents were clamped: they have no range, only decoded pictures have"
    dark = fn(Toy(sensitive=False), ["a"], [0], "a very, very, very long negative prompt, longer than all of the others", 2, 2.0)
    if float(dark.detach().min()) > -0.5:
        return "values below 0 are a part of the picture: clamp to [-1, 1]"
    if toy.graph or out.requires_grad:
        return "the graph of every step was kept: torch.no_grad()"


@GENERATE.property("each picture starts from normal noise of its own seed, whatever else is in the batch")
def _(fn):
    both = fn(Toy(), ["a", "a"], [5, 6], "", 3, 2.0)
    if torch.equal(both[0], both[1]):
        return "the seeds 5 and 6 give the same picture: a generator for each picture, torch.Generator().manual_seed(seed)"
    if not torch.equal(both, fn(Toy(), ["a", "a"], [5, 6], "", 3, 2.0)):
        return "twice the same seeds, two results: pass the seeded generator to torch.randn"
    if not torch.allclose(fn(Toy(), ["a"], [6], "", 3, 2.0)[0], both[1], atol=1e-6):
        return "seed 6 gives another picture alone than behind seed 5: one generator ran on; each seed needs its own"
    right = text_to_image(Toy(), ["a", "a"], [5, 6], "", 3, 2.0)
    return compare(both, right) and "the noise is not torch.randn(shape, generator=...) of each seed, shape by pipe.latent_shape"


@GENERATE.property("equals the library's: eps and v, several scales, a schedule that stops at alpha_bar_0")
def _(fn):
    for predict, scale, final in (("eps", 2.0, 1.0), ("v", 1.5, 1.0), ("eps", 0.5, 0.99915)):
        mine, own = (f(Toy(predict, final=final), list(PROMPTS), [3, 4], "fog", 4, scale) for f in (fn, text_to_image))
        if problem := compare(mine, own, rtol=1e-3):
            wrong = f" (the network predicts {predict}: config.predict)" if predict == "v" else ""
            return f"predict {predict}, scale {scale}: {problem}{wrong}"


@GENERATE.hygiene("leaves the list of prompts as it was")
def _(fn):
    prompts = ["a", "b"]
    fn(Toy(), prompts, [0, 1], "", 2, 2.0)
    return None if prompts == ["a", "b"] else "the list of prompts was changed: `prompts + [...]` makes a new list"
