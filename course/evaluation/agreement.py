"""CLIP score: does a picture point the same way as its words? (Hessel et al. 2021, eq. 1, without their factor of 2.5)

    score = max(cos(u, v), 0)         u: direction of the picture, v: of the caption

    clip-score       the course's, trained apart from every generator: CLIP-course
    --clip PATH      a released CLIP, folder as transformers saves it: CLIP score

It depends on the network as much as an FID does (Stable Diffusion 1.4: .26 with ViT-L/14, .30 with ViT-g/14). And a generator
that reads its prompts through the text half of the network that scores it is graded by its own teacher: `judges` refuses that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from course import pixels, text, tokenizer
from course.errors import CheckpointError, UsageError
from course.evaluation.features import digest
from course.pipeline import SHIPPED
from course.training import clip, saved


@dataclass(frozen=True)
class Scorer:
    """`cosines`: pictures (B,3,H,W) in [-1,1] and B captions -> (B,)."""

    name: str                              # how a figure measured with it is called: CLIP-course, CLIP
    sha256: str
    cosines: Callable
    text_sha256: str                       # of the text half alone

    @torch.no_grad()
    def of(self, images: Tensor, captions: list[str], batch: int = 128) -> Tensor:
        """The score of each of n pictures with its own caption: (n,), 0 ... 1, on the CPU."""
        if len(images) != len(captions):
            raise UsageError(f"expected a caption for each of {len(images)} pictures, got {len(captions)}")
        return torch.cat([self.cosines(images[i: i + batch], captions[i: i + batch]).cpu().clamp(min=0)
                          for i in range(0, len(images), batch)])

    def judges(self, pipe) -> "Scorer":
        """Itself. Raises UsageError where `pipe` reads its prompts through this very text encoder."""
        if digest(pipe.text_encoder) == self.text_sha256:
            raise UsageError(f"{self.name} cannot judge {pipe.origin}: it reads prompts through the same text encoder")
        return self


def course(source: str | Path = "clip-score", device: str = "cpu") -> Scorer:
    """The course's own: shipped, or of a run of `course train clip`."""
    folder = SHIPPED / source if (SHIPPED / source / "clip.json").is_file() and not Path(source).exists() else Path(source)
    model, tokens = saved.contrastive(folder)
    return scorer(model, tokens, device)


def scorer(model, tokens, device: str = "cpu", name: str = "CLIP-course") -> Scorer:
    """Of a training.clip.CLIP and its tokenizer."""
    model.to(device).eval()

    def cosines(images: Tensor, captions: list[str]) -> Tensor:
        u, v = model.directions(images.to(device), tokens(list(captions)).to(device))
        return (u * v).sum(-1)
    return Scorer(name, digest(model), cosines, digest(model.text_encoder))


def untrained(seed: int = 0, device: str = "cpu") -> Scorer:
    """One that has never seen anything, for trying out what needs a scorer."""
    tokens = tokenizer.Tokenizer.train(["a small red circle left of a large blue square on a white background"], 20, length=32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = text.TextConfig(vocab_size=1024, length=32, width=32, layers=1, heads=2, projection=32, eos_id=tokens.end_id)
        model = clip.CLIP(clip.ImageEncoder(32, (32, 32, 32, 32)), text.TextEncoder(config))
    return scorer(model, tokens, device, "CLIP-random")


def released(path: str | Path, device: str = "cpu") -> Scorer:
    """A released CLIP with its own preprocessing: a folder with the weights, the tokenizer and preprocessor_config.json.

    Read by transformers: its picture half is a vision transformer, which is no part of this course.
    """
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError:
        raise UsageError("a released CLIP needs transformers: pip install -e '.[bench]'") from None
    if not Path(path).is_dir():
        raise CheckpointError(f"no CLIP in {path}: expected a folder with its weights, tokenizer and preprocessor_config.json")
    try:
        model = CLIPModel.from_pretrained(path, use_safetensors=True, local_files_only=True).to(device).eval()
        prepare = CLIPProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"no CLIP in {path}: {str(error).splitlines()[0]}") from None
    longest = model.config.text_config.max_position_embeddings

    def cosines(images: Tensor, captions: list[str]) -> Tensor:
        given = prepare(text=list(captions), images=list(pixels.to_bytes(images)), return_tensors="pt", padding=True,
                        truncation=True, max_length=longest).to(device)
        found = model(**given)
        return (F.normalize(found.image_embeds, dim=-1) * F.normalize(found.text_embeds, dim=-1)).sum(-1)
    return Scorer("CLIP", digest(model), cosines, digest(model.text_model))
