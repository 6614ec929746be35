"""Texts that come more than once among millions, found with eight bytes of memory for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np


def repeated(texts: Callable[[], Iterable[str]]) -> set[str]:
    """Return the texts that come more than once.

    Args:
        texts: Begins them anew each time it is called; a second time only if some may be equal.
    """
    marks = np.fromiter((hash(text) for text in texts()), np.int64)
    marks.sort()
    twice = set(marks[1:][marks[1:] == marks[:-1]].tolist())
    if not twice:
        return set()
    counts = Counter(text for text in texts() if hash(text) in twice)
    return {text for text, count in counts.items() if count > 1}
