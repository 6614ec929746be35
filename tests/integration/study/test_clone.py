"""The clone in which a study's queue is, with DVC's real queue in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bigtransfer.errors import InfrastructureError
from bigtransfer.storage.home import QUEUE
from bigtransfer.study.clone import Clone
from bigtransfer.study.dvc_queue import DvcQueue
from fixtures.project import dvc, git

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of DVC's libraries
STAGES = """stages:
  make:
    cmd: echo ${x} > made
    params: [x]
    outs: [made]
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clone]:
    """The clone of a project with one stage."""
    (tmp_path / "dvc.yaml").write_text(STAGES)
    (tmp_path / "params.yaml").write_text("x: 1\n")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    git(tmp_path, "init", "--quiet")
    dvc(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=start")
    monkeypatch.chdir(tmp_path)
    made = Clone(tmp_path)
    made.refresh()
    yield made
    DvcQueue(made.folder).stop()


def test_a_lock_that_a_full_disk_left_is_told_and_removed(clone: Clone) -> None:
    queue = DvcQueue(clone.folder)
    queue.put("one-0123456789ab", {"x": 2}, ["make"])
    assert queue.look()["one-0123456789ab"].state == "queued"
    (ref,) = (clone.folder / ".git/refs/exps/celery").glob("stash")
    ref.with_name("stash.lock").touch()
    with pytest.raises(InfrastructureError, match=f"FileLocked.*remove '{QUEUE}'"):
        queue.drop(["one-0123456789ab"])
    clone.unlock()
    assert not ref.with_name("stash.lock").exists()
    DvcQueue(clone.folder).drop(["one-0123456789ab"])
    assert not DvcQueue(clone.folder).look()


def test_it_is_made_anew_where_it_was_removed(clone: Clone) -> None:
    commit = clone.commit
    clone.remove()
    assert not clone.is_there
    clone.refresh()
    assert clone.commit == commit
