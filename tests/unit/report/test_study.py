"""Tables of a study: spreads, what differs, and the same in every form."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bigtransfer.report.study import (
    PublishedFigure,
    Spread,
    StudyRow,
    StudyTable,
    as_latex,
    as_markdown,
    csv_rows,
    differences,
)
from bigtransfer.report.study_page import for_paper, render


def row(norm: str, batch: str, upstream: list[float], digits: list[float]) -> StudyRow:
    figures = {"upstream": Spread(upstream), "digits": Spread(digits)}
    return StudyRow(
        {"norm": norm, "batch_size": batch}, 225, 7200, 526_142, figures,
        finished=len(upstream), cells=2,
    )  # fmt: skip


@pytest.fixture
def table() -> StudyTable:
    rows = [
        row("gn_ws", "32", [0.95], [0.80, 0.82, 0.84]),
        row("gn_ws", "128", [0.90], [0.70, 0.75, 0.76]),
        row("bn", "32", [0.93], [0.70, 0.72, 0.79]),
        row("bn", "128", [0.91], [0.74, 0.75, 0.77]),
        StudyRow({"norm": "gn_ws", "batch_size": "512"}, cells=2, note="missing"),
    ]
    return StudyTable(
        "norms", "Which one?", ["norm", "batch_size"], {"digits": "top-1"}, rows, "batch_size",
        "norm", [PublishedFigure("norm bn, batch_size 4096", "VTAB-1k", 67.72, "Table 5")],
        "Small.",
    )  # fmt: skip


def test_a_spread_is_least_median_most_and_one_value_has_none() -> None:
    assert Spread([0.84, 0.80, 0.82]).text() == "80.0 ← 82.0 → 84.0"
    assert Spread([0.8, 0.9]).middle == pytest.approx(0.85)
    assert Spread([0.8]).text() == "80.0"


def test_seeds_that_overlap_tell_nothing_apart(table: StudyTable) -> None:
    said = [*differences(table)]
    assert len(said) == 4, "each figure at each batch size"
    (apart,) = [line for line in said if line.startswith("digits at batch_size 32")]
    assert apart.endswith(
        "every seed of the one is above every seed of the other, but each is of one upstream "
        "training, whose own spread is not known"
    )
    assert "norm gn_ws: 80.0 ← 82.0 → 84.0, norm bn: 70.0 ← 72.0 → 79.0" in apart
    (same,) = [line for line in said if line.startswith("digits at batch_size 128")]
    assert same.endswith("their seeds overlap, so this does not tell them apart")
    assert all("of one seed, so" in line for line in said if line.startswith("upstream"))
    rows = [replace(row, finished=2) for row in table.rows]
    (sure,) = [
        line for line in differences(replace(table, rows=rows))
        if line.startswith("digits at batch_size 32")
    ]  # fmt: skip
    assert sure.endswith("above every seed of the other")


def test_a_point_that_is_missing_stays_in_the_table(table: StudyTable) -> None:
    text = as_markdown(table)
    assert "| gn_ws | 512 | – | – | – | – | 0 of 2 | missing |" in text
    assert "| gn_ws | 32 | 225 | 7,200 | 95.0 | 80.0 ← 82.0 → 84.0 | 1 of 2 |  |" in text
    assert "| norm bn, batch_size 4096 | VTAB-1k | 67.72 | Table 5 |" in text
    assert text.endswith("Small.\n")
    last = csv_rows(table)[-1]
    assert last["digits_median"] is None and last["digits_values"] == 0


def test_latex_has_a_cell_for_every_column(table: StudyTable) -> None:
    lines = [line for line in as_latex(table).splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in lines} == {5}
    assert r"gn\_ws" in lines[1] and r"82.0 {\scriptsize [80.0, 84.0]}" in lines[1]


def test_the_page_draws_every_figure_in_its_own_colours(table: StudyTable) -> None:
    html = render(table, files={"table.csv": "../table.csv"})
    assert html.count("<svg") == 2 and "var(--blue)" in html
    assert "every seed of the one" in html and "Table 5" in html
    assert not re.search(r'(src|href)="https?:', html), "it needs no network"


def test_curves_are_drawn_where_they_are_asked_for(table: StudyTable) -> None:
    rows = [replace(row, curve=((320, 0.1), (7200, 0.9))) for row in table.rows[:4]]
    assert render(replace(table, rows=rows), files={}).count("<svg") == 2
    html = render(replace(table, rows=rows, curves=True), files={})
    assert html.count("<svg") == 3 and "images seen" in html


def test_the_figure_for_a_paper_is_the_same_bytes_each_time(table: StudyTable) -> None:
    assert for_paper(table) == for_paper(table)


def test_a_page_of_nothing_says_so(table: StudyTable) -> None:
    nothing = replace(table, rows=[table.rows[-1]])
    html = render(nothing, files={})
    assert "<svg" not in html and "0 of 2" in html
