"""The dataset manifest: one row per image, as Parquet; it exists only if the dataset passed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.artifacts.validation import ManifestFacts
from bigtransfer.data.decoding import useful_threads
from bigtransfer.data.fingerprint import THUMB_SIDE, Fingerprints
from bigtransfer.data.inspection import ImageFacts, Limits, inspect_image
from bigtransfer.data.sources.listing import ListedImage, Source
from bigtransfer.errors import DatasetError
from bigtransfer.progress import tracked
from bigtransfer.storage import new_file

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("pixel_sha256", pa.string()),
        ("phash", pa.int64()),
        ("phash_mirrored", pa.int64()),
        ("thumb", pa.binary(THUMB_SIDE * THUMB_SIDE)),
        ("brightness", pa.float32()),
        ("contrast", pa.float32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("orientation", pa.int16()),
        ("flags", pa.list_(pa.string())),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)
INSPECTED = pa.schema([*SCHEMA, ("fault", pa.string())])
"""What `inspect_all` returns: the manifest's columns, and why an image cannot be used."""
_SCHEMA_VERSION = b"2"
_CHUNK_ROWS = 8192


def inspect_all(source: Source, limits: Limits, settings: DecodeSettings, name: str) -> pa.Table:
    """Inspect every listed image; one row each, in the listing's order, with a column `fault`.

    Rows are gathered in Arrow, some 500 bytes an image, not as Python objects.
    """

    def look(image: ListedImage) -> ImageFacts:
        if image.fault:
            return ImageFacts(image.bytes, "", fault=image.fault)
        return inspect_image(
            image.path,
            image.bytes,
            lambda: source.read(image.file, image.offset, image.length),
            limits,
            settings,
        )

    found = tracked(
        _in_threads(look, source.images, _threads(source)),
        f"check {name}",
        len(source.images),
        unit="image",
    )
    batches = []
    for start in range(0, len(source.images), _CHUNK_ROWS):
        rows = [
            {
                "path": image.path,
                "labels": list(image.labels),
                "split": image.split,
                "file": image.file,
                "offset": image.offset,
                "length": image.length,
                **vars(facts),
            }
            for image, facts in zip(source.images[start : start + _CHUNK_ROWS], found, strict=False)
        ]
        batches.append(pa.RecordBatch.from_pylist(rows, INSPECTED))
    return pa.Table.from_batches(batches, INSPECTED)


def _threads(source: Source) -> int:
    """Return how many threads inspect: over a network they wait for its answers, not the lock."""
    remote = "://" in source.address
    return useful_threads(inf if remote else mean([image.bytes for image in source.images] or [0]))


def _in_threads(
    look: Callable[[ListedImage], ImageFacts], images: Sequence[ListedImage], threads: int
) -> Iterator[ImageFacts]:
    """Yield what is found in each image, in order."""
    if threads == 1:
        yield from map(look, images)
        return
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(images), _CHUNK_ROWS):
            yield from pool.map(look, images[start : start + _CHUNK_ROWS])


def column(table: pa.Table, name: str) -> list[Any]:
    """Return a column as Python values."""
    values: list[Any] = table[name].to_pylist()
    return values


def with_column(table: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    """Return the table with a column replaced."""
    kind = INSPECTED.field(name).type
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))


def fingerprints(table: pa.Table) -> Fingerprints:
    """Return the perceptual columns of a table."""
    side = THUMB_SIDE * THUMB_SIDE
    thumbs = table["thumb"].combine_chunks()
    if isinstance(thumbs, pa.ChunkedArray):  # an empty table has no chunk to combine
        thumbs = pa.array([], pa.binary(side))
    raw: NDArray[np.uint8] = np.frombuffer(thumbs.buffers()[1] or b"", np.uint8)
    start = thumbs.offset * side
    return Fingerprints(
        table["phash"].to_numpy(),
        table["phash_mirrored"].to_numpy(),
        raw[start : start + len(thumbs) * side].reshape(-1, side),
    )


def comparable(table: pa.Table, min_side: int) -> NDArray[np.bool_]:
    """Say which images show enough to be compared by looks: decoded, not blank, not tiny."""
    sides = np.minimum(table["height"].to_numpy(), table["width"].to_numpy())
    decoded = np.array([bool(text) for text in column(table, "pixel_sha256")], bool)
    mask: NDArray[np.bool_] = decoded & (sides >= min_side) & (table["contrast"].to_numpy() >= 4)
    return mask


def write_manifest(path: Path, table: pa.Table, facts: ManifestFacts) -> None:
    """Write the manifest; the facts go into the Parquet schema, as JSON values."""
    said = facts.model_dump(mode="json")
    texts = {k.encode(): json.dumps(v, ensure_ascii=False).encode() for k, v in said.items()}
    schema = SCHEMA.with_metadata({b"schema": _SCHEMA_VERSION, **texts})
    kept = table.select(SCHEMA.names).cast(schema)
    with new_file(path) as partial:
        pq.write_table(kept, partial)


def read_manifest(path: Path) -> tuple[pa.Table, ManifestFacts]:
    """Return the rows and the facts of a manifest.

    Raises:
        DatasetError: If the file is missing, no Parquet, or not a manifest of this version.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"dataset manifest {str(path)!r} cannot be read: {error}") from error
    metadata = dict(table.schema.metadata or {})
    if metadata.pop(b"schema", None) != _SCHEMA_VERSION or table.schema.names != SCHEMA.names:
        raise DatasetError(
            f"{str(path)!r} is not a dataset manifest of this version; run `validate` again"
        )
    try:
        said = {k.decode(): json.loads(v) for k, v in metadata.items()}
        return table, ManifestFacts.model_validate_json(json.dumps(said))
    except ValueError as error:  # pydantic's and json's own
        raise DatasetError(
            f"{str(path)!r} does not say what a dataset manifest says; run `validate` again"
        ) from error


def rows_of(table: pa.Table, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield rows of some columns without holding all of them as Python objects."""
    for batch in table.select(list(names)).to_batches(_CHUNK_ROWS):
        yield from batch.to_pylist()
