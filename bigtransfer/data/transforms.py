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
_LARGE_BYTES = 1 << 14


def resize_into(out: Pixels, pixels: Pixels) -> None:
    """Resize RGB pixels (H, W, 3) to the size of `out`, bilinear with antialias.

    The operation behind `F.interpolate(…, antialias=True)` is called by its own name, because that
    takes a place to write to: straight into the batch, without the planar copy in between.
    """
    if pixels.shape == out.shape:
        out[:] = pixels
        return
    import torch

    height, width = out.shape[:2]
    torch.ops.aten._upsample_bilinear2d_aa.out(
        _as_images(np.ascontiguousarray(pixels)),
        [height, width],
        False,
        None,
        None,
        out=_as_images(out),
    )


def cut_into(out: Pixels, pixels: Pixels, box: list[int] | None, *, turned: bool) -> None:
    """Resize a part of RGB pixels (H, W, 3) to the size of `out`, and mirror it where wanted.

    Args:
        out: Written to.
        pixels: (H, W, 3).
        box: Top, left, height, width; None: all of it.
        turned: Whether to mirror it left-right.
    """
    if box is not None:
        top, left, height, width = box
        pixels = pixels[top : top + height, left : left + width]
    resize_into(out, pixels)
    if turned:
        mirror(out)


def mirror(out: Pixels) -> None:
    """Mirror RGB pixels (H, W, 3) left-right, in place."""
    image = _as_images(out)
    image.copy_(image.flip(-1))


def _as_images(pixels: Pixels) -> Tensor:
    """Return pixels (H, W, 3) as a batch of one, (1, 3, H, W), sharing their memory."""
    import torch

    return torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)


def inception_boxes(
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    *,
    seed: int,
    epochs: NDArray[np.int64],
    samples: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Draw a random rectangle of each image.

    Area and aspect are drawn, up to ten times, until the rectangle fits; else it is the largest
    centred one of an allowed aspect. Every draw is keyed by (seed, epoch, sample).

    Args:
        heights: (B,) of the images.
        widths: (B,) of the images.
        seed: Of all draws.
        epochs: (B,), the epoch each image is seen in.
        samples: (B,), the number of each image in its dataset.

    Returns:
        (B, 4): top, left, height, width.
    """
    own = (epochs[:, None], samples[:, None])
    tries = np.arange(_TRIES)
    area = (heights * widths)[:, None] * _between(
        AREA, keyed_uniform(seed, *own, _PURPOSE_AREA, tries)
    )
    bounds = (float(np.log(ASPECT[0])), float(np.log(ASPECT[1])))
    aspect = np.exp(_between(bounds, keyed_uniform(seed, *own, _PURPOSE_ASPECT, tries)))
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    fits = (h >= 1) & (w >= 1) & (h <= heights[:, None]) & (w <= widths[:, None])
    which, rows = fits.argmax(1), np.arange(len(fits))
    found = fits[rows, which]
    widest = np.minimum(widths, np.maximum(1, np.rint(heights * ASPECT[1]))).astype(np.int64)
    tallest = np.minimum(heights, np.maximum(1, np.rint(widths / ASPECT[0]))).astype(np.int64)
    h = np.where(found, h[rows, which], tallest)
    w = np.where(found, w[rows, which], widest)
    down = np.where(found, keyed_uniform(seed, epochs, samples, _PURPOSE_TOP), 0.5)
    across = np.where(found, keyed_uniform(seed, epochs, samples, _PURPOSE_LEFT), 0.5)
    top = (down * (heights - h + 1)).astype(np.int64)
    left = (across * (widths - w + 1)).astype(np.int64)
    return np.stack([top, left, h, w], axis=1)


def mirrored(seed: int, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which images are mirrored, with probability 1/2 each."""
    draws: NDArray[np.bool_] = keyed_uniform(seed, epochs, samples, _PURPOSE_FLIP) < 0.5
    return draws


def random_crop_flip(
    images: NDArray[np.uint8],
    crop: int,
    *,
    flip: bool,
    seed: int,
    epochs: NDArray[np.int64],
    samples: NDArray[np.int64],
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Cut a random square out of each image and mirror half of them.

    Every draw is keyed by (seed, epoch, sample), so it does not depend on the batch around it.

    Args:
        images: (B, P, P, 3); or (N, P, P, 3), all there are, where `rows` chooses.
        crop: Side of the cut, at most P.
        flip: Whether to mirror left-right with probability 1/2.
        seed: Of all draws.
        epochs: (B,), the epoch each image is seen in.
        samples: (B,), the number of each image in its dataset.
        rows: (B,) of `images` to take; None: all, in order.

    Returns:
        (B, crop, crop, 3).
    """
    images = np.ascontiguousarray(images)
    room = images.shape[1] - crop + 1
    top = (keyed_uniform(seed, epochs, samples, _PURPOSE_TOP) * room).astype(np.int64)
    left = (keyed_uniform(seed, epochs, samples, _PURPOSE_LEFT) * room).astype(np.int64)
    # Every possible cut as a view, (N, room, room, crop, crop * 3); the wanted ones are copied.
    image, line, pixel, _ = images.strides
    cuts = np.lib.stride_tricks.as_strided(
        images, (len(images), room, room, crop, crop * 3), (image, line, pixel, line, 1)
    )
    taken = np.arange(len(samples)) if rows is None else rows
    result: NDArray[np.uint8] = cuts[taken, top, left].reshape(len(samples), crop, crop, 3)
    if flip:
        _mirror_some(result, np.flatnonzero(mirrored(seed, epochs, samples)))
    return result


def _mirror_some(images: NDArray[np.uint8], which: NDArray[np.int64]) -> None:
    if images[0].nbytes > _LARGE_BYTES:
        for i in which.tolist():
            mirror(images[i])
        return
    _, side, width, _ = images.shape  # many lines at a time
    backwards = np.arange(width * 3).reshape(width, 3)[::-1].ravel()
    lines = images[which].reshape(len(which) * side, width * 3)
    images[which] = np.take(lines, backwards, axis=1).reshape(len(which), side, width, 3)


def _between(bounds: tuple[float, float], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    return bounds[0] + (bounds[1] - bounds[0]) * draws
