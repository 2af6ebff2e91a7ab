"""Whole pipelines that diffusers saved: `generate` must give the picture that diffusers gives from the same noise."""

import json
from dataclasses import replace

import pytest
import torch

from course.errors import CheckpointError
from course.evaluation import parity_pipelines as small
from course.evaluation.parity_pipelines import NEGATIVE, PROMPTS, noise
from course.pipeline import StableDiffusion

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")


def same(ours, theirs):
    """At most one step of 255 apart, and not a flat gray."""
    ours, theirs = (torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).int() for p in pictures])
                    for pictures in (ours, theirs))
    assert theirs.float().std() > 10 and (ours - theirs).abs().max() <= 1


@pytest.mark.parametrize("predict", ["epsilon", "v_prediction"])
def test_text_to_image(tmp_path, predict):
    pipe, ours = small.stable_diffusion(tmp_path, prediction_type=predict)
    theirs = pipe(PROMPTS, negative_prompt=[NEGATIVE] * 2, num_inference_steps=6, guidance_scale=3.0, latents=noise()).images
    same(ours.generate(PROMPTS, NEGATIVE, steps=6, guidance_scale=3.0, seed=0), theirs)
    assert not ours.config.vae_float32
    # rescaling is of what the network says, eps or v
    theirs = pipe(PROMPTS, num_inference_steps=4, guidance_scale=8.0, guidance_rescale=0.7, latents=noise()).images
    same(ours.generate(PROMPTS, steps=4, guidance_scale=8.0, guidance_rescale=0.7, seed=0), theirs)
    theirs = pipe(PROMPTS, negative_prompt=[NEGATIVE] * 2, num_inference_steps=6, guidance_scale=3.0, latents=noise()).images
    # saved in our format and opened again it is still the same
    ours.save(tmp_path / "ours")
    same(StableDiffusion.load(tmp_path / "ours").generate(PROMPTS, NEGATIVE, steps=6, guidance_scale=3.0, seed=0), theirs)


@pytest.mark.parametrize("name, kind", [("euler", "EulerDiscreteScheduler"), ("heun", "HeunDiscreteScheduler"),
                                        ("dpmpp_2m", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler")])
def test_samplers_in_the_pipeline(tmp_path, name, kind):
    """Trailing levels, which all of diffusers' schedulers cut alike; their Euler and Heun start a little below unit noise."""
    pipe, ours = small.stable_diffusion(tmp_path)
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    ours.config = replace(ours.config, spacing="trailing")
    x = noise()
    if name in ("euler", "heun"):
        pipe.scheduler.set_timesteps(5)
        sigma = pipe.scheduler.sigmas[0]
        x = x * (1 + sigma**2).sqrt() / sigma                  # they multiply by sigma
    theirs = pipe(PROMPTS, num_inference_steps=5, guidance_scale=2.0, latents=x).images
    same(ours.generate(PROMPTS, steps=5, guidance_scale=2.0, seed=0, sampler=name), theirs)


@pytest.mark.parametrize("negative", [None, "a square"])
def test_sdxl(tmp_path, negative):
    pipe, ours = small.sdxl(tmp_path)
    assert "StableDiffusionXLPipeline" in ours.origin
    assert ours.tokenizer.pad != ours.tokenizer_2.pad == "!" and ours.config.zero_empty_prompt
    assert pipe.vae.config.force_upcast and ours.config.vae_float32
    theirs = pipe(PROMPTS, negative_prompt=[negative] * 2 if negative else None, num_inference_steps=5, guidance_scale=3.0,
                  latents=noise()).images
    same(ours.generate(PROMPTS, negative, steps=5, guidance_scale=3.0, seed=0, sampler="euler"), theirs)


def test_folders_that_cannot_be_opened(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(CheckpointError, match="FluxPipeline.*StableDiffusionXLPipeline"):
        StableDiffusion.load(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        StableDiffusion.load(tmp_path)
    file = tmp_path / "v1.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="tokenizer_source"):
        StableDiffusion.load(file)
