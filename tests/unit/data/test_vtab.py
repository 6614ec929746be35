"""The 19 tasks of VTAB-1k, of tiny imitations of the sets as their authors distribute them."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtransfer.artifacts.prepared import Prepared
from bigtransfer.config import read_yaml
from bigtransfer.data.sources.opening import open_source
from bigtransfer.data.vtab.material import Material
from bigtransfer.data.vtab.order import order_of
from bigtransfer.data.vtab.prepare import prepare
from bigtransfer.data.vtab.retinopathy import eye
from bigtransfer.data.vtab.tasks import TASKS
from fixtures import vtab, vtab_set
from fixtures.project import PROJECT
from fixtures.vtab import IMITATIONS
from fixtures.vtab_set import Imitation

CUT = {
    "caltech101": ("train", 0.9, "test", 0), "cifar100": ("train", 0.9, "test", 0),
    "dtd": ("validation", 0, "test", 0), "flowers102": ("validation", 0, "test", 0),
    "pets": ("train", 0.8, "test", 0), "sun397": ("validation", 0, "test", 0),
    "svhn": ("train", 0.9, "test", 0), "camelyon": ("validation", 0, "test", 0),
    "eurosat": ("train", 0.6, "train", 0.8), "resisc45": ("train", 0.6, "train", 0.8),
    "retinopathy": ("validation", 0, "test", 0), "clevr_count": ("train", 0.9, "validation", 0),
    "clevr_distance": ("train", 0.9, "validation", 0), "dmlab": ("validation", 0, "test", 0),
    "kitti_distance": ("validation", 0, "test", 0),
    "dsprites_location": ("train", 0.8, "train", 0.9),
    "dsprites_orientation": ("train", 0.8, "train", 0.9),
    "smallnorb_azimuth": ("test", 0, "test", 0.5), "smallnorb_elevation": ("test", 0, "test", 0.5),
}  # fmt: skip
"""Task -> where validation and test begin, as google-research/task_adaptation says."""
LOOSE = ("resisc45", "retinopathy")
"""Sets whose archives Python cannot read."""
FORMS = [
    pytest.param(task, packed, id=f"{task}-{'packed' if packed else 'unpacked'}")
    for task in IMITATIONS
    if task != "caltech101"  # drawn here
    for packed in ((True, False) if TASKS[task].archives and task not in LOOSE else (False,))
]


def test_the_order_is_that_of_tensorflow_datasets() -> None:
    """CIFAR-10's ids, as TFDS 4 prints them for the first batch of `train`."""
    published = [16399, 1680, 47917, 17307, 27051, 48736, 26263, 1456, 19135, 31598, 12970, 4223,
                 27152, 49635, 4093, 17537]  # fmt: skip
    assert order_of([str(i) for i in range(50_000)], "train")[:16] == published


def _expected(made: Imitation, task: str) -> dict[str, list[tuple[str, str]]]:
    """Return split -> (part, key) of its images."""

    def ordered(part: str) -> list[tuple[str, str]]:
        keys = [key for key, _ in made.parts[part]]
        keys.sort(key=lambda key: int(hashlib.md5(f"{part}{key}".encode()).hexdigest(), 16))
        return [(part, key) for key in keys]

    val, val_from, test, test_from = CUT[task]
    begin = int(len(ordered(val)) * val_from + 1e-9)
    return {
        "train": ordered("train")[: made.size.train],
        "val": ordered(val)[begin : begin + made.size.val],
        "test": ordered(test)[int(len(ordered(test)) * test_from + 1e-9) :],
    }


@pytest.mark.usefixtures("hdf5")
@pytest.mark.parametrize(("task", "packed"), FORMS)
def test_a_task_has_the_images_of_the_benchmark(
    task: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigtransfer.data.vtab.retinopathy.RADIUS", 20)  # 300 take long
    made = IMITATIONS[task]()
    folder = made.write(tmp_path / "set", packed=packed)
    opened = TASKS[task].open(Material(folder, TASKS[task].archives))
    assert {part: dict(zip(found.keys, found.labels, strict=True))
            for part, found in opened.parts.items()} == {
                part: dict(rows) for part, rows in made.parts.items()}  # fmt: skip

    said = prepare(f"vtab/{task}", folder, tmp_path / "made", size=made.size)
    assert said == Prepared.read(tmp_path / "made")
    assert said.official and said.why == ""

    source = open_source(tmp_path / "made")
    assert source.layout == "table" and source.has_splits and not source.multi_label
    labels = {(part, key): label for part, rows in made.parts.items() for key, label in rows}
    found: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
    for image in source.images:
        assert image.fault is None and image.split is not None
        pixels = np.asarray(Image.open(io.BytesIO(source.read(image.file, -1, -1))).convert("RGB"))
        if made.tell is None:
            name = Path(image.path).stem
            part = next(part for part, key in labels if key == name)
        else:
            part, number = made.tell(pixels)
            name = made.parts[part][number][0]
        found[image.split].append((part, name))
        assert image.labels == (labels[part, name],)
    expected = _expected(made, task)
    assert found == expected
    assert said.splits == {split: len(rows) for split, rows in expected.items()}
    assert sorted(source.labels) == sorted(
        {labels[at] for rows in expected.values() for at in rows}
    )


@pytest.mark.usefixtures("hdf5")
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_all_sets_may_lie_in_one_folder(packed: bool, tmp_path: Path) -> None:
    tasks = [t for t in IMITATIONS if t not in ("dsprites_orientation", "retinopathy")]
    sets = {task: IMITATIONS[task]() for task in tasks}
    for made in sets.values():
        made.write(tmp_path / "all", packed=packed)
    for task, made in sets.items():
        made.write(tmp_path / task, packed=packed)
        alone = prepare(task, tmp_path / task, tmp_path / "alone" / task, size=made.size)
        among = prepare(task, tmp_path / "all", tmp_path / "among" / task, size=made.size)
        assert alone == among
        tables = [(tmp_path / n / task / "images.csv").read_text() for n in ("alone", "among")]
        assert tables[0] == tables[1]


def test_every_task_of_the_catalogue_can_be_made() -> None:
    tasks = read_yaml(PROJECT / "bigtransfer/vtab.yaml")["tasks"]
    assert [*TASKS] == [*tasks] and set(IMITATIONS) == set(TASKS) == set(CUT)
    for name, task in TASKS.items():
        held, cut = task.held, task.cuts
        test = held[cut.test.part] - held[cut.test.part] * cut.test.begin // 100
        assert tasks[name]["images"] == {"train": 800, "val": 200, "test": test}
        assert f"({task.classes} classes)" in tasks[name]["download"]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_caltech_is_drawn_here_and_says_so(packed: bool, tmp_path: Path) -> None:
    made = vtab.caltech101()
    folder = made.write(tmp_path / "set", packed=packed)
    said = prepare("caltech101", folder, tmp_path / "made", size=made.size)
    assert not said.official and "order of files" in said.why
    assert said.splits == {"train": 8, "val": 3, "test": 12}
    again = prepare("caltech101", folder, tmp_path / "again", size=made.size)
    assert again == said
    tables = [(tmp_path / name / "images.csv").read_text() for name in ("made", "again")]
    assert tables[0] == tables[1]


def test_an_archive_within_an_archive_is_looked_into(tmp_path: Path) -> None:
    made = vtab.caltech101()
    inner = made.write(tmp_path / "inner", packed=True) / "101_ObjectCategories.tar.gz"
    folder = tmp_path / "set"
    folder.mkdir()
    name = "caltech-101/101_ObjectCategories.tar.gz"
    vtab_set.write_archive(folder / "caltech-101.zip", [(name, inner.read_bytes())])
    said = prepare("caltech101", folder, tmp_path / "made", size=made.size)
    assert said.splits["test"] == 12


def test_without_the_lists_of_sun_the_split_is_not_the_official_one(tmp_path: Path) -> None:
    made = vtab.sun397(lists=False)
    folder = made.write(tmp_path / "set", packed=True)
    size = vtab_set.Size({"train": 25, "validation": 3, "test": 7}, 2, train=8, val=3)
    said = prepare("vtab/sun397", folder, tmp_path / "made", size=size)
    assert not said.official and "sun397_tfds_tr.txt" in said.why
    counts = Counter(image.split for image in open_source(tmp_path / "made").images)
    assert counts["train"] == 8 and counts["val"] == 3


def test_the_python_version_of_cifar_is_not_the_official_one(tmp_path: Path) -> None:
    import pickle

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"kind{i:02d}".encode() for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, 2))
    for part in ("train", "test"):
        pixels = np.stack([vtab_set.colour(part, i).transpose(2, 0, 1).ravel() for i in range(40)])
        batch = {b"data": pixels, b"fine_labels": [i % 4 for i in range(40)]}
        (folder / part).write_bytes(pickle.dumps(batch, 2))
    size = vtab_set.Size({"train": 40, "test": 40}, 4, train=8, val=3)
    said = prepare("vtab/cifar100", tmp_path, tmp_path / "made", size=size)
    assert not said.official and "binary version" in said.why


def test_images_are_linked_to_or_copied(tmp_path: Path) -> None:
    made = vtab.pets()
    folder = made.write(tmp_path / "set", packed=False)
    prepare("pets", folder, tmp_path / "linked", size=made.size)
    prepare("pets", folder, tmp_path / "copied", size=made.size, copy=True)
    linked, copied = (
        sorted((tmp_path / n / "images").rglob("*.jpg")) for n in ("linked", "copied")
    )
    assert len(linked) == len(copied) == 8 + 3 + 12
    assert all(path.is_symlink() and path.is_file() for path in linked)
    assert not any(path.is_symlink() for path in copied)


def test_what_was_prepared_is_no_part_of_the_set(tmp_path: Path) -> None:
    """`--from .` with the default `--to` finds its own links the second time, and passes them."""
    made = vtab.eurosat()
    made.write(tmp_path, packed=False)
    first = prepare("eurosat", tmp_path, tmp_path / "vtab/eurosat", size=made.size)
    assert prepare("eurosat", tmp_path, tmp_path / "vtab/eurosat", size=made.size) == first


def test_a_set_with_more_images_is_not_the_official_one(tmp_path: Path) -> None:
    made = vtab.resisc45()
    folder = made.write(tmp_path / "set", packed=False)
    size = vtab_set.Size({"train": 39}, 2, train=8, val=3)
    said = prepare("resisc45", folder, tmp_path / "made", size=size)
    assert not said.official
    assert said.why == "the set holds 40 instead of 39 images in the part 'train'"


def test_an_eye_is_a_grey_disc_of_nine_tenths() -> None:
    photo = vtab.eye_photo(0, radius=50)
    made = eye(photo, radius=30)
    assert made.shape == (54, 54, 3) and made.dtype == np.uint8
    assert (made[0, 0] == 128).all() and (made[-1, -1] == 128).all()
    assert made[20:34, 20:34].std() > 10  # the noise in the middle was made stronger
    flat = np.full((100, 150, 3), 90, np.uint8)
    assert (eye(flat, radius=30) == 128).all()  # nothing but its own average


def test_prepared_json_is_plain(tmp_path: Path) -> None:
    made = vtab.dtd()
    prepare("dtd", made.write(tmp_path / "set", packed=True), tmp_path / "made", size=made.size)
    told = json.loads((tmp_path / "made/prepared.json").read_text())
    assert told == {"schema": 1, "task": "vtab/dtd", "official": True, "why": "",
                    "splits": {"train": 8, "val": 3, "test": 12}}  # fmt: skip
