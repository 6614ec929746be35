"""Batches of a split, in an order that is a pure function of (seed, step).

Training sees the concatenation of one permutation per epoch; step `t` takes positions
`t * batch_size …`. So a batch may span two epochs (or several, where a few-shot set is smaller than
a batch), nothing is dropped, and the whole loader state is the step number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigtransfer.data.shards import Shards
from bigtransfer.data.transforms import decode_square, random_crop_flip
from bigtransfer.progress import tracked

RAM_BYTES = 1 << 30
"""A split whose decoded squares fit into this much is decoded once and kept."""


class Batch(NamedTuple):
    """Images uint8 (B, H, W, 3), labels int64 (B,), index rows int64 (B,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]


class Squares:
    """The images of some index rows as squares of one size, kept in memory where they fit."""

    def __init__(self, shards: Shards, rows: NDArray[np.int64], side: int) -> None:
        self._reader = shards.reader()
        self.rows = rows
        self.labels = shards.labels(rows)
        self.side = side
        self._kept: NDArray[np.uint8] | None = None
        if len(rows) * side * side * 3 <= RAM_BYTES:
            with _pool() as pool:
                self._kept = self._decode(pool, shards.summary["dataset"])
        else:
            self._pool = _pool()

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return (B, side, side, 3) for positions in `rows`."""
        if self._kept is not None:
            return self._kept[positions]
        return np.stack(list(self._pool.map(self._square, self.rows[positions])))

    def _square(self, row: np.int64) -> NDArray[np.uint8]:
        return decode_square(self._reader.read(int(row)), self.side)

    def _decode(self, pool: ThreadPoolExecutor, name: str) -> NDArray[np.uint8]:
        result = np.empty((len(self), self.side, self.side, 3), np.uint8)
        squares = pool.map(self._square, self.rows)
        for i, square in enumerate(tracked(squares, f"decode {name}", len(self), unit="image")):
            result[i] = square
        return result


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))


class TrainBatches:
    """Shuffled, augmented batches; `batch(step)` is a pure function of its arguments."""

    def __init__(
        self, squares: Squares, *, batch_size: int, crop: int, flip: bool, seed: int
    ) -> None:
        self._squares = squares
        self._batch_size = batch_size
        self._crop = crop
        self._flip = flip
        self._seed = seed
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def batch(self, step: int) -> Batch:
        """Return the batch of an optimiser step, counted from 0."""
        n = len(self._squares)
        places = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, within = places // n, places % n
        self._keep_permutations(int(epochs[0]), int(epochs[-1]))
        samples = np.array(
            [self._permutations[int(e)][i] for e, i in zip(epochs, within, strict=True)]
        )
        images = random_crop_flip(
            self._squares.get(samples), self._crop, flip=self._flip, seed=self._seed,
            epochs=epochs, samples=samples,
        )  # fmt: skip
        return Batch(images, self._squares.labels[samples], self._squares.rows[samples])

    def _keep_permutations(self, first: int, last: int) -> None:
        kept = self._permutations
        self._permutations = {
            epoch: kept[epoch] if epoch in kept else self._permutation(epoch)
            for epoch in range(first, last + 1)
        }

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        return generator.permutation(len(self._squares))


def evaluation_batches(squares: Squares, batch_size: int) -> Iterator[Batch]:
    """Yield every image exactly once, in order, the last partial batch too."""
    for start in range(0, len(squares), batch_size):
        positions = np.arange(start, min(start + batch_size, len(squares)))
        yield Batch(squares.get(positions), squares.labels[positions], squares.rows[positions])


def few_shot_rows(
    labels: NDArray[np.int64], examples_per_class: int, seed: int
) -> NDArray[np.int64]:
    """Return positions of a balanced, seeded subset: `examples_per_class` of each class.

    The subset depends on the labels, the count and the seed alone; a larger count with the same
    seed contains the smaller one.

    Args:
        labels: (N,) labels of the train split.
        examples_per_class: Images of each class.
        seed: Of the subset.

    Returns:
        Positions in `labels`, class by class, int64 (classes * examples_per_class,).

    Raises:
        ValueError: If a class has fewer images; the caller names the class.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    shuffled = generator.permutation(len(labels))
    chosen = []
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        if len(members) < examples_per_class:
            raise ValueError(f"class {label} has {len(members)} images")
        chosen.append(members[:examples_per_class])
    return np.concatenate(chosen)
