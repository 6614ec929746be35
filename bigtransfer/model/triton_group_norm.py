"""GroupNorm + ReLU in Triton: channels_last, any number of channels per group, float32 statistics.

PyTorch's CUDA group norm works on NCHW alone and autocast runs it in float32; around every
convolution of a channels_last network that means two layout copies and ten bytes per element. Here
x is read as it lies, (B, H*W, C), and written once.

A program owns 64 neighbouring channels, whole cache lines whatever the width of a group, and walks
over a part of the rows. Forward: mean and squares of each channel, merged into groups by a small
second kernel (Chan et al. 1979), then applied. Backward: per-channel sums, which are the gradients
of gain and offset too, merged into groups, then dx; the ReLU's mask is recomputed from x. So
(x, mean, rstd) is all that is kept.

With `TRITON_INTERPRET=1` the same kernels run on a CPU; the tests do that.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_LANES = 64
_ELEMENTS = 2048
_MERGED = 256
_PROGRAMS_WANTED = 1024
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _statistics(x, part, rows, C, per_split, S, BC: tl.constexpr, BR: tl.constexpr):
    """Write each channel's mean and sum of squares around it, per split of the rows."""
    n, split, pid = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = pid * BC + tl.arange(0, BC)
    ok = channel < C
    base = x + n.to(tl.int64) * rows * C
    begin = split * per_split
    end = tl.minimum(begin + per_split, rows)
    # Sums are taken around the first row, so that a large mean does not cancel.
    shift = tl.load(base + begin * C + channel, mask=ok, other=0.0).to(tl.float32)
    total = tl.zeros((BR, BC), tl.float32)
    squares = tl.zeros((BR, BC), tl.float32)
    for start in range(begin, end, BR):
        row = start + tl.arange(0, BR)
        mask = (row < end)[:, None] & ok[None, :]
        value = tl.load(base + row[:, None] * C + channel[None, :], mask=mask, other=0.0)
        centred = tl.where(mask, value.to(tl.float32) - shift[None, :], 0.0)
        total += centred
        squares += centred * centred
    sums = tl.sum(total, 0)
    mean = sums / (end - begin).to(tl.float32)
    out = part + (n * S + split) * 2 * C + channel
    tl.store(out, shift + mean, mask=ok)
    tl.store(out + C, tl.sum(squares, 0) - sums * mean, mask=ok)


@triton.jit
def _merge(
    part,
    mean_out,
    rstd_out,
    rows,
    C,
    per_split,
    S,
    eps,
    G: tl.constexpr,
    CPG: tl.constexpr,
    CPP: tl.constexpr,
    BG: tl.constexpr,
):
    """Merge channels and splits into one mean and 1/deviation per group."""
    n, pid = tl.program_id(0), tl.program_id(1)
    group = pid * BG + tl.arange(0, BG)
    within = tl.arange(0, CPP)
    channel = group[:, None] * CPG + within[None, :]
    ok = (group < G)[:, None] & (within < CPG)[None, :]
    count = tl.zeros((BG,), tl.float32)
    mean = tl.zeros((BG,), tl.float32)
    second = tl.zeros((BG,), tl.float32)
    for split in range(0, S):
        begin = split * per_split
        own_rows = (tl.minimum(begin + per_split, rows) - begin).to(tl.float32)
        place = part + (n * S + split) * 2 * C + channel
        means = tl.load(place, mask=ok, other=0.0)
        own_mean = tl.sum(means, 1) / CPG
        apart = tl.where(ok, means - own_mean[:, None], 0.0)
        own_second = tl.sum(tl.load(place + C, mask=ok, other=0.0), 1)
        own_second += own_rows * tl.sum(apart * apart, 1)
        more = own_rows * CPG
        both = count + more
        delta = own_mean - mean
        second += own_second + delta * delta * count * more / both
        mean += delta * more / both
        count = both
    tl.store(mean_out + n * G + group, mean, mask=group < G)
    tl.store(rstd_out + n * G + group, tl.rsqrt(second / count + eps), mask=group < G)


@triton.jit
def _apply(
    x,
    y,
    mean,
    rstd,
    gain,
    offset,
    rows,
    C,
    per_split,
    G: tl.constexpr,
    CPG: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    n, split, pid = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = pid * BC + tl.arange(0, BC)
    ok = channel < C
    group = n * G + channel // CPG
    scale = tl.load(gain + channel, mask=ok, other=0.0).to(tl.float32)
    scale *= tl.load(rstd + group, mask=ok, other=0.0)
    centre = tl.load(mean + group, mask=ok, other=0.0)
    add = tl.load(offset + channel, mask=ok, other=0.0).to(tl.float32)
    base = n.to(tl.int64) * rows * C
    begin = split * per_split
    end = tl.minimum(begin + per_split, rows)
    for start in range(begin, end, BR):
        row = start + tl.arange(0, BR)
        mask = (row < end)[:, None] & ok[None, :]
        place = base + row[:, None] * C + channel[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        out = tl.maximum((value - centre[None, :]) * scale[None, :] + add[None, :], 0.0)
        tl.store(y + place, out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward_sums(
    x,
    dy,
    part,
    mean,
    rstd,
    gain,
    offset,
    rows,
    C,
    per_split,
    S,
    G: tl.constexpr,
    CPG: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    """Write each channel's sums of dy and of dy * normal(x), where the ReLU is open."""
    n, split, pid = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = pid * BC + tl.arange(0, BC)
    ok = channel < C
    group = n * G + channel // CPG
    centre = tl.load(mean + group, mask=ok, other=0.0)
    scale = tl.load(rstd + group, mask=ok, other=0.0)
    ga = tl.load(gain + channel, mask=ok, other=0.0).to(tl.float32)
    be = tl.load(offset + channel, mask=ok, other=0.0).to(tl.float32)
    base = n.to(tl.int64) * rows * C
    begin = split * per_split
    end = tl.minimum(begin + per_split, rows)
    plain = tl.zeros((BR, BC), tl.float32)
    weighted = tl.zeros((BR, BC), tl.float32)
    for start in range(begin, end, BR):
        row = start + tl.arange(0, BR)
        mask = (row < end)[:, None] & ok[None, :]
        place = base + row[:, None] * C + channel[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        normal = (value - centre[None, :]) * scale[None, :]
        upper = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
        upper = tl.where(mask & (normal * ga[None, :] + be[None, :] > 0), upper, 0.0)
        plain += upper
        weighted += upper * normal
    out = part + (n * S + split) * 2 * C + channel
    tl.store(out, tl.sum(plain, 0), mask=ok)
    tl.store(out + C, tl.sum(weighted, 0), mask=ok)


@triton.jit
def _backward_merge(
    part,
    gain,
    sums,
    rows,
    C,
    S,
    G: tl.constexpr,
    CPG: tl.constexpr,
    CPP: tl.constexpr,
    BG: tl.constexpr,
):
    """Write each group's means of dy * gain and of dy * gain * normal(x)."""
    n, pid = tl.program_id(0), tl.program_id(1)
    group = pid * BG + tl.arange(0, BG)
    within = tl.arange(0, CPP)
    channel = group[:, None] * CPG + within[None, :]
    ok = (group < G)[:, None] & (within < CPG)[None, :]
    plain = tl.zeros((BG, CPP), tl.float32)
    weighted = tl.zeros((BG, CPP), tl.float32)
    for split in range(0, S):
        place = part + (n * S + split) * 2 * C + channel
        plain += tl.load(place, mask=ok, other=0.0)
        weighted += tl.load(place + C, mask=ok, other=0.0)
    ga = tl.load(gain + channel, mask=ok, other=0.0).to(tl.float32)
    # Triton makes a Python number of an argument that is 1: `.to` would not be there.
    size = rows * CPG * 1.0
    out = sums + (n * G + group) * 2
    tl.store(out, tl.sum(plain * ga, 1) / size, mask=group < G)
    tl.store(out + 1, tl.sum(weighted * ga, 1) / size, mask=group < G)


@triton.jit
def _backward_x(
    x,
    dy,
    dx,
    sums,
    mean,
    rstd,
    gain,
    offset,
    rows,
    C,
    per_split,
    G: tl.constexpr,
    CPG: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    n, split, pid = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = pid * BC + tl.arange(0, BC)
    ok = channel < C
    group = n * G + channel // CPG
    centre = tl.load(mean + group, mask=ok, other=0.0)
    scale = tl.load(rstd + group, mask=ok, other=0.0)
    ga = tl.load(gain + channel, mask=ok, other=0.0).to(tl.float32)
    be = tl.load(offset + channel, mask=ok, other=0.0).to(tl.float32)
    first = tl.load(sums + group * 2, mask=ok, other=0.0)
    second = tl.load(sums + group * 2 + 1, mask=ok, other=0.0)
    base = n.to(tl.int64) * rows * C
    begin = split * per_split
    end = tl.minimum(begin + per_split, rows)
    for start in range(begin, end, BR):
        row = start + tl.arange(0, BR)
        mask = (row < end)[:, None] & ok[None, :]
        place = base + row[:, None] * C + channel[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        normal = (value - centre[None, :]) * scale[None, :]
        upper = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
        upper = tl.where(normal * ga[None, :] + be[None, :] > 0, upper, 0.0) * ga[None, :]
        out = (upper - first[None, :] - normal * second[None, :]) * scale[None, :]
        tl.store(dx + place, out.to(dx.dtype.element_ty), mask=mask)


class _Plan:
    """How a tensor is dealt to programs."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.batch, self.channels, height, width = x.shape
        self.rows = height * width
        self.groups = groups
        self.per_group = self.channels // groups
        self.padded = triton.next_power_of_2(self.per_group)
        self.merged = max(1, min(triton.next_power_of_2(groups), _MERGED // self.padded))
        self.lanes = min(_LANES, triton.next_power_of_2(self.channels))
        self.block_rows = _ELEMENTS // self.lanes
        tiles = triton.cdiv(self.channels, self.lanes)
        blocks = triton.cdiv(self.rows, self.block_rows)
        splits = max(1, min(blocks, _PROGRAMS_WANTED // max(1, self.batch * tiles)))
        self.per_split = triton.cdiv(blocks, splits) * self.block_rows
        self.splits = triton.cdiv(self.rows, self.per_split)
        self.grid = (self.batch, self.splits, tiles)
        self.merge_grid = (self.batch, triton.cdiv(groups, self.merged))

    @property
    def by_group(self) -> tuple[int, int, int, int]:
        return self.groups, self.per_group, self.padded, self.merged

    @property
    def by_channel(self) -> tuple[int, int, int, int]:
        return self.groups, self.per_group, self.lanes, self.block_rows


def _launch(kernel: Any, grid: tuple[int, ...]) -> Any:
    return (kernel if _INTERPRETED else torch.library.wrap_triton(kernel))[grid]


@torch.library.triton_op("bigtransfer::group_norm_relu", mutates_args=())
def forward(
    x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return relu(group_norm(x)), and mean and 1/deviation (B, groups) in float32.

    Args:
        x: (B, C, H, W) in channels_last.
        gain: (C,).
        offset: (C,).
        groups: Divides C.
        eps: Added to the variance inside the root.
    """
    plan = _Plan(x, groups)
    part = x.new_empty((plan.batch, plan.splits, 2, plan.channels), dtype=torch.float32)
    mean = x.new_empty((plan.batch, groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    y = torch.empty_like(x)
    _launch(_statistics, plan.grid)(
        x, part, plan.rows, plan.channels, plan.per_split, plan.splits, plan.lanes, plan.block_rows
    )
    _launch(_merge, plan.merge_grid)(
        part,
        mean,
        rstd,
        plan.rows,
        plan.channels,
        plan.per_split,
        plan.splits,
        eps,
        *plan.by_group,
    )
    _launch(_apply, plan.grid)(
        x, y, mean, rstd, gain, offset, plan.rows, plan.channels, plan.per_split, *plan.by_channel
    )
    return y, mean, rstd


@torch.library.triton_op("bigtransfer::group_norm_relu_apply", mutates_args=())
def apply(
    x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> Tensor:
    """Return what `forward` gave, from the statistics it gave."""
    plan = _Plan(x, groups)
    y = torch.empty_like(x)
    _launch(_apply, plan.grid)(
        x, y, mean, rstd, gain, offset, plan.rows, plan.channels, plan.per_split, *plan.by_channel
    )
    return y


@torch.library.triton_op("bigtransfer::group_norm_relu_backward", mutates_args=())
def backward(
    dy: Tensor,
    x: Tensor,
    gain: Tensor,
    offset: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, gain and offset.

    Args:
        dy: Gradient of the output of `forward`, same shape as `x`.
        x: (B, C, H, W) in channels_last.
        gain: (C,).
        offset: (C,).
        mean: From `forward`.
        rstd: From `forward`.
        groups: Divides C.
    """
    plan = _Plan(x, groups)
    dy = dy.contiguous(memory_format=torch.channels_last)
    part = x.new_empty((plan.batch, plan.splits, 2, plan.channels), dtype=torch.float32)
    dx = torch.empty_like(x)
    _launch(_backward_sums, plan.grid)(
        x,
        dy,
        part,
        mean,
        rstd,
        gain,
        offset,
        plan.rows,
        plan.channels,
        plan.per_split,
        plan.splits,
        *plan.by_channel,
    )
    sums = x.new_empty((plan.batch, groups, 2), dtype=torch.float32)
    _launch(_backward_merge, plan.merge_grid)(
        part, gain, sums, plan.rows, plan.channels, plan.splits, *plan.by_group
    )
    _launch(_backward_x, plan.grid)(
        x,
        dy,
        dx,
        sums,
        mean,
        rstd,
        gain,
        offset,
        plan.rows,
        plan.channels,
        plan.per_split,
        *plan.by_channel,
    )
    doffset, dgain = part.sum((0, 1)).unbind()
    return dx, dgain.to(gain.dtype, copy=True), doffset.to(offset.dtype, copy=True)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, gain, offset, groups, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, gain, offset, mean, rstd)
    ctx.groups = groups


def _differentiate(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, gain, offset, mean, rstd = ctx.saved_tensors
    dx, dgain, doffset = backward(dy, x, gain, offset, mean, rstd, ctx.groups)
    return dx, dgain, doffset, None, None


forward.register_autograd(_differentiate, setup_context=_keep)
