"""`bigtransfer sweep`: many tasks, sizes and seeds from one network; resumable, in one table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtransfer.api.run_folder import folder_name, is_folder_name
from bigtransfer.api.transfer import Settings, quick_over, require_weights, settings_of, transfer
from bigtransfer.command.arguments import Typed, add_settings, settings_in, with_ways_out
from bigtransfer.command.swept import Tables
from bigtransfer.errors import (
    BigTransferError,
    ConfigError,
    DatasetError,
    InfrastructureError,
    TooLongError,
    did_you_mean,
)
from bigtransfer.progress import counted

if TYPE_CHECKING:
    from bigtransfer.report.sweep import Published, SweptTask

_TOP = ("data", "finetune", "published", "tasks")
_TASK = (
    "path", "group", "official", "images", "reference", "download", "prepare", "data", "finetune",
)  # fmt: skip
_OURS = (
    "upstream", "page", "lock", "table.md", "table.tex", "table.csv", "cells.csv", "sweep.json",
    "curves.svg", "curves.pdf",
)  # fmt: skip
"""What a sweep writes beside the folders of its tasks."""
_CATALOGUES = {"vtab": Path(__file__).parents[1] / "vtab.yaml"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "FILE is YAML: `tasks:` names each with a `path`; `finetune:` and `data:` hold what "
        "differs from the defaults, for all or within a task. A task may name its `group` (means "
        "of medians), a `reference` (examples per class: percent), where to `download` it and "
        "what `data prepare` calls it (`prepare: vtab/pets`). "
        "`official: false` keeps it out of the means, and so does another number of `images` "
        "(split: images) than the task names. `published:` lists means of others. `vtab` stands "
        "for the 19 tasks of VTAB-1k. The same again goes on where it was stopped. The tables hold "
        "all that is finished in the folder, also with --only; what is no longer in FILE, or was "
        "made with other weights, params or images, is marked and kept out of the means."
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

    The tables hold what the folder holds: tasks that are finished stay in them, whatever `--only`
    or the order of FILE is this time.

    Raises:
        ConfigError: If the file is wrong; then nothing is run. At the end, if there were no data.
        BigTransferError: At the end, if a task failed.
    """
    from bigtransfer.config import read_yaml
    from bigtransfer.model.conversion import as_checkpoint
    from bigtransfer.storage import digest_of, lock

    file = _CATALOGUES.get(str(arguments.file), arguments.file)
    raw = read_yaml(file)
    typed = settings_in(arguments.settings)
    if arguments.quick:
        typed = replace(typed, finetune=quick_over(typed.finetune))
    known = _entries(raw, file.name, typed)
    entries = _chosen(known, arguments.only)
    require_weights(arguments.weights)
    published = _published(raw, file.name)
    sizes = Counter(entry["group"] for entry, _ in known.values() if entry.get("group"))
    folder: Path = arguments.to
    if (folder / "run.json").is_file():
        raise ConfigError(
            f"--to {str(folder)!r} holds the run of one dataset; give the sweep another"
        )
    with lock(folder / "lock", f"the sweep in {str(folder)!r}"):
        tables = Tables(folder, [*known], published, sizes)
        upstream = as_checkpoint(arguments.weights, folder / "upstream")
        digest = digest_of(upstream)
        for name, (entry, settings) in known.items():
            task = _task(name, entry, arguments.data)
            tables.recall(task, settings.called(name).task, digest, entry.get("images", {}))
        tables.recall_others()
        try:
            outcome = _run_tasks(arguments.data, upstream, entries, tables, arguments.yes)
        except TooLongError as error:
            raise with_ways_out(error, _typed(arguments)) from error
    print("\n" + tables.markdown())
    print("Made")
    for path in tables.made():
        print(f"  {path}")
    outcome.report(len(entries))


def _typed(arguments: argparse.Namespace) -> str:
    """Return the command as it was typed."""
    words = ["bigtransfer", "sweep", str(arguments.file), "--weights", str(arguments.weights)]
    if arguments.data != Path():
        words += ["--data", str(arguments.data)]
    for task in arguments.only or ():
        words += ["--only", task]
    for setting in arguments.settings:
        words += ["--set", setting]
    return shlex.join([*words, "--to", str(arguments.to)])


@dataclass
class _Outcome:
    """What became of the tasks of one call."""

    failures: dict[str, BigTransferError] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def report(self, tasks: int) -> None:
        """Raise if a task failed, or none had data."""
        if self.failures:
            raise type(next(iter(self.failures.values())))(
                f"{len(self.failures)} of {counted(tasks, 'task')} failed "
                f"({', '.join(self.failures)}); mend them and run the same again, the others are "
                "kept"
            )
        if len(self.missing) == tasks:
            raise ConfigError(
                f"nothing was run: the data of {', '.join(self.missing)} are missing; put them "
                "where the table says, or say with --data where they are"
            )


def _run_tasks(
    data: Path,
    upstream: Path,
    entries: dict[str, tuple[dict[str, Any], Settings]],
    tables: Tables,
    agreed: bool,
) -> _Outcome:
    outcome = _Outcome()
    for name, (entry, settings) in entries.items():
        task, path = _task(name, entry, data), data / entry["path"]
        print(f"\n{name}", flush=True)
        if not path.exists():
            why = _how_to_get(entry, path)
            print(f"  missing: {why}", flush=True)
            outcome.missing.append(name)
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
                agreed=agreed,
            )
        except (InfrastructureError, TooLongError):
            raise
        except BigTransferError as error:
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            outcome.failures[name] = error
            tables.add(replace(task, missing=f"failed: {error}".splitlines()[0]))
            continue
        official = task.official and result.splits.items() >= entry.get("images", {}).items()
        report = result.report
        tables.add(replace(task, rows=report.rows, official=official), report.cells)
    return outcome


def _how_to_get(entry: dict[str, Any], path: Path) -> str:
    """Return where the data of a task come from, and what makes them or where they belong."""
    from bigtransfer.data.vtab.tasks import task_of

    download, place = entry.get("download", "its data"), shlex.quote(str(path))
    if not (made := entry.get("prepare")):
        return f"put {download} at {place}"
    to = "" if str(path) == made else f" --to {place}"
    return (
        f"fetch {task_of(str(made)).wants} of {download}, then: bigtransfer data prepare {made} "
        f"--from FOLDER{to}"
    )


def _says_not_official(path: Path) -> bool:
    """Say whether `data prepare` noted that the split in a folder is not the benchmark's."""
    from bigtransfer.artifacts.prepared import Prepared

    return (path / Prepared.FILE).is_file() and not Prepared.read(path).official


def _task(name: str, entry: dict[str, Any], data: Path) -> SweptTask:
    from bigtransfer.report.sweep import SweptTask

    return SweptTask(
        name,
        entry.get("group", ""),
        official=entry.get("official", True) and not _says_not_official(data / entry["path"]),
        reference={str(k): v for k, v in entry.get("reference", {}).items()},
    )


def _published(raw: dict[str, Any], source: str) -> list[Published]:
    from bigtransfer.report.sweep import Published

    found = []
    rows = raw.get("published", [])
    for row in rows if isinstance(rows, list) else [rows]:
        where = f"{source}: published"
        if not isinstance(row, dict) or not isinstance(row.get("means"), dict):
            raise ConfigError(f"{where} must list {{name: …, means: {{group: percent}}}}")
        _only(row, ("name", "means"), where)
        _require_percents(row["means"], f"{where}.means")
        found.append(Published(str(row.get("name", "")), row["means"]))
    return found


def _entries(
    raw: dict[str, Any], source: str, typed: Typed
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
        _require_prepared(entry, where)
        _require_percents(entry.get("reference", {}), f"{where}.reference")
        data, tuning = ({**raw.get(key, {}), **entry.get(key, {})} for key in ("data", "finetune"))
        settings = settings_of(str(name), data, tuning, where)
        if typed.data or typed.finetune:
            whole = {**data, **typed.data}, {**tuning, **typed.finetune}
            settings = settings_of(str(name), *whole, "--set")
        result[str(name)] = (entry, settings)
    return result


def _require_prepared(entry: dict[str, Any], where: str) -> None:
    """Refuse a `prepare` that `data prepare` does not know."""
    from bigtransfer.data.vtab.tasks import task_of

    if "prepare" in entry:
        try:
            task_of(str(entry["prepare"]))
        except DatasetError as error:
            raise ConfigError(f"{where}: prepare: {error}") from error


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


def _require_percents(values: dict[str, Any], where: str) -> None:
    for key, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 100:
            raise ConfigError(f"{where}: {key!r} must be a percentage, 0 to 100, got {value!r}")


def _only(values: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}; it takes "
                f"{', '.join(known)}"
            )
