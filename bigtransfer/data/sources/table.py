"""A CSV or Parquet listing: columns `path`, `label` or `labels`, and, where given, `split`."""

from __future__ import annotations

import io
import json
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bigtransfer.artifacts.prepared import Prepared
from bigtransfer.data.sources.folders import reader
from bigtransfer.data.sources.labels import (
    class_name,
    class_names,
    doubts,
    is_missing,
    refuse_vectors,
    separated,
    whole_numbers,
)
from bigtransfer.data.sources.listing import SPLIT_NAMES, ListedImage, Source, split_of
from bigtransfer.data.sources.names import in_order, splits_in
from bigtransfer.data.sources.spreadsheet import read_csv
from bigtransfer.errors import DatasetError
from bigtransfer.storage.tree import Contents, Tree, TreeFile, safe_name

SUFFIXES = (".csv", ".tsv", ".parquet")
_FIRST_ROW = 2
"""As spreadsheets count: the heading is row 1."""
_KNOWN = ("path", "label", "labels", "split")
_CALLED = {
    "path": ("image", "file", "filename", "file_name", "filepath", "image_path", "img", "name"),
    "label": ("class", "category", "target", "class_name", "y", "species", "breed"),
}
Row = Mapping[str, Any]


def is_table(name: str) -> bool:
    """Say whether a file name is one of a table."""
    return name.lower().endswith(SUFFIXES)


def list_table(tree: Tree, contents: Contents, name: str) -> Source:
    """List the images that a table names; paths are relative to the folder of the table.

    Several labels of an image stand in the column `labels`, or in lists: a list in Parquet, text
    separated by `|` in CSV. An image without any label is allowed there.

    Args:
        tree: The folder of the table.
        contents: Of the folder.
        name: The table's file name.

    Raises:
        DatasetError: Names the table and the row.
    """
    where = f"table {name!r} of {tree.address!r}"
    rows, notes = _rows(tree.read(name), name, where)
    if not rows:
        raise DatasetError(f"{where} has no rows; it needs one per image")
    _refuse_columns(rows, where)
    notes += _unused(rows, name)
    paths, files = _Finder(tree, contents).all_of(rows, where)
    labels, multi = _all_labels(rows, paths, where)
    if not multi:
        notes += doubts(names[0] for names in labels)
    splits = _splits(rows, where)
    images = [
        ListedImage(
            path,
            names,
            split,
            file.bytes,
            file.path,
            fault=file.fault,
        )
        for path, file, names, split in zip(paths, files, labels, splits, strict=True)
    ]
    ordered = in_order(label for image in images for label in image.labels)
    given = splits[0] is not None
    return Source(
        tree.address, "table", images, ordered, given, multi, 0, reader(tree), tuple(notes),
        _benchmark(tree, contents) if given else "",
    )  # fmt: skip


def _benchmark(tree: Tree, contents: Contents) -> str:
    """Return the task that `data prepare` says, beside the table, to have made; else nothing."""
    if not any(file.path == Prepared.FILE for file in contents.files):
        return ""
    try:
        told = json.loads(tree.read(Prepared.FILE))
    except ValueError as error:
        raise DatasetError(
            f"{Prepared.FILE!r} of {tree.address!r} is not JSON ({error}); make the folder anew: "
            f"`{Prepared.MAKER}`"
        ) from error
    return Prepared.parse(told, f"{tree.address.rstrip('/')}/{Prepared.FILE}").task


def _at(where: str, number: int) -> str:
    return f"{where}, row {number + _FIRST_ROW}"


def _rows(data: bytes, name: str, where: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows under names of columns as we spell them, and what to say of it."""
    if not name.lower().endswith(".parquet"):
        return read_csv(data, where, tabs=name.lower().endswith(".tsv"), wanted=_wanted)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{where} is no Parquet file: {error}; write it anew") from error
    if not rows:
        return rows, []
    spelled = _spelled(list(rows[0]))
    return [{spelled[key]: value for key, value in row.items()} for row in rows], []


def _wanted(columns: list[str]) -> dict[str, str] | None:
    """Return column -> our spelling if a heading has the columns that a listing needs."""
    spelled = _spelled(columns)
    found = set(spelled.values())
    return spelled if "path" in found and found & {"label", "labels"} else None


def _spelled(columns: list[str]) -> dict[str, str]:
    """Return column -> our spelling: `Path` and ` label` are ours unless there is an exact one."""
    spelled = {name: name for name in columns}
    for name in columns:
        own = name.strip().casefold()
        alike = [other for other in columns if other.strip().casefold() == own]
        if own in _KNOWN and len(alike) == 1:
            spelled[name] = own
    return spelled


def _refuse_columns(rows: list[dict[str, Any]], where: str) -> None:
    columns = list(rows[0])
    if "path" in columns and ("labels" in columns or "label" in columns):
        return
    cure = ""
    embedded = [name for name in columns if isinstance(rows[0][name], dict)]
    flags = [
        name
        for name in columns
        if name not in _KNOWN and all(str(row[name]) in ("0", "1", "0.0", "1.0") for row in rows)
    ]
    if embedded:
        cure = f"; {embedded[0]!r} holds the pictures themselves: write them out as files first"
    elif "path" in columns and flags:
        cure = (
            f"; {', '.join(map(repr, flags[:3]))} hold 0 and 1: write the names of the classes "
            "into one column, 'label' for one or 'labels' for several, separated by '|'"
        )
    else:
        renamed = [
            f"{name!r} to {ours!r}"
            for ours, others in _CALLED.items()
            for name in columns
            if ours not in columns and name.strip().lower() in others
        ]
        cure = f"; rename {' and '.join(renamed)}" if renamed else ""
    raise DatasetError(
        f"{where} has the columns {', '.join(map(repr, columns))}; it needs 'path' and 'label' (or "
        f"'labels'), and may have 'split'{cure}"
    )


def _unused(rows: list[dict[str, Any]], name: str) -> list[str]:
    """Return what the user may believe to be used and is not."""
    columns, notes = list(rows[0]), []
    if "label" in columns and "labels" in columns:
        notes.append("the column 'labels' is used, 'label' is not")
    if "split" in columns:
        return notes
    for column in columns:
        words = (str(row[column]).strip().lower() for row in rows)
        if column not in _KNOWN and all(word in SPLIT_NAMES for word in words):
            notes.append(f"the column {column!r} is not used; splits stand in a column 'split'")
    if found := splits_in(name.rpartition(".")[0]):
        notes.append(
            f"the table's name {name!r} speaks of {' and '.join(found)}; it makes no split, a "
            "column 'split' does"
        )
    return notes


class _Finder:
    """The files that a table means, as people write paths."""

    def __init__(self, tree: Tree, contents: Contents) -> None:
        own = tree.address.rstrip("/")
        self._roots = [f"{root}/" for root in (own, str(Path(own).resolve()))]
        self._files = {f.path: f for f in contents.files}

    def all_of(self, rows: Sequence[Row], where: str) -> tuple[list[str], list[TreeFile]]:
        """Return the path of each row, unique, and the file that it means.

        Raises:
            DatasetError: If a path is empty, leads out of the folder, or comes twice.
        """
        seen: dict[str, int] = {}
        files = []
        for number, row in enumerate(rows):
            value = row["path"]
            given = "" if is_missing(value) else str(value).strip()
            path = given.removeprefix("./")
            for root in self._roots if path.startswith("/") else ():
                path = path.removeprefix(root)
            if not safe_name(path):
                raise DatasetError(
                    f"{_at(where, number)}: path {given!r} is empty or leads out of the table's "
                    "folder; write it relative to that folder"
                )
            file = self._find(path)
            if file.path in seen:
                raise DatasetError(
                    f"{_at(where, number)}: {file.path!r} stands in row "
                    f"{seen[file.path] + _FIRST_ROW} already; list every image once (several "
                    "labels: column 'labels')"
                )
            seen[file.path] = number
            files.append(file)
        return list(seen), files

    def _find(self, path: str) -> TreeFile:
        slashes = path.replace("\\", "/").removeprefix("./")
        for spelled in (path, slashes):
            if file := self._files.get(spelled):
                return file
        same = [
            other
            for other in self._alike.get(_plain(slashes), [])
            if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", slashes)
        ]
        if len(same) == 1 and safe_name(slashes):
            return self._files[same[0]]
        hint = "".join(f"; is {other!r} meant?" for other in self._near(slashes)[:1])
        return TreeFile(path, 0, fault=f"listed, but there is no such file{hint}")

    def _near(self, path: str) -> list[str]:
        """Return files of nearly that name: other case, a suffix, another folder above."""
        if found := self._alike.get(_plain(path)):
            return found
        for name in (path, path.rpartition("/")[2]):
            if found := self._by_end.get(_plain(name)):
                return found
        return []

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        """Return a path without regard to case -> paths."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self._files:
            found[_plain(path)].append(path)
        return found

    @cached_property
    def _by_end(self) -> dict[str, list[str]]:
        """Return a path without its suffix, or without its folders -> paths."""
        found: dict[str, list[str]] = defaultdict(list)
        for other in self._files:
            for end in {other.rpartition(".")[0], other.rpartition("/")[2]} - {""}:
                found[_plain(end)].append(other)
        return found


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _all_labels(
    rows: Sequence[Row], paths: list[str], where: str
) -> tuple[list[tuple[str, ...]], bool]:
    """Return the labels of every row, and whether an image may have several."""

    def at(number: int) -> str:
        return f"{_at(where, number)}: {paths[number]!r}"

    column = "labels" if "labels" in rows[0] else "label"
    values = [row[column] for row in rows]
    if column == "label" and not any(isinstance(value, list | tuple) for value in values):
        single = [class_name(value, at(number)) for number, value in enumerate(values)]
        spell = whole_numbers(single)
        return [(spell(name),) for name in single], False
    texts_at = [number for number, value in enumerate(values) if isinstance(value, str)]
    cells = [values[number] for number in texts_at]
    pieces = dict(zip(texts_at, separated(cells, lambda i: at(texts_at[i])), strict=True))
    listed: list[tuple[str, ...]] = []
    for number, value in enumerate(values):
        found = pieces.get(number, value if isinstance(value, list | tuple) else [value])
        listed.append(class_names(found, at(number)))
    refuse_vectors(listed, at)
    spell = whole_numbers(name for row in listed for name in row)
    return [tuple(in_order(map(spell, row))) for row in listed], True


def _splits(rows: Sequence[Row], where: str) -> list[str | None]:
    """Return the split of every row: all have one, or none has."""
    values = [row.get("split") for row in rows]
    words = ["" if is_missing(value) else str(value).strip() for value in values]
    if any(words) and "" in words:
        raise DatasetError(
            f"{_at(where, words.index(''))}: has no split while others have one; fill the column "
            "or remove it"
        )
    return [split_of(word, _at(where, i)) if word else None for i, word in enumerate(words)]
