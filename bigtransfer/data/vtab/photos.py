"""Sets that are image files: in class folders, or beside lists of their splits."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bigtransfer.data.vtab.material import Entry, Material
from bigtransfer.data.vtab.matlab import load_mat
from bigtransfer.data.vtab.opened import Opened, Part, Wanted
from bigtransfer.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CALTECH_TRAIN = 30
"""Training images of each class (Fei-Fei et al. 2004; TFDS draws as many)."""
_SUN_LISTS = {"train": "sun397_tfds_tr", "validation": "sun397_tfds_va", "test": "sun397_tfds_te"}
_SUN_SHARES = {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}
"""Percent of all images, where the lists of the benchmark are not there."""
_SUN_DAMAGED = "/c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"
"""TFDS leaves it out: decoders do not agree on it."""


class Photo(NamedTuple):
    """An image file of a set."""

    key: str
    label: str
    entry: Entry


def open_pets(material: Material) -> Opened:
    """Open Oxford-IIIT Pets; its lists name the split and the breed of every image."""
    images = material.find(r"images/[^/]+\.jpg")
    parts = {}
    for part, name in (("train", "trainval.txt"), ("test", "test.txt")):
        listed = material.one(rf"annotations/{name}", f"{name} (of annotations.tar.gz)")
        names = [line.split()[0] for line in _lines(material, listed) if line.strip()]
        found = _found(material, images, [f"images/{n}.jpg" for n in names], "images.tar.gz", name)
        parts[part] = [
            Photo(f"{stem}.jpg", stem.rpartition("_")[0], entry)
            for stem, entry in zip(names, found, strict=True)
        ]
    return opened(material, parts, ".jpg")


def open_dtd(material: Material) -> Opened:
    """Open Describable Textures; of its ten partitions the benchmark takes the first."""
    images = material.find(r"images/[^/]+/[^/]+\.jpg")
    parts = {}
    for part, name in (("train", "train1"), ("validation", "val1"), ("test", "test1")):
        listed = material.one(rf"labels/{name}\.txt", f"labels/{name}.txt (of dtd-r1.0.1.tar.gz)")
        names = [line.strip() for line in _lines(material, listed) if line.strip()]
        found = _found(
            material, images, [f"images/{n}" for n in names], "dtd-r1.0.1.tar.gz", f"{name}.txt"
        )
        parts[part] = [
            Photo(own, own.partition("/")[0], entry)
            for own, entry in zip(names, found, strict=True)
        ]
    return opened(material, parts, ".jpg")


def open_flowers(material: Material) -> Opened:
    """Open Oxford Flowers 102; labels are the authors' numbers of the classes, from 1."""
    tables: dict[str, NDArray[Any]] = {}
    for name, keys in (
        ("imagelabels.mat", ("labels",)),
        ("setid.mat", ("trnid", "valid", "tstid")),
    ):
        entry = material.one(re.escape(name), f"{name} (of Flowers 102)")
        tables |= load_mat(material.read(entry), keys, name)
    labels = tables["labels"].ravel()
    images = material.find(r"jpg/image_\d{5}\.jpg")
    parts = {}
    for part, key in (("train", "trnid"), ("validation", "valid"), ("test", "tstid")):
        numbers = [int(number) for number in tables[key].ravel()]
        if numbers and max(numbers) > len(labels):
            raise DatasetError(
                f"setid.mat names image {max(numbers):,}, imagelabels.mat has {len(labels):,} "
                "labels: they do not belong together; fetch both again"
            )
        names = [f"jpg/image_{number:05d}.jpg" for number in numbers]
        found = _found(material, images, names, "102flowers.tgz", "setid.mat")
        parts[part] = [
            Photo(f"image_{number:05d}.jpg", str(int(labels[number - 1])), entry)
            for number, entry in zip(numbers, found, strict=True)
        ]
    return opened(material, parts, ".jpg")


def open_caltech(material: Material) -> Opened:
    """Open Caltech 101; 30 images of each class are for training, drawn here."""
    images = material.find(r"101_ObjectCategories/[^/]+/[^/]+\.jpg")
    if not images:
        raise material.lacks("101_ObjectCategories/ (of caltech-101.zip)")
    classes: dict[str, list[Photo]] = {}
    for name in sorted(images):
        _, label, file = name.split("/")
        classes.setdefault(label, []).append(Photo(f"{label}/{file}", label, images[name]))
    parts: dict[str, list[Photo]] = {"train": [], "test": []}
    for label, photos in classes.items():
        chosen = random.Random(f"caltech101/{label}").sample(
            range(len(photos)), min(_CALTECH_TRAIN, len(photos))
        )
        for number, photo in enumerate(photos):
            parts["train" if number in set(chosen) else "test"].append(photo)
    return opened(
        material,
        parts,
        ".jpg",
        "which 30 images of each class are for training hung on the order of files on the "
        "benchmark's disk; they are drawn here, from a seed",
    )


def open_eurosat(material: Material) -> Opened:
    """Open the RGB images of EuroSAT; the class stands in the file's name."""
    images = material.find(r"([A-Z][A-Za-z]+)/\2_\d+\.jpg")  # other sets' are not capitals
    if not images:
        raise material.lacks("EuroSAT class folders, e.g. AnnualCrop/AnnualCrop_1.jpg (of the RGB "
                             "archive EuroSAT.zip or EuroSAT_RGB.zip)")  # fmt: skip
    return opened(material, {"train": _of_class_folders(images)}, ".jpg")


def open_resisc(material: Material) -> Opened:
    """Open NWPU-RESISC45, unpacked: its authors give it out as RAR, which Python cannot read."""
    images = material.find(r"([a-z_]+)/\2_\d{3}\.jpg")
    if not images:
        raise material.lacks("NWPU-RESISC45 class folders, e.g. airplane/airplane_001.jpg (unpack "
                             "NWPU-RESISC45.rar there: unrar x NWPU-RESISC45.rar)")  # fmt: skip
    return opened(material, {"train": _of_class_folders(images)}, ".jpg")


def _of_class_folders(images: Mapping[str, Entry]) -> list[Photo]:
    """Return photos whose keys repeat the class, as TFDS has them for EuroSAT and RESISC45."""
    found = []
    for name in sorted(images):
        label, _, file = name.partition("/")
        found.append(Photo(f"{label}_{file}", label, images[name]))
    return found


def open_sun(material: Material) -> Opened:
    """Open SUN397; the benchmark's lists of its splits come with TensorFlow Datasets."""
    images = {
        name.removeprefix("SUN397"): entry
        for name, entry in material.find(r"SUN397/[a-z]/.+\.jpg").items()
    }
    images.pop(_SUN_DAMAGED, None)
    if not images:
        raise material.lacks("SUN397/a/abbey/… (of SUN397.tar.gz)")
    lists = {part: material.find(rf"{name}\.txt") for part, name in _SUN_LISTS.items()}
    missing = [f"{_SUN_LISTS[part]}.txt" for part, found in lists.items() if not found]
    parts: dict[str, list[Photo]] = {}
    if 0 < len(missing) < len(lists):
        raise material.lacks(f"{missing[0]}, which belongs to the other lists of the split")
    for part, found in lists.items():
        if missing:
            break
        names = [line.strip() for line in _lines(material, next(iter(found.values())))]
        names = [name for name in names if name and name != _SUN_DAMAGED]
        entries = _found(material, images, names, "SUN397.tar.gz", f"{_SUN_LISTS[part]}.txt")
        parts[part] = [_scene(name, entry) for name, entry in zip(names, entries, strict=True)]
    if not missing:
        return opened(material, parts, ".jpg")
    every = [_scene(name, images[name]) for name in sorted(images)]
    random.Random("sun397").shuffle(every)
    cut = {part: [len(every) * p // 100 for p in ends] for part, ends in _SUN_SHARES.items()}
    return opened(
        material,
        {part: every[begin:end] for part, (begin, end) in cut.items()},
        ".jpg",
        f"the benchmark's lists {', '.join(missing)} (of tensorflow/datasets, folder "
        "image_classification) are not there; 70, 10 and 20 % are drawn here, from a seed",
    )


def _scene(name: str, entry: Entry) -> Photo:
    """Return a photo of SUN397: `/c/church/outdoor/sun_x.jpg` is of the class church_outdoor."""
    return Photo(name, "_".join(name.split("/")[2:-1]), entry)


def opened(
    material: Material, parts: Mapping[str, Sequence[Photo]], suffix: str, doubt: str = ""
) -> Opened:
    """Return a set of image files."""
    entries = {part: {p.key: p.entry for p in photos} for part, photos in parts.items()}

    def write(wanted: Wanted) -> None:
        material.place(
            {entries[part][key]: to for part, keys in wanted.items() for key, to in keys.items()}
        )

    columns = {
        part: Part([p.key for p in photos], [p.label for p in photos])
        for part, photos in parts.items()
    }
    return Opened(columns, write, suffix, doubt)


def _found(
    material: Material, entries: Mapping[str, Entry], names: Sequence[str], source: str, listed: str
) -> list[Entry]:
    """Return the entry of every name.

    Raises:
        DatasetError: If one is missing.
    """
    missing = [name for name in names if name not in entries]
    if missing:
        raise material.lacks(
            f"{len(missing):,} of the {len(names):,} images of {listed}, e.g. "
            f"{missing[0].lstrip('/')!r} (of {source})"
        )
    return [entries[name] for name in names]


def _lines(material: Material, entry: Entry) -> Iterable[str]:
    try:
        return material.read(entry).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{entry.name!r} is no text; fetch it again") from error
