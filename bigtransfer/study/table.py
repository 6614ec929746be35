"""From the cells of a study and what they found to its table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bigtransfer.progress import counted
from bigtransfer.report.study import UPSTREAM, PublishedFigure, Spread, StudyRow, StudyTable
from bigtransfer.report.study_page import for_paper, render
from bigtransfer.report.table import METRICS
from bigtransfer.storage import as_csv, new_file, new_folder, write_text
from bigtransfer.study.states import CellState, Result, figures_of
from bigtransfer.study.study_file import Study

FOLDER = Path("artifacts") / "studies"
"""Below it a folder for each study."""
_TABLES = ("table.md", "table.tex", "table.csv", "cells.csv")
_CURVES = ("curves.svg", "curves.pdf")


def table_of(study: Study, states: Sequence[CellState]) -> StudyTable:
    """Return the table; cells that are missing or marked are in no spread, and said to be.

    Args:
        study: The file.
        states: Of all its cells.
    """
    points: dict[tuple[str, ...], list[CellState]] = {}
    for one in states:
        points.setdefault(tuple(one.cell.labels.values()), []).append(one)
    found = [one.result for one in states if one.result]
    metrics = {task: METRICS[metric] for result in found for task, metric in result.metrics.items()}
    cell = states[0].cell
    names = [
        name
        for task in cell.tasks
        for name in figures_of(task, cell.params.tasks[task].examples_per_class)
    ]
    tasks = {name: metrics.get(name, METRICS["top1"]) for name in names}
    return StudyTable(
        study.name,
        study.about,
        [*study.axes],
        tasks,
        [_row(own) for own in points.values()],
        study.plot.x,
        study.plot.lines,
        [
            PublishedFigure(
                ", ".join(f"{axis} {value}" for axis, value in one.where.items()),
                one.figure, one.value, one.source,
            )
            for one in study.published
        ],
        study.note,
        study.plot.curves,
    )  # fmt: skip


def _row(states: Sequence[CellState]) -> StudyRow:
    counting = [one.result for one in states if one.state == "finished" and one.result]
    figures: dict[str, Spread] = {}
    if counting:
        figures[UPSTREAM] = Spread([one.val_top1 for one in counting])
        for task in counting[0].scores:
            figures[task] = Spread([own for one in counting for own in one.scores[task].values()])
    first: Result | None = counting[0] if counting else None
    return StudyRow(
        states[0].cell.labels,
        None if first is None else first.steps,
        None if first is None else first.images,
        None if first is None else first.parameters,
        figures,
        () if first is None else first.curve,
        len(counting),
        len(states),
        "; ".join(dict.fromkeys(_notes(states))),
    )


def _notes(states: Sequence[CellState]) -> Iterable[str]:
    for state in ("missing", "queued", "running"):
        if number := sum(one.state == state for one in states):
            yield state if number == len(states) else f"{counted(number, 'cell')} {state}"
    for one in states:
        if one.state == "failed":
            yield f"seed {one.cell.seed} failed: {one.failure}"
        elif one.state == "marked" and one.result:
            yield f"seed {one.cell.seed} left out, {one.result.mark}"


def write(table: StudyTable, states: Sequence[CellState], folder: Path) -> list[Path]:
    """Write tables, curves and page; return what is there.

    Args:
        table: Of the study.
        states: Of its cells.
        folder: Of the study.

    Raises:
        StorageError: If it cannot be written.
        InfrastructureError: If the disk is full.
    """
    from bigtransfer.report.study import as_latex, as_markdown, csv_rows

    write_text(folder / "table.md", as_markdown(table))
    write_text(folder / "table.tex", as_latex(table))
    write_text(folder / "table.csv", as_csv(csv_rows(table)))
    write_text(folder / "cells.csv", as_csv([*_cells(table, states)]))
    names = [*_TABLES]
    if table.finished:
        for name, drawn in zip(_CURVES, for_paper(table), strict=True):
            with new_file(folder / name) as file:
                file.write_bytes(drawn)
        names += _CURVES
    html = render(table, files={name: f"../{name}" for name in names})
    with new_folder(folder / "page") as page:
        (page / "index.html").write_text(html, "utf-8")
    return [*(folder / name for name in names), folder / "page" / "index.html"]


def _cells(table: StudyTable, states: Sequence[CellState]) -> Iterable[dict[str, object]]:
    """Yield a row for each score: of each cell, upstream and each task and seed."""
    for one in states:
        same = {**one.cell.labels, "upstream_seed": one.cell.seed, "experiment": one.cell.name}
        note = one.result.mark if one.result else one.state
        if one.result is None:
            yield {**same, "figure": "", "seed": "", "score": "", "note": note}
            continue
        yield {**same, "figure": UPSTREAM, "seed": "", "score": one.result.val_top1, "note": note}
        for task, scores in one.result.scores.items():
            for seed, score in scores.items():
                yield {**same, "figure": task, "seed": seed, "score": score, "note": note}
