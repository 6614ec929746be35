"""The step as PyTorch does it, operation by operation: on CPU and GPU, alone and in a group.

The effective batch is fixed. Each process takes its share, in micro-batches where memory is short;
the gradient is that of the mean loss over the whole batch, however it is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from bigtransfer.errors import InfrastructureError
from bigtransfer.model.inference import normalized
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.train.compute import ComputeSettings, logits_of
from bigtransfer.train.devices import is_out_of_memory
from bigtransfer.train.group import lost_peers
from bigtransfer.train.guard import Guard
from bigtransfer.train.loop import BeforeUpdate, StepValues
from bigtransfer.train.loss import Loss
from bigtransfer.train.micro_batches import halve, micro_batches
from bigtransfer.train.mixup import mix, mixed_loss
from bigtransfer.train.optimizer import updates_in_backward
from bigtransfer.train.stream import DeviceBatch, Reading, Stream


class EagerStep:
    """Forward and backward passes over micro-batches, then the update."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: SGD,
        loss: Loss,
        batch_size: int,
        compute: ComputeSettings,
        stream: Stream,
        ran_out: Callable[[int], None],
    ) -> None:
        """Take the network, which is in training mode from here on.

        Args:
            model: The network, wrapped by `DistributedDataParallel` or `fully_shard` in a group.
            optimizer: Over its parameters.
            loss: Of logits and labels.
            batch_size: Images per step, all processes together.
            compute: Its `micro_batch_size` is halved when memory runs out.
            stream: Of the device.
            ran_out: Is told the micro-batch size that is tried next.
        """
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._batch_size, self._compute, self._ran_out = batch_size, compute, ran_out
        self._stream = stream
        self._guard: Guard | None = None
        """Decides on the device whether to update: on a GPU, alone."""
        if stream.late and compute.group.alone:
            self._guard = Guard(optimizer, next(model.parameters()).device)
        self._hooks = ExitStack()
        self._in_backward = False
        """Whether `backward` updates as it goes: on a CPU, alone, without micro-batches."""
        self._updating = False
        """Whether weights of the step under way may have changed: it cannot be repeated then."""
        self._choose_update()
        model.train()

    def __call__(
        self, batch: DeviceBatch, values: StepValues, before_update: BeforeUpdate
    ) -> Reading:
        """Do a step; see `TrainStep`.

        Raises:
            InfrastructureError: If memory ran out, and with a single image or where the step
                cannot be repeated.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = values.rate  # before the backward pass, which may be the update already
        loss = self._tried(batch, values.lam, before_update)
        if self._in_backward:
            return self._stream.fetch(loss)
        if self._guard is not None:
            self._guard.highest.fill_(values.highest_loss)
            self._guard.judge(loss)
            before_update(None)
        else:
            before_update(loss.item())
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return self._stream.fetch(loss)

    def write_back(self) -> None:
        """Do nothing: weights and momentum are PyTorch's own."""

    def close(self) -> None:
        """Let `backward` compute gradients alone again."""
        self._hooks.close()
        if self._guard is not None:
            self._guard.close()

    def _choose_update(self) -> None:
        """Choose whether `backward` updates, by the micro-batch size of now."""
        self._hooks.close()
        group = self._compute.group
        share = group.share(self._batch_size)
        pieces = len(self._pieces(share.stop - share.start))
        self._in_backward = group.alone and self._guard is None and pieces == 1
        if self._in_backward:  # decision 0014
            self._hooks.enter_context(updates_in_backward(self._optimizer))

    def _tried(self, batch: DeviceBatch, lam: float, before_update: BeforeUpdate) -> Tensor:
        """Go through the batch, in smaller and smaller micro-batches where memory runs out."""
        while True:
            try:
                return self._forward_backward(batch, lam, before_update)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(batch.images), error)

    def _forward_backward(
        self, batch: DeviceBatch, lam: float, before_update: BeforeUpdate
    ) -> Tensor:
        """Leave the gradients of this process's share, or, in backward, the updated weights."""
        group = self._compute.group
        pieces = self._pieces(len(batch.images))
        # In float64: the loss is then the same to the last digits for any number of micro-batches.
        total = torch.zeros((), dtype=torch.float64, device=self._compute.device.torch)
        self._updating = False
        with nullcontext() if group.alone else lost_peers(), self._standardized_once(len(pieces)):
            for number, (piece, count) in enumerate(pieces, start=1):
                # Gradients are reduced once, with the last piece. DDP decides in the forward pass
                # whether the backward pass is reduced: the context must be around both.
                with nullcontext() if number == len(pieces) else self._unsynchronized():
                    loss = self._forward(batch, piece, count, lam)
                    if self._in_backward:
                        before_update(loss.item())
                        self._updating = True
                    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                total += loss.detach()
        return total

    def _forward(self, batch: DeviceBatch, piece: slice, count: int, lam: float) -> Tensor:
        """Return a micro-batch's part of the loss."""
        compute, images = self._compute, len(batch.images)
        x, labels = normalized(batch.images[piece]), batch.labels[piece]
        # The partner is in the reversed share, so mostly in another micro-batch.
        turned = slice(images - piece.stop, images - piece.start)
        partner_labels = batch.labels[turned].flip(0)
        if lam != 1.0:
            x = mix(x, normalized(batch.images[turned].flip(0)), lam)
        logits = logits_of(self._model, x, compute)
        loss = mixed_loss(self._loss, logits, labels, partner_labels, lam)
        # Processes are averaged over; so a part of the batch counts as much as it holds.
        weight = count * compute.group.world_size / self._batch_size
        return loss if weight == 1.0 else loss * weight

    def _pieces(self, images: int) -> list[tuple[slice, int]]:
        largest = -(-self._batch_size // self._compute.group.world_size)
        return micro_batches(images, largest, self._compute.micro_batch_size)

    def _unsynchronized(self) -> AbstractContextManager[Any]:
        if isinstance(self._model, DistributedDataParallel):
            return self._model.no_sync()
        return nullcontext()

    def _standardized_once(self, pieces: int) -> AbstractContextManager[None]:
        # Not in a group: gradients must come out of the backward pass, to be reduced beside it.
        if pieces > 1 and self._compute.group.alone and isinstance(self._model, ResNetV2):
            return self._model.standardized_once()
        return nullcontext()

    def _halve(self, images: int, error: RuntimeError) -> None:
        """Take half as many images per forward pass, and let the step be tried again.

        Raises:
            InfrastructureError: If a single image is too much, or the step cannot be repeated.
        """
        size = halve(self._compute, images, self._ran_out, error)
        self._optimizer.zero_grad(set_to_none=True)
        self._compute.device.release()
        # In a group the others are in the middle of a collective, in which this one is missing.
        if self._updating or not self._compute.group.alone:
            raise InfrastructureError(
                f"memory ran out with {size} images per forward pass; start the run again, it goes "
                f"on from the last checkpoint with {self._compute.micro_batch_size}"
            ) from error
        self._choose_update()
