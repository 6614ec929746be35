"""The step on a GPU as few replays of recorded work, between which the host decides nothing.

One micro-batch: forward, backward and update are one recording. Several: standardising the kernels,
a micro-batch, and the update are recorded, and the second is replayed as often as there are
micro-batches. What changes from step to step (images, labels, learning rate, lambda, the highest
loss) lies in tensors that stay where they are.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD

from bigtransfer.model.cuda_graph import Replay
from bigtransfer.model.inference import network_images
from bigtransfer.model.resnet import HeldKernels
from bigtransfer.train.compute import ComputeSettings, logits_of
from bigtransfer.train.devices import is_out_of_memory
from bigtransfer.train.guard import Guard
from bigtransfer.train.loop import BeforeUpdate, StepValues
from bigtransfer.train.loss import Loss
from bigtransfer.train.micro_batches import halve, micro_batches
from bigtransfer.train.stream import DeviceBatch, Reading, Stream

_WARM_UPS = 2


@dataclass
class _Pass:
    """A forward and backward pass of a certain number of images, and what it reads."""

    images: Tensor
    labels: Tensor
    partners: Tensor
    """The images that are mixed in; the same memory as `images` where none are."""
    partner_labels: Tensor
    weight: float
    """Of its mean loss in that of the step."""
    replay: Replay = lambda: None


class CapturedStep:
    """A step in replays; recorded at the first one."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: SGD,
        loss: Loss,
        batch_size: int,
        compute: ComputeSettings,
        stream: Stream,
        ran_out: Callable[[int], None],
        *,
        mixes: bool,
    ) -> None:
        """Take the network, which is in training mode from here on.

        Args:
            model: The network.
            optimizer: Over its parameters; its learning rates become one tensor until `close`.
            loss: Of logits and labels.
            batch_size: Images per step.
            compute: One process on one GPU; its `micro_batch_size` is halved when memory runs out.
            stream: Of the GPU.
            ran_out: Is told the micro-batch size that is tried next.
            mixes: Whether images are mixed (MixUp).
        """
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._batch_size, self._compute, self._stream = batch_size, compute, stream
        self._ran_out, self._mixes = ran_out, mixes
        device = next(model.parameters()).device
        self._guard = Guard(optimizer, device)
        # A number would be recorded as it is now; a tensor is read at every replay.
        self._rate = torch.zeros((), device=device)
        self._lam, self._rest = torch.ones((), device=device), torch.zeros((), device=device)
        # In float64: the loss is then the same to the last digits for any number of micro-batches.
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        for group in optimizer.param_groups:
            group["lr"] = self._rate
        self._kernels = HeldKernels(model)
        self._passes: dict[int, _Pass] = {}
        """Images of a micro-batch -> its pass; empty: nothing is recorded."""
        self._begin: Replay | None = None
        self._update: Replay | None = None
        model.train()

    def __call__(
        self, batch: DeviceBatch, values: StepValues, before_update: BeforeUpdate
    ) -> Reading:
        """Do a step; see `TrainStep`.

        Raises:
            InfrastructureError: If memory ran out with a single image.
        """
        self._record_if_needed(batch)
        fill, copy = self._stream.fill, self._stream.copy
        fill(self._rate, values.rate)
        fill(self._lam, values.lam)
        fill(self._rest, 1 - values.lam)
        fill(self._guard.highest, values.highest_loss)
        images = len(batch.images)
        pieces = self._pieces(images)
        before_update(None)  # the loss is known when the weights have changed already
        if self._begin is not None:
            self._begin()
        for piece, count in pieces:
            one = self._passes[count]
            copy(one.images, batch.images[piece])
            copy(one.labels, batch.labels[piece])
            if self._mixes:
                # The partner is in the reversed batch, so mostly in another micro-batch.
                turned = slice(images - piece.stop, images - piece.start)
                copy(one.partners, batch.images[turned].flip(0))
                copy(one.partner_labels, batch.labels[turned].flip(0))
            one.replay()
        if self._update is not None:
            self._update()
        return self._stream.fetch(self._total)

    def write_back(self) -> None:
        """Do nothing: a replay writes into PyTorch's own weights and momentum."""

    def close(self) -> None:
        """Let go of the recordings and their memory."""
        self._forget()
        self._guard.close()
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0

    def _pieces(self, images: int) -> list[tuple[slice, int]]:
        return micro_batches(images, self._batch_size, self._compute.micro_batch_size)

    def _record_if_needed(self, batch: DeviceBatch) -> None:
        """Record for a batch of this shape, in smaller micro-batches where memory runs out."""
        while not self._passes:
            try:
                self._record(batch)
            except RuntimeError as error:
                self._forget()
                if not _ran_out_of_memory(error):
                    raise
                halve(self._compute, len(batch.images), self._ran_out, error)

    def _record(self, batch: DeviceBatch) -> None:
        """Run everything some times without an update, then record it."""
        pieces = self._pieces(len(batch.images))
        passes = {count: self._pass_of(batch, count) for _, count in pieces}
        stream = self._stream
        stream.fill(self._guard.highest, -torch.inf)
        if len(pieces) == 1:
            (one,) = passes.values()
            with _buffers_as_before(self._model):
                with stream.warming_up():
                    for _ in range(_WARM_UPS):
                        self._whole(one)
                self._optimizer.zero_grad(set_to_none=True)
                one.replay = stream.record(lambda: self._whole(one))
        else:
            self._kernels.make()
            for parameter in self._trained_elsewhere():
                parameter.grad = torch.zeros_like(parameter)
            with _buffers_as_before(self._model):
                with stream.warming_up():
                    for _ in range(_WARM_UPS):
                        self._standardize()
                        for one in passes.values():
                            self._add(one)
                        self._finish()
                self._begin = stream.record(self._standardize)
                for one in passes.values():
                    one.replay = stream.record(_of(self._add, one))
                self._update = stream.record(self._finish)
        self._passes = passes

    def _pass_of(self, batch: DeviceBatch, count: int) -> _Pass:
        images, labels = batch.images[:count].clone(), batch.labels[:count].clone()
        partners, partner_labels = images, labels
        if self._mixes:
            partners, partner_labels = images.clone(), labels.clone()
        return _Pass(images, labels, partners, partner_labels, count / self._batch_size)

    def _forget(self) -> None:
        self._passes, self._begin, self._update = {}, None, None
        self._kernels.drop()
        self._optimizer.zero_grad(set_to_none=True)
        gc.collect()  # a recording that failed half-way holds memory in a circle
        self._compute.device.release()

    # What follows is recorded: no look at a value, no choice by one.

    def _whole(self, one: _Pass) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._total.zero_()
        self._forward_backward(one)
        self._guard.judge(self._total)
        self._optimizer.step()

    def _standardize(self) -> None:
        self._kernels.refresh()
        self._total.zero_()
        for parameter in self._trained_elsewhere():
            assert parameter.grad is not None, "made before the recording"
            parameter.grad.zero_()

    def _add(self, one: _Pass) -> None:
        with self._kernels.held():
            self._forward_backward(one)

    def _finish(self) -> None:
        for weight in self._kernels.weights:
            weight.grad = None
        self._kernels.pull_back()
        self._guard.judge(self._total)
        self._optimizer.step()

    def _forward_backward(self, one: _Pass) -> None:
        mixed_in = (one.partners, self._lam) if self._mixes else ()
        x = network_images(one.images, self._compute.input_dtype, *mixed_in)
        logits = logits_of(self._model, x, self._compute)
        loss = self._loss(logits, one.labels)
        if self._mixes:
            loss = self._lam * loss + self._rest * self._loss(logits, one.partner_labels)
        if one.weight != 1.0:
            loss = loss * one.weight
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._total += loss.detach()

    def _trained_elsewhere(self) -> Iterator[nn.Parameter]:
        """Yield what is trained and is no standardised kernel."""
        kernels = {id(weight) for weight in self._kernels.weights}
        for group in self._optimizer.param_groups:
            yield from (p for p in group["params"] if id(p) not in kernels)


def _of(function: Callable[[_Pass], None], one: _Pass) -> Callable[[], None]:
    return lambda: function(one)


@contextmanager
def _buffers_as_before(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's statistics: each forward pass changes them, a warm-up, too."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, old in zip(model.buffers(), before, strict=True):
            buffer.copy_(old)


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Say so of an error, or of one that it came from: ending a recording fails after it."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__context__
    return False
