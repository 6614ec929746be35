from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bigtransfer.errors import CheckpointError
from bigtransfer.model import ResNetV2, create_model, load_npz, save_npz
from bigtransfer.model.names import PUBLISHED
from bigtransfer.model.published import _names, describe_npz

Arrays = dict[str, NDArray[Any]]
KERNEL = "resnet/block1/unit01/a/standardized_conv2d/kernel"
PROJECTION = "resnet/block1/unit01/a/proj/standardized_conv2d/kernel"


def network(name: str = "R14x0.5", classes: int = 7, seed: int = 1) -> ResNetV2:
    model = create_model(name, classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return model


@pytest.fixture
def published(tmp_path: Path) -> Path:
    save_npz(network(), tmp_path / "published.npz")
    return tmp_path / "published.npz"


def rewrite(path: Path, change: Callable[[Arrays], None]) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def test_written_and_read_again_gives_bit_equal_logits(published: Path) -> None:
    model, x = create_model("R14x0.5", 7, seed=2), torch.randn(2, 3, 65, 48)
    report = load_npz(model, published)
    assert torch.equal(model(x), network()(x))
    assert (report.head, report.file_classes) == ("loaded", 7)
    assert report.num_arrays == len(model.state_dict())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_array_of_every_published_size_has_a_name(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 21_843)
    names = _names(model)
    assert len(names) == len(model.state_dict()) == len(set(names.values()))
    assert KERNEL in names and PROJECTION in names
    assert "resnet/head/conv2d/bias" in names and "resnet/group_norm/gamma" in names


def test_layout_of_the_file(published: Path) -> None:
    model = network()
    with np.load(published) as file:
        kernel = file["resnet/block2/unit01/b/standardized_conv2d/kernel"]
        head = file["resnet/head/conv2d/kernel"]
    own = model.body.block2.unit01.conv_b.weight.detach().numpy()
    assert kernel.shape == (3, 3, 64, 64)
    assert kernel[2, 1, 5, 9] == own[9, 5, 2, 1]
    assert head.shape == (1, 1, 1024, 7)
    assert head[0, 0, 30, 4] == model.head.weight[4, 30].item()


def test_numbered_names_are_read_too(published: Path) -> None:
    plain = create_model("R14x0.5", 7)
    load_npz(plain, published)

    def number(arrays: Arrays) -> None:
        for n, name in enumerate(list(arrays)):
            layer, kind = name.rsplit("/", 1)
            arrays[f"{layer}_{n}/{kind}" if n % 3 else name] = arrays.pop(name)

    rewrite(published, number)
    numbered = create_model("R14x0.5", 7)
    load_npz(numbered, published)
    for a, b in zip(plain.parameters(), numbered.parameters(), strict=True):
        assert torch.equal(a, b)


def test_head_of_another_class_count_becomes_zeros(published: Path) -> None:
    model, same = create_model("R14x0.5", 3), create_model("R14x0.5", 7)
    torch.nn.init.ones_(model.head.weight)
    report = load_npz(model, published)
    load_npz(same, published)
    x = torch.randn(1, 3, 48, 48)
    assert (report.head, report.file_classes) == ("zeros", 7)
    assert model.head.weight.abs().max() == 0
    assert torch.equal(model.features(x), same.features(x))


def test_small_root_has_its_own_shape(tmp_path: Path) -> None:
    save_npz(create_model("R14x0.5", 3, "small"), tmp_path / "small.npz")
    assert describe_npz(tmp_path / "small.npz").root == "small"
    load_npz(create_model("R14x0.5", 3, "small"), tmp_path / "small.npz")
    with pytest.raises(CheckpointError, match=r"root_block.* is \(3, 3, 3, 32\), expected \(7, 7"):
        load_npz(create_model("R14x0.5", 3), tmp_path / "small.npz")


def test_what_a_file_holds(published: Path) -> None:
    found = describe_npz(published)
    assert (found.architecture, found.num_classes, found.root) == ("R14x0.5", 7, "imagenet")
    assert found.parameters == sum(p.numel() for p in network().parameters())


OTHER_KINDS: dict[str, tuple[bytes, str]] = {
    "web page": (b"<!DOCTYPE html><html>403</html>", "a web page, not weights"),
    "xml error": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "a web page, not weights"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
    "pickle": (pickle.dumps({"a": 1}), "a pickle, which is never opened"),
    "npy": (b"\x93NUMPY\x01\x00", "a single .npy array"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "empty": (b"", "empty"),
    "text": (b"hello", "not an .npz file"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_files_are_told_apart(kind: str, tmp_path: Path) -> None:
    content, message = OTHER_KINDS[kind]
    path = tmp_path / "w.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"w.npz' are {message}") as caught:
        load_npz(create_model("R14x0.5", 7), path)
    assert "\n" not in str(caught.value)


def test_pickled_object_in_an_array_is_not_opened(published: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    def trap(arrays: Arrays) -> None:
        arrays[KERNEL] = np.array([Trap()], dtype=object)

    rewrite(published, trap)
    with pytest.raises(CheckpointError, match="cut or damaged: Object arrays cannot be loaded"):
        load_npz(network(), published)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_cut_file(published: Path, share: float) -> None:
    content = published.read_bytes()
    published.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        CheckpointError, match=r"bytes\) are cut or damaged: .*fetch the file again"
    ):
        load_npz(network(), published)


def test_flipped_byte_in_an_array(published: Path) -> None:
    content = bytearray(published.read_bytes())
    content[len(content) // 2] ^= 1
    published.write_bytes(content)
    with pytest.raises(CheckpointError, match="cut or damaged: Bad CRC-32"):
        load_npz(network(), published)


def test_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with pytest.raises(CheckpointError, match="but not 'resnet/root_block.*not a BiT file"):
        describe_npz(tmp_path / "w.npz")


def transpose_all(arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.ndim == 4:
            arrays[name] = np.ascontiguousarray(array.transpose(3, 2, 0, 1))


def transpose_one(arrays: Arrays) -> None:
    arrays[KERNEL] = np.ascontiguousarray(arrays[KERNEL].transpose(3, 2, 0, 1))


def set_nan(arrays: Arrays) -> None:
    arrays[KERNEL][0, 0, 0, 0] = np.nan


def as_integers(arrays: Arrays) -> None:
    arrays[KERNEL] = arrays[KERNEL].astype(np.int32)


def drop(arrays: Arrays) -> None:
    del arrays[KERNEL]


def add(arrays: Arrays) -> None:
    arrays["resnet/block1/unit01/d/standardized_conv2d/kernel"] = arrays[KERNEL]


def twice(arrays: Arrays) -> None:
    arrays[KERNEL.replace("conv2d", "conv2d_3")] = arrays[KERNEL]


def odd_depth(arrays: Arrays) -> None:
    for name in list(arrays):
        if "block1/unit01" in name:
            arrays[name.replace("unit01", "unit02")] = arrays[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (transpose_all, "kernels are stored in another order, transpose them to height, width"),
        (transpose_one, r"kernel' is \(32, 32, 1, 1\).*axes are in another order"),
        (set_nan, "unit01/a/standardized_conv2d/kernel' holds NaN or infinity"),
        (as_integers, "holds int32, expected float32"),
        (drop, "lack array 'resnet/block1/unit01/a/standardized_conv2d/kernel'"),
        (add, "hold an unexpected array 'resnet/block1/unit01/d"),
        (twice, "both mean 'resnet/block1/unit01/a/standardized_conv2d/kernel'"),
        (odd_depth, r"blocks of \(2, 1, 1, 1\) units, which is none of ours"),
    ],
)
def test_damage_inside_is_named_and_nothing_is_loaded(
    change: Callable[[Arrays], None], message: str, published: Path
) -> None:
    rewrite(published, change)
    model = network(seed=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_npz(model, published)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["R26x0.5", "R14x0.25"])
def test_other_depth_or_width_is_named(name: str, published: Path) -> None:
    with pytest.raises(CheckpointError, match=f"are R14x0.5, but the network is {name}; create it"):
        load_npz(create_model(name, 7), published)


def test_networks_that_the_layout_has_no_place_for(published: Path, tmp_path: Path) -> None:
    for model, state in (
        (create_model("R14x0.5", 7, norm="bn"), "bn"),
        (create_model("R14x0.5", 7).fold(), "folded for inference"),
    ):
        with pytest.raises(CheckpointError, match=f"this one is {state}"):
            load_npz(model, published)
        with pytest.raises(CheckpointError, match=f"this one is {state}"):
            save_npz(model, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file; `bigtransfer weights fetch`"):
        load_npz(network(), tmp_path / "no.npz")
