"""The reconciler, with a queue that does what it is told: what is begun, again, and given up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.storage import as_json, write_text
from bigtransfer.storage.home import failure_file
from bigtransfer.study import runner as runner_module
from bigtransfer.study.cells import StudyCell, cells_of
from bigtransfer.study.dvc_queue import Entry, State
from bigtransfer.study.runner import Runner, Told
from bigtransfer.study.states import Result
from bigtransfer.study.study_file import read_study
from fixtures.project import PROJECT

COMMIT = "ab" * 20
FULL = """pretrain: 31 of 338 steps, 1.0/s, 5 min left, loss 3.700
pretrain: the disk is full while writing 'x' (0 bytes free); free some space and run again
ERROR: failed to reproduce 'pretrain': failed to run: python -m components.pretrain, exited with 75
"""


class Queue:
    """Stands for DVC's; `becomes` says what happens to a cell each time that it is begun."""

    def __init__(self, becomes: Mapping[str, Sequence[str]], project: Path) -> None:
        self.becomes = {name: [*own] for name, own in becomes.items()}
        self.project = project
        self.entries: dict[str, State] = {}
        self.put_names: list[str] = []
        self.most = 0
        self.log = "the log"

    def put(self, name: str, overrides: Any, targets: Any) -> None:
        self.put_names.append(name)
        self.entries[name] = "running"

    def look(self) -> dict[str, Entry]:
        found = {name: Entry(name, state) for name, state in self.entries.items()}
        self.most = max(self.most, sum(entry.state == "running" for entry in found.values()))
        for name, state in self.entries.items():
            if state == "running":
                outcome = self.becomes[name].pop(0)
                self.entries[name] = "lost" if outcome == "lost" else "done"
                if outcome.isdigit():
                    facts = {"stage": "pretrain", "exit_code": int(outcome), "message": "said"}
                    write_text(failure_file(self.project, name), as_json(facts))
                elif outcome == "full":
                    self.log = FULL
                elif outcome == "finished":
                    RESULTS[name] = result()
        return found

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            self.entries.pop(name, None)

    def start(self, devices: Any) -> None: ...

    def end_orphans(self) -> None: ...

    def end_of(self, name: str) -> tuple[bool, str]:
        return False, self.log


class Clone:
    """Stands for the clone of the project."""

    commit, is_there = COMMIT, True

    def __init__(self, project: Path) -> None: ...

    def fetch(self, names: Any) -> None: ...

    def forget(self, refs: Any) -> None: ...

    def reset(self, commit: str) -> None: ...

    def unlock(self) -> None: ...


RESULTS: dict[str, Result] = {}


def result(mark: str = "", commit: str = COMMIT) -> Result:
    ref = f"refs/exps/{commit[:2]}/{commit[2:]}/x"
    return Result(
        val_top1=0.9, steps=1, images=1, parameters=1, scores={"digits": {0: 0.5}},
        metrics={"digits": "top1"}, curve=(), ref=ref, mark=mark,
    )  # fmt: skip


class Found:
    """Stands for the finished cells."""

    def __init__(self, project: Path) -> None: ...

    def refs(self, cell: StudyCell) -> list[str]:
        return []

    def of(self, cell: StudyCell) -> Result | None:
        return RESULTS.get(cell.name)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    RESULTS.clear()
    monkeypatch.setattr(runner_module, "Results", Found)
    monkeypatch.setattr(runner_module, "Clone", Clone)
    monkeypatch.setattr(runner_module, "_SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(runner_module, "states_of", lambda project, cells: [])

    def run(axes: dict[str, Any], *outcomes: Sequence[str], before: str = "") -> Any:
        path = tmp_path / "one.yaml"
        path.write_text(json.dumps({
            "about": "x", "axes": axes, "plot": {"x": next(iter(axes))},
            "downstream": {"tasks": ["digits"], "seeds": [0], "examples_per_class": [5]},
        }))  # fmt: skip
        cells = cells_of(read_study(path), PROJECT / "params.yaml")
        if before:
            RESULTS.update({cell.name: result(before, "cd" * 20) for cell in cells})
        queue = Queue({cell.name: own for cell, own in zip(cells, outcomes, strict=True)}, tmp_path)
        monkeypatch.setattr(Runner, "_opened", lambda self, clone: queue)
        lines: list[str] = []
        made = Runner(tmp_path, cells, [None, None], Told(lines.append))
        failed = made.run(retry=False)
        return queue, failed, lines

    return run


def test_a_killed_cell_is_begun_again(study: Any) -> None:
    queue, failed, lines = study({"norm": ["bn"]}, ["lost", "75", "finished"])
    assert failed == {} and len(queue.put_names) == 3
    assert sum("begun again" in line for line in lines) == 2


def test_but_three_times_at_most(study: Any) -> None:
    queue, failed, _ = study({"norm": ["bn"]}, ["lost"] * 9)
    assert len(failed) == 1 and len(queue.put_names) == 3


@pytest.mark.parametrize("code", ["1", "2", "3"])
def test_what_a_stage_refuses_is_not_begun_again_and_others_go_on(study: Any, code: str) -> None:
    queue, failed, lines = study({"norm": ["bn", "gn"]}, [code], ["finished"])
    assert len(failed) == 1 and len(queue.put_names) == 2
    assert any(f"said (exit {code})" in line for line in lines)


def test_a_full_disk_is_told_though_it_could_not_be_written_down(study: Any) -> None:
    queue, failed, lines = study({"norm": ["bn"]}, ["full"] * 9)
    assert [*failed.values()] == [75] and len(queue.put_names) == 3
    assert sum("the disk is full while writing 'x'" in line for line in lines) == 4, lines
    queue, failed, _ = study({"norm": ["bn"]}, ["full", "finished"])
    assert not failed, "it goes on once there is room"


def test_an_end_without_a_word_is_no_kill(study: Any) -> None:
    queue, failed, lines = study({"norm": ["bn"]}, ["nothing"])
    assert len(failed) == 1 and len(queue.put_names) == 1
    assert "the log" in lines


def test_a_marked_cell_is_made_anew_and_may_be_killed_on_the_way(study: Any) -> None:
    marked = "other code: bigtransfer/train"
    queue, failed, _ = study({"norm": ["bn"]}, ["lost", "finished"], before=marked)
    assert failed == {} and len(queue.put_names) == 2


def test_a_marked_cell_that_a_stage_refuses_says_why(study: Any) -> None:
    _, failed, lines = study({"norm": ["bn"]}, ["2"], before="other code: bigtransfer/train")
    assert len(failed) == 1 and any("said (exit 2)" in line for line in lines)


def test_cells_of_one_upstream_training_run_in_turn(study: Any) -> None:
    axis = {"finetune.weight_decay": [None, 0.1, 0.2]}
    queue, failed, _ = study(axis, ["finished"], ["finished"], ["finished"])
    assert failed == {} and queue.most == 1, "the second would find the training locked"
    queue, _, _ = study({"norm": ["bn", "gn"]}, ["finished"], ["finished"])
    assert queue.most == 2
