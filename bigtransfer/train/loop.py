"""The training loop: one optimiser step after another, for one process and for many.

The loop knows when a step is due and who watches; how weights change is the business of a
`TrainStep`, of which there are three kinds (`steps`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from bigtransfer.errors import BigTransferError
from bigtransfer.train.group import Group
from bigtransfer.train.mixup import mixup_lambda
from bigtransfer.train.schedule import Schedule

if TYPE_CHECKING:
    from bigtransfer.data.batches import Batch, TrainBatches

BeforeUpdate = Callable[[float | None], None]
"""`before_update(loss)`: called once per step, right before weights change; returns when they may.

`loss` is this process's part, as the step returns it; None where it is not known by then. May raise
to leave the weights as they are.
"""


class TrainStep(Protocol):
    """One way to do an optimiser step: forward, backward, update."""

    def __call__(self, batch: Batch, rate: float, lam: float, before_update: BeforeUpdate) -> float:
        """Do a step.

        Args:
            batch: This process's share.
            rate: Learning rate of the update.
            lam: MixUp's lambda; 1 where nothing is mixed.
            before_update: Called in every process, right before the weights change.

        Returns:
            This process's part of the loss: the mean of all processes' parts is the mean over the
            whole batch, before the update.
        """
        ...

    def write_back(self) -> None:
        """Bring weights and momentum to where PyTorch sees them, from wherever the step has them.

        Without it, an evaluation or a checkpoint may see those of an earlier step.
        """
        ...

    def close(self) -> None:
        """Let go of the network; steps are over, `write_back` may follow."""
        ...


class StepCallback:
    """What is done around a step; this one does nothing."""

    def to_reduce(self) -> Sequence[float]:
        """Return numbers that are added up over the processes once per step."""
        return ()

    def before_update(self) -> None:
        """Return when weights may change."""

    def after_step(self, step: int, loss: float, rate: float, reduced: Sequence[float]) -> None:
        """Look at a finished step.

        Args:
            step: Finished steps.
            loss: Mean over the step's whole batch, before its update.
            rate: Learning rate of its update.
            reduced: The sums of `to_reduce`.
        """

    def ran_out(self, micro_batch_size: int) -> None:
        """Take note that memory ran out and so many images per forward pass are tried next."""


def run_steps(
    train_step: TrainStep,
    batches: TrainBatches,
    schedule: Schedule,
    *,
    mixup_alpha: float | None,
    seed: int,
    start: int,
    callback: StepCallback,
    group: Group | None = None,
    highest_loss: Callable[[], float] = lambda: math.inf,
) -> None:
    """Train from step `start` to the end of the schedule.

    Everything random is keyed by the step, so a run that starts at `start` with the state of
    that step goes on exactly as the uninterrupted one.

    Args:
        train_step: Does a step.
        batches: This process's.
        schedule: Of the learning rate.
        mixup_alpha: None: no MixUp.
        seed: Of MixUp.
        start: Finished steps.
        callback: Is told of every step.
        group: The processes of the run; None: this one alone.
        highest_loss: Returns above what the training has diverged.

    Raises:
        BigTransferError: If the loss is no longer a number or above `highest_loss`; names the
            samples of that step. Nothing is saved of it.
        InfrastructureError: If another process is gone, or memory ran out where a step cannot be
            repeated.
    """
    group = group or Group()

    def before_update(step: int, loss: float | None) -> None:
        # The loss first, in all processes: its mean is a collective, and the callback may raise in
        # one process alone.
        if loss is not None:
            mean = group.sum([loss])[0] / group.world_size
            _refuse_divergence(mean, highest_loss(), step, batches)
        callback.before_update()

    for step, batch in enumerate(batches.ahead(start, schedule.total_steps), start):
        rate = schedule.learning_rate(step)
        lam = mixup_lambda(mixup_alpha, seed, step)
        loss = train_step(batch, rate, lam, partial(before_update, step))
        # One collective for the loss and for all that the callback adds up.
        value, *reduced = group.sum([loss / group.world_size, *callback.to_reduce()])
        # Again, for steps that know their loss only when the weights have changed: the callback
        # must not save those.
        _refuse_divergence(value, highest_loss(), step, batches)
        callback.after_step(step + 1, value, rate, reduced)


class DivergedError(BigTransferError):
    """The loss is no number any more, or exploded."""

    def __init__(self, message: str, step: int, rows: list[int]) -> None:
        super().__init__(message)
        self.step, self.rows = step, rows


def _refuse_divergence(loss: float, highest: float, step: int, batches: TrainBatches) -> None:
    if math.isfinite(loss) and loss <= highest:
        return
    rows = batches.rows_of(step)
    shown = ", ".join(batches.path_of(row) for row in rows[:3].tolist())
    limit = f", more than {highest:.4g}," if math.isfinite(loss) else ""
    raise DivergedError(
        f"the loss became {loss:.6g}{limit} at step {step}; lower 'base_lr' or lengthen the "
        f"warm-up. The images of that step: {shown}{', …' if len(rows) > 3 else ''}",
        step,
        rows.tolist(),
    )
