from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bigtransfer.metrics.calibration import (
    abstain_threshold,
    calibrated,
    calibration_error,
    fit_temperature,
    honest_temperature,
    reliability,
)
from fixtures.answers import drawn


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_spoilt_the_probabilities_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def confident(
    images: int, wrong: int, logit: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Answers of one certainty, some of them wrong; of two classes."""
    labels = np.arange(images) % 2
    logits = np.zeros((images, 2), np.float32)
    said = labels.copy()
    said[:wrong] = 1 - said[:wrong]
    logits[np.arange(images), said] = logit
    return logits, labels


@pytest.mark.parametrize("images", [5, 17, 50, 400])
def test_a_faultless_split_makes_nobody_surer(images: int) -> None:
    logits, labels = confident(images, 0, 0.5)  # 62 % sure, always right
    assert honest_temperature(logits, labels) == 1.0


def test_a_few_images_move_the_temperature_little() -> None:
    few = fit_temperature(*confident(17, 1, 0.5))
    many = fit_temperature(*confident(17_000, 1_000, 0.5))
    assert many < 0.25 < 0.4 < few < 1.0
    assert few > 0.4


@pytest.mark.parametrize("seed", range(6))
def test_a_temperature_is_kept_only_where_unseen_images_gain(seed: int) -> None:
    """Networks that are calibrated already: a small split must not make them worse by chance."""
    generator = np.random.default_rng(seed)
    logits = (generator.normal(size=(4_000, 5)) * 2).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (generator.random((4_000, 1)) > shares.cumsum(1)).sum(1).clip(0, 4)
    temperature = honest_temperature(logits[:100], labels[:100])
    assert 0.7 < temperature < 1.4
    correct = logits.argmax(1) == labels
    raw, told = (
        calibration_error(calibrated(logits, t).max(1), correct) for t in (1.0, temperature)
    )
    assert told <= raw + 0.02


def test_a_large_split_overrules_the_expectation() -> None:
    for temperature in (0.3, 2.5):
        logits, labels = drawn(temperature, 5_000)
        assert honest_temperature(logits, labels) == pytest.approx(temperature, rel=0.08)


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
