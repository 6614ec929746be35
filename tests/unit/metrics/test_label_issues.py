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
    issues = find_label_issues(probabilities, labels)
    assert {s.position for s in issues[:3]} == set(planted.tolist())
    assert all(truth[s.position] == s.likely for s in issues[:3])
    assert len(issues) < 10


def test_images_that_every_network_saw_are_left_out() -> None:
    probabilities = np.array([[0.1, 0.9], [np.nan, np.nan], [0.9, 0.1], [0.05, 0.95]])
    issues = find_label_issues(probabilities, np.array([1, 0, 0, 0]))
    assert [s.position for s in issues] == [3]
    assert issues[0].likely == 1


def test_a_class_without_images_accuses_nobody() -> None:
    probabilities = np.array([[0.1, 0.1, 0.8], [0.6, 0.2, 0.2], [0.2, 0.6, 0.2]])
    assert find_label_issues(probabilities, np.array([0, 0, 1])) == []


def test_a_label_that_the_network_agrees_with_is_never_doubted() -> None:
    """Given .53, likely .47: both as probable as usual, or only the other; the given one leads."""
    generator = np.random.default_rng(1)
    given = 0.5 + 0.45 * generator.random(200)
    probabilities = np.stack([given, 1 - given], axis=1)
    probabilities[100:] = 0.48 + 0.04 * generator.random((100, 1))
    probabilities[100:, 1] = 1 - probabilities[100:, 0]
    labels = np.r_[np.zeros(100, np.int64), np.ones(100, np.int64)]
    for issue in find_label_issues(probabilities, labels):
        assert probabilities[issue.position].argmax() == issue.likely != issue.given
        assert issue.likely_probability > issue.given_probability


def test_the_joint_is_counted_as_it_is_defined() -> None:
    """By hand: thresholds .8 and .7; rows 2 and 5 count for the other class."""
    probabilities = np.array([
        [0.95, 0.05], [0.95, 0.05], [0.5, 0.5], [0.1, 0.9], [0.15, 0.85], [0.85, 0.15],
    ])  # fmt: skip
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert [issue.position for issue in find_label_issues(probabilities, labels)] == [5]
