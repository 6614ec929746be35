"""Which image lies in which shard: a pure function of the manifest and a few settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bigtransfer.artifacts.shards import ShardsSummary
from bigtransfer.artifacts.validation import ManifestFacts
from bigtransfer.config import DatasetRules
from bigtransfer.data.manifest import read_manifest
from bigtransfer.data.parts import range_of
from bigtransfer.storage import sha256_file, sha256_json

LANES = 64
"""A large split has a multiple of so many shards, dealt evenly to as many lanes (`order`)."""
JPEG_QUALITY = 90
"""Of photos that are made smaller."""
_SPLITS = ("train", "val", "test")
_COLUMNS = (
    "path", "labels", "split", "height", "width", "bytes", "sha256", "format", "file", "offset",
    "length",
)  # fmt: skip
"""What packing needs of a manifest."""


@dataclass(frozen=True)
class Plan:
    """Which image lies in which shard."""

    table: pa.Table
    """Of the manifest, the columns that packing needs."""
    facts: ManifestFacts
    rows: NDArray[np.int64]
    """Manifest rows in the order they are packed in."""
    bounds: NDArray[np.int64]
    """Shard s holds `rows[bounds[s]:bounds[s + 1]]`."""
    digest: str
    """Over everything that decides the bytes."""
    short_side: int | None

    @property
    def num_shards(self) -> int:
        """Return the number of shards."""
        return len(self.bounds) - 1

    def part(self, number: int, parts: int) -> range:
        """Return the shards of a part, counted from 0."""
        return range_of(self.num_shards, number, parts)


@dataclass(frozen=True)
class Packing:
    """How images are packed."""

    shard_bytes: int
    """About one shard, before images are made smaller."""
    short_side: int | None
    """Larger images are made smaller to it, pixels; None: never."""
    seed: int
    """Of the order of the samples in the shards."""


def packing_of(rules: DatasetRules) -> Packing:
    """Return what a section of params.yaml asks, as this room's own values."""
    return Packing(rules.shard_bytes, rules.short_side_pixels, rules.seed)


def make_plan(manifest_path: Path, packing: Packing) -> Plan:
    """Decide which image lies in which shard.

    Each split has shards of its own, of equal numbers of images in a random order.

    Args:
        manifest_path: Written by `validate`.
        packing: How.

    Raises:
        DatasetError: If the manifest is unusable.
    """
    table, facts = read_manifest(manifest_path, _COLUMNS)
    sizes = table["bytes"].to_numpy()
    order: list[NDArray[np.int64]] = []
    bounds = [0]
    for number, split in enumerate(_SPLITS):
        rows = np.flatnonzero(pc.equal(table["split"], split).to_numpy())
        if not len(rows):
            continue
        generator = np.random.Generator(np.random.Philox(key=[packing.seed, number]))
        order.append(rows[generator.permutation(len(rows))])
        shards = min(len(rows), max(1, round(int(sizes[rows].sum()) / packing.shard_bytes)))
        if shards >= LANES and len(rows) >= 2 * LANES:
            shards = min(-(-shards // LANES), len(rows) // LANES) * LANES
        edges = np.arange(1, shards + 1) * len(rows) // shards
        bounds += (bounds[-1] + edges).tolist()
    digest = sha256_json(
        {
            "schema": ShardsSummary.SCHEMA,
            "manifest": sha256_file(manifest_path),
            "shard_bytes": packing.shard_bytes,
            "short_side": packing.short_side,
            "seed": packing.seed,
            "quality": JPEG_QUALITY,
        }
    )
    return Plan(table, facts, np.concatenate(order), np.array(bounds), digest, packing.short_side)
