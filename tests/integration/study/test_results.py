"""What counts in a study: results of the same code, data and params, read from DVC's commits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtransfer.study.cells import StudyCell, cells_of
from bigtransfer.study.results import Results
from bigtransfer.study.states import Result
from bigtransfer.study.study_file import read_study
from fixtures.project import PROJECT, dvc, git
from fixtures.reports import scored_cell, task_report

STUDY = {
    "about": "One.", "axes": {"norm": ["bn"]}, "plot": {"x": "norm"},
    "downstream": {"tasks": ["digits"], "seeds": [0, 1], "examples_per_class": [1, 5]},
}  # fmt: skip
CODE = "bigtransfer/train/loop.py"
SHARDS = "artifacts/datasets/digits/shards"


class Repository:
    """A project in which a cell can be finished by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / CODE).parent.mkdir(parents=True)
        (folder / CODE).write_text("x = 1\n")
        (folder / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
        (folder / "one.yaml").write_text(json.dumps(STUDY))
        self.lock({"shard": {"outs": [{"path": SHARDS, "md5": "1" * 32 + ".dir"}]}})
        git(folder, "init", "--quiet")
        dvc(folder, "init", "--quiet")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message=start")

    def lock(self, stages: dict[str, Any]) -> None:
        (self.folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))

    def cell(self) -> StudyCell:
        (cell,) = cells_of(read_study(self.folder / "one.yaml"), self.folder / "params.yaml")
        return cell

    def result(self) -> Result | None:
        return Results(self.folder).of(self.cell())

    def cached(self, text: str) -> str:
        digest = hashlib.md5(text.encode()).hexdigest()
        path = self.folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return digest

    def finish(self, *, seeds: tuple[int, ...] = (0, 1), **params: Any) -> None:
        """Leave what DVC leaves of a finished cell."""
        cells = tuple(
            scored_cell("upstream", k, seed, 0.5, k / 10 + seed / 100)
            for k in (1, 5) for seed in seeds
        )  # fmt: skip
        report = self.cached(task_report(task="digits", cells=cells).text())
        listed = self.cached(json.dumps([{"relpath": "report.json", "md5": report}]))
        folder = self.folder / ".dvc/cache/files/md5" / listed[:2] / listed[2:]
        folder.with_name(folder.name + ".dir").write_bytes(folder.read_bytes())
        metrics = {"val_top1": 0.9, "steps": 225, "images": 7200, "parameters": 5}
        cell = self.cell()
        pretrain = cell.params.pretrain.model_dump(mode="json") | params
        task = cell.params.tasks["digits"].model_dump(mode="json")
        deps = [{"path": CODE, "md5": "2" * 32}, {"path": SHARDS, "md5": "1" * 32 + ".dir"}]
        before = (self.folder / "dvc.lock").read_text()
        self.lock({
            "pretrain": {
                "deps": deps[:1], "params": {"params.yaml": {"pretrain": pretrain}},
                "outs": [
                    {"path": "artifacts/pretrain/metrics.json",
                     "md5": self.cached(json.dumps(metrics))},
                    {"path": "artifacts/pretrain/history.csv",
                     "md5": self.cached("step,images,val_top1\n1,32,\n100,3200,0.8\n")},
                ],
            },
            "finetune@digits": {
                "deps": deps, "params": {"params.yaml": {"finetune": task, "tasks.digits": {}}},
            },
            "evaluate@digits": {
                "deps": deps,
                "outs": [{"path": "artifacts/evaluate/digits/report", "md5": f"{listed}.dir"}],
            },
        })  # fmt: skip
        head = git(self.folder, "rev-parse", "HEAD").strip()
        git(self.folder, "commit", "--quiet", "--all", "--message=experiment")
        ref = f"refs/exps/{head[:2]}/{head[2:]}/{cell.name}"
        git(self.folder, "update-ref", ref, "HEAD")
        git(self.folder, "reset", "--quiet", "--hard", head)
        assert (self.folder / "dvc.lock").read_text() == before


@pytest.fixture
def made(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_a_finished_cell_is_read_with_its_sizes_apart(made: Repository) -> None:
    assert made.result() is None
    made.finish()
    found = made.result()
    assert found is not None and found.mark == ""
    assert found.scores == {
        "digits 1 per class": {0: 0.1, 1: 0.11}, "digits 5 per class": {0: 0.5, 1: 0.51}
    }  # fmt: skip
    assert found.curve == ((3200, 0.8),) and found.steps == 225


def edit_code(made: Repository) -> None:
    (made.folder / CODE).write_text("x = 2\n")
    git(made.folder, "commit", "--quiet", "--all", "--message=code")


def edit_data(made: Repository) -> None:
    made.lock({"shard": {"outs": [{"path": SHARDS, "md5": "3" * 32 + ".dir"}]}})


@pytest.mark.parametrize(
    ("edit", "mark"),
    [(edit_code, "other code: bigtransfer/train"), (edit_data, "other data: digits")],
)
def test_other_code_and_other_data_are_marked(
    made: Repository, edit: Callable[[Repository], None], mark: str
) -> None:
    made.finish()
    edit(made)
    found = made.result()
    assert found is not None and found.mark == mark
    if edit is edit_code:  # of another commit: both are there, and what is of today counts
        made.finish()
        again = made.result()
        assert again is not None and again.mark == ""


def test_a_result_with_other_params_than_the_cell_says_is_marked(made: Repository) -> None:
    made.finish(batch_size=64)
    found = made.result()
    assert found is not None and found.mark == "other params: pretrain.batch_size"


def test_docs_and_studies_change_nothing(made: Repository) -> None:
    made.finish()
    (made.folder / "README.md").write_text("words\n")
    git(made.folder, "add", "--all")
    git(made.folder, "commit", "--quiet", "--message=words")
    found = made.result()
    assert found is not None and found.mark == ""


def test_a_seed_that_is_wanted_by_now_makes_it_unfinished(made: Repository) -> None:
    made.finish(seeds=(0,))
    assert made.result() is None


def test_what_the_cache_has_lost_is_unfinished(made: Repository) -> None:
    made.finish()
    for path in (made.folder / ".dvc/cache").rglob("*.dir"):
        path.unlink()
    assert made.result() is None


def test_params_that_decide_change_the_name(made: Repository) -> None:
    name, path = made.cell().name, made.folder / "params.yaml"
    text = path.read_text()
    for old, new, same in (
        ("total_steps: 80 ", "total_steps: 500 ", False),
        ("digits: {dataset: digits}", "digits: {dataset: alphabets}", False),
        ("weight_decay: 0.0001 ", "weight_decay: 0.001 ", False),
        ("checkpoint_steps: 100 ", "checkpoint_steps: 7 ", True),
        ("prior", "prior", True),
    ):
        assert text.count(old) <= 1, old
        path.write_text(text.replace(old, new))
        assert (made.cell().name == name) is same, old
    older = text.replace("  norm_batch: null", "  # norm_batch: null")
    path.write_text(older)
    assert made.cell().name == name, "a param that may be absent changes no name"
