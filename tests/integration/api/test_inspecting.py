"""A page of the training images that a person should look at."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtransfer.api.inspecting import inspect
from bigtransfer.artifacts.inspection import Inspection
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.errors import BigTransferError
from bigtransfer.model import create_model, write_checkpoint
from bigtransfer.storage import digest_of
from fixtures.datasets import packed_in
from fixtures.models import tuned_meta, upstream_meta
from fixtures.project import environment

pytestmark = pytest.mark.xdist_group("inspecting")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_in(tmp_path_factory.mktemp("inspecting"))


def network(folder: Path, shards: Shards, trained_on: Any, **changes: Any) -> Path:
    torch.manual_seed(0)
    model = create_model("R14x0.25", len(shards.classes), "small", seed=1)
    meta = tuned_meta(classes=tuple(shards.classes), crop=10, **changes)
    write_checkpoint(folder, model, meta, trained_on=trained_on)
    return folder


def upstream(folder: Path) -> Path:
    model = create_model("R14x0.25", 2, "small", seed=2)
    write_checkpoint(folder, model, upstream_meta("R14x0.25", ["a", "b"]))
    return folder


def test_it_ranks_the_images_that_the_model_was_trained_on_and_no_others(
    place: Path, tmp_path: Path
) -> None:
    shards = open_shards(place)
    rows = shards.rows("train")[::2]
    own = network(
        tmp_path / "run" / "model", shards, shards.origin_digests(rows),
        upstream_digest=digest_of(upstream(tmp_path / "upstream")),
    )  # fmt: skip
    line = [sys.executable, "-m", "bigtransfer.command", "inspect", "run", "--shards", str(place)]
    done = subprocess.run(
        [*line, "--upstream", "upstream", "--device", "cpu"], cwd=tmp_path, env=environment(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{len(rows)} of {len(rows)} training images looked at" in done.stdout
    found = Inspection.read(tmp_path / "inspection")
    assert (found.features_of, found.images) == ("upstream", len(rows))
    with (tmp_path / "inspection" / "suspects.csv").open(newline="") as file:
        ranked = list(csv.DictReader(file))
    wanted = shards.index["path"].take(rows).to_pylist()
    assert sorted(row["path"] for row in ranked) == sorted(wanted)
    scores = [float(row["suspicion"]) for row in ranked]
    assert scores == sorted(scores, reverse=True)
    assert [one.path for one in found.suspects] == [row["path"] for row in ranked][:60]
    assert "<h2>What this cannot see</h2>" in (tmp_path / "inspection" / "index.html").read_text()
    alone = inspect(own, tmp_path / "alone", shards=place)
    assert alone.features_of == "model"


def test_a_folder_with_other_files_is_left_alone(place: Path, tmp_path: Path) -> None:
    shards = open_shards(place)
    own = network(tmp_path / "model", shards, shards.origin_digests(shards.rows("train")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.txt").write_text("mine")
    with pytest.raises(BigTransferError, match="holds other files; name a new or an empty folder"):
        inspect(own, tmp_path / "mine", shards=place)
    assert (tmp_path / "mine" / "report.txt").read_text() == "mine"
    for _ in range(2):  # what an inspection wrote is replaced
        inspect(own, tmp_path / "out", shards=place)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"trained_on": None}, "does not say which images it was trained on; fine-tune again"),
     ({"trained_on": np.array([1, 2], np.uint64)}, "none of the images that the model was trained"),
     ({"classes": ("x", "y")}, "has other classes than the model"),
     ({"upstream_digest": "d" * 64}, "is not the network that the model began with")],
    ids=["of older code", "other images", "other classes", "another network"],
)  # fmt: skip
def test_what_cannot_be_inspected_is_one_line(
    changes: dict[str, Any], said: str, place: Path, tmp_path: Path
) -> None:
    shards = open_shards(place)
    trained_on = changes.pop("trained_on", shards.origin_digests(shards.rows("train")))
    model = create_model("R14x0.25", len(changes.get("classes", shards.classes)), "small", seed=1)
    meta = tuned_meta(**{"classes": tuple(shards.classes), "crop": 10, **changes})
    write_checkpoint(tmp_path / "model", model, meta, trained_on=trained_on)
    with pytest.raises(BigTransferError) as refused:
        inspect(
            tmp_path / "model", tmp_path / "out", shards=place,
            upstream=upstream(tmp_path / "upstream"),
        )  # fmt: skip
    assert refused.value.exit_code == 2
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
