"""What the network runs on: a device by its name; a CPU's threads, and the memory kept there."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from bigtransfer.errors import ConfigError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_MOST = (1 << 31) - 1
_LARGEST_BLOCK = 32 << 20  # glibc takes no more


def device_named(wanted: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here.

    Raises:
        ConfigError: If PyTorch sees no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda, but PyTorch sees no GPU here; choose device: auto, or install PyTorch's "
            "CUDA build"
        )
    return torch.device("cpu" if wanted == "cpu" or not torch.cuda.is_available() else "cuda")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 is multiplied by a device as such; elsewhere it is emulated, slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def use_cpu(threads: int) -> None:
    """Compute with so many threads, and keep what a step frees for the next one.

    Left alone, glibc hands freed memory back to the system, which has to zero it page by page when
    the next step asks for as much again. Results are the same either way. Another C library, and
    whoever has tuned glibc's `malloc` by the environment, is left alone.

    Args:
        threads: For PyTorch's operations, at least 1.

    Source:
        mallopt(3): M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes. Decision 0022.
    """
    torch.set_num_threads(threads)
    if sys.platform != "linux" or any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_TRIM_THRESHOLD, _MOST)


def most_memory() -> int:
    """Return the most bytes that this process has held so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
