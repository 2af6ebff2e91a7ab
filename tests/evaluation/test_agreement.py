"""CLIP score: what a released CLIP says is what transformers and torchmetrics say, and nobody is graded by his own teacher."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from course import text, tokenizer
from course.data import Scenes
from course.errors import CheckpointError, UsageError
from course.evaluation import agreement
from course.training import clip
from tests.evaluation import networks

WORDS = ["a red circle", "a large blue square on a gray background", "nothing"]


@pytest.fixture
def released(tmp_path):
    """A CLIP of its architecture with random weights, saved as released."""
    folder = tmp_path / "clip"
    return folder, *networks.clip(folder)


def test_a_released_clip_is_transformers(released):
    folder, model, prepare = released
    images = Scenes(64, "test").images(range(3))
    found = agreement.released(folder)
    raw = (255 * (images + 1) / 2).round().byte()
    given = prepare(text=WORDS, images=list(raw), return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**given).logits_per_image.diagonal() / model.logit_scale.exp()
        assert torch.allclose(found.cosines(images, WORDS), theirs, atol=1e-5) and theirs.std() > 1e-3
    assert found.name == "CLIP" and torch.equal(found.of(images, WORDS, batch=2), found.cosines(images, WORDS).clamp(min=0))


def test_a_released_clip_is_torchmetrics(released):
    functional = pytest.importorskip("torchmetrics.functional.multimodal.clip_score")
    folder, model, prepare = released
    images = Scenes(64, "test").images(range(3))
    wrapped = SimpleNamespace(config=model.config, to=lambda device: wrapped,      # theirs expects tensors, as once returned
                              get_image_features=lambda x: model.get_image_features(x).pooler_output,
                              get_text_features=lambda *ids: model.get_text_features(*ids).pooler_output)
    raw = (255 * (images + 1) / 2).round().byte()
    with torch.no_grad():
        theirs, count = functional._clip_score_update(list(raw), WORDS, wrapped, prepare)
        ours = 100 * agreement.released(folder).cosines(images, WORDS)
    assert count == 3 and torch.allclose(ours, theirs, atol=1e-3)


def test_what_is_no_clip(tmp_path):
    with pytest.raises(CheckpointError, match="no CLIP in"):
        agreement.released(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no CLIP in"):
        agreement.released(tmp_path)


def tiny():
    config = text.TextConfig(vocab_size=600, length=12, width=16, layers=1, heads=2, projection=16, eos_id=1)
    tokens = tokenizer.Tokenizer.train(WORDS, num_merges=20, length=12)
    torch.manual_seed(0)
    return clip.CLIP(clip.ImageEncoder(16, (32, 32, 32, 32)), text.TextEncoder(config)), tokens


def test_cosines_by_hand_and_no_judge_of_its_own_pupil():
    model, tokens = tiny()
    found = agreement.scorer(model, tokens)
    images = Scenes(64, "test").images(range(3))
    with torch.no_grad():
        u, v = model.image_encoder(images), model.text_encoder.pooled(tokens(WORDS))
    assert torch.allclose(found.cosines(images, WORDS), F.cosine_similarity(u, v), atol=1e-6)
    with pytest.raises(UsageError, match="expected a caption for each of 3"):
        found.of(images, WORDS[:2])
    with pytest.raises(UsageError, match="same text encoder"):
        found.judges(SimpleNamespace(text_encoder=model.text_encoder, origin="its pupil"))
    other = SimpleNamespace(text_encoder=text.TextEncoder(model.text_encoder.config), origin="a stranger")
    assert found.judges(other) is found


def test_an_untrained_one_is_always_the_same():
    a, b = agreement.untrained(), agreement.untrained()
    images = Scenes(64, "test").images(range(3))
    assert a.sha256 == b.sha256 != agreement.untrained(1).sha256 and torch.equal(a.of(images, WORDS), b.of(images, WORDS))
    assert a.name == "CLIP-random" and 0 <= a.of(images, WORDS).min() <= a.of(images, WORDS).max() <= 1


def test_a_bag_of_words_cannot_tell_an_exchange():
    """A scorer that counts words is at chance, with every tie lost; one that reads the order notices all."""
    from course.evaluation.tables import twins
    data = Scenes(64, "test", objects=(2, 2), textures=("plain",), degraded=0.0)
    own = set(data.captions(range(24), full=True))

    def scorer(cosines):
        return agreement.Scorer("made up", "0", cosines, "0")
    bag = scorer(lambda images, said: torch.tensor([float(len(s)) for s in said]))
    reader = scorer(lambda images, said: torch.tensor([float(s in own) for s in said]))
    assert twins.tells_apart(bag, 24) == 0.0 and twins.tells_apart(reader, 24) == 1.0


def test_who_follows_the_oracle():
    from course.evaluation.tables import twins
    data = Scenes(64, "test", objects=(1, 1), textures=("plain",), degraded=0.0)
    scenes, images = data.scenes(range(16)), data.images(range(16))
    half = torch.cat([images[:8], torch.zeros(8, 3, 64, 64)])
    good = torch.tensor([1.0] * 8 + [0.0] * 8)
    assert twins.follows(good, half, scenes) == pytest.approx(1.0)
    assert twins.follows(1 - good, half, scenes) == pytest.approx(-1.0)
    assert twins.follows(good, images, scenes) == 0.0                           # all right: there is nothing to follow
