"""All there is to say of one network's answers on the test split of its task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bigtransfer.artifacts.answers import Answers
from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.cells import ListedCell
from bigtransfer.artifacts.evidence import CalibrationError
from bigtransfer.artifacts.report import (
    ClassScore,
    Mistake,
    Reliability,
    ReliabilityBin,
    ScoredCell,
)
from bigtransfer.data.decoding import decode_rgb
from bigtransfer.data.shards import Shards
from bigtransfer.evaluate.activation_map import ActivationMaps
from bigtransfer.evaluate.scoring import Scorer
from bigtransfer.metrics.accuracy import confusion_matrix, per_class_recall, softmax
from bigtransfer.metrics.calibration import (
    calibrated,
    calibration_bounds,
    calibration_error,
    reliability,
)
from bigtransfer.metrics.multilabel import average_precision, f1_per_image, multi_hot, sigmoid
from bigtransfer.report import page

_MISTAKES_SHOWN = 24
_MISTAKE_PIXELS = 160
MapsOf = Callable[[NDArray[np.int64], NDArray[np.int64]], ActivationMaps | None]
"""`maps(positions, classes)`: how logits add up over places, as `Scorer.maps` says."""


@dataclass(frozen=True)
class Account:
    """What there is to say of one network's answers on the test split."""

    guesses: list[dict[str, str | float | bool]]
    """A row of `predictions.csv` per image."""
    per_class: tuple[ClassScore, ...]
    mistakes: tuple[Mistake, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = None
    label_confusion: tuple[tuple[int, ...], ...] | None = None
    reliability: Reliability | None = None
    hits: str | None = None


def digest_of_split(shards: Shards, split: str) -> str:
    """Return a digest of the images and labels of a split, independent of their order."""
    return hashlib.sha256("\n".join(sorted(_lines(shards, split))).encode()).hexdigest()


def _lines(shards: Shards, split: str) -> list[str]:
    """Return for each image of a split what it is: its digest and its labels."""
    rows = shards.rows(split)
    hashes = shards.index["sha256"].take(rows).to_pylist()
    labels = shards.index["labels"].take(rows).to_pylist()
    return [
        f"{sha} {' '.join(shards.classes[label] for label in own)}"
        for sha, own in zip(hashes, labels, strict=True)
    ]


def validation_order(shards: Shards) -> NDArray[np.int64]:
    """Return the positions (N,) of validation images in the order in which answers are kept."""
    lines = _lines(shards, "val")
    return np.array(sorted(range(len(lines)), key=lambda i: (lines[i], i)), np.int64)


def validation_answers(shards: Shards, scorer: Scorer, cells: Sequence[ListedCell]) -> Answers:
    """Return what the networks of one setting say of the validation split.

    Args:
        shards: Of the task.
        scorer: Of its networks.
        cells: Those that differ by their seed alone.
    """
    rows = shards.rows("val")
    order = validation_order(shards)
    targets = shards.targets(rows)
    scores = {}
    for cell in cells:
        logits, meta = scorer.logits(cell.folder, "val")
        if isinstance(meta.calibration, MultiLabelCalibration):
            named = sigmoid(logits) >= np.array(meta.calibration.thresholds)
            scores[cell.seed] = f1_per_image(named, multi_hot(targets, logits.shape[1]))
            continue
        scores[cell.seed] = (logits.argmax(axis=1) == targets).astype(np.float32)
    several = shards.summary.multi_label
    return Answers(
        labels=np.full(len(rows), -1, np.int64) if several else targets[order],
        scores={seed: own[order] for seed, own in scores.items()},
    )


def validation_calibration(
    shards: Shards, scorer: Scorer, cell: ScoredCell
) -> CalibrationError | None:
    """Return how far a network's probabilities are from the truth on its validation images."""
    logits, meta = scorer.logits(cell.folder, "val")
    if isinstance(meta.calibration, MultiLabelCalibration):
        return None
    right = logits.argmax(axis=1) == shards.labels(shards.rows("val"))
    confidence = calibrated(logits, meta.calibration.temperature).max(axis=1)
    return CalibrationError(
        **vars(calibration_bounds(confidence, softmax(logits).max(axis=1), right))
    )


def with_one_label(
    shards: Shards,
    logits: NDArray[np.float32],
    calibration: Calibration,
    maps: MapsOf,
    asked: float | None,
) -> Account:
    """Return what there is to say where an image has one label.

    Args:
        shards: Of the task.
        logits: (N, C) of the test split.
        calibration: Of the network.
        maps: Says how the logits of mistakes add up over places.
        asked: Share of the sure answers that was asked to be right, in [0, 1]; None: not known.
    """
    rows = shards.rows("test")
    labels = shards.labels(rows)
    probabilities = calibrated(logits, calibration.temperature)
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(rows)), predicted]
    correct = predicted == labels
    confusion = confusion_matrix(predicted, labels, len(shards.classes))
    recall = [None if np.isnan(r) else float(r) for r in per_class_recall(confusion)]
    lowest = calibration.abstain_below
    answered = confidence >= lowest if lowest is not None else np.zeros(len(rows), bool)
    paths = shards.index["path"].take(rows).to_pylist()
    wrong = sorted(np.flatnonzero(~correct).tolist(), key=lambda i: (-confidence[i], paths[i]))
    worst = np.array(wrong[:_MISTAKES_SHOWN], np.int64)
    classes = np.stack([predicted[worst], labels[worst]], axis=1)
    found = maps(worst, classes)
    lines = _lines(shards, "test")
    return Account(
        guesses=[
            {
                "path": paths[i],
                "actual": shards.classes[labels[i]],
                "predicted": shards.classes[predicted[i]],
                "probability": float(confidence[i]),
                "sure": bool(answered[i]) if calibration.calibrated else "not calibrated",
            }
            for i in range(len(rows))
        ],
        per_class=tuple(
            ClassScore(name=name, images=int(images), score=own)
            for name, images, own in zip(shards.classes, confusion.sum(axis=1), recall, strict=True)
        ),
        mistakes=tuple(
            Mistake(
                path=paths[i],
                actual=shards.classes[labels[i]],
                predicted=shards.classes[predicted[i]],
                probability=float(confidence[i]),
                picture=picture_of(shards, int(rows[i]), _MISTAKE_PIXELS),
                actual_probability=float(probabilities[i, labels[i]]),
                maps=found.parts(number, [shards.classes[c] for c in classes[number]])
                if found
                else (),
            )
            for number, i in enumerate(worst)
        ),
        confusion=tuple(map(tuple, confusion.tolist())),
        reliability=Reliability(
            error_raw=calibration_error(softmax(logits).max(axis=1), correct),
            error=calibration_error(confidence, correct),
            bins=tuple(ReliabilityBin(**vars(own)) for own in reliability(confidence, correct)),
            answered=float(answered.mean()),
            answered_accuracy=float(correct[answered].mean()) if answered.any() else None,
            asked=asked,
        ),
        # In the order of the digest's lines, so that two reports on one test split can be paired.
        hits="".join(
            str(int(correct[i])) for i in sorted(range(len(rows)), key=lambda i: (lines[i], i))
        ),
    )


def with_several_labels(
    shards: Shards, logits: NDArray[np.float32], calibration: MultiLabelCalibration
) -> Account:
    """Return the same where an image may have several labels."""
    rows = shards.rows("test")
    truth = multi_hot(shards.targets(rows), logits.shape[1])
    predicted = sigmoid(logits) >= np.array(calibration.thresholds)
    precision = average_precision(logits, truth)
    names = np.array(shards.classes)
    paths = shards.index["path"].take(rows).to_pylist()
    return Account(
        guesses=[
            {
                "path": paths[i],
                "actual": " ".join(names[truth[i]]),
                "predicted": " ".join(names[predicted[i]]),
            }
            for i in range(len(rows))
        ],
        per_class=tuple(
            ClassScore(
                name=name,
                images=int(truth[:, c].sum()),
                score=None if np.isnan(precision[c]) else float(precision[c]),
                threshold=calibration.thresholds[c],
            )
            for c, name in enumerate(shards.classes)
        ),
        label_confusion=tuple(
            tuple(int((own & named).sum()) for named in (predicted, ~predicted))
            for own in (truth, ~truth)
        ),
    )


def picture_of(shards: Shards, row: int, longest: int = 96) -> str:
    """Return a sample as a small picture for a page, a `data:` URI, its longest side in pixels."""
    return page.picture(decode_rgb(shards.reader().read(row), shards.summary.decode), longest)
