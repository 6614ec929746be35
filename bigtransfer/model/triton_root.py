"""What stands before the first block, in Triton: images as the network reads them, root, pool.

A 7x7 convolution of three channels leaves a GPU's matrix units mostly idle. With stride 2 it is the
same sum as a 4x4 one of the twelve channels that each 2x2 places have together; these are laid side
by side here, filled up to sixteen.

The pool is BiT's: 3x3, stride 2, padded by zeros. Which of the nine places was the largest is kept
in a byte, so that the backward pass gathers and nothing is added by two programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigtransfer.model.triton_group_norm import launch

_LANES = 64
_ELEMENTS = 1024


@triton.jit
def _pool(x, y, kept, H, W, OH, OW, C, BC: tl.constexpr, BR: tl.constexpr):
    """Write the largest of each window, and which it was: 0 to 8, row by row."""
    n, block, pid = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = pid * BC + tl.arange(0, BC)
    place = block * BR + tl.arange(0, BR)
    ok = (place < OH * OW)[:, None] & (channel < C)[None, :]
    top, left = place // OW * 2 - 1, place % OW * 2 - 1
    base = x + n.to(tl.int64) * H * W * C
    best = tl.full((BR, BC), -float("inf"), tl.float32)
    which = tl.zeros((BR, BC), tl.int32)
    for number in tl.static_range(9):
        row, column = top + number // 3, left + number % 3
        inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
        own = base + (row * W + column)[:, None] * C + channel[None, :]
        value = tl.load(own, mask=ok & inside[:, None], other=0.0).to(tl.float32)
        # PyTorch's rule: the first of equals; what is no number is passed on.
        larger = (value > best) | (value != value)
        best = tl.where(larger, value, best)
        which = tl.where(larger, number, which)
    out = n.to(tl.int64) * OH * OW * C + place[:, None] * C + channel[None, :]
    tl.store(y + out, best.to(y.dtype.element_ty), mask=ok)
    tl.store(kept + out, which.to(tl.uint8), mask=ok)


@triton.jit
def _pool_backward(dy, kept, dx, H, W, OH, OW, C, BC: tl.constexpr, BR: tl.constexpr):
    """Write for each place the gradients of the windows, four at most, that it was largest of."""
    n, block, pid = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = pid * BC + tl.arange(0, BC)
    place = block * BR + tl.arange(0, BR)
    ok = (place < H * W)[:, None] & (channel < C)[None, :]
    row, column = place // W, place % W
    base = n.to(tl.int64) * OH * OW * C
    total = tl.zeros((BR, BC), tl.float32)
    for number in tl.static_range(4):
        down, right = row // 2 + number // 2, column // 2 + number % 2
        # A window begins at 2 * down - 1; an even row is in the one window of its half alone.
        own_row, own_column = row - 2 * down + 1, column - 2 * right + 1
        inside = (own_row >= 0) & (own_column >= 0) & (down < OH) & (right < OW)
        mask = ok & inside[:, None]
        own = base + (down * OW + right)[:, None] * C + channel[None, :]
        which = tl.load(kept + own, mask=mask, other=255).to(tl.int32)
        upper = tl.load(dy + own, mask=mask, other=0.0).to(tl.float32)
        total += tl.where(which == (own_row * 3 + own_column)[:, None], upper, 0.0)
    out = n.to(tl.int64) * H * W * C + place[:, None] * C + channel[None, :]
    tl.store(dx + out, total.to(dx.dtype.element_ty), mask=ok)


@triton.jit
def _images(images, partners, lam, out, size, MIXES: tl.constexpr, B: tl.constexpr):
    """Write lam * image + (1 - lam) * partner, brought from [0, 255] to [-1, 1]."""
    place = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = place < size
    value = tl.div_rn(tl.load(images + place, mask=mask, other=0).to(tl.float32) - 127.5, 127.5)
    if MIXES:
        other = tl.load(partners + place, mask=mask, other=0).to(tl.float32)
        other = tl.div_rn(other - 127.5, 127.5)
        share = tl.load(lam)
        # As torch.lerp: exact at both ends.
        apart = value - other
        value = tl.where(share < 0.5, other + share * apart, value - apart * (1 - share))
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _space_to_depth(x, out, H, W, OH, OW, BR: tl.constexpr):
    """Write 2x2 places of three channels as one of sixteen, in a frame of zeros."""
    n = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BR + tl.arange(0, BR)
    lane = tl.arange(0, 16)
    row = (place // OW - 2)[:, None] * 2 + (lane // 6)[None, :]
    column = (place % OW - 2)[:, None] * 2 + (lane // 3 % 2)[None, :]
    inside = (row >= 0) & (row < H) & (column >= 0) & (column < W) & (lane < 12)[None, :]
    own = x + n * H * W * 3 + (row * W + column) * 3 + (lane % 3)[None, :]
    value = tl.load(own, mask=inside & (place < OH * OW)[:, None], other=0.0)
    to = out + n * OH * OW * 16 + place[:, None] * 16 + lane[None, :]
    tl.store(to, value.to(out.dtype.element_ty), mask=(place < OH * OW)[:, None])


def _blocks(channels: int) -> tuple[int, int]:
    lanes = min(_LANES, triton.next_power_of_2(channels))
    return lanes, _ELEMENTS // lanes


@torch.library.triton_op("bigtransfer::space_to_depth", mutates_args=())
def space_to_depth(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images as `depth_kernel` convolves them; they get no gradient.

    Args:
        x: (B, 3, H, W) in channels_last.
        dtype: Of what is returned.

    Returns:
        (B, 16, ceil(H / 2) + 3, ceil(W / 2) + 3) in channels_last: two frames of zeros before, one
        after; channel 6p + 3q + c is place (p, q) of colour c, the last four are zero.
    """
    batch, _, height, width = x.shape
    sides = triton.cdiv(height, 2) + 3, triton.cdiv(width, 2) + 3
    last = torch.channels_last
    out = torch.empty((batch, 16, *sides), dtype=dtype, device=x.device, memory_format=last)
    block = _ELEMENTS // 16
    grid = (batch, triton.cdiv(sides[0] * sides[1], block))
    launch(_space_to_depth, grid)(x, out, height, width, *sides, block)
    return out


@torch.library.triton_op("bigtransfer::max_pool", mutates_args=())
def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 3x3 maximum with stride 2 and a frame of zeros, and which places were the largest.

    Args:
        x: (B, C, H, W) in channels_last.

    Returns:
        (B, C, H', W') with H' = (H - 1) // 2 + 1, in the dtype of `x`, and uint8 of that shape.
    """
    batch, channels, height, width = x.shape
    out = (batch, channels, (height - 1) // 2 + 1, (width - 1) // 2 + 1)
    last, device = torch.channels_last, x.device
    y = torch.empty(out, dtype=x.dtype, device=device, memory_format=last)
    kept = torch.empty(out, dtype=torch.uint8, device=device, memory_format=last)
    lanes, rows = _blocks(channels)
    grid = (batch, triton.cdiv(out[2] * out[3], rows), triton.cdiv(channels, lanes))
    launch(_pool, grid)(x, y, kept, height, width, *out[2:], channels, lanes, rows)
    return y, kept


@torch.library.triton_op("bigtransfer::max_pool_backward", mutates_args=())
def max_pool_backward(dy: Tensor, kept: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient of the (B, C, height, width) that `max_pool` was given."""
    dy = dy.contiguous(memory_format=torch.channels_last)
    batch, channels, own_height, own_width = dy.shape
    dx = torch.empty(
        (batch, channels, height, width),
        dtype=dy.dtype,
        device=dy.device,
        memory_format=torch.channels_last,
    )
    lanes, rows = _blocks(channels)
    grid = (batch, triton.cdiv(height * width, rows), triton.cdiv(channels, lanes))
    launch(_pool_backward, grid)(
        dy, kept, dx, height, width, own_height, own_width, channels, lanes, rows
    )
    return dx


@torch.library.triton_op("bigtransfer::images", mutates_args=())
def images_as(
    images: Tensor, dtype: torch.dtype, partners: Tensor | None = None, lam: Tensor | None = None
) -> Tensor:
    """Return uint8 images (B, H, W, 3), mixed or not, as (B, 3, H, W) in [-1, 1].

    Args:
        images: Contiguous.
        dtype: Of what is returned, in channels_last.
        partners: Of the same shape; mixed in by 1 - lam.
        lam: MixUp's lambda, a float32 scalar on the device.
    """
    batch, height, width, channels = images.shape
    out = torch.empty((batch, height, width, channels), dtype=dtype, device=images.device)
    size, block = images.numel(), _ELEMENTS * 2
    mixes = partners is not None and lam is not None
    launch(_images, (triton.cdiv(size, block),))(
        images,
        partners if mixes else images,
        lam if mixes else images,
        out,
        size,
        mixes,
        block,
    )
    return out.permute(0, 3, 1, 2)


def _keep(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.sides = inputs[0].shape[2:]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, dy: Tensor, _: Tensor) -> Tensor:
    (kept,) = ctx.saved_tensors
    gradient: Tensor = max_pool_backward(dy, kept, *ctx.sides)
    return gradient


max_pool.register_autograd(_differentiate, setup_context=_keep)
