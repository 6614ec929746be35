"""Sets whose labels are reckoned from a description of the scene: CLEVR and KITTI."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bigtransfer.data.vtab.material import Entry, Material
from bigtransfer.data.vtab.opened import Opened
from bigtransfer.data.vtab.photos import Photo, opened
from bigtransfer.errors import DatasetError

_CLEVR = {"train": "train", "validation": "val"}
"""Part -> split of the authors; their test split has no scenes, so VTAB tests on `val`."""
_FEWEST = 3
"""Objects in a scene of CLEVR: three to ten, eight classes."""
_CLEVR_EDGES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
"""Between the classes of the distance of the closest object, in CLEVR's units of depth."""
_KITTI_EDGES = (-100.0, 8.0, 20.0, 999.0)
"""Metres to the closest car, van or truck; the last class is: there is none."""
_NO_VEHICLE = 1000.0
_VEHICLES = ("Car", "Van", "Truck")
_KITTI_SEED, _KITTI_PERCENT = 123, 10
"""The benchmark sets 10 % of the videos aside for test, then as many for validation (TFDS)."""


def open_clevr_count(material: Material) -> Opened:
    """Open CLEVR with the number of objects as the label."""
    return _clevr(material, lambda objects: str(len(objects) - _FEWEST))


def open_clevr_distance(material: Material) -> Opened:
    """Open CLEVR with a class of the distance of the closest object as the label."""
    return _clevr(
        material,
        lambda objects: _class_of(min(o["pixel_coords"][2] for o in objects), _CLEVR_EDGES),
    )


def _clevr(material: Material, label_of: Callable[[Sequence[Mapping[str, Any]]], str]) -> Opened:
    parts = {}
    for part, split in _CLEVR.items():
        name = f"CLEVR_{split}_scenes.json"
        listed = material.one(rf"scenes/{name}", f"scenes/{name} (of CLEVR_v1.0.zip)")
        images = material.find(rf"images/{split}/CLEVR_{split}_\d{{6}}\.png")
        photos = []
        try:
            for scene in json.loads(material.read(listed))["scenes"]:
                file = scene["image_filename"]
                entry = images.get(f"images/{split}/{file}")
                if entry is None:
                    raise material.lacks(f"images/{split}/{file} (of CLEVR_v1.0.zip)")
                photos.append(Photo(file, label_of(scene["objects"]), entry))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DatasetError(
                f"{name!r} is no description of CLEVR's scenes ({error}); fetch it again"
            ) from error
        parts[part] = photos
    return opened(material, parts, ".png")


def open_kitti(material: Material) -> Opened:
    """Open KITTI's objects with a class of the distance of the closest vehicle as the label."""
    import numpy as np

    images = material.find(r"training/image_2/\d{6}\.png")
    labels = material.find(r"training/label_2/\d{6}\.txt")
    if not images:
        raise material.lacks("training/image_2/000000.png (of data_object_image_2.zip)")
    if not labels:
        raise material.lacks("training/label_2/000000.txt (of data_object_label_2.zip)")
    videos = _videos(material)
    # numpy.random.seed and choice, of the state that the benchmark draws with.
    state = np.random.RandomState(_KITTI_SEED)
    count = max(1, _KITTI_PERCENT * len(videos) // 100)
    test = {str(name) for name in state.choice(sorted(videos), count, replace=False)}
    rest = sorted(set(videos) - test)
    validation = {str(name) for name in state.choice(rest, count, replace=False)} if rest else set()
    texts = _texts(material, labels)
    parts: dict[str, list[Photo]] = {"train": [], "validation": [], "test": []}
    for video, numbers in videos.items():
        part = "test" if video in test else "validation" if video in validation else "train"
        for number in numbers:
            name = f"{number:06d}"
            entry = images.get(f"training/image_2/{name}.png")
            text = texts.get(f"training/label_2/{name}.txt")
            if entry is None or text is None:
                lacking = f"image_2/{name}.png" if entry is None else f"label_2/{name}.txt"
                raise material.lacks(f"training/{lacking}, which the mapping of KITTI names")
            parts[part].append(Photo(f"{name}.png", _closest_vehicle(text, name), entry))
    return opened(material, parts, ".png")


def _videos(material: Material) -> dict[str, list[int]]:
    """Return the video of every image, in the order of images."""
    order, lines = (
        material.read(material.one(rf"mapping/{name}", f"mapping/{name} (of devkit_object.zip)"))
        for name in ("train_rand.txt", "train_mapping.txt")
    )
    videos: dict[str, list[int]] = {}
    try:
        names = [line.split()[1] for line in lines.decode().splitlines() if line.strip()]
        for number, line in enumerate(order.decode().split(",")):
            videos.setdefault(names[int(line) - 1], []).append(number)
    except (ValueError, IndexError) as error:
        raise DatasetError(
            f"the mapping of KITTI's devkit_object.zip cannot be read ({error}); fetch it again"
        ) from error
    return videos


def _texts(material: Material, labels: Mapping[str, Entry]) -> dict[str, str]:
    """Return the text of every file of labels; an archive is read once."""
    return {
        name: data.decode("utf-8", "replace") for name, data in material.read_all(labels).items()
    }


def _closest_vehicle(text: str, name: str) -> str:
    distances = [_NO_VEHICLE]
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in _VEHICLES:
            try:
                distances.append(float(words[13]))
            except (IndexError, ValueError) as error:
                raise DatasetError(
                    f"KITTI's label_2/{name}.txt has the line {line!r}, which is no object; fetch "
                    "it again"
                ) from error
    return _class_of(min(distances), _KITTI_EDGES)


def _class_of(distance: float, edges: Sequence[float]) -> str:
    """Return the class between two edges; an edge itself belongs to the class below.

    In float32, as the benchmark compares.
    """
    import numpy as np

    below = np.asarray(edges, np.float32) < np.float32(distance)
    return str(int(np.flatnonzero(below).max()))
