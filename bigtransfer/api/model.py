"""A fine-tuned model, as a notebook uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bigtransfer.api.models import checkpoint_at, run_of
from bigtransfer.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from torch import Tensor

    from bigtransfer.api.evaluation import Evaluation
    from bigtransfer.artifacts.report import TaskReport
    from bigtransfer.artifacts.weights import TunedMeta
    from bigtransfer.serve.deployed import Deployed
    from bigtransfer.serve.export import Parity

_BATCH = 32
_Picture = str | PathLike[str] | NDArray[np.uint8] | bytes
Pictures = _Picture | Iterable[_Picture]
"""A file or a folder, an image (H, W, 3) or several (B, H, W, 3) of uint8 RGB, or what a file holds
(bytes of a JPEG, PNG, …); or many of one kind."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    name: str
    """Path of the file, or the number of the array or of the encoded image."""
    label: str | None
    """The most probable class; None: it could not be read, or no class of several is named."""
    probability: float | None
    """Of that class, calibrated on the validation split."""
    sure: bool | None
    """Whether it is above the threshold for the accuracy that was asked for; None: not known."""
    labels: tuple[str, ...]
    """Every class that is named, where an image may have several; else the one."""
    probabilities: dict[str, float]
    """Class -> probability, the most probable first."""
    fault: str | None = None
    """Why the file could not be read."""


class Model:
    """A fine-tuned network with its classes, calibration and report.

    Attributes:
        folder: Its checkpoint.
        meta: What the checkpoint says of itself.
    """

    def __init__(
        self, folder: str | PathLike[str], device: str = "auto", precision: str = "auto"
    ) -> None:
        """Open a checkpoint folder; the network is built at the first use.

        Args:
            folder: Written by `finetune`.
            device: `auto`, `cpu` or `cuda`.
            precision: Of the weights: `float32`, `bfloat16`, or `auto`: bfloat16 where the
                processor multiplies it and validation images were answered as well.

        Raises:
            CheckpointError: If it is none, damaged, or an upstream checkpoint.
        """
        from bigtransfer.model.checkpoint import read_tuned_meta

        self.folder, self._device, self._precision = Path(folder), device, precision
        self.meta: TunedMeta = read_tuned_meta(self.folder)
        self._deployed: Deployed | None = None
        self._forward: Callable[[Tensor], Tensor] | None = None

    def __repr__(self) -> str:
        meta = self.meta
        return (
            f"Model({str(self.folder)!r}: {meta.architecture} at {meta.crop} px, "
            f"{len(meta.classes)} classes)"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the probabilities."""
        return self.meta.classes

    @property
    def report(self) -> Report | None:
        """Return the report of the run that the model is from; None where it stands alone."""
        run = run_of(self.folder)
        return None if run is None else Report(run)

    def predict(self, images: Pictures) -> list[Prediction]:
        """Say what images show.

        Args:
            images: Files and folders; or arrays of uint8, RGB, of any size: one (H, W, 3) or
                several (B, H, W, 3); or bytes, as files hold them.

        Returns:
            One for each image, in order; a file that cannot be read says so in `fault`.

        Raises:
            DatasetError: If a place does not exist or an array is no image.
            ConfigError: If the precision that was asked for is unknown.
        """
        from bigtransfer.serve.prediction import answers, image_files

        deployed, device = self._on_device()
        if arrays := _as_arrays(images):
            rows = [self._of_array(deployed, array) for array in arrays]
            return [self._said(str(n), own, None) for n, own in enumerate(rows)]
        if encoded := _as_encoded(images):
            numbered = [Path(str(n)) for n in range(len(encoded))]
            given = dict(zip(numbered, encoded, strict=True))
            each = sum(map(len, encoded)) / len(encoded)
            found = answers(
                deployed, numbered, _BATCH, device, read=given.__getitem__, mean_bytes=each,
                forward=self._forward,
            )  # fmt: skip
            return [self._said(str(one.path), one.probabilities, one.fault) for one in found]
        files = image_files([Path(place) for place in _as_paths(images)])
        found = answers(deployed, files, _BATCH, device, forward=self._forward)
        return [self._said(str(one.path), one.probabilities, one.fault) for one in found]

    def evaluate(
        self, images: str | PathLike[str], *, class_map: str | PathLike[str] | None = None
    ) -> Evaluation:
        """Count how often the model is right on labelled images from elsewhere.

        Args:
            images: A folder per class, or another layout that `check` reads; of splits, test.
            class_map: YAML or JSON, `name: class` or `name: [class, …]`; None: names are classes.

        Raises:
            BigTransferError: If the map or the images cannot be used.
        """
        from bigtransfer.api.evaluation import evaluate_on

        mapping = None if class_map is None else Path(class_map)
        return evaluate_on(self.folder, Path(images), device=self._device, class_map=mapping)

    def export(self, path: str | PathLike[str]) -> Parity:
        """Write the model as one file, preprocessing inside, compared with it before.

        Args:
            path: `*.onnx` for any runtime, `*.pt2` for a program of torch.export.

        Returns:
            How well the file agrees with the network.

        Raises:
            ConfigError: If the name ends otherwise.
            BigTransferError: If the file would answer otherwise.
        """
        from bigtransfer.serve.export import FORMATS, export

        out = Path(path)
        formats = {suffix: name for name, suffix in FORMATS.items()}
        if out.suffix not in formats:
            raise ConfigError(f"{str(out)!r} must be named *{' or *'.join(formats)}")
        return export(self.folder, out, formats[out.suffix], None)

    def _on_device(self) -> tuple[Deployed, Any]:
        from bigtransfer.model.cuda_graph import replayed
        from bigtransfer.model.processor import device_named
        from bigtransfer.serve.deployed import load_deployed
        from bigtransfer.serve.precision import narrows

        device = device_named(self._device)
        if self._deployed is None:
            self._deployed = load_deployed(self.folder)[0].to(device)
            if narrows(self._precision, self.meta, device):
                self._deployed.narrow()
            self._forward = replayed(self._deployed.probabilities, device)
        return self._deployed, device

    def _of_array(self, deployed: Deployed, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        from bigtransfer.data.transforms import resize_into
        from bigtransfer.model.inference import to_network

        square = np.empty((1, deployed.crop, deployed.crop, 3), np.uint8)
        resize_into(square[0], np.array(image, order="C"))
        device = next(deployed.parameters()).device
        with torch.inference_mode():
            found = deployed.probabilities(to_network(square, device))
        result: NDArray[np.float32] = found.float().cpu().numpy()[0]
        return result

    def _said(
        self, name: str, probabilities: NDArray[np.float32] | None, fault: str | None
    ) -> Prediction:
        from bigtransfer.artifacts.calibration import Calibration

        if probabilities is None:
            return Prediction(name, None, None, None, (), {}, fault)
        order = np.argsort(-probabilities, kind="stable").tolist()
        ranked = {self.classes[c]: float(probabilities[c]) for c in order}
        own = self.meta.calibration
        if isinstance(own, Calibration):
            label, probability = next(iter(ranked.items()))
            lowest = own.abstain_below
            sure = lowest is not None and probability >= lowest if own.calibrated else None
            return Prediction(name, label, probability, sure, (label,), ranked)
        named = [c for c in order if probabilities[c] >= own.thresholds[c]]
        labels = tuple(self.classes[c] for c in named)
        first = labels[0] if labels else None
        return Prediction(name, first, ranked[first] if first else None, None, labels, ranked)


class Report:
    """What the evaluation of a run has found; a notebook shows its page.

    Attributes:
        folder: Of the run.
        page: The page that a browser shows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.page = folder / "page" / "index.html"

    @property
    def facts(self) -> TaskReport:
        """Return all of it, typed."""
        from bigtransfer.artifacts.report import TaskReport

        return TaskReport.read(self.folder / "report")

    @property
    def test_score(self) -> float:
        """Return the median test score over the seeds: top-1, or mAP where labels are several."""
        return self.facts.headline.median

    def __repr__(self) -> str:
        return f"Report({str(self.page)!r})"

    def _repr_html_(self) -> str:
        from html import escape

        page = escape(self.page.read_text("utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:40rem;border:0"></iframe>'


def load(place: str | PathLike[str], device: str = "auto", precision: str = "auto") -> Model:
    """Open a model.

    Args:
        place: The folder of a run, e.g. `runs/photos`; a fine-tuned checkpoint; or a registered
            model, e.g. `models:/bigtransfer-digits@champion`.
        device: `auto`, `cpu` or `cuda`.
        precision: As `Model`.

    Raises:
        CheckpointError: If there is none.
        TrackingError: If the registry does not know it.
    """
    return Model(checkpoint_at(str(place), within_run=True), device, precision)


def _as_arrays(images: Any) -> list[NDArray[np.uint8]]:
    """Return the images among what was given; none if it is files.

    Raises:
        DatasetError: If an array is no image.
    """
    if isinstance(images, np.ndarray):
        given: Sequence[Any] = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, str | PathLike | bytes):
        return []
    else:
        given = list(images)
        if not any(isinstance(one, np.ndarray) for one in given):
            return []
    for one in given:
        shape: tuple[int, ...] = getattr(one, "shape", ())
        if getattr(one, "dtype", None) != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise DatasetError(
                f"an image must be an array (height, width, 3) of uint8, RGB, 0 to 255; got "
                f"{getattr(one, 'dtype', type(one).__name__)} {shape or ''}".rstrip()
            )
        if 0 in shape:
            raise DatasetError(f"an image of {shape[1]}x{shape[0]} pixels is empty")
    return list(given)


def _as_encoded(images: Any) -> list[bytes]:
    """Return the encoded images among what was given; none if it is something else.

    Raises:
        DatasetError: If bytes stand among other things.
    """
    if isinstance(images, bytes):
        return [images]
    if isinstance(images, str | PathLike) or not any(isinstance(one, bytes) for one in images):
        return []
    if not all(isinstance(one, bytes) for one in images):
        raise DatasetError("give files, arrays or bytes; not several of these kinds at once")
    return list(images)


def _as_paths(images: Any) -> list[Any]:
    return [images] if isinstance(images, str | PathLike) else list(images)
