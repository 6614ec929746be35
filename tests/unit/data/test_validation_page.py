"""The page that `validate` and `data check` write: pictures, sizes, what training sees, rules."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigtransfer.data import class_rows as rows_module
from bigtransfer.data.class_rows import binned, spread
from bigtransfer.data.thumbnails import augmented, sizes_of_training
from bigtransfer.data.transforms import random_crop_flip, resize_into
from bigtransfer.errors import GateError
from bigtransfer.train.hyperrule import hyperrule
from fixtures.datasets import validated
from fixtures.images import scene, write_image


def page_of(root: Path, **changes: Any) -> str:
    try:
        validated(root, **changes)
    except GateError:
        pass
    return html.unescape((root.parent / "validation" / "index.html").read_text("utf-8"))


def test_six_pictures_of_every_class_and_bars_of_its_splits(photos: Path) -> None:
    page = page_of(photos)
    blocks = re.findall(r'<div class="class">.*?</div></div>\n', page, re.S)
    assert len(blocks) == 3
    for block in blocks:
        assert block.count("data:image/") == 6
        assert "10 = 6 train + 2 val + 2 test" in block
        widths = [float(width) for width in re.findall(r"width:([\d.]+)%", block)]
        assert widths == [60, 20, 20]


def test_of_many_classes_the_largest_and_smallest_are_shown_and_all_are_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "SHOWN", 2)
    for i in range(3):
        write_image(photos / "class_0" / f"more{i}.png", 900 + i)
    (photos / "class_2" / "9.png").unlink()
    page = page_of(photos)
    assert re.findall(r'<div class="class"><div><b>(\w+)', page) == ["class_0", "class_2"]
    rest = page.partition("The other 1 classes")[2].partition("</details>")[0]
    assert ">class_1</td>" in rest


def test_what_is_wrong_comes_first_and_rules_are_words(photos: Path) -> None:
    (photos / "class_1" / "bad.png").write_text("nothing")
    own = {"expect": "column_values_to_be_between", "column": "height", "min_value": 13}
    page = page_of(photos, expectations=(own,))
    places = [
        page.index(words)
        for words in ("What is wrong", "class_1/bad.png", "<h2>Classes", "<h2>Rules that hold")
    ]
    assert places == sorted(places)
    wrong = page[places[0] : places[2]]
    assert "✗ every file is a usable image" in wrong and "1 of 31 do not obey" in wrong
    written = "<code>expect: column_values_to_be_between, column: height, min_value: 13</code>"
    assert written in wrong
    assert "at least 3 images in every class" in page[places[3] :]
    assert "expect_column" not in page.partition("<details>")[0]


def test_a_good_dataset_has_nothing_wrong(photos: Path) -> None:
    page = page_of(photos)
    assert "What is wrong" not in page and "passed" in page
    assert "Every image has 12 × 12 pixels." in page and 'class="hist"' not in page


def test_what_every_image_has_is_said_once(photos: Path) -> None:
    page = page_of(photos, small_side_pixels=50)
    assert "Small (all 30)</h3>\n<p" in page and 'class="odd"' not in page
    assert "Each has 10 images." in page
    (photos / "class_0" / "0.png").unlink()
    write_image(photos / "class_0" / "0.png", 0, side=60)
    page = page_of(photos, small_side_pixels=50)
    assert "Small (29)</h3>" in page and page.count('class="odd"') == 8


def test_sizes_that_differ_are_a_histogram(photos: Path) -> None:
    for i, side in enumerate((20, 40, 60)):
        write_image(photos / "class_0" / f"other{i}.png", 50 + i, side=side)
    page = page_of(photos)
    bars = re.findall(r'title="(\d+) to (\d+) pixels: (\d+)"', page)
    counted = {(int(low), int(high)): int(count) for low, high, count in bars if count != "0"}
    assert counted == {(12, 15): 30, (16, 23): 1, (32, 47): 1, (48, 60): 1}


@pytest.mark.parametrize(
    "sizes", [[28], [1, 2, 9], [300, 310, 499], [86, 500, 375, 2400], [7, 7, 8], [1, 1 << 19]]
)
def test_every_size_is_in_the_bin_that_says_so(sizes: list[int]) -> None:
    found = binned(np.array(sizes))
    for bin_ in found:
        inside = [size for size in sizes if int(bin_["low"]) <= size <= int(bin_["high"])]  # type: ignore[call-overload]
        assert bin_["count"] == len(inside)
    assert sum(int(bin_["count"]) for bin_ in found) == len(sizes)  # type: ignore[call-overload]
    lows = [bin_["low"] for bin_ in found]
    assert lows == sorted(set(lows)) and len(lows) <= 40  # type: ignore[type-var]


def test_spread_takes_rows_at_even_distances() -> None:
    assert spread(range(60), 6) == [0, 10, 20, 30, 40, 50]
    assert spread([3, 4], 6) == [3, 4]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (95, 96), (96, 96), (375, 500)])
def test_sizes_are_those_of_the_hyperrule(height: int, width: int) -> None:
    rule = hyperrule(num_examples=100, height=height, width=width, architecture="R50x1")
    assert sizes_of_training(height, width) == (rule.precrop, rule.crop)


def test_variants_are_what_training_makes_of_the_image() -> None:
    pixels = np.array(scene(3, (240, 180)))
    square = np.empty((160, 160, 3), np.uint8)
    resize_into(square, pixels)
    epochs = np.arange(4)
    wanted = random_crop_flip(
        square[None], 128, flip=True, seed=5, epochs=epochs, samples=np.full(4, 17),
        rows=np.zeros(4, np.int64),
    )  # fmt: skip
    found = augmented(pixels, 17, precrop=160, crop=128, seed=5)
    for (own, _), training in zip(found, wanted, strict=True):
        assert np.abs(own.astype(int) - training.astype(int)).max() <= 1
    assert len({own.tobytes() for own, _ in found}) == 4
    turned = {flip for seed in range(5) for _, flip in augmented(pixels, 17, precrop=16, crop=12,
                                                                  seed=seed)}  # fmt: skip
    assert turned == {True, False}


def test_the_page_shows_training_images_beside_their_variants(photos: Path) -> None:
    page = page_of(photos)
    batch = page.partition("<h2>What training sees")[2].partition("<h2>")[0]
    assert batch.count('class="five"') == 3  # one of each class
    assert batch.count("data:image/") == 3 * 5
    assert "a square of 160 pixels" in batch and "a random 128 of it" in batch
    assert page == page_of(photos)


def test_a_large_turned_photo_is_upright_on_the_page(photos: Path) -> None:
    from bigtransfer.data.checking import asked_of, check
    from bigtransfer.data.sources.opening import open_source
    from bigtransfer.data.thumbnails import Thumbnails
    from fixtures.datasets import rules

    wide = Image.new("RGB", (1600, 900), "white")
    wide.paste("black", (0, 0, 800, 900))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown by turning it to the right: black above
    wide.save(photos / "class_0" / "turned.jpg", exif=exif)
    for orientation, shape in (("apply", (1600, 900)), ("ignore", (900, 1600))):
        asked = asked_of(rules(max_image_pixels=2_000_000, orientation=orientation))
        checked = check(open_source(photos), "photos", asked)
        row = checked.table["path"].to_pylist().index("class_0/turned.jpg")
        pixels = Thumbnails(checked).pixels(row, 100)
        assert pixels is not None and max(pixels.shape) < 900
        assert (pixels.shape[0] > pixels.shape[1]) == (shape[0] > shape[1])
        dark = pixels[:10].mean() if orientation == "apply" else pixels[:, :10].mean()
        assert dark < 20
