from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.data.batches import Squares
from bigtransfer.data.decoding import decode_rgb
from bigtransfer.data.manifest import read_manifest, write_manifest
from bigtransfer.data.packing import (
    join_parts,
    write_part,
    write_shards,
)
from bigtransfer.data.shard_plan import Packing
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.data.tables import column, with_column
from bigtransfer.errors import DatasetError
from bigtransfer.storage import digest_of, seal
from fixtures.datasets import pack, plan, validate_table, validated
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
    write_shards(
        photos, photos.parent / "manifest.parquet", photos.parent / "again", Packing(4000, None, 0)
    )
    assert digest_of(packed) == digest_of(photos.parent / "again")


def test_image_changed_after_validation_is_refused(photos: Path) -> None:
    validated(photos)
    write_image(photos / "class_0" / "4.png", 999)
    with pytest.raises(DatasetError, match=r"class_0/4.png' changed since it was validated"):
        write_shards(
            photos, photos.parent / "manifest.parquet", photos.parent / "s", Packing(4000, None, 0)
        )
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
    validated(photos, splits={"val": 0.05, "test": 0.05})
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
    assert decode_rgb(shards.reader().read(number), DecodeSettings()).shape == (64, 85, 3)


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
    assert (shards.classes, shards.summary.multi_label) == (["a", "b"], True)
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


def content_of(folder: Path, **changes: Any) -> str:
    validated(folder, **changes)
    pack(folder, folder.parent / "packed")
    return open_shards(folder.parent / "packed").content_digest


def test_what_training_reads_has_no_name_in_it(photos: Path) -> None:
    before = content_of(photos)
    digest = open_shards(photos.parent / "packed").digest
    renamed = photos.rename(photos.parent / "other name")
    assert content_of(renamed) == before
    assert open_shards(photos.parent / "packed").digest != digest


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: {"orientation": "ignore"},
        lambda folder: {"background": "#000000"},
        lambda folder: {"seed": 1},
        lambda folder: {"splits": {"val": 0.3, "test": 0.2}},
        lambda folder: {"classes": ("class_2", "class_1", "class_0")},
        lambda folder: (folder / "class_0").rename(folder / "class_00") and {},
        lambda folder: (folder / "class_0/0.png").rename(folder / "class_1/10.png") and {},
        lambda folder: write_image(folder / "class_0/0.png", 999) or {},
    ],
    ids=["orientation", "background", "order", "splits", "class order", "class name", "label",
         "pixels"],
)  # fmt: skip
def test_all_that_changes_what_training_reads_changes_it(
    change: Callable[[Path], dict[str, Any]], photos: Path
) -> None:
    before = content_of(photos)
    assert content_of(photos, **change(photos)) != before
