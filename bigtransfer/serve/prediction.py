"""Answers for image files: read and decoded ahead in threads, while the network computes."""

from __future__ import annotations

import csv
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import inf
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.artifacts.weights import TunedMeta
from bigtransfer.data.decoding import (
    SUFFIXES,
    Pixels,
    UndecodableError,
    begins_as_image,
    decode_rgb,
    read_header,
    useful_threads,
)
from bigtransfer.data.transforms import resize_into
from bigtransfer.errors import ConfigError, DatasetError, StorageError
from bigtransfer.model.cuda_graph import Forward, replayed
from bigtransfer.model.inference import to_network
from bigtransfer.serve.deployed import Deployed
from bigtransfer.storage.tree import Tree, TreeFile, is_litter
from bigtransfer.storage.trees import walk

NOT_CALIBRATED = "not calibrated"
"""Stands where others say whether an answer is sure."""
_HEAD_BYTES = 32
_BATCHES_AHEAD = 2
_MOST_PIXELS = 50_000_000
"""As `validate` allows by default: a small file may claim to be huge."""
_IMAGE_SUFFIXES = tuple(f".{suffix}" for known in SUFFIXES.values() for suffix in known)


@dataclass(frozen=True)
class Answer:
    """What is said of one file: probabilities (classes,), or why there are none."""

    path: Path
    probabilities: NDArray[np.float32] | None
    fault: str | None = None


def image_files(places: Iterable[Path]) -> list[Path]:
    """Return the files among some places, and the images in folders among them, in order.

    An image is a file that is named like one or begins like one. Hidden files, and what operating
    systems leave behind, are passed over as where a dataset is validated.

    Links to folders are followed, as where a dataset is validated; a link that leads nowhere is
    among the files, so that its row says so, and one that leads back is named.

    Raises:
        DatasetError: If a place does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            loops: list[Path] = []
            found = sorted(_images_below(place, loops))
            for path in loops:
                print(f"{path}: a link that leads back; it is not followed", file=sys.stderr)
            if not found:
                raise DatasetError(f"folder {str(place)!r} holds no image")
            files += found
        elif place.exists():
            files.append(place)
        else:
            raise DatasetError(f"{str(place)!r} does not exist; give image files or folders")
    return files


def images_in(tree: Tree) -> list[TreeFile]:
    """Return the files of a tree that are named like images, in order.

    Raises:
        DatasetError: If there is none.
    """
    files = tree.contents().files
    found = [one for one in files if one.path.lower().endswith(_IMAGE_SUFFIXES)]
    if not found:
        raise DatasetError(f"there is no image at {tree.address!r}")
    return found


def answers_in(
    deployed: Deployed, tree: Tree, files: list[TreeFile], batch_size: int, device: torch.device
) -> Iterator[tuple[str, Answer]]:
    """Yield path and answer of each file of a tree, as `answers` does; paths are as listed."""

    def read(number: Path) -> bytes:
        file = files[int(number.name)]
        if file.fault:
            raise OSError(0, file.fault)
        return tree.read(file.path)

    # By their numbers: a path of a bucket need not be one of a file system (`a//b.jpg`).
    numbers = [Path(str(number)) for number in range(len(files))]
    # Over a network threads wait for answers, not for the decoder.
    is_remote = "://" in tree.address
    mean_bytes = inf if is_remote else float(np.mean([file.bytes for file in files]))
    found = answers(deployed, numbers, batch_size, device, read=read, mean_bytes=mean_bytes)
    yield from zip((file.path for file in files), found, strict=True)


def _images_below(folder: Path, loops: list[Path]) -> Iterator[Path]:
    for root, below, names in walk(folder, loops):
        below[:] = [name for name in below if not is_litter(name)]
        for path in (Path(root, name) for name in names if not is_litter(name)):
            if path.name.lower().endswith(_IMAGE_SUFFIXES) or not path.exists() or _begins(path):
                yield path


def _begins(path: Path) -> bool:
    """Say whether a file of another name begins as an image does; only ordinary files are read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return begins_as_image(file.read(_HEAD_BYTES))
    except OSError:
        return False  # not named like an image, and not to be read: none of ours


@dataclass(frozen=True)
class Framing:
    """How an image becomes the square that the network takes."""

    side: int
    """Of the square, pixels."""
    short_side: int | None = None
    """Resized so that the shorter side has so many pixels, the middle cut out; None: squeezed."""
    border: int = 0
    """Pixels that are cut off all around first."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: Says what does not fit.
        """
        if self.side < 1 or self.border < 0:
            raise ConfigError(f"crop {self.side} and border {self.border} must not be negative")
        if self.short_side is not None and self.short_side < self.side:
            raise ConfigError(
                f"short side {self.short_side} is less than the crop {self.side} that is cut out "
                "of it; give a larger one or a smaller --crop"
            )

    def apply(self, out: Pixels, pixels: Pixels) -> None:
        """Write RGB pixels (H, W, 3) into a square (side, side, 3).

        Raises:
            UndecodableError: If nothing is left inside the border.
        """
        height, width = (size - 2 * self.border for size in pixels.shape[:2])
        if min(height, width) < 1:
            raise UndecodableError(f"has no pixel inside a border of {self.border}")
        inner = pixels[self.border : self.border + height, self.border : self.border + width]
        if self.short_side is None:
            resize_into(out, inner)
            return
        scale = self.short_side / min(height, width)
        tall, wide = (max(self.short_side, round(size * scale)) for size in (height, width))
        resized = np.empty((tall, wide, 3), np.uint8)
        resize_into(resized, inner)
        top, left = (tall - self.side) // 2, (wide - self.side) // 2
        out[:] = resized[top : top + self.side, left : left + self.side]


def answers(
    deployed: Deployed,
    files: list[Path],
    batch_size: int,
    device: torch.device,
    *,
    read: Callable[[Path], bytes] = Path.read_bytes,
    framing: Framing | None = None,
    mean_bytes: float | None = None,
    forward: Forward | None = None,
) -> Iterator[Answer]:
    """Yield an answer per file, in order; a file that cannot be read gets a fault and no answer.

    Args:
        deployed: On the device.
        files: To look at.
        batch_size: Images per forward pass.
        device: Where the network is.
        read: Returns the encoded image of a file.
        framing: How an image becomes a square; None: as in the model's own evaluation.
        mean_bytes: Size of an encoded image; None: the files are asked.
        forward: `deployed.probabilities` as an earlier call has recorded it; None: it is new here.
    """
    frame = framing or Framing(deployed.crop)
    forward = forward or replayed(deployed.probabilities, device)
    if mean_bytes is None:
        sizes = [file.stat().st_size for file in files if file.is_file()]
        mean_bytes = float(np.mean(sizes)) if sizes else 0.0
    threads = useful_threads(mean_bytes)
    batches = iter(
        [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    )
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[list[Path], NDArray[np.uint8], list[Future[str | None]]]] = deque()

        def begin(some: list[Path]) -> None:
            squares = np.empty((len(some), frame.side, frame.side, 3), np.uint8)
            reading = [
                pool.submit(_read_into, squares[i], path, read, frame, deployed.decode)
                for i, path in enumerate(some)
            ]
            waiting.append((some, squares, reading))

        for some in islice(batches, _BATCHES_AHEAD):
            begin(some)
        while waiting:
            paths, squares, reading = waiting.popleft()
            faults = [future.result() for future in reading]
            for some in islice(batches, 1):
                begin(some)
            good = np.array([fault is None for fault in faults])
            found = iter(_probabilities(forward, squares[good], device))
            for path, fault in zip(paths, faults, strict=True):
                yield Answer(path, None if fault else next(found), fault)


def _read_into(
    out: Pixels,
    path: Path,
    read: Callable[[Path], bytes],
    framing: Framing,
    settings: DecodeSettings,
) -> str | None:
    try:
        data = read(path)
        header = read_header(data)
        if header.height * header.width > _MOST_PIXELS:
            return f"{header.width}x{header.height} pixels are more than {_MOST_PIXELS:,}"
        framing.apply(out, decode_rgb(data, settings))
    except UndecodableError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except StorageError as error:  # it is gone, or another than was listed
        return f"cannot be read: {error}"
    return None


def _probabilities(
    forward: Forward, squares: NDArray[np.uint8], device: torch.device
) -> NDArray[np.float32]:
    if not len(squares):
        return np.empty((0, 0), np.float32)
    with torch.inference_mode():
        found = forward(to_network(squares, device))
    result: NDArray[np.float32] = found.float().cpu().numpy()
    return result


def as_row(answer: Answer, meta: TunedMeta, top: int) -> dict[str, str]:
    """Return an answer as a row of text for people and for CSV.

    Args:
        answer: To show.
        meta: Of the checkpoint.
        top: Guesses to name; with several labels per image all that are predicted are named.
    """
    row = {"path": str(answer.path), "predicted": "", "probability": "", "sure": ""}
    row["fault"] = answer.fault or ""
    row |= {f"{name}_{k}": "" for k in range(2, top + 1) for name in ("predicted", "probability")}
    classes, calibration = meta.classes, meta.calibration
    p = answer.probabilities
    if p is not None and isinstance(calibration, MultiLabelCalibration):
        chosen = np.flatnonzero(p >= np.array(calibration.thresholds))
        row["predicted"] = "|".join(classes[c] for c in chosen)
        row["probability"] = "|".join(f"{p[c]:.4f}" for c in chosen)
    elif p is not None and isinstance(calibration, Calibration):
        order = np.argsort(-p, kind="stable")[: max(top, 1)]
        row["predicted"], row["probability"] = classes[order[0]], f"{p[order[0]]:.4f}"
        lowest = calibration.abstain_below
        sure = "yes" if lowest is not None and p[order[0]] >= lowest else "no"
        row["sure"] = sure if calibration.calibrated else NOT_CALIBRATED
        for place, c in enumerate(order[1:], start=2):
            row[f"predicted_{place}"], row[f"probability_{place}"] = classes[c], f"{p[c]:.4f}"
    return row


def write_rows(rows: Iterable[dict[str, str]], file: TextIO) -> Counter[str]:
    """Write rows as CSV, each as it comes.

    Args:
        rows: Of `as_row`.
        file: Opened with newline="".

    Returns:
        How many of each kind (`kinds_of`) there were, and `rows` in all.
    """
    counts: Counter[str] = Counter()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        counts.update(["rows", *kinds_of(row)])
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return counts


def kinds_of(row: dict[str, str]) -> list[str]:
    """Return which of `fault`, `unsure` and `uncalibrated` a row is."""
    found = {
        "fault": bool(row["fault"]),
        "unsure": row["sure"] == "no",
        "uncalibrated": row["sure"] == NOT_CALIBRATED,
    }
    return [kind for kind, is_so in found.items() if is_so]
