"""One pass of validation against what it consists of at least: decoding each image by Pillow.

python benchmarks/validate.py --images FOLDER     # photographs, *.jpg or *.JPEG, any depth
python benchmarks/validate.py                     # without photographs: drawn ones
"""

from __future__ import annotations

import hashlib
import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import peers  # noqa: F401  # finds the project
from input_pipeline import compare, parse, photographs
from PIL import Image

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.data.decoding import Pixels, decode, read_header
from bigtransfer.data.fingerprint import Fingerprints, looks_of, near_pairs
from bigtransfer.data.inspection import Limits, inspect_image

LIMITS = Limits(min_side=8, max_side=20_000, max_pixels=50_000_000, max_bytes=10**8, small_side=64)


def main() -> None:
    """Measure and print."""
    arguments = parse(__doc__, most=200)
    files = photographs(arguments.images, arguments.most)
    pixels = [decode(data, DecodeSettings()).pixels for data in files]
    print(f"{len(files)} photographs")

    compare(
        "validation: time of a Pillow decode / own time",
        arguments.rounds,
        {
            "Pillow decode": lambda: [Image.open(io.BytesIO(data)).load() for data in files],
            "one pass, all checks": lambda: [inspect(data) for data in files],
            "  strict decode": lambda: [decode(data, DecodeSettings()) for data in files],
            "  header": lambda: [read_header(data) for data in files],
            "  sha256 of the file": lambda: [hashlib.sha256(data).digest() for data in files],
            "  sha256 of the pixels": lambda: [hashlib.sha256(p.data).digest() for p in pixels],
            "  hashes of the looks": lambda: [looks_of(p) for p in pixels],
        },
        "Pillow decode",
    )
    for side in (32, 128, 512):
        small = [encoded(p[:side, :side]) for p in pixels]
        compare(
            f"validation, PNG of {sum(map(len, small)) // len(small):,} bytes: one thread / two",
            arguments.rounds,
            {
                "one": lambda: inspect_in(1, small),  # noqa: B023  # called at once
                "two": lambda: inspect_in(2, small),  # noqa: B023
            },
            "one",
            time.perf_counter,
        )
    compare(
        "comparison by looks: 1,000 images with 100,000 / with 50,000",
        arguments.rounds,
        {"100,000": lambda: search(100_000), "50,000": lambda: search(50_000)},
        "100,000",
    )


def inspect(data: bytes) -> object:
    """Check one image as `validate` does."""
    return inspect_image("x", len(data), lambda: data, LIMITS, DecodeSettings())


def inspect_in(threads: int, files: list[bytes]) -> None:
    """Check images in some threads."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(inspect, files))


def encoded(pixels: Pixels) -> bytes:
    """Return an image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def search(references: int) -> None:
    """Compare a thousand random hashes with many."""
    rng = np.random.default_rng(0)
    draw = rng.integers(-(2**63), 2**63 - 1, references, dtype=np.int64)
    thumbs = np.zeros((references, 256), np.uint8)
    some = Fingerprints(draw[:1000], draw[:1000], thumbs[:1000])
    list(near_pairs(some, Fingerprints(draw, draw, thumbs)))


if __name__ == "__main__":
    main()
