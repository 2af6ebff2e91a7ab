"""The course's own answers of chapter 14 equal the library's."""

import torch
from torch import nn

from course import lora, parts
from course.classroom.checks.ch14 import answers
from course.unet import UNet
from tests.conftest import TINY_UNET, randomise


def linear_pair(alpha: float = 6.0):
    """(mine, the library's), with the same weights."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 5)
    mine, library = answers.LoRALinear(nn.Linear(6, 5), 3, alpha, name="a"), lora.LoRALinear(linear, 3, alpha, name="a")
    library.adapters["a"].up.weight.data.normal_()
    mine.load_state_dict(library.state_dict())
    return mine, library


def test_adapter_and_layer_are_the_librarys():
    mine, library = linear_pair()
    x = torch.randn(2, 7, 6)
    assert torch.equal(mine(x), library(x))
    assert torch.allclose(mine.adapters["a"].delta(), library.adapters["a"].delta())
    for layer in (mine, library):
        layer.merge()
    assert torch.allclose(mine.base.weight, library.base.weight) and torch.allclose(mine(x), library(x), atol=1e-6)
    for layer in (mine, library):
        layer.unmerge()
    assert torch.equal(mine(x), library(x))


def test_a_whole_unet_with_my_layers_is_the_librarys(tmp_path):
    def unet():
        torch.manual_seed(1)
        return randomise(UNet(TINY_UNET)).eval()

    library = unet()
    lora.inject(library, 2, 4.0)
    for _, layer in lora.adapted(library):
        layer.adapters["default"].up.weight.data.normal_()
    lora.save({"unet": library}, tmp_path / "a.safetensors")
    with parts.swapped({"lora.LoRALinear": answers.LoRALinear}):
        mine = unet()
        lora.load(mine, tmp_path / "a.safetensors")
    assert {type(layer) for _, layer in lora.adapted(mine)} == {answers.LoRALinear}
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    assert torch.allclose(mine(x, 10, context), library(x, 10, context), atol=1e-4)
    lora.merge(mine)
    assert torch.allclose(mine(x, 10, context), library(x, 10, context), atol=1e-3)
    lora.remove(mine)
    assert torch.equal(mine(x, 10, context), unet()(x, 10, context))


def test_injecting_is_the_librarys():
    mine, library = UNet(TINY_UNET), UNet(TINY_UNET)
    trained = answers.inject(mine, lora.TARGETS, lambda layer: answers.LoRALinear(layer, 2))
    expected = lora.inject(library, 2)
    assert [tuple(p.shape) for p in trained] == [tuple(p.shape) for p in expected]
    assert [path for path, _ in lora.adapted(mine)] == [path for path, _ in lora.adapted(library)]
    weights, gradients, adam = answers.training_bytes(mine)
    assert gradients == 4 * sum(p.numel() for p in expected) and adam == 2 * gradients
    assert weights == 4 * sum(p.numel() for p in library.parameters())


def test_low_rank_and_stacked():
    delta = torch.randn(8, 12, dtype=torch.float64)
    A, B = answers.low_rank(delta, 8)
    torch.testing.assert_close(B @ A, delta)
    parts_of_it = [answers.low_rank(delta, 3), answers.low_rank(-delta, 2)]
    A, B = answers.stacked([(a, b, s) for (a, b), s in zip(parts_of_it, (0.5, 2.0), strict=True)])
    torch.testing.assert_close(B @ A, 0.5 * parts_of_it[0][1] @ parts_of_it[0][0] + 2.0 * parts_of_it[1][1] @ parts_of_it[1][0])
    assert torch.linalg.matrix_rank(B @ A) <= 5
