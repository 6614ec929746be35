"""Convolution on a CPU, by one matrix product where that is faster.

PyTorch's CPU kernels multiply image by image in small batches and read the kernel anew for each: a
1x1 over 2x2 places, at a batch of 4, takes eight times as long as one product over all places of
all images. And they are slow where a 1x1 has a stride, most of all in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Where the product was faster on one thread (AVX-512, batches of 2 to 32), see decision 0021.
POINTWISE_COLUMNS = 128
"""Most output pixels of all images of a 1x1 without stride; with one, any number."""
POINTWISE_PLACES = 9
"""Most output pixels of an image of a 1x1 in channels_last, where the product copies nothing."""
WINDOW_COLUMNS = 36
"""Most output pixels of all images of a larger kernel …"""
WINDOW_WEIGHTS = 1 << 21
"""… which has at least so many weights."""


def convolve(
    x: Tensor,
    kernel: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    forward_alone: bool = False,
) -> Tensor:
    """Convolve (B, I, H, W) to (B, O, H', W'), in the layout of `x`.

    Args:
        x: (B, I, H, W).
        kernel: (O, I, kh, kw).
        stride: Of both sides.
        padding: Of both sides, pixels.
        forward_alone: Whether no backward pass will follow.
    """
    if not is_product(x, kernel, stride, forward_alone=forward_alone):
        return F.conv2d(x, kernel, None, stride, padding)
    height, width = _places(x, stride)
    if kernel.shape[2:] != (1, 1):
        windows = F.unfold(x, kernel.shape[2:], padding=padding, stride=stride)
        y = F.linear(windows.transpose(1, 2), kernel.flatten(1)).transpose(1, 2)
        y = y.view(*y.shape[:2], height, width)
        return y.contiguous(memory_format=_layout(x))
    picked = x[:, :, :: stride[0], :: stride[1]]
    if _layout(x) is torch.channels_last:
        return F.linear(picked.permute(0, 2, 3, 1), kernel.flatten(1)).permute(0, 3, 1, 2)
    y = torch.mm(kernel.flatten(1), _columns(picked))
    return y.view(-1, x.shape[0], height, width).transpose(0, 1).contiguous()


def convolve_backward(
    upper: Tensor,
    x: Tensor,
    kernel: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and kernel, bit for bit those of autograd for `convolve`."""
    if not is_product(x, kernel, stride):
        dx, dkernel, _ = torch.ops.aten.convolution_backward(
            upper, x, kernel, None, stride, padding, (1, 1), False, (0, 0), 1, (True, True, False)
        )
        return dx, dkernel
    if kernel.shape[2:] == (1, 1) and _layout(x) is torch.contiguous_format:
        return _columns_backward(upper, x, kernel, stride)
    with torch.enable_grad():
        own = x.detach().requires_grad_(), kernel.detach().requires_grad_()
        dx, dkernel = torch.autograd.grad(convolve(*own, stride, padding), own, upper)
    return dx, dkernel


def is_product(
    x: Tensor, kernel: Tensor, stride: tuple[int, int], *, forward_alone: bool = False
) -> bool:
    """Say whether `convolve` takes the matrix product.

    Kernels are padded to keep the size, as all of the network's are, so the output has as many
    places as the stride leaves.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[0] == 1:
        return False
    if torch.compiler.is_compiling():
        return False  # while a graph is traced, sizes must stay open
    height, width = _places(x, stride)
    places, columns = height * width, x.shape[0] * height * width
    if kernel.shape[2:] != (1, 1):
        large = kernel.shape[2:] == (3, 3) and kernel.numel() >= WINDOW_WEIGHTS
        return large and columns <= WINDOW_COLUMNS
    if _layout(x) is torch.channels_last:
        return 1 < places <= POINTWISE_PLACES
    # With a stride it is the backward pass that gains; the forward pass alone is slower.
    strided = stride != (1, 1) and not forward_alone
    return places > 1 and (columns <= POINTWISE_COLUMNS or strided)


def _columns_backward(
    upper: Tensor, x: Tensor, kernel: Tensor, stride: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a 1x1 in NCHW without another forward pass."""
    upper_columns = _columns(upper)
    picked = x[:, :, :: stride[0], :: stride[1]]
    dkernel = torch.mm(upper_columns, _columns(picked).t()).view(kernel.shape)
    dcolumns = torch.mm(kernel.flatten(1).t(), upper_columns)
    dpicked = dcolumns.view(x.shape[1], x.shape[0], *upper.shape[2:]).transpose(0, 1)
    if stride == (1, 1):
        return dpicked.contiguous(), dkernel
    dx = torch.zeros_like(x)
    dx[:, :, :: stride[0], :: stride[1]] = dpicked
    return dx, dkernel


def _columns(x: Tensor) -> Tensor:
    """Lay the pixels of all images side by side: (B, C, H, W) to (C, B*H*W)."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _places(x: Tensor, stride: tuple[int, int]) -> tuple[int, int]:
    return -(-x.shape[2] // stride[0]), -(-x.shape[3] // stride[1])
