"""Convolution on a CPU, by one matrix product where few places meet large kernels.

PyTorch's CPU kernels multiply image by image there and read the kernel anew for each: a 1x1 over
2x2 places, at a batch of 4, takes four times as long as one product over all places of all images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Where the product was faster on one thread (AVX-512, batches of 4 and 32).
POINTWISE_PLACES = 9
"""Most output pixels of a 1x1."""
WINDOW_PLACES = 4
"""Most output pixels of a larger kernel …"""
WINDOW_WEIGHTS = 1 << 21
"""… which has at least so many weights."""


def convolve(
    x: Tensor, kernel: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Convolve (B, I, H, W) to (B, O, H', W'), in the layout of `x`."""
    if not is_product(x, kernel, stride):
        return F.conv2d(x, kernel, None, stride, padding)
    if kernel.shape[2:] == (1, 1):
        picked = x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)
        y = F.linear(picked, kernel.flatten(1)).permute(0, 3, 1, 2)
    else:
        height, width = _places(x, stride)
        windows = F.unfold(x, kernel.shape[2:], padding=padding, stride=stride)
        y = F.linear(windows.transpose(1, 2), kernel.flatten(1)).transpose(1, 2)
        y = y.view(*y.shape[:2], height, width)
    last = x.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def convolve_backward(
    upper: Tensor,
    x: Tensor,
    kernel: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and kernel, bit for bit those of autograd for `convolve`."""
    if is_product(x, kernel, stride):
        with torch.enable_grad():
            own = x.detach().requires_grad_(), kernel.detach().requires_grad_()
            dx, dkernel = torch.autograd.grad(convolve(*own, stride, padding), own, upper)
        return dx, dkernel
    dx, dkernel, _ = torch.ops.aten.convolution_backward(
        upper, x, kernel, None, stride, padding, (1, 1), False, (0, 0), 1, (True, True, False)
    )
    return dx, dkernel


def is_product(x: Tensor, kernel: Tensor, stride: tuple[int, int]) -> bool:
    """Say whether `convolve` takes the matrix product.

    Kernels are padded to keep the size, as all of the network's are, so the output has as many
    places as the stride leaves.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[0] == 1:
        return False
    if torch.compiler.is_compiling():
        return False  # while a graph is traced, sizes must stay open
    height, width = _places(x, stride)
    if kernel.shape[2:] == (1, 1):
        return 1 < height * width <= POINTWISE_PLACES
    large = kernel.shape[2:] == (3, 3) and kernel.numel() >= WINDOW_WEIGHTS
    return large and height * width <= WINDOW_PLACES


def _places(x: Tensor, stride: tuple[int, int]) -> tuple[int, int]:
    return -(-x.shape[2] // stride[0]), -(-x.shape[3] // stride[1])
