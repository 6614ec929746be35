"""The linear head on frozen features, against scikit-learn's regression."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bigtransfer.metrics.accuracy import softmax
from bigtransfer.train.linear import (
    STRENGTHS,
    USUAL_STRENGTH,
    Examples,
    Head,
    choose_strength,
    fit_head,
)


def drawn(
    images: int, width: int, classes: int, *, views: int = 1, signal: float = 1.0, seed: int = 0
) -> tuple[Examples, NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    middles = generator.normal(size=(classes, width)) * signal
    noise = generator.normal(size=(images, views, width))
    features = (middles[labels][:, None] + noise + 3).astype(np.float32)
    return Examples(features, np.eye(classes, dtype=np.float32)[labels], False), labels


def logits_of(head: Head, features: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = features @ head.weight.numpy().T + head.bias.numpy()
    return result


@pytest.mark.parametrize(("images", "width"), [(120, 20), (30, 200)], ids=["tall", "wide"])
def test_it_is_the_regression_of_scikit_learn(images: int, width: int) -> None:
    from sklearn.linear_model import LogisticRegression

    examples, labels = drawn(images, width, 3)
    weights = np.random.default_rng(1).integers(0, 3, images).astype(np.float64)
    flat = examples.features[:, 0].astype(np.float64)
    used = weights > 0
    centred = flat - flat[used].mean(0)
    scale = np.sqrt((centred[used] ** 2).mean())
    theirs = LogisticRegression(C=1 / 5.0, max_iter=5000, tol=1e-8)
    theirs.fit(centred / scale, labels, sample_weight=weights)
    expected = theirs.predict_proba(centred / scale)
    ours = softmax(logits_of(fit_head(examples, weights, 5.0), examples.features[:, 0]))
    assert np.abs(ours - expected).max() < 1e-3


def test_several_labels_are_regressions_of_their_own() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    features = generator.normal(size=(80, 1, 6)).astype(np.float32)
    truth = (features[:, 0, :3] + generator.normal(size=(80, 3)) > 0).astype(np.float32)
    head = fit_head(Examples(features, truth, True), np.ones(80), 2.0)
    flat = features[:, 0].astype(np.float64)
    scale = np.sqrt(((flat - flat.mean(0)) ** 2).mean())
    for label in range(3):
        theirs = LogisticRegression(C=1 / 2.0, max_iter=5000, tol=1e-8)
        theirs.fit((flat - flat.mean(0)) / scale, truth[:, label])
        expected = theirs.decision_function((flat - flat.mean(0)) / scale)
        ours = logits_of(head, features[:, 0])[:, label]
        assert np.abs(ours - expected).max() < 5e-3


def test_an_image_that_counts_twice_is_there_twice() -> None:
    examples, _ = drawn(40, 5, 2)
    twice = np.concatenate([np.arange(40), np.arange(20)])
    weights = np.where(np.arange(40) < 20, 2.0, 1.0)
    # The same middle and scale for both: they are of the images, not of how often each counts.
    one = fit_head(examples, weights, 10.0)
    features = examples.features[:, 0]
    other = fit_head(examples.some(twice), np.ones(60), 10.0)
    assert np.abs(logits_of(one, features) - logits_of(other, features)).max() < 0.2
    none = fit_head(examples, np.where(np.arange(40) < 30, 1.0, 0.0), 10.0)
    some = fit_head(examples.some(np.arange(30)), np.ones(30), 10.0)
    assert np.abs(logits_of(none, features) - logits_of(some, features)).max() < 1e-4


def test_noise_asks_for_more_strength_than_signal() -> None:
    clear, _ = drawn(300, 50, 3, signal=3.0)
    noise, _ = drawn(300, 50, 3, signal=0.0)
    strong, weak = (choose_strength(own, np.ones(300)) for own in (noise, clear))
    assert strong >= STRENGTHS[1]
    assert weak < strong / 10


def test_a_mirror_image_is_never_held_out_from_its_own_image() -> None:
    # Labels are noise; each image and its mirror image are equal. Were they in two folds, the
    # weakest regularisation would know every answer.
    examples, _ = drawn(200, 400, 2, signal=0.0)
    both = Examples(np.repeat(examples.features, 2, 1), examples.targets, False)
    assert choose_strength(both, np.ones(200)) >= STRENGTHS[1]


def test_where_nothing_can_be_held_out_the_strength_is_the_usual_one() -> None:
    examples, _ = drawn(3, 10, 3)
    assert choose_strength(examples, np.ones(3)) == USUAL_STRENGTH


def test_features_that_are_all_the_same_give_the_share_of_each_class() -> None:
    targets = np.eye(2, dtype=np.float32)[[0, 0, 0, 1]]
    head = fit_head(Examples(np.ones((4, 1, 3), np.float32), targets, False), np.ones(4), 1.0)
    logits = logits_of(head, np.ones((1, 3), np.float32))[0]
    assert np.exp(logits[0]) / np.exp(logits).sum() == pytest.approx(0.75, abs=1e-3)
