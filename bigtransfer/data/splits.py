"""Deal images to train, validation and test: by duplicate group, per class, seeded."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def make_splits(
    labels: Sequence[str], groups: Sequence[str], *, val: float, test: float, seed: int
) -> list[str]:
    """Return `train`, `val` or `test` for every image.

    Copies of one image (equal group) land in the same split. Within a class the groups are put
    into an order that depends on the seed and on the images alone, so neither file names nor
    the other classes move an image; then the first `test` share goes to test, the next `val`
    share to val. A class keeps at least one image for train.

    Args:
        labels: Class of each image.
        groups: Duplicate group of each image, e.g. the digest of its pixels.
        val: Share for validation, in [0, 1).
        test: Share for test, in [0, 1).
        seed: Of the order.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    by_class: dict[str, list[str]] = defaultdict(list)
    for group, rows in members.items():
        by_class[labels[rows[0]]].append(group)
    result = ["train"] * len(labels)
    for owned in by_class.values():
        owned.sort(key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
        total = sum(len(members[group]) for group in owned)
        dealt = 0
        for group in owned[:-1]:
            rows = members[group]
            after = dealt + len(rows)
            if after <= round(total * test):
                split = "test"
            elif after <= round(total * test) + round(total * val):
                split = "val"
            else:
                break
            for i in rows:
                result[i] = split
            dealt = after
    return result
