"""The answers of chapter 01 against the library, torch's own counter and a fitted autoencoder's interface."""

import torch

from course import presets
from course.classroom.checks.ch01 import answers
from course.data import Scenes
from course.training import flops


def test_the_formulas_equal_torchs_counter():
    with torch.device("meta"):
        for case in ((4, 6, 3, 15, 9, 2, 1, 1), (12, 6, 5, 20, 20, 1, 0, 3)):
            cin, cout, k, h, w, stride, padding, groups = case
            layer = torch.nn.Conv2d(cin, cout, k, stride, padding, groups=groups)
            assert answers.conv(*case) == flops.forward(layer, torch.empty(1, cin, h, w))
        layer = presets.unet.attention.CrossAttention(32, 48, heads=2, dim_head=16)
        inputs = torch.empty(1, 100, 32), torch.empty(1, 7, 48)
        assert answers.attention(100, 32, 7, 48) == flops.forward(layer, *inputs)


def test_the_ratios_are_those_of_the_presets():
    for name, (values, positions) in {"vae-sd": (48, 64), "kl-f4": (16, 16), "kl-f16": (48, 256)}.items():
        config = presets.VAES[name]
        found = answers.compression(512, 512, config.factor, config.latent_channels)
        assert found == (values, positions, positions**2)


def test_filter_and_spectrum_agree_on_the_power():
    x = Scenes(32).images(range(4)).double()
    spectrum, ring = answers.power_spectrum(x), answers.radii(32).round().long()
    below = sum(float(spectrum[k]) * int((ring == k).sum()) for k in range(9))
    kept = float(answers.low_pass(x, 8.49).pow(2).sum((2, 3)).mean())
    assert abs(below / kept - 1) < 1e-3


def test_psnr_is_the_one_the_course_reports():
    x, y = torch.rand(3, 3, 8, 8) * 2 - 1, torch.rand(3, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(answers.psnr(x, y), 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3))))


def test_no_other_projection_of_patches_loses_less():
    images = Scenes(32).images(range(32))
    code = answers.PatchPCA(images, 4, 3)
    least = (code.decode(code.encode(images)) - images).pow(2).mean()
    averages = torch.nn.functional.avg_pool2d(images, 4)
    assert least <= (torch.nn.functional.interpolate(averages, scale_factor=4) - images).pow(2).mean()
    code.basis = torch.linalg.qr(code.basis + 0.01 * torch.randn_like(code.basis))[0]
    assert (code.decode(code.encode(images)) - images).pow(2).mean() > least
