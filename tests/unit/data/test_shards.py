from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image

from bigtransfer.data.batches import Squares, TrainBatches, evaluation_batches, few_shot_rows
from bigtransfer.data.packing import write_shards
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.errors import DatasetError
from bigtransfer.storage import digest_of
from unit.data.test_validation import run


@pytest.fixture
def packed(photos: Path) -> Path:
    run(photos)
    write_shards(photos, photos.parent / "manifest.parquet", photos.parent / "shards",
                 shard_bytes=4000, short_side=None, seed=0)  # fmt: skip
    return photos.parent / "shards"


@pytest.fixture
def shards(packed: Path) -> Shards:
    return open_shards(packed)


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
    run(photos)
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


def batches(shards: Shards, batch_size: int = 7, crop: int = 9) -> TrainBatches:
    squares = Squares(shards, shards.rows("train"), 12)
    return TrainBatches(squares, batch_size=batch_size, crop=crop, flip=True, seed=3)


def test_batch_is_a_pure_function_of_the_step(shards: Shards) -> None:
    forward = [batches(shards).batch(step) for step in range(9)]
    fresh = batches(shards)
    for step in reversed(range(9)):
        again = fresh.batch(step)
        assert np.array_equal(again.images, forward[step].images)
        assert np.array_equal(again.rows, forward[step].rows)


@pytest.mark.parametrize("batch_size", [1, 5, 18, 40])
def test_every_epoch_holds_every_image_once(shards: Shards, batch_size: int) -> None:
    source = batches(shards, batch_size)
    train = shards.rows("train")
    seen = np.concatenate([source.batch(step).rows for step in range(90 // batch_size + 1)])
    for epoch in range(3):
        part = seen[epoch * len(train) : (epoch + 1) * len(train)]
        assert sorted(part) == sorted(train)
    assert not np.array_equal(seen[: len(train)], seen[len(train) : 2 * len(train)])


def test_augmentation_does_not_depend_on_the_batch_split(shards: Shards) -> None:
    small, large = batches(shards, 3), batches(shards, 9)
    together = large.batch(1)
    apart = [small.batch(step) for step in (3, 4, 5)]
    assert np.array_equal(together.images, np.concatenate([b.images for b in apart]))
    assert np.array_equal(together.labels, np.concatenate([b.labels for b in apart]))


def test_crops_and_flips_vary_and_are_parts_of_the_image(shards: Shards) -> None:
    squares = Squares(shards, shards.rows("train")[:1], 12)
    source = TrainBatches(squares, batch_size=64, crop=9, flip=True, seed=0)
    whole = squares.get(np.array([0]))[0]
    cuts = {
        (flipped, top, left): (whole[top : top + 9, left : left + 9][:, ::flipped]).tobytes()
        for flipped in (1, -1) for top in range(4) for left in range(4)
    }  # fmt: skip
    found = {image.tobytes() for image in source.batch(0).images}
    assert found <= set(cuts.values())
    assert len(found) > 16


def test_evaluation_sees_every_image_once_last_partial_batch_too(shards: Shards) -> None:
    squares = Squares(shards, shards.rows("test"), 12)
    parts = list(evaluation_batches(squares, 4))
    assert [len(b.labels) for b in parts] == [4, 2]
    assert np.array_equal(np.concatenate([b.rows for b in parts]), shards.rows("test"))


def test_squares_from_disk_equal_those_in_memory(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Squares(shards, shards.rows("train"), 10)
    monkeypatch.setattr("bigtransfer.data.batches.RAM_BYTES", 0)
    read = Squares(shards, shards.rows("train"), 10)
    positions = np.array([3, 0, 3])
    assert np.array_equal(kept.get(positions), read.get(positions))


def test_few_shot_subsets_are_balanced_seeded_and_nested() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    two, five = few_shot_rows(labels, 2, seed=1), few_shot_rows(labels, 5, seed=1)
    assert np.bincount(labels[five]).tolist() == [5] * 4
    assert set(two) <= set(five)
    assert set(five) != set(few_shot_rows(labels, 5, seed=2))
    with pytest.raises(ValueError, match="class 0 has"):
        few_shot_rows(labels, 100, seed=0)
