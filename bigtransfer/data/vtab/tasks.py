"""The 19 tasks of VTAB-1k: what each is made of, and which images it takes.

Rules are those of google-research/task_adaptation, `data/*.py`: the training images are the first
800 of the part `train`, the validation images 200 from where its validation split begins, and the
test images its whole test split. Percentages are of a part, in TFDS's order (`order`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bigtransfer.data.vtab.arrays import open_camelyon, open_cifar, open_svhn
from bigtransfer.data.vtab.frames import open_dmlab
from bigtransfer.data.vtab.material import Material
from bigtransfer.data.vtab.norb import open_azimuth, open_elevation
from bigtransfer.data.vtab.opened import Opened
from bigtransfer.data.vtab.photos import (
    open_caltech,
    open_dtd,
    open_eurosat,
    open_flowers,
    open_pets,
    open_resisc,
    open_sun,
)
from bigtransfer.data.vtab.retinopathy import open_retinopathy
from bigtransfer.data.vtab.scenes import open_clevr_count, open_clevr_distance, open_kitti
from bigtransfer.data.vtab.sprites import open_location, open_orientation
from bigtransfer.errors import DatasetError, did_you_mean

PREFIX = "vtab/"
"""Before a task's name, where there may be others."""
TRAIN, VAL = 800, 200
"""Images of the two splits that are trained on."""


@dataclass(frozen=True)
class Cut:
    """A piece of a part."""

    part: str
    begin: int = 0
    """Percent of the part."""


@dataclass(frozen=True)
class Cuts:
    """Which images of a set a task is validated and tested on."""

    val: Cut
    """Of it, the first images from its beginning on."""
    test: Cut
    """All of it."""


@dataclass(frozen=True)
class Task:
    """A task."""

    title: str
    """Of the set."""
    wants: str
    """Files of the authors, as a person would look for them."""
    archives: tuple[str, ...]
    """Patterns of the names of archives that are looked into."""
    open: Callable[[Material], Opened]
    classes: int
    held: Mapping[str, int]
    """Part -> examples that the whole set has."""
    cuts: Cuts
    official: str = "yes"
    """Whether the official split can be made: `yes`, or when."""


_PARTS = Cuts(Cut("validation"), Cut("test"))
_TENTH = Cuts(Cut("train", 90), Cut("test"))
_FIFTHS = Cuts(Cut("train", 60), Cut("train", 80))
_SINCE = "yes, as TFDS orders the set since 2021; before, by the folder that it lay in"
_CLEVR = Cuts(Cut("train", 90), Cut("validation"))


def _clevr(opener: Callable[[Material], Opened], classes: int) -> Task:
    held = {"train": 70_000, "validation": 15_000}
    return Task("CLEVR", "CLEVR_v1.0.zip", ("CLEVR_v1.0.zip",), opener, classes, held, _CLEVR)


def _sprites(opener: Callable[[Material], Opened]) -> Task:
    wants = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    cuts = Cuts(Cut("train", 80), Cut("train", 90))
    return Task("dSprites", wants, (), opener, 16, {"train": 737_280}, cuts)


def _norb(opener: Callable[[Material], Opened], classes: int) -> Task:
    wants = "smallnorb-5x…-training-{dat,info}.mat.gz and smallnorb-5x…-testing-{dat,info}.mat.gz"
    held = {"train": 24_300, "test": 24_300}
    return Task("SmallNORB", wants, (), opener, classes, held, Cuts(Cut("test"), Cut("test", 50)))


TASKS = {
    "caltech101": Task(
        "Caltech 101",
        "caltech-101.zip, or 101_ObjectCategories.tar.gz",
        ("caltech-101.zip", "101_ObjectCategories.tar.gz"),
        open_caltech,
        102,
        {"train": 3_060, "test": 6_084},
        _TENTH,
        official="no: it hung on the order of files on a disk",
    ),
    "cifar100": Task(
        "CIFAR-100",
        "cifar-100-binary.tar.gz",
        ("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"),
        open_cifar,
        100,
        {"train": 50_000, "test": 10_000},
        _TENTH,
        official="yes, of the binary version",
    ),
    "dtd": Task(
        "Describable Textures",
        "dtd-r1.0.1.tar.gz",
        ("dtd-r1*.tar.gz",),
        open_dtd,
        47,
        {"train": 1_880, "validation": 1_880, "test": 1_880},
        _PARTS,
    ),
    "flowers102": Task(
        "Oxford Flowers 102",
        "102flowers.tgz, imagelabels.mat and setid.mat",
        ("102flowers.tgz",),
        open_flowers,
        102,
        {"train": 1_020, "validation": 1_020, "test": 6_149},
        _PARTS,
    ),
    "pets": Task(
        "Oxford-IIIT Pets",
        "images.tar.gz and annotations.tar.gz",
        ("images.tar.gz", "annotations.tar.gz"),
        open_pets,
        37,
        {"train": 3_680, "test": 3_669},
        Cuts(Cut("train", 80), Cut("test")),
    ),
    "sun397": Task(
        "SUN397",
        "SUN397.tar.gz, and TFDS's sun397_tfds_tr.txt, sun397_tfds_va.txt, sun397_tfds_te.txt",
        ("SUN397.tar.gz",),
        open_sun,
        397,
        {"train": 76_127, "validation": 10_875, "test": 21_750},
        _PARTS,
        official="yes, with TFDS's three lists",
    ),
    "svhn": Task(
        "SVHN",
        "train_32x32.mat and test_32x32.mat",
        (),
        open_svhn,
        10,
        {"train": 73_257, "test": 26_032},
        _TENTH,
    ),
    "camelyon": Task(
        "PatchCamelyon",
        "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5, gunzipped (needs h5py)",
        (),
        open_camelyon,
        2,
        {"train": 262_144, "validation": 32_768, "test": 32_768},
        _PARTS,
    ),
    "eurosat": Task(
        "EuroSAT (RGB)",
        "EuroSAT.zip, or EuroSAT_RGB.zip",
        ("EuroSAT.zip", "EuroSAT_RGB.zip"),
        open_eurosat,
        10,
        {"train": 27_000},
        _FIFTHS,
        official=_SINCE,
    ),
    "resisc45": Task(
        "NWPU-RESISC45",
        "NWPU-RESISC45.rar, unpacked",
        ("NWPU-RESISC45.zip", "NWPU-RESISC45.tar*"),
        open_resisc,
        45,
        {"train": 31_500},
        _FIFTHS,
        official=_SINCE,
    ),
    "retinopathy": Task(
        "Diabetic Retinopathy (Kaggle 2015)",
        "train/ and test/ unpacked, trainLabels.csv and retinopathy_solution.csv",
        ("train.zip", "test.zip", "trainLabels.csv.zip"),
        open_retinopathy,
        5,
        {"train": 35_126, "validation": 10_906, "test": 42_670},
        _PARTS,
    ),
    "clevr_count": _clevr(open_clevr_count, 8),
    "clevr_distance": _clevr(open_clevr_distance, 6),
    "dmlab": Task(
        "DMLab frames",
        "dmlab.tar.gz",
        ("dmlab.tar.gz",),
        open_dmlab,
        6,
        {"train": 65_550, "validation": 22_628, "test": 22_735},
        _PARTS,
    ),
    "kitti_distance": Task(
        "KITTI objects",
        "data_object_image_2.zip, data_object_label_2.zip and devkit_object.zip",
        ("data_object_image_2.zip", "data_object_label_2.zip", "devkit_object.zip"),
        open_kitti,
        4,
        {"train": 6_347, "validation": 423, "test": 711},
        _PARTS,
    ),
    "dsprites_location": _sprites(open_location),
    "dsprites_orientation": _sprites(open_orientation),
    "smallnorb_azimuth": _norb(open_azimuth, 18),
    "smallnorb_elevation": _norb(open_elevation, 9),
}


def task_of(name: str) -> Task:
    """Return a task by its name, with or without `vtab/` before it.

    Raises:
        DatasetError: If there is none; names the closest.
    """
    plain = name.removeprefix(PREFIX)
    if plain not in TASKS:
        raise DatasetError(
            f"there is no task {name!r} of VTAB-1k{did_you_mean(plain, TASKS)}; there are "
            f"{', '.join(TASKS)}"
        )
    return TASKS[plain]
