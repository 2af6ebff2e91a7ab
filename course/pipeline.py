"""Text -> latent -> picture: all the parts put together (Rombach et al. 2022, figure 3; the article's section 7.2)."""

import json
import warnings
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from course import controlnet, files, guidance, heatmaps, parts, pixels, presets, samplers, sdxl, text, tiling, tokenizer, unet
from course.deepcache import cached
from course.errors import CheckpointError, ShapeError, UsageError
from course.memo import remembering
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
        self.tile = None                                       # see `in_tiles`
        self.swaps = parts.active()                            # what was swapped when this was built: see `parts`
        for module in self.modules().values():
            module.eval()

    def modules(self) -> dict[str, torch.nn.Module]:
        found = {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2,
                 "vae": self.vae}
        return {name: module for name, module in found.items() if module is not None}

    def to(self, device: str, dtype: torch.dtype | None = None) -> "StableDiffusion":
        """Move to a device and, where `dtype` says so (bfloat16, float16), compute in that from now on.

        An autoencoder that overflows in half precision (`config.vae_float32`) is left in float32, and so is the way from
        noise to x_0: only the networks are in `dtype`.
        """
        for name, net in self.modules().items():
            # tensor cores like channels last, norms of large pictures do not: an autoencoder is a fifth slower (docs/gpu.md)
            layout = torch.channels_last if torch.device(device).type == "cuda" and name != "vae" else torch.contiguous_format
            net.to(device, torch.float32 if dtype and name == "vae" and self.config.vae_float32 else dtype, memory_format=layout)
        return self

    def in_tiles(self, side: int | None) -> "StableDiffusion":
        """Let the autoencoder work on one picture at a time, and on one of more than `side` pixels in tiles; None: at once.

        Saves memory. A picture of one tile is what it was; tiles differ a little from the whole: see `tiling`.
        """
        multiple = round((self.config.vae.factor if self.config.vae else 1) / tiling.OVERLAP)
        if side is not None and (side < multiple or side % multiple):
            raise UsageError(f"the side of a tile must be a multiple of {multiple}, got {side}")
        self.tile = side
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

        def encode(x: Tensor) -> Tensor:
            z = self.vae.encode(x)
            return z if isinstance(z, Tensor) else z.mode()                             # a codebook's z is no distribution

        z = self._through_vae(encode, images, self.tile, 1 / self.config.vae.factor)
        return z * self.vae.scaling_factor

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """x_0 (B,C,h,w) -> (B,3,H,W) in [-1,1]."""
        if self.vae is None:
            return x0.clamp(-1, 1)
        factor = self.config.vae.factor
        z = x0 / self.vae.scaling_factor
        return self._through_vae(self.vae.decode, z, self.tile and self.tile // factor, factor).clamp(-1, 1)

    def _through_vae(self, function, x: Tensor, tile: int | None, scale: float) -> Tensor:
        own = x.to(next(self.vae.parameters()).dtype)
        return (function(own) if tile is None else tiling.tiled(function, own, tile, scale)).to(x.dtype)

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

    def conditions(self, prompts: list[str], negative_prompt: str | None, height: int, width: int,
                   sizes: dict | None = None) -> tuple[dict, dict]:
        """What the denoiser is told with the prompt, and without it: two dicts of tensors, each (B,...).

        sizes: of SDXL's micro-conditioning, see sdxl.time_ids; None: an uncropped picture of height x width.
        """
        if sizes and not self.config.unet.added_dim:
            raise UsageError(f"only SDXL is told of sizes, and {self.origin} is none")
        cond = self.encode_text(prompts)
        if negative_prompt is None and self.config.zero_empty_prompt:
            uncond = sdxl.nothing(cond)
        else:
            uncond = self.encode_text([negative_prompt or ""] * len(prompts))
        if self.config.unet.added_dim:
            scores = (6.0, 2.5) if self.text_encoder_2 is None else (None, None)        # a good picture, and a poor one
            for condition, score in zip((cond, uncond), scores, strict=True):
                ids = sdxl.time_ids(height, width, aesthetic_score=score, **sizes or {})       # (1,6), or (1,5)
                condition["time_ids"] = ids.to(self.device).expand(len(prompts), -1)
        return cond, uncond

    def grow_vocabulary(self, size: int) -> None:
        """Note that the text encoder knows so many tokens now: see `inversion`."""
        self.config = replace(self.config, text=replace(self.config.text, vocab_size=size))
        self.text_encoder.config = self.config.text

    # ---- generation

    def predict(self, x: Tensor, t: float, condition: dict[str, Tensor], control: list[Tensor] | None = None) -> Tensor:
        """What the network says about x (B,C,h,w) at level t: eps, v or x_0, whichever `config.predict` names."""
        seen = torch.cat([x, condition["beside"]], dim=1) if "beside" in condition else x
        context = condition["context"]
        return self.unet(seen.to(context.dtype), t, context, sdxl.added(condition), control).to(x.dtype)

    def predict_eps(self, x: Tensor, t: float, condition: dict[str, Tensor]) -> Tensor:
        """The noise in x (B,C,h,w) at level t, whatever the network itself predicts."""
        return self.schedule.to_eps(x, self.predict(x, t, condition), t, given=self.config.predict)

    @torch.no_grad()
    def generate(self, prompt: str | list[str], negative_prompt: str | None = None, steps: int = 50,
                 guidance_scale: float | None = None, seed: int | list[int] | None = None, height: int | None = None,
                 width: int | None = None, sampler: str = "ddim", image: Tensor | None = None, strength: float = 0.8,
                 mask: Tensor | None = None, control=None, **more) -> list[Image.Image]:
        """One picture a prompt.

        Args:
            guidance_scale: w; None takes the preset's.
            seed: picture i starts from seed + i; a list has a seed for each; None draws one.
            height, width: None takes those of `image`, or the preset's.
            image: (B,3,H,W) or (1,3,H,W) in [-1,1] to start from, with `strength` in (0, 1] of the way back to noise.
            mask: (B,1,H,W) or (1,1,H,W), 1 where `image` may change; where it is 0 the picture stays. A U-Net that was
                trained to inpaint (9 channels) reads the mask and what is left; any other is told, at each step, what is
                already known.
            control: a controlnet.Control, or a list of them.
            more: what `latents` takes beside these.

        Noise is drawn on the CPU, so a seed means the same picture on every device, up to rounding, and in every batch.
        """
        return to_pil(self.decode(self.latents(prompt, negative_prompt, steps, guidance_scale, seed, height, width, sampler,
                                               image, strength, mask, control, **more)))

    @torch.no_grad()
    def latents(self, prompt, negative_prompt=None, steps=50, guidance_scale=None, seed=None, height=None, width=None,
                sampler="ddim", image=None, strength=0.8, mask=None, control=None, *,
                guidance_interval: tuple[float, float] | None = None, guidance_rescale: float = 0.0, sizes: dict | None = None,
                deep_cache: int = 1, part: tuple[float, float] = (0.0, 1.0), begin: Tensor | None = None, callback=None,
                progress=None) -> Tensor:
        """What `generate` decodes, from the same arguments: x_0 (B,C,h,w) at the scale that is diffused. Beside them:

        Args:
            guidance_interval, guidance_rescale: see guidance.guided.   sizes: {"original", "crop", "target"}, see sdxl.time_ids.
            deep_cache: compute all of the U-Net in every so many steps only, an approximation: see `deepcache`.
            part: the share of the way from noise to picture that is walked. One that ends before 1 returns x as it is there,
                still noisy; one that begins after 0 goes on from `begin`, (B,C,h,w): see sdxl.refined.
            callback(i, t, x, x0): see samplers.
            progress(share): called after each step with how much is done, 0 ... 1.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, list | tuple) else None
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise UsageError(f"the prompt must be a string or a list of strings, got {prompt!r}")
        if not 0 < strength <= 1:
            raise UsageError(f"strength must lie in (0, 1], got {strength}")
        if not 0 <= part[0] < part[1] <= 1 or (begin is None) != (part[0] == 0) or (image is not None and part != (0.0, 1.0)):
            raise UsageError(f"part must be two shares, 0 <= from < to <= 1, with the `begin` to go on from where it is not 0, "
                             f"and without an image, got {part}")
        check_pictures(image, mask, len(prompts), height, width)
        c, B = self.config, len(prompts)
        scale = c.guidance_scale if guidance_scale is None else guidance_scale
        if image is not None:
            height, width = image.shape[2:]
        height, width = height or c.image_size, width or c.image_size
        shape = self.latent_shape(height, width)                                        # (C,h,w)
        generators = [torch.Generator().manual_seed(s) for s in seeds(seed, B)]
        x = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)          # (B,C,h,w)
        timesteps = self.schedule.timesteps(steps, c.spacing, c.offset)                 # (S,)
        last = int((timesteps >= round(self.schedule.num_steps * (1 - part[1]))).sum())        # steps until the part's end
        if begin is not None:
            check_begin(begin, x.shape)
            x, before = begin.to(x), int((timesteps >= round(self.schedule.num_steps * (1 - part[0]))).sum())
            timesteps, last = timesteps[before:], last - before
        if last < 1:
            raise UsageError(f"none of the {steps} steps lies in the part {part}")
        if image is not None:
            image = image.float().to(self.device)
            timesteps = timesteps[len(timesteps) - max(1, int(strength * steps + 1e-9)):]
        keep, controls = None, controlnet.checked(control, B, height, width) if control else []
        # a block of a student's may count on a row of the time embedding for each picture
        levels = None if {"unet.UNet", "layers.ResBlock", "controlnet.ControlNet"} & set(self.swaps) else timesteps
        with (parts.swapped(self.swaps),                       # what was swapped at building is swapped at the run
              remembering([self.unet, *(c.network for c in controls)], levels),
              cached(self.unet, deep_cache) if deep_cache != 1 else nullcontext()):
            cond, uncond = self.conditions(prompts, negative_prompt, height, width, sizes)
            if c.unet.in_channels > c.unet.out_channels:
                beside = self._beside(image, mask, x)
                cond, uncond = cond | {"beside": beside}, uncond | {"beside": beside}
            predict = self._controlled(controls, timesteps, B) if controls else self.predict
            predict = guidance.guided(predict, cond, uncond, scale, guidance_interval, guidance_rescale)

            def denoiser(x: Tensor, t: float) -> Tensor:
                return self.schedule.to_eps(x, predict(x, t), t, given=c.predict)       # (B,C,h,w)

            if image is not None:
                known = self.encode_image(image).expand_as(x)                           # (B,C,h,w)
                if mask is None or strength < 1:                                        # a hole is filled from pure noise
                    x = self.schedule.add_noise(known, x, float(timesteps[0]))
                if mask is not None and c.unet.in_channels == c.unet.out_channels:
                    keep = 1 - F.interpolate(mask.float().to(self.device), shape[1:])   # (1,1,h,w) or (B,1,h,w)
                    denoiser = self._inpainting(denoiser, known, keep)

            def after_step(i, t, x, x0):
                if callback:
                    callback(i, t, x, x0)
                if progress:
                    progress((i + 1) / min(last, len(timesteps)))
                if i + 1 == last < len(timesteps):
                    raise _Arrived(x)

            # where a sampler draws noise, each picture has its own; a student's sampler knows of one generator only
            generator = generators[0] if f"samplers.{sampler}" in parts.active() else generators
            try:
                x0 = samplers.by_name(sampler)(denoiser, x, timesteps, schedule=self.schedule, generator=generator,
                                               clip_x0=c.clip_x0, callback=after_step)  # (B,C,h,w)
            except _Arrived as arrived:
                return arrived.args[0]
            return x0 if keep is None else keep * known + (1 - keep) * x0               # to the bit, whatever was rounded

    def _controlled(self, controls: list, timesteps: Tensor, count: int):
        """`predict`, steered by ControlNets."""
        def predict(x: Tensor, t: float, condition: dict[str, Tensor]) -> Tensor:
            step, context = int((timesteps > t).sum()), condition["context"]
            found = controlnet.residuals(controls, step / len(timesteps), (step + 1) / len(timesteps), x.to(context.dtype), t,
                                         context, count, sdxl.added(condition))
            return self.predict(x, t, condition, found)
        return predict

    def _beside(self, image: Tensor | None, mask: Tensor | None, x: Tensor) -> Tensor:
        """What an inpainting U-Net reads beside x: the mask, and the latent of the picture with a gray hole; (B,1+C,h,w)."""
        if image is None or mask is None:
            raise UsageError("this model was trained to inpaint: it needs an image and a mask")
        mask = mask.float().to(self.device)                                             # (1,1,H,W) or (B,1,H,W)
        left, small = self.encode_image(image * (1 - mask)), F.interpolate(mask, x.shape[2:])
        return torch.cat([part.expand(len(x), -1, -1, -1) for part in (small, left)], dim=1)

    def _inpainting(self, denoiser, known: Tensor, keep: Tensor):
        """A denoiser that already knows x_0 where `keep` is 1: there it answers with exactly the eps that leads back."""
        def blended(x: Tensor, t: float) -> Tensor:
            return keep * self.schedule.to_eps(x, known, t, given="x0") + (1 - keep) * denoiser(x, t)
        return blended

    @torch.no_grad()
    def attention_maps(self, prompt: str, token: str | list[str], **how) -> tuple[Image.Image, Tensor]:
        """A picture, and where it looked at words of its prompt: (picture, heat maps (K,H,W) of the K words in `token`).

        A value is the share of a place's attention that the word had, 0 ... 1, on average over heads, layers and steps: see
        `heatmaps`; `evaluation.figures.attention` lays them over the picture. `how`: what `generate` takes.
        """
        if not isinstance(prompt, str):
            raise UsageError(f"attention maps are made of one prompt, got {prompt!r}")
        words = [token] if isinstance(token, str) else list(token)
        places = [heatmaps.places_of(self.tokenizer, prompt, word) for word in words]
        with heatmaps.recorded(self.unet, pictures=1) as maps:
            images = self.decode(self.latents(prompt, **how))                           # (1,3,H,W)
        return to_pil(images)[0], maps.of(places, *images.shape[2:])[0]

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
            path = files.shared(folder, f"{name}.safetensors")
            files.load_into(module, files.load_tensors(path)[0], str(path))
        return pipe.to(device)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B,3,H,W) in [-1,1] -> B pictures."""
    rows = pixels.to_bytes(images).permute(0, 2, 3, 1).cpu()                            # (B,H,W,3)
    return [Image.fromarray(picture.numpy()) for picture in rows]


def seeds(seed: int | list[int] | None, count: int) -> list[int]:
    """A seed for each of `count` pictures. Raises UsageError where a list has more or fewer."""
    if seed is None:
        seed = int(torch.randint(2**31, ()).item())
    found = list(seed) if isinstance(seed, list | tuple) else [seed + i for i in range(count)]
    if len(found) != count:
        raise UsageError(f"expected one seed, or a list of {count}, one for each prompt, got {len(found)}: {found}")
    return found


class _Arrived(Exception):
    """A sampler has come to the end of the part that was to be walked; with x (B,C,h,w)."""


def check_begin(begin: Tensor, shape: torch.Size) -> None:
    if begin.shape != shape:
        raise ShapeError(f"expected a `begin` of shape {tuple(shape)}, got {tuple(begin.shape)}")


def check_pictures(image: Tensor | None, mask: Tensor | None, count: int, height: int | None, width: int | None) -> None:
    """Raises ShapeError or UsageError for an image and a mask that `count` pictures of height x width cannot start from."""
    if image is None:
        if mask is not None:
            raise UsageError("a mask says where a picture may change; it needs an image")
        return
    if image.ndim != 4 or image.shape[1] != 3 or len(image) not in (1, count):
        raise ShapeError(f"expected an image (1,3,H,W), or {count} of them, got {tuple(image.shape)}")
    H, W = image.shape[2:]
    if (height or H, width or W) != (H, W):
        raise ShapeError(f"the image is {H} x {W} (height x width), but {height or H} x {width or W} was asked for")
    if not image.abs().max() <= 1.01:
        raise UsageError(f"the image's values must lie in [-1, 1], got {image.min():g} ... {image.max():g}")
    if mask is None:
        return
    if mask.ndim != 4 or mask.shape[1] != 1 or len(mask) not in (1, count) or mask.shape[2:] != image.shape[2:]:
        raise ShapeError(f"expected a mask (1,1,{H},{W}) as large as the image, or {count} of them, got {tuple(mask.shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise UsageError(f"a mask is 1 where the picture may change and 0 elsewhere, got {mask.float().min():g} ... "
                         f"{mask.float().max():g}, {len(mask.unique())} different values")
