"""Exercise 5: two experts on one way."""

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch15.answers import hand_over
from course.schedule import NoiseSchedule

HAND_OVER = Exercise("sdxl.hand_over", points=4, minutes=15, reference=hand_over)
SCHEDULE = NoiseSchedule()
UNEVEN = torch.tensor([999, 900, 800, 300, 200, 199, 100, 20])   # six of eight before the last fifth: steps and levels differ


class Expert(torch.nn.Module):
    """Believes that all data are one latent, and answers the eps that follows; remembers what it was asked."""

    def __init__(self, z0):
        super().__init__()
        self.z0, self.levels, self.seen = torch.nn.Parameter(z0), [], []

    def forward(self, x, t):
        self.levels.append(int(t))
        self.seen.append(x.detach().clone())
        bar = float(SCHEDULE.alphas_cumprod[int(t)])
        return (x - bar**0.5 * self.z0) / (1 - bar) ** 0.5


def _run(fn, timesteps=UNEVEN, share=0.8, seed=1):
    base, refiner = Expert(normal((2, 3, 4, 4), 5)), Expert(normal((2, 3, 4, 4), 6))
    out = fn(base, refiner, normal((2, 3, 4, 4), seed), timesteps, SCHEDULE, share)
    return base, refiner, out


@HAND_OVER.gate("returns x_0, of the shape of x")
def _(fn):
    return tensor_like(_run(fn)[2], (2, 3, 4, 4))


@HAND_OVER.property("the base is asked from 999 down to 200, the refiner below: by level, not by number of steps")
def _(fn):
    base, refiner, _ = _run(fn)
    asked, right = (base.levels, refiner.levels), ([999, 900, 800, 300, 200], [199, 100, 20])
    if asked == right:
        return None
    if asked == right[::-1]:
        return "the two have changed places: the base begins"
    if len(base.levels) + len(refiner.levels) > len(UNEVEN):
        return f"each level belongs to one of the two, {len(UNEVEN)} calls in all; there were {sum(map(len, asked))}"
    if asked == ([999, 900, 800, 300], [200, 199, 100, 20]):
        return "at t = 200 itself the base is asked: t >= (1 - share) * num_steps"
    if len(base.levels) in (6, 7):
        return (f"the base was asked {len(base.levels)} times, a share of the steps: compare the level t with "
                "(1 - share) * num_steps")
    return f"the base should be asked at {right[0]}, where t >= (1 - share) * num_steps, it was asked at {base.levels}"


@HAND_OVER.property("another share, other experts")
def _(fn):
    base, refiner, _ = _run(fn, SCHEDULE.timesteps(10), 0.5)
    if (len(base.levels), len(refiner.levels)) != (5, 5):
        return (f"with share 0.5 and ten even levels each should be asked five times, they were {len(base.levels)} and "
                f"{len(refiner.levels)} times")
    base, refiner, _ = _run(fn, torch.tensor([999, 650, 600, 599, 10]), 0.4)
    if base.levels != [999, 650, 600]:
        return f"with share 0.4 the base should be asked at [999, 650, 600], it was asked at {base.levels}"


@HAND_OVER.property("the refiner goes on from where the base has come: DDIM, one chain")
def _(fn):
    base, refiner, _ = _run(fn)
    right_base, right_refiner, _ = _run(hand_over)
    for got, right, who in ((base, right_base, "the base"), (refiner, right_refiner, "the refiner")):
        for i, (a, b) in enumerate(zip(got.seen, right.seen, strict=False)):
            bar = float(SCHEDULE.alphas_cumprod[199])
            if not torch.allclose(a, b, atol=1e-4):
                x0 = right_base.z0.detach()
                if who == "the refiner" and i == 0 and torch.allclose(a, x0, atol=1e-3):
                    return "the refiner was handed the base's x_0: it expects the noisy x of its level"
                if who == "the refiner" and i == 0 and float((a - bar**0.5 * x0).std()) > 0.2 * (1 - bar) ** 0.5:
                    return "fresh noise was added at the hand-over: the refiner goes on from the base's own x"
                return f"{who} saw another x in its call {i + 1} than DDIM leads to"


@HAND_OVER.property("ends at x_0, where no noise is left")
def _(fn):
    _, refiner, out = _run(fn)
    bar, z0 = float(SCHEDULE.alphas_cumprod[20]), refiner.z0.detach()
    return compare(out.detach(), z0, {"this is x at the last level, still noisy: the last step goes to alpha_bar = 1":
                                      refiner.seen[-1],
                                      "the last step ends at alpha_bar_0, not at 1: nothing comes after the last level":
                                      _run(_to_first)[2].detach(), "x_0 is scaled by the signal's share": bar**0.5 * z0},
                   rtol=1e-3)


def _to_first(base, refiner, x, timesteps, schedule, share):
    """The same with alpha_bar_0 at the end, as the released Stable Diffusion has it."""
    levels = timesteps.tolist()
    for t, after in zip(levels, [*levels[1:], 0], strict=True):
        bar, bar_after = float(schedule.alphas_cumprod[t]), float(schedule.alphas_cumprod[after])
        eps = (base if t >= (1 - share) * schedule.num_steps else refiner)(x, t)
        x = bar_after**0.5 * (x - (1 - bar) ** 0.5 * eps) / bar**0.5 + (1 - bar_after) ** 0.5 * eps
    return x


@HAND_OVER.property("no graph is kept")
def _(fn):
    if _run(fn)[2].requires_grad:
        return "the way kept the graph of every step: torch.no_grad()"


@HAND_OVER.hygiene("leaves x as it was")
def _(fn):
    z = normal((1, 3, 2, 2), 3)
    return touched(lambda x: fn(Expert(z), Expert(z), x, UNEVEN, SCHEDULE, 0.8), normal((1, 3, 2, 2), 4))
