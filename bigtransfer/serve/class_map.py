"""The class names of one dataset as classes of a network that was tuned to another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bigtransfer.config import read_yaml
from bigtransfer.errors import ConfigError, did_you_mean

_OBJECTNET = "objectnet_to_imagenet_1k.json"
_ILSVRC_CLASSES = 1000


def same_names(names: Iterable[str], classes: Sequence[str]) -> dict[str, frozenset[int]]:
    """Map each name to the class of that name.

    Raises:
        ConfigError: If the network has no such class.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    strange = sorted(name for name in names if name not in numbers)
    if strange:
        raise ConfigError(
            f"the model has no class {strange[0]!r}{did_you_mean(strange[0], classes)} "
            f"({len(strange):,} names are none of its {len(classes):,} classes); say with "
            "--class-map which class each counts as, and leave the others out of it"
        )
    return {name: frozenset({numbers[name]}) for name in names}


def read_class_map(path: Path, classes: Sequence[str]) -> dict[str, frozenset[int]]:
    """Read which classes each name counts as.

    Args:
        path: YAML or JSON, `name: class` or `name: [class, class]`; or ObjectNet's folder
            `mappings`, for a network of ILSVRC-2012's 1,000 classes in their usual order.
        classes: Of the network, in order.

    Raises:
        ConfigError: If it cannot be read, or names a class that the network does not have.
    """
    if path.is_dir():
        return _of_objectnet(path, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    result = {}
    for name, value in read_yaml(path).items():
        wanted = [str(one) for one in (value if isinstance(value, list) else [value])]
        for one in wanted:
            if one not in numbers:
                raise ConfigError(
                    f"class map {str(path)!r}: {name!r} counts as {one!r}, which is no class of "
                    f"the model{did_you_mean(one, classes)}"
                )
        result[str(name)] = frozenset(numbers[one] for one in wanted)
    return result


def _of_objectnet(folder: Path, classes: Sequence[str]) -> dict[str, frozenset[int]]:
    """Read the mapping that comes with ObjectNet (Barbu et al. 2019).

    A label of ObjectNet is a list of ImageNet labels; those stand in the order of the challenge's
    own ids, which a third file brings into the order of networks' outputs.
    """
    if len(classes) != _ILSVRC_CLASSES:
        raise ConfigError(
            f"ObjectNet's mapping is one to the {_ILSVRC_CLASSES:,} classes of ILSVRC-2012; this "
            f"model has {len(classes):,}"
        )
    folders = _json(folder / "folder_to_objectnet_label.json")
    counterparts = _json(folder / _OBJECTNET)
    id_of_output = _json(folder / "pytorch_to_imagenet_2012_id.json")
    output_of_id = {int(number): int(output) for output, number in id_of_output.items()}
    labels = _text(folder / "imagenet_to_label_2012_v2").splitlines()
    first = min(output_of_id, default=0)  # the ids count from 0 or from 1
    id_of_label = {label.strip(): number for number, label in enumerate(labels, start=first)}
    try:
        return {
            name: frozenset(
                output_of_id[id_of_label[own.strip()]] for own in counterparts[label].split(";")
            )
            for name, label in folders.items()
            if label in counterparts
        }
    except KeyError as error:
        raise ConfigError(
            f"ObjectNet's mapping {str(folder)!r} contradicts itself at {error}; unpack it again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(_text(path))
    except ValueError as error:
        raise ConfigError(f"class map {str(path)!r} is no JSON: {error}") from error
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"class map {str(path)!r} cannot be read; a folder must be ObjectNet's `mappings`, "
            f"with {_OBJECTNET} in it"
        ) from error
