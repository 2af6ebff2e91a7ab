import torch
from torch import nn

from course import schedule
from course.training import diffusion, loop
from course.training.step import Step


class Listener(nn.Module):
    """A denoiser that writes down at which t it was asked, and answers with one number that it learns."""

    def __init__(self):
        super().__init__()
        self.answer, self.asked = nn.Parameter(torch.zeros(())), []

    def forward(self, x_t, t, conditions):
        self.asked.append(t.clone())
        return self.answer.expand_as(x_t)


def asked(folder, **loss):
    model = Listener()
    ids, black = torch.ones(8, 1, 4, dtype=torch.int64), torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    diffusion.train(model, diffusion.pixel_batches(black), ids, torch.zeros(4, dtype=torch.int64),
                    schedule.NoiseSchedule(), folder, loop.Budget(steps=20), loop.LoopConfig(batch_size=50),
                    diffusion.DiffusionLoss("v", **loss), quiet=True)
    return torch.cat(model.asked).double()


def test_t_mean_says_which_noise_levels_are_practised(tmp_path):
    """A thousand of them, one in each slice of a batch: the median is that of a uniform, or the sigmoid of the normal's mean."""
    alike, high = asked(tmp_path / "a"), asked(tmp_path / "b", t_mean=1.5)
    assert abs(alike.median() - 500) < 10 and abs(high.median() - 1000 * torch.tensor(1.5).sigmoid()) < 10
    assert high.min() >= 0 and high.max() <= 999 and (high > 650).float().mean() > 0.75 > 2 * (alike > 650).float().mean()


def test_latents_are_drawn_at_unit_variance_or_are_the_mean():
    """N(3, 4) scaled by 1/2 is N(1.5, 1)."""
    mean, std = torch.full((1, 2, 4, 4), 3.0), torch.full((1, 2, 4, 4), 2.0)
    chosen, now = torch.zeros(500, dtype=torch.int64), Step(0, 0, 500)
    drawn = diffusion.latent_batches(mean, std, 0.5)(chosen, now)
    assert abs(drawn.mean() - 1.5) < 0.05 and abs(drawn.std() - 1) < 0.05
    assert (diffusion.latent_batches(mean, std, 0.5, draw_latents=False)(chosen, now) == 1.5).all()
