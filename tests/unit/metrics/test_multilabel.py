from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from bigtransfer.metrics.multilabel import (
    average_precision,
    best_thresholds,
    mean_average_precision,
    micro_f1,
    multi_hot,
    sigmoid,
)

GENERATOR = np.random.default_rng(0)
SCORES = np.round(GENERATOR.normal(size=(200, 6)), 1).astype(np.float32)  # with ties
TRUTH = GENERATOR.random((200, 6)) < [0.5, 0.1, 0.02, 0.9, 0.3, 0.0]


def test_average_precision_equals_scikit_learn() -> None:
    own = average_precision(SCORES, TRUTH)
    for c in range(5):
        assert own[c] == pytest.approx(average_precision_score(TRUTH[:, c], SCORES[:, c]))
    assert np.isnan(own[5])
    assert mean_average_precision(SCORES, TRUTH) == pytest.approx(own[:5].mean())


def test_micro_f1_equals_scikit_learn() -> None:
    predicted = SCORES > 0
    wanted = f1_score(TRUTH, predicted, average="micro")
    assert micro_f1(predicted, TRUTH) == pytest.approx(wanted)
    assert micro_f1(np.zeros_like(TRUTH), np.zeros_like(TRUTH)) == 0.0


def test_no_other_threshold_has_a_better_f1() -> None:
    scores = sigmoid(SCORES)
    best = best_thresholds(scores, TRUTH)
    assert best[5] == 0.5
    for c in range(5):
        reached = f1_score(TRUTH[:, c], scores[:, c] >= best[c])
        every = [f1_score(TRUTH[:, c], scores[:, c] >= s) for s in np.unique(scores[:, c])]
        assert reached == pytest.approx(max(every))


def test_labels_become_a_table() -> None:
    assert multi_hot(np.array([[2, 0], [1, -1]]), 3).tolist() == [
        [True, False, True], [False, True, False],
    ]  # fmt: skip
    assert multi_hot(np.array([2, 0]), 3).tolist() == [[False, False, True], [True, False, False]]


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0.0, 0.5, 1.0]
