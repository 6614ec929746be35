"""Tables of more rows than memory should hold: mapped from a file, read some rows at a time.

The pages of such a table are given back again and again, so memory holds only what is computed of
them.
"""

from __future__ import annotations

import mmap
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any
from weakref import WeakSet

import pyarrow as pa

from bigtransfer.errors import InfrastructureError

CHUNK_ROWS = 8192
"""Of a table. Another number would change the bytes of manifests: Parquet ends its pages there."""
_IN_MEMORY_ROWS = 2 * CHUNK_ROWS
"""A larger table lies in a file: some 500 bytes an image."""
_PAGES_SECONDS = 0.01
_mapped_pages: WeakSet[mmap.mmap] = WeakSet()
_mapping = threading.Lock()


def collect(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Return rows as one table; a large one lies in a file without a name, and is mapped.

    Args:
        batches: Of any lengths: the table's chunks are of `CHUNK_ROWS`, whatever they were.
        schema: Of all of them.

    Raises:
        InfrastructureError: If the disk is full.
    """
    return mapped_above(_in_chunks(batches, schema), schema)


def _in_chunks(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the same rows, so many at a time."""
    some: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while count + len(batch) >= CHUNK_ROWS:
            taken = CHUNK_ROWS - count
            yield _joined([*some, batch.slice(0, taken)], schema)
            some, count, batch = [], 0, batch.slice(taken)
        if len(batch):
            some.append(batch)
            count += len(batch)
    if some:
        yield _joined(some, schema)


def _joined(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    return pa.Table.from_batches(batches, schema).combine_chunks().to_batches()[0]


def mapped_above(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Return batches as the chunks of a table: of few rows in memory, of many mapped.

    Raises:
        InfrastructureError: If the disk is full.
    """
    some, count = [], 0
    for batch in batches:
        some.append(batch)
        count += len(batch)
        if count > _IN_MEMORY_ROWS:
            return _mapped(chain(some, batches), schema)
    return pa.Table.from_batches(some, schema)


def _mapped(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    with _explained():
        file = tempfile.TemporaryFile()  # it has no name: it ends with the process
    try:
        writer = pa.ipc.new_file(file, schema)
        for batch in batches:  # that fails for reasons of its own
            with _explained():
                writer.write_batch(batch)
        with _explained():
            writer.close()
            file.flush()
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    finally:
        with suppress(OSError):  # of a disk that is full: said already
            file.close()
    with _mapping:
        _mapped_pages.add(pages)
    return pa.ipc.open_file(pa.py_buffer(pages)).read_all()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InfrastructureError(
            f"the table of what was inspected cannot be written to {tempfile.gettempdir()!r} "
            f"({error.strerror or error}); make room there, some 500 bytes an image, or set TMPDIR"
        ) from error


@contextmanager
def releasing_pages() -> Iterator[None]:
    """Within the block, give back again and again what was read of mapped tables.

    The system would do so only when memory is short; until then they would count as ours.
    """
    ended = threading.Event()

    def release() -> None:
        while not ended.wait(_PAGES_SECONDS):
            with _mapping:
                known = list(_mapped_pages)
            for pages in known:
                pages.madvise(mmap.MADV_DONTNEED)

    if not hasattr(mmap, "MADV_DONTNEED"):  # Windows
        yield
        return
    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def column(table: pa.Table, name: str) -> list[Any]:
    """Return a column as Python values: of few rows, for it takes a hundred bytes each."""
    values: list[Any] = table[name].to_pylist()
    return values


def iter_rows(table: pa.Table, *names: str) -> Iterator[Any]:
    """Yield the values of a column, or of several as tuples, some rows at a time."""
    for batch in table.select(list(names)).to_batches(CHUNK_ROWS):
        columns = [values.to_pylist() for values in batch.columns]
        yield from columns[0] if len(names) == 1 else zip(*columns, strict=True)


class LazyColumn(Sequence[Any]):
    """A column by row number, read where it is asked for."""

    def __init__(self, table: pa.Table, name: str) -> None:
        self._values = table[name]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: Any) -> Any:
        return self._values[int(row)].as_py()


def with_column(table: pa.Table, name: str, values: Iterable[Any]) -> pa.Table:
    """Return the table with a column replaced."""
    kind, left = table.schema.field(name).type, iter(values)
    chunks = []
    while some := list(islice(left, CHUNK_ROWS)):
        chunks.append(pa.array(some, kind))
    made = pa.chunked_array(chunks, kind)
    return table.set_column(table.schema.get_field_index(name), name, made)
