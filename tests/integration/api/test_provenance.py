"""From a model to the files that made it, and from an image to the models that had it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigtransfer.api import provenance
from bigtransfer.api.provenance import verified, where
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import ConfigError
from bigtransfer.storage import digest_of, new_folder, sha256_file
from bigtransfer.track.explaining import Explanation
from bigtransfer.track.versions import MANIFESTS_TAG
from fixtures.datasets import packed_in
from fixtures.registered import NAME, propose

SAME = "as registered"


@pytest.fixture
def project(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one packed dataset and upstream weights."""
    monkeypatch.chdir(tracked)
    own = tracked / "artifacts" / "datasets" / "d"
    own.mkdir(parents=True)
    packed_in(own)
    with new_folder(tracked / "artifacts" / "pretrain" / "checkpoint") as folder:
        (folder / "weights.safetensors").write_bytes(b"w" * 100)
    return tracked


def explanation(project: Path, **changes: Any) -> Explanation:
    own = project / "artifacts" / "datasets" / "d"
    data = {
        "dataset": "d",
        "shards": open_shards(own / "shards").digest,
        "manifest of d": sha256_file(own / "manifest.parquet"),
    }
    upstream = {
        "digest": digest_of(project / "artifacts" / "pretrain" / "checkpoint"),
        "pretrained here on": "u",
    }
    wanted: dict[str, Any] = {
        "facts": {"data": data, "upstream": upstream}, "unnoted": (), "damage": None, **changes,
    }  # fmt: skip
    return Explanation(**wanted)


KINDS = {
    "shards": "artifacts/datasets/d/shards/shard-00000.tar",
    "manifest of d": "artifacts/datasets/d/manifest.parquet",
    "upstream weights": "artifacts/pretrain/checkpoint/weights.safetensors",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_found_in_its_kind_alone(kind: str, project: Path) -> None:
    found = explanation(project)
    assert all(said.startswith(SAME) for said in verified(found).values())
    path = project / KINDS[kind]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = verified(found)
    assert {own for own, words in said.items() if words.startswith("differs")} == {kind}
    path.unlink()
    assert not verified(found)[kind].startswith(SAME)


def test_what_nobody_noted_is_not_called_as_registered(project: Path) -> None:
    said = verified(explanation(project, unnoted=("report", "audit")))
    assert said["checkpoint, model"] == SAME
    assert said["report, audit"] == "cannot be said: no digest is noted"
    none = verified(explanation(project, unnoted=("checkpoint", "model", "report", "audit")))
    assert SAME not in none.values()
    everything = ("checkpoint", "model", "report", "audit")
    taken = verified(explanation(project, unnoted=everything, damage="a digest is gone"))
    assert taken["its digests"] == "differs: a digest is gone"


def test_an_image_leads_to_the_versions_that_had_it(project: Path, model_folder: Path) -> None:
    own = project / "artifacts" / "datasets" / "d"
    digest = sha256_file(own / "manifest.parquet")
    tags = {"git_commit": "x", "init": "upstream"}
    had = {MANIFESTS_TAG: json.dumps({"d": digest})}
    propose(project, model_folder, "m1", tags={**tags, "dataset": "d", **had})
    propose(project, model_folder, "m2", tags={**tags, "dataset": "e", **had})
    other = {MANIFESTS_TAG: json.dumps({"d": "0" * 64})}
    propose(project, model_folder, "m3", tags={**tags, "dataset": "d", **other})
    propose(project, model_folder, "m4", tags=tags)
    image = own / "photos" / "class_1" / "3.png"
    found = where(project, str(image))
    (place,) = found.places
    assert (place.dataset, place.path) == ("d", "class_1/3.png")
    assert place.shard.startswith("shard ")
    assert [version for version, _ in place.versions] == [f"{NAME}/2", f"{NAME}/1"]
    how = dict(place.versions)
    assert ("trained on it" in how[f"{NAME}/2"]) == (place.split == "train")
    assert found.not_noted == (f"{NAME}/4",)
    assert where(project, found.sha256.upper()) == found
    assert where(project, "f" * 64).places == ()
    with pytest.raises(ConfigError, match="is no file and no SHA-256"):
        where(project, "photo.jpg")


def test_an_image_is_found_in_a_large_manifest(tmp_path: Path) -> None:
    rows = 100_000
    shas = [f"{n:064x}" for n in range(rows)]
    table = pa.table({
        "path": [f"c/{n}.jpg" for n in range(rows)], "split": ["train"] * rows, "sha256": shas,
        "more": np.zeros(rows),
    })  # fmt: skip
    folder = tmp_path / "artifacts" / "datasets" / "big"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "manifest.parquet")
    began = time.perf_counter()
    assert provenance._rows(folder / "manifest.parquet", shas[77_777]) == [("c/77777.jpg", "train")]
    print(f"{time.perf_counter() - began:.3f} s")
