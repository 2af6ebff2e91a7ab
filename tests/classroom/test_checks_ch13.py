"""The course's own answers of chapter 13 equal the library's."""

import torch

from course import controlnet, objectives, schedule
from course.classroom.checks.ch13 import answers
from course.data import hints
from course.unet import UNet
from tests.conftest import TINY_UNET, randomise


def test_the_hint_network_is_the_librarys():
    library = randomise(controlnet.HintNet((4, 6, 10), 8))
    mine = answers.HintNet((4, 6, 10), 8)
    mine.load_state_dict(library.state_dict())
    hint = torch.rand(2, 3, 16, 16)
    assert torch.equal(mine(hint), library(hint))


def test_copying_and_forward_are_the_librarys():
    unet = randomise(UNet(TINY_UNET))
    library = controlnet.ControlNet.from_unet(unet, (8, 16))
    net = controlnet.ControlNet(controlnet.ControlNetConfig(TINY_UNET, (8, 16)))
    new = answers.copy_trunk(net, unet)
    assert {name.split(".")[0] for name in new} == {"controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"}
    for name, tensor in library.state_dict().items():
        assert name in new or torch.equal(tensor, net.state_dict()[name])
    net = randomise(net)
    x, context, hint = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16), torch.rand(2, 3, 16, 16)
    t = torch.tensor([5, 900])
    found, expected = answers.control_forward(net, x, t, context, hint, 0.7), net(x, t, context, hint, 0.7)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # ... and adding them is what the U-Net does with its `control`
    h, skips = unet.go_down(unet.conv_in(x), unet.embed_time(t, x), context)
    skips, middle = answers.add_control(skips, h, [found], [1.0])
    unet.go_down = lambda *given: (middle, list(skips))
    steered = unet(x, t, context)
    del unet.go_down
    assert torch.equal(steered, unet(x, t, context, control=found))


def test_a_step_has_the_librarys_loss():
    s, z0, hint = schedule.NoiseSchedule(), torch.randn(6, 2, 4, 4), torch.rand(6, 3, 4, 4)
    seen, frozen = {}, torch.nn.Conv2d(2, 2, 1).requires_grad_(False)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.3))

        def forward(self, x, t, context, hint):
            seen.update(x=x, t=t)
            return [self.w * hint.mean((1, 2, 3), keepdim=True)]

    def unet(x, t, context, control):
        return frozen(x) + control[0]

    net = Net()
    loss = answers.training_step(net, unet, torch.optim.SGD(net.parameters(), 0.1), z0, None, hint, s)
    moved = net.w.item()
    with torch.no_grad():
        net.w.fill_(0.3)
    a, spread = s.coefficients(seen["t"], z0)
    noise = (seen["x"] - a * z0) / spread
    expected = objectives.diffusion_loss(lambda x, t, c: unet(x, t, c, net(x, t, c, hint)), s, z0, None, "v", t=seen["t"],
                                         noise=noise)
    assert abs(loss - expected.item()) < 1e-4 and moved != 0.3


def test_the_f_score_is_the_librarys():
    generator = torch.Generator().manual_seed(0)
    found, wanted = (torch.rand(5, 20, 20, generator=generator) < p for p in (0.1, 0.2))
    for tolerance in (0, 1, 2):
        assert torch.equal(answers.f_score(found, wanted, tolerance), hints.f_score(found, wanted, tolerance))


def test_gradients_at_zero_reach_the_weight_and_not_what_is_below():
    d_weight, d_bias, d_x = answers.conv_gradients(torch.ones(1, 2, 3, 3), torch.zeros(4, 2), torch.ones(1, 4, 3, 3))
    assert (d_weight == 9).all() and (d_bias == 9).all() and not d_x.any()
