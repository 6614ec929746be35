"""A checkpoint as one file for another runtime, compared with the network before it is written.

The file takes uint8 images (B, H, W, 3) of any size and returns probabilities: resizing and
normalisation are part of it, so nobody has to repeat them.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer.artifacts.calibration import Calibration
from bigtransfer.artifacts.weights import TunedMeta
from bigtransfer.data.transforms import resize_into
from bigtransfer.errors import BigTransferError
from bigtransfer.extras import require
from bigtransfer.metrics.calibration import calibrated
from bigtransfer.metrics.multilabel import sigmoid
from bigtransfer.model.checkpoint import load_tuned
from bigtransfer.model.inference import to_network
from bigtransfer.serve.deployed import Deployed, facts_of, load_deployed
from bigtransfer.storage import new_file

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
INPUT, OUTPUT = "images", "probabilities"
_PARITY_IMAGES = 64
_CLOSE = 0.01
"""Resizing in uint8 rounds its weights too: now and then a pixel differs by one level of 256."""
_LONGEST_SIDE = 16_384
_OPSET = 18
"""The first with antialias in its Resize."""
Images = list[NDArray[np.uint8]]
Answering = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""One image (1, H, W, 3) to probabilities (1, classes)."""


@dataclass(frozen=True)
class Parity:
    """How far the exported file agrees with the network as it is evaluated."""

    images: int
    same_top1: int
    largest_difference: float
    """Of any probability."""

    @property
    def holds(self) -> bool:
        """Say whether the file may be used in the network's place."""
        return self.same_top1 == self.images and self.largest_difference <= _CLOSE


def export(checkpoint: Path, output: Path, kind: str, images: Images | None = None) -> Parity:
    """Write a checkpoint as an ONNX file, or as a program of PyTorch's (`torch.export`).

    Args:
        checkpoint: Fine-tuned.
        output: File to write.
        kind: `onnx` or `torch`.
        images: RGB (H, W, 3) to compare on; None: 64 drawn ones of many sizes.

    Returns:
        What the comparison found.

    Raises:
        CheckpointError: If it is damaged or not fine-tuned.
        ConfigError: If the packages for ONNX are not installed.
        BigTransferError: If the exported program answers otherwise; then nothing is written.
    """
    deployed, meta = load_deployed(checkpoint)
    images = drawn_images() if images is None else images
    with new_file(output) as partial:
        write, answering = _WAYS[kind]
        write(deployed, meta, partial)
        parity = compare(checkpoint, answering(partial), images)
        if not parity.holds:
            raise BigTransferError(
                f"the exported {kind} program answers otherwise than the network: "
                f"{parity.same_top1} of {parity.images} images have the same top-1, the largest "
                f"difference of a probability is {parity.largest_difference:.2g}; nothing was "
                "written"
            )
    return parity


def compare(checkpoint: Path, answering: Answering, images: Images) -> Parity:
    """Compare a program with the network as evaluation runs it: unfolded, on resized squares."""
    network, meta = load_tuned(checkpoint)
    network.eval()
    squares = np.empty((len(images), meta.crop, meta.crop, 3), np.uint8)
    for square, image in zip(squares, images, strict=True):
        resize_into(square, image)
    with torch.inference_mode():
        logits = network(to_network(squares)).numpy()
    if isinstance(meta.calibration, Calibration):
        wanted = calibrated(logits, meta.calibration.temperature)
    else:
        wanted = sigmoid(logits)
    found = np.concatenate([answering(image[None]) for image in images])
    same = int((wanted.argmax(axis=1) == found.argmax(axis=1)).sum())
    return Parity(len(images), same, float(np.abs(wanted - found).max()))


def drawn_images() -> Images:
    """Return 64 images of many sizes: smooth colours with something on them."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(_PARITY_IMAGES):
        height, width = (int(side) for side in generator.integers(8, 400, 2))
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = np.empty((height, width, 3), np.uint8)
        resize_into(image, coarse)
        top, left = int(generator.integers(height // 2)), int(generator.integers(width // 2))
        part = image[top : top + height // 3, left : left + width // 3]
        part[:] = generator.integers(0, 256, part.shape, dtype=np.uint8)
        images.append(image)
    return images


def _write_torch(deployed: Deployed, meta: TunedMeta, path: Path) -> None:
    program = _program(deployed)
    facts = {"meta.json": json.dumps(facts_of(meta))}
    buffer = io.BytesIO()  # a path must end in .pt2, and ours is a partial file yet
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a view of a tensor is saved whole
        torch.export.save(program, buffer, extra_files=facts)
    path.write_bytes(buffer.getvalue())


def _program(deployed: Deployed) -> torch.export.ExportedProgram:
    side = torch.export.Dim.DYNAMIC(min=2, max=_LONGEST_SIDE)
    batch = torch.export.Dim.DYNAMIC(min=1)
    example = torch.zeros((2, 33, 47, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations
        return torch.export.export(
            deployed, (example,), dynamic_shapes=({0: batch, 1: side, 2: side},)
        )


def _run_torch(path: Path) -> Answering:
    program = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = program(torch.from_numpy(images)).numpy()
        return result

    return answer


def _write_onnx(deployed: Deployed, meta: TunedMeta, path: Path) -> None:
    _require_onnx()
    import onnx

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                _program(deployed),
                dynamo=True,
                opset_version=_OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert exported is not None, "dynamo=True returns a program"
    model = exported.model_proto
    _name_axes(model)
    for key, value in facts_of(meta).items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))


def _name_axes(model: Any) -> None:
    """Call the axes of input and output what they are; the exporter numbers them (`s34`)."""
    names: dict[str, str] = {}
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    for dimension, name in zip(dimensions, _AXES, strict=False):
        if dimension.dim_param:
            names[dimension.dim_param] = name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]


def _run_onnx(path: Path) -> Answering:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
        return result

    return answer


_AXES = ("batch", "height", "width")
_WAYS = {"onnx": (_write_onnx, _run_onnx), "torch": (_write_torch, _run_torch)}


def _require_onnx() -> None:
    for module in ("onnx", "onnxruntime", "onnxscript"):
        require(module, "--format onnx", or_else="or choose --format torch")
