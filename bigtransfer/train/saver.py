"""Checkpoints written while the training goes on.

Weights change at the end of a step only. So a thread copies them while the next forward pass runs,
and the loop waits for it, if at all, right before the next update. Then the thread writes the copy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtransfer.train.checkpoints import Checkpoints, State


class Saver:
    """Writes the checkpoints of one run, one at a time, beside the loop."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._buffers: State = {}
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._on_device: torch.cuda.Event | None = None
        self._fault: BaseException | None = None
        self._last = time.monotonic()
        self.blocked_seconds = 0.0
        """Time that the loop has been kept waiting."""
        self.saved: list[int] = []
        """Steps of the checkpoints that were written."""

    def is_due(self, seconds: float) -> bool:
        """Say whether the last checkpoint was begun so long ago, and is written."""
        busy = self._thread is not None and self._thread.is_alive()
        return not busy and time.monotonic() - self._last >= seconds

    def begin(
        self,
        step: int,
        state: Mapping[str, Mapping[str, Tensor]],
        meta: Mapping[str, Any],
        journal: Path,
        score: float | None,
    ) -> None:
        """Begin a checkpoint; waits for one that is still being written.

        Args:
            step: Finished steps.
            state: The live tensors; they must not change before `before_update` returns.
            meta: JSON values.
            journal: Metrics journal to keep with it.
            score: Of the network at this step, if known.

        Raises:
            BigTransferError: What went wrong with the one before.
        """
        self.finish()
        self._last = time.monotonic()
        self._copied.clear()
        self._thread = threading.Thread(
            target=self._save, args=(step, state, dict(meta), journal, score), daemon=True
        )
        self._thread.start()

    def before_update(self) -> None:
        """Return when the weights may change."""
        if not self._copied.is_set():
            began = time.monotonic()
            self._copied.wait()
            self.blocked_seconds += time.monotonic() - began
        if self._on_device is not None:
            torch.cuda.current_stream().wait_event(self._on_device)
            self._on_device = None

    def check(self) -> None:
        """Raise what went wrong since the last look."""
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def finish(self) -> None:
        """Wait until the checkpoint is written.

        Raises:
            BigTransferError: What went wrong with it.
        """
        if self._thread is not None:
            began = time.monotonic()
            self._thread.join()
            self.blocked_seconds += time.monotonic() - began
            self._thread = None
        self.check()

    def wait_quietly(self) -> None:
        """Wait until nothing is being written, whatever became of it."""
        if self._thread is not None:
            self._thread.join()

    def _save(
        self,
        step: int,
        state: Mapping[str, Mapping[str, Tensor]],
        meta: Mapping[str, Any],
        journal: Path,
        score: float | None,
    ) -> None:
        try:
            try:
                self._copy(state)
            finally:
                self._copied.set()
            self._checkpoints.write(step, self._buffers, meta, journal, score)
            self.saved.append(step)
        except Exception as error:  # handed over to the loop, which raises it
            self._fault = error

    def _copy(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy to memory of our own, which is kept for the next time."""
        tensors = [t for group in state.values() for t in group.values()]
        on_device = next((t.device for t in tensors if t.is_cuda), None)
        if on_device is None:
            self._copy_each(state)
            return
        stream = torch.cuda.Stream(on_device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        stream.wait_stream(torch.cuda.current_stream(on_device))
        with torch.cuda.stream(stream):
            self._copy_each(state)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(stream)
        self._on_device = done
        self._copied.set()
        done.synchronize()

    @torch.no_grad()
    def _copy_each(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for group, tensors in state.items():
            buffers = self._buffers.setdefault(group, {})
            for name, tensor in tensors.items():
                own = buffers.get(name)
                if own is None:
                    own = buffers[name] = torch.empty(
                        tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                    )
                own.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
