"""GroupNorm + ReLU in Triton: channels_last, any number of channels per group, float32 statistics.

PyTorch's CUDA group norm works on NCHW alone and autocast runs it in float32; around every
convolution of a channels_last network that means two layout copies and ten bytes per element. Here
x is read as it lies, (B, H*W, C), and written once.

A program owns 128 neighbouring channels, whole cache lines whatever the width of a group, and walks
over a part of the rows. Forward: mean and squares of each channel, merged into groups by a small
second kernel (Chan et al. 1979), then applied. Backward: per-channel sums, which are the gradients
of gain and offset too, merged into groups, then dx; the ReLU's mask is recomputed from x. So
(x, mean, rstd) is all that is kept.

Where all rows of whole groups fit into the registers of a program (7x7 and 14x14 places, as in the
last blocks), one kernel reads x once and does all of the forward pass, and one reads x and dy once
and does all of the backward pass but the sums over the batch.

Where x is the sum of a residual, the first kernel makes the sum on its way, and the last one adds
the gradient that comes past the norm: two passes over memory less.

With `TRITON_INTERPRET=1` the same kernels run on a CPU; the tests do that.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigtransfer.model.kernels import is_wanted

_LANES = 128
_ELEMENTS = 4096
"""Found on an H200 (`benchmarks/norm_kernels.py`): a tenth to a fifth faster than half of both."""
_MERGED = 256
_PROGRAMS_WANTED = 1024
_SUMMED_LANES, _SUMMED_ROWS = 16, 128
_ON_CHIP = 8192
"""Most elements of x that a program holds: 32 of each thread, beside as many of dy."""
_ELEMENTS_OF_A_WARP, _LANES_ON_CHIP, _NARROWEST = 1024, 64, 32
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _statistics(
    x,
    other,
    total,
    part,
    rows,
    C,
    per_split,
    S,
    ADDS: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    """Write each channel's mean and sum of squares around it, per split of the rows.

    With ADDS they are those of x + other, which is written, too.
    """
    n, split, pid = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channel = pid * BC + tl.arange(0, BC)
    ok = channel < C
    base = n.to(tl.int64) * rows * C
    begin = split * per_split
    end = tl.minimum(begin + per_split, rows)
    # Sums are taken around the first row, so that a large mean does not cancel.
    shift = tl.load(x + base + begin * C + channel, mask=ok, other=0.0).to(tl.float32)
    if ADDS:
        shift += tl.load(other + base + begin * C + channel, mask=ok, other=0.0).to(tl.float32)
    apart = tl.zeros((BR, BC), tl.float32)
    squares = tl.zeros((BR, BC), tl.float32)
    for start in range(begin, end, BR):
        row = start + tl.arange(0, BR)
        mask = (row < end)[:, None] & ok[None, :]
        place = base + row[:, None] * C + channel[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        if ADDS:
            value += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
            # The statistics are those of what is written, rounded.
            value = value.to(total.dtype.element_ty).to(tl.float32)
            tl.store(total + place, value.to(total.dtype.element_ty), mask=mask)
        centred = tl.where(mask, value - shift[None, :], 0.0)
        apart += centred
        squares += centred * centred
    sums = tl.sum(apart, 0)
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
        out = (value - centre[None, :]) * scale[None, :] + add[None, :]
        out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
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
    dgain,
    doffset,
    merged,
    batch,
    rows,
    C,
    S,
    G: tl.constexpr,
    CPG: tl.constexpr,
    CPP: tl.constexpr,
    BG: tl.constexpr,
    BC: tl.constexpr,
    BN: tl.constexpr,
):
    """Write each group's means of dy * gain and of dy * gain * normal(x).

    That is done by the first `merged` programs, one per image or none. The others write the
    gradients of gain and offset, sums over batch and rows.
    """
    n, pid = tl.program_id(0), tl.program_id(1)
    if n < merged:
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
    else:
        # Triton wants a name to be of one shape in both branches.
        lane = pid * BC + tl.arange(0, BC)
        both = batch * S
        offsets = tl.zeros((BN, BC), tl.float32)
        gains = tl.zeros((BN, BC), tl.float32)
        for start in range(0, both, BN):
            own = start + tl.arange(0, BN)
            there = (own < both)[:, None] & (lane < C)[None, :]
            begin = part + own[:, None] * 2 * C + lane[None, :]
            offsets += tl.load(begin, mask=there, other=0.0)
            gains += tl.load(begin + C, mask=there, other=0.0)
        tl.store(doffset + lane, tl.sum(offsets, 0).to(doffset.dtype.element_ty), mask=lane < C)
        tl.store(dgain + lane, tl.sum(gains, 0).to(dgain.dtype.element_ty), mask=lane < C)


@triton.jit
def _backward_x(
    x,
    dy,
    past,
    dx,
    sums,
    mean,
    rstd,
    gain,
    offset,
    rows,
    C,
    per_split,
    ADDS: tl.constexpr,
    G: tl.constexpr,
    CPG: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    """Write the gradient of x; with ADDS, that which comes past the norm is added."""
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
        if ADDS:
            out += tl.load(past + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + place, out.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _forward_on_chip(
    x,
    other,
    total,
    y,
    mean_out,
    rstd_out,
    gain,
    offset,
    rows,
    C,
    eps,
    ADDS: tl.constexpr,
    G: tl.constexpr,
    CPG: tl.constexpr,
    CPP: tl.constexpr,
    GP: tl.constexpr,
    BR: tl.constexpr,
):
    """Do the forward pass of GP whole groups with one reading."""
    n, pid = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, GP * CPP)
    group, within = pid * GP + lane // CPP, lane % CPP
    channel = group * CPG + within
    ok = (group < G) & (within < CPG)
    row = tl.arange(0, BR)
    mask = (row < rows)[:, None] & ok[None, :]
    place = n.to(tl.int64) * rows * C + row[:, None] * C + channel[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
        # The statistics are those of what is written, rounded.
        value = value.to(total.dtype.element_ty).to(tl.float32)
        tl.store(total + place, value.to(total.dtype.element_ty), mask=mask)
    size = rows * CPG * 1.0
    mean = tl.sum(tl.reshape(tl.sum(value, 0), (GP, CPP)), 1) / size
    centre = tl.reshape(tl.broadcast_to(mean[:, None], (GP, CPP)), (GP * CPP,))
    apart = tl.where(mask, value - centre[None, :], 0.0)
    # Two threads that add each other's square would multiply theirs within the addition, unrounded,
    # and not agree on the sum.
    squares = tl.maximum(apart * apart, 0.0, propagate_nan=tl.PropagateNan.ALL)
    second = tl.sum(tl.reshape(tl.sum(squares, 0), (GP, CPP)), 1) / size
    rstd = tl.rsqrt(second + eps)
    scale = tl.reshape(tl.broadcast_to(rstd[:, None], (GP, CPP)), (GP * CPP,))
    scale *= tl.load(gain + channel, mask=ok, other=0.0).to(tl.float32)
    add = tl.load(offset + channel, mask=ok, other=0.0).to(tl.float32)
    out = apart * scale[None, :] + add[None, :]
    out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + place, out.to(y.dtype.element_ty), mask=mask)
    own = pid * GP + tl.arange(0, GP)
    tl.store(mean_out + n * G + own, mean, mask=own < G)
    tl.store(rstd_out + n * G + own, rstd, mask=own < G)


@triton.jit
def _backward_on_chip(
    x,
    dy,
    past,
    dx,
    part,
    mean,
    rstd,
    gain,
    offset,
    rows,
    C,
    ADDS: tl.constexpr,
    G: tl.constexpr,
    CPG: tl.constexpr,
    CPP: tl.constexpr,
    GP: tl.constexpr,
    BR: tl.constexpr,
):
    """Do the backward pass of GP whole groups with one reading; the channels' sums go to `part`."""
    n, pid = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, GP * CPP)
    group, within = pid * GP + lane // CPP, lane % CPP
    channel = group * CPG + within
    ok = (group < G) & (within < CPG)
    row = tl.arange(0, BR)
    mask = (row < rows)[:, None] & ok[None, :]
    place = n.to(tl.int64) * rows * C + row[:, None] * C + channel[None, :]
    centre = tl.load(mean + n * G + group, mask=ok, other=0.0)
    scale = tl.load(rstd + n * G + group, mask=ok, other=0.0)
    ga = tl.load(gain + channel, mask=ok, other=0.0).to(tl.float32)
    be = tl.load(offset + channel, mask=ok, other=0.0).to(tl.float32)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    normal = (value - centre[None, :]) * scale[None, :]
    upper = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
    upper = tl.where(mask & (normal * ga[None, :] + be[None, :] > 0), upper, 0.0)
    plain, weighted = tl.sum(upper, 0), tl.sum(upper * normal, 0)
    tl.store(part + n * 2 * C + channel, plain, mask=ok)
    tl.store(part + n * 2 * C + C + channel, weighted, mask=ok)
    size = rows * CPG * 1.0
    first = tl.sum(tl.reshape(plain * ga, (GP, CPP)), 1) / size
    second = tl.sum(tl.reshape(weighted * ga, (GP, CPP)), 1) / size
    own_first = tl.reshape(tl.broadcast_to(first[:, None], (GP, CPP)), (GP * CPP,))
    own_second = tl.reshape(tl.broadcast_to(second[:, None], (GP, CPP)), (GP * CPP,))
    out = upper * ga[None, :] - own_first[None, :] - normal * own_second[None, :]
    out *= scale[None, :]
    if ADDS:
        out += tl.load(past + place, mask=mask, other=0.0).to(tl.float32)
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
        self.sum_tiles = triton.cdiv(self.channels, _SUMMED_LANES)
        self.merge_and_sum_grid = (self.batch + 1, max(self.merge_grid[1], self.sum_tiles))
        self.all_rows = triton.next_power_of_2(self.rows)
        self.groups_on_chip = self._groups_on_chip() if is_wanted("one_pass") else 0
        """Whole groups that a program holds at once; 0: too few, or not one, fits."""

    def _groups_on_chip(self) -> int:
        wide = max(_LANES_ON_CHIP, self.padded)
        fitting = min(wide, _ON_CHIP // self.all_rows) // self.padded
        fitting = min(fitting, triton.next_power_of_2(self.groups))
        # Of a row at least 64 bytes are read in one go, or all of it.
        narrowest = min(_NARROWEST, self.channels)
        return fitting if fitting * self.padded >= narrowest else 0

    @property
    def on_chip_grid(self) -> tuple[int, int]:
        return self.batch, triton.cdiv(self.groups, self.groups_on_chip)

    @property
    def warps_on_chip(self) -> int:
        held = self.groups_on_chip * self.padded * self.all_rows
        return max(1, int(held) // _ELEMENTS_OF_A_WARP)

    @property
    def on_chip(self) -> tuple[int, int, int, int, int]:
        return self.groups, self.per_group, self.padded, self.groups_on_chip, self.all_rows

    @property
    def by_group(self) -> tuple[int, int, int, int]:
        return self.groups, self.per_group, self.padded, self.merged

    @property
    def by_channel(self) -> tuple[int, int, int, int]:
        return self.groups, self.per_group, self.lanes, self.block_rows


def launch(kernel: Any, grid: tuple[int, ...]) -> Any:
    """Return what launches a kernel, in the interpreter or where `torch.compile` sees it."""
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
    return _forward(x, None, x, gain, offset, _Plan(x, groups), eps)


@torch.library.triton_op("bigtransfer::add_group_norm_relu", mutates_args=())
def add_forward(
    x: Tensor, other: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x + other and relu(group_norm(x + other)), and mean and 1/deviation as `forward`.

    Args:
        x: (B, C, H, W) in channels_last.
        other: The same shape, dtype and layout.
        gain: (C,).
        offset: (C,).
        groups: Divides C.
        eps: Added to the variance inside the root.
    """
    total = torch.empty_like(x)
    return total, *_forward(x, other, total, gain, offset, _Plan(x, groups), eps)


@torch.library.triton_op("bigtransfer::group_norm_relu_apply", mutates_args=())
def apply(
    x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, groups: int
) -> Tensor:
    """Return what `forward` gave, from the statistics it gave."""
    return _applied(x, gain, offset, mean, rstd, _Plan(x, groups))


@torch.library.triton_op("bigtransfer::group_norm_relu_backward", mutates_args=())
def backward(
    dy: Tensor,
    x: Tensor,
    gain: Tensor,
    offset: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    past: Tensor | None = None,
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
        past: Gradient of x that comes past the norm; added to that through it.
    """
    plan = _Plan(x, groups)
    dy = dy.contiguous(memory_format=torch.channels_last)
    dx, dgain, doffset = torch.empty_like(x), torch.empty_like(gain), torch.empty_like(offset)
    adds = past is not None
    own_past = x if past is None else past.contiguous(memory_format=torch.channels_last)
    if plan.groups_on_chip:
        part = x.new_empty((plan.batch, 1, 2, plan.channels), dtype=torch.float32)
        launch(_backward_on_chip, plan.on_chip_grid)(
            x,
            dy,
            own_past,
            dx,
            part,
            mean,
            rstd,
            gain,
            offset,
            plan.rows,
            plan.channels,
            adds,
            *plan.on_chip,
            num_warps=plan.warps_on_chip,
        )
        launch(_backward_merge, (1, plan.sum_tiles))(
            part,
            gain,
            part,
            dgain,
            doffset,
            0,
            plan.batch,
            plan.rows,
            plan.channels,
            1,
            *plan.by_group,
            _SUMMED_LANES,
            _SUMMED_ROWS,
        )
        return dx, dgain, doffset
    part = x.new_empty((plan.batch, plan.splits, 2, plan.channels), dtype=torch.float32)
    launch(_backward_sums, plan.grid)(
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
    launch(_backward_merge, plan.merge_and_sum_grid)(
        part,
        gain,
        sums,
        dgain,
        doffset,
        plan.batch,
        plan.batch,
        plan.rows,
        plan.channels,
        plan.splits,
        *plan.by_group,
        _SUMMED_LANES,
        _SUMMED_ROWS,
    )
    launch(_backward_x, plan.grid)(
        x,
        dy,
        own_past,
        dx,
        sums,
        mean,
        rstd,
        gain,
        offset,
        plan.rows,
        plan.channels,
        plan.per_split,
        adds,
        *plan.by_channel,
    )
    return dx, dgain, doffset


def _forward(
    x: Tensor,
    other: Tensor | None,
    total: Tensor,
    gain: Tensor,
    offset: Tensor,
    plan: _Plan,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is applied to x, or to x + other, which is written to `total`; and statistics."""
    if not plan.groups_on_chip:
        mean, rstd = _statistics_of(x, other, total, plan, eps)
        return _applied(total, gain, offset, mean, rstd, plan), mean, rstd
    y = torch.empty_like(x)
    mean = x.new_empty((plan.batch, plan.groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    launch(_forward_on_chip, plan.on_chip_grid)(
        x,
        x if other is None else other,
        total,
        y,
        mean,
        rstd,
        gain,
        offset,
        plan.rows,
        plan.channels,
        eps,
        other is not None,
        *plan.on_chip,
        num_warps=plan.warps_on_chip,
    )
    return y, mean, rstd


def _statistics_of(
    x: Tensor, other: Tensor | None, total: Tensor, plan: _Plan, eps: float
) -> tuple[Tensor, Tensor]:
    """Return mean and 1/deviation of x, or of x + other, which is written to `total`."""
    part = x.new_empty((plan.batch, plan.splits, 2, plan.channels), dtype=torch.float32)
    mean = x.new_empty((plan.batch, plan.groups), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    launch(_statistics, plan.grid)(
        x,
        x if other is None else other,
        total,
        part,
        plan.rows,
        plan.channels,
        plan.per_split,
        plan.splits,
        other is not None,
        plan.lanes,
        plan.block_rows,
    )
    launch(_merge, plan.merge_grid)(
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
    return mean, rstd


def _applied(
    x: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, plan: _Plan
) -> Tensor:
    y = torch.empty_like(x)
    launch(_apply, plan.grid)(
        x, y, mean, rstd, gain, offset, plan.rows, plan.channels, plan.per_split, *plan.by_channel
    )
    return y


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, gain, offset, groups, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, gain, offset, mean, rstd)
    ctx.groups = groups


def _differentiate(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, gain, offset, mean, rstd = ctx.saved_tensors
    dx, dgain, doffset = backward(dy, x, gain, offset, mean, rstd, ctx.groups)
    return dx, dgain, doffset, None, None


def _keep_sum(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    *_, gain, offset, groups, _ = inputs
    total, _, mean, rstd = output
    ctx.save_for_backward(total, gain, offset, mean, rstd)
    ctx.groups = groups
    ctx.set_materialize_grads(False)  # a sum that nobody else reads has no gradient to add


def _differentiate_sum(
    ctx: Any, past: Tensor | None, dy: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    total, gain, offset, mean, rstd = ctx.saved_tensors
    dx, dgain, doffset = backward(dy, total, gain, offset, mean, rstd, ctx.groups, past)
    return dx, dx, dgain, doffset, None, None


forward.register_autograd(_differentiate, setup_context=_keep)
add_forward.register_autograd(_differentiate_sum, setup_context=_keep_sum)
