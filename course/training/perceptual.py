"""Which network says whether two pictures look alike, while an autoencoder is trained. It is never the one that evaluates.

"vgg", "alex" (LPIPS, Zhang et al. 2018; trunks trained on ImageNet, 528 and 233 MB), or "mini": the picture half of the small
CLIP that comes with the course and has learned to match Scenes with their captions.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from course import files, losses
from course.errors import CheckpointError, UsageError
from course.training import saved

MINI = Path(__file__).parent.parent / "weights" / "clip-cond"  # shipped: see `course.shipped`
FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}       # what torchvision calls them


class Features(nn.Module):
    """The four stages of a small CLIP's picture half: (B,3,H,W) in [-1,1] -> [(B,C_l,H_l,W_l), ...]."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.encoder.stages(x)


def load(net: str, trunk: str | Path | None = None) -> tuple[nn.Module, str]:
    """((x, y) -> (B,) or (B,1,1,1), what it is in words).

    Args:
        net: "auto" takes LPIPS with VGG where its trunk is at hand or can be downloaded, and "mini" otherwise.
        trunk: file with the weights of torchvision's VGG16 or AlexNet, so that nothing is downloaded.
    """
    if net not in ("auto", "mini", *FILES):
        raise UsageError(f"unknown perceptual net {net!r}, expected auto, {', '.join(FILES)} or mini")
    if net == "mini":
        return mini()
    kind = "vgg" if net == "auto" else net
    try:
        return lpips(kind, trunk)
    except (ImportError, OSError) as error:                    # a failed download is an OSError
        reason = f"{type(error).__name__}: {error}"
        if net != "auto" or trunk is not None:
            raise CheckpointError(f"LPIPS with {kind} cannot be had ({reason}); name its trunk's file, or take mini") from None
        model, words = mini()
        return model, f"{words}; LPIPS with {kind} cannot be had ({reason})"


def mini() -> tuple[nn.Module, str]:
    """perceptual-mini: the picture half of the course's own clip-cond.

    It has learned words for colours and grounds, none for sharpness, and judges so: of 16 Scenes, a change of brightness was
    further away than a blur of the same squared error in every one. LPIPS on a real trunk is meant to say the opposite.
    """
    judge, _ = saved.contrastive(MINI)
    return losses.Perceptual(Features(judge.image_encoder)), "perceptual-mini, the course's own"


def lpips(net: str, trunk: str | Path | None = None) -> tuple[nn.Module, str]:
    """The lpips package: its learned weights of each channel are in it, the trunk is torchvision's."""
    from lpips import LPIPS
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILES[net]
    source = Path(trunk) if trunk is not None else cached
    if trunk is not None and not source.is_file():
        raise CheckpointError(f"no such file: {source}; expected the weights of torchvision's {net}, {FILES[net]}")
    if source.is_file():
        model = LPIPS(net=net, pnet_rand=True, verbose=False)
        fill_trunk(model.net, torch.load(source, map_location="cpu", weights_only=True), str(source))
    else:
        model = LPIPS(net=net, verbose=False)                  # torchvision downloads
    return model.eval().requires_grad_(False), f"LPIPS, {net}, trunk from {source}"


def fill_trunk(trunk: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """torchvision numbers the layers through, `features.7.weight`; lpips cuts them in slices, `slice3.7.weight`."""
    renamed = {}
    for name in trunk.state_dict():
        theirs = f"features.{name.split('.', 1)[1]}"
        if theirs in tensors:
            renamed[name] = tensors[theirs]
    files.load_into(trunk, renamed, source)
