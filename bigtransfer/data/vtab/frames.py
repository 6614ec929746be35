"""DMLab: frames in TFRecord files, read without TensorFlow.

A record is: length (8 bytes), its checksum (4), the message, its checksum (4). A message is a
`tf.train.Example`, a protocol buffer: map of a feature's name to a list of bytes or of integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bigtransfer.data.vtab.material import Entry, Material, Reading
from bigtransfer.data.vtab.opened import Opened, Part, Wanted
from bigtransfer.errors import DatasetError

_PARTS = ("train", "validation", "test")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Kinds of a field of a protocol buffer."""
Frame = tuple[str, str, bytes]


def open_dmlab(material: Material) -> Opened:
    """Open DMLab; labels are three distances, of objects that are good or bad for the agent."""
    files: dict[str, dict[str, Entry]] = {}
    parts = {}
    for part in _PARTS:
        found = material.find(rf"dmlab-{part}\.tfrecord[^/]*")
        if not found:
            raise material.lacks(f"dmlab-{part}.tfrecord (of dmlab.tar.gz)")
        files[part] = found
        frames = [(key, label) for key, label, _ in _frames(material, found)]
        parts[part] = Part([key for key, _ in frames], [label for _, label in frames])

    def write(wanted: Wanted) -> None:
        for part, keys in wanted.items():
            for key, _, image in _frames(material, files[part]):
                if key in keys:
                    keys[key].write_bytes(image)

    return Opened(parts, write, ".jpg")


def _frames(material: Material, entries: Mapping[str, Entry]) -> Iterator[Frame]:
    """Yield the key, the label and the JPEG of every record of some files."""
    for name, file in material.each(entries):
        where = f"{name!r} of --from {str(material.folder)!r}"
        for number, record in enumerate(_records(file, where)):
            try:
                frame = _frame(record)
            except (ValueError, IndexError, KeyError) as error:
                raise DatasetError(
                    f"{where}: record {number:,} is no frame of DMLab ({error}); fetch it again"
                ) from error
            yield frame


def _records(file: Reading, where: str) -> Iterator[bytes]:
    while head := file.read(12):
        length = int.from_bytes(head[:8], "little")
        data = file.read(length + 4) if len(head) == 12 and length < 1 << 30 else b""
        if len(data) != length + 4:
            raise DatasetError(f"{where} is cut short or damaged; fetch it again")
        yield data[:length]


def _frame(record: bytes) -> Frame:
    features = {}
    for field, value in _fields(record):
        for inner, feature in _fields(value) if field == 1 else ():
            if inner == 1:
                entry = dict(_fields(feature))
                features[entry[1].decode()] = entry[2]
    (image,), (name,) = (_values(features[key]) for key in ("image", "filename"))
    (label,) = _values(features["label"])
    return name.decode(), str(_varint(label, 0)[0]), image


def _values(feature: bytes) -> list[bytes]:
    """Return the members of a feature's list of bytes, or of integers as they are stored."""
    ((_, listed),) = _fields(feature)
    return [value for _, value in _fields(listed)]


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and value of the fields of a message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            _, end = _varint(message, at)
        elif kind == _BYTES:
            length, at = _varint(message, at)
            end = at + length
        elif kind in (_FIXED32, _FIXED64):
            end = at + (4 if kind == _FIXED32 else 8)
        else:
            raise ValueError(f"a field of kind {kind}")
        if end > len(message):
            raise ValueError("a field is longer than its message")
        yield key >> 3, message[at:end]
        at = end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits to a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
