"""`bigtransfer sweep`: many tasks, sizes and seeds from one network; resumable, in one table."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtransfer.command.transfer import require_weights, settings_of, transfer, upstream_of
from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError, did_you_mean

if TYPE_CHECKING:
    from bigtransfer.evaluate.sweep import SweptTask

_TOP = ("data", "finetune", "tasks")
_TASK = ("path", "group", "official", "reference", "download", "data", "finetune")
_CATALOGUES = {"vtab": Path(__file__).parents[1] / "vtab.yaml"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "FILE is YAML: `tasks:` names each with a `path`; `finetune:` and `data:` hold what "
        "differs from the defaults, for all or within a task. A task may name its `group` (means "
        "of medians), a `reference` (examples per class: percent) and where to `download` it; "
        "`official: false` keeps it out of the means. `vtab` stands for the 19 tasks of VTAB-1k. "
        "The same again goes on where it was stopped."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the tasks; or the word vtab")
    parser.add_argument(
        "--data", type=Path, default=Path(), metavar="FOLDER",
        help="where the paths in FILE begin (default: here)",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", metavar="TASK", help="only this task; may be repeated"
    )
    parser.add_argument(
        "--weights", type=Path, required=True, metavar="W",
        help="published file (.npz) or upstream checkpoint folder",
    )  # fmt: skip
    parser.add_argument(
        "--to", type=Path, default=Path("runs/sweep"), metavar="FOLDER",
        help="folder to write (default: %(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Run every task whose data are there; write the tables after each.

    Raises:
        ConfigError: If the file is wrong; then nothing is run.
        BigTransferError: At the end, if a task failed.
    """
    from bigtransfer.config import read_yaml
    from bigtransfer.evaluate.sweep import SweptTask
    from bigtransfer.storage import lock

    file = _CATALOGUES.get(str(arguments.file), arguments.file)
    entries = _chosen(_entries(read_yaml(file), file.name), arguments.only)
    require_weights(arguments.weights)
    folder: Path = arguments.to
    failures: dict[str, BigTransferError] = {}
    done: list[SweptTask] = []
    cells: list[dict[str, Any]] = []
    with lock(folder / "lock", f"the sweep in {str(folder)!r}"):
        upstream = upstream_of(arguments.weights, folder)
        for name, (entry, settings) in entries.items():
            known = {
                "group": entry.get("group", ""), "official": entry.get("official", True),
                "reference": {str(k): v for k, v in entry.get("reference", {}).items()},
            }  # fmt: skip
            path = arguments.data / entry["path"]
            print(f"\n{name}", flush=True)
            if not path.exists():
                how = entry.get("download", "its data")
                why = f"put {how} at {shlex.quote(str(path))}"
                print(f"  missing: {why}", flush=True)
                done.append(SweptTask(name, missing=why, **known))
                continue
            try:
                result = transfer(path, upstream, folder / name, settings)
            except InfrastructureError:
                raise
            except BigTransferError as error:
                print(f"  failed: {error}", file=sys.stderr, flush=True)
                failures[name] = error
                done.append(SweptTask(name, missing=f"failed: {error}".splitlines()[0], **known))
                continue
            cells += [{"task": name, "group": known["group"], **c} for c in result["cells"]]
            done.append(SweptTask(name, rows=result["rows"], **known))
            _write(folder, done, cells)
        _write(folder, done, cells)
    from bigtransfer.evaluate.sweep import as_markdown

    print("\n" + as_markdown(done))
    print(f"Made\n  {folder}/table.md, table.tex, table.csv, cells.csv")
    if cells:
        print(f"  {folder / 'page' / 'index.html'}")
    if failures:
        raise type(next(iter(failures.values())))(
            f"{len(failures)} of {len(entries)} tasks failed ({', '.join(failures)}); mend them "
            "and run the same again, the others are kept"
        )


def _entries(raw: dict[str, Any], source: str) -> dict[str, tuple[dict[str, Any], Any]]:
    """Return each task's entry and settings.

    Raises:
        ConfigError: One line that names the key.
    """
    _only(raw, _TOP, source)
    tasks = raw.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise ConfigError(f"{source}: 'tasks' must name at least one task, each with a 'path'")
    result = {}
    for name, entry in tasks.items():
        where = f"{source}: tasks.{name}"
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ConfigError(f"{where} lacks a 'path'")
        _only(entry, _TASK, where)
        data, tuning = ({**raw.get(key, {}), **entry.get(key, {})} for key in ("data", "finetune"))
        result[str(name)] = (entry, settings_of(str(name), data, tuning, where))
    return result


def _chosen(entries: dict[str, Any], only: list[str] | None) -> dict[str, Any]:
    for name in only or ():
        if name not in entries:
            raise ConfigError(
                f"unknown task {name!r}{did_you_mean(name, entries)}; there are "
                f"{', '.join(entries)}"
            )
    return {name: entry for name, entry in entries.items() if not only or name in only}


def _only(values: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}; it takes "
                f"{', '.join(known)}"
            )


def _write(folder: Path, done: list[SweptTask], cells: list[dict[str, Any]]) -> None:
    from bigtransfer.evaluate.report import write_report
    from bigtransfer.evaluate.sweep import as_latex, as_markdown, table_rows
    from bigtransfer.storage import as_csv, write_text

    write_text(folder / "table.md", as_markdown(done))
    write_text(folder / "table.tex", as_latex(done))
    write_text(folder / "table.csv", as_csv(table_rows(done)))
    if not cells:
        return
    write_text(
        folder / "cells.csv", as_csv([{k: v for k, v in c.items() if k != "folder"} for c in cells])
    )
    finished = {task.name: folder / task.name for task in done if task.rows}
    write_report(
        folder / "page", pretrain=None, datasets=finished, evaluations=finished, registrations={},
        params=(folder / "table.md").read_text("utf-8"), commit="",
    )  # fmt: skip
