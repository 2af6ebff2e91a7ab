"""The course's own answers of chapter 06 equal the library's."""

import torch
import torch.nn.functional as F

from course import layers, objectives, parts, schedule, unet
from course.classroom import checks
from course.classroom.checks import ch06
from course.classroom.checks.ch06 import answers
from course.classroom.mutants import own
from tests.conftest import randomise

WIDTHS = (32, 64, 64)


def small(widths=WIDTHS, layers_per_block=1):
    n = len(widths)
    return unet.UNet(unet.UNetConfig(in_channels=1, out_channels=1, block_channels=widths, layers_per_block=layers_per_block,
                                     depth=(0,) * n, mid_depth=0, heads=(1,) * n, context_dim=None))


def test_embedding_block_and_norm():
    t = torch.tensor([0.0, 3.5, 999])
    torch.testing.assert_close(answers.timestep_embedding(t, 32), layers.timestep_embedding(t, 32))
    mine, library = answers.ResBlock(32, 64, 16), randomise(layers.ResBlock(32, 64, 16))
    mine.load_state_dict(library.state_dict())
    x, e = torch.randn(2, 32, 8, 8), torch.randn(2, 16)
    torch.testing.assert_close(mine(x, e), library(x, e))
    norm = randomise(layers.group_norm(32, 1e-5))
    torch.testing.assert_close(answers.normalise_groups(x, norm.num_groups, norm.weight, norm.bias), norm(x),
                               rtol=1e-4, atol=1e-5)


def test_the_pass_through_the_librarys_unet_and_the_small_one_share_names():
    net = randomise(small())
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    torch.testing.assert_close(answers.unet_forward(net, x, net.embed_time(t, x)), net(x, t))
    mine = answers.SmallUNet(1, WIDTHS, 1, dim=4 * WIDTHS[0])
    named = {k: v.shape for k, v in net.state_dict().items() if not k.startswith("time_embedding")}
    assert {k: v.shape for k, v in mine.state_dict().items()} == named
    for widths, n in ((WIDTHS, 1), ((32, 64), 2)):
        inputs = [[r.conv1.in_channels for r in level.resnets] for level in small(widths, n).up_blocks]
        assert answers.up_inputs(widths, n) == inputs


def test_the_loss_is_the_librarys_in_expectation():
    table, x0 = schedule.NoiseSchedule(10), torch.randn(4000, 1, 2, 2)

    def model(x_t, t, context=None):
        return 0.5 * x_t
    mine = answers.simple_loss(model, x0, table.alphas_cumprod, torch.Generator().manual_seed(0))
    library = objectives.diffusion_loss(model, table, x0, None, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(mine, library, rtol=0.05, atol=0)


def test_swapped_parts_do_not_reach_the_checks():
    class Broken:
        def __init__(self, *arguments, **options):
            raise RuntimeError
    names = ("layers.ResBlock", "layers.timestep_embedding", "layers.Downsample", "layers.Upsample", "unet.UNet")
    with parts.swapped(dict.fromkeys(names, Broken)):
        assert all(checks.find(e.id).run(own(e.id)).passed for e in ch06.EXERCISES)


def test_the_average_forgets_by_its_decay():
    model, average = torch.nn.Linear(1, 1), {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
    answers.update_average(average, model, 10**6, 0.75)
    torch.testing.assert_close(average["weight"], 0.25 * model.weight.detach())
    assert F.mse_loss(average["bias"], 0.25 * model.bias.detach()) < 1e-12
