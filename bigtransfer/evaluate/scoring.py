"""Run the fine-tuned networks of a task over splits that are decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.cells import FULL, ListedCell
from bigtransfer.artifacts.weights import TunedMeta
from bigtransfer.data.batches import RAM_BYTES, Squares, evaluation_images, few_shot_rows
from bigtransfer.data.decoding_workers import decoding_workers
from bigtransfer.data.shards import Shards
from bigtransfer.evaluate.activation_map import ActivationMaps, activation_maps
from bigtransfer.metrics.accuracy import (
    balanced_accuracy,
    confusion_matrix,
    macro_f1,
    topk_accuracy,
)
from bigtransfer.metrics.calibration import calibrated
from bigtransfer.metrics.multilabel import mean_average_precision, micro_f1, multi_hot, sigmoid
from bigtransfer.model.checkpoint import load_tuned, read_tuned_meta
from bigtransfer.model.inference import predict
from bigtransfer.model.resnet import ResNetV2


class Scorer:
    """The cells of one task on one device."""

    def __init__(
        self, checkpoints: Path, shards: Shards, batch_size: int, device: torch.device
    ) -> None:
        self._checkpoints, self._shards = checkpoints, shards
        self._batch_size, self._device = batch_size, device
        self._squares: dict[tuple[str, int], Squares] = {}
        self._keep: set[str] = set()
        self._kept: dict[tuple[str, str], NDArray[np.float32]] = {}
        """Cell, split -> logits."""
        self._shared: tuple[tuple[str, int, str], NDArray[np.float32]] | None = None
        """Features of a split by the frozen network of several heads."""

    def keep(self, cells: Iterable[str]) -> None:
        """Remember what these cells make of a split, as far as it fits into memory."""
        self._keep.update(cells)

    def logits(self, cell: str, split: str) -> tuple[NDArray[np.float32], TunedMeta]:
        """Return what a cell's network makes of a split, (N, C), and its meta."""
        if (cell, split) in self._kept:
            return self._kept[cell, split], read_tuned_meta(self._checkpoints / cell)
        model, meta = load_tuned(self._checkpoints / cell)
        logits = self._seen(model, meta, split)
        held = sum(kept.nbytes for kept in self._kept.values())
        if cell in self._keep and held + logits.nbytes <= RAM_BYTES:
            self._kept[cell, split] = logits
        return logits, meta

    def _seen(self, model: ResNetV2, meta: TunedMeta, split: str) -> NDArray[np.float32]:
        """Return the logits of a split; features that several heads share are computed once."""
        if meta.trained != "head" or meta.upstream_digest is None:
            return self._predicted(model.to(self._device), split, meta.crop)
        shared = (meta.upstream_digest, meta.crop, split)
        if self._shared is None or self._shared[0] != shared:
            features = self._predicted(model.eval().to(self._device).features, split, meta.crop)
            if features.nbytes > RAM_BYTES:
                return _through(model, features)
            self._shared = (shared, features)
        return _through(model, self._shared[1])

    def _predicted(
        self, function: Callable[[torch.Tensor], torch.Tensor], split: str, crop: int
    ) -> NDArray[np.float32]:
        images = evaluation_images(self._split(split, crop), self._batch_size)
        return predict(function, images, self._device)

    def maps(
        self, cell: str, positions: NDArray[np.int64], classes: NDArray[np.int64]
    ) -> ActivationMaps | None:
        """Return how a network's logits add up over the places of some test images.

        Args:
            cell: Its folder.
            positions: (N,) in the test split.
            classes: (N, K) whose logits.

        Returns:
            The maps; None where there are no images, or too few places.
        """
        if not len(positions):
            return None
        model, meta = load_tuned(self._checkpoints / cell)
        images = self._split("test", meta.crop).get(positions)
        return activation_maps(model.to(self._device), images, classes, self._device)

    def on_validation(self, cell: str) -> dict[str, float]:
        """Return a cell's scores on the validation split, from its meta."""
        return read_tuned_meta(self._checkpoints / cell).calibration.scores

    def on_test(self, cell: str) -> dict[str, float]:
        """Return a cell's scores on the test split."""
        logits, meta = self.logits(cell, "test")
        targets = self._shards.targets(self._shards.rows("test"))
        if isinstance(meta.calibration, MultiLabelCalibration):
            truth = multi_hot(targets, logits.shape[1])
            named = sigmoid(logits) >= np.array(meta.calibration.thresholds)
            return {
                "map": mean_average_precision(logits, truth),
                "micro_f1": micro_f1(named, truth),
            }
        matrix = confusion_matrix(logits.argmax(axis=1), targets, logits.shape[1])
        return {
            **{f"top{k}": topk_accuracy(logits, targets, k) for k in (1, 5)},
            "balanced_accuracy": balanced_accuracy(matrix),
            "macro_f1": macro_f1(matrix),
        }

    def unseen(
        self, cells: Iterable[ListedCell], split: str, train_on: Sequence[str]
    ) -> NDArray[np.float64]:
        """Return mean calibrated probabilities (N, C) by networks not trained on the image.

        NaN for an image that all of them were trained on.

        Args:
            cells: Of one grid.
            split: `train`, `val` or `test`.
            train_on: Splits that the cells were trained on, or drew their subsets from.
        """
        rows = self._shards.rows(split)
        labels = self._shards.labels(rows)
        total = np.zeros((len(rows), len(self._shards.classes)))
        votes = np.zeros((len(rows), 1))
        for cell in cells:
            k = cell.examples_per_class
            heard = np.ones((len(rows), 1))
            if split in train_on:
                drawn = split == "train" and len(train_on) == 1 and k != FULL
                heard[few_shot_rows(labels, int(k), cell.seed) if drawn else slice(None)] = 0
            if heard.any():
                logits, meta = self.logits(cell.folder, split)
                assert isinstance(meta.calibration, Calibration), "an image has one label here"
                total += heard * calibrated(logits, meta.calibration.temperature)
                votes += heard
        with np.errstate(invalid="ignore"):
            return total / np.where(votes == 0, np.nan, votes)

    def _split(self, split: str, side: int) -> Squares:
        if (split, side) not in self._squares:
            self._squares[split, side] = Squares(
                self._shards,
                self._shards.rows(split),
                side,
                workers=decoding_workers(self._device.type == "cuda"),
            )
        return self._squares[split, side]


def _through(model: ResNetV2, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a network's head makes of features, (N, C)."""
    head = model.head.cpu()
    with torch.no_grad():
        logits: NDArray[np.float32] = head(torch.from_numpy(features)).numpy()
    return logits
