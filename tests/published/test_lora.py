"""Every dialect of LoRA file lands on the right module with the right numbers."""

import pytest
import torch
from safetensors.torch import save_file

from course import published
from course.errors import CheckpointError
from course.published import compvis
from course.text import TextEncoder
from course.unet import UNet, UNetConfig
from tests.conftest import TINY_TEXT

CONFIG = UNetConfig(block_channels=(128, 128), layers_per_block=1, depth=(1, 0), heads=(2, 2), context_dim=16)
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LINEARS = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_out.0", f"{BLOCK}.ff.net.0.proj"]
CONVS = ["down_blocks.0.attentions.0.proj_in", "down_blocks.0.resnets.0.conv1"]
WORDS = ["text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1"]


@pytest.fixture(scope="module")
def modules():
    return {"unet": UNet(CONFIG), "text_encoder": TextEncoder(TINY_TEXT)}


def matrices(module, rank: int = 3):
    weight = module.weight
    size = weight.shape[2:]
    return torch.randn(rank, weight.shape[1], *size), torch.randn(weight.shape[0], rank, *(1,) * len(size))


def check(found, part, path, down, up, alpha):
    mine = found[part][path]
    assert torch.equal(mine.down, down) and torch.equal(mine.up, up) and mine.alpha == alpha


@pytest.mark.parametrize("names", ["diffusers", "compvis"])
def test_kohya(modules, names, tmp_path):
    tensors, expected = {}, []
    for part, prefix, paths in (("unet", "lora_unet_", LINEARS + CONVS), ("text_encoder", "lora_te_", WORDS)):
        for k, path in enumerate(paths):
            down, up = matrices(modules[part].get_submodule(path))
            written = path
            if names == "compvis" and part == "unet":
                written = compvis.unet_name(path + ".weight", 1, [False, True]).removesuffix(".weight")
            stem = prefix + written.replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            if k:                                              # the first has no alpha: it is then its rank
                tensors[f"{stem}.alpha"] = torch.tensor(1.5)
            expected.append((part, path, down, up, 1.5 if k else 3.0))
    save_file(tensors, tmp_path / "lora.safetensors")
    found = published.load_lora(tmp_path / "lora.safetensors", modules)
    for row in expected:
        check(found, *row)
    assert sum(map(len, found.values())) == len(expected)


FORMS = {"peft in diffusers": "{part}.{path}.lora_{AB}.weight", "peft alone": "base_model.model.{path}.lora_{AB}.default.weight",
         "dotted": "{part}.{path}.lora.{updown}.weight"}


@pytest.mark.parametrize("form", FORMS)
def test_peft_and_dotted(modules, form, tmp_path):
    tensors, expected = {}, []
    for path in LINEARS:
        down, up = matrices(modules["unet"].get_submodule(path))
        for tensor, AB, updown in ((down, "A", "down"), (up, "B", "up")):
            tensors[FORMS[form].format(part="unet", path=path, AB=AB, updown=updown)] = tensor
        expected.append(("unet", path, down, up, 3.0))
    save_file(tensors, tmp_path / "lora.safetensors")
    found = published.load_lora(tmp_path / "lora.safetensors", {"unet": modules["unet"]})
    for row in expected:
        check(found, *row)


def test_old_diffusers_processors(modules, tmp_path):
    tensors, expected = {}, []
    for layer, old in (("to_q", "to_q_lora"), ("to_out.0", "to_out_lora")):
        path = f"{BLOCK}.attn1.{layer}"
        down, up = matrices(modules["unet"].get_submodule(path))
        tensors |= {f"unet.{BLOCK}.attn1.processor.{old}.down.weight": down, f"unet.{BLOCK}.attn1.processor.{old}.up.weight": up}
        expected.append(("unet", path, down, up, 3.0))
    save_file(tensors, tmp_path / "lora.safetensors")
    found = published.load_lora(tmp_path / "lora.safetensors", modules)
    for row in expected:
        check(found, *row)


def test_a_file_that_peft_and_diffusers_wrote(tmp_path):
    """The libraries themselves add the matrices and save them; ours finds each."""
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=(128, 128), layers_per_block=1, attention_head_dim=2, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    targets = ["to_q", "to_out.0", "proj_in"]
    theirs.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=targets))
    state = peft.get_peft_model_state_dict(theirs)
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
    file, = tmp_path.glob("*.safetensors")
    found = published.load_lora(file, {"unet": UNet(CONFIG)})["unet"]
    adapted = {n.removesuffix(".lora_A.default"): m for n, m in theirs.named_modules() if n.endswith("lora_A.default")}
    assert set(found) == set(adapted) and len(found) > 5
    assert all(torch.equal(found[path].down, module.weight) for path, module in adapted.items())


def test_what_does_not_fit_is_listed(modules, tmp_path):
    path = tmp_path / "lora.safetensors"
    down, up = matrices(modules["unet"].get_submodule(LINEARS[0]))
    stem = "lora_unet_" + LINEARS[0].replace(".", "_")
    good = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    for change, words in (
            ({"lora_unet_nowhere.lora_down.weight": down.clone()}, "lora_unet_nowhere"),
            ({f"{stem}.lora_up.weight": torch.zeros(7, 3)}, r"up \(7, 3\).*another model"),
            ({f"{stem}.hada_w1_a": down.clone()}, "LoHa"), ({f"{stem}.dora_scale": down.clone()}, "DoRA")):
        save_file(good | change, path)
        with pytest.raises(CheckpointError, match=words):
            published.load_lora(path, modules)
    save_file({f"{stem}.lora_down.weight": down}, path)
    with pytest.raises(CheckpointError, match="both matrices"):
        published.load_lora(path, modules)
