"""Write a task of VTAB-1k: a table, the images or links to them, and whose split it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bigtransfer.artifacts.prepared import Prepared
from bigtransfer.data.vtab.material import Material
from bigtransfer.data.vtab.opened import Opened
from bigtransfer.data.vtab.order import order_of
from bigtransfer.data.vtab.tasks import PREFIX, TRAIN, VAL, Cut, Task, task_of
from bigtransfer.errors import DatasetError, StorageError
from bigtransfer.progress import counted
from bigtransfer.storage import as_csv, new_folder, write_text

TABLE = "images.csv"
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Size:
    """How large a set is, and how much of it is trained on."""

    held: Mapping[str, int]
    """Part -> examples."""
    classes: int
    train: int = TRAIN
    val: int = VAL


@dataclass(frozen=True)
class _Row:
    """An image of a task."""

    part: str
    key: str
    label: str
    split: str


def prepare(
    name: str, source: Path, to: Path, *, copy: bool = False, size: Size | None = None
) -> Prepared:
    """Make the train, val and test images of a task.

    The folder gets `images.csv` (path, label, split), `images/`, and `prepared.json`, which says
    whether the split is the official one. Files of class folders are linked to, all others are
    written.

    Args:
        name: Of the task, e.g. `vtab/pets`.
        source: Folder with the set as its authors distribute it, in archives or unpacked.
        to: Folder to write; whole or not at all. One that was prepared before is replaced.
        copy: Whether files are copied instead of linked to.
        size: Of the set, where it is not the whole one.

    Returns:
        What was made.

    Raises:
        DatasetError: If a file is missing or damaged, or the set is not whole.
        StorageError: If `to` cannot be written, or holds something else.
    """
    task = task_of(name)
    size = size or Size(task.held, task.classes)
    _refuse_place(source, to)
    material = Material(source, task.archives, copy=copy)
    opened = task.open(material)
    larger = _check(opened, size, source)
    doubt = opened.doubt or larger
    rows = [*_rows(opened, task, size)]
    made = Prepared(
        task=f"{PREFIX}{name.removeprefix(PREFIX)}",
        official=not doubt,
        why=doubt,
        splits={
            split: sum(row.split == split for row in rows) for split in ("train", "val", "test")
        },
    )
    with new_folder(to, sealed=False) as folder:
        _write(folder, rows, opened)
        made.write(folder)
    return made


def _write(folder: Path, rows: list[_Row], opened: Opened) -> None:
    wanted: dict[str, dict[str, Path]] = {}
    table = []
    for row in rows:
        stem = _UNSAFE.sub("_", row.key.lstrip("./")).removesuffix(opened.suffix)
        path = f"images/{row.split}/{stem}{opened.suffix}"
        wanted.setdefault(row.part, {})[row.key] = folder / path
        table.append({"path": path, "label": row.label, "split": row.split})
    if len({row["path"] for row in table}) < len(table):
        raise DatasetError("two images would get the same name; the set is not the authors' own")
    for split in {row.split for row in rows}:
        (folder / "images" / split).mkdir(parents=True)
    opened.write(wanted)
    write_text(folder / TABLE, as_csv(table))


def _check(opened: Opened, size: Size, source: Path) -> str:
    """Refuse a set that is not whole; return why one that is larger is not the official one.

    Raises:
        DatasetError: Says what is missing.
    """
    more = []
    for part, count in size.held.items():
        found = len(opened.parts[part].keys)
        if found < count:
            raise DatasetError(
                f"--from {str(source)!r} holds {found:,} of the {count:,} images of the part "
                f"{part!r}: it is not whole; fetch or unpack it again"
            )
        if found > count:
            more.append(f"{found:,} instead of {count:,} images in the part {part!r}")
        if len(set(opened.parts[part].keys)) < found:
            raise DatasetError(f"--from {str(source)!r} holds an image of {part!r} twice")
    classes = {label for part in opened.parts.values() for label in part.labels}
    if len(classes) != size.classes:
        raise DatasetError(
            f"--from {str(source)!r} holds {counted(len(classes), 'class')}, the task has "
            f"{size.classes}: it is not the whole set, or not the authors' own"
        )
    return f"the set holds {' and '.join(more)}" if more else ""


def _rows(opened: Opened, task: Task, size: Size) -> Iterator[_Row]:
    orders = {part: order_of(found.keys, part) for part, found in opened.parts.items()}

    def begin(cut: Cut) -> int:
        return len(orders[cut.part]) * cut.begin // 100

    stop = len(orders[task.cuts.test.part])
    if task.cuts.val.part == task.cuts.test.part:
        assert begin(task.cuts.val) + size.val <= begin(task.cuts.test)
    pieces = {
        "train": ("train", 0, size.train),
        "val": (task.cuts.val.part, begin(task.cuts.val), begin(task.cuts.val) + size.val),
        "test": (task.cuts.test.part, begin(task.cuts.test), stop),
    }
    for split, (part, first, last) in pieces.items():
        found = opened.parts[part]
        for row in orders[part][first:last]:
            yield _Row(part, found.keys[row], found.labels[row], split)


def _refuse_place(source: Path, to: Path) -> None:
    """Refuse to write over the set, or over a folder that was not prepared."""
    own, whole = to.resolve(), source.resolve()
    if own == whole or own in whole.parents:
        raise StorageError(
            f"--to {str(to)!r} would lie over --from {str(source)!r}; give another folder"
        )
    if to.exists() and not (to / Prepared.FILE).is_file():
        if not to.is_dir() or any(to.iterdir()):
            raise StorageError(
                f"--to {str(to)!r} is there already and was not made by `data prepare`; give a new "
                "folder, or move it away"
            )
