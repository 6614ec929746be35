from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bigtransfer.metrics.calibration import (
    abstain_threshold,
    calibrated,
    calibration_error,
    fit_temperature,
    reliability,
)


def drawn(
    temperature: float, images: int = 20_000
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Labels drawn from the probabilities of logits; the logits then multiplied."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(images, 5)) * 2
    powers = np.exp(logits)
    shares = powers / powers.sum(1, keepdims=True)
    labels = (generator.random((images, 1)) > shares.cumsum(1)).sum(1).clip(0, 4)
    return (logits * temperature).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_spoilt_the_probabilities_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_of_a_faultless_split_is_bounded() -> None:
    logits = np.eye(3, dtype=np.float32)
    assert 0.05 <= fit_temperature(logits, np.arange(3)) < 0.06


def test_calibration_error_by_hand() -> None:
    sure = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, False, True, False])
    # Two bins of two: |0.95 - 0.5| and |0.55 - 0.5|.
    assert calibration_error(sure, correct, bins=10) == pytest.approx((0.45 + 0.05) / 2)
    assert [own.images for own in reliability(sure, correct, bins=10)] == [2, 2]


def test_a_fitted_temperature_calibrates() -> None:
    logits, labels = drawn(2.5)
    sure = calibrated(logits, fit_temperature(logits, labels)).max(1)
    raw = calibrated(logits, 1.0).max(1)
    correct = logits.argmax(1) == labels
    assert calibration_error(sure, correct) < 0.02 < 0.1 < calibration_error(raw, correct)


def test_the_threshold_answers_as_often_as_it_may() -> None:
    sure = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    correct = np.array([True, True, False, True, False])
    assert abstain_threshold(sure, correct, 1.0) == 0.8
    assert abstain_threshold(sure, correct, 0.75) == 0.6
    assert abstain_threshold(sure, correct, 0.5) == 0.5
    assert abstain_threshold(sure, ~correct, 0.9) is None


def test_equal_confidences_are_answered_together() -> None:
    sure = np.array([0.9, 0.9, 0.9])
    assert abstain_threshold(sure, np.array([True, False, True]), 0.9) is None
    assert abstain_threshold(sure, np.array([True, False, True]), 0.6) == 0.9
