"""A CSV or Parquet listing: columns `path`, `label` or `labels`, and, where given, `split`."""

from __future__ import annotations

import csv
import io
from typing import Any

from bigtransfer.data.sources.folders import reader
from bigtransfer.data.sources.listing import ListedImage, Source, split_of
from bigtransfer.errors import DatasetError
from bigtransfer.storage.tree import Contents, Tree, safe_name

SUFFIXES = (".csv", ".tsv", ".parquet")
_SEPARATORS = "|;"


def list_table(tree: Tree, contents: Contents, name: str) -> Source:
    """List the images that a table names; paths are relative to the folder of the table.

    Several labels of an image stand in the column `labels`: a list in Parquet, text separated by
    `|` or `;` in CSV. An image without any label is allowed there.

    Args:
        tree: The folder of the table.
        contents: Of the folder.
        name: The table's file name.

    Raises:
        DatasetError: Names the table and the row.
    """
    where = f"table {name!r} of {tree.address!r}"
    sizes = {f.path: f for f in contents.files}
    rows = _rows(tree.read(name), name, where)
    if not rows:
        raise DatasetError(f"{where} has no rows; it needs one per image")
    columns = list(rows[0])
    multi = "labels" in columns
    if "path" not in columns or not (multi or "label" in columns):
        raise DatasetError(
            f"{where} has the columns {', '.join(map(repr, columns))}; it needs 'path' and "
            "'label' (or 'labels'), and may have 'split'"
        )
    images: list[ListedImage] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        at = f"{where}, row {number}"
        path = str(row["path"] or "").strip()
        path = path.removeprefix("./")
        if not safe_name(path):
            raise DatasetError(f"{at}: path {path!r} is empty or leads out of the table's folder")
        if path in seen:
            raise DatasetError(
                f"{at}: {path!r} stands in row {seen[path]} already; list every image once "
                "(several labels: column 'labels')"
            )
        seen[path] = number
        labels = _labels(row["labels"]) if multi else (_word(row["label"]),)
        if not multi and not labels[0]:
            raise DatasetError(f"{at}: {path!r} has no label; give it one, or remove the row")
        split = str(row.get("split") or "").strip()
        file = sizes.get(path)
        images.append(
            ListedImage(
                path,
                labels,
                split_of(split, at) if split else None,
                file.bytes if file else 0,
                path,
                fault=file.fault if file else "listed, but there is no such file",
            )
        )
    given = [i for i, image in enumerate(images) if image.split]
    if given and len(given) < len(images):
        missing = next(i for i, image in enumerate(images) if not image.split)
        raise DatasetError(
            f"{where}, row {missing + 2}: has no split while others have one; fill the column or "
            "remove it"
        )
    names = sorted({label for image in images for label in image.labels})
    return Source(tree.address, "table", images, names, bool(given), multi, 0, reader(tree))


def _rows(data: bytes, name: str, where: str) -> list[dict[str, Any]]:
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise DatasetError(f"{where} is no Parquet file: {error}; write it anew") from error
        return rows
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where} is not UTF-8 text; save it as UTF-8") from error
    delimiter = "\t" if name.endswith(".tsv") else ","
    read = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        rows = list(read)
    except csv.Error as error:
        raise DatasetError(f"{where}, line {read.line_num}: {error}; mend that line") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DatasetError(
                f"{where}, row {number}: has not as many cells as the heading; mend that row"
            )
    return rows


def _word(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _labels(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, str | list | tuple):
        value = [value]
    if isinstance(value, str):
        for separator in _SEPARATORS[1:]:
            value = value.replace(separator, _SEPARATORS[0])
        value = value.split(_SEPARATORS[0])
    return tuple(sorted({text for text in (str(v).strip() for v in value) if text}))
