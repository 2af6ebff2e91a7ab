"""The random numbers of one training step, the same however its batch is split over processes and micro-batches.

What is one number a sample (which picture, which t, is the caption dropped) is drawn for the whole batch by everybody,
who then keeps the rows that are his. Noise would be too much to draw and throw away, so each sample has a generator of
its own. Either way nothing depends on who computes what.
"""

import torch
from torch import Tensor

from course import objectives


class Step:
    """Rows `rows` of the batch of step `number`; `used` is the share of the budget that is behind us, 0 ... 1."""

    def __init__(self, seed: int, number: int, batch_size: int, rows: range | None = None, used: float = 0.0):
        self.seed, self.number, self.batch_size, self.used = seed, number, batch_size, used
        self.rows = range(batch_size) if rows is None else rows
        self.whole = generator(seed, number)
        self.own: list[torch.Generator] | None = None
        self.figures: dict[str, float] = {}                    # what a loss wants written down beside it

    def __len__(self) -> int:
        return len(self.rows)

    def integers(self, high: int) -> Tensor:
        """(rows,) int64 in 0 ... high - 1."""
        return self._mine(torch.randint(high, (self.batch_size,), generator=self.whole))

    def uniform(self) -> Tensor:
        """(rows,) in [0, 1)."""
        return self._mine(torch.rand(self.batch_size, generator=self.whole))

    def stratified(self) -> Tensor:
        """(rows,) in [0, 1); the whole batch has one in each of its equal slices: see objectives.stratified."""
        return self._mine(objectives.stratified(self.batch_size, self.whole))

    def normal(self, *shape: int) -> Tensor:
        """(rows,*shape), standard normal."""
        if self.own is None:
            self.own = [generator(self.seed, self.number, row + 1) for row in self.rows]
        return torch.stack([torch.randn(shape, generator=own) for own in self.own])

    def split(self, micro_batch: int) -> list["Step"]:
        """The same rows in pieces of at most `micro_batch`."""
        pieces = [self.rows[i: i + micro_batch] for i in range(0, len(self.rows), micro_batch)]
        return [Step(self.seed, self.number, self.batch_size, piece, self.used) for piece in pieces]

    def _mine(self, values: Tensor) -> Tensor:
        return values[self.rows.start: self.rows.stop]


def generator(seed: int, step: int, sample: int = 0) -> torch.Generator:
    """A CPU generator whose neighbours have nothing in common with it: the three numbers mixed to 63 bits."""
    mixed = seed
    for number in (step, sample):
        mixed = (mixed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
        mixed = ((mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93) % 2**64
        mixed ^= mixed >> 32
    return torch.Generator().manual_seed(mixed % 2**63)
