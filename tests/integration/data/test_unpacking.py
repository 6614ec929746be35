"""The commands that a refusal of a compressed archive gives do unpack it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from bigtransfer.data.sources.opening import open_source
from bigtransfer.errors import DatasetError
from fixtures.images import write_photos


def packed(photos: Path, suffix: str) -> Path:
    target = photos.parent / f"my photos{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(target, "w") as file:
            for path in photos.rglob("*.png"):
                file.write(path, path.relative_to(photos.parent))
    else:
        with tarfile.open(target, "w:gz") as tar:
            tar.add(photos, "photos")
    return target


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tgz"])
def test_the_command_unpacks_and_the_named_place_is_read(tmp_path: Path, suffix: str) -> None:
    path = packed(write_photos(tmp_path / "photos"), suffix)
    with pytest.raises(DatasetError) as caught:
        open_source(path)
    then, command = str(caught.value).partition("then give '")[2].split("': ", 1)
    if shutil.which(shlex.split(command)[0]) is None:
        pytest.skip(f"{shlex.split(command)[0]} is not on this machine")
    subprocess.run(shlex.split(command), check=True)
    source = open_source(Path(then))
    assert source.labels == ["class_0", "class_1", "class_2"] and len(source.images) == 30
