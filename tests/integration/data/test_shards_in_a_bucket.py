"""Shards in a bucket of a real S3 server are those in a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigtransfer.data.packing import (
    join_parts,
    write_part,
)
from bigtransfer.data.shards import describe_shards, open_shards, write_pointer
from bigtransfer.data.validation import Parts, inspect_part, validate
from bigtransfer.errors import DatasetError
from bigtransfer.storage.s3 import S3Path
from fixtures.datasets import batches, pack, plan, rules, validated


class TestBucket:
    """The same shards in a bucket of a real S3 server."""

    def test_parts_of_a_validation_meet_there(self, photos: Path, s3: Any, tmp_path: Path) -> None:
        validated(photos)
        whole = (photos.parent / "manifest.parquet").read_bytes()
        place = S3Path("photos", "parts")
        for number in (1, 0):
            inspect_part(photos, "photos", rules(), place, number, 2)
        made = tmp_path / "of-parts.parquet"
        join = {"manifest_path": made, "report": tmp_path / "report"}
        validate(photos, "photos", rules(), **join, parts=Parts(place, 2))
        assert made.read_bytes() == whole
        listed = s3.list_objects_v2(Bucket="photos", Prefix="parts/")["Contents"]
        (key,) = (one["Key"] for one in listed if one["Key"].endswith("00001-of-00002.parquet"))
        s3.delete_object(Bucket="photos", Key=key)
        with pytest.raises(DatasetError, match=r"part 2 of 2 in 's3://photos/parts/.*' is missing"):
            validate(photos, "photos", rules(), **join, parts=Parts(place, 2))

    def test_shards_in_a_bucket_equal_those_in_a_folder(
        self, photos: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        validated(photos)
        pack(photos, photos.parent / "here")
        pack(photos, S3Path("photos", "shards"))
        here, there = open_shards(photos.parent / "here"), open_shards(S3Path("photos", "shards"))
        assert here.digest == there.digest
        one = batches(here).batch(3)
        other = batches(there).batch(3)
        assert np.array_equal(one.images, other.images)
        fetched = sorted(p.name for p in (tmp_path / ".work/cache/shards").glob("*.tar"))
        used = set(here.reader().shard_of(here.rows("train")).tolist())
        assert len(fetched) == len(used)

    def test_a_pointer_stands_for_shards_in_a_bucket(
        self, photos: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        validated(photos)
        place = S3Path("photos", "shards")
        pack(photos, place)
        write_pointer(tmp_path / "pointer", place)
        assert sum(f.stat().st_size for f in (tmp_path / "pointer").iterdir()) < 3000
        opened = open_shards(tmp_path / "pointer")
        assert opened.place == place
        assert opened.digest == open_shards(place).digest
        assert describe_shards(tmp_path / "pointer") == (opened.digest, opened.summary)
        assert np.array_equal(
            batches(opened).batch(3).labels, batches(open_shards(place)).batch(3).labels
        )

        data = s3.get_object(Bucket="photos", Key="shards/MANIFEST.json")["Body"].read()
        s3.put_object(Bucket="photos", Key="shards/MANIFEST.json", Body=data + b" ")
        with pytest.raises(DatasetError, match="are others than .* points to; run `shard` again"):
            open_shards(tmp_path / "pointer")

    def test_upload_goes_on_where_it_ended(self, photos: Path, s3: Any) -> None:
        validated(photos)
        place = S3Path("photos", "parts")
        write_part(plan(photos), photos, place, 0, 3)
        stamp = s3.head_object(Bucket="photos", Key="parts/shard-00000.tar")["LastModified"]
        s3.delete_object(Bucket="photos", Key="parts/parts/part-00000-of-00003.parquet")
        for number in range(3):  # the first part's record was lost: its shards are not sent again
            write_part(plan(photos), photos, place, number, 3)
        assert s3.head_object(Bucket="photos", Key="parts/shard-00000.tar")["LastModified"] == stamp
        join_parts(plan(photos), place, 3)
        pack(photos, photos.parent / "whole", shard_bytes=2000)
        assert open_shards(place).digest == open_shards(photos.parent / "whole").digest

    def test_damaged_and_missing_shards_in_a_bucket_are_named(
        self, photos: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        validated(photos)
        pack(photos, S3Path("photos", "shards"))
        key = "shards/shard-00000.tar"
        data = bytearray(s3.get_object(Bucket="photos", Key=key)["Body"].read())
        data[700] ^= 1
        s3.put_object(Bucket="photos", Key=key, Body=bytes(data))
        with pytest.raises(DatasetError, match="shard-00000.tar' is damaged"):
            open_shards(S3Path("photos", "shards")).reader().read(0)
        s3.delete_object(Bucket="photos", Key=key)
        with pytest.raises(DatasetError, match="shard-00000.tar' is missing though MANIFEST.json"):
            open_shards(S3Path("photos", "shards")).reader().read(0)
        with pytest.raises(DatasetError, match="has no MANIFEST.json, so it is not complete"):
            open_shards(S3Path("photos", "nothing"))

    def test_lost_shard_is_written_again(self, photos: Path, s3: Any) -> None:
        validated(photos)
        pack(photos, S3Path("photos", "shards"))
        whole = open_shards(S3Path("photos", "shards")).digest
        s3.delete_object(Bucket="photos", Key="shards/shard-00000.tar")
        pack(photos, S3Path("photos", "shards"))
        shards = open_shards(S3Path("photos", "shards"))
        assert shards.digest == whole
        assert s3.head_object(Bucket="photos", Key="shards/shard-00000.tar")["ContentLength"] > 0

    def test_many_readers_share_one_small_cache(
        self, photos: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from concurrent.futures import ThreadPoolExecutor

        monkeypatch.chdir(tmp_path)
        validated(photos)
        pack(photos, S3Path("photos", "shards"), shard_bytes=2000)
        shards = open_shards(S3Path("photos", "shards"))
        biggest = max(facts["bytes"] for facts in shards.files.values())
        monkeypatch.setattr("bigtransfer.data.shard_files.CACHE_BYTES", 4 * biggest)
        readers = [shards.reader() for _ in range(4)]
        rows = shards.index.to_pylist()

        def look(i: int) -> bool:
            row = i * 7 % len(rows)
            readers[i % 4].prefetch([rows[(row + 1) % len(rows)]["shard"]])
            data = readers[i % 4].read(row)
            return hashlib.sha256(data).hexdigest() == rows[row]["sha256"]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(look, range(200)))

    def test_cache_is_bounded_and_a_damaged_entry_is_fetched_again(
        self, photos: Path, s3: Any, tmp_path: Path
    ) -> None:
        from bigtransfer.data.shard_files import FetchedShardFiles

        validated(photos)
        pack(photos, S3Path("photos", "shards"), shard_bytes=2000)
        shards = open_shards(S3Path("photos", "shards"))
        sizes = [facts["bytes"] for name, facts in shards.files.items() if name.endswith(".tar")]
        cache = tmp_path / "cache"
        opened = FetchedShardFiles(shards.place, shards.files, cache, most_bytes=2 * max(sizes))
        rows = shards.index.to_pylist()
        for row in rows + rows[::-1]:
            data = opened.read(row["shard"], row["offset"], row["length"])
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
            kept = sum(p.stat().st_size for p in cache.glob("*.tar"))
            assert kept <= 2 * max(sizes)
        for path in cache.glob("*.tar"):
            path.write_bytes(b"damaged")
        again = FetchedShardFiles(shards.place, shards.files, cache)
        for row in rows:
            data = again.read(row["shard"], row["offset"], row["length"])
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
