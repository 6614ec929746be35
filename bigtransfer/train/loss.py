"""The two losses of BiT's upstream training, and their MixUp.

Softmax cross-entropy for one class per image (BiT-S); a sigmoid per class where an image may have
several (BiT-M, BiT-L): binary cross-entropy, summed over the classes, averaged over the images, as
in google-research/big_vision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""`loss(logits (B, C), labels)`: the mean over the batch, a scalar."""
LossName = Literal["softmax", "sigmoid"]


def loss_named(name: LossName) -> Loss:
    """Return a loss by name."""
    return F.cross_entropy if name == "softmax" else sigmoid_cross_entropy


def sigmoid_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over images of the sum over classes of binary cross-entropy.

    Args:
        logits: (B, C).
        labels: (B,) class of each image, or (B, L) classes of each, filled up with -1.
    """
    listed = labels.unsqueeze(1) if labels.ndim == 1 else labels
    # One more column takes the fillings.
    targets = torch.zeros(
        len(logits), logits.shape[1] + 1, dtype=logits.dtype, device=logits.device
    )
    targets.scatter_(1, torch.where(listed < 0, logits.shape[1], listed), 1.0)
    losses = F.binary_cross_entropy_with_logits(logits, targets[:, :-1], reduction="sum")
    return losses / len(logits)
