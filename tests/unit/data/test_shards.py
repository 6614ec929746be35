from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigtransfer.data.batches import Squares
from bigtransfer.data.decoding import decode_rgb
from bigtransfer.data.manifest import column, read_manifest, with_column, write_manifest
from bigtransfer.data.packing import (
    join_parts,
    write_part,
    write_shards,
)
from bigtransfer.data.shards import Shards, describe_shards, open_shards, write_pointer
from bigtransfer.errors import DatasetError
from bigtransfer.storage import digest_of, seal
from bigtransfer.storage.s3 import S3Path
from fixtures.datasets import batches, pack, plan, validate_table, validated
from fixtures.images import write_image


def test_every_image_is_in_the_shards_once_with_its_bytes(packed: Path, photos: Path) -> None:
    shards = open_shards(packed)
    reader = shards.reader()
    for row, facts in enumerate(shards.index.to_pylist()):
        data = reader.read(row)
        assert data == (photos / facts["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == facts["sha256"]
        assert shards.classes[facts["label"]] == facts["path"].split("/")[0]
    assert sorted(shards.index["path"].to_pylist()) == sorted(
        p.relative_to(photos).as_posix() for p in photos.rglob("*.png")
    )


def test_any_tar_tool_reads_them(packed: Path) -> None:
    names = []
    for path in sorted(packed.glob("*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    assert names == [f"{i:08d}.png" for i in range(30)]
    assert len(list(packed.glob("*.tar"))) > 1


def test_packing_twice_gives_the_same_bytes(packed: Path, photos: Path) -> None:
    write_shards(photos, photos.parent / "manifest.parquet", photos.parent / "again",
                 shard_bytes=4000, short_side=None, seed=0)  # fmt: skip
    assert digest_of(packed) == digest_of(photos.parent / "again")


def test_image_changed_after_validation_is_refused(photos: Path) -> None:
    validated(photos)
    write_image(photos / "class_0" / "4.png", 999)
    with pytest.raises(DatasetError, match=r"class_0/4.png' changed since it was validated"):
        write_shards(photos, photos.parent / "manifest.parquet", photos.parent / "s",
                     shard_bytes=4000, short_side=None, seed=0)  # fmt: skip
    assert not (photos.parent / "s").exists()


def test_one_flipped_bit_is_found(packed: Path) -> None:
    path = packed / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"shard-00000.tar' is damaged"):
        open_shards(packed)


def test_absent_split_is_named(shards: Shards) -> None:
    with pytest.raises(DatasetError, match="has no 'holdout' images"):
        shards.rows("holdout")


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_in_any_order_give_the_same_bytes_as_one_go(photos: Path, parts: int) -> None:
    validated(photos)
    pack(photos, photos.parent / "whole", shard_bytes=2000)
    for number in reversed(range(parts)):
        assert write_part(plan(photos), photos, photos.parent / "joined", number, parts)
    assert not write_part(plan(photos), photos, photos.parent / "joined", 0, parts)
    join_parts(plan(photos), photos.parent / "joined", parts)
    whole, joined = open_shards(photos.parent / "whole"), open_shards(photos.parent / "joined")
    assert joined.digest == whole.digest
    assert joined.index.equals(whole.index)


def test_missing_part_and_part_of_another_plan_are_named(photos: Path) -> None:
    validated(photos)
    target = photos.parent / "joined"
    write_part(plan(photos), photos, target, 0, 2)
    with pytest.raises(DatasetError, match=r"part 2 of 2 .* is missing; write it again \(--part"):
        join_parts(plan(photos), target, 2)
    with pytest.raises(DatasetError, match=r"has no MANIFEST.json, so it is not complete"):
        open_shards(target)
    write_part(plan(photos, seed=1), photos, target, 1, 2)
    with pytest.raises(DatasetError, match=r"part 2 of 2 .* was made of other data"):
        join_parts(plan(photos), target, 2)


def test_large_splits_have_a_multiple_of_64_shards_of_equal_length(photos: Path) -> None:
    for label in range(3):
        for i in range(10, 60):
            write_image(photos / f"class_{label}" / f"{i}.png", 100 * label + i)
    validated(photos, val=0.05, test=0.05)
    made = plan(photos, shard_bytes=1000)
    lengths = np.diff(made.bounds)
    assert made.num_shards > 64
    train = lengths[:64]
    assert train.max() - train.min() <= 1
    assert sum(lengths) == 180


def test_large_photos_are_made_smaller_and_small_ones_kept(photos: Path) -> None:
    write_image(photos / "class_0" / "big.png", 7, side=90)
    Image.open(photos / "class_0" / "big.png").resize((120, 90)).save(photos / "class_0/big.png")
    validated(photos)
    pack(photos, photos.parent / "shards", short_side=64)
    shards = open_shards(photos.parent / "shards")
    rows = {row["path"]: row for row in shards.index.to_pylist()}
    big, small = rows["class_0/big.png"], rows["class_0/0.png"]
    assert (big["height"], big["width"], big["key"].endswith(".jpg")) == (64, 85, True)
    assert (small["height"], small["key"].endswith(".png")) == (12, True)
    number = shards.index["path"].to_pylist().index("class_0/big.png")
    assert decode_rgb(shards.reader().read(number)).shape == (64, 85, 3)


def test_relabelling_rewrites_no_shard(photos: Path) -> None:
    validated(photos)
    pack(photos, photos.parent / "before")
    table, metadata = read_manifest(photos.parent / "manifest.parquet")
    turned = [
        ["class_1"] if labels == ["class_0"] else labels for labels in column(table, "labels")
    ]
    write_manifest(
        photos.parent / "manifest.parquet", with_column(table, "labels", turned), metadata
    )
    pack(photos, photos.parent / "after")
    before, after = open_shards(photos.parent / "before"), open_shards(photos.parent / "after")
    tars = [name for name in before.files if name.endswith(".tar")]
    assert [before.files[n] for n in tars] == [after.files[n] for n in tars]
    assert before.digest != after.digest


def test_several_labels_are_a_row_of_the_index(photos: Path) -> None:
    lines = ["path,labels"] + [f"class_0/{i}.png,{'a|b' if i % 2 else 'a'}" for i in range(10)]
    lines += [f"class_1/{i}.png,{'' if i else 'b'}" for i in range(10)]
    (photos / "list.csv").write_text("\n".join(lines) + "\n")
    validate_table(photos)
    pack(photos / "list.csv", photos.parent / "shards")
    shards = open_shards(photos.parent / "shards")
    assert (shards.classes, shards.summary["multi_label"]) == (["a", "b"], True)
    rows = np.arange(20)
    targets = shards.targets(rows)
    assert targets.shape == (20, 2)
    for row, listed in zip(targets, shards.index["labels"].take(rows).to_pylist(), strict=True):
        assert [label for label in row if label >= 0] == listed
    with pytest.raises(DatasetError, match="has several labels per image"):
        shards.labels(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "shard-00001.tar").unlink(), "shard-00001.tar' is missing"),
        (lambda p: os.truncate(p / "shard-00001.tar", 2000), "has 2,000 bytes, MANIFEST.json says"),
        (lambda p: (p / "shard-99999.tar").touch(), "shard-99999.tar' does not belong there"),
        (lambda p: (p / "index.parquet").unlink(), "index.parquet' is missing"),
        (lambda p: (p / "MANIFEST.json").write_text("{"), "MANIFEST.json' is damaged"),
    ],
)
def test_damaged_shards_are_named(packed: Path, change: Any, message: str) -> None:
    change(packed)
    with pytest.raises(DatasetError, match=message):
        open_shards(packed)


def reseal(packed: Path) -> None:
    (packed / "MANIFEST.json").unlink()
    seal(packed)


def test_index_that_does_not_fit_its_shards_is_refused(packed: Path) -> None:
    summary = json.loads((packed / "index.json").read_text())
    (packed / "index.json").write_text(json.dumps({**summary, "examples": 29}))
    reseal(packed)
    with pytest.raises(DatasetError, match="has 30 samples of 3 classes, index.json says 29 of 3"):
        open_shards(packed)
    (packed / "index.json").write_text(json.dumps(summary))
    os.truncate(packed / "shard-00000.tar", 600)
    reseal(packed)
    with pytest.raises(DatasetError, match="points behind the end of a shard"):
        open_shards(packed)


def test_sample_that_does_not_decode_is_named(packed: Path) -> None:
    shards = open_shards(packed)
    row = shards.index.to_pylist()[0]
    path = packed / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    data[row["offset"] : row["offset"] + row["length"]] = b"x" * row["length"]
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=rf"sample '{row['path']}' not an image"):
        Squares(shards, np.array([0]), 12)


class TestBucket:
    """The same shards in a bucket of a real S3 server."""

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
        monkeypatch.setattr("bigtransfer.data.shards.CACHE_BYTES", 4 * biggest)
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
        from bigtransfer.data.shards import _Fetched

        validated(photos)
        pack(photos, S3Path("photos", "shards"), shard_bytes=2000)
        shards = open_shards(S3Path("photos", "shards"))
        sizes = [facts["bytes"] for name, facts in shards.files.items() if name.endswith(".tar")]
        cache = tmp_path / "cache"
        opened = _Fetched(shards.place, shards.files, cache, most_bytes=2 * max(sizes))
        rows = shards.index.to_pylist()
        for row in rows + rows[::-1]:
            data = opened.read(row["shard"], row["offset"], row["length"])
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
            kept = sum(p.stat().st_size for p in cache.glob("*.tar"))
            assert kept <= 2 * max(sizes)
        for path in cache.glob("*.tar"):
            path.write_bytes(b"damaged")
        again = _Fetched(shards.place, shards.files, cache)
        for row in rows:
            data = again.read(row["shard"], row["offset"], row["length"])
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
