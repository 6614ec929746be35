"""Small pictures of a dataset's images for a page, and what training makes of them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from bigtransfer.data.checking import Checked
from bigtransfer.data.decoding import Pixels, UndecodableError, decode_rgb, read_header
from bigtransfer.data.transforms import mirrored, random_crop_flip
from bigtransfer.report import page

SMALL_AREA_PIXELS = 96 * 96
"""Mean images below it count as small in the BiT-HyperRule (arXiv 1912.11370, section 3.3)."""
PRECROP_CROP = {"small": (160, 128), "large": (448, 384)}
"""Sides that they are resized to, and cut to; a test holds them to `train/hyperrule.py`."""
VARIANTS = 4
_MOST_PIXELS = 1 << 26
_SCALED_ABOVE = 1 << 20
"""Pixels; a larger JPEG is decoded at a part of its size."""


class Thumbnails:
    """Small pictures of checked images; those that do not decode have none."""

    def __init__(self, checked: Checked) -> None:
        """Read through the source that was checked."""
        self._checked = checked

    def uri(self, row: int, longest: int) -> str | None:
        """Return a picture of a row as a `data:` URI, or None where it does not decode."""
        pixels = self.pixels(row, longest)
        return None if pixels is None else page.picture(pixels, longest)

    def pixels(self, row: int, side: int) -> Pixels | None:
        """Return the pixels of a row, or None where it does not decode.

        Args:
            row: Of the table.
            side: Pixels that the shorter side needs; a large photo may come smaller than it is.
        """
        values = self._checked.table.slice(row, 1).to_pylist()[0]
        area = (values["height"] or 0) * (values["width"] or 0)
        if not 0 < area <= _MOST_PIXELS:
            return None
        try:
            data = self._checked.source.read(values["file"], values["offset"], values["length"])
            if area > _SCALED_ABOVE and values["format"] == "JPEG" and values["mode"] == "RGB":
                return self._scaled(data, side)
            return decode_rgb(data, self._checked.decode)
        except (UndecodableError, OSError):
            return None

    def _scaled(self, data: bytes, side: int) -> Pixels:
        """Decode a JPEG at an eighth, a quarter or half of its size where that is enough."""
        turned = read_header(data).orientation != 1 and self._checked.decode.orientation == "apply"
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            image.draft("RGB", (side, side))
            upright = ImageOps.exif_transpose(image) if turned else image
            return np.array(upright.convert("RGB"))


def sizes_of_training(height: float, width: float) -> tuple[int, int]:
    """Return the sides that images of a mean size are resized to and cut to by default, pixels."""
    return PRECROP_CROP["small" if height * width < SMALL_AREA_PIXELS else "large"]


def augmented(
    pixels: Pixels, sample: int, *, precrop: int, crop: int, seed: int
) -> list[tuple[Pixels, bool]]:
    """Return what the first epochs of training would make of an image.

    The draws are those of training (`transforms.random_crop_flip`, `transforms.mirrored`), keyed by
    (seed, epoch, sample). Resized is by Pillow, whose result training's kernel gives within one
    level: a page needs no PyTorch.

    Args:
        pixels: RGB, (H, W, 3).
        sample: Number of the image.
        precrop: Side that it is resized to, whatever its shape, pixels.
        crop: Side of the random cut, pixels.
        seed: Of the draws.

    Returns:
        `VARIANTS` pairs: pixels (crop, crop, 3), and whether they are mirrored.
    """
    square = Image.fromarray(pixels).resize((precrop, precrop), Image.Resampling.BILINEAR)
    epochs = np.arange(VARIANTS)
    samples = np.full(VARIANTS, sample)
    cuts = random_crop_flip(
        np.asarray(square)[None],
        crop,
        flip=False,
        seed=seed,
        epochs=epochs,
        samples=samples,
        rows=np.zeros(VARIANTS, np.int64),
    )
    turned = mirrored(seed, epochs, samples)
    return [
        (np.ascontiguousarray(cut[:, ::-1]) if flip else cut, bool(flip))
        for cut, flip in zip(cuts, turned, strict=True)
    ]
