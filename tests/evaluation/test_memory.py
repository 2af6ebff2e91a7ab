"""Bytes that are counted: by hand where they can be, and beside what a process really holds."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from course import presets, unet
from course.errors import TrainingError
from course.evaluation import cost, errata, memory
from course.evaluation.tables import claims
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SCALES, SUPPORTED, Work


def test_what_lives_at_once():
    with FakeTensorMode(), memory.Living() as living:
        a = torch.zeros(1000)                                  # 4,000 bytes
        b = a.view(10, 100)[2:]                                # the same ones
        assert living.now == living.peak == 4000
        c = torch.zeros(500, dtype=torch.float64)
        del c
        assert living.now == 4000 and living.peak == 8000
        del a
        assert living.now == 4000                              # b still looks at it
        del b
        assert living.now == 0 and living.peak == 8000


def test_a_step_of_training_by_hand():
    """Weights, gradients and two moments of 4 MB each; beside these only thin activations."""
    found = memory.counted(lambda: memory.training(nn.Linear(1000, 1000, bias=False), torch.zeros(1, 1000)), calls=2)
    assert 16e6 <= found < 16.1e6


def test_attention_does_not_store_its_weights():
    config = unet.UNetConfig(3, 3, (32, 32), 1, (1, 0), 0, (1, 1), None)

    def sampling():
        net = memory.built(lambda: unet.UNet(config), torch.float32)
        return torch.no_grad()(lambda: net(torch.zeros(1, 3, 128, 128), 0.0))
    assert memory.counted(sampling) < 4 * (128**2) ** 2 / 10                    # a tenth of one matrix of (N,N)


def test_weights_of_half_precision_are_never_in_single():
    whole = memory.counted(lambda: memory.picture(side=64))
    least = memory.weights("sd15", "clip-l", "vae-sd")
    assert least == 2 * (859_520_964 + 123_060_480 + 83_653_863) and least < whole < 1.2 * least
    assert torch.get_default_dtype() == torch.float32


def test_counted_beside_measured():
    """Nothing is shared by the two ways but the step itself."""
    counted = memory.counted(lambda: cost.training_step(presets.PIPELINES["demo-pixel"], 4), calls=2) / 2**20
    assert 0.5 < counted / cost.peak_mb("demo-pixel", 4) < 1.5


def test_what_a_cap_says(monkeypatch):
    """Without a GPU it cannot be said; with one, running out of memory is an answer and no failure."""
    def none_left(device):
        raise torch.cuda.OutOfMemoryError("made up")
    shares = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: type("Card", (), {"total_memory": 32e9}))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3_000)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 4_000)
    monkeypatch.setattr(memory, "picture", lambda device: lambda: None)
    assert memory._draw_under(8e9) == {"peak": 3_000, "reserved": 4_000} and shares == [0.25]
    monkeypatch.setattr(memory, "picture", none_left)
    assert memory._draw_under(8e9)["peak"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_an_error():
    with pytest.raises(TrainingError, match="could not draw under a cap of 8e"):
        memory.under_cap()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_picture_under_the_cap_of_a_consumers_card():
    assert memory.weights("sd15", "clip-l", "vae-sd") < memory.under_cap()["peak"] < memory.CAP


def test_the_article_s_networks_have_the_sizes_that_it_names():
    for row in errata.published()["tables"]["resolution"]["rows"]:
        config = claims.network(row["side"], row["parameters_millions"])
        with torch.device("meta"):
            size = cost.parameters(unet.UNet(config)) / 1e6
        assert size == pytest.approx(row["parameters_millions"], rel=0.25)
        assert row["side"] // config.multiple == 8 and row["pixels"] == 3 * row["side"] ** 2


def test_the_article_s_rows_say_what_was_counted(tmp_path, monkeypatch):
    counts = {"network": 90_000_000, "sampling_gb": 0.2, "training_gb": 1.6, "each_gb": 0.25}
    monkeypatch.setattr(claims, "needs", lambda config, side: counts | {"training_gb": 1.6 if side < 1024 else 200.0})
    rows = [{"side": side, "pixel_parameters": 7} for side in (64, 256, 512, 1024)]
    found = claims.resolution(Work(tmp_path, SCALES["cpu"]), rows)
    assert [r["side"] for r in found] == [side for side in (64, 256, 512, 1024) for _ in range(3)]
    assert found[0]["said"] == "12,288" and found[0]["here"].startswith("4,096") and found[0]["verdict"] == CONTRADICTED
    assert [r["verdict"] for r in found if r["what"] == "U-Net, parameters"] == [INCONCLUSIVE, *3 * [CONTRADICTED]]
    assert "1.6 to train on one, a batch of 10 in 4" in found[2]["here"] and found[2]["batch"] == 10
    assert found[-1]["verdict"] == SUPPORTED and "200.0 to train on one, more than 160" in found[-1]["here"]


@pytest.mark.parametrize("memory_gb, verdict, batch", [(1, CONTRADICTED, 0), (5, SUPPORTED, 0), (10, INCONCLUSIVE, 1),
                                                       (19, INCONCLUSIVE, 4)])
def test_the_rule_of_gigabytes(memory_gb, verdict, batch):
    said = {"pixels": 100, "parameters_millions": 400, "memory_gb": memory_gb}
    found = claims.judged(said, 100, same=7, first=7, need={"sampling_gb": 2, "training_gb": 10, "each_gb": 3})
    assert (found["memory_verdict"], found["batch"]) == (verdict, batch)
    assert found["pixels_verdict"] == SUPPORTED and found["parameters_verdict"] == CONTRADICTED
    grown = claims.judged(said | {"pixels": 300}, 100, same=8, first=7, need={"sampling_gb": 2, "training_gb": 10, "each_gb": 3})
    assert grown["pixels_verdict"] == CONTRADICTED and grown["parameters_verdict"] == SUPPORTED
