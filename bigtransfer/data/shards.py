"""Pack a validated dataset into tar files with an index, and read samples by their index row.

Layout of a shards folder: `shard-00000.tar …` (plain USTAR, any tar tool lists them),
`index.parquet` (one row per sample: where its bytes lie, its label and split),
`classes.json` (class names in label order), `index.json` (counts, image size, what made it) and
`MANIFEST.json` (SHA-256 of each). The same manifest and seed give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bigtransfer.data.manifest import read_manifest
from bigtransfer.errors import DatasetError
from bigtransfer.progress import tracked
from bigtransfer.storage import as_json, new_folder, read_json, sha256_file, verify_folder

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("sha256", pa.string()),
        ("path", pa.string()),
    ]
)
_SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif",
           "PPM": "ppm"}  # fmt: skip


def write_shards(
    root: Path, manifest_path: Path, folder: Path, *, shard_bytes: int, seed: int
) -> dict[str, Any]:
    """Pack the images of a manifest into shards.

    Args:
        root: The dataset folder that the manifest's paths are relative to.
        manifest_path: Written by `validate`.
        folder: Shards folder to write.
        shard_bytes: A shard is closed when it holds this much.
        seed: Of the order of the samples in the shards.

    Returns:
        What `index.json` holds.

    Raises:
        DatasetError: If the manifest is unusable or an image is no longer what it lists.
    """
    rows, metadata = read_manifest(manifest_path)
    classes = sorted({row["label"] for row in rows})
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(rows))
    shuffled = [rows[i] for i in order]
    with new_folder(folder) as partial:
        index = _write_tars(root, partial, shuffled, classes, shard_bytes)
        pq.write_table(pa.Table.from_pylist(index, INDEX_SCHEMA), partial / "index.parquet")
        (partial / "classes.json").write_text(as_json(classes), "utf-8")
        splits = {row["split"] for row in index}
        summary = {
            "schema": 1,
            "dataset": metadata["dataset"],
            "examples": len(index),
            "splits": {s: sum(row["split"] == s for row in index) for s in sorted(splits)},
            "classes": len(classes),
            "height": median_low(row["height"] for row in index),
            "width": median_low(row["width"] for row in index),
            "manifest_sha256": sha256_file(manifest_path),
        }
        (partial / "index.json").write_text(as_json(summary), "utf-8")
    return summary


def _write_tars(
    root: Path, folder: Path, rows: list[dict[str, Any]], classes: list[str], shard_bytes: int
) -> list[dict[str, Any]]:
    label_of = {name: i for i, name in enumerate(classes)}
    index: list[dict[str, Any]] = []
    shards = 0
    tar = _new_tar(folder, shards)
    for i, row in enumerate(tracked(rows, f"pack {root.name}", len(rows), unit="image")):
        if tar.offset >= shard_bytes:
            tar.close()
            shards += 1
            tar = _new_tar(folder, shards)
        try:
            data = _unchanged_bytes(root, row)
        except DatasetError:
            tar.close()
            raise
        member = tarfile.TarInfo(f"{i:08d}.{_SUFFIX[row['format']]}")
        member.size, member.mode = len(data), 0o644
        offset = tar.offset + tarfile.BLOCKSIZE
        tar.addfile(member, io.BytesIO(data))
        index.append(
            {
                **{key: row[key] for key in ("split", "height", "width", "sha256", "path")},
                "key": member.name,
                "shard": shards,
                "offset": offset,
                "length": len(data),
                "label": label_of[row["label"]],
            }
        )
    tar.close()
    return index


def _new_tar(folder: Path, number: int) -> tarfile.TarFile:
    return tarfile.open(folder / f"shard-{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT)


def _unchanged_bytes(root: Path, row: dict[str, Any]) -> bytes:
    path = root / str(row["path"])
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"image {str(path)!r} cannot be read any more ({error.strerror}); run `validate` again"
        ) from error
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise DatasetError(
            f"image {str(path)!r} changed since it was validated; run `validate` again"
        )
    return data


@dataclass(frozen=True)
class Shards:
    """An opened, verified shards folder."""

    folder: Path
    digest: str
    """SHA-256 that stands for every byte of the folder."""
    classes: list[str]
    summary: dict[str, Any]
    index: pa.Table

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the index rows of a split.

        Raises:
            DatasetError: If the split has no images.
        """
        mask = np.asarray(self.index["split"].to_numpy(zero_copy_only=False) == split)
        found = np.flatnonzero(mask)
        if not len(found):
            splits = ", ".join(self.summary["splits"])
            raise DatasetError(
                f"dataset {self.summary['dataset']!r} has no {split!r} images (it has: {splits}); "
                "give it that split, or a share of it under 'splits' in params.yaml"
            )
        return found

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels of index rows, int64 of the same shape."""
        labels: NDArray[np.int64] = self.index["label"].to_numpy()[rows].astype(np.int64)
        return labels

    def reader(self) -> ShardReader:
        """Return a reader of the samples' bytes."""
        return ShardReader(self)


class ShardReader:
    """Reads encoded images by index row, from any thread; files stay open as long as it lives."""

    def __init__(self, shards: Shards) -> None:
        self._shard = shards.index["shard"].to_numpy()
        self._offset = shards.index["offset"].to_numpy()
        self._length = shards.index["length"].to_numpy()
        names = [f"shard-{i:05d}.tar" for i in range(int(self._shard.max()) + 1)]
        self._handles = [os.open(shards.folder / name, os.O_RDONLY) for name in names]
        self._closer = weakref.finalize(self, _close, self._handles)

    def read(self, row: int) -> bytes:
        """Return the encoded bytes of one sample."""
        handle = self._handles[int(self._shard[row])]
        data: bytes = os.pread(handle, int(self._length[row]), int(self._offset[row]))
        return data


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)


def open_shards(folder: Path) -> Shards:
    """Verify a shards folder against its MANIFEST.json and open it.

    Raises:
        DatasetError: If a file is missing, damaged or does not belong; names it.
    """
    digest = verify_folder(folder, DatasetError)
    summary = read_json(folder / "index.json")
    classes = read_json(folder / "classes.json")
    return Shards(folder, digest, classes, summary, pq.read_table(folder / "index.parquet"))
