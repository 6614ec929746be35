from __future__ import annotations

import numpy as np
import pytest

from bigtransfer.metrics import accuracy as metrics


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


def test_a_network_that_always_names_one_class_is_told_by_two_scores() -> None:
    always = np.array([[92, 0, 0], [5, 0, 0], [3, 0, 0]])
    assert metrics.balanced_accuracy(always) == pytest.approx(1 / 3)
    assert metrics.macro_f1(always) == pytest.approx(2 * 92 / (92 + 100) / 3)
    assert metrics.balanced_accuracy(np.diag([7, 1, 1])) == 1
    assert metrics.macro_f1(np.eye(3, dtype=np.int64)) == 1


def test_a_class_without_test_images_counts_for_nothing() -> None:
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert metrics.balanced_accuracy(matrix) == pytest.approx((0.75 + 1) / 2)
    assert metrics.macro_f1(matrix) == pytest.approx((6 / 7 + 8 / 9) / 2)
