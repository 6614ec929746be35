"""Open one image under limits and say what it is, or why it cannot be used."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow is allowed to try; everything else is refused unopened."""
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Limits:
    """What an image may be before it is decoded. Sides in pixels."""

    min_side: int
    max_side: int
    max_pixels: int
    max_bytes: int


@dataclass(frozen=True)
class ImageFacts:
    """What one pass over a file found out. `fault` is None for a usable image."""

    bytes: int
    sha256: str
    pixel_sha256: str
    """Of height, width and the RGB pixels: equal for copies that differ in metadata only."""
    height: int
    width: int
    mode: str
    format: str
    orientation: int
    fault: str | None


def inspect_image(path: Path, limits: Limits) -> ImageFacts:
    """Read, hash and fully decode one file; never raises for a bad file.

    The header's size is checked before pixels are decoded, so that a small file which claims to be
    huge costs nothing.
    """
    try:
        size = path.stat().st_size
        if size > limits.max_bytes:
            return _refused(size, f"file of {size:,} bytes exceeds max_file_bytes")
        data = path.read_bytes()
    except OSError as error:
        return _refused(0, f"cannot be read: {error.strerror}")
    sha256 = hashlib.sha256(data).hexdigest()
    if not data:
        return _refused(0, "file is empty", sha256)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            return _inspect(data, sha256, limits)
        except UnidentifiedImageError:
            return _refused(len(data), f"not an image ({_kind(data)})", sha256)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return _refused(len(data), "exceeds Pillow's limit against pixel bombs", sha256)
        except (OSError, SyntaxError, ValueError, EOFError, MemoryError, IndexError) as error:
            # Pillow's decoders raise any of these for damaged bytes.
            return _refused(len(data), f"does not decode: {error}", sha256)


def decode_rgb(data: bytes) -> Image.Image:
    """Decode image bytes to RGB; the first frame, transparent parts on black.

    16-bit grey is scaled to 8 bits. Pixels stay as stored: EXIF orientation is not applied.
    """
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _inspect(data: bytes, sha256: str, limits: Limits) -> ImageFacts:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        mode, format_ = image.mode, image.format or "?"
        fault = _size_fault(height, width, limits)
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    pixel_sha256 = ""
    if fault is None:
        pixels: NDArray[np.uint8] = np.asarray(decode_rgb(data))
        pixel_sha256 = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    return ImageFacts(
        len(data), sha256, pixel_sha256, height, width, mode, format_, orientation, fault
    )


def _size_fault(height: int, width: int, limits: Limits) -> str | None:
    if min(height, width) < limits.min_side:
        return f"{width}x{height} pixels: a side is below min_side_pixels {limits.min_side}"
    if max(height, width) > limits.max_side:
        return f"{width}x{height} pixels: a side is above max_side_pixels {limits.max_side}"
    if height * width > limits.max_pixels:
        return f"{width}x{height} pixels exceed max_image_pixels {limits.max_pixels:,}"
    return None


def _refused(size: int, fault: str, sha256: str = "") -> ImageFacts:
    return ImageFacts(size, sha256, "", 0, 0, "", "", 1, fault)


def _kind(data: bytes) -> str:
    head = data[:256].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML or XML page"
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer; run `git lfs pull`"
    return f"{len(data):,} bytes of something else"
