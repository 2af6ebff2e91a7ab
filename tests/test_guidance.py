import pytest
import torch

from course.errors import UsageError
from course.guidance import classifier_free_guidance, guided


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
