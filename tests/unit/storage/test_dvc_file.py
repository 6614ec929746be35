"""The digest of data in the `.dvc` file beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigtransfer.storage.dvc_file import dvc_revision

MD5, OTHER = "0123456789abcdef0123456789abcdef", "f" * 32


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(f"outs:\n- md5: {MD5}.dir\n  path: photos\n", f"{MD5}.dir"),
     (f"md5: {OTHER}\ndeps:\n- md5: {OTHER}\n  path: s3://b\nouts:\n- md5: {MD5}\n", MD5),
     (f"outs:\n- size: 9\n  hash: md5\n  md5: {MD5}\n", MD5),
     ("outs: []\n", ""), ("no yaml: [", ""), ("", "")],
)  # fmt: skip
def test_it_is_that_of_the_data(text: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "photos.dvc").write_text(text)
    assert dvc_revision(tmp_path / "photos") == wanted


def test_data_without_such_a_file_or_without_a_name_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    assert dvc_revision(tmp_path / "photos") == ""
    (tmp_path / "photos.dvc").write_text(f"outs:\n- md5: {MD5}\n")
    monkeypatch.chdir(tmp_path / "photos")
    assert dvc_revision(Path(".")) == MD5
    assert dvc_revision(Path("/")) == ""
