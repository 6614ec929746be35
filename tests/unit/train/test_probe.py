from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bigtransfer.train.probe import few_shot_accuracy

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(5, 40)) * 2


def images(each: int, width: int = 40) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    labels = np.repeat(np.arange(5), each)
    noise = RNG.normal(size=(len(labels), 40))
    return (CENTRES[labels] + noise)[:, :width].astype(np.float32), labels


def test_features_that_tell_the_classes_apart_score_high_and_noise_does_not() -> None:
    few, tested = images(5), images(60)
    assert few_shot_accuracy(*few, *tested) > 0.95
    noise = RNG.normal(size=few[0].shape).astype(np.float32)
    assert few_shot_accuracy(noise, few[1], *tested) < 0.45


@pytest.mark.parametrize("width", [4, 40])
def test_both_closed_forms_are_the_ridge_regression(width: int) -> None:
    """More images than features, and fewer: against the augmented least-squares problem."""
    (x, labels), (tested, tested_labels) = images(4, width), images(50, width)
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    one, other = (
        np.c_[(f - mean) / deviation, np.full(len(f), 100.0)].astype(np.float64)
        for f in (x, tested)
    )
    targets = np.where(labels[:, None] == np.arange(5), 1.0, -1.0)
    padded = np.vstack([one, 32.0 * np.eye(width + 1)])  # 32 = sqrt(2^10)
    weights = np.linalg.lstsq(padded, np.vstack([targets, np.zeros((width + 1, 5))]), rcond=None)[0]
    expected = float(((other @ weights).argmax(1) == tested_labels).mean())
    assert few_shot_accuracy(x, labels, tested, tested_labels) == expected
