"""A dataset that travelled as volumes is the same dataset."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bigtransfer.data.shards import describe_shards
from bigtransfer.storage import sha256_file
from bigtransfer.storage import volumes as packing
from bigtransfer.storage.trees import open_tree, write_index
from bigtransfer.storage.volumes import is_packed
from fixtures.datasets import pack, validated


def digests(photos: Path) -> tuple[str, str, Any]:
    """Return what a manifest and shards of a folder are, and the counts."""
    counts = validated(photos)
    pack(photos, photos.parent / "shards")
    manifest = sha256_file(photos.parent / "manifest.parquet")
    return manifest, describe_shards(photos.parent / "shards")[0], counts


def test_manifest_and_shards_are_those_of_the_folder(
    photos: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(packing, "_VOLUME_BYTES", 4000)
    (photos / ".hidden.png").write_bytes(b"x")
    before = digests(photos)
    packing.pack(photos)
    assert is_packed(photos) and len(list(photos.glob("volume-*.tar"))) > 1
    assert digests(photos) == before


def test_a_mirrored_source_is_read_in_its_volumes(photos: Path, s3: Any, tmp_path: Path) -> None:
    for path in sorted(p for p in photos.rglob("*") if p.is_file()):
        key = f"pets/{path.relative_to(photos).as_posix()}"
        s3.put_object(Bucket="photos", Key=key, Body=path.read_bytes())
    index = tmp_path / "index"
    write_index("s3://photos/pets", index, mirror=True)
    as_folder = open_tree(shutil.copytree(index, tmp_path / "folder"))
    packing.pack(index)
    packed = open_tree(index)
    assert packed.address == as_folder.address == "s3://photos/pets"
    assert packed.contents() == as_folder.contents()
    for file in packed.contents().files:
        assert packed.read(file.path) == (photos / file.path).read_bytes()
