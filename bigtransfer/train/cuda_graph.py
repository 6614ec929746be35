"""One training step recorded as a CUDA graph and replayed.

For small images or small micro-batches: a step of R50x1 launches two thousand kernels, and below
some size launching them costs more than computing. Replayed, they are one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from bigtransfer.errors import ConfigError
from bigtransfer.model.inference import normalized
from bigtransfer.train.compute import ComputeSettings, logits_of
from bigtransfer.train.loop import BeforeUpdate
from bigtransfer.train.loss import Loss

if TYPE_CHECKING:
    from bigtransfer.data.batches import Batch

_WARM_UP_STEPS = 3


class CapturedStep:
    """Forward, backward and update as one graph, recorded at the first step."""

    def __init__(
        self, model: nn.Module, optimizer: SGD, loss: Loss, compute: ComputeSettings
    ) -> None:
        """Take the network, which is in training mode from here on.

        Args:
            model: The network, on a GPU.
            optimizer: Over its parameters; its learning rates become tensors.
            loss: Of logits and labels.
            compute: One process on one GPU.
        """
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._compute = compute
        self._recording: Recording | None = None
        model.train()

    def __call__(self, batch: Batch, rate: float, lam: float, before_update: BeforeUpdate) -> float:
        """Do a step; see `TrainStep`."""
        assert lam == 1.0, "held by choose_step"
        device = self._compute.device.torch
        images = torch.from_numpy(batch.images).to(device)
        labels = torch.from_numpy(batch.labels).to(device)
        if self._recording is None:
            # A number would be recorded as it is now; a tensor is read at every replay.
            for group in self._optimizer.param_groups:
                group["lr"] = torch.tensor(rate, device=device)
            self._recording = Recording(self._whole, self._optimizer, [images, labels])
        for group in self._optimizer.param_groups:
            group["lr"].fill_(rate)
        before_update(None)  # the loss is known when the weights have changed already
        return self._recording(images, labels).item()

    def write_back(self) -> None:
        """Do nothing: a replay writes into PyTorch's own weights and momentum."""

    def close(self) -> None:
        """Let go of the recording and its memory."""
        self._recording = None

    def _whole(self, images: Tensor, labels: Tensor) -> Tensor:
        """Be recorded: no look at a value, no gradient set to zero."""
        logits = logits_of(self._model, normalized(images), self._compute)
        loss = self._loss(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimizer.step()
        return loss.detach()


class Recording:
    """A step that was recorded; call it with inputs of the shapes it was recorded with."""

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
