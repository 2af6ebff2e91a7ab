"""The course's own answers to chapter 04 equal the library's."""

import torch

from course import parts, vq
from course.classroom import checks
from course.classroom.checks import ch04
from course.classroom.checks.ch04 import answers
from course.classroom.mutants import own


def library(num_codes=20, dim=3, **options):
    layer = vq.VectorQuantizer(num_codes, dim, **options)
    layer.embedding.weight.data = torch.randn(num_codes, dim, generator=torch.Generator().manual_seed(0))
    return layer


def test_the_answers_equal_the_library():
    layer, z = library(), torch.randn(2, 3, 5, 6)
    z_q, loss, indices = layer(z)
    mine = answers.nearest(z, layer.embedding.weight)
    assert torch.equal(mine, indices)
    value, codes = answers.quantize(z, layer.embedding.weight, mine)
    torch.testing.assert_close(value, z_q)
    torch.testing.assert_close(answers.codebook_loss(z, codes), loss)
    assert answers.usage(indices, 20) == vq.usage(indices, 20)


def test_the_layer_follows_the_library_step_by_step():
    for options in ({"ema_decay": 0.9}, {"ema_decay": 0.9, "restart_below": 0.3}):
        theirs, mine = library(**options), answers.VectorQuantizer(20, 3, **options)
        mine.load_state_dict(theirs.state_dict())
        for seed in range(5):
            z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
            for a, b in zip(mine(z), theirs(z), strict=True):
                torch.testing.assert_close(a, b)
            for name, value in theirs.state_dict().items():
                torch.testing.assert_close(mine.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_swapped_quantiser_does_not_reach_the_checks():
    class Broken:
        def __init__(self, *arguments):
            raise RuntimeError
    with parts.swapped({"vq.VectorQuantizer": Broken}):
        assert all(checks.find(e.id).run(own(e.id)).passed for e in ch04.EXERCISES)
