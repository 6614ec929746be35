"""A function recorded as a CUDA graph: what was some thousand launches is one.

A network of this kind is small for a large GPU: launching a kernel takes longer than many a kernel
takes to run. Replayed, they follow each other without a gap.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bigtransfer.model.kernels import HAS_TRITON

Replay = Callable[[], None]
Forward = Callable[[Tensor], Tensor]
_AMPERE = (8, 0)
_MOST_SHAPES = 4


def obstacle(device: torch.device) -> str | None:
    """Return what is in the way of recording on a device, for people; None: nothing."""
    if device.type != "cuda":
        return "a device that is no GPU"
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms, some of which look at values"
    if sys.platform == "win32" or not HAS_TRITON:
        return "an installation without Triton"
    if torch.cuda.get_device_capability(device) < _AMPERE:
        return f"{torch.cuda.get_device_name(device)}, which is older than Ampere"
    return None


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Work on a stream of its own, in order with what is before and after: for warming up."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def record(function: Callable[[], None], pool: Any = None) -> Replay:
    """Record what a function launches; return what does it again.

    The function reads and writes tensors that stay where they are, looks at no value (no
    `.item()`), and has run before, so that nothing is built or tuned while it is recorded.

    Args:
        function: Is run once more, without any effect but the recording.
        pool: Memory that recordings share which are replayed in the order of their recording;
            `torch.cuda.graph_pool_handle()`. None: its own.
    """
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: the loader's pins memory and the saver's copies at the same time, which
    # ends a recording that watches all threads.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        function()

    def replay() -> None:
        graph.replay()

    return replay


def replayed(forward: Forward, device: torch.device | None) -> Forward:
    """Return the same function, replayed on a GPU where shapes come again; else itself.

    Args:
        forward: A network without gradients, or one of its methods; its weights stay where they
            are.
        device: Of the network; None: the CPU.
    """
    return forward if device is None or obstacle(device) else ReplayedForward(forward)


class ReplayedForward:
    """Runs a shape once as it is, records it when it comes again, and replays it from then on.

    So batches of one size are replayed, and a last smaller one is not. What it returns is
    overwritten by the next call.
    """

    def __init__(
        self, forward: Forward, record: Callable[[Callable[[], None]], Replay] = record
    ) -> None:
        self._forward, self._record = forward, record
        self._seen: set[torch.Size] = set()
        self._recorded: dict[torch.Size, tuple[Tensor, Tensor, Replay]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the function makes of x."""
        if x.shape not in self._recorded:
            if x.shape not in self._seen or len(self._recorded) >= _MOST_SHAPES:
                self._seen.add(x.shape)
                return self._forward(x)
            self._recorded[x.shape] = self._recording(x)
        own, result, replay = self._recorded[x.shape]
        own.copy_(x, non_blocking=True)
        replay()
        return result

    def _recording(self, x: Tensor) -> tuple[Tensor, Tensor, Replay]:
        own, result = x.clone(memory_format=torch.preserve_format), self._forward(x).clone()

        def whole() -> None:
            result.copy_(self._forward(own))

        return own, result, self._record(whole)
