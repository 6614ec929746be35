"""Which sample comes when: a pure function of (seed, step), for one machine and for thousands.

A small split is one lane: the concatenation of one permutation per epoch, so that a batch may span
two epochs (or several, where a few-shot set is smaller than a batch) and nothing is dropped.

A split of many shards has many lanes. Each epoch permutes the shards and deals them to the lanes;
a lane walks through its shards in windows of four, permuted within a window. A global batch takes
an equal slice of every lane. So a rank reads only the shards of its own lanes, each once per epoch,
and the global batches are the same for every number of ranks. A lane's tail beyond the shortest
possible lane is dropped: under one sample per shard, other ones each epoch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from math import gcd

import numpy as np
from numpy.typing import NDArray

from bigtransfer.data.shard_plan import LANES

WINDOW = 4
"""Shards whose samples are mixed at a time."""
_KEPT_WINDOWS = 3
_SHARDS, _SAMPLES = 1, 2


class Order:
    """The order in which training sees the samples of a split."""

    def __init__(
        self,
        shard_sizes: NDArray[np.int64],
        batch_size: int,
        seed: int,
        *,
        lanes: int | None = None,
    ) -> None:
        """Plan; nothing is permuted yet.

        Args:
            shard_sizes: Samples of the split in each of its shards, in the order of their rows. One
                number where the samples do not lie shard by shard.
            batch_size: Samples per optimiser step, all ranks together.
            seed: Of everything.
            lanes: None: as many as divide shards and batch, at most 64; one below 64 shards.
        """
        self.num_samples = int(shard_sizes.sum())
        self.batch_size = batch_size
        self._sizes = shard_sizes
        self._starts = np.concatenate([[0], np.cumsum(shard_sizes)[:-1]])
        self._seed = seed
        if lanes is None:
            many = len(shard_sizes) >= LANES
            lanes = gcd(gcd(len(shard_sizes), LANES), batch_size) if many else 1
        if len(shard_sizes) % lanes or batch_size % lanes:
            raise ValueError(f"{lanes} lanes divide neither shards nor batch")
        self.lanes = lanes
        per_lane = len(shard_sizes) // lanes
        self.samples_per_lane = (
            self.num_samples if lanes == 1 else per_lane * int(shard_sizes.min())
        )
        self._lock = threading.Lock()
        self._epochs: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], NDArray[np.int64]] = OrderedDict()

    def batch(
        self, step: int, rank: int = 0, world_size: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epochs and the samples of a step's batch, or of a rank's share of it.

        Args:
            step: Optimiser step, from 0.
            rank: Of this process.
            world_size: Processes, at most `batch_size`. Shares are equal, give or take one.

        Returns:
            Two arrays of the share's length: the epoch each sample is seen in, and its
            position in the split.

        Raises:
            ValueError: If there are more ranks than images in a batch.
        """
        start, stop = self._share(rank, world_size)
        each = self.batch_size // self.lanes
        places = np.arange(start, stop)
        lanes, offsets = places // each, step * each + places % each
        epochs, within = offsets // self.samples_per_lane, offsets % self.samples_per_lane
        samples = np.empty(len(places), np.int64)
        for lane in np.unique(lanes):
            for epoch in np.unique(epochs[lanes == lane]):
                mask = (lanes == lane) & (epochs == epoch)
                samples[mask] = self._lane(int(epoch), int(lane), within[mask])
        return epochs, samples

    def shards_of(self, epoch: int, lane: int) -> NDArray[np.int64]:
        """Return the shards that a lane walks through in an epoch, in order."""
        with self._lock:  # asked by the thread that makes batches and by the one that looks ahead
            dealt = self._epochs.get(epoch)
            if dealt is None:
                shuffled = self._generator(epoch, _SHARDS).permutation(len(self._sizes))
                dealt = self._epochs[epoch] = shuffled.reshape(self.lanes, -1)
                while len(self._epochs) > 2:
                    self._epochs.popitem(last=False)
        shards: NDArray[np.int64] = dealt[lane]
        return shards

    def soon(self, step: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """Return the shards that a rank reads in the window of a step, then those of the next."""
        if self.lanes == 1:
            return []
        each = self.batch_size // self.lanes
        start, stop = self._share(rank, world_size)
        epoch, within = divmod(step * each, self.samples_per_lane)
        now: list[int] = []
        then: list[int] = []
        for lane in range(start // each, -(-stop // each)):
            shards = self.shards_of(epoch, lane)
            ends = np.cumsum(self._sizes[shards])
            at = int(np.searchsorted(ends, within, side="right")) // WINDOW * WINDOW
            now += shards[at : at + WINDOW].tolist()
            following = shards[at + WINDOW : at + 2 * WINDOW]
            if not len(following):
                following = self.shards_of(epoch + 1, lane)[:WINDOW]
            then += following.tolist()
        return now + then

    def _share(self, rank: int, world_size: int) -> tuple[int, int]:
        """Return which places of a batch are a rank's."""
        if world_size > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} is too small for {world_size} ranks")
        return rank * self.batch_size // world_size, (rank + 1) * self.batch_size // world_size

    def _lane(self, epoch: int, lane: int, within: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at some places of a lane's epoch."""
        if self.lanes == 1:
            return self._window(epoch, 0, 0)[within]
        shards = self.shards_of(epoch, lane)
        ends = np.cumsum(self._sizes[shards])
        windows = np.searchsorted(ends, within, side="right") // WINDOW
        samples = np.empty(len(within), np.int64)
        for window in np.unique(windows):
            first = int(window) * WINDOW
            start = int(ends[first - 1]) if first else 0
            mask = windows == window
            samples[mask] = self._window(epoch, lane, int(window))[within[mask] - start]
        return samples

    def _window(self, epoch: int, lane: int, window: int) -> NDArray[np.int64]:
        key = (epoch, lane, window)
        found = self._windows.get(key)
        if found is None:
            found = self._windows[key] = self._permuted(epoch, lane, window)
            while len(self._windows) > _KEPT_WINDOWS * self.lanes:
                self._windows.popitem(last=False)
        return found

    def _permuted(self, epoch: int, lane: int, window: int) -> NDArray[np.int64]:
        if self.lanes == 1:
            generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            return generator.permutation(self.num_samples)
        shards = self.shards_of(epoch, lane)[window * WINDOW : (window + 1) * WINDOW]
        samples = np.concatenate(
            [np.arange(self._sizes[s], dtype=np.int64) + self._starts[s] for s in shards]
        )
        return self._generator(epoch, _SAMPLES, lane, window).permutation(samples)

    def _generator(
        self, epoch: int, purpose: int, lane: int = 0, window: int = 0
    ) -> np.random.Generator:
        counter = [0, lane, window, purpose]
        return np.random.Generator(np.random.Philox(key=[self._seed, epoch], counter=counter))


def sizes_by_shard(shards: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the samples in each shard, in order, or one number if they do not lie shard by shard.

    Args:
        shards: (N,) shard of each sample of a split.
    """
    if not len(shards) or (np.diff(shards) < 0).any():
        return np.array([len(shards)])
    return np.unique(shards, return_counts=True)[1].astype(np.int64)
