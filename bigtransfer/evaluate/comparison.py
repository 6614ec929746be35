"""Two reports on one test split: which model is better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigtransfer.artifacts.report import TaskReport
from bigtransfer.errors import ConfigError
from bigtransfer.metrics.comparison import Comparison, compare
from bigtransfer.storage import verify_folder


def compare_reports(first: Path, second: Path) -> Comparison:
    """Compare two report folders, image by image.

    Args:
        first: Written by `evaluate`.
        second: Likewise.

    Raises:
        ConfigError: If they are not about the same test split, or about several labels per image.
        StorageError: If one is no undamaged report.
    """
    one, two = _report(first), _report(second)
    if one.test_digest != two.test_digest:
        raise ConfigError(
            f"{str(first)!r} and {str(second)!r} were measured on different test splits "
            f"({one.dataset}, {one.test_images:,} images; {two.dataset}, "
            f"{two.test_images:,}); evaluate both models on one"
        )
    if one.hits is None or two.hits is None:
        raise ConfigError("images have several labels here; only top-1 can be compared this way")
    return compare(_array(one.hits), _array(two.hits))


def _report(folder: Path) -> TaskReport:
    verify_folder(folder)
    return TaskReport.read(folder)


def _array(hits: str) -> NDArray[np.int64]:
    return np.array([*map(int, hits)], np.int64)
