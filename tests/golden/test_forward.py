"""The network against an independent forward pass; and every known mistake moves the logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bigtransfer.model import create_model, load_npz, save_npz
from golden.forward import Choices, logits

# float32 against float64 of the right network differs by some 1e-5 on logits of size 1.
TOLERANCE = 1e-4
# R26: a unit with and one without projection in every block. Width 1: groups of 2, 8, … channels.
NAME, CLASSES = "R26x1", 7

Arrays = dict[str, NDArray[np.float32]]


def stand_in_weights() -> Arrays:
    """Seeded weights in the published layout, with what trained ones have: off-centre kernels of
    very different scale, gains and offsets away from 1 and 0, a head that is not zero."""
    rng = np.random.default_rng(7)
    with torch.device("meta"):
        model = create_model(NAME, CLASSES)
    from bigtransfer.model.published import _names, _stored_shape

    state = model.state_dict()
    arrays = {}
    for name, key in sorted(_names(model).items()):
        shape = _stored_shape(state[key])
        draw = rng.standard_normal(shape)
        if name.endswith("gamma"):
            draw = 1 + 0.3 * draw
        elif name.endswith("beta"):
            draw = 0.2 * draw
        elif "standardized" in name:
            # Some filters as small as weight decay leaves them: there the epsilon counts.
            scale = 10 ** rng.uniform(-4.5, -1, shape[-1])
            draw = scale * (draw + 0.3)
        else:
            draw = draw / np.sqrt(shape[-2] if len(shape) == 4 else 1)
        arrays[name] = draw.astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def weights() -> Arrays:
    return stand_in_weights()


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    """Odd sizes; one of noise, one nearly constant: it alone shows a wrong GroupNorm epsilon."""
    rng = np.random.default_rng(3)
    noise = rng.uniform(-1, 1, (97, 160, 3))
    flat = 1e-3 * rng.standard_normal((97, 160, 3))  # grey: no edge at the zero padding
    return np.stack([noise, flat]).astype(np.float32)


@pytest.fixture(scope="module")
def ours(weights: Arrays, images: NDArray[np.float32], tmp_path_factory: Any) -> Any:
    path = tmp_path_factory.mktemp("published") / "stand-in.npz"
    np.savez(path, **weights)
    model = create_model(NAME, CLASSES)
    report = load_npz(model, path)
    assert (report.architecture, report.head) == (NAME, "loaded")
    with torch.no_grad():
        return model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def distance(weights: Arrays, images: NDArray[np.float32], ours: Any, choices: Choices) -> float:
    return float(np.abs(logits(weights, images.astype(np.float64), choices) - ours).max())


def test_logits_equal_the_independent_forward_pass(
    weights: Arrays, images: NDArray[np.float32], ours: Any
) -> None:
    assert np.abs(ours).max() > 0.3
    assert distance(weights, images, ours, Choices()) < TOLERANCE


MISTAKES: dict[str, dict[str, Any]] = {
    "WS epsilon 1e-8 (timm's BiT models)": {"ws_eps": 1e-8},
    "WS epsilon 1e-6 (timm's StdConv2d)": {"ws_eps": 1e-6},
    "WS epsilon 1e-5 beside the root (the WS authors' code)": {
        "ws_eps": 1e-5, "ws_eps_inside_root": False,
    },
    "WS with the unbiased variance": {"ws_ddof": 1},
    "WS without centring": {"ws_centred": False},
    "GN epsilon 1e-6": {"gn_eps": 1e-6},
    "GN epsilon 1e-3": {"gn_eps": 1e-3},
    "GN with the unbiased variance": {"gn_ddof": 1},
    "GN of 16 groups": {"groups": 16},
    "max pool padded with -inf (PyTorch's own)": {"pool_padding": -np.inf},
    "SAME padding (TensorFlow's default)": {"same_padding": True},
    "projection of the raw input": {"projection_of_raw_input": True},
    "standardised head": {"head_standardized": True},
    "stride in the first 1x1": {"stride_in_first_conv": True},
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_known_mistake_is_seen(
    weights: Arrays, images: NDArray[np.float32], ours: Any, mistake: str
) -> None:
    wrong = replace(Choices(), **MISTAKES[mistake])
    assert distance(weights, images, ours, wrong) > 3 * TOLERANCE


def test_published_layout_has_the_published_number_of_arrays(tmp_path: Path) -> None:
    # Counted over the published files' names: 153 for depth 50, 306 for 101, 459 for 152.
    from bigtransfer.model.published import _names

    for name, count in (("R50x1", 153), ("R101x3", 306), ("R152x4", 459)):
        with torch.device("meta"):
            assert len(_names(create_model(name, 1000))) == count


def test_saved_and_loaded_again_is_bit_equal(tmp_path: Path) -> None:
    model = create_model("R50x1", 7, seed=5)
    torch.nn.init.normal_(model.head.weight)
    save_npz(model, tmp_path / "w.npz")
    again = create_model("R50x1", num_classes=7)
    assert load_npz(again, tmp_path / "w.npz").head == "loaded"
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
