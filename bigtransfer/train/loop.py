"""The training loop: one optimiser step after another, for one process and for many.

The effective batch is fixed. Each process takes its share, in micro-batches where memory is short;
the gradient is that of the mean loss over the whole batch, however it is divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError
from bigtransfer.model.inference import normalized, to_network
from bigtransfer.model.resnet import Recompute, ResNetV2
from bigtransfer.train.cuda_graph import CapturedStep
from bigtransfer.train.devices import Device, is_out_of_memory
from bigtransfer.train.group import Group, lost_peers
from bigtransfer.train.loss import Loss, loss_named
from bigtransfer.train.mixup import mix, mixed_loss, mixup_lambda
from bigtransfer.train.optimizer import updates_in_backward
from bigtransfer.train.schedule import Schedule
from bigtransfer.train.tpu import TpuStep

if TYPE_CHECKING:
    from bigtransfer.data.batches import Batch, TrainBatches


@dataclass
class ComputeSettings:
    """What a run is computed on, and how: all of it leaves the result as it is, but for rounding.

    Attributes:
        device: Of this process.
        group: The processes of the run.
        precision: `float32` or `bfloat16` (autocast, float32 master weights).
        micro_batch_size: Images per forward pass; None: all of this process's share. Halved when
            memory runs out.
        recompute: Activations that are computed again in backward, `none`, `norms` or `units`.
        compiled: Whether the network is compiled.
        cuda_graph: Whether a step is one CUDA graph.
        settle: Brings weights and momentum to where PyTorch sees them; call it before a look.
    """

    device: Device = field(default_factory=Device)
    group: Group = field(default_factory=Group)
    precision: str = "float32"
    micro_batch_size: int | None = None
    recompute: Recompute = "none"
    compiled: bool = False
    cuda_graph: bool = False
    settle: Callable[[], None] = lambda: None


class StepCallback:
    """What is done around a step; this one does nothing."""

    def to_reduce(self) -> Sequence[float]:
        """Return numbers that are added up over the processes once per step."""
        return ()

    def before_update(self) -> None:
        """Return when weights may change."""

    def after_step(self, step: int, loss: float, rate: float, reduced: Sequence[float]) -> None:
        """Look at a finished step.

        Args:
            step: Finished steps.
            loss: Mean over the step's whole batch, before its update.
            rate: Learning rate of its update.
            reduced: The sums of `to_reduce`.
        """

    def ran_out(self, micro_batch_size: int) -> None:
        """Take note that memory ran out and so many images per forward pass are tried next."""


def run_steps(
    model: nn.Module,
    optimizer: SGD,
    batches: TrainBatches,
    schedule: Schedule,
    *,
    mixup_alpha: float | None,
    seed: int,
    start: int,
    callback: StepCallback,
    compute: ComputeSettings | None = None,
    loss: Loss | None = None,
    highest_loss: Callable[[], float] = lambda: math.inf,
) -> None:
    """Train from step `start` to the end of the schedule.

    Everything random is keyed by the step, so a run that starts at `start` with the state of
    that step goes on exactly as the uninterrupted one.

    Args:
        model: The network, wrapped by `DistributedDataParallel` or `fully_shard` in a group.
        optimizer: Over its parameters.
        batches: This process's.
        schedule: Of the learning rate.
        mixup_alpha: None: no MixUp.
        seed: Of MixUp.
        start: Finished steps.
        callback: Is told of every step.
        compute: None: this process alone, on the CPU.
        loss: None: softmax cross-entropy.
        highest_loss: Returns above what the training has diverged.

    Raises:
        BigTransferError: If the loss is no longer a number or above `highest_loss`; names the
            samples of that step. Nothing is saved of it.
        InfrastructureError: If another process is gone, or memory ran out where a step cannot be
            repeated.
    """
    compute = compute or ComputeSettings()
    if compute.cuda_graph:
        _require_graph(compute, mixup_alpha)
    if compute.device.is_tpu:
        _require_tpu(model, compute, mixup_alpha)
    steps = Steps(
        model,
        optimizer,
        batches,
        schedule,
        compute,
        loss or loss_named("softmax"),
        callback,
        highest_loss,
        lambda step: mixup_lambda(mixup_alpha, seed, step),
    )
    model.train()
    coming = batches.ahead(start, schedule.total_steps)
    with steps.prepare():
        for step, batch in enumerate(coming, start):
            steps.run(step, batch)


class Steps:
    """Does one step after another, by the means that the machine has."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: SGD,
        batches: TrainBatches,
        schedule: Schedule,
        compute: ComputeSettings,
        loss: Loss,
        callback: StepCallback,
        highest_loss: Callable[[], float],
        lam: Callable[[int], float],
    ) -> None:
        self._model, self._optimizer, self._batches = model, optimizer, batches
        self._schedule, self._compute, self._loss = schedule, compute, loss
        self._callback, self._highest, self._lam = callback, highest_loss, lam
        self._hooks = ExitStack()
        self._in_backward = False
        """Whether `backward` updates as it goes: on a CPU, alone, without micro-batches."""
        self._updating = False
        self._captured: CapturedStep | None = None
        self._tpu: TpuStep | None = None

    def prepare(self) -> ExitStack:
        """Choose how steps are done; returns the context within which they are."""
        self._hooks.close()
        compute = self._compute
        share = compute.group.share(self._batches.batch_size)
        pieces = len(self._pieces(share.stop - share.start))
        device = compute.device
        if device.is_tpu:
            assert isinstance(self._model, ResNetV2), "held by _require_tpu"
            size = self._batches.batch_size
            self._tpu = TpuStep(self._model, self._optimizer, self._loss, size)
            compute.settle = self._tpu.write_back
            return self._hooks
        self._in_backward = compute.group.alone and not device.is_cuda and pieces == 1
        if self._in_backward:  # decision 0014
            self._hooks.enter_context(updates_in_backward(self._optimizer))
        return self._hooks

    def run(self, step: int, batch: Batch) -> None:
        """Do one step: forward, backward, update, and whoever watches."""
        rate = self._schedule.learning_rate(step)
        lam = self._lam(step)
        if self._compute.cuda_graph:
            self._tell(step, self._replayed(batch, rate).item(), rate)
            return
        if self._tpu is not None:
            self._callback.before_update()
            self._tell(step, self._tpu(batch.images, batch.labels, rate).item(), rate)
            return
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        while True:
            try:
                loss = self._forward_backward(step, batch, lam)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(batch.images), error)
        if not self._in_backward:
            self._refuse(step, self._mean(loss))
            self._callback.before_update()
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self._tell(step, loss.item(), rate)

    def _forward_backward(self, step: int, batch: Batch, lam: float) -> Tensor:
        """Leave the gradients of this process's share, or, in backward, the updated weights."""
        group = self._compute.group
        pieces = self._pieces(len(batch.images))
        total = torch.zeros((), dtype=torch.float64, device=self._compute.device.torch)
        self._updating = False
        with nullcontext() if group.alone else lost_peers(), self._standardized_once(len(pieces)):
            for number, (piece, count) in enumerate(pieces, start=1):
                # DDP decides in the forward pass whether the backward pass is reduced.
                with nullcontext() if number == len(pieces) else self._unsynchronized():
                    loss = self._forward(batch, piece, count, lam)
                    if self._in_backward:
                        self._refuse(step, loss.item())
                        self._callback.before_update()
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
        partner_labels = labels.flip(0)[piece].to(device)
        if lam != 1.0:
            x = mix(x, to_network(batch.images[::-1][piece], device), lam)
        logits = self._logits(x)
        loss = mixed_loss(self._loss, logits, labels[piece].to(device), partner_labels, lam)
        # Processes are averaged over; so a part of the batch counts as much as it holds.
        weight = count * compute.group.world_size / self._batches.batch_size
        return loss if weight == 1.0 else loss * weight

    def _logits(self, x: Tensor) -> Tensor:
        kind = next(self._model.parameters()).dtype
        with self._compute.device.autocast(self._compute.precision):
            logits: Tensor = self._model(x.to(kind))
        return logits if logits.dtype == torch.float64 else logits.float()

    def _replayed(self, batch: Batch, rate: float) -> Tensor:
        """Do the whole step as one CUDA graph, recorded at the first."""
        device = self._compute.device.torch
        images = torch.from_numpy(batch.images).to(device)
        labels = torch.from_numpy(batch.labels).to(device)
        if self._captured is None:
            for group in self._optimizer.param_groups:
                group["lr"] = torch.tensor(rate, device=device)

            def step(images: Tensor, labels: Tensor) -> Tensor:
                loss = self._loss(self._logits(normalized(images)), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                return loss.detach()

            self._captured = CapturedStep(step, self._optimizer, [images, labels])
        for group in self._optimizer.param_groups:
            group["lr"].fill_(rate)
        self._callback.before_update()
        return self._captured(images, labels).clone()

    def _mean(self, loss: Tensor) -> float:
        group = self._compute.group
        return group.sum([loss.item()])[0] / group.world_size

    def _tell(self, step: int, loss: float, rate: float) -> None:
        group = self._compute.group
        value, *reduced = group.sum([loss / group.world_size, *self._callback.to_reduce()])
        self._refuse(step, value)
        self._callback.after_step(step + 1, value, rate, reduced)

    def _refuse(self, step: int, loss: float) -> None:
        highest = self._highest()
        if math.isfinite(loss) and loss <= highest:
            return
        rows = self._batches.rows_of(step)
        shown = ", ".join(self._batches.path_of(row) for row in rows[:3].tolist())
        limit = f", more than {highest:.4g}," if math.isfinite(loss) else ""
        raise DivergedError(
            f"the loss became {loss:.6g}{limit} at step {step}; lower 'base_lr' or lengthen the "
            f"warm-up. The images of that step: {shown}{', …' if len(rows) > 3 else ''}",
            step,
            rows.tolist(),
        )

    def _pieces(self, images: int) -> list[tuple[slice, int]]:
        """Return the micro-batches of a share, and the images that each counts for.

        As many in every process, because each is a round of collectives: a share that is smaller
        by an image may repeat one that counts for nothing.
        """
        group = self._compute.group
        largest = -(-self._batches.batch_size // group.world_size)
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
        self._callback.ran_out(self._compute.micro_batch_size)
        self._optimizer.zero_grad(set_to_none=True)
        self._compute.device.release()
        if self._updating or not self._compute.group.alone:
            raise InfrastructureError(
                f"memory ran out with {size} images per forward pass; start the run again, it goes "
                f"on from the last checkpoint with {self._compute.micro_batch_size}"
            ) from error
        self.prepare()


def _require_graph(compute: ComputeSettings, mixup_alpha: float | None) -> None:
    if not compute.device.is_cuda or not compute.group.alone:
        raise ConfigError("cuda_graph: true is for one process on one GPU; set it to false")
    if mixup_alpha or compute.micro_batch_size:
        raise ConfigError("cuda_graph: true goes with neither MixUp nor micro_batch_size")


def _require_tpu(model: nn.Module, compute: ComputeSettings, mixup_alpha: float | None) -> None:
    if not isinstance(model, ResNetV2):
        raise ConfigError("device: tpu compiles the step by itself; set compile to false")
    if not compute.group.alone:
        raise ConfigError(
            "device: tpu is one process for all devices of a host; start it without torchrun"
        )
    if mixup_alpha or compute.micro_batch_size or compute.precision != "float32":
        raise ConfigError(
            "device: tpu goes with precision: float32 (XLA multiplies in bfloat16 there by itself) "
            "and without micro_batch_size and MixUp"
        )


class DivergedError(BigTransferError):
    """The loss is no number any more, or exploded."""

    def __init__(self, message: str, step: int, rows: list[int]) -> None:
        super().__init__(message)
        self.step, self.rows = step, rows
