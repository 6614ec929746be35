"""Deal images to train, validation and test: by duplicate group, per class, seeded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

TRAIN, VAL, TEST = range(3)
"""Codes of the splits, in the order of `sources.listing.SPLITS`."""


@dataclass(frozen=True)
class Shares:
    """How images are dealt."""

    val: float
    """Share for validation, in [0, 1)."""
    test: float
    """Share for test, in [0, 1)."""
    seed: int
    """Of the order."""
    fill: bool = True
    """Whether small classes are dealt anew, so that no split with a share stays empty."""


def make_splits(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    names: Callable[[int], str],
    shares: Shares,
) -> NDArray[np.int8]:
    """Return the split of every image.

    Copies of one image (equal group) land in the same split. Within a class the groups are put
    into an order that depends on the seed and on the images alone, so neither file names nor
    the other classes move an image; then the first `test` share goes to test, the next `val`
    share to val. A class keeps at least one image for train. Where a class is so small that
    rounding leaves a split empty that has a share, it is dealt anew: the shares are rounded down,
    but to one image at least (3 images: 1 train, 1 val, 1 test; 5: 3, 1, 1).

    Args:
        labels: (N,) class of each image, any numbers.
        groups: (N,) duplicate group of each image, any numbers.
        names: Group -> a text that stands for it wherever it is, e.g. the digest of its pixels.
        shares: How they are dealt.

    Returns:
        (N,) `TRAIN`, `VAL` or `TEST`.
    """
    found, first, member_of, sizes = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    order_of = np.empty((len(found), 2), np.uint64)
    for i, group in enumerate(found.tolist()):
        digest = hashlib.sha256(f"{shares.seed}/{names(group)}".encode()).digest()
        order_of[i] = np.frombuffer(digest[:16], ">u8")
    classes = labels[first]
    order = np.lexsort((order_of[:, 1], order_of[:, 0], classes))
    edges = np.flatnonzero(np.diff(classes[order], prepend=np.nan, append=np.nan))
    wanted = {code for code, share in ((TEST, shares.test), (VAL, shares.val)) if share > 0}
    dealt = np.full(len(found), TRAIN, np.int8)
    for start, stop in pairwise(edges.tolist()):
        owned = order[start:stop]
        splits = _by_rounding(sizes[owned], shares)
        if shares.fill and len(wanted) < len(owned) and not wanted <= set(np.unique(splits)):
            # Many copies of one: into train.
            owned = owned[np.argsort(sizes[owned], kind="stable")]
            splits = _at_least_one(len(owned), shares)
        dealt[owned] = splits
    return dealt[member_of]


def _by_rounding(sizes: NDArray[np.int64], shares: Shares) -> NDArray[np.int8]:
    """Return the split of each group of a class, in order, by its number of images."""
    total, after = int(sizes.sum()), np.cumsum(sizes[:-1])
    test, val = round(total * shares.test), round(total * shares.val)
    splits = np.full(len(sizes), TRAIN, np.int8)
    splits[:-1][after <= test + val] = VAL
    splits[:-1][after <= test] = TEST
    return splits


def _at_least_one(count: int, shares: Shares) -> NDArray[np.int8]:
    """Return the split of each group of a small class, in order: one at least for each share."""
    for_val = max(1, int(count * shares.val)) if shares.val else 0
    for_test = max(1, int(count * shares.test)) if shares.test else 0
    while for_val + for_test >= count:
        if for_test >= for_val:
            for_test -= 1
        else:
            for_val -= 1
    counts = (for_test, for_val, count - for_val - for_test)
    return np.repeat(np.array([TEST, VAL, TRAIN], np.int8), counts)
