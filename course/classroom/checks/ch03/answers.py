"""The course's own answers: the same sums as in `course.losses`, written without it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fine_share(x: Tensor, cutoff: float = 0.25) -> Tensor:
    height, width = x.shape[-2:]
    power = torch.fft.fft2(x - x.mean((-2, -1), keepdim=True)).abs().square()           # (B,C,H,W)
    down, across = torch.fft.fftfreq(height).to(x)[:, None], torch.fft.fftfreq(width).to(x)
    fine = (down.square() + across.square()).sqrt() > cutoff                            # (H,W)
    return (power * fine).sum((1, 2, 3)) / power.sum((1, 2, 3))


class Perceptual(nn.Module):
    def __init__(self, features: nn.Module):
        super().__init__()
        self.features = features.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = 0.0
        for a, b in zip(self.features(x), self.features(y), strict=True):
            a = a / (a.square().sum(1, keepdim=True) + 1e-10).sqrt()
            b = b / (b.square().sum(1, keepdim=True) + 1e-10).sqrt()
            total = total + (a - b).square().sum(1).mean((1, 2))
        return total


def reconstruction(x: Tensor, rebuilt: Tensor, perceptual, weight: float = 1.0) -> Tensor:
    difference = (rebuilt - x).flatten(1)                                               # (B,3HW)
    return difference.abs().sum(1) + weight * difference.shape[1] * perceptual(x, rebuilt).flatten()


def receptive_field(layers) -> tuple[int, int]:
    size, jump = 1, 1
    for kernel, stride in layers:
        size, jump = size + (kernel - 1) * jump, jump * stride
    return size, jump


class PatchDiscriminator(nn.Module):
    def __init__(self, in_channels: int = 3, channels: int = 64, num_layers: int = 3):
        super().__init__()
        layers, width = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)], channels
        for i in range(1, num_layers + 1):
            before, width = width, channels * min(2**i, 8)
            layers += [nn.Conv2d(before, width, 4, 2 if i < num_layers else 1, 1, bias=False), nn.BatchNorm2d(width),
                       nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def hinge(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()), -fake.mean()


def adaptive_weight(rec: Tensor, adversarial: Tensor, layer: nn.Module, most: float = 1e4) -> Tensor:
    of_rec, = torch.autograd.grad(rec, layer.weight, retain_graph=True)
    of_adversarial, = torch.autograd.grad(adversarial, layer.weight, retain_graph=True)
    return (of_rec.norm() / (of_adversarial.norm() + 1e-4)).clamp(0, most).detach()
