"""From encoded bytes to RGB pixels: the strict fast decoder first, Pillow for what it refuses.

simplejpeg (libjpeg-turbo) reads a JPEG in four fifths of Pillow's time to the same pixels, and in
its strict mode refuses what Pillow lets pass: flipped bits, junk between markers. So one decode is
the normal case, and only a refused file is decoded twice. EXIF orientation is reported, never
applied: pixels stay as stored, in training, in evaluation and in what is served.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]
"""RGB, (H, W, 3)."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Formats that Pillow is allowed to try; everything else is refused unopened."""
SUFFIXES = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"), "PNG": ("png",), "WEBP": ("webp",), "BMP": ("bmp",),
    "GIF": ("gif",), "TIFF": ("tif", "tiff"), "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "AVIF": ("avif",),
}  # fmt: skip
"""File name suffixes of each format; the first is the one we write."""
_ORIENTATION_TAG = 0x0112
_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}
_MOST_PIXELS = 1 << 29
"""Above twice as many Pillow itself refuses, whatever the limits say."""
_BYTES_WORTH_A_THREAD = 16_384
_MOST_THREADS = 16
_END_OF_IMAGE = b"\xff\xd9"


class UndecodableError(Exception):
    """The bytes are no image that can be used; the text says why."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself, before anything is decoded."""

    height: int
    width: int
    mode: str
    """Pillow's name of the pixel kind as stored: `RGB`, `L`, `CMYK`, `P`, …"""
    format: str
    orientation: int
    """EXIF orientation, 1 where there is none."""


def useful_threads(mean_bytes: float) -> int:
    """Return how many threads decode images of this encoded size fastest.

    One, where images are tiny: each decoder's call is so short that threads mostly hand the
    interpreter's lock to one another; two then do half of what one does (`benchmarks/validate.py`).
    """
    return 1 if mean_bytes < _BYTES_WORTH_A_THREAD else min(_MOST_THREADS, os.cpu_count() or 1)


def read_header(data: bytes) -> Header:
    """Read size, kind and orientation from the first bytes.

    Raises:
        UndecodableError: If it is no image of an allowed format.
    """
    if _is_jpeg(data):
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except ValueError:
            pass  # Pillow has the last word
        else:
            return Header(height, width, _MODES.get(space, "RGB"), "JPEG", _jpeg_orientation(data))
    with _opened(data) as image:
        return Header(
            image.height, image.width, image.mode, image.format or "?", _orientation(image)
        )


def decode_rgb(data: bytes) -> Pixels:
    """Decode to RGB: first frame, transparency dropped, 16-bit grey scaled to 8 bits.

    Raises:
        UndecodableError: If the bytes are damaged or no image.
    """
    return decode_checked(data)[0]


def decode_checked(data: bytes) -> tuple[Pixels, str | None]:
    """Decode to RGB, and say what the strict decoder complained about, if Pillow made sense of it.

    Returns:
        Pixels (H, W, 3), and None or a warning.

    Raises:
        UndecodableError: If the bytes are damaged or no image.
    """
    if not _is_jpeg(data):
        return _pillow_rgb(data), None
    try:
        return _strict_jpeg(data), None
    except _NotForStrictError:
        return _pillow_rgb(data), None
    except ValueError as error:
        complaint = " ".join(str(error).split())
    try:
        return _pillow_rgb(data), complaint
    except UndecodableError:
        if data.rstrip(b"\0").endswith(_END_OF_IMAGE):
            raise
        try:  # only the end marker missing: then all pixels are there
            return _strict_jpeg(data + _END_OF_IMAGE), "the end marker is missing"
        except ValueError:
            pass
        raise


class _NotForStrictError(Exception):
    """A colour space whose conversion is left to Pillow."""


def _strict_jpeg(data: bytes) -> Pixels:
    space = simplejpeg.decode_jpeg_header(data)[2]
    if space in ("CMYK", "YCCK"):
        raise _NotForStrictError
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    return pixels


def _pillow_rgb(data: bytes) -> Pixels:
    with _opened(data) as image:
        try:
            if image.mode in ("I;16", "I;16B", "I;16L", "I"):
                wide = np.asarray(image).astype(np.int64)
                grey = (np.clip(wide, 0, 65535) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(image.convert("RGB"))
        except _PILLOW_FAILS as error:
            raise UndecodableError(f"does not decode: {_one_line(error)}") from error


# Pillow's plugins raise any of these for damaged bytes.
_PILLOW_FAILS = (OSError, SyntaxError, ValueError, EOFError, MemoryError, IndexError, TypeError,
                 KeyError, OverflowError, struct.error, Image.DecompressionBombError)  # fmt: skip


def _opened(data: bytes) -> Image.Image:
    _configure_pillow()
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UndecodableError(f"not an image ({kind_of(data)})") from error
    except Image.DecompressionBombError as error:
        raise UndecodableError("exceeds Pillow's limit against pixel bombs") from error
    except _PILLOW_FAILS as error:
        raise UndecodableError(f"does not decode: {_one_line(error)}") from error


@cache
def _configure_pillow() -> None:
    """Leave pixel bombs to our own limits, and be quiet about odd metadata.

    Once per process: `warnings.catch_warnings` is not safe with threads. Our limit is checked on
    the header; Pillow's own is put just above what a header may claim at most.
    """
    Image.MAX_IMAGE_PIXELS = _MOST_PIXELS
    for category in (Image.DecompressionBombWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"PIL\..*")


def kind_of(data: bytes) -> str:
    """Say what bytes are that are no image, in a few words."""
    head = data[:512].lstrip()
    low = head.lower()
    if not data.strip(b"\0"):
        return f"{len(data):,} zero bytes, what a broken copy leaves behind"
    if low.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML or XML page"
    if low.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run `git lfs pull`"
    if head[:1] in (b"{", b"["):
        return "JSON text"
    if data[257:262] == b"ustar":
        return "a tar archive"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive"
    if data[4:8] == b"ftyp":
        return f"an {data[8:12].decode('ascii', 'replace').strip().upper()} file; convert it"
    return f"{len(data):,} bytes of something else"


def _is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\0\0" not in data[: 1 << 16]:
        return 1
    try:
        with _opened(data) as image:
            return _orientation(image)
    except UndecodableError:
        return 1


def _orientation(image: Image.Image) -> int:
    try:
        value = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _PILLOW_FAILS:
        return 1
    return value if 1 <= value <= 8 else 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
