"""Planted images stand high in the list; natural confusion names no class."""

from __future__ import annotations

import numpy as np
import pytest

from bigtransfer.metrics.suspicion import crowds, doubt, spectral, suspicion

CLASSES, EACH = 6, 60


def features(seed: int = 0, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Return classes around points of their own, in sixteen dimensions."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), EACH)
    return 2 * np.eye(16)[labels] + generator.normal(0, spread, (len(labels), 16)), labels


def test_a_label_that_is_false_is_doubted_by_a_head_that_did_not_see_it() -> None:
    x, truth = features()
    labels = truth.copy()
    labels[::40] = (labels[::40] + 1) % CLASSES
    found = doubt(x, labels, CLASSES)
    false = labels != truth
    assert (found.likely[false] == truth[false]).all()
    assert (found.margin[false] > 0).all()
    assert (found.likely[~false] == truth[~false]).mean() > 0.98


def test_the_closed_form_is_the_head_that_was_fitted_without_the_image() -> None:
    x, labels = features(spread=1.5)
    found = doubt(x, labels, CLASSES)
    whole = np.hstack([(x - x.mean(0)) / (x.std(0) + 1e-9), np.ones((len(x), 1))])
    for left in (0, 77, 200):
        rest = np.arange(len(x)) != left
        own = whole[rest]
        gram = own.T @ own + 0.1 * len(x) * np.eye(17)
        said = whole[left] @ np.linalg.solve(gram, own.T @ np.eye(CLASSES)[labels[rest]])
        others = np.delete(said, labels[left]).max()
        assert found.margin[left] == pytest.approx(others - said[labels[left]], abs=1e-9)


def test_a_mark_within_a_class_shows_in_its_spectral_scores() -> None:
    x, labels = features(spread=0.1)
    marked = np.arange(6)
    x[marked, 15] += 3
    scores = spectral(x, labels)
    assert set(np.argsort(-scores)[:6]) == set(marked)
    assert (spectral(x[:2], labels[:2]) == 0).all()


def test_what_is_high_in_either_list_is_high_in_both_together() -> None:
    first, second = np.array([0.0, 1, 2, 9]), np.array([9.0, 2, 1, 0])
    assert suspicion(first, second).tolist() == [1, 2 / 3, 2 / 3, 1]


def test_a_class_that_images_of_all_others_were_put_into_is_named() -> None:
    x, truth = features()
    labels = truth.copy()
    generator = np.random.default_rng(1)
    labels[generator.permutation(np.flatnonzero(truth != 2))[:30]] = 2
    found = crowds(labels, doubt(x, labels, CLASSES).likely, CLASSES)
    assert found is not None
    assert [one.label for one in found] == [2]
    assert found[0].doubted >= 25
    assert found[0].pairs > found[0].by_chance


@pytest.mark.parametrize("seed", range(5))
def test_clean_labels_and_two_classes_that_are_alike_name_no_class(seed: int) -> None:
    x, labels = features(seed)
    x[labels == 1] += 1.6 * (np.eye(16)[0] - np.eye(16)[1])  # 1 lies near 0
    likely = doubt(x, labels, CLASSES).likely
    assert (likely != labels).sum() > 0
    assert crowds(labels, likely, CLASSES) == []


def test_features_that_tell_little_apart_judge_no_class() -> None:
    x, labels = features(spread=4)
    assert crowds(labels, doubt(x, labels, CLASSES).likely, CLASSES) is None
