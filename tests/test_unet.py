import pytest
import torch

from course import presets
from course.errors import ShapeError, UsageError
from course.unet import UNet, UNetConfig
from tests.conftest import TINY_UNET, randomise


def read_keys(folder, name: str) -> dict[str, tuple[int, ...]]:
    lines = (folder / "checkpoint_keys" / name).read_text().splitlines()
    rows = [line.split(maxsplit=1) for line in lines if line.strip()]
    return {name: tuple(int(n) for n in shape.strip("()").split(",") if n.strip()) for name, shape in rows}


@pytest.mark.parametrize("preset, file, parameters", [
    ("sd15", "sd15_unet.txt", 859_520_964), ("sd15-inpaint", "sd15_inpaint_unet.txt", 859_535_364),
    ("sd21", "sd21_unet.txt", 865_910_724), ("sdxl-base", "sdxl_base_unet.txt", 2_567_463_684),
    ("sdxl-refiner", "sdxl_refiner_unet.txt", 2_259_526_660), ("vae-sd", "vae_sd.txt", 83_653_863),
    ("vae-sdxl", "vae_sd.txt", 83_653_863), ("clip-l", "clip_vit_l_text.txt", 123_060_480),
    ("openclip-bigg", "openclip_bigg_text.txt", 694_659_840), ("controlnet-sd15", "controlnet_sd15.txt", 361_279_120),
    ("controlnet-sdxl", "controlnet_sdxl.txt", 1_251_014_160)])
def test_names_and_shapes_of_the_released_files(test_data, preset, file, parameters):
    with torch.device("meta"):
        module = presets.build(preset)
    assert {n: tuple(t.shape) for n, t in module.state_dict().items()} == read_keys(test_data, file)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_against_diffusers():
    """A small U-Net with attention on one level only, skips and both changes of scale; every weight random."""
    diffusers = pytest.importorskip("diffusers")
    theirs = randomise(diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(128, 256), layers_per_block=2, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24)).eval()
    ours = UNet(UNetConfig(block_channels=(128, 256), layers_per_block=2, depth=(0, 1), heads=(2, 2), context_dim=24))
    ours.load_state_dict(theirs.state_dict())
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 977]), torch.randn(2, 5, 24)
    expected = theirs(x, t, context).sample
    assert (ours(x, t, context) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow
def test_the_whole_of_stable_diffusion_against_diffusers():
    """859,520,964 random numbers on each side, loaded by name; one forward at 32 x 32."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DConditionModel(
        in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), cross_attention_dim=768,
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3).eval()
    ours = presets.build("sd15").eval()
    ours.load_state_dict(theirs.state_dict())
    x, context = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 768)
    with torch.no_grad():
        expected = theirs(x, torch.tensor([500]), context).sample
        assert (ours(x, torch.tensor([500]), context) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_gradients_reach_every_parameter():
    model = randomise(UNet(TINY_UNET))
    model(torch.randn(2, 4, 8, 8), torch.tensor([1, 500]), torch.randn(2, 5, 16)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_time_context_and_control_matter():
    model = randomise(UNet(TINY_UNET)).eval()
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    base = model(x, 10.0, context)
    assert not torch.allclose(base, model(x, 11.5, context))                    # a fractional t is welcome
    assert not torch.allclose(base, model(x, 10.0, torch.randn(1, 5, 16)))
    shapes = [(1, 32, 8, 8), (1, 32, 8, 8), (1, 32, 4, 4), (1, 64, 4, 4), (1, 64, 4, 4)]
    zeros = [torch.zeros(s) for s in shapes]
    assert torch.equal(base, model(x, 10.0, context, control=zeros))
    assert not torch.allclose(base, model(x, 10.0, context, control=[*zeros[:-1], torch.ones(shapes[-1])]))


@pytest.mark.parametrize("x, context, words", [
    (torch.zeros(1, 3, 8, 8), torch.zeros(1, 5, 16), "B,4,H,W"),
    (torch.zeros(1, 4, 7, 8), torch.zeros(1, 5, 16), "multiples of 2"),
    (torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 17), "B,N,16"), (torch.zeros(1, 4, 8, 8), None, "B,N,16")])
def test_wrong_shapes_are_named(x, context, words):
    with pytest.raises(ShapeError, match=words):
        UNet(TINY_UNET)(x, 1, context)


def test_wrong_configs_are_named():
    with pytest.raises(UsageError, match="multiples of 32"):
        UNetConfig(block_channels=(40, 80, 160, 160))
    with pytest.raises(UsageError, match="one entry a level"):
        UNetConfig(depth=(1, 1))
    with pytest.raises(UsageError, match="sd16"):
        presets.build("sd16")
