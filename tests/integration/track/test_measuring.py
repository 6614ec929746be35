"""The champion is run on the validation images of a version that was split otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtransfer.api.measuring import measure
from bigtransfer.artifacts.answers import Answers
from bigtransfer.artifacts.measured import Measured
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.errors import BigTransferError, GateError
from bigtransfer.evaluate.account import digest_of_split
from bigtransfer.model import create_model, write_checkpoint
from bigtransfer.serve.deployed import load_deployed
from bigtransfer.serve.prediction import answers as answered
from bigtransfer.track.promotion import promote
from fixtures.datasets import pack, validated, write_photos
from fixtures.models import tuned_meta
from fixtures.project import environment
from fixtures.registered import NAME, GateRules, evidence, propose

pytestmark = pytest.mark.xdist_group("measuring")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measuring")
    photos = write_photos(folder / "photos")
    validated(photos)
    pack(photos, folder / "shards")
    return folder / "shards"


def network(folder: Path, shards: Shards, seed: int, trained_on: Any = None) -> Path:
    torch.manual_seed(seed)
    model = create_model("R14x0.25", len(shards.classes), "small", seed=seed)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    meta = tuned_meta(classes=tuple(shards.classes), crop=10, seed=seed)
    write_checkpoint(folder, model, meta, trained_on=trained_on)
    return folder


@pytest.fixture
def two(tracked: Path, model_folder: Path, place: Path) -> Path:
    """Return a project with a champion of another split and a challenger; both answer."""
    shards = open_shards(place)
    seen = shards.origin_digests(shards.rows("val")[:2])
    first = network(tracked / "first", shards, 1, seen)
    second = network(tracked / "second", shards, 2)
    own = {"classes": tuple(shards.classes), "calibration": None}
    propose(tracked, model_folder, "d1", says=evidence(**own), checkpoint=first)
    rows = shards.rows("val")
    right = np.ones(len(rows), np.float32)
    says = evidence(
        **own, validation_digest=digest_of_split(shards, "val"), seed=2, validation_images=len(rows)
    )
    given = Answers(np.sort(shards.labels(rows)), {2: right})
    propose(tracked, model_folder, "d2", says=says, given=given, checkpoint=second)
    return tracked


def command(project: Path, *words: str) -> Any:
    line = [sys.executable, "-m", "bigtransfer.command", "measure", *words]
    return subprocess.run(
        line, cwd=project, env=environment(), capture_output=True, text=True, timeout=300
    )


def test_a_version_of_another_split_is_compared_after_it_was_measured(
    two: Path, place: Path, client: Any
) -> None:
    rules = GateRules(calibration=None, latency=50, margin=0.9)  # of four images
    with pytest.raises(GateError, match="`bigtransfer measure` runs v1 on its images"):
        promote(two, NAME, "challenger", rules, by="a", because="")
    done = command(two, NAME, "--shards", str(place), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    shards = open_shards(place)
    assert f"v1 answered the {len(shards.rows('val'))} validation images of v2; 2 that it was" in (
        done.stdout
    )
    version = client.get_model_version(NAME, "2")
    folder = Path(client.download_artifacts(version.run_id, "measured"))
    found, kept = Measured.read(folder), Answers.read(folder)
    assert (found.left_out, int(np.isnan(kept.scores[2]).sum())) == (2, 2)
    # Right where `predict` is right, image by image.
    rows = shards.rows("val")
    files = [place.parent / "photos" / path for path in shards.index["path"].take(rows).to_pylist()]
    deployed, _ = load_deployed(two / "first")
    says = [
        int(own.probabilities.argmax())
        for own in answered(deployed, files, 4, torch.device("cpu"))
        if own.probabilities is not None
    ]
    hashes = shards.index["sha256"].take(rows).to_pylist()
    order = sorted(range(len(rows)), key=lambda row: hashes[row])
    right = (np.array(says) == shards.labels(rows))[order]
    heard = np.isfinite(kept.scores[2])
    assert (kept.scores[2][heard] == right[heard]).all()
    assert 0 < heard.sum() < len(rows)
    promoted = promote(two, NAME, "challenger", rules, by="a", because="")
    (gate,) = (gate for gate in promoted.gates if gate.name == "compare")
    assert gate.reason.endswith("(2 that v1 was trained on are left out)")
    (gate,) = (gate for gate in promoted.gates if gate.name == "latency")
    assert gate.verdict == "pass"


def test_what_cannot_be_measured_is_one_line(
    two: Path, place: Path, tmp_path: Path, client: Any
) -> None:
    for wanted, shards, said in (
        ("challenger", None, "name them with --shards"),
        ("champion", place, "version 1 is the champion itself"),
        ("challenger", tmp_path / "none", "none"),
        ("9", place, "has no version or alias '9'"),
    ):
        with pytest.raises(BigTransferError) as refused:
            measure(two, NAME, wanted, shards=shards)
        assert refused.value.exit_code == 2
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
