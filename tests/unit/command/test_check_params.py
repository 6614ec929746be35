from __future__ import annotations

from pathlib import Path

import pytest

from bigtransfer.command.__main__ import main
from bigtransfer.command.params_file import check_params
from bigtransfer.errors import ConfigError
from fixtures.project import PROJECT


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text((PROJECT / "params.yaml").read_text())
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_params(path)
    return str(caught.value)


def test_shipped_params_pass_before_the_embedded_data_exist(params: Path) -> None:
    assert check_params(params).pretrain.architecture == "R14x0.25"


def test_missing_folder_names_the_entry_and_both_cures(params: Path) -> None:
    edit(params, "  digits: {path", "  photos: {path: data/photos}\n  digits: {path")
    assert refusal(params) == (
        "params.yaml: 'datasets.photos.path' is 'data/photos', but there is no such folder; "
        "correct it, or put the data there (`.venv/bin/dvc pull data/photos.dvc` if they are "
        "tracked by DVC)"
    )


@pytest.mark.parametrize("below", ["photos", "photos/small"])
def test_missing_folder_that_dvc_tracks_names_what_to_pull(params: Path, below: str) -> None:
    (params.parent / "data").mkdir(exist_ok=True)
    (params.parent / "data" / "photos.dvc").touch()
    edit(params, "  digits: {path", f"  photos: {{path: data/{below}}}\n  digits: {{path")
    assert refusal(params).endswith("; fetch it: `.venv/bin/dvc pull data/photos.dvc`")


def test_a_file_where_a_folder_should_be(params: Path) -> None:
    (params.parent / "photos.zip").touch()
    edit(params, "  digits: {path", "  photos: {path: photos.zip}\n  digits: {path")
    assert "'photos.zip', a file that is no dataset; give a folder, or one of" in refusal(params)


def test_wrong_types_wrong_meanings_and_wrong_paths_come_together(params: Path) -> None:
    edit(params, "architecture: R14x0.25", "architecture: R51x1")
    edit(params, "epochs: 4.5", "epoch: 4.5")
    edit(params, "{path: data/digits", "{path: nowhere")
    lines = refusal(params).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("params.yaml: ") for line in lines)
    assert "unknown key 'epoch' in section 'pretrain'; did you mean 'epochs'?" in lines[0]
    assert "'R51x1'" in lines[1]
    assert "'nowhere'" in lines[2]


def test_command_exits_2_with_the_lines_or_0(
    params: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check-params", "--params", str(params)])
    assert end.value.code == 0
    edit(params, "threads: 2", "threads: two")
    with pytest.raises(SystemExit) as end:
        main(["check-params", "--params", str(params)])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("bigtransfer check-params: params.yaml: 'pretrain.threads' is 'two'")
    assert len(message.splitlines()) == 1


def test_no_params_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check-params", "--params", str(tmp_path / "params.yaml")])
    assert end.value.code == 2
    assert "params.yaml" in capsys.readouterr().err
