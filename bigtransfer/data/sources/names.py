"""What names say: the order of classes, which are alike, which splits a name speaks of."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from bigtransfer.data.sources.listing import SPLIT_NAMES

_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")
_SPLIT = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))
_ONE = re.compile(rf"({_SPLIT})(?:set|data|split|imgs?|images?)?")
_TWO = re.compile(rf"({_SPLIT})({_SPLIT})")
_INVISIBLE = "Cf"
"""Unicode's category of characters without a shape: joiners, byte order marks."""


def splits_in(name: str) -> list[str]:
    """Return the splits that the words of a name speak of, each once.

    Words end at `-`, `_`, `.`, blanks, digits and before a capital: `imagenet1k-validation-00.tar`
    speaks of val, `TrainImages` of train, `trainval` of train and of val, `trains` of none.
    """
    found = []
    for word in _WORD.findall(_HUMP.sub(" ", name)):
        known = _ONE.fullmatch(word.lower()) or _TWO.fullmatch(word.lower())
        found += [SPLIT_NAMES[part] for part in (known.groups() if known else ())]
    return list(dict.fromkeys(found))


def in_order(labels: Iterable[str]) -> list[str]:
    """Return class names, each once, in natural order: numbers in them by value, so 2 before 10."""
    return sorted(set(labels), key=_natural)


def _natural(label: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d{1,1000})", label)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], label


def alike(labels: Iterable[str]) -> list[list[str]]:
    """Return groups of names that differ in case, blanks or Unicode's spelling alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[_folded(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def _folded(label: str) -> str:
    text = unicodedata.normalize("NFKC", label).casefold()
    shown = (char for char in text if unicodedata.category(char) != _INVISIBLE)
    return " ".join(unicodedata.normalize("NFKC", "".join(shown)).split())
