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


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_seed_for_each_picture(pipe, sampler):
    batch = pipe.latents(["a red circle", "a ring", "a ring"], steps=3, seed=[9, 4, 9], sampler=sampler)
    alone = pipe.latents("a ring", steps=3, seed=4, sampler=sampler)
    assert torch.allclose(batch[1:2], alone, atol=1e-4 * alone.abs().max())          # also the noise that ddpm adds
    assert not torch.allclose(batch[2], batch[1], atol=0.1)
    same = pipe.latents(["a red circle"] * 2, steps=3, seed=[7, 7], sampler=sampler)
    assert torch.allclose(same[0], same[1], atol=1e-4 * same.abs().max())
    for wrong in ([1, 2], [], (1, 2, 3, 4)):
        with pytest.raises(UsageError, match=f"one for each prompt, got {len(wrong)}"):
            pipe.latents(["x"] * 3, steps=1, seed=wrong)


def test_the_noise_that_is_added_is_not_the_noise_it_started_from(pipe):
    from course import parts, samplers
    drawn = []

    def spy(denoiser, x, timesteps, *, generator, **others):
        drawn.append((x[0], torch.randn(x[0].shape, generator=generator)))
        return x
    with parts.swapped({"samplers.ddpm": spy}):                                      # a student's: one generator, as ever
        pipe.latents(["a", "b"], steps=2, seed=0, sampler="ddpm")
    (x, noise), = drawn
    assert (x * noise).mean().abs() < 0.3 and samplers.ddpm is not spy


def test_progress_and_callback_come_after_each_step(pipe):
    told, seen = [], []
    pipe.latents("x", steps=4, seed=0, progress=told.append, callback=lambda i, t, x, x0: seen.append((i, t, x.shape, x0.shape)))
    assert told == [0.25, 0.5, 0.75, 1.0] and [i for i, *_ in seen] == [0, 1, 2, 3]
    assert seen[0][1] == 999 and {s for *_, x, x0 in seen for s in (x, x0)} == {(1, 4, 8, 8)}
    told.clear()
    pipe.latents("x", steps=4, seed=0, image=torch.zeros(1, 3, 32, 32), strength=0.5, progress=told.append)
    assert told == [0.5, 1.0]


def test_guidance_interval_and_rescale_reach_the_denoiser(pipe):
    from tests.conftest import randomise
    randomise(pipe.unet), randomise(pipe.text_encoder)

    def draw(**options):
        return pipe.latents("a red circle", steps=4, seed=0, **{"guidance_scale": 4.0} | options)
    plain, guided = draw(guidance_scale=1.0), draw()
    assert torch.allclose(draw(guidance_interval=(0, 999)), guided)
    assert torch.allclose(draw(guidance_interval=(300, 301)), plain)                 # trailing: 999, 749, 499, 249
    part = draw(guidance_interval=(400, 800))
    assert not torch.allclose(part, plain) and not torch.allclose(part, guided)
    assert not torch.allclose(draw(guidance_rescale=0.7), guided)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pipe, dtype):
    exact = pipe.latents("a red circle", steps=4, seed=0)
    assert pipe.to("cpu", dtype) is pipe
    assert {p.dtype for m in pipe.modules().values() for p in m.parameters()} == {dtype}
    rough = pipe.latents("a red circle", steps=4, seed=0)
    assert rough.dtype == torch.float32                        # the way down from the noise is not rounded
    assert 0 < (rough - exact).norm() < 0.03 * exact.norm()
    assert pipe.decode(rough).dtype == pipe.encode_image(torch.zeros(1, 3, 32, 32)).dtype == torch.float32
    pipe.to("cpu", torch.float32)


def test_an_autoencoder_that_overflows_stays_in_float32(pipe, tokens):
    careful = StableDiffusion(replace(pipe.config, vae_float32=True), tokens).to("cpu", torch.float16)
    assert {p.dtype for p in careful.vae.parameters()} == {torch.float32}
    assert {p.dtype for p in careful.unet.parameters()} == {torch.float16}
    with torch.no_grad():                                      # beyond the 65,504 of float16
        careful.vae.post_quant_conv.weight.mul_(1e6)
    assert torch.isfinite(careful.decode(torch.randn(1, 4, 8, 8))).all()
    assert not torch.isfinite(careful.vae.half().decode(torch.randn(1, 4, 8, 8).half())).all()
    careful.to("cpu")                                          # without a dtype nothing changes
    assert next(careful.unet.parameters()).dtype == torch.float16


def test_an_image_brings_its_size(pipe):
    image = torch.zeros(1, 3, 48, 32)
    assert pipe.generate("x", steps=2, image=image)[0].size == (32, 48)
    masks = torch.zeros(2, 1, 48, 32)
    masks[0, ..., :24, :], masks[1, ..., 24:, :] = 1, 1
    out = pipe.latents(["x", "x"], steps=2, seed=[1, 1], image=image, mask=masks, strength=1.0)
    known = pipe.encode_image(image)[0]
    assert torch.equal(out[0, :, 6:], known[:, 6:]) and torch.equal(out[1, :, :6], known[:, :6])


@pytest.mark.parametrize("arguments, words", [
    ({"height": 64}, "the image is 32 x 32 .height x width., but 64 x 32"),
    ({"image": torch.zeros(1, 3, 36, 32)}, "multiples of 8, got 36 x 32"),
    ({"image": torch.zeros(3, 32, 32)}, r"expected an image \(1,3,H,W\)"),
    ({"image": torch.zeros(3, 3, 32, 32)}, "or 1 of them, got .3, 3, 32, 32"),
    ({"image": torch.full((1, 3, 32, 32), 200.0)}, r"\[-1, 1\], got 200"),
    ({"image": torch.full((1, 3, 32, 32), float("nan"))}, "got nan"),
    ({"mask": torch.zeros(1, 1, 64, 64)}, r"mask \(1,1,32,32\) as large as the image"),
    ({"mask": torch.zeros(32, 32)}, r"expected a mask"),
    ({"mask": torch.linspace(0, 1, 32).expand(1, 1, 32, 32)}, "got 0 ... 1, 32 different values")])
def test_pictures_that_cannot_be_started_from(pipe, arguments, words):
    with pytest.raises((ShapeError, UsageError), match=words):
        pipe.latents("x", steps=2, **({"image": torch.zeros(1, 3, 32, 32)} | arguments))


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


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun"])
def test_a_part_of_the_way_and_the_rest_are_the_whole(pipe, sampler):
    how = {"steps": 5, "seed": 0, "sampler": sampler}
    whole = pipe.latents("a ring", **how)
    halfway = pipe.latents("a ring", part=(0.0, 0.6), **how)
    assert not torch.allclose(halfway, whole, atol=0.1)
    rest = pipe.latents("a ring", part=(0.6, 1.0), begin=halfway, **how)
    assert torch.allclose(rest, whole, atol=1e-5 * whole.abs().max())
    told = []
    pipe.latents("a ring", part=(0.0, 0.6), progress=told.append, **how)
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0])


@pytest.mark.parametrize("how", [{"part": (0.5, 0.2)}, {"part": (0.5, 1.0)}, {"begin": torch.zeros(1, 4, 8, 8)},
                                 {"part": (0.0, 1.5)}, {"part": (0.0, 0.5), "image": torch.zeros(1, 3, 32, 32)}])
def test_parts_that_cannot_be(pipe, how):
    with pytest.raises(UsageError, match="part must be two shares"):
        pipe.latents("a ring", steps=2, **how)


def test_what_another_model_left_must_fit(pipe):
    with pytest.raises(ShapeError, match=r"`begin` of shape \(1, 4, 8, 8\), got \(1, 3, 8, 8\)"):
        pipe.latents("a ring", steps=4, part=(0.5, 1.0), begin=torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="none of the 2 steps"):
        pipe.latents("a ring", steps=2, part=(0.0, 0.0001))
