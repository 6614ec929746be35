"""Why a task failed, by words alone."""

from __future__ import annotations

import pytest

from bigtransfer.errors import BigTransferError, GateError, InfrastructureError
from bigtransfer.kubeflow.reasons import (
    Ending,
    Failure,
    Refusal,
    Sources,
    ending_of,
    raise_for,
    refusal_in,
)
from bigtransfer.kubeflow.run_state import RunState, Task


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("validate@digits: 3 bad images [exit 3]", ("validate@digits", 3, "3 bad images")),
        ("pretrain: a: b [x] [exit 75]\n", ("pretrain", 75, "a: b [x]")),
        ("a: old [exit 2]\nnoise\na: new [exit 3]\nlauncher says", ("a", 3, "new")),
        ("main: exit status 1: fetch@a/b: gone [exit 2], sorry", ("fetch@a/b", 2, "gone")),
        ("finetune@digits: shard x: gone [exit 2]", ("finetune@digits", 2, "shard x: gone")),
        ("finetune@digits: evaluate: no [exit 2]", ("finetune@digits", 2, "evaluate: no")),
        ("say: hello [exit 2]", ("say", 2, "hello")),
        ("exit 3", None),
        ("a: b [exit x]", None),
        ("", None),
    ],
)  # fmt: skip
def test_our_line_is_the_last_of_its_form(text: str, found: tuple[str, int, str] | None) -> None:
    assert refusal_in(text) == (Refusal(found[0], found[1], found[2]) if found else None)


def failed(*tasks: Task, message: str = "") -> RunState:
    return RunState("FAILED", tasks, message)


def test_what_a_stage_left_behind_counts_where_no_log_is_found() -> None:
    task = Task("t", "validate@digits", "FAILED", message="Error (exit code 1)", pods=("p",))
    left = {"validate@digits": Refusal("validate@digits", 3, "no")}
    ending = ending_of(failed(task), Sources(logs=(lambda _: "",), refusals=lambda: left))
    assert ending.failures == (Failure("validate@digits", "no", 3),)
    assert ending_of(failed(), Sources(refusals=lambda: left)).failures == ending.failures


def test_sources_are_asked_in_order_and_no_further_than_needed() -> None:
    asked: list[str] = []

    def log(name: str, text: str) -> str:
        asked.append(name)
        return text

    task = Task("t", "audit", "FAILED", pods=("p",))
    logs = (lambda _: log("api", "noise"), lambda _: log("kept", "audit: leak [exit 3]"),
            lambda _: log("pod", "audit: other [exit 2]"))  # fmt: skip
    assert ending_of(failed(task), Sources(logs=logs)).failures[0].exit_code == 3
    assert asked == ["api", "kept"]


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("Error: pod deleted", True),
        ("pod deleted", True),
        ("Pod was deleted", True),
        ("The node was low on resource: memory.", True),
        ("Pod was terminated in response to imminent node shutdown.", True),
        ("Preempted by a pod of higher priority", True),
        ("node is unreachable", True),
        ("Error (exit code 143)", True),
        ("Error (exit code 137): OOMKilled", False),
        ("Error (exit code 1430)", False),
        ("No metric or metadata was found for ClassificationMetric artifact", False),
        ("Step exceeded its deadline", False),
        ("rpc error: code = Unavailable desc = connection refused", True),
    ],
)
def test_what_is_a_loss(message: str, lost: bool) -> None:
    ending = ending_of(failed(Task("t", "a", "FAILED", message=message)), Sources())
    assert ending.lost is lost


def test_words_that_are_said_of_every_failure_give_way_to_the_engines() -> None:
    task = Task("t", "a", "FAILED", message="No more retries left")
    ending = ending_of(failed(task), Sources(engine=lambda _: "forbidden: exceeded quota: team"))
    assert ending.failures == (Failure("a", "forbidden: exceeded quota: team"),)


LOST = Failure("pretrain", "pod deleted", lost=True)
GATE = Failure("audit", "a leak", 3)
WRONG = Failure("fetch", "no address", 2)
UNTOLD = Failure("shard", "exit status 1")


@pytest.mark.parametrize(
    ("failures", "kind", "code"),
    [
        ((LOST,), InfrastructureError, 75),
        ((LOST, LOST), InfrastructureError, 75),
        ((GATE, GATE), GateError, 3),
        ((WRONG,), BigTransferError, 2),
        ((UNTOLD,), BigTransferError, 2),
        ((GATE, WRONG), BigTransferError, 2),
        ((GATE, LOST), BigTransferError, 2),
        ((LOST, UNTOLD), BigTransferError, 2),
    ],
)
def test_an_ending_has_an_exit_code(
    failures: tuple[Failure, ...], kind: type[BigTransferError], code: int
) -> None:
    names = ", ".join(f.stage for f in sorted(failures, key=lambda f: f.lost))  # to be mended first
    with pytest.raises(kind, match=f"in {names}: ") as raised:
        raise_for(Ending(False, failures=failures), "http://look")
    assert raised.value.exit_code == code
    assert "look at http://look" in str(raised.value)


def test_a_run_without_a_task_to_blame_says_what_was_said_of_it() -> None:
    with pytest.raises(
        BigTransferError, match="the run failed: no such image; look at http"
    ) as one:
        raise_for(Ending(False, message="no such image"), "http://look")
    assert one.value.exit_code == 2
    with pytest.raises(InfrastructureError, match="pod deleted"):
        raise_for(Ending(False, message="Error: pod deleted"), "http://look")
    raise_for(Ending(True), "http://look")


def test_another_process_of_a_task_speaks_for_it() -> None:
    found = refusal_in("pretrain, process 1: a peer is lost [exit 75]")
    assert found is not None
    assert (found.stage, found.exit_code) == ("pretrain", 75)
