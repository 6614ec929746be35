"""Two reports on one test split: which is better, and whether the images suffice to say so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigtransfer.errors import ConfigError
from bigtransfer.storage import read_json, verify_folder

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


def compare_reports(first: Path, second: Path) -> Comparison:
    """Compare two report folders, by a bootstrap over the test images they share.

    Args:
        first: Written by `evaluate`.
        second: Likewise.

    Raises:
        ConfigError: If they are not about the same test split, or about several labels per image.
        StorageError: If one is no undamaged report.
    """
    one, two = _report(first), _report(second)
    if one["test_digest"] != two["test_digest"]:
        raise ConfigError(
            f"{str(first)!r} and {str(second)!r} were measured on different test splits "
            f"({one['dataset']}, {one['test_images']:,} images; {two['dataset']}, "
            f"{two['test_images']:,}); evaluate both models on one"
        )
    if one["multi_label"]:
        raise ConfigError("images have several labels here; only top-1 can be compared this way")
    hits = np.array([list(map(int, report["hits"])) for report in (one, two)])
    gained, lost = int((hits[1] > hits[0]).sum()), int((hits[1] < hits[0]).sum())
    images = hits.shape[1]
    # Resampling paired images with replacement: only how many of each kind are drawn matters.
    drawn = np.random.default_rng(0).multinomial(
        images, [gained / images, lost / images, 1 - (gained + lost) / images], _RESAMPLES
    )
    lowest, highest = np.quantile((drawn[:, 0] - drawn[:, 1]) / images, _INTERVAL)
    top1 = hits.mean(axis=1)
    return Comparison(float(top1[0]), float(top1[1]), float(lowest), float(highest), lost, gained)


def _report(folder: Path) -> dict[str, Any]:
    verify_folder(folder)
    report: dict[str, Any] = read_json(folder / "report.json")
    return report
