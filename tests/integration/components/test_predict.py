"""Batch prediction: a row per image of an address, in a bucket or a folder."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fixtures.models import CLASSES
from fixtures.project import environment

pytestmark = pytest.mark.xdist_group("s3")


def photos(folder: Path) -> list[str]:
    """Write four images in two folders, the last of them cut off, and a file that is none."""
    names = ["a/0.png", "a/1.png", "b/2.png", "b/3.png"]
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "b/3.png").write_bytes((folder / "b/3.png").read_bytes()[:50])
    (folder / "notes.txt").write_text("not asked for")
    return names


def predict(project: Path, **params: Any) -> Any:
    line = [sys.executable, "-m", "components.predict", "--params-json", json.dumps(params)]
    return subprocess.run(
        [*line, "--answers", str(project / "answers.csv")], cwd=project, env=environment(),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "bucket"])
def test_every_image_has_a_row_and_one_that_cannot_be_read_says_so(
    remote: bool, tuned: Path, tmp_path: Path, s3: Any
) -> None:
    names = photos(tmp_path / "photos")
    place = str(tmp_path / "photos")
    if remote:
        place = "s3://photos/new"
        for path in (tmp_path / "photos").rglob("*.*"):
            key = f"new/{path.relative_to(tmp_path / 'photos').as_posix()}"
            s3.put_object(Bucket="photos", Key=key, Body=path.read_bytes())
    done = predict(tmp_path, model=str(tuned), images=place, top=2)
    assert done.returncode == 0, done.stderr
    assert f"4 images of {place} answered by {tuned}: " in done.stdout
    assert "1 could not be read" in done.stdout
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == names
    assert all(row["predicted"] in CLASSES and row["predicted_2"] in CLASSES for row in rows[:3])
    assert (rows[3]["predicted"], bool(rows[3]["fault"])) == ("", True)
    assert [row["fault"] for row in rows[:3]] == ["", "", ""]


def test_paths_of_a_bucket_are_said_as_they_are_there(tuned: Path, tmp_path: Path, s3: Any) -> None:
    photos(tmp_path / "photos")
    data = (tmp_path / "photos" / "a" / "0.png").read_bytes()
    keys = ["odd//b.png", "odd/b.png", "odd/c d.png"]
    for key in keys:
        s3.put_object(Bucket="photos", Key=key, Body=data)
    done = predict(tmp_path, model=str(tuned), images="s3://photos/odd")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "answers.csv").open(newline="") as file:
        found = [row["path"] for row in csv.DictReader(file)]
    assert sorted(found) == sorted(key.removeprefix("odd/") for key in keys)


@pytest.mark.parametrize(
    ("params", "said"),
    [({"images": "nowhere"}, "is no folder and no address"),
     ({"images": "empty"}, "there is no image at"),
     ({"images": "s3://photos/none"}, "s3://photos/none"),
     ({"images": "empty", "top": 0}, "top"),
     ({"images": "empty", "model": "models:/none@champion"}, "MLflow")],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_one_line(
    params: dict[str, Any], said: str, tuned: Path, tmp_path: Path, s3: Any
) -> None:
    (tmp_path / "empty").mkdir()
    done = predict(tmp_path, **{"model": str(tuned), **params})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
    assert not (tmp_path / "answers.csv").exists()
