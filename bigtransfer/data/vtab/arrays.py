"""Sets that are a few large arrays of pixels: CIFAR-100, SVHN, PatchCamelyon."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtransfer.data.vtab.material import Material, told
from bigtransfer.data.vtab.matlab import load_mat
from bigtransfer.data.vtab.opened import Opened, Part, Wanted, needed, save_png
from bigtransfer.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PCAM = {"train": "train", "validation": "valid", "test": "test"}
"""Part -> how the authors' files call it."""


def open_cifar(material: Material) -> Opened:
    """Open CIFAR-100, binary or python; the benchmark numbers the rows of the binary version."""
    from bigtransfer.data.sources.cifar import list_cifar
    from bigtransfer.storage.trees import LocalTree

    binary = material.find(r"cifar-100-binary/train\.bin")
    found = binary or material.find(r"cifar-100-python/train")
    if not found:
        raise material.lacks("cifar-100-binary.tar.gz, nor cifar-100-binary/ unpacked")
    entry = next(iter(found.values()))
    if entry.archive is not None:
        tree = LocalTree(entry.archive.parent)
        contents = tree.contents()
        files = [file for file in contents.files if file.path == entry.archive.name]
    else:
        tree = LocalTree((material.folder / entry.name).parent)
        contents = tree.contents()
        files = contents.files
    source = list_cifar(tree, type(contents)(files, []))
    rows = {
        part: [image for image in source.images if image.split == part]
        for part in ("train", "test")
    }
    parts = {
        part: Part([str(i) for i in range(len(images))], [image.labels[0] for image in images])
        for part, images in rows.items()
    }

    def write(wanted: Wanted) -> None:
        for part, keys in wanted.items():
            for key, to in keys.items():
                image = rows[part][int(key)]
                to.write_bytes(source.read(image.file, image.offset, image.length))

    doubt = "" if binary else (
        "the benchmark numbers the images of the binary version (cifar-100-binary.tar.gz), this is "
        "the python version"
    )  # fmt: skip
    return Opened(parts, write, ".png", doubt)


def open_svhn(material: Material) -> Opened:
    """Open the cropped digits of SVHN; the digit 0 is label 10 in the authors' files."""
    pixels: dict[str, NDArray[Any]] = {}
    parts = {}
    for part in ("train", "test"):
        name = f"{part}_32x32.mat"
        entry = material.one(re.escape(name), f"{name} (of SVHN, format 2: cropped digits)")
        tables = load_mat(material.read(entry), ("X", "y"), name)
        labels = tables["y"].ravel()
        pixels[part] = tables["X"]
        if tables["X"].ndim != 4 or tables["X"].shape[3] != len(labels):
            raise DatasetError(
                f"{name!r} holds images of shape {tables['X'].shape} and {len(labels):,} labels; "
                "it is not the authors' file"
            )
        parts[part] = Part(_numbers(len(labels)), [str(int(label) % 10) for label in labels])

    def write(wanted: Wanted) -> None:
        for part, keys in wanted.items():
            for key, to in keys.items():
                save_png(pixels[part][..., int(key)], to)

    return Opened(parts, write, ".png")


def open_camelyon(material: Material) -> Opened:
    """Open PatchCamelyon: HDF5, a file of pixels and one of labels for each part."""
    files: dict[tuple[str, str], Path] = {}
    for name in _PCAM.values():
        for kind in "xy":
            files[name, kind] = _h5_file(material, f"camelyonpatch_level_2_split_{name}_{kind}.h5")
    h5py = needed("h5py", "h5py", "PatchCamelyon (.h5)")
    parts = {}
    for part, name in _PCAM.items():
        with told(files[name, "y"]), h5py.File(files[name, "y"], "r") as file:
            labels = file["y"][:].reshape(-1)
        parts[part] = Part(
            [f"{name}_{i}" for i in range(len(labels))], [str(int(label)) for label in labels]
        )

    def write(wanted: Wanted) -> None:
        for part, keys in wanted.items():
            at = {int(key.rpartition("_")[2]): to for key, to in keys.items()}
            path = files[_PCAM[part], "x"]
            with told(path), h5py.File(path, "r") as file:
                rows = file["x"]
                for row in sorted(at):
                    pixels = rows[row]
                    save_png(pixels, at[row])

    return Opened(parts, write, ".png")


def _h5_file(material: Material, name: str) -> Path:
    found = material.find(re.escape(name))
    if not found and (packed := material.find(re.escape(f"{name}.gz"))):
        path = material.folder / next(iter(packed.values())).name
        raise DatasetError(
            f"{str(path)!r} is compressed, and its rows cannot be read out of order; unpack it: "
            f"gunzip -k {path.name}"
        )
    if not found:
        raise material.lacks(f"{name} (of PatchCamelyon)")
    return material.folder / next(iter(found.values())).name


def _numbers(count: int) -> Sequence[str]:
    return [str(i) for i in range(count)]
