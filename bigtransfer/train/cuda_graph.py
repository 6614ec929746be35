"""One training step recorded as a CUDA graph and replayed.

For small images or small micro-batches: a step of R50x1 launches two thousand kernels, and below
some size launching them costs more than computing. Replayed, they are one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from bigtransfer.errors import ConfigError

_WARM_UP_STEPS = 3


class CapturedStep:
    """A step that was recorded; call it with inputs of the shapes it was recorded with."""

    captured = True

    def __init__(
        self, step: Callable[..., Tensor], optimizer: Optimizer, inputs: Sequence[Tensor]
    ) -> None:
        """Record a step; weights and optimiser state are afterwards what they were before.

        Args:
            step: Forward, backward, `optimizer.step()`; returns the loss. It must not look at a
                value (no `.item()`), nor set gradients to zero: a replay overwrites them.
            optimizer: With tensors as learning rates, which may be filled between two calls; a
                number would be recorded as it is.
            inputs: Example tensors on the device.

        Raises:
            ConfigError: If the inputs are not on a CUDA device, or a learning rate is a number.
        """
        if not all(x.is_cuda for x in inputs):
            raise ConfigError("a CUDA graph needs a CUDA device; leave it out on this one")
        if not all(isinstance(group["lr"], Tensor) for group in optimizer.param_groups):
            raise ConfigError("a CUDA graph needs learning rates that are tensors on the device")
        self._inputs = [x.clone() for x in inputs]
        self._warm_up(step, optimizer)
        self._graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self._graph):
            self._loss = step(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Do one step; the loss is overwritten by the next call."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._loss

    def _warm_up(self, step: Callable[..., Tensor], optimizer: Optimizer) -> None:
        """Run some steps beside the main stream, so that nothing is built while recording."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        states = [
            {
                name: value.clone()
                for name, value in optimizer.state[p].items()
                if isinstance(value, Tensor)
            }
            for p in parameters
        ]
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP_STEPS):
                optimizer.zero_grad(set_to_none=True)
                step(*self._inputs)
        torch.cuda.current_stream().wait_stream(beside)
        with torch.no_grad():
            for p, old, state in zip(parameters, before, states, strict=True):
                p.copy_(old)
                for name, value in optimizer.state[p].items():
                    # A momentum that was not there yet begins at zero: the first step is the same.
                    if isinstance(value, Tensor):
                        value.copy_(state[name]) if name in state else value.zero_()
