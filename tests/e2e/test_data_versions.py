"""A folder of the user's own is versioned by DVC as the guide says, and comes back in a clone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fixtures.images import write_photos
from fixtures.project import PROJECT, copy_project, dvc, git
from fixtures.workflow import call, edit_params, ran, run_workflow

pytestmark = pytest.mark.e2e
PULL = "dvc pull data/photos.dvc"
RULES = "min_examples_per_class: 2, splits: {val: 0.2, test: 0.2}"


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def pushed(tmp_path: Path) -> Path:
    """A project, with its own `.gitignore`, whose `data/photos` is added, committed and pushed."""
    project = copy_project(tmp_path / "project")
    write_photos(project / "data" / "photos")
    edit_params(project, "  digits: {path", f"  photos: {{path: data/photos, {RULES}}}\n"
                "  digits: {path")  # fmt: skip
    (tmp_path / "remote").mkdir()
    dvc(project, "remote", "add", "--default", "there", str(tmp_path / "remote"))
    dvc(project, "add", "data/photos")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=photos")
    dvc(project, "push", "data/photos.dvc")
    return project


def test_what_is_added_is_pushed_and_pulled_in_a_clone_and_a_stage_runs_on_it(
    pushed: Path, tmp_path: Path
) -> None:
    assert git(pushed, "ls-files", "data").split() == ["data/photos.dvc"]
    assert files(pushed.parent / "remote")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(pushed), str(clone))
    refused = run_workflow(clone, "validate@photos")
    assert refused.returncode == 2
    assert f"fetch it: `.venv/bin/{PULL}`" in refused.stderr
    dvc(clone, *PULL.split()[1:])
    assert files(clone / "data" / "photos") == files(pushed / "data" / "photos")
    result = run_workflow(clone, "validate@photos")
    assert result.returncode == 0, result.stdout + result.stderr
    assert ran(result.stdout) == {"validate@photos"}
    written = git(clone, "ls-files", "--others", "--exclude-standard").split()
    assert not [name for name in written if name != "dvc.lock"]


def test_gc_keeps_what_is_tracked_and_move_takes_it_along(pushed: Path) -> None:
    kept = files(pushed / ".dvc" / "cache")
    assert kept
    dvc(pushed, "gc", "--workspace", "--force")
    assert files(pushed / ".dvc" / "cache") == kept
    dvc(pushed, "move", "data/photos", "data/pets")
    assert (pushed / "data" / "pets.dvc").is_file() and not (pushed / "data" / "photos").exists()
    shutil.rmtree(pushed / "data" / "pets")
    dvc(pushed, "checkout", "data/pets.dvc")
    assert len(files(pushed / "data" / "pets")) == 30
    assert not [p for p in pushed.rglob(".gitignore") if p.parent not in (pushed, pushed / ".dvc")]


def test_a_folder_deeper_in_data_is_refused_aloud(pushed: Path) -> None:
    write_photos(pushed / "data" / "2024" / "photos")
    result = call(pushed, "dvc", "add", "data/2024/photos")
    assert result.returncode == 1
    assert "'data/2024/photos.dvc' is git-ignored" in result.stderr
    assert len(files(pushed / "data" / "2024" / "photos")) == 30


def test_the_guide_names_what_it_pulls() -> None:
    text = (PROJECT / "docs" / "guide" / "workflow.md").read_text()
    assert f".venv/bin/{PULL}" in text
    bare = [line for line in text.splitlines() if re.search(r"dvc (pull|push)\b(?! data/)", line)]
    assert not bare


def test_git_ignores_as_before(pushed: Path) -> None:
    for path, ignored in {
        "data/photos/a.png": True, "data/x.csv": True, "data/photos.dvc": False, "data/.x": True,
    }.items():  # fmt: skip
        code = subprocess.run(["git", "check-ignore", "-q", path], cwd=pushed, check=False)
        assert (code.returncode == 0) is ignored, path
