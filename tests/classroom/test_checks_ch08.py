"""The course's own answers of chapter 08 equal the library's."""

import torch

from course import objectives, pixels, samplers, schedule
from course.classroom.checks.ch08 import answers
from course.data import latents, shards
from course.pipeline import StableDiffusion


def test_encoding_and_scale_equal_the_library():
    vae = StableDiffusion.load("scenes64").vae
    images = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    mine, library = answers.encode_all(vae, pixels.to_unit(images), 2), latents.encode_all(vae, images)
    for a, b in zip(mine, library, strict=True):
        torch.testing.assert_close(a, b)
    rows = [shards.Rows([part]) for part in library]
    assert abs(answers.measured_scale(*mine) - latents.measured_scale(*rows)) < 1e-6


def test_a_step_has_the_library_s_loss():
    s, x0 = schedule.NoiseSchedule(), torch.randn(6, 2, 4, 4)
    model = torch.nn.Conv2d(2, 2, 1)
    seen = {}

    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, t, conditions):
            seen["x"], seen["t"] = x, t
            return self.net(x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    denoiser = Denoiser()
    loss = answers.training_step(denoiser, torch.optim.SGD(model.parameters(), 0.1), x0, None, s)
    model.load_state_dict(before)
    a, spread = s.coefficients(seen["t"], x0)
    noise = (seen["x"] - a * x0) / spread
    expected = objectives.diffusion_loss(denoiser, s, x0, None, "v", t=seen["t"], noise=noise)
    assert abs(loss - expected.item()) < 1e-4


def test_sampling_equals_ddim():
    s, noise = schedule.NoiseSchedule(), torch.randn(2, 4, 4, 4)

    class Decoder:
        def decode(self, z):
            return z[:, :3]

    def model(x, t, conditions):
        return 0.3 * x
    x0 = samplers.ddim(lambda x, t: s.to_eps(x, model(x, t, None), t, given="v"), noise, s.timesteps(7), schedule=s)
    torch.testing.assert_close(answers.sample(model, Decoder(), s, None, noise, 1.5, 7), (x0[:, :3] / 1.5).clamp(-1, 1))
