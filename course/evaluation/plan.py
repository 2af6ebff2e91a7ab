"""What training at internet scale would cost: a model of four numbers, checked against runs that were published.

    hours = images x FLOPs an image / (share of the peak that is reached x peak x 3600)

A training step costs three times a forward pass of the U-Net; where pictures are encoded as they come, once the
autoencoder's encoder and the text encoder as well. `python -m course.evaluation.plan` prints the tables of docs/scaling.md.
"""

from dataclasses import dataclass
from functools import cache

import torch

from course import presets
from course.training import flops

A100, H100 = 312e12, 989e12                # dense bf16 FLOP/s, by the maker's data sheets
STEPS_OF_3_CHECKPOINTS = ((256, 237e3), (512, 194e3 + 515e3 + 195e3))                   # v1-1, v1-2, v1-3, one after the other


@dataclass(frozen=True)
class Run:
    """A published training: which networks, (side, pictures) of each stage, and the GPU hours that it took."""

    name: str
    unet: str
    text: str
    stages: tuple[tuple[int, float], ...]
    hours: float
    peak: float = A100
    encoding: bool = True                  # are autoencoder and text encoder computed as the pictures come?

    def flops(self) -> float:
        return sum(pictures * (training(self.unet, side) + self.encoding * encoding(self.text, side))
                   for side, pictures in self.stages)

    def share_of_peak(self) -> float:
        return self.flops() / (self.hours * 3600 * self.peak)


def at_rate(name: str, side: int, pictures: float, rate: float, **options) -> Run:
    """8 GPUs that trained Stable Diffusion 2 base on `rate` pictures a second."""
    return Run(name, "sd21", "openclip-h", ((side, pictures),), 8 * pictures / rate / 3600, **options)


PHASES = ((256, 550e3 * 2048), (512, 850e3 * 2048))            # of Stable Diffusion 2 base, and of MosaicML's
RUNS = (
    at_rate("MosaicML, SD 2 base, 256 x 256, 8 A100", *PHASES[0], rate=1100, encoding=False),
    at_rate("MosaicML, SD 2 base, 512 x 512, 8 A100", *PHASES[1], rate=290, encoding=False),
    Run("MosaicML, SD 2 base, both", "sd21", "openclip-h", PHASES, 8 * 81.33 * 24, encoding=False),
    at_rate("AWS, 512 x 512, 8 A100, encoded as they come", *PHASES[1], rate=204.22),
    at_rate("AWS, 512 x 512, 8 H100, encoded as they come", *PHASES[1], rate=385.31, peak=H100),
    Run("Stable Diffusion 2 base, by its model card", "sd21", "openclip-h", PHASES, 200e3),
    Run("Stable Diffusion v1-3, by its model card", "sd15", "clip-l",
        tuple((side, steps * 2048) for side, steps in STEPS_OF_3_CHECKPOINTS), 150e3),
)


@cache
def training(unet: str, side: int) -> float:
    """FLOPs of a training step for one picture of side x side."""
    with torch.device("meta"):
        net = presets.build(unet)
        c = net.config
        return flops.training(net, torch.empty(1, c.in_channels, side // 8, side // 8), 500.0, torch.empty(1, 77, c.context_dim))


@cache
def encoding(text: str, side: int) -> float:
    """FLOPs of the autoencoder's encoder and of the text encoder for one captioned picture."""
    with torch.device("meta"):
        vae, encoder = presets.build("vae-sd"), presets.build(text)
        return (flops.forward(lambda x: vae.encode(x).mean, torch.empty(1, 3, side, side))
                + flops.forward(encoder, torch.zeros(1, 77, dtype=torch.long)))


def hours(flops_in_all: float, share: float, peak: float = A100) -> float:
    return flops_in_all / (share * peak * 3600)


def main() -> None:
    print("| side | training step, TFLOP | encoding, TFLOP | online encoding costs |\n|---|---|---|---|")
    for side in (256, 512):
        step, code = training("sd21", side), encoding("openclip-h", side)
        print(f"| {side} | {step / 1e12:.2f} | {code / 1e12:.2f} | x {1 + code / step:.2f} |")
    print("\n| run | FLOPs | GPU hours, published | share of the peak | hours at 28 % |\n|---|---|---|---|---|")
    for run in RUNS:
        print(f"| {run.name} | {run.flops():.2e} | {run.hours:,.0f} | {100 * run.share_of_peak():.1f} % | "
              f"{hours(run.flops(), 0.28, run.peak):,.0f} |")


if __name__ == "__main__":
    main()
