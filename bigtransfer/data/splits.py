"""Deal images to train, validation and test: by duplicate group, per class, seeded."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def make_splits(
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    val: float,
    test: float,
    seed: int,
    fill: bool = True,
) -> list[str]:
    """Return `train`, `val` or `test` for every image.

    Copies of one image (equal group) land in the same split. Within a class the groups are put
    into an order that depends on the seed and on the images alone, so neither file names nor
    the other classes move an image; then the first `test` share goes to test, the next `val`
    share to val. A class keeps at least one image for train. Where a class is so small that
    rounding leaves a split empty that has a share, it is dealt anew: the shares are rounded down,
    but to one image at least (3 images: 1 train, 1 val, 1 test; 5: 3, 1, 1).

    Args:
        labels: Class of each image.
        groups: Duplicate group of each image, e.g. the digest of its pixels.
        val: Share for validation, in [0, 1).
        test: Share for test, in [0, 1).
        seed: Of the order.
        fill: Whether small classes are dealt anew.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    by_class: dict[str, list[str]] = defaultdict(list)
    for group, rows in members.items():
        by_class[labels[rows[0]]].append(group)
    wanted = [name for name, share in (("test", test), ("val", val)) if share > 0]
    result = ["train"] * len(labels)
    for owned in by_class.values():
        owned.sort(key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
        dealt = _by_rounding([len(members[group]) for group in owned], val=val, test=test)
        if fill and len(wanted) < len(owned) and not set(wanted) <= set(dealt):
            owned.sort(key=lambda group: len(members[group]))  # many copies of one: into train
            dealt = _at_least_one(len(owned), val=val, test=test)
        for group, split in zip(owned, dealt, strict=True):
            for i in members[group]:
                result[i] = split
    return result


def _by_rounding(sizes: Sequence[int], *, val: float, test: float) -> list[str]:
    """Return the split of each group of a class, in order, by its number of images."""
    splits, total, dealt = ["train"] * len(sizes), sum(sizes), 0
    for number, size in enumerate(sizes[:-1]):
        after = dealt + size
        if after <= round(total * test):
            splits[number] = "test"
        elif after <= round(total * test) + round(total * val):
            splits[number] = "val"
        else:
            break
        dealt = after
    return splits


def _at_least_one(count: int, *, val: float, test: float) -> list[str]:
    """Return the split of each group of a small class, in order: one at least for each share."""
    for_val = max(1, int(count * val)) if val else 0
    for_test = max(1, int(count * test)) if test else 0
    while for_val + for_test >= count:
        if for_test >= for_val:
            for_test -= 1
        else:
            for_val -= 1
    return ["test"] * for_test + ["val"] * for_val + ["train"] * (count - for_val - for_test)
