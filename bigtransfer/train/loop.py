"""The training loop: one optimiser step after another, for one process and for many.

The loop knows when a step is due and who watches; how weights change is the business of a
`TrainStep`, of which there are three kinds (`steps`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bigtransfer.errors import BigTransferError
from bigtransfer.train.group import Group
from bigtransfer.train.mixup import mixup_lambda
from bigtransfer.train.schedule import Schedule
from bigtransfer.train.stream import CpuStream, DeviceBatch, Reading, Stream

if TYPE_CHECKING:
    from bigtransfer.data.batches import TrainBatches

BeforeUpdate = Callable[[float | None], None]
"""`before_update(loss)`: called once per step, right before weights change; returns when they may.

`loss` is this process's part, as the step returns it; None where it is not known by then. May raise
to leave the weights as they are.
"""


class StepValues(NamedTuple):
    """What differs from step to step, beside the batch."""

    rate: float
    """Learning rate of the update."""
    lam: float = 1.0
    """MixUp's lambda; 1 where nothing is mixed."""
    highest_loss: float = math.inf
    """Above it, and where the loss is no number, the update is left out: by a step that is given
    None for the loss, on the device itself."""


class TrainStep(Protocol):
    """One way to do an optimiser step: forward, backward, update."""

    def __call__(
        self, batch: DeviceBatch, values: StepValues, before_update: BeforeUpdate
    ) -> Reading:
        """Do a step.

        Args:
            batch: This process's share.
            values: Of this step.
            before_update: Called in every process, right before the weights change.

        Returns:
            What reads this process's part of the loss: the mean of all processes' parts is the
            mean over the whole batch, before the update.
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

    def after_step(self, step: int, loss: float, rate: float) -> None:
        """Take note of a finished step; the weights may be a step further already.

        Args:
            step: Finished steps.
            loss: Mean over the step's whole batch, before its update.
            rate: Learning rate of its update.
        """

    def looks(self, step: int, reduced: Sequence[float]) -> bool:
        """Say whether `look` is to be called: the device is waited for, then.

        Args:
            step: Finished steps.
            reduced: The sums of `to_reduce`.
        """
        return False

    def look(self, step: int, reduced: Sequence[float]) -> None:
        """Look at the weights as they are after a step; `after_step` was called for it."""

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
    stream: Stream | None = None,
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
        stream: Of the device; None: a CPU's.

    Raises:
        BigTransferError: If the loss is no longer a number or above `highest_loss`; names the
            samples of that step. Nothing is saved of it.
        InfrastructureError: If another process is gone, or memory ran out where a step cannot be
            repeated.
    """
    group, stream = group or Group(), stream or CpuStream()
    last = schedule.total_steps

    def before_update(step: int, highest: float, loss: float | None) -> None:
        # The loss first, in all processes: its mean is a collective, and the callback may raise in
        # one process alone.
        if loss is not None:
            mean = group.sum([loss])[0] / group.world_size
            _refuse_divergence(mean, highest, step, batches)
        callback.before_update()

    def conclude(step: int, values: StepValues, loss: float) -> None:
        # Again, for steps that know their loss only when the weights have changed: the callback
        # must not save those.
        _refuse_divergence(loss, values.highest_loss, step, batches)
        callback.after_step(step + 1, loss, values.rate)

    def conclude_late(step: int, values: StepValues, read: Reading) -> None:
        conclude(step, values, read())

    late: Callable[[], None] | None = None
    for step, uploaded in enumerate(batches.ahead(start, last, stream.upload), start):
        values = StepValues(
            schedule.learning_rate(step), mixup_lambda(mixup_alpha, seed, step), highest_loss()
        )
        allowed = partial(before_update, step, values.highest_loss)
        read = train_step(stream.arrived(uploaded), values, allowed)
        if late is not None:
            late()  # the loss of the step before, while the device is at this one
        if group.alone:
            reduced = [float(number) for number in callback.to_reduce()]
            late = partial(conclude_late, step, values, read)
        else:
            # One collective for the loss and for all that the callback adds up.
            own = read() / group.world_size
            value, *reduced = group.sum([own, *callback.to_reduce()])
            late = partial(conclude, step, values, value)
        # The first loss is read at once, too: others are measured by it.
        if step == start or not (stream.late and group.alone):
            late()
            late = None
        if callback.looks(step + 1, reduced) or step + 1 == last:
            if late is not None:
                late()
                late = None
            callback.look(step + 1, reduced)


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
