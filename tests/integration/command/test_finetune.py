"""`bigtransfer finetune`, as typed: from a folder of images to answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigtransfer.errors import StoppedError
from bigtransfer.model import create_model, write_checkpoint
from bigtransfer.storage import read_json
from fixtures.commands import call
from fixtures.images import COLOURS
from fixtures.models import upstream_meta

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
        (["--set", "name=x"], "--set 'name=x': 'name' is no value of section `finetune`"),
        (["--set", "data.layuot=folders"], "--set: unknown key 'layuot'; did you mean 'layout'?"),
        (["--set", "=5"], "--set '=5': '' is no value of section `finetune`"),
        (["--set", "seeds=[0,0]"], "--set: seeds holds a value twice"),
        (["--set", "crop=9", "--set", "precrop=8"], "--set: crop 9 must not exceed precrop 8"),
        (["--set", "inits=[upstream, scratc]"], "'inits.1' is 'scratc', but it should be"),
        (["--seeds", "0"], "seeds is 0; at least one run is needed"),
        (["--weights", "gone.npz"], "weights 'gone.npz' do not exist; `bigtransfer weights"),
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


def test_what_takes_days_on_a_cpu_is_begun_with_yes_alone(
    colours: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("bigtransfer.train.forecast._LONG_MACS", 0)
    monkeypatch.setattr("bigtransfer.train.forecast.images_per_second", lambda *_: 1e-3)
    line = ["finetune", colours, "--weights", weights, "--to", tmp_path / "run", *SHORT]
    line += ["--set", "device=cpu"]
    assert call(*line) == 2
    refused = capsys.readouterr().err
    assert "about 11.1 days on this CPU (960 images at 0.0/s, tried now)" in refused
    assert f"finetune {colours} --weights {weights} --to {tmp_path / 'run'} --seeds 2" in refused
    assert refused.count("--set device=cpu --quick\n") == 1
    assert refused.count("--set device=cpu --set total_steps=20 --set batch_size=64\n") == 1
    assert refused.count("--set device=cpu --yes\n") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert call(*line, "--yes") == 0
    assert "about 11.1 days on this CPU" in capsys.readouterr().out


def test_who_has_agreed_once_is_not_asked_again(
    colours: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigtransfer.train.forecast._LONG_MACS", 0)
    monkeypatch.setattr("bigtransfer.train.forecast.images_per_second", lambda *_: 1e-3)
    line = ["finetune", colours, "--weights", weights, "--to", tmp_path / "run", *SHORT]
    line += ["--set", "device=cpu"]

    def stopped(*_: object, **__: object) -> None:
        raise StoppedError("stopped by SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr("bigtransfer.train.cell_trainer.train_cell", stopped)
        assert call(*line, "--yes") == 75
    assert call(*line) == 0


def test_the_quick_way_is_a_linear_probe_that_answers(
    colours: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["finetune", colours, "--weights", weights, "--to", tmp_path / "run", "--quick"]
    assert call(*line, "--seeds", "2", "--set", "threads=1", "--set", "flip=false") == 0
    said = capsys.readouterr().out
    assert "photos: preset quick, a linear probe and not the paper's protocol" in said
    assert "mirror image" not in said
    assert "test top-1 100.0 % (median of 2; " in said
    model = tmp_path / "run" / "model"
    assert call("predict", model, colours / "red") == 0
    assert all(": red " in row for row in capsys.readouterr().out.splitlines())
    assert call("export", model, tmp_path / "photos.pt2", "--format", "torch") == 0
    assert call(*line, "--set", "total_steps=5") == 2
    assert "total_steps cannot be set together with quick" in capsys.readouterr().err


def test_a_scale_that_the_network_has_never_seen_is_said(
    colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    write_checkpoint(
        small, create_model("R14x0.25", 2, "small", seed=1), upstream_meta("R14x0.25", ["a", "b"])
    )
    line = ["finetune", colours, "--weights", small, "--to", tmp_path / "run", *SHORT]
    line += ["--seeds", "1", "--set", "examples_per_class=[1]", "--set", "total_steps=1"]
    assert call(*line, "--set", "precrop=64", "--set", "crop=64") == 0
    said = capsys.readouterr().out
    assert "photos: warning: the network was trained at 10 px and is given images at 64 px" in said
    assert "1 network\n" in said
    assert call(*line) == 0
    assert "warning" not in capsys.readouterr().out
