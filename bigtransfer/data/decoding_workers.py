"""Processes that decode for a GPU: past a few threads, Python's lock bounds the images a second.

The training process tells a worker which parts of which files to decode and how to cut them; the
worker writes the pixels into memory that both see. It knows no dataset, no label and no bucket.
What it cannot make, the training process makes by itself, and so meets the error that names it.
"""

from __future__ import annotations

import atexit
import mmap
import os
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.data.decoding import Pixels, UndecodableError, decode_rgb
from bigtransfer.data.shard_files import read_part
from bigtransfer.data.transforms import cut_into
from bigtransfer.errors import InfrastructureError

_MOST = 16
_TOO_FEW = 2
"""So many threads decode as well as processes do (`benchmarks/loader.py`)."""
_SECONDS_TO_END = 5


class Cut(NamedTuple):
    """An image in a file, and what is wanted of it."""

    path: str
    offset: int
    length: int
    height: int
    """As the index gives it."""
    width: int
    box: list[int] | None
    """Top, left, height, width; None: all of it."""
    turned: bool


class DecodingWorkers:
    """Some processes; any thread may hand one of them work."""

    def __init__(self, count: int) -> None:
        """Start them; they are ready some seconds later."""
        self.count = count
        self._workers = [_Worker() for _ in range(count)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def empty(self, images: int, side: int) -> NDArray[np.uint8]:
        """Return memory (images, side, side, 3), from which a GPU copies without another copy."""
        import torch

        pinned = torch.cuda.is_available()
        return torch.empty((images, side, side, 3), dtype=torch.uint8, pin_memory=pinned).numpy()

    def fill(self, out: NDArray[np.uint8], cuts: list[Cut], settings: DecodeSettings) -> list[int]:
        """Decode images, cut them and bring them to one size.

        Args:
            out: (N, S, S, 3), written to.
            cuts: N of them.
            settings: How files become pixels.

        Returns:
            The numbers of those that could not be made.

        Raises:
            InfrastructureError: If the process has died.
        """
        worker = self._idle.get()
        try:
            return worker.fill(out, cuts, settings)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()


_opened: dict[int, DecodingWorkers] = {}
"""Process -> its workers: a forked child has none of its parent's."""


def decoding_workers(for_gpu: bool) -> DecodingWorkers | None:
    """Return the workers of this process, started at the first call; None where they do not help.

    They end with the process. There are as many as processors, 16 at most, shared among the
    training processes of the machine.

    Args:
        for_gpu: Whether a GPU waits for the images: no CPU trains as fast as its threads decode.
    """
    count = _useful_count() if for_gpu else 0
    if count <= _TOO_FEW or not hasattr(os, "memfd_create"):
        return None
    if os.getpid() not in _opened:
        _opened[os.getpid()] = workers = DecodingWorkers(count)
        atexit.register(workers.close)
    return _opened[os.getpid()]


def _useful_count() -> int:
    """Return this process's share of the processors it may use."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return min(_MOST, processors // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Worker:
    """A process, and the memory that it shares with this one."""

    def __init__(self) -> None:
        self._connection, its = Pipe()
        # Not /dev/shm: a container has 64 MB of it, unless somebody thought of that.
        self._file = os.memfd_create("bigtransfer-images")
        self._memory: mmap.mmap | None = None
        handles = (its.fileno(), self._file)
        root = str(Path(__file__).resolve().parents[2])
        paths = filter(None, (root, os.environ.get("PYTHONPATH")))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bigtransfer.data.decoding_workers", *map(str, handles)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=handles,
            stdin=subprocess.DEVNULL,
            # Ctrl-C is not for them: the training process needs them to end its run in order.
            start_new_session=True,
        )
        its.close()

    def fill(self, out: NDArray[np.uint8], cuts: list[Cut], settings: DecodeSettings) -> list[int]:
        if self._memory is None or len(self._memory) < out.nbytes:
            os.ftruncate(self._file, out.nbytes)
            self._memory = mmap.mmap(self._file, out.nbytes)
        try:
            self._connection.send((cuts, out.shape[1], settings))
            lost: list[int] = self._connection.recv()
        except (EOFError, OSError) as error:
            code = self._process.wait()
            raise InfrastructureError(
                f"a process that decodes images has ended, exit code {code}; was there too little "
                "memory? The same again goes on from the last checkpoint"
            ) from error
        out[:] = np.frombuffer(self._memory, np.uint8, out.size).reshape(out.shape)
        return lost

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(connection: Connection, file: int) -> None:
    """Decode what comes over a connection, until it is closed."""
    import torch

    torch.set_num_threads(1)
    memory = mmap.mmap(-1, 1)
    while True:
        try:
            cuts, side, settings = connection.recv()
        except (EOFError, OSError):  # the training process has ended, in whatever way
            return
        images = (len(cuts), side, side, 3)
        if len(memory) < np.prod(images):
            memory = mmap.mmap(file, int(np.prod(images)))
        out = np.frombuffer(memory, np.uint8, int(np.prod(images))).reshape(images)
        lost = [n for n, cut in enumerate(cuts) if not _made(out[n], cut, settings)]
        with suppress(OSError):
            connection.send(lost)


def _made(out: Pixels, cut: Cut, settings: DecodeSettings) -> bool:
    try:
        pixels = decode_rgb(read_part(Path(cut.path), cut.offset, cut.length), settings)
    except (UndecodableError, OSError):
        return False
    if pixels.shape[:2] != (cut.height, cut.width):
        return False
    cut_into(out, pixels, cut.box, turned=cut.turned)
    return True


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
