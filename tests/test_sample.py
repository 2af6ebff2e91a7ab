"""`course sample` and `course sweep`: what can be typed, and what is said about what cannot."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from course import files, sample
from course.errors import UsageError
from course.pipeline import StableDiffusion
from tests.conftest import TINY


@pytest.fixture
def course(pipe, command_line, monkeypatch, tmp_path):
    """The command, in this process and in a folder with a picture and a mask; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    pipe.save("model")
    Image.new("RGB", (32, 48), "pink").save("picture.png")
    Image.new("RGB", (33, 48), "pink").save("odd.png")
    mask = Image.new("L", (32, 48), 0)
    ImageDraw.Draw(mask).rectangle((16, 0, 31, 47), fill=255)
    mask.save("mask.png")
    mask.convert("1").save("bits.png")
    mask.resize((64, 96), Image.NEAREST).save("large.png")
    mask.resize((64, 96)).resize((32, 48), Image.BILINEAR).save("soft.png")
    files.write_bytes("text.png", b"no picture")

    def run(command, *words):
        return command_line(command, *words, "--model", "model", "--device", "cpu")
    return run


def test_prompts_by_seeds(course, pipe):
    code, out, _ = course("sample", "a red circle", "a ring", "--seeds", "3,9", "--steps", "2", "--size", "48x32", "--latents",
                          "x0.safetensors", "--json")
    told = json.loads(out)
    assert code == 0 and told["prompt"] == ["a red circle", "a ring"] and told["seed"] == [3, 9] and told["oracle"] == []
    assert Image.open("sample.png").size == (2 * 5 * 48 + 4, 2 * 5 * 32 + 4)           # two rows of two, five times as large
    x0 = files.load_tensors("x0.safetensors")[0]["x0"]
    expected = pipe.latents("a ring", steps=2, seed=9, height=32, width=48)
    assert torch.allclose(x0[3:], expected, atol=1e-4 * expected.abs().max())


def test_a_png_says_how_it_was_made(course):
    assert course("sample", "a ring", "--steps", "2", "--seed", "4", "--out", "a.png")[0] == 0
    assert course("sample", "a ring", "--steps", "2", "--out", "a.jpg")[0] == 0
    picture = Image.open("a.png")
    said = json.loads(picture.text["course"])
    assert picture.text["Description"] == "a ring" and picture.text["Software"].startswith("Latent Diffusion")
    assert said == {"prompts": ["a ring"], "seeds": [4], "steps": 2, "guidance_rescale": 0.0, "sampler": "ddim", "deep_cache": 1,
                    "strength": 0.8, "model": "model",
                    "command": "course sample 'a ring' --steps 2 --seed 4 --out a.png --model model --device cpu"}


def test_every_option_reaches_the_pipeline(course, monkeypatch):
    seen = {}

    def latents(self, prompts, **how):
        seen.update(how, prompts=prompts, tile=self.tile, dtype=next(self.unet.parameters()).dtype)
        return torch.zeros(len(prompts), 4, 12, 8)
    monkeypatch.setattr(StableDiffusion, "latents", latents)
    code, _, err = course("sample", "x", "--image", "picture.png", "--mask", "mask.png", "--strength", "0.5", "--guidance", "4",
                          "--guidance-interval", "200,800.5", "--guidance-rescale", "0.7", "--negative-prompt", "a ring",
                          "--sampler", "heun", "--deep-cache", "3", "--steps", "7", "--seed", "5", "--tile", "32",
                          "--precision", "bf16")
    assert code == 0, err
    image, mask = seen.pop("image"), seen.pop("mask")
    assert image.shape == (1, 3, 48, 32) and image[0, 0].min() == 1.0 and mask.shape == (1, 1, 48, 32)
    assert mask[..., 16:].all() and not mask[..., :16].any()
    seen.pop("progress")
    assert seen == {"prompts": ["x"], "strength": 0.5, "guidance_scale": 4.0, "guidance_interval": (200.0, 800.5),
                    "guidance_rescale": 0.7, "negative_prompt": "a ring", "sampler": "heun", "deep_cache": 3, "steps": 7,
                    "seed": [5], "tile": 32, "dtype": torch.bfloat16, "height": None, "width": None, "control": None}


@pytest.mark.parametrize("mask", ["mask.png", "bits.png"])
def test_a_picture_with_a_hole(course, pipe, mask):
    code, out, _ = course("sample", "a red circle", "--image", "picture.png", "--mask", mask, "--steps", "2", "--strength", "1",
                          "--attention", "heat.png", "--words", "red,red circle", "--latents", "x0.safetensors")
    assert code == 0 and "attention: heat.png" in out and "square pictures only" in out
    assert Image.open("sample.png").size == (256, 384) and Image.open("heat.png").width > 300
    x0, known = files.load_tensors("x0.safetensors")[0]["x0"], pipe.encode_image(sample.read_image("picture.png"))
    assert torch.equal(x0[..., :4], known[..., :4]) and not torch.allclose(x0[..., 4:], known[..., 4:], atol=0.1)


@pytest.mark.parametrize("words, said", [
    (["--image", "picture.png", "--mask", "large.png"], "mask (1,1,48,32) as large as the image"),
    (["--image", "picture.png", "--mask", "soft.png"], "soft.png is no mask: expected black"),
    (["--image", "picture.png", "--mask", "picture.png"], "picture.png is no mask"),
    (["--mask", "mask.png"], "needs an image"),
    (["--image", "odd.png"], "multiples of 8, got 48 x 33"),
    (["--image", "picture.png", "--size", "64"], "the image is 48 x 32 (height x width), but 64 x 64"),
    (["--image", "nowhere.png"], "no picture can be read from nowhere.png"),
    (["--image", "text.png"], "no picture can be read from text.png"),
    (["--image", "."], "no picture can be read from ."),
    (["--image", "picture.png", "--strength", "0"], "strength must lie in (0, 1], got 0"),
    (["--size", "big"], "--size takes"),
    (["--size", "64x"], "--size takes"),
    (["--seeds", "1,b"], "--seeds takes numbers"),
    (["--guidance-interval", "800,200"], "guidance_interval"),
    (["--guidance-interval", "5"], "guidance_interval"),
    (["--guidance-rescale", "2"], "guidance_rescale must lie in [0, 1], got 2"),
    (["--precision", "int4"], "fp32, bf16, fp16"),
    (["--tile", "20"], "multiple of 16, got 20"),
    (["--attention", "heat.txt"], ".png"),
    (["--attention", "heat.png", "--words", "dog"], "'dog' is not in what the model reads"),
    (["--steps", "1", "--attention", "text.png/heat.png"], "cannot write"),
    (["--original", "32"], "only SDXL is told of sizes"), (["--crop", "0,x"], "--crop takes"),
    (["--refiner", "nowhere"], "no model in nowhere"), (["--refiner", "model", "--hand-over", "1"], "between 0 and 1, got 1"),
    (["--count", "0"], "count")])
def test_misuse_of_sample(course, words, said):
    code, _, err = course("sample", "a ring", *words)
    assert code == 2 and said in err and "Traceback" not in err, err


@pytest.fixture
def adapters(course, pipe):
    """A ControlNet, two LoRAs and a word for the model of `course`, and pictures to be shown to the first."""
    from course import controlnet, lora
    from course.adapt import control
    from tests.conftest import randomise
    control.save(randomise(controlnet.ControlNet.from_unet(pipe.unet, (8, 8, 16))), Path("net"), "edges")
    Image.new("L", (32, 32), 255).save("hint.png")
    Image.new("L", (48, 48), 255).save("other.png")
    Image.new("RGBA", (32, 32), (255, 0, 0, 254)).save("clear.png")
    Image.new("RGBA", (32, 32), "white").save("opaque.png")
    lora.inject(pipe.unet, 2)
    randomise(pipe.unet, 3)
    lora.save({"unet": pipe.unet}, "mine.safetensors")
    lora.save({"unet": pipe.unet}, "copy.safetensors")
    wide = StableDiffusion(replace(TINY, unet=replace(TINY.unet, block_channels=(32, 96))), pipe.tokenizer)
    lora.inject(wide.unet, 2)
    lora.save({"unet": wide.unet}, "others.safetensors")
    save_file({"<thing>": torch.randn(16)}, "learned_embeds.safetensors")


def test_adapters_change_the_picture(course, adapters):
    pictures = {}
    for name, words in {"plain": [], "control": ["--control", "net=hint.png"], "half": ["--control", "net=hint.png:0.5"],
                        "opaque": ["--control", "net=opaque.png"],
                        "early": ["--control", "net=hint.png", "--control-part", "0,0.5"],
                        "guess": ["--control", "net=hint.png", "--guess"], "lora": ["--lora", "mine.safetensors:0.5"],
                        "two": ["--lora", "mine.safetensors:0.5", "--lora", "copy.safetensors"],
                        "off": ["--lora", "mine.safetensors:0", "--control", "net=hint.png:0"],
                        "word": ["--embedding", "learned_embeds.safetensors"]}.items():
        code, _, err = course("sample", "a <thing>", "--steps", "2", "--latents", f"{name}.safetensors", *words)
        assert code == 0, err
        pictures[name] = files.load_tensors(f"{name}.safetensors")[0]["x0"]
    assert torch.equal(pictures.pop("off"), pictures["plain"])
    assert torch.equal(pictures.pop("opaque"), pictures["control"])
    different = list(pictures.values())
    assert all(not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(different) for b in different[:i])


@pytest.mark.parametrize("words, said", [
    (["--control", "net"], "takes a network and a picture"),
    (["--control", "nowhere=hint.png"], "no ControlNet in nowhere"),
    (["--control", "net=other.png"], "expected a control picture (1,3,32,32), or 1 of them"),
    (["--control", "net=clear.png"], "clear.png with mode RGBA, not all opaque"),
    (["--control", "net=text.png"], "no picture can be read from text.png"),
    (["--control", "net=hint.png:nan"], "weight must be a finite number, got nan"),
    (["--control", "net=hint.png", "--control-part", "0.8,0.2"], "got 0.8 and 0.2"),
    (["--control", "net=hint.png", "--control-part", "1"], "takes two shares"),
    (["--lora", "others.safetensors"], "others.safetensors"),
    (["--lora", "nowhere.safetensors"], "nowhere.safetensors"),
    (["--lora", "mine.safetensors:inf"], "must be a finite number, got inf"),
    (["--lora", "mine.safetensors", "--lora", "mine.safetensors:0.5"], "mine.safetensors is there twice"),
    (["--embedding", "mine.safetensors"], "no textual inversion"),
    (["--embedding", "learned_embeds.safetensors", "--embedding", "learned_embeds.safetensors"], "there is a word '<thing>'")])
def test_misuse_of_adapters(course, adapters, words, said):
    code, _, err = course("sample", "a ring", "--steps", "1", *words)
    assert code == 2 and said in err and "Traceback" not in err, err


def test_sweep_writes_grid_and_rates(course):
    code, out, err = course("sweep", "a red circle", "--guidance", "1,3", "--steps", "2", "--seeds", "2", "--out", "a/grid.png")
    assert code == 0 and "1 cell" not in out and "a/grid.json" in out, err
    told = json.loads(open("a/grid.json").read())
    assert [(c["guidance"], c["steps"]) for c in told["cells"]] == [(1, 2), (3, 2)]
    assert told["prompts"] == ["a red circle"] and all(c["pictures"] == 2 for c in told["cells"])
    assert Image.open("a/grid.png").width > 300


@pytest.mark.parametrize("words, said", [
    (["a dog"], "cannot score 'a dog'"), (["--guidance", "1;3"], "--guidance takes numbers"), (["--steps", "1.5"], "--steps"),
    (["--seeds", "0"], "seeds must lie"), (["--out", "grid.jpg"], ".png"), (["--steps", "0", "a ring"], "steps must lie"),
    (["--sampler", "magic", "a ring"], "magic"),
    (["--guidance", "nan", "a ring"], "guidance_scale")])
def test_misuse_of_sweep(course, words, said):
    code, _, err = course("sweep", *words)
    assert code == 2 and said in err, err


def test_transparent_pictures_are_laid_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert torch.equal(sample.read_image(tmp_path / "clear.png"), torch.ones(1, 3, 8, 8))
    Image.new("L", (8, 8), 128).save(tmp_path / "gray.png")
    with pytest.raises(UsageError, match="no mask"):
        sample.read_mask(tmp_path / "gray.png")
