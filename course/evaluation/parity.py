"""Is "from scratch" the real thing? Each network and sampler beside the reference library's, on random weights.

Weights are random everywhere, norms and zero-initialised layers included: what starts at zero or one hides mistakes.
Networks are small but of the released shape (levels, heads, depth); they are saved by the reference library in its
released format and loaded by `published`. Networks are compared in float32, samplers in float64.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from course import lora, published, samplers, schedule
from course.errors import UsageError
from course.evaluation import parity_pipelines
from course.evaluation.parity_pipelines import randomised

NETWORK, SAMPLER = 1e-4, 1e-5             # the largest error allowed, relative to the largest value of the reference; a
                                          # pipeline's pictures lie in 0 ... 1 and may be one step of 255 apart


@dataclass(frozen=True)
class Row:
    """One comparison; errors are over all values of all outputs."""

    name: str
    reference: str
    max_abs_error: float
    relative_error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.relative_error <= self.allowed


def run(only: str | None = None) -> list[Row]:
    """All comparisons, or those whose name contains `only`. Raises UsageError where diffusers is not installed."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed; it is what we compare with: pip install -e '.[bench]'") from None
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    chosen = {name: case for name, case in CASES.items() if only is None or only in name}
    if not chosen:
        raise UsageError(f"no comparison has {only!r} in its name; they are {', '.join(CASES)}")
    return [_row(name, *case) for name, case in chosen.items()]


@torch.no_grad()
def _row(name: str, reference: str, compare, allowed: float) -> Row:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pairs = compare()
    error = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    scale = max(theirs.abs().max().item() for _, theirs in pairs)
    return Row(name, reference, error, error / scale, allowed)


def _reload(theirs: nn.Module, load) -> nn.Module:
    """Ours, from the folder that theirs writes."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load(Path(folder))


# ---- networks

def _unet(context: int = 24, numbers: int = 0, **options):
    def compare() -> list[tuple[Tensor, Tensor]]:
        from diffusers import UNet2DConditionModel
        added = {"text_embeds": torch.randn(2, 32), "time_ids": torch.randint(0, 1024, (2, numbers)).float()} if numbers else None
        extra = dict(addition_embed_type="text_time", addition_time_embed_dim=256,
                     projection_class_embeddings_input_dim=32 + 256 * numbers) if numbers else {}
        theirs = randomised(UNet2DConditionModel(cross_attention_dim=context, **extra, **{"in_channels": 4} | options))
        ours = _reload(theirs, published.load_unet)
        x, t, words = torch.randn(2, options.get("in_channels", 4), 16, 16), torch.tensor([3, 977]), torch.randn(2, 7, context)
        return [(ours(x, t, words, added), theirs(x, t, words, added_cond_kwargs=added).sample)]
    return compare


def _kinds(depths: tuple[int, ...]) -> dict:
    return dict(down_block_types=["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
                up_block_types=["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in depths[::-1]],
                transformer_layers_per_block=[max(d, 1) for d in depths])


SD = dict(block_out_channels=(128, 128, 256, 256), layers_per_block=2, **_kinds((1, 1, 1, 0)))
XL = dict(block_out_channels=(128, 128, 256), layers_per_block=2, attention_head_dim=[2, 2, 4], use_linear_projection=True,
          **_kinds((0, 2, 3)))
REFINER = dict(block_out_channels=(128, 128, 256, 256), layers_per_block=2, attention_head_dim=[2, 2, 4, 4],
               use_linear_projection=True, **_kinds((0, 2, 2, 0)) | {"transformer_layers_per_block": 2})


def _autoencoder(half: str, codebook: bool = False):
    def compare() -> list[tuple[Tensor, Tensor]]:
        import diffusers
        kind = dict(block_out_channels=(128, 128, 256), layers_per_block=2, latent_channels=4,
                    down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3)
        theirs = randomised(diffusers.VQModel(num_vq_embeddings=64, **kind) if codebook else diffusers.AutoencoderKL(**kind))
        ours = _reload(theirs, published.load_vae)
        if half == "decoder":
            z = torch.randn(2, 4, 8, 8)
            return [(ours.decode(z), theirs.decode(z).sample)]
        x = torch.randn(2, 3, 32, 32)
        if codebook:
            return [(ours.encode(x), theirs.encode(x).latents)]
        mine, q = ours.encode(x), theirs.encode(x).latent_dist
        return [(mine.mean, q.mean), (mine.logvar, q.logvar)]
    return compare


def _quantizer() -> list[tuple[Tensor, Tensor]]:
    from diffusers.models.autoencoders.vae import VectorQuantizer

    from course import vq
    # the default of diffusers, legacy=True, has beta on the codebook's term instead of the commitment's: a kept bug
    theirs = VectorQuantizer(64, 4, beta=0.25, legacy=False)
    theirs.embedding.weight.data.normal_()
    ours = vq.VectorQuantizer(64, 4)
    ours.load_state_dict(theirs.state_dict())
    z = torch.randn(2, 4, 8, 8)
    (z_q, loss, indices), (expected, their_loss, (_, _, their_indices)) = ours(z), theirs(z)
    return [(z_q, expected), (loss, their_loss), (indices.flatten().float(), their_indices.flatten().float())]


def _text(activation: str, projected: bool):
    def compare() -> list[tuple[Tensor, Tensor]]:
        import transformers
        kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
        theirs = randomised(kind(transformers.CLIPTextConfig(
            vocab_size=100, hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4, projection_dim=48,
            max_position_embeddings=77, hidden_act=activation, eos_token_id=99, bos_token_id=98)))
        ours = _reload(theirs, lambda folder: published.load_text_encoder(folder, skip=int(projected)))
        ids = torch.randint(0, 98, (2, 77))
        ids[:, 40:] = 99
        found = theirs(ids, output_hidden_states=True)
        if projected:                                          # as SDXL reads it: the last layer but one, and the pooled vector
            return [(ours(ids), found.hidden_states[-2]), (ours.pooled(ids), found.text_embeds)]
        return [(ours(ids), found.last_hidden_state)]
    return compare


def _controlnet() -> list[tuple[Tensor, Tensor]]:
    from diffusers import ControlNetModel
    theirs = randomised(ControlNetModel(cross_attention_dim=24, **{k: v for k, v in SD.items() if k != "up_block_types"}))
    ours = _reload(theirs, published.load_controlnet)
    x, t, words, hint = torch.randn(2, 4, 8, 8), torch.tensor([3, 977]), torch.randn(2, 7, 24), torch.rand(2, 3, 64, 64)
    down, middle = theirs(x, t, words, hint, return_dict=False)
    return list(zip(ours(x, t, words, hint), [*down, middle], strict=True))


# ---- schedules and samplers

def _lora(dialect: str):
    """The same file beside their network, injected by peft, and beside ours."""
    def compare() -> list[tuple[Tensor, Tensor]]:
        from diffusers import StableDiffusionPipeline, UNet2DConditionModel
        from peft import LoraConfig, get_peft_model_state_dict
        from safetensors.torch import save_file
        from transformers import CLIPTextConfig, CLIPTextModel
        unet = randomised(UNet2DConditionModel(cross_attention_dim=24, **SD))
        words = randomised(CLIPTextModel(CLIPTextConfig(vocab_size=99, hidden_size=24, intermediate_size=96, num_hidden_layers=2,
                                                        num_attention_heads=2, max_position_embeddings=7)))
        ours = {"unet": _reload(unet, published.load_unet), "text_encoder": _reload(words, published.load_text_encoder)}
        alpha = 6.0 if dialect == "kohya" else 3.0             # the other two keep it elsewhere than in the file, if not at r
        for network, names in ((unet, ["to_q", "to_v", "to_out.0", "conv1"]), (words, ["q_proj", "fc1"])):
            network.add_adapter(LoraConfig(r=3, lora_alpha=alpha, target_modules=names, init_lora_weights=False))
        theirs = {"unet": get_peft_model_state_dict(unet), "text_encoder": get_peft_model_state_dict(words)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pytorch_lora_weights.safetensors"
            if dialect == "diffusers":
                StableDiffusionPipeline.save_lora_weights(folder, theirs["unet"], theirs["text_encoder"])
            elif dialect == "PEFT":
                save_file({f"{part}.base_model.model.{name}": tensor.contiguous()
                           for part, tensors in theirs.items() for name, tensor in tensors.items()}, path)
            else:
                save_file(_kohya(theirs, alpha), path)
            lora.load(ours, path)
        ids, x, t = torch.randint(0, 99, (2, 7)), torch.randn(2, 4, 16, 16), torch.tensor([3, 977])
        context = words(ids).last_hidden_state
        return [(ours["text_encoder"](ids), context), (ours["unet"](x, t, context), unet(x, t, context).sample)]
    return compare


def _kohya(tensors: dict[str, dict[str, Tensor]], alpha: float) -> dict[str, Tensor]:
    """peft's names -> kohya's: underscores for dots, and an alpha beside each pair."""
    written = {}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")):
        for name, tensor in tensors[part].items():
            path, _, which = name.removeprefix("text_model.").removesuffix(".weight").rpartition(".lora_")
            stem = prefix + path.replace(".", "_")
            written |= {f"{stem}.lora_{'down' if which == 'A' else 'up'}.weight": tensor.contiguous(),
                        f"{stem}.alpha": torch.tensor(alpha)}
    return written


def _schedule(zero_snr: bool):
    def compare() -> list[tuple[Tensor, Tensor]]:
        from diffusers import DDIMScheduler
        theirs = DDIMScheduler(**parity_pipelines.NOISE, rescale_betas_zero_snr=zero_snr)
        ours = schedule.NoiseSchedule(zero_terminal_snr=zero_snr)
        return [(ours.alphas_cumprod, theirs.alphas_cumprod.double())]
    return compare


def _sampler(name: str, kind: str, predict: str, spacing: str = "leading", steps: int = 20):
    def compare() -> list[tuple[Tensor, Tensor]]:
        import diffusers
        options = {"clip_sample": False} if kind in ("DDIMScheduler", "DDPMScheduler") else {}
        theirs = getattr(diffusers, kind)(**parity_pipelines.NOISE, steps_offset=1, timestep_spacing=spacing,
                                          prediction_type={"eps": "epsilon", "v": "v_prediction"}[predict], **options)
        ours, multistep = schedule.NoiseSchedule(), name in ("dpmpp_2m", "unipc")
        theirs.alphas_cumprod = ours.alphas_cumprod            # their tables are float32: compare the steps, not the rounding
        theirs.set_timesteps(steps)
        times = ours.timesteps(steps + 1, spacing, 1)[:-1] if multistep else ours.timesteps(steps, spacing, 1)
        if hasattr(theirs, "sigmas"):
            levels = torch.repeat_interleave(times, 2)[1:] if name == "heun" else times
            theirs.sigmas = torch.cat([ours.sigmas(levels), torch.zeros(1, dtype=torch.float64)])

        def network(x: Tensor, t: float) -> Tensor:
            return torch.sin(2 * x) + 0.0005 * t
        x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
        mine = samplers.by_name(name)(lambda x, t: ours.to_eps(x, network(x, t), t, given=predict), x, times, schedule=ours,
                                      generator=torch.Generator().manual_seed(7))
        if name in ("euler", "heun"):                          # theirs works on x_0 + sigma eps, ours on what the network reads
            x = x * (1 + theirs.sigmas[0] ** 2).sqrt()
        draws = torch.Generator().manual_seed(7)               # ddpm's fresh noise, the same on both sides
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor",
                        lambda shape, **kw: torch.randn(shape, generator=draws).double()):
            for t in theirs.timesteps:
                x = theirs.step(network(theirs.scale_model_input(x, t), float(t)), t, x).prev_sample
        return [(mine, x)]
    return compare


CASES = {
    "U-Net, SD 1.5": ("diffusers.UNet2DConditionModel", _unet(attention_head_dim=4, **SD), NETWORK),
    "U-Net, SD 1.5 inpainting": ("diffusers.UNet2DConditionModel", _unet(in_channels=9, attention_head_dim=4, **SD), NETWORK),
    "U-Net, SD 2.1": ("diffusers.UNet2DConditionModel",
                      _unet(40, attention_head_dim=[2, 2, 4, 4], use_linear_projection=True, **SD), NETWORK),
    "U-Net, SDXL base": ("diffusers.UNet2DConditionModel", _unet(40, 6, **XL), NETWORK),
    "U-Net, SDXL refiner": ("diffusers.UNet2DConditionModel", _unet(40, 5, **REFINER), NETWORK),
    "VAE encoder": ("diffusers.AutoencoderKL", _autoencoder("encoder"), NETWORK),
    "VAE decoder": ("diffusers.AutoencoderKL", _autoencoder("decoder"), NETWORK),
    "VQ encoder": ("diffusers.VQModel", _autoencoder("encoder", codebook=True), NETWORK),
    "VQ decoder": ("diffusers.VQModel", _autoencoder("decoder", codebook=True), NETWORK),
    "vector quantiser": ("diffusers VectorQuantizer, legacy=False", _quantizer, NETWORK),
    "text encoder, CLIP-L": ("transformers.CLIPTextModel", _text("quick_gelu", False), NETWORK),
    "text encoder, OpenCLIP H": ("transformers.CLIPTextModel", _text("gelu", False), NETWORK),
    "text encoder, OpenCLIP bigG": ("transformers.CLIPTextModelWithProjection", _text("gelu", True), NETWORK),
    "ControlNet": ("diffusers.ControlNetModel", _controlnet, NETWORK),
    "LoRA, kohya": ("peft in diffusers", _lora("kohya"), NETWORK),
    "LoRA, PEFT": ("peft in diffusers", _lora("PEFT"), NETWORK),
    "LoRA, diffusers": ("peft in diffusers", _lora("diffusers"), NETWORK),
    "schedule, scaled linear": ("diffusers.DDIMScheduler", _schedule(False), SAMPLER),
    "schedule, zero terminal SNR": ("diffusers.DDIMScheduler", _schedule(True), SAMPLER),
    "ddpm, eps": ("diffusers.DDPMScheduler", _sampler("ddpm", "DDPMScheduler", "eps"), SAMPLER),
    "ddpm, v": ("diffusers.DDPMScheduler", _sampler("ddpm", "DDPMScheduler", "v"), SAMPLER),
} | {
    f"{name}, {predict}": (f"diffusers.{kind}", _sampler(name, kind, predict), SAMPLER)
    for name, kind in (("ddim", "DDIMScheduler"), ("euler", "EulerDiscreteScheduler"), ("heun", "HeunDiscreteScheduler"),
                       ("dpmpp_2m", "DPMSolverMultistepScheduler"), ("unipc", "UniPCMultistepScheduler"))
    for predict in ("eps", "v")
} | parity_pipelines.CASES
