"""What a page shows of classes and of image sizes: rows of bars, with pictures of each class."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from bigtransfer.data import manifest
from bigtransfer.data.checking import Checked
from bigtransfer.data.manifest import column
from bigtransfer.data.sources.listing import SPLITS
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
    rows: list[int] = field(default_factory=list)


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
    for i, row in enumerate(manifest.rows_of(checked.table, ["labels", "split", "fault"])):
        if row["fault"] is None:
            for label in row["labels"]:
                found = classes[label]
                found.images += 1
                found.splits[row["split"]] += 1
                found.rows.append(i)
    splits = [name for name in SPLITS if any(own.splits[name] for own in classes.values())]
    most = max((own.images for own in classes.values()), default=0) or 1
    ordered = sorted(classes, key=lambda label: -classes[label].images)
    half = SHOWN // 2
    few = len(ordered) <= SHOWN
    shown = ordered if few else [*ordered[:half], *ordered[-half:]]

    def row_of(label: str, pictured: bool) -> page.Shown:
        own = classes[label]
        chosen = spread(own.rows, PICTURES) if pictured else []
        pictures = [thumbnails.uri(row, _PICTURE_PIXELS) for row in chosen]
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
    usable = checked.table.filter(checked.table["fault"].is_null())
    heights, widths = column(usable, "height"), column(usable, "width")
    if not heights:
        return None
    shorter = [min(pair) for pair in zip(heights, widths, strict=True)]
    wide = sum(w > _SQUARE * h for h, w in zip(heights, widths, strict=True))
    tall = sum(h > _SQUARE * w for h, w in zip(heights, widths, strict=True))
    precrop, crop = sizes_of_training(median(heights), median(widths))
    return {
        "height": round(median(heights)),
        "width": round(median(widths)),
        "same": len(set(zip(heights, widths, strict=True))) == 1,
        "wide": wide,
        "tall": tall,
        "square": len(heights) - wide - tall,
        "least": min(shorter),
        "most": max(max(pair) for pair in zip(heights, widths, strict=True)),
        "enlarged": sum(side < crop for side in shorter),
        "precrop": precrop,
        "crop": crop,
        "bins": binned(shorter),
    }


def binned(sizes: Sequence[int]) -> list[page.Shown]:
    """Return a histogram of sizes: even steps, or doubling ones where they differ widely."""
    low, high = min(sizes), max(sizes)
    if high > _WIDE * low:
        edges = [*_LADDER[bisect_right(_LADDER, low) - 1 : bisect_right(_LADDER, high)]]
    else:
        step = _step((high - low + 1) / _BINS)
        edges = list(range(low // step * step, high + 1, step))
    counts = Counter(bisect_right(edges, size) - 1 for size in sizes)
    tallest = max(counts.values())
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
