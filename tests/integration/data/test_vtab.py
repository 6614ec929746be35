"""A task of VTAB, as typed, through the check of the data and a sweep; and with a real HDF5 file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigtransfer.data.sources.opening import open_source
from bigtransfer.data.vtab.prepare import prepare
from fixtures import vtab


def test_patchcamelyon_is_read_by_h5py(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    made = vtab.camelyon(real=True)
    folder = made.write(tmp_path / "set", packed=False)
    said = prepare("vtab/camelyon", folder, tmp_path / "made", size=made.size)
    assert said.official and said.splits == {"train": 8, "val": 3, "test": 12}
    assert open_source(tmp_path / "made").labels == ["0", "1"]
