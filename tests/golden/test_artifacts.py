"""What an earlier version wrote is read, answers as it did then, and is registered."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bigtransfer import config
from bigtransfer.artifacts.audit import Audit
from bigtransfer.artifacts.registration import Registration
from bigtransfer.artifacts.report import TaskReport
from bigtransfer.artifacts.validation import ValidationReport
from bigtransfer.config import EvaluateParams, RegisterParams
from bigtransfer.data.audit import audit
from bigtransfer.data.manifest import read_manifest
from bigtransfer.data.shards import open_shards
from bigtransfer.model import load_checkpoint
from bigtransfer.serve.deployed import load_deployed
from bigtransfer.serve.prediction import answers
from bigtransfer.storage import digest_of, new_folder, read_json, verify_folder
from bigtransfer.track.journal import SilentJournal
from components import evaluate, register
from components.interface import Stage
from fixtures.images import in_base64
from fixtures.project import PROJECT
from fixtures.training import tune

ARTIFACTS = sorted((Path(__file__).parent / "artifacts").iterdir())
pytestmark = [
    pytest.mark.xdist_group("mlflow"),
    pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning"),  # MLflow's import of itself
]


@pytest.fixture(params=ARTIFACTS, ids=lambda path: path.name)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the artifacts that one version wrote."""
    return Path(shutil.copytree(request.param, tmp_path / "written"))


def expected(written: Path) -> dict[str, dict[str, str]]:
    with (written / "answers.csv").open(newline="") as file:
        return {row["path"].removeprefix("colours/"): row for row in csv.DictReader(file)}


def extracted(written: Path, folder: Path) -> list[Path]:
    """Write the images that are in the shards as files."""
    shards = open_shards(written / "shards")
    reader, files = shards.reader(), []
    for number, row in enumerate(shards.index.to_pylist()):
        files.append(folder / row["path"])
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_bytes(reader.read(number))
    return files


def test_manifest_and_shards_are_read(written: Path) -> None:
    rows = read_manifest(written / "manifest.parquet")[0].to_pylist()
    assert len(rows) == 48
    shards = open_shards(written / "shards")
    assert shards.classes == ["blue", "green", "red"]
    assert [len(shards.rows(split)) for split in ("train", "val", "test")] == [24, 12, 12]
    verify_folder(written / "valid")
    assert ValidationReport.read(written / "valid").success
    again = audit(
        [written / "manifest.parquet"], written / "audit", upstream="colours",
        downstream=("colours",), on_leak="error",
    )  # fmt: skip
    assert again.success


def test_an_upstream_checkpoint_is_loaded_and_fine_tuned(written: Path) -> None:
    network, meta = load_checkpoint(written / "upstream")
    assert meta.classes == ("blue", "green", "red")
    tune(written / "upstream", written / "shards", written / "new")
    tuned, _ = load_checkpoint(written / "new" / "upstream-2-0")
    assert tuned.state_dict().keys() == network.state_dict().keys()


def test_a_fine_tuned_network_answers_as_it_did(written: Path, tmp_path: Path) -> None:
    wanted = expected(written)
    files = extracted(written, tmp_path / "images")
    deployed, meta = load_deployed(written / "finetuned" / "upstream-4-0")
    compared = 0
    for answer in answers(deployed, files, 8, torch.device("cpu")):
        row = wanted[answer.path.relative_to(tmp_path / "images").as_posix()]
        assert answer.probabilities is not None
        order = np.argsort(-answer.probabilities)
        assert meta.classes[order[0]] == row["predicted"]
        found = [answer.probabilities[i] for i in order]
        said = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        np.testing.assert_allclose(found, said, atol=2e-4)  # they are written with four digits
        compared += 1
    assert compared == 48


def stage(written: Path, name: str) -> Stage:
    return Stage(f"{name}@colours", written, written / "work", SilentJournal())


def params_of(section: str) -> dict[str, Any]:
    raw: dict[str, Any] = getattr(config.load(PROJECT / "params.yaml"), section).model_dump()
    return {**raw, "threads": 1, "device": "cpu"} if "threads" in raw else raw


def evaluated(written: Path) -> Path:
    new = written / "evaluated"
    outputs = ("report", "metrics", "cells", "predictions", "page", "confusion", "model")
    evaluate.run(
        stage(written, "evaluate"), EvaluateParams.model_validate(params_of("evaluate")),
        checkpoints=written / "finetuned", shards=written / "shards",
        **{name: new / name for name in outputs},
    )  # fmt: skip
    return new


def test_networks_are_scored_as_they_were(written: Path) -> None:
    new = evaluated(written)
    before, after = (TaskReport.read(p / "report") for p in (written, new))
    # The picture of a mistake is encoded by the Pillow at hand; all else is equal.
    assert after.metric == before.metric
    for old, new_row in zip(before.rows, after.rows, strict=True):
        assert new_row.model_copy(update={"medians": old.medians}) == old
        assert old.medians.items() <= new_row.medians.items()
    assert after.chosen.test.items() >= before.chosen.test.items()
    told = {"mistakes", "rows", "cells", "chosen", "baseline", "largest_class", "label_issues",
            "reliability"}  # fmt: skip
    assert after.model_dump(exclude=told) == before.model_dump(exclude=told)
    assert after.reliability and before.reliability and after.reliability.asked == 0.95
    assert after.reliability.model_copy(update={"asked": None}) == before.reliability
    assert [m.path for m in after.mistakes] == [m.path for m in before.mistakes]
    metrics, known = json.loads((new / "metrics").read_text()), read_json(written / "metrics.json")
    assert metrics["registered_test_top1"] == known["registered_test_top1"]
    for name, figures in known["upstream"].items():
        assert figures.items() <= metrics["upstream"][name].items()


@pytest.mark.parametrize("report", ["as written then", "made anew"])
def test_a_model_is_registered_from_what_was_written(
    report: str, written: Path, tracked: Path, client: Any
) -> None:
    folder = written if report == "as written then" else evaluated(written)
    with new_folder(tracked / "audit") as audit:
        Audit(success=True, datasets={}, compared=(), leaks=()).write(audit)
    register.run(
        Stage("register@colours", tracked, tracked / "work", SilentJournal()),
        RegisterParams.model_validate(params_of("register")), checkpoints=written / "finetuned",
        model=folder / "model", report=folder / "report", audit=tracked / "audit",
        registration=tracked / "registration.json",
    )  # fmt: skip
    found, before = (Registration.read(p) for p in (tracked, written))
    assert found.run_id and before.run_id
    assert (found.name, found.version, found.new) == (before.name, before.version, before.new)
    # Where its weights come from was not noted then, and a gate wants to know.
    assert (found.alias, "its origin is not noted" in found.reason) == ("challenger", True)
    import mlflow

    served = mlflow.pyfunc.load_model("models:/bigtransfer-colours@challenger")
    deployed, _ = load_deployed(written / "finetuned" / "upstream-4-0")
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    with torch.inference_mode():
        wanted = deployed(torch.from_numpy(images)).numpy()
    if report == "as written then":  # a program of torch.export that takes arrays
        assert served.metadata.get_input_schema().inputs[0].type == np.uint8
        np.testing.assert_allclose(served.predict(images), wanted, atol=1e-5)
    else:
        rows = [in_base64(image) for image in images]
        said = served.predict(pd.DataFrame({"image": rows}))
        np.testing.assert_allclose(
            [row["probability"] for row in said], wanted.max(axis=1), atol=1e-5
        )
    version = client.get_model_version("bigtransfer-colours", "1")
    assert version.tags["shards_digest"] == open_shards(written / "shards").digest


def test_nothing_of_them_is_changed_by_reading(written: Path) -> None:
    before = digest_of(written)
    open_shards(written / "shards")
    load_deployed(written / "finetuned" / "upstream-4-1")
    assert digest_of(written) == before
