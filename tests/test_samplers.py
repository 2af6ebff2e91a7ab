"""A sampler is right if it is right where the answer is known: a point mass, a Gaussian, and diffusers' own steps."""

import pytest
import torch

from course import samplers
from course.errors import UsageError
from course.schedule import NoiseSchedule

S = NoiseSchedule(kind="linear", beta_start=1e-4, beta_end=0.02)


def gaussian_denoiser(mean: float, std: float):
    """The exact eps for data N(mean, std^2): E[eps | x_t]."""
    def denoiser(x, t):
        a = S.alpha_bar(t)
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * std**2 + 1 - a)
    return denoiser


def exact_flow(x, t, mean: float, std: float):
    """Where the probability-flow ODE takes x at level t: it keeps the quantile, so it is affine for a Gaussian."""
    a = S.alpha_bar(t)
    return mean + std * (x - a.sqrt() * mean) / (a * std**2 + 1 - a).sqrt()


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_point_mass_is_exact(name, steps):
    """For data at one point the exact eps leads to it in any number of steps."""
    point = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    out = samplers.by_name(name)(lambda x, t: S.to_eps(x, point, t, given="x0"), x, S.timesteps(steps), schedule=S,
                                 generator=torch.Generator().manual_seed(0))
    assert torch.allclose(out, point, atol=1e-9)


def test_ddim_converges_at_first_order():
    """Twice the steps, half the error."""
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)[None, None, None]
    start = S.timesteps(1000)[0].item()
    want = exact_flow(x, start, 0.3, 0.5)
    errors = [(samplers.ddim(gaussian_denoiser(0.3, 0.5), x, S.timesteps(n), schedule=S) - want).abs().max().item()
              for n in (25, 50, 100, 200)]
    ratios = [a / b for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.6 < r < 2.6 for r in ratios), (errors, ratios)


@pytest.mark.parametrize("name, eta", [("ddpm", 1.0), ("ddim", 1.0), ("ddim", 0.5)])
def test_stochastic_samplers_reach_the_distribution(name, eta):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    out = samplers.by_name(name)(gaussian_denoiser(0.3, 0.5), x, S.timesteps(250), schedule=S, eta=eta, generator=generator)
    assert out.mean().item() == pytest.approx(0.3, abs=0.02) and out.std().item() == pytest.approx(0.5, rel=0.03)


def test_ddpm_is_ddim_with_eta_one():
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    a, b = (f(gaussian_denoiser(0.3, 0.5), x, S.timesteps(20), schedule=S, eta=1.0, generator=torch.Generator().manual_seed(3))
            for f in (samplers.ddim, samplers.ddpm))
    assert torch.allclose(a, b, atol=1e-10)


def test_ddim_against_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=False,
                                     steps_offset=1)
    theirs.set_timesteps(20)
    ours = NoiseSchedule(final_alpha_cumprod=NoiseSchedule().alphas_cumprod[0].item())
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)

    def denoiser(x, t):
        return torch.sin(3 * x) + 0.001 * t
    expected = x.clone()
    for t in theirs.timesteps:
        expected = theirs.step(denoiser(expected, float(t)), t, expected).prev_sample
    out = samplers.ddim(denoiser, x, ours.timesteps(20, "leading", 1), schedule=ours)
    assert torch.allclose(out, expected, atol=1e-4)


def test_clipping_and_callback():
    seen = []
    out = samplers.ddim(lambda x, t: torch.zeros_like(x), torch.full((1, 1, 2, 2), 9.0), S.timesteps(5), schedule=S, clip_x0=1.0,
                        callback=lambda i, t, x, x0: seen.append((i, t, x0.abs().max().item())))
    assert [s[0] for s in seen] == [0, 1, 2, 3, 4] and all(s[2] <= 1 for s in seen) and out.abs().max() <= 1


def test_misuse():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(UsageError, match="high to low"):
        samplers.ddim(lambda x, t: x, x, torch.tensor([1, 2]), schedule=S)
    with pytest.raises(UsageError, match="plms"):
        samplers.by_name("plms")
    with pytest.raises(UsageError, match="eta"):
        samplers.ddpm(lambda x, t: x, x, S.timesteps(2), schedule=S, eta=0.0)
