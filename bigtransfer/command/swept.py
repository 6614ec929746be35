"""The tables of a sweep: every task that its folder holds, whichever were asked for this time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bigtransfer.errors import BigTransferError

if TYPE_CHECKING:
    from bigtransfer.artifacts.cells import Cell
    from bigtransfer.artifacts.report import ScoredCell, TaskReport
    from bigtransfer.artifacts.sweep import SweepRecord
    from bigtransfer.config import TaskParams
    from bigtransfer.report.sweep import Published, SweptTask

_ON_VALIDATION = ("val_top1", "val_top5", "val_map", "val_micro_f1")
_FILES = ("table.md", "table.tex", "table.csv", "cells.csv")
_CURVES = ("curves.svg", "curves.pdf")
Row = Mapping[str, object]


class Tables:
    """What a sweep has found, now and before, on disk after every network."""

    def __init__(
        self, folder: Path, order: Sequence[str], published: list[Published], sizes: dict[str, int]
    ) -> None:
        """Begin with what the folder remembers.

        Args:
            folder: Of the sweep.
            order: Names of all tasks of FILE; the tables keep to it.
            published: Means of others.
            sizes: Tasks that each group has.
        """
        self.folder, self._order, self._published, self._sizes = folder, order, published, sizes
        self._tasks: dict[str, SweptTask] = {}
        self._cells: dict[str, list[Row]] = {}
        self._begun: dict[str, list[Row]] = {}
        self._going: set[str] = set()
        self._before = _record(folder)
        self._groups = {name: entry.group for name, entry in self._before.tasks.items()}

    @property
    def tasks(self) -> list[SweptTask]:
        """Return all tasks: those of FILE in its order, then others that the folder holds."""
        places = {name: number for number, name in enumerate(self._order)}
        last = len(places)
        return sorted(self._tasks.values(), key=lambda task: places.get(task.name, last))

    def recall(self, task: SweptTask, params: TaskParams, upstream: str, sizes: Row) -> None:
        """Take over what an earlier run found of a task of FILE.

        Args:
            task: As FILE has it, without rows.
            params: That it would be trained with now.
            upstream: Digest of the weights that it would start from now.
            sizes: Split -> images that an official one has.
        """
        folder, known = self.folder / task.name, self._before.tasks.get(task.name)
        self._groups[task.name] = task.group
        self._begun[task.name] = [*known.begun] if known else []
        report = _report(folder)
        if report is None:
            if known and known.missing:
                self._tasks[task.name] = replace(task, missing=known.missing)
            return
        told = task.official and (known is None or known.official)
        official = told and _splits(folder).items() >= sizes.items()
        note = _made_otherwise(folder, report, params, upstream)
        self._keep(replace(task, rows=report.rows, official=official, note=note), report.cells)

    def recall_others(self) -> None:
        """Take over finished tasks of the folder that FILE does not name; they are in no mean."""
        from bigtransfer.report.sweep import SweptTask

        for path in sorted(self.folder.glob("*/report/report.json")):
            name = path.parents[1].name
            report = _report(path.parents[1])
            if name not in self._order and report is not None:
                note = "no longer in the file of tasks"
                self._keep(SweptTask(name, rows=report.rows, note=note), report.cells)

    def begin(self, task: SweptTask, cell: Cell, scores: dict[str, float]) -> None:
        """Take a network of a task that is not finished: its validation scores alone are known."""
        if task.name not in self._going:
            self._going.add(task.name)
            self._begun[task.name] = []
        known = {key: value for key, value in scores.items() if key in _ON_VALIDATION}
        self._begun[task.name].append({**cell.model_dump(mode="json"), **known})
        self._write_record()
        self._write_cells()

    def add(self, task: SweptTask, cells: Sequence[ScoredCell] = ()) -> None:
        """Take a task that is finished, or missing, and write all tables.

        A task that was finished before and is missing now keeps its rows, with why in a note.
        """
        before = self._tasks.get(task.name)
        if task.missing and before is not None and before.rows:
            self._tasks[task.name] = replace(before, note=f"of an earlier run; now {task.missing}")
        else:
            self._keep(task, cells)
            if not task.missing:
                self._begun.pop(task.name, None)
        self._write()

    def markdown(self) -> str:
        """Return the tables for people."""
        from bigtransfer.report.sweep import as_markdown

        return as_markdown(self.tasks, self._published, self._sizes)

    def made(self) -> list[Path]:
        """Return the files that are there."""
        names = (*_FILES, *_CURVES, "page/index.html")
        return [path for path in (self.folder / name for name in names) if path.is_file()]

    def _keep(self, task: SweptTask, cells: Sequence[ScoredCell]) -> None:
        self._tasks[task.name] = task
        self._cells[task.name] = [cell.flat() for cell in cells]

    def _write(self) -> None:
        from bigtransfer.report.sweep import table_rows
        from bigtransfer.report.sweep_latex import as_latex
        from bigtransfer.storage import as_csv, write_text

        latex = as_latex(self.tasks, self._published, self._sizes)
        write_text(self.folder / "table.md", self.markdown())
        write_text(self.folder / "table.tex", latex)
        write_text(self.folder / "table.csv", as_csv(table_rows(self.tasks)))
        self._write_record()
        self._write_cells()
        self._write_page()

    def _write_page(self) -> None:
        """Write the curves and the page, as soon as there is a task to show.

        Each task has a page of its own in its folder; this one leads there.
        """
        from bigtransfer.report.curves import for_paper
        from bigtransfer.report.sweep import Sweep
        from bigtransfer.report.sweep_page import render
        from bigtransfer.storage import new_file, new_folder

        finished = [task.name for task in self.tasks if task.rows]
        if not finished:
            return
        for name, drawn in zip(_CURVES, for_paper(self.tasks), strict=True):
            with new_file(self.folder / name) as file:
                file.write_bytes(drawn)
        recipes = {name: _recipe(self.folder / name) for name in finished}
        html = render(
            Sweep(self.tasks, self._published, self._sizes),
            pages={
                name: f"../{quote(name)}/page/index.html"
                for name in finished
                if (self.folder / name / "page" / "index.html").is_file()
            },
            files={
                name: f"../{name}" for name in (*_FILES, *_CURVES) if (self.folder / name).is_file()
            },
            params=json.dumps(recipes, indent=2, ensure_ascii=False),
        )
        with new_folder(self.folder / "page") as folder:
            (folder / "index.html").write_text(html, "utf-8")

    def _write_record(self) -> None:
        from bigtransfer.artifacts.sweep import SweepRecord, SweptEntry

        names = dict.fromkeys([*self._before.tasks, *self._tasks, *self._begun])
        entries = {}
        for name in names:
            task, before = self._tasks.get(name), self._before.tasks.get(name, SweptEntry())
            entries[name] = SweptEntry(
                group=self._groups.get(name, ""),
                reference=before.reference if task is None else dict(task.reference),
                official=before.official if task is None or task.missing else task.official,
                missing=before.missing if task is None else task.missing,
                begun=tuple(self._begun.get(name, ())),  # type: ignore[arg-type]  # JSON values
            )
        SweepRecord(tasks=entries).write(self.folder)

    def _write_cells(self) -> None:
        from bigtransfer.storage import as_csv, write_text

        names = [task.name for task in self.tasks]
        rows = [row for name in [*dict.fromkeys([*names, *self._begun])] for row in self._of(name)]
        if rows:
            keys = [*dict.fromkeys(key for row in rows for key in row)]
            full = [{key: row.get(key, "") for key in keys} for row in rows]
            write_text(self.folder / "cells.csv", as_csv(full))

    def _of(self, name: str) -> list[Row]:
        """Return the networks of a task: those of its report, and newer ones beside them."""
        kind = ("init", "examples_per_class", "seed")
        done = self._cells.get(name, [])
        known = {tuple(row[key] for key in kind) for row in done}
        new = [r for r in self._begun.get(name, []) if tuple(r[key] for key in kind) not in known]
        same = {"task": name, "group": self._groups.get(name, "")}
        return [{**same, **row} for row in [*done, *new]]


def _record(folder: Path) -> SweepRecord:
    from bigtransfer.artifacts.sweep import SweepRecord

    if (folder / SweepRecord.FILE).is_file():
        return SweepRecord.read(folder)
    return SweepRecord(tasks={})


def _report(folder: Path) -> TaskReport | None:
    from bigtransfer.artifacts.report import TaskReport

    path = folder / "report"
    if not (path / TaskReport.FILE).is_file():
        return None
    try:
        return TaskReport.read(path)
    except BigTransferError as error:
        print(f"{folder.name} is left out of the tables: {error}", flush=True)
        return None


def _splits(folder: Path) -> Mapping[str, int]:
    """Return the images of each split that a task was trained and tested on."""
    from bigtransfer.artifacts.shards import ShardsSummary

    with suppress(BigTransferError):
        return ShardsSummary.read(folder / "shards").splits
    return {}


def _recipe(folder: Path) -> object:
    from bigtransfer.artifacts.cells import Cells

    with suppress(BigTransferError):
        return Cells.read(folder / "checkpoints").recipe
    return "not known"


def _made_otherwise(folder: Path, report: TaskReport, params: TaskParams, upstream: str) -> str:
    """Say how a finished task differs from what FILE asks for now; empty if it does not."""
    from bigtransfer.data.shards import describe_shards
    from bigtransfer.train.finetune import recipe_of

    differs = [] if report.upstream_digest == upstream else ["weights"]
    if _recipe(folder) != recipe_of(params):
        differs.append("params")
    with suppress(BigTransferError):
        if describe_shards(folder / "shards")[0] != report.shards_digest:
            differs.append("images")
    return f"made with other {' and '.join(differs)}" if differs else ""
