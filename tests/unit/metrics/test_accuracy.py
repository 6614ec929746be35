from __future__ import annotations

import numpy as np
import pytest

from bigtransfer.evaluate.task import choose, median_cell, summary_rows
from bigtransfer.metrics import accuracy as metrics
from bigtransfer.report.table import headline_rows


def test_topk_counts_the_k_best_and_works_with_fewer_classes() -> None:
    scores = np.array([[3, 2, 1], [1, 2, 3], [2, 3, 1]], np.float32)
    labels = np.array([0, 0, 0])
    assert metrics.topk_accuracy(scores, labels, 1) == pytest.approx(1 / 3)
    assert metrics.topk_accuracy(scores, labels, 2) == pytest.approx(2 / 3)
    assert metrics.topk_accuracy(scores, labels, 5) == 1.0


def test_confusion_rows_are_true_classes() -> None:
    matrix = metrics.confusion_matrix(np.array([1, 1, 0]), np.array([0, 1, 1]), 3)
    assert matrix.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
    recall = metrics.per_class_recall(matrix)
    assert recall[:2].tolist() == [0, 0.5]
    assert np.isnan(recall[2])


def test_softmax_is_stable() -> None:
    probabilities = metrics.softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]], np.float32))
    assert probabilities.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def cell(init: str, k: int | str, seed: int, val: float, test: float) -> dict[str, object]:
    return {"init": init, "examples_per_class": k, "seed": seed, "val_top1": val,
            "test_top1": test, "test_top5": 1.0}  # fmt: skip


CELLS = [
    cell("upstream", 1, 0, 0.9, 0.2),
    cell("upstream", 5, 0, 0.5, 0.6),
    cell("upstream", 5, 1, 0.7, 0.5),
    cell("upstream", 5, 2, 0.6, 0.7),
    cell("scratch", 5, 0, 0.6, 0.9),
    cell("scratch", 1, 0, 0.1, 0.1),
]


def test_registered_is_the_median_seed_by_validation_not_by_test() -> None:
    group = choose(CELLS)
    assert {cell["examples_per_class"] for cell in group} == {5}
    assert median_cell(group, "top1")["seed"] == 2
    scratch = choose([c for c in CELLS if c["init"] == "scratch"])
    assert scratch[0]["examples_per_class"] == 5
    full = [*CELLS, cell("upstream", "full", 7, 0.1, 0.1)]
    assert choose(full)[0]["seed"] == 7


def test_rows_hold_median_and_deviation_over_seeds() -> None:
    rows = {(r["init"], r["examples_per_class"]): r for r in summary_rows("t", CELLS, "top1")}
    row = rows["upstream", 5]
    assert (row["median"], row["min"], row["max"], row["seeds"]) == (0.6, 0.5, 0.7, 3)
    assert row["sd"] == pytest.approx(0.0816, abs=1e-4)


def test_headline_puts_transfer_beside_scratch() -> None:
    rows = headline_rows(summary_rows("t", CELLS, "top1"))
    assert [r["difference"] for r in rows] == ["+10.0", "-30.0"]
    assert rows[1]["transfer"] == "60.0 ± 8.2 %"
