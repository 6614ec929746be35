"""CIFAR-10 and CIFAR-100 as their authors distribute them, python or binary, packed or not.

The python version is a pickle. It is read by an unpickler that knows NumPy arrays and nothing else,
so a file that was tampered with is refused, not run. Pixels are stored raw; they are handed on as
PNG, which loses nothing.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigtransfer.data.sources.listing import ListedImage, Source
from bigtransfer.data.sources.names import in_order
from bigtransfer.errors import DatasetError
from bigtransfer.storage.tree import Contents, Tree

_PIXELS = 32 * 32 * 3
_PYTHON = {f"data_batch_{i}": "train" for i in range(1, 6)} | {
    "test_batch": "test",
    "train": "train",
    "test": "test",
}
_BINARY = {f"data_batch_{i}.bin": "train" for i in range(1, 6)} | {
    "test_batch.bin": "test",
    "train.bin": "train",
    "test.bin": "test",
}
_NAMES = ("batches.meta", "batches.meta.txt", "meta", "fine_label_names.txt")
CIFAR_FILES = {*_PYTHON, *_BINARY, *_NAMES}
"""Names of the files in the authors' archives."""
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


def is_cifar(names: set[str]) -> bool:
    """Say whether file names are those of a CIFAR archive or of what is in one."""
    return bool(
        {"data_batch_1", "data_batch_1.bin"} & names
        or {"train", "test", "meta"} <= names
        or {"train.bin", "test.bin"} <= names
    )


def list_cifar(tree: Tree, contents: Contents) -> Source:
    """List the images; labels are the authors' class names.

    Raises:
        DatasetError: If a file is damaged, or is no CIFAR file; names it.
    """
    files = _files(tree, contents)
    python = any(name in files for name in _PYTHON)
    splits = _PYTHON if python else _BINARY
    used = [name for name in splits if name in files]
    if not used:
        raise DatasetError(f"{tree.address!r} holds no CIFAR batches (data_batch_1, train, …)")
    classes = _class_names(files, tree.address)
    pixels: dict[str, NDArray[np.uint8]] = {}
    images: list[ListedImage] = []
    for name in used:
        where = f"{name!r} of {tree.address!r}"
        read = _python_batch if python else _binary_batch
        found, labels = read(files[name], len(classes), where)
        pixels[name] = found
        if labels.size and int(labels.max()) >= len(classes):
            raise DatasetError(
                f"{where} has label {int(labels.max())}, but there are {len(classes)} class names"
            )
        images += [
            ListedImage(f"{name}/{i:05d}.png", (classes[label],), splits[name], _PIXELS, name, i)
            for i, label in enumerate(labels)
        ]

    def read_image(file: str, offset: int, length: int) -> bytes:
        raw = pixels[file][offset].reshape(3, 32, 32).transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(raw)).save(buffer, "PNG")
        return buffer.getvalue()

    ordered = in_order(classes)  # as the authors' own are
    return Source(tree.address, "cifar", images, ordered, True, False, contents.ignored, read_image)


def _files(tree: Tree, contents: Contents) -> dict[str, bytes]:
    """Return name -> bytes of what lies in the folder, or in the one archive in it."""
    wanted = CIFAR_FILES
    found = {
        PurePosixPath(f.path).name: f.path
        for f in contents.files
        if PurePosixPath(f.path).name in wanted
    }
    if found:
        return {name: tree.read(path) for name, path in found.items()}
    files: dict[str, bytes] = {}
    for file in contents.files:
        if not file.path.endswith((".tar.gz", ".tgz", ".tar")):
            continue
        try:
            with tarfile.open(fileobj=io.BytesIO(tree.read(file.path)), mode="r:*") as tar:
                for member in tar:
                    name = PurePosixPath(member.name).name
                    opened = tar.extractfile(member) if member.isreg() and name in wanted else None
                    if opened is not None:
                        files[name] = opened.read()
                while tar.fileobj and tar.fileobj.read(1 << 20):
                    pass  # to its end, where the sum over all of it stands
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise DatasetError(
                f"archive {file.path!r} of {tree.address!r} is damaged ({error}); fetch it again"
            ) from error
    return files


def _class_names(files: dict[str, bytes], address: str) -> list[str]:
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if name in files:
            return [line.strip() for line in files[name].decode().splitlines() if line.strip()]
    for name, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if name in files:
            values = _unpickle(files[name], f"{name!r} of {address!r}")
            return [_text(v) for v in _get(values, key, f"{name!r} of {address!r}")]
    raise DatasetError(f"{address!r} lacks the class names (batches.meta, meta or their .txt)")


def _python_batch(
    data: bytes, classes: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    values = _unpickle(data, where)
    key = "fine_labels" if classes > 10 else "labels"
    pixels = np.asarray(_get(values, "data", where))
    labels = np.asarray(_get(values, key, where), np.int64)
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise DatasetError(f"{where} holds {pixels.dtype} {pixels.shape}, not rows of 3,072 bytes")
    if len(labels) != len(pixels):
        raise DatasetError(f"{where} has {len(pixels):,} images and {len(labels):,} labels")
    return pixels, labels


def _binary_batch(
    data: bytes, classes: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    label_bytes = 2 if classes > 10 else 1  # CIFAR-100: coarse, then fine
    record = label_bytes + _PIXELS
    if not data or len(data) % record:
        raise DatasetError(
            f"{where} has {len(data):,} bytes, which is no whole number of {record:,}-byte "
            "records; fetch it again"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)


class _NoCode(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]  # numpy hides it
        if module == "_codecs":
            return _encode
        return super().find_class(module, name)


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def _unpickle(data: bytes, where: str) -> Any:
    try:
        return _NoCode(io.BytesIO(data), encoding="bytes").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        IndexError,
        TypeError,
        KeyError,
        AttributeError,
        MemoryError,
    ) as error:
        raise DatasetError(
            f"{where} is damaged, or is no CIFAR file ({error}); fetch it again"
        ) from error


def _get(values: Any, key: str, where: str) -> Any:
    if isinstance(values, dict):
        for spelled in (key, key.encode()):
            if spelled in values:
                return values[spelled]
    raise DatasetError(f"{where} has no {key!r}; it is no CIFAR file")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
