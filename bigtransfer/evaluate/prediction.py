"""Run a network over a split: every image exactly once, without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigtransfer.errors import ConfigError

if TYPE_CHECKING:
    from bigtransfer.data.batches import Squares


def device_named(wanted: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here.

    Raises:
        ConfigError: If PyTorch sees no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda, but PyTorch sees no GPU here; choose device: auto, or install PyTorch's "
            "CUDA build"
        )
    return torch.device("cpu" if wanted == "cpu" or not torch.cuda.is_available() else "cuda")


def to_network(images: NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
    """Return uint8 images (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1], on a device."""
    forward = images.copy() if images.strides[0] < 0 else images
    x = torch.from_numpy(forward)
    return normalized(x if device is None else x.to(device, non_blocking=True))


def normalized(images: Tensor) -> Tensor:
    """Return uint8 images (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1].

    (x - 127.5) / 127.5 without per-channel statistics, as BiT's published weights expect.
    """
    return images.permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)


def predict(
    model: nn.Module,
    squares: Squares,
    batch_size: int,
    device: torch.device | None = None,
) -> NDArray[np.float32]:
    """Return the logits (N, C) of all images, in the order of `squares`."""
    return np.concatenate(list(predicted(model, squares, batch_size, device)))


def predicted(
    model: Callable[[Tensor], Tensor],
    squares: Squares,
    batch_size: int,
    device: torch.device | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Yield what the network makes of the images, batch by batch, in the order of `squares`.

    Args:
        model: A network, or one of its methods, e.g. `features`; a network is set to evaluation
            for as long.
        squares: Images.
        batch_size: Images at a time.
        device: Of the network; None: the CPU.
    """
    from bigtransfer.data.batches import evaluation_batches

    module = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    was_training = module.training if isinstance(module, nn.Module) else False
    if isinstance(module, nn.Module):
        module.eval()
    try:
        for batch in evaluation_batches(squares, batch_size):
            with torch.no_grad():
                result = model(to_network(batch.images, device))
            yield result.float().cpu().numpy()
    finally:
        if isinstance(module, nn.Module):
            module.train(was_training)
