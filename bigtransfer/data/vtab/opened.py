"""What a set holds once it is opened, whatever its format."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bigtransfer.errors import DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Wanted = Mapping[str, Mapping[str, Path]]
"""Part -> key -> the file to write."""


@dataclass(frozen=True)
class Part:
    """The examples of one part of a set, a row each."""

    keys: Sequence[str]
    """As TensorFlow Datasets names them: they decide the order (`order.order_of`)."""
    labels: Sequence[str]
    """Class names."""


@dataclass(frozen=True)
class Opened:
    """A set that was found and read as far as its labels."""

    parts: Mapping[str, Part]
    """By their names in TensorFlow Datasets: train, validation, test."""
    write: Callable[[Wanted], None]
    """Writes images in one pass over the set; raises DatasetError, naming the file."""
    suffix: str
    """Of the files that it writes, with its dot."""
    doubt: str = ""
    """Why the split that is cut from it cannot be the official one; empty: it can."""


def needed(module: str, package: str, why: str) -> ModuleType:
    """Import what only some formats need.

    Raises:
        DatasetError: If it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DatasetError(
            f"{why} cannot be read without {package}; install it: pip install {package}"
        ) from error


def save_png(pixels: NDArray[Any], path: Path) -> None:
    """Write an image as PNG, which loses nothing.

    Args:
        pixels: uint8, (H, W) or (H, W, 3).
        path: To write to.
    """
    import numpy as np
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(pixels)).save(path, "PNG", compress_level=1)
