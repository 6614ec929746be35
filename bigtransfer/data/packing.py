"""Pack a validated dataset into tar shards, in one go or in parts on many machines.

Which image lies in which shard is a pure function of the manifest and a few settings, so any part
can be written by any process at any time: the bytes are the same for every number of parts. Shards
are written to their place at once (a folder, or `s3://…`); what makes them a dataset is the
`MANIFEST.json` that the joining step writes last.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median_low
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.artifacts.shards import ShardsSummary
from bigtransfer.data.decoding import SUFFIXES, decode_rgb
from bigtransfer.data.shard_plan import JPEG_QUALITY, Packing, Plan, make_plan
from bigtransfer.data.sources.listing import Read
from bigtransfer.data.sources.opening import open_source
from bigtransfer.errors import DatasetError
from bigtransfer.progress import tracked
from bigtransfer.storage import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    FileFacts,
    as_json,
    new_folder,
    sha256_file,
)
from bigtransfer.storage.places import Folder, Place, Target, target_at
from bigtransfer.storage.s3 import S3Path

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("label", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("split", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("sha256", pa.string()),
        ("path", pa.string()),
        ("origin_sha256", pa.string()),
    ]
)


class IndexRow(TypedDict):
    """One sample: a row of `index.parquet`."""

    key: str
    shard: int
    offset: int
    length: int
    label: int
    labels: list[int]
    split: str
    height: int
    width: int
    sha256: str
    path: str
    origin_sha256: str
    """Of the file as it was listed; another than `sha256` where it was encoded anew."""


_PARTS = "parts"
_NOT_IN_SHARDS = ("HEIF",)
"""Formats that tools for tar shards do not read, and slow to decode; packed as JPEG."""


def write_shards(root: Path, manifest_path: Path, place: Place, packing: Packing) -> ShardsSummary:
    """Pack the images of a manifest into shards.

    Args:
        root: The dataset that the manifest lists.
        manifest_path: Written by `validate`.
        place: Shards folder to write (beside and renamed), or `s3://` prefix.
        packing: How.

    Returns:
        What `index.json` holds.

    Raises:
        DatasetError: If the manifest is unusable or an image is no longer what it lists.
    """
    plan = make_plan(manifest_path, packing)
    if isinstance(place, S3Path):
        write_part(plan, root, place, 0, 1)
        return join_parts(plan, place, 1)
    with new_folder(place) as partial:
        rows, listed = _write(plan, root, Folder(partial), range(plan.num_shards))
        return _write_index(plan, Folder(partial), rows, listed, sealed=False)


def write_part(plan: Plan, root: Path, place: Place, number: int, parts: int) -> bool:
    """Write one part's shards to their place, and a record that they are there.

    Args:
        plan: The same for all parts.
        root: The dataset that the manifest lists.
        place: Folder or `s3://` prefix, the same for all parts.
        number: Of this part, from 0.
        parts: In all.

    Returns:
        Whether anything had to be done: a part that is there already is left as it is.

    Raises:
        DatasetError: If an image is no longer what the manifest lists.
    """
    target = target_at(place)
    record = _record_name(number, parts)
    known = target.get(record)
    if known is not None and _is_complete(known, plan, target):
        return False
    target.unseal()  # whoever reads now must not take old and new for one
    rows, listed = _write(plan, root, target, plan.part(number, parts))
    table = pa.Table.from_pylist(rows, INDEX_SCHEMA)
    metadata = {b"plan": plan.digest.encode(), b"files": as_json(listed).encode()}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    target.put_bytes(record, buffer.getvalue())
    return True


def join_parts(plan: Plan, place: Place, parts: int) -> ShardsSummary:
    """Join the records of all parts into the index, and write `MANIFEST.json` last.

    Returns:
        What `index.json` holds.

    Raises:
        DatasetError: If a part is missing or belongs to another plan; names it.
    """
    import json

    target = target_at(place)
    rows: list[IndexRow] = []
    listed: dict[str, FileFacts] = {}
    for number in range(parts):
        data = target.get(_record_name(number, parts))
        if data is None or not _is_complete(data, plan, target):
            why = "is missing" if data is None else "is incomplete, or was made of other data"
            raise DatasetError(
                f"part {number + 1} of {parts} of {str(place)!r} {why}; write it again "
                f"(--part {number + 1}/{parts})"
            )
        table = pq.read_table(io.BytesIO(data))
        rows += table.to_pylist()
        listed |= json.loads(table.schema.metadata[b"files"])
    return _write_index(plan, target, rows, listed, sealed=True)


def _is_complete(record: bytes, plan: Plan, target: Target) -> bool:
    import json

    try:
        metadata = pq.read_schema(io.BytesIO(record)).metadata or {}
    except pa.ArrowInvalid:
        return False
    if metadata.get(b"plan") != plan.digest.encode():
        return False
    files = json.loads(metadata[b"files"])
    return all(target.has(name, facts) for name, facts in files.items())


def _record_name(number: int, parts: int) -> str:
    return f"{_PARTS}/part-{number:05d}-of-{parts:05d}.parquet"


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.tar"


def _write(
    plan: Plan, root: Path, target: Target, shards: range
) -> tuple[list[IndexRow], dict[str, FileFacts]]:
    """Write some shards; return their index rows and what was written."""
    label_of = {name: i for i, name in enumerate(plan.facts.classes)}
    read = open_source(root, plan.facts.layout).read
    rows: list[IndexRow] = []
    listed: dict[str, FileFacts] = {}

    def one(number: int) -> tuple[list[IndexRow], str, FileFacts]:
        with tempfile.TemporaryDirectory(dir=target.scratch) as scratch:
            path = Path(scratch, shard_name(number))
            index = _write_tar(plan, read, label_of, path, number)
            facts = FileFacts(bytes=path.stat().st_size, sha256=sha256_file(path))
            target.put(path.name, path)
            return index, path.name, facts

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        done = tracked(
            pool.map(one, shards), f"pack {plan.facts.dataset}", len(shards), unit="shard"
        )
        for index, name, facts in done:
            rows += index
            listed[name] = facts
    return rows, listed


def _write_tar(
    plan: Plan, read: Read, label_of: dict[str, int], path: Path, number: int
) -> list[IndexRow]:
    start = int(plan.bounds[number])
    wanted = plan.rows[start : plan.bounds[number + 1]]
    index: list[IndexRow] = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for place, row in enumerate(plan.table.take(wanted).to_pylist(), start=start):
            data = _unchanged_bytes(read, row)
            kind, height, width = row["format"], row["height"], row["width"]
            too_large = plan.short_side and min(height, width) > plan.short_side
            if too_large or kind in _NOT_IN_SHARDS:
                side = min(plan.short_side or height, height, width)
                data, height, width = _as_jpeg(data, side, plan.facts.decode)
                kind = "JPEG"
            member = tarfile.TarInfo(f"{place:08d}.{SUFFIXES[kind][0]}")
            member.size, member.mode = len(data), 0o644
            offset = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(member, io.BytesIO(data))
            labels = [label_of[name] for name in row["labels"]]
            index.append(
                {
                    "key": member.name,
                    "shard": number,
                    "offset": offset,
                    "length": len(data),
                    "label": labels[0] if labels else -1,
                    "labels": labels,
                    "split": row["split"],
                    "height": height,
                    "width": width,
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "path": row["path"],
                    "origin_sha256": row["sha256"],
                }
            )
    return index


def _as_jpeg(data: bytes, short_side: int, settings: DecodeSettings) -> tuple[bytes, int, int]:
    """Return an image upright, on its background, with that short side, encoded anew."""
    pixels = decode_rgb(data, settings)
    height, width = pixels.shape[:2]
    factor = short_side / min(height, width)
    size = (round(width * factor), round(height * factor))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(small),
        quality=JPEG_QUALITY,
        colorspace="RGB",
        colorsubsampling="420",
    )
    return encoded, size[1], size[0]


def _unchanged_bytes(read: Read, row: Mapping[str, Any]) -> bytes:
    try:
        data = read(row["file"], row["offset"], row["length"])
    except OSError as error:
        raise DatasetError(
            f"image {row['path']!r} cannot be read any more ({error.strerror or error}); run "
            "`validate` again"
        ) from error
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise DatasetError(
            f"image {row['path']!r} changed since it was validated; run `validate` again"
        )
    return data


def _write_index(
    plan: Plan,
    target: Target,
    rows: Sequence[IndexRow],
    listed: Mapping[str, FileFacts],
    *,
    sealed: bool,
) -> ShardsSummary:
    splits = [row["split"] for row in rows]
    summary = ShardsSummary(
        dataset=plan.facts.dataset,
        examples=len(rows),
        splits={s: splits.count(s) for s in sorted(set(splits))},
        classes=len(plan.facts.classes),
        classes_sha256=plan.facts.classes_sha256,
        multi_label=plan.facts.multi_label,
        shards=plan.num_shards,
        short_side=plan.short_side,
        height=median_low(row["height"] for row in rows),
        width=median_low(row["width"] for row in rows),
        plan=plan.digest,
        decode=plan.facts.decode,
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), INDEX_SCHEMA), buffer)
    texts = {
        "index.parquet": buffer.getvalue(),
        "classes.json": as_json(plan.facts.classes).encode(),
        ShardsSummary.FILE: summary.text().encode(),
    }
    for name, data in texts.items():
        target.put_bytes(name, data)
    if sealed:
        files = dict(sorted([*listed.items(), *_facts(texts)]))
        target.put_bytes(
            MANIFEST_NAME, as_json({"schema": MANIFEST_SCHEMA, "files": files}).encode()
        )
    return summary


def _facts(texts: dict[str, bytes]) -> Iterator[tuple[str, FileFacts]]:
    for name, data in texts.items():
        yield name, FileFacts(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
