"""Run the fine-tuned networks of a task over splits that are decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.data.batches import Squares, few_shot_rows
from bigtransfer.data.shards import Shards
from bigtransfer.errors import ConfigError
from bigtransfer.evaluate.calibration import calibrated
from bigtransfer.evaluate.metrics import topk_accuracy
from bigtransfer.evaluate.multilabel import mean_average_precision, micro_f1, multi_hot, sigmoid
from bigtransfer.evaluate.prediction import predict
from bigtransfer.model.checkpoint import load_checkpoint


def device_named(wanted: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here.

    Raises:
        ConfigError: If PyTorch sees no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but PyTorch sees no GPU here; choose device: auto")
    return torch.device("cpu" if wanted == "cpu" or not torch.cuda.is_available() else "cuda")


class Scorer:
    """The cells of one task on one device."""

    def __init__(
        self, checkpoints: Path, shards: Shards, batch_size: int, device: torch.device
    ) -> None:
        self._checkpoints, self._shards = checkpoints, shards
        self._batch_size, self._device = batch_size, device
        self._squares: dict[tuple[str, int], Squares] = {}

    def logits(self, cell: str, split: str) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return what a cell's network makes of a split, (N, C), and its meta."""
        model, meta = load_checkpoint(self._checkpoints / cell)
        model.to(self._device)
        squares = self._split(split, meta["crop"])
        return predict(model, squares, self._batch_size, self._device), meta

    def score(self, cell: str) -> dict[str, float]:
        """Return a cell's scores on the test split, and those on validation from its meta."""
        logits, meta = self.logits(cell, "test")
        targets = self._shards.targets(self._shards.rows("test"))
        validation = meta["validation"]
        if meta["multi_label"]:
            truth = multi_hot(targets, logits.shape[1])
            scores = {
                "map": mean_average_precision(logits, truth),
                "micro_f1": micro_f1(sigmoid(logits) >= np.array(validation["thresholds"]), truth),
            }
        else:
            scores = {f"top{k}": topk_accuracy(logits, targets, k) for k in (1, 5)}
        on_validation = {f"val_{name}": validation[name] for name in scores}
        return on_validation | {f"test_{name}": value for name, value in scores.items()}

    def unseen(
        self, cells: list[dict[str, Any]], split: str, train_on: list[str]
    ) -> NDArray[np.float64]:
        """Return the mean calibrated probabilities of a split, (N, C), by networks that saw it not.

        NaN for an image that all of them were trained on.

        Args:
            cells: Of one grid.
            split: `train`, `val` or `test`.
            train_on: Splits that the cells were trained on, or drew their subsets from.
        """
        rows = self._shards.rows(split)
        labels = self._shards.labels(rows)
        total = np.zeros((len(rows), len(self._shards.classes)))
        voices = np.zeros((len(rows), 1))
        for cell in cells:
            k = cell["examples_per_class"]
            heard = np.ones((len(rows), 1))
            if split in train_on:
                drawn = split == "train" and len(train_on) == 1 and k != "full"
                heard[few_shot_rows(labels, k, cell["seed"]) if drawn else slice(None)] = 0
            if heard.any():
                logits, meta = self.logits(cell["folder"], split)
                total += heard * calibrated(logits, meta["validation"]["temperature"])
                voices += heard
        with np.errstate(invalid="ignore"):
            return total / np.where(voices == 0, np.nan, voices)

    def _split(self, split: str, side: int) -> Squares:
        if (split, side) not in self._squares:
            self._squares[split, side] = Squares(self._shards, self._shards.rows(split), side)
        return self._squares[split, side]
