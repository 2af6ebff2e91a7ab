"""Whole pipelines, ours beside diffusers': small random models, saved by diffusers and opened by `StableDiffusion.load`.

Both start from the same noise, so that what comes out must be the same picture, up to one step of 255.
"""

import importlib
import json
import tempfile
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from course import published
from course import tokenizer as bpe
from course.controlnet import Control
from course.pipeline import StableDiffusion
from course.sdxl import refined

# by keyword: diffusers forgets positional arguments when one scheduler is made from another's config
NOISE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
PROMPTS, NEGATIVE = ["a small red circle", "A LARGE ring, it's blue!"], "a square"
PIXEL = 1 / 255


def randomised(module: nn.Module, scale: float = 0.1) -> nn.Module:
    """Norms and zero-initialised layers, too: what starts at one or zero hides mistakes."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data.copy_(scale * torch.randn(p.shape, generator=generator) + (0.5 if p.ndim == 1 else 0.0))
    return module.eval()


def noise(seed: int = 0) -> Tensor:
    """Our first noise for two pictures of 16 x 16: one generator a picture."""
    return torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed + i)) for i in range(2)])


# ---- the parts, small, in the classes of the reference libraries

def tokenizer(folder: Path, pad: str = "<|endoftext|>"):
    """Real tokenizer files of a small vocabulary: (theirs, ours)."""
    import transformers
    words = ["a small red circle on a white background", "a large blue ring it's"]
    tokens = bpe.Tokenizer.train(2 * words, num_merges=60, length=77)
    folder.mkdir()
    theirs = transformers.CLIPTokenizer(vocab=tokens.ids, merges=[tuple(m) for m in tokens.merges], pad_token=pad,
                                        model_max_length=77)
    theirs.save_pretrained(folder)
    write_vocabulary(folder, tokens)
    return theirs, tokens


def write_vocabulary(folder: Path, tokens: bpe.Tokenizer) -> None:
    """As released folders have it; newer transformers write tokenizer.json alone."""
    (folder / "vocab.json").write_text(json.dumps(tokens.ids))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in tokens.merges))


def text_encoder(tokens: bpe.Tokenizer, width: int, projected: bool = False):
    import transformers
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return randomised(kind(transformers.CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=24, max_position_embeddings=77, hidden_act="gelu" if projected else "quick_gelu",
        eos_token_id=tokens.end_id, bos_token_id=tokens.start_id, pad_token_id=tokens.end_id)))


def vae():
    import diffusers
    model = randomised(diffusers.AutoencoderKL(
        block_out_channels=(128, 128), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1, sample_size=16))
    # no spread: diffusers draws from the posterior where we take its mean
    model.quant_conv.weight.data[4:], model.quant_conv.bias.data[4:] = 0, -60
    return model


def unet(in_channels: int = 4, **options):
    import diffusers
    return randomised(diffusers.UNet2DConditionModel(**dict(
        sample_size=8, in_channels=in_channels, out_channels=4, block_out_channels=(128, 128), layers_per_block=1,
        attention_head_dim=2, cross_attention_dim=32, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"]) | options))


# ---- whole pipelines: (theirs, ours)

def stable_diffusion(folder: Path, in_channels: int = 4, kind: str = "StableDiffusionPipeline", **options):
    import diffusers
    their_tokens, tokens = tokenizer(folder / "t")
    pipe = getattr(diffusers, kind)(
        vae=vae(), text_encoder=text_encoder(tokens, 32), tokenizer=their_tokens, unet=unet(in_channels),
        scheduler=diffusers.DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **options),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "sd")
    write_vocabulary(folder / "sd" / "tokenizer", tokens)
    return pipe, StableDiffusion.load(folder / "sd")


def sdxl(folder: Path):
    import diffusers
    first, tokens = tokenizer(folder / "t1")
    second, _ = tokenizer(folder / "t2", pad="!")
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=text_encoder(tokens, 32), text_encoder_2=text_encoder(tokens, 48, projected=True),
        tokenizer=first, tokenizer_2=second, add_watermarker=False,
        scheduler=diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        unet=unet(cross_attention_dim=80, use_linear_projection=True, addition_embed_type="text_time",
                  addition_time_embed_dim=256, projection_class_embeddings_input_dim=24 + 6 * 256,
                  transformer_layers_per_block=[2, 1]))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "xl")
    for part in ("tokenizer", "tokenizer_2"):
        write_vocabulary(folder / "xl" / part, tokens)
    return pipe, StableDiffusion.load(folder / "xl")


def refiner(folder: Path):
    """The second encoder alone, and an aesthetic score in place of the target's size."""
    import diffusers
    second, tokens = tokenizer(folder / "t3", pad="!")
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=vae(), text_encoder=None, text_encoder_2=text_encoder(tokens, 48, projected=True), tokenizer=None, tokenizer_2=second,
        add_watermarker=False, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False,
        scheduler=diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        unet=unet(cross_attention_dim=48, use_linear_projection=True, addition_embed_type="text_time",
                  addition_time_embed_dim=256, projection_class_embeddings_input_dim=24 + 5 * 256))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "refiner")
    write_vocabulary(folder / "refiner" / "tokenizer_2", tokens)
    return pipe, StableDiffusion.load(folder / "refiner")


def controlnets(pipe, folder: Path, count: int) -> tuple[list, list]:
    """(theirs, ours) for the U-Net of `pipe`, with weights of their own."""
    import diffusers
    theirs, ours = [], []
    for i in range(count):
        net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32))
        theirs.append(randomised(net, 0.05 + 0.02 * i))
        net.save_pretrained(folder / f"c{i}")
        ours.append(published.load_controlnet(folder / f"c{i}"))
    return theirs, ours


def same_noise(kind: str, seed: int):
    """Let diffusers' image pipelines draw the noise that ours draws."""
    module = importlib.import_module(f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{kind}")
    return mock.patch.object(module, "randn_tensor", lambda *args, **kwargs: noise(seed))


def picture(size: int = 16) -> tuple[Tensor, Tensor]:
    """A picture in [-1, 1] and a mask over its right half."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 2:] = 1
    return torch.rand(1, 3, size, size) * 2 - 1, mask


# ---- comparisons: pictures in 0 ... 1

def _pair(ours: StableDiffusion, theirs: Tensor, *arguments, **options) -> list[tuple[Tensor, Tensor]]:
    mine = (ours.decode(ours.latents(*arguments, **options)).clamp(-1, 1) + 1) / 2
    return [(mine, theirs)]


def text_to_image(predict: str):
    def compare():
        with tempfile.TemporaryDirectory() as folder:
            pipe, ours = stable_diffusion(Path(folder), prediction_type=predict)
        theirs = pipe(PROMPTS, negative_prompt=[NEGATIVE] * 2, num_inference_steps=6, guidance_scale=3.0, latents=noise(),
                      output_type="pt").images
        return _pair(ours, theirs, PROMPTS, NEGATIVE, steps=6, guidance_scale=3.0, seed=0)
    return compare


def image_to_image():
    import diffusers
    with tempfile.TemporaryDirectory() as folder:
        pipe, ours = stable_diffusion(Path(folder))
    theirs, (image, _) = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False), picture()
    theirs.set_progress_bar_config(disable=True)
    with same_noise("img2img", 3):
        expected = theirs(PROMPTS, image=(image.expand(2, -1, -1, -1) + 1) / 2, strength=0.6, num_inference_steps=10,
                          guidance_scale=2.0, output_type="pt").images
    return _pair(ours, expected, PROMPTS, steps=10, guidance_scale=2.0, seed=3, image=image, strength=0.6)


def inpainting(channels: int, strength: float):
    def compare():
        with tempfile.TemporaryDirectory() as folder:
            pipe, ours = stable_diffusion(Path(folder), channels, "StableDiffusionInpaintPipeline")
        image, mask = picture()
        with same_noise("inpaint", 3):
            expected = pipe(PROMPTS, image=(image.expand(2, -1, -1, -1) + 1) / 2, mask_image=mask.expand(2, -1, -1, -1),
                            strength=strength, num_inference_steps=10, guidance_scale=2.0, height=16, width=16,
                            output_type="pt").images
        return _pair(ours, expected, PROMPTS, steps=10, guidance_scale=2.0, seed=3, image=image, mask=mask, strength=strength)
    return compare


def sdxl_text_to_image():
    with tempfile.TemporaryDirectory() as folder:
        pipe, ours = sdxl(Path(folder))
    theirs = pipe(PROMPTS, num_inference_steps=5, guidance_scale=3.0, latents=noise(), output_type="pt").images
    return _pair(ours, theirs, PROMPTS, steps=5, guidance_scale=3.0, seed=0, sampler="euler")


def sdxl_refined():
    """Base for 60 % of the way, then the refiner."""
    with tempfile.TemporaryDirectory() as folder:
        pipe, ours = sdxl(Path(folder))
        second, our_second = refiner(Path(folder))
    how = dict(num_inference_steps=10, guidance_scale=3.0)
    halfway = pipe(PROMPTS, denoising_end=0.6, latents=noise(), output_type="latent", **how).images
    expected = second(PROMPTS, image=halfway, denoising_start=0.6, output_type="pt", **how).images
    x0 = refined(ours, our_second, PROMPTS, 0.6, steps=10, guidance_scale=3.0, seed=0, sampler="euler")
    return [((our_second.decode(x0) + 1) / 2, expected)]


def multi_controlnet(guess: bool):
    """Two ControlNets of different weights, one of them for the first part of the way only."""
    def compare():
        import diffusers
        with tempfile.TemporaryDirectory() as folder:
            pipe, ours = stable_diffusion(Path(folder))
            theirs, nets = controlnets(pipe, Path(folder), 2)
        hints = [torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        steered = diffusers.StableDiffusionControlNetPipeline(
            **pipe.components, controlnet=diffusers.MultiControlNetModel(theirs), requires_safety_checker=False)
        steered.set_progress_bar_config(disable=True)
        how = dict(num_inference_steps=6, guidance_scale=3.0)
        expected = steered(PROMPTS[0], image=hints, controlnet_conditioning_scale=[0.7, 0.4], control_guidance_start=[0.0, 0.0],
                           control_guidance_end=[1.0, 0.5], guess_mode=guess, latents=noise()[:1], output_type="pt", **how).images
        controls = [Control(nets[0], hints[0], 0.7, guess=guess), Control(nets[1], hints[1], 0.4, end=0.5, guess=guess)]
        return _pair(ours, expected, PROMPTS[0], steps=6, guidance_scale=3.0, seed=0, control=controls)
    return compare


CASES = {
    "pipeline, text to image": ("diffusers.StableDiffusionPipeline", text_to_image("epsilon"), PIXEL),
    "pipeline, text to image, v": ("diffusers.StableDiffusionPipeline", text_to_image("v_prediction"), PIXEL),
    "pipeline, image to image": ("diffusers.StableDiffusionImg2ImgPipeline", image_to_image, PIXEL),
    "pipeline, inpainting": ("diffusers.StableDiffusionInpaintPipeline", inpainting(4, 0.8), PIXEL),
    "pipeline, inpainting, 9 channels": ("diffusers.StableDiffusionInpaintPipeline", inpainting(9, 1.0), PIXEL),
    "pipeline, SDXL": ("diffusers.StableDiffusionXLPipeline", sdxl_text_to_image, PIXEL),
    "pipeline, SDXL base and refiner": ("diffusers.StableDiffusionXLImg2ImgPipeline", sdxl_refined, PIXEL),
    "pipeline, two ControlNets": ("diffusers.StableDiffusionControlNetPipeline", multi_controlnet(False), PIXEL),
    "pipeline, two ControlNets, guess": ("diffusers.StableDiffusionControlNetPipeline", multi_controlnet(True), PIXEL),
}
