"""Learning rate at a step: linear warm-up, then a division by ten after every boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DECAY_FACTOR = 10.0


@dataclass(frozen=True)
class Schedule:
    """Warm-up and step decay. Steps are optimiser steps, counted from 0."""

    total_steps: int
    base_lr: float
    warmup_steps: int
    decay_steps: tuple[int, ...]

    def learning_rate(self, step: int) -> float:
        """Return the rate of an update.

        During warm-up it is base_lr * step / warmup_steps (so the first update has rate 0, as in
        google-research/big_transfer `bit_hyperrule.py`); later base_lr divided by ten for every
        boundary strictly below the step.
        """
        if step < self.warmup_steps:
            return self.base_lr * step / self.warmup_steps
        passed = sum(boundary < step for boundary in self.decay_steps)
        return float(self.base_lr / DECAY_FACTOR**passed)


def planned_schedule(
    examples: int,
    *,
    epochs: float,
    batch_size: int,
    base_lr: float,
    warmup_steps: int,
    decay_epochs: Sequence[float],
) -> Schedule:
    """Return the schedule of a training that is planned in epochs.

    Args:
        examples: Training images.
        epochs: Passes over them; parts of one count.
        batch_size: Images per optimiser step.
        base_lr: Rate after the warm-up.
        warmup_steps: Optimiser steps.
        decay_epochs: After each the rate is divided by ten.
    """
    steps_per_epoch = examples / batch_size
    return Schedule(
        total_steps=max(1, round(examples * epochs / batch_size)),
        base_lr=base_lr,
        warmup_steps=warmup_steps,
        decay_steps=tuple(round(epoch * steps_per_epoch) for epoch in decay_epochs),
    )
