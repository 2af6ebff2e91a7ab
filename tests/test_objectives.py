import pytest
import torch

from course.errors import UsageError
from course.objectives import diffusion_loss, training_target
from course.schedule import NoiseSchedule

S = NoiseSchedule()


@pytest.mark.parametrize("predict", ["eps", "v"])
def test_the_exact_answer_has_no_loss(predict):
    """For a data set of one point, x_0 is known, so the right prediction can be computed."""
    x0 = torch.full((64, 1, 2, 2), 0.7)

    def exact(x_t, t, context):
        eps = S.to_eps(x_t, x0, t, given="x0")
        return eps if predict == "eps" else S.to_v(x0, eps, t)
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
