from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bigtransfer.data.splits import make_splits


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
        assert mine["test"] <= round(sum(mine.values()) * test)


def test_split_of_an_image_does_not_depend_on_its_place() -> None:
    labels, groups = ["a"] * 40, [f"g{i}" for i in range(40)]
    forward = dict(zip(groups, make_splits(labels, groups, val=0.2, test=0.3, seed=1), strict=True))
    back = make_splits(labels, groups[::-1], val=0.2, test=0.3, seed=1)
    assert forward == dict(zip(groups[::-1], back, strict=True))
    assert Counter(back) == {"train": 20, "test": 12, "val": 8}
