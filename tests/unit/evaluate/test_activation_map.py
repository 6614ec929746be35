"""How a logit adds up over places: the sum is the logit, and nothing is drawn of a few places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bigtransfer.evaluate.activation_map import activation_maps
from bigtransfer.model import ResNetV2, create_model
from bigtransfer.model.inference import to_network
from bigtransfer.model.resnet import Root


def network(root: Root = "small") -> ResNetV2:
    model = create_model("R14x0.25", 5, root, seed=1)
    generator = torch.Generator().manual_seed(2)
    torch.nn.init.normal_(model.head.weight, std=0.3, generator=generator)
    torch.nn.init.normal_(model.head.bias, generator=generator)
    return model.eval()


def images(number: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (number, side, side, 3), np.uint8)


@pytest.mark.parametrize(
    ("root", "side", "places"), [("small", 64, 8), ("small", 56, 7), ("imagenet", 224, 7)]
)
def test_a_map_and_the_bias_are_the_logit(root: Root, side: int, places: int) -> None:
    model, pixels = network(root), images(9, side)  # more than go through the network at once
    classes = np.random.default_rng(4).integers(0, 5, (9, 2))
    maps = activation_maps(model, pixels, classes)
    assert maps is not None and maps.values.shape == (9, 2, places, places)
    with torch.no_grad():
        logits = model(to_network(pixels)).numpy()
    own = np.take_along_axis(logits, classes, axis=1)
    assert np.abs(maps.logits - own).max() < 1e-4
    assert np.ptp(maps.values, axis=(2, 3)).min() > 0.01  # not the logit spread evenly

    for image in (0, 8):
        parts = maps.parts(image, [f"class {c}" for c in classes[image]])
        assert [part.name for part in parts] == [f"class {c}" for c in classes[image]]
        assert [part.logit for part in parts] == pytest.approx(own[image], abs=1e-4)
        assert np.allclose(parts[1].values, maps.values[image, 1], atol=1e-5)


def test_a_place_has_its_own_features() -> None:
    """A map is not turned or mirrored: row and column are those of the features."""
    model, pixels = network(), images(1, 64)
    maps = activation_maps(model, pixels, np.array([[2]]))
    assert maps is not None
    with torch.no_grad():
        features = model.feature_map(to_network(pixels))[0]
        assert torch.allclose(features.mean((1, 2)), model.features(to_network(pixels))[0])
        place = float(features[:, 1, 6] @ model.head.weight[2])
    assert float(maps.values[0, 0, 1, 6]) == pytest.approx(place, abs=1e-4)


@pytest.mark.parametrize(("root", "side"), [("small", 48), ("imagenet", 192)])
def test_fewer_than_seven_by_seven_places_have_no_map(root: Root, side: int) -> None:
    assert activation_maps(network(root), images(2, side), np.zeros((2, 2), np.int64)) is None
