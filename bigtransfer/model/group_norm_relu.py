"""GroupNorm followed by ReLU: the one operation beside the convolutions that costs time and memory.

Three ways to the same numbers. Plain: PyTorch's group norm and an in-place ReLU. Triton: both in
one pass, channels_last in and out, on CUDA. Recomputed: the ReLU's output, which the convolutions
after it need for their gradients, is made again in the backward pass instead of being kept; it
works on top of either of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer.model.convolution import convolve, convolve_backward

HAS_TRITON = find_spec("triton") is not None
"""Found once, here: dynamo traces `uses_triton`, and ignores a cache in what it traces."""


def group_norm_relu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Return relu(norm(x)).

    Args:
        norm: Its gain and offset, groups and epsilon are used.
        x: (B, C, H, W), any floating dtype; statistics are taken in float32 or wider.

    Returns:
        Tensor of the same shape and dtype (under CUDA autocast and without Triton: float32).
    """
    if uses_triton(x):
        from bigtransfer.model.triton_group_norm import forward

        y: Tensor = forward(x, norm.weight, norm.bias, norm.num_groups, norm.eps)[0]
        return y
    return F.relu(norm(x), inplace=True)


def group_norm_relu_convs(
    norm: nn.GroupNorm,
    x: Tensor,
    kernels: Sequence[Tensor],
    strides: Sequence[tuple[int, int]],
    paddings: Sequence[tuple[int, int]],
) -> tuple[Tensor, ...]:
    """Return conv(relu(norm(x))) for each kernel, keeping x alone for the backward pass.

    The gradients are those of the plain operations, bit for bit.

    Args:
        norm: GroupNorm before the convolutions.
        x: (B, C, H, W).
        kernels: (O, C, kh, kw) each, in the dtype of `x`.
        strides: One per kernel.
        paddings: One per kernel, pixels.
    """
    outputs: tuple[Tensor, ...] = _Recomputed.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        x,
        norm.weight,
        norm.bias,
        norm.num_groups,
        norm.eps,
        tuple(strides),
        tuple(paddings),
        *kernels,
    )
    return outputs


def uses_triton(x: Tensor) -> bool:
    """Say whether the fused kernel runs for this tensor."""
    return (
        x.is_cuda
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and HAS_TRITON
    )


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        offset: Tensor,
        groups: int,
        eps: float,
        strides: tuple[tuple[int, int], ...],
        paddings: tuple[tuple[int, int], ...],
        *kernels: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            y, mean, rstd = _forward(x, gain, offset, groups, eps)
            outputs = tuple(
                convolve(y, kernel, stride, padding)
                for kernel, stride, padding in zip(kernels, strides, paddings, strict=True)
            )
        ctx.save_for_backward(x, gain, offset, mean, rstd, *kernels)
        ctx.settings = (groups, eps, strides, paddings)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, offset, mean, rstd, *kernels = ctx.saved_tensors
        groups, eps, strides, paddings = ctx.settings
        y = _again(x, gain, offset, mean, rstd, groups, eps)
        dy: Tensor | None = None
        kernel_gradients: list[Tensor | None] = []
        for upper, kernel, stride, padding in zip(
            gradients, kernels, strides, paddings, strict=True
        ):
            part, dkernel = convolve_backward(upper, y, kernel, stride, padding)
            dy = part if dy is None else dy.add_(part)
            kernel_gradients.append(dkernel)
        dx, dgain, doffset = _backward(dy, y, x, gain, offset, mean, rstd, groups)
        return dx, dgain, doffset, None, None, None, None, *kernel_gradients


def _forward(
    x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if uses_triton(x):
        from bigtransfer.model.triton_group_norm import forward

        found: tuple[Tensor, Tensor, Tensor] = forward(x, gain, offset, groups, eps)
        return found
    y, mean, rstd = torch.native_group_norm(
        x, _as(gain, x), _as(offset, x), *_sizes(x), groups, eps
    )
    return y.relu_(), mean, rstd


def _again(
    x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, groups: int, eps: float
) -> Tensor:
    if uses_triton(x):
        from bigtransfer.model.triton_group_norm import apply

        y: Tensor = apply(x, gain, offset, mean, rstd, groups)
        return y
    return torch.native_group_norm(x, _as(gain, x), _as(offset, x), *_sizes(x), groups, eps)[
        0
    ].relu_()


def _backward(
    dy: Tensor | None,
    y: Tensor,
    x: Tensor,
    gain: Tensor,
    offset: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    assert dy is not None, "at least one convolution reads the norm"
    if uses_triton(x):
        from bigtransfer.model.triton_group_norm import backward

        found: tuple[Tensor, Tensor, Tensor] = backward(dy, x, gain, offset, mean, rstd, groups)
        return found
    dy = torch.ops.aten.threshold_backward(dy, y, 0)
    dx, dgain, doffset = torch.ops.aten.native_group_norm_backward(
        dy, x, mean, rstd, _as(gain, x), *_sizes(x), groups, (True, True, True)
    )
    return dx, dgain.to(gain.dtype), doffset.to(offset.dtype)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    batch, channels, height, width = x.shape
    return batch, channels, height * width


def _as(values: Tensor, x: Tensor) -> Tensor:
    # CUDA's own kernel wants gain and offset in the dtype of x; the CPU's takes float32 as well.
    return values.to(x.dtype) if x.is_cuda else values
