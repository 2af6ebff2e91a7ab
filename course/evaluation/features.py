"""What a distance between pictures is measured in: features of a network, with its name and the hash of its weights.

    fd-mini            the course's: 64 numbers, from a classifier of what Scenes show: FD-course, KID-course
    --inception-weights PATH    Inception v3 as the FID has had it since 2017: FID, KID

Whoever changes the network changes the distance, so neither figure may stand in the other's column. The same of two pictures:

    psim               fd-mini's feature maps, each place's vector at length one: PSIM-course
    --lpips PATH       AlexNet's or VGG16's, with learned weights of each channel: LPIPS
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from course import files, losses, pixels
from course.errors import CheckpointError
from course.pipeline import SHIPPED
from course.published import weights
from course.training import attributes, perceptual


@dataclass(frozen=True)
class Extractor:
    """`features`: pictures (B,3,H,W) in [-1,1] -> (B,d);  `probabilities`: -> (B,K), for the inception score."""

    name: str                              # how a figure measured with it is called: FD-course, FID
    sha256: str
    features: Callable
    probabilities: Callable

    @torch.no_grad()
    def of(self, images: Tensor, batch: int = 128) -> Tensor:
        """(n,d) on the CPU."""
        return torch.cat([self.features(part).cpu() for part in images.split(batch)])

    @torch.no_grad()
    def classes(self, images: Tensor, batch: int = 128) -> Tensor:
        """(n,K) on the CPU."""
        return torch.cat([self.probabilities(part).cpu() for part in images.split(batch)])


def course(source: str | Path = "fd-mini", device: str = "cpu") -> Extractor:
    """The course's own: shipped, or of a run of `course train features`."""
    net, scale = network(source)
    net.to(device).eval()
    # KID's cubic kernel is made for features of size one: larger ones leave it to the few largest
    return Extractor("FD-course", digest(net), lambda x: net.features(x.to(device)) * scale,
                     lambda x: net(x.to(device))["pair"].softmax(-1))


def network(source: str | Path) -> "tuple[attributes.AttributeNet, float]":
    """(the classifier, what its features are multiplied by)."""
    folder = next((f for f in (Path(source) / "model", Path(source), SHIPPED / source) if (f / "features.json").is_file()), None)
    if folder is None:
        raise CheckpointError(f"no feature network in {source}: expected features.json; `course train features` makes one")
    config = json.loads((folder / "features.json").read_text("utf-8"))
    scale = config.pop("scale", 1.0)
    net = attributes.AttributeNet(**config)
    files.load_into(net, files.load_tensors(folder / "features.safetensors")[0], str(folder))
    return net.eval(), scale


def random(seed: int = 0, device: str = "cpu") -> Extractor:
    """The same network, untrained: a second opinion that has never seen anything (Naeem et al. 2020)."""
    net = untrained(seed).to(device)
    return Extractor("FD-random", digest(net), lambda x: net.features(x.to(device)),
                     lambda x: net(x.to(device))["pair"].softmax(-1))


def untrained(seed: int) -> "attributes.AttributeNet":
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return attributes.AttributeNet().eval()


def fid(path: str | Path, device: str = "cpu") -> Extractor:
    """Inception v3 with the FID's own weights, from torch-fidelity's release file; torchvision's network is another one.

    Resizing is that of the old TensorFlow, for the figures to be comparable with published ones.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    weights.read(Path(path))                                   # refuses a pickle with more than tensors, which theirs would run
    try:
        net = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path} has not the weights of the FID's Inception v3: {str(error)[:300]}") from None
    net.to(device)
    return Extractor("FID", digest(net), lambda x: net(pixels.to_bytes(x).to(device))[0],
                     lambda x: net(pixels.to_bytes(x).to(device))[1].softmax(-1))


@dataclass(frozen=True)
class Likeness:
    """A distance of two pictures: `of(x, y)`, both (n,3,H,W) in [-1,1] -> (n,) on the CPU; 0: alike."""

    name: str                              # PSIM-course, LPIPS
    sha256: str
    distance: Callable

    @torch.no_grad()
    def of(self, x: Tensor, y: Tensor, batch: int = 64) -> Tensor:
        pairs = zip(x.split(batch), y.split(batch), strict=True)
        return torch.cat([self.distance(a, b).flatten().cpu() for a, b in pairs])


def psim(source: str | Path = "fd-mini", device: str = "cpu") -> Likeness:
    """Of the network that FD-course is measured with, never of the one in an autoencoder's loss. "random": the untrained one."""
    net = network(source)[0] if source != "random" else untrained(0)
    judge = losses.Perceptual(perceptual.Features(net.encoder)).to(device)
    return Likeness("PSIM-course", digest(net), lambda x, y: judge(x.to(device), y.to(device)))


def lpips(trunk: str | Path, device: str = "cpu") -> Likeness:
    """LPIPS as published (Zhang et al. 2018); `trunk`: torchvision's file of AlexNet or VGG16, which it then is."""
    kinds = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
    first = weights.read(Path(trunk)).get("features.0.weight")
    if first is None or tuple(first.shape) not in kinds:
        raise CheckpointError(f"{trunk} has not the weights of torchvision's AlexNet or VGG16")
    judge = perceptual.lpips(kinds[tuple(first.shape)], trunk)[0].to(device)
    return Likeness("LPIPS", digest(judge), lambda x, y: judge(x.to(device), y.to(device)))


def digest(net: nn.Module) -> str:
    """sha256 of all weights, by name: two machines that print the same one have measured with the same network."""
    found = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()
