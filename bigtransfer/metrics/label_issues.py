"""Labels that look wrong, by confident learning (Northcutt et al. 2021, arXiv 1911.00068).

Only networks that were not trained on an image speak about it. An image counts for the most
probable among the classes that are as probable as they usually are among their own images; a label
is doubted where that is another class than the given one, and the most probable of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label should be looked at."""

    position: int
    """In the arrays that were given."""
    given: int
    """Class that it is labelled with."""
    likely: int
    """Class that the networks see."""
    given_probability: float
    likely_probability: float


def find_label_issues(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> list[LabelIssue]:
    """Return label issues, the most doubtful label first.

    Args:
        probabilities: (N, C) calibrated, by networks that were not trained on the image; rows of
            NaN where there is none.
        labels: (N,) as given.
    """
    known = np.flatnonzero(~np.isnan(probabilities[:, 0]))
    p, y = probabilities[known], labels[known]
    classes = p.shape[1]
    counts = np.bincount(y, minlength=classes)
    own = p[np.arange(len(y)), y]
    with np.errstate(invalid="ignore"):
        usual = np.bincount(y, own, minlength=classes) / counts
    usual[counts == 0] = np.inf
    confident = np.where(p >= usual, p, -1.0)
    likely = confident.argmax(axis=1)
    # Where the network itself thinks the given class most probable, it doubts nothing.
    leads = likely == p.argmax(axis=1)
    found = np.flatnonzero((confident.max(axis=1) > 0) & (likely != y) & leads)
    gap = p[found, likely[found]] - own[found]
    return [
        LabelIssue(int(known[i]), int(y[i]), int(likely[i]), float(own[i]), float(p[i, likely[i]]))
        for i in found[np.argsort(-gap, kind="stable")]
    ]
