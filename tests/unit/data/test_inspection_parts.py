"""A dataset in parts is the dataset: manifest, report and verdict are the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bigtransfer.artifacts.validation import ManifestFacts
from bigtransfer.data.checking import asked_of, judge
from bigtransfer.data.manifest import INSPECTED, read_manifest, write_manifest
from bigtransfer.data.parts import parse_part, parse_parts, range_of
from bigtransfer.data.sources.listing import ListedImage, Listing, Source
from bigtransfer.data.tables import iter_rows
from bigtransfer.data.validation import Parts, inspect_part, validate
from bigtransfer.errors import (
    ConfigError,
    DatasetError,
    GateError,
    InfrastructureError,
    StorageError,
)
from bigtransfer.storage import sha256_file
from fixtures.datasets import rules
from fixtures.images import write_image

Outputs = dict[str, bytes]
OF_MANY = "c568da3d69dd5fa026218624acac8517b473b80bade06784c2be3d202cd6fc4b"
"""sha256 of the manifest of `rows_of_many`, as it was before there were parts."""


@pytest.fixture
def odd(photos: Path) -> Path:
    """Good images, copies with another label and another name, a broken one and a hidden one."""
    first, second = sorted(p for p in photos.iterdir() if p.is_dir())[:2]
    (second / "copy.png").write_bytes(min(first.iterdir()).read_bytes())
    (first / "again.png").write_bytes(min(first.iterdir()).read_bytes())
    (first / "broken.jpg").write_bytes(b"no image")
    (first / ".hidden").write_bytes(b"")
    write_image(second / "large.png", 77)
    return photos


def outputs(root: Path, out: Path, parts: int | None = None, **changes: Any) -> Outputs:
    asked = rules(on_bad="quarantine", bad_budget=0.5, **changes)
    place = out / "parts"
    if parts is not None:
        for number in reversed(range(parts)):
            inspect_part(root, "photos", asked, place, number, parts)
    validate(
        root, "photos", asked, manifest_path=out / "manifest.parquet", report=out / "page",
        parts=None if parts is None else Parts(place, parts),
    )  # fmt: skip
    files = [out / "manifest.parquet", *sorted((out / "page").iterdir())]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """As if five images were many: tables in files, rules over some rows at a time."""

    def cut() -> None:
        for name, rows in (
            ("tables.CHUNK_ROWS", 3), ("tables._IN_MEMORY_ROWS", 5),
            ("sources.listing._ROWS", 4), ("expectations.PIECE_ROWS", 4),
            ("inspection_parts._ROWS", 2),
        ):  # fmt: skip
            monkeypatch.setattr(f"bigtransfer.data.{name}", rows)

    return cut


OWN = [
    {"expect": "column_values_to_be_between", "column": "height", "min_value": 4},
    {"expect": "column_values_to_be_in_set", "column": "format", "value_set": ["PNG", "JPEG"]},
    {"expect": "column_mean_to_be_between", "column": "brightness", "min_value": 0},
    {"expect": "column_unique_value_count_to_be_between", "column": "label", "min_value": 2},
    {"expect": "column_values_to_be_between", "column": "width", "min_value": 4, "mostly": 0.9},
    {"expect": "column_pair_values_to_be_equal", "column_A": "path", "column_B": "path"},
    {"expect": "table_row_count_to_be_between", "min_value": 3},
]


@pytest.mark.parametrize("parts", [3, 50])
def test_any_number_of_parts_gives_the_same_bytes(odd: Path, tmp_path: Path, parts: int) -> None:
    whole = outputs(odd, tmp_path / "whole")
    assert outputs(odd, tmp_path / "in-parts", parts) == whole
    assert b"class_0/broken.jpg,not an image" in whole["quarantine.csv"]
    paths = read_manifest(tmp_path / "in-parts" / "manifest.parquet")[0]["path"].to_pylist()
    assert len(paths) == 33 and "class_0/broken.jpg" not in paths


def test_a_large_dataset_is_judged_as_a_small_one(
    odd: Path, tmp_path: Path, small_pieces: Callable[[], None]
) -> None:
    changes: dict[str, Any] = {"expectations": OWN, "exclude": ["class_2/0.png"]}
    (odd / "class_2" / "0.png").write_bytes(min((odd / "class_2").iterdir()).read_bytes())
    small = outputs(odd, tmp_path / "small", **changes)
    small_pieces()
    assert outputs(odd, tmp_path / "large", **changes) == small
    assert outputs(odd, tmp_path / "in-parts", 4, **changes) == small


@pytest.mark.parametrize(
    "rule",
    [
        {"expect": "column_values_to_match_regex", "column": "path", "regex": "^class_1/"},
        {"expect": "column_mean_to_be_between", "column": "height", "max_value": 4},
    ],
)
def test_what_is_broken_is_counted_over_all_pieces(
    odd: Path, tmp_path: Path, small_pieces: Callable[[], None], rule: dict[str, Any]
) -> None:
    said = []
    for name in ("small", "large"):
        with pytest.raises(GateError) as caught:
            outputs(odd, tmp_path / name, expectations=[rule])
        said.append(str(caught.value).replace(str(tmp_path / name), "OUT"))
        small_pieces()
    assert said[0] == said[1]
    assert not (tmp_path / "large" / "manifest.parquet").exists()


def test_a_part_that_does_not_fit_is_named(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outputs(odd, out, 3)
    join = Parts(out / "parts", 3)
    (record,) = (out / "parts").rglob("inspected-00001-of-00003.parquet")

    def refused(**changes: Any) -> str:
        with pytest.raises(DatasetError) as caught:
            validate(
                odd, "photos", rules(on_bad="quarantine", bad_budget=0.5, **changes),
                manifest_path=out / "manifest.parquet", report=out / "page", parts=join,
            )  # fmt: skip
        return str(caught.value)

    assert "parts 1, 2, 3 of 3" in refused(max_side_pixels=100)
    assert "of other rules" in refused(orientation="ignore")
    seal = record.with_suffix(".json")
    for file in (record, seal):
        kept = file.read_bytes()
        for place in range(0, len(kept), max(1, len(kept) // 3)):
            file.write_bytes(kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :])
            assert "part 2 of 3" in (said := refused()) and "\n" not in said
        file.write_bytes(kept[: len(kept) // 2])
        assert "part 2 of 3" in (said := refused()) and "is damaged; write it again" in said
        file.write_bytes(kept)
    (odd / ".." / "photos.dvc").write_text(f"outs:\n- md5: {'0' * 32}.dir\n")
    assert "parts 1, 2, 3 of 3" in refused()
    (odd / ".." / "photos.dvc").unlink()
    record.unlink()
    assert "part 2 of 3" in (said := refused())
    assert said.endswith("is missing; write it (--part 2/3 …)"), "of others nothing is there"
    seal.unlink()
    (record.parent / "inspected-00002-of-00003.json").unlink()
    assert "parts 2, 3 of 3" in (said := refused())
    assert said.endswith("are missing; write them (--part 2/3 …)")
    outputs(odd, out, 3)
    write_image(odd / "class_1" / "new.png", 99)
    assert "parts 1, 2, 3 of 3" in (said := refused()) and "are of another listing" in said


def test_parts_of_other_rules_lie_beside_and_replace_nothing(odd: Path, tmp_path: Path) -> None:
    first = outputs(odd, tmp_path, 3)
    other = outputs(odd, tmp_path, 2, orientation="ignore")
    assert other != first
    join = {"manifest_path": tmp_path / "again.parquet", "report": tmp_path / "again"}
    wanted = rules(on_bad="quarantine", bad_budget=0.5)
    validate(odd, "photos", wanted, **join, parts=Parts(tmp_path / "parts", 3))
    assert (tmp_path / "again.parquet").read_bytes() == first["manifest.parquet"]


def test_a_place_that_is_none_is_named(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        inspect_part(photos, "photos", rules(), file, 0, 1)
    with pytest.raises(DatasetError, match="there are no parts in .*nowhere"):
        validate(
            photos, "photos", rules(), manifest_path=tmp_path / "m", report=tmp_path / "r",
            parts=Parts(tmp_path / "nowhere", 2),
        )  # fmt: skip
    assert not (tmp_path / "nowhere").exists()


def rows_of_many(count: int) -> pa.Table:
    """Facts of images that nobody looked at: some unusable, some odd, no two alike."""
    random = np.random.default_rng(0)
    names = [f"class_{i % 7}/{random.bytes(9).hex()}.png" for i in range(count)]
    digests = [random.bytes(32).hex() for _ in range(count)]
    hashes = random.integers(-(2**62), 2**62, count)
    faults = ["not an image" if i in (5, count // 2) else None for i in range(count)]
    return pa.table(
        {
            "path": names, "labels": [[name.split("/")[0]] for name in names],
            "split": pa.nulls(count, pa.string()), "height": [16] * count, "width": [16] * count,
            "bytes": list(range(count)), "sha256": digests,
            "pixel_sha256": [
                "" if fault else one for one, fault in zip(digests, faults, strict=True)
            ],
            "phash": hashes, "phash_mirrored": hashes,
            "thumb": [random.bytes(256) for _ in range(count)], "brightness": random.random(count),
            "contrast": [9.0] * count, "mode": ["RGB"] * count, "format": ["PNG"] * count,
            "orientation": [1] * count,
            "flags": [["blank: nothing to see"] if i % 50 == 0 else [] for i in range(count)],
            "file": names, "offset": [-1] * count, "length": [-1] * count, "fault": faults,
        },
        schema=INSPECTED,
    )  # fmt: skip


def test_bytes_of_a_large_manifest_do_not_depend_on_how_its_rows_came(tmp_path: Path) -> None:
    table = rows_of_many(20_000)
    images = [
        ListedImage(path, tuple(labels), None, 1, path)
        for path, labels in iter_rows(table, "path", "labels")
    ]
    source = Source(
        "x", "folders", Listing(images), [f"class_{i}" for i in range(7)], False, False, 0,
        lambda *_: b"",
    )  # fmt: skip
    asked = asked_of(rules(on_bad="quarantine", bad_budget=0.5, near_duplicate_side=0))
    facts = ManifestFacts.model_construct(**{"dataset": "x"})  # what is looked at here
    whole = [table.combine_chunks().to_batches()[0]]
    ways = {
        "whole": whole,
        "as looked at": table.to_batches(1024),
        "in 7 parts": [
            piece
            for number in range(7)
            for part in [range_of(len(table), number, 7)]
            for piece in table.slice(part.start, len(part)).to_batches(1024)
        ],
    }
    made = set()
    for name, batches in ways.items():
        checked = judge(source, iter(batches), asked)
        write_manifest(tmp_path / name, checked.table, facts)
        made.add(sha256_file(tmp_path / name))
    assert made == {OF_MANY}


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "1", "1/", "-1/3", "a/b", "1/3/5"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write N/M"):
        parse_part(text)


def test_parts_cover_everything_once() -> None:
    for count in (0, 1, 7, 100):
        for parts in (1, 3, 8):
            rows = [row for number in range(parts) for row in range_of(count, number, parts)]
            assert rows == list(range(count))
    assert parse_part("3/8") == (2, 8) and parse_parts("8") == 8
    with pytest.raises(ConfigError, match="how many parts"):
        parse_parts("0")


def test_where_images_are_too_many_to_compare_it_is_said(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bigtransfer.data.copies.MOST_COMPARED", 5)
    outputs(photos, tmp_path / "out", near_duplicate_side=8)
    assert "by equal pixels alone: 30 images are too many" in capsys.readouterr().out


def test_a_full_disk_is_said(
    photos: Path,
    tmp_path: Path,
    small_pieces: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    small_pieces()
    monkeypatch.setattr("bigtransfer.data.tables.tempfile.TemporaryFile", full)
    with pytest.raises(InfrastructureError, match="No space left on device.*; make room there"):
        outputs(photos, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.parquet").exists()
