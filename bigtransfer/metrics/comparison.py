"""Two models on the same images: which is better, and whether the images suffice to say so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Comparison:
    """Top-1 of two models on the same images, in [0, 1]."""

    first: float
    second: float
    lowest: float
    """Lower end of the 95 % interval of second - first."""
    highest: float
    only_first: int
    """Images that the first alone gets right."""
    only_second: int

    @property
    def verdict(self) -> str:
        """Return in words what the interval allows to say."""
        if self.lowest > 0:
            return "the second is better"
        return "the first is better" if self.highest < 0 else "these images show no difference"


def compare(first: NDArray[np.int64], second: NDArray[np.int64]) -> Comparison:
    """Compare two models by a bootstrap over the test images that they share.

    Args:
        first: (N,) 1 where the first model is right, else 0.
        second: Likewise, of the same images in the same order.
    """
    gained, lost = int((second > first).sum()), int((second < first).sum())
    images = len(first)
    # Resampling paired images with replacement: only how many of each kind are drawn matters.
    drawn = np.random.default_rng(0).multinomial(
        images, [gained / images, lost / images, 1 - (gained + lost) / images], _RESAMPLES
    )
    lowest, highest = np.quantile((drawn[:, 0] - drawn[:, 1]) / images, _INTERVAL)
    return Comparison(
        float(first.mean()), float(second.mean()), float(lowest), float(highest), lost, gained
    )
