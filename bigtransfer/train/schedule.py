"""Learning rate at a step: linear warm-up, then a division by ten after every boundary."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.config import PretrainParams

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


def planned_schedule(params: PretrainParams, examples: int) -> Schedule:
    """Return the schedule of a recipe over so many training images."""
    steps_per_epoch = examples / params.batch_size
    return Schedule(
        total_steps=max(1, round(examples * params.epochs / params.batch_size)),
        base_lr=params.base_lr,
        warmup_steps=params.warmup_steps,
        decay_steps=tuple(round(epoch * steps_per_epoch) for epoch in params.decay_epochs),
    )
