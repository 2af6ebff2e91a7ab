"""The measuring instrument, measured: it must read what is there, and keep silent about what is not."""

from dataclasses import replace

import pytest
import torch

from course.data import Scenes, oracle
from course.data.captions import parse
from course.data.vocabulary import BACKGROUNDS, COLORS, Object, Scene
from course.errors import ShapeError, UsageError


def accuracy(size: int, objects: tuple[int, int], count: int, **kind) -> dict[str, float]:
    data = Scenes(size, "test", objects=objects, degraded=0, **kind)
    scenes = data.scenes(range(count))
    return oracle.rates(data.images(range(count), scenes), scenes)


def check(rates: dict[str, float], size: int, bar: float) -> None:
    assert rates["all"] >= bar, rates
    if size >= 64:
        assert rates["texture"] >= bar, rates


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_clean_pictures_are_read(size):
    check(accuracy(size, (1, 1), 120), size, 0.99)
    check(accuracy(size, (2, 3), 80), size, 0.98)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_clean_pictures_are_read_in_full(size):
    check(accuracy(size, (1, 1), 2000), size, 0.995)
    check(accuracy(size, (2, 3), 2000), size, 0.99)


def test_reserved_concepts_and_held_out_pairs_are_read():
    for split in ("concept", "heldout"):
        data = Scenes(64, split, objects=(1, 1), degraded=0)
        scenes = data.scenes(range(60))
        rates = oracle.rates(data.images(range(60), scenes), scenes)
        assert rates["all"] == 1.0 and rates["texture"] >= 0.98


@pytest.mark.parametrize("spoil", [
    lambda x: torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    lambda x: x + 0.08 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))])
def test_a_little_blur_or_noise_does_no_harm(spoil):
    data = Scenes(64, "test", objects=(1, 1), textures=("plain",), degraded=0)
    scenes = data.scenes(range(100))
    assert oracle.rates(spoil(data.images(range(100), scenes)), scenes)["all"] >= 0.95


def test_it_abstains_instead_of_guessing():
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert all(r.abstained for r in oracle.read(noise))
    blank = torch.full((1, 3, 64, 64), 1.0)
    assert oracle.read(blank)[0].abstained and oracle.read(blank)[0].background == "white"
    off_palette = torch.full((1, 3, 64, 64), 1.0)
    off_palette[:, :, 20:44, 10:54] = torch.tensor([0.2, 1.0, 0.2]).view(1, 3, 1, 1)         # a neon bar: neither
    reading = oracle.read(off_palette)[0]
    assert reading.objects[0].shape is None and reading.abstained


LINE = (torch.arange(64) + 0.5) / 64
X, Y = LINE[None, :] - 0.5, LINE[:, None] - 0.5
FOREIGN = {
    "bar": (X.abs() < 0.36) & (Y.abs() < 0.18), "ellipse": (X / 0.38) ** 2 + (Y / 0.20) ** 2 < 1,
    "diamond": X.abs() + Y.abs() < 0.30, "half disc": (X**2 + Y**2 < 0.09) & (Y > 0),
    "upside-down triangle": (Y > -0.2) & (X.abs() < 0.6 * (0.25 - Y)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_shape_that_has_no_word_is_not_given_one(name):
    pairs = [(c, b) for c in COLORS.values() for b in (BACKGROUNDS["white"], BACKGROUNDS["gray"])]
    images = [torch.where(FOREIGN[name], torch.tensor(c).view(3, 1, 1), torch.tensor(b).view(3, 1, 1)) for c, b in pairs]
    for reading in oracle.read(torch.stack(images) * 2 - 1):
        assert reading.abstained and all(o.shape is None for o in reading.objects)
        assert reading.objects[0].color is not None                                      # the colour is plain to see


WANTED = Scene((Object("ring", "red", "large", "plain", "left", 0.3, 0.5, 0.25),), "pink")


@pytest.mark.parametrize("key, wrong", [("shape", "circle"), ("color", "blue"), ("size", "small"), ("texture", "striped"),
                                        ("position", "right")])
def test_each_wrong_attribute_is_charged(key, wrong):
    seen = oracle.ObjectReading("ring", "red", "large", "plain", "left", 0.3, 0.5, 0.25, 0.0)
    right = oracle.score(oracle.Reading((seen,), "pink"), WANTED)
    assert right["all"] and all(right.values())
    result = oracle.score(oracle.Reading((replace(seen, **{key: wrong}),), "pink"), WANTED)
    assert not result[key] and result["all"] == (key == "texture")
    abstention = oracle.score(oracle.Reading((replace(seen, **{key: None}),), "pink"), WANTED)
    assert not abstention[key]


def test_background_count_and_relation_are_charged():
    seen = oracle.ObjectReading("ring", "red", "large", "plain", "left", 0.3, 0.5, 0.25, 0.0)
    assert not oracle.score(oracle.Reading((seen,), "gray"), WANTED)["all"]
    assert not oracle.score(oracle.Reading((), "pink"), WANTED)["shape"]
    extra = oracle.score(oracle.Reading((seen, seen), "pink"), WANTED)
    assert not extra["count"] and not extra["all"] and extra["shape"]
    two = Scene((*WANTED.objects, Object("star", "blue", "small", "plain", "right", 0.7, 0.5, 0.13)), "pink")
    star = oracle.ObjectReading("star", "blue", "small", "plain", "right", 0.7, 0.5, 0.13, 0.0)
    assert oracle.score(oracle.Reading((star, seen), "pink"), two)["all"]                # the order of reading is free
    swapped = (replace(seen, cx=0.7), replace(star, cx=0.3))
    result = oracle.score(oracle.Reading(swapped, "pink"), two)
    assert not result["relation"] and not result["all"]
    bound = oracle.score(oracle.Reading((replace(seen, color="blue"), replace(star, color="red")), "pink"), two)
    assert not bound["color"] and not bound["all"]                                      # colours on the wrong objects


def test_a_prompt_is_scored_as_its_scene_is():
    data = Scenes(64, "test", objects=(1, 3), textures=("plain",), degraded=0)
    scenes, words = data.scenes(range(40)), data.captions(range(40), full=True)
    readings, agreed = oracle.read(data.images(range(40), scenes)), 0
    for i in range(40):
        for j in (i, (i + 1) % 40):                            # its own caption, and another's
            heeded, scored = oracle.heeds(readings[i], parse(words[j])), oracle.score(readings[i], scenes[j])
            assert heeded["count"] == scored["count"] and heeded["background"] == scored["background"]
            assert heeded["all"] == scored["all"], words[j]
            agreed += heeded["all"]
    assert agreed == 40


@pytest.mark.parametrize("prompt, wrong", [
    ("a large red circle left of a small blue star", set()), ("a circle and a star", set()),
    ("a small blue star right of a large red circle on a white background", set()),
    ("a green circle left of a blue star", {"color"}), ("a red star left of a blue circle", {"shape"}),
    ("a small red circle left of a small blue star", {"size"}),
    ("a blue star left of a red circle", {"place"}), ("a red circle", {"count"}), ("a red ring and a star", {"shape"}),
    ("a red circle and a blue star on a pink background", {"background"})])
def test_what_a_prompt_leaves_open_holds(prompt, wrong):
    scene = Scene((Object("circle", "red", "large", "plain", "left", 0.3, 0.5, 0.2),
                   Object("star", "blue", "small", "plain", "right", 0.75, 0.5, 0.13)), "white")
    reading, = oracle.read(Scenes(64).images([0], [scene]))
    heeded = oracle.heeds(reading, parse(prompt))
    assert {k for k, held in heeded.items() if not held} - {"all"} == wrong and heeded["all"] == (not wrong)
    nothing = oracle.heeds(replace(reading, objects=()), parse(prompt))
    assert not any(nothing[k] for k in ("shape", "color", "size", "place", "count", "all"))


def test_misuse():
    with pytest.raises(ShapeError, match="H = W"):
        oracle.read(torch.zeros(1, 3, 64, 32))
    with pytest.raises(ShapeError, match="B,3,H,W"):
        oracle.read(torch.zeros(1, 1, 64, 64))
    with pytest.raises(UsageError, match="finite"):
        oracle.read(torch.full((1, 3, 64, 64), float("nan")))
    with pytest.raises(UsageError, match=r"\[-1, 1\]"):
        oracle.read(torch.full((1, 3, 64, 64), 255.0))
