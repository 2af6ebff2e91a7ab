import json
import warnings
from dataclasses import replace

import numpy
import pytest
import torch

from course.errors import CheckpointError, ShapeError, UsageError
from course.pipeline import StableDiffusion, to_pil


def test_same_seed_same_picture_whatever_else_is_in_the_batch(pipe):
    a = pipe.latents(["a red circle", "a ring"], steps=3, seed=5)
    assert torch.equal(a, pipe.latents(["a red circle", "a ring"], steps=3, seed=5))
    alone = pipe.latents("a ring", steps=3, seed=6)
    assert torch.allclose(a[1:], alone, atol=1e-4)
    assert not torch.allclose(a[1:], pipe.latents("a ring", steps=3, seed=7))


def test_pictures_and_sizes(pipe):
    images = pipe.generate("a red circle", steps=2, seed=0, height=48, width=32)
    assert [i.size for i in images] == [(32, 48)]
    with pytest.raises(ShapeError, match="multiples of 8"):
        pipe.generate("a red circle", steps=2, height=36)


def test_saved_and_loaded_is_the_same(pipe, tmp_path):
    before = pipe.latents("a red circle", steps=2, seed=1)
    pipe.save(tmp_path / "run" / "model")
    for source in (tmp_path / "run", tmp_path / "run" / "model"):
        loaded = StableDiffusion.load(source)
        assert torch.equal(loaded.latents("a red circle", steps=2, seed=1), before)
        assert loaded.config == pipe.config


def test_guidance_and_negative_prompts_matter(pipe):
    from tests.conftest import randomise
    randomise(pipe.unet), randomise(pipe.text_encoder)
    plain = pipe.latents("a red circle", steps=2, seed=0, guidance_scale=1.0)
    guided = pipe.latents("a red circle", steps=2, seed=0, guidance_scale=3.0)
    other = pipe.latents("a red circle", "a white background", steps=2, seed=0, guidance_scale=3.0)
    assert not torch.allclose(plain, guided) and not torch.allclose(guided, other)
    same = pipe.latents("a red circle", "a red circle", steps=2, seed=0, guidance_scale=3.0)
    assert torch.allclose(same, plain, atol=1e-3 * plain.abs().max())            # guided away from itself: not at all


def test_image_to_image_keeps_more_at_less_strength(pipe):
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    start = pipe.encode_image(image)
    far = [(pipe.latents("x", steps=20, seed=0, image=image, strength=s) - start).norm().item() for s in (0.05, 1.0)]
    assert far[0] < far[1]


def test_a_unet_that_was_trained_to_inpaint_reads_mask_and_picture(tokens):
    from tests.conftest import TINY, randomise
    pipe = StableDiffusion(replace(TINY, unet=replace(TINY.unet, in_channels=9)), tokens)
    randomise(pipe.unet)
    image, mask = torch.rand(1, 3, 32, 32) * 2 - 1, torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    out = pipe.latents(["x", "y"], steps=2, seed=0, image=image, strength=1.0, mask=mask)
    assert out.shape == (2, 4, 8, 8)
    hidden = image.clone()
    hidden[..., 16:] = 0.5                                     # what lies under the mask is not read
    assert torch.allclose(pipe.latents(["x", "y"], steps=2, seed=0, image=hidden, strength=1.0, mask=mask), out)
    assert not torch.allclose(pipe.latents(["x", "y"], steps=2, seed=0, image=-image, strength=1.0, mask=mask), out)
    with pytest.raises(UsageError, match="image and a mask"):
        pipe.latents("x", steps=2)


def test_inpainting_keeps_what_the_mask_leaves(pipe):
    image, mask = torch.rand(1, 3, 32, 32) * 2 - 1, torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    out = pipe.latents("x", steps=5, seed=0, image=image, strength=1.0, mask=mask)
    known = pipe.encode_image(image)
    assert torch.allclose(out[..., :4], known[..., :4], atol=1e-3 * known.abs().max())
    assert not torch.allclose(out[..., 4:], known[..., 4:], atol=1e-2)


def test_what_does_not_fit_is_quoted(pipe):
    with pytest.warns(UserWarning, match="elephant"):
        pipe.generate("red " * 40 + "elephant", steps=1, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.generate("a red ring", steps=1, seed=0)


@pytest.mark.parametrize("arguments, words", [
    ({"prompt": 7}, "string"), ({"prompt": []}, "string"), ({"prompt": "x", "steps": -1}, "steps"),
    ({"prompt": "x", "guidance_scale": float("nan")}, "guidance_scale"), ({"prompt": "x", "sampler": "magic"}, "magic"),
    ({"prompt": "x", "mask": torch.zeros(1, 1, 32, 32)}, "image"),
    ({"prompt": "x", "image": torch.zeros(1, 3, 32, 32), "strength": 2.0}, "strength")])
def test_misuse_names_the_value(pipe, arguments, words):
    with pytest.raises(UsageError, match=words):
        pipe.generate(**({"steps": 2} | arguments))


def test_damaged_folders_are_explained(pipe, tmp_path):
    with pytest.raises(CheckpointError, match="course demo"):
        StableDiffusion.load(tmp_path)
    pipe.save(tmp_path)
    weights = (tmp_path / "unet.safetensors").read_bytes()
    (tmp_path / "unet.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="unet.safetensors is damaged"):
        StableDiffusion.load(tmp_path)
    (tmp_path / "unet.safetensors").write_bytes((tmp_path / "vae.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="missing conv_in.weight"):
        StableDiffusion.load(tmp_path)
    pipe.save(tmp_path)
    config = json.loads((tmp_path / "pipeline.json").read_text())
    config["unet"]["block_channels"] = [64, 64]
    (tmp_path / "pipeline.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"expected \(64, 4, 3, 3\)"):
        StableDiffusion.load(tmp_path)
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(CheckpointError, match="pipeline.json"):
        StableDiffusion.load(tmp_path)


def test_to_pil_rounds_and_clips():
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert numpy.asarray(to_pil(pixels)[0])[0, :, 0].tolist() == [0, 0, 128, 255]
