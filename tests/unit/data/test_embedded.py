from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from bigtransfer.data import embedded
from bigtransfer.storage import digest_of


@pytest.mark.parametrize(
    ("profile", "name", "classes", "images"),
    [
        ("default", "upstream", 46, 8_000),
        ("default", "alphabets", 78, 3_900),
        ("thorough", "upstream", 95, 16_000),
        ("thorough", "alphabets", 29, 1_450),
    ],
)
def test_profiles(profile: str, name: str, classes: int, images: int) -> None:
    characters, count = embedded.glyph_classes(profile, name)
    assert (len(set(characters)), count) == (classes, images)


@pytest.mark.parametrize("profile", ["default", "thorough"])
def test_held_out_alphabets_are_held_out(profile: str) -> None:
    upstream, _ = embedded.glyph_classes(profile, "upstream")
    assert not set(upstream) & set(embedded.glyph_classes(profile, "alphabets")[0])


def test_folder_names_survive_file_systems_that_fold_case() -> None:
    names = [embedded.class_name(c) for c in embedded.LATIN + embedded.GREEK + embedded.CYRILLIC]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(name.isascii() and name.replace("_", "").isalnum() for name in names)


def test_glyphs_are_a_pure_function_of_the_seed(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        embedded.write_glyphs(tmp_path / folder, ("A", "ж"), 20, seed)
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b") != digest_of(tmp_path / "c")
    image = Image.open(tmp_path / "a" / "latin_capital_letter_a" / "00000.png")
    assert image.size == (8, 8)
    assert np.asarray(image).max() > 100


def test_handwritten_digits_are_scikit_learns(tmp_path: Path) -> None:
    embedded.write_handwritten_digits(tmp_path / "digits")
    digits = load_digits()
    path = tmp_path / "digits" / str(digits.target[7]) / "00007.png"
    assert np.abs(np.asarray(Image.open(path)) / (255 / 16) - digits.images[7]).max() < 0.05
    assert sum(1 for _ in (tmp_path / "digits").rglob("*.png")) == 1797
