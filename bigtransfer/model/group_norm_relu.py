"""GroupNorm followed by ReLU: the one operation beside the convolutions that costs time and memory.

Three ways to the same numbers. Plain: PyTorch's group norm and an in-place ReLU. Triton: both in
one pass, channels_last in and out, on CUDA, and the sum of a residual with them. Recomputed: the
ReLU's output, which the convolutions after it need for their gradients, is made again in the
backward pass instead of being kept; it works on top of either of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer.model.convolution import convolve, convolve_backward
from bigtransfer.model.kernels import uses_kernel


def group_norm_relu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Return relu(norm(x)).

    Args:
        norm: Its gain and offset, groups and epsilon are used.
        x: (B, C, H, W), any floating dtype; statistics are taken in float32 or wider.

    Returns:
        Tensor of the same shape and dtype (under CUDA autocast and without Triton: float32).
    """
    if uses_kernel("group_norm_relu", x):
        from bigtransfer.model.triton_group_norm import forward

        y: Tensor = forward(x, norm.weight, norm.bias, norm.num_groups, norm.eps)[0]
        return y
    return F.relu(norm(x), inplace=True)


def add_group_norm_relu(norm: nn.GroupNorm, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return x + other, and relu(norm(x + other)).

    Args:
        norm: As in `group_norm_relu`.
        x: (B, C, H, W); may become the sum itself.
        other: The same shape.
    """
    if adds_in_kernel(x, other):
        from bigtransfer.model.triton_group_norm import add_forward

        found = add_forward(x, other, norm.weight, norm.bias, norm.num_groups, norm.eps)
        return found[0], found[1]
    total = x.add_(other)  # nobody's gradient needs x itself
    return total, group_norm_relu(norm, total)


def adds_in_kernel(x: Tensor, other: Tensor) -> bool:
    """Say whether a sum and its norm are one kernel, so that the sum had better wait for it."""
    return uses_kernel("add_group_norm_relu", x, other) and uses_kernel("group_norm_relu", x)


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
    if uses_kernel("group_norm_relu", x):
        from bigtransfer.model.triton_group_norm import forward

        found: tuple[Tensor, Tensor, Tensor] = forward(x, gain, offset, groups, eps)
        return found
    y, mean, rstd = _plain(x, gain, offset, groups, eps)
    return y.relu_(), mean, rstd


def _again(
    x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, groups: int, eps: float
) -> Tensor:
    if uses_kernel("group_norm_relu", x):
        from bigtransfer.model.triton_group_norm import apply

        y: Tensor = apply(x, gain, offset, mean, rstd, groups)
        return y
    return _plain(x, gain, offset, groups, eps)[0].relu_()


def _plain(
    x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else None
    y, mean, rstd = torch.native_group_norm(
        _ordered(x), _as(gain, x), _as(offset, x), *_sizes(x), groups, eps
    )
    return y.contiguous(memory_format=layout) if layout and x.is_cuda else y, mean, rstd


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
    if uses_kernel("group_norm_relu", x):
        from bigtransfer.model.triton_group_norm import backward

        found: tuple[Tensor, Tensor, Tensor] = backward(dy, x, gain, offset, mean, rstd, groups)
        return found
    dy = torch.ops.aten.threshold_backward(dy, y, 0)
    dx, dgain, doffset = torch.ops.aten.native_group_norm_backward(
        _ordered(dy), _ordered(x), mean, rstd, _as(gain, x), *_sizes(x), groups, (True,) * 3
    )
    return dx, dgain.to(gain.dtype), doffset.to(offset.dtype)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    batch, channels, height, width = x.shape
    return batch, channels, height * width


def _ordered(x: Tensor) -> Tensor:
    # CUDA's own kernel, which `F.group_norm` calls by the same rule, reads NCHW alone.
    return x.contiguous() if x.is_cuda else x


def _as(values: Tensor, x: Tensor) -> Tensor:
    # CUDA's own kernel wants gain and offset in the dtype of x; the CPU's takes float32 as well.
    return values.to(x.dtype) if x.is_cuda else values
