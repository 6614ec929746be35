"""What a page shows of classes and of image sizes: rows of bars, with pictures of each class."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bigtransfer.data.checking import Checked
from bigtransfer.data.sources.listing import SPLITS
from bigtransfer.data.tables import iter_rows
from bigtransfer.data.thumbnails import Thumbnails, sizes_of_training
from bigtransfer.report import page

SHOWN = 40
"""Classes that are shown with pictures: the largest and the smallest."""
PICTURES = 6
"""Of each class."""
_PICTURE_PIXELS = 112
_LADDER = (1, *(step << power for power in range(20) for step in (2, 3)))
"""Beginnings of bins for sizes that differ widely: 1, 2, 3, 4, 6, 8, 12, …"""
_BINS = 10
_WIDE = 4
"""Times the least size, from which on the ladder is used."""
_SQUARE = 1.1
"""Times the other side, up to which an image is nearly square."""


@dataclass
class _Class:
    images: int = 0
    splits: Counter[str] = field(default_factory=Counter)


def class_rows(checked: Checked, thumbnails: Thumbnails) -> page.Shown:
    """Return the classes by size, with pictures of some.

    Args:
        checked: What was found.
        thumbnails: Pictures of its images.

    Returns:
        `shown` and `rest` (rows of `label`, `images`, `splits`, `bars`; of those shown `pictures`,
        too), `splits` (names of those there are), `equal` (whether all are of one size).
    """
    classes = {label: _Class() for label in checked.source.labels}
    for labels, split, fault in iter_rows(checked.table, "labels", "split", "fault"):
        for label in labels if fault is None else ():
            found = classes[label]
            found.images += 1
            found.splits[split] += 1
    splits = [name for name in SPLITS if any(own.splits[name] for own in classes.values())]
    most = max((own.images for own in classes.values()), default=0) or 1
    ordered = sorted(classes, key=lambda label: -classes[label].images)
    half = SHOWN // 2
    few = len(ordered) <= SHOWN
    shown = ordered if few else [*ordered[:half], *ordered[-half:]]
    rows = _pictured(checked, {label: classes[label].images for label in shown})

    def row_of(label: str, pictured: bool) -> page.Shown:
        own = classes[label]
        pictures = [thumbnails.uri(row, _PICTURE_PIXELS) for row in rows[label]] if pictured else []
        return {
            "label": label,
            "images": own.images,
            "splits": [(name, own.splits[name]) for name in splits],
            "bars": [(name, round(100 * own.splits[name] / most, 2)) for name in splits],
            "pictures": [picture for picture in pictures if picture],
        }

    rest = [] if few else ordered[half:-half]
    return {
        "shown": [row_of(label, True) for label in shown],
        "rest": [row_of(label, False) for label in rest],
        "splits": splits,
        "equal": len({own.images for own in classes.values()}) == 1,
    }


def _pictured(checked: Checked, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Return class -> rows of its usable images at even distances, of classes of so many."""
    wanted = {label: set(spread(range(count), PICTURES)) for label, count in counts.items()}
    found: dict[str, list[int]] = {label: [] for label in counts}
    seen: Counter[str] = Counter()
    for row, (labels, fault) in enumerate(iter_rows(checked.table, "labels", "fault")):
        for label in labels if fault is None else ():
            if label in wanted:
                if seen[label] in wanted[label]:
                    found[label].append(row)
                seen[label] += 1
    return found


def spread(rows: Sequence[int], count: int) -> list[int]:
    """Return so many of the rows, at even distances: neighbours in a folder are often alike."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def image_sizes(checked: Checked) -> page.Shown | None:
    """Return how large the usable images are, or None where there are none.

    Returns:
        `height` and `width` (medians), `same` (whether all are of that size), `wide`, `tall` and
        `square` (images of each shape), `bins` of the shorter side: `low`, `high`, `count`,
        `share` of the largest bin, percent; `precrop` and `crop` of training by default, and
        `enlarged` (images with a side below that crop).
    """
    usable = checked.table["fault"].is_null()
    heights, widths = (
        checked.table[name].filter(usable).to_numpy() for name in ("height", "width")
    )
    if not len(heights):
        return None
    shorter = np.minimum(heights, widths)
    wide = int((widths > _SQUARE * heights).sum())
    tall = int((heights > _SQUARE * widths).sum())
    height, width = float(np.median(heights)), float(np.median(widths))
    precrop, crop = sizes_of_training(height, width)
    return {
        "height": round(height),
        "width": round(width),
        "same": bool((heights == heights[0]).all() and (widths == widths[0]).all()),
        "wide": wide,
        "tall": tall,
        "square": len(heights) - wide - tall,
        "least": int(shorter.min()),
        "most": int(max(heights.max(), widths.max())),
        "enlarged": int((shorter < crop).sum()),
        "precrop": precrop,
        "crop": crop,
        "bins": binned(shorter),
    }


def binned(sizes: NDArray[np.int32]) -> list[page.Shown]:
    """Return a histogram of sizes: even steps, or doubling ones where they differ widely."""
    low, high = int(sizes.min()), int(sizes.max())
    if high > _WIDE * low:
        edges = [*_LADDER[bisect_right(_LADDER, low) - 1 : bisect_right(_LADDER, high)]]
    else:
        step = _step((high - low + 1) / _BINS)
        edges = list(range(low // step * step, high + 1, step))
    places = np.searchsorted(edges, sizes, side="right") - 1
    counts = np.bincount(places, minlength=len(edges)).tolist()
    tallest = max(counts)
    ends = [*edges[1:], None]
    return [
        {
            "low": edge,
            "high": high if end is None else end - 1,
            "count": counts[i],
            "share": round(100 * counts[i] / tallest, 1),
        }
        for i, (edge, end) in enumerate(zip(edges, ends, strict=True))
    ]


def _step(least: float) -> int:
    """Return the first round number that is no smaller."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= least:
                return digit * power
        power *= 10
