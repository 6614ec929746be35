from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtransfer.config import DatasetRules, read_yaml
from bigtransfer.data import embedded
from bigtransfer.data import splits as dealing
from bigtransfer.data.checking import asked_of, check
from bigtransfer.data.sources.listing import SPLITS
from bigtransfer.data.sources.opening import open_source
from bigtransfer.data.tables import column
from fixtures.project import PROJECT


def make_splits(
    labels: list[str], groups: list[str], *, val: float, test: float, seed: int
) -> list[str]:
    """Deal images whose classes and groups are texts, as they are in words."""
    classes, copies = (np.unique(texts, return_inverse=True) for texts in (labels, groups))
    names = copies[0].tolist()
    shares = dealing.Shares(val, test, seed)
    codes = dealing.make_splits(classes[1], copies[1], names.__getitem__, shares)
    return [SPLITS[code] for code in codes]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1, max_size=120),
    st.floats(0, 0.45),
    st.floats(0, 0.45),
    st.integers(0, 5),
)
def test_no_group_is_torn_and_every_class_keeps_train(
    images: list[tuple[str, int]], val: float, test: float, seed: int
) -> None:
    labels = [label for label, _ in images]
    groups = [f"{label}{group}" for label, group in images]
    splits = make_splits(labels, groups, val=val, test=test, seed=seed)
    for group in set(groups):
        assert len({s for s, g in zip(splits, groups, strict=True) if g == group}) == 1
    for label in set(labels):
        mine = Counter(s for s, name in zip(splits, labels, strict=True) if name == label)
        assert mine["train"] >= 1
        sizes = Counter(g for g, name in zip(groups, labels, strict=True) if name == label)
        # A small class gives a whole group to the test split, however large that is.
        assert mine["test"] <= max(max(sizes.values()), round(sum(mine.values()) * test))


def test_split_of_an_image_does_not_depend_on_its_place() -> None:
    labels, groups = ["a"] * 40, [f"g{i}" for i in range(40)]
    forward = dict(zip(groups, make_splits(labels, groups, val=0.2, test=0.3, seed=1), strict=True))
    back = make_splits(labels, groups[::-1], val=0.2, test=0.3, seed=1)
    assert forward == dict(zip(groups[::-1], back, strict=True))
    assert Counter(back) == {"train": 20, "test": 12, "val": 8}


def by_rounding_alone(
    labels: list[str], groups: list[str], *, val: float, test: float, seed: int
) -> list[str]:
    """The rule before small classes were dealt anew, as it was."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    by_class: dict[str, list[str]] = defaultdict(list)
    for group, rows in members.items():
        by_class[labels[rows[0]]].append(group)
    result = ["train"] * len(labels)
    for owned in by_class.values():
        owned.sort(key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
        total = sum(len(members[group]) for group in owned)
        dealt = 0
        for group in owned[:-1]:
            rows = members[group]
            after = dealt + len(rows)
            if after <= round(total * test):
                split = "test"
            elif after <= round(total * test) + round(total * val):
                split = "val"
            else:
                break
            for i in rows:
                result[i] = split
            dealt = after
    return result


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1, max_size=120),
    st.sampled_from([0.0, 0.1, 0.2, 0.45]),
    st.sampled_from([0.0, 0.1, 0.3, 0.45, 0.54]),
    st.integers(0, 5),
)
def test_only_classes_that_lacked_a_wanted_split_are_dealt_anew(
    images: list[tuple[str, int]], val: float, test: float, seed: int
) -> None:
    labels = [label for label, _ in images]
    groups = [f"{label}{group}" for label, group in images]
    before = by_rounding_alone(labels, groups, val=val, test=test, seed=seed)
    now = make_splits(labels, groups, val=val, test=test, seed=seed)
    wanted = {name for name, share in (("val", val), ("test", test)) if share}
    for label in set(labels):
        rows = [i for i, name in enumerate(labels) if name == label]
        distinct = len({groups[i] for i in rows})
        if wanted <= {before[i] for i in rows} or distinct <= len(wanted):
            assert [now[i] for i in rows] == [before[i] for i in rows]
        else:
            assert {now[i] for i in rows} == wanted | {"train"}


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (1, {"train": 1}),
        (2, {"train": 1, "test": 1}),
        (3, {"train": 1, "val": 1, "test": 1}),
        (4, {"train": 2, "val": 1, "test": 1}),
        (5, {"train": 3, "val": 1, "test": 1}),
        (6, {"train": 3, "val": 1, "test": 2}),
        (10, {"train": 6, "val": 1, "test": 3}),
    ],
)
def test_small_classes_get_an_image_of_every_split(images: int, expected: dict[str, int]) -> None:
    groups = [f"g{i}" for i in range(images)]
    found = make_splits(["a"] * images, groups, val=0.1, test=0.3, seed=0)
    assert Counter(found) == expected


def test_many_copies_of_one_image_go_into_train_of_a_small_class() -> None:
    groups = ["copied"] * 9 + ["one", "two"]
    found = make_splits(["a"] * 11, groups, val=0.1, test=0.3, seed=0)
    assert set(found[:9]) == {"train"}
    assert sorted(found[9:]) == ["test", "val"]


def test_a_split_without_a_share_stays_empty() -> None:
    found = make_splits(["a"] * 4, list("wxyz"), val=0.1, test=0.0, seed=0)
    assert Counter(found) == {"train": 3, "val": 1}


# sha256 of `path split` lines and of the class names in order, by the code before small classes
# were dealt anew and before the natural order (commit ea59bba): both must never move.
EMBEDDED = {
    "digits": (
        "ef9dcf9974e0e28f8dea1ea564272684965710d640b749a9cd6f0d84ee5241fd",
        "29dd21f55e4611d4c787c2148e39b4e341d4c10701dd03eed360aa55035bdb34",
    ),
    "alphabets": (
        "b14713aa746f1566b86ccde5414705db32bcf093b4f46d4885adf897f24045db",
        "23c618a550cceb8b59ea7adedb2575bcb48eb90ccbc7ccf90a73ce2d2d7f1e45",
    ),
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_splits_and_class_order_of_embedded_sets_stay(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    if name == "digits":
        embedded.write_handwritten_digits(folder)
    else:
        embedded.write_glyphs(folder, *embedded.glyph_classes("default", name), 0)
    params = read_yaml(PROJECT / "params.yaml")
    own = {key: value for key, value in params["datasets"][name].items() if key != "path"}
    asked = asked_of(DatasetRules.model_validate({**params["data"], **own}))
    found = check(open_source(folder), name, asked)
    paths, splits = column(found.table, "path"), column(found.table, "split")
    lines = [f"{path} {split}" for path, split in sorted(zip(paths, splits, strict=True))]
    digests = tuple(
        hashlib.sha256("\n".join(some).encode()).hexdigest()
        for some in (lines, found.source.labels)
    )
    assert digests == EMBEDDED[name]


@pytest.mark.parametrize(
    ("profile", "name"),
    [("default", "upstream"), ("thorough", "upstream"), ("thorough", "alphabets")],
)
def test_class_order_of_the_other_embedded_sets_stays(profile: str, name: str) -> None:
    from bigtransfer.data.sources.names import in_order

    names = [embedded.class_name(c) for c in embedded.glyph_classes(profile, name)[0]]
    assert in_order(names) == sorted(names)
