"""Open one image under limits and say what it is, what is odd about it, or why it is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.data.decoding import (
    SUFFIXES,
    Header,
    UndecodableError,
    decode,
    read_header,
)
from bigtransfer.data.fingerprint import THUMB_SIDE, looks_of

_BLANK_CONTRAST = 1.5
"""Grey levels: below it a 32x32 thumbnail shows nothing."""
_EXTREME_ASPECT = 20
Thumb = bytes
_NO_THUMB: Thumb = bytes(THUMB_SIDE * THUMB_SIDE)


@dataclass(frozen=True)
class Limits:
    """What an image may be. Sides in pixels."""

    min_side: int
    max_side: int
    max_pixels: int
    max_bytes: int
    small_side: int
    """An image with a side below it is flagged, not refused."""


@dataclass(frozen=True)
class ImageFacts:
    """What one pass over a file found out. `fault` is None for a usable image."""

    bytes: int
    sha256: str
    pixel_sha256: str = ""
    """Of height, width and the RGB pixels: equal for copies that differ in metadata only."""
    height: int = 0
    width: int = 0
    mode: str = ""
    format: str = ""
    orientation: int = 1
    phash: int = 0
    phash_mirrored: int = 0
    thumb: Thumb = _NO_THUMB
    brightness: float = 0.0
    contrast: float = 0.0
    fault: str | None = None
    flags: list[str] = field(default_factory=list)
    """What is odd about it: `decode_warning: …`, `blank`, `small: …`, …"""


def inspect_image(
    name: str, size: int, read: Callable[[], bytes], limits: Limits, settings: DecodeSettings
) -> ImageFacts:
    """Read, hash and fully decode one file; never raises for a bad file.

    Size in bytes and the header's size in pixels are checked before anything is decoded, so that a
    small file which claims to be huge costs nothing.

    Args:
        name: Its path; only the suffix is looked at.
        size: Bytes, as listed; a larger file is not read.
        read: Returns the bytes; may raise OSError.
        limits: What it may be.
        settings: What is done about orientation and transparency.
    """
    if size > limits.max_bytes:
        return ImageFacts(size, "", fault=f"{size:,} bytes exceed max_file_bytes")
    try:
        data = read()
    except OSError as error:
        return ImageFacts(0, "", fault=f"cannot be read: {error.strerror or error}")
    sha256 = hashlib.sha256(data).hexdigest()
    if not data:
        return ImageFacts(0, sha256, fault="file is empty")
    try:
        header = read_header(data)
        if fault := _size_fault(header.height, header.width, limits):
            return ImageFacts(len(data), sha256, "", *_of(header, settings), fault=fault)
        decoded = decode(data, settings)
    except UndecodableError as error:
        return ImageFacts(len(data), sha256, fault=str(error))
    pixels = decoded.pixels
    looks = looks_of(pixels)
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    flags = [*decoded.flags, *_flags(name, header, looks.contrast, limits, settings)]
    return ImageFacts(
        len(data),
        sha256,
        digest.hexdigest(),
        *_of(header, settings),
        looks.phash,
        looks.phash_mirrored,
        looks.thumb,
        looks.brightness,
        looks.contrast,
        None,
        flags,
    )


def _of(header: Header, settings: DecodeSettings) -> tuple[int, int, str, str, int]:
    return *header.upright(settings), header.mode, header.format, header.orientation


def _size_fault(height: int, width: int, limits: Limits) -> str | None:
    if min(height, width) < limits.min_side:
        return f"{width}x{height} pixels: a side is below min_side_pixels {limits.min_side}"
    if max(height, width) > limits.max_side:
        return f"{width}x{height} pixels: a side is above max_side_pixels {limits.max_side:,}"
    if height * width > limits.max_pixels:
        return f"{width}x{height} pixels exceed max_image_pixels {limits.max_pixels:,}"
    return None


def _flags(
    name: str, header: Header, contrast: float, limits: Limits, settings: DecodeSettings
) -> list[str]:
    flags = []
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    if any(suffix in known for known in SUFFIXES.values()) and suffix not in SUFFIXES.get(
        header.format, ()
    ):
        flags.append(f"other_format: named .{suffix}, is {header.format}")
    if header.orientation != 1:
        how = "turned" if settings.orientation == "apply" else "left as stored"
        flags.append(f"orientation: {header.orientation}, {how}")
    if contrast < _BLANK_CONTRAST:
        flags.append("blank: nothing to see")
    short, long = sorted((header.height, header.width))
    if long > _EXTREME_ASPECT * short:
        flags.append(f"extreme_aspect: {header.width}x{header.height} pixels")
    if short < limits.small_side:
        flags.append(f"small: {header.width}x{header.height} pixels")
    return flags
