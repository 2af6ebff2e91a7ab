"""Text -> latent -> picture: all the parts put together (Rombach et al. 2022, figure 3; the article's section 7.2)."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from course import files, guidance, parts, pixels, presets, samplers, sdxl, text, tokenizer, unet
from course.errors import CheckpointError, ShapeError, UsageError
from course.published import pipelines

SHIPPED = Path(__file__).parent / "weights"                    # models that come with the course: see `shipped`


class StableDiffusion:
    """A text-to-image diffusion model: U-Net, text encoder, tokenizer, schedule, and an autoencoder, or none for pixels.

    `load` opens one, `generate` makes pictures, `save` writes a folder that `load` opens.
    """

    def __init__(self, config: "presets.PipelineConfig", tokens, denoiser=None, text_encoder=None, autoencoder=None,
                 tokens_2=None, text_encoder_2=None, origin: str = "made here"):
        self.config, self.tokenizer, self.tokenizer_2 = config, tokens, tokens_2
        self.origin = origin                                   # what `load` found, in words
        self.schedule = config.schedule.build()
        self.unet = denoiser or unet.UNet(config.unet)
        self.text_encoder = text_encoder or text.TextEncoder(config.text)
        self.text_encoder_2 = text_encoder_2 or (text.TextEncoder(config.text_2) if config.text_2 else None)
        self.vae = autoencoder or (presets.autoencoder(config.vae) if config.vae else None)
        self.swaps = parts.active()                            # what was swapped when this was built: see `parts`
        for module in self.modules().values():
            module.eval()

    def modules(self) -> dict[str, torch.nn.Module]:
        found = {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2,
                 "vae": self.vae}
        return {name: module for name, module in found.items() if module is not None}

    def to(self, device: str) -> "StableDiffusion":
        for module in self.modules().values():
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    # ---- pictures <-> what is diffused

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C,h,w) of what is diffused for a picture of height x width. Raises ShapeError naming the multiple."""
        factor = self.config.vae.factor if self.config.vae else 1
        multiple = factor * self.config.unet.multiple
        if height < multiple or width < multiple or height % multiple or width % multiple:
            raise ShapeError(f"height and width must be positive multiples of {multiple}, got {height} x {width}")
        return self.config.unet.out_channels, height // factor, width // factor

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> x_0 (B,C,h,w) at the scale that is diffused."""
        if self.vae is None:
            return images
        z = self.vae.encode(images)
        return (z if isinstance(z, Tensor) else z.mode()) * self.vae.scaling_factor    # a codebook's z is no distribution

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """x_0 (B,C,h,w) -> (B,3,H,W) in [-1,1]."""
        images = x0 if self.vae is None else self.vae.decode(x0 / self.vae.scaling_factor)
        return images.clamp(-1, 1)

    # ---- text

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> dict[str, Tensor]:
        """B strings -> {"context": (B,N,D)}, for SDXL also "text_embeds" (B,P).

        Warns, quoting it, of what was too long to be read.
        """
        for prompt in prompts:
            if lost := self.tokenizer.cut_off(prompt):
                warnings.warn(f"the prompt is longer than {self.tokenizer.length} tokens; not read: {lost!r}", stacklevel=3)
        ids = self.tokenizer(prompts).to(self.device)                                   # (B,N)
        if not self.config.unet.added_dim:
            return {"context": self.text_encoder(ids)}
        if self.text_encoder_2 is None:                                                 # SDXL's refiner
            return sdxl.encode([self.text_encoder], [ids])
        return sdxl.encode([self.text_encoder, self.text_encoder_2], [ids, self.tokenizer_2(prompts).to(self.device)])

    def conditions(self, prompts: list[str], negative_prompt: str | None, height: int, width: int) -> tuple[dict, dict]:
        """What the denoiser is told with the prompt, and without it: two dicts of tensors, each (B,...)."""
        cond = self.encode_text(prompts)
        if negative_prompt is None and self.config.zero_empty_prompt:
            uncond = sdxl.nothing(cond)
        else:
            uncond = self.encode_text([negative_prompt or ""] * len(prompts))
        if self.config.unet.added_dim:
            scores = (6.0, 2.5) if self.text_encoder_2 is None else (None, None)        # a good picture, and a poor one
            for condition, score in zip((cond, uncond), scores, strict=True):
                sizes = sdxl.time_ids(height, width, aesthetic_score=score)             # (1,6), or (1,5)
                condition["time_ids"] = sizes.to(self.device).expand(len(prompts), -1)
        return cond, uncond

    # ---- generation

    def predict_eps(self, x: Tensor, t: float, condition: dict[str, Tensor]) -> Tensor:
        """The noise in x (B,C,h,w) at level t, whatever the network itself predicts."""
        added = {name: value for name, value in condition.items() if name in ("text_embeds", "time_ids")}
        seen = torch.cat([x, condition["beside"]], dim=1) if "beside" in condition else x
        prediction = self.unet(seen, t, condition["context"], added or None)
        return self.schedule.to_eps(x, prediction, t, given=self.config.predict)

    @torch.no_grad()
    def generate(self, prompt: str | list[str], negative_prompt: str | None = None, steps: int = 50,
                 guidance_scale: float | None = None, seed: int | None = None, height: int | None = None,
                 width: int | None = None, sampler: str = "ddim", image: Tensor | None = None, strength: float = 0.8,
                 mask: Tensor | None = None, callback=None) -> list[Image.Image]:
        """One picture a prompt.

        Args:
            guidance_scale: w; None takes the preset's.   seed: picture i starts from seed + i; None draws one.
            image: (B,3,H,W) or (1,3,H,W) in [-1,1] to start from, with `strength` in (0, 1] of the way back to noise.
            mask: (1,1,H,W), 1 where `image` may change; elsewhere it stays. A U-Net that was trained to inpaint (9
                channels) reads the mask and what is left; any other is told, at each step, what is already known.
            callback(i, t, x, x0): see samplers.

        Noise is drawn on the CPU, so a seed means the same picture on every device, up to rounding.
        """
        x0 = self.latents(prompt, negative_prompt, steps, guidance_scale, seed, height, width, sampler, image, strength,
                          mask, callback)
        return to_pil(self.decode(x0))

    @torch.no_grad()
    def latents(self, prompt, negative_prompt=None, steps=50, guidance_scale=None, seed=None, height=None, width=None,
                sampler="ddim", image=None, strength=0.8, mask=None, callback=None) -> Tensor:
        """What `generate` decodes, from the same arguments: x_0 (B,C,h,w) at the scale that is diffused."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, list | tuple) else None
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise UsageError(f"the prompt must be a string or a list of strings, got {prompt!r}")
        if mask is not None and image is None:
            raise UsageError("a mask says where a picture may change; it needs an image")
        c = self.config
        scale = c.guidance_scale if guidance_scale is None else guidance_scale
        seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
        height, width = height or c.image_size, width or c.image_size
        shape = self.latent_shape(height, width)                                        # (C,h,w)
        x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + i))
                         for i in range(len(prompts))]).to(self.device)                 # (B,C,h,w)
        timesteps = self.schedule.timesteps(steps, c.spacing, c.offset)                 # (S,)

        keep = None
        with parts.swapped(self.swaps):                        # what was swapped at building is swapped at the run
            cond, uncond = self.conditions(prompts, negative_prompt, height, width)
            if image is not None:
                if not 0 < strength <= 1:
                    raise UsageError(f"strength must lie in (0, 1], got {strength}")
                timesteps = timesteps[len(timesteps) - max(1, int(strength * steps + 1e-9)):]
                image = image.to(self.device)
            if c.unet.in_channels > c.unet.out_channels:
                beside = self._beside(image, mask, x)
                cond, uncond = cond | {"beside": beside}, uncond | {"beside": beside}
            denoiser = guidance.guided(self.predict_eps, cond, uncond, scale)
            if image is not None:
                known = self.encode_image(image).expand_as(x)                           # (B,C,h,w)
                if mask is None or strength < 1:                                        # a hole is filled from pure noise
                    x = self.schedule.add_noise(known, x, float(timesteps[0]))
                if mask is not None and c.unet.in_channels == c.unet.out_channels:
                    keep = 1 - F.interpolate(mask.float().to(self.device), shape[1:])   # (1,1,h,w)
                    denoiser = self._inpainting(denoiser, known, keep)
            generator = torch.Generator().manual_seed(seed)
            x0 = samplers.by_name(sampler)(denoiser, x, timesteps, schedule=self.schedule, generator=generator,
                                           clip_x0=c.clip_x0, callback=callback)        # (B,C,h,w)
            return x0 if keep is None else keep * known + (1 - keep) * x0               # to the bit, whatever was rounded

    def _beside(self, image: Tensor | None, mask: Tensor | None, x: Tensor) -> Tensor:
        """What an inpainting U-Net reads beside x: the mask, and the latent of the picture with a gray hole; (B,1+C,h,w)."""
        if image is None or mask is None:
            raise UsageError("this model was trained to inpaint: it needs an image and a mask")
        mask = (mask.to(self.device) >= 0.5).float()                                    # (1,1,H,W)
        left = self.encode_image(image * (1 - mask))                                    # (1,C,h,w)
        return torch.cat([F.interpolate(mask, x.shape[2:]), left], dim=1).expand(len(x), -1, -1, -1)

    def _inpainting(self, denoiser, known: Tensor, keep: Tensor):
        """A denoiser that already knows x_0 where `keep` is 1: there it answers with exactly the eps that leads back."""
        def blended(x: Tensor, t: float) -> Tensor:
            return keep * self.schedule.to_eps(x, known, t, given="x0") + (1 - keep) * denoiser(x, t)
        return blended

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Write `pipeline.json`, `tokenizer.json` and one safetensors file a network, each atomically."""
        folder = Path(folder)
        for name, module in self.modules().items():
            files.save_tensors(folder / f"{name}.safetensors", module.state_dict(), {"part": name})
        self.tokenizer.save(folder / "tokenizer.json")
        if self.tokenizer_2 is not None:
            self.tokenizer_2.save(folder / "tokenizer_2.json")
        # last, so that a folder with a pipeline.json is complete
        files.write_json(folder / "pipeline.json", asdict(self.config))

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu", tokenizer_source: str | Path | None = None) -> "StableDiffusion":
        """Open a pipeline folder, a run folder that holds one as `model/`, or a released model.

        Released: a folder that diffusers saved, or a single file as CompVis and Stability published SD 1.x, 2.x and
        SDXL. A single file has no vocabulary: `tokenizer_source` names one (see `published.load_tokenizer`).

        Raises CheckpointError that says what is missing or does not fit.
        """
        folder = Path(source)
        if not folder.exists() and (SHIPPED / folder / "pipeline.json").is_file():
            folder = SHIPPED / folder
        if folder.is_file() or (folder / "model_index.json").is_file():
            return cls(**pipelines.read(folder, tokenizer_source)).to(device)
        if (folder / "model" / "pipeline.json").is_file():
            folder = folder / "model"
        if not (folder / "pipeline.json").is_file():
            raise CheckpointError(f"no model in {source}: expected {folder / 'pipeline.json'}; `course demo` makes one")
        try:
            config = presets.PipelineConfig.from_dict(json.loads((folder / "pipeline.json").read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / 'pipeline.json'} is damaged: {error}") from error
        second = tokenizer.Tokenizer.load(folder / "tokenizer_2.json") if config.text_2 else None
        pipe = cls(config, tokenizer.Tokenizer.load(folder / "tokenizer.json"), tokens_2=second,
                   origin=f"a model of this course, {folder}")
        for name, module in pipe.modules().items():
            tensors, _ = files.load_tensors(folder / f"{name}.safetensors")
            files.load_into(module, tensors, str(folder / f"{name}.safetensors"))
        return pipe.to(device)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B,3,H,W) in [-1,1] -> B pictures."""
    rows = pixels.to_bytes(images).permute(0, 2, 3, 1).cpu()                            # (B,H,W,3)
    return [Image.fromarray(picture.numpy()) for picture in rows]
