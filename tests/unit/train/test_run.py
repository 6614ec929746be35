"""One resumable run: what it saves is what the steps made; what is not its own it leaves alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import CheckpointError
from bigtransfer.model import create_model
from bigtransfer.train import checkpoints
from bigtransfer.train import run as running
from bigtransfer.train.checkpoints import read_state
from bigtransfer.train.compute import ComputeSettings
from bigtransfer.train.group import Group
from bigtransfer.train.loop import StepCallback
from bigtransfer.train.loss import loss_named
from bigtransfer.train.run import Recipe, ResumableRun, RunFolder
from bigtransfer.train.schedule import Schedule
from fixtures.training import HiddenSteps

META = {"code": "this", "cell": "a"}


class Saving(StepCallback):
    """Saves at one step, and does something more at it."""

    def __init__(self, run: ResumableRun, at: int, then: Callable[[], None]) -> None:
        self.seen: list[int] = []
        self._run, self._at, self._then = run, at, then

    def before_update(self) -> None:
        self._run.before_update()

    def after_step(self, step: int, loss: float, rate: float) -> None:
        self.seen.append(step)
        self._run.curve.add(step, {"loss": loss})

    def looks(self, step: int, reduced: Sequence[float]) -> bool:
        return step == self._at

    def look(self, step: int, reduced: Sequence[float]) -> None:
        if step == self._at:
            self._run.save(step, wait=False)
            self._then()


@pytest.fixture
def opened(packed: Path, tmp_path: Path) -> Any:
    """Return what opens a run of six steps in a folder."""
    torch.set_num_threads(1)
    shards = open_shards(packed)
    said: list[str] = []

    @contextmanager
    def open_run(
        meta: Mapping[str, Any] = META,
        compute: ComputeSettings | None = None,
        require_own: Callable[[Path, dict[str, Any]], None] = lambda folder, meta: None,
    ) -> Iterator[ResumableRun]:
        squares = Squares(shards, shards.rows("train"), 12)
        batches = TrainBatches(squares, batch_size=8, crop=10, flip=True, seed=0)
        recipe = Recipe(batches, Schedule(6, 0.1, 0, ()), loss_named("softmax"), 0.9, 0.0, None, 0)
        folder = RunFolder(tmp_path / "run", meta, said.append, require_own=require_own)
        model = create_model("R14x0.25", 3, "small", seed=0)
        with closing(ResumableRun(model, recipe, compute or ComputeSettings(), folder)) as run:
            yield run

    open_run.said = said  # type: ignore[attr-defined]
    return open_run


def nothing() -> None:
    pass


def stops() -> None:
    raise KeyboardInterrupt


def test_a_stopped_run_goes_on_to_the_same_weights(opened: Any) -> None:
    with opened() as whole:
        assert whole.restore() == 0
        whole.train(Saving(whole, 99, nothing))
        expected = {k: v.clone() for k, v in whole.whole_state()["weights"].items()}
        whole.clear()
    with opened() as first, pytest.raises(KeyboardInterrupt):
        first.restore()
        first.train(Saving(first, 4, stops))
    with opened() as second:
        assert second.restore() == 4
        callback = Saving(second, 99, nothing)
        second.train(callback)
        assert callback.seen == [5, 6]
        found = second.whole_state()["weights"]
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert [row["step"] for row in second.curve.rows] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_holds_what_the_steps_write_back(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "choose_step", HiddenSteps)
    with opened() as run:
        run.restore()
        run.train(Saving(run, 4, nothing))
        assert run.model.head.bias.tolist() == [6.0] * 3, "after the last step all see the weights"
        folder = run.curve.path.parent / "step-00000004"
    assert read_state(folder)["weights"]["head.bias"].tolist() == [4.0] * 3
    assert json.loads((folder / "meta.json").read_text()) == {
        **META, "schema": 2, "step": 4, "score": None,
    }  # fmt: skip


def test_the_checkpoint_under_way_is_finished_whatever_ends_the_run(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = checkpoints._written

    def slowly(*given: Any) -> str:
        time.sleep(0.2)
        return written(*given)

    monkeypatch.setattr(checkpoints, "_written", slowly)
    with opened() as run:
        run.restore()
        with pytest.raises(KeyboardInterrupt):
            run.train(Saving(run, 2, stops))
        assert (run.curve.path.parent / "step-00000002" / "MANIFEST.json").is_file()


def test_a_checkpoint_of_another_run_is_not_taken(opened: Any) -> None:
    with opened() as run:
        run.restore()
        run.train(Saving(run, 4, nothing))

    def refuses(folder: Path, meta: dict[str, Any]) -> None:
        raise CheckpointError(f"{folder.name} is of cell {meta['cell']}")

    with opened(require_own=refuses) as other:
        with pytest.raises(CheckpointError, match="none of the 1 checkpoints under"):
            other.restore()
        assert opened.said == ["passing over a checkpoint: step-00000004 is of cell a"]


def test_a_checkpoint_of_other_code_is_said_to_be_one(opened: Any) -> None:
    with opened() as run:
        run.restore()
        run.train(Saving(run, 4, nothing))
    with opened({**META, "code": "other"}) as newer:
        assert newer.restore() == 4
    (line,) = opened.said
    assert line.startswith("step-00000004 was written by another version of this program")


def test_other_processes_than_the_main_one_keep_nothing(opened: Any, tmp_path: Path) -> None:
    with opened(compute=ComputeSettings(group=Group(1, 2))) as run:
        run.require_room()
        run.before_update()
        assert not run.is_due(0)
        run.clear()
    assert not (tmp_path / "run").exists()
