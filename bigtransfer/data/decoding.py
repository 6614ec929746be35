"""From encoded bytes to RGB pixels: the strict fast decoder first, Pillow for what it refuses.

simplejpeg (libjpeg-turbo) reads a JPEG in four fifths of Pillow's time to the same pixels, and in
its strict mode refuses what Pillow lets pass: flipped bits, junk between markers. So one decode is
the normal case, and only a refused file is decoded twice.

What happens to orientation and transparency is a setting of the dataset (`DecodeSettings`), and a
network that was trained on it is used with the same.
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

from bigtransfer.artifacts.decoding import DecodeSettings

Pixels = NDArray[np.uint8]
"""RGB, (H, W, 3)."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Formats that Pillow is allowed to try, and HEIF; everything else is refused unopened."""
SUFFIXES = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"), "PNG": ("png",), "WEBP": ("webp",), "BMP": ("bmp",),
    "GIF": ("gif",), "TIFF": ("tif", "tiff"), "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "AVIF": ("avif",), "HEIF": ("heic", "heif", "hif"),
}  # fmt: skip
"""File name suffixes of each format; the first is the one we write."""
_ORIENTATION_TAG = 0x0112
_BITS_PER_SAMPLE = 258
_FIRST_LYING = 5
"""EXIF orientations from here on swap height and width."""
_QUARTER_TURNS = {3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}
"""EXIF orientation -> quarter turns against the clock, before mirroring."""
_TURNED_BY_DECODER = ("TIFF", "HEIF")
_ENOUGH_LEVELS = 128
_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}
_MOST_PIXELS = 1 << 29
"""Above twice as many Pillow itself refuses, whatever the limits say."""
_BYTES_WORTH_A_THREAD = 16_384
_MOST_THREADS = 16
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
"""Kinds of ISO media files that hold a picture, not a film."""
_END_OF_IMAGE = b"\xff\xd9"
_MARKERS_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))


class UndecodableError(Exception):
    """The bytes are no image that can be used; the text says why."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself, before anything is decoded."""

    height: int
    """As its decoder gives it: TIFF and HEIC are upright already."""
    width: int
    mode: str
    """Pillow's name of the pixel kind as stored: `RGB`, `L`, `CMYK`, `P`, …"""
    format: str
    orientation: int
    """EXIF orientation, 1 where there is none."""

    def upright(self, settings: DecodeSettings) -> tuple[int, int]:
        """Return height and width of the pixels that `decode` gives."""
        lies = self.orientation >= _FIRST_LYING and self.format not in _TURNED_BY_DECODER
        if lies and settings.orientation == "apply":
            return self.width, self.height
        return self.height, self.width


@dataclass(frozen=True)
class Decoded:
    """The pixels of a file, and what its user should know of them."""

    pixels: Pixels
    """(H, W, 3)."""
    flags: tuple[str, ...] = ()
    """What is odd about it, e.g. `transparent: …`."""


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
            height, width, space = _jpeg_header(data, strict=False)
        except ValueError:
            pass  # Pillow has the last word
        else:
            return Header(height, width, _MODES.get(space, "RGB"), "JPEG", _jpeg_orientation(data))
    with _opened(data) as image:
        return Header(
            image.height, image.width, image.mode, image.format or "?", _orientation(image)
        )


def decode_rgb(data: bytes, settings: DecodeSettings) -> Pixels:
    """Decode to RGB: the first frame, 16-bit grey scaled to 8 bits.

    Args:
        data: The file.
        settings: What is done about orientation and transparency.

    Raises:
        UndecodableError: If the bytes are damaged, no image, or of a kind that 8 bits cannot show.
    """
    return decode(data, settings).pixels


def decode(data: bytes, settings: DecodeSettings) -> Decoded:
    """Decode to RGB as `decode_rgb` does, and say what is odd about the file; raises the same."""
    if not _is_jpeg(data):
        return _pillow_rgb(data, settings)
    try:
        return Decoded(_upright_jpeg(data, data, settings))
    except _NotForStrictError:
        return _pillow_rgb(data, settings)
    except ValueError as error:
        complaint = " ".join(str(error).split())
    try:
        found = _pillow_rgb(data, settings)
        return Decoded(found.pixels, (f"decode_warning: {complaint}", *found.flags))
    except UndecodableError:
        if data.rstrip(b"\0").endswith(_END_OF_IMAGE):
            raise
        try:  # only the end marker missing: then all pixels are there
            pixels = _upright_jpeg(data + _END_OF_IMAGE, data, settings)
        except ValueError:
            pass
        else:
            return Decoded(pixels, ("decode_warning: the end marker is missing",))
        raise


def _jpeg_header(data: bytes, *, strict: bool) -> tuple[int, int, str]:
    """Return height, width and colour space.

    Raises:
        ValueError: If there is no whole header.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=strict)
    except KeyError as error:  # a colour space of no name: cut off before the frame begins
        raise ValueError("its header is cut off") from error
    return height, width, space


class _NotForStrictError(Exception):
    """A colour space whose conversion is left to Pillow."""


def _upright_jpeg(whole: bytes, data: bytes, settings: DecodeSettings) -> Pixels:
    space = _jpeg_header(whole, strict=True)[2]
    if space in ("CMYK", "YCCK"):
        raise _NotForStrictError
    pixels: Pixels = simplejpeg.decode_jpeg(whole, "RGB", strict=True)
    return _turned(pixels, _jpeg_orientation(data) if settings.orientation == "apply" else 1)


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels as a camera held in that EXIF orientation saw them."""
    if orientation == 1:
        return pixels
    pixels = np.rot90(pixels, _QUARTER_TURNS.get(orientation, 0))
    if orientation in (2, 4):
        pixels = pixels[:, ::-1]
    elif orientation in (5, 7):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _pillow_rgb(data: bytes, settings: DecodeSettings) -> Decoded:
    with _opened(data) as image:
        try:
            image.load()
            pixels, flags = _rgb_of(image, data, settings)
            # Asked after loading: TIFF and HEIC are upright then, and say so.
            orientation = _orientation(image) if settings.orientation == "apply" else 1
            return Decoded(_turned(pixels, orientation), tuple(flags))
        except _PILLOW_FAILS as error:
            raise UndecodableError(f"does not decode: {_one_line(error)}") from error


def _rgb_of(image: Image.Image, data: bytes, settings: DecodeSettings) -> tuple[Pixels, list[str]]:
    if image.mode == "F":
        raise UndecodableError(
            "holds floating-point numbers, of which nothing says what is black and what white; "
            "convert it to 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        return _grey_of_16_bits(image, settings)
    flags = []
    if image.has_transparency_data and settings.background is not None:
        whole = image.convert("RGBA")
        alpha = np.asarray(whole.getchannel("A"))
        share = float((alpha < 255).mean())
        if share:
            flags.append(f"transparent: {share:.0%} of it, laid on {settings.background}")
            ground = Image.new("RGBA", whole.size, (*settings.background_rgb, 255))
            whole = Image.alpha_composite(ground, whole)
        pixels = np.array(whole.convert("RGB"))
    else:
        pixels = np.array(image.convert("RGB"))
    if _has_16_bits(image, data):
        flags += _few_levels(pixels, None)
    return pixels, flags


def _grey_of_16_bits(image: Image.Image, settings: DecodeSettings) -> tuple[Pixels, list[str]]:
    wide = np.asarray(image).astype(np.int64)
    low, high = int(wide.min()), int(wide.max())
    if low < 0 or high > 65535:
        raise UndecodableError(
            f"holds grey levels from {low:,} to {high:,}, which 16 bits cannot hold; convert it to "
            "8 or 16 bits"
        )
    grey = (wide >> 8).astype(np.uint8)
    flags = _few_levels(grey, len(np.unique(wide)))
    pixels = np.repeat(grey[..., None], 3, axis=2)
    hidden = image.info.get("transparency")
    if isinstance(hidden, int) and settings.background is not None and (wide == hidden).any():
        share = float((wide == hidden).mean())
        flags.append(f"transparent: {share:.0%} of it, laid on {settings.background}")
        pixels[wide == hidden] = settings.background_rgb
    return pixels, flags


def _few_levels(pixels: Pixels, held: int | None) -> list[str]:
    """Return a flag if 16 bits hold a narrower range, e.g. 12 bits of a camera: it looks black."""
    used = len(np.unique(pixels))
    if used >= _ENOUGH_LEVELS or (held is not None and held <= used) or pixels.max() == 255:
        return []
    return [
        f"few_levels: uses {used} of 256 levels, because 16 bits hold a narrower range; convert it "
        "to 8 bits"
    ]


def _has_16_bits(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24:25] == b"\x10"  # bit depth, in the header chunk
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return 16 in (bits if isinstance(bits, tuple) else (bits,))


# Pillow's plugins raise any of these for damaged bytes.
_PILLOW_FAILS = (OSError, SyntaxError, ValueError, EOFError, MemoryError, IndexError, TypeError,
                 KeyError, OverflowError, struct.error, Image.DecompressionBombError)  # fmt: skip


def _opened(data: bytes) -> Image.Image:
    _configure_pillow()
    formats: tuple[str, ...] = FORMATS
    if data[4:8] == b"ftyp":
        _register_heif()
        formats = (*FORMATS, "HEIF")
    try:
        return Image.open(io.BytesIO(data), formats=formats)
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


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC, by a library that decodes alone; imported with the first such file."""
    import pi_heif

    pi_heif.register_heif_opener()


def begins_as_image(head: bytes) -> bool:
    """Say whether the first bytes of a file (32 suffice) are those of a format that we read."""
    riff = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)  # a text may begin with these letters
    netpbm = head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace()
    netpbm = netpbm and (head[3:4].isdigit() or head[3:4] == b"#")
    boxes = head[4:8] == b"ftyp" and head[8:12] in _BRANDS
    return riff or bitmap or netpbm or boxes or head.startswith(_BEGINNINGS)


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
    # Asking Pillow costs as much as decoding a small image, and most files say nothing: so first
    # it is looked whether one of the words is there.
    end = _start_of_scan(data)
    if not any(data.find(word, 0, end) >= 0 for word in (b"Exif\0\0", b":Orientation")):
        return 1
    try:
        with _opened(data) as image:
            return _orientation(image)
    except UndecodableError:
        return 1


def _start_of_scan(data: bytes) -> int:
    """Return where a JPEG's pixels begin, by its segments: a thumbnail has such a mark too."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b""):
        alone = data[at + 1] in _MARKERS_WITHOUT_LENGTH
        at += 1 if data[at + 1] == 0xFF else 2 if alone else 2 + _length_at(data, at + 2)
    return at


def _length_at(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _orientation(image: Image.Image) -> int:
    try:
        value = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _PILLOW_FAILS:
        return 1
    return value if 1 <= value <= 8 else 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
