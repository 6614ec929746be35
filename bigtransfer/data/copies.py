"""Which images of a dataset are one image: equal pixels, or looks that agree."""

from __future__ import annotations

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
"""Above so many images, looks are compared between splits only: all pairs would take hours."""
_ORDER = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
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


def find_copies(
    pixel_digests: Sequence[str],
    prints: Fingerprints,
    comparable: NDArray[np.bool_],
    *,
    near: bool = True,
) -> Copies:
    """Find all copies among images.

    An image with equal pixels is paired with the first one; looks are compared among first ones.

    Args:
        pixel_digests: Of each image; empty text: could not be decoded, equal to nothing.
        prints: Of each image.
        comparable: (N,) whether looks say anything: neither blank nor tiny.
        near: Whether to compare looks at all.
    """
    groups = np.arange(len(pixel_digests))
    pairs: list[Copy] = []
    first: dict[str, int] = {}
    for row, digest in enumerate(pixel_digests):
        if digest and (origin := first.setdefault(digest, row)) != row:
            groups[row] = origin
            pairs.append(Copy(origin, row, SAME_PIXELS))
    candidates = np.flatnonzero(comparable & (groups == np.arange(len(groups))))
    if near and len(candidates) <= MOST_COMPARED:
        for i, j, mirrored in near_pairs(prints.take(candidates)):
            a, b = int(candidates[i]), int(candidates[j])
            pairs.append(Copy(a, b, _how(mirrored)))
            _join(groups, a, b)
    for row in range(len(groups)):
        groups[row] = _root(groups, row)
    pairs.sort(key=lambda pair: (pair.first, pair.second))
    return Copies(pairs, groups)


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
) -> tuple[list[list[str]], list[str | None]]:
    """Say of every image what it is a copy of.

    Args:
        copies: As found.
        paths: Of each image.
        labels: Of each image.
        splits: Of each image.

    Returns:
        Flags of each image; and why it leaks: the copy in the later of two splits, or None.
    """
    partners: list[dict[str, list[str]]] = [{} for _ in paths]
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
    flags = [
        [f"{kind}: {some[0]}{_more(len(some) - 1)}" for kind, some in kinds.items()]
        for kinds in partners
    ]
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
