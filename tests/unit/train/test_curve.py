from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from bigtransfer.errors import StorageError
from bigtransfer.train.curve import Curve, Row, thinned


def rows(path: Path) -> list[Row]:
    with closing(Curve(path)) as curve:
        return curve.rows


def test_a_point_stands_there_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with closing(Curve(path)) as curve:
        assert curve.add(1, {"loss": 0.1 + 0.2}) == {"loss": 0.1 + 0.2}
        assert curve.add(1, {"loss": 0.1 + 0.2, "rate": 0.5}) == {"rate": 0.5}
        assert curve.add(1, {"loss": 7.0}) == {}
    with closing(Curve(path)) as again:
        assert again.rows == [{"step": 1, "loss": 0.1 + 0.2, "rate": 0.5}]
        assert again.value(1, "rate") == 0.5
        assert not again.has(2, "loss")


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', "{", "\x00\x00"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    with closing(Curve(path)) as curve:
        curve.add(2, {"loss": 1.0})
    path.write_text(path.read_text() + torn)
    with closing(Curve(path)) as curve:
        curve.add(3, {"loss": 2.0})
    assert rows(path) == [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 2.0}]


def test_what_is_no_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[1, 2]\n')
    with pytest.raises(StorageError, match=r"metrics.jsonl', line 2, is no row of a metrics"):
        Curve(tmp_path / "metrics.jsonl")


def test_a_shorter_journal_is_replaced_by_that_of_the_checkpoint(tmp_path: Path) -> None:
    with closing(Curve(tmp_path / "checkpoint.jsonl")) as kept:
        for step in (1, 2, 3):
            kept.add(step, {"loss": float(step)})
    with closing(Curve(tmp_path / "metrics.jsonl")) as own:
        own.add(1, {"loss": 1.0})
        own.take_from(kept.path)
        assert [row["step"] for row in own.rows] == [1, 2, 3]
        own.add(4, {"loss": 4.0})
        own.take_from(kept.path)
        assert [row["step"] for row in own.rows] == [1, 2, 3, 4]


def test_a_long_curve_becomes_means_of_stretches_and_keeps_its_scores() -> None:
    rows = [{"step": step, "loss": float(step), "rate": 1.0} for step in range(1, 1001)]
    rows[332]["val_top1"] = 0.5
    found = thinned(rows, points=10)
    assert [row["step"] for row in found] == [100, 200, 300, 333, *range(400, 1001, 100)]
    assert found[0] == {"step": 100, "loss": 50.5, "rate": 1.0}
    assert found[3] == {"step": 333, "val_top1": 0.5}
    assert thinned(rows[:5], points=10) == rows[:5]
    assert thinned([]) == []
