"""The demo end to end, in seconds: what it writes, that it goes on where it was stopped, and that what it leaves opens."""

import json

import pytest
import torch

from course import demo, files
from course.data import latents, shards
from course.errors import UsageError
from course.pipeline import StableDiffusion
from course.training import loop

RECIPE = demo.Recipe(minutes=0.05, pictures=64, prompts=8, steps=2,
                     autoencoder=loop.LoopConfig(batch_size=2), latent=loop.LoopConfig(batch_size=4),
                     pixel=loop.LoopConfig(batch_size=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Stopped in the pixel arm by Ctrl-C, then the same command again."""
    out = tmp_path_factory.mktemp("demo")
    original = demo.Demo._pixel

    def stop(self, seconds):
        raise KeyboardInterrupt
    demo.Demo._pixel = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            demo.run(out, RECIPE, quiet=True)
    finally:
        demo.Demo._pixel = original
    after_stop = sorted(p.name for p in out.iterdir())
    half = StableDiffusion.load(out)                        # loadable although unfinished
    weights = torch.cat([p.flatten() for p in half.unet.parameters()])
    metrics = demo.run(out, RECIPE, quiet=True)
    return out, after_stop, weights, metrics


def test_stopped_run_left_pictures_and_went_on(run):
    out, after_stop, weights, _ = run
    assert {"model", "samples.png", "latent", "autoencoder"} <= set(after_stop)
    again = StableDiffusion.load(out)
    assert torch.equal(torch.cat([p.flatten() for p in again.unet.parameters()]), weights)   # not trained a second time


def test_metrics_have_the_agreed_keys(run):
    out, _, _, metrics = run
    assert json.loads((out / "metrics.json").read_text()) == metrics
    for arm in ("latent", "autoencoder", "pixel", "real"):
        assert {"shape", "color", "size", "position", "background", "all"} <= set(metrics[arm]["oracle"])
        assert all(0 <= v <= 1 for v in metrics[arm]["oracle"].values())
    for arm in ("latent", "pixel"):
        keys = {"params", "train_seconds", "images_seen", "train_ms_per_image", "sample_step_ms_per_image", "peak_mb"}
        assert keys <= set(metrics[arm]) and all(metrics[arm][k] > 0 for k in keys)
    assert set(metrics["ratio"]) == {"train_ms_per_image", "sample_step_ms_per_image"}
    for key, value in metrics["ratio"].items():
        assert value == pytest.approx(metrics["pixel"][key] / metrics["latent"][key])
    assert {"seed", "commit", "device", "torch"} <= set(metrics) and metrics["autoencoder"]["psnr"] > 0
    assert metrics["real"]["oracle"]["all"] == 1.0


def test_both_arms_had_the_same_seconds(run):
    """No fewer for the pixel arm, and at most the step over that a budget of time cannot avoid (long on a busy machine)."""
    metrics = run[3]
    over = metrics["pixel"]["train_seconds"] - metrics["latent"]["train_seconds"]
    assert -0.1 <= over < 15


def test_latents_are_at_unit_scale(run):
    out, _, _, metrics = run
    tensors, _ = files.load_tensors(out / "latent" / "latents-00000.safetensors")
    scale = latents.measured_scale(shards.Rows([tensors["mean"]]), shards.Rows([tensors["std"]]))
    assert metrics["autoencoder"]["scaling_factor"] == pytest.approx(scale)
    z = scale * (tensors["mean"] + tensors["std"] * torch.randn(tensors["mean"].shape))
    assert z.std().item() == pytest.approx(1.0, abs=0.05)


def test_report_is_self_contained(run):
    html = (run[0] / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3 and "http" not in html.replace("http-equiv", "")
    for name in ("samples.png", "progress.png", "curves.png"):
        assert (run[0] / name).stat().st_size > 5_000


def test_other_settings_do_not_mix_into_a_run(run):
    with pytest.raises(UsageError, match="other settings"):
        demo.run(run[0], demo.Recipe(minutes=0.06, pictures=64), quiet=True)
