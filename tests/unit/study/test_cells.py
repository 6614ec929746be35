"""From a study file to its cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtransfer.errors import ConfigError
from bigtransfer.study.cells import StudyCell, cells_of
from bigtransfer.study.study_file import read_study
from fixtures.project import PROJECT

NORMS: dict[str, Any] = {
    "about": "Norms.",
    "axes": {"norm": ["gn_ws", "bn"], "batch_size": [32, 128]},
    "plot": {"x": "batch_size", "lines": "norm"},
}


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """Return the cells of a study with some keys changed."""

    def make(**changes: Any) -> list[StudyCell]:
        path = tmp_path / "norms.yaml"
        path.write_text(json.dumps({**NORMS, **changes}))  # JSON is YAML, in this order
        return cells_of(read_study(path), PROJECT / "params.yaml")

    return make


def test_cells_are_the_product_of_the_axes_and_the_seeds(made: Any) -> None:
    cells = made(seeds=[0, 5])
    assert len(cells) == len({cell.name for cell in cells}) == 8
    assert cells[0].labels == {"norm": "gn_ws", "batch_size": "32"}
    assert {cell.params.pretrain.seed for cell in cells} == {0, 5}


def test_the_rate_follows_the_batch_and_the_warm_up_is_as_many_images(made: Any) -> None:
    small, large = made()[:2]
    base = small.params.pretrain
    assert (base.batch_size, base.base_lr, base.warmup_steps) == (32, 0.1, 50)
    other = large.params.pretrain
    assert (other.batch_size, other.base_lr, other.warmup_steps) == (128, 0.4, 12)
    assert other.epochs == base.epochs, "equal budgets are equal in images"


def test_decays_keep_their_place_in_a_shorter_schedule(made: Any) -> None:
    (cell,) = made(axes={"epochs": [0.45]}, plot={"x": "epochs"})
    recipe = cell.params.pretrain
    assert recipe.decay_epochs == pytest.approx((0.15, 0.3, 0.4))
    assert recipe.warmup_steps == 5


def test_what_is_tied_otherwise_is_left_so(made: Any) -> None:
    tied = {"batch": {"few": {"batch_size": 16}, "many": {"batch_size": 64, "base_lr": 0.1}}}
    few, many = made(axes=tied, plot={"x": "batch"})
    assert (few.params.pretrain.base_lr, many.params.pretrain.base_lr) == (0.05, 0.1)
    assert few.labels == {"batch": "few"}


def test_cells_beside_the_product(made: Any) -> None:
    beside = [{"norm": "gn_ws", "batch_size": 512, "base_lr": 0.8}]
    cells = made(beside=beside)
    assert len(cells) == 5
    assert cells[-1].params.pretrain.base_lr == 0.8
    assert cells[-1].labels == {"norm": "gn_ws", "batch_size": "512"}


def test_a_point_beside_that_has_a_name_of_the_product_gets_its_own(made: Any) -> None:
    beside = [{"norm": "bn", "batch_size": 128, "norm_batch": 4}]
    cell = made(beside=beside)[-1]
    assert cell.labels == {"norm": "bn, norm_batch 4", "batch_size": "128"}
    assert cell.params.pretrain.norm_batch == 4


def test_downstream_is_laid_over_finetune_and_its_axes_are_params_of_it(made: Any) -> None:
    cells = made(
        axes={"finetune.weight_decay": [None, 0.0001]}, plot={"x": "finetune.weight_decay"},
        downstream={"tasks": ["digits"], "seeds": [4, 5], "preset": "quick"},
    )  # fmt: skip
    assert [cell.labels for cell in cells] == [
        {"finetune.weight_decay": "null"}, {"finetune.weight_decay": "0.0001"}
    ]  # fmt: skip
    (first, second) = (cell.params.tasks["digits"] for cell in cells)
    assert (first.weight_decay, second.weight_decay) == (None, 0.0001)
    assert first.inits == ("upstream",) and first.seeds == (4, 5)
    assert cells[0].targets == ["evaluate@digits"]
    assert cells[0].overrides["finetune.preset"] == "quick"


def test_downstream_seeds_and_threads_are_not_of_a_name(made: Any) -> None:
    few, more = (
        {cell.name for cell in made(downstream={"seeds": seeds, "threads": threads})}
        for seeds, threads in (([0], 1), ([0, 1], 2))
    )
    other = {cell.name for cell in made(downstream={"seeds": [0], "preset": "quick"})}
    assert few == more and not few & other


@pytest.mark.parametrize(
    ("name", "cells"), [("norms", 10), ("scale", 6), ("large-data", 6)]
)  # fmt: skip
def test_the_shipped_studies_are_possible_at_both_sizes(
    tmp_path: Path, name: str, cells: int
) -> None:
    folder = PROJECT / "studies"
    small = read_study(folder / f"{name}.yaml", folder / "cpu" / f"{name}.yaml")
    assert small.name == f"{name}-cpu"
    assert len(cells_of(small, PROJECT / "params.yaml")) == cells <= 10
    own = yaml.safe_load((PROJECT / "params.yaml").read_text())
    for dataset in ("ilsvrc2012", "imagenet21k"):
        own["datasets"][dataset] = {"path": f"data/{dataset}"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(own, sort_keys=False))
    assert len(cells_of(read_study(folder / f"{name}.yaml"), tmp_path / "params.yaml")) >= cells


def test_the_file_in_the_guide_is_possible(tmp_path: Path) -> None:
    text = (PROJECT / "docs" / "guide" / "studies.md").read_text()
    (tmp_path / "own.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    cells = cells_of(read_study(tmp_path / "own.yaml"), PROJECT / "params.yaml")
    assert len(cells) == 3 * 2 * 3
    assert cells[-1].labels == {"norm_batch": "null", "schedule": "early decay"}


def test_what_is_added_later_keeps_the_cells_that_are_there(made: Any) -> None:
    before = {cell.name for cell in made()}
    after = {cell.name for cell in made(
        seeds=[0, 1], axes={"norm": ["gn", "gn_ws", "bn"], "batch_size": [32, 64, 128]}
    )}  # fmt: skip
    assert before < after


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": {}}, "axes"),
        ({"axes": {"norm": []}}, "axis 'norm' has no value"),
        ({"axes": {"nrom": ["bn"]}, "plot": {"x": "nrom"}}, "did you mean 'norm'?"),
        ({"axes": {"norm": ["bn", "bn"]}, "plot": {"x": "norm"}}, "holds a value twice"),
        ({"axes": {"seed": [0, 1]}, "plot": {"x": "seed"}}, "write seeds: [0, 1, 2]"),
        ({"plot": {"x": "batch"}}, "which is no axis; did you mean 'batch_size'?"),
        ({"axes": {"norm": ["ln"]}, "plot": {"x": "norm"}}, "cell norm ln: "),
        ({"axes": {"norm": ["gn_ws"], "norm_batch": [4]}, "plot": {"x": "norm"}},
         "cell norm gn_ws norm_batch 4: "),
        ({"axes": {"batch_size": [32], "b": {"x": {"batch_size": 64}}},
          "plot": {"x": "b"}}, "two axes set batch_size, to 32 and 64"),
        ({"beside": [{"norm": "bn"}]}, "says nothing of batch_size"),
        ({"beside": [{"norm": "bn", "batch_size": 32}]}, "two cells are the same training"),
        ({"params": {"data": {"seed": 1}}}, "its data are those of params.yaml"),
        ({"params": {"pretrian": {}}}, "did you mean 'pretrain'?"),
        ({"downstream": {"tasks": ["digit"]}}, "no task 'digit'; did you mean 'digits'?"),
        ({"downstream": {"tasks": []}}, "must name tasks"),
        ({"downstream": {"presets": "quick"}}, "presets"),
        ({"axes": {"finetune.wd": [0]}, "plot": {"x": "finetune.wd"}}, "no param of finetune"),
        ({"axes": {"finetune.seeds": [0]}, "plot": {"x": "finetune.seeds"}}, "is no axis"),
        ({"plot": {"x": "norm", "lines": "norm"}}, "are one axis"),
        ({"name": "a b"}, "cannot begin a name"),
        ({"seeds": []}, "seeds"),
        ({"sedes": [1]}, "no key 'sedes'; did you mean 'seeds'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_before_the_first_cell(
    made: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        made(**changes)
    assert words in str(refused.value)
