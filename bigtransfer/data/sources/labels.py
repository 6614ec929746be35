"""What stands where a label belongs, as class names: text, a number, a list, or no label at all."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from bigtransfer.errors import DatasetError

SEPARATOR = "|"
"""Between the labels of one image, in text."""
_OLD_SEPARATOR = ";"
_MISSING = {"nan", "NaN", "NAN", "-nan", "NaT", "<NA>", "#N/A"}
"""What programs write for nothing; no class is called so."""
_DOUBTFUL = {"None", "none", "null", "NULL", "Null", "NA", "N/A", "n/a"}
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
_VECTOR = re.compile(r"\[?\s*[01](\.0*)?([\s,]+[01](\.0*)?)+\s*\]?")
_LONGEST = 10_000
_ZERO_ONE = {"0", "1", "True", "False"}


def is_missing(value: Any) -> bool:
    """Say whether a value stands for none: None, NaN, NaT, pandas' NA or empty text."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return bool(type(value).__name__ in ("NaTType", "NAType") or value != value)


def class_name(value: Any, at: str) -> str:
    """Return a value as one class name.

    Args:
        value: Text, bytes, a number or a truth value.
        at: Where it stands, for messages.

    Raises:
        DatasetError: If it is no name: missing, a fraction, an object, the text of a list.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DatasetError(f"{at}: its label is not UTF-8 text; write it anew") from error
    if is_missing(value) or (isinstance(value, str) and value.strip() in _MISSING):
        shown = "" if is_missing(value) and not isinstance(value, float) else f" ({value})"
        raise DatasetError(f"{at} has no label{shown}; give it one, or leave the image out")
    if isinstance(value, float | Decimal):
        if math.isinf(value) or value != int(value):
            raise DatasetError(f"{at}: label {value} is no class; write whole numbers or names")
        return str(int(value))
    if isinstance(value, dict | list | tuple | set):
        raise DatasetError(
            f"{at}: label {_short(value)} is no name but {_kind(value)}; write the class's name"
        )
    text = str(value).strip()
    if any("\ud800" <= char <= "\udfff" for char in text):  # JSON can spell halves of characters
        raise DatasetError(f"{at}: label {ascii(text)} is no Unicode text; write it anew")
    if len(text.splitlines()) > 1:
        raise DatasetError(
            f"{at}: label {_short(text)} has {len(text.splitlines())} lines; a label is one name"
        )
    if isinstance(value, str) and (kind := _written(text)):
        raise DatasetError(
            f"{at}: label {_short(text)} is the text of {kind}; write the class's name, or several "
            f"in a column 'labels', separated by {SEPARATOR!r}"
        )
    return text


def class_names(values: Iterable[Any], at: str) -> tuple[str, ...]:
    """Return the members of a list as class names, as they stand; missing ones are left out.

    Raises:
        DatasetError: If one is no name.
    """
    return tuple(class_name(value, at) for value in values if not is_missing(value))


def separated(cells: Sequence[str], at: Callable[[int], str]) -> Iterator[list[str]]:
    """Split cells of text into labels, by `|`; by `;`, as before, where no cell holds a `|`.

    Args:
        cells: Of all images; empty: no label.
        at: Returns where a cell stands, for messages.

    Raises:
        DatasetError: If a column mixes both, or seems to separate by commas; names the first row.
    """
    has = {mark: [mark in cell for cell in cells] for mark in (SEPARATOR, _OLD_SEPARATOR, ",")}
    used = SEPARATOR if any(has[SEPARATOR]) else _OLD_SEPARATOR
    odd = _OLD_SEPARATOR if used == SEPARATOR else "," if not any(has[used]) else None
    row = has[odd].index(True) if odd and True in has[odd] else None
    for number, cell in enumerate(cells):
        if kind := _written(cell.strip()):
            raise DatasetError(
                f"{at(number)}: labels {_short(cell)} are the text of {kind}; separate the names "
                f"by {SEPARATOR!r}, e.g. cat|dog"
            )
        if number == row:
            raise DatasetError(
                f"{at(number)}: labels {_short(cell)} hold {odd!r}, which does not separate labels "
                f"here; separate them by {SEPARATOR!r} (a single name with a comma goes into a "
                "column 'label', or ends with '|')"
            )
        yield [text for text in (part.strip() for part in cell.split(used)) if text]


def refuse_vectors(rows: Sequence[Sequence[str]], at: Callable[[int], str]) -> None:
    """Refuse lists with a 0 or 1 for every class, which are not lists of classes.

    Raises:
        DatasetError: If all lists are as long as each other and hold nothing else.
    """
    given = [(number, row) for number, row in enumerate(rows) if row]
    lengths = {len(row) for _, row in given}
    if len(lengths) == 1 and max(lengths) > 1 and all(set(row) <= _ZERO_ONE for _, row in given):
        number, row = given[0]
        raise DatasetError(
            f"{at(number)}: labels {', '.join(row)} are a 0 or 1 for every class, as in all rows; "
            "write the names of the classes that are there"
        )


def whole_numbers(labels: Iterable[str]) -> Callable[[str], str]:
    """Return how labels in text are spelled: 3.0 as 3, where every one is a whole number."""
    known = set(labels)
    if any("." in label for label in known) and all(map(_WHOLE.fullmatch, known)):
        return lambda label: label.partition(".")[0]
    return lambda label: label


def doubts(labels: Iterable[str]) -> list[str]:
    """Return a line about names that may be missing values, or several labels in one."""
    counts = Counter(labels)
    notes = [
        f"label {name!r} ({counts[name]:,} times) is taken for a class; if it stands for none, "
        "leave those images out"
        for name in sorted(_DOUBTFUL & counts.keys())
    ]
    joined = [name for name in counts if SEPARATOR in name]
    if joined:
        notes.append(
            f"{min(joined)!r} is taken for one class; several labels belong in a column 'labels'"
        )
    return notes


def _written(text: str) -> str | None:
    """Return what kind of list or object a text spells, or None."""
    if _VECTOR.fullmatch(text[:_LONGEST]):
        return "a list of numbers"
    if not text or text[0] + text[-1] not in ("[]", "{}", "()"):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text) if len(text) <= _LONGEST else [text]
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | tuple | dict | set):
            return _kind(value)
    return "a list" if text[0] == "[" and "," in text else None


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, dict) else "a list"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
