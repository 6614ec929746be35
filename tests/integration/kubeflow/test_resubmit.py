"""`kfp run submit --wait --resubmit N`: the same again where tasks were lost, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fixtures.kfp_api import DIALECTS, Api, Fake, run_of, submit

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.xdist_group("kfp")]


def ended(dialect: str, message: str, *more: Fake) -> dict[str, Any]:
    return run_of(dialect, "FAILED", Fake("pretrain", "FAILED", ("p-1",), message), *more)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_lost_pod_is_submitted_again(
    dialect: str, api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = ended(dialect, "Error: pod deleted")
    done = run_of(dialect, "SUCCEEDED", Fake("pretrain", "SUCCEEDED", ("p-2",)))
    api.by_run = {"r0": [lost], "r1": [lost], "r2": [done]}
    words = ["--wait", "--resubmit", "3", "-r", "night", "-e", "trial", "text=bye"]
    assert submit(own, "--endpoint", api.url, *words) == 0
    assert [run["display_name"] for run in api.runs] == ["night", "night (2)", "night (3)"]
    assert {run["experiment_id"] for run in api.runs} == {"e0"}
    first, *others = [(run["pipeline_spec"], run["runtime_config"]) for run in api.runs]
    assert others == [first, first]
    assert first[1]["parameters"] == {"text": "bye"}
    out = capsys.readouterr().out
    assert (
        "again    submission 2 of 4: lost pretrain (Error: pod deleted); before: "
        f"{api.url}/#/runs/details/r0" in out
    )
    assert [f"run {n + 1}    {api.url}/#/runs/details/r{n}" in out for n in range(3)] == [True] * 3


def test_it_ends_after_so_many(api: Api, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.states = [ended("tasks", "Error: pod deleted")]
    assert submit(own, "--endpoint", api.url, "--wait", "--resubmit", "2") == 75
    assert len(api.runs) == 3
    said = capsys.readouterr().err
    assert "details/r2; it was submitted 3 times; mend the cluster" in said


@pytest.mark.parametrize(
    ("message", "runs"),
    [
        ("pretrain: s3 does not answer; try later [exit 75]", 2),
        ("Failed: exit code 143", 2),
        ("main: exit code 137", 2),
        ("The node was low on resource: ephemeral-storage", 2),
        ("pretrain: loss exceeds its limit [exit 2]", 1),
        ("pretrain: the gate says no [exit 3]", 1),
        ("OOMKilled (exit code 137)", 1),
        ("Error (exit code 1)", 1),
        ("", 1),
    ],
)
def test_only_what_was_lost_is_submitted_again(
    message: str, runs: int, api: Api, own: Path
) -> None:
    api.states = [ended("tasks", message)]
    assert submit(own, "--endpoint", api.url, "--wait", "--resubmit", "1") != 0
    assert len(api.runs) == runs


def test_mixed_failures_are_not_submitted_again(api: Api, own: Path) -> None:
    wrong = Fake("validate@digits", "FAILED", ("p",), "validate@digits: no image [exit 2]")
    api.states = [ended("tasks", "Error: pod deleted", wrong)]
    assert submit(own, "--endpoint", api.url, "--wait", "--resubmit", "1") == 2
    assert len(api.runs) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resubmit", "2"], "--resubmit needs --wait"),
        (["--wait", "--resubmit", "0"], "--resubmit 0: give how often, 1 or more"),
    ],
)
def test_a_resubmission_that_nobody_can_watch_is_refused(
    words: list[str], message: str, api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(own, "--endpoint", api.url, *words) == 2
    assert message in capsys.readouterr().err
    assert api.runs == []
