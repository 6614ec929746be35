from __future__ import annotations

import numpy as np
import pytest

from bigtransfer.evaluate.task import choose, confusion_to_show, median_cell, summary_rows
from bigtransfer.report.table import headline_rows
from fixtures.reports import scored_cell, task_report

CELLS = [
    scored_cell("upstream", 1, 0, 0.9, 0.2),
    scored_cell("upstream", 5, 0, 0.5, 0.6),
    scored_cell("upstream", 5, 1, 0.7, 0.5),
    scored_cell("upstream", 5, 2, 0.6, 0.7),
    scored_cell("scratch", 5, 0, 0.6, 0.9),
    scored_cell("scratch", 1, 0, 0.1, 0.1),
]


def test_registered_is_the_median_seed_by_validation_not_by_test() -> None:
    group = choose(CELLS)
    assert {cell.examples_per_class for cell in group} == {5}
    assert median_cell(group, "top1").seed == 2
    scratch = choose([c for c in CELLS if c.init == "scratch"])
    assert scratch[0].examples_per_class == 5
    full = [*CELLS, scored_cell("upstream", "full", 7, 0.1, 0.1)]
    assert choose(full)[0].seed == 7


def test_rows_hold_median_and_deviation_over_seeds() -> None:
    rows = {(r.init, r.examples_per_class): r for r in summary_rows("t", CELLS, "top1")}
    row = rows["upstream", 5]
    assert (row.median, row.min, row.max, row.seeds) == (0.6, 0.5, 0.7, 3)
    assert row.medians == {"top5": 1.0}
    assert row.sd == pytest.approx(0.0816, abs=1e-4)


def test_headline_puts_transfer_beside_scratch() -> None:
    rows = headline_rows(summary_rows("t", CELLS, "top1"))
    assert [r["difference"] for r in rows] == ["+10.0", "-30.0"]
    assert rows[1]["transfer"] == "60.0 ± 8.2 %"


@pytest.mark.parametrize("classes", [2, 30, 31, 78, 1000])
def test_every_number_of_classes_has_a_matrix_that_can_be_read(classes: int) -> None:
    matrix = np.random.default_rng(classes).integers(0, 9, (classes, classes))
    matrix[1] += 100  # the class that is confused most
    names = tuple(f"class {n}" for n in range(classes))
    report = task_report(classes=names, confusion=tuple(map(tuple, matrix.tolist())))
    shown = confusion_to_show(report)
    rows = np.array([row["row"] for row in shown["rows"]])
    titles = [spec["displayName"] for spec in shown["annotationSpecs"]]
    assert rows.shape == (len(titles), len(titles)) == (min(classes, 30),) * 2
    assert rows.sum() == matrix.sum()
    assert "class 1" in titles
    if classes <= 30:
        assert titles == list(names) and (rows == matrix).all()
    else:
        assert titles[-1] == f"others ({classes - 29:,} classes)"
        own = [names.index(title) for title in titles[:-1]]
        assert (rows[:-1, :-1] == matrix[np.ix_(own, own)]).all()
        assert (rows[:-1].sum(axis=1) == matrix[own].sum(axis=1)).all()


def test_several_labels_have_a_matrix_of_labels() -> None:
    report = task_report(metric="map", confusion=None, label_confusion=((3, 1), (2, 9)))
    shown = confusion_to_show(report)
    assert [row["row"] for row in shown["rows"]] == [[3, 1], [2, 9]]
    assert [spec["displayName"] for spec in shown["annotationSpecs"]] == [
        "has the label", "has it not",
    ]  # fmt: skip
