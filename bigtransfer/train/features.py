"""What a frozen network makes of images, computed once: pooled features, kept on the disk.

Kept by the digest of the weights, of an image's bytes and how they become pixels, by crop and by
precision: whoever mends a label, adds images or asks for another seed pays for what is new alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.data.batches import Squares
from bigtransfer.data.decoding_workers import decoding_workers
from bigtransfer.data.shards import Shards, digest_bits
from bigtransfer.model.checkpoint import load_checkpoint
from bigtransfer.model.inference import to_network
from bigtransfer.model.processor import multiplies_bfloat16
from bigtransfer.model.resnet import ResNetV2
from bigtransfer.progress import progress
from bigtransfer.storage import new_file, sha256_json
from bigtransfer.train.code import code_version
from bigtransfer.train.devices import Device
from bigtransfer.train.interrupts import Interrupts

PRECISIONS = ("float32", "bfloat16")
_BATCH, _GPU_BATCH = 16, 64
"""Images per forward pass; on a CPU more of them leave the cache and are slower."""
_PART = 512
"""Images whose features are written at a time: so much work an interruption may cost."""


@dataclass(frozen=True)
class FeatureSpec:
    """What features depend on, beside the images."""

    pretrained: Path
    """Upstream checkpoint."""
    digest: str
    """Of that checkpoint."""
    crop: int
    """Side of the square that an image is resized to, pixels."""
    precision: str
    """`float32` or `bfloat16`."""


class FeatureStore:
    """The features of a dataset's images, in a folder that belongs to it."""

    def __init__(self, folder: Path, spec: FeatureSpec, shards: Shards, device: Device) -> None:
        """Open what is there.

        Args:
            folder: For all features of this dataset.
            spec: What they depend on.
            shards: Of the dataset.
            device: To compute on what is lacking.
        """
        self._spec, self._shards, self._device = spec, shards, device
        self.precision = spec.precision
        about = {
            "weights": spec.digest,
            "crop": spec.crop,
            "precision": spec.precision,
            "decode": shards.summary.decode.model_dump(),
            "code": code_version(__name__),
        }
        self._folder = folder / sha256_json(about)[:16]
        self._known: dict[tuple[int, bool], NDArray[np.float32]] = {}
        for path in sorted(self._folder.glob("*.npz")):
            self._read(path)

    def lacking(self, rows: NDArray[np.int64], *, mirrored: bool) -> int:
        """Return how many of some images' features are not there yet."""
        return len(self._lacking(rows, mirrored))

    def compute(
        self,
        rows: NDArray[np.int64],
        interrupts: Interrupts,
        *,
        mirrored: bool,
        label: str,
    ) -> None:
        """Compute what is lacking of some images' features, and write it part by part.

        Args:
            rows: Index rows of the images.
            interrupts: Whether to end; what is finished is kept.
            mirrored: Whether their mirror images are wanted as well.
            label: For the progress bar.

        Raises:
            KeyboardInterrupt, InfrastructureError: After Ctrl-C or SIGTERM.
            DatasetError: If an image does not decode; names it.
        """
        lacking = self._lacking(rows, mirrored)
        if not len(lacking):
            return
        network = self._network()
        done = 0
        with progress(label, len(lacking), unit="image") as advance:
            for first in range(0, len(lacking), _PART):
                part = lacking[first : first + _PART]
                found: list[NDArray[np.float32]] = []
                for features in self._features(network, part, mirrored):
                    if interrupts.wanted:
                        interrupts.end(done)
                    found.append(features)
                    done += len(features)
                    advance(done, "features")
                self._keep(part, np.concatenate(found), mirrored)

    def of(self, rows: NDArray[np.int64], *, mirrored: bool = False) -> NDArray[np.float32]:
        """Return the features (N, F) of images, or of their mirror images, that are there."""
        keys = self._keys(rows)
        return np.stack([self._known[key, mirrored] for key in keys])

    def _lacking(self, rows: NDArray[np.int64], mirrored: bool) -> NDArray[np.int64]:
        """Return the rows, each once, of whose images something is lacking."""
        sides = (False, True) if mirrored else (False,)
        unique: dict[int, int] = {}
        for key, row in zip(self._keys(rows), rows.tolist(), strict=True):
            unique.setdefault(key, row)
        return np.array(
            [
                row
                for key, row in unique.items()
                if any((key, side) not in self._known for side in sides)
            ],
            np.int64,
        )

    def _keys(self, rows: NDArray[np.int64]) -> list[int]:
        """Return 64 bits of the digest of each image's packed bytes."""
        return [digest_bits(text) for text in self._shards.index["sha256"].take(rows).to_pylist()]

    def _network(self) -> ResNetV2:
        network, _ = load_checkpoint(self._spec.pretrained)
        network = network.fold().to(self._device.torch)
        return network.bfloat16() if self._spec.precision == "bfloat16" else network

    def _features(
        self, network: ResNetV2, rows: NDArray[np.int64], mirrored: bool
    ) -> Iterator[NDArray[np.float32]]:
        """Yield (B, 1 or 2, F) in order; the next batch is decoded while the network is at work."""
        squares = Squares(
            self._shards,
            rows,
            self._spec.crop,
            keep=False,
            workers=decoding_workers(self._device.is_cuda),
        )
        kind = next(network.parameters()).dtype
        size = _GPU_BATCH if self._device.is_cuda else _BATCH
        starts = range(0, len(rows), size)
        with ThreadPoolExecutor(1) as ahead, torch.inference_mode():

            def begin(start: int) -> NDArray[np.uint8]:
                return squares.get(np.arange(start, min(start + size, len(rows))))

            waiting = ahead.submit(begin, 0)
            for start in starts:
                images = waiting.result()
                if start + size < len(rows):
                    waiting = ahead.submit(begin, start + size)
                x = to_network(images, self._device.torch).to(kind)
                sides = [network.features(x)]
                if mirrored:
                    sides.append(network.features(x.flip(3)))
                yield torch.stack(sides, 1).float().cpu().numpy()
        squares.pool.shutdown()

    def _keep(self, rows: NDArray[np.int64], features: NDArray[np.float32], mirrored: bool) -> None:
        keys = np.array(self._keys(rows), np.uint64)
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{sha256_json([keys.tolist(), mirrored])[:16]}.npz"
        with new_file(self._folder / name) as partial, partial.open("wb") as file:
            np.savez(file, keys=keys, features=features)
        self._take(keys, features)

    def _read(self, path: Path) -> None:
        """Take over what a file holds; one that is damaged is computed again."""
        try:
            with np.load(path, allow_pickle=False) as held:
                self._take(held["keys"], held["features"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            print(f"{str(path)!r} cannot be read ({error}): its features are computed again")

    def _take(self, keys: NDArray[np.uint64], features: NDArray[np.float32]) -> None:
        if features.ndim != 3 or len(keys) != len(features):
            raise ValueError("of another shape")
        for side in range(features.shape[1]):
            for key, own in zip(keys.tolist(), features[:, side], strict=True):
                self._known[key, bool(side)] = own


def best_precision(wanted: str, device: Device) -> str:
    """Return the precision that `auto` means: bfloat16 where the processor multiplies it."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if multiplies_bfloat16(device.torch) else "float32"
