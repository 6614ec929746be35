"""Run a network over a split: every image exactly once, without augmentation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigtransfer.data.batches import Squares, evaluation_batches


def to_network(images: NDArray[np.uint8]) -> Tensor:
    """Return uint8 images (B, H, W, 3) as float32 (B, 3, H, W) in [-1, 1].

    (x - 127.5) / 127.5 without per-channel statistics, as BiT's published weights expect.
    """
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return x.sub_(127.5).div_(127.5)


@torch.inference_mode()
def predict(model: nn.Module, squares: Squares, batch_size: int) -> NDArray[np.float32]:
    """Return the logits (N, C) of all images, in the order of `squares`."""
    was_training = model.training
    model.eval()
    parts = [model(to_network(b.images)).numpy() for b in evaluation_batches(squares, batch_size)]
    model.train(was_training)
    return np.concatenate(parts)
