from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.artifacts.cells import Cell, Cells, ListedCell
from bigtransfer.errors import CheckpointError, StorageError

CELLS = Cells(
    task="pets",
    dataset="pets",
    multi_label=False,
    recipe={"total_steps": None, "train_on": ["train"]},
    upstream_digest="u",
    shards_digest="s",
    code={"upstream-full-0": "c", "scratch-5-1": None},
    cells=(
        ListedCell.of(Cell(init="upstream", examples_per_class="full", seed=0)),
        ListedCell.of(Cell(init="scratch", examples_per_class=5, seed=1)),
    ),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    CELLS.write(tmp_path)
    assert Cells.read(tmp_path) == CELLS
    assert [cell.folder for cell in CELLS.cells] == ["upstream-full-0", "scratch-5-1"]
    assert json.loads((tmp_path / "cells.json").read_text())["schema"] == 1


def change(folder: Path, **values: Any) -> None:
    CELLS.write(folder)
    raw = json.loads((folder / "cells.json").read_text())
    kept = {key: value for key, value in {**raw, **values}.items() if value is not ...}
    (folder / "cells.json").write_text(json.dumps(kept))


def test_a_file_from_before_there_were_schemas_and_codes_is_read(tmp_path: Path) -> None:
    change(tmp_path, schema=..., code=...)
    assert Cells.read(tmp_path).code == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 2}, r"a newer version of this program \(schema 2, this one knows 1\); update"),
        ({"schema": "x"}, r"a newer version of this program \(schema 'x'"),
        ({"task": ...}, r"or is damaged \(task: field required\); make it anew: `finetune`"),
        ({"multi_label": "no"}, r"\(multi_label: input should be a valid boolean"),
        ({"cells": [{"init": "upstream"}]}, r"\(cells\.0\.examples_per_class: field required"),
        ({"colour": "red"}, r"\(colour: extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    change(tmp_path, **values)
    with pytest.raises(CheckpointError, match=message) as caught:
        Cells.read(tmp_path)
    assert "\n" not in str(caught.value)
    assert "cells.json" in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", '"cells"'])
def test_a_foreign_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "cells.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not the list of fine-tuned networks; make it"):
        Cells.read(tmp_path)


def test_a_file_that_is_cut_or_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cells.json' cannot be read: No such file"):
        Cells.read(tmp_path)
    (tmp_path / "cells.json").write_text('{"task": "pets", ')
    with pytest.raises(StorageError, match=r"cells.json' is not JSON"):
        Cells.read(tmp_path)
