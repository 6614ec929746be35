"""`predict` and the refusals of `export`, as typed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bigtransfer.api.transfer import settings_of
from bigtransfer.command.arguments import settings_in
from bigtransfer.errors import did_you_mean
from fixtures.commands import call
from fixtures.images import write_image
from fixtures.models import seven_photos, write_tuned
from fixtures.reports import scored_cell, task_report


def test_predict_writes_a_row_per_image_and_goes_on_after_a_broken_one(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    out = tmp_path / "out.csv"
    assert call("predict", tuned, seven_photos(tmp_path / "photos"), "--out", out, "--top", 2) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert {row["predicted"] for row in rows if not row["fault"]} <= {"cat", "dog", "owl"}
    assert all(row["probability_2"] for row in rows if not row["fault"])
    assert "1 could not be read; their rows say why" in capsys.readouterr().err


def test_the_columns_do_not_depend_on_which_image_comes_first(
    tuned: Path, tmp_path: Path
) -> None:  # fmt: skip
    folder = seven_photos(tmp_path / "photos")
    (folder / "0.png").write_bytes(b"broken")
    out = tmp_path / "out.csv"
    assert call("predict", tuned, folder, "--out", out, "--top", 3) == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("path,predicted,probability,sure,fault,predicted_2,")


def test_predict_shows_a_line_per_image(
    tuned: Path, several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    folder = seven_photos(tmp_path / "photos")
    for model in (tuned, several):
        assert call("predict", model, folder / "0.png", folder / "3.png") == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first.startswith(f"{folder / '0.png'}: ")
        assert "does not decode" in second


def test_nothing_readable_is_the_users_to_mend(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert call("predict", tuned, tuned / "meta.json") == 2
    assert "none of 1 files could be read as an image" in capsys.readouterr().err


def test_export_refuses_a_wrong_name_and_a_missing_model(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert call("export", tuned, tmp_path / "model.pt2") == 2
    assert "a file of --format onnx is named *.onnx" in capsys.readouterr().err
    assert call("export", tmp_path / "gone", tmp_path / "model.onnx") == 2
    assert "is no folder; MODEL is a fine-tuned checkpoint" in capsys.readouterr().err


def test_the_folder_of_a_run_names_the_model_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "p2"
    write_tuned(run / "model")
    assert call("predict", run, tmp_path) == 2
    assert f"did you mean '{run / 'model'}'?" in capsys.readouterr().err


@pytest.mark.parametrize("place", [".", "checkpoints"])
def test_the_folder_of_a_task_names_the_chosen_network(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = scored_cell("upstream", 5, 1, 0.9, 0.8)
    task_report(chosen=chosen).write(tmp_path / "report")
    model = write_tuned(tmp_path / "checkpoints" / chosen.folder)
    assert call("export", tmp_path / place, tmp_path / "a.onnx") == 2
    assert f"did you mean '{model}'?" in capsys.readouterr().err


def test_a_registered_model_outside_of_a_project_makes_no_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_image(tmp_path / "images" / "a" / "a.png", 1)
    for line in (["predict", "models:/x@champion", "images"], ["export", "models:/x/1", "x.onnx"],
                 ["evaluate", "models:/x@champion", "images"]):  # fmt: skip
        assert call(*line) == 2
        assert "call this in the project's own folder" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def test_did_you_mean_never_means_the_same_word() -> None:
    assert did_you_mean("pets", ["pets"]) == ""
    assert did_you_mean("pets", ["pets", "pet"]) == "; did you mean 'pet'?"


def test_what_is_typed_belongs_to_a_section() -> None:
    typed = settings_in(["total_steps=5", "data.layout=folders", "data.classes=[a, A]"])
    assert typed.finetune == {"total_steps": 5}
    assert typed.data == {"layout": "folders", "classes": ["a", "A"]}
    settings = settings_of("t", typed.data, typed.finetune, "--set")
    assert settings.data.classes == ("a", "A")
    assert settings.task.total_steps == 5
