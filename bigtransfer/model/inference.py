"""How pixels enter a network, and what it makes of them, wherever that is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigtransfer.model.cuda_graph import replayed
from bigtransfer.model.kernels import uses_kernel

_MIDDLE = 127.5
"""Of uint8. BiT's published weights expect (x - 127.5) / 127.5, without statistics per channel."""


def normalize_(x: Tensor) -> Tensor:
    """Bring floating values from [0, 255] to [-1, 1], in place; returns them."""
    return x.sub_(_MIDDLE).div_(_MIDDLE)


def normalized(images: Tensor) -> Tensor:
    """Return uint8 images (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1], channels last."""
    return normalize_(images.permute(0, 3, 1, 2).float())


def network_images(
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    partners: Tensor | None = None,
    lam: Tensor | None = None,
) -> Tensor:
    """Return uint8 images as the network reads them, with others mixed in where given.

    Args:
        images: (B, H, W, 3) on the device, contiguous.
        dtype: Of what is returned.
        partners: The same shape; they count 1 - lam.
        lam: MixUp's lambda, a float32 scalar on the device.

    Returns:
        (B, 3, H, W) in [-1, 1], channels last.
    """
    if uses_kernel("images", *([images] if partners is None else [images, partners])):
        from bigtransfer.model.triton_root import images_as

        x: Tensor = images_as(images, dtype, partners, lam)
        return x
    x = normalized(images)
    if partners is not None and lam is not None:
        x = torch.lerp(normalized(partners), x, lam)
    return x.to(dtype)


def to_network(images: NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
    """Return uint8 images (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1], on a device."""
    forward = images.copy() if images.strides[0] < 0 else images
    x = torch.from_numpy(forward)
    return normalized(x if device is None else x.to(device, non_blocking=True))


def predict(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[NDArray[np.uint8]],
    device: torch.device | None = None,
) -> NDArray[np.float32]:
    """Return what a network, or one of its methods, makes of all images, in their order."""
    return np.concatenate(list(predicted(model, batches, device)))


def predicted(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[NDArray[np.uint8]],
    device: torch.device | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yield what the network makes of the images, batch by batch.

    Args:
        model: A network, or one of its methods, e.g. `features`; a network is set to evaluation
            for as long.
        batches: Images (B, H, W, 3), resized and cropped.
        device: Of the network; None: the CPU.
    """
    module = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    was_training = module.training if isinstance(module, nn.Module) else False
    if isinstance(module, nn.Module):
        module.eval()
    forward = replayed(model, device)
    try:
        for images in batches:
            with torch.no_grad():
                result = forward(to_network(images, device))
            yield result.float().cpu().numpy()
    finally:
        if isinstance(module, nn.Module):
            module.train(was_training)
