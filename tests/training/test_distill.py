"""Distillation against what it must come to: a student that says its lesson takes the teacher's two steps in one."""

from dataclasses import replace

import pytest
import torch

from course import presets, samplers, schedule, text, tokenizer, unet
from course.errors import UsageError
from course.pipeline import StableDiffusion
from course.training import distill, loop


@pytest.fixture()
def noising():
    return schedule.NoiseSchedule()


def test_one_step_with_the_lesson_lands_where_two_steps_of_ddim_do(noising):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)

    def teacher(x, t):                                         # anything that depends on x and on t
        return torch.tanh(x + torch.as_tensor(t).reshape(-1, 1, 1, 1) / 500)
    at = torch.tensor([999, 999]), torch.tensor([749, 749]), torch.tensor([499, 499])
    x0 = distill.lesson(teacher, noising, x, *at)
    eps = noising.to_eps(x, x0, 999.0)
    landed = distill.step(noising, x, eps, at[0], at[2])
    two = samplers.ddim(teacher, x, torch.tensor([999, 749]), schedule=_stops_at(noising, 499))
    assert torch.allclose(landed, two, atol=1e-10)


def test_each_picture_has_its_own_step_and_the_last_one_ends_clean(noising):
    torch.manual_seed(1)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    t, middle, end = torch.tensor([999, 249]), torch.tensor([749, 124]), torch.tensor([499, -1])

    def teacher(x, t):
        return 0.3 * x
    both = distill.lesson(teacher, noising, x, t, middle, end)
    for i in range(2):
        alone = distill.lesson(teacher, noising, x[i:i + 1], t[i:i + 1], middle[i:i + 1], end[i:i + 1])
        assert torch.allclose(both[i:i + 1], alone, atol=1e-12)
    whole = samplers.ddim(teacher, x[1:], torch.tensor([249, 124]), schedule=noising)
    assert torch.allclose(both[1:], whole, atol=1e-10)         # clean at the end: the lesson is the picture itself


def test_the_students_levels_are_those_it_is_sampled_at(noising):
    config = presets.PIPELINES["scenes64"]
    for steps in (1, 2, 4, 8):
        t, middle, end = distill.grid(noising, steps, config)
        assert t.tolist() == noising.timesteps(steps, config.spacing, config.offset).tolist()
        assert end.tolist() == [*t.tolist()[1:], -1]
        assert all(a > m > e for a, m, e in zip(t.tolist(), middle.tolist(), end.tolist(), strict=True))


def test_rounds_must_halve():
    with pytest.raises(UsageError, match="halve"):
        distill.DistillLoss(rounds=(8, 3))
    with pytest.raises(UsageError, match="halve"):
        distill.DistillLoss(rounds=())


def test_a_small_model_learns_its_teachers_two_steps(tmp_path):
    """One latent value for each picture: after training, one step of the student comes near two guided ones of the teacher."""
    torch.manual_seed(0)
    base = presets.PIPELINES["scenes64"]
    small = unet.UNetConfig(in_channels=2, out_channels=2, block_channels=(32,), layers_per_block=1, depth=(1,), heads=(2,),
                            context_dim=16)
    words = text.TextConfig(vocab_size=520, length=8, width=16, layers=1, heads=2, activation="gelu")
    config = replace(base, unet=small, text=words, vae=None, image_size=4)
    tokens = tokenizer.Tokenizer.train(["a b"], num_merges=6, length=8)
    pipe = StableDiffusion(config, tokens)
    before = {name: p.clone() for name, p in pipe.unet.state_dict().items()}
    data = torch.randn(16, 2, 4, 4)
    ids = tokens(["a", "b"] * 8)[:, None]                                               # (16,1,8)
    x = torch.randn(8, 2, 4, 4)

    def draw(net, steps, scale):
        pipe.unet = net
        cond, uncond = pipe.conditions(["a", "b"] * 4, None, 4, 4)
        from course import guidance
        with torch.no_grad():
            return samplers.ddim(guidance.guided(pipe.predict_eps, cond, uncond, scale), x, pipe.schedule.timesteps(steps),
                                 schedule=pipe.schedule)
    teacher = pipe.unet
    wanted = draw(teacher, 2, 3.0)
    untaught = draw(teacher, 1, 1.0)
    pipe.unet = teacher
    state, students = distill.train(pipe, lambda chosen, step: data[chosen], ids, tokens("")[0], tmp_path,
                                    loop.LoopConfig(batch_size=16, lr=2e-3, warmup_images=16, ema_halflife=100),
                                    distill.DistillLoss(rounds=(1,), guidance=3.0), loop.Budget(steps=150), quiet=True)
    taught = draw(students[1], 1, 1.0)
    assert state["step"] == 150
    assert (taught - wanted).square().mean() < 0.5 * (untaught - wanted).square().mean()
    assert all(torch.equal(p, before[name]) for name, p in teacher.state_dict().items())


def _stops_at(noising, t):
    """The same schedule, whose clean end is level t: two steps of a sampler then end there."""
    return schedule.NoiseSchedule(final_alpha_cumprod=float(noising.alphas_cumprod[t]))
