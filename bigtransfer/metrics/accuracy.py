"""Accuracy, confusion and their summary over seeds, from predictions alone."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median, pstdev

import numpy as np
from numpy.typing import NDArray


def topk_accuracy(scores: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> float:
    """Return the share of images whose label is among the k highest scores, in [0, 1].

    Ties are broken by class order, as a stable sort does; with fewer than k classes all count.

    Args:
        scores: (N, C).
        labels: (N,).
        k: Guesses allowed per image.
    """
    return float(topk_hits(scores, labels, k).mean())


def topk_hits(scores: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Return for each image whether a label of its is among the k highest scores.

    Args:
        scores: (N, C).
        labels: (N,), or (N, L) filled up with -1 where images have several.
        k: Guesses allowed per image.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    listed = labels[:, None] if labels.ndim == 1 else labels
    hits: NDArray[np.bool_] = (best[:, :, None] == listed[:, None, :]).any(axis=(1, 2))
    return hits


def confusion_matrix(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Return counts (C, C): row = true class, column = predicted class."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def most_confused(
    confusion: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a matrix of at most so many rows: the classes confused most, and the others as one.

    Args:
        confusion: (C, C), as `confusion_matrix` gives it.
        most: Rows and columns of the result, at least 2.

    Returns:
        The classes that stand by themselves, in class order, and the matrix: theirs first, and,
        where there are more, a last row and column with the sums over all others. The sum over
        the whole matrix is the one of `confusion`.
    """
    classes = len(confusion)
    if classes <= most:
        return np.arange(classes), confusion
    missed = confusion - np.diag(np.diag(confusion))
    wrong = missed.sum(axis=0) + missed.sum(axis=1)
    shown = np.sort(np.argsort(-wrong, kind="stable")[: most - 1])
    group = np.full(classes, most - 1)
    group[shown] = np.arange(most - 1)
    folded = np.zeros((most, most), np.int64)
    np.add.at(folded, (group[:, None], group[None, :]), confusion)
    return shown, folded


def per_class_recall(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each class that was recognised, (C,); NaN for a class without images."""
    totals = confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        recall: NDArray[np.float64] = np.diag(confusion) / totals
    return recall


def balanced_accuracy(confusion: NDArray[np.int64]) -> float:
    """Return the mean recall of the classes that have images, in [0, 1].

    What a network that always names one class gets is 1 / classes, however common that class is.
    """
    return float(np.nanmean(per_class_recall(confusion)))


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that have images, in [0, 1].

    F1 of a class is 2 * hits / (its images + images that were taken for it).
    """
    images, taken = confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = 2 * np.diag(confusion) / np.maximum(images + taken, 1)
    return float(f1[images > 0].mean())


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return probabilities (N, C) of logits (N, C)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def median_and_sd(values: Iterable[float]) -> tuple[float, float]:
    """Return the median and the population standard deviation, as the paper's tables use them."""
    listed = list(values)
    return median(listed), pstdev(listed)
