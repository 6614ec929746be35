"""Whether an update may happen, decided where the loss is: on the device, nobody waits for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import SGD

from bigtransfer.train.state import MOMENTUM_BUFFER


class Guard:
    """Leaves out the updates of an optimiser whose loss is no number, or too high."""

    def __init__(self, optimizer: SGD, device: torch.device) -> None:
        """Take the optimiser; momentum is there from here on.

        Args:
            optimizer: Made with `fused=True`, which alone can leave out an update on the device.
            device: Of its parameters.
        """
        # At a first step, `SGD` takes memory as it finds it for the momentum, to be written by the
        # update: left out, that would stay in it. Zeros are the same first step, bit for bit.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if state.get(MOMENTUM_BUFFER) is None:
                    state[MOMENTUM_BUFFER] = torch.zeros_like(parameter)
        self.highest = torch.full((), -torch.inf, dtype=torch.float64, device=device)
        """Updates happen up to this loss; with -inf, as it begins, none does."""
        self._skip = torch.ones((), dtype=torch.float32, device=device)
        self._optimizer = optimizer
        optimizer.found_inf = self._skip  # type: ignore[attr-defined]  # what GradScaler sets, too

    def judge(self, loss: Tensor) -> None:
        """Decide for the next update; a function that may be recorded."""
        good = torch.isfinite(loss) & (loss <= self.highest)
        self._skip.copy_(good.logical_not())

    def close(self) -> None:
        """Let every update of the optimiser happen again."""
        del self._optimizer.found_inf  # type: ignore[attr-defined]
