"""Where the cells of a study stand and what they have found, whoever ran them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bigtransfer.artifacts.cell_outcome import CellOutcome, Found
from bigtransfer.artifacts.report import TaskReport
from bigtransfer.config import TaskParams
from bigtransfer.study.cells import StudyCell

State = Literal["finished", "marked", "running", "queued", "failed", "missing"]


class Result(Found):
    """A finished cell."""

    ref: str
    """Of Git; or which run of Kubeflow Pipelines made it."""
    mark: str = ""
    """What sets it apart from the study as it is now: other code, other data; empty: nothing."""


@dataclass(frozen=True)
class CellState:
    """Where a cell stands."""

    cell: StudyCell
    state: State
    result: Result | None = None
    """Where it is finished, or marked: there is one, of other code or data."""
    failure: str = ""
    """Why it failed."""


def state_of(cell: StudyCell, outcome: CellOutcome) -> CellState:
    """Return where a cell stands that ended as a task of Kubeflow Pipelines."""
    if outcome.found is None:
        return CellState(cell, "failed", None, outcome.failure)
    return CellState(cell, "finished", Result(**dict(outcome.found), ref="kfp"))


def found_in(
    upstream: Mapping[str, Any],
    history: str,
    reports: Mapping[str, TaskReport],
    tasks: Mapping[str, TaskParams],
) -> Found:
    """Return what the outputs of a cell's stages say.

    Args:
        upstream: `metrics` of pretrain.
        history: `history` of it, CSV.
        reports: Task -> report of evaluate.
        tasks: Their params: networks that are not asked for are left out.

    Raises:
        KeyError: If one that is asked for is not there.
    """
    scores: dict[str, dict[int, float]] = {}
    metrics: dict[str, str] = {}
    for task, report in reports.items():
        own = {
            (str(c.examples_per_class), c.seed): c.test[report.metric]
            for c in report.cells
            if c.init == "upstream"
        }
        wanted = tasks[task]
        for name, shots in figures_of(task, wanted.examples_per_class).items():
            scores[name] = {seed: own[shots, seed] for seed in wanted.seeds}
            metrics[name] = report.metric
    return Found(
        val_top1=upstream["val_top1"], steps=upstream["steps"], images=upstream["images"],
        parameters=upstream["parameters"], scores=scores, metrics=metrics, curve=_curve(history),
    )  # fmt: skip


def figures_of(task: str, shots: Sequence[int | str]) -> dict[str, str]:
    """Return the names of a task's figures -> examples per class."""
    if len(shots) == 1:
        return {task: str(shots[0])}
    return {f"{task} all images" if k == "full" else f"{task} {k} per class": str(k) for k in shots}


def _curve(history: str) -> tuple[tuple[int, float], ...]:
    rows = csv.DictReader(history.splitlines())
    return tuple(
        (int(row["images"]), float(row["val_top1"])) for row in rows if row.get("val_top1")
    )
