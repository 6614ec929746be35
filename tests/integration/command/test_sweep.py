"""`bigtransfer sweep`, as typed."""

from __future__ import annotations

import csv
import html
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.command.arguments import Typed
from bigtransfer.command.sweep import _CATALOGUES, _entries
from bigtransfer.config import read_yaml
from bigtransfer.errors import InfrastructureError
from bigtransfer.model import create_model, save_npz
from fixtures.commands import call
from fixtures.images import write_colours

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


QUICK = """
finetune:
  {inits: [upstream, scratch], examples_per_class: [2], seeds: [0, 1], total_steps: 2,
   batch_size: 4, base_lr: 0.05, precrop: 18, crop: 16, threads: 1}
published:
  - {name: theirs, means: {natural: 80.77}}
tasks:
"""


@pytest.fixture
def several_tasks(tmp_path: Path) -> Path:
    """Return a file of three tasks, of which two have data."""
    lines = {
        "one": "{path: one, group: natural, reference: {2: 97.5}}",
        "two": "{path: two, group: natural}",
        "gone": '{path: gone, group: natural, download: "the | pets"}',
    }
    for seed, name in enumerate(("one", "two")):
        write_colours(tmp_path / name, seed)
    path = tmp_path / "tasks.yaml"
    path.write_text(QUICK + "".join(f"  {name}: {entry}\n" for name, entry in lines.items()))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tasks_of(path: Path) -> list[str]:
    return [*dict.fromkeys(row["task"] for row in rows_of(path))]


def test_only_runs_less_and_forgets_nothing(
    several_tasks: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "sweep"
    line = ["sweep", several_tasks, "--weights", weights, "--to", to, "--data", tmp_path]
    assert call(*line) == 0
    names = ("table.md", "table.tex", "table.csv", "cells.csv", "curves.svg", "curves.pdf",
             "page/index.html")  # fmt: skip
    before = {name: (to / name).read_bytes() for name in names}
    assert tasks_of(to / "table.csv") == ["one", "two", "gone"]
    assert call(*line, "--only", "two") == 0
    assert {name: (to / name).read_bytes() for name in names} == before

    (to / "sweep.json").unlink()  # a sweep of before
    assert call(*line, "--only", "one") == 0
    assert tasks_of(to / "table.csv") == tasks_of(to / "cells.csv") == ["one", "two"]
    assert call(*line, "--only", "one", "--only", "gone") == 0
    assert (to / "table.md").read_bytes() == before["table.md"]

    text = several_tasks.read_text().splitlines(keepends=True)
    several_tasks.write_text("".join([*text[:-3], *reversed(text[-3:])]))
    assert call(*line, "--only", "two") == 0
    assert tasks_of(to / "table.csv") == ["gone", "two", "one"]

    several_tasks.write_text("".join(text[:-2]))
    assert call(*line) == 0
    table = (to / "table.md").read_text()
    assert tasks_of(to / "table.csv") == tasks_of(to / "cells.csv") == ["one", "two"]
    assert "no longer in the file of tasks" in table
    assert "| natural | 2 | upstream | " in table and "| 1 of 1 |" in table

    shutil.rmtree(tmp_path / "one")
    assert call(*line) == 2
    row = rows_of(to / "table.csv")[0]
    assert row["median"] and row["note"].startswith("of an earlier run; now put its data at ")
    capsys.readouterr()


def test_other_weights_and_params_are_marked_and_in_no_mean(
    several_tasks: Path, weights: Path, tmp_path: Path
) -> None:
    to = tmp_path / "sweep"
    line = ["sweep", several_tasks, "--weights", weights, "--to", to, "--data", tmp_path]
    assert call(*line, "--set", 'inits=["upstream"]') == 0
    more = ["--set", 'inits=["upstream"]', "--set", "total_steps=3", "--only", "two"]
    assert call(*line, *more) == 0
    notes = {row["task"]: row["note"] for row in rows_of(to / "table.csv")}
    assert notes["one"] == "made with other params" and notes["two"] == ""
    assert "| 1 of 3 |" in (to / "table.md").read_text()
    other = tmp_path / "other.npz"
    save_npz(create_model("R14x0.25", 5, "small", seed=2), other)
    line[line.index(weights)] = other
    assert call(*line, *more) == 0
    notes = {row["task"]: row["note"] for row in rows_of(to / "table.csv")}
    assert notes["one"] == "made with other weights and params" and notes["two"] == ""


def test_networks_of_a_task_that_was_stopped_stay_in_the_table(
    several_tasks: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise InfrastructureError("the disk is full")

    to = tmp_path / "sweep"
    line = ["sweep", several_tasks, "--weights", weights, "--to", to, "--data", tmp_path]
    with monkeypatch.context() as patched:
        patched.setattr("bigtransfer.evaluate.task.evaluate", away)
        assert call(*line, "--only", "one") == 75
    assert call(*line, "--only", "two") == 0
    cells = rows_of(to / "cells.csv")
    assert Counter(cell["task"] for cell in cells) == {"one": 4, "two": 4}
    assert all(cell["val_top1"] for cell in cells)
    assert {cell["group"] for cell in cells} == {"natural"}


def test_the_page_has_the_figures_of_the_tables(
    several_tasks: Path, weights: Path, tmp_path: Path
) -> None:
    to = tmp_path / "sweep"
    line = ["sweep", several_tasks, "--weights", weights, "--to", to, "--data", tmp_path]
    assert call(*line) == 0
    page = html.unescape((to / "page" / "index.html").read_text())
    plain = re.sub(r' data-label="[^"]*"', "", page)
    rows = rows_of(to / "table.csv")
    for row in rows:
        if row["median"]:
            cells = (row["min"], f"<b>{row['median']}</b>", row["max"], row["runs"])
            assert "".join(f'<td class="n">{cell}</td>' for cell in cells) in plain
    median = {(row["task"], row["init"]): float(row["median"] or 0) for row in rows}
    whole = round(sum(median[name, "upstream"] for name in ("one", "two")) / 2, 1)
    tile = re.search(r"<b>([\d.]+) %</b><span>mean of medians over 2 tasks, transfer, 2 per", page)
    assert tile and abs(float(tile[1]) - whole) < 0.11
    assert "put the | pets at" in page and r"the \| pets" in (to / "table.md").read_text()
    assert "Means over groups" in page and "2 of 3" in page and "80.77" in page
    for name in ("one", "two"):
        assert f'<a href="../{name}/page/index.html"' in page
        assert (to / name / "page" / "index.html").is_file()
    files = re.findall(r'href="\.\./([\w.]+)"', page)
    assert {"table.tex", "curves.svg", "curves.pdf"} <= set(files)
    assert all((to / name).is_file() for name in files)
    assert "theirs (published) & 80.77" in (to / "table.tex").read_text()


def test_vtab_is_in_the_catalogue_with_the_papers_exceptions() -> None:
    entries = _entries(read_yaml(_CATALOGUES["vtab"]), "vtab.yaml", Typed({}, {}))
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
    assert call(*line, "--data", "here", "--only", "pets", "--only", "dtd") == 2
    said, refused = capsys.readouterr()
    assert "nothing was run: the data of dtd, pets are missing" in refused
    made = [Path(word) for word in said.rpartition("Made\n")[2].split()]
    assert [path.name for path in made] == ["table.md", "table.tex", "table.csv"]
    assert all(path.is_file() for path in made)
    assert (
        "missing: fetch images.tar.gz and annotations.tar.gz of Oxford-IIIT Pets, "
        "https://www.robots.ox.ac.uk/~vgg/data/pets (37 classes), then: bigtransfer data prepare "
        "vtab/pets --from FOLDER --to here/vtab/pets\n"
    ) in said
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
        (
            "reference:",
            "prepare: vtab/pet, reference:",
            "tasks.colours: prepare: there is no task 'vtab/pet' of VTAB-1k; did you mean 'pets'?",
        ),
        ("reference: {4: 97.5}", "reference: 97.5", "tasks.colours: 'reference' must hold keys"),
        (
            "{4: 97.5}",
            "{4: high}",
            "tasks.colours.reference: 4 must be a percentage, 0 to 100, got",
        ),
        (
            "tasks:",
            "published: [{name: z, means: {natural: 700}}]\ntasks:",
            "published.means: 'natural' must be a percentage",
        ),
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
