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


SPACED = [(n, spacing) for n in (10, 28) for spacing in ("leading", "trailing", "linspace")]    # (T-1) / (n-1) is whole
ORDER = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}


def network(x, t):
    """Anything that depends on both and is smooth."""
    return torch.sin(2 * x) + 0.0005 * t


def reference(name: str, steps: int, spacing: str, predict: str = "eps", zero_snr: bool = False, karras: bool = False):
    """(diffusers' scheduler set up for `steps`, our schedule, our timesteps)."""
    diffusers = pytest.importorskip("diffusers")
    kind = {"ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler, "euler": diffusers.EulerDiscreteScheduler,
            "heun": diffusers.HeunDiscreteScheduler, "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
            "unipc": diffusers.UniPCMultistepScheduler}[name]
    options = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
               "timestep_spacing": spacing, "steps_offset": 1,
               "prediction_type": {"v": "v_prediction", "eps": "epsilon"}[predict]}
    options |= {"clip_sample": False} if name in ("ddim", "ddpm", "heun") else {}
    options |= {"set_alpha_to_one": False} if name == "ddim" else {}
    options |= {"rescale_betas_zero_snr": True} if zero_snr else {}
    options |= {"use_karras_sigmas": True} if karras else {}
    ours = NoiseSchedule(zero_terminal_snr=zero_snr)
    if name == "ddim":
        ours.final_alpha_cumprod = ours.alphas_cumprod[0].item()
    double = ours.betas.double()
    theirs = kind(**options)
    # diffusers keeps its tables in float32; both sides get the same float64 ones, so that only the steps are compared
    theirs.betas, theirs.alphas, theirs.alphas_cumprod = double, 1 - double, torch.cumprod(1 - double, 0)
    if hasattr(theirs, "final_alpha_cumprod"):
        theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    if hasattr(theirs, "alpha_t"):
        theirs.alpha_t, theirs.sigma_t = theirs.alphas_cumprod.sqrt(), (1 - theirs.alphas_cumprod).sqrt()
        theirs.lambda_t = theirs.alpha_t.log() - theirs.sigma_t.log()
    theirs.set_timesteps(steps)
    if hasattr(theirs, "sigmas"):                              # set_timesteps rounds to float32
        exact = ours.sigmas(ours.timestep_of(theirs.sigmas[:-1].double()))
        exact = ours.sigmas(ours.timestep_of(exact).round()) if not karras else theirs.sigmas[:-1].double()
        theirs.sigmas = torch.cat([exact, torch.zeros(1, dtype=torch.float64)])
    if karras:
        times = ours.timestep_of(theirs.sigmas[:-1])
        times = times[::2] if name == "heun" else times
    elif name in ("dpmpp_2m", "unipc"):                        # these cut one stride more and drop the last
        times = ours.timesteps(steps, spacing) if spacing == "trailing" else ours.timesteps(steps + 1, spacing, 1)[:-1]
    else:
        times = ours.timesteps(steps, spacing, 1)
    return theirs, ours, times


def run_theirs(name: str, theirs, x):
    """Their loop; x is at variance-preserving scale on both sides."""
    sigma_space = name in ("euler", "heun")
    if sigma_space:
        x = x * (1 + theirs.sigmas[0] ** 2).sqrt()
    for t in theirs.timesteps:
        read = theirs.scale_model_input(x, t)
        answer = network(read, float(t))
        x = theirs.step(answer, t, x).prev_sample
    return x


@pytest.mark.parametrize("predict", ["eps", "v"])
@pytest.mark.parametrize("steps, spacing", SPACED)
@pytest.mark.parametrize("name", ["ddim", *ORDER])
def test_against_diffusers(name, steps, spacing, predict):
    if name == "ddim" and (spacing == "linspace" or (spacing, steps) == ("trailing", 28)):
        pytest.skip("diffusers' DDIM steps to t - T // steps, which is not the next level that it visits in these spacings")
    theirs, ours, times = reference(name, steps, spacing, predict)
    their_times = theirs.timesteps[::2] if name == "heun" else theirs.timesteps
    assert torch.allclose(times.double(), their_times.double())
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def denoiser(x, t):
        return ours.to_eps(x, network(x, t), t, given=predict)
    out, expected = samplers.by_name(name)(denoiser, x, times, schedule=ours), run_theirs(name, theirs, x)
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("steps", [10, 28])
def test_ddpm_against_diffusers_with_the_same_noise(steps, monkeypatch):
    theirs, ours, times = reference("ddpm", steps, "leading")
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    generator = torch.Generator().manual_seed(4)
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.randn(shape, generator=generator).double())
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = samplers.ddpm(network, x, times, schedule=ours, generator=torch.Generator().manual_seed(4))
    expected = run_theirs("ddpm", theirs, x)
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_karras_levels_against_diffusers(name):
    theirs, ours, times = reference(name, 12, "linspace", karras=True)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(ours.timesteps(12, "karras"), times, atol=1e-3)
    out = samplers.by_name(name)(network, x, times, schedule=ours)
    expected = run_theirs(name, theirs, x)
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
def test_zero_terminal_snr_against_diffusers(name):
    theirs, ours, times = reference(name, 10, "trailing", "v", zero_snr=True)
    assert times[0] == 999 and ours.alphas_cumprod[-1] < 1e-7
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = samplers.by_name(name)(lambda x, t: ours.to_eps(x, network(x, t), t, given="v"), x, times, schedule=ours)
    expected = run_theirs(name, theirs, x)
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name, order", ORDER.items())
def test_order_of_convergence(name, order):
    """Twice the steps: half the error at first order, a quarter at second, an eighth at third. The flow of a Gaussian is known.

    The levels are even in lambda down to a level that still has noise: the last step, to none, is first order for all.
    """
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)[None, None, None]
    errors = []
    for n in (16, 32, 64, 128):
        lam = torch.linspace(0.5 * S.snr(999.0).log(), 0.5 * S.snr(30.0).log(), n + 1, dtype=torch.float64)
        times, at = S.timestep_of(torch.exp(-lam)), {}
        samplers.by_name(name)(gaussian_denoiser(0.3, 0.5), x, times, schedule=S,
                               callback=lambda i, t, x, x0, at=at: at.update({i: x}))
        end = at[n - 1]                                        # x at the last of `times`
        start_quantile = exact_flow(x, times[0], 0.3, 0.5)
        errors.append((exact_flow(end, times[-1], 0.3, 0.5) - start_quantile).abs().max().item())
    rates = [a / b for a, b in zip(errors, errors[1:], strict=False)]
    assert 0.75 * 2**order < rates[-1] < 1.35 * 2**order, (errors, rates)


def test_euler_is_ddim_in_other_letters():
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    a, b = (f(gaussian_denoiser(0.3, 0.5), x, S.timesteps(7), schedule=S) for f in (samplers.ddim, samplers.euler))
    assert torch.allclose(a, b, atol=1e-12)


def test_rectified_flow_is_exact_for_a_point_mass_and_takes_any_number_of_steps():
    point, x = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    for steps in (1, 3):
        out = samplers.rectified_flow(lambda x, t: (x - point) / (t / 1000), x, steps)
        assert torch.allclose(out, point, atol=1e-12)
    with pytest.raises(UsageError, match="steps"):
        samplers.rectified_flow(lambda x, t: x, x, 0)


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
    with pytest.raises(UsageError, match="eta"):
        samplers.heun(lambda x, t: x, x, S.timesteps(2), schedule=S, eta=0.5)
