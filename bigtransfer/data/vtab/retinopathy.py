"""Diabetic retinopathy: large photographs, made smaller as the benchmark has them.

VTAB takes the images as B. Graham, who won the competition of 2015, prepared them: the radius of
the eye becomes 300 pixels, the local average is taken away, and a disc of nine tenths of the
radius is kept (TFDS: `btgraham-300`, with OpenCV, which is not used here).
"""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtransfer.data.vtab.material import Entry, Material
from bigtransfer.data.vtab.opened import Opened, Part, Wanted, needed
from bigtransfer.errors import DatasetError
from bigtransfer.progress import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

RADIUS = 300
"""Pixels of the eye."""
_KEPT = 0.9
"""Of the radius."""
_CONTRAST = 4
_GREY = 128
_QUALITY = 72
"""Of JPEG."""
_SOURCES = {"train": ("trainLabels.csv", "train", None),
            "validation": ("retinopathy_solution.csv", "test", "Public"),
            "test": ("retinopathy_solution.csv", "test", "Private")}  # fmt: skip
"""Part -> table of labels, folder of images, value of its column `Usage`."""


def open_retinopathy(material: Material) -> Opened:
    """Open the competition's files; validation and test are what was scored there."""
    parts, entries = {}, {}
    for part, (table, folder, usage) in _SOURCES.items():
        images = material.find(rf"{folder}/\d+_(?:left|right)\.jpeg")
        if not images:
            raise material.lacks(
                f"{folder}/….jpeg (join and unpack the competition's {folder}.zip.001, …)"
            )
        rows = _labels(material, table, usage)
        missing = [name for name in rows if f"{folder}/{name}.jpeg" not in images]
        if missing:
            raise material.lacks(
                f"{len(missing):,} of the {len(rows):,} images of {table}, e.g. "
                f"{folder}/{missing[0]}.jpeg"
            )
        parts[part] = Part([*rows], [*rows.values()])
        entries[part] = {name: images[f"{folder}/{name}.jpeg"] for name in rows}

    def write(wanted: Wanted) -> None:
        chosen = [
            (entries[part][key], to) for part, keys in wanted.items() for key, to in keys.items()
        ]
        _write_all(material, chosen)

    return Opened(parts, write, ".jpg")


def _labels(material: Material, table: str, usage: str | None) -> dict[str, str]:
    """Return the name of every image of a part and its grade, 0 to 4."""
    source = f"{table} (of the Kaggle competition diabetic-retinopathy-detection)"
    text = material.read(material.one(table, source)).decode("utf-8", "replace")
    rows = list(csv.DictReader(io.StringIO(text)))
    columns = {"image", "level"} | ({"Usage"} if usage else set())
    if not rows or not columns <= set(rows[0]):
        raise DatasetError(
            f"{table!r} lacks the columns {', '.join(sorted(columns))}; fetch it again"
        )
    return {row["image"]: row["level"] for row in rows if not usage or row["Usage"] == usage}


def _write_all(material: Material, wanted: Sequence[tuple[Entry, Path]]) -> None:
    """Write the images, in as many threads as there are processors; decoding lets them run."""
    files = {str(number): entry for number, (entry, _) in enumerate(wanted)}
    workers = os.cpu_count() or 1
    going: deque[Future[None]] = deque()
    with (
        ThreadPoolExecutor(workers) as pool,
        progress("prepare eyes", len(wanted), unit="image") as advance,
    ):
        for done, (number, file) in enumerate(material.each(files), 1):
            entry, to = wanted[int(number)]
            going.append(pool.submit(_write, file.read(), entry.name, to))
            while len(going) > 2 * workers:
                going.popleft().result()
            advance(done, "")
        while going:
            going.popleft().result()


def _write(data: bytes, name: str, to: Path) -> None:
    import numpy as np
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DatasetError(f"{name!r} is no image ({error}); fetch it again") from error
    pixels = eye(np.asarray(picture), RADIUS)
    Image.fromarray(pixels).save(to, "JPEG", quality=_QUALITY)


def eye(pixels: NDArray[Any], radius: int) -> NDArray[Any]:
    """Return the photograph of an eye as the benchmark has it.

    Args:
        pixels: uint8, (H, W, 3).
        radius: That the eye gets, pixels.

    Returns:
        uint8, at most (1.8 radius, 1.8 radius, 3), grey outside the disc.
    """
    import numpy as np

    small = _scaled(pixels, radius)
    filters = needed("scipy.ndimage", "scipy", "retinopathy")
    sigma = radius / 30
    blurred = filters.gaussian_filter(
        small.astype(np.float32), (sigma, sigma, 0), mode="mirror", truncate=3.0
    )
    sharp = _CONTRAST * (small.astype(np.float32) - np.rint(blurred)) + _GREY
    sharp = np.clip(sharp, 0, 255).astype(np.uint8)
    height, width = sharp.shape[:2]
    x, y, kept = width // 2, height // 2, int(radius * _KEPT)
    rows, columns = np.ogrid[:height, :width]
    outside = (rows - y) ** 2 + (columns - x) ** 2 > kept**2
    sharp[outside] = _GREY
    kept_square: NDArray[Any] = sharp[max(y - kept, 0) : y + kept, max(x - kept, 0) : x + kept]
    return kept_square


def _scaled(pixels: NDArray[Any], radius: int) -> NDArray[Any]:
    """Return the photograph scaled so that the eye has the radius, told by its middle row."""
    import numpy as np

    height, width = pixels.shape[:2]
    brightness = pixels[height // 2].astype(np.int64).sum(axis=1)
    found = (brightness > brightness.mean() / 10).sum() / 2
    own = found if found >= 1 else height / 2  # a dark picture: as high as it is
    factor = radius / own
    # Between the four nearest pixels, as OpenCV does by default; Pillow's resize would average.
    top, bottom, down = _between(height, max(1, round(height * factor)), factor)
    left, right, along = _between(width, max(1, round(width * factor)), factor)
    down, along = down[:, None, None], along[None, :, None]
    above, below = (
        (1 - along) * pixels[np.ix_(row, left)] + along * pixels[np.ix_(row, right)]
        for row in (top, bottom)
    )
    scaled: NDArray[Any] = np.rint((1 - down) * above + down * below).astype(np.uint8)
    return scaled


def _between(length: int, count: int, factor: float) -> tuple[NDArray[Any], ...]:
    """Return, for each of so many pixels, the two that are nearest to its middle in the original.

    Returns:
        Index of the first, index of the second, share of the second (float32); each (count,).
    """
    import numpy as np

    middle = np.clip((np.arange(count) + 0.5) / factor - 0.5, 0, length - 1)
    first = np.floor(middle).astype(np.int64)
    return first, np.minimum(first + 1, length - 1), (middle - first).astype(np.float32)
