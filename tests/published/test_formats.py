"""Files in the exact released formats, made here from small random models of the reference libraries."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from course import presets, published
from course.errors import CheckpointError
from course.pipeline import StableDiffusion
from course.published import compvis, configs, weights
from course.text import TextConfig, TextEncoder
from course.tokenizer import Tokenizer
from course.unet import UNet, UNetConfig
from course.vae import AutoencoderKL, VAEConfig
from tests.conftest import randomise

UNETS = {
    "sd": UNetConfig(block_channels=(128, 128, 256), layers_per_block=2, depth=(1, 1, 0), heads=(2, 2, 4), context_dim=24),
    "sdxl": UNetConfig(block_channels=(128, 256), layers_per_block=1, depth=(0, 2), mid_depth=2, heads=(2, 4), context_dim=40,
                       linear_proj=True, added_dim=32 + 6 * 256),
}


def theirs_unet(diffusers, config: UNetConfig):
    down = ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in config.depth]
    up = ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in config.depth[::-1]]
    options = {}
    if config.added_dim:
        options = dict(addition_embed_type="text_time", addition_time_embed_dim=256,
                       projection_class_embeddings_input_dim=config.added_dim,
                       transformer_layers_per_block=[max(d, 1) for d in config.depth])
    return randomise(diffusers.UNet2DConditionModel(
        in_channels=config.in_channels, out_channels=4, block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block, attention_head_dim=list(config.heads), down_block_types=down, up_block_types=up,
        cross_attention_dim=config.context_dim, use_linear_projection=config.linear_proj, **options)).eval()


def inputs(config: UNetConfig):
    x, context = torch.randn(2, config.in_channels, 8, 8), torch.randn(2, 5, config.context_dim)
    if not config.added_dim:
        return x, context, None
    numbers = (config.added_dim - 32) // 256
    return x, context, {"text_embeds": torch.randn(2, 32), "time_ids": torch.randint(0, 1000, (2, numbers)).float()}


# ---- folders as diffusers writes them

@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("how", [{}, {"variant": "fp16"}, {"safe_serialization": False}, {"max_shard_size": "2MB"}])
def test_unet_folder(name, how, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = theirs_unet(diffusers, UNETS[name])
    theirs.save_pretrained(tmp_path, **how)
    if "max_shard_size" in how:
        assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 1
    ours = published.load_unet(tmp_path)
    assert ours.config == UNETS[name]
    x, context, added = inputs(UNETS[name])
    expected = theirs(x, torch.tensor([3, 977]), context, added_cond_kwargs=added).sample
    assert (ours(x, torch.tensor([3, 977]), context, added) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("old_names", [False, True])
def test_vae_folder(old_names, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = randomise(diffusers.AutoencoderKL(
        block_out_channels=(128, 128), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1, scaling_factor=0.13025)).eval()
    theirs.save_pretrained(tmp_path)
    if old_names:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        tensors = weights.read(path)
        for new, old in names.items():
            tensors = {n.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for n, t in tensors.items()}
        save_file(tensors, path)
    ours = published.load_vae(tmp_path)
    assert ours.scaling_factor == 0.13025
    x = torch.randn(1, 3, 32, 32)
    expected = theirs.encode(x).latent_dist
    assert (ours.encode(x).mean - expected.mean).abs().max() <= 1e-4 * expected.mean.abs().max()
    assert (ours.encode(x).logvar - expected.logvar).abs().max() <= 1e-4 * expected.logvar.abs().max()
    z = torch.randn(1, 4, 16, 16)
    out = theirs.decode(z).sample
    assert (ours.decode(z) - out).abs().max() <= 1e-4 * out.abs().max()


@pytest.mark.parametrize("projected", [False, True])
def test_text_encoder_folder(projected, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    theirs = randomise(kind(transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, projection_dim=24,
        max_position_embeddings=12, hidden_act="gelu", eos_token_id=2, bos_token_id=98))).eval()
    theirs.save_pretrained(tmp_path)
    ours = published.load_text_encoder(tmp_path, skip=1)
    ids = torch.randint(0, 98, (3, 12))
    ids[:, 5] = 99                                             # the end token, the highest id
    expected = theirs(ids, output_hidden_states=True)
    hidden = expected.hidden_states[-2]
    assert (ours(ids) - hidden).abs().max() <= 1e-4 * hidden.abs().max()
    if projected:
        assert (ours.pooled(ids) - expected.text_embeds).abs().max() <= 1e-4 * expected.text_embeds.abs().max()


def test_controlnet_folder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = randomise(diffusers.ControlNetModel(
        block_out_channels=(128, 256), layers_per_block=1, attention_head_dim=4, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))).eval()
    theirs.save_pretrained(tmp_path)
    ours = published.load_controlnet(tmp_path)
    x, context, hint = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16), torch.rand(1, 3, 64, 64)
    down, mid = theirs(x, 10, context, hint, return_dict=False)
    for mine, expected in zip(ours(x, 10, context, hint), [*down, mid], strict=True):
        assert (mine - expected).abs().max() <= 1e-4 * expected.abs().max()


# ---- single files as CompVis and Stability wrote them

def single_file(parts: dict) -> dict:
    """{prefix: (module, function that names its tensors)} -> one dict of tensors."""
    out = {}
    for prefix, (module, name) in parts.items():
        out |= {prefix + name(n): t for n, t in module.state_dict().items()}
    return out


def unet_names(config):
    attention = [bool(d) for d in config.depth[::-1]]
    return lambda n: compvis.unet_name(n, config.layers_per_block, attention)


@pytest.mark.parametrize("name", UNETS)
def test_names_of_a_single_file_against_diffusers_own_map(name):
    """diffusers converts CompVis names to its own; ours go the other way. Both must meet."""
    module = pytest.importorskip("diffusers.loaders.single_file_utils")
    model = UNet(UNETS[name])
    theirs = single_file({"model.diffusion_model.": (model, unet_names(UNETS[name]))})
    config = UNETS[name]
    their_config = {"layers_per_block": config.layers_per_block, "addition_embed_type": "text_time" if config.added_dim else None,
                    "class_embed_type": None, "down_block_types": ["x"] * len(config.depth),
                    "up_block_types": ["x"] * len(config.depth)}
    back = module.convert_ldm_unet_checkpoint(dict(theirs), their_config)
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert all(torch.equal(back[n], t) for n, t in model.state_dict().items())


def test_names_of_the_autoencoder_against_diffusers_own_map():
    module = pytest.importorskip("diffusers.loaders.single_file_utils")
    config = VAEConfig(block_channels=(128, 128, 256), layers_per_block=2)
    model = AutoencoderKL(config)
    theirs = {"first_stage_model." + compvis.vae_name(n, 3): t for n, t in model.state_dict().items()}
    theirs = {n: t[..., None, None] if ".attn_1." in n and t.ndim == 2 else t for n, t in theirs.items()}
    back = module.convert_ldm_vae_checkpoint(dict(theirs), {"down_block_types": ["x"] * 3, "up_block_types": ["x"] * 3})
    assert {n for n in back} == set(model.state_dict())
    assert all(torch.equal(back[n].reshape(t.shape), t) for n, t in model.state_dict().items())
    again = compvis.vae(theirs, model)
    assert all(torch.equal(again[n], t) for n, t in model.state_dict().items())


def pack_openclip(model: TextEncoder, prefix: str) -> dict:
    """As OpenCLIP packs them: q, k and v in one matrix, the projection transposed."""
    packed, state = {}, model.state_dict()
    for i in range(model.config.layers):
        block, own = f"{prefix}transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        for leaf in ("weight", "bias"):
            packed[f"{block}.attn.in_proj_{leaf}"] = torch.cat([state[f"{own}.self_attn.{p}_proj.{leaf}"] for p in "qkv"])
            packed[f"{block}.attn.out_proj.{leaf}"] = state[f"{own}.self_attn.out_proj.{leaf}"]
            for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                                 ("mlp.fc2", "mlp.c_proj")):
                packed[f"{block}.{theirs}.{leaf}"] = state[f"{own}.{ours}.{leaf}"]
    for leaf in ("weight", "bias"):
        packed[f"{prefix}ln_final.{leaf}"] = state[f"text_model.final_layer_norm.{leaf}"]
    packed[f"{prefix}token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    packed[f"{prefix}positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    packed[f"{prefix}text_projection"] = state["text_projection.weight"].T
    return packed | {f"{prefix}logit_scale": torch.zeros(())}


def test_openclip_unpacked():
    model = randomise(TextEncoder(TextConfig(vocab_size=50, length=8, width=32, layers=2, heads=4, projection=24)))
    prefix = "conditioner.embedders.1.model."
    back = compvis.openclip(pack_openclip(model, prefix), model, prefix)
    state = model.state_dict()
    assert set(back) == set(state) and all(torch.equal(back[n], t) for n, t in state.items())


@pytest.mark.parametrize("kind", ["sd15", "sdxl-base"])
def test_a_whole_single_file(kind, tmp_path, monkeypatch):
    """U-Net, autoencoder and text encoders out of one file give the picture that the parts give."""
    words = Tokenizer.train(["a small red circle"], num_merges=30, length=12)
    (tmp_path / "merges.txt").write_text("#version\n" + "\n".join(" ".join(m) for m in words.merges))
    monkeypatch.setattr(Tokenizer.from_released.__func__, "__defaults__", (12,))
    xl = kind == "sdxl-base"
    big = presets.UNETS[kind]
    thin = replace(big, block_channels=(128,) * len(big.block_channels), heads=(2,) * len(big.heads), layers_per_block=1,
                   depth=tuple(min(d, 1) for d in big.depth), mid_depth=1, added_dim=32 + 6 * 256 if xl else None)
    small = VAEConfig(block_channels=(128, 128), layers_per_block=1)
    clip = TextConfig(vocab_size=len(words), length=12, width=big.context_dim - 1280 if xl else 768, layers=2, heads=2,
                      eos_id=words.end_id)
    bigg = TextConfig(vocab_size=len(words), length=12, width=1280, layers=2, heads=2, skip=1, projection=32, eos_id=words.end_id)
    for table, values in ((presets.UNETS, {kind: thin}), (presets.VAES, {"vae-sd": small, "vae-sdxl": small}),
                          (presets.TEXTS, {"clip-l": clip, "openclip-bigg": bigg})):
        for name, value in values.items():
            monkeypatch.setitem(table, name, value)
    unet, vae, text = randomise(UNet(thin)), randomise(AutoencoderKL(small)), randomise(TextEncoder(replace(clip, skip=int(xl))))
    tensors = single_file({"model.diffusion_model.": (unet, unet_names(thin))})
    tensors |= {"first_stage_model." + compvis.vae_name(n, 2): t[..., None, None] if ".attentions." in n and t.ndim == 2 else t
                for n, t in vae.state_dict().items()}
    prefix = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    tensors |= {prefix + n: t for n, t in text.state_dict().items()}
    second = {}
    if xl:
        text_2 = randomise(TextEncoder(bigg), 1)
        tensors |= pack_openclip(text_2, "conditioner.embedders.1.model.")
        padded = Tokenizer(words.merges, 12, pad="!")
        second = {"tokens_2": padded, "text_encoder_2": text_2}
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    found = StableDiffusion.load(tmp_path / "model.safetensors", tokenizer_source=tmp_path / "merges.txt")
    assert kind in found.origin and found.config.vae_float32 == xl
    made = StableDiffusion(found.config, words, unet, text, vae, **second)
    a, b = (p.latents(["a red circle", "a ring"], steps=2, seed=0, height=16, width=16) for p in (found, made))
    assert torch.equal(a, b) and torch.isfinite(a).all()


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("preset", ["sd15", "sd15-inpaint", "sd21", "sdxl-base", "sdxl-refiner"])
def test_a_single_file_says_what_it_is(preset, ending, tmp_path, monkeypatch):
    """The released widths of the text and channels of the input, on a thin model that is otherwise like the preset."""
    thin = replace(presets.UNETS[preset], block_channels=(128,) * len(presets.UNETS[preset].block_channels),
                   heads=(2,) * len(presets.UNETS[preset].heads), layers_per_block=1)
    monkeypatch.setitem(presets.UNETS, preset, thin)
    model = randomise(UNet(thin))
    tensors = single_file({"model.diffusion_model.": (model, unet_names(thin))})
    path = tmp_path / f"model{ending}"
    if ending == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 7}, path)
    else:
        save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    ours = published.load_unet(path)
    assert ours.config == thin and all(torch.equal(a, b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))


def test_the_running_average_is_preferred(tmp_path, monkeypatch):
    thin = replace(presets.UNETS["sd15"], block_channels=(128,) * 4, heads=(2,) * 4, layers_per_block=1)
    monkeypatch.setitem(presets.UNETS, "sd15", thin)
    model, average = randomise(UNet(thin), 0), randomise(UNet(thin), 1)
    tensors = single_file({"model.diffusion_model.": (model, unet_names(thin))})
    smooth = single_file({"model.diffusion_model.": (average, unet_names(thin))})
    tensors |= {"model_ema." + n.removeprefix("model.").replace(".", ""): t for n, t in smooth.items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "m.safetensors")
    name = "down_blocks.0.resnets.0.conv1.weight"
    assert torch.equal(published.load_unet(tmp_path / "m.safetensors").state_dict()[name], average.state_dict()[name])
    plain = published.load_unet(tmp_path / "m.safetensors", prefer_average=False)
    assert torch.equal(plain.state_dict()[name], model.state_dict()[name])


@pytest.mark.parametrize("prefix", ["control_model.", ""])
def test_controlnet_pth(prefix, tmp_path, monkeypatch):
    from course.controlnet import ControlNet, ControlNetConfig
    thin = ControlNetConfig(replace(presets.UNETS["sd15"], block_channels=(128,) * 4, heads=(2,) * 4))
    monkeypatch.setitem(presets.CONTROLNETS, "controlnet-sd15", thin)
    model = randomise(ControlNet(thin))
    tensors = single_file({prefix: (model, unet_names(thin.unet))})
    if prefix:
        tensors |= {"model.diffusion_model.out.0.weight": torch.zeros(3)}          # early files hold the SD model as well
    torch.save(tensors, tmp_path / "control.pth")
    ours = published.load_controlnet(tmp_path / "control.pth")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))
    assert {"input_hint_block.0.weight", "input_hint_block.14.bias", "zero_convs.0.0.weight", "middle_block_out.0.weight",
            "zero_convs.11.0.bias"} <= {n.removeprefix(prefix) for n in tensors}


# ---- what can be wrong with a file

class Evil:
    def __reduce__(self):
        import os
        return (os.system, ("touch PWNED",))


def test_a_malicious_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, writer in (("a.ckpt", torch.save), ("b.bin", lambda x, p: p.write_bytes(pickle.dumps(x)))):
        writer({"state_dict": Evil()}, tmp_path / name)
        with pytest.raises(CheckpointError, match="refused|damaged"):
            published.load_unet(tmp_path / name)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("name, content, words", [
    ("a.safetensors", b"", "empty"), ("a.safetensors", b"no tensors here", "damaged"), ("a.ckpt", b"neither", "damaged|refused"),
    ("a.txt", b"x", "ending"), ("a.bin", b"PK\x03\x04 cut short", "damaged")])
def test_files_that_are_no_weights(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        weights.read(tmp_path / name)


def test_truncated_safetensors(tmp_path):
    save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        weights.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""])
def test_an_index_may_not_point_elsewhere(tmp_path, shard):
    folder = tmp_path / "unet"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="beside it"):
        weights.read(folder)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match="gone.safetensors, which is not there"):
        weights.read(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="no index of shards"):
        weights.read(folder)


def test_one_error_lists_everything_and_guesses_why(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    thin = replace(UNETS["sd"], context_dim=1024)
    theirs_unet(diffusers, thin).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 768}))
    with pytest.raises(CheckpointError, match=r"SD 2.x U-Net: context 1024, preset has 768.*to_k.weight has shape.* more"):
        published.load_unet(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"act_fn": "mish", "time_cond_proj_dim": 64}))
    with pytest.raises(CheckpointError, match="act_fn = 'mish'.*time_cond_proj_dim = 64"):
        published.load_unet(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json"):
        published.load_unet(tmp_path)


def test_schedulers():
    released = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False,
                "steps_offset": 1, "prediction_type": "v_prediction", "timestep_spacing": "leading"}
    found = configs.schedule_options(released)
    assert found["predict"] == "v" and found["offset"] == 1 and found["spacing"] == "leading" and found["clip_x0"] is None
    assert found["schedule"].final_alpha_cumprod == pytest.approx(0.99915)
    assert configs.schedule_options(released | {"rescale_betas_zero_snr": True})["schedule"].zero_terminal_snr
    with pytest.raises(CheckpointError, match="sigmoid"):
        configs.schedule_options(released | {"beta_schedule": "sigmoid"})
