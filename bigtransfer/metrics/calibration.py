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

_HALVINGS = 40
_LOWEST, _HIGHEST = 0.05, 20.0
"""Temperatures that are looked at; a validation split that is all right would ask for 0."""


@dataclass(frozen=True)
class Bin:
    """Answers of about the same probability."""

    images: int
    confidence: float
    """Mean probability."""
    accuracy: float
    """Share that is right."""


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature under which the labels are likeliest.

    The mean negative log-likelihood is convex in 1 / temperature, so its slope has one zero, which
    is found by halving.

    Args:
        logits: (N, C) of images that the network was not trained on.
        labels: (N,).
    """
    z = logits.astype(np.float64)
    own = z[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((softmax(z * inverse) * z).sum(axis=1) - own).mean())

    low, high = 1 / _HIGHEST, 1 / _LOWEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


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
