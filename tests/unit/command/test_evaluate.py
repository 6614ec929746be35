"""`bigtransfer evaluate`, as typed: labelled images from elsewhere."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer.data.decoding import UndecodableError
from bigtransfer.data.shards import digest_bits
from bigtransfer.errors import ConfigError
from bigtransfer.model import create_model, write_checkpoint
from bigtransfer.serve.class_map import read_class_map
from bigtransfer.serve.prediction import Framing
from fixtures.commands import call
from fixtures.models import CLASSES, tuned_meta, upstream_meta


def labelled(folder: Path, *names: str, images: int = 4) -> Path:
    generator = np.random.default_rng(1)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(images):
            pixels = generator.integers(0, 256, (40, 52, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_judged_and_a_broken_one_does_not_count(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    photos = labelled(tmp_path / "photos", *CLASSES)
    (photos / "cat" / "0.png").write_bytes(b"<html>")
    out = tmp_path / "out.csv"
    assert call("evaluate", tuned, photos, "--out", out) == 0
    said = capsys.readouterr().out
    judged = rows(out)
    assert len(judged) == 12
    usable = [row for row in judged if not row["fault"]]
    right = [row["predicted"] == row["actual"] for row in usable]
    assert [bool(int(row["right"])) for row in usable] == right
    top1 = 100 * sum(right) / 11
    assert f"top-1 {top1:.1f} % of 11 images" in said
    assert "top-5" not in said, "of three classes it is always right"
    assert "1 images cannot be used and do not count" in said
    assert "cat/0.png: not an image (an HTML or XML page)" in said


def test_images_that_it_was_trained_on_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = labelled(tmp_path / "photos", "cat", "dog", images=3)
    files = sorted(photos.rglob("*.png"))
    digests = [digest_bits(hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    for name, known in (("none", []), ("some", digests[:2]), ("all", digests)):
        torch.manual_seed(3)
        model = create_model("R14x0.25", 3, "small", seed=1)
        seen = np.array([7, *known], np.uint64)
        write_checkpoint(tmp_path / name, model, tuned_meta(), trained_on=seen)
        assert call("evaluate", tmp_path / name, photos) == 0
        said = capsys.readouterr().out
        assert ("it was trained on" in said) == (name != "none")
        assert ("trained on 2 of these images: without them top-1 is " in said) == (name == "some")
        assert ("all of these images: that says nothing of new ones" in said) == (name == "all")


def test_a_class_map_says_which_answers_are_right(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    photos = labelled(tmp_path / "photos", "pets", "birds", "chairs")
    mapping = tmp_path / "map.yaml"
    mapping.write_text("pets: [cat, dog]\nbirds: owl\n")
    assert call("evaluate", tuned, photos) == 2
    assert "the model has no class 'birds' (3 names are none of its 3" in capsys.readouterr().err
    out = tmp_path / "out.csv"
    assert call("evaluate", tuned, photos, "--class-map", mapping, "--out", out) == 0
    assert "8 images of 2 names; 1 names are left out" in capsys.readouterr().out
    right = {"pets": {"cat", "dog"}, "birds": {"owl"}}
    for row in rows(out):
        assert row["right"] == str(int(row["predicted"] in right[row["actual"]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pets: [cat, dgo]", "'pets' counts as 'dgo', which is no class of the model; did you"),
        ("none", "map.yaml"),
        ("cars: cat", "holds no image of a class that counts"),
    ],
)
def test_a_wrong_map_is_one_line(
    text: str, message: str, tuned: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "map.yaml").write_text(text)
    photos = labelled(tmp_path / "photos", "pets", images=1)
    assert call("evaluate", tuned, photos, "--class-map", tmp_path / "map.yaml") == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1


def objectnet(folder: Path, first: int = 0) -> Path:
    """Write its four files with ids in another order than the outputs: id i is output 999 - i."""
    folder.mkdir()
    files = {
        "folder_to_objectnet_label.json": {"alarm_clock": "Alarm clock", "band_aid": "Band Aid"},
        "objectnet_to_imagenet_1k.json": {"Alarm clock": "label 10; label 20"},
        "pytorch_to_imagenet_2012_id.json": {str(999 - i): i + first for i in range(1000)},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    labels = "\n".join(f"label {i}" for i in range(1000))
    (folder / "imagenet_to_label_2012_v2").write_text(labels)
    return folder


def test_objectnet_brings_its_own_map(
    tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    mappings = objectnet(tmp_path / "mappings")
    names = [str(i) for i in range(1000)]
    assert read_class_map(mappings, names) == {"alarm_clock": {989, 979}}
    from_one = objectnet(tmp_path / "from_one", first=1)
    assert read_class_map(from_one, names) == {"alarm_clock": {989, 979}}
    with pytest.raises(ConfigError, match="1,000 classes of ILSVRC-2012; this model has 3"):
        read_class_map(mappings, CLASSES)

    model = create_model("R14x0.25", 1000, "small", seed=1)
    torch.nn.init.constant_(model.head.bias, 0.0)
    with torch.no_grad():
        model.head.bias[979] = 9.0
    write_checkpoint(tmp_path / "ilsvrc", model, upstream_meta("R14x0.25", names, crop=24))
    photos = labelled(tmp_path / "images", "alarm_clock", "band_aid")
    assert call(
        "evaluate", tmp_path / "ilsvrc", photos, "--class-map", mappings,
        "--border", 2, "--short-side", 32, "--crop", 30,
    ) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "4 images of 1 names; 1 names are left out" in said
    assert "top-1 100.0 %, top-5 100.0 % of 4 images" in said

    (mappings / "imagenet_to_label_2012_v2").write_text("label 10")
    with pytest.raises(ConfigError, match="contradicts itself at 'label 20'"):
        read_class_map(mappings, names)
    (mappings / "imagenet_to_label_2012_v2").unlink()
    with pytest.raises(ConfigError, match="a folder must be ObjectNet's `mappings`"):
        read_class_map(mappings, names)


def test_framing_cuts_the_border_and_then_the_middle() -> None:
    pixels = np.zeros((24, 44, 3), np.uint8)
    pixels[2:-2, 2:-2] = 100  # the border is black
    pixels[:, 12:32] += 50  # the middle square is brighter
    out = np.empty((16, 16, 3), np.uint8)
    Framing(16, short_side=20, border=2).apply(out, pixels)
    assert (out == 150).all()
    Framing(16, border=2).apply(out, pixels)
    assert out[:, 0].max() == 100 and out[:, 8].min() == 150


def test_framing_of_an_odd_size_is_the_middle_of_the_resized_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (97, 160, 3), dtype=np.uint8)
    out = np.empty((48, 48, 3), np.uint8)
    Framing(48, short_side=51).apply(out, pixels)
    whole = Image.fromarray(pixels).resize((84, 51), Image.Resampling.BILINEAR)
    middle = np.asarray(whole)[1:49, 18:66]
    assert np.abs(out.astype(int) - middle).max() <= 1


def test_framing_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="short side 32 is less than the crop 48"):
        Framing(48, short_side=32)
    with pytest.raises(ConfigError, match="must not be negative"):
        Framing(0)
    with pytest.raises(UndecodableError, match="no pixel inside a border of 12"):
        Framing(8, border=12).apply(np.empty((8, 8, 3), np.uint8), np.zeros((24, 30, 3), np.uint8))
