"""Where a network is trained: the one seam between the loop and CPU, CUDA or TPU.

PyTorch knows the first two. A TPU runs the whole step as one compiled JAX program (`tpu`); for
everything else, evaluation and checkpoints, its network lies on the CPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from bigtransfer.errors import ConfigError
from bigtransfer.model.peaks import peak_flops
from bigtransfer.model.processor import device_named

_TRIED_ALGORITHMS = 4
"""Of those that cuDNN's heuristics put first; all take half a minute with large networks."""
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Device:
    """Where steps are done."""

    torch: torch.device = torch.device("cpu")
    is_tpu: bool = False

    @property
    def is_cuda(self) -> bool:
        """Say whether it is a GPU."""
        return self.torch.type == "cuda"

    @property
    def name(self) -> str:
        """Return its name, for people."""
        return torch.cuda.get_device_name(self.torch) if self.is_cuda else "CPU"

    @property
    def peak_flops(self) -> float | None:
        """Return the FLOP/s that 100 % utilisation is, where it is known."""
        return peak_flops(self.name) if self.is_cuda else None

    @property
    def memory_bytes(self) -> int | None:
        """Return the memory of a GPU."""
        if not self.is_cuda:
            return None
        return int(torch.cuda.get_device_properties(self.torch).total_memory)

    def autocast(self, precision: str) -> AbstractContextManager[None]:
        """Return the context of a forward pass in `float32` or `bfloat16`."""
        enabled = precision == "bfloat16"
        return torch.autocast(self.torch.type, torch.bfloat16, enabled=enabled)

    def synchronize(self) -> None:
        """Wait until everything that was asked for is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def release(self) -> None:
        """Give back what PyTorch keeps of freed memory."""
        if self.is_cuda:
            torch.cuda.empty_cache()


def choose_device(wanted: str, local_rank: int = 0) -> Device:
    """Return the device that `wanted` names; `auto` is a GPU where there is one.

    Args:
        wanted: `auto`, `cpu`, `cuda` or `tpu`.
        local_rank: Which GPU of the machine.

    Raises:
        ConfigError: If there is no such device.
    """
    if wanted == "tpu":
        return Device(is_tpu=True)
    if device_named(wanted).type == "cpu":
        return Device()
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; lower --nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
    tune_gpu()
    return Device(torch.device("cuda", local_rank))


def tune_gpu() -> None:
    """Let cuDNN try a few of its algorithms for each shape and keep the fastest (decision 0033).

    Which one wins may differ from start to start, and some add up in any order: on a GPU a resumed
    run is equal but for rounding.
    """
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = _TRIED_ALGORITHMS
    torch.backends.cudnn.deterministic = False


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error of PyTorch's means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
