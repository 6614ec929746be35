from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest

from bigtransfer.errors import ConfigError, InfrastructureError, StoppedError
from bigtransfer.retry import doubling, retry, run_again


def failing(times: int) -> Callable[[], str]:
    left = [times]

    def action() -> str:
        if left[0]:
            left[0] -= 1
            raise OSError("away")
        return "done"

    return action


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr("bigtransfer.retry.time.sleep", seconds.append)
    return seconds


def test_it_is_done_again_until_it_works(slept: list[float]) -> None:
    told: list[float] = []
    found = retry(
        failing(3), may_help=lambda _: True, pauses=doubling(1, longest=3),
        tell=lambda error, seconds: told.append(seconds),
    )  # fmt: skip
    assert found == "done"
    assert told == slept
    assert all(most / 2 <= own <= most for own, most in zip(slept, [1, 2, 3], strict=True))


def test_it_ends_with_the_pauses_or_where_no_attempt_helps(slept: list[float]) -> None:
    with pytest.raises(OSError, match="away"):
        retry(failing(3), may_help=lambda _: True, pauses=[0, 0])
    assert len(slept) == 2
    with pytest.raises(OSError, match="away"):
        retry(failing(3), may_help=lambda _: False, pauses=[0, 0])
    assert len(slept) == 2


def test_pauses_double() -> None:
    assert list(islice(doubling(1, longest=5), 4)) == [1, 2, 4, 5]


def raising(*errors: Exception) -> tuple[Callable[[], None], list[int]]:
    waiting, calls = list(errors), [0]

    def run() -> None:
        calls[0] += 1
        if waiting:
            raise waiting.pop(0)

    return run, calls


def test_what_may_work_the_next_time_is_tried_five_times(slept: list[float]) -> None:
    told: list[str] = []
    run, calls = raising(*[InfrastructureError("the bucket is away")] * 4)
    run_again(run, told.append)
    assert calls == [5]
    assert all(7.5 * 2**i <= pause <= 15 * 2**i for i, pause in enumerate(slept))
    assert told[0].startswith("the bucket is away; attempt 2 of 5 in ")
    run, calls = raising(*[InfrastructureError("the bucket is away")] * 5)
    with pytest.raises(InfrastructureError):
        run_again(run, told.append)
    assert calls == [5]


@pytest.mark.parametrize("error", [StoppedError("SIGTERM"), ConfigError("wrong")])
def test_what_will_not_is_not(error: Exception) -> None:
    run, calls = raising(error)
    with pytest.raises(type(error)):
        run_again(run, print)
    assert calls == [1]
