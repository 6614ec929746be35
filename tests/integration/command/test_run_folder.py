"""A run folder belongs to the images that it was made from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bigtransfer.api.run_folder import folder_name, is_folder_name
from bigtransfer.artifacts.run import Run
from fixtures.commands import heard
from fixtures.images import write_colours

SHORT = ("--set", "total_steps=2", "--set", "batch_size=4", "--set", "base_lr=0.05",
         "--set", "precrop=18", "--set", "crop=16", "--set", "threads=1",
         "--set", "examples_per_class=[2]", "--seeds", "1")  # fmt: skip
Heard = tuple[int, str, str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def model_of(run: Path) -> bytes:
    return (run / "model" / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("pets.v1", "pets.v1"), ("pets.v2", "pets.v2"), ("фото", "фото"), ("猫", "猫"),
        ("फोटो", "फोटो"), ("re\u0301", "r\u00e9"), ("my photos (2024)", "my-photos-2024"),
        (".hidden", "hidden"), ("a" * 250, "a" * 100),
    ],
)  # fmt: skip
def test_a_folder_names_its_run_in_any_script(path: str, name: str) -> None:
    assert folder_name(Path("/data") / path) == name
    assert is_folder_name(name)


def test_names_without_a_letter_are_distinct_too() -> None:
    names = {folder_name(Path("/data") / text) for text in ("!!!", "???", "🐈", "🐕")}
    assert len(names) == 4
    assert all(name.startswith("images-") for name in names)


def test_a_file_names_its_run_without_its_suffix(here: Path) -> None:
    (here / "train.v2.csv").write_text("")
    assert folder_name(here / "train.v2.csv") == "train.v2"


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", ".x", "x."])
def test_what_is_no_folder_name(name: str) -> None:
    assert not is_folder_name(name)


def test_datasets_with_a_dot_and_in_other_scripts_have_runs_of_their_own(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(["pets.v1", "pets.v2", "фото"]):
        write_colours(here / name, seed)
        code, out, err = heard(capsys, "finetune", name, "--weights", weights, *SHORT)
        assert code == 0, err
    assert "Fine-tuned to “фото”" in (here / "runs/фото/page/index.html").read_text()
    assert "bigtransfer predict 'runs/фото/model' IMAGES" in out
    assert len({model_of(here / "runs" / name) for name in ("pets.v1", "pets.v2", "фото")}) == 3


def test_other_images_of_the_same_name_are_refused_and_lose_nothing(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_colours(here / "a" / "photos")
    second = write_colours(here / "b" / "photos", seed=5)
    assert heard(capsys, "finetune", first, "--weights", weights, *SHORT)[0] == 0
    run = here / "runs" / "photos"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "lock"}
    code, _, err = heard(capsys, "finetune", second, "--weights", weights, *SHORT)
    assert code == 2
    assert f"'runs/photos' is the run of {str(first)!r}, not of {str(second)!r}" in err
    assert "--to runs/photos-2" in err
    assert {p: p.read_bytes() for p in before} == before
    line = ["finetune", second, "--weights", weights, *SHORT, "--to", "runs/photos-2"]
    assert heard(capsys, *line)[0] == 0
    assert model_of(here / "runs/photos-2") != model_of(run)


def test_the_same_images_go_on_wherever_they_lie(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_colours(here / "photos")
    assert heard(capsys, "finetune", "photos", "--weights", weights, *SHORT)[0] == 0
    run, model = here / "runs" / "photos", model_of(here / "runs" / "photos")
    for again in (Path("./photos"), images):
        _, out, _ = heard(capsys, "finetune", again, "--weights", weights, *SHORT)
        assert out.count("they are there already") == 2
    images.rename(here / "renamed")
    line = ["finetune", "renamed", "--weights", weights, *SHORT, "--to", run]
    code, out, _ = heard(capsys, *line)
    assert (code, out.count("they are there already")) == (0, 2)
    assert Run.read(run).images == str(here / "renamed")
    assert model_of(run) == model


def test_new_images_at_the_same_place_are_trained_anew_and_the_old_model_stays_until_then(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_colours(here / "photos")
    line = ["finetune", "photos", "--weights", weights, *SHORT]
    assert heard(capsys, *line)[0] == 0
    run, model = here / "runs" / "photos", model_of(here / "runs" / "photos")
    shutil.rmtree(images)
    write_colours(images, seed=5)
    with monkeypatch.context() as patched:
        patched.setattr("bigtransfer.train.finetune.finetune", _interrupted)
        code, out, _ = heard(capsys, *line)
    assert code == 130
    assert "the images are not those of the last run here: trained anew" in out
    assert model_of(run) == model
    assert heard(capsys, "predict", run / "model", images / "red")[0] == 0
    assert heard(capsys, *line)[0] == 0
    assert model_of(run) != model


def _interrupted(*_: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_a_run_from_before_is_taken_over_by_the_same_images_alone(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(here / "photos")
    line = ["--weights", weights, *SHORT]
    assert heard(capsys, "finetune", "photos", *line)[0] == 0
    run = here / "runs" / "photos"
    (run / Run.FILE).unlink()
    model = model_of(run)
    write_colours(here / "other" / "photos", seed=5)
    code, _, err = heard(capsys, "finetune", "other/photos", *line)
    assert code == 2 and "is the run of 'other images'" in err and "--to runs/photos-2" in err
    assert model_of(run) == model and not (run / Run.FILE).exists()
    code, out, _ = heard(capsys, "finetune", "photos", *line)
    assert code == 0
    assert "was made before run.json was; taken over, it holds the same images" in out
    assert out.count("they are there already") == 2
    assert model_of(run) == model


def test_a_run_from_before_under_its_old_name_goes_on(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(here / "pets.v1")
    line = ["finetune", "pets.v1", "--weights", weights, *SHORT]
    assert heard(capsys, *line, "--to", "runs/pets")[0] == 0
    (here / "runs" / "pets" / Run.FILE).unlink()
    for _ in range(2):
        code, out, _ = heard(capsys, *line)
        assert (code, out.count("they are there already")) == (0, 2)
    assert os.listdir(here / "runs") == ["pets"]


def test_other_weights_and_params_are_said(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(here / "photos")
    line = ["finetune", "photos", "--weights", weights, *SHORT]
    assert heard(capsys, *line)[0] == 0
    out = heard(capsys, *line, "--set", "total_steps=3")[1]
    assert "those of the last run here are of other params: they stay until" in out


def test_a_sweep_keeps_the_folder_of_a_task_for_its_images(
    here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(here / "a")
    write_colours(here / "b", seed=5)
    tasks = here / "tasks.yaml"
    text = (
        "finetune: {examples_per_class: [2], seeds: [0], total_steps: 2, batch_size: 4, "
        "precrop: 18, crop: 16, threads: 1}\ntasks:\n  фото.1: {path: a}\n"
    )
    tasks.write_text(text)
    line = ["sweep", tasks, "--weights", weights, "--to", "swept"]
    assert heard(capsys, *line)[0] == 0
    kept = (here / "swept/фото.1/report/report.json").read_bytes()
    tasks.write_text(text.replace("path: a", "path: b"))
    code, _, err = heard(capsys, *line)
    assert code == 2
    assert "'swept/фото.1' is the run of" in err and "--to swept-2" in err
    assert (here / "swept/фото.1/report/report.json").read_bytes() == kept
    code, _, err = heard(capsys, "finetune", "a", "--weights", weights, *SHORT, "--to", "swept")
    assert code == 2 and "holds a sweep over many tasks" in err
    code, _, err = heard(capsys, "sweep", tasks, "--weights", weights, "--to", "swept/фото.1")
    assert code == 2 and "holds the run of one dataset" in err


@pytest.mark.parametrize("name", ["a/b", "../x", "upstream", "page", "my photos"])
def test_a_task_that_cannot_be_a_folder_is_refused(
    name: str, here: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = here / "tasks.yaml"
    tasks.write_text(f"tasks:\n  {name!r}: {{path: a}}\n")
    code, _, err = heard(capsys, "sweep", tasks, "--weights", weights, "--to", "swept")
    assert code == 2
    assert f"tasks.{name}: {name!r} cannot be the folder of a task; call it e.g. " in err
