"""What frozen features are worth: few-shot accuracy of a ridge regression on them, in closed form.

A cheap check during upstream training, as in google-research/big_vision (`fewshot_lsr`): features
standardised by the few-shot images, one constant feature of 100, targets -1 and 1, l2 of 2^10.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bigtransfer.data.batches import few_shot_rows

_BIAS = 100.0
_L2 = 2.0**10


def few_shot_accuracy(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    test_features: NDArray[np.float32],
    test_labels: NDArray[np.int64],
) -> float:
    """Return the top-1 accuracy on test images of a regression fitted on a few.

    Args:
        features: (N, F) of the few-shot images.
        labels: (N,).
        test_features: (M, F).
        test_labels: (M,).
    """
    mean, deviation = features.mean(0), features.std(0) + 1e-5
    x, tested = (_with_bias((f - mean) / deviation) for f in (features, test_features))
    classes = int(max(labels.max(), test_labels.max())) + 1
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    if len(x) < x.shape[1]:  # the smaller of the two systems; they have the same solution
        weights = x.T @ np.linalg.solve(x @ x.T + _L2 * np.eye(len(x)), targets)
    else:
        weights = np.linalg.solve(x.T @ x + _L2 * np.eye(x.shape[1]), x.T @ targets)
    return float(((tested @ weights).argmax(1) == test_labels).mean())


def probe_subsets(
    labels: NDArray[np.int64], examples_per_class: tuple[int, ...], seeds: tuple[int, ...]
) -> dict[tuple[int, int], NDArray[np.int64]]:
    """Return the positions of each few-shot subset, by (examples per class, seed).

    Raises:
        ValueError: If a class has too few images.
    """
    return {(k, seed): few_shot_rows(labels, k, seed) for k in examples_per_class for seed in seeds}


def _with_bias(features: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.concatenate([features.astype(np.float64), np.full((len(features), 1), _BIAS)], 1)
