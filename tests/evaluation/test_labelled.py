"""What an eye has said of 200 generated pictures, and how it is compared with the oracle."""

import json
from dataclasses import replace

import pytest
import torch

from course import pixels
from course.data import Scenes, oracle
from course.data.oracle import ObjectReading, Reading
from course.data.vocabulary import BACKGROUNDS, COLORS, POSITIONS, RELATIONS, SHAPES, SIZES, TEXTURES, relation
from course.errors import UsageError
from course.evaluation import labelled


def kept() -> dict:
    return json.loads((labelled.DATA / "labelled.json").read_text("utf-8"))


def test_labels_are_whole_and_in_the_vocabulary():
    about, images = kept(), labelled.pictures()
    assert len(about["labels"]) == len(images) == len(labelled.asked()) == sum(labelled.PLAN.values()) == 200
    assert about["date"] and about["who"] and labelled.digest(images) == about["sha256"]
    known = {"size": SIZES, "color": COLORS, "texture": TEXTURES, "shape": SHAPES}
    for label in about["labels"]:
        assert label["background"] in BACKGROUNDS and len(label["objects"]) in (1, 2, 3)
        for thing in label["objects"]:
            assert all(word == "?" or word in known[key] for key, word in zip(known, thing.split(), strict=True)), thing
        n = len(label["objects"])
        assert label["position"] in POSITIONS if n == 1 else (len(label["relations"]) == n * (n - 1) // 2
                                                              and set(label["relations"]) <= set(RELATIONS))


def test_every_label_has_places_that_lie_as_it_says():
    for label in labelled.labels():
        things = labelled.as_reading(label).objects
        if len(things) == 1:
            assert things[0].position == label["position"]
            continue
        a, b = things[:2]
        assert relation(a, b) == label["relations"][0] and relation(b, a) == labelled.OPPOSITE[label["relations"][0]]
    round_about = {"background": "white", "objects": 3 * ["small red plain circle"],
                   "relations": ["left of", "right of", "left of"]}
    with pytest.raises(UsageError, match="nothing can lie like this"):
        labelled.as_reading(round_about)


def test_pictures_are_kept_without_loss(tmp_path):
    images = torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)
    (tmp_path / "x.png").write_bytes(labelled.png(images))
    assert torch.equal(labelled.pictures(tmp_path / "x.png"), images)
    labelled.sheets(tmp_path / "sheets", images)
    assert len(list((tmp_path / "sheets").iterdir())) == 2                        # 25 and 15


def words_of(scene) -> dict:
    """The label that a perfect eye would give."""
    def pairs():
        for i, a in enumerate(scene.objects):
            for b in scene.objects[i + 1:]:
                yield relation(a, b)
    label = {"background": scene.background,
             "objects": [f"{o.size} {o.color} {o.texture} {o.shape}" for o in scene.objects]}
    return label | ({"position": scene.objects[0].position} if len(scene.objects) == 1 else {"relations": list(pairs())})


def test_a_perfect_eye_and_the_oracle_agree_on_clean_pictures_and_a_wrong_word_is_found():
    data = Scenes(64, "test", objects=(1, 3), textures=("plain",), degraded=0.0)
    scenes = data.scenes(range(24))
    images, said = pixels.to_bytes(data.images(range(24))), [words_of(s) for s in scenes]
    found = labelled.study(images, said, scenes)
    assert found["differ"] == [] and all(r["agree"] == r["n"] > 0 for r in found["rows"])
    assert found["right"]["eye"]["right"] == found["right"]["oracle"]["right"] == 24
    assert {r["what"] for r in found["rows"]} == {"count", "background", "shape", "color", "size", "texture", "position",
                                                  "relation", "all right"}
    one = next(i for i, s in enumerate(scenes) if i and len(s.objects) == 1)
    said[one] = replace_word(said[one], scenes[one].objects[0].shape, "?")
    said[0] = said[0] | {"background": next(b for b in BACKGROUNDS if b != scenes[0].background)}
    found = labelled.study(images, said, scenes)
    assert [(d["picture"], d["what"]) for d in found["differ"]] == [
        (0, "background"), (one, "shape"), (0, "all right"), (one, "all right")]
    assert found["right"]["eye"]["right"] == 22 and found["right"]["oracle"]["right"] == 24
    assert found["table"]["eye wrong, oracle right"] == 2
    assert "| no word |" in labelled.told(found, kept()) and f"| {one} | shape |" in labelled.told(found, kept())


def replace_word(label: dict, old: str, new: str) -> dict:
    return label | {"objects": [thing.replace(old, new) for thing in label["objects"]]}


def test_of_twins_either_may_be_meant():
    """Two equal circles, one left and one right of the square: the prompt's first one is whichever fits."""
    def thing(shape, x):
        return ObjectReading(shape, "red", "small", "plain", None, x, 0.5, 0.1, 0.0)
    data = Scenes(64, "test", objects=(3, 3), textures=("plain",), degraded=0.0)
    base = data.scenes(range(1))[0]
    a, b, c = (replace(o, shape=shape, color="red", size="small", texture="plain", cx=x, cy=0.5)
               for o, shape, x in zip(base.objects, ("circle", "square", "circle"), (0.2, 0.5, 0.8), strict=True))
    left = replace(base, objects=(a, b, c))                    # a circle left of a square and left of a circle
    right = replace(base, objects=(c, b, a))
    eye = Reading((thing("circle", 0.2), thing("square", 0.5), thing("circle", 0.8)), base.background)
    assert labelled.shows(eye, left) and labelled.shows(eye, right)
    assert not labelled.shows(Reading(eye.objects[::2], base.background), left)
    assert oracle.score(eye, left)["count"]


def test_how_far_the_oracle_can_be_trusted_on_what_a_model_draws():
    """The committed pictures and labels. An oracle changed for the worse is noticed here before it judges any model."""
    found = labelled.study(labelled.pictures(), labelled.labels(), [scene for scene, _ in labelled.asked()])
    share = {r["what"]: r["share"] for r in found["rows"]}
    assert min(share[key] for key in ("count", "background", "color", "size", "position", "relation")) > 0.98
    assert share["shape"] > 0.97 and share["all right"] > 0.97
    page = (labelled.Path(__file__).parents[2] / "docs" / "oracle" / "labelled.md").read_text("utf-8")
    assert page == labelled.told(found, kept())
