"""The page says of every figure what it is."""

from __future__ import annotations

import html
from pathlib import Path

from bigtransfer.artifacts.registration import Registration
from bigtransfer.artifacts.report import TaskReport
from bigtransfer.report.summary import render_report
from fixtures.reports import scored_cell, summary_row, task_report


def report() -> TaskReport:
    cell = scored_cell("upstream", 5, 1, 0.9, 0.625)
    rows = (summary_row("upstream", 5, 0.3, 0.417, 0.625), summary_row("scratch", 5, 0, 0.25, 0.5))
    bins = [{"images": 2, "confidence": 0.9, "accuracy": 0.5}]
    reliability = {"error_raw": 0.1, "error": 0.1, "bins": bins, "answered": 0.0,
                   "answered_accuracy": None}  # fmt: skip
    made = task_report(cells=(cell,), chosen=cell, rows=rows)
    raw = {**made.model_dump(mode="json"), "reliability": reliability}
    return TaskReport.parse({"schema": TaskReport.SCHEMA, **raw}, "report.json")


def shown(registrations: dict[str, Path] | None = None) -> str:
    page = render_report({"t": report()}, registrations=registrations, params="", commit="")
    return html.unescape(page)


def test_without_a_registered_model_the_tile_is_the_median() -> None:
    page = shown()
    assert (
        "<b>41.7 %</b><span>t: test top-1, median of 3 seeds, transfer, 5 per class</span>" in page
    )
    assert "<b>+16.7</b><span>t: points over scratch, between medians, 5 per class</span>" in page
    assert "<b>62.5 %</b> of this one network (median of 3 seeds: 41.7 %)" in page


def test_the_tile_of_a_registered_model_names_its_seed_and_the_median(tmp_path: Path) -> None:
    path = tmp_path / Registration.FILE
    Registration(
        name="b-t", version="1", alias="champion", run_id="r", new=True, reason="it is the first"
    ).write_file(path)
    label = "t: test top-1 of the registered model, seed 1 alone; the median of 3 seeds is 41.7 %"
    assert f"<b>62.5 %</b><span>{label}</span>" in shown({"t": path})
