"""Control pictures, and the way back from pixels to them."""

import pytest
import torch

from course.data import Scenes, hints
from course.errors import UsageError


@pytest.fixture(scope="module")
def drawn():
    data = Scenes(64, "test", textures=("plain",), degraded=0.0)
    scenes = data.scenes(range(48))
    return data, scenes, data.images(range(48))


@pytest.mark.parametrize("kind", hints.KINDS)
def test_what_a_controlnet_is_shown(drawn, kind):
    data, scenes, _ = drawn
    shown = hints.picture(data, scenes, kind)
    assert shown.shape == (48, 3, 64, 64) and shown.min() == 0 and shown.max() == 1
    if kind == "segmentation":                                 # each object in a colour of its own
        assert shown.sum(1).max() == 1 and [int(s.flatten(1).any(1).sum()) for s in shown] == [len(s.objects) for s in scenes]
    with pytest.raises(UsageError, match="no control pictures called 'pose'; expected one of edges, segmentation, depth"):
        hints.picture(data, scenes, "pose")


def test_a_clean_drawing_keeps_to_its_own_geometry(drawn):
    data, scenes, images = drawn
    found = hints.recovered(images, data, scenes)
    assert found["edge_f"] > 0.99 and found["iou"] > 0.99
    other = hints.recovered(images, data, scenes[1:] + scenes[:1])
    assert other["edge_f"] < 0.5 and other["iou"] < 0.5
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    assert hints.recovered(blurred, data, scenes)["edge_f"] > 0.8             # the crest of a blurred edge is still where it was


def test_edges_are_thin(drawn):
    data, scenes, images = drawn
    exact = (data.controls(scenes)["edges"] > 0.99).sum()
    assert 0.8 < hints.edges(images).sum() / exact < 1.5


def test_f_score_by_hand():
    wanted = torch.zeros(1, 8, 8, dtype=torch.bool)
    wanted[0, 3] = True                                        # a line of eight
    one_off, two_off = wanted.roll(1, 1), wanted.roll(2, 1)
    assert hints.f_score(wanted, wanted) == 1 and hints.f_score(one_off, wanted) == 1 and hints.f_score(two_off, wanted) == 0
    assert hints.f_score(two_off, wanted, tolerance=2) == 1
    half = wanted.clone()
    half[0, :, 4:] = False                                     # precision 1, recall 5 of 8: the fifth is one pixel away
    assert hints.f_score(half, wanted).item() == pytest.approx(2 * 1 * 0.625 / 1.625)
    both = wanted | wanted.roll(4, 1)                          # recall 1, precision one half
    assert hints.f_score(both, wanted).item() == pytest.approx(2 / 3)
    assert hints.f_score(torch.zeros_like(wanted), wanted) == 0


def test_iou_by_hand():
    a = torch.zeros(2, 4, 4, dtype=torch.bool)
    a[0, :2], b = True, torch.zeros(2, 4, 4, dtype=torch.bool)
    b[0, 1:3] = True
    assert hints.iou(a, b).tolist() == [pytest.approx(1 / 3), 1.0]          # nothing there, and nothing found: alike
