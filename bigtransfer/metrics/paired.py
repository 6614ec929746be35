"""Is a model better than another: both answered the same images, with the same seeds.

An image that is hard is hard for every seed, and a lucky seed is lucky on every image; so the mean
difference varies with both, and pairs of them do not count as so many independent ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

_ONE_SIDED = 0.95
_OFTEN = 0.8


@dataclass(frozen=True)
class Gain:
    """How much the second model scores above the first."""

    images: int
    seeds: int
    mean: float
    """Over pairs of an image and a seed."""
    error: float
    """Its standard error."""
    freedom: float
    """Degrees of freedom of that error."""

    @property
    def lowest(self) -> float:
        """Return the lower end of the one-sided 95 % interval."""
        return self.mean - self.quantile(_ONE_SIDED) * self.error

    @property
    def highest(self) -> float:
        """Return the upper end of the one-sided 95 % interval."""
        return self.mean + self.quantile(_ONE_SIDED) * self.error

    @property
    def smallest_proof(self) -> float:
        """Return the true gain that these images would show four times out of five."""
        return (self.quantile(_ONE_SIDED) + self.quantile(_OFTEN)) * self.error

    def quantile(self, share: float) -> float:
        """Return how many standard errors a share of all draws stays below."""
        return float(student.ppf(share, self.freedom))


def gain(first: NDArray[np.floating], second: NDArray[np.floating]) -> Gain:
    """Return how much the second scores above the first.

    Variance: that of images plus that of seeds less what both count (Cameron, Gelbach and Miller
    2011), with degrees of freedom by Satterthwaite. Of one seed nobody knows how lucky it was.

    Args:
        first: (S, N) scores in [0, 1] of S seeds on N images.
        second: Likewise, of the same seeds and images.

    Raises:
        ValueError: If there are fewer than two images, or the shapes differ.
    """
    apart = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    if apart.ndim != 2 or apart.shape[1] < 2 or not len(apart) or first.shape != second.shape:
        raise ValueError("two images and a seed are the least that can be compared")
    seeds, images = apart.shape
    mean = float(apart.mean())
    by_image = float(apart.mean(axis=0).var(ddof=1)) / images
    if seeds == 1:
        return Gain(images, 1, mean, by_image**0.5, images - 1.0)
    by_seed = float(apart.mean(axis=1).var(ddof=1)) / seeds
    rest = apart - apart.mean(axis=0) - apart.mean(axis=1, keepdims=True) + mean
    both = float((rest**2).sum()) / ((seeds - 1) * (images - 1)) / (seeds * images)
    of_seeds = max(by_seed - both, 0.0)
    variance = by_image + of_seeds
    freedom = images - 1.0
    if of_seeds:
        freedom = variance**2 / (by_image**2 / (images - 1) + of_seeds**2 / (seeds - 1))
    return Gain(images, seeds, mean, variance**0.5, freedom)
