"""Which of our own GPU kernels run for a tensor; each can be switched off, the plain path is there.

`BIGTRANSFER_PLAIN=max_pool,images` in the environment switches two of them off; `all`, all.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from bigtransfer.errors import ConfigError

KERNELS = ("group_norm_relu", "add_group_norm_relu", "one_pass", "max_pool", "images", "root")
SWITCH = "BIGTRANSFER_PLAIN"
# Found once, here: dynamo traces who asks, and ignores a cache in what it traces.
HAS_TRITON = find_spec("triton") is not None
_PLAIN = frozenset(filter(None, os.environ.get(SWITCH, "").replace(" ", "").split(",")))


def uses_kernel(name: str, *tensors: Tensor) -> bool:
    """Say whether one of `KERNELS` runs for these tensors.

    Args:
        name: The kernel.
        tensors: On one device; floating ones of one dtype and in channels_last, or uint8.

    Raises:
        ConfigError: If the environment switches off what is no kernel.
    """
    return (
        HAS_TRITON
        and is_wanted(name)
        and all(on_gpu(t) and t.dtype == tensors[0].dtype and _suits(t) for t in tensors)
    )


def is_wanted(name: str) -> bool:
    """Say whether the environment leaves one of `KERNELS` switched on.

    Raises:
        ConfigError: As `uses_kernel` does.
    """
    if _PLAIN:
        _require_known()
    return name not in _PLAIN and "all" not in _PLAIN


def on_gpu(x: Tensor) -> bool:
    """Say whether a tensor lies on a GPU; one seam, so that a test may trace as if it did."""
    return x.is_cuda


def _suits(x: Tensor) -> bool:
    if x.dtype == torch.uint8:
        return x.is_contiguous()
    known = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return known and x.is_contiguous(memory_format=torch.channels_last)


def _require_known() -> None:
    if unknown := sorted(_PLAIN - {*KERNELS, "all"}):
        raise ConfigError(
            f"{SWITCH} names {unknown[0]!r}, which is no kernel; it takes "
            f"{', '.join(KERNELS)}, or all"
        )
