import math

import pytest
import torch

from course.errors import ShapeError, UsageError
from course.schedule import KINDS, NoiseSchedule


def test_stable_diffusion_figures():
    """The published numbers of Stable Diffusion's schedule."""
    s = NoiseSchedule()
    assert s.alphas_cumprod.dtype == torch.float64
    assert s.alphas_cumprod[0].item() == pytest.approx(0.99915, abs=1e-9)
    assert s.alphas_cumprod[-1].sqrt().item() == pytest.approx(0.0683, abs=5e-5)
    sigma_max = ((1 - s.alphas_cumprod[-1]) / s.alphas_cumprod[-1]).sqrt().item()
    assert sigma_max == pytest.approx(14.6146, abs=5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_has_the_moments_of_the_markov_chain(kind):
    """q(x_t|x_0) in one step against T steps of x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) eps, by simulation."""
    s, n, start = NoiseSchedule(50, kind, 1e-3, 0.05), 200_000, 1.7
    generator = torch.Generator().manual_seed(0)
    x = torch.full((n,), start, dtype=torch.float64)
    for t, beta in enumerate(s.betas):
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn(n, generator=generator, dtype=torch.float64)
        if t in (0, 24, 49):
            alpha_bar = s.alphas_cumprod[t]
            assert x.mean().item() == pytest.approx((alpha_bar.sqrt() * start).item(), abs=5 / math.sqrt(n))
            assert x.var().item() == pytest.approx((1 - alpha_bar).item(), rel=6 * math.sqrt(2 / n), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_add_noise_keeps_unit_variance_and_takes_one_t_a_sample(kind):
    s = NoiseSchedule(1000, kind)
    x0, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    x_t = s.add_noise(x0, noise, t)
    for i in range(3):
        a = s.alphas_cumprod[t[i]]
        assert torch.allclose(x_t[i], (a.sqrt() * x0[i] + (1 - a).sqrt() * noise[i]).float(), atol=1e-6)
    assert x_t.dtype == x0.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips_of_the_three_parametrisations(kind):
    s = NoiseSchedule(1000, kind)
    x0, eps = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    t = torch.tensor([0, 10, 500, 900])
    x_t, v = s.add_noise(x0, eps, t), s.to_v(x0, eps, t)
    for given, value in (("eps", eps), ("v", v), ("x0", x0)):
        assert torch.allclose(s.to_x0(x_t, value, t, given), x0, atol=1e-9)
        assert torch.allclose(s.to_eps(x_t, value, t, given), eps, atol=1e-9)


def test_fractional_t_lies_between_and_agrees_at_whole_numbers():
    s = NoiseSchedule()
    whole = torch.arange(1000)
    assert torch.allclose(s.alpha_bar(whole), s.alphas_cumprod, rtol=1e-12)
    middle = s.alpha_bar(whole[:-1] + 0.5)
    assert (middle < s.alphas_cumprod[:-1]).all() and (middle > s.alphas_cumprod[1:]).all()
    assert torch.allclose(s.snr(whole), s.alphas_cumprod / (1 - s.alphas_cumprod))


def test_spacings():
    s = NoiseSchedule()
    assert s.timesteps(50, "leading", 1)[:2].tolist() == [981, 961] and s.timesteps(50, "leading", 1)[-1] == 1
    assert s.timesteps(50, "trailing")[[0, -1]].tolist() == [999, 19]
    assert s.timesteps(50, "linspace")[[0, -1]].tolist() == [999, 0]
    for spacing in ("leading", "trailing", "linspace"):
        for steps in (1, 7, 30, 1000):
            t = s.timesteps(steps, spacing)
            assert len(t) == steps and (t[:-1] > t[1:]).all()


def test_against_diffusers():
    diffusers = pytest.importorskip("diffusers")
    for kind, theirs in (("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")):
        reference = diffusers.DDPMScheduler(1000, 0.00085, 0.012, beta_schedule=theirs)
        ours = NoiseSchedule(kind=kind)
        assert torch.allclose(ours.alphas_cumprod.float(), reference.alphas_cumprod, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("arguments, words", [
    ({"num_steps": 0}, "num_steps"), ({"kind": "quadratic"}, "quadratic"), ({"beta_start": -1.0}, "beta_start"),
    ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start")])
def test_misuse_names_the_value(arguments, words):
    with pytest.raises(UsageError, match=words):
        NoiseSchedule(**arguments)


def test_misuse_of_methods():
    s, x = NoiseSchedule(), torch.zeros(2, 1, 2, 2)
    with pytest.raises(UsageError, match="999"):
        s.add_noise(x, x, torch.tensor([0, 1000]))
    with pytest.raises(ShapeError, match="noise"):
        s.add_noise(x, x[:1], torch.tensor([0, 1]))
    with pytest.raises(ShapeError, match="t must"):
        s.add_noise(x, x, torch.tensor([0, 1, 2]))
    with pytest.raises(UsageError, match="steps"):
        s.timesteps(-3)
    with pytest.raises(UsageError, match="given|prediction"):
        s.to_x0(x, x, 5, given="score")
