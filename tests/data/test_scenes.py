"""The built-in pictures are a function of (split, seed, index), and their words say what they show."""

import pytest
import torch

from course.data import Scenes
from course.data import captions as wording
from course.data.vocabulary import (
    BACKGROUNDS,
    COLORS,
    CONCEPT_COLOR,
    CONCEPT_SHAPE,
    CONCEPT_TEXTURE,
    HELD_OUT,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    size_of,
)
from course.errors import UsageError


def test_the_vocabulary_is_as_rich_as_promised():
    assert len(SHAPES) >= 5 and len(COLORS) >= 8 and len(SIZES) >= 2 and len(TEXTURES) >= 3
    assert len(POSITIONS) >= 5 and len(BACKGROUNDS) >= 6
    scenes = Scenes(32).scenes(range(3000))
    seen = {(o.shape, o.color) for s in scenes for o in s.objects}
    assert seen == {(s, c) for s in SHAPES for c in COLORS} - HELD_OUT
    assert {s.background for s in scenes} == set(BACKGROUNDS) and {len(s.objects) for s in scenes} == {1, 2, 3}
    assert {r for s in scenes for _, r, _ in s.relations()} == {"left of", "right of", "above", "below"}


def test_an_index_means_the_same_picture_however_it_is_reached():
    data = Scenes(64)
    batch = data.batch([5, 900, 7])
    for row, index in enumerate([5, 900, 7]):
        one = data[index]
        assert torch.allclose(one["image"], batch["image"][row], atol=1e-6)
        assert one["caption"] == batch["caption"][row] and one["scene"] == batch["scene"][row]
        assert torch.equal(one["controls"]["segmentation"], batch["controls"]["segmentation"][row])
    torch.manual_seed(123)                                                      # nobody's global generator matters
    assert torch.equal(data.images(range(20)), Scenes(64).images(range(20)))


def test_fixed_fingerprint():
    """The same on every machine: these words were read off when the data set was defined."""
    assert Scenes(64).captions(range(3)) == FINGERPRINT
    image = Scenes(64, objects=(1, 1), degraded=0).images([0])[0]
    assert image.mean().item() == pytest.approx(FINGERPRINT_MEAN, abs=1e-4)


FINGERPRINT = [
    "a gray background with a large striped blue square right of a small dotted yellow circle",
    "a noisy picture of a small striped black star above a large striped red triangle on a cream background",
    "a white background with a large dotted blue circle above a small striped red cross and right of a large striped brown "
    "triangle",
]
FINGERPRINT_MEAN = 0.449317


def test_seeds_and_splits_differ():
    words = [tuple(Scenes(32, split, seed).captions(range(50))) for split in ("train", "val", "test") for seed in (0, 1)]
    assert len(set(words)) == 6


def test_held_out_pairs_and_concepts_stay_apart():
    for split in ("train", "val", "test"):
        things = [o for s in Scenes(32, split).scenes(range(2000)) for o in s.objects]
        assert not {(o.shape, o.color) for o in things} & HELD_OUT
        assert CONCEPT_SHAPE not in {o.shape for o in things} and CONCEPT_COLOR not in {o.color for o in things}
        assert CONCEPT_TEXTURE not in {o.texture for o in things}
    assert {(o.shape, o.color) for s in Scenes(32, "heldout").scenes(range(500)) for o in s.objects} == HELD_OUT
    things = [o for s in Scenes(32, "concept").scenes(range(50)) for o in s.objects]
    assert {(o.shape, o.color, o.texture) for o in things} == {(CONCEPT_SHAPE, CONCEPT_COLOR, CONCEPT_TEXTURE)}


@pytest.mark.parametrize("size", [32, 65, 256])
def test_any_size_shows_the_same_scene(size):
    small, large = Scenes(size, degraded=0).batch(range(4)), Scenes(512, degraded=0).images(range(4))
    assert small["image"].shape == (4, 3, size, size) and small["image"].abs().max() <= 1
    shrunk = torch.nn.functional.interpolate(large, size=size, mode="area")
    assert (small["image"] - shrunk).abs().mean() < 0.03


def test_objects_are_inside_apart_and_of_their_size():
    for s in Scenes(32, degraded=0).scenes(range(2000)):
        for i, a in enumerate(s.objects):
            assert a.radius <= a.cx <= 1 - a.radius and a.radius <= a.cy <= 1 - a.radius
            assert size_of(a.radius) == a.size
            for b in s.objects[:i]:
                assert ((a.cx - b.cx) ** 2 + (a.cy - b.cy) ** 2) ** 0.5 > a.radius + b.radius + 0.05


def test_crowded_scenes_are_laid_out_in_many_ways():
    """Three large objects rarely fit by chance; what is done then must not be one picture over and over."""
    scenes = Scenes(32, objects=(3, 3), degraded=0).scenes(range(1000))
    assert len({tuple((o.cx, o.cy) for o in s.objects) for s in scenes}) > 990
    kinds = [tuple(r for _, r, _ in s.relations()) for s in scenes]
    assert max(kinds.count(kind) for kind in set(kinds)) < 200                  # of 12 kinds


def test_nothing_asked_for_is_nothing_given():
    batch = Scenes(32).batch([])
    assert batch["image"].shape == (0, 3, 32, 32) and batch["caption"] == batch["scene"] == []
    assert batch["controls"]["segmentation"].shape == (0, 32, 32)


def test_captions_can_be_read_back():
    data = Scenes(32, degraded=0.1)
    scenes = data.scenes(range(400))
    for scene, text in zip(scenes, data.captions(range(400), full=True), strict=True):
        asked = wording.parse(text)
        assert asked["background"] == scene.background and len(asked["objects"]) == len(scene.objects), text
        for want, thing in zip(asked["objects"], scene.objects, strict=True):
            for key in ("shape", "color", "size", "texture"):
                assert want[key] == getattr(thing, key), text
        if len(scene.objects) == 1:
            assert asked["objects"][0]["position"] == scene.objects[0].position, text
        assert asked["relations"] == [r for _, r, _ in scene.relations()]
    assert len({wording.caption(scenes[0], k) for k in range(10)}) >= 2


def test_degraded_share_is_captioned():
    data = Scenes(32)
    scenes, words = data.scenes(range(3000)), data.captions(range(3000))
    bad = [s.degradation for s in scenes]
    share = sum(d is not None for d in bad) / len(bad)
    assert 0.08 < share < 0.12 and set(filter(None, bad)) == {"blurry", "noisy", "cropped", "watermarked"}
    assert all((d is None) or text.startswith(f"a {d} picture of") for d, text in zip(bad, words, strict=True))
    assert 0.1 < sum("sharp" in text for text in words) / len(words) < 0.2
    clean = Scenes(32, degraded=0)
    assert not any("sharp" in t or "picture" in t for t in clean.captions(range(500)))
    assert any(not torch.allclose(a, b) for a, b in zip(data.images(range(40)), clean.images(range(40)), strict=True))


def test_controls_agree_with_the_picture():
    batch = Scenes(64, degraded=0, textures=("plain",)).batch(range(30))
    for image, scene, seg in zip(batch["image"], batch["scene"], batch["controls"]["segmentation"], strict=True):
        assert set(seg.unique().tolist()) == set(range(len(scene.objects) + 1))
        for k, thing in enumerate(scene.objects, start=1):
            inside = seg == k
            core = -torch.nn.functional.max_pool2d(-inside[None].float(), 3, 1, 1)[0] > 0.5      # without its edge
            color = (image[:, core].mean(1) + 1) / 2
            assert torch.allclose(color, torch.tensor(COLORS[thing.color]), atol=0.02)
    edges, depth = batch["controls"]["edges"], batch["controls"]["depth"]
    assert edges.shape == depth.shape == (30, 1, 64, 64) and edges.max() == 1 and edges.min() == 0
    assert ((depth[:, 0] > 0) == (batch["controls"]["segmentation"] > 0)).all()


def test_drawing_is_fast():
    """Not a benchmark, a guard: even a busy machine draws hundreds a second (thousands when idle)."""
    import time
    data = Scenes(64)
    data.images(range(64))
    begun = time.process_time()                                                 # work done, not time waited for others
    data.images(range(512))
    assert 512 / (time.process_time() - begun) > 100


@pytest.mark.parametrize("arguments, words", [
    ({"size": 16}, "16"), ({"size": 2048}, "2048"), ({"size": 64, "split": "dev"}, "dev"),
    ({"size": 64, "objects": (0, 2)}, "objects"), ({"size": 64, "objects": (2, 4)}, "objects"),
    ({"size": 64, "seed": -1}, "seed"), ({"size": 64, "seed": 1_000_003}, "seed"),            # that would be val's seed 0
    ({"size": 64, "textures": ("furry",)}, "furry"), ({"size": 64, "degraded": 2}, "degraded")])
def test_misuse(arguments, words):
    with pytest.raises(UsageError, match=words):
        Scenes(**arguments)
    with pytest.raises(UsageError, match="negative"):
        Scenes(64)[-1]
