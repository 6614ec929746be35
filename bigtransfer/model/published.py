"""The published weights: `.npz` files of google-research/big_transfer, read and written.

Arrays are float32 under names such as `resnet/block1/unit01/a/standardized_conv2d/kernel`;
convolution kernels are (H, W, in, out), the head is kept as a 1x1 convolution. In some files the
layer names carry a number (`standardized_conv2d_17`). Nothing is ever unpickled.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigtransfer.errors import CheckpointError
from bigtransfer.model.names import BLOCK_UNITS, parse_architecture
from bigtransfer.model.resnet import ResNetV2, Root, StdConv2d
from bigtransfer.storage import new_file, sha256_file

Arrays = dict[str, NDArray[Any]]
_ROOT = "resnet/root_block/standardized_conv2d/kernel"
_HEAD = "resnet/head/conv2d/kernel"
_NUMBERED = re.compile(r"(standardized_conv2d|group_norm|conv2d)_\d+(?=/)")
_UNIT = re.compile(r"resnet/block(\d)/unit(\d+)/")
_ROOT_WIDTH = 64
_FINGERPRINTS = (
    (b"PK\x03\x04", ""),
    (b"PK\x05\x06", ""),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"<", "a web page, not weights; the download was refused or redirected, fetch it again"),
    (b"\x80", "a pickle, which is never opened because it may run code; convert it to .npz"),
    (b"\x93NUMPY", "a single .npy array; published weights are .npz files"),
    (b"\x89HDF", "an HDF5 file; published weights are .npz files"),
)


@dataclass(frozen=True)
class PublishedFile:
    """What an `.npz` file holds."""

    architecture: str
    num_classes: int | None
    """None: the file has no head."""
    root: Root
    parameters: int
    sha256: str


@dataclass(frozen=True)
class LoadReport:
    """What `load_npz` did."""

    architecture: str
    num_arrays: int
    """Arrays copied into the network."""
    head: str
    """`loaded`, or `zeros` where the class counts differ or the file has none."""
    file_classes: int | None
    sha256: str


def load_npz(model: ResNetV2, path: str | Path) -> LoadReport:
    """Load a published file into a network.

    The head is taken over if its class count is the model's, else it becomes zeros. The network
    is changed only after everything was checked.

    Args:
        model: Of the file's architecture, with Weight Standardization and GroupNorm.
        path: A `.npz` file.

    Returns:
        What was loaded and what became of the head.

    Raises:
        CheckpointError: If it is no such file, is damaged, belongs to another architecture, or
            holds NaN; nothing is loaded then.
    """
    path = Path(path)
    _check_norm(model, f"weights {str(path)!r}")
    arrays = read_npz(path)
    found = describe(arrays, path)
    _check_same_width_and_depth(model, found, path)
    wanted = _names(model)
    head_names = [name for name, key in wanted.items() if key.startswith("head.")]
    takes_head = found.num_classes == model.head.out_features
    if not takes_head:
        arrays = {k: v for k, v in arrays.items() if k not in head_names}
        wanted = {k: v for k, v in wanted.items() if k not in head_names}
    tensors = _tensors(arrays, wanted, model, path)
    with torch.no_grad():
        own = model.state_dict()
        for key, tensor in tensors.items():
            own[key].copy_(tensor)
        if not takes_head:
            model.zero_head()
    return LoadReport(
        found.architecture,
        len(tensors),
        "loaded" if takes_head else "zeros",
        found.num_classes,
        found.sha256,
    )


def save_npz(model: ResNetV2, path: str | Path) -> None:
    """Write a network as a published file; `load_npz` gives it back bit for bit.

    Args:
        model: With Weight Standardization and GroupNorm, not folded.
        path: File to write, beside and renamed.

    Raises:
        CheckpointError: If the layout has no place for this network.
        StorageError: If the file cannot be written.
    """
    _check_norm(model, "a published file")
    own = model.state_dict()
    arrays = {name: _to_array(own[key]) for name, key in _names(model).items()}
    with new_file(Path(path)) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy types the names as flags


def read_npz(path: Path) -> Arrays:
    """Return the arrays of a published file under their names without numbers.

    Raises:
        CheckpointError: One line that says what the file is instead, or where it is damaged.
    """
    _check_kind(path)
    arrays: Arrays = {}
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            for name in file.files:
                plain = _NUMBERED.sub(r"\1", name)
                if plain in arrays:
                    raise CheckpointError(
                        f"weights {str(path)!r}: {name!r} and another array both mean {plain!r}; "
                        "the file mixes two networks, fetch it again"
                    )
                arrays[plain] = file[name]
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"weights {str(path)!r} ({path.stat().st_size:,} bytes) are cut or damaged: "
            f"{_one_line(error)}; fetch the file again"
        ) from error
    return arrays


def describe_npz(path: str | Path) -> PublishedFile:
    """Say what a published file holds, from its arrays alone.

    Raises:
        CheckpointError: If it is no such file.
    """
    path = Path(path)
    return describe(read_npz(path), path)


def describe(arrays: Arrays, path: Path) -> PublishedFile:
    """Say what arrays read from a path hold."""
    if _ROOT not in arrays or not any(map(_UNIT.match, arrays)):
        some = ", ".join(map(repr, sorted(arrays)[:3])) or "nothing"
        raise CheckpointError(
            f"weights {str(path)!r} hold {some}, but not {_ROOT!r}: not a BiT file; published "
            "ones are named BiT-M-R50x1.npz and the like"
        )
    root = arrays[_ROOT]
    if root.ndim != 4 or root.shape[2] != 3:
        raise CheckpointError(
            f"weights {str(path)!r}: {_ROOT!r} is {root.shape}, expected (height, width, 3, out); "
            "the kernels are stored in another order, transpose them to height, width, in, out"
        )
    units: dict[str, int] = {}
    for name in arrays:
        if match := _UNIT.match(name):
            units[match[1]] = max(units.get(match[1], 0), int(match[2]))
    block_units = tuple(units[block] for block in sorted(units))
    depths = [depth for depth, known in BLOCK_UNITS.items() if known == block_units]
    if not depths:
        raise CheckpointError(
            f"weights {str(path)!r} have blocks of {block_units} units, which is none of ours: "
            + ", ".join(f"{depth}: {known}" for depth, known in BLOCK_UNITS.items())
        )
    head = arrays.get(_HEAD)
    return PublishedFile(
        architecture=f"R{depths[0]}x{root.shape[3] / _ROOT_WIDTH:g}",
        num_classes=None if head is None else int(head.shape[-1]),
        root="imagenet" if root.shape[0] == 7 else "small",
        parameters=sum(int(array.size) for array in arrays.values()),
        sha256=sha256_file(path),
    )


def _names(model: ResNetV2) -> dict[str, str]:
    """Return published name -> name in the network's state."""
    names = {}
    for key in model.state_dict():
        layer, _, kind = key.rpartition(".")
        if layer == "root":
            names[_ROOT] = key
        elif layer == "head":
            names[f"resnet/head/conv2d/{'kernel' if kind == 'weight' else 'bias'}"] = key
        elif layer == "norm":
            names[f"resnet/group_norm/{'gamma' if kind == 'weight' else 'beta'}"] = key
        else:
            _, block, unit, part = layer.split(".")
            place = f"resnet/{block}/{unit}/"
            if part == "proj":
                names[f"{place}a/proj/standardized_conv2d/kernel"] = key
            elif part.startswith("conv_"):
                names[f"{place}{part[-1]}/standardized_conv2d/kernel"] = key
            else:
                gain = "gamma" if kind == "weight" else "beta"
                names[f"{place}{part[-1]}/group_norm/{gain}"] = key
    return names


def _tensors(
    arrays: Arrays, wanted: dict[str, str], model: ResNetV2, path: Path
) -> dict[str, Tensor]:
    """Return state name -> tensor, every one checked."""
    own = model.state_dict()
    for name in sorted(wanted.keys() ^ arrays.keys()):
        verb = "lack" if name in wanted else "hold an unexpected"
        raise CheckpointError(f"weights {str(path)!r} {verb} array {name!r}; fetch the file again")
    result = {}
    for name, key in wanted.items():
        array = arrays[name]
        shape = _stored_shape(own[key])
        if array.shape != shape:
            hint = ""
            if sorted(array.shape) == sorted(shape):
                hint = "; its axes are in another order, transpose it to height, width, in, out"
            raise CheckpointError(
                f"weights {str(path)!r}: array {name!r} is {array.shape}, expected {shape}{hint}"
            )
        if array.dtype.kind != "f":
            raise CheckpointError(
                f"weights {str(path)!r}: array {name!r} holds {array.dtype}, expected float32"
            )
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"weights {str(path)!r}: array {name!r} holds NaN or infinity; fetch the file again"
            )
        result[key] = _to_tensor(array, own[key])
    return result


def _stored_shape(tensor: Tensor) -> tuple[int, ...]:
    if tensor.ndim == 4:
        out, inp, height, width = tensor.shape
        return height, width, inp, out
    if tensor.ndim == 2:
        classes, features = tensor.shape
        return 1, 1, features, classes
    return tuple(tensor.shape)


def _to_array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().float().cpu().numpy()
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T[None, None]
    return np.ascontiguousarray(array)


def _to_tensor(array: NDArray[Any], like: Tensor) -> Tensor:
    if array.ndim == 4 and like.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif like.ndim == 2:
        array = array[0, 0].T
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _check_norm(model: ResNetV2, subject: str) -> None:
    standardized = any(isinstance(m, StdConv2d) for m in model.modules())
    if model.norm_kind != "gn_ws" or not standardized:
        state = model.norm_kind if model.norm_kind != "gn_ws" else "folded for inference"
        raise CheckpointError(
            f"{subject} is for a network with GroupNorm and Weight Standardization, this one is "
            f"{state}; create it with norm='gn_ws' and do not fold it"
        )


def _check_same_width_and_depth(model: ResNetV2, found: PublishedFile, path: Path) -> None:
    units = tuple(len(block) for block in model.body)  # type: ignore[arg-type]  # blocks are Sequential
    wanted = parse_architecture(found.architecture)
    width = model.root.weight.shape[0]
    if units != wanted.block_units or width != wanted.width(_ROOT_WIDTH):
        depth = next(d for d, known in BLOCK_UNITS.items() if known == units)
        raise CheckpointError(
            f"weights {str(path)!r} are {found.architecture}, but the network is "
            f"R{depth}x{width / _ROOT_WIDTH:g}; create it with {found.architecture!r}"
        )


def _check_kind(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"weights {str(path)!r}: there is no such file; `bigtransfer weights fetch` downloads "
            "a published one"
        )
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    for start, means in _FINGERPRINTS:
        if head.startswith(start):
            if not means:
                return
            raise CheckpointError(f"weights {str(path)!r} are {means}")
    what = "empty" if not head else f"not an .npz file (begins with {head[:8]!r})"
    raise CheckpointError(f"weights {str(path)!r} are {what}; fetch the file again")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
