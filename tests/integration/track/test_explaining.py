"""From a version back to what made it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.data.manifest import read_manifest
from bigtransfer.errors import TrackingError
from bigtransfer.storage import digest_of, seal, sha256_file
from bigtransfer.track.auditing import audited
from bigtransfer.track.explaining import explain
from bigtransfer.track.origin import environment_of
from bigtransfer.track.promotion import promote
from fixtures.datasets import validated, write_photos
from fixtures.project import PROJECT, environment
from fixtures.registered import NAME, propose


@pytest.fixture
def promoted(tracked: Path, model_folder: Path) -> Path:
    from bigtransfer.config import GateRules

    propose(tracked, model_folder, "d1", 0.7)
    propose(tracked, model_folder, "d2", 0.8, description="a title\nand more")
    promote(tracked, NAME, "2", GateRules(), by="ada (claimed)", because="")
    return tracked


def test_a_version_says_what_made_it_and_who_promoted_it(promoted: Path) -> None:
    found = explain(promoted, f"models:/{NAME}@champion", verify=True)
    assert found.damage is None
    facts = found.facts
    assert facts["model"]["name"] == f"{NAME} version 2"
    assert (facts["model"]["aliases"], facts["model"]["what it is"]) == ("champion", "a title")
    assert facts["data"]["validation images"] == "300"
    assert facts["upstream"]["pretrained here on"] == "upstream"
    assert facts["made by"]["commit"] == "d2"
    assert facts["gates"]["leakage"] == "pass: the audit found none"
    (promotion,) = facts["promotions"].values()
    assert promotion.endswith("promote: v1 -> v2, by ada (claimed)")
    assert {len(digest) for digest in facts["digests"].values()} == {64}
    first = explain(promoted, f"{NAME}/1", verify=False).facts
    assert (first["model"]["aliases"], len(first["promotions"])) == ("previous", 2)


def test_it_says_how_its_data_were_split_and_what_was_left_out(
    tracked: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder with a `.dvc` file, a broken and an excluded photo, by way of its manifest."""
    photos = write_photos(tracked / "photos")
    broken, unwanted, *_ = sorted(path for path in photos.rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:40])
    md5 = "0123456789abcdef0123456789abcdef.dir"
    (tracked / "photos.dvc").write_text(f"outs:\n- md5: {md5}\n  size: 9\n  path: photos\n")
    excluded = unwanted.relative_to(photos).as_posix()
    validated(photos, on_bad="quarantine", bad_budget=0.5, exclude=[excluded], seed=7)
    _, about = read_manifest(tracked / "manifest.parquet")
    monkeypatch.setenv("BIGTRANSFER_IMAGE", "example/bigtransfer-registry:1")
    tags = {"init": "upstream", "dataset": about.dataset, **environment_of(tracked)}
    propose(tracked, model_folder, "d1", about=about, tags=tags)
    facts = explain(tracked, f"{NAME}/1", verify=False).facts
    own = {what.partition(" of ")[0]: said for what, said in facts["data"].items()}
    assert own["DVC revision"] == md5
    assert own["splits"] == "made with seed 7"
    named = broken.relative_to(photos).as_posix()
    assert own["left out"].startswith(f"{excluded}: excluded (data.exclude); {named}: ")
    assert facts["made by"]["image"] == "example/bigtransfer-registry:1"
    assert facts["made by"]["lock file"] == sha256_file(PROJECT / "requirements.lock")


@pytest.mark.parametrize("kept", ["checkpoint", "model", "report", "audit"])
def test_a_byte_that_was_flipped_is_named(kept: str, promoted: Path, client: Any) -> None:
    version = client.get_model_version(NAME, "2")
    if kept == "model":
        logged = client.get_logged_model(version.source.removeprefix("models:/"))
        root = Path(logged.artifact_location.removeprefix("file://"))
    else:
        run = client.get_run(version.run_id)
        root = Path(run.info.artifact_uri.removeprefix("file://")) / kept
    file = next(p for p in sorted(root.rglob("*")) if p.is_file() and p.name != "MANIFEST.json")
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    line = [sys.executable, "-m", "bigtransfer.command", "explain", f"{NAME}@champion", "--json"]
    own = environment(MLFLOW_TRACKING_URI="")
    done = subprocess.run(
        [*line, "--verify"], cwd=promoted, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert f"its {kept} is not as it was registered" in done.stderr
    verified = json.loads(done.stdout)["verified"]
    assert verified["shards"].startswith("could not be reached: ")


def test_a_version_of_older_code_says_what_is_not_noted(promoted: Path, client: Any) -> None:
    for tag in client.get_model_version(NAME, "1").tags:
        client.delete_model_version_tag(NAME, "1", tag)
    facts = explain(promoted, f"{NAME}/1", verify=True).facts
    assert set(facts["digests"].values()) == {"not noted"}
    assert facts["made by"]["commit"] == "not noted"
    with pytest.raises(TrackingError, match="has no version or alias 'challenger'"):
        explain(promoted, f"{NAME}@challenger", verify=False)
    assert explain(promoted, NAME, verify=False).facts["model"]["aliases"] == "champion"


def test_files_and_their_digest_exchanged_together_are_told_by_the_record(
    promoted: Path, client: Any
) -> None:
    assert explain(promoted, NAME, verify=True).damage is None
    version = client.get_model_version(NAME, "2")
    run = client.get_run(version.run_id)
    report = Path(run.info.artifact_uri.removeprefix("file://")) / "report"
    (report / "evidence.json").write_text("{}")
    seal(report)
    client.set_model_version_tag(NAME, "2", "bigtransfer.report_digest", digest_of(report))
    wanted = "the digest of its report is not that of record 2"
    assert explain(promoted, NAME, verify=True).damage == wanted
    ((_, wrong),) = audited(promoted, [NAME]).values()
    assert wrong == ["the digest of the report of v2 is not that of record 2"]
