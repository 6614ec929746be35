from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigtransfer.data.sources.listing import Source
from bigtransfer.data.sources.opening import open_source
from bigtransfer.errors import DatasetError
from fixtures.images import write_image
from unit.data.test_sources import picture, write_tar


def parquet(folder: Path, columns: dict[str, Any]) -> Path:
    """Write a table over as many images as it has rows."""
    count = len(next(iter(columns.values())))
    for i in range(count):
        write_image(folder / f"p/{i}.png", i)
    paths = [f"p/{i}.png" for i in range(count)]
    pq.write_table(pa.table({"path": paths, **columns}), folder / "t.parquet")
    return folder / "t.parquet"


def text(folder: Path, content: str, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    for i in range(4):
        write_image(folder / f"p/{i}.png", i)
    (folder / name).write_text(content, encoding, newline="")
    return folder / name


def labels(source: Source) -> list[tuple[str, ...]]:
    return [image.labels for image in source.images]


def refusal(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        open_source(path)
    return str(caught.value)


MISSING = {
    "nan": pa.array([1.0, math.nan]),
    "null": pa.array(["a", None]),
    "pandas nan": pa.array(pd.Series(["a", np.nan]), from_pandas=True),
    "pandas NA": pa.array(pd.Series([1, pd.NA], dtype="Int64")),
    "NaT": pa.array(pd.Series([pd.Timestamp(2020, 1, 1), pd.NaT])),
    "blank": pa.array(["a", "  "]),
    "text nan": pa.array(["a", "nan"]),
    "text NaT": pa.array(["a", "NaT"]),
    "text <NA>": pa.array(["a", "<NA>"]),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_labels_are_refused_by_row(tmp_path: Path, kind: str) -> None:
    message = refusal(parquet(tmp_path, {"label": MISSING[kind]}))
    assert "row 3: 'p/1.png' has no label" in message


READ = {
    "whole floats": (pa.array([0.0, 3.0]), ["0", "3"]),
    "float32": (pa.array(np.array([1, 2], np.float32)), ["1", "2"]),
    "integers": (pa.array(np.array([7, 10], np.uint8)), ["7", "10"]),
    "decimals": (pa.array([Decimal("3.00"), Decimal(4)]), ["3", "4"]),
    "truth": (pa.array([True, False]), ["True", "False"]),
    "text": (pa.array([" cat ", "dog"]), ["cat", "dog"]),
    "bytes": (pa.array([b"cat", b"dog"]), ["cat", "dog"]),
    "dictionary": (pa.array(["b", "a"]).dictionary_encode(), ["b", "a"]),
    "floats as text": (pa.array(["0.0", "3"]), ["0", "3"]),
    "versions": (pa.array(["1.0", "1.5"]), ["1.0", "1.5"]),
    "dates": (pa.array([datetime.date(2020, 1, 2)] * 2), ["2020-01-02"] * 2),
    "bracketed": (pa.array(["(unknown)", "[unk]"]), ["(unknown)", "[unk]"]),
    "comma": (pa.array(["cat, domestic", "dog"]), ["cat, domestic", "dog"]),
    "old code": (pa.array(["007", "7a"]), ["007", "7a"]),
}


@pytest.mark.parametrize("kind", READ)
def test_values_are_read_as_the_names_they_are(tmp_path: Path, kind: str) -> None:
    values, expected = READ[kind]
    source = open_source(parquet(tmp_path, {"label": values}))
    assert labels(source) == [(name,) for name in expected]
    assert not source.multi_label


NO_NAMES = {
    "fraction": pa.array([0.5, 1.0]),
    "infinity": pa.array([math.inf, 1.0]),
    "object": pa.array([{"id": 0}, {"id": 1}]),
    "nested": pa.array([[["a"]], [["b"]]]),
    "bad bytes": pa.array([b"\xff", b"a"]),
    "text of a list": pa.array(["['cat']", "dog"]),
    "JSON text": pa.array(['["cat", "dog"]', "dog"]),
    "unquoted list": pa.array(["[cat, dog]", "dog"]),
    "tuple": pa.array(["('cat',)", "dog"]),
    "text of an object": pa.array(["{'id': 0}", "dog"]),
    "text of numbers": pa.array(["[0 1 0]", "dog"]),
    "bare numbers": pa.array(["0 1 0", "dog"]),
    "deep": pa.array(["[" * 20_000 + "]" * 20_000, "dog"]),
}


@pytest.mark.parametrize("kind", NO_NAMES)
def test_what_is_no_name_is_refused_by_row(tmp_path: Path, kind: str) -> None:
    message = refusal(parquet(tmp_path, {"label": NO_NAMES[kind]}))
    assert "row 2: 'p/0.png': " in message and len(message) < 600


def test_lists_in_label_are_several_labels(tmp_path: Path) -> None:
    source = open_source(parquet(tmp_path, {"label": [["cat"], ["dog", "cat"]]}))
    assert source.multi_label and labels(source) == [("cat",), ("cat", "dog")]


def test_lists_may_lack_members_and_hold_numbers(tmp_path: Path) -> None:
    values = pa.array([[10.0, 2.0], None, [math.nan], []])
    source = open_source(parquet(tmp_path, {"labels": values}))
    assert labels(source) == [("2", "10"), (), (), ()]


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 1], [1, 0]],
        [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]],
        [[True, False], [False, True]],
        [["0", "1"], ["1", "0"]],
        ["0|1|0", "1|0|0"],
    ],
)
def test_a_zero_or_one_for_every_class_is_refused(tmp_path: Path, rows: list[Any]) -> None:
    message = refusal(parquet(tmp_path, {"labels": rows}))
    assert "row 2: 'p/0.png': labels " in message
    assert "are a 0 or 1 for every class" in message


def test_classes_zero_and_one_in_lists_are_classes(tmp_path: Path) -> None:
    source = open_source(parquet(tmp_path, {"labels": [[0], [1], [0, 1]]}))
    assert labels(source) == [("0",), ("1",), ("0", "1")]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("a|b", "c"), [("a", "b"), ("c",)]),
        (("a;b", "c"), [("a", "b"), ("c",)]),  # worked before
        (("a, dry|b", "c"), [("a, dry", "b"), ("c",)]),
        (('"a, dry|"', "c"), [("a, dry",), ("c",)]),
    ],
)
def test_labels_in_text_are_separated_by_a_bar(
    tmp_path: Path, cells: tuple[str, str], expected: list[tuple[str, ...]]
) -> None:
    quoted = [cell if cell.startswith('"') else f'"{cell}"' for cell in cells]
    rows = "".join(f"p/{i}.png,{cell}\n" for i, cell in enumerate(quoted))
    assert labels(open_source(text(tmp_path, "path,labels\n" + rows))) == expected


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ('"cat,pet"', "labels 'cat,pet' hold ',', which does not separate labels here"),
        ('"a;b"', "labels 'a;b' hold ';', which does not separate labels here"),
        ("\"['cat', 'pet']\"", "are the text of a list; separate the names by '|'"),
        ('"[""cat""]"', "are the text of a list"),
    ],
)
def test_other_separators_are_refused_by_row(tmp_path: Path, cell: str, message: str) -> None:
    first = "p/0.png,a|b\n" if ";" in cell else "p/0.png,a\n"
    said = refusal(text(tmp_path, f"path,labels\n{first}p/1.png,{cell}\n"))
    assert "row 3: 'p/1.png': " in said and message in said


def test_doubtful_names_are_said(tmp_path: Path) -> None:
    source = open_source(text(tmp_path, "path,label\np/0.png,None\np/1.png,a|b\np/2.png,c\n"))
    assert source.labels == ["None", "a|b", "c"]
    assert "label 'None' (1 times) is taken for a class" in source.notes[0]
    assert "'a|b' is taken for one class; several labels belong in a column" in source.notes[1]


def webdataset(folder: Path, suffix: str, *values: str) -> Path:
    members: dict[str, bytes] = {}
    for i, value in enumerate(values):
        members |= {f"{i}.png": picture(i), f"{i}.{suffix}": value.encode()}
    return write_tar(folder / "d.tar", members)


@pytest.mark.parametrize(
    ("suffix", "values", "expected"),
    [
        ("cls", ("9", "10"), ["9", "10"]),
        ("cls", ("0.0", "1"), ["0", "1"]),
        ("txt", ("cat, domestic", "dog"), ["cat, domestic", "dog"]),
        ("json", ("3.0", "4"), ["3", "4"]),
        ("json", ('"3.0"', "3"), ["3"]),
        ("json", ('{"label": 1.0}', '{"label": "x"}'), ["1", "x"]),
        ("json", ('{"label": ["b", "a"]}', '["a"]'), ["a", "b"]),
    ],
)
def test_labels_of_webdataset_are_read_alike(
    tmp_path: Path, suffix: str, values: tuple[str, ...], expected: list[str]
) -> None:
    assert open_source(webdataset(tmp_path, suffix, *values)).labels == expected


@pytest.mark.parametrize(
    ("suffix", "value", "message"),
    [
        ("json", "NaN", "has no label (nan)"),
        ("json", '{"label": null}', "its label is empty"),
        ("json", '{"label": {"id": 0}}', "is no name but an object"),
        ("json", '{"class": 0}', "its .json has no 'label' or 'labels', but 'class'"),
        ("json", "0.5", "label 0.5 is no class"),
        ("json", "[[1]]", "is no name but a list"),
        ("cls", "nan", "has no label (nan)"),
        ("cls", "[0, 1]", "is the text of a list"),
        ("txt", "['cat']", "is the text of a list"),
        ("txt", "cat\ncute", "has 2 lines; a label is one name"),
        ("txt", "{'a': 1}", "is the text of an object"),
    ],
)
def test_what_is_no_label_in_webdataset_is_refused_by_sample(
    tmp_path: Path, suffix: str, value: str, message: str
) -> None:
    good = json.dumps("a") if suffix == "json" else "a"
    said = refusal(webdataset(tmp_path, suffix, good, value))
    assert "archive 'd.tar'" in said and "sample '1'" in said and message in said


def test_vectors_in_webdataset_are_refused(tmp_path: Path) -> None:
    assert "a 0 or 1 for every class" in refusal(webdataset(tmp_path, "json", "[0, 1]", "[1, 0]"))


TABLES = {
    "semicolons": "path;label\np/0.png;a\np/1.png;b\n",
    "tabs": "path\tlabel\np/0.png\ta\np/1.png\tb\n",
    "excel": "sep=;\r\npath;label\r\np/0.png;a\r\np/1.png;b\r\n",
    "capitals": "Path,LABEL\np/0.png,a\np/1.png,b\n",
    "blanks": 'path, label \n"p/0.png", "a"\n"p/1.png", b\n',
    "backslashes": "path,label\np\\0.png,a\n.\\p\\1.png,b\n",
    "index": ",path,label\n0,p/0.png,a\n1,p/1.png,b\n",
    "windows lines": "path,label\r\np/0.png,a\r\np/1.png,b\r\n",
    "commas at the end": "path,label,,\np/0.png,a,,\np/1.png,b,,\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", TABLES)
def test_tables_as_people_write_them(tmp_path: Path, kind: str, encoding: str) -> None:
    source = open_source(text(tmp_path, TABLES[kind], "LABELS.CSV", encoding))
    assert labels(source) == [("a",), ("b",)]
    assert [(i.path, i.fault) for i in source.images] == [("p/0.png", None), ("p/1.png", None)]
    assert open_source(tmp_path).layout == "table"


def test_split_column_is_found_under_a_capital(tmp_path: Path) -> None:
    source = open_source(text(tmp_path, "path,label,Split\np/0.png,a,Train\np/1.png,a,TEST\n"))
    assert [image.split for image in source.images] == ["train", "test"]


def test_absolute_paths_into_the_folder_are_read(tmp_path: Path) -> None:
    source = open_source(text(tmp_path, f"path,label\n{tmp_path}/p/0.png,a\n"))
    assert (source.images[0].path, source.images[0].fault) == ("p/0.png", None)
    said = refusal(text(tmp_path, "path,label\n/etc/passwd,a\n"))
    assert "leads out of the table's folder; write it relative to that folder" in said


def test_one_file_listed_in_two_spellings_is_listed_twice(tmp_path: Path) -> None:
    said = refusal(text(tmp_path, "path,label\np/0.png,a\np\\0.png,b\n"))
    assert "row 3: 'p/0.png' stands in row 2 already" in said


@pytest.mark.parametrize("spelled", ["p/0", "P/0.PNG", "images/0.png", "0.png"])
def test_a_path_that_is_nearly_right_says_which_file_may_be_meant(
    tmp_path: Path, spelled: str
) -> None:
    source = open_source(text(tmp_path, f"path,label\n{spelled},a\n"))
    assert source.images[0].fault == "listed, but there is no such file; is 'p/0.png' meant?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,class\np/0.png,a\n", "rename 'image' to 'path' and 'class' to 'label'"),
        ("path,cat,dog\np/0.png,1,0\n", "'cat', 'dog' hold 0 and 1: write the names"),
        ("path,label,label\np/0.png,a,b\n", "has two columns 'label'; remove or rename one"),
        ("path,label\np/0.png;a\n", "has not as many cells as the heading"),
    ],
)
def test_headings_that_need_a_cure_get_one(tmp_path: Path, content: str, message: str) -> None:
    assert message in refusal(text(tmp_path, content))


def test_pictures_inside_a_table_are_named(tmp_path: Path) -> None:
    rows = pa.table({"image": [{"bytes": b"x", "path": "a"}], "label": [0]})
    pq.write_table(rows, tmp_path / "t.parquet")
    assert "'image' holds the pictures themselves: write them out as files" in refusal(tmp_path)


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    rows = "path,label,subset\np/0.png,a,train\np/1.png,a,test\n"
    source = open_source(text(tmp_path, rows, "pets_train.csv"))
    assert not source.has_splits
    assert "the column 'subset' is not used; splits stand in a column 'split'" in source.notes[0]
    assert "name 'pets_train.csv' speaks of train; it makes no split" in source.notes[1]
    source = open_source(text(tmp_path, "path,label,labels\np/0.png,a,a|b\n", "pets_train.csv"))
    assert source.notes[0] == "the column 'labels' is used, 'label' is not"


def test_a_path_in_another_unicode_form_is_the_file(tmp_path: Path) -> None:
    write_image(tmp_path / "p/cafe\u0301.png", 9)
    (source,) = open_source(text(tmp_path, "path,label\np/café.png,a\n")).images
    assert (source.path, source.fault) == ("p/cafe\u0301.png", None)
