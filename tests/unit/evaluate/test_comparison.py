from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigtransfer.errors import ConfigError
from bigtransfer.evaluate.comparison import compare_reports
from bigtransfer.storage import new_folder
from fixtures.reports import task_report


def report(folder: Path, hits: str | None, **changes: Any) -> Path:
    with new_folder(folder) as partial:
        task_report(hits=hits, **changes).write(partial)
    return folder


def test_a_clear_difference_and_none(tmp_path: Path) -> None:
    first = report(tmp_path / "a", "1" * 50 + "0" * 50)
    better = report(tmp_path / "b", "1" * 80 + "0" * 20)
    found = compare_reports(first, better)
    assert (found.first, found.second) == (0.5, 0.8)
    assert (found.only_first, found.only_second) == (0, 30)
    # 30 gained of 100: standard error sqrt(0.3 * 0.7 / 100) = 0.046.
    assert found.lowest == pytest.approx(0.3 - 1.96 * 0.046, abs=0.02)
    assert found.highest == pytest.approx(0.3 + 1.96 * 0.046, abs=0.02)
    assert found.verdict == "the second is better"
    assert compare_reports(better, first).verdict == "the first is better"

    other = report(tmp_path / "c", "0" * 5 + "1" * 50 + "0" * 45)
    assert compare_reports(first, other).verdict == "these images show no difference"


def test_pairing_matters(tmp_path: Path) -> None:
    """Equal gains on the same images are sure; the same totals on other images are not."""
    first = report(tmp_path / "a", "1" * 50 + "0" * 50)
    nested = compare_reports(first, report(tmp_path / "b", "1" * 55 + "0" * 45))
    apart = compare_reports(first, report(tmp_path / "c", "0" * 45 + "1" * 55))
    assert nested.second == apart.second
    assert nested.lowest > 0 > apart.lowest


def test_reports_on_other_images_or_of_several_labels_are_refused(tmp_path: Path) -> None:
    first = report(tmp_path / "a", "10")
    with pytest.raises(ConfigError, match="different test splits"):
        compare_reports(first, report(tmp_path / "b", "10", test_digest="u"))
    several = report(tmp_path / "c", None)
    with pytest.raises(ConfigError, match="several labels"):
        compare_reports(several, several)
