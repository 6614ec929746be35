"""`bigtransfer finetune`, as typed: from a folder of images to answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigtransfer.storage import read_json
from fixtures.commands import call
from fixtures.images import COLOURS

SHORT = ("--set", "total_steps=30", "--set", "batch_size=16", "--set", "base_lr=0.05",
         "--set", "precrop=18", "--set", "crop=16", "--set", "threads=1",
         "--seeds", "2")  # fmt: skip


def test_one_command_makes_a_model_that_answers(
    colours: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "run"
    assert call("finetune", colours, "--weights", weights, "--to", to, *SHORT) == 0
    said = capsys.readouterr().out
    assert "60 images of 3 classes" in said
    assert "total_steps 30 (params; the rule says 500)" in said
    assert "test top-1 100.0 % (median of 2; " in said
    assert "Fine-tuned to “photos”" in (to / "page" / "index.html").read_text()
    assert read_json(to / "model" / "meta.json")["classes"] == list(COLOURS)

    model = (to / "model" / "weights.safetensors").read_bytes()
    assert call("finetune", colours, "--weights", weights, "--to", to, *SHORT) == 0
    assert "they are there already" in capsys.readouterr().out
    assert (to / "model" / "weights.safetensors").read_bytes() == model

    assert call("predict", to / "model", colours / "red", colours / "green") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40
    assert all(Path(line.split(": ")[0]).parent.name in line.split(": ")[1] for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "total_step=5"], "--set: unknown key 'total_step'; did you mean 'total_steps'?"),
        (["--set", "total_steps"], "--set 'total_steps': write KEY=VALUE"),
        (["--seeds", "0"], "--seeds is 0; at least one run is needed"),
        (["--weights", "gone.npz"], "--weights 'gone.npz' does not exist; `bigtransfer weights"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], message: str, colours: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    to = tmp_path / "run"
    assert call("finetune", colours, "--weights", weights, "--to", to, *words) == 2
    assert message in capsys.readouterr().err
    assert not to.exists()


def test_a_damaged_image_stops_before_anything_is_trained(
    colours: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (colours / "red" / "0.png").write_bytes(b"no image")
    assert call("finetune", colours, "--weights", weights, "--to", tmp_path / "run", *SHORT) == 3
    assert "red/0.png" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_more_shots_than_images_name_the_class(
    colours: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["finetune", colours, "--weights", weights, "--to", tmp_path / "run", *SHORT]
    assert call(*line, "--set", "examples_per_class=[50]") == 2
    assert "train images, but 'examples_per_class' asks for 50" in capsys.readouterr().err
