"""Real pictures with captions, whatever they lie in: torchvision's data sets, folders, archives, Parquet.

Every source is a generator of (name, picture, captions). `load` makes one square uint8 tensor of them and keeps it on the
disk, memory-mapped, so that a second start takes no time and a large set needs no memory.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from course import files
from course.data import emoji
from course.errors import CheckpointError, UsageError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
Sample = tuple[str, Callable[[], Image.Image], list[str]]      # the picture is opened late: it may turn out to be broken


@dataclass
class Pictures:
    """images (n,3,S,S) uint8, captions of each, and the names of those that could not be read."""

    name: str
    images: Tensor
    captions: list[list[str]]
    broken: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def report(self) -> str:
        said = f"{self.name}: {len(self)} pictures of {self.images.shape[-1]} x {self.images.shape[-1]}"
        if self.broken:
            shown = ", ".join(self.broken[:3]) + (" ..." if len(self.broken) > 3 else "")
            said += f"; {len(self.broken)} could not be read and were left out: {shown}"
        return said


def load(source: str, size: int, split: str = "train", root: str | Path = "datasets", limit: int | None = None,
         download: bool = False) -> Pictures:
    """All pictures of `source` at `size` x `size`: cut to the middle square, then scaled.

    Args:
        source: a name of TORCHVISION, a folder, a .tar or .parquet file, or `hf:owner/name` for a Parquet data set.
        root: where data sets lie, and where the cache is kept.   download: fetch what is missing, where torchvision can.

    Raises UsageError for an unknown source, CheckpointError where nothing in it can be read.
    """
    root = Path(root)
    key = hashlib.sha256(f"{source} {size} {split} {limit}".encode()).hexdigest()[:12]
    cache = root / "cache" / f"{Path(source).name or 'set'}-{size}-{key}.safetensors"
    stamp = _stamp(source)
    if cache.exists():
        try:
            tensors, said = files.load_tensors(cache)          # memory-mapped: nothing is read until it is asked for
            if said.get("stamp") == stamp:
                return Pictures(source, tensors["images"], said["captions"], said["broken"])
        except (CheckpointError, KeyError):
            pass                                               # a damaged cache is no loss: make it again
    found = collect(source, samples(source, split, root, download), size, limit)
    files.save_tensors(cache, {"images": found.images}, {"stamp": stamp, "captions": found.captions, "broken": found.broken})
    return found


def _stamp(source: str) -> str:
    """Changes when a folder or a file does."""
    path = Path(source)
    if not path.exists():
        return ""
    entries = sorted(path.rglob("*")) if path.is_dir() else [path]
    return hashlib.sha256("".join(f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in entries).encode()).hexdigest()


def collect(name: str, found: Iterable[Sample], size: int, limit: int | None = None) -> Pictures:
    """Read every sample that can be read. Raises CheckpointError where that is none."""
    images, captions, broken = [], [], []
    for what, opened, texts in found:
        if limit is not None and len(images) >= limit:
            break
        try:
            with opened() as image:
                images.append(square(image, size))
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"{what} ({str(error)[:80]})")
            continue
        captions.append(texts)
    if not images:
        raise CheckpointError(f"no picture could be read from {name}" + (f"; the first: {broken[0]}" if broken else ""))
    return Pictures(name, torch.stack(images), captions, broken)


def square(image: Image.Image, size: int) -> Tensor:
    """The middle square, scaled to (3,size,size) uint8; what is transparent becomes white."""
    image = ImageOps.fit(opaque(ImageOps.exif_transpose(image)), (size, size), Image.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def opaque(image: Image.Image) -> Image.Image:
    """RGB on white."""
    if image.mode in ("RGBA", "LA", "P", "PA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# ---- sources

def samples(source: str, split: str = "train", root: str | Path = "datasets", download: bool = False) -> Iterator[Sample]:
    """The generator that fits `source`."""
    path = Path(source)
    if source in TORCHVISION:
        return _torchvision(source, split, Path(root), download)
    if source.startswith("hf:") or path.suffix == ".parquet":
        return _parquet(source, split)
    if path.is_dir():
        return _folder(path)
    if path.is_file() and tarfile.is_tarfile(path):
        return _tar(path)
    raise UsageError(f"no data set {source!r}; expected scenes, {', '.join(TORCHVISION)}, a folder, a .tar or .parquet file, "
                     "or hf:owner/name")


def _folder(folder: Path) -> Iterator[Sample]:
    """Captions from metadata.jsonl, from a .txt beside the picture, from emoji file names, or from the folder's name."""
    said: dict[str, list[str]] = {}
    index = folder / "metadata.jsonl"
    if index.exists():
        for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                texts = entry.get("text", entry.get("caption"))
                said[entry["file_name"]] = [texts] if isinstance(texts, str) else list(texts)
            except (ValueError, KeyError, TypeError):
                raise CheckpointError(f"{index}, line {number}: expected {{\"file_name\": ..., \"text\": ...}}, got {line[:80]!r}"
                                      ) from None
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS):
        name, beside = path.relative_to(folder).as_posix(), path.with_suffix(".txt")
        if name in said:
            texts = said[name]
        elif beside.exists():
            texts = [line.strip() for line in beside.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif found := emoji.captions(path.name):
            texts = found
        elif path.parent != folder:
            texts = [f"a picture of a {path.parent.name.replace('_', ' ')}"]
        else:
            texts = [""]
        yield name, (lambda path=path: Image.open(path)), texts or [""]


def _tar(path: Path) -> Iterator[Sample]:
    """An archive of pictures; captions from emoji file names, or from .txt members of the same name."""
    with tarfile.open(path) as archive:
        members = {m.name: m for m in archive.getmembers() if m.isfile()}
        for name, member in sorted(members.items()):
            inside = Path(name)
            if inside.suffix.lower() not in ENDINGS:
                continue
            beside = members.get(inside.with_suffix(".txt").as_posix())
            if beside:
                texts = archive.extractfile(beside).read().decode("utf-8").strip().splitlines()
            else:
                texts = emoji.captions(inside.name)
            data = archive.extractfile(member).read()
            yield name, (lambda data=data: Image.open(io.BytesIO(data))), texts or [""]


def _parquet(source: str, split: str) -> Iterator[Sample]:
    """A column of pictures and one of texts, streamed by Hugging Face's `datasets`."""
    try:
        import datasets as hub
        stream = hub.load_dataset
    except (ImportError, AttributeError):                      # our own folder `datasets/` may be what was imported
        raise UsageError("Parquet needs Hugging Face's datasets: pip install -e '.[data]'") from None
    if source.startswith("hf:"):
        rows = stream(source.removeprefix("hf:"), split=split, streaming=True)
    else:
        rows = stream("parquet", data_files=source, split="train", streaming=True)
    columns = rows.features or {}
    picture = next((n for n, f in columns.items() if type(f).__name__ == "Image" or n in ("image", "jpg", "png")), None)
    text = next((n for n in ("text", "caption", "captions", "txt", "prompt") if n in columns), None)
    if picture is None:
        raise CheckpointError(f"{source} has the columns {', '.join(columns)}; none of them holds pictures")
    rows = rows.cast_column(picture, hub.Image(decode=False))
    for number, row in enumerate(rows):
        said = row[text] if text else ""
        yield f"row {number}", (lambda row=row: _opened(row[picture])), [said] if isinstance(said, str) else list(said)


def _opened(cell: dict) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"]) if cell.get("bytes") else cell["path"])


FASHION = ("t-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _labelled(names: tuple[str, ...], article: str = "a") -> Callable:
    def texts(label) -> list[str]:
        name = names[int(label)]
        return [f"a picture of {'an' if article and name[0] in 'aeiou' else article} {name}"]
    return texts


def celeba_caption(attributes: list[str]) -> list[str]:
    """The attributes that are present, as a sentence."""
    who = "man" if "Male" in attributes else "woman"
    age = "young " if "Young" in attributes else ""
    rest = [a.replace("_", " ").lower() for a in attributes if a not in ("Male", "Young")]
    return [f"a portrait of a {age}{who}" + (f" with {', '.join(rest)}" if rest else "")]


# name -> the class in torchvision.datasets
TORCHVISION = {"fashion-mnist": "FashionMNIST", "cifar-10": "CIFAR10", "flowers-102": "Flowers102", "celeba": "CelebA",
               "coco-captions": "CocoCaptions"}


def _torchvision(name: str, split: str, root: Path, download: bool) -> Iterator[Sample]:
    try:
        from torchvision import datasets as sets
    except ImportError:
        raise UsageError("these data sets need torchvision: pip install -e '.[data]'") from None
    if split not in ("train", "test"):
        raise UsageError(f"split must be train or test, got {split!r}")
    try:
        if name in ("fashion-mnist", "cifar-10"):
            found = getattr(sets, TORCHVISION[name])(root, train=split == "train", download=download)
            texts = _labelled(FASHION if name == "fashion-mnist" else CIFAR)
        elif name == "flowers-102":                            # its "test" split is the large one: train on all but "val"
            parts = ("train", "test") if split == "train" else ("val",)
            found = torch.utils.data.ConcatDataset([sets.Flowers102(root, part, download=download) for part in parts])
            names = tuple(getattr(sets.Flowers102, "classes", None) or [f"kind {i}" for i in range(102)])
            texts = _labelled(names)
        elif name == "celeba":
            found = sets.CelebA(root, split, target_type="attr", download=download)

            def texts(flags):
                return celeba_caption([a for a, on in zip(found.attr_names, flags.tolist(), strict=False) if on])
        else:
            folder = root / "coco" / f"{'train' if split == 'train' else 'val'}2017"
            found = sets.CocoCaptions(folder, root / "coco" / "annotations" / f"captions_{folder.name}.json")
            texts = list
    except ImportError as error:
        raise UsageError(f"{name} needs {error.name}: pip install -e '.[data]'") from None
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{name} is not in {root}: {str(error).splitlines()[0][:200]}; see datasets/{name}.md") from None
    for i in range(len(found)):
        opened = _Once(found, i)
        try:
            said = texts(opened.label())
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            said, opened.error = [""], error
        yield f"{name} {i}", opened, said


class _Once:
    """torchvision gives picture and label together: read once, hand both out; a broken picture fails where it is opened."""

    def __init__(self, found, index: int):
        self.found, self.index, self.error = found, index, None

    def label(self):
        self.image, label = self.found[self.index]
        return label

    def __call__(self) -> Image.Image:
        if self.error is not None:
            raise self.error
        return self.image
