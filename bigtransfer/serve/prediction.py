"""Answers for image files: read and decoded ahead in threads, while the network computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.data.decoding import (
    SUFFIXES,
    UndecodableError,
    decode_rgb,
    read_header,
    useful_threads,
)
from bigtransfer.data.transforms import resize_into
from bigtransfer.errors import DatasetError
from bigtransfer.evaluate.prediction import to_network
from bigtransfer.serve.deployed import Deployed

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

    Raises:
        DatasetError: If a place does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            below = (Path(root, name) for root, _, names in os.walk(place) for name in names)
            found = sorted(path for path in below if path.name.lower().endswith(_IMAGE_SUFFIXES))
            if not found:
                raise DatasetError(f"folder {str(place)!r} holds no image")
            files += found
        elif place.exists():
            files.append(place)
        else:
            raise DatasetError(f"{str(place)!r} does not exist; give image files or folders")
    return files


def answers(
    deployed: Deployed, files: list[Path], batch_size: int, device: torch.device
) -> Iterator[Answer]:
    """Yield an answer per file, in order; a file that cannot be read gets a fault and no answer.

    Args:
        deployed: On the device.
        files: To look at.
        batch_size: Images per forward pass.
        device: Where the network is.
    """
    sizes = [file.stat().st_size for file in files if file.is_file()]
    threads = useful_threads(float(np.mean(sizes)) if sizes else 0.0)
    batches = iter(
        [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    )
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[list[Path], NDArray[np.uint8], list[Future[str | None]]]] = deque()

        def begin(some: list[Path]) -> None:
            squares = np.empty((len(some), deployed.crop, deployed.crop, 3), np.uint8)
            reading = [pool.submit(_read_into, squares[i], path) for i, path in enumerate(some)]
            waiting.append((some, squares, reading))

        for some in islice(batches, _BATCHES_AHEAD):
            begin(some)
        while waiting:
            paths, squares, reading = waiting.popleft()
            faults = [future.result() for future in reading]
            for some in islice(batches, 1):
                begin(some)
            good = np.array([fault is None for fault in faults])
            found = iter(_probabilities(deployed, squares[good], device))
            for path, fault in zip(paths, faults, strict=True):
                yield Answer(path, None if fault else next(found), fault)


def _read_into(out: NDArray[np.uint8], path: Path) -> str | None:
    try:
        data = path.read_bytes()
        header = read_header(data)
        if header.height * header.width > _MOST_PIXELS:
            return f"{header.width}x{header.height} pixels are more than {_MOST_PIXELS:,}"
        resize_into(out, decode_rgb(data))
    except UndecodableError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None


def _probabilities(
    deployed: Deployed, squares: NDArray[np.uint8], device: torch.device
) -> NDArray[np.float32]:
    if not len(squares):
        return np.empty((0, 0), np.float32)
    with torch.inference_mode():
        found = deployed.probabilities(to_network(squares, device))
    result: NDArray[np.float32] = found.float().cpu().numpy()
    return result


def as_row(answer: Answer, meta: dict[str, Any], top: int) -> dict[str, str]:
    """Return an answer as a row of text for people and for CSV.

    Args:
        answer: To show.
        meta: Of the checkpoint.
        top: Guesses to name; with several labels per image all that are predicted are named.
    """
    row = {"path": str(answer.path), "predicted": "", "probability": "", "sure": ""}
    row["fault"] = answer.fault or ""
    row |= {f"{name}_{k}": "" for k in range(2, top + 1) for name in ("predicted", "probability")}
    classes, validation = meta["classes"], meta["validation"]
    p = answer.probabilities
    if p is not None and meta["multi_label"]:
        chosen = np.flatnonzero(p >= np.array(validation["thresholds"]))
        row["predicted"] = "|".join(classes[c] for c in chosen)
        row["probability"] = "|".join(f"{p[c]:.4f}" for c in chosen)
    elif p is not None:
        order = np.argsort(-p, kind="stable")[: max(top, 1)]
        row["predicted"], row["probability"] = classes[order[0]], f"{p[order[0]]:.4f}"
        lowest = validation["abstain_below"]
        row["sure"] = "yes" if lowest is not None and p[order[0]] >= lowest else "no"
        for place, c in enumerate(order[1:], start=2):
            row[f"predicted_{place}"], row[f"probability_{place}"] = classes[c], f"{p[c]:.4f}"
    return row
