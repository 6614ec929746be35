"""One fine-tuning run: from given weights to a network for a task, resumable at any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.optim import SGD

from bigtransfer.artifacts.cells import Cell
from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.shards import Shards
from bigtransfer.model.checkpoint import load_checkpoint
from bigtransfer.model.resnet import ResNetV2, create_model
from bigtransfer.train.checkpoints import JOURNAL, Checkpoints, State, read_state
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.curve import Curve
from bigtransfer.train.hyperrule import HyperRule
from bigtransfer.train.interrupts import Interrupts
from bigtransfer.train.loop import StepCallback, run_steps
from bigtransfer.train.loss import loss_named
from bigtransfer.train.parallel import parallelize, whole_state
from bigtransfer.train.saver import Saver
from bigtransfer.train.state import require_fit
from bigtransfer.train.steps import choose_step

MOMENTUM = 0.9  # arXiv 1912.11370, section 3.3; no weight decay, no dropout, nothing frozen
_LAST_LOSSES = 10


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run starts from, and the data they are trained on."""

    pretrained: Path
    """Upstream checkpoint."""
    upstream: dict[str, Any]
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
                self.upstream["architecture"],
                len(classes),
                self.upstream["root"],
                cell.seed,
                norm=self.upstream["norm"],
            )
        if self.trained == "head":
            model.requires_grad_(False)
            model.head.requires_grad_(True)
        return model


@dataclass(frozen=True)
class CheckpointPolicy:
    """Where and how often the state of a run is kept."""

    folder: Path
    """Of this cell alone; the caller removes it once the network is safe."""
    seconds: float
    interrupts: Interrupts
    code: str
    """Version of the code that trains."""


def train_cell(
    cell: Cell,
    initial: InitialWeights,
    rows: NDArray[np.int64],
    rule: HyperRule,
    *,
    flip: bool,
    compute: ComputeSettings,
    policy: CheckpointPolicy,
    advance: Callable[[int], None],
) -> tuple[ResNetV2, float]:
    """Train one network by a HyperRule verdict.

    Args:
        cell: Which one.
        initial: What it starts from.
        rows: Index rows of the images that are trained on.
        rule: Schedule, resolution and MixUp.
        flip: Whether to mirror at random.
        compute: What it is computed on; its micro-batch is halved when memory runs out.
        policy: Where its state is kept.
        advance: Is told the finished steps.

    Returns:
        The network, and the mean loss of the last ten steps.

    Raises:
        BigTransferError: If the loss is no number any more.
        KeyboardInterrupt, InfrastructureError: After Ctrl-C or SIGTERM, with the state kept.
    """
    model = initial.network(cell).to(compute.device.torch).recompute(compute.recompute)
    checkpoints = Checkpoints(policy.folder, None, _say)
    policy.folder.mkdir(parents=True, exist_ok=True)
    found = checkpoints.newest(lambda folder, meta: _fitting(folder, meta, model, policy.code))
    with closing(Curve(policy.folder / JOURNAL)) as curve:
        step, state = 0, None
        if found is not None:
            folder, state = found
            step = int(folder.name.removeprefix("step-"))
            curve.take_from(folder / JOURNAL)
            _say(f"{cell.name}: resuming at step {step:,} of {rule.total_steps:,}")
        called, optimizer = parallelize(
            model,
            state,
            compute.group,
            parallel="ddp",
            compiled=compute.compiled,
            momentum=MOMENTUM,
            weight_decay=0.0,
        )
        squares = Squares(initial.shards, rows, rule.precrop)
        batches = TrainBatches(
            squares, batch_size=rule.batch_size, crop=rule.crop, flip=flip, seed=cell.seed
        )
        multi_label = initial.shards.summary["multi_label"]
        saver = Saver(checkpoints)
        callback = _CellCallback(
            cell, rule.total_steps, model, optimizer, curve, saver, policy, advance
        )
        try:
            with closing(
                choose_step(
                    called,
                    optimizer,
                    loss_named("sigmoid" if multi_label else "softmax"),
                    rule.batch_size,
                    compute,
                    mixes=bool(rule.mixup_alpha),
                    ran_out=callback.ran_out,
                )
            ) as train_step:
                run_steps(
                    train_step,
                    batches,
                    rule.schedule,
                    mixup_alpha=rule.mixup_alpha,
                    seed=cell.seed,
                    start=step,
                    callback=callback,
                    group=compute.group,
                )
        finally:
            saver.wait_quietly()
        last = [row["loss"] for row in curve.rows if row["step"] > rule.total_steps - _LAST_LOSSES]
    return model.requires_grad_(True), float(np.mean(last))


def _fitting(folder: Path, meta: dict[str, Any], model: ResNetV2, code: str) -> State:
    state = read_state(folder)
    require_fit(state, model, repr(str(folder)))
    if meta.get("code") != code:
        _say(
            f"{folder.name} was written by another version of this program or of PyTorch; "
            "going on with it (resume: any_code), no longer bit for bit"
        )
    return state


class _CellCallback(StepCallback):
    """Journals the loss, shows progress, keeps the state, and stops when asked to."""

    def __init__(
        self,
        cell: Cell,
        total_steps: int,
        model: ResNetV2,
        optimizer: SGD,
        curve: Curve,
        saver: Saver,
        policy: CheckpointPolicy,
        advance: Callable[[int], None],
    ) -> None:
        self._cell, self._total = cell, total_steps
        self._model, self._optimizer = model, optimizer
        self._curve, self._saver, self._policy, self._advance = curve, saver, policy, advance

    def before_update(self) -> None:
        self._saver.before_update()
        self._saver.check()

    def after_step(self, step: int, loss: float, rate: float, reduced: Sequence[float]) -> None:
        self._curve.add(step, {"loss": loss, "rate": rate})
        self._advance(step)
        if step == self._total:
            return
        if self._policy.interrupts.wanted:
            self._save(step)
            self._saver.finish()
            self._policy.interrupts.end(step)
        elif self._saver.is_due(self._policy.seconds):
            self._save(step)

    def ran_out(self, micro_batch_size: int) -> None:
        _say(f"memory ran out; going on with {micro_batch_size} images per forward pass")

    def _save(self, step: int) -> None:
        meta = {"cell": self._cell.name, "code": self._policy.code}
        self._curve.fsync()
        state = whole_state(self._model, self._optimizer)
        self._saver.begin(step, state, meta, self._curve.path, None)


def _say(line: str) -> None:
    print(line, flush=True)
