"""The training loop: one optimiser step after another, plain from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import SGD

from bigtransfer.data.batches import TrainBatches
from bigtransfer.errors import BigTransferError
from bigtransfer.evaluate.prediction import to_network
from bigtransfer.train.mixup import mix, mixed_loss, mixup_lambda
from bigtransfer.train.optimizer import updates_in_backward
from bigtransfer.train.schedule import Schedule

AfterStep = Callable[[int, float, float], None]
"""`after_step(step, loss, learning_rate)`: called with the number of finished steps."""


def run_steps(
    model: nn.Module,
    optimizer: SGD,
    batches: TrainBatches,
    schedule: Schedule,
    *,
    mixup_alpha: float | None,
    seed: int,
    start: int,
    after_step: AfterStep,
) -> None:
    """Train from step `start` to the end of the schedule.

    Everything random is keyed by the step, so a run that starts at `start` with the state of
    that step goes on exactly as the uninterrupted one.

    Raises:
        BigTransferError: If the loss is no longer a number; the state is left as it is.
    """
    model.train()
    coming = batches.ahead(start, schedule.total_steps)
    with updates_in_backward(optimizer):
        for step, batch in enumerate(coming, start):
            rate = schedule.learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            lam = mixup_lambda(mixup_alpha, seed, step)
            logits = model(mix(to_network(batch.images), lam))
            loss = mixed_loss(logits, torch.from_numpy(batch.labels), lam)
            value = loss.item()
            if not math.isfinite(value):
                raise BigTransferError(
                    f"the loss became {value} at step {step}; lower 'base_lr' or lengthen the "
                    "warm-up"
                )
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            after_step(step + 1, value, rate)
