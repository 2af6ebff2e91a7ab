"""Where the article errs: one entry for each mistake, with its source, and, where it can be run, the check that shows it.

The entries are data, `data/errata.json`; a check here computes what is true from this library or from the published tables, and
fails should either ever say otherwise.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from course import attention, controlnet, guidance, lora, presets, unet, vae

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Erratum:
    id: str
    section: str                           # of the article
    says: str
    is_: str                               # what is true
    source: str
    check: str | None                      # name of a function in CHECKS

    def holds(self) -> bool | None:
        """Whether what is said to be true can be seen here; None where there is nothing to run."""
        return CHECKS[self.check]() if self.check else None


@lru_cache
def entries() -> tuple[Erratum, ...]:
    rows = json.loads((DATA / "errata.json").read_text("utf-8"))
    return tuple(Erratum(r["id"], r["section"], r["says"], r["is"], r["source"], r["check"]) for r in rows)


@lru_cache
def published() -> dict:
    """{"sources": {name: reference}, "tables": {name: {"title", "rows": [{..., "source"}]}}}"""
    return json.loads((DATA / "published.json").read_text("utf-8"))


def row(table: str, **like) -> dict:
    """The one row of a published table with these values."""
    found = [r for r in published()["tables"][table]["rows"] if all(r.get(k) == v for k, v in like.items())]
    if len(found) != 1:
        raise KeyError(f"{len(found)} rows of {table} have {like}")
    return found[0]


# ---- one function a check; True: what the entry says is so

def values_of_a_picture() -> bool:
    return 512 * 512 * 3 == 786_432 and 512 * 512 == 262_144


def forty_eight() -> bool:
    latent = presets.VAES["vae-sd"]
    values, places = 512**2 * 3, 512**2
    kept = (512 // latent.factor) ** 2
    return values / (kept * latent.latent_channels) == 48 and places / kept == 64


def parameters_by_resolution() -> bool:
    """The same module at two sizes."""
    with torch.device("meta"):
        net = presets.build("sd15")
        shapes = [net(torch.empty(1, 4, s, s), torch.zeros(1), torch.empty(1, 77, 768)).shape[-1] for s in (32, 64)]
    return shapes == [32, 64] and sum(p.numel() for p in net.parameters()) == 859_520_964


def kl_weight() -> bool:
    """Means divide reconstruction and KL by how many values each has; summed, the article's weight is another number."""
    pixels, latents = 3 * 256**2, 4 * 32**2
    return round(1e-3 * pixels / latents / 1e-6, -3) == 48_000


def logvar_clamp() -> bool:
    posterior = vae.DiagonalGaussian(torch.cat([torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 1e4)], 1))
    return bool(posterior.logvar.max() == 20)


def scale_of_latents() -> bool:
    return presets.VAES["vae-sd"].scaling_factor == 0.18215


def strided_timesteps() -> bool:
    levels = presets.ScheduleConfig().build().timesteps(50, "leading", 1)
    return (len(levels), int(levels[0]), int(levels[-1])) == (50, 981, 1)


def to_out() -> bool:
    return "to_out.0.weight" in attention.CrossAttention(32, heads=1, dim_head=32).state_dict()


def guidance_convention() -> bool:
    a, b = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.allclose(guidance.classifier_free_guidance(a, b, 7.5), (1 + 6.5) * b - 6.5 * a, atol=1e-5)


def dim_head() -> bool:
    config = presets.UNETS["sd15"]
    return config.block_channels[0] // config.heads[0] == 40


def class_conditional() -> bool:
    """Each figure stands in another row than the article's."""
    def figures(model: str) -> tuple:
        r = row("class_conditional", model=model)
        return r["FID"], r["IS"], r["parameters_millions"]
    return (figures("BigGAN-deep") == (6.95, 203.6, 340) and figures("ADM-G") == (4.59, 186.7, 608)
            and figures("ADM") == (10.94, 100.98, 554) and figures("LDM-4-G, 1.5") == (3.60, 247.67, 400)
            and row("class_conditional", model="LDM-4-G, 1.5")["recall"] < row("class_conditional", model="ADM-G")["recall"])


def text_to_image() -> bool:
    curve = published()["tables"]["guidance"]["rows"]
    return (row("text_to_image", model="LDM-KL-8-G")["FID"] == 12.63 and row("text_to_image", model="Imagen")["FID"] == 7.27
            and min(r["FID"] for r in curve) > 15 and max(r["CLIP"] for r in curve) < 0.267)


def cost_of_training() -> bool:
    pixel, latent = row("class_conditional", model="ADM-G"), row("class_conditional", model="LDM-4-G, 1.5")
    first = row("first_stage_days", model="VQ, f = 4")["v100_days"]
    ratios = (pixel["v100_days"] / latent["v100_days"], pixel["v100_days"] / (latent["v100_days"] + first),
              latent["samples_per_second"] / pixel["samples_per_second"])
    return tuple(round(r, 1) for r in ratios) == (3.5, 3.2, 5.7)


def bedrooms() -> bool:
    return row("unconditional", model="ADM")["FID"] < row("unconditional", data="LSUN-Bedrooms", model="LDM-4")["FID"]


def guidance_curve() -> bool:
    return min(published()["tables"]["guidance"]["rows"], key=lambda r: r["FID"])["guidance"] == 3.0


def controlnet_reads_everything() -> bool:
    """Other latents, another level, other words, another hint: each changes what a ControlNet with random weights says."""
    config = unet.UNetConfig(block_channels=(32, 32), layers_per_block=1, depth=(1, 0), heads=(1, 1), context_dim=8)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = controlnet.ControlNet(controlnet.ControlNetConfig(config, (16, 16)))
        for p in net.parameters():
            p.normal_(std=0.2)
        given = [torch.randn(1, 4, 8, 8), torch.tensor([7.0]), torch.randn(1, 3, 8), torch.rand(1, 3, 16, 16)]
        plain = net(*given)[-1]
        for i, value in enumerate(given):
            if torch.equal(net(*given[:i], value / 2, *given[i + 1:])[-1], plain):
                return False
    return len(plain) == 1 and len(net(*given)) == 5          # four skips, and the middle


def lora_freezes() -> bool:
    model = nn.Sequential(nn.Linear(4, 4))
    lora.inject(model, 2, targets=("0",))
    return [name for name, p in model.named_parameters() if p.requires_grad] == [
        "0.adapters.default.down.weight", "0.adapters.default.up.weight"]


def lora_scale() -> bool:
    return lora.LoRALinear(nn.Linear(8, 8), rank=4, alpha=1.0).adapters["default"].scale == 0.25


def sdxl_encoders() -> bool:
    widths = presets.TEXTS["clip-l"].width + presets.TEXTS["openclip-bigg"].width
    return widths == presets.UNETS["sdxl-base"].context_dim == 2048


CHECKS: dict[str, Callable[[], bool]] = {f.__name__: f for f in (
    values_of_a_picture, forty_eight, parameters_by_resolution, kl_weight, logvar_clamp, scale_of_latents, strided_timesteps,
    to_out, guidance_convention, dim_head, class_conditional, text_to_image, cost_of_training, bedrooms, guidance_curve,
    controlnet_reads_everything, lora_freezes, lora_scale, sdxl_encoders)}
