"""Random numbers as a pure function of named counters: nothing to save, nothing to replay.

A draw is keyed by (seed, epoch, sample, purpose), so it is the same for every batch split, worker
count and resume. The mixing function is SplitMix64's finaliser (Steele, Lea, Flood 2014,
"Fast splittable pseudorandom number generators"), applied once per key word.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def keyed_uniform(*keys: ArrayLike) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1), one per broadcast element of the integer keys.

    Args:
        keys: Non-negative integers or arrays of them, e.g. seed, epoch (B,), sample (B,), purpose.

    Returns:
        Array of the keys' broadcast shape.
    """
    with np.errstate(over="ignore"):
        state: NDArray[np.uint64] | np.uint64 = np.uint64(0)
        for key in keys:
            state = _mix(state ^ np.asarray(key).astype(np.uint64))
    uniform: NDArray[np.float64] = np.asarray(state >> np.uint64(11)).astype(np.float64) / 2**53
    return uniform


def keyed_generator(*keys: int) -> np.random.Generator:
    """Return a generator keyed by a few integers, for draws that are not uniform."""
    return np.random.default_rng(np.random.SeedSequence(keys))


def _mix(value: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64] | np.uint64:
    value = value + _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))
