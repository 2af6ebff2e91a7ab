"""The same networks in the classes of diffusers and transformers, with the weights of ours: what speed is measured against.

Weights are shared, not copied, where the layout is the same. diffusers has one number of groups for all norms and no
pixel-unshuffle; both are set from outside, and cost it nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.errors import UsageError


def library():
    """diffusers, quiet. Raises UsageError where it is not installed."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed; it is what we compare with: pip install -e '.[bench]'") from None
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return diffusers


def unet(ours) -> nn.Module:
    """Their UNet2DConditionModel for a unet.UNet; (x, t, context) -> an object with .sample."""
    c = ours.config
    kinds = [("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if d else ("DownBlock2D", "UpBlock2D") for d in c.depth]
    extra = {} if c.added_dim is None else {
        "addition_embed_type": "text_time", "addition_time_embed_dim": c.size_embedding_dim,
        "projection_class_embeddings_input_dim": c.added_dim}
    with torch.device("meta"):
        theirs = library().UNet2DConditionModel(
            in_channels=c.in_channels, out_channels=c.out_channels, block_out_channels=c.block_channels,
            layers_per_block=c.layers_per_block, attention_head_dim=list(c.heads), cross_attention_dim=c.context_dim,
            down_block_types=[down for down, _ in kinds], up_block_types=[up for _, up in kinds[::-1]],
            transformer_layers_per_block=[max(d, 1) for d in c.depth], use_linear_projection=c.linear_proj,
            norm_num_groups=_groups(c.block_channels[0]), **extra)
    return _with_weights_of(ours, theirs)


def vae(ours) -> nn.Module:
    """Their AutoencoderKL for a vae.AutoencoderKL, without its stem: see `encode` and `decode`."""
    c = ours.config
    levels = len(c.block_channels)
    with torch.device("meta"):
        theirs = library().AutoencoderKL(
            in_channels=c.in_channels * c.stem**2, out_channels=c.in_channels * c.stem**2, latent_channels=c.latent_channels,
            block_out_channels=c.block_channels, layers_per_block=c.layers_per_block,
            norm_num_groups=_groups(c.block_channels[0]), down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            mid_block_add_attention=c.mid_attention)
    return _with_weights_of(ours, theirs)


def encode(theirs: nn.Module, x: Tensor, stem: int) -> Tensor:
    """(B,3,H,W) -> mean (B,c,h,w)."""
    return theirs.encode(F.pixel_unshuffle(x, stem) if stem > 1 else x).latent_dist.mean


def decode(theirs: nn.Module, z: Tensor, stem: int) -> Tensor:
    """(B,c,h,w) -> (B,3,H,W)."""
    x = theirs.decode(z).sample
    return F.pixel_shuffle(x, stem) if stem > 1 else x


def text_encoder(ours) -> nn.Module:
    """Their CLIPTextModel for a text.TextEncoder; ids -> an object with .last_hidden_state."""
    import transformers
    c = ours.config
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=4 * c.width, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, max_position_embeddings=c.length, hidden_act=c.activation,
        eos_token_id=min(c.eos_id, c.vocab_size - 1), bos_token_id=0, pad_token_id=0))
    weights = ours.state_dict()
    if not any(name.startswith("text_model.") for name in theirs.state_dict()):         # newer releases lack this level
        weights = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    theirs.load_state_dict(weights, assign=True)
    return theirs.to(next(ours.parameters()).device).eval()


def pipeline(pipe, denoiser: nn.Module):
    """Their StableDiffusionPipeline around `denoiser`, to be given latents and prompt embeddings; it answers with latents."""
    diffusers = library()
    c, s = pipe.config, pipe.config.schedule
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=s.num_steps, beta_start=s.beta_start, beta_end=s.beta_end, beta_schedule=s.kind, clip_sample=False,
        set_alpha_to_one=s.final_alpha_cumprod == 1.0, timestep_spacing=c.spacing,
        steps_offset=1 if c.spacing == "trailing" else c.offset,                        # unused there; 0 would make it warn
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[c.predict])
    theirs = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=denoiser, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
    theirs.vae_scale_factor = c.vae.factor
    theirs.set_progress_bar_config(disable=True)
    return theirs


def _groups(width: int) -> int:
    """A number of groups that divides `width`: the constructor wants one for all; `_with_weights_of` sets each."""
    return min(32, width // 4)


def _with_weights_of(ours: nn.Module, theirs: nn.Module) -> nn.Module:
    theirs.load_state_dict(ours.state_dict(), assign=True)
    groups = {name: module.num_groups for name, module in ours.named_modules() if isinstance(module, nn.GroupNorm)}
    for name, module in theirs.named_modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups[name]
    return theirs.train(ours.training)
