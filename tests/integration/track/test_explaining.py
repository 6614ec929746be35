"""From a version back to what made it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.errors import TrackingError
from bigtransfer.storage import digest_of, seal
from bigtransfer.track.auditing import audited
from bigtransfer.track.explaining import explain
from bigtransfer.track.promotion import promote
from fixtures.project import environment
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
