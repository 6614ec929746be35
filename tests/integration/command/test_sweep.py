"""`bigtransfer sweep`, as typed."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.command.sweep import _CATALOGUES, _entries
from bigtransfer.config import read_yaml
from bigtransfer.errors import InfrastructureError
from fixtures.commands import call

FILE = """
finetune:
  {inits: [upstream, scratch], examples_per_class: [1, 4], seeds: [0, 1], total_steps: 6,
   batch_size: 8, base_lr: 0.05, precrop: 18, crop: 16, threads: 1}
tasks:
  colours: {path: PHOTOS, group: natural, reference: {4: 97.5}}
  gone: {path: nowhere/pets, group: natural, download: "the pets of https://host/pets"}
"""


@pytest.fixture
def tasks(tmp_path: Path, colours: Path) -> Path:
    path = tmp_path / "tasks.yaml"
    path.write_text(FILE.replace("PHOTOS", str(colours)))
    return path


def test_a_sweep_is_one_table_and_what_is_there_is_kept(
    tasks: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    to = tmp_path / "sweep"
    line = ["sweep", tasks, "--weights", weights, "--to", to]
    assert call(*line) == 0
    said = capsys.readouterr().out
    assert "missing: put the pets of https://host/pets at nowhere/pets" in said
    with (to / "cells.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 8
    assert {(c["task"], c["init"], c["examples_per_class"]) for c in cells} == {
        ("colours", init, k) for init in ("upstream", "scratch") for k in ("1", "4")
    }
    table = (to / "table.md").read_text()
    assert table in said
    assert "| natural | 4 | upstream |" in table and "1 of 2 |" in table
    assert (to / "table.tex").is_file() and (to / "page" / "index.html").is_file()

    before = {path: path.stat().st_mtime_ns for path in (to / "colours/checkpoints").rglob("*")}
    assert call(*line) == 0
    assert "they are there already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (to / "colours/checkpoints").rglob("*")} == before
    assert (to / "table.md").read_text() == table


def test_a_task_that_fails_is_named_and_the_others_go_on(
    tasks: Path, weights: Path, colours: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    broken = f"  broken: {{path: {colours}, finetune: {{examples_per_class: [99]}}}}\n"
    tasks.write_text(tasks.read_text().replace("tasks:\n", "tasks:\n" + broken))
    to = tmp_path / "sweep"
    assert call("sweep", tasks, "--weights", weights, "--to", to) == 2
    shown = capsys.readouterr()
    assert "1 of 3 tasks failed (broken); mend them and run the same again" in shown.err
    assert "asks for 99" in (to / "table.md").read_text()
    assert "| colours | 4 | upstream |" in (to / "table.md").read_text()


def test_another_number_of_images_is_not_the_official_split(
    tasks: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    tasks.write_text(tasks.read_text().replace("group: natural, ref", "images: {test: 800}, ref"))
    assert call("sweep", tasks, "--weights", weights, "--to", tmp_path / "sweep",
                "--set", "seeds=[0]", "--set", "examples_per_class=[1]") == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "1 per class, 3 images" in said and "4 per class" not in said
    assert "| colours | 1 | upstream |" in said
    assert said.count("not the official split |") == 2


def test_networks_are_in_the_table_as_soon_as_they_are_there(
    tasks: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def away(*_: Any) -> None:
        raise InfrastructureError("the disk is full")

    to = tmp_path / "sweep"
    monkeypatch.setattr("bigtransfer.evaluate.task.evaluate", away)
    assert call("sweep", tasks, "--weights", weights, "--to", to) == 75
    with (to / "cells.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 8
    assert all(0 <= float(cell["val_top1"]) <= 1 for cell in cells)
    assert not (to / "table.md").exists()


def test_vtab_is_in_the_catalogue_with_the_papers_exceptions() -> None:
    entries = _entries(read_yaml(_CATALOGUES["vtab"]), "vtab.yaml", {})
    groups = Counter(entry["group"] for entry, _ in entries.values())
    assert groups == {"natural": 7, "specialised": 4, "structured": 8}
    tasks = {name: settings.task for name, (_, settings) in entries.items()}
    assert {name for name, task in tasks.items() if not task.random_crop} == {
        "clevr_count", "clevr_distance", "dmlab", "kitti_distance", "dsprites_location",
    }  # fmt: skip
    assert {name for name, task in tasks.items() if not task.flip} == {
        "dsprites_location", "dsprites_orientation", "smallnorb_azimuth",
    }  # fmt: skip
    assert {(task.train_on, task.examples_per_class, task.seeds) for task in tasks.values()} == {
        (("train", "val"), ("full",), (0, 1, 2))
    }


def test_vtab_without_data_says_what_to_put_where(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    line = ["sweep", "vtab", "--weights", weights, "--to", tmp_path / "to"]
    assert call(*line, "--data", "here", "--only", "pets", "--only", "dtd") == 0
    said = capsys.readouterr().out
    assert "put Oxford-IIIT Pets, https://www.robots.ox.ac.uk/~vgg/data/pets (37 classes)" in said
    assert "at here/vtab/pets" in said
    assert "flowers102" not in said
    assert "| BiT-M R152x4 |  |  |  | 70.64 |" in said
    assert call(*line, "--only", "pet") == 2
    assert "unknown task 'pet'; did you mean 'pets'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference:", "references:", "tasks.colours: unknown key 'references'; did you mean 'ref"),
        ("total_steps: 6", "total_step: 6", "tasks.colours: unknown key 'total_step'"),
        ("tasks:", "task:", "tasks.yaml: unknown key 'task'; did you mean 'tasks'?"),
        ("path: nowhere/pets, ", "", "tasks.gone lacks a 'path'"),
        ("reference: {4: 97.5}", "reference: 97.5", "tasks.colours: 'reference' must hold keys"),
        ("tasks:", "data: null\ntasks:", "tasks.yaml: 'data' must hold keys and values, got None"),
        ("tasks:", "published: [{name: z}]\ntasks:", "tasks.yaml: published must list {name: "),
    ],
)
def test_a_wrong_file_is_one_line_and_nothing_runs(
    old: str, new: str, message: str, tasks: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tasks.write_text(tasks.read_text().replace(old, new))
    assert call("sweep", tasks, "--weights", weights, "--to", tmp_path / "sweep") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
