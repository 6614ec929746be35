"""Which commit a result is said to come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigtransfer.track.origin import git_commit
from fixtures.project import git


@pytest.fixture(params=[".", "below"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A project that is a repository, or a folder of one."""
    folder = tmp_path / str(request.param)
    folder.mkdir(exist_ok=True)
    for path in ("dvc.lock", "params.yaml", "sub/dvc.lock", "my dvc.lock"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("a")
    (tmp_path / "elsewhere.txt").write_text("a")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=a")
    return folder


def test_what_the_run_itself_writes_is_no_change(project: Path) -> None:
    commit = git(project, "rev-parse", "HEAD").strip()
    assert git_commit(project) == commit
    (project / "dvc.lock").write_text("b")
    (project / "untracked").write_text("b")
    assert git_commit(project) == commit
    git(project, "add", "dvc.lock")
    assert git_commit(project) == commit
    (project / "dvc.lock").unlink()
    assert git_commit(project) == commit


@pytest.mark.parametrize("name", ["params.yaml", "sub/dvc.lock", "my dvc.lock"])
def test_any_other_file_is_one(project: Path, name: str) -> None:
    (project / "dvc.lock").write_text("b")
    (project / name).write_text("b")
    assert git_commit(project).endswith("+changes")


def test_a_change_outside_of_the_project_is_one(project: Path) -> None:
    top = Path(git(project, "rev-parse", "--show-toplevel").strip())
    (top / "elsewhere.txt").write_text("b")
    assert git_commit(project).endswith("+changes")


def test_without_git_there_is_none(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == ""
