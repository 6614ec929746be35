"""The journal of a stage: what happened, one JSON object a line, appended and never rewritten."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from bigtransfer.storage.home import home_of
from bigtransfer.track.address import quiet_environment
from bigtransfer.track.origin import cannot_tell_its_run, find_origin, git_commit, is_alive
from bigtransfer.track.pods import ENGINE

_SECONDS_TO_WAIT = 120
_SECONDS_TO_END = 10
_SECONDS_TO_WAIT_WHEN_KILLED = 10
_SHIPPER = ("-m", "bigtransfer.track.shipper")
PAGE = ".run"
"""Suffix of the file beside a journal that holds the address of its run."""
SHIPPER_LOCK = "shipper.lock"
"""File that the process which tells MLflow of a whole DVC run holds locked."""
GONE = "gone.log"
"""File beside the journals that names files which were gone before MLflow had them, a line each."""
LAST_STAGE = "summarize"
"""The stage that closes the run of the whole workflow."""


class Journal:
    """What a stage tells the outside world. Every method returns at once."""

    def __init__(self, project: Path, stage: str) -> None:
        origin = find_origin()
        if cannot_tell_its_run():
            print(
                f"{stage}: KFP_RUN_ID is empty, the pod lacks the label pipeline/runid: this task "
                "cannot tell its KFP run, and stands in MLflow as a run by hand",
                file=sys.stderr,
            )
        self._project = home_of(project)
        folder = self._project / ".work" / "track" / origin.key
        folder.mkdir(parents=True, exist_ok=True)
        # Under DVC the next stage may start at once; the last one waits for all journals.
        self._engine = origin.engine
        # The task that runs this one among others waits for all of them, too.
        together = origin.engine == "dvc" or origin.above
        self._waits = not together or stage == LAST_STAGE
        commit = git_commit(project)  # before the file is there: it is never seen empty for long
        self.path = folder / f"{time.time_ns()}-{stage.replace('@', '-')}.jsonl"
        self._file = self.path.open("a", encoding="utf-8")
        self._shipper: subprocess.Popen[bytes] | None = None
        self._is_shipped = False
        self._append(
            "start",
            stage=stage,
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            commit=commit,
            origin=vars(origin),
            command=sys.argv,
        )

    def ship(self) -> None:
        """Start the process that replays this journal into MLflow as it grows.

        One for all stages of a DVC run: if it is there already, it finds this journal by itself.
        """
        folder = self.path.parent
        together = self._engine == "dvc"
        self._is_shipped = True
        if together and _is_locked(folder / SHIPPER_LOCK):
            return
        what = folder if together else self.path
        with self.path.with_suffix(".log").open("wb") as log:
            self._shipper = subprocess.Popen(
                # Found by a relative PATH, its name is relative to the folder of this process.
                [os.path.abspath(sys.executable), *_SHIPPER, str(self._project), str(what)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._project,
                env=quiet_environment(),
                start_new_session=True,
            )

    def params(self, values: Mapping[str, object]) -> None:
        """Note the params of the stage."""
        self._append("params", values=values)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Note points of curves."""
        self._append("metrics", step=step, values=values)

    def training(self, key: str) -> None:
        """Note the fingerprint of a training: one that was interrupted goes on in its run."""
        self._append("training", key=key)

    def tags(self, values: dict[str, str]) -> None:
        """Note facts to search runs by."""
        self._append("tags", values=values)

    def dataset(self, name: str, digest: str, path: str, profile: Mapping[str, object]) -> None:
        """Note a dataset that this stage used, by digest."""
        self._append("dataset", name=name, digest=digest, path=path, profile=profile)

    def file(self, path: Path) -> None:
        """Note a small file to keep with the run."""
        self._append("file", path=str(path.resolve()))

    def headline(
        self,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, object] | None = None,
        note: str = "",
        files: Sequence[Path] = (),
    ) -> None:
        """Note what the run of the whole workflow shows.

        Args:
            metrics: Its figures.
            params: Its params.
            note: Its description, Markdown.
            files: Small ones to keep with it.
        """
        kept = [str(path.resolve()) for path in files]
        self._append("headline", metrics=metrics or {}, params=params or {}, note=note, files=kept)

    def close(self, status: str) -> None:
        """Note the end; wait for the shipper if no stage comes after.

        Args:
            status: `FINISHED`, `FAILED`, or `KILLED`: it will go on, and must end at once.
        """
        self._append("end", status=status)
        self._file.close()
        killed = status == "KILLED"
        # A pod takes its journal with it: whoever has a moment left there uses it.
        if not (self._is_shipped and self._waits) or (killed and self._engine != ENGINE):
            return
        wait_for(
            self.path.parent,
            seconds=_SECONDS_TO_WAIT_WHEN_KILLED if killed else _SECONDS_TO_WAIT,
        )
        _say_what_was_gone(self.path.parent / GONE)
        if self._shipper is not None and self._engine != "dvc":
            with suppress(subprocess.TimeoutExpired):
                self._shipper.wait(_SECONDS_TO_END)

    @property
    def run_url(self) -> str | None:
        """Return the address of this stage's run in MLflow; after `close`.

        None where no server is named, or where it did not take all.
        """
        page = self.path.with_suffix(PAGE)
        return page.read_text("utf-8") or None if page.is_file() else None

    def _append(self, kind: str, **values: Any) -> None:
        line = json.dumps({"kind": kind, "time": int(time.time() * 1000), **values}, default=str)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:  # a full disk: the training says so itself where it matters
            print(f"warning: the journal {str(self.path)!r} lacks a line: {error}", file=sys.stderr)


class SilentJournal(Journal):
    """The journal of a process beside the one that writes: nothing."""

    def __init__(self) -> None: ...

    def ship(self) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Do nothing."""

    @property
    def run_url(self) -> None:
        """Return None."""

    def _append(self, kind: str, **values: Any) -> None: ...


def _is_locked(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def unsent(folder: Path) -> list[Path]:
    """Return the journals of a folder that are not in MLflow yet, oldest first."""
    return sorted(p for p in folder.glob("*.jsonl") if not p.with_suffix(".done").exists())


def is_being_written(journal: Path) -> bool:
    """Say whether the process that writes a journal still lives."""
    first, begun, _ = journal.read_text("utf-8").partition("\n")
    if not begun:
        return False
    start = json.loads(first)
    return is_alive(start["pid"], start["started"])


def wait_for(folder: Path, but: Path | None = None, *, seconds: float = _SECONDS_TO_WAIT) -> None:
    """Wait until every journal of a folder is shipped; say in one line what could not be."""
    deadline = time.monotonic() + seconds
    while True:
        journals = [path for path in unsent(folder) if path != but]
        failed = [path for path in journals if path.with_suffix(".failed").exists()]
        waiting = [path for path in journals if path not in failed]
        if not waiting or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if failed or waiting:
        names = ", ".join(path.stem for path in failed + waiting)
        reasons = dict.fromkeys(path.with_suffix(".failed").read_text("utf-8") for path in failed)
        why = "".join(f": {reason}" for reason in reasons if reason)
        print(
            f"warning: MLflow did not take all that was logged ({names}){why}; the results are not "
            f"touched by this, and the journal is kept in {str(folder)!r} with the reason. "
            "`bigtransfer sync` sends it again",
            file=sys.stderr,
        )


def _say_what_was_gone(file: Path) -> None:
    try:
        lines = file.read_text("utf-8").splitlines()
        file.unlink()
    except FileNotFoundError:
        return
    for line in lines:
        print(f"warning: MLflow has no copy of {line}: the file was gone before", file=sys.stderr)
