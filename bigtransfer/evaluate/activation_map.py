"""How the logit of a class adds up over the places of an image: the class activation map.

Zhou et al. 2016, arXiv 1512.04150. BiT takes the mean of its last features over all places and
multiplies it by the head, so a logit is exactly the mean over places of (weights of the class x
features at the place), plus a bias: changing the order of two sums, and nothing more. A place's
features depend on the whole image (receptive fields are wider than it, and GroupNorm takes its
statistics over all places), so a map does not prove where the network looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.artifacts.report import PlaceMap
from bigtransfer.model.inference import to_network
from bigtransfer.model.resnet import ResNetV2

FEWEST_PLACES = 7
"""Along a side; a coarser map shows nothing."""
_AT_ONCE = 8
"""Images; their features before the mean are large."""
_DECIMALS = 5


@dataclass(frozen=True)
class ActivationMaps:
    """Of some images, each for some classes."""

    values: NDArray[np.float32]
    """(N, K, H, W): what each place adds; their mean plus the bias is the logit."""
    bias: NDArray[np.float32]
    """(N, K)."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """Return the logits, (N, K), as the maps add up to them."""
        logits: NDArray[np.float32] = self.values.mean(axis=(2, 3)) + self.bias
        return logits

    def parts(self, image: int, names: Sequence[str]) -> tuple[PlaceMap, ...]:
        """Return the maps of one image for a report, under the names of its K classes."""
        return tuple(
            PlaceMap(
                name=name,
                bias=float(bias),
                values=tuple(
                    tuple(round(float(value), _DECIMALS) for value in row) for row in values
                ),
            )
            for name, bias, values in zip(names, self.bias[image], self.values[image], strict=True)
        )


@torch.no_grad()
def activation_maps(
    model: ResNetV2,
    images: NDArray[np.uint8],
    classes: NDArray[np.int64],
    device: torch.device | None = None,
) -> ActivationMaps | None:
    """Return how the logits of some classes add up over the places of images.

    Args:
        model: On that device; set to evaluation.
        images: (N, S, S, 3), resized and cropped as for the network; at least one.
        classes: (N, K), whose logits.
        device: Of the network; None: the CPU.

    Returns:
        The maps; None where the network has fewer than 7 x 7 places.
    """
    model.eval()
    weight, bias = model.head.weight.float(), model.head.bias.float()
    maps = []
    for start in range(0, len(images), _AT_ONCE):
        chosen = torch.from_numpy(classes[start : start + _AT_ONCE]).to(weight.device)
        features = model.feature_map(to_network(images[start : start + _AT_ONCE], device)).float()
        if min(features.shape[2:]) < FEWEST_PLACES:
            return None
        maps.append(torch.einsum("nchw,nkc->nkhw", features, weight[chosen]).cpu().numpy())
    return ActivationMaps(np.concatenate(maps), bias.cpu().numpy()[classes])
