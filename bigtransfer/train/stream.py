"""How work reaches a device: on a CPU at once, on a GPU in a queue that the host runs ahead of.

A step tells a `Stream` what to copy, fill and replay, and gets the loss as a promise. So a GPU is
never waited for but where somebody looks, and tests can put a queue in a GPU's place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bigtransfer.model.cuda_graph import Replay, beside, record

if TYPE_CHECKING:
    from bigtransfer.data.batches import Batch

Reading = Callable[[], float]
"""Returns a number; waits for the device where it is not there yet."""


class DeviceBatch(NamedTuple):
    """Images uint8 (B, H, W, 3) and labels int64 (B,) or (B, L), padded with -1, on the device."""

    images: Tensor
    labels: Tensor


class Stream(Protocol):
    """The order in which a device does what it is told."""

    late: bool
    """Whether the host runs ahead: a `Reading` is best called after more work was given."""

    def upload(self, batch: Batch) -> Any:
        """Begin to bring a batch to the device; any thread may call it."""
        ...

    def arrived(self, uploaded: Any) -> DeviceBatch:
        """Return what `upload` brings; work that is given from here on finds it there."""
        ...

    def copy(self, own: Tensor, given: Tensor) -> None:
        """Let `own` become a copy of `given`, both on the device."""
        ...

    def fill(self, own: Tensor, value: float) -> None:
        """Let all of `own` become a number."""
        ...

    def fetch(self, value: Tensor) -> Reading:
        """Begin to bring a number back, as it is after all work that was given before."""
        ...

    def record(self, function: Callable[[], None]) -> Replay:
        """Record a function that has run in `warming_up`; return what lets the device do it."""
        ...

    def warming_up(self) -> AbstractContextManager[None]:
        """Return the context in which functions run before they are recorded."""
        ...


class CpuStream:
    """Does everything at once."""

    late = False

    def upload(self, batch: Batch) -> DeviceBatch:
        """Return the same memory as tensors."""
        return DeviceBatch(torch.from_numpy(batch.images), torch.from_numpy(batch.labels))

    def arrived(self, uploaded: DeviceBatch) -> DeviceBatch:
        """Return it."""
        return uploaded

    def copy(self, own: Tensor, given: Tensor) -> None:
        """Copy."""
        own.copy_(given)

    def fill(self, own: Tensor, value: float) -> None:
        """Fill."""
        own.fill_(value)

    def fetch(self, value: Tensor) -> Reading:
        """Read it now."""
        number = value.item()
        return lambda: number

    def record(self, function: Callable[[], None]) -> Replay:
        """Return the function itself."""
        return function

    def warming_up(self) -> AbstractContextManager[None]:
        """Do nothing around it."""
        return nullcontext()


class CudaStream:
    """A GPU's queue, and a second one for what comes from the loader."""

    late = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._uploads = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._pool = torch.cuda.graph_pool_handle()

    def upload(self, batch: Batch) -> tuple[DeviceBatch, torch.cuda.Event]:
        """Copy into pinned memory and from there, beside the steps."""
        with torch.cuda.device(self._device):  # a thread begins with the first GPU
            pinned = [torch.from_numpy(array).pin_memory() for array in batch[:2]]
            with torch.cuda.stream(self._uploads):
                tensors = [host.to(self._device, non_blocking=True) for host in pinned]
                return DeviceBatch(*tensors), self._uploads.record_event()

    def arrived(self, uploaded: tuple[DeviceBatch, torch.cuda.Event]) -> DeviceBatch:
        """Let the steps' queue wait for the copy."""
        batch, event = uploaded
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(event)
        for tensor in batch:
            tensor.record_stream(stream)  # its memory is used again when this stream has read it
        return batch

    def copy(self, own: Tensor, given: Tensor) -> None:
        """Copy on the device."""
        own.copy_(given, non_blocking=True)

    def fill(self, own: Tensor, value: float) -> None:
        """Fill on the device; the number travels with the launch."""
        own.fill_(value)

    def fetch(self, value: Tensor) -> Reading:
        """Copy it into pinned memory; the reading waits for that alone."""
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        host.copy_(value.detach(), non_blocking=True)
        there = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        there.record(torch.cuda.current_stream(self._device))

        def read() -> float:
            there.synchronize()
            return float(host.item())

        return read

    def record(self, function: Callable[[], None]) -> Replay:
        """Record it as a CUDA graph."""
        return record(function, self._pool)

    def warming_up(self) -> AbstractContextManager[None]:
        """Run it on a stream of its own, as recordings are."""
        return beside(self._device)


def open_stream(device: torch.device) -> Stream:
    """Return the stream of a device."""
    return CudaStream(device) if device.type == "cuda" else CpuStream()
