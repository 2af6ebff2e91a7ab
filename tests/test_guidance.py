import pytest
import torch

from course.errors import UsageError
from course.guidance import classifier_free_guidance, guided, rescaled


def test_formula():
    u, c = torch.tensor([1.0]), torch.tensor([3.0])
    assert [classifier_free_guidance(u, c, w).item() for w in (0, 1, 7.5)] == [1.0, 3.0, 16.0]


def test_both_halves_in_one_pass_and_in_order():
    calls = []

    def predict(x, t, condition):
        calls.append(len(x))
        assert {len(value) for value in condition.values()} == {len(x)}
        return condition["context"].mean((1, 2)).view(-1, 1, 1, 1).expand_as(x)
    cond, uncond = ({"context": torch.full((2, 3, 4), value), "text_embeds": torch.zeros(2, 1)} for value in (5.0, 2.0))
    out = guided(predict, cond, uncond, 3.0)(torch.zeros(2, 1, 2, 2), 10)
    assert calls == [4] and torch.equal(out, torch.full((2, 1, 2, 2), 2 + 3 * (5 - 2.0)))
    assert torch.equal(guided(predict, cond, uncond, 1.0)(torch.zeros(2, 1, 2, 2), 10), torch.full((2, 1, 2, 2), 5.0))
    assert calls == [4, 2]                                                      # one pass where one is enough


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "7.5"])
def test_scale_must_be_a_number(scale):
    with pytest.raises(UsageError, match="guidance_scale"):
        guided(None, None, None, scale)


def test_rescaling_against_diffusers():
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    out, cond = 3 * torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8) * torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    for share in (0.0, 0.7, 1.0):
        assert torch.allclose(rescaled(out, cond, share), module.rescale_noise_cfg(out, cond, share), atol=1e-6)
    assert torch.allclose(rescaled(out, cond, 1.0).std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))


def told(x, t, condition):
    return condition["context"] * torch.linspace(1, 2, x[0].numel()).view(x[0].shape)


COND, UNCOND = ({"context": torch.full((1, 1, 1, 1), value)} for value in (5.0, 2.0))


def test_guidance_holds_within_its_interval_only():
    calls = []

    def predict(x, t, condition):
        calls.append(len(x))
        return told(x, t, condition)
    x = torch.zeros(1, 1, 2, 2)
    denoiser = guided(predict, COND, UNCOND, 3.0, interval=(200, 800))
    plain, always = guided(told, COND, UNCOND, 1.0), guided(told, COND, UNCOND, 3.0)
    for t, expected in ((900, plain), (801, plain), (800, always), (500.5, always), (200, always), (199.9, plain), (0, plain)):
        assert torch.equal(denoiser(x, t), expected(x, t)), t
    assert calls == [1, 1, 2, 2, 2, 1, 1]                                       # half the work outside
    assert torch.equal(guided(told, COND, UNCOND, 3.0, (0, 999))(x, 300), always(x, 300))


def test_rescaling_is_part_of_guiding():
    x = torch.zeros(1, 1, 2, 2)
    out = guided(told, COND, UNCOND, 3.0, rescale=0.7)(x, 10)
    assert torch.allclose(out, told(x, 10, {"context": 0.7 * 5.0 + 0.3 * 11.0}))        # all are multiples of one field
    assert torch.equal(guided(told, COND, UNCOND, 1.0, rescale=0.7)(x, 10), told(x, 10, COND))


@pytest.mark.parametrize("options, words", [
    ({"interval": (800, 200)}, "guidance_interval"), ({"interval": (200,)}, "guidance_interval"),
    ({"interval": (float("nan"), 3)}, "guidance_interval"), ({"rescale": 1.1}, "guidance_rescale"),
    ({"rescale": float("nan")}, "guidance_rescale")])
def test_misuse(options, words):
    with pytest.raises(UsageError, match=words):
        guided(told, COND, UNCOND, 3.0, **options)
