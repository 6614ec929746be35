"""`bigtransfer data`: check any folder of images without a project; look into shards."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.api.checking import asked_of_a_task, asked_of_images
from bigtransfer.command import data_prepare
from bigtransfer.errors import ConfigError, GateError

if TYPE_CHECKING:
    from bigtransfer.data.checking import Checked

_CLASSES_SHOWN = 40
_FILES_SHOWN = 25
_SAMPLES_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands of `data`."""
    from bigtransfer.config import LAYOUTS

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        allow_abbrev=False,
        help="decode every image, find bad files, copies and leaks; exit 3 if the gate says no",
        description="Check a dataset without a project: folder of class folders (with or without "
        "train/val/test), flat folder, table (CSV, Parquet), tars, CIFAR; nothing is changed.",
    )
    check.add_argument("path", type=Path, metavar="FOLDER", help="folder, table or archive")
    check.add_argument("--layout", choices=LAYOUTS, default="auto", help="default: %(default)s")
    check.add_argument(
        "--json", type=Path, metavar="FILE", help="write every file's verdict, whatever it is"
    )
    check.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write the page with pictures (index.html)"
    )
    check.add_argument(
        "--quarantine",
        type=float,
        metavar="SHARE",
        default=0.0,
        help="accept so large a share of unusable files, e.g. 0.01 (default: none)",
    )
    show = actions.add_parser("show", help="look into shards", allow_abbrev=False)
    show.add_argument(
        "place", metavar="INDEX", help="shards folder, the index.parquet in it, or s3:// prefix"
    )
    show.add_argument("--split", choices=["train", "val", "test"], help="only this split")
    show.add_argument("--label", metavar="NAME", help="only this class")
    show.add_argument(
        "--limit",
        type=int,
        default=_SAMPLES_SHOWN,
        metavar="N",
        help="samples shown (default: %(default)s)",
    )
    show.add_argument(
        "--extract", type=Path, metavar="FOLDER", help="write the shown samples there as files"
    )

    where = actions.add_parser(
        "where",
        allow_abbrev=False,
        help="which datasets, shards and registered models an image went into",
        description="Find an image by the bytes of its file, in the manifests and shards of this "
        "project and in its registry: every version whose network, or upstream network, had the "
        "dataset. Exit 0 where it is found nowhere, too.",
    )
    where.add_argument("image", metavar="FILE|SHA256", help="an image file, or its SHA-256")
    data_prepare.add_arguments(
        actions.add_parser(
            "prepare", help="make a task of VTAB-1k of the set as distributed", allow_abbrev=False
        )
    )


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked.

    Raises:
        GateError: If the gate says no.
        BigTransferError: One line that says what is wrong with the input.
    """
    if arguments.action == "check":
        _check(arguments)
    elif arguments.action == "where":
        _where(arguments.image)
    elif arguments.action == "prepare":
        data_prepare.run(arguments)
    else:
        _show(arguments)


def _where(image: str) -> None:
    from bigtransfer.api.provenance import where

    found = where(Path.cwd(), image)
    if not found.places:
        print(f"{found.sha256}: in no dataset of this project ({found.looked_at:,} looked at)")
        return
    for place in found.places:
        print(f"{place.dataset}: {place.path}, {place.split}, {place.shard}")
        for version, how in place.versions:
            print(f"  {version}: {how}")
    if found.not_noted:
        print(f"not noted, so they may have had it: {', '.join(found.not_noted)}")


def _check(arguments: argparse.Namespace) -> None:
    from bigtransfer.data.checking import check
    from bigtransfer.data.sources.opening import open_source
    from bigtransfer.data.validation import write_report
    from bigtransfer.storage import as_json, write_text

    path: Path = arguments.path
    _check_targets(path, arguments.json, arguments.report)
    source = open_source(path, arguments.layout, flat_allowed=True)
    asked = asked_of_images(arguments.quarantine)
    checked = check(source, path.name or str(path), asked)
    if arguments.json:
        write_text(arguments.json, as_json(_as_json(checked)))
    if arguments.report:
        write_report(checked, path, path.name, asked, arguments.report, {})
    _print(checked, path)
    for option in ("json", "report"):
        if written := getattr(arguments, option):
            print(f"{option}: {written / 'index.html' if option == 'report' else written}")
    if not checked.success:
        broken = "\n".join(f"  {o.line()}" for o in checked.outcomes if not o.success)
        raise GateError(
            f"{str(path)!r} is refused:\n{broken}\nmend or remove what is named, then check again"
        )
    print(_verdict(checked, path))


def _verdict(checked: Checked, place: Path) -> str:
    """Return the last line: that the gate says yes, and what comes next or lacks for it."""
    said = "the gate says yes"
    if lacks := _lacks(checked):
        return f"{said}; before `finetune`: {'; '.join(lacks)}"
    return f"{said}; next: bigtransfer finetune {shlex.quote(str(place))} --weights FILE"


def _lacks(checked: Checked) -> list[str]:
    """Return what `finetune` asks for by its defaults and these images do not have."""
    from bigtransfer.data.checking import of_classes
    from bigtransfer.data.sources.listing import SPLITS
    from bigtransfer.data.tables import iter_rows

    source, counts, asked = checked.source, checked.counts, asked_of_a_task().rules
    if source.layout == "flat":
        return ["put every image into the folder of its class"]
    held: Counter[str] = Counter()
    distinct: dict[str, set[int]] = {label: set() for label in source.labels}
    groups = checked.copies.groups.tolist()
    for (labels, fault), group in zip(
        iter_rows(checked.table, "labels", "fault"), groups, strict=True
    ):
        for label in labels if fault is None else ():
            held[label] += 1
            distinct[label].add(group)
    found = []
    if len(source.labels) < asked.min_classes:
        found.append(f"there must be {asked.min_classes} classes at least")
    if poor := [name for name in source.labels if held[name] < asked.min_examples_per_class]:
        found.append(f"{of_classes(poor)} fewer than {asked.min_examples_per_class} images")
    lacking = [name for name in ("train", "test") if name not in counts.splits]
    if source.has_splits and lacking:
        found.append(f"there is no split {' and no split '.join(map(repr, lacking))}")
    elif not source.has_splits and not poor and max(map(len, distinct.values())) < len(SPLITS):
        found.append("no class has 3 images that are no copies, one for each split")
    return found


def _check_targets(data: Path, json: Path | None, report: Path | None) -> None:
    """Refuse to write over the data, or over a folder that is no report of ours."""
    if json is not None and json.is_dir():
        raise ConfigError(f"--json {str(json)!r} is a folder; give the name of a file")
    if report is None:
        return
    own, whole = report.resolve(), data.resolve()
    if own == whole or own in whole.parents or (whole in own.parents and whole.is_dir()):
        raise ConfigError(
            f"--report {str(report)!r} would lie over or among the images; give another folder"
        )
    if (
        own.exists()
        and not (own / "validation.json").is_file()
        and (not own.is_dir() or any(own.iterdir()))
    ):
        raise ConfigError(
            f"--report {str(report)!r} is there already and is no report; give a new folder"
        )


def _as_json(checked: Checked) -> dict[str, object]:
    from bigtransfer.data.tables import LazyColumn, iter_rows

    files = []
    table = checked.table
    rows = iter_rows(table, "path", "fault", "flags")
    for (path, fault, flags), leak in zip(rows, checked.leaks, strict=True):
        reasons = [fault] if fault else []
        reasons += [f"leak: {leak}"] if leak else []
        verdict = "reject" if reasons else "flag" if flags else "pass"
        files.append({"path": path, "verdict": verdict, "reasons": [*reasons, *flags]})
    paths = LazyColumn(table, "path")
    return {
        "address": checked.source.address,
        "layout": checked.source.layout,
        "success": checked.success,
        "counts": checked.counts.model_dump(),
        "rules": [outcome.model_dump(mode="json") for outcome in checked.outcomes],
        "copies": [
            {"first": paths[c.first], "second": paths[c.second], "how": c.how}
            for c in checked.copies.pairs
        ],
        "files": files,
    }


def _print(checked: Checked, place: Path) -> None:
    from bigtransfer.data.copies import LABEL_CONFLICT, SAME_PIXELS
    from bigtransfer.data.manifest import faulty
    from bigtransfer.data.tables import iter_rows
    from bigtransfer.progress import counted

    table, counts, source = checked.table, checked.counts, checked.source
    how = f"{source.layout}, several labels per image" if source.multi_label else source.layout
    print(
        f"{place if place.exists() else source.address}: {counts.images:,} usable of "
        f"{counted(counts.listed, 'image')}, {counted(counts.classes, 'class')} ({how})"
    )
    for note in checked.notes:
        print(f"  {note}")
    if source.ignored:
        print(f"  passed over: {source.ignored:,} hidden or system files and folders")
    _print_classes(checked)
    _print_files("unusable", list(faulty(table)))
    flags = [(path, own) for path, own in iter_rows(table, "path", "flags") if own]
    told = ("orientation:", "transparent:", LABEL_CONFLICT)  # above, or under a heading of its own
    odd = [
        (path, [flag for flag in own if "_other_label" not in flag and not flag.startswith(told)])
        for path, own in flags
    ]
    _print_files("odd, but used", [(path, "; ".join(own)) for path, own in odd if own])
    conflicts = [
        (path, flag.removeprefix(f"{LABEL_CONFLICT}: "))
        for path, own in flags
        for flag in own
        if flag.startswith(LABEL_CONFLICT)
    ]
    _print_files("label conflicts: one image, two labels", conflicts)
    exact = sum(pair.how == SAME_PIXELS for pair in checked.copies.pairs)
    near = len(checked.copies.pairs) - exact
    print(f"\ncopies: {counted(exact, 'pair')} with the same pixels, {near:,} that look the same")
    leaks = zip(iter_rows(table, "path"), checked.leaks, strict=True)
    _print_files("leaks across splits", [(path, leak) for path, leak in leaks if leak])


def _print_classes(checked: Checked) -> None:
    from bigtransfer.data.sources.names import in_order
    from bigtransfer.data.tables import iter_rows
    from bigtransfer.progress import counted

    table, source = checked.table, checked.source
    by_class: dict[str, Counter[str]] = {label: Counter() for label in source.labels}
    for labels, split, fault in iter_rows(table, "labels", "split", "fault"):
        for label in labels:
            by_class[label].update(["unusable"] if fault else ["images", split])
    width = min(48, max([5, *map(len, by_class)]))
    columns = ["images", *(s for s in checked.counts.splits if source.has_splits), "unusable"]
    print(f"\n  {'class':<{width}}" + "".join(f"{name:>10}" for name in columns))
    poorest = sorted(by_class, key=lambda label: (by_class[label]["images"], label))
    shown = in_order(poorest[:_CLASSES_SHOWN])
    for label in shown:
        cells = "".join(f"{by_class[label][name]:>10,}" for name in columns)
        print(f"  {label[:width]:<{width}}{cells}")
    if left := len(by_class) - len(shown):
        print(f"  … and {counted(left, 'class')} with more images, or as many")


def _print_files(title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        print(f"\n{title} ({len(rows):,}):")
    for path, reason in rows[:_FILES_SHOWN]:
        print(f"  {path}: {reason}")
    if len(rows) > _FILES_SHOWN:
        print(f"  … and {len(rows) - _FILES_SHOWN:,} more; --json FILE has all")


def _show(arguments: argparse.Namespace) -> None:
    import numpy as np

    from bigtransfer.data.shards import open_shards
    from bigtransfer.storage.s3 import S3Path
    from bigtransfer.storage.tree import safe_name

    text: str = arguments.place
    if text.startswith("s3://"):
        place: Path | S3Path = S3Path.parse(text.removesuffix("/index.parquet"))
    else:
        place = Path(text).parent if text.endswith("index.parquet") else Path(text)
    shards = open_shards(place)
    summary = shards.summary
    print(
        f"{place}: dataset {summary.dataset!r}, {summary.examples:,} images, "
        f"{summary.classes:,} classes, {summary.shards:,} shards"
        + (", all sums right" if isinstance(place, Path) else "")
    )
    for name in ("splits", "multi_label", "short_side", "height", "width"):
        print(f"  {name:<14}{getattr(summary, name)}")
    print(f"  {'sha256':<14}{shards.digest}")
    mask = np.ones(len(shards.index), bool)
    if arguments.split:
        mask &= shards.index["split"].to_numpy(zero_copy_only=False) == arguments.split
    if arguments.label is not None:
        if arguments.label not in shards.classes:
            from bigtransfer.errors import did_you_mean

            hint = did_you_mean(arguments.label, shards.classes)
            raise ConfigError(f"no class {arguments.label!r} in these shards{hint}")
        wanted = shards.classes.index(arguments.label)
        mask &= np.array([wanted in labels for labels in shards.index["labels"].to_pylist()])
    rows = np.flatnonzero(mask)
    print(f"\n  {len(rows):,} samples\n")
    reader = shards.reader()
    for row in shards.index.take(rows[: arguments.limit]).to_pylist():
        labels = ", ".join(shards.classes[i] for i in row["labels"]) or "no label"
        print(
            f"  {row['key']}  {row['split']:<6}{row['width']}x{row['height']:<6}"
            f"{row['length']:>10,} bytes  {labels}  ({row['path']})"
        )
    if arguments.extract:
        arguments.extract.mkdir(parents=True, exist_ok=True)
        for number in rows[: arguments.limit]:
            key = shards.index["key"][int(number)].as_py()
            assert safe_name(key)
            (arguments.extract / key).write_bytes(reader.read(int(number)))
        print(f"\nwritten to {arguments.extract}")
