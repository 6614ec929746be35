"""Inspect a dataset in parts, on as many machines as there are, and join what they found.

A part looks at its share of the listing and leaves its rows in a file; the join makes of all of
them what one process would have made. A part is written anew each time: a listing does not tell
whether a file of the same size was changed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bigtransfer.data.checking import Asked, without
from bigtransfer.data.manifest import INSPECTED, inspect_rows
from bigtransfer.data.parts import range_of
from bigtransfer.data.sources.listing import Listing, Source
from bigtransfer.errors import DatasetError
from bigtransfer.storage import as_json, explained, sha256_file, sha256_json
from bigtransfer.storage.places import Place, Target, target_at
from bigtransfer.version import __version__

_ROWS = 1024
_SHOWN = 8
_DIGITS = 16
_PART = re.compile(r"\binspected-\d+-of-\d+\.json$")
_DECODERS = ("pillow", "pi-heif", "simplejpeg")


def write_part(
    source: Source, name: str, asked: Asked, origin: str, place: Place, number: int, parts: int
) -> int:
    """Inspect a part of a source and leave what was found at a place.

    Args:
        source: All of it.
        name: Of the dataset, for the progress.
        asked: Of it.
        origin: What is known of which version of the data it is; empty: nothing.
        place: Folder or `s3://` prefix, the same for all parts: they lie below it under a digest of
            all that decides what is found.
        number: Of this part, from 0.
        parts: In all.

    Returns:
        How many images were looked at.

    Raises:
        DatasetError: If `exclude` names an image that is not there.
        StorageError: If the place cannot be written to.
        InfrastructureError: If a disk is full, or the storage does not answer.
    """
    source = without(source, asked.exclude)
    rows = range_of(len(source.images), number, parts)
    target = target_at(place / _digest(source, asked, origin))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "part")
        found = inspect_rows(source, asked.limits, asked.decode, name, rows)
        with explained(path):
            writer = pq.ParquetWriter(path, INSPECTED)
        for batch in found:  # that fails for reasons of its own
            with explained(path):
                writer.write_batch(batch)
        with explained(path):
            writer.close()
        seal = {"sha256": sha256_file(path)}
        target.put(_record(number, parts), path)
    target.put_bytes(_seal(number, parts), as_json(seal).encode())
    return len(rows)


def inspected(
    source: Source, asked: Asked, origin: str, place: Place, parts: int
) -> Iterator[pa.RecordBatch]:
    """Yield what was found in all parts, in the order of the listing.

    Args:
        source: Without what is excluded.
        asked: Of it.
        origin: As the parts had it.
        place: Where the parts were left.
        parts: In all.

    Raises:
        DatasetError: If parts are missing (of this listing and these rules), or one is damaged.
        StorageError: If the place cannot be read.
        InfrastructureError: If a disk is full, or the storage does not answer.
    """
    if isinstance(place, Path) and not place.is_dir():
        raise DatasetError(
            f"there are no parts in {str(place)!r}; write them (--part 1/{parts} to "
            f"{parts}/{parts}), or correct the path (--parts)"
        )
    own = _digest(source, asked, origin)
    target = target_at(place / own)
    there = set(target.names())
    if missing := [n for n in range(parts) if not {_record(n, parts), _seal(n, parts)} <= there]:
        raise DatasetError(
            f"{_named(missing)} of {parts} in {target.address!r} {_are(missing)} missing; write "
            f"{'it' if len(missing) == 1 else 'them'} (--part {missing[0] + 1}/{parts} …)"
            + _beside(place, own, parts)
        )
    seals = {number: _read_seal(target, number, parts) for number in range(parts)}
    with tempfile.TemporaryDirectory() as scratch:
        for number, sha256 in seals.items():
            path = target.as_file(_record(number, parts), Path(scratch))
            if path is None or sha256_file(path) != sha256:
                raise _damaged(target, number, parts)
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS):
                    yield pa.RecordBatch.from_arrays(batch.columns, schema=INSPECTED)
            if path.parent == Path(scratch):
                path.unlink()


def _digest(source: Source, asked: Asked, origin: str) -> str:
    """Return the folder of what is found: a digest of all that decides it, as far as it shows."""
    listing = source.images if isinstance(source.images, Listing) else Listing(source.images)
    return sha256_json(
        {
            "version": __version__,
            "decoders": {name: _version(name) for name in _DECODERS},
            "origin": origin,
            "listing": listing.sha256(),
            "limits": asdict(asked.limits),
            "decode": asked.decode.model_dump(mode="json"),
        }
    )[:_DIGITS]


def _beside(place: Place, own: str, parts: int) -> str:
    """Say what else lies there, for who wrote parts and is told that there are none."""
    wanted = {f"{own}/{_seal(number, parts)}" for number in range(parts)}
    if not any(_PART.search(name) for name in target_at(place).names() if name not in wanted):
        return ""
    return (
        "; parts beside are of another listing, of other rules or another number, or were decoded "
        "by other versions of bigtransfer or its decoders"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _record(number: int, parts: int) -> str:
    return f"inspected-{number:05d}-of-{parts:05d}.parquet"


def _seal(number: int, parts: int) -> str:
    return f"inspected-{number:05d}-of-{parts:05d}.json"


def _read_seal(target: Target, number: int, parts: int) -> str:
    try:
        return str(json.loads(target.get(_seal(number, parts)) or b"")["sha256"])
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(target, number, parts) from error


def _damaged(target: Target, number: int, parts: int) -> DatasetError:
    return DatasetError(
        f"part {number + 1} of {parts} in {target.address!r} is damaged; write it again "
        f"(--part {number + 1}/{parts})"
    )


def _named(numbers: list[int]) -> str:
    shown = ", ".join(str(number + 1) for number in numbers[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN:,} more" if len(numbers) > _SHOWN else ""
    return f"part {shown}" if len(numbers) == 1 else f"parts {shown}{more}"


def _are(numbers: list[int]) -> str:
    return "is" if len(numbers) == 1 else "are"
