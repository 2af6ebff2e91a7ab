"""LoRA against peft, against its own definition, and to the bit where bits are promised."""

import peft
import pytest
import torch
from torch import nn

from course import lora, text, unet
from course.errors import CheckpointError, UsageError
from tests.conftest import TINY_TEXT, TINY_UNET, randomise

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
PICTURE = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(1))


def small() -> nn.ModuleDict:
    return randomise(nn.ModuleDict({"linear": nn.Linear(6, 5), "conv": nn.Conv2d(6, 4, 3, stride=2, padding=1)}))


def trained(model: nn.Module, rank: int = 2, seed: int = 5, **how) -> nn.Module:
    """`model` with an adapter whose B is no longer zero."""
    lora.inject(model, rank, targets=("linear", "conv", *lora.TARGETS), **how)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora.adapted(model):
        for adapter in layer.adapters.values():
            for p in adapter.parameters():
                p.data = 0.3 * torch.randn(p.shape, generator=generator)
    return model


def tiny_unet() -> unet.UNet:
    return randomise(unet.UNet(TINY_UNET)).eval()


def ask(net):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return net(torch.randn(2, 4, 8, 8, generator=generator), 500, torch.randn(2, 5, 16, generator=generator))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_equals_peft(kind):
    ours, theirs, x = small(), small(), X if kind == "linear" else PICTURE
    how = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[kind], init_lora_weights=False)
    model = peft.inject_adapter_in_model(how, theirs)
    lora.inject(ours, 3, 6.0, targets=(kind,))
    adapter = ours[kind].adapters["default"]
    adapter.down.weight.data = model[kind].lora_A["default"].weight.data.clone()
    adapter.up.weight.data = model[kind].lora_B["default"].weight.data.clone()
    assert torch.allclose(ours[kind](x), model[kind](x), atol=1e-6)
    assert torch.allclose(adapter.delta(), model[kind].get_delta_weight("default"), atol=1e-6)


def test_a_new_adapter_changes_nothing_and_only_it_is_trained():
    net = tiny_unet()
    before = ask(net)
    parameters = lora.inject(net, 4)
    assert torch.equal(ask(net), before)                       # B is zero
    assert {id(p) for p in parameters} == {id(p) for p in net.parameters() if p.requires_grad}
    assert sum(p.numel() for p in parameters) < 0.2 * sum(p.numel() for p in net.parameters())
    net(torch.randn(1, 4, 8, 8), 10, torch.randn(1, 5, 16)).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert grads and all(".adapters." in name for name in grads)


def test_merged_is_the_same_and_unmerged_and_removed_are_the_base_to_the_bit():
    net = tiny_unet()
    base, weights = ask(net), {n: p.clone() for n, p in net.state_dict().items()}
    trained(net, 4, alpha=8.0)
    injected = ask(net)
    assert (injected - base).abs().max() > 1e-3
    lora.merge(net)
    lora.merge(net)                                            # twice is once
    assert torch.allclose(ask(net), injected, atol=1e-5)
    lora.unmerge(net)
    assert torch.equal(ask(net), injected)
    lora.merge(net)
    lora.remove(net)
    assert torch.equal(ask(net), base)
    assert net.state_dict().keys() == weights.keys()
    assert all(torch.equal(p, weights[n]) for n, p in net.state_dict().items())


def test_several_adapters_add_up_by_their_weights():
    net = tiny_unet()
    base = ask(net)
    trained(net, 2, seed=1, name="a")
    only_a = [layer.adapters["a"].delta() for _, layer in lora.adapted(net)]
    generator = torch.Generator().manual_seed(9)
    lora.inject(net, 3, name="b", targets=("linear", "conv", *lora.TARGETS))
    for _, layer in lora.adapted(net):
        layer.adapters["b"].up.weight.data = 0.2 * torch.randn(layer.adapters["b"].up.weight.shape, generator=generator)
    lora.weigh(net, {"a": 0.5, "b": -1.0})
    place, layer = lora.adapted(net)[0]
    lora.merge(net)
    b = layer.adapters["b"]
    expected = layer.before + 0.5 * only_a[0] - b.scale * torch.einsum("or,ri...->oi...", b.up.weight.flatten(1), b.down.weight)
    assert torch.allclose(layer.base.weight, expected, atol=1e-6), place
    merged = ask(net)
    lora.weigh(net, {"b": 0.0})                                # while merged: merged anew
    assert not torch.allclose(ask(net), merged)
    lora.remove(net, "b")
    assert [list(layer.adapters) for _, layer in lora.adapted(net)][0] == ["a"]
    lora.weigh(net, {"a": 0.0})
    assert torch.equal(ask(net), base)
    lora.remove(net, "a")
    assert lora.adapted(net) == []


def test_saved_and_loaded_again(tmp_path):
    net, words = trained(tiny_unet(), 4, alpha=2.0), trained(randomise(text.TextEncoder(TINY_TEXT)), 2)
    ids = torch.arange(8)[None] % 600
    wanted = ask(net), words(ids)
    lora.save({"unet": net, "text_encoder": words}, tmp_path / "mine.safetensors")
    fresh = {"unet": tiny_unet(), "text_encoder": randomise(text.TextEncoder(TINY_TEXT))}
    base = ask(fresh["unet"])
    lora.load(fresh, tmp_path / "mine.safetensors", name="mine")
    assert torch.allclose(ask(fresh["unet"]), wanted[0], atol=1e-5)
    assert torch.allclose(fresh["text_encoder"](ids), wanted[1], atol=1e-5)
    lora.load(fresh, tmp_path / "mine.safetensors", name="again", weight=0.0)
    assert torch.allclose(ask(fresh["unet"]), wanted[0], atol=1e-5)
    lora.remove(fresh["unet"])
    assert torch.equal(ask(fresh["unet"]), base)
    only = tiny_unet()
    lora.save({"unet": net}, tmp_path / "unet.safetensors")
    lora.load(only, tmp_path / "unet.safetensors")             # a U-Net alone
    assert torch.allclose(ask(only), wanted[0], atol=1e-5)


def test_misuse_is_named(tmp_path):
    net = tiny_unet()
    for change, said in (({"rank": 0}, "rank must be a whole number, at least 1, got 0"), ({"rank": 2.5}, "got 2.5"),
                         ({"alpha": float("nan")}, "alpha must be a finite number, got nan"),
                         ({"targets": ("nothing",)}, "no layer is called nothing"), ({"name": "a.b"}, "dot in it")):
        with pytest.raises(UsageError, match=said):
            lora.inject(net, **change)
    assert lora.adapted(net) == []                             # a refused call leaves nothing behind
    with pytest.raises(UsageError, match="rank"):
        lora.LoRALinear(nn.Linear(3, 3), rank=0)
    trained(net, 2)
    with pytest.raises(UsageError, match="adapter called 'default' already"):
        lora.inject(net, 2)
    lora.save({"unet": net}, tmp_path / "mine.safetensors")
    with pytest.raises(UsageError, match="already"):
        lora.load(net, tmp_path / "mine.safetensors")
    with pytest.raises(UsageError, match="no adapter is called 'other'"):
        lora.remove(net, "other")
    with pytest.raises(UsageError, match="no adapter is called 'other'"):
        lora.save({"unet": net}, tmp_path / "other.safetensors", "other")
    with pytest.raises(UsageError, match="expected a finite weight for one of default"):
        lora.weigh(net, {"default": float("inf")})
    wider = unet.UNet(unet.UNetConfig(block_channels=(64, 128), layers_per_block=1, depth=(0, 1), heads=(1, 2), context_dim=16))
    with pytest.raises(CheckpointError, match="made for another model"):
        lora.load(wider, tmp_path / "mine.safetensors")
    assert lora.adapted(wider) == []


def test_dropout_is_for_training_only():
    net = trained(small(), 2, dropout=0.5)
    net.train()
    assert not torch.equal(net["linear"](X), net["linear"](X))
    net.eval()
    assert torch.equal(net["linear"](X), net["linear"](X))
