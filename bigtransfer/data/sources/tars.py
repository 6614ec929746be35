"""Tar archives, read in place and never unpacked: walked once, each image by offset and length.

A name that leads out of a folder, a link, a device or a name that comes twice refuses the whole
archive: whoever made it so meant no good, or lost data.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePosixPath

from bigtransfer.data.decoding import SUFFIXES
from bigtransfer.data.repeated import repeated
from bigtransfer.data.sources.folders import reader
from bigtransfer.data.sources.labels import (
    class_name,
    class_names,
    doubts,
    refuse_vectors,
    whole_numbers,
)
from bigtransfer.data.sources.listing import SPLIT_NAMES, ListedImage, Listing, Source
from bigtransfer.data.sources.names import in_order, splits_in
from bigtransfer.errors import DatasetError
from bigtransfer.storage.tree import Contents, Tree, TreeFile, is_litter, safe_name
from bigtransfer.storage.trees import TreeReader

_READ_AHEAD = 1 << 16
_IMAGES = {suffix for known in SUFFIXES.values() for suffix in known}
LABEL_SUFFIXES = ("cls", "json", "txt")
"""Of a sample's label in a WebDataset archive; the first that is there counts."""
_MAX_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    offset: int
    length: int


def members(tree: Tree, path: str, size: int, *, start: int = 0) -> list[Member]:
    """Walk an uncompressed tar and return its files.

    Args:
        tree: Where it lies.
        path: Of the file that holds it.
        size: Of that file, bytes.
        start: Offset of the archive in the file: of a tar within a tar.

    Raises:
        DatasetError: If it is damaged, compressed or hostile; names archive and member.
    """
    where = f"archive {path!r} of {tree.address!r}"
    file = io.BufferedReader(TreeReader(tree, path, size), _READ_AHEAD)
    file.seek(start)
    found: dict[str, Member] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                _refuse_hostile(info, where, found)
                if info.isreg():
                    found[info.name] = Member(info.name, info.offset_data, info.size)
                    if info.offset_data + info.size > size:
                        raise DatasetError(
                            f"{where} is cut: {info.name!r} ends at byte "
                            f"{info.offset_data + info.size:,}, the file has {size:,}; fetch it "
                            "again"
                        )
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(
            f"{where} is no plain tar, or is damaged ({error}); decompress it, or fetch it again"
        ) from error
    return list(found.values())


def _refuse_hostile(info: tarfile.TarInfo, where: str, found: dict[str, Member]) -> None:
    reason = None
    if not safe_name(info.name.rstrip("/")):
        reason = "its name leads out of the folder"
    elif info.issym() or info.islnk():
        reason = f"it is a link to {info.linkname!r}"
    elif not (info.isreg() or info.isdir()):
        reason = "it is a device or a pipe"
    elif info.name in found:
        reason = "its name comes twice"
    elif "\0" in info.name or any("\udc80" <= char <= "\udcff" for char in info.name):
        reason = "its name is not UTF-8 text"
    if reason:
        name = info.name.encode("utf-8", "backslashreplace").decode()
        raise DatasetError(
            f"{where} is refused: member {name!r}: {reason}; make the archive anew from plain files"
        )


def is_hidden(name: str) -> bool:
    """Say whether a member is hidden, or lies in a hidden folder."""
    return any(is_litter(part) for part in name.split("/") if part != ".")


def is_picture(suffix: str) -> bool:
    """Say whether what stands behind a dot is an image's suffix: `jpg`, `seg.png`."""
    return suffix.lower().rpartition(".")[2] in _IMAGES


def list_class_tars(tree: Tree, contents: Contents) -> Source:
    """List one tar per class, as ImageNet-21k comes: `n01440764.tar` with its images."""
    labels = set()

    def images_of(file: TreeFile) -> Iterator[ListedImage]:
        place = PurePosixPath(file.path)
        label, above = place.name.removesuffix(".tar"), place.parent.name.lower()
        labels.add(label)
        split = SPLIT_NAMES.get(above)
        if split is None and len(place.parts) > 1:
            raise DatasetError(
                f"archive {file.path!r} of {tree.address!r} lies in a folder that is no split; put "
                "the class archives side by side, or into train, val and test"
            )
        prefix = f"{split + '/' if split else ''}{label}/"
        return _images_of(tree, file.path, file.bytes, label, prefix, split=split)

    images = Listing(chain.from_iterable(map(images_of, contents.files)))
    spoken = [label for label in in_order(labels) if splits_in(label)]
    notes = [f"the archive {spoken[0]!r} is read as a class, not as a split"] if spoken else []
    return _source(tree, "class_tars", images, in_order(labels), contents, notes=notes)


def list_webdataset(
    tree: Tree, contents: Contents, walked: Mapping[str, list[Member]] | None = None
) -> Source:
    """List WebDataset tars: `<key>.jpg` beside `<key>.cls`, `<key>.txt` or `<key>.json`.

    `.cls` holds a number or a name, `.txt` a name, `.json` a number, a name, a list of them, or an
    object with `label` or `labels`. A key ends at the first dot of the file's name. A word of the
    archive's name, or of a folder above it, gives the split.

    Args:
        tree: Where they lie.
        contents: Of it.
        walked: Archive -> its members, of those that were walked already.

    Raises:
        DatasetError: If a label has no image or an image no label; names them.
    """
    labels: list[_Label] = []
    known: dict[_Label, _Label] = {}

    def at(path: str, key: str) -> str:
        return f"archive {path!r} of {tree.address!r}: sample {key!r}"

    def images_of(file: TreeFile) -> Iterator[ListedImage]:
        split = split_of_archive(tree, file.path)
        found = (walked or {}).get(file.path) or members(tree, file.path, file.bytes)
        for key, parts in _samples(found).items():
            where = at(file.path, key)
            picture, suffix = _pair(parts, where)
            label = _label_of(tree, file.path, parts[suffix], where)
            labels.append(known.setdefault(label, label))  # few differ: one object of each
            yield ListedImage(
                f"{key}.{picture}",
                (),
                split,
                parts[picture].length,
                file.path,
                parts[picture].offset,
                parts[picture].length,
            )

    bare = Listing(chain.from_iterable(map(images_of, contents.files)))
    if twice := repeated(lambda: (_key_of(image.path) for image in bare)):
        seen: dict[str, str] = {}
        for image in bare:
            key = _key_of(image.path)
            if key in seen:
                raise DatasetError(
                    f"{at(image.file, key)} comes in {seen[key]!r} too; keys must differ"
                )
            if key in twice:
                seen[key] = image.file
    multi = any(label.several for label in known)
    names = _spelled(labels, lambda i: at(bare[i].file, _key_of(bare[i].path)))
    images = Listing(replace(image, labels=own) for image, own in zip(bare, names, strict=True))
    ordered = in_order({name for own in set(names) for name in own})
    notes = [] if multi else doubts(own[0] for own in names)
    return _source(tree, "webdataset", images, ordered, contents, multi=multi, notes=notes)


def _samples(found: list[Member]) -> dict[str, dict[str, Member]]:
    """Return key -> suffix -> member; a key ends at the first dot of the file's own name."""
    groups: dict[str, dict[str, Member]] = {}
    for member in found:
        if not is_hidden(member.name):
            suffix = member.name.rpartition("/")[2].partition(".")[2]
            groups.setdefault(_key_of(member.name), {})[suffix.lower()] = member
    return groups


def _key_of(name: str) -> str:
    """Return the key of a sample by the name of a file of it."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _pair(parts: Mapping[str, Member], where: str) -> tuple[str, str]:
    """Return the suffixes of a sample's image and of its label."""
    pictures = sorted(suffix for suffix in parts if is_picture(suffix))
    label = next((suffix for suffix in LABEL_SUFFIXES if suffix in parts), None)
    if label is not None and len(pictures) == 1:
        return pictures[0], label
    what, cure = "has no label (.cls, .txt or .json)", "make the archive anew"
    if label is not None:
        what = f"has {len(pictures)} images ({', '.join(pictures)})" if pictures else "has no image"
    dotted = sorted(m.name for suffix, m in parts.items() if "." in suffix)
    if dotted and (label is None or not pictures):
        what += f", only {dotted[0]!r}" if len(parts) == 1 else f", but e.g. {dotted[0]!r}"
        cure = "a key ends at the first dot of a name: write the archive with no other dot in names"
    elif label is None:
        cure += ", or, if each archive is one class, say `layout: class_tars`"
    raise DatasetError(f"{where} {what}; {cure}")


def list_ilsvrc2012(tree: Tree, contents: Contents) -> Source:
    """List ILSVRC-2012 as it is distributed.

    `ILSVRC2012_img_train.tar` (one tar per class inside), `ILSVRC2012_img_val.tar` with the ground
    truth from `ILSVRC2012_devkit_t12.tar.gz`; either alone is accepted. There are no public test
    labels: the official validation images are the split `test`, a part of train becomes `val`
    where `splits.val` asks for one (the protocol of the paper).

    Raises:
        DatasetError: If neither is there, or the validation images come without the devkit.
    """
    at = {PurePosixPath(f.path).name: f for f in contents.files}
    images: list[Iterable[ListedImage]] = []
    train, val = at.get("ILSVRC2012_img_train.tar"), at.get("ILSVRC2012_img_val.tar")
    if train is None and val is None:
        raise DatasetError(
            f"{tree.address!r} holds neither ILSVRC2012_img_train.tar nor ILSVRC2012_img_val.tar"
        )
    if train is not None:
        for inner in members(tree, train.path, train.bytes):
            label = inner.name.removesuffix(".tar")
            images.append(
                _images_of(
                    tree,
                    train.path,
                    train.bytes,
                    label,
                    f"train/{label}/",
                    start=inner.offset,
                    split="train",
                )
            )
    if val is not None:
        truth = _ilsvrc_truth(tree, at)
        found = sorted(members(tree, val.path, val.bytes), key=lambda m: m.name)
        if len(found) != len(truth):
            raise DatasetError(
                f"archive {val.path!r} of {tree.address!r} holds {len(found):,} images, the "
                f"devkit's ground truth {len(truth):,}; fetch both again"
            )
        images.append(
            ListedImage(
                f"val/{label}/{m.name}", (label,), "test", m.length, val.path, m.offset, m.length
            )
            for m, label in zip(found, truth, strict=True)
        )
    listed = Listing(chain.from_iterable(images))
    labels = in_order(label for image in listed for label in image.labels)
    return _source(tree, "ilsvrc2012", listed, labels, contents)


def _ilsvrc_truth(tree: Tree, at: dict[str, TreeFile]) -> list[str]:
    """Return the class of each validation image, in the order of their names."""
    name = "ILSVRC2012_devkit_t12.tar.gz"
    if name not in at:
        raise DatasetError(
            f"{tree.address!r} lacks {name!r}, which holds the labels of the validation images; "
            "put it beside them"
        )
    from scipy.io import loadmat

    data = tree.read(at[name].path)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            base = "ILSVRC2012_devkit_t12/data/"
            meta, truth = (
                tar.extractfile(base + file)
                for file in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
            )
            assert meta is not None and truth is not None
            synsets = loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]
            wnid_of = {int(row[0]): str(row[1]) for row in synsets}
            return [wnid_of[int(line)] for line in truth.read().split()]
    except (tarfile.TarError, KeyError, ValueError, EOFError, OSError, zlib.error) as error:
        raise DatasetError(
            f"archive {name!r} of {tree.address!r} is damaged ({error}); fetch it again"
        ) from error


def _images_of(
    tree: Tree,
    path: str,
    size: int,
    label: str,
    prefix: str,
    *,
    start: int = 0,
    split: str | None = None,
) -> Iterator[ListedImage]:
    for member in members(tree, path, size, start=start):
        if not is_hidden(member.name):
            yield ListedImage(
                prefix + member.name,
                (label,),
                split,
                member.length,
                path,
                member.offset,
                member.length,
            )


@dataclass(frozen=True)
class _Label:
    """What a sample says of its classes."""

    names: tuple[str, ...]
    several: bool


def _label_of(tree: Tree, path: str, member: Member, where: str) -> _Label:
    if member.length > _MAX_LABEL_BYTES:
        raise DatasetError(f"{where}: its label has {member.length:,} bytes; make it anew")
    data = tree.read(path, member.offset, member.length)
    try:
        text = data.decode("utf-8").strip()
        value = json.loads(text) if member.name.lower().endswith("json") else text
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: its label cannot be read ({error})") from error
    if isinstance(value, dict):
        if not value.keys() & {"label", "labels"}:
            keys = ", ".join(map(repr, list(value)[:3])) or "nothing"
            raise DatasetError(
                f"{where}: its .json has no 'label' or 'labels', but {keys}; make the archive anew "
                "with one of them, or with a .cls"
            )
        value = value.get("labels", value.get("label"))
    if isinstance(value, list):
        return _Label(class_names(value, where), True)
    if value is None or value == "":
        raise DatasetError(f"{where}: its label is empty; give it one")
    return _Label((class_name(value, where),), False)


def _spelled(labels: list[_Label], at: Callable[[int], str]) -> list[tuple[str, ...]]:
    """Return the class names of each sample, in order."""
    known = set(labels)
    if all(label.several for label in known):
        refuse_vectors([label.names for label in labels], at)
    spell = whole_numbers(name for label in known for name in label.names)
    spelled = {label: tuple(in_order(map(spell, label.names))) for label in known}
    return [spelled[label] for label in labels]


def split_of_archive(tree: Tree, path: str) -> str | None:
    """Return the split that an archive's name, or a folder above it, speaks of.

    Raises:
        DatasetError: If they speak of two.
    """
    found = {split: part for part in PurePosixPath(path).parts for split in splits_in(part)}
    if len(found) > 1:
        named = ", ".join(f"{part!r} of {split}" for split, part in found.items())
        raise DatasetError(
            f"archive {path!r} of {tree.address!r}: its name speaks of {len(found)} splits "
            f"({named}); rename it so that it names one, or none"
        )
    return next(iter(found), None)


def same_splits(tree: Tree, images: Sequence[ListedImage]) -> bool:
    """Say whether images bring splits.

    Raises:
        DatasetError: If some do and some do not.
    """
    splits = {image.split for image in images}
    if None in splits and len(splits) > 1:
        bare = next(i for i in images if i.split is None)
        raise DatasetError(
            f"{bare.file!r} of {tree.address!r} names no split while others do; name every archive "
            "train-…, val-… or test-…"
        )
    return bool(images) and None not in splits


def _source(
    tree: Tree,
    layout: str,
    images: Sequence[ListedImage],
    labels: list[str],
    contents: Contents,
    *,
    multi: bool = False,
    notes: Sequence[str] = (),
) -> Source:
    return Source(
        tree.address,
        layout,
        images,
        labels,
        same_splits(tree, images),
        multi,
        contents.ignored,
        reader(tree),
        tuple(notes),
    )
