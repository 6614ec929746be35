"""The dataset manifest: one row per image, as Parquet; it exists only if the dataset passed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.artifacts.validation import ManifestFacts
from bigtransfer.data.decoding import useful_threads
from bigtransfer.data.fingerprint import THUMB_SIDE, Fingerprints
from bigtransfer.data.inspection import ImageFacts, Limits, inspect_image
from bigtransfer.data.sources.listing import ListedImage, Source
from bigtransfer.data.tables import CHUNK_ROWS, iter_rows, mapped_above
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
"""What `inspect_rows` yields: the manifest's columns, and why an image cannot be used."""
_SCHEMA_VERSION = b"2"
_INSPECTED_ROWS = 1024
"""That are Python objects at a time."""


def inspect_rows(
    source: Source, limits: Limits, settings: DecodeSettings, name: str, rows: range
) -> Iterator[pa.RecordBatch]:
    """Inspect listed images; yield a row each, in the listing's order, with a column `fault`.

    Args:
        source: Where they lie.
        limits: What an image may be.
        settings: How it becomes pixels.
        name: Of the dataset, for the progress.
        rows: Of the listing, one after the other.
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

    with ThreadPoolExecutor(useful_threads(inf)) as pool:

        def pairs() -> Iterator[tuple[ListedImage, ImageFacts]]:
            for start in range(rows.start, rows.stop, _INSPECTED_ROWS):
                images = source.images[start : min(start + _INSPECTED_ROWS, rows.stop)]
                yield from zip(images, _map_of(pool, source, images)(look, images), strict=True)

        found = tracked(pairs(), f"check {name}", len(rows), unit="image")
        while some := list(islice(found, _INSPECTED_ROWS)):
            yield pa.RecordBatch.from_pylist(
                [
                    {
                        "path": image.path,
                        "labels": list(image.labels),
                        "split": image.split,
                        "file": image.file,
                        "offset": image.offset,
                        "length": image.length,
                        **vars(facts),
                    }
                    for image, facts in some
                ],
                INSPECTED,
            )


def _map_of(pool: ThreadPoolExecutor, source: Source, images: Sequence[ListedImage]) -> Any:
    """Return what inspects: over a network threads wait for its answers, not for the lock."""
    size = inf if "://" in source.address else mean(image.bytes for image in images)
    return pool.map if useful_threads(size) > 1 else map


def faulty(table: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield path and fault of each image that cannot be used."""
    yield from ((path, fault) for path, fault in iter_rows(table, "path", "fault") if fault)


class _Thumbs:
    """Thumbnails read from a table where they are asked for."""

    def __init__(self, values: pa.ChunkedArray, rows: NDArray[np.int64] | None = None) -> None:
        self._values, self._rows = values, rows

    def __getitem__(self, rows: Any) -> Any:
        known = rows if self._rows is None else self._rows[rows]
        if isinstance(known, np.ndarray):
            return _Thumbs(self._values, known)
        return np.frombuffer(self._values[int(known)].as_py(), np.uint8)


def fingerprints(table: pa.Table) -> Fingerprints:
    """Return the perceptual columns of a table."""
    own, mirrored = (table[name].to_numpy() for name in ("phash", "phash_mirrored"))
    return Fingerprints(own, mirrored, _Thumbs(table["thumb"]))


def pixel_digests(table: pa.Table) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the digests of the pixels, uint8 (N, 32), and which images have one."""
    digests = np.zeros((len(table), 32), np.uint8)
    known = np.zeros(len(table), bool)
    for row, text in enumerate(iter_rows(table, "pixel_sha256")):
        if text:
            digests[row] = np.frombuffer(bytes.fromhex(text), np.uint8)
            known[row] = True
    return digests, known


def comparable(table: pa.Table, min_side: int) -> NDArray[np.bool_]:
    """Say which images show enough to be compared by looks: decoded, not blank, not tiny."""
    sides = np.minimum(table["height"].to_numpy(), table["width"].to_numpy())
    decoded = pc.not_equal(table["pixel_sha256"], "").to_numpy()
    mask: NDArray[np.bool_] = decoded & (sides >= min_side) & (table["contrast"].to_numpy() >= 4)
    return mask


def write_manifest(path: Path, table: pa.Table, facts: ManifestFacts) -> None:
    """Write the manifest of the usable images; the facts go into its schema, as JSON values."""
    said = facts.model_dump(mode="json")
    texts = {k.encode(): json.dumps(v, ensure_ascii=False).encode() for k, v in said.items()}
    schema = SCHEMA.with_metadata({b"schema": _SCHEMA_VERSION, **texts})
    if "fault" in table.schema.names and table["fault"].null_count < len(table):
        chunks = (table.slice(at, CHUNK_ROWS) for at in range(0, len(table), CHUNK_ROWS))
        table = mapped_above((found for chunk in chunks for found in _usable(chunk)), INSPECTED)
    with new_file(path) as partial:
        pq.write_table(table.select(SCHEMA.names).cast(schema), partial)


def _usable(chunk: pa.Table) -> list[pa.RecordBatch]:
    found: list[pa.RecordBatch] = (
        chunk.filter(chunk["fault"].is_null()).combine_chunks().cast(INSPECTED).to_batches()
    )
    return found


def read_manifest(
    path: Path, names: Sequence[str] = tuple(SCHEMA.names)
) -> tuple[pa.Table, ManifestFacts]:
    """Return the rows and the facts of a manifest.

    Args:
        path: Of its file.
        names: The columns that are wanted; all of them take more than a kilobyte an image.

    Raises:
        DatasetError: If the file is missing, no Parquet, or not a manifest of this version.
    """
    try:
        schema = pq.read_schema(path)
        whole = schema.names == SCHEMA.names
        table = pq.read_table(path, columns=[name for name in names if name in schema.names])
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"dataset manifest {str(path)!r} cannot be read: {error}") from error
    metadata = dict(schema.metadata or {})
    if metadata.pop(b"schema", None) != _SCHEMA_VERSION or not whole:
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
    for batch in table.select(list(names)).to_batches(CHUNK_ROWS):
        yield from batch.to_pylist()
