"""The course's own answers of chapter 10 equal the library's, and the chapter's part draws the library's picture."""

import torch
from scipy.stats import binomtest

from course import guidance, parts, schedule
from course.classroom import checks, collect
from course.classroom.checks import ch10
from course.classroom.checks.ch10 import answers
from course.classroom.mutants import own
from course.classroom.release import ROOT
from course.data import Scenes
from course.pipeline import StableDiffusion


def predict(x, t, condition):
    return x * condition["context"].mean((1, 2)).reshape(-1, 1, 1, 1) + t / 1000


def told():
    return [{"context": torch.randn(3, 2, 4)} for _ in range(2)]


def test_guidance_its_interval_and_its_rescaling():
    cond, uncond = told()
    x, s = torch.randn(3, 2, 4, 4), schedule.NoiseSchedule()
    for w in (0.0, 1.0, 7.5):
        mine, library = answers.guided(predict, cond, uncond, w), guidance.guided(predict, cond, uncond, w)
        torch.testing.assert_close(mine(x, 300), library(x, 300))
    a, b = torch.randn(2, 3, 2, 4, 4)
    torch.testing.assert_close(answers.rescaled(a, b, 0.7), guidance.rescaled(a, b, 0.7))
    low, high = 100, 600
    sigma = ((1 - s.alphas_cumprod) / s.alphas_cumprod).sqrt()
    mine = answers.limited(lambda x, t: predict(x, t, cond), answers.guided(predict, cond, uncond, 5.0), s.alphas_cumprod,
                           float(sigma[low]), float(sigma[high]))
    library = guidance.guided(predict, cond, uncond, 5.0, interval=(low, high))
    for t in (99, 100, 350, 600, 601):
        torch.testing.assert_close(mine(x, t), library(x, t))


def test_p_is_that_of_a_binomial_test_and_sharpness_sees_a_blur():
    for gained, lost in ((5, 0), (6, 2), (30, 12), (3, 3)):
        p = answers.paired([False] * gained + [True] * lost, [True] * gained + [False] * lost)[2]
        assert abs(p - binomtest(gained, gained + lost).pvalue) < 1e-9
    clean = Scenes(64, degraded=0.0).images(range(8))
    blurred = torch.nn.functional.avg_pool2d(clean, 3, 1, 1)
    assert (answers.sharpness(blurred) < 0.7 * answers.sharpness(clean)).all()


def test_swapped_parts_do_not_reach_the_checks():
    def broken(*arguments, **options):
        raise RuntimeError
    with parts.swapped({"guidance.classifier_free_guidance": broken}):
        assert all(checks.find(e.id).run(own(e.id)).passed for e in ch10.EXERCISES)


def test_the_part_of_the_chapter_draws_the_librarys_picture():
    found = collect.StudentParts()
    collect._read(ROOT / "solutions" / "10_guidance_prompts.ipynb", found)
    assert list(found) == ["guidance.classifier_free_guidance"]
    how = dict(prompt="a small red ring left of a large blue square", steps=2, seed=3, guidance_scale=3.0)
    expected = StableDiffusion.load("scenes64").latents(**how)
    with parts.swapped(found):
        pipe = StableDiffusion.load("scenes64")
    torch.testing.assert_close(pipe.latents(**how), expected, rtol=1e-3, atol=1e-4)
