"""How far probabilities can be believed: calibration error, temperature, when to abstain.

Guo et al. 2017, arXiv 1706.04599. One temperature is fitted on the validation split and divides the
logits ever after; it changes no prediction, only how sure it claims to be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bigtransfer.metrics.accuracy import softmax

BINS = 15
_RESAMPLES, _ONE_SIDED = 300, 1.645

FEWEST_IMAGES = 50
"""A validation split with fewer images says nothing of probabilities, and calibrates nothing."""
_HALVINGS = 25
_FOLDS = 5
_SPREAD = 0.5
"""Of log(temperature), as it is expected before any image is seen."""
_LOWEST, _HIGHEST = 0.05, 20.0
"""Temperatures that are looked at."""


@dataclass(frozen=True)
class Bin:
    """Answers of about the same probability."""

    images: int
    confidence: float
    """Mean probability."""
    accuracy: float
    """Share that is right."""


def honest_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature that a validation split supports; 1 where it supports none.

    A network that is right on every image cannot say how sure it may be: the likeliest temperature
    would be the lowest, and every answer certain. So without an error it is never below 1. It is
    kept only if images that it was not fitted on are told better with it, by their likelihood,
    by more than chance does, and by the calibration error.

    Args:
        logits: (N, C) of images that the network was not trained on, at least `FEWEST_IMAGES`.
        labels: (N,).
    """
    temperature = fit_temperature(logits, labels)
    if (logits.argmax(axis=1) == labels).all():
        temperature = max(temperature, 1.0)
    if temperature == 1.0 or not _helps_unseen(logits, labels):
        return 1.0
    return temperature


def _helps_unseen(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> bool:
    """Say whether temperatures fitted on four fifths of the images help the last fifth."""
    fold = np.arange(len(labels)) % _FOLDS
    told = np.empty(logits.shape)
    for number in range(_FOLDS):
        rest, own = fold != number, fold == number
        told[own] = calibrated(logits[own], fit_temperature(logits[rest], labels[rest]))
    raw = calibrated(logits, 1.0)
    gain = _losses(raw, labels) - _losses(told, labels)
    by_chance = gain.std() / np.sqrt(len(gain))
    return bool(gain.mean() > by_chance) and _error(told, labels) <= _error(raw, labels)


def _losses(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    own = probabilities[np.arange(len(labels)), labels]
    losses: NDArray[np.float64] = -np.log(np.maximum(own, np.finfo(np.float64).tiny))
    return losses


def _error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature under which the labels are likeliest, drawn towards 1 if they are few.

    Least is the negative log-likelihood of all images plus log(temperature)^2 / (2 * 0.5^2): as if
    it were known beforehand that the temperature lies within a factor of e of 1. Thousands of
    images overrule that, a dozen does not. Its zero of slope is found by halving.

    Args:
        logits: (N, C) of images that the network was not trained on.
        labels: (N,).
    """
    z = logits.astype(np.float64)
    own = z[np.arange(len(labels)), labels]

    def slope(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        gain = float(((softmax(z * inverse) * z).sum(axis=1) - own).sum())
        return float(log_temperature / _SPREAD**2 - inverse * gain)

    low, high = np.log(_LOWEST), np.log(_HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(np.exp((low + high) / 2))


def calibrated(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Return probabilities (N, C) of logits (N, C) at a temperature."""
    return softmax(logits.astype(np.float64) / temperature)


def calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS
) -> float:
    """Return the expected calibration error, in [0, 1].

    The mean distance, over bins of equal width weighted by their images, between how sure the
    network was and how often it was right.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether it was the right one.
        bins: Number of bins over [0, 1].
    """
    return sum(
        own.images * abs(own.confidence - own.accuracy)
        for own in reliability(confidence, correct, bins)
    ) / len(confidence)


def reliability(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS
) -> list[Bin]:
    """Return the bins that hold images."""
    number = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    return [
        Bin(
            images=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(correct[inside].mean()),
        )
        for inside in (number == i for i in range(bins))
        if inside.any()
    ]


def abstain_threshold(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], accuracy: float
) -> float | None:
    """Return the confidence from which on answers are right often enough.

    The lowest observed confidence such that the images at or above it are right with the wanted
    share; None if no threshold reaches it.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether it was the right one.
        accuracy: Wanted among the answered images, in [0, 1].
    """
    order = np.argsort(-confidence, kind="stable")
    sure, right = confidence[order], correct[order]
    shares = np.cumsum(right) / np.arange(1, len(right) + 1)
    last_of_its_value = np.append(sure[1:] != sure[:-1], True)
    enough = np.flatnonzero((shares >= accuracy) & last_of_its_value)
    return float(sure[enough[-1]]) if len(enough) else None


@dataclass(frozen=True)
class CalibrationBounds:
    """A calibration error, and how small it may be but for the luck of the images."""

    error: float
    raw: float
    """Without a temperature."""
    lowest: float
    """Lower end of the one-sided 95 % interval of the error."""
    lowest_more: float
    """The same of the error less the raw one."""


def calibration_bounds(
    confidence: NDArray[np.floating], raw: NDArray[np.floating], correct: NDArray[np.bool_]
) -> CalibrationBounds:
    """Return the error of probabilities, and lower ends by a bootstrap over the images.

    Args:
        confidence: (N,) probability of the predicted class.
        raw: (N,) the same without a temperature.
        correct: (N,) whether it was the right one.
    """
    own, other = confidence.astype(np.float64), raw.astype(np.float64)
    error, without = calibration_error(own, correct), calibration_error(other, correct)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(_RESAMPLES):
        some = random.integers(0, len(correct), len(correct))
        one = calibration_error(own[some], correct[some])
        drawn.append((one, one - calibration_error(other[some], correct[some])))
    spread = np.std(drawn, axis=0)  # not quantiles: a resampled error is larger than the error
    return CalibrationBounds(
        error=error,
        raw=without,
        lowest=float(error - _ONE_SIDED * spread[0]),
        lowest_more=float(error - without - _ONE_SIDED * spread[1]),
    )
