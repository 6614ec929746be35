"""`bigtransfer sweep`: many tasks, sizes and seeds from one network; resumable, in one table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtransfer.command.run_folder import folder_name, is_folder_name
from bigtransfer.command.transfer import (
    Settings,
    add_settings,
    require_weights,
    settings_in,
    settings_of,
    transfer,
)
from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError, did_you_mean

if TYPE_CHECKING:
    from bigtransfer.artifacts.cells import Cell
    from bigtransfer.artifacts.report import ScoredCell
    from bigtransfer.report.sweep import Published, SweptTask

_TOP = ("data", "finetune", "published", "tasks")
_TASK = ("path", "group", "official", "images", "reference", "download", "data", "finetune")
_ON_VALIDATION = ("val_top1", "val_top5", "val_map", "val_micro_f1")
_OURS = ("upstream", "page", "lock", "table.md", "table.tex", "table.csv", "cells.csv", "run.json")
"""What a sweep writes beside the folders of its tasks."""
_CATALOGUES = {"vtab": Path(__file__).parents[1] / "vtab.yaml"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "FILE is YAML: `tasks:` names each with a `path`; `finetune:` and `data:` hold what "
        "differs from the defaults, for all or within a task. A task may name its `group` (means "
        "of medians), a `reference` (examples per class: percent) and where to `download` it. "
        "`official: false` keeps it out of the means, and so does another number of `images` "
        "(split: images) than the task names. `published:` lists means of others. `vtab` stands "
        "for the 19 tasks of VTAB-1k. The same again goes on where it was stopped."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the tasks; or the word vtab")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where the paths in FILE begin (default: here)",
    )
    parser.add_argument(
        "--only", action="append", metavar="TASK", help="only this task; may be repeated"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="W",
        help="published file (.npz) or upstream checkpoint folder",
    )
    add_settings(parser)
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("runs/sweep"),
        metavar="FOLDER",
        help="folder to write (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run every task whose data are there; write the tables after each.

    Raises:
        ConfigError: If the file is wrong; then nothing is run.
        BigTransferError: At the end, if a task failed.
    """
    from bigtransfer.config import read_yaml
    from bigtransfer.model.conversion import as_checkpoint
    from bigtransfer.report.sweep import SweptTask
    from bigtransfer.storage import lock

    file = _CATALOGUES.get(str(arguments.file), arguments.file)
    raw = read_yaml(file)
    typed = settings_in(arguments.settings)
    known = _entries(raw, file.name, typed)
    entries = _chosen(known, arguments.only)
    require_weights(arguments.weights)
    sizes = Counter(entry["group"] for entry, _ in known.values() if entry.get("group"))
    if (arguments.to / "run.json").is_file():
        raise ConfigError(
            f"--to {str(arguments.to)!r} holds the run of one dataset; give the sweep another"
        )
    tables = _Tables(arguments.to, _published(raw, file.name), sizes)
    failures: dict[str, BigTransferError] = {}
    with lock(tables.folder / "lock", f"the sweep in {str(tables.folder)!r}"):
        upstream = as_checkpoint(arguments.weights, tables.folder / "upstream")
        for name, (entry, settings) in entries.items():
            task = SweptTask(
                name,
                entry.get("group", ""),
                official=entry.get("official", True),
                reference={str(k): v for k, v in entry.get("reference", {}).items()},
            )
            path = arguments.data / entry["path"]
            print(f"\n{name}", flush=True)
            if not path.exists():
                how = entry.get("download", "its data")
                why = f"put {how} at {shlex.quote(str(path))}"
                print(f"  missing: {why}", flush=True)
                tables.add(replace(task, missing=why))
                continue
            try:
                result = transfer(
                    path,
                    upstream,
                    tables.folder / name,
                    settings,
                    partial(tables.begin, task),
                    to=tables.folder,
                )
            except InfrastructureError:
                raise
            except BigTransferError as error:
                print(f"  failed: {error}", file=sys.stderr, flush=True)
                failures[name] = error
                tables.add(replace(task, missing=f"failed: {error}".splitlines()[0]))
                continue
            expected = entry.get("images", {})
            official = task.official and all(
                result.splits.get(split) == images for split, images in expected.items()
            )
            report = result.report
            tables.add(replace(task, rows=report.rows, official=official), report.cells)
    print("\n" + tables.markdown())
    folder = tables.folder
    print(f"Made\n  {folder}/table.md, table.tex, table.csv, cells.csv")
    if any(task.rows for task in tables.done):
        print(f"  {folder / 'page' / 'index.html'}")
    if failures:
        raise type(next(iter(failures.values())))(
            f"{len(failures)} of {len(entries)} tasks failed ({', '.join(failures)}); mend them "
            "and run the same again, the others are kept"
        )


class _Tables:
    """What a sweep has found so far, on disk after every network."""

    def __init__(self, folder: Path, published: list[Published], sizes: dict[str, int]) -> None:
        self.folder, self._published, self._sizes = folder, published, sizes
        self.done: list[SweptTask] = []
        self._cells: list[Mapping[str, object]] = []
        self._begun: list[Mapping[str, object]] = []

    def begin(self, task: SweptTask, cell: Cell, scores: dict[str, float]) -> None:
        """Take a network of a task that is not finished: its validation scores alone are known."""
        known = {key: value for key, value in scores.items() if key in _ON_VALIDATION}
        self._begun.append({"task": task.name, "group": task.group, **cell.model_dump(), **known})
        self._write_cells()

    def add(self, task: SweptTask, cells: Sequence[ScoredCell] = ()) -> None:
        """Take a task that is finished, or missing, and write all tables."""
        from bigtransfer.report.summary import write_report
        from bigtransfer.report.sweep import as_latex, table_rows
        from bigtransfer.storage import as_csv, write_text

        self.done.append(task)
        self._begun = []
        self._cells += [{"task": task.name, "group": task.group, **cell.flat()} for cell in cells]
        markdown = self.markdown()
        write_text(self.folder / "table.md", markdown)
        write_text(self.folder / "table.tex", as_latex(self.done))
        write_text(self.folder / "table.csv", as_csv(table_rows(self.done)))
        self._write_cells()
        if finished := {t.name: self.folder / t.name for t in self.done if t.rows}:
            write_report(
                self.folder / "page",
                pretrain=None,
                datasets=finished,
                evaluations=finished,
                registrations={},
                params=markdown,
                commit="",
            )

    def markdown(self) -> str:
        """Return the tables for people."""
        from bigtransfer.report.sweep import as_markdown

        return as_markdown(self.done, self._published, self._sizes)

    def _write_cells(self) -> None:
        from bigtransfer.storage import as_csv, write_text

        rows = self._cells + self._begun
        if rows:
            keys = [*dict.fromkeys(key for row in rows for key in row)]
            full = [{key: row.get(key, "") for key in keys} for row in rows]
            write_text(self.folder / "cells.csv", as_csv(full))


def _published(raw: dict[str, Any], source: str) -> list[Published]:
    from bigtransfer.report.sweep import Published

    found = []
    rows = raw.get("published", [])
    for row in rows if isinstance(rows, list) else [rows]:
        where = f"{source}: published"
        if not isinstance(row, dict) or not isinstance(row.get("means"), dict):
            raise ConfigError(f"{where} must list {{name: …, means: {{group: percent}}}}")
        _only(row, ("name", "means"), where)
        found.append(Published(str(row.get("name", "")), row["means"]))
    return found


def _entries(
    raw: dict[str, Any], source: str, typed: dict[str, Any]
) -> dict[str, tuple[dict[str, Any], Settings]]:
    """Return each task's entry and settings; what was typed stands above both.

    Raises:
        ConfigError: One line that names the key.
    """
    _only(raw, _TOP, source)
    _require_mappings(raw, ("data", "finetune"), source)
    tasks = raw.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise ConfigError(f"{source}: 'tasks' must name at least one task, each with a 'path'")
    result = {}
    for name, entry in tasks.items():
        where = f"{source}: tasks.{name}"
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ConfigError(f"{where} lacks a 'path'")
        _require_folder_name(str(name), where)
        _only(entry, _TASK, where)
        _require_mappings(entry, ("data", "finetune", "images", "reference"), where)
        data, tuning = ({**raw.get(key, {}), **entry.get(key, {})} for key in ("data", "finetune"))
        settings = settings_of(str(name), data, tuning, where)
        if typed:
            settings = settings_of(str(name), data, {**tuning, **typed}, "--set")
        result[str(name)] = (entry, settings)
    return result


def _chosen(entries: dict[str, Any], only: list[str] | None) -> dict[str, Any]:
    for name in only or ():
        if name not in entries:
            raise ConfigError(
                f"unknown task {name!r}{did_you_mean(name, entries)}; there are "
                f"{', '.join(entries)}"
            )
    return {name: entry for name, entry in entries.items() if not only or name in only}


def _require_folder_name(name: str, where: str) -> None:
    """Refuse the name of a task that cannot be the name of its folder."""
    if not is_folder_name(name) or name in _OURS:
        better = f"{name}-task" if name in _OURS else folder_name(Path("/nowhere") / name)
        raise ConfigError(
            f"{where}: {name!r} cannot be the folder of a task; call it e.g. {better!r}"
        )


def _require_mappings(values: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        if not isinstance(values.get(key, {}), dict):
            raise ConfigError(f"{where}: {key!r} must hold keys and values, got {values[key]!r}")


def _only(values: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}; it takes "
                f"{', '.join(known)}"
            )
