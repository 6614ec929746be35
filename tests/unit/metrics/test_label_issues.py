from __future__ import annotations

import numpy as np

from bigtransfer.metrics.label_issues import find_label_issues


def test_planted_wrong_labels_are_found_first() -> None:
    generator = np.random.default_rng(0)
    truth = np.arange(300) % 3
    labels = truth.copy()
    planted = np.array([5, 77, 200])
    labels[planted] = (labels[planted] + 1) % 3
    logits = generator.normal(size=(300, 3))
    logits[np.arange(300), truth] += 5
    powers = np.exp(logits)
    probabilities = powers / powers.sum(1, keepdims=True)
    suspects = find_label_issues(probabilities, labels)
    assert {s.position for s in suspects[:3]} == set(planted.tolist())
    assert all(truth[s.position] == s.likely for s in suspects[:3])
    assert len(suspects) < 10


def test_images_that_every_network_saw_are_left_out() -> None:
    probabilities = np.array([[0.1, 0.9], [np.nan, np.nan], [0.9, 0.1], [0.05, 0.95]])
    suspects = find_label_issues(probabilities, np.array([1, 0, 0, 0]))
    assert [s.position for s in suspects] == [3]
    assert suspects[0].likely == 1


def test_a_class_without_images_accuses_nobody() -> None:
    probabilities = np.array([[0.1, 0.1, 0.8], [0.6, 0.2, 0.2], [0.2, 0.6, 0.2]])
    assert find_label_issues(probabilities, np.array([0, 0, 1])) == []
