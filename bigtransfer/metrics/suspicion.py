"""Training images that may have been planted: by what a network says that never saw their labels.

Two signs of a poisoned training set with false labels. A head on frozen features, fitted without
the image, says another class than the label (ridge regression, left out in closed form). And within
a class, what was planted leaves its mark in the direction in which the class varies most (spectral
signatures, Tran, Li and Madry 2018, arXiv 1811.00636).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STRENGTH = 0.1
"""Of the ridge, per image and standardised feature."""
_SHUFFLES, _SELDOM = 1000, 0.999
_USUAL = 0.05
_BREADTH = 0.75
"""Of the other classes, as wide as images drawn from all of them at random, to be of many."""


@dataclass(frozen=True)
class Doubt:
    """What heads that were fitted without an image say of it."""

    likely: NDArray[np.int64]
    """(N,) the class that the head says."""
    margin: NDArray[np.float64]
    """(N,) how far the most likely other class is above the label; above 0: it is doubted."""


def doubt(features: NDArray[np.floating], labels: NDArray[np.int64], classes: int) -> Doubt:
    """Return what a head says of each image that was fitted to all others.

    Args:
        features: (N, D) of a network that was not trained on these labels.
        labels: (N,) in [0, classes).
        classes: How many there are.
    """
    x = np.asarray(features, np.float64)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
    x = np.hstack([x, np.ones((len(x), 1))])
    truth = np.eye(classes)[labels]
    gram = x.T @ x + _STRENGTH * len(x) * np.eye(x.shape[1])
    solved = np.linalg.solve(gram, np.hstack([x.T @ truth, x.T]))
    said, weights = x @ solved[:, :classes], solved[:, classes:]
    leverage = np.einsum("nd,dn->n", x, weights)[:, None]
    without = (said - leverage * truth) / (1 - leverage)
    own = without[np.arange(len(x)), labels]
    others = np.where(truth > 0, -np.inf, without)
    return Doubt(without.argmax(axis=1), others.max(axis=1) - own)


def spectral(features: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how far each image lies in the direction in which its class varies most, squared.

    Args:
        features: (N, D).
        labels: (N,).

    Returns:
        (N,); 0 in classes of fewer than three images.
    """
    scores = np.zeros(len(labels))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) < 3:
            continue
        x = np.asarray(features[own], np.float64)
        x -= x.mean(axis=0)
        _, _, directions = np.linalg.svd(x, full_matrices=False)
        scores[own] = (x @ directions[0]) ** 2
    return scores


def suspicion(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return in [0, 1] how high images stand in one of two lists, whichever is higher."""
    ranks = [own.argsort(kind="stable").argsort() for own in (first, second)]
    return np.maximum(*ranks) / max(len(first) - 1, 1)


@dataclass(frozen=True)
class Crowd:
    """A class with more false labels from many other classes than chance puts there."""

    label: int
    doubted: int
    """Images of the class whose label is doubted."""
    pairs: int
    """Of them, pairs that are said to be of different classes."""
    by_chance: float
    """So many pairs are seldom passed in any class (1 in 1,000) when labels are shuffled."""


def crowds(
    labels: NDArray[np.int64], likely: NDArray[np.int64], classes: int
) -> list[Crowd] | None:
    """Return the classes that images of many other classes seem to have been put into.

    Classes that resemble one or two others are no such crowd: doubted images count in pairs that
    are said to be of different classes, and most pairs must be. Chance is what shuffled labels
    show.

    Args:
        labels: (N,) as given.
        likely: (N,) as a head says that was fitted without the image.
        classes: How many there are; of fewer than three there are no such pairs.

    Returns:
        None: the features tell the classes apart too badly to say, in the usual class more than
        one label in twenty is doubted.
    """
    doubted = np.flatnonzero(likely != labels)
    given, said = labels[doubted], likely[doubted]
    known = np.bincount(labels, minlength=classes)
    shares = (np.bincount(given, minlength=classes) / np.maximum(known, 1))[known > 0]
    if np.median(shares) > _USUAL:
        return None
    counts = _pairs(given, said, classes)
    generator = np.random.default_rng(0)
    highest = [
        _pairs(generator.permutation(labels)[: len(doubted)], said, classes).max()
        for _ in range(_SHUFFLES)
    ]
    limit = float(np.quantile(highest, _SELDOM))
    return [
        Crowd(int(label), int((given == label).sum()), int(counts[label]), limit)
        for label in np.argsort(-counts, kind="stable")
        if counts[label] > limit
        and counts[label] > _BREADTH * _expected(known, int(label)) * _all_pairs(given == label)
    ]


def _expected(known: NDArray[np.int64], label: int) -> float:
    """Return how often two random images of other classes are of different ones."""
    shares = np.delete(known, label) / max(known.sum() - known[label], 1)
    return float(1 - (shares**2).sum())


def _all_pairs(own: NDArray[np.bool_]) -> float:
    return float(own.sum() * (own.sum() - 1) / 2)


def _pairs(given: NDArray[np.int64], said: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return for each class how many pairs of its doubted images are said to be of two classes."""
    other = given != said
    keys, counts = np.unique(given[other] * classes + said[other], return_counts=True)
    own = np.bincount(given[other], minlength=classes)
    alike = np.bincount(keys // classes, counts**2, minlength=classes).astype(np.int64)
    pairs: NDArray[np.int64] = (own**2 - alike) // 2
    return pairs
