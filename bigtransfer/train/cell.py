"""One fine-tuning run: from given weights to a network for a task, resumable at any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigtransfer.artifacts.cells import Cell
from bigtransfer.artifacts.weights import WeightsMeta
from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.decoding_workers import decoding_workers
from bigtransfer.data.shards import Shards
from bigtransfer.model.checkpoint import load_checkpoint
from bigtransfer.model.resnet import ResNetV2, create_model
from bigtransfer.storage.places import Target
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.curve import Row
from bigtransfer.train.hyperrule import HyperRule
from bigtransfer.train.interrupts import Interrupts
from bigtransfer.train.loop import StepCallback
from bigtransfer.train.loss import loss_named
from bigtransfer.train.run import Recipe, ResumableRun, RunFolder

MOMENTUM = 0.9  # arXiv 1912.11370, section 3.3; no weight decay, no dropout, nothing frozen
_LAST_LOSSES = 10


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run starts from, and the data they are trained on."""

    pretrained: Path
    """Upstream checkpoint."""
    upstream: WeightsMeta
    """Its meta."""
    shards: Shards
    trained: str
    """`all` weights, or the `head` alone."""

    def network(self, cell: Cell) -> ResNetV2:
        """Build the network of a cell, with a zero head for the task's classes."""
        classes = self.shards.classes
        if cell.init == "upstream":
            model, _ = load_checkpoint(self.pretrained, classes=classes)
        else:
            model = create_model(
                self.upstream.architecture,
                len(classes),
                self.upstream.root,
                cell.seed,
                norm=self.upstream.norm,
            )
        if self.trained == "head":
            model.requires_grad_(False)
            model.head.requires_grad_(True)
        return model


@dataclass(frozen=True)
class Scoring:
    """When a network that is being trained is scored on the validation split, and how."""

    steps: frozenset[int]
    score: Callable[[ResNetV2], dict[str, float]]


@dataclass(frozen=True)
class TrainedCell:
    """What became of a cell."""

    model: ResNetV2
    loss: float
    """Mean of the last ten steps."""
    curve: list[Row]
    """`step` and what was noted for it: `loss`, `rate`, and now and then scores on validation."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """Where and how often the state of a run is kept."""

    folder: Path
    """Of this cell alone; the caller removes it once the network is safe."""
    seconds: float
    interrupts: Interrupts
    code: str
    """Version of the code that trains."""
    mirror: Target | None = None
    """Place of this cell alone in a bucket."""


def train_cell(
    cell: Cell,
    initial: InitialWeights,
    rows: NDArray[np.int64],
    rule: HyperRule,
    *,
    flip: bool,
    weight_decay: float,
    compute: ComputeSettings,
    policy: CheckpointPolicy,
    scoring: Scoring,
    advance: Callable[[int], None],
) -> TrainedCell:
    """Train one network by a HyperRule verdict.

    Args:
        cell: Which one.
        initial: What it starts from.
        rows: Index rows of the images that are trained on.
        rule: Schedule, resolution and MixUp.
        flip: Whether to mirror at random.
        weight_decay: Of SGD, on kernels alone; the HyperRule has none.
        compute: What it is computed on; its micro-batch is halved when memory runs out.
        policy: Where its state is kept.
        scoring: On validation, on the way; it changes no weight.
        advance: Is told the finished steps.

    Raises:
        BigTransferError: If the loss is no number any more.
        KeyboardInterrupt, InfrastructureError: After Ctrl-C or SIGTERM, with the state kept.
    """
    model = initial.network(cell).to(compute.device.torch).recompute(compute.recompute)
    squares = Squares(
        initial.shards, rows, rule.precrop, workers=decoding_workers(compute.device.is_cuda)
    )
    batches = TrainBatches(
        squares, batch_size=rule.batch_size, crop=rule.crop, flip=flip, seed=cell.seed
    )
    multi_label = initial.shards.summary.multi_label
    recipe = Recipe(
        batches,
        rule.schedule,
        loss_named("sigmoid" if multi_label else "softmax"),
        momentum=MOMENTUM,
        weight_decay=weight_decay,
        mixup_alpha=rule.mixup_alpha,
        seed=cell.seed,
    )
    meta = {"cell": cell.name, "code": policy.code}
    # What lies in a bucket must not end a training: nobody is there to remove it from a pod's disk.
    folder = RunFolder(policy.folder, meta, _say, policy.mirror, anew=policy.mirror is not None)
    with closing(ResumableRun(model, recipe, compute, folder)) as run:
        if step := run.restore():
            _say(f"{cell.name}: resuming at step {step:,} of {run.total_steps:,}")
        run.train(_CellCallback(cell, run, policy, scoring, advance))
        curve, last = list(run.curve.rows), run.total_steps - _LAST_LOSSES
    losses = [row["loss"] for row in curve if row["step"] > last and "loss" in row]
    return TrainedCell(model.requires_grad_(True), float(np.mean(losses)), curve)


class _CellCallback(StepCallback):
    """Journals the loss, shows progress, keeps the state, and stops when asked to."""

    def __init__(
        self,
        cell: Cell,
        run: ResumableRun,
        policy: CheckpointPolicy,
        scoring: Scoring,
        advance: Callable[[int], None],
    ) -> None:
        self._cell, self._run, self._policy, self._advance = cell, run, policy, advance
        self._scoring = scoring

    def before_update(self) -> None:
        self._run.before_update()

    def after_step(self, step: int, loss: float, rate: float) -> None:
        self._run.curve.add(step, {"loss": loss, "rate": rate})
        self._advance(step)

    def looks(self, step: int, reduced: Sequence[float]) -> bool:
        policy = self._policy
        due = policy.interrupts.wanted or self._run.is_due(policy.seconds)
        return due or step in self._scoring.steps

    def look(self, step: int, reduced: Sequence[float]) -> None:
        if step in self._scoring.steps:
            self._run.curve.add(step, self._scoring.score(self._run.model))
        if step == self._run.total_steps:
            return
        if self._policy.interrupts.wanted:
            if self._policy.interrupts.saves:
                self._run.save(step, wait=True)
            self._policy.interrupts.end(step)
        elif self._run.is_due(self._policy.seconds):
            self._run.save(step, wait=False)

    def ran_out(self, micro_batch_size: int) -> None:
        _say(f"memory ran out; going on with {micro_batch_size} images per forward pass")


def _say(line: str) -> None:
    print(line, flush=True)
