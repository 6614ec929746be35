"""What is done to the pixels of a file travels from validate to whoever uses the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bigtransfer.artifacts.decoding import AS_STORED, DecodeSettings
from bigtransfer.artifacts.validation import ValidationReport
from bigtransfer.data.batches import Squares
from bigtransfer.data.manifest import read_manifest
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import GateError
from bigtransfer.serve.deployed import facts_of, load_deployed
from bigtransfer.serve.prediction import answers
from fixtures.datasets import pack, validated
from fixtures.images import write_photos
from fixtures.models import write_tuned
from fixtures.project import PROJECT

TURNED = "class_0/turned.jpg"
SIZE = (64, 40)


def stripes() -> Image.Image:
    """Dark above, bright below, 64 wide and 40 high."""
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[20:] = 240
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = write_photos(tmp_path / "photos")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: dark is on the right then
    stripes().save(folder / TURNED, exif=exif, quality=95)
    ground = stripes().convert("RGBA")
    ground.putalpha(Image.new("L", SIZE, 0))
    ground.save(folder / "class_0" / "icon.png")
    heic = (PROJECT / "tests/fixtures/heic/orientation_6.heic").read_bytes()
    (folder / "class_1" / "phone.heic").write_bytes(heic)
    return folder


def pixels_of(photos: Path, name: str, **changes: str | None) -> NDArray[np.uint8]:
    validated(photos, **changes)
    pack(photos, photos.parent / "shards")
    shards = open_shards(photos.parent / "shards")
    row = shards.index["path"].to_pylist().index(name)
    return Squares(shards, np.array([row]), 8).pixels(0)


def test_training_sees_upright_pixels_and_the_index_their_size(photos: Path) -> None:
    upright = pixels_of(photos, TURNED)
    assert upright.shape == (64, 40, 3)
    assert upright[32, 3].max() > 200
    assert upright[32, -3].max() < 40
    shards = open_shards(photos.parent / "shards")
    row = shards.index.to_pylist()[shards.index["path"].to_pylist().index(TURNED)]
    assert (row["height"], row["width"], row["key"][-4:]) == (64, 40, ".jpg")
    assert shards.summary.decode == DecodeSettings()
    assert read_manifest(photos.parent / "manifest.parquet")[1].decode == DecodeSettings()
    said = ValidationReport.read(photos.parent / "validation")
    assert (said.counts.flags["orientation"], said.counts.flags["transparent"]) == (1, 1)
    assert "orientation: 1 of the images were held otherwise: turned upright" in said.notes
    assert "background: 1 of the images are transparent: laid on the background" in said.notes


def test_ignored_and_dropped_where_asked_for(photos: Path) -> None:
    stored = pixels_of(photos, TURNED, orientation="ignore", background=None)
    assert stored.shape == (40, 64, 3)
    assert stored[3, 32].max() < 40
    assert open_shards(photos.parent / "shards").summary.decode == AS_STORED
    assert pixels_of(photos, "class_0/icon.png", background=None)[3, 3].max() < 10
    assert pixels_of(photos, "class_0/icon.png")[3, 3].min() == 255
    assert pixels_of(photos, "class_0/icon.png", background="#00ff00")[3, 3].tolist() == [0, 255, 0]


def test_heic_is_packed_as_an_upright_jpeg(photos: Path) -> None:
    pixels = pixels_of(photos, "class_1/phone.heic")
    assert pixels.shape == (80, 48, 3)
    assert pixels[60, 36].argmax() == 1, "green is below right in a phone's upright photo"
    shards = open_shards(photos.parent / "shards")
    row = shards.index.to_pylist()[shards.index["path"].to_pylist().index("class_1/phone.heic")]
    assert row["key"].endswith(".jpg")
    assert (row["height"], row["width"]) == (80, 48)


def test_a_photo_made_smaller_is_turned_once(photos: Path) -> None:
    validated(photos)
    pack(photos, photos.parent / "shards", short_side=20)
    shards = open_shards(photos.parent / "shards")
    row = shards.index["path"].to_pylist().index(TURNED)
    pixels = Squares(shards, np.array([row]), 8).pixels(0)
    assert pixels.shape == (32, 20, 3)
    assert pixels[16, 1].max() > 200
    assert pixels[16, -2].max() < 60


def test_a_network_is_used_as_it_was_trained(photos: Path, tmp_path: Path) -> None:
    """The same file is another image to a network from before there was a choice."""
    seen = {}
    for name, settings in (("new", DecodeSettings()), ("old", AS_STORED)):
        deployed, meta = load_deployed(write_tuned(tmp_path / name, decode=settings))
        assert meta.decode == settings
        taken: list[torch.Tensor] = []
        deployed.network.register_forward_pre_hook(
            lambda _, given, taken=taken: taken.append(given[0])
        )
        list(answers(deployed, [photos / TURNED], 1, torch.device("cpu")))
        seen[name] = taken[0][0, 0]
        assert ("as stored" in str(facts_of(meta)["input"])) == (name == "old")
    assert seen["new"][12, 2] > 0.5 > -0.5 > seen["new"][12, -3]
    assert seen["old"][2, 12] < -0.5 < 0.5 < seen["old"][-3, 12]


def test_most_images_blank_is_no_dataset(tmp_path: Path) -> None:
    """Black icons on transparent ground with transparency dropped: black squares, all of them."""
    folder = tmp_path / "icons"
    for label in ("cross", "bar"):
        for i in range(6):
            alpha = Image.new("L", (32, 32), 0)
            alpha.paste(255, (i, 12, 20 + i, 18) if label == "bar" else (12, i, 18, 20 + i))
            icon = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
            icon.putalpha(alpha)
            (folder / label).mkdir(parents=True, exist_ok=True)
            icon.save(folder / label / f"{i}.png")
    assert validated(folder).flags["transparent"] == 12
    with pytest.raises(GateError, match="most images show something .12 of 12 are blank"):
        validated(folder, background=None)
    said = json.loads((tmp_path / "validation" / "validation.json").read_text())
    assert not said["success"]


def test_most_labels_contradicted_is_no_dataset(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    for i in range(10):
        for origin in ("class_0", "class_2"):
            target = folder / "class_1" / f"{origin}-{i}.png"
            target.write_bytes((folder / origin / f"{i}.png").read_bytes())
    said = "most labels agree .40 of 50 are there with another label, too"
    with pytest.raises(GateError, match=said):
        validated(folder)
    for target in [*(folder / "class_1").glob("class_*.png")][2:]:
        target.unlink()
    validated(folder)


def test_imbalance_is_said(photos: Path) -> None:
    validated(photos)
    assert not any("imbalanced" in note for note in notes_of(photos))
    for i in range(8):
        (photos / "class_2" / f"{i}.png").unlink()
    validated(photos, min_examples_per_class=1)
    (said,) = [note for note in notes_of(photos) if "imbalanced" in note]
    assert said.startswith("imbalanced: 'class_0' has 12 images, 'class_2' 2;")


def notes_of(photos: Path) -> tuple[str, ...]:
    return ValidationReport.read(photos.parent / "validation").notes
