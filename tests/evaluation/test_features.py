"""Feature networks: which one measured is part of the figure."""

import pytest
import torch

from course import files
from course.data import Scenes
from course.errors import CheckpointError
from course.evaluation import features, metrics
from course.training import attributes
from tests.evaluation import networks


def test_answers_are_distributions_over_what_is_there():
    scenes = Scenes(64, "test", degraded=0.5).scenes(range(64))
    found = attributes.answers(scenes)
    assert all(torch.allclose(rows.sum(1), torch.ones(64)) for rows in found.values())
    assert set(found) == set(attributes.QUESTIONS)
    single = next(i for i, s in enumerate(scenes) if len(s.objects) == 1)
    thing = scenes[single].objects[0]
    pair = attributes.ALL_SHAPES.index(thing.shape) * len(attributes.ALL_COLORS) + list(attributes.ALL_COLORS).index(thing.color)
    assert found["pair"][single, pair] == 1 and (found["degradation"][:, 0] == 1).sum() == sum(not s.degradation for s in scenes)


def test_the_random_network_is_always_the_same():
    a, b, other = features.random(), features.random(), features.random(seed=1)
    images = Scenes(64, "test").images(range(12))
    assert a.sha256 == b.sha256 != other.sha256 and torch.equal(a.of(images), b.of(images)) and a.of(images).shape == (12, 64)
    assert torch.allclose(a.classes(images).sum(1), torch.ones(12)) and a.name == "FD-random"
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    features.random()
    assert torch.equal(torch.rand(3), expected)                # and nobody else's random numbers are disturbed


def test_a_trained_network_is_found_by_its_folder(tmp_path):
    net = attributes.AttributeNet(dim=8, channels=(8, 8, 8, 8)).eval()
    files.save_tensors(tmp_path / "run" / "model" / "features.safetensors", net.state_dict(), {})
    files.write_json(tmp_path / "run" / "model" / "features.json", {"dim": 8, "channels": [8, 8, 8, 8]})
    found = features.course(tmp_path / "run")
    images = Scenes(64, "test").images(range(5))
    with torch.no_grad():
        assert torch.equal(found.of(images, batch=2)[:2], net.features(images[:2]))
    assert found.name == "FD-course" and found.sha256 == features.digest(net)
    with pytest.raises(CheckpointError, match="course train features"):
        features.course(tmp_path / "nowhere")


def test_the_network_that_comes_with_the_course():
    """It knows what it measures, and whoever trains it anew has another one: no figure may be compared across."""
    found = features.course()
    assert found.name == "FD-course" and found.sha256.startswith("28742eef72374f43")
    data = Scenes(64, "test", objects=(1, 1), textures=("plain",), degraded=0.0)
    images, wanted = data.images(range(128)), attributes.answers(data.scenes(range(128)))["pair"]
    assert (found.classes(images).argmax(1) == wanted.argmax(1)).double().mean() > 0.85
    real, same = found.of(images), found.of(data.images(range(128, 256)))
    blurred = found.of(torch.nn.functional.avg_pool2d(images, 3, 1, 1))
    assert metrics.kernel_distance(real, blurred) > 5 * abs(metrics.kernel_distance(real, same))


def test_fd_notices_what_is_wrong_with_pictures():
    extractor = features.random()
    data = Scenes(64, "test", objects=(1, 1), degraded=0.0)
    real, same, = extractor.of(data.images(range(200))), extractor.of(data.images(range(200, 400)))
    noisy = extractor.of((data.images(range(200, 400)) + 0.3 * torch.randn(200, 3, 64, 64)).clamp(-1, 1))
    assert metrics.frechet_distance(real, noisy) > 2 * metrics.frechet_distance(real, same)


def test_the_inception_of_the_fid_with_random_weights(tmp_path):
    """Their class, filled at random and saved as released; what ours computes is what theirs computes."""
    theirs = networks.inception(tmp_path / "inception.pth")
    found = features.fid(tmp_path / "inception.pth")
    images = Scenes(64, "test").images(range(3))
    expected, logits = theirs(((images + 1) * 127.5).round().byte())
    assert found.name == "FID" and torch.allclose(found.of(images), expected, atol=1e-4)
    assert found.of(images).shape == (3, 2048) and torch.allclose(found.classes(images), logits.softmax(-1), atol=1e-5)
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not the weights of the FID's Inception"):
        features.fid(tmp_path / "other.pth")
    (tmp_path / "program.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")             # a pickle that would run a program
    with pytest.raises(CheckpointError):
        features.fid(tmp_path / "program.pth")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_against_torchmetrics(net, tmp_path):
    """Their class with the same trunk, random weights, in torchvision's file."""
    theirs_of = pytest.importorskip("torchmetrics.functional.image.lpips")
    trunk = networks.trunk(tmp_path / "trunk.pth", net)
    theirs = theirs_of._LPIPS(pretrained=True, net=net, pnet_rand=True).eval()
    own = theirs.net.state_dict()
    theirs.net.load_state_dict({name: trunk[f"features.{name.split('.', 1)[1]}"] for name in own})
    x, y = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = features.lpips(tmp_path / "trunk.pth")
    with torch.no_grad():
        assert torch.allclose(found.of(x, y, batch=2), theirs(x, y).flatten(), rtol=1e-4) and found.name == "LPIPS"
    assert found.of(x, x).abs().max() == 0 and found.of(x, y).min() > 0
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="AlexNet or VGG16"):
        features.lpips(tmp_path / "other.pth")


def test_psim_is_a_mean_of_angles():
    """|a - b|^2 of two unit vectors is 2 - 2 cos, averaged over places, summed over stages."""
    found, net = features.psim("random"), features.untrained(0)
    x, y = Scenes(64, "test").images(range(2)), Scenes(64, "test").images(range(2, 4))
    with torch.no_grad():
        expected = sum((2 - 2 * torch.cosine_similarity(a, b, dim=1)).mean((1, 2))
                       for a, b in zip(net.encoder.stages(x), net.encoder.stages(y), strict=True))
    assert torch.allclose(found.of(x, y), expected, atol=1e-4) and found.name == "PSIM-course"
    assert found.sha256 == features.random().sha256 and features.psim().sha256 == features.course().sha256
