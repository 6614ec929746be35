from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.data.decoding import decode_rgb
from bigtransfer.data.sources.listing import Source
from bigtransfer.data.sources.opening import open_source
from bigtransfer.errors import DatasetError
from fixtures.images import write_image
from fixtures.project import SHARED


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def contents(source: Source) -> dict[str, tuple[tuple[str, ...], str | None, bytes]]:
    return {
        image.path: (image.labels, image.split, source.read(image.file, image.offset, image.length))
        for image in source.images
    }


def table(folder: Path, text: str) -> Path:
    for i in range(3):
        write_image(folder / f"p/{i}.png", i)
    path = folder / "list.csv"
    path.write_text(text)
    return path


def test_table_gives_paths_labels_and_splits(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,split\np/0.png,cat,train\np/1.png,dog,validation\n")
    source = open_source(path)
    assert (source.layout, source.labels, source.multi_label) == ("table", ["cat", "dog"], False)
    found = contents(source)
    assert found["p/1.png"] == (("dog",), "val", (tmp_path / "p/1.png").read_bytes())
    assert open_source(tmp_path).layout == "table"


def test_table_with_several_labels(tmp_path: Path) -> None:
    source = open_source(table(tmp_path, "path,labels\np/0.png,cat|dog\np/1.png,\np/2.png,dog\n"))
    assert source.multi_label
    assert [image.labels for image in source.images] == [("cat", "dog"), (), ("dog",)]


def test_parquet_table_with_lists_of_labels(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table(tmp_path, "")
    (tmp_path / "list.csv").unlink()
    rows = {"path": ["p/0.png", "p/1.png"], "labels": [["b", "a"], ["a"]]}
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    source = open_source(tmp_path / "list.parquet")
    assert [image.labels for image in source.images] == [("a", "b"), ("a",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b\n", "has the columns 'file', 'label'; it needs 'path'"),
        ("path,label\n", "has no rows"),
        ("path,label\n../x.png,a\n", r"row 2: path '../x.png' is empty or leads out"),
        ("path,label\np/0.png,a\np/0.png,b\n", "row 3: 'p/0.png' stands in row 2 already"),
        ("path,label\np/0.png,\n", "row 2: 'p/0.png' has no label"),
        ("path,label,split\np/0.png,a,tset\n", "unknown split 'tset'; did you mean 'test'"),
        ("path,label,split\np/0.png,a,train\np/1.png,a,\n", "row 3: has no split while others"),
        ("path,label\np/0.png\n", "row 2: has not as many cells as the heading"),
        ("path,label\n\xff\n", "is not UTF-8 text"),
    ],
)
def test_faults_of_a_table_name_the_row(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, "")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=message):
        open_source(path)


def test_listed_file_that_is_not_there_is_a_fault_of_that_image(tmp_path: Path) -> None:
    source = open_source(table(tmp_path, "path,label\np/9.png,a\n"))
    assert source.images[0].fault == "listed, but there is no such file"


def test_class_tars_are_read_in_place(tmp_path: Path) -> None:
    for n in range(2):
        members = {f"n0000000{n}_{i}.JPEG": picture(10 * n + i) for i in range(3)}
        write_tar(tmp_path / f"n0000000{n}.tar", members)
    source = open_source(tmp_path)
    assert (source.layout, source.labels) == ("class_tars", ["n00000000", "n00000001"])
    found = contents(source)
    assert found["n00000001/n00000001_2.JPEG"] == (("n00000001",), None, picture(12))
    assert len(found) == 6


def test_ilsvrc2012_as_distributed(tmp_path: Path) -> None:
    from scipy.io import savemat

    inner = {
        f"{w}.tar": tar_bytes({f"{w}_1.JPEG": picture(i)}) for i, w in enumerate(["n02", "n01"])
    }
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", inner)
    write_tar(
        tmp_path / "ILSVRC2012_img_val.tar",
        {f"ILSVRC2012_val_0000000{i}.JPEG": picture(20 + i) for i in (2, 1)},
    )
    with pytest.raises(DatasetError, match="lacks 'ILSVRC2012_devkit_t12.tar.gz'"):
        open_source(tmp_path)
    buffer = io.BytesIO()
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    savemat(buffer, {"synsets": np.array([(1, "n01"), (2, "n02")], dtype=kind)})
    base = "ILSVRC2012_devkit_t12/data/"
    devkit = {base + "meta.mat": buffer.getvalue(),
              base + "ILSVRC2012_validation_ground_truth.txt": b"2\n1\n"}  # fmt: skip
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, data in devkit.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(tmp_path)
    assert source.layout == "ilsvrc2012"
    found = contents(source)
    assert found["train/n01/n01_1.JPEG"] == (("n01",), "train", picture(1))
    assert found["val/n02/ILSVRC2012_val_00000001.JPEG"] == (("n02",), "test", picture(21))
    assert found["val/n01/ILSVRC2012_val_00000002.JPEG"] == (("n01",), "test", picture(22))


def test_webdataset_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"a.png": picture(0), "a.cls": b"10", "b.png": picture(1),
                                         "b.cls": b"2"})  # fmt: skip
    write_tar(
        tmp_path / "val-0.tar",
        {"d/c.png": picture(2), "d/c.json": json.dumps({"label": 2}).encode()},
    )
    source = open_source(tmp_path)
    assert (source.layout, source.labels) == ("webdataset", ["2", "10"])
    assert contents(source)["d/c.png"] == (("2",), "val", picture(2))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x"}, "sample 'a' has no label"),
        ({"a.cls": b"1"}, "sample 'a' has no image"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"1"}, "sample 'a' has 2 images"),
        ({"a.png": b"x", "a.json": b"{"}, "its label cannot be read"),
        ({"a.png": b"x", "a.cls": b" "}, "its label is empty"),
    ],
)
def test_incomplete_samples_are_named(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    write_tar(tmp_path / "data.tar", members)
    with pytest.raises(DatasetError, match=message):
        open_source(tmp_path / "data.tar")


def link(tar: tarfile.TarFile, name: str, kind: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    tar.addfile(info)


HOSTILE: dict[str, tuple[Callable[[tarfile.TarFile], Any], str]] = {
    "parent": (lambda t: link(t, "../evil.png", tarfile.REGTYPE), "leads out of the folder"),
    "absolute": (lambda t: link(t, "/evil.png", tarfile.REGTYPE), "leads out of the folder"),
    "symlink": (lambda t: link(t, "a.png", tarfile.SYMTYPE), "it is a link to '/etc/passwd'"),
    "hard link": (lambda t: link(t, "a.png", tarfile.LNKTYPE), "it is a link to '/etc/passwd'"),
    "device": (lambda t: link(t, "a.png", tarfile.CHRTYPE), "it is a device or a pipe"),
    "twice": (
        lambda t: [link(t, "a.png", tarfile.REGTYPE) for _ in range(2)], "its name comes twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused_whole(tmp_path: Path, kind: str) -> None:
    make, message = HOSTILE[kind]
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        make(tar)
    with pytest.raises(DatasetError, match=rf"archive 'data.tar' .* is refused.*{message}"):
        open_source(tmp_path / "data.tar")


@pytest.mark.skipif(not (SHARED / "data/odd-images").is_dir(), reason="needs ../shared/data")
def test_hostile_archive_of_the_collection_is_refused() -> None:
    with pytest.raises(DatasetError, match="is refused"):
        open_source(SHARED / "data/odd-images/hostile.tar")


def test_cut_and_compressed_archives_are_refused(tmp_path: Path) -> None:
    whole = tar_bytes({"a.png": b"x" * 5000, "a.cls": b"1"})
    (tmp_path / "data.tar").write_bytes(whole[:3000])
    with pytest.raises(DatasetError, match="'a.png' ends at byte 5,512, the file has 3,000"):
        open_source(tmp_path / "data.tar")
    (tmp_path / "data.tar").write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(DatasetError, match="is no plain tar, or is damaged"):
        open_source(tmp_path / "data.tar")


def cifar_batch(count: int, classes: int, seed: int) -> tuple[Any, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), (
        np.arange(count) % classes
    ).tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_python(tmp_path: Path, packed: bool) -> None:
    files: dict[str, bytes] = {}
    for number, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        data, labels = cifar_batch(20, 10, number)
        files[name] = pickle.dumps({b"data": data, b"labels": labels}, protocol=2)
    names = [f"class{i}" for i in range(10)]
    files["batches.meta"] = pickle.dumps({b"label_names": [n.encode() for n in names]}, protocol=2)
    if packed:
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
            for name, raw in files.items():
                info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
    else:
        for name, raw in files.items():
            (tmp_path / name).write_bytes(raw)
    source = open_source(tmp_path)
    assert (source.layout, source.labels) == ("cifar", names)
    assert [i.split for i in source.images].count("train") == 40
    found = contents(source)
    labels, split, png = found["test_batch/00013.png"]
    assert (labels, split) == (("class3",), "test")
    expected = cifar_batch(20, 10, 2)[0][13].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(decode_rgb(png, DecodeSettings()), expected)


def test_cifar100_binary_takes_the_fine_label(tmp_path: Path) -> None:
    names = [f"fine{i:03d}" for i in range(100)]
    (tmp_path / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    for name, count in (("train.bin", 5), ("test.bin", 2)):
        data, labels = cifar_batch(count, 100, count)
        rows = [bytes([9, label]) + row.tobytes() for row, label in zip(data, labels, strict=True)]
        (tmp_path / name).write_bytes(b"".join(rows))
    source = open_source(tmp_path)
    assert [i.labels[0] for i in source.images] == [
        "fine000", "fine001", "fine002", "fine003", "fine004", "fine000", "fine001",
    ]  # fmt: skip
    (tmp_path / "test.bin").write_bytes(b"x" * 100)
    with pytest.raises(DatasetError, match="100 bytes, which is no whole number of 3,074-byte"):
        open_source(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("touch /tmp/should-not-exist",)


def test_code_in_a_cifar_file_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"a"]}))
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DatasetError, match=r"'data_batch_1' .* \(it asks for posix.system\)"):
        open_source(tmp_path)


def test_flat_folder_is_one_unnamed_class_where_that_is_allowed(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", 0)
    assert open_source(tmp_path, flat_allowed=True).labels == ["(unnamed)"]
    with pytest.raises(DatasetError, match="holds 1 file beside its class folders"):
        open_source(tmp_path)


def test_numbers_as_labels_of_a_parquet_table(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("label", "labels"):
        folder = tmp_path / name
        table(folder, "")
        (folder / "list.csv").unlink()
        rows = {"path": ["p/0.png", "p/1.png"], name: [0, 1]}
        pq.write_table(pa.table(rows), folder / "t.parquet")
        assert open_source(folder).labels == ["0", "1"]


def test_class_tars_in_split_folders(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("val", 5)):
        write_tar(tmp_path / split / "n00000001.tar", {"a.png": picture(seed)})
    source = open_source(tmp_path)
    assert (source.layout, source.labels, source.has_splits) == ("class_tars", ["n00000001"], True)
    assert contents(source)["val/n00000001/a.png"] == (("n00000001",), "val", picture(5))
    (tmp_path / "train").rename(tmp_path / "part1")
    with pytest.raises(DatasetError, match="lies in a folder that is no split"):
        open_source(tmp_path)


def test_damage_of_what_lists_the_images_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "list.csv").symlink_to("nowhere")
    with pytest.raises(DatasetError, match="a file that lists the images cannot be read"):
        open_source(tmp_path)
    (tmp_path / "list.csv").unlink()
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(100_000)))
    data = bytearray((tmp_path / "cifar-10-python.tar.gz").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(data)
    with pytest.raises(DatasetError, match="damaged"):
        open_source(tmp_path)


@pytest.mark.parametrize("label", ["²", "[" * 200_000], ids=["superscript", "deep"])
def test_strange_labels_are_no_bug_of_ours(tmp_path: Path, label: str) -> None:
    suffix = "json" if label.startswith("[") else "cls"
    write_tar(tmp_path / "d.tar", {"a.png": picture(0), f"a.{suffix}": label.encode()})
    try:
        assert open_source(tmp_path / "d.tar").labels == [label]
    except DatasetError as error:
        assert "its label cannot be read" in str(error)
