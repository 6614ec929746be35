from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from bigtransfer.data.copies import (
    SAME_PIXELS,
    describe,
    find_between,
    find_copies,
    first_of_equal,
)
from bigtransfer.data.fingerprint import Fingerprints, looks_of, near_pairs
from fixtures.images import scene
from fixtures.project import SHARED

Picture = Image.Image


def encoded(picture: Picture, quality: int = 90) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cut(picture: Picture) -> Picture:
    width, height = picture.size
    box = (round(width * 0.02), round(height * 0.02), round(width * 0.98), round(height * 0.98))
    return picture.crop(box).resize((width * 3 // 4, height * 3 // 4))


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "quality 40": lambda p: encoded(p, 40),
    "half size": lambda p: encoded(p.resize((p.width // 2, p.height // 2))),
    "twice the size": lambda p: encoded(p.resize((p.width * 2, p.height * 2))),
    "square": lambda p: encoded(p.resize((200, 200))),
    "4 % cut, 3/4 size": lambda p: encoded(cut(p)),
    "mirrored": lambda p: encoded(ImageOps.mirror(p)),
    "softened": lambda p: encoded(p.filter(ImageFilter.GaussianBlur(1))),
}


def prints_of(pictures: list[Picture]) -> Fingerprints:
    looks = [looks_of(np.array(p)) for p in pictures]
    thumbs = np.stack([np.frombuffer(look.thumb, np.uint8) for look in looks])
    return Fingerprints(
        np.array([look.phash for look in looks]),
        np.array([look.phash_mirrored for look in looks]),
        thumbs,
    )


def firsts(names: list[str]) -> NDArray[np.int64]:
    """As if each name were the digest of an image's pixels; no name: it could not be decoded."""
    digests = [hashlib.sha256(name.encode()).digest() for name in names]
    known = np.array([bool(name) for name in names])
    return first_of_equal(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32), known)[0]


@given(st.lists(st.sampled_from(["", "a", "b", "c", "d"]), max_size=30))
def test_equal_pixels_lead_to_the_first_row_with_them(names: list[str]) -> None:
    expected = [names.index(name) if name else row for row, name in enumerate(names)]
    assert firsts(names).tolist() == expected


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_look_the_same(change: str) -> None:
    originals = [scene(seed) for seed in range(20)]
    changed = prints_of([CHANGES[change](p) for p in originals])
    found = list(near_pairs(changed, prints_of(originals)))
    least = 17 if "cut" in change else 20
    assert {(a, b) for a, b, _ in found} <= {(i, i) for i in range(20)}
    assert len(found) >= least
    assert all(mirrored == (change == "mirrored") for _, _, mirrored in found)


def test_mirrored_hash_is_the_hash_of_the_mirror_image() -> None:
    one, other = scene(3), ImageOps.mirror(scene(3))
    apart = looks_of(np.array(one)).phash_mirrored ^ looks_of(np.array(other)).phash
    assert np.bitwise_count(np.int64(apart).view(np.uint64)) <= 2  # thumbnails round by one level


def test_every_pair_is_named_once_also_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigtransfer.data.fingerprint._ROWS", 3)
    monkeypatch.setattr("bigtransfer.data.fingerprint._COLUMNS", 4)
    pictures = [scene(seed) for seed in range(6)] + [encoded(scene(seed), 60) for seed in range(6)]
    found = sorted((a, b) for a, b, _ in near_pairs(prints_of(pictures)))
    assert found == [(i, i + 6) for i in range(6)]


def test_groups_flags_and_leaks() -> None:
    pictures = [scene(0), scene(1), scene(0), encoded(scene(1), 50), scene(2)]
    digests = [str(np.array(p).tobytes().__hash__()) for p in pictures]
    copies = find_copies(firsts(digests), prints_of(pictures), np.ones(5, bool))
    assert [(c.first, c.second, c.how) for c in copies.pairs] == [
        (0, 2, SAME_PIXELS), (1, 3, "looks the same as"),
    ]  # fmt: skip
    assert copies.groups.tolist() == [0, 1, 0, 1, 4]
    labels = [["a"], ["a"], ["b"], ["a"], ["a"]]
    splits = ["test", "train", "train", "val", "train"]
    flags, leaks = describe(copies, list("vwxyz"), labels, splits)
    assert flags == {
        0: ["label_conflict: 'a' here, 'b' as x, which has the same pixels"],
        1: ["near_duplicate: looks the same as y"],
        2: ["label_conflict: 'b' here, 'a' as v, which has the same pixels",
            "duplicate_with_other_label: same pixels as v"],
        3: ["near_duplicate: looks the same as w"],
    }  # fmt: skip
    assert leaks == [
        "same pixels as 'x' in train", None, None, "looks the same as 'w' in train", None,
    ]  # fmt: skip


def test_every_copy_is_told_of_the_conflict() -> None:
    pictures = [scene(0)] * 3 + [encoded(scene(0), 50)]
    copies = find_copies(firsts(["same"] * 3 + ["other"]), prints_of(pictures), np.ones(4, bool))
    labels = [["cat"], ["cat"], ["dog"], ["fox"]]
    flags, _ = describe(copies, list("wxyz"), labels, ["train"] * 4)
    conflicts = [
        [f for f in own if f.startswith("label_conflict")] for _, own in sorted(flags.items())
    ]
    assert conflicts == [
        ["label_conflict: 'cat' here, 'dog' as y, which has the same pixels, and 1 more"],
        ["label_conflict: 'cat' here, 'dog' as y, which has the same pixels"],
        ["label_conflict: 'dog' here, 'cat' as w, which has the same pixels"],
        ["label_conflict: 'fox' here, 'cat' as w, which looks the same"],
    ]


def test_blank_and_tiny_images_are_not_compared_by_looks() -> None:
    pictures = [Image.new("RGB", (90, 90), (i, i, i)) for i in (10, 12)]
    copies = find_copies(firsts(["a", "b"]), prints_of(pictures), np.zeros(2, bool))
    assert copies.pairs == []


def photographs() -> list[Picture]:
    import zipfile

    path = SHARED / "data" / "imagenet-sample" / "imagenet-sample-a.zip"
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".JPEG"))
        return [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in names]


@pytest.mark.skipif(not (SHARED / "data/imagenet-sample").is_dir(), reason="needs ../shared/data")
def test_planted_copies_among_real_photographs_are_found_and_no_others() -> None:
    originals = photographs()
    digests = [str(hash(np.array(p).tobytes())) for p in originals]
    own = (digests, prints_of(originals), np.ones(len(originals), bool))
    assert find_copies(firsts(digests), *own[1:]).pairs == []
    least = {"quality 40": 0.99, "half size": 0.98, "square": 0.95, "4 % cut, 3/4 size": 0.95,
             "mirrored": 0.98}  # fmt: skip
    for change, share in least.items():
        planted = [CHANGES[change](p) for p in originals]
        marks = [f"{change}{i}" for i in range(len(planted))]
        found = find_between((marks, prints_of(planted), own[2]), own)
        right = {c.first for c in found if c.first == c.second}
        assert {(c.first, c.second) for c in found} == {(i, i) for i in right}, change
        print(f"{change}: {len(right)} of {len(originals)} found")
        assert len(right) >= share * len(originals), (change, len(right))
    exact = find_between(own, own)
    assert [(c.first, c.second, c.how) for c in exact] == [
        (i, i, SAME_PIXELS) for i in range(len(originals))
    ]
