"""How files become pixels: orientation, transparency, bit depth, for every format."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bigtransfer.artifacts.decoding import AS_STORED, DecodeSettings
from bigtransfer.data.decoding import UndecodableError, decode, decode_rgb, read_header
from fixtures.project import PROJECT

HEIC = PROJECT / "tests" / "fixtures" / "heic"
UPRIGHT = DecodeSettings()
COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "white": (250,) * 3}
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF")
ORIENTATIONS = range(1, 9)
CORNERS = {
    1: ("red", "green", "blue", "white"), 2: ("green", "red", "white", "blue"),
    3: ("white", "blue", "green", "red"), 4: ("blue", "white", "red", "green"),
    5: ("red", "blue", "green", "white"), 6: ("blue", "red", "white", "green"),
    7: ("white", "green", "blue", "red"), 8: ("green", "white", "red", "blue"),
}  # fmt: skip
"""Orientation -> colours of the upright corners: top left, top right, bottom left and right."""


def square() -> NDArray[np.uint8]:
    """Four colours, 80 wide and 48 high, as a camera stored them."""
    pixels = np.empty((48, 80, 3), np.uint8)
    for number, colour in enumerate(COLOURS.values()):
        top, left = 24 * (number // 2), 40 * (number % 2)
        pixels[top : top + 24, left : left + 40] = colour
    return pixels


def file_of(kind: str, orientation: int) -> bytes:
    """The square in a format, with an orientation noted."""
    if kind == "HEIF":
        return heic_of(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    quality = 95 if kind in ("JPEG", "WEBP", "AVIF") else None
    options: Any = {} if quality is None else {"quality": quality}
    Image.fromarray(square()).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def heic_of(orientation: int) -> bytes:
    """Turn the boxes `irot` (quarter turns against the clock) and `imir` (the axis)."""
    mirrored = orientation in (2, 4, 5, 7)
    data = bytearray((HEIC / f"orientation_{5 if mirrored else 6}.heic").read_bytes())
    if mirrored:
        turns, axis = {2: (0, 1), 4: (0, 0), 5: (3, 1), 7: (1, 1)}[orientation]
        data[data.index(b"imir") + 4] = axis
    else:
        turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    data[data.index(b"irot") + 4] = turns
    return bytes(data)


def corners(pixels: NDArray[np.uint8]) -> tuple[str, ...]:
    height, width = pixels.shape[:2]
    found = []
    for top in (height // 4, 3 * height // 4):
        for left in (width // 4, 3 * width // 4):
            own = pixels[top, left].astype(int)
            apart = {n: int(np.abs(own - np.array(c)).sum()) for n, c in COLOURS.items()}
            found.append(min(apart, key=apart.__getitem__))
            assert apart[found[-1]] < 60
    return tuple(found)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_turned_upright_exactly_once(kind: str, orientation: int) -> None:
    data = file_of(kind, orientation)
    pixels = decode_rgb(data, UPRIGHT)
    assert corners(pixels) == CORNERS[orientation]
    assert read_header(data).upright(UPRIGHT) == pixels.shape[:2]
    assert pixels.shape[:2] == ((80, 48) if orientation >= 5 else (48, 80))
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", FORMATS[:4])
def test_ignored_means_as_stored(kind: str, orientation: int) -> None:
    data = file_of(kind, orientation)
    for settings in (AS_STORED, DecodeSettings(orientation="ignore")):
        pixels = decode_rgb(data, settings)
        assert corners(pixels) == CORNERS[1]
        assert read_header(data).upright(settings) == pixels.shape[:2] == (48, 80)


def test_the_table_is_pillows() -> None:
    for orientation in ORIENTATIONS:
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(file_of("PNG", orientation))))
        assert corners(np.asarray(turned)) == CORNERS[orientation]


def jpeg_with(*segments: bytes, after: bytes = b"") -> bytes:
    """A JPEG with segments before its own; each with marker, without length."""
    buffer = io.BytesIO()
    Image.fromarray(square()).save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    written = [s[:2] + len(s).to_bytes(2, "big") + s[2:] for s in segments]
    return data[:2] + b"".join(written) + data[2:] + after


def exif_segment(orientation: int, thumbnail: bytes = b"") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return b"\xff\xe1" + exif.tobytes() + thumbnail


@pytest.mark.parametrize(
    "segments",
    [
        (b"\xff\xe2ICC_PROFILE\0" + bytes(60_000), b"\xff\xed" + bytes(60_000), exif_segment(6)),
        (b"\xff\xe0JFXX\0" + b"\xff\xda" * 20, exif_segment(6)),
        (exif_segment(6, thumbnail=b"\xff\xd8\xff\xda\xff\xd9"),),
        (
            b"\xff\xe1http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'>"
            b'<rdf:Description tiff:Orientation="6"/></x:xmpmeta>',
        ),
    ],
    ids=["behind 120 kB", "behind a scan mark of a thumbnail", "with a thumbnail", "in XMP"],
)
def test_the_orientation_is_found_wherever_it_stands(segments: tuple[bytes, ...]) -> None:
    data = jpeg_with(*segments)
    assert corners(decode_rgb(data, UPRIGHT)) == CORNERS[6]
    assert read_header(data).orientation == 6


def test_pixels_that_look_like_metadata_say_nothing() -> None:
    assert corners(decode_rgb(jpeg_with(after=exif_segment(6)), UPRIGHT)) == CORNERS[1]
    for odd in (0, 9, 65535):
        assert corners(decode_rgb(file_of("PNG", odd), UPRIGHT)) == CORNERS[1]


def test_a_cut_or_unusual_jpeg_is_turned_too() -> None:
    data = file_of("JPEG", 6)
    found = decode(data.removesuffix(b"\xff\xd9"), UPRIGHT)
    assert found.flags == ("decode_warning: the end marker is missing",)
    assert corners(found.pixels) == CORNERS[6]
    junk = data.replace(b"\xff\xda", b"\0\0\0\xff\xda", 1)  # between two segments
    found = decode(junk, UPRIGHT)
    assert found.flags[0].startswith("decode_warning")
    assert corners(found.pixels) == CORNERS[6]
    cmyk, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(square()).convert("CMYK").save(cmyk, "JPEG", exif=exif)
    assert decode_rgb(cmyk.getvalue(), UPRIGHT).shape == (80, 48, 3)


def icon(mode: str, kind: str, **options: Any) -> bytes:
    """A black bar on transparent ground; what is hidden under the ground is black, too."""
    alpha = np.zeros((20, 30), np.uint8)
    alpha[8:12] = 255
    image = Image.fromarray(np.dstack([np.zeros((20, 30, 3), np.uint8), alpha]))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def palette_icon(kind: str) -> bytes:
    image = Image.new("P", (30, 20), 1)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.paste(0, (0, 8, 30, 12))
    buffer = io.BytesIO()
    image.save(buffer, kind, transparency=1)
    return buffer.getvalue()


def keyed_icon(mode: str) -> bytes:
    """A PNG in which one colour stands for nothing (tRNS)."""
    value: Any = {"L": 7, "RGB": (7, 7, 7), "I;16": 7}[mode]
    array = np.full((20, 30), 7, np.uint16 if mode == "I;16" else np.uint8)
    array[8:12] = 0
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(buffer, "PNG", transparency=value)
    return buffer.getvalue()


TRANSPARENT = {
    "RGBA PNG": icon("RGBA", "PNG"), "LA PNG": icon("LA", "PNG"),
    "RGBA WebP": icon("RGBA", "WEBP", lossless=True), "RGBA TIFF": icon("RGBA", "TIFF"),
    "RGBA AVIF": icon("RGBA", "AVIF", quality=100), "palette PNG": palette_icon("PNG"),
    "palette GIF": palette_icon("GIF"), "key L": keyed_icon("L"), "key RGB": keyed_icon("RGB"),
    "key 16 bits": keyed_icon("I;16"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_is_laid_on_the_background(name: str) -> None:
    data = TRANSPARENT[name]
    found = decode(data, UPRIGHT)
    assert found.pixels[2, 5].min() >= 250, "the ground is white"
    assert found.pixels[10, 5].max() <= 5, "what is drawn stays black"
    assert any(flag.startswith("transparent: 80% of it, laid on #ffffff") for flag in found.flags)
    blue = decode_rgb(data, DecodeSettings(background="#0000ff"))
    assert np.abs(blue[2, 5].astype(int) - (0, 0, 255)).max() <= 5
    dropped = decode(data, AS_STORED)
    assert dropped.pixels.max() <= 7
    assert not any("transparent" in flag for flag in dropped.flags)


def test_half_transparent_pixels_are_mixed_and_of_opaque_ones_nothing_is_said() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (10, 10), (0, 0, 0, 128)).save(buffer, "PNG")
    assert abs(int(decode_rgb(buffer.getvalue(), UPRIGHT)[0, 0, 0]) - 127) <= 1
    buffer = io.BytesIO()
    Image.new("RGBA", (10, 10), (9, 9, 9, 255)).save(buffer, "PNG")
    found = decode(buffer.getvalue(), UPRIGHT)
    assert found.flags == ()
    assert (found.pixels == 9).all()


def saved(array: NDArray[Any], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


RAMP = np.linspace(0, 1, 6000).reshape(60, 100)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("bits", "levels"), [(8, 1), (10, 4), (12, 16), (14, 64)])
def test_fewer_bits_than_the_file_has_room_for_are_flagged(
    kind: str, bits: int, levels: int
) -> None:
    found = decode(saved((RAMP * (2**bits - 1)).astype(np.uint16), kind), UPRIGHT)
    assert len(np.unique(found.pixels)) == levels
    assert found.flags[0].startswith(f"few_levels: uses {levels} of 256 levels")


def test_a_full_range_and_a_drawing_of_two_greys_are_not() -> None:
    full = decode(saved((RAMP * 65535).astype(np.uint16)), UPRIGHT)
    assert full.flags == ()
    assert len(np.unique(full.pixels)) == 256
    drawing = np.where(RAMP > 0.5, 65535, 0).astype(np.uint16)
    assert decode(saved(drawing), UPRIGHT).flags == ()
    grey = np.where(RAMP > 0.5, 0x4000, 0x2000).astype(np.uint16)
    assert decode(saved(grey), UPRIGHT).flags == (), "scaling lost no level of it"


def png_of_48_bits(values: NDArray[np.uint16]) -> bytes:
    height, width = values.shape
    rgb = np.repeat(values[..., None], 3, 2).astype(">u2")
    rows = b"".join(b"\0" + rgb[i].tobytes() for i in range(height))

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_colours_of_16_bits_are_looked_at_as_well() -> None:
    dark = decode(png_of_48_bits((RAMP * 4095).astype(np.uint16)), UPRIGHT)
    assert dark.flags[0].startswith("few_levels: uses 16 of 256 levels")
    assert decode(png_of_48_bits((RAMP * 65535).astype(np.uint16)), UPRIGHT).flags == ()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (RAMP.astype(np.float32), "holds floating-point numbers"),
        ((RAMP * 255).astype(np.float32), "holds floating-point numbers"),
        ((RAMP * 100_000).astype(np.int32), "grey levels from 0 to 100,000"),
        ((RAMP * -5).astype(np.int32), "grey levels from -5 to 0"),
    ],
)
def test_what_8_bits_cannot_show_is_refused_with_the_cure(array: Any, said: str) -> None:
    with pytest.raises(UndecodableError, match=f"{said}.*convert it to 8 or 16 bits"):
        decode(saved(array, "TIFF"), UPRIGHT)


def test_whole_numbers_of_32_bits_that_fit_are_read() -> None:
    found = decode(saved((RAMP * 65535).astype(np.int32), "TIFF"), UPRIGHT)
    assert len(np.unique(found.pixels)) == 256
    few = decode(saved((RAMP * 255).astype(np.int32), "TIFF"), UPRIGHT)
    assert few.flags[0].startswith("few_levels: uses 1 of 256 levels")


def test_heic_is_read_and_a_damaged_one_is_not() -> None:
    data = heic_of(1)
    header = read_header(data)
    assert (header.format, header.height, header.width) == ("HEIF", 48, 80)
    for broken in (data[:400], data[:12] + bytes(300)):
        with pytest.raises(UndecodableError):
            decode(broken, UPRIGHT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_cut_off_anywhere_is_refused_or_decoded(kind: str) -> None:
    """Between a JPEG's first marker and its frame, simplejpeg raises a KeyError."""
    file = io.BytesIO()
    Image.fromarray(square()).save(file, kind)
    whole = file.getvalue()
    refused = 0
    for end in range(0, len(whole), 7):
        try:
            read_header(whole[:end])
            decode_rgb(whole[:end], UPRIGHT)
        except UndecodableError:
            refused += 1
    assert refused > 2
