"""The answers of chapter 00 equal the library, and what it uses to draw and to count."""

import torch

from course import guidance, pixels, presets, samplers
from course.classroom import checks, use
from course.classroom.checks import ch00
from course.classroom.checks.ch00 import answers
from course.classroom.mutants import own
from course.pipeline import StableDiffusion
from course.tokenizer import Tokenizer


def test_bytes_and_values_equal_the_librarys():
    raw = torch.arange(256).repeat(3).to(torch.uint8).reshape(1, 16, 16, 3)
    assert torch.equal(answers.convert(raw), pixels.to_unit(raw).permute(0, 3, 1, 2))
    values = torch.randn(2, 3, 5, 4)
    assert torch.equal(answers.convert(values), pixels.to_bytes(values).permute(0, 2, 3, 1))


def test_guide_equals_the_librarys_guidance():
    def predict(x, t, condition):
        return x * condition["context"].mean((1, 2))[:, None, None, None]

    x, cond, uncond = torch.randn(2, 4, 3, 3), {"context": torch.randn(2, 5, 6)}, {"context": torch.randn(2, 5, 6)}
    for scale in (0.0, 1.0, 2.5):
        expected = guidance.guided(predict, cond, uncond, scale)(x, 3.0)
        torch.testing.assert_close(answers.guide(predict, x, 3.0, cond, uncond, scale), expected)


def test_a_picture_from_start_noise_and_guide_is_the_pipelines():
    torch.manual_seed(0)
    pipe = StableDiffusion(presets.PIPELINES["demo-latent"], Tokenizer.train(["a red circle"], 4, length=16))
    prompts = ["a red circle", "a circle"]
    with torch.no_grad():
        cond, uncond = pipe.conditions(prompts, None, 64, 64)
        x0 = samplers.ddim(lambda x, t: answers.guide(pipe.predict_eps, x, t, cond, uncond, 2.0),
                           answers.start_noise(pipe.latent_shape(64, 64), [5, 6]),
                           pipe.schedule.timesteps(2, pipe.config.spacing, pipe.config.offset), schedule=pipe.schedule)
    expected = pipe.latents(prompts, steps=2, guidance_scale=2.0, seed=5)
    torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-4)


def test_wilson_holds_what_it_promises():
    generator = torch.Generator().manual_seed(0)
    for p in (0.1, 0.5, 0.97):
        found = torch.binomial(torch.full((2000,), 40.0), torch.full((2000,), p), generator=generator).int().tolist()
        held = sum(low <= p <= high for _, low, high in (answers.share_with_interval(k, 40) for k in found)) / 2000
        assert 0.92 < held < 0.985                             # 95 % nominally; 40 trials make it coarse


def test_slerp_keeps_the_variance_of_noise():
    a, b = (answers.start_noise((4, 16, 16), [seed])[0] for seed in (1, 2))
    way = answers.slerp(a, b, torch.linspace(0, 1, 9))
    assert (way.flatten(1).std(dim=1) - 1).abs().max() < 0.06
    torch.testing.assert_close(way[[0, -1]], torch.stack([a, b]))


def test_the_parts_that_stand_in_pass_under_another_name(capsys):
    assert [e.id for e in ch00.EXERCISES] == [id for id in checks.exercises() if id in {e.id for e in ch00.EXERCISES}]
    for exercise in ch00.EXERCISES:
        mine = own(exercise.id)
        assert use(exercise.id, mine) is mine
    assert capsys.readouterr().out == ""
