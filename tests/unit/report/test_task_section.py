from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from bigtransfer.artifacts.report import Mistake, PlaceMap, ReliabilityBin
from bigtransfer.report.page import picture
from bigtransfer.report.task_section import (
    SHOWN_AT,
    confused_classes,
    merged,
    overlays_of,
    shown_mistake,
)


def bins(*images: int) -> list[ReliabilityBin]:
    return [
        ReliabilityBin(images=n, confidence=0.1 * number, accuracy=0.05 * number)
        for number, n in enumerate(images, start=1)
    ]


@pytest.mark.parametrize(
    ("images", "expected"),
    [((1, 3, 7, 9, 26, 604), (20, 26, 604)), ((25, 30, 5), (25, 35)), ((5, 5), (10,)), ((), ()),
     ((20, 20), (20, 20)), ((1, 1, 40, 3, 2), (47,))],
)  # fmt: skip
def test_bins_of_few_images_are_merged(images: tuple[int, ...], expected: tuple[int, ...]) -> None:
    found = merged(bins(*images))
    assert tuple(own.images for own in found) == expected
    own = bins(*images)
    for name in ("confidence", "accuracy"):  # the means over all images stay
        total = sum(b.images * getattr(b, name) for b in own)
        assert sum(b.images * getattr(b, name) for b in found) == pytest.approx(total)


def test_confused_classes_stand_in_pairs() -> None:
    matrix = np.diag(np.full(30, 9))
    matrix[3, 17], matrix[20, 3], matrix[5, 6], matrix[6, 5] = 8, 6, 7, 2
    assert confused_classes(matrix, 16) == [3, 17, 5, 6, 20]
    assert confused_classes(matrix, 4) == [3, 17, 5, 6]
    assert confused_classes(np.diag(np.full(30, 9)), 16) == []


def test_an_overlay_has_a_pixel_a_place_and_one_scale() -> None:
    first = PlaceMap(name="a_b", bias=0.5, values=((4.0, -2.0), (0.0, 2.0)))
    second = PlaceMap(name="c", bias=0.0, values=((1.0, -1.0), (0.0, 0.0)))
    one, two = overlays_of([first, second])
    assert (one.name, one.logit, one.bias, two.logit) == ("a b", 1.5, 0.5, 0.0)
    pixels = decoded(one.picture)
    assert pixels.shape == (2, 2, 4)
    opaque = pixels[..., 3].astype(int)
    assert opaque[1, 0] == 0 and opaque[0, 0] == 2 * opaque[0, 1] == 2 * opaque[1, 1]
    assert pixels[0, 0, 0] > pixels[0, 0, 2] and pixels[0, 1, 2] > pixels[0, 1, 0]
    assert decoded(two.picture)[0, 0, 3] == pytest.approx(opaque[0, 0] / 4, abs=1)
    flat = overlays_of([PlaceMap(name="c", bias=1.0, values=((0.0,),))])[0]
    assert flat.logit == 1 and decoded(flat.picture)[0, 0, 3] == 0


def decoded(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("height", "width", "shown", "coarse"),
    [(300, 600, (160, 80), False), (8, 8, (160, 160), True), (900, 3, (1, 160), False)],
)
def test_a_mistake_keeps_its_shape(
    height: int, width: int, shown: tuple[int, int], coarse: bool
) -> None:
    own = Mistake(
        path="p", actual="a", predicted="b_c", probability=0.9,
        picture=picture(np.zeros((height, width, 3), np.uint8), SHOWN_AT), actual_probability=0.05,
    )  # fmt: skip
    found = shown_mistake(own)
    assert ((found.width, found.height), found.coarse) == (shown, coarse)
    assert (found.predicted, found.probability, found.actual_probability) == (
        "b c", "90.0 %", "5.0 %",
    )  # fmt: skip
    old = shown_mistake(own.model_copy(update={"actual_probability": None}))
    assert (old.actual_probability, old.overlays) == ("", ())
