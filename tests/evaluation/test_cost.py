import time

import pytest
import torch

from course import presets
from course.evaluation import cost


def test_interleaved_is_a_median_in_turns():
    order = []

    def make(name, seconds):
        def step():
            order.append(name)
            time.sleep(seconds)
        return step
    times = cost.interleaved({"a": make("a", 0.001), "b": make("b", 0.02)}, rounds=3)
    assert order == ["a", "b"] * 5 and times["b"] > 5 * times["a"]


@pytest.mark.parametrize("size", ["", "-gpu"])
def test_the_two_arms_have_parameters_within_five_per_cent(size):
    a, b = (cost.parameters(cost.denoiser(presets.PIPELINES[n + size], "meta")) for n in ("demo-latent", "demo-pixel"))
    assert abs(a / b - 1) < 0.05, (a, b)


def test_a_training_step_changes_weights_and_a_sampling_step_is_guided():
    config = presets.PIPELINES["demo-latent"]
    step = cost.training_step(config, 2)
    model = step.__closure__[[c for c in step.__code__.co_freevars].index("model")].cell_contents
    before = model.unet.conv_in.weight.clone()
    step()
    assert not torch.equal(before, model.unet.conv_in.weight)
    assert cost.inputs(config, 2)[0].shape == (2, 4, 8, 8)
    assert cost.inputs(presets.PIPELINES["demo-pixel"], 2)[0].shape == (2, 3, 64, 64)


def test_peak_memory_counts_what_the_step_holds():
    small, large = (cost.peak_mb("demo-latent", n) for n in (2, 64))
    assert 1 < small < large


def test_unknown_preset_is_an_error():
    from course.errors import TrainingError
    with pytest.raises(TrainingError, match="no-such"):
        cost.peak_mb("no-such", 2)
