from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bigtransfer.model import create_model, load_checkpoint, load_npz
from fixtures.commands import heard


def test_fetch_from_a_folder(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = heard(
        capsys, "weights", "fetch", "BiT-M-R50x1", "--to", tmp_path / "w", "--source", mirror
    )
    assert code == 0
    (mirror / "BiT-S-R50x1.npz").write_text("<html>sign in</html>")
    code, _, err = heard(
        capsys, "weights", "fetch", "BiT-S-R50x1", "--to", tmp_path / "w", "--source", mirror
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "a web page, not weights" in err
    assert not (tmp_path / "w" / "BiT-S-R50x1.npz").exists()


def test_fetch_of_an_unknown_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = heard(capsys, "weights", "fetch", "BiT-M-R50x2", "--to", tmp_path)
    assert code == 2
    assert "unknown weights 'BiT-M-R50x2'; did you mean 'BiT-M-R50x3'" in err
    code, _, err = heard(capsys, "weights", "fetch", "../secrets", "--to", tmp_path)
    assert code == 2


def test_fetch_without_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = heard(
        capsys,
        "weights",
        "fetch",
        "BiT-M-R50x1",
        "--to",
        tmp_path,
        "--source",
        "https://bucket.invalid/x",
    )
    assert (code, err.count("\n")) == (75, 1)
    assert "cannot reach bucket.invalid" in err


def test_there_and_back_is_the_same_function(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefg"))
    file, folder = mirror / "BiT-M-R50x1.npz", tmp_path / "checkpoint"
    code, out, _ = heard(capsys, "weights", "convert", file, folder, "--classes", names)
    assert code == 0
    assert "7 (a, b, c, …)" in out
    code, out, _ = heard(capsys, "weights", "convert", folder, tmp_path / "back.npz")
    assert code == 0
    first, (second, meta), third = create_model("R50x0.25", 7), load_checkpoint(folder), None
    load_npz(first, file)
    third = create_model("R50x0.25", 7)
    load_npz(third, tmp_path / "back.npz")
    x = torch.randn(1, 3, 48, 48)
    assert torch.equal(first(x), second(x))
    assert torch.equal(first(x), third(x))
    assert meta.classes == tuple("abcdefg")
    code, out, _ = heard(capsys, "weights", "show", folder)
    assert meta.digest in out


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("mirror/BiT-M-R50x1.npz", "out.npz", "are both published files"),
        ("mirror", "out", "are both checkpoint folders"),
        ("mirror/BiT-M-R50x1.npz", "mirror", "is there already"),
        ("nothing.npz", "out", "there is no such file"),
    ],
)
def test_conversion_that_cannot_be(
    source: str, target: str, message: str, mirror: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, _, err = heard(capsys, "weights", "convert", tmp_path / source, tmp_path / target)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_wrong_number_of_names(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names").write_text("a\nb\n")
    code, _, err = heard(capsys, "weights", "convert", mirror / "BiT-M-R50x1.npz", tmp_path / "out",
        "--classes", tmp_path / "names",
    )  # fmt: skip
    assert code == 2
    assert "holds 2 names" in err and "has 7 classes" in err
    assert not (tmp_path / "out").exists()
