"""BiT's forward pass in plain numpy and float64, written from the paper and the published layout.

It shares nothing with the library: it reads the arrays of an `.npz` file by their published names,
kernels as (height, width, in, out), images as (B, H, W, 3). Each numeric choice is an argument, so
that a test can make every known mistake on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """The right ones; sources in PROVENANCE.md."""

    ws_eps: float = 1e-10
    ws_eps_inside_root: bool = True
    ws_ddof: int = 0
    ws_centred: bool = True
    gn_eps: float = 1e-5
    gn_ddof: int = 0
    groups: int = 32
    pool_padding: float = 0.0
    same_padding: bool = False
    projection_of_raw_input: bool = False
    head_standardized: bool = False
    stride_in_first_conv: bool = False


def logits(arrays: Mapping[str, NDArray[Any]], images: Array, choices: Choices) -> Array:
    """Return (B, classes) for images (B, H, W, 3) in [-1, 1]."""
    get = {name: array.astype(np.float64) for name, array in arrays.items()}.__getitem__
    c = choices
    kernel = get("resnet/root_block/standardized_conv2d/kernel")
    x = conv(images, standardize(kernel, c), stride=2, padding=3, same=c.same_padding)
    x = max_pool(x, c)
    for block in range(1, 5):
        unit = 1
        while f"resnet/block{block}/unit{unit:02d}/a/group_norm/gamma" in arrays:
            place = f"resnet/block{block}/unit{unit:02d}/"
            x = bottleneck(lambda n, p=place: get(p + n), x, block, unit, c)
            unit += 1
    x = norm_relu(x, get("resnet/group_norm/gamma"), get("resnet/group_norm/beta"), c)
    head = get("resnet/head/conv2d/kernel")
    if c.head_standardized:
        head = standardize(head, c)
    return x.mean((1, 2)) @ head[0, 0] + get("resnet/head/conv2d/bias")


def bottleneck(get: Callable[[str], Array], x: Array, block: int, unit: int, c: Choices) -> Array:
    stride = 2 if block > 1 and unit == 1 else 1
    first, second = (stride, 1) if c.stride_in_first_conv else (1, stride)

    def step(y: Array, part: str, stride: int, padding: int) -> Array:
        y = norm_relu(y, get(f"{part}/group_norm/gamma"), get(f"{part}/group_norm/beta"), c)
        kernel = standardize(get(f"{part}/standardized_conv2d/kernel"), c)
        return conv(y, kernel, stride, padding, c.same_padding)

    shortcut = x
    if unit == 1:
        read = x
        if not c.projection_of_raw_input:
            read = norm_relu(x, get("a/group_norm/gamma"), get("a/group_norm/beta"), c)
        kernel = standardize(get("a/proj/standardized_conv2d/kernel"), c)
        shortcut = conv(read, kernel, stride, 0, c.same_padding)
    y = step(x, "a", first, 0)
    y = step(y, "b", second, 1)
    return step(y, "c", 1, 0) + shortcut


def standardize(kernel: Array, c: Choices) -> Array:
    mean = kernel.mean((0, 1, 2), keepdims=True)
    variance = kernel.var((0, 1, 2), ddof=c.ws_ddof, keepdims=True)
    centred = kernel - mean if c.ws_centred else kernel
    if c.ws_eps_inside_root:
        return centred / np.sqrt(variance + c.ws_eps)
    return centred / (np.sqrt(variance) + c.ws_eps)


def norm_relu(x: Array, gain: Array, offset: Array, c: Choices) -> Array:
    b, h, w, channels = x.shape
    grouped = x.reshape(b, h, w, c.groups, channels // c.groups)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = grouped.var((1, 2, 4), ddof=c.gn_ddof, keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + c.gn_eps)).reshape(x.shape)
    return np.maximum(normal * gain + offset, 0.0)


def conv(x: Array, kernel: Array, stride: int, padding: int, same: bool) -> Array:
    size = kernel.shape[0]
    if same:
        # TensorFlow's SAME depends on the input size and puts the odd pixel at the end.
        pads = [same_pads(n, size, stride) for n in x.shape[1:3]]
    else:
        pads = [(padding, padding)] * 2
    padded = np.pad(x, [(0, 0), *pads, (0, 0)])
    windows = sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, kernel, optimize=True)


def same_pads(length: int, size: int, stride: int) -> tuple[int, int]:
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def max_pool(x: Array, c: Choices) -> Array:
    pads = [same_pads(n, 3, 2) for n in x.shape[1:3]] if c.same_padding else [(1, 1)] * 2
    padded = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=c.pool_padding)
    return sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-2, -1))
