"""Open a shards folder, here or in a bucket, and read samples by their index row.

Layout: `shard-00000.tar …` (plain USTAR, any tar tool lists them), `index.parquet` (one row per
sample: where its bytes lie, its labels and split), `classes.json` (class names in label order),
`index.json` (counts, image size, what made it) and `MANIFEST.json` (SHA-256 of each). Labels live
in the index alone: relabelling rewrites no shard. Shards in a bucket are fetched whole, checked,
and kept in a bounded cache.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bigtransfer.artifacts.shards import ShardsSummary
from bigtransfer.data.packing import INDEX_SCHEMA, shard_name
from bigtransfer.data.shard_files import FetchedShardFiles, ShardFiles
from bigtransfer.errors import DatasetError
from bigtransfer.storage import (
    MANIFEST_NAME,
    FileFacts,
    as_json,
    new_folder,
    read_json,
    sha256_file,
    verify_folder,
)
from bigtransfer.storage.places import Place
from bigtransfer.storage.pointer import POINTER, pointed_to
from bigtransfer.storage.s3 import S3Path, client, download

_OURS = {"index.parquet", "classes.json", ShardsSummary.FILE, MANIFEST_NAME}


@dataclass(frozen=True)
class Shards:
    """Opened, verified shards."""

    place: Place
    digest: str
    """SHA-256 that stands for every byte."""
    classes: list[str]
    summary: ShardsSummary
    index: pa.Table
    files: dict[str, FileFacts]
    """Name -> bytes and sha256, as the manifest lists them."""

    @cached_property
    def content_digest(self) -> str:
        """Return the SHA-256 of what training reads, which `digest` is not: it has names in it.

        Sample bytes in their order and their shards, sizes, labels, splits, class names, and how
        files become pixels; no path, no address, no report. So a dataset whose folder was renamed
        is the same data.
        """
        digest = hashlib.sha256()
        summary = self.summary
        known = [self.classes, summary.multi_label, summary.decode.model_dump()]
        digest.update(as_json(known).encode())
        for name in ("shard", "height", "width"):
            digest.update(self.index[name].to_numpy().astype("<i8").tobytes())
        for name in ("sha256", "split"):
            digest.update("\n".join(self.index[name].to_pylist()).encode())
        labels = self.index["labels"].combine_chunks()
        digest.update(np.diff(labels.offsets.to_numpy()).astype("<i8").tobytes())
        digest.update(labels.flatten().to_numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the index rows of a split.

        Raises:
            DatasetError: If the split has no images.
        """
        mask = np.asarray(self.index["split"].to_numpy(zero_copy_only=False) == split)
        found = np.flatnonzero(mask)
        if not len(found):
            splits = ", ".join(self.summary.splits)
            raise DatasetError(
                f"dataset {self.summary.dataset!r} has no {split!r} images (it has: {splits}); "
                "give it that split, or a share of it under 'splits' in params.yaml"
            )
        return found

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels of index rows, int64 of the same shape.

        Raises:
            DatasetError: If the dataset is multi-label.
        """
        if self.summary.multi_label:
            raise DatasetError(
                f"dataset {self.summary.dataset!r} has several labels per image, where one "
                "each is needed; give a listing with one 'label' each"
            )
        labels: NDArray[np.int64] = self.index["label"].to_numpy()[rows].astype(np.int64)
        return labels

    def targets(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels of index rows: (N,), or (N, L) filled up with -1 if several each."""
        if not self.summary.multi_label:
            return self.labels(rows)
        taken = self.index["labels"].take(rows).combine_chunks()
        lengths = np.diff(taken.offsets.to_numpy())
        result = np.full((len(rows), int(lengths.max(initial=1))), -1, np.int64)
        result[np.arange(result.shape[1]) < lengths[:, None]] = taken.flatten().to_numpy()
        return result

    def origin_digests(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the first 64 bits of the SHA-256 of the files that samples were made of, (N,)."""
        texts = self.index["origin_sha256"].take(rows).to_pylist()
        return np.array([digest_bits(text) for text in texts], np.uint64)

    def reader(self) -> ShardReader:
        """Return a reader of the samples' bytes."""
        return ShardReader(self)


def digest_bits(hexadecimal: str) -> int:
    """Return the first 64 bits of a digest: enough to tell files apart."""
    return int(hexadecimal[:16], 16)


class ShardReader:
    """Reads encoded images by index row, from any thread."""

    def __init__(self, shards: Shards) -> None:
        self._shard = shards.index["shard"].to_numpy()
        self._offset = shards.index["offset"].to_numpy()
        self._length = shards.index["length"].to_numpy()
        self._opened: ShardFiles
        if isinstance(shards.place, S3Path):
            self._opened = FetchedShardFiles(shards.place, shards.files)
        else:
            self._opened = ShardFiles(shards.place)

    def read(self, row: int) -> bytes:
        """Return the encoded bytes of one sample."""
        offset, length = int(self._offset[row]), int(self._length[row])
        return self._opened.read(int(self._shard[row]), offset, length)

    def part_of(self, row: int) -> tuple[str, int, int]:
        """Return where the encoded bytes of a sample lie: file on this machine, offset, length."""
        path = self._opened.path(int(self._shard[row]))
        return str(path), int(self._offset[row]), int(self._length[row])

    def mean_bytes(self, rows: NDArray[np.int64]) -> float:
        """Return the mean encoded size of some samples, 0 of none."""
        return float(self._length[rows].mean()) if len(rows) else 0.0

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the shard of each row."""
        shards: NDArray[np.int64] = self._shard[rows].astype(np.int64)
        return shards

    def prefetch(self, shards: list[int]) -> None:
        """Begin to fetch shards that will be read soon; nothing where they are local."""
        self._opened.prefetch(shards)


def write_pointer(folder: Path, place: S3Path) -> None:
    """Write a folder that stands for shards in a bucket: their address and digest, no shard.

    Every reader takes it for the shards themselves, and refuses it once others lie there. So a
    task of a pipeline hands on some kilobytes, however large the dataset is.
    """
    opened = _open_bucket(place)
    facts = {"address": str(place), "digest": opened.digest}
    with new_folder(folder) as partial:
        (partial / POINTER).write_text(as_json(facts), "utf-8")
        opened.summary.write(partial)


def _pointed(folder: Path) -> Shards | None:
    """Open what a folder stands for; None if it is the shards themselves."""
    found = pointed_to(folder, DatasetError)
    if found is None:
        return None
    address, digest = found
    opened = _open_bucket(S3Path.parse(address))
    if opened.digest != digest:
        raise DatasetError(
            f"the shards at {address} are others than {str(folder)!r} points to; run `shard` again"
        )
    return opened


def describe_shards(place: Place) -> tuple[str, ShardsSummary]:
    """Return the digest of shards and what their `index.json` holds; no shard is read.

    Raises:
        DatasetError: If they are not complete.
    """
    opened = _open_bucket(place) if isinstance(place, S3Path) else _pointed(place)
    if opened is not None:
        return opened.digest, opened.summary
    assert isinstance(place, Path)
    if not (place / MANIFEST_NAME).is_file():
        raise DatasetError(f"{str(place)!r} has no {MANIFEST_NAME}, so it is not complete")
    return sha256_file(place / MANIFEST_NAME), ShardsSummary.read(place)


def open_shards(place: Place) -> Shards:
    """Verify shards against their MANIFEST.json and open them.

    A local folder is hashed whole; shards in a bucket are hashed as they are fetched.

    Raises:
        DatasetError: If a file is missing, damaged or does not belong; names it.
    """
    if isinstance(place, S3Path):
        return _open_bucket(place)
    if (opened := _pointed(place)) is not None:
        return opened
    digest = verify_folder(place, DatasetError)
    files = read_json(place / MANIFEST_NAME)["files"]
    present = {p.name for p in place.glob("*.tar")}
    if extra := sorted(present - files.keys()):
        raise DatasetError(
            f"{str(place / extra[0])!r} does not belong there: {MANIFEST_NAME} does not list it; "
            "remove it, or pack the dataset again"
        )
    texts = {name: (place / name).read_bytes() for name in _OURS - {MANIFEST_NAME}}
    return _opened(place, digest, files, texts)


def _open_bucket(place: S3Path) -> Shards:
    s3 = client()
    manifest = download(s3, place / MANIFEST_NAME)
    if manifest is None:
        raise DatasetError(
            f"{str(place)!r} has no {MANIFEST_NAME}, so it is not complete; write it, or join its "
            "parts"
        )
    files = json.loads(manifest)["files"]
    texts = {}
    for name in _OURS - {MANIFEST_NAME}:
        data = download(s3, place / name)
        if data is None or hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
            what = "is missing" if data is None else "is damaged"
            raise DatasetError(f"{str(place / name)!r} {what}; join its parts again")
        texts[name] = data
    return _opened(place, hashlib.sha256(manifest).hexdigest(), files, texts)


def _opened(
    place: Place, digest: str, files: dict[str, FileFacts], texts: dict[str, bytes]
) -> Shards:
    summary = ShardsSummary.parse(
        json.loads(texts[ShardsSummary.FILE]), str(place / ShardsSummary.FILE)
    )
    classes: list[str] = json.loads(texts["classes.json"])
    try:
        index = pq.read_table(io.BytesIO(texts["index.parquet"]))
    except pa.ArrowInvalid as error:
        raise DatasetError(f"index of {str(place)!r} cannot be read: {error}") from error
    if index.schema.names == INDEX_SCHEMA.names[:-1]:  # before 2026-11-26
        index = index.append_column(INDEX_SCHEMA[-1], index["sha256"])
    if index.schema.names != INDEX_SCHEMA.names:
        raise DatasetError(f"{str(place)!r} was packed by another version; pack it again")
    if len(index) != summary.examples or len(classes) != summary.classes:
        raise DatasetError(
            f"{str(place)!r} has {len(index):,} samples of {len(classes):,} classes, index.json "
            f"says {summary.examples:,} of {summary.classes:,}; pack it again"
        )
    ends = index["offset"].to_numpy() + index["length"].to_numpy()
    sizes = np.array([files[shard_name(n)]["bytes"] for n in range(summary.shards)])
    if (ends > sizes[index["shard"].to_numpy()]).any():
        raise DatasetError(
            f"the index of {str(place)!r} points behind the end of a shard; pack it again"
        )
    return Shards(place, digest, classes, summary, index, files)
