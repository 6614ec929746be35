"""Text tables as spreadsheets write them: UTF-8 or UTF-16, commas, semicolons or tabs."""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

from bigtransfer.errors import DatasetError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
_EXCEL = "sep="
"""Excel's own first line that names the delimiter."""


def read_csv(
    data: bytes, where: str, *, tabs: bool, wanted: Callable[[list[str]], dict[str, str] | None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a text table, and what to say of how it was read.

    Args:
        data: The file.
        where: What it is, for messages.
        tabs: Whether its name promises tabs, not commas.
        wanted: Returns column -> name to use if a heading has the columns that are needed. The
            delimiter is the promised one, or the only other one that gives such a heading.

    Raises:
        DatasetError: Names the line or the row.
    """
    text, start = _text(data, where), 1
    promised = "\t" if tabs else ","
    if text[:4].lower() == _EXCEL and text[5:6] in ("\r", "\n"):
        promised, start = text[4], 2
        text = text.split("\n", 1)[1]
    head = text.split("\n", 1)[0]
    fitting = {
        mark: spelled
        for mark in dict.fromkeys((promised, *_NAMES))
        if (spelled := wanted(_heading(head, mark)))
    }
    others = [mark for mark in fitting if mark != promised]
    used = others[0] if promised not in fitting and len(others) == 1 else promised
    rows = _read(text, used, where, start)
    spelled = fitting.get(used, {})
    notes = [] if used == promised else [f"the cells are separated by {_NAMES[used]}"]
    return [{spelled.get(key, key): value for key, value in row.items()} for row in rows], notes


def _text(data: bytes, where: str) -> str:
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise DatasetError(
            f"{where} is not {name} text; save it as UTF-8 (in Excel: CSV UTF-8)"
        ) from error
    if "\0" in text[:200]:
        raise DatasetError(f"{where} is not UTF-8 text but has zeros in it; save it as UTF-8")
    return text


def _heading(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r")], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # reading all of it says where
        return []


def _read(text: str, delimiter: str, where: str, start: int) -> list[dict[str, Any]]:
    read = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        rows = list(read)
    except csv.Error as error:
        line = read.line_num + start - 1
        raise DatasetError(f"{where}, line {line}: {error}; mend that line") from error
    columns = Counter(read.fieldnames or ())
    if twice := [name for name, count in columns.items() if name and count > 1]:
        raise DatasetError(f"{where} has two columns {twice[0]!r}; remove or rename one")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DatasetError(
                f"{where}, row {number}: has not as many cells as the heading; mend that row"
            )
    return rows
