"""Multiply-adds of an image, by arithmetic alone: known where there is no PyTorch."""

from __future__ import annotations

from bigtransfer.model.names import parse_architecture

FLOPS_PER_MAC = 6
"""Of a training step: two per multiply-add, for the forward pass and for both gradients."""


def forward_macs(name: str, num_classes: int, size: int, root: str = "imagenet") -> int:
    """Return the multiply-adds of one image (size, size), normalisation not counted.

    Args:
        name: Of the architecture.
        num_classes: Outputs of the head.
        size: Of the image, pixels.
        root: `imagenet` (7x7 with stride 2, then a pool) or `small` (3x3).
    """
    kind = parse_architecture(name)
    channels = kind.width(64)
    side, kernel = (-(-size // 2), 7) if root == "imagenet" else (size, 3)
    total = 3 * channels * kernel**2 * side**2
    side = -(-side // 2) if root == "imagenet" else side
    for number, units in enumerate(kind.block_units):
        width = kind.width(64 << number)
        for unit in range(units):
            first = unit == 0
            after = -(-side // 2) if first and number else side
            total += channels * width * side**2  # 1x1
            total += (9 * width + 4 * width) * width * after**2  # 3x3, which strides; 1x1
            total += channels * 4 * width * after**2 if first else 0  # projection
            channels, side = 4 * width, after
    return total + channels * num_classes
