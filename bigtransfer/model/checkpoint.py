"""Weights on disk: safetensors, `meta.json` and `MANIFEST.json`, verified before every use.

Neither safetensors nor torch notice a flipped byte in a tensor, so the SHA-256 of every file is
checked; nothing is ever unpickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigtransfer.artifacts.weights import TunedMeta, UpstreamMeta, WeightsMeta, parse_meta
from bigtransfer.errors import CheckpointError
from bigtransfer.model.resnet import ResNetV2, create_model
from bigtransfer.storage import as_json, new_folder, read_json, verify_folder

_WEIGHTS = "weights.safetensors"
_TRAINED_ON = "trained_on.npy"
_CURVE = "curve.json"
_OS_ERROR = re.compile(r"os error (\d+)")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write contiguous tensors of the CPU as a safetensors file.

    Raises:
        OSError: With the system's own number, which safetensors hides in its message.
    """
    try:
        save_file(dict(tensors), path)
        # safetensors lets nobody else read; whoever may read the folder may read the weights.
        path.chmod(path.parent.stat().st_mode & 0o666)
    except SafetensorError as error:
        if number := _OS_ERROR.search(str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def read_tensors(folder: Path, group: str) -> dict[str, Tensor]:
    """Return one group of tensors of a folder that was verified.

    Raises:
        CheckpointError: If the file is not readable as safetensors.
    """
    path = folder / f"{group}.safetensors"
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}; make it anew") from error


def write_checkpoint(
    folder: Path,
    model: ResNetV2,
    meta: UpstreamMeta | TunedMeta,
    weights: Mapping[str, Tensor] | None = None,
    trained_on: NDArray[np.uint64] | None = None,
    curve: Sequence[Mapping[str, object]] = (),
) -> None:
    """Write a network's weights with what is needed to build and use it again.

    Args:
        folder: Written beside and renamed when complete.
        model: Its parameters are stored as they are (kernels unstandardised).
        meta: What it says of itself.
        weights: Its whole tensors, where they are split over processes; None: as they are.
        trained_on: 64 bits of the digest of each training image, to know them again; None: not
            noted.
        curve: Of its training: `step` and what was noted for it.
    """
    tensors = model.state_dict() if weights is None else weights
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with new_folder(folder) as partial:
        save_tensors(plain, partial / _WEIGHTS)
        meta.write(partial)
        if trained_on is not None:
            np.save(partial / _TRAINED_ON, np.sort(trained_on), allow_pickle=False)
        if curve:
            (partial / _CURVE).write_text(as_json(list(curve)), "utf-8")


def read_meta(folder: Path) -> UpstreamMeta | TunedMeta:
    """Verify a checkpoint folder and return its `meta.json`, with the folder's digest.

    Raises:
        CheckpointError: If it is incomplete, damaged, or of a newer version.
    """
    digest = verify_folder(folder, CheckpointError)
    path = folder / WeightsMeta.FILE
    return parse_meta(read_json(path), str(path)).model_copy(update={"digest": digest})


def read_tuned_meta(folder: Path) -> TunedMeta:
    """Return the same of a network that was fine-tuned to a task.

    Raises:
        CheckpointError: As `read_meta`; or if it is an upstream checkpoint.
    """
    meta = read_meta(folder)
    if not isinstance(meta, TunedMeta):
        raise CheckpointError(
            f"{str(folder)!r} is not fine-tuned to a task, or by an earlier version; give a folder "
            "that `finetune` wrote, e.g. artifacts/finetune/<task>/upstream-5-0, or "
            "models:/<name>@champion"
        )
    return meta


def load_checkpoint(
    folder: Path, *, classes: Sequence[str] | None = None
) -> tuple[ResNetV2, UpstreamMeta | TunedMeta]:
    """Build the network of a checkpoint.

    Args:
        folder: Written by `write_checkpoint`.
        classes: Class names of a new task; the head is then replaced by a zero head for them.

    Returns:
        The network, and what the checkpoint says of itself.

    Raises:
        CheckpointError: If the folder is damaged or its tensors do not fit the architecture.
    """
    meta = read_meta(folder)
    return _built(folder, meta, classes), meta


def load_tuned(folder: Path) -> tuple[ResNetV2, TunedMeta]:
    """Build the network of a checkpoint that was fine-tuned to a task.

    Raises:
        CheckpointError: As `load_checkpoint`; or if it is an upstream checkpoint.
    """
    meta = read_tuned_meta(folder)
    return _built(folder, meta, None), meta


def read_trained_on(folder: Path) -> NDArray[np.uint64] | None:
    """Return 64 bits of the digest of each image that a network was trained on, if noted."""
    path = folder / _TRAINED_ON
    if not path.is_file():
        return None
    digests: NDArray[np.uint64] = np.load(path, allow_pickle=False)
    return digests


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Return the curve of a network's training: `step` and metrics; empty if it is not noted."""
    path = folder / _CURVE
    return list(read_json(path)) if path.is_file() else []


def _built(folder: Path, meta: WeightsMeta, classes: Sequence[str] | None) -> ResNetV2:
    wanted = meta.classes if classes is None else classes
    model = create_model(meta.architecture, len(wanted), meta.root, norm=meta.norm)
    tensors = read_tensors(folder, _WEIGHTS.removesuffix(".safetensors"))
    if classes is not None:
        tensors = {**tensors, "head.weight": model.head.weight, "head.bias": model.head.bias}
    _load(model, tensors, folder, meta.architecture)
    return model


def _load(model: ResNetV2, tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
    own = model.state_dict()
    for key in sorted(own.keys() ^ tensors.keys()):
        where = "lacks" if key in own else "has an unexpected"
        raise CheckpointError(f"checkpoint {str(folder)!r} {where} tensor {key!r} for {name}")
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise CheckpointError(
                f"checkpoint {str(folder)!r}: tensor {key!r} is {tuple(tensor.shape)}, {name} "
                f"needs {tuple(own[key].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"checkpoint {str(folder)!r}: tensor {key!r} holds NaN or Inf")
    model.load_state_dict(dict(tensors))
