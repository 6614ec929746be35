"""Which images of a dataset are one image: equal pixels, or looks that agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bigtransfer.data.fingerprint import Fingerprints, near_pairs

SAME_PIXELS = "same pixels as"
LABEL_CONFLICT = "label_conflict"
"""The kind of flag on images that are one image with two labels."""
_SAME = {
    SAME_PIXELS: "has the same pixels",
    "looks the same as": "looks the same",
    "mirror image of": "is its mirror image",
}
MOST_COMPARED = 2_000_000
"""Of more images looks are not compared: all pairs would take hours."""
_ORDER = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True, slots=True)
class Copy:
    """Two images that are one."""

    first: int
    second: int
    """Row numbers, first < second where both are of one table."""
    how: str
    """`same pixels as`, `looks the same as` or `mirror image of`."""


@dataclass(frozen=True)
class Copies:
    """All copies within one dataset."""

    pairs: list[Copy]
    groups: NDArray[np.int64]
    """Row -> the first row of its group."""
    too_many: int = 0
    """Images whose looks should have been compared and were not, for they are too many."""


def first_of_equal(
    digests: NDArray[np.uint8], known: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row of those with the same pixels, and the place of each in their order.

    Args:
        digests: uint8 (N, 32), of the pixels; told apart by their first 16 bytes.
        known: (N,) whether an image has one; what has none is equal to nothing.

    Returns:
        (N,) row -> the first row with its pixels; (N,) row -> rank of its digest.
    """
    high, low = np.ascontiguousarray(digests[:, :16]).view(">u8").T
    order = np.lexsort((low, high))  # stable: of equal ones the first row comes first
    same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    run = np.concatenate([[0], np.cumsum(~same)]) if len(order) else np.zeros(0, np.int64)
    starts = order[np.flatnonzero(np.concatenate([[True], ~same]))] if len(order) else order
    firsts, ranks = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    firsts[order], ranks[order] = starts[run], run
    return np.where(known, firsts, np.arange(len(order))), ranks


def find_copies(
    firsts: NDArray[np.int64],
    prints: Fingerprints,
    comparable: NDArray[np.bool_],
    *,
    near: bool = True,
) -> Copies:
    """Find all copies among images.

    An image with equal pixels is paired with the first one; looks are compared among first ones.

    Args:
        firsts: (N,) the first row with the same pixels; a row's own number where it is that.
        prints: Of each image.
        comparable: (N,) whether looks say anything: neither blank nor tiny.
        near: Whether to compare looks at all; of more than `MOST_COMPARED` they are not, either.
    """
    groups = firsts.copy()
    own = np.arange(len(groups))
    pairs = [Copy(int(groups[row]), int(row), SAME_PIXELS) for row in np.flatnonzero(groups != own)]
    candidates = np.flatnonzero(comparable & (groups == own))
    too_many = len(candidates) if near and len(candidates) > MOST_COMPARED else 0
    if near and not too_many:
        for i, j, mirrored in near_pairs(prints.take(candidates)):
            a, b = int(candidates[i]), int(candidates[j])
            pairs.append(Copy(a, b, _how(mirrored)))
            _join(groups, a, b)
    while (groups != (above := groups[groups])).any():
        groups = above
    pairs.sort(key=lambda pair: (pair.first, pair.second))
    return Copies(pairs, groups, too_many)


def find_between(
    queries: tuple[Sequence[str], Fingerprints, NDArray[np.bool_]],
    references: tuple[Sequence[str], Fingerprints, NDArray[np.bool_]],
) -> list[Copy]:
    """Find images of one table that are copies of images of another.

    Args:
        queries: Pixel digests, fingerprints and comparability of one.
        references: The same of the other.

    Returns:
        Copies whose `first` is a row of `queries` and whose `second` is one of `references`; the
        first such reference for equal pixels, every one for looks.
    """
    digests, prints, mask = queries
    known: dict[str, int] = {}
    for row, digest in enumerate(references[0]):
        if digest:
            known.setdefault(digest, row)
    found = [
        Copy(row, known[digest], SAME_PIXELS)
        for row, digest in enumerate(digests)
        if digest in known
    ]
    exact = {(copy.first, copy.second) for copy in found}
    own, other = np.flatnonzero(mask), np.flatnonzero(references[2])
    for i, j, mirrored in near_pairs(prints.take(own), references[1].take(other)):
        a, b = int(own[i]), int(other[j])
        if (a, b) not in exact and digests[a] != references[0][b]:
            found.append(Copy(a, b, _how(mirrored)))
            exact.add((a, b))
    return sorted(found, key=lambda copy: (copy.first, copy.second))


def describe(
    copies: Copies, paths: Sequence[str], labels: Sequence[Sequence[str]], splits: Sequence[str]
) -> tuple[dict[int, list[str]], list[str | None]]:
    """Say of every image what it is a copy of.

    Args:
        copies: As found.
        paths: Of each image.
        labels: Of each image.
        splits: Of each image.

    Returns:
        Flags of the images that have any, by row; and why each leaks: the copy in the later of two
        splits, or None.
    """
    partners: dict[int, dict[str, list[str]]] = defaultdict(dict)
    leaks: list[str | None] = [None] * len(paths)
    exact: dict[int, list[int]] = {}
    for pair in copies.pairs:
        near = pair.how != SAME_PIXELS
        other = "" if set(labels[pair.first]) == set(labels[pair.second]) else "_with_other_label"
        kind = f"{'near_duplicate' if near else 'duplicate'}{other}"
        if other:
            for row, twin in ((pair.first, pair.second), (pair.second, pair.first)):
                _note_conflict(partners[row], row, twin, pair.how, paths, labels)
        partners[pair.second].setdefault(kind, []).append(f"{pair.how} {paths[pair.first]}")
        if near:
            partners[pair.first].setdefault(kind, []).append(f"{pair.how} {paths[pair.second]}")
            _note_leak(leaks, pair.first, pair.second, pair.how, paths, splits)
        else:
            exact.setdefault(pair.first, [pair.first]).append(pair.second)
    for members in exact.values():
        earliest = min(members, key=lambda row: (_ORDER[splits[row]], row))
        for row in members:
            _note_leak(leaks, earliest, row, SAME_PIXELS, paths, splits)
        own = set(labels[members[0]])
        twins = [row for row in members if set(labels[row]) != own]
        for row in members[1:] if twins else ():  # the first and the twins are flagged by now
            if set(labels[row]) == own:
                _note_conflict(partners[row], row, twins[0], SAME_PIXELS, paths, labels)
    flags = {
        row: [f"{kind}: {some[0]}{_more(len(some) - 1)}" for kind, some in kinds.items()]
        for row, kinds in partners.items()
        if kinds
    }
    return flags, leaks


def _note_conflict(
    kinds: dict[str, list[str]],
    own: int,
    twin: int,
    how: str,
    paths: Sequence[str],
    labels: Sequence[Sequence[str]],
) -> None:
    """Say of an image that it is another one too, with another label."""
    here, there = (_labels(labels[row]) for row in (own, twin))
    text = f"{here} here, {there} as {paths[twin]}, which {_SAME[how]}"
    kinds.setdefault(LABEL_CONFLICT, []).append(text)


def _labels(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names)) or "no label"


def _note_leak(
    leaks: list[str | None], a: int, b: int, how: str, paths: Sequence[str], splits: Sequence[str]
) -> None:
    if splits[a] != splits[b]:
        early, late = sorted((a, b), key=lambda row: _ORDER[splits[row]])
        leaks[late] = leaks[late] or f"{how} {paths[early]!r} in {splits[early]}"


def _more(count: int) -> str:
    return f", and {count} more" if count else ""


def _how(mirrored: bool) -> str:
    return "mirror image of" if mirrored else "looks the same as"


def _root(groups: NDArray[np.int64], row: int) -> int:
    while groups[row] != row:
        groups[row] = groups[groups[row]]
        row = int(groups[row])
    return row


def _join(groups: NDArray[np.int64], a: int, b: int) -> None:
    low, high = sorted((_root(groups, a), _root(groups, b)))
    groups[high] = low
