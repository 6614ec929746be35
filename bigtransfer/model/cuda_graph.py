"""A function recorded as a CUDA graph: what was some thousand launches is one.

A network of this kind is small for a large GPU: launching a kernel takes longer than many a kernel
takes to run. Replayed, they follow each other without a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Replay = Callable[[], None]


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
