"""What a validation split says of a network that was trained: scores, temperature, thresholds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.metrics.accuracy import softmax, topk_accuracy
from bigtransfer.metrics.calibration import (
    FEWEST_IMAGES,
    abstain_threshold,
    calibrated,
    calibration_error,
    honest_temperature,
)
from bigtransfer.metrics.multilabel import (
    best_thresholds,
    mean_average_precision,
    micro_f1,
    multi_hot,
    sigmoid,
)


def calibration_of(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    abstain_accuracy: float,
    held_out: bool = True,
) -> Calibration:
    """Return what a validation split says of a network whose images have one label each.

    Args:
        logits: (N, C) of the validation split.
        labels: (N,).
        abstain_accuracy: Wanted among the answers that are not abstained from.
        held_out: Whether the network was not trained on these images. Otherwise they tell nothing:
            the temperature is 1, and no threshold is given; so, too, of fewer than
            `FEWEST_IMAGES`.
    """
    tells = held_out and len(labels) >= FEWEST_IMAGES
    temperature = honest_temperature(logits, labels) if tells else 1.0
    correct = logits.argmax(axis=1) == labels
    confidence = calibrated(logits, temperature).max(axis=1)
    return Calibration(
        images=len(labels),
        held_out=held_out,
        top1=topk_accuracy(logits, labels, 1),
        top5=topk_accuracy(logits, labels, 5),
        temperature=temperature,
        calibration_error=calibration_error(confidence, correct),
        calibration_error_raw=calibration_error(softmax(logits).max(axis=1), correct),
        abstain_below=abstain_threshold(confidence, correct, abstain_accuracy) if tells else None,
        calibrated=tells,
    )


def multi_label_calibration_of(
    logits: NDArray[np.float32], labels: NDArray[np.int64], *, held_out: bool = True
) -> MultiLabelCalibration:
    """Return the same of a network whose images may have several labels.

    Args:
        logits: (N, C) of the validation split.
        labels: (N, L) filled up with -1.
        held_out: As above; if not, every class is named from 0.5 on.
    """
    truth, scores = multi_hot(labels, logits.shape[1]), sigmoid(logits)
    thresholds = best_thresholds(scores, truth) if held_out else np.full(truth.shape[1], 0.5)
    return MultiLabelCalibration(
        images=len(labels),
        held_out=held_out,
        map=mean_average_precision(logits, truth),
        micro_f1=micro_f1(scores >= thresholds, truth),
        thresholds=tuple(thresholds.tolist()),
    )
