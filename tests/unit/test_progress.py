from __future__ import annotations

import pytest

from bigtransfer import progress


def test_lines_without_a_terminal_tell_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 4.0, 5.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("pretrain", 100, unit="step") as advance:
        for done in (10, 40, 50):
            advance(done, "loss 1.0")
    assert capsys.readouterr().err == "pretrain: 40 of 100 steps, 10.0/s, 6 s left, loss 1.0\n"


def test_tracked_yields_every_item() -> None:
    assert list(progress.tracked(range(5), "x", 5, unit="image")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (5400, "90 min"), (9000, "2.5 h"),
     (10 * 24 * 3600, "10.0 days")],
)  # fmt: skip
def test_a_length_of_time_is_one_that_people_say(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
