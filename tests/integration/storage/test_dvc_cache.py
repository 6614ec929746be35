"""What DVC removes before it runs a stage is put back from its cache."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from bigtransfer.storage.dvc_cache import put_back
from fixtures.project import dvc, git


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project whose one stage has written a folder and a file."""
    git(tmp_path, "init", "--quiet")
    dvc(tmp_path, "init", "--quiet")
    (tmp_path / "write.py").write_text(
        "from pathlib import Path\n"
        "Path('made/below').mkdir(parents=True)\n"
        "Path('made/a.txt').write_text('a')\n"
        "Path('made/below/b.txt').write_text('b')\n"
        "Path('m.json').write_text('{}')\n"
    )
    (tmp_path / "dvc.yaml").write_text(
        f"stages:\n  write:\n    cmd: {sys.executable} write.py\n    outs: [made, m.json]\n"
    )
    dvc(tmp_path, "repro")
    shutil.rmtree(tmp_path / "made")
    (tmp_path / "m.json").unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_and_a_file_come_back(project: Path) -> None:
    assert put_back(Path("made"), project) and put_back(Path("m.json"), project)
    assert (project / "made" / "below" / "b.txt").read_text() == "b"
    assert (project / "made" / "a.txt").read_text() == "a"
    assert (project / "m.json").read_text() == "{}"
    dvc(project, "status")


def test_what_is_there_is_left_as_it_is(project: Path) -> None:
    (project / "made").mkdir()
    assert not put_back(Path("made"), project)
    assert not list((project / "made").iterdir())


def test_half_a_cache_gives_nothing(project: Path) -> None:
    objects = [p for p in (project / ".dvc" / "cache").rglob("*") if p.is_file()]
    for path in objects:
        if path.read_text() == "b":
            path.unlink()
    assert not put_back(Path("made"), project)
    assert not (project / "made").exists()


@pytest.mark.parametrize("text", [None, "", "stages: [", "stages: {write: {outs: []}}", "- x"])
def test_without_a_lock_file_that_knows_it_nothing_happens(project: Path, text: str | None) -> None:
    (project / "dvc.lock").unlink()
    if text is not None:
        (project / "dvc.lock").write_text(text)
    assert not put_back(Path("made"), project)
    assert not (project / "made").exists()
