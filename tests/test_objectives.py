import pytest
import torch

from course import samplers
from course.errors import UsageError
from course.objectives import diffusion_loss, flow_matching_loss, logit_normal, min_snr_weight, training_target
from course.schedule import NoiseSchedule

S = NoiseSchedule()


@pytest.mark.parametrize("predict", ["eps", "v", "x0"])
def test_the_exact_answer_has_no_loss(predict):
    """For a data set of one point, x_0 is known, so the right prediction can be computed."""
    x0 = torch.full((64, 1, 2, 2), 0.7)

    def exact(x_t, t, context):
        eps = S.to_eps(x_t, x0, t, given="x0")
        return training_target(S, x0, eps, t, predict)
    loss = diffusion_loss(exact, S, x0, None, predict, torch.Generator().manual_seed(0))
    assert loss.item() < 1e-6


def test_zero_prediction_has_the_loss_of_unit_noise():
    x0 = torch.randn(4096, 1, 2, 2)
    loss = diffusion_loss(lambda x, t, c: torch.zeros_like(x), S, x0, None, "eps", torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(1.0, abs=0.05)


def test_v_error_is_eps_error_over_alpha_bar():
    """The weighing that the module's docstring claims, by autograd-free arithmetic."""
    x0, eps, t = torch.randn(5, 1, 3, 3).double(), torch.randn(5, 1, 3, 3).double(), torch.tensor([1, 100, 400, 700, 999])
    wrong = eps + 0.1 * torch.randn_like(eps)
    x_t = S.add_noise(x0, eps, t)
    v, wrong_v = S.to_v(x0, eps, t), S.to_v(S.to_x0(x_t, wrong, t), wrong, t)
    factor = ((wrong_v - v) ** 2).flatten(1).sum(1) / ((wrong - eps) ** 2).flatten(1).sum(1)
    assert torch.allclose(factor, 1 / S.alphas_cumprod[t], rtol=1e-9)


def test_timesteps_cover_the_range_evenly_and_the_generator_decides():
    seen = []
    x0 = torch.zeros(100, 1, 1, 1)
    for seed in (0, 0, 1):
        diffusion_loss(lambda x, t, c: seen.append(t.clone()) or x, S, x0, None, "eps", torch.Generator().manual_seed(seed))
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0].sort().values // 10, torch.arange(100))          # one in each slice of ten


def test_unknown_objective():
    with pytest.raises(UsageError, match="noise2noise"):
        training_target(S, torch.zeros(1), torch.zeros(1), torch.tensor(1), "noise2noise")


def test_min_snr_weighs_the_error_in_x0_the_same_whatever_is_predicted():
    """The closed form: min(SNR, gamma) times the squared error in x_0."""
    x0, eps = torch.randn(5, 1, 3, 3).double(), torch.randn(5, 1, 3, 3).double()
    t = torch.tensor([1, 100, 400, 700, 999])
    x_t, wrong = S.add_noise(x0, eps, t), x0 + 0.1 * torch.randn_like(x0)
    snr = S.snr(t)
    expected = snr.clamp(max=5) * ((wrong - x0) ** 2).flatten(1).sum(1)
    wrong_eps = S.to_eps(x_t, wrong, t, given="x0")
    for predict, guess in (("x0", wrong), ("eps", wrong_eps), ("v", S.to_v(wrong, wrong_eps, t))):
        errors = ((guess - training_target(S, x0, eps, t, predict)) ** 2).flatten(1).sum(1)
        assert torch.allclose(min_snr_weight(snr, predict) * errors, expected, rtol=1e-9), predict


def test_min_snr_in_the_loss():
    """A network that answers 0 to a picture of zeros errs by eps: E[eps^2] = 1, so the loss is the mean weight."""
    x0 = torch.zeros(1000, 1, 4, 4)
    seen = []
    loss = diffusion_loss(lambda x, t, c: seen.append(t) or torch.zeros_like(x), S, x0, None, "eps",
                          torch.Generator().manual_seed(0), min_snr_gamma=5.0)
    assert loss.item() == pytest.approx(min_snr_weight(S.snr(seen[0]), "eps").mean().item(), rel=0.05)
    with pytest.raises(UsageError, match="gamma"):
        min_snr_weight(torch.ones(1), "eps", gamma=0)


def test_flow_matching_has_the_closed_form_minimum_of_a_gaussian():
    """For data N(m, d^2) the best velocity is linear, and its loss is the variance it leaves: d^2 / ((1-t)^2 d^2 + t^2)."""
    m, d, n = 0.4, 0.5, 100_000
    x0 = m + d * torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(1))

    def best(x, t):
        u = (t / 1000).reshape(-1, 1, 1, 1)
        var = (1 - u) ** 2 * d**2 + u**2
        gain = (u - (1 - u) * d**2) / var                      # Cov(eps - x_0, x_t) / Var(x_t)
        return -m + gain * (x - (1 - u) * m)
    seen = []
    loss = flow_matching_loss(lambda x, t, c: seen.append(t) or best(x, t), x0, None, torch.Generator().manual_seed(0))
    u = seen[0] / 1000
    assert loss.item() == pytest.approx((d**2 / ((1 - u) ** 2 * d**2 + u**2)).mean().item(), rel=0.02)
    assert u.min() > 0 and u.max() < 1 and u.logit().std().item() == pytest.approx(1, abs=0.01)
    # and that velocity carries noise to the data
    x = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    out = samplers.rectified_flow(lambda x, t: best(x, torch.tensor(float(t))), x, 200)
    assert out.mean().item() == pytest.approx(m, abs=0.02) and out.std().item() == pytest.approx(d, rel=0.02)


def test_logit_normal_has_the_quantiles_of_its_normal():
    """Monotone in u, so the median is sigmoid(mean), and the normal's 5 % is sigmoid(mean - 1.645 std)."""
    u = torch.linspace(0, 1, 10_001)[:-1]
    t = logit_normal(u, mean=1.5, std=0.5)
    assert t.min() > 0 and t.max() < 1 and (t.diff() >= 0).all()
    assert torch.allclose(t.quantile(torch.tensor([0.05, 0.5])), torch.sigmoid(torch.tensor([1.5 - 1.645 * 0.5, 1.5])), atol=1e-3)
