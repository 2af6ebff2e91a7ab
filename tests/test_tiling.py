import pytest
import torch
import torch.nn.functional as F

from course.data import Scenes
from course.errors import UsageError
from course.pipeline import StableDiffusion
from course.tiling import tiled
from tests.conftest import TINY_VAE, randomise


@pytest.mark.parametrize("size", [(8, 8), (20, 8), (8, 21), (33, 27), (47, 48)])
def test_weights_sum_to_one_everywhere(size):
    x = torch.randn(2, 3, *size)
    assert torch.allclose(tiled(lambda part: part, x, 8, 1), x, atol=1e-5)
    up = tiled(lambda part: part.repeat_interleave(4, -1).repeat_interleave(4, -2), x, 8, 4)
    assert torch.allclose(up, x.repeat_interleave(4, -1).repeat_interleave(4, -2), atol=1e-5)
    down = tiled(lambda part: F.avg_pool2d(part, 2), x[..., : size[0] // 2 * 2, : size[1] // 2 * 2], 8, 0.5)
    assert torch.allclose(down, F.avg_pool2d(x, 2), atol=1e-5)


def test_pictures_come_one_at_a_time_and_no_tile_is_larger_than_asked():
    shapes = []

    def look(part):
        shapes.append(tuple(part.shape))
        return part
    tiled(look, torch.randn(3, 1, 8, 8), 8, 1)
    assert shapes == [(1, 1, 8, 8)] * 3                        # slices: nothing is cut
    shapes.clear()
    tiled(look, torch.randn(1, 1, 15, 9), 8, 1)
    assert shapes == [(1, 1, 8, 8)] * 6                        # rows at 0, 6, 7; columns at 0, 1


def test_the_blend_is_a_ramp():
    """Two tiles of different brightness: by the formula, linear from one to the other over what they share."""
    tiles = iter([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    out = tiled(lambda part: next(tiles), torch.zeros(1, 1, 8, 14), 8, 1)
    assert torch.allclose(out[0, 0, 0], torch.tensor([0.0] * 6 + [0, 0.5] + [1] * 6))


@pytest.mark.parametrize("size", [(16, 40), (40, 16)])
def test_against_diffusers(size):
    """Theirs adds a narrow last tile, ours moves the last one back to be whole: compared where both have the same tiles.

    One row of tiles at a time: where four of theirs meet, their weights are no product of two ramps.
    """
    diffusers = pytest.importorskip("diffusers")
    theirs = randomise(diffusers.AutoencoderKL(block_out_channels=(32, 32), layers_per_block=1, down_block_types=(
        "DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=32)).eval()
    z, x = torch.randn(1, 4, *size), torch.rand(1, 3, 2 * size[0], 2 * size[1]) * 2 - 1
    with torch.no_grad():
        ours = tiled(lambda part: theirs.decode(part).sample, z, 16, 2)
        code = tiled(lambda part: theirs.encode(part).latent_dist.mean, x, 32, 0.5)
        theirs.enable_tiling()
        assert (theirs.tile_latent_min_size, theirs.tile_sample_min_size) == (16, 32)
        expected, expected_code = theirs.decode(z).sample, theirs.encode(x).latent_dist.mean
    assert torch.allclose(ours[..., :-8, :-8], expected[..., :-8, :-8], atol=1e-4)
    assert torch.allclose(code[..., :-4, :-4], expected_code[..., :-4, :-4], atol=1e-4)


def test_a_real_autoencoder_hardly_minds():
    """The shipped one, four tiles: near the whole, and nearer by far than tiles without overlap, which leave seams."""
    pipe = StableDiffusion.load("scenes64")
    image = Scenes(160, "test", degraded=0.0).batch([3, 4])["image"]
    z = pipe.encode_image(image)

    def psnr(a):
        return (10 * torch.log10(4 / (a - whole).square().mean())).item()

    whole, blended = pipe.decode(z), pipe.in_tiles(96).decode(z)
    cut = whole.clone()
    for i in (0, 12):
        for j in (0, 12):
            cut[..., 8 * i: 8 * i + 96, 8 * j: 8 * j + 96] = pipe.in_tiles(None).decode(z[..., i: i + 12, j: j + 12])
    assert psnr(blended) > 36 and psnr(blended) > psnr(cut) + 5
    both_ways = pipe.in_tiles(96).decode(pipe.encode_image(image))
    assert psnr(both_ways) > 36


def test_slices_are_exact_and_tiles_are_used_both_ways(pipe):
    randomise(pipe.vae)
    images = torch.rand(2, 3, 32, 64) * 2 - 1
    z, back = pipe.encode_image(images), pipe.decode(torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(0)))
    pipe.in_tiles(64)
    assert torch.allclose(pipe.encode_image(images), z, atol=1e-4 * z.abs().max())
    again = pipe.decode(torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(again, back, atol=1e-4)
    pipe.in_tiles(32)
    assert not torch.allclose(pipe.encode_image(images), z, atol=1e-4 * z.abs().max())
    assert pipe.in_tiles(None).tile is None


@pytest.mark.parametrize("side", [0, -16, 20])
def test_odd_tiles_are_refused(pipe, side):
    assert TINY_VAE.factor == 4
    with pytest.raises(UsageError, match="multiple of 16"):
        pipe.in_tiles(side)
    with pytest.raises(UsageError, match="multiple of 16"):
        tiled(lambda part: part, torch.zeros(1, 1, 64, 64), 24, 1 / 4)
