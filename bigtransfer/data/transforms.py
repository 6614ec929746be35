"""Resize, crop, flip, normalise: from encoded bytes to what the network takes.

BiT resizes to a square (ignoring the aspect), trains on a random crop of it, and evaluates on the
whole image resized straight to the crop size (arXiv 1912.11370, section 3.3; bit_hyperrule.py).
Upstream it cuts a rectangle of random area and aspect and resizes that (Szegedy et al. 2015, the
"inception crop"; ranges as in google-research/big_vision). Resizing is bilinear with antialias, by
torch's uint8 kernel: Pillow's algorithm, in two thirds of its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bigtransfer.data.decoding import Pixels
from bigtransfer.data.randomness import keyed_uniform

if TYPE_CHECKING:
    from torch import Tensor

_PURPOSE_TOP, _PURPOSE_LEFT, _PURPOSE_FLIP, _PURPOSE_AREA, _PURPOSE_ASPECT = 1, 2, 3, 4, 5
AREA = (0.05, 1.0)
"""Share of the image that an inception crop covers (google-research/big_vision)."""
ASPECT = (3 / 4, 4 / 3)
"""Its width over height."""
_TRIES = 10


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize RGB pixels (H, W, 3), bilinear with antialias."""
    if pixels.shape[:2] == (height, width):
        return pixels
    import torch
    import torch.nn.functional as F

    image: Tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    small = F.interpolate(
        image, (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return small[0].permute(1, 2, 0).numpy()


def square(pixels: Pixels, side: int) -> Pixels:
    """Resize RGB pixels to (side, side, 3), ignoring the aspect."""
    return resize(pixels, side, side)


def inception_box(
    height: int, width: int, *, seed: int, epoch: int, sample: int
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random rectangle of an image.

    Area and aspect are drawn, up to ten times, until the rectangle fits; else it is the largest
    centred one of an allowed aspect. A pure function of its arguments.
    """
    tries = np.arange(_TRIES)
    area = height * width * _between(AREA, keyed_uniform(seed, epoch, sample, _PURPOSE_AREA, tries))
    low, high = np.log(ASPECT[0]), np.log(ASPECT[1])
    draws = keyed_uniform(seed, epoch, sample, _PURPOSE_ASPECT, tries)
    aspect = np.exp(_between((low, high), draws))
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    fits = (heights >= 1) & (widths >= 1) & (heights <= height) & (widths <= width)
    if fits.any():
        which = int(np.argmax(fits))
        h, w = int(heights[which]), int(widths[which])
        top = int(keyed_uniform(seed, epoch, sample, _PURPOSE_TOP) * (height - h + 1))
        left = int(keyed_uniform(seed, epoch, sample, _PURPOSE_LEFT) * (width - w + 1))
        return top, left, h, w
    h = min(height, max(1, round(width / ASPECT[0])))
    w = min(width, max(1, round(height * ASPECT[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def inception_crop_flip(
    pixels: Pixels, crop: int, *, flip: bool, seed: int, epoch: int, sample: int
) -> Pixels:
    """Cut a random rectangle, resize it to a square, mirror half of them: (crop, crop, 3).

    Args:
        pixels: RGB (H, W, 3).
        crop: Side of the result.
        flip: Whether to mirror left-right with probability 1/2.
        seed: Of all draws.
        epoch: The image is seen in.
        sample: Number of the image in its dataset.
    """
    height, width = pixels.shape[:2]
    top, left, h, w = inception_box(height, width, seed=seed, epoch=epoch, sample=sample)
    cut = resize(pixels[top : top + h, left : left + w], crop, crop)
    if flip and keyed_uniform(seed, epoch, sample, _PURPOSE_FLIP) < 0.5:
        cut = cut[:, ::-1]
    return cut


def random_crop_flip(
    images: NDArray[np.uint8],
    crop: int,
    *,
    flip: bool,
    seed: int,
    epochs: NDArray[np.int64],
    samples: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Cut a random square out of each image and mirror half of them.

    Every draw is keyed by (seed, epoch, sample), so it does not depend on the batch around it.

    Args:
        images: (B, P, P, 3).
        crop: Side of the cut, at most P.
        flip: Whether to mirror left-right with probability 1/2.
        seed: Of all draws.
        epochs: (B,), the epoch each image is seen in.
        samples: (B,), the number of each image in its dataset.

    Returns:
        (B, crop, crop, 3).
    """
    room = images.shape[1] - crop + 1
    top = (keyed_uniform(seed, epochs, samples, _PURPOSE_TOP) * room).astype(np.int64)
    left = (keyed_uniform(seed, epochs, samples, _PURPOSE_LEFT) * room).astype(np.int64)
    mirrored = (
        keyed_uniform(seed, epochs, samples, _PURPOSE_FLIP) < 0.5
        if flip
        else np.zeros(len(images), bool)
    )
    result = np.empty((len(images), crop, crop, 3), np.uint8)
    for i, (y, x, turned) in enumerate(zip(top, left, mirrored, strict=True)):
        cut = images[i, y : y + crop, x : x + crop]
        result[i] = cut[:, ::-1] if turned else cut
    return result


def _between(bounds: tuple[float, float], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    return bounds[0] + (bounds[1] - bounds[0]) * draws
