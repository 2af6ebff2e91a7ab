"""What a model costs: parameters, milliseconds, megabytes. Two models are always timed in turns, in one process.

A machine's clock drifts by tens of per cent from minute to minute, so a single time means little. What can be trusted is
the ratio of two times taken alternately: A B A B ..., the median of each.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import torch

from course import presets
from course.errors import TrainingError
from course.training.diffusion import ConditionalDenoiser


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def denoiser(config: "presets.PipelineConfig", device: str = "cpu") -> ConditionalDenoiser:
    """A freshly initialised U-Net with its text encoder."""
    with torch.device(device):
        return ConditionalDenoiser(presets.unet.UNet(config.unet), presets.text.TextEncoder(config.text))


def inputs(config: "presets.PipelineConfig", batch: int, device: str = "cpu") -> tuple:
    """Random (x_t, t, token ids) of the shapes that `config` is trained on."""
    factor = config.vae.factor if config.vae else 1
    side = config.image_size // factor
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, config.unet.in_channels, side, side, generator=generator)
    t = torch.randint(config.schedule.num_steps, (batch,), generator=generator)
    ids = torch.randint(config.text.vocab_size, (batch, config.text.length), generator=generator)
    return x.to(device), t.to(device), ids.to(device)


def training_step(config: "presets.PipelineConfig", batch: int, device: str = "cpu"):
    """A function that takes one training step (forward, backward, AdamW) of `batch` pictures."""
    model, (x, t, ids) = denoiser(config, device), inputs(config, batch, device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        loss = (model(x, t, ids) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return step


def sampling_step(config: "presets.PipelineConfig", batch: int, device: str = "cpu"):
    """A function that denoises `batch` pictures by one guided step: two passes a picture."""
    model, (x, t, ids) = denoiser(config, device).eval(), inputs(config, 2 * batch, device)
    context = model.text_encoder(ids).detach()

    @torch.no_grad()
    def step():
        model.unet(x, t, context)
    return step


def decoding(config: "presets.PipelineConfig", batch: int, device: str = "cpu"):
    """A function that decodes `batch` latents; it does nothing for a pixel model."""
    if config.vae is None:
        return lambda: None
    with torch.device(device):
        autoencoder = presets.vae.AutoencoderKL(config.vae).eval()
    z = inputs(config, batch, device)[0]

    @torch.no_grad()
    def step():
        autoencoder.decode(z)
    return step


def interleaved(steps: dict, rounds: int = 7, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each function, called in turns after two rounds of warm-up."""
    times = {name: [] for name in steps}
    for i in range(rounds + 2):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if i >= 2:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(t) for name, t in times.items()}


def compare(configs: dict[str, "presets.PipelineConfig"], batch: int = 32, device: str = "cpu", rounds: int = 7) -> dict:
    """{name: {train_ms_per_image, sample_step_ms_per_image, decode_ms_per_image, peak_mb}} for each config."""
    train = interleaved({n: training_step(c, batch, device) for n, c in configs.items()}, rounds, device)
    sample = interleaved({n: sampling_step(c, batch, device) for n, c in configs.items()}, rounds, device)
    decode = interleaved({n: decoding(c, batch, device) for n, c in configs.items()}, rounds, device)
    return {name: {"train_ms_per_image": 1000 * train[name] / batch,
                   "sample_step_ms_per_image": 1000 * sample[name] / batch,
                   "decode_ms_per_image": 1000 * decode[name] / batch,
                   "peak_mb": peak_mb(name_of(config), batch, device)} for name, config in configs.items()}


def name_of(config: "presets.PipelineConfig") -> str:
    return next(name for name, known in presets.PIPELINES.items() if known == config)


def peak_mb(preset: str, batch: int, device: str = "cpu", side: int | None = None) -> float:
    """Peak memory of three training steps, above what the process holds before them, in a process of its own; MiB.

    On a CPU its resident set, on a GPU what the allocator gave out. side: of the pictures; None: the preset's.
    """
    command = [sys.executable, "-m", "course.evaluation.cost", preset, str(batch), device, *([str(side)] if side else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root()})
    if done.returncode:
        raise TrainingError(f"could not measure the memory of {preset}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)["peak_mb"]


def root() -> str:
    """A PYTHONPATH with which another process finds this very course."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))


def _measure_peak(preset: str, batch: int, device: str, side: int | None) -> float:
    import psutil
    config = presets.PIPELINES[preset]
    config = replace(config, image_size=side or config.image_size)
    if device.startswith("cuda"):
        step = training_step(config, batch, device)
        for _ in range(3):
            step()
        return torch.cuda.max_memory_allocated() / 2**20
    process = psutil.Process()
    small = presets.unet.UNetConfig(block_channels=(32, 32), layers_per_block=1, depth=(1, 0), heads=(1, 1))
    training_step(replace(presets.PIPELINES["demo-latent"], unet=replace(small, context_dim=128), image_size=32), 1)()
    before = process.memory_info().rss                         # libraries, which are loaded at their first use, not counted
    step, peak = training_step(config, batch, device), before

    from threading import Event, Thread
    stop = Event()

    def watch():                                               # a step has no hook for its highest moment: look often
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, process.memory_info().rss)
    watcher = Thread(target=watch)
    watcher.start()
    for _ in range(3):
        step()
    stop.set()
    watcher.join()
    return (peak - before) / 2**20


if __name__ == "__main__":
    pixels_a_side = int(sys.argv[4]) if len(sys.argv) > 4 else None
    print(json.dumps({"peak_mb": _measure_peak(sys.argv[1], int(sys.argv[2]), sys.argv[3], pixels_a_side)}))
