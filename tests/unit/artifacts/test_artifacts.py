from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigtransfer.artifacts.base import Artifact
from bigtransfer.artifacts.report import TaskReport
from bigtransfer.artifacts.shards import ShardsSummary
from bigtransfer.artifacts.validation import Counts, Outcome, ValidationReport
from bigtransfer.artifacts.weights import TunedMeta, UpstreamMeta, parse_meta
from bigtransfer.errors import BigTransferError, CheckpointError
from bigtransfer.storage import as_json, read_json
from fixtures.models import tuned_meta, upstream_meta
from fixtures.project import PROJECT
from fixtures.reports import task_report

GOLDEN = PROJECT / "tests" / "golden" / "artifacts" / "0.1.0"
COUNTS = Counts(
    images=3, listed=4, classes=2, splits={"train": 3}, rejected=1, flags={"blank": 1},
    ignored_files=0, bytes=99,
)  # fmt: skip
OUTCOME = Outcome(
    rule="r", expectation="e", success=False, checked=4, failed=7, failures=tuple("abcdef")
)
EACH: list[Artifact] = [
    upstream_meta("R50x1", ["a", "b"], recipe={"batch_size": 6, "schedule": None}),
    tuned_meta(code="c"),
    task_report(),
    ShardsSummary(
        dataset="d", examples=3, splits={"train": 3}, classes=2, classes_sha256="c",
        multi_label=False, shards=1, short_side=None, height=8, width=8, plan="p",
    ),
    ValidationReport(
        dataset="d", address="a", layout="folders", success=False, counts=COUNTS, notes=("n",),
        rules=(OUTCOME,), params={"seed": 0},
    ),
]  # fmt: skip
each = pytest.mark.parametrize("artifact", EACH, ids=lambda own: type(own).__name__)


@each
def test_what_is_written_is_read(artifact: Artifact, tmp_path: Path) -> None:
    artifact.write(tmp_path)
    assert read_json(tmp_path / artifact.FILE)["schema"] == artifact.SCHEMA
    assert type(artifact).read(tmp_path) == artifact


def damage(path: Path, **changes: Any) -> None:
    path.write_text(as_json({**read_json(path), **changes}))


@each
def test_what_is_not_one_of_ours_is_one_line(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / artifact.FILE
    artifact.write(tmp_path)
    damage(path, schema=99)
    with pytest.raises(artifact.REFUSAL, match=r"newer version .*schema 99"):
        type(artifact).read(tmp_path)
    for wrong, said in (
        ({"unheard_of": 1}, "unheard_of"),
        ({next(iter(type(artifact).model_fields)): 5.5}, next(iter(type(artifact).model_fields))),
    ):
        artifact.write(tmp_path)
        damage(path, **wrong)
        with pytest.raises(artifact.REFUSAL, match=f"damaged .*{said}") as fault:
            type(artifact).read(tmp_path)
        assert "\n" not in str(fault.value)
        assert str(path) in str(fault.value)
    for text in ("[1]", "7"):
        path.write_text(text)
        with pytest.raises(artifact.REFUSAL, match=r"is not .*make it anew"):
            type(artifact).read(tmp_path)
    for text in ("{", ""):
        path.write_text(text)
        with pytest.raises(BigTransferError, match="is not JSON"):
            type(artifact).read(tmp_path)


def test_a_checkpoint_is_of_one_kind_or_the_other() -> None:
    for meta in (upstream_meta("R50x1", ["a"]), tuned_meta()):
        assert parse_meta(read(meta), "m") == meta
    with pytest.raises(CheckpointError, match="calibration"):
        parse_meta({**read(tuned_meta()), "calibration": {"temperature": 1.0}}, "m")
    with pytest.raises(CheckpointError, match="is not the description of a checkpoint"):
        parse_meta(["no"], "m")


def read(artifact: Artifact) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(artifact.text())
    return found


def test_the_first_schema_of_weights_is_read() -> None:
    old = read_json(GOLDEN / "upstream" / "meta.json")
    new = parse_meta(old, "m")
    assert isinstance(new, UpstreamMeta)
    assert (new.classes, new.crop, new.dataset) == (("blue", "green", "red"), 10, "colours")
    assert new.recipe["precrop"] == old["precrop"]
    tuned = read_json(GOLDEN / "finetuned" / "upstream-4-0" / "meta.json")
    own = parse_meta(tuned, "m")
    assert isinstance(own, TunedMeta)
    assert own.calibration.model_dump() == {**tuned["validation"], "calibrated": True}
    assert own.code is None
    del tuned["validation"]["temperature"]
    with pytest.raises(CheckpointError, match="damaged"):
        parse_meta(tuned, "m")


def test_the_first_schema_of_a_report_is_read() -> None:
    old, new = read_json(GOLDEN / "report" / "report.json"), TaskReport.read(GOLDEN / "report")
    assert new.chosen.figures()["test_top1"] == old["chosen"]["test_top1"]
    assert new.rows[0].medians == {"top5": old["rows"][0]["top5_median"]}
    assert new.reliability and new.reliability.error == old["calibration"]["error"]
    assert [row.score for row in new.per_class] == [row["recall"] for row in old["per_class"]]
    assert [m.picture for m in new.mistakes] == [m["picture"] for m in old["mistakes"]]
    assert new.label_issues.found == old["suspects_found"]
    for lost in ("suspects", "rows", "chosen", "validation", "classes"):
        broken = {key: old[key] for key in old if key != lost}
        with pytest.raises(BigTransferError, match="is damaged"):
            TaskReport.parse(broken, "report.json")
