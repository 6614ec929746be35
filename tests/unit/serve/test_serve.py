from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer.errors import CheckpointError, DatasetError
from bigtransfer.metrics.calibration import calibrated
from bigtransfer.model import create_model, load_checkpoint, write_checkpoint
from bigtransfer.model.inference import to_network
from bigtransfer.serve import export as exporting
from bigtransfer.serve.deployed import load_deployed
from bigtransfer.serve.export import drawn_images
from bigtransfer.serve.prediction import answers, as_row, image_files
from fixtures.models import CLASSES, seven_photos, upstream_meta
from fixtures.project import PROJECT

CPU = torch.device("cpu")


def test_an_upstream_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path / "up", create_model("R14x0.25", 3, "small"),
        upstream_meta("R14x0.25", CLASSES),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="is not fine-tuned to a task"):
        load_deployed(tmp_path / "up")


def test_every_file_gets_a_row_and_a_broken_one_its_reason(tuned: Path, tmp_path: Path) -> None:
    files = image_files([seven_photos(tmp_path / "photos"), tuned / "meta.json"])
    assert [file.name for file in files] == [*(f"{i}.png" for i in range(7)), "meta.json"]
    deployed, meta = load_deployed(tuned)
    found = list(answers(deployed, files, 3, CPU))
    rows = [as_row(answer, meta, 2) for answer in found]
    assert [row["path"] for row in rows] == [str(file) for file in files]
    assert [bool(row["fault"]) for row in rows] == [i in (3, 7) for i in range(8)]
    assert "does not decode" in rows[3]["fault"]

    network, _ = load_checkpoint(tuned)
    square = np.empty((1, 24, 24, 3), np.uint8)
    exporting.resize_into(square[0], drawn_images()[0])
    with torch.inference_mode():
        wanted = calibrated(network.eval()(to_network(square)).numpy(), 1.7)[0]
    np.testing.assert_allclose(found[0].probabilities, wanted, atol=1e-5)
    assert rows[0]["predicted"] == CLASSES[wanted.argmax()]
    assert rows[0]["sure"] == ("yes" if wanted.max() >= 0.6 else "no")
    assert rows[0]["predicted_2"] == CLASSES[int(np.argsort(-wanted)[1])]


def test_of_several_labels_those_above_their_thresholds_are_named(
    several: Path, tmp_path: Path
) -> None:
    deployed, meta = load_deployed(several)
    for answer in answers(deployed, image_files([seven_photos(tmp_path / "photos")]), 8, CPU):
        row = as_row(answer, meta, 1)
        if answer.probabilities is not None:
            above = answer.probabilities >= [0.5, 0.5, 0.99]
            named = [name for name, a in zip(CLASSES, above, strict=True) if a]
            assert row["predicted"] == "|".join(named)


def test_a_file_that_claims_to_be_huge_is_not_decoded(tuned: Path, tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    deployed, _ = load_deployed(tuned)
    (answer,) = answers(deployed, [tmp_path / "bomb.png"], 1, CPU)
    assert answer.fault == "20000x10000 pixels are more than 50,000,000"


def test_a_place_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no image"):
        image_files([tmp_path])
    with pytest.raises(DatasetError, match="does not exist"):
        image_files([tmp_path / "gone"])


def test_linked_folders_are_followed_and_bad_links_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = seven_photos(tmp_path / "real")
    place = tmp_path / "photos"
    place.mkdir()
    (place / "more").symlink_to(real)
    (place / "gone").symlink_to("nowhere")
    (place / "back").symlink_to(place)
    files = image_files([place])
    assert [path.relative_to(place).parts[0] for path in files] == ["gone", *["more"] * 7]
    assert "photos/back: a link that leads back; it is not followed" in capsys.readouterr().err


def test_every_file_that_is_or_claims_to_be_an_image_gets_a_row(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / ".trash").mkdir(parents=True)
    (photos / "deep").mkdir()
    image = Image.fromarray(drawn_images()[0])
    heic = (PROJECT / "tests/fixtures/heic/orientation_6.heic").read_bytes()
    for name in ("a.HEIC", "b.heif", "without_suffix", "camera.upload"):
        (photos / name).write_bytes(heic)
    for name in (".hidden.png", "._resource.png", ".trash/old.png", "deep/c.png"):
        image.save(photos / name)
    image.save(photos / "deep" / "0193", "PNG")
    image.save(photos / "scan.data", "BMP")
    (photos / "claims.jpg").write_text("no image")
    for name, text in (
        ("notes.txt", "BM is a maker"),
        ("P5.md", "P5 is not one"),
        ("x.csv", "a,b"),
    ):
        (photos / name).write_text(text)
    (photos / "Thumbs.db").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = [path.relative_to(photos).as_posix() for path in image_files([photos])]
    assert found == [
        "a.HEIC", "b.heif", "camera.upload", "claims.jpg", "deep/0193", "deep/c.png", "scan.data",
        "without_suffix",
    ]  # fmt: skip


def test_phones_photos_are_answered_and_a_false_one_says_why(tuned: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for orientation in (5, 6):
        name = f"orientation_{orientation}.heic"
        (photos / name).write_bytes((PROJECT / "tests/fixtures/heic" / name).read_bytes())
    (photos / "false.heic").write_text("no image")
    deployed, meta = load_deployed(tuned)
    rows = [as_row(a, meta, 1) for a in answers(deployed, image_files([photos]), 2, CPU)]
    assert [bool(row["fault"]) for row in rows] == [True, False, False]
