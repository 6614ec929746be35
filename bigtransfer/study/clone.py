"""The clone of the project in which a study's queue is.

`dvc exp run --queue` writes each cell's params into the working tree, stashes them and resets it,
file by file that somebody may be editing; a process that is killed there leaves another cell's
params behind. In a clone it does that to nobody's files. Cache, `.work` and MLflow are the
project's own; finished experiments are fetched into its Git.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError
from bigtransfer.storage import explained
from bigtransfer.storage.home import QUEUE

_LOCK = "dvc.lock"
_BRANCH = "study"
_OF_A_HOOK = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY",
)  # fmt: skip
_EXPERIMENTS = "refs/exps"
_NOT_RESULTS = ("refs/exps/celery/", "refs/exps/exec/", "refs/exps/stash")


class Clone:
    """A Git clone below `.work`, on the commit of the project."""

    def __init__(self, project: Path) -> None:
        self.project = project.resolve()
        self.folder = self.project / QUEUE

    @property
    def is_there(self) -> bool:
        """Say whether it has been made, and is whole."""
        # Git and DVC would take a folder that is none of theirs for the project around it.
        if not (self.folder / ".dvc" / "config").is_file():
            return False
        try:
            return Path(self._git("rev-parse", "--show-toplevel")).resolve() == self.folder
        except BigTransferError:
            return False

    @property
    def commit(self) -> str:
        """Return the commit that it is on; empty where it is not there."""
        return self._git("rev-parse", "HEAD") if self.is_there else ""

    def refresh(self) -> None:
        """Make it, or bring it to the commit of the project; nothing of the queue may run.

        Raises:
            ConfigError: If the project cannot be cloned as it is.
            InfrastructureError: If the disk is full.
        """
        commit = require_clean(self.project)
        if not self.is_there:
            self._make()
        for copy in (self.folder / ".dvc" / "tmp" / "exps").glob("tmp*"):  # of killed workers
            shutil.rmtree(copy, ignore_errors=True)
        self._git("fetch", "--quiet", "--force", str(self.project), commit)
        self.reset(commit)
        if not (environment := self.folder / ".venv").exists():
            environment.unlink(missing_ok=True)
            environment.symlink_to(sys.prefix, target_is_directory=True)
            self._ignore(".venv")
        for setting in self._settings():
            _dvc(self.folder, "config", "--local", *setting)

    def reset(self, commit: str) -> None:
        """Have the project's code, params and `dvc.lock` in it, whatever a killed process left."""
        for name in ("index.lock", "HEAD.lock"):  # we hold the studies' lock, and workers use none
            (self.folder / ".git" / name).unlink(missing_ok=True)
        self._git("checkout", "--quiet", "--force", "-B", _BRANCH, commit)
        with explained(self.folder):
            shutil.copyfile(self.project / _LOCK, self.folder / _LOCK)

    def unlock(self) -> None:
        """Remove what a process that ended in the middle left locked, where none runs any more."""
        own = self.folder / ".git"
        for lock in (*own.glob("*.lock"), *(own / "refs").rglob("*.lock")):
            lock.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take it away: it is made anew, and finished experiments are the project's."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        partial = self.folder.with_name(f".{self.folder.name}.partial")
        for old in (partial, self.folder):
            shutil.rmtree(old, ignore_errors=True)
        with explained(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        git(self.project, "clone", "--quiet", ".", str(partial))
        with explained(self.folder):
            partial.rename(self.folder)

    def _git(self, *words: str) -> str:
        return git(self.folder, *words, GIT_CEILING_DIRECTORIES=str(self.folder.parent))

    def fetch(self, names: Iterable[str]) -> None:
        """Bring finished experiments into the Git of the project, where `dvc exp show` is."""
        if not self.is_there:
            return
        wanted = set(names)
        refs = [ref for ref in experiments(self.folder) if ref.rpartition("/")[2] in wanted]
        known = set(experiments(self.project))
        if new := [f"+{ref}:{ref}" for ref in refs if ref not in known]:
            git(self.project, "fetch", "--quiet", str(self.folder), *new)

    def all_experiments(self) -> set[str]:
        """Return the references of finished experiments, here and in the project."""
        own = experiments(self.folder) if self.is_there else []
        return {*own, *experiments(self.project)}

    def forget(self, refs: Iterable[str]) -> None:
        """Remove experiments, here and in the project."""
        for place in (self.project, *([self.folder] if self.is_there else [])):
            for ref in set(refs) & set(experiments(place)):
                git(place, "update-ref", "-d", ref)

    def _ignore(self, name: str) -> None:
        exclude = self.folder / ".git" / "info" / "exclude"
        exclude.parent.mkdir(exist_ok=True)
        with exclude.open("a") as file:
            file.write(f"/{name}\n")

    def _settings(self) -> Iterable[Sequence[str]]:
        """Yield what this machine's DVC is told, which no commit holds."""
        own = self.project / ".dvc"
        if (local := own / "config.local").is_file():
            shutil.copyfile(local, self.folder / ".dvc" / "config.local")
        yield "cache.dir", str(cache_of(self.project))


def require_clean(project: Path) -> str:
    """Return the commit of a project whose code and params are all committed.

    Raises:
        ConfigError: If it has no Git of its own, no commit, or changes; names them.
    """
    try:
        top = Path(git(project, "rev-parse", "--show-toplevel")).resolve()
        commit = git(project, "rev-parse", "HEAD")
    except BigTransferError as error:
        raise ConfigError(
            "a study's cells are experiments of DVC, which wants Git and a commit of what they are "
            f"made by: `git init && git add . && git commit -m start` ({error})"
        ) from error
    if top != project.resolve():
        raise ConfigError(
            f"the project is a folder of the Git repository {str(top)!r}; a study wants it to be "
            "one of its own"
        )
    status = git(project, "status", "--porcelain", "-uno").splitlines()
    changed = [line[3:] for line in status]
    # dvc.lock is a record of what was made; a study's own file is read here and not in its cells.
    changed = [path for path in changed if path != _LOCK and not path.startswith("studies/")]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"not committed: {', '.join(changed[:3])}{more}; commit or stash it, so that every "
            "cell is made by code and params that are on record"
        )
    return commit


def experiments(place: Path) -> list[str]:
    """Return the Git references of the finished experiments there, the newest first."""
    listed = git(
        place, "for-each-ref", "--sort=-committerdate", "--format=%(refname)", _EXPERIMENTS
    )
    return [ref for ref in listed.splitlines() if not ref.startswith(_NOT_RESULTS)]


def cache_of(project: Path) -> Path:
    """Return the folder of DVC's cache that the project uses."""
    return Path(_dvc(project, "cache", "dir"))


def git(place: Path, *words: str, **more: str) -> str:
    """Return what Git says there.

    Args:
        place: Folder of a repository.
        words: Of its command line.
        more: Environment of it.

    Raises:
        ConfigError: If it is not installed, or complains.
        InfrastructureError: If the disk is full.
    """
    return _said(["git", *words], place, **more)


def _dvc(place: Path, *words: str) -> str:
    return _said([sys.executable, "-m", "dvc", *words], place)


def _said(command: Sequence[str], place: Path, **more: str) -> str:
    # Where a hook of Git runs us, its variables name another repository.
    kept = {key: own for key, own in os.environ.items() if key not in _OF_A_HOOK}
    try:
        done = subprocess.run(
            command, cwd=place, env={**kept, **more}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{command[0]} is not installed, and studies want it") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        kind = InfrastructureError if "No space left" in said else ConfigError
        raise kind(f"{' '.join(command[:3])}: {said[-400:]}")
    return done.stdout.rstrip()  # of `git status`, a space at the beginning counts
