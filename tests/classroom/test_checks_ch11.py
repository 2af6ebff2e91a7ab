"""The course's own answers of chapter 11 equal the library's, and diffusers' pipeline."""

from pathlib import Path

import pytest
import torch

from course import guidance, presets, samplers
from course.classroom.checks.ch11 import answers
from course.evaluation import cost
from course.pipeline import StableDiffusion


@pytest.fixture(scope="module")
def pipe():
    return StableDiffusion.load("scenes64")


@pytest.mark.parametrize("name, count", [("sd15", 859_520_964), ("sd15-inpaint", 859_535_364), ("sd21", 865_910_724)])
def test_the_formula_counts_released_models(name, count):
    assert answers.count_unet(presets.UNETS[name]) == count


@pytest.mark.parametrize("name", ["demo-latent", "demo-pixel", "scenes64", "demo-pixel-gpu"])
def test_the_formula_counts_what_is_built(name):
    with torch.device("meta"):
        assert answers.count_unet(presets.UNETS[name]) == cost.parameters(presets.build(name))


def test_words_to_picture_equals_the_library(pipe):
    prompts = ["a red ring", "a large blue star on a white background"]
    mine = answers.text_to_image(pipe, prompts, [5, 6], "a square", 4, 3.0)
    library = pipe.decode(pipe.latents(prompts, "a square", steps=4, seed=5, guidance_scale=3.0))
    torch.testing.assert_close(mine, library, rtol=0, atol=1e-4)


@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_editing_equals_the_library(pipe, strength, masked):
    image, mask = torch.rand(1, 3, 64, 64) * 2 - 1, torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    library = pipe.latents("a red ring", steps=6, seed=1, image=image, strength=strength, mask=mask if masked else None)
    known = pipe.encode_image(image)
    noise = torch.randn(known.shape[1:], generator=torch.Generator().manual_seed(1))[None]
    x, left = answers.start_from_image(known, noise, pipe.schedule.timesteps(6), strength, pipe.schedule)
    if masked and strength == 1:
        x = noise                                              # the library fills a hole from pure noise
    cond, uncond = pipe.conditions(["a red ring"], None, 64, 64)
    with torch.no_grad():
        denoiser = answers.guided_denoiser(pipe.unet, cond["context"], uncond["context"], 1.5, pipe.schedule, "v")
        reference = guidance.guided(pipe.predict, cond, uncond, 1.5)
        torch.testing.assert_close(denoiser(x, 500.0), pipe.schedule.to_eps(x, reference(x, 500.0), 500.0, given="v"))
        if masked:
            denoiser = answers.keep_known(denoiser, known, 1 - mask[..., ::8, ::8], pipe.schedule)
        torch.testing.assert_close(samplers.ddim(denoiser, x, left, schedule=pipe.schedule), library, rtol=0, atol=2e-3)


def test_the_same_picture_as_diffusers(tmp_path):
    pytest.importorskip("diffusers")
    from course.evaluation import parity_pipelines
    theirs, ours = parity_pipelines.stable_diffusion(Path(tmp_path))
    prompts = ["a small red circle", "a large blue ring"]
    pictures = theirs(prompts, negative_prompt=["red"] * 2, num_inference_steps=5, guidance_scale=7.5,
                      latents=parity_pipelines.noise(0), output_type="pt").images
    mine = answers.text_to_image(ours, prompts, [0, 1], "red", 5, 7.5)
    assert (mine - (2 * pictures - 1)).abs().max() < 2 / 255
