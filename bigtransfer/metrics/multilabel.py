"""Several labels per image: average precision, F1, and the threshold of each class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def multi_hot(labels: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    """Return (N, classes), true where an image has the label.

    Args:
        labels: (N,), or (N, L) filled up with -1.
        classes: Number of classes.
    """
    listed = labels[:, None] if labels.ndim == 1 else labels
    result = np.zeros((len(labels), classes + 1), np.bool_)
    np.put_along_axis(result, np.where(listed < 0, classes, listed), True, axis=1)
    return result[:, :-1]


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return probabilities of logits, the same shape."""
    halves = np.tanh(logits.astype(np.float64) / 2)  # exp would overflow
    result: NDArray[np.float64] = (1 + halves) / 2
    return result


def average_precision(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the average precision of each class, (C,); NaN for a class without images.

    The sum over distinct thresholds of (recall - previous recall) * precision: no interpolation,
    equal scores counted together.

    Args:
        scores: (N, C), of any scale.
        truth: (N, C).
    """
    return np.array([_average_precision(scores[:, c], truth[:, c]) for c in range(truth.shape[1])])


def _average_precision(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    if not truth.any():
        return float("nan")
    hits, guesses, _ = _curve(scores, truth)
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / guesses).sum())


def mean_average_precision(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Return the mean over the classes that have images (mAP)."""
    return float(np.nanmean(average_precision(scores, truth)))


def f1_per_image(named: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the F1 of each image's labels, (N,): 1 where exactly its own are named.

    Args:
        named: (N, C).
        truth: (N, C).
    """
    both = (named & truth).sum(axis=1)
    total = named.sum(axis=1) + truth.sum(axis=1)
    return np.where(total == 0, 1.0, 2 * both / np.maximum(total, 1)).astype(np.float32)


def micro_f1(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the F1 score over all pairs of image and class, in [0, 1]."""
    hits = float((predicted & truth).sum())
    return 2 * hits / max(1.0, float(predicted.sum() + truth.sum()))


def best_thresholds(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return for each class the score from which on it is predicted, (C,): the best F1.

    A class without images here gets 0.5. Between the last score that is taken and the first that
    is not, the middle.

    Args:
        scores: (N, C) probabilities.
        truth: (N, C).
    """
    result = np.full(truth.shape[1], 0.5)
    for c in np.flatnonzero(truth.any(axis=0)):
        hits, guesses, values = _curve(scores[:, c], truth[:, c])
        best = int((2 * hits / (guesses + hits[-1])).argmax())
        below = values[best + 1] if best + 1 < len(values) else 0.0
        result[c] = (values[best] + below) / 2
    return result


def _curve(
    scores: NDArray[np.floating], truth: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating]]:
    """Return hits and guesses for each distinct threshold, highest first, and the thresholds."""
    order = np.argsort(-scores, kind="stable")
    values = scores[order]
    last = np.append(values[1:] != values[:-1], True)
    hits = np.cumsum(truth[order])[last]
    return hits.astype(np.int64), np.flatnonzero(last) + 1, values[last]
