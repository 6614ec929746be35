"""Inspect a dataset in parts, on as many machines as there are, and join what they found.

A part looks at its share of the listing and leaves its rows in a file; the join makes of all of
them what one process would have made. A part is written anew each time: a listing does not tell
whether a file of the same size was changed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bigtransfer.data.checking import Asked, without
from bigtransfer.data.manifest import INSPECTED, inspect_rows
from bigtransfer.data.parts import range_of
from bigtransfer.data.sources.listing import Listing, Source
from bigtransfer.errors import DatasetError
from bigtransfer.storage import sha256_json
from bigtransfer.storage.places import Place, target_at
from bigtransfer.version import __version__

_DIGEST = b"inspection"
_ROWS = 1024


def write_part(
    source: Source, name: str, asked: Asked, place: Place, number: int, parts: int
) -> int:
    """Inspect a part of a source and leave what was found at a place.

    Args:
        source: All of it.
        name: Of the dataset, for the progress.
        asked: Of it.
        place: Folder or `s3://` prefix, the same for all parts.
        number: Of this part, from 0.
        parts: In all.

    Returns:
        How many images were looked at.

    Raises:
        DatasetError: If `exclude` names an image that is not there.
    """
    source = without(source, asked.exclude)
    rows = range_of(len(source.images), number, parts)
    target = target_at(place)
    schema = INSPECTED.with_metadata({_DIGEST: _digest(source, asked).encode()})
    with tempfile.TemporaryDirectory(dir=target.scratch) as scratch:
        path = Path(scratch, "part")
        with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
            for batch in inspect_rows(source, asked.limits, asked.decode, name, rows):
                writer.write_batch(batch)
        target.put(_record(number, parts), path)
    return len(rows)


def inspected(source: Source, asked: Asked, place: Place, parts: int) -> Iterator[pa.RecordBatch]:
    """Yield what was found in all parts, in the order of the listing.

    Args:
        source: Without what is excluded.
        asked: Of it.
        place: Where the parts were left.
        parts: In all.

    Raises:
        DatasetError: If a part is missing, damaged, or of another listing or other limits.
    """
    target, digest = target_at(place), _digest(source, asked).encode()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(parts):
            again = f"write it again (--part {number + 1}/{parts})"
            which = f"part {number + 1} of {parts} in {target.address!r}"
            path = target.as_file(_record(number, parts), Path(scratch))
            if path is None:
                raise DatasetError(f"{which} is missing; {again}")
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    if (file.schema_arrow.metadata or {}).get(_DIGEST) != digest:
                        raise DatasetError(
                            f"{which} is of another listing, of other rules or of another version "
                            f"of bigtransfer; {again}"
                        )
                    if file.metadata.num_rows != len(range_of(len(source.images), number, parts)):
                        raise DatasetError(f"{which} is incomplete; {again}")
                    for batch in file.iter_batches(_ROWS):
                        yield pa.RecordBatch.from_arrays(batch.columns, schema=INSPECTED)
            except (pa.ArrowInvalid, OSError) as error:
                raise DatasetError(f"{which} is damaged ({error}); {again}") from error
            finally:
                if path.parent == Path(scratch):
                    path.unlink()


def _digest(source: Source, asked: Asked) -> str:
    """Return a digest of all that decides what is found, but for the images themselves."""
    listing = source.images if isinstance(source.images, Listing) else Listing(source.images)
    return sha256_json(
        {
            "version": __version__,
            "listing": listing.sha256(),
            "limits": asdict(asked.limits),
            "decode": asked.decode.model_dump(mode="json"),
        }
    )


def _record(number: int, parts: int) -> str:
    return f"inspected-{number:05d}-of-{parts:05d}.parquet"
