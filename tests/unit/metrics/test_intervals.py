from __future__ import annotations

import numpy as np
import pytest

from bigtransfer.metrics.intervals import bootstrap_median, wilson


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
     (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_wilson_is_the_published_one(hits: int, images: int, low: float, high: float) -> None:
    assert wilson(hits / images, images) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(1 - hits / images, images)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_no_image_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        wilson(0.5, 0)


def test_seeds_are_resampled() -> None:
    assert bootstrap_median([0.7]) is None
    assert bootstrap_median([0.5, 0.6, 0.9]) == pytest.approx((0.5, 0.9))
    many = np.linspace(0.4, 0.6, 101)
    low, high = bootstrap_median(many.tolist()) or (0, 1)
    assert 0.4 < low < 0.5 < high < 0.6
    assert bootstrap_median(many.tolist()) == (low, high)
