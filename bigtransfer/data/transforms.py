"""Resize, crop, flip, normalise: from encoded bytes to what the network takes.

BiT resizes to a square (ignoring the aspect), trains on a random crop of it, and evaluates on the
whole image resized straight to the crop size (arXiv 1912.11370, section 3.3; bit_hyperrule.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigtransfer.data.inspection import decode_rgb
from bigtransfer.data.randomness import keyed_uniform

_PURPOSE_TOP, _PURPOSE_LEFT, _PURPOSE_FLIP = 1, 2, 3


def decode_square(data: bytes, side: int) -> NDArray[np.uint8]:
    """Decode an image and resize it to a square, bilinear with antialias: (side, side, 3)."""
    image = decode_rgb(data)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)


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
    line = np.arange(crop)
    columns = np.broadcast_to(line, (len(images), crop))
    if flip:
        mirrored = keyed_uniform(seed, epochs, samples, _PURPOSE_FLIP) < 0.5
        columns = np.where(mirrored[:, None], line[::-1], line)
    batch = np.arange(len(images))[:, None, None]
    down = (top[:, None] + line)[:, :, None]
    across = (left[:, None] + columns)[:, None, :]
    cut: NDArray[np.uint8] = images[batch, down, across]
    return cut
