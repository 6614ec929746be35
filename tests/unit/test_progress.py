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


def lines_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    calls: list[tuple[float, int, int]], start: int = 0,
) -> list[str]:  # fmt: skip
    """Return what is printed where `advance` is called at (second, done, leap)."""
    clock = iter([0.0, *(second for second, _, _ in calls)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("tune", 10_000, unit="step", start=start) as advance:
        for _, done, leap in calls:
            advance(done, "", leap=leap)
    return capsys.readouterr().err.splitlines()


def test_the_time_left_is_that_of_the_last_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = [(float(s), 10 * s, 0) for s in range(1, 301)]
    slow = [(300.0 + s, 3000 + s, 0) for s in range(1, 91)]
    lines = lines_at(monkeypatch, capsys, fast + slow)
    assert "10.0/s" in lines[20]
    assert ", 1.0/s, 115 min left" in lines[-1]


def test_what_an_earlier_run_did_is_not_reckoned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [(float(s), 5000 + s, 5000 if s == 1 else 0) for s in range(1, 20)]
    lines = lines_at(monkeypatch, capsys, calls)
    assert lines[-1].startswith("tune: 5,0") and "1.0/s" in lines[-1] and "83 min" in lines[-1]
    resumed = lines_at(monkeypatch, capsys, [(3.0, 5003, 0)], start=5000)
    assert resumed == ["tune: 5,003 of 10,000 steps, 1.0/s, 83 min left"]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 networks"), (1, "1 network"), (2000, "2,000 networks")]
)
def test_one_is_no_plural(number: int, text: str) -> None:
    assert progress.counted(number, "network") == text
    assert progress.counted(number, "class", "classes").endswith(
        "class" if number == 1 else "classes"
    )
