"""What a network costs in memory: the activations kept for its backward pass.

Counted on the `meta` device, where nothing is computed and nothing allocated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigtransfer.model.resnet import Norm, Recompute, ResNetV2, Root, create_model


def kept_bytes(
    name: str,
    num_classes: int,
    size: int,
    images: int,
    root: Root = "imagenet",
    norm: Norm = "gn_ws",
    recompute: Recompute = "none",
) -> int:
    """Return the bytes that a forward pass keeps for backward, in float32, parameters aside.

    Args:
        name: Of the architecture.
        num_classes: Outputs of the head.
        size: Of the images, pixels.
        images: In the forward pass.
        root: `imagenet` or `small`.
        norm: Of the network.
        recompute: What is made again in backward.
    """
    model = _meta(name, num_classes, root, norm).recompute(recompute)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # by storage; held, so that no storage takes another's place

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in own:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(torch.empty(images, 3, size, size, device="meta"))
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del logits
    return total


def kept_per_image(
    name: str,
    num_classes: int,
    size: int,
    root: Root = "imagenet",
    norm: Norm = "gn_ws",
    recompute: Recompute = "none",
) -> tuple[int, int]:
    """Return the bytes kept for backward by each image, and by a pass whatever its images.

    Args:
        name: Of the architecture.
        num_classes: Outputs of the head.
        size: Of the images, pixels.
        root: `imagenet` or `small`.
        norm: Of the network.
        recompute: What is made again in backward.
    """
    one, three = (kept_bytes(name, num_classes, size, n, root, norm, recompute) for n in (1, 3))
    per_image = (three - one) // 2
    return per_image, one - per_image


def _meta(name: str, num_classes: int, root: Root, norm: Norm) -> ResNetV2:
    with torch.device("meta"):
        return create_model(name, num_classes, root, norm=norm)
