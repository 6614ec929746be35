"""The grid of a task: its cells, what each is trained on, and by which rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.cells import FULL, Cell
from bigtransfer.data.batches import (
    Squares,
    balanced_positions,
    bootstrap_positions,
    evaluation_images,
    few_shot_rows,
)
from bigtransfer.data.decoding_workers import decoding_workers
from bigtransfer.errors import ConfigError, DatasetError
from bigtransfer.metrics.accuracy import softmax, topk_accuracy
from bigtransfer.metrics.multilabel import mean_average_precision, multi_hot
from bigtransfer.model.inference import predict
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.train.calibration import calibration_of, multi_label_calibration_of
from bigtransfer.train.cell import InitialWeights
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.hyperrule import HyperRule, hyperrule

OVERRIDES = (
    "total_steps", "warmup_steps", "decay_steps", "batch_size", "base_lr", "precrop", "crop",
    "mixup_alpha",
)  # fmt: skip
"""Params that replace the HyperRule's own value where they are not null."""
RECIPE = (
    *OVERRIDES, "preset", "random_crop", "flip", "trained", "train_on", "threads",
    "abstain_accuracy", "precision", "sampling", "weight_decay",
)  # fmt: skip
"""Params that decide what a cell becomes, beside the data and the upstream weights."""
QUICK = "quick"
"""The preset that is no HyperRule: a linear head on the frozen network's features."""
_VALIDATION_BATCH = 256
_SCORES, _SHARE_OF_SCORING = 9, 0.05
"""Of a curve on validation, before the last: so many at most, in so small a part of the time."""
_PASSES_OF_A_STEP = 3
"""A step costs a forward pass, and a backward pass of twice as much."""


@dataclass(frozen=True)
class GridPlan:
    """Which cells a task has, and what the user sets of their rule; travels to worker processes."""

    task: str
    inits: tuple[Literal["upstream", "scratch"], ...]
    examples_per_class: tuple[int | str, ...]
    """Numbers, or `full`."""
    seeds: tuple[int, ...]
    train_on: tuple[str, ...]
    """Splits."""
    preset: str
    """Of the HyperRule."""
    overrides: Mapping[str, Any]
    """By the names in `OVERRIDES`; None leaves a value to the rule."""
    sampling: str
    """`natural`, or `balanced`: every class is seen equally often."""
    random_crop: bool
    """False: images are resized to the crop itself."""
    abstain_accuracy: float
    """That answers are to have where the network does not abstain."""
    weight_decay: float = 0.0
    """Of SGD, on kernels alone."""

    @property
    def cells(self) -> list[Cell]:
        """Return the cells, in order."""
        return [
            Cell(init=init, examples_per_class=FULL if k == FULL else int(k), seed=seed)
            for init in self.inits
            for k in self.examples_per_class
            for seed in self.seeds
        ]


class Grid:
    """The cells of a task: what each is trained on, and by which rule."""

    def __init__(self, plan: GridPlan, initial: InitialWeights) -> None:
        self.plan, self._shards = plan, initial.shards
        self._architecture = initial.upstream.architecture
        self._train = np.concatenate([initial.shards.rows(split) for split in plan.train_on])
        self._val: Squares | None = None
        counts = plan.examples_per_class
        if initial.shards.summary.multi_label and any(k != FULL for k in counts):
            raise ConfigError(
                f"dataset {initial.shards.summary.dataset!r} has several labels per image, of "
                f"which no balanced few-shot subset can be drawn; set 'examples_per_class' of task "
                f"{plan.task!r} to [{FULL}]"
            )
        if initial.shards.summary.multi_label and plan.sampling == "balanced":
            raise ConfigError(
                f"dataset {initial.shards.summary.dataset!r} has several labels per image, which "
                f"cannot be balanced; set 'sampling' of task {plan.task!r} to natural"
            )
        self.cells = plan.cells
        self._subsets: dict[tuple[int | str, int], NDArray[np.int64]] = {
            (k, seed): self._all(seed) if k == FULL else self._train[self._subset(int(k), seed)]
            for k in counts
            for seed in plan.seeds
        }

    def _all(self, seed: int) -> NDArray[np.int64]:
        """Return all training rows; with balanced sampling those of rarer classes several times.

        A linear head has no other spread over seeds than what it is fitted to: there a seed draws
        as many images of each class as it has, with replacement.
        """
        balanced = self.plan.sampling == "balanced"
        if self.plan.preset == QUICK:
            several = self._shards.summary.multi_label
            labels = None if several else self._shards.labels(self._train)
            return self._train[
                bootstrap_positions(len(self._train), labels, seed, balanced=balanced)
            ]
        if not balanced:
            return self._train
        return self._train[balanced_positions(self._shards.labels(self._train), seed)]

    @property
    def num_classes(self) -> int:
        """Return the number of classes of the task."""
        return len(self._shards.classes)

    def rows(self, cell: Cell) -> NDArray[np.int64]:
        """Return the index rows that a cell is trained on."""
        return self._subsets[cell.examples_per_class, cell.seed]

    def images_of(self, cell: Cell) -> NDArray[np.int64]:
        """Return the index rows that the rows of a cell are drawn from, each once."""
        return self._train if cell.examples_per_class == FULL else np.unique(self.rows(cell))

    def weights_of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how often each of some training images counts, (N,)."""
        if self.plan.sampling == "natural":
            return np.ones(len(rows))
        labels = self._shards.labels(rows)
        counts = np.bincount(labels)
        weights: NDArray[np.float64] = counts.max() / counts[labels]
        return weights

    @property
    def validation_rows(self) -> NDArray[np.int64]:
        """Return the index rows of the validation split."""
        return self._shards.rows("val")

    def rule(self, examples_per_class: int | str) -> HyperRule:
        """Return the verdict for a subset's size, with the user's own values in it."""
        verdict = self._own_rule(examples_per_class).overridden(**self.plan.overrides)
        return verdict if self.plan.random_crop else replace(verdict, precrop=verdict.crop)

    def calibration(
        self, model: ResNetV2, rule: HyperRule, compute: ComputeSettings
    ) -> Calibration | MultiLabelCalibration:
        """Return what the validation split says of a network."""
        return self.calibration_of(self._logits(model, rule, compute))

    def validation_scores(
        self, model: ResNetV2, rule: HyperRule, compute: ComputeSettings
    ) -> dict[str, float]:
        """Return the points of a curve: `val_top1` and `val_loss`, or `val_map`."""
        logits = self._logits(model, rule, compute)
        labels = self._shards.targets(self.validation_rows)
        if self._shards.summary.multi_label:
            truth = multi_hot(labels, logits.shape[1])
            return {"val_map": mean_average_precision(logits, truth)}
        own = softmax(logits)[np.arange(len(labels)), labels]
        return {
            "val_top1": topk_accuracy(logits, labels, 1),
            "val_loss": float(-np.log(np.maximum(own, 1e-12)).mean()),
        }

    def validation_steps(self, rule: HyperRule) -> frozenset[int]:
        """Return after which steps a network is scored, the last one aside.

        Evenly spread; so few that they take a small part of the training's own time.
        """
        trained = _PASSES_OF_A_STEP * rule.total_steps * rule.batch_size
        count = min(_SCORES, int(_SHARE_OF_SCORING * trained / len(self.validation_rows)))
        return frozenset({rule.total_steps * n // (count + 1) for n in range(1, count + 1)} - {0})

    def _logits(
        self, model: ResNetV2, rule: HyperRule, compute: ComputeSettings
    ) -> NDArray[np.float32]:
        if self._val is None or self._val.side != rule.crop:
            workers = decoding_workers(compute.device.is_cuda)
            self._val = Squares(self._shards, self.validation_rows, rule.crop, workers=workers)
        size = compute.micro_batch_size or min(rule.batch_size, _VALIDATION_BATCH)
        return predict(model, evaluation_images(self._val, size), compute.device.torch)

    def calibration_of(self, logits: NDArray[np.float32]) -> Calibration | MultiLabelCalibration:
        """Return what the validation split says, given a network's logits (N, C) of all of it."""
        labels = self._shards.targets(self.validation_rows)
        held_out = "val" not in self.plan.train_on
        if self._shards.summary.multi_label:
            return multi_label_calibration_of(logits, labels, held_out=held_out)
        return calibration_of(
            logits, labels, abstain_accuracy=self.plan.abstain_accuracy, held_out=held_out
        )

    def explained(self) -> list[str]:
        """Return a line per subset size: each value of the rule, and whose it is."""
        lines = []
        for k in dict.fromkeys(self.plan.examples_per_class):
            own, used = asdict(self._own_rule(k)), asdict(self.rule(k))
            images = len(next(rows for (size, _), rows in self._subsets.items() if size == k))
            parts = [
                f"{name} {_shown(value)}"
                + ("" if value == own[name] else f" (params; the rule says {_shown(own[name])})")
                for name, value in used.items()
            ]
            if self.plan.weight_decay:
                parts.append(f"weight_decay {self.plan.weight_decay:g} (params; the rule says 0)")
            lines.append(
                f"{self.plan.task}, {k} per class, {images:,} images, HyperRule "
                f"'{self.plan.preset}': " + ", ".join(parts)
            )
        return lines

    def _own_rule(self, examples_per_class: int | str) -> HyperRule:
        full = examples_per_class == FULL
        return hyperrule(
            num_examples=len(self._train)
            if full
            else int(examples_per_class) * len(self._shards.classes),
            height=self._shards.summary.height,
            width=self._shards.summary.width,
            architecture=self._architecture,
            preset=self.plan.preset,
        )

    def _subset(self, k: int, seed: int) -> NDArray[np.int64]:
        shards = self._shards
        labels = shards.labels(self._train)
        counts = np.bincount(labels, minlength=len(shards.classes))
        poorest = int(counts.argmin())
        if counts[poorest] < k:
            raise DatasetError(
                f"dataset {shards.summary.dataset!r}: class {shards.classes[poorest]!r} has "
                f"{counts[poorest]} train images, but 'examples_per_class' asks for {k}; lower it "
                "or add images"
            )
        return few_shot_rows(labels, k, seed)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
