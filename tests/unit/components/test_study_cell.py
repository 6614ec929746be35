"""What a stage of a cell ended with, and what the cell makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.errors import ConfigError, InfrastructureError, StoppedError
from bigtransfer.storage import as_json, write_text
from components import study_cell
from components.interface import Stage
from components.study_cell import _CellFailed, _Lines, _require_tasks

SIGINT, SIGTERM = 2, 15


class Section:
    name = "digits"

    def model_dump_json(self) -> str:
        return "{}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a stage that ends with a code, says so or not, and gets a signal or not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_cell, "_finished", set())
    stage: Any = Stage("study_cell@one", tmp_path, tmp_path / ".work", None)  # type: ignore[arg-type]

    def ended(
        code: int, *, says: int | None = None, stopped: int | None = None, torchrun: bool = False
    ) -> None:
        def fake(line: Sequence[str], environment: Mapping[str, str]) -> tuple[int, int | None]:
            assert environment["BIGTRANSFER_CELL"] == "study_cell@one"
            if says is not None:
                facts = {"stage": "pretrain", "exit_code": says, "message": "its words"}
                write_text(tmp_path / ".work" / "last-failure.json", as_json(facts))
            return code, stopped

        monkeypatch.setattr(study_cell, "_ended", fake)
        lines = _Lines(stage, None, tmp_path)  # type: ignore[arg-type]  # of no use here
        launcher = ["torch.distributed.run"] if torchrun else []
        lines._run("pretrain", "pretrain", Section(), {}, launcher)  # type: ignore[arg-type]

    return ended


@pytest.mark.parametrize("torchrun", [False, True])
@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_is_refused_is_an_outcome(run: Any, code: int, torchrun: bool) -> None:
    with pytest.raises(_CellFailed, match="pretrain: its words"):
        run(1 if torchrun else code, says=code, torchrun=torchrun)


@pytest.mark.parametrize("torchrun", [False, True])
@pytest.mark.parametrize("code", [4, 75])
def test_what_may_work_the_next_time_is_none(run: Any, code: int, torchrun: bool) -> None:
    with pytest.raises(InfrastructureError, match="pretrain: its words"):
        run(1 if torchrun else code, says=code, torchrun=torchrun)


@pytest.mark.parametrize("code", [-9, 137, 143])
def test_what_was_killed_is_none(run: Any, code: int) -> None:
    with pytest.raises(InfrastructureError, match="was killed by signal"):
        run(code)


def test_a_process_of_several_that_is_gone_without_a_word_is_none(run: Any) -> None:
    with pytest.raises(InfrastructureError, match="a process of it is gone"):
        run(1, torchrun=True)
    with pytest.raises(_CellFailed, match="ended with 1; its log says why"):
        run(1)


def test_what_was_stopped_is_neither_tried_again_here_nor_an_outcome(run: Any) -> None:
    for code in (75, 1, -15):
        with pytest.raises(StoppedError):
            run(code, says=75, stopped=SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(130, says=130, stopped=SIGINT)


def test_a_stage_that_is_through_is_not_run_again(run: Any) -> None:
    run(0)
    run(2, says=2)


def test_other_tasks_than_the_section_s_are_refused_beforehand() -> None:
    class Params:
        tasks = (Section(),)

    own = {"digits": Path()}
    _require_tasks(Params(), own, own)  # type: ignore[arg-type]  # all that it reads
    for wrong in ({}, {"digit": Path()}, {**own, "more": Path()}):
        with pytest.raises(ConfigError, match="--task-shards and --audit are wanted for each"):
            _require_tasks(Params(), own, wrong)  # type: ignore[arg-type]
