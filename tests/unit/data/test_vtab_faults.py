"""Sets of VTAB that are not whole, damaged, or not the authors' own: one line, nothing written."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data.vtab import opened
from bigtransfer.data.vtab.prepare import Size, prepare
from bigtransfer.errors import BigTransferError, DatasetError, StorageError
from fixtures import vtab, vtab_arrays, vtab_set
from fixtures.vtab import IMITATIONS


def refused(task: str, folder: Path, to: Path, size: Size | None = None) -> str:
    """Prepare and return the line that refuses it; nothing may be left behind."""
    before = sorted(to.parent.rglob("*"))
    with pytest.raises(BigTransferError) as caught:
        prepare(task, folder, to, size=size)
    assert sorted(to.parent.rglob("*")) == before
    line = str(caught.value)
    assert "\n" not in line
    return line


MISSING = {
    "caltech101": "101_ObjectCategories/ (of caltech-101.zip)",
    "cifar100": "cifar-100-binary.tar.gz",
    "dtd": "labels/train1.txt (of dtd-r1.0.1.tar.gz)",
    "flowers102": "imagelabels.mat",
    "pets": "trainval.txt (of annotations.tar.gz)",
    "sun397": "SUN397/a/abbey/… (of SUN397.tar.gz)",
    "svhn": "train_32x32.mat",
    "camelyon": "camelyonpatch_level_2_split_train_x.h5",
    "eurosat": "AnnualCrop/AnnualCrop_1.jpg",
    "resisc45": "unrar x NWPU-RESISC45.rar",
    "retinopathy": "train.zip.001",
    "clevr_count": "scenes/CLEVR_train_scenes.json (of CLEVR_v1.0.zip)",
    "clevr_distance": "scenes/CLEVR_train_scenes.json (of CLEVR_v1.0.zip)",
    "dmlab": "dmlab-train.tfrecord (of dmlab.tar.gz)",
    "kitti_distance": "training/image_2/000000.png (of data_object_image_2.zip)",
    "dsprites_location": "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
    "dsprites_orientation": "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
    "smallnorb_azimuth": "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat.gz",
    "smallnorb_elevation": "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat.gz",
}


@pytest.mark.parametrize("task", IMITATIONS)
def test_an_empty_folder_names_the_file_that_is_looked_for(task: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    line = refused(f"vtab/{task}", folder, tmp_path / "made")
    assert MISSING[task] in line and str(folder) in line


@pytest.mark.usefixtures("hdf5")
@pytest.mark.parametrize("task", [task for task in IMITATIONS if task != "retinopathy"])
def test_a_set_of_too_few_images_is_not_whole(task: str, tmp_path: Path) -> None:
    """The imitations are tiny, so without a word about their size they are not whole."""
    made = IMITATIONS[task]()
    folder = made.write(tmp_path / "set", packed=False)
    assert "it is not whole; fetch or unpack it again" in refused(task, folder, tmp_path / "made")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert "is missing" in refused("pets", tmp_path / "none", tmp_path / "made")
    (tmp_path / "images.tar.gz").touch()
    line = refused("pets", tmp_path / "images.tar.gz", tmp_path / "made")
    assert "is a file; give the folder that it lies in" in line


def test_an_unknown_task(tmp_path: Path) -> None:
    line = refused("vtab/pet", tmp_path, tmp_path / "made")
    assert "there is no task 'vtab/pet'" in line and "did you mean 'pets'?" in line


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("task", ["pets", "eurosat", "clevr_count", "dmlab", "cifar100"])
def test_an_archive_that_is_cut_short(task: str, share: float, tmp_path: Path) -> None:
    made = IMITATIONS[task]()
    folder = made.write(tmp_path / "set", packed=True)
    archive = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    line = refused(task, folder, tmp_path / "made", made.size)
    assert archive.name in line and "fetch it again" in line


def test_an_archive_of_which_a_byte_is_wrong(tmp_path: Path) -> None:
    made = vtab.pets()
    folder = made.write(tmp_path / "set", packed=True)
    archive = folder / "images.tar.gz"
    data = bytearray(archive.read_bytes())
    data[-5] ^= 255  # of the sum over all of it
    archive.write_bytes(data)
    line = refused("pets", folder, tmp_path / "made", made.size)
    assert "images.tar.gz" in line and "fetch it again" in line


@pytest.mark.parametrize("name", ["../out.jpg", "/out.jpg", "images/../../out.jpg", "..\\out.jpg"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_that_leads_out_of_the_folder(kind: str, name: str, tmp_path: Path) -> None:
    task, archive = ("pets", "images.tar.gz") if kind == "tar" else ("eurosat", "EuroSAT.zip")
    made = IMITATIONS[task]()
    folder = made.write(tmp_path / "set", packed=True)
    if kind == "zip":
        with zipfile.ZipFile(folder / archive, "a") as packed:
            packed.writestr(name, b"x")
    else:
        members = [(n, data) for a, n, data in made.files if a == archive]
        vtab_set.write_archive(folder / archive, [*members, (name, b"x")])
    line = refused(task, folder, tmp_path / "made", made.size)
    assert "leads out of the folder" in line and "not the authors' own" in line


def test_links_and_devices_in_an_archive_are_passed_over(tmp_path: Path) -> None:
    made = vtab.pets()
    folder = made.write(tmp_path / "set", packed=True)
    with tarfile.open(folder / "images.tar.gz", "w:gz") as tar:
        for archive, name, data in made.files:
            if archive == "images.tar.gz":
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("images/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    prepare("pets", folder, tmp_path / "made", size=made.size)
    assert not any(path.is_symlink() for path in (tmp_path / "made").rglob("*"))


def test_an_image_that_a_list_names_and_nobody_has(tmp_path: Path) -> None:
    made = vtab.pets()
    folder = made.write(tmp_path / "set", packed=False)
    gone = sorted((folder / "images").glob("pug_*.jpg"))[0]
    gone.unlink()
    line = refused("pets", folder, tmp_path / "made", made.size)
    assert re.search(rf"1 of the \d+ images of \w+\.txt, e\.g\. 'images/{gone.name}'", line)


def test_one_of_three_lists_of_sun_is_missing(tmp_path: Path) -> None:
    made = vtab.sun397()
    folder = made.write(tmp_path / "set", packed=False)
    (folder / "sun397_tfds_va.txt").unlink()
    assert "sun397_tfds_va.txt" in refused("sun397", folder, tmp_path / "made", made.size)


def test_the_same_image_lies_there_twice(tmp_path: Path) -> None:
    made = vtab.eurosat()
    made.write(tmp_path / "set/a", packed=False)
    made.write(tmp_path / "set/b", packed=False)
    line = refused("eurosat", tmp_path / "set", tmp_path / "made", made.size)
    assert "twice, as 'a/2750/" in line and "move one away" in line


def test_a_class_is_missing(tmp_path: Path) -> None:
    made = vtab.resisc45()
    folder = made.write(tmp_path / "set", packed=False)
    size = Size(made.size.held, 45, train=8, val=3)
    line = refused("resisc45", folder, tmp_path / "made", size)
    assert "holds 2 classes, the task has 45" in line


def test_camelyon_needs_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = vtab_arrays.camelyon()
    folder = made.write(tmp_path / "set", packed=False)
    monkeypatch.setitem(sys.modules, "h5py", None)
    line = refused("camelyon", folder, tmp_path / "made", made.size)
    assert line.endswith("cannot be read without h5py; install it: pip install h5py")
    packed = folder / "camelyonpatch_level_2_split_train_x.h5"
    packed.rename(packed.with_suffix(".h5.gz"))
    assert "gunzip -k camelyonpatch" in refused("camelyon", folder, tmp_path / "made", made.size)


def test_what_is_missing_is_named_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DatasetError, match="'x.mat' .MATLAB. cannot be read without scipy"):
        opened.needed("scipy.io", "scipy", "'x.mat' (MATLAB)")


def _garbage(data: bytes) -> bytes:
    return b"garbage" * 20


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGED = [
    ("svhn", "train_32x32.mat", _garbage), ("svhn", "train_32x32.mat", _cut),
    ("flowers102", "setid.mat", _garbage),
    ("dsprites_location", "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz", _garbage),
    ("dsprites_location", "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz", _cut),
    ("smallnorb_azimuth", "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat.gz", _garbage),
    ("smallnorb_azimuth", "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat.gz", _cut),
    ("smallnorb_azimuth", "smallnorb-5x01235x9x18x6x2x96x96-testing-info.mat", _garbage),
    ("smallnorb_azimuth", "smallnorb-5x01235x9x18x6x2x96x96-testing-info.mat", _cut),
    ("dmlab", "dmlab-train.tfrecord-00000-of-00002", _garbage),
    ("dmlab", "dmlab-train.tfrecord-00000-of-00002", _cut),
    ("clevr_count", "CLEVR_v1.0/scenes/CLEVR_val_scenes.json", _garbage),
    ("clevr_count", "CLEVR_v1.0/scenes/CLEVR_val_scenes.json", _cut),
    ("kitti_distance", "mapping/train_rand.txt", _garbage),
    ("kitti_distance", "training/label_2/000000.txt", lambda data: b"Car 0 0\n"),
    ("retinopathy", "trainLabels.csv", _garbage),
    ("cifar100", "cifar-100-binary/train.bin", _cut),
    ("camelyon", "camelyonpatch_level_2_split_train_y.h5", _garbage),
    ("camelyon", "camelyonpatch_level_2_split_train_x.h5", _garbage),
]  # fmt: skip


@pytest.mark.usefixtures("hdf5")
@pytest.mark.parametrize(("task", "name", "harm"), DAMAGED)
def test_a_damaged_file_is_named(
    task: str, name: str, harm: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    made = IMITATIONS[task]()
    folder = made.write(tmp_path / "set", packed=False)
    path = folder / name
    path.write_bytes(harm(path.read_bytes()))
    line = refused(task, folder, tmp_path / "made", made.size)
    named = Path(name).stem.split("-")[0] in line or "mapping of KITTI" in line
    assert named or "it is not whole" in line  # cut where a record ends


def test_a_scene_of_clevr_without_depth(tmp_path: Path) -> None:
    made = vtab.clevr("clevr_distance")
    folder = made.write(tmp_path / "set", packed=False)
    path = folder / "CLEVR_v1.0/scenes/CLEVR_val_scenes.json"
    told = json.loads(path.read_text())
    told["scenes"][3]["objects"] = []
    path.write_text(json.dumps(told))
    line = refused("clevr_distance", folder, tmp_path / "made", made.size)
    assert "CLEVR_val_scenes.json" in line and "fetch it again" in line


def test_arrays_that_do_not_belong_together(tmp_path: Path) -> None:
    from scipy.io import savemat

    made = vtab_arrays.svhn()
    folder = made.write(tmp_path / "set", packed=False)
    savemat(folder / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": [[1], [2]]})
    line = refused("svhn", folder, tmp_path / "made", made.size)
    assert "images of shape (32, 32, 3, 4) and 2 labels" in line
    savemat(folder / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 4), np.uint8)})
    assert "has no 'y'" in refused("svhn", folder, tmp_path / "made", made.size)


def test_a_folder_that_is_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    made = vtab.eurosat()
    folder = made.write(tmp_path / "set", packed=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photo.jpg").touch()
    with pytest.raises(StorageError, match="was not made by `data prepare`"):
        prepare("eurosat", folder, mine, size=made.size)
    assert [path.name for path in mine.iterdir()] == ["photo.jpg"]
    for place in (folder, tmp_path):
        with pytest.raises(StorageError, match="would lie over"):
            prepare("eurosat", folder, place, size=made.size)
    (tmp_path / "empty").mkdir()
    prepare("eurosat", folder, tmp_path / "empty", size=made.size)


def test_an_eye_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    made = vtab.retinopathy()
    folder = made.write(tmp_path / "set", packed=False)
    for path in (folder / "train").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    line = refused("retinopathy", folder, tmp_path / "made", made.size)
    assert "_left.jpeg' is no image" in line or "_right.jpeg' is no image" in line
