"""The dataset manifest: one row per image, as Parquet; it exists only if the dataset passed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigtransfer.data.folder import Listing
from bigtransfer.data.inspection import Limits, inspect_image
from bigtransfer.data.splits import make_splits
from bigtransfer.errors import DatasetError
from bigtransfer.progress import tracked
from bigtransfer.storage import new_file

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("pixel_sha256", pa.string()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("orientation", pa.int16()),
        ("flags", pa.list_(pa.string())),
    ]
)
_SCHEMA_VERSION = b"1"


def inspect_all(root: Path, listing: Listing, limits: Limits) -> list[dict[str, Any]]:
    """Inspect every listed file; one row each, in the listing's order, with a key `fault`."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        facts = pool.map(
            lambda image: inspect_image(root / image.path, limits), listing.images, chunksize=1
        )
        shown = tracked(facts, f"check {root.name}", len(listing.images), unit="image")
        return [
            {"path": image.path, "label": image.label, "split": image.split, **asdict(fact)}
            for image, fact in zip(listing.images, shown, strict=True)
        ]


def assign_splits(rows: list[dict[str, Any]], *, val: float, test: float, seed: int) -> None:
    """Fill in the column `split` of rows that have none."""
    splits = make_splits(
        [row["label"] for row in rows],
        [row["pixel_sha256"] or row["path"] for row in rows],
        val=val, test=test, seed=seed,
    )  # fmt: skip
    for row, split in zip(rows, splits, strict=True):
        row["split"] = split


def find_copies(rows: list[dict[str, Any]]) -> None:
    """Fill in `flags` and `leak` from images whose pixels are equal.

    Within a split the later copy is flagged (`duplicate`, or `duplicate_with_other_label`).
    Across splits the copy outside train gets `leak`, which names its twin.
    """
    first: dict[str, dict[str, Any]] = {}
    order = {"train": 0, "val": 1, "test": 2}
    for row in rows:
        row["flags"], row["leak"] = [], None
    for row in sorted(rows, key=lambda row: order[row["split"]]):
        if not row["pixel_sha256"]:
            continue
        twin = first.setdefault(row["pixel_sha256"], row)
        if twin is row:
            continue
        same = twin["label"] == row["label"]
        row["flags"].append("duplicate" if same else "duplicate_with_other_label")
        if twin["split"] != row["split"]:
            row["leak"] = f"same pixels as {twin['path']!r} in {twin['split']}"


def write_manifest(path: Path, rows: list[dict[str, Any]], metadata: dict[str, str]) -> None:
    """Write the manifest; the metadata go into the Parquet schema."""
    schema = SCHEMA.with_metadata(
        {b"schema": _SCHEMA_VERSION, **{k.encode(): v.encode() for k, v in metadata.items()}}
    )
    table = pa.Table.from_pylist([{key: row[key] for key in SCHEMA.names} for row in rows], schema)
    with new_file(path) as partial:
        pq.write_table(table, partial)


def read_manifest(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the rows and the metadata of a manifest.

    Raises:
        DatasetError: If the file is missing, no Parquet, or not a manifest of this version.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"dataset manifest {str(path)!r} cannot be read: {error}") from error
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if metadata.get("schema") != _SCHEMA_VERSION.decode() or table.schema.names != SCHEMA.names:
        raise DatasetError(
            f"{str(path)!r} is not a dataset manifest of this version; run `validate` again"
        )
    return table.to_pylist(), metadata
