"""Checkpoints on a small disk and in a bucket."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.errors import InfrastructureError, StorageError
from bigtransfer.storage.s3 import S3Path
from fixtures.checkpoints import Kept


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB: one checkpoint of this network has 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_leaves_the_good_checkpoint_and_says_try_again(small_disk: Path) -> None:
    kept = Kept(small_disk / "run")
    kept.write(10)
    (small_disk / "filling").write_bytes(bytes(3_000_000))
    with pytest.raises(InfrastructureError, match=r"the disk is full while writing .*step-0+20"):
        kept.write(20)
    assert kept.names() == ["step-00000010"]
    assert kept.newest() == 10


def test_read_only_folder_is_named_and_keeps_what_it_has(small_disk: Path) -> None:
    kept = Kept(small_disk / "run")
    kept.write(10)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    with pytest.raises(StorageError, match=r"cannot write .*step-0+20'?: Read-only file system"):
        kept.write(20)
    assert kept.newest() == 10
    subprocess.run([*remount[:2], "remount,rw", str(small_disk)], check=True)


def test_a_run_does_not_begin_where_its_checkpoints_will_not_fit(small_disk: Path) -> None:
    kept = Kept(small_disk / "run")
    with pytest.raises(InfrastructureError, match=r"needs 8,000,000 bytes for checkpoints of 2,00"):
        kept.checkpoints.require_room(2_000_000)
    kept.checkpoints.require_room(1_000_000)


def mirrored(tmp_path: Path, name: str) -> Kept:
    return Kept(tmp_path / name, S3Path.parse("s3://photos/state"))


def test_another_machine_goes_on_from_the_bucket(tmp_path: Path, s3: Any) -> None:
    first = mirrored(tmp_path, "first")
    first.write(10, 20, 30)
    second = mirrored(tmp_path, "second")
    assert second.newest() == 30
    assert "step-00000030 came from s3://" in second.said[-1]
    second.write(40)
    assert first.newest() == 40
    second.checkpoints.clear()
    assert mirrored(tmp_path, "third").newest() is None


def test_damaged_and_unfinished_objects_are_passed_over(tmp_path: Path, s3: Any) -> None:
    first = mirrored(tmp_path, "first")
    first.write(10, 20)
    for key in ("step-00000020/momentum.safetensors", "step-00000030/weights.safetensors"):
        s3.put_object(Bucket="photos", Key=f"state/{key}", Body=b"other bytes, no manifest")
    second = mirrored(tmp_path, "second")
    assert second.newest() == 10
    assert any("momentum.safetensors" in line for line in second.said)


def test_what_was_half_sent_is_removed_by_the_next_start_of_the_same_run(
    tmp_path: Path, s3: Any
) -> None:
    mirrored(tmp_path, "first").write(10)
    whole = [o["Key"] for o in s3.list_objects_v2(Bucket="photos")["Contents"]]
    others = ["state-of-another/step-00000020/meta.json", "state/note.txt"]
    for key in (*others, "state/step-00000020/meta.json", "state/step-00000020/metrics.jsonl"):
        s3.put_object(Bucket="photos", Key=key, Body=b"half")
    assert mirrored(tmp_path, "second").newest() == 10
    left = [o["Key"] for o in s3.list_objects_v2(Bucket="photos")["Contents"]]
    assert sorted(left) == sorted([*whole, *others])


def test_a_half_that_may_not_be_removed_is_said(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirrored(tmp_path, "first").write(10)
    s3.put_object(Bucket="photos", Key="state/step-00000020/meta.json", Body=b"half")

    def refuse(*_: Any) -> None:
        raise StorageError("no right to remove")

    monkeypatch.setattr("bigtransfer.storage.places.delete", refuse)
    second = mirrored(tmp_path, "second")
    assert second.newest() == 10
    assert second.said[0] == "half a checkpoint stays in the bucket: no right to remove"


def test_training_goes_on_where_the_bucket_takes_nothing(tmp_path: Path, s3: Any) -> None:
    kept = Kept(tmp_path / "run", S3Path.parse("s3://there-is-no-such-bucket/state"))
    kept.write(10)
    assert kept.names() == ["step-00000010"]
    assert "step-00000010 is kept here alone, the bucket did not take it" in kept.said[0]
    assert "there is no such bucket" in kept.said[0]


def test_a_bucket_that_takes_nothing_new_keeps_what_it_has(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = mirrored(tmp_path, "run")
    kept.write(10, 20)
    with monkeypatch.context() as patch:

        def refuse(*_: Any) -> None:
            raise StorageError("no right to write")

        patch.setattr("bigtransfer.storage.places.upload", refuse)
        kept.write(30, 40)
    assert mirrored(tmp_path, "elsewhere").newest() == 20
