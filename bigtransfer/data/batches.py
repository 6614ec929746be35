"""Batches of a split: what `order` says, decoded and augmented ahead of the device.

Batches are uint8; normalising is the device's work. Every draw is keyed by (seed, epoch, sample),
so a batch is a pure function of (seed, step): the same for any number of threads and ranks, and
after a resume. The whole state of a loader is the number of the step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bigtransfer.data.decoding import UndecodableError, decode_rgb, useful_threads
from bigtransfer.data.decoding_workers import Cut, DecodingWorkers
from bigtransfer.data.order import Order, sizes_by_shard
from bigtransfer.data.shards import Shards
from bigtransfer.data.transforms import cut_into, inception_boxes, mirrored, random_crop_flip
from bigtransfer.errors import DatasetError
from bigtransfer.progress import tracked

RAM_BYTES = 1 << 30
"""A split whose decoded squares fit into this much is decoded once and kept."""
AHEAD = 3
"""Batches that are made while the device works on one."""
_MAKERS = 2
"""Of them at once: while one's images are decoded, the other's crops are drawn."""
_AT_ONCE = 8
"""Images that a thread takes at a time: handing one over costs a twentieth of decoding it."""
Crop = Literal["square", "inception"]
Made = TypeVar("Made")


class Batch(NamedTuple):
    """Images uint8 (B, H, W, 3), labels int64 (B,) or (B, L) padded with -1, index rows (B,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]


def as_it_is(batch: Batch) -> Any:
    """Return the batch."""
    return batch


class Squares:
    """The images of some index rows as squares of one size, kept in memory where they fit."""

    def __init__(
        self,
        shards: Shards,
        rows: NDArray[np.int64],
        side: int,
        *,
        keep: bool = True,
        threads: int | None = None,
        workers: DecodingWorkers | None = None,
    ) -> None:
        """Open the rows of a split; decode them where they fit into memory.

        Args:
            shards: Opened.
            rows: Index rows.
            side: Of the squares, pixels.
            keep: Whether to decode all at once where they fit; not for inception crops.
            threads: That decode; None: as many as help. Never part of the result.
            workers: Processes that decode in the threads' place: as many images a second as a
                GPU asks for.
        """
        self.reader = shards.reader()
        self.decode = shards.summary.decode
        self.rows = rows
        self.labels = shards.targets(rows)
        self.side = side
        self._paths = shards.index["path"]
        self.heights = shards.index["height"].to_numpy()[rows].astype(np.int64)
        self.widths = shards.index["width"].to_numpy()[rows].astype(np.int64)
        self._workers = workers
        if workers is not None:
            threads = workers.count  # each waits for a process
        self.pool = ThreadPoolExecutor(threads or useful_threads(self.reader.mean_bytes(rows)))
        self.kept: NDArray[np.uint8] | None = None
        """All squares, (N, side, side, 3), where they fit into memory."""
        if keep and len(rows) * side * side * 3 <= RAM_BYTES:
            self.kept = self._decode(shards.summary.dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, position: int) -> NDArray[np.uint8]:
        """Decode one image as it was packed: RGB (H, W, 3).

        Raises:
            DatasetError: If it does not decode; names it.
        """
        row = int(self.rows[position])
        try:
            pixels = decode_rgb(self.reader.read(row), self.decode)
            if pixels.shape[:2] != (self.heights[position], self.widths[position]):
                raise UndecodableError("is not of the size that the index gives")
            return pixels
        except UndecodableError as error:
            raise DatasetError(
                f"sample {self.path_of(row)!r} {error}; run `validate` and `shard` again"
            ) from error

    def path_of(self, row: int) -> str:
        """Return the name of an index row's image, as the manifest spells it."""
        return str(self._paths[row].as_py())

    def get(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return (B, side, side, 3) for positions in `rows`."""
        if self.kept is not None:
            return self.kept[positions]  # a copy: who augments it in place leaves `kept` alone
        return self.cut(positions, self.side)

    def cut(
        self,
        positions: NDArray[np.int64],
        side: int,
        boxes: list[list[int]] | None = None,
        turned: list[bool] | None = None,
    ) -> NDArray[np.uint8]:
        """Decode images and bring a part of each to one size.

        Args:
            positions: (B,) in `rows`.
            side: Of what is returned, pixels.
            boxes: Top, left, height, width of each part; None: all of the image.
            turned: Which to mirror left-right; None: none.

        Returns:
            (B, side, side, 3).
        """
        if self._workers is None:
            result = np.empty((len(positions), side, side, 3), np.uint8)
        else:
            result = self._workers.empty(len(positions), side)
        for _ in self._filled(result, positions, boxes, turned):
            pass
        return result

    def _filled(
        self,
        result: NDArray[np.uint8],
        positions: NDArray[np.int64],
        boxes: list[list[int]] | None = None,
        turned: list[bool] | None = None,
    ) -> Iterator[int]:
        """Fill in what `cut` returns, by all threads, some at a time; yield how many are new."""

        def wanted(i: int) -> tuple[int, list[int] | None, bool]:
            box = None if boxes is None else boxes[i]
            return int(positions[i]), box, turned is not None and turned[i]

        def some(start: int) -> int:
            own = range(start, min(start + _AT_ONCE, len(result)))
            missing: Sequence[int] = own
            if self._workers is not None:
                cuts = [self._cut_of(*wanted(i)) for i in own]
                out = result[own.start : own.stop]
                missing = [own[n] for n in self._workers.fill(out, cuts, self.decode)]
            for i in missing:
                position, box, mirrors = wanted(i)
                cut_into(result[i], self.pixels(position), box, turned=mirrors)
            return len(own)

        yield from self.pool.map(some, range(0, len(result), _AT_ONCE))

    def _cut_of(self, position: int, box: list[int] | None, turned: bool) -> Cut:
        size = int(self.heights[position]), int(self.widths[position])
        return Cut(*self.reader.part_of(int(self.rows[position])), *size, box, turned)

    def _decode(self, name: str) -> NDArray[np.uint8]:
        result = np.empty((len(self), self.side, self.side, 3), np.uint8)
        done = (one for new in self._filled(result, np.arange(len(self))) for one in range(new))
        for _ in tracked(done, f"decode {name}", len(self), unit="image"):
            pass
        return result


class TrainBatches:
    """Shuffled, augmented batches; `batch(step)` is a pure function of its arguments."""

    def __init__(
        self,
        squares: Squares,
        *,
        batch_size: int,
        crop: int,
        flip: bool,
        seed: int,
        how: Crop = "square",
        rank: int = 0,
        world_size: int = 1,
        lanes: int | None = None,
    ) -> None:
        """Plan the batches of a rank.

        Args:
            squares: Of the split; their side is what images are resized to before a square crop.
            batch_size: Images per optimiser step, all ranks together.
            crop: Side of what comes out, pixels. Equal to the squares' side: no crop.
            flip: Whether to mirror at random.
            seed: Of order and augmentation.
            how: `square`: BiT's resize to a square, then a random crop; `inception`: a random
                rectangle, resized.
            rank: Of this process.
            world_size: Processes.
            lanes: Of the order; None: as the shards ask for.
        """
        self._squares = squares
        sizes = sizes_by_shard(squares.reader.shard_of(squares.rows))
        self.order = Order(sizes, batch_size, seed, lanes=lanes)
        self._crop, self._flip, self._seed, self._how = crop, flip, seed, how
        self._rank, self._world_size = rank, world_size
        self._numbers = np.unique(squares.reader.shard_of(squares.rows))
        self.waited_seconds = 0.0
        """Time that `ahead` has kept its caller waiting."""

    def batch(self, step: int) -> Batch:
        """Return this rank's share of the batch of an optimiser step, counted from 0."""
        # Nothing is remembered between two steps: a run that resumes at any of them, on any number
        # of processes, meets the same images in the same crops.
        epochs, samples = self.order.batch(step, self._rank, self._world_size)
        if self._how == "inception":
            images = self._inception(epochs, samples)
        else:
            kept = self._squares.kept
            images = random_crop_flip(
                self._squares.get(samples) if kept is None else kept,
                self._crop,
                flip=self._flip,
                seed=self._seed,
                epochs=epochs,
                samples=samples,
                rows=None if kept is None else samples,
            )
        return Batch(images, self._squares.labels[samples], self._squares.rows[samples])

    @property
    def batch_size(self) -> int:
        """Return the images per optimiser step, all ranks together."""
        return self.order.batch_size

    def rows_of(self, step: int) -> NDArray[np.int64]:
        """Return the index rows of a step's whole batch, of all ranks."""
        rows: NDArray[np.int64] = self._squares.rows[self.order.batch(step)[1]]
        return rows

    def path_of(self, row: int) -> str:
        """Return the name of an image, as the manifest spells it."""
        return self._squares.path_of(row)

    def ahead(
        self, start: int, stop: int, then: Callable[[Batch], Made] = as_it_is
    ) -> Iterator[Made]:
        """Yield the batches of steps `start` to `stop` - 1, made ahead by other threads.

        Args:
            start: First step.
            stop: Step after the last.
            then: What such a thread makes of each, e.g. a copy on its way to the device.
        """
        with ThreadPoolExecutor(_MAKERS) as maker:
            waiting: deque[Future[Made]] = deque()
            upcoming = iter(range(start, stop))
            try:
                for _ in range(AHEAD):
                    self._begin(maker, waiting, upcoming, then)
                while waiting:
                    began = time.monotonic()
                    made = waiting.popleft().result()
                    self.waited_seconds += time.monotonic() - began
                    self._begin(maker, waiting, upcoming, then)
                    yield made
            finally:
                for future in waiting:
                    future.cancel()

    def _begin(
        self,
        maker: ThreadPoolExecutor,
        waiting: deque[Future[Made]],
        steps: Iterator[int],
        then: Callable[[Batch], Made],
    ) -> None:
        for step in steps:
            soon = self.order.soon(step, self._rank, self._world_size)
            if soon:
                self._squares.reader.prefetch([int(self._numbers[s]) for s in soon])
            waiting.append(maker.submit(self._made, step, then))
            return

    def _made(self, step: int, then: Callable[[Batch], Made]) -> Made:
        return then(self.batch(step))

    def _inception(
        self, epochs: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        squares = self._squares
        boxes = inception_boxes(
            squares.heights[samples],
            squares.widths[samples],
            seed=self._seed,
            epochs=epochs,
            samples=samples,
        ).tolist()
        turned = mirrored(self._seed, epochs, samples).tolist() if self._flip else None
        return squares.cut(samples, self._crop, boxes, turned)


def evaluation_batches(squares: Squares, batch_size: int) -> Iterator[Batch]:
    """Yield every image exactly once, in order, the last partial batch too."""
    for start in range(0, len(squares), batch_size):
        positions = np.arange(start, min(start + batch_size, len(squares)))
        yield Batch(squares.get(positions), squares.labels[positions], squares.rows[positions])


def evaluation_images(squares: Squares, batch_size: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the same images (B, H, W, 3) without what is known of them."""
    return (batch.images for batch in evaluation_batches(squares, batch_size))


def balanced_positions(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return positions in which every class comes as often as the most common one.

    Each image of a class comes equally often, but for one more of some, drawn by the seed.

    Args:
        labels: (N,).
        seed: Of that draw.

    Returns:
        Positions in `labels`, class by class, int64.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    classes, counts = np.unique(labels, return_counts=True)
    chosen = []
    for label in classes:
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen.append(np.resize(members, counts.max()))
    return np.concatenate(chosen)


def bootstrap_positions(
    count: int, labels: NDArray[np.int64] | None, seed: int, *, balanced: bool
) -> NDArray[np.int64]:
    """Return a bootstrap: positions drawn with replacement, as many of each class as it has.

    Args:
        count: Images to draw from, N.
        labels: (N,); None: several labels each, so that they are drawn without regard to them.
        seed: Of the draw.
        balanced: Whether every class is drawn as often as the most common one.

    Returns:
        Positions, sorted, int64.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    if labels is None:
        return np.sort(generator.integers(count, size=count))
    classes, counts = np.unique(labels, return_counts=True)
    drawn = []
    for label, own in zip(classes, counts, strict=True):
        members = np.flatnonzero(labels == label)
        drawn.append(generator.choice(members, counts.max() if balanced else own))
    return np.sort(np.concatenate(drawn))


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
