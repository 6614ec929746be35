"""How far a score may be off by chance: intervals of 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959964  # of the normal distribution, two-sided 95 %
_QUANTILES = (0.025, 0.975)
_RESAMPLES = 2_000


def wilson(share: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was counted on so many images.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference": it stays
    within [0, 1], and is right for few images and shares near 0 or 1.

    Args:
        share: Of the images, in [0, 1]; a median over networks need be no whole number of them.
        images: How many, at least 1.

    Raises:
        ValueError: If there are no images.
    """
    if images < 1:
        raise ValueError("an interval needs at least one image")
    widening = _Z**2 / images
    centre = (share + widening / 2) / (1 + widening)
    half = _Z * math.sqrt(share * (1 - share) / images + widening / (4 * images)) / (1 + widening)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_median(scores: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a median over seeds, by resampling the seeds.

    With few seeds that is hardly less than their range; of one there is none.

    Args:
        scores: One per seed.
    """
    if len(scores) < 2:
        return None
    drawn = np.random.default_rng(0).choice(scores, (_RESAMPLES, len(scores)))
    lowest, highest = np.quantile(np.median(drawn, axis=1), _QUANTILES)
    return float(lowest), float(highest)
