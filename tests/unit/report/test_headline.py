from __future__ import annotations

from typing import Any

from bigtransfer.artifacts.report import ClassScore, TaskReport
from bigtransfer.report.headline import baseline_of, cards_of, interval_text, spread_of
from bigtransfer.report.headline_table import headline_columns
from fixtures.reports import scored_cell, summary_row, task_report

CELLS = tuple(
    scored_cell(init, 5, seed, 0.5, test)
    for init, tests in (("upstream", (0.5, 0.6, 0.7)), ("scratch", (0.2, 0.55, 0.58)))
    for seed, test in enumerate(tests)
)
APART = (summary_row("upstream", 5, 0.6, 0.7, 0.8), summary_row("scratch", 5, 0.1, 0.2, 0.3))
INSIDE = (summary_row("upstream", 5, 0.5, 0.6, 0.7), summary_row("scratch", 5, 0.2, 0.55, 0.58))


def report(**changes: Any) -> TaskReport:
    return task_report(
        cells=CELLS, chosen=CELLS[1], rows=INSIDE, test_images=400, **changes
    )  # fmt: skip


def test_a_difference_inside_the_spread_is_grey() -> None:
    apart = spread_of(*APART)
    assert apart.certain and apart.text == "+30.0 to +70.0 between any two seeds"
    inside = spread_of(*INSIDE)
    assert not inside.certain and inside.short == "inside the spread"
    assert inside.text == "inside the spread: -8.0 to +50.0 between any two seeds"
    lone = [row.model_copy(update={"seeds": 1}) for row in APART]
    assert not spread_of(*lone).certain and spread_of(*lone).short == "one seed"

    cards = cards_of({"t": report()}, {})
    assert [card.grey for card in cards] == [False, True]
    assert not cards_of({"t": report().model_copy(update={"rows": APART})}, {})[1].grey
    columns = {own.title: own for own in headline_columns({"t": report()})}
    entry = columns["difference"].entries[0]
    assert (entry.text, entry.note, entry.grey) == ("+5.0", "inside the spread", True)


def test_every_headline_has_an_interval_and_a_baseline() -> None:
    card = cards_of({"t": report(baseline=0.4, largest_class="a")}, {})[0]
    assert card.notes == (
        "95 % interval 55.1 to 64.7 % (400 test images)", "baseline 40.0 %, always saying “a”",
    )  # fmt: skip
    assert card.strip and card.strip.seeds == (50, 60, 70) and card.strip.baseline == 40
    close = cards_of({"t": report(baseline=0.56, largest_class="a")}, {})[0]
    assert close.notes[1] == "baseline 56.0 %, always saying “a”: not clearly beaten"
    columns = {own.title: own for own in headline_columns({"t": report(baseline=0.4)})}
    assert columns["transfer"].entries[0].note == "55.1 to 64.7 %"
    assert columns["baseline"].entries[0].text == "40.0 %"


def test_another_metric_has_an_interval_over_seeds() -> None:
    own = [cell.model_copy(update={"test": {"map": cell.test["top1"]}}) for cell in CELLS]
    row = INSIDE[0].model_copy(update={"metric": "map"})
    several = report(
        metric="map", baseline=None,
        per_class=(ClassScore(name="a", images=100, score=0.5),
                   ClassScore(name="b", images=300, score=0.5),
                   ClassScore(name="c", images=0, score=None)),
    ).model_copy(update={"cells": tuple(own), "rows": (row,), "chosen": own[0]})  # fmt: skip
    said = "95 % interval 50.0 to 70.0 % (median, resampling 3 seeds)"
    assert interval_text(several, row) == said
    prevalence = baseline_of(several)
    assert prevalence and prevalence.share == 0.5  # the mean of 100 / 400 and 300 / 400
    lone = several.model_copy(update={"cells": (own[0],)})
    assert interval_text(lone, row) == "no interval: one seed"


def test_no_column_is_empty() -> None:
    alone = report().model_copy(update={"rows": INSIDE[:1]})
    titles = [column.title for column in headline_columns({"t": alone})]
    assert titles == ["examples per class", "test score", "seeds"]
    both = {"t": alone, "u": report(baseline=0.4)}
    columns = headline_columns(both)
    assert {len(column.entries) for column in columns} == {2}
    assert all(any(entry.text for entry in column.entries) for column in columns)
    assert {"task", "scratch", "difference", "baseline"} <= {own.title for own in columns}


def test_what_was_asked_of_sure_answers_has_a_card_where_there_is_one_task() -> None:
    answers = {"error_raw": 0.1, "error": 0.1, "bins": [], "answered": 0.25,
               "answered_accuracy": 0.93, "asked": 0.95}  # fmt: skip
    raw = {**report().model_dump(mode="json"), "reliability": answers}
    own = TaskReport.parse({"schema": TaskReport.SCHEMA, **raw}, "r")
    card = cards_of({"t": own}, {})[-1]
    label = "right where it is sure: asked for 95 %, answers 25.0 % of the test images"
    assert (card.value, card.label) == ("93.0 %", label)
    assert card.notes == ("95 % interval 86.3 to 96.6 % (100 answers)",)
    assert len(cards_of({"t": own, "u": own}, {})) == 4
