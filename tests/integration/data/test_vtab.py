"""A task of VTAB as typed: prepared, checked and swept; and PatchCamelyon in real HDF5."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bigtransfer.config import DatasetRules, read_yaml
from bigtransfer.data.checking import asked_of, check
from bigtransfer.data.sources.opening import open_source
from bigtransfer.data.vtab.prepare import prepare
from bigtransfer.data.vtab.tasks import TASKS
from fixtures import vtab, vtab_arrays
from fixtures.commands import heard
from fixtures.project import PROJECT

SWEEP = """
finetune: {train_on: [train, val], examples_per_class: [full], seeds: [0], total_steps: 2,
  batch_size: 4, base_lr: 0.05, precrop: 18, crop: 16, threads: 1}
tasks:
  eurosat: {path: vtab/eurosat, prepare: vtab/eurosat, images: {train: 800, val: 200, test: 280}}
"""


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a set of which the benchmark's 800 and 200 can be made; here is an empty folder."""
    size = 1400
    held = replace(TASKS["eurosat"], classes=3, held={"train": size})
    monkeypatch.setitem(TASKS, "eurosat", held)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return vtab.eurosat(size).write(tmp_path / "set", packed=True)


def test_a_task_is_prepared_checked_and_swept(
    whole: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = heard(capsys, "data", "prepare", "vtab/eurosat", "--from", whole)
    assert code == 0
    assert said.splitlines() == [
        f"vtab/eurosat: reads {whole}",
        "vtab/eurosat: train 800, val 200, test 280, 3 classes, of EuroSAT (RGB)",
        "the official split: in the order of TensorFlow Datasets (TFDS), as VTAB-1k cuts it (as "
        "TFDS orders the set since 2021; before, by the folder that it lay in)",
        "written to vtab/eurosat; next: bigtransfer finetune vtab/eurosat --weights FILE, or "
        "sweep vtab",
    ]
    # Its images repeat, so they are in two splits, too: a benchmark's are used as they are.
    code, said, _ = heard(capsys, "data", "check", "vtab/eurosat")
    assert code == 0 and "the gate says yes" in said
    assert "benchmark: the splits are those of vtab/eurosat, used as they are: " in said
    assert "images in two of them" in said and "leaks across splits" not in said

    Path("tasks.yaml").write_text(SWEEP)
    line = ("sweep", "tasks.yaml", "--weights", weights, "--to", "swept")
    code, said, _ = heard(capsys, *line)
    assert code == 0 and "| eurosat | full | upstream |" in said
    assert "not the official split" not in said

    record = Path("vtab/eurosat/prepared.json")
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "official": False, "why": "drawn here"}))
    assert "not the official split" in heard(capsys, *line)[1]
    record.unlink()  # what was run is known to the sweep, also where its data are gone
    Path("vtab/eurosat").rename("gone")
    assert "not the official split" in heard(capsys, *line)[1]


def test_a_split_that_is_drawn_here_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = vtab.caltech101()
    folder = made.write(tmp_path / "set", packed=True)
    held = replace(TASKS["caltech101"], classes=2, held=made.size.held)
    monkeypatch.setitem(TASKS, "caltech101", held)
    monkeypatch.chdir(tmp_path)
    code, said, _ = heard(capsys, "data", "prepare", "vtab/caltech101", "--from", str(folder))
    assert code == 0
    assert "not the official split: which 30 images of each class" in said
    assert "`sweep` keeps the task out of the means" in said


def test_what_is_missing_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, refused = heard(capsys, "data", "prepare")
    assert code == 2 and "which task? Give one, e.g. vtab/pets" in refused
    code, _, refused = heard(capsys, "data", "prepare", "vtab/pets")
    assert code == 2
    assert "give --from FOLDER with the files of Oxford-IIIT Pets: images.tar.gz and" in refused
    code, _, refused = heard(capsys, "data", "prepare", "vtab/pets", "--from", tmp_path)
    assert code == 2 and "holds no trainval.txt (of annotations.tar.gz)" in refused


def test_the_list_shows_all_19(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = heard(capsys, "data", "prepare", "--list")
    assert code == 0
    assert said.count("vtab/") == 19 and said.count("  official   yes") == 18
    assert "vtab/pets: Oxford-IIIT Pets, 37 classes, 800 + 200 + 3,669 images" in said


def test_classes_of_a_benchmark_need_no_training_images(tmp_path: Path) -> None:
    """Of 397 classes 800 images do not show all; such a task is told of, not refused."""
    made = vtab_arrays.svhn()
    folder = made.write(tmp_path / "set", packed=False)
    size = replace(made.size, train=3)
    own = read_yaml(PROJECT / "bigtransfer/vtab.yaml")["data"]
    params = read_yaml(PROJECT / "bigtransfer/defaults.yaml")["data"]
    asked = asked_of(DatasetRules.model_validate({**params, **own}))
    prepare("vtab/svhn", folder, tmp_path / "made", size=size)
    checked = check(open_source(tmp_path / "made"), "svhn", asked)
    assert checked.success, [o.line() for o in checked.outcomes if not o.success]
    (note,) = [note for note in checked.notes if note.startswith("benchmark: ")]
    assert "have none in train" in note
    (tmp_path / "made/prepared.json").unlink()
    checked = check(open_source(tmp_path / "made"), "svhn", asked)
    assert not checked.success


def test_patchcamelyon_is_read_by_h5py(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    made = vtab_arrays.camelyon(real=True)
    folder = made.write(tmp_path / "set", packed=False)
    said = prepare("vtab/camelyon", folder, tmp_path / "made", size=made.size)
    assert said.official and said.splits == {"train": 8, "val": 3, "test": 12}
    assert open_source(tmp_path / "made").labels == ["0", "1"]
