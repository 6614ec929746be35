"""The step as PyTorch does it, operation by operation: on CPU and GPU, alone and in a group.

The effective batch is fixed. Each process takes its share, in micro-batches where memory is short;
the gradient is that of the mean loss over the whole batch, however it is divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from bigtransfer.errors import InfrastructureError
from bigtransfer.model.inference import to_network
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.train.compute import ComputeSettings, logits_of
from bigtransfer.train.devices import is_out_of_memory
from bigtransfer.train.group import lost_peers
from bigtransfer.train.loop import BeforeUpdate
from bigtransfer.train.loss import Loss
from bigtransfer.train.mixup import mix, mixed_loss
from bigtransfer.train.optimizer import updates_in_backward

if TYPE_CHECKING:
    from bigtransfer.data.batches import Batch


class EagerStep:
    """Forward and backward passes over micro-batches, then the update."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: SGD,
        loss: Loss,
        batch_size: int,
        compute: ComputeSettings,
        ran_out: Callable[[int], None],
    ) -> None:
        """Take the network, which is in training mode from here on.

        Args:
            model: The network, wrapped by `DistributedDataParallel` or `fully_shard` in a group.
            optimizer: Over its parameters.
            loss: Of logits and labels.
            batch_size: Images per step, all processes together.
            compute: Its `micro_batch_size` is halved when memory runs out.
            ran_out: Is told the micro-batch size that is tried next.
        """
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._batch_size, self._compute, self._ran_out = batch_size, compute, ran_out
        self._hooks = ExitStack()
        self._in_backward = False
        """Whether `backward` updates as it goes: on a CPU, alone, without micro-batches."""
        self._updating = False
        """Whether weights of the step under way may have changed: it cannot be repeated then."""
        self._choose_update()
        model.train()

    def __call__(self, batch: Batch, rate: float, lam: float, before_update: BeforeUpdate) -> float:
        """Do a step; see `TrainStep`.

        Raises:
            InfrastructureError: If memory ran out, and with a single image or where the step
                cannot be repeated.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate  # before the backward pass, which may be the update already
        loss = self._tried(batch, lam, before_update)
        if not self._in_backward:
            before_update(loss.item())
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def write_back(self) -> None:
        """Do nothing: weights and momentum are PyTorch's own."""

    def close(self) -> None:
        """Let `backward` compute gradients alone again."""
        self._hooks.close()

    def _choose_update(self) -> None:
        """Choose whether `backward` updates, by the micro-batch size of now."""
        self._hooks.close()
        group = self._compute.group
        share = group.share(self._batch_size)
        pieces = len(self._pieces(share.stop - share.start))
        self._in_backward = group.alone and not self._compute.device.is_cuda and pieces == 1
        if self._in_backward:  # decision 0014
            self._hooks.enter_context(updates_in_backward(self._optimizer))

    def _tried(self, batch: Batch, lam: float, before_update: BeforeUpdate) -> Tensor:
        """Go through the batch, in smaller and smaller micro-batches where memory runs out."""
        while True:
            try:
                return self._forward_backward(batch, lam, before_update)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(batch.images), error)

    def _forward_backward(self, batch: Batch, lam: float, before_update: BeforeUpdate) -> Tensor:
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

    def _forward(self, batch: Batch, piece: slice, count: int, lam: float) -> Tensor:
        """Return a micro-batch's part of the loss."""
        compute = self._compute
        device = compute.device.torch
        x = to_network(batch.images[piece], device)
        labels = torch.from_numpy(batch.labels)
        # The partner is in the reversed share, so mostly in another micro-batch: turn, then cut.
        partner_labels = labels.flip(0)[piece].to(device)
        if lam != 1.0:
            x = mix(x, to_network(batch.images[::-1][piece], device), lam)
        logits = logits_of(self._model, x, compute)
        loss = mixed_loss(self._loss, logits, labels[piece].to(device), partner_labels, lam)
        # Processes are averaged over; so a part of the batch counts as much as it holds.
        weight = count * compute.group.world_size / self._batch_size
        return loss if weight == 1.0 else loss * weight

    def _pieces(self, images: int) -> list[tuple[slice, int]]:
        """Return the micro-batches of a share, and the images that each counts for."""
        group = self._compute.group
        # By the largest share, not this one: a forward pass of FSDP and a backward pass of DDP are
        # collectives, so processes with different counts would wait for each other for ever. A
        # share that is smaller by an image may repeat one, which counts for nothing.
        largest = -(-self._batch_size // group.world_size)
        count = -(-largest // (self._compute.micro_batch_size or largest))
        ends = [number * images // count for number in range(count + 1)]
        return [
            (slice(start, stop), stop - start) if stop > start else (slice(0, 1), 0)
            for start, stop in zip(ends, ends[1:], strict=False)
        ]

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
        size = min(self._compute.micro_batch_size or images, images)
        if size <= 1:
            raise InfrastructureError(
                "memory runs out with a single image; choose a smaller network or crop, or "
                "recompute: units"
            ) from error
        self._compute.micro_batch_size = math.ceil(size / 2)
        # Before anything is given up: the next start is to know the size, too.
        self._ran_out(self._compute.micro_batch_size)
        self._optimizer.zero_grad(set_to_none=True)
        self._compute.device.release()
        # In a group the others are in the middle of a collective, in which this one is missing.
        if self._updating or not self._compute.group.alone:
            raise InfrastructureError(
                f"memory ran out with {size} images per forward pass; start the run again, it goes "
                f"on from the last checkpoint with {self._compute.micro_batch_size}"
            ) from error
        self._choose_update()
