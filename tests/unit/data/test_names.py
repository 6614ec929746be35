from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigtransfer.data.sources.names import alike, in_order, splits_in


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("imagenet1k-train-0000.tar", ["train"]),
        ("imagenet1k-validation-00.tar", ["val"]),
        ("pets_test_000.tar", ["test"]),
        ("Training set", ["train"]),
        ("TrainImages", ["train"]),
        ("val2017", ["val"]),
        ("2017.dev.tar", ["val"]),
        ("testset-1.tar", ["test"]),
        ("trainval-0.tar", ["train", "val"]),
        ("train_test", ["train", "test"]),
        ("train-train", ["train"]),
        ("trains", []),
        ("testament", []),
        ("valley-device-trainer", []),
        ("contrast", []),
    ],
)
def test_every_word_of_a_name_is_looked_at(name: str, splits: list[str]) -> None:
    assert splits_in(name) == splits


def test_numbers_in_names_stand_by_value() -> None:
    assert in_order(["11", "2", "10", "1", "0"]) == ["0", "1", "2", "10", "11"]
    assert in_order(["k10", "k2", "K1", "k1b3", "k1b20"]) == ["K1", "k1b3", "k1b20", "k2", "k10"]
    assert in_order(["01", "1", "cat", "²", "9" * 6000]) == ["01", "1", "9" * 6000, "cat", "²"]


@given(st.lists(st.text(), max_size=20))
def test_order_is_total_and_loses_nothing(names: list[str]) -> None:
    assert sorted(in_order(names)) == sorted(set(names))
    assert in_order(reversed(in_order(names))) == in_order(names)


@given(st.lists(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), max_size=20))
def test_without_numbers_the_order_is_that_of_the_letters(names: list[str]) -> None:
    assert in_order(names) == sorted(set(names))


@pytest.mark.parametrize(
    "other",
    ["Café au lait", unicodedata.normalize("NFD", "café au lait"), " café au lait",
     "café  au\u00a0lait ", "café au\u200b lait", "\ufeffcafé au lait"],
)  # fmt: skip
def test_names_that_look_alike_are_found(other: str) -> None:
    name = "café au lait"
    assert alike([name, "cafe au lait", other]) == [[name, other]]
