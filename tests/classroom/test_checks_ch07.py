"""The course's own answers to chapter 07 equal the library."""

import pytest
import torch

from course import samplers
from course.classroom.checks.ch07 import answers
from course.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule()
CENTRES = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -1.5]], dtype=torch.float64)


def denoiser(x, t):
    alpha_bar = float(SCHEDULE.alpha_bar(float(t)))
    return (x - alpha_bar**0.5 * answers.exact_x0(x, alpha_bar, CENTRES, 0.3)) / (1 - alpha_bar) ** 0.5


def start(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_the_samplers_equal_the_library(name, spacing):
    ts = SCHEDULE.timesteps(7, spacing)
    mine, library = (module(denoiser, start(5, 2), ts, schedule=SCHEDULE) for module in
                     (getattr(answers, name), getattr(samplers, name)))
    torch.testing.assert_close(mine, library)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_draws_the_noise_of_the_library(eta):
    found = [f(denoiser, start(5, 2), SCHEDULE.timesteps(7), schedule=SCHEDULE, eta=eta,
               generator=torch.Generator().manual_seed(1)) for f in (answers.ddim, samplers.ddim)]
    torch.testing.assert_close(*found)


def test_the_posterior_is_a_step_of_the_library_s_ddpm():
    ts, seen = torch.tensor([600, 500]), []
    samplers.ddpm(denoiser, start(5, 2), ts, schedule=SCHEDULE, generator=torch.Generator().manual_seed(1),
                  callback=lambda i, t, x, x0: seen.append((x, x0)))
    now, after = SCHEDULE.alpha_bar(ts).tolist()
    mean, variance = answers.posterior(start(5, 2), seen[0][1], now, after)
    noise = torch.randn((5, 2), generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(mean + variance**0.5 * noise, seen[0][0])


def test_inversion_is_undone_by_the_library_s_ddim():
    ts, x0 = SCHEDULE.timesteps(500), CENTRES + 0.1
    code = answers.ddim_invert(denoiser, x0, ts, schedule=SCHEDULE)
    torch.testing.assert_close(samplers.ddim(denoiser, code, ts, schedule=SCHEDULE), x0, rtol=0, atol=0.02)


def test_the_exact_denoiser_agrees_with_an_integral():
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    m, alpha_bar, spread, x_t = torch.tensor([[-1.0], [2.0]], dtype=torch.float64), 0.4, 0.5, 0.7
    weight = torch.exp(-(grid - m).pow(2) / (2 * spread**2)).sum(0) * torch.exp(
        -(x_t - alpha_bar**0.5 * grid).pow(2) / (2 * (1 - alpha_bar)))
    expected = (weight * grid).sum() / weight.sum()
    found = answers.exact_x0(torch.tensor([[x_t]], dtype=torch.float64), alpha_bar, m, spread)
    torch.testing.assert_close(found.squeeze(), expected)
