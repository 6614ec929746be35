"""The processes of one run: alone, or started by `torchrun`, which says so in the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from bigtransfer.errors import ConfigError, InfrastructureError

_TIMEOUT = timedelta(minutes=10)
"""After this, a process that waits for the others gives up."""
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "TCPStore")
"""What the messages of a backend name that lost its peer."""


@dataclass(frozen=True)
class Group:
    """This process among the processes of a run."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main_process(self) -> bool:
        """Say whether this process is the one that writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Say whether there is no other."""
        return self.world_size == 1

    def share(self, total: int) -> slice:
        """Return which of `total` things are this process's: equal shares, give or take one."""
        start = self.rank * total // self.world_size
        return slice(start, (self.rank + 1) * total // self.world_size)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all processes, in float64."""
        if self.alone:
            return list(values)
        # Under NCCL the numbers travel through the GPU.
        together = torch.tensor(values, dtype=torch.float64, device=self.device)
        with lost_peers():
            dist.all_reduce(together)
        return [float(value) for value in together.tolist()]

    def broadcast(self, tensor: Tensor) -> None:
        """Give every process the main process's values, in place."""
        if not self.alone:
            with lost_peers():
                dist.broadcast(tensor, 0)

    def agree(self, value: int) -> int:
        """Return the main process's number."""
        number = torch.tensor([value], device=self.device)
        self.broadcast(number)
        return int(number.item())


@contextmanager
def open_group(device: torch.device) -> Iterator[Group]:
    """Join the processes that `torchrun` started; alone where it did not.

    The group is never taken apart: a backend's threads may wait for peers that are gone, or for
    the interpreter, and its destructor for them. End the process by `os._exit`, as
    `components/interface.py` does.

    Raises:
        ConfigError: If the environment's numbers do not fit.
        InfrastructureError: If the others do not answer.
    """
    rank, world_size = environment_rank()
    if "MASTER_ADDR" not in os.environ:
        if world_size > 1:
            raise ConfigError(
                f"WORLD_SIZE={world_size} is set but MASTER_ADDR is not; start it by "
                "`torchrun --nproc-per-node N -m components.pretrain …`"
            )
        yield Group(device=device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with lost_peers():
        dist.init_process_group(
            backend, timeout=_TIMEOUT, device_id=device if device.type == "cuda" else None
        )
    yield Group(rank, world_size, device)


def environment_rank() -> tuple[int, int]:
    """Return rank and number of processes, as `torchrun` sets them; 0 and 1 without it.

    Raises:
        ConfigError: If they are no numbers, or do not fit.
    """
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        rank, world_size = map(int, texts)
    except ValueError:
        rank, world_size = -1, 0
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"RANK={texts[0]} and WORLD_SIZE={texts[1]} in the environment fit no run; start it by "
            "`torchrun --nproc-per-node N -m components.pretrain …`"
        )
    return rank, world_size


def environment_local_rank() -> int:
    """Return this process's number on its machine, as `torchrun` sets it; 0 without it."""
    text = os.environ.get("LOCAL_RANK", "0")
    return int(text) if text.isdigit() else 0


@contextmanager
def lost_peers() -> Iterator[None]:
    """Turn the failure of another process, seen from here, into a line.

    Raises:
        InfrastructureError: If another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip()
        if not isinstance(error, dist.DistError) and not any(word in text for word in _LOST):
            raise
        first = text.splitlines()[0] if text else type(error).__name__
        raise InfrastructureError(
            f"another process of this run is gone ({first[:160]}); start it again, it goes on from "
            "the last checkpoint"
        ) from error
