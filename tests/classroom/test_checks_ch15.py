"""The course's own answers of chapter 15 equal the library's, or what is published."""

from dataclasses import replace

import torch

from course import layers, presets, samplers, schedule, sdxl, text, unet
from course.classroom.checks.ch15 import answers


def test_sizes_and_time_equal_the_u_net_s():
    numbers = torch.tensor([[64.0, 48, 3, 0, 64, 64], [512, 768, 0, 9, 1024, 960]])
    torch.testing.assert_close(answers.size_embedding(numbers, 256),
                               layers.timestep_embedding(numbers.flatten(), 256).reshape(2, -1))
    net = unet.UNet(presets.UNETS["scenes64-xl"])
    pooled, t = torch.randn(2, 128), torch.tensor([3, 700])
    expected = net.embed_time(t, torch.zeros(2, 8, 8, 8), {"text_embeds": pooled, "time_ids": numbers})
    torch.testing.assert_close(answers.embed_time(net, t, pooled, numbers), expected)


def test_joined_texts_equal_the_library_s():
    one, two = (text.TextEncoder(replace(presets.TEXTS[name], eos_id=5)) for name in ("scenes64-xl-text", "scenes64-xl-text-2"))
    ids = torch.randint(6, 1000, (3, 16))
    ids[:, 9:] = 5
    library = sdxl.encode([one, two], [ids, ids])
    mine = answers.join_texts(one(ids), two(ids), two.text_model(ids), ids, 5, two.text_projection.weight, torch.ones(3).bool())
    torch.testing.assert_close(mine[0], library["context"])
    torch.testing.assert_close(mine[1], library["text_embeds"])


def test_handing_over_equals_ddim_with_two_denoisers():
    s, x = schedule.NoiseSchedule(), torch.randn(2, 4, 4, 4)

    def base(x, t):
        return 0.3 * x

    def refiner(x, t):
        return 0.7 * x
    expected = samplers.ddim(lambda x, t: (base if t >= 200 else refiner)(x, t), x, s.timesteps(25), schedule=s)
    torch.testing.assert_close(answers.hand_over(base, refiner, x, s.timesteps(25), s), expected)


def test_sdxl_s_shapes():
    """Sides that Podell et al. list in appendix I, and the rule that they follow."""
    found = answers.sides()
    assert len(found) == 41 and {(512, 2048), (576, 1664), (704, 1472), (832, 1216), (1024, 1024), (1536, 640)} <= set(found)
    assert all((w, h) in found for h, w in found)


def test_an_epoch_holds_every_picture_once_where_batches_fit():
    bucket = torch.arange(96) % 3
    made = answers.batches(bucket, 8, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(made).tolist()) == list(range(96))
    assert all(len(bucket[b].unique()) == 1 for b in made)
