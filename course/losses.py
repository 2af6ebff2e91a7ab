"""What an autoencoder is trained on: reconstruct, look right to a network, and fool a critic (Esser et al. 2021, VQGAN).

    L = |x - x^| + w_p LPIPS(x, x^)  +  w_KL KL  +  lambda(L_rec, L_adv) w_adv L_adv

Squared error alone asks for the mean of all pictures that a latent might stand for, and a mean is a blur. A network's
features forgive a texture that is shifted a little; a critic that judges patches asks that there be one at all.

Every term is summed over a sample and averaged over the batch, as in the released code. There the perceptual distance,
one number a picture, is added to the error of *every value*, so it too counts 3HW times.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.errors import UsageError


def reconstruction(x: Tensor, rebuilt: Tensor, l1: float = 1.0, l2: float = 0.0, perceptual=None,
                   perceptual_weight: float = 1.0) -> Tensor:
    """Error of each sample, summed over its values; (B,3,H,W), (B,3,H,W) -> (B,).

    Args:
        perceptual: (x, rebuilt) -> (B,) or (B,1,1,1), both pictures in [-1, 1]; None: leave it out.
    """
    difference = (rebuilt.float() - x.float()).flatten(1)                               # (B,3HW)
    error = l1 * difference.abs().sum(1) + l2 * difference.square().sum(1)              # (B,)
    if perceptual is None or perceptual_weight == 0:
        return error
    return error + perceptual_weight * difference.shape[1] * perceptual(x, rebuilt).float().flatten()


class PatchDiscriminator(nn.Module):
    """The critic: (B,3,H,W) -> (B,1,h,w), one verdict for each of many overlapping patches (Isola et al. 2017, section 3.2.2).

    With three layers a verdict sees 70 x 70 pixels: a critic of texture, who leaves the composition to the other terms.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, num_layers: int = 3):
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(num_layers + 1)]               # 64 128 256 512
        layers = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, num_layers + 1):
            stride = 2 if i < num_layers else 1
            layers += [nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False), nn.BatchNorm2d(widths[i]),
                       nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():                          # the paper's start: normal with std 0.02
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's own loss: push what is real above 1 and what is not below -1, and then no further; a scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator(fake: Tensor) -> Tensor:
    """What the critic asks of the autoencoder; a scalar."""
    return -fake.mean()


def adaptive_weight(rec: Tensor, adversarial: Tensor, last_layer: Tensor, most: float = 1e4) -> Tensor:
    """How much the critic may say: its gradient at the decoder's last layer gets the length of the other terms'; a scalar.

    lambda = ||grad L_rec|| / (||grad L_adv|| + 1e-4), Esser et al. 2021, eq. 7. No gradient flows through lambda.
    """
    of_rec, = torch.autograd.grad(rec, last_layer, retain_graph=True)
    of_adversarial, = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (of_rec.norm() / (of_adversarial.norm() + 1e-4)).clamp(0, most).detach()


def delayed(weight: float, used: float, start: float) -> float:
    """The critic's weight: nothing until the share `start` of the budget is used, since next to a bad picture it has an
    easy life and teaches nothing."""
    if not 0 <= start <= 1:
        raise UsageError(f"start is a share of the budget, 0 ... 1, got {start}")
    return weight if used >= start else 0.0


class Perceptual(nn.Module):
    """Distance of two pictures in the features of a network (LPIPS without learned weights; Zhang et al. 2018, eq. 1).

    Args:
        features: (B,3,H,W) in [-1, 1] -> list of (B,C_l,H_l,W_l).

    Each position's feature vector is brought to length 1, so that no channel's scale counts: only what kind of thing the
    network sees there. forward(x, y) -> (B,).
    """

    def __init__(self, features: nn.Module):
        super().__init__()
        self.features = features.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros(len(x), device=x.device)
        for a, b in zip(self.features(x), self.features(y), strict=True):
            a, b = (f / (f.square().sum(1, keepdim=True) + 1e-10).sqrt() for f in (a, b))
            total = total + (a - b).square().sum(1).mean((1, 2))                        # (B,)
        return total
