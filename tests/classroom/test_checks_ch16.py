"""The course's own answers of chapter 16 equal the library's, or einops'."""

import torch
from einops import rearrange

from course import layers, parts
from course.classroom.checks.ch16 import answers


def test_a_swap_is_the_library_s():
    class Mine(layers.ResBlock):
        pass
    before = layers.ResBlock
    with answers.swapped(layers, "ResBlock", Mine):
        inside = layers.ResBlock
    with parts.swapped({"layers.ResBlock": Mine}):
        assert layers.ResBlock is inside is Mine
    assert layers.ResBlock is before


def test_halving_finds_any_set():
    names = [str(i) for i in range(11)]
    for bits in range(0, 2**11, 37):
        broken = [n for i, n in enumerate(names) if bits >> i & 1]
        assert answers.culprits(names, lambda group, broken=broken: not set(group) & set(broken)) == broken


def test_patches_are_einops():
    x = torch.randn(2, 3, 8, 12)
    tokens = answers.Patchify(2).to_tokens(x)
    torch.testing.assert_close(tokens, rearrange(x, "B C (h p) (w q) -> B (h w) (p q C)", p=2, q=2))
    torch.testing.assert_close(answers.Patchify(2).to_picture(tokens, 8, 12), x)


def test_dit_xl_2_has_its_published_size():
    """Peebles & Xie 2023: 675 million; the blocks, and what stands before and behind them."""
    D, p, C = 1152, 2, 4
    with torch.device("meta"):
        blocks = [answers.Block(D, 16) for _ in range(28)]
    count = sum(q.numel() for b in blocks for q in b.parameters())
    patches, time, classes = p * p * C * D + D, 256 * D + D + D * D + D, 1001 * D
    last = D * 2 * D + 2 * D + D * p * p * 2 * C + p * p * 2 * C
    assert count == 669_344_256 and count + patches + time + classes + last + 256 * D == 675_129_632
