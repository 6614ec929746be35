"""What is done around a step of pretraining: journal, evaluation, checkpoints, the way out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bigtransfer.data.batches import TrainBatches
from bigtransfer.progress import Advance
from bigtransfer.train.interrupts import Interrupts
from bigtransfer.train.loop import StepCallback
from bigtransfer.train.run import ResumableRun

_STEPS_BETWEEN_ROWS = 20
_SECONDS_BETWEEN_SPEEDS = 10.0


class Watched(Protocol):
    """A training, as far as its callback must know it."""

    def note(self, step: int, values: dict[str, float], *, by_clock: bool = False) -> None:
        """Write points into the journal."""
        ...

    def look(self, between: Callable[[], None]) -> dict[str, float]:
        """Return how the network is doing."""
        ...

    def keep_micro_batch_size(self, images: int) -> None:
        """Keep for the next start how many images fit into memory."""
        ...


class Speed:
    """Images per second, waiting for data, and utilisation, since the last look."""

    def __init__(
        self, step: int, batch_size: int, flops_share: float | None, batches: TrainBatches
    ) -> None:
        """Begin at a step.

        Args:
            step: Finished steps.
            batch_size: Images per step.
            flops_share: FLOPs of an image, as a share of what all devices can do in a second.
            batches: Know how long they kept the loop waiting.
        """
        self._step, self._batch_size, self._flops_share = step, batch_size, flops_share
        self._batches = batches
        self._began, self._waited = time.monotonic(), 0.0
        self.text = ""
        """The last figures, for people."""

    def pause(self, seconds: float) -> None:
        """Take time out of the account: evaluation is not training."""
        self._began += seconds

    def measured(self, step: int) -> dict[str, float]:
        """Return the figures, if it is time for them."""
        seconds = time.monotonic() - self._began
        if seconds < _SECONDS_BETWEEN_SPEEDS or step == self._step:
            return {}
        rate = (step - self._step) * self._batch_size / seconds
        waited = self._batches.waited_seconds
        figures = {
            "images_per_second": rate,
            "data_wait_fraction": min(1.0, (waited - self._waited) / seconds),
        }
        self.text = f", {rate:,.0f} images/s, data wait {figures['data_wait_fraction']:.0%}"
        if self._flops_share is not None:
            figures["mfu"] = rate * self._flops_share
            self.text += f", MFU {figures['mfu']:.0%}"
        self._step, self._began, self._waited = step, time.monotonic(), waited
        return figures


@dataclass(frozen=True)
class Pace:
    """When a training is evaluated and saved."""

    evaluation_steps: int
    checkpoint_steps: int | None
    """None: steps are no reason to save."""
    checkpoint_seconds: float | None
    """None: time is no reason to save."""


class TrainingCallback(StepCallback):
    """Watches a training in one of its processes."""

    def __init__(
        self,
        run: ResumableRun,
        batch_size: int,
        pace: Pace,
        interrupts: Interrupts,
        training: Watched,
        advance: Advance,
        speed: Speed,
    ) -> None:
        """Watch.

        Args:
            run: Restored.
            batch_size: Images per step.
            pace: When to evaluate and save.
            interrupts: What was asked from outside.
            training: What is watched.
            advance: Shows progress.
            speed: Begun at the first step.
        """
        self._run, self._total, self._group = run, run.total_steps, run.group
        self._batch_size, self._pace, self._interrupts = batch_size, pace, interrupts
        self._training, self._advance, self._speed = training, advance, speed

    def to_reduce(self) -> Sequence[float]:
        """Ask to stop, and to save because of the time."""
        # Clocks and signals differ over the processes; their sum is the same decision in all.
        seconds = self._pace.checkpoint_seconds
        due = seconds is not None and self._run.is_due(seconds)
        return float(self._interrupts.wanted), float(due)

    def before_update(self) -> None:
        """Wait until the weights are copied; stop where a checkpoint could not be written."""
        self._run.before_update()

    def ran_out(self, micro_batch_size: int) -> None:
        """Say so, and keep the size for the next start."""
        self._training.keep_micro_batch_size(micro_batch_size)

    def after_step(self, step: int, loss: float, rate: float) -> None:
        """Journal and show it."""
        if step == 1 or step % _STEPS_BETWEEN_ROWS == 0 or self._evaluates(step):
            images = step * self._batch_size
            self._training.note(step, {"images": images, "loss": loss, "rate": rate})
        if figures := self._speed.measured(step):
            self._training.note(step, figures, by_clock=True)
        self._advance(step, f"loss {loss:.3f}{self._speed.text}")

    def looks(self, step: int, reduced: Sequence[float]) -> bool:
        """Say whether it is time to stop, evaluate or save."""
        return self._stops(reduced) or self._evaluates(step) or self._saves(step, reduced)

    def look(self, step: int, reduced: Sequence[float]) -> None:
        """Stop, evaluate, save."""
        last = step == self._total
        if self._stops(reduced) and not last:
            self._stop(step)
        if self._evaluates(step):
            self.evaluate(step)
        if not last and self._saves(step, reduced):
            self._run.save(step, wait=False)

    def _stops(self, reduced: Sequence[float]) -> bool:
        return reduced[0] > 0 or (self._group.alone and self._interrupts.wanted)

    def _evaluates(self, step: int) -> bool:
        return step == self._total or step % self._pace.evaluation_steps == 0

    def _saves(self, step: int, reduced: Sequence[float]) -> bool:
        every = self._pace.checkpoint_steps
        return reduced[1] > 0 or (every is not None and step % every == 0)

    def evaluate(self, step: int) -> None:
        """Note how the network is doing."""
        began = time.monotonic()
        may_stop = self._group.alone and step < self._total

        def between() -> None:
            # Alone, an evaluation is given up at once; it is made up for after the restart.
            if may_stop and self._interrupts.wanted:
                self._stop(step)

        self._training.note(step, self._training.look(between))
        self._speed.pause(time.monotonic() - began)

    def _stop(self, step: int) -> None:
        if self._interrupts.saves:
            self._run.save(step, wait=True)
        self._group.agree(step)  # nobody leaves before the main process has written
        self._interrupts.end(step)
