from __future__ import annotations

from bigtransfer.report.sweep import (
    Published,
    SweptTask,
    as_markdown,
    group_rows,
    table_rows,
)
from fixtures.reports import summary_row

TASKS = [
    SweptTask(
        "pets", "natural",
        [summary_row("upstream", 5, 0.4, 0.5, 0.7), summary_row("scratch", 5, 0, 0.1, 0.2)],
        {"5": 82.3},
    ),
    SweptTask("flow_ers", "natural", [summary_row("upstream", 5, 0.8, 0.9, 0.95)]),
    SweptTask("dtd", "natural", missing="put it at data/dtd"),
    SweptTask("dsprites", "structured", [summary_row("upstream", 5, 0.1, 0.2, 0.3)]),
]  # fmt: skip


def test_every_task_has_a_row_and_a_missing_one_says_so() -> None:
    rows = table_rows(TASKS)
    assert [r["task"] for r in rows] == ["pets", "pets", "flow_ers", "dtd", "dsprites"]
    assert rows[0]["reference"] == "82.3"
    assert rows[3]["note"] == "missing: put it at data/dtd"
    assert {tuple(r) for r in rows} == {tuple(rows[0])}


def test_group_means_say_how_many_tasks_are_in_them() -> None:
    means = {(r["group"], r["init"]): (r["mean_of_medians"], r["tasks"]) for r in group_rows(TASKS)}
    assert means["natural", "upstream"] == ("70.0", "2 of 3")
    assert means["natural", "scratch"] == ("10.0", "1 of 3")
    assert means["all groups", "upstream"] == ("53.3", "3 of 4")
    first = group_rows(TASKS, {"natural": 7, "structured": 8})[0]
    assert first["tasks"] == "2 of 7"
    assert group_rows([SweptTask("lone", rows=[summary_row("upstream", 1, 0, 0, 0)])]) == []


def test_means_of_transfer_come_first_the_least_training_set_first() -> None:
    rows = [
        summary_row(init, k, 0, 0.5, 1) for init in ("scratch", "upstream") for k in ("full", 10)
    ]
    tasks = [SweptTask("a", "g", rows), SweptTask("b", "h", [summary_row("upstream", 2, 0, 0, 0)])]
    last = [(r["init"], r["per_class"]) for r in group_rows(tasks) if r["group"] == "all groups"]
    assert last == [("upstream", "2"), ("upstream", "10"), ("upstream", "full"),
                    ("scratch", "10"), ("scratch", "full")]  # fmt: skip


def test_another_split_than_the_official_one_stays_out_of_the_means() -> None:
    rows = [summary_row("upstream", 5, 0, 0.8, 0.9)]
    tasks = [*TASKS, SweptTask("svhn", "natural", official=False, rows=rows)]
    means = {(r["group"], r["init"]): (r["mean_of_medians"], r["tasks"]) for r in group_rows(tasks)}
    assert means["natural", "upstream"] == ("70.0", "2 of 4")
    assert "0.0 ← **80.0** → 90.0, not the official split |" in as_markdown(tasks)


def test_what_others_printed_stands_beneath() -> None:
    others = [Published("theirs", {"natural": 80.77, "all groups": 73.5}), Published("old", {})]
    lines = as_markdown(TASKS, others).splitlines()
    assert lines[-4] == "| published means, % | natural | all groups |"
    assert lines[-2:] == ["| theirs | 80.77 | 73.50 |", "| old |  |  |"]


def test_markdown() -> None:
    text = as_markdown(TASKS)
    assert "| pets | 5 | upstream | 40.0 ← **50.0** → 70.0 | 3 | 82.3 |" in text
    assert "| dtd |  |  | missing: put it at data/dtd |  |  |" in text
    assert "| natural | 5 | upstream | 70.0 | 2 of 3 |" in text
