"""What is computed once and read ever after: rows of a tensor in files of a few thousand, mapped into memory.

A mapped file costs no memory until a row is touched, and then no more than that row: a cache may be larger than the machine.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from course import files
from course.errors import CheckpointError, ShapeError


class Rows:
    """(n,...) in pieces; `rows[indices]` is a tensor (len(indices),...) in memory, `rows.pieces` is what it is made of."""

    def __init__(self, pieces: list[Tensor]):
        if not pieces or any(p.shape[1:] != pieces[0].shape[1:] for p in pieces):
            raise ShapeError(f"pieces must be alike but for their length, got {[tuple(p.shape) for p in pieces]}")
        self.pieces = pieces
        self.ends = torch.tensor([len(p) for p in pieces]).cumsum(0)
        self.shape = (int(self.ends[-1]), *pieces[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Tensor) -> Tensor:
        flat = indices.reshape(-1)
        if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < len(self):
            raise IndexError(f"rows are numbered 0 ... {len(self) - 1}, got {int(flat.min())} ... {int(flat.max())}")
        piece = torch.bucketize(flat, self.ends, right=True)
        out = self.pieces[0].new_empty(len(flat), *self.shape[1:])
        for i in piece.unique().tolist():
            here = piece == i
            out[here] = self.pieces[i][flat[here] - (self.ends[i] - len(self.pieces[i]))]
        return out.view(*indices.shape, *self.shape[1:])


def cached(folder: str | Path, name: str, count: int, compute: Callable[[int, int], dict[str, Tensor]], key: str = "",
           size: int = 16_384) -> dict[str, Rows]:
    """`compute(start, stop)` for all of `count` rows, kept as `NAME-00000.safetensors` ... in `folder`.

    A run that is stopped goes on with the next file; a file that is missing or damaged, has another number of rows, or was
    made under another `key` (which says what the rows were computed from), is made anew.
    """
    kept: dict[str, list[Tensor]] = {}
    for number, start in enumerate(range(0, count, size)):
        stop, path = min(start + size, count), Path(folder) / f"{name}-{number:05d}.safetensors"
        try:
            tensors, metadata = files.load_tensors(path)
            good = metadata.get("key") == key and all(len(t) == stop - start for t in tensors.values())
        except CheckpointError:
            good = False
        if not good:
            files.save_tensors(path, compute(start, stop), {"key": key})
            tensors, _ = files.load_tensors(path)              # from the disk: the memory of the copy is free again
        for part, tensor in tensors.items():
            kept.setdefault(part, []).append(tensor)
    return {part: Rows(pieces) for part, pieces in kept.items()}
