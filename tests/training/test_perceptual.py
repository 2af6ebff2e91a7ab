"""Which network judges likeness: what is asked for is what is taken, and what is taken is said."""

import pytest
import torch

from course.errors import CheckpointError, UsageError
from course.training import perceptual


def test_the_course_has_its_own():
    judge, words = perceptual.load("mini")
    assert "perceptual-mini" in words and not any(p.requires_grad for p in judge.parameters())
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert judge(x, x).abs().max() < 1e-6
    changed = x.clone().requires_grad_()
    judge(0.5 * changed, x).sum().backward()
    assert changed.grad.abs().sum() > 0                        # the autoencoder learns from it


def test_more_damage_is_further_away():
    from course.data import Scenes
    judge, _ = perceptual.load("mini")
    x = Scenes(64, "test", objects=(1, 1), degraded=0.0).images(range(16))
    blurs = [judge(torch.nn.functional.avg_pool2d(x, k, 1, k // 2, count_include_pad=False), x) for k in (3, 5, 9)]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noises = [judge((x + s * noise).clamp(-1, 1), x) for s in (0.03, 0.1, 0.3)]
    for ladder in (blurs, noises):
        assert all((a < b).float().mean() > 0.9 for a, b in zip(ladder, ladder[1:], strict=False))


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_with_a_trunk_of_a_named_file(net, tmp_path, monkeypatch):
    """Equal to the lpips package with the same trunk."""
    import torchvision
    from lpips import LPIPS
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    torch.manual_seed(0)
    trunk = {"vgg": torchvision.models.vgg16, "alex": torchvision.models.alexnet}[net](weights=None)
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    judge, words = perceptual.load(net, tmp_path / "trunk.pth")
    assert str(tmp_path / "trunk.pth") in words
    theirs = LPIPS(net=net, pnet_rand=True, verbose=False)
    for name, parameter in theirs.net.named_parameters():
        parameter.data.copy_(trunk.state_dict()[f"features.{name.split('.', 1)[1]}"])
    x, y = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    assert torch.equal(judge(x, y), theirs(x, y)) and judge(x, y).min() > 0


def test_what_cannot_be_had_is_said(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    _, words = perceptual.load("auto")
    assert "perceptual-mini" in words and "no network" in words
    with pytest.raises(CheckpointError, match="no network"):
        perceptual.load("vgg")
    with pytest.raises(CheckpointError, match="vgg16-397923af.pth"):
        perceptual.load("vgg", tmp_path / "nowhere.pth")
    with pytest.raises(UsageError, match="expected auto"):
        perceptual.load("resnet")
