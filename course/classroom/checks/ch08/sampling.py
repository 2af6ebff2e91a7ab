"""Exercise 6: noise to picture."""

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch08.answers import sample
from course.schedule import NoiseSchedule

SAMPLE = Exercise("pipeline.sample", points=4, minutes=15, reference=sample)
SCHEDULE = NoiseSchedule()


class Knowing(torch.nn.Module):
    """The exact v where all data are one latent; its caption is added to it. Remembers the levels it was asked about."""

    def __init__(self, z0):
        super().__init__()
        self.z0, self.levels, self.grad, self.conditions = z0, [], False, []
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x, t, conditions):
        t = torch.as_tensor(t).flatten().long()
        if len(t) == 1 and len(x) > 1:
            t = t.expand(len(x))
        self.levels.append(t.clone())
        self.conditions.append(conditions)
        bar = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1).to(x)
        a, s = bar.sqrt(), (1 - bar).sqrt()
        v = self.weight * (a * x - self.z0) / s
        self.grad = self.grad or v.requires_grad
        return v


class Halver:
    """decode(z) = z, in three channels."""

    def __init__(self):
        self.seen = []

    def decode(self, z):
        self.seen.append(z.detach().clone())
        return z[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)


def _run(fn, z0, scale=2.0, steps=5, seed=1):
    model, vae = Knowing(z0), Halver()
    out = fn(model, vae, SCHEDULE, torch.arange(len(z0))[:, None], normal(z0.shape, seed), scale, steps)
    return model, vae, out


@SAMPLE.gate("returns the decoded pictures (B,3,H,W)")
def _(fn):
    return tensor_like(_run(fn, 0.1 * normal((2, 4, 3, 3), 2))[2], (2, 3, 6, 6))


@SAMPLE.property("worked by hand: where all data are one latent, the sample is that latent, divided by the scale")
def _(fn):
    z0 = 0.2 * normal((2, 4, 3, 3), 3)
    _, vae, _ = _run(fn, z0)
    if not vae.seen:
        return "vae.decode was not called"
    return compare(vae.seen[-1], z0 / 2, rtol=1e-3) and _why(vae.seen[-1], z0, normal(z0.shape, 1))


def _why(seen, z0, noise):
    for bug, wrong in {"the scale is missing: the decoder reads latents at the scale of the encoder": z0,
                       "the scale multiplies: on the way back it divides": z0 * 2,
                       "the noise itself was decoded": noise / 2}.items():
        if torch.allclose(seen, wrong, atol=1e-3):
            return bug
    return "the sampler does not arrive at the latent: the model answers v, and a sampler asks for eps (schedule.to_eps)"


@SAMPLE.property("the model is asked once a step, at the trailing levels, from 999 down, all pictures alike")
def _(fn):
    for steps in (5, 8):
        model = _run(fn, 0.1 * normal((2, 4, 3, 3), 4), steps=steps)[0]
        levels, right = [int(t[0]) for t in model.levels], SCHEDULE.timesteps(steps).tolist()
        if levels != right:
            if levels == right[::-1]:
                return "the levels rise: sampling goes from high t to low"
            if len(levels) != steps:
                return f"with {steps} steps the model should be asked {steps} times, it was asked {len(levels)} times"
            return f"with {steps} steps the levels should be {right}, got {levels}: schedule.timesteps(steps)"


@SAMPLE.property("the conditions reach the model")
def _(fn):
    model = _run(fn, 0.1 * normal((3, 4, 3, 3), 5))[0]
    if any(c is None or not torch.equal(c, torch.arange(3)[:, None]) for c in model.conditions):
        return "the model must be handed the conditions in every step"


@SAMPLE.property("pictures are clamped to [-1, 1], latents are not")
def _(fn):
    z0 = 6 * normal((2, 4, 3, 3), 6)
    _, vae, out = _run(fn, z0)
    if float(vae.seen[-1].abs().max()) <= 2:
        return "the latents were clamped: they have no range, only decoded pictures have"
    if float(out.abs().max()) > 1:
        return "the decoder may leave [-1, 1]: clamp the pictures"


@SAMPLE.property("no graph is kept")
def _(fn):
    model, _, out = _run(fn, 0.1 * normal((2, 4, 3, 3), 7))
    if model.grad or out.requires_grad:
        return "the sampler kept the graph of every step: torch.no_grad()"


@SAMPLE.hygiene("leaves the noise as it was")
def _(fn):
    z0 = 0.1 * normal((2, 4, 3, 3), 8)
    return touched(lambda noise: fn(Knowing(z0), Halver(), SCHEDULE, torch.zeros(2, 1), noise, 2.0, 3), normal(z0.shape, 1))
