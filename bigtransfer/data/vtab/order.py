"""The order of examples that VTAB's splits are cut from.

The benchmark cuts its splits out of TensorFlow Datasets (TFDS), which orders the examples of a part
by the MD5 of the part's name and the example's key (tensorflow/datasets, `core/hashing.py` and
`core/shuffle.py`). Keys are those of its builders: a file name, or the number of a row. Nothing is
drawn, so the order can be had without TFDS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def order_of(keys: Sequence[str], part: str) -> list[int]:
    """Return the rows of a part, as TFDS orders them.

    Args:
        keys: Of its examples, as the builder in TFDS names them.
        part: Name of the part there: train, validation or test.
    """
    begun = hashlib.md5(part.encode(), usedforsecurity=False)

    def digest(row: int) -> bytes:
        own = begun.copy()
        own.update(keys[row].encode())
        return own.digest()

    return sorted(range(len(keys)), key=digest)
