"""DVC's queue of experiments, and what it lacks: who of those that run is still alive.

The only module that talks to DVC's Python: its command line says nothing of a queue that a program
could read. After `kill -9` of a worker or of the process that runs an experiment, DVC calls the
experiment "Running" for ever.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from bigtransfer.errors import ConfigError, InfrastructureError
from bigtransfer.storage import explained
from bigtransfer.storage.home import QUEUE, copies_of

State = Literal["queued", "running", "lost", "done"]
_SECONDS_TO_SAVE = 20.0
"""That a stage gets after SIGTERM: `pretrain.stop_seconds`, and a little."""
_SETUP_SECONDS = 200.0
"""That a worker may take to make or collect an experiment: DVC waits 180 for locks."""
_LOCKED_SECONDS = 60.0
_KILLED = re.compile(r"exited with (-\d+|130|137|143)\b")
"""What DVC says of a stage that a signal ended."""
_WORKER, _EXECUTOR = "queue-worker", "exec-run"


@dataclass(frozen=True)
class Entry:
    """An experiment in the queue."""

    name: str
    state: State
    """`lost`: begun, and nobody works on it any more; `done`: ended, well or not."""


class DvcQueue:
    """The queue of one repository."""

    def __init__(self, folder: Path) -> None:
        """Open it.

        Args:
            folder: The repository's.
        """
        from dvc.repo import Repo

        self._folder = folder.resolve()
        with _told():
            self._repo: Any = Repo(str(folder))
            self._queue: Any = self._repo.experiments.celery_queue
        if Path(self._repo.root_dir).resolve() != self._folder:
            raise ConfigError(f"{str(folder)!r} is no repository of DVC; remove it, and run again")
        self._not_seen: dict[str, float] = {}

    def put(self, name: str, overrides: Mapping[str, Any], targets: Sequence[str]) -> None:
        """Queue an experiment.

        Args:
            name: Of it.
            overrides: `section.param` -> value.
            targets: Stages.

        Raises:
            ConfigError: If DVC refuses.
            InfrastructureError: If the disk is full.
        """
        from dvc.exceptions import DvcException
        from dvc.lock import LockError as DvcLockError
        from scmrepo.exceptions import SCMError

        params = [f"++{key}={as_override(value)}" for key, value in overrides.items()]
        until = time.monotonic() + _LOCKED_SECONDS
        while True:
            try:
                with _quiet(), _inside(self._folder), explained(self._folder):
                    self._repo.experiments.run(
                        name=name, queue=True, params=params, targets=[*targets], allow_missing=True
                    )
                return
            except (DvcException, SCMError) as error:
                # A worker that makes or collects an experiment holds the repository for seconds.
                locked = isinstance(error, DvcLockError) or "lock" in type(error).__name__.lower()
                if not locked or time.monotonic() > until:
                    said = " ".join(str(error).split())
                    raise ConfigError(f"DVC does not queue {name}: {said}") from error
                time.sleep(1)

    def look(self) -> dict[str, Entry]:
        """Return what is in the queue, by name."""
        workers, executors = self._workers(), self._executors()
        with _told(), _quiet():
            done, queued = [*self._queue.iter_done()], [*self._queue.iter_queued()]
            active = [*self._queue.iter_active()]
        found = {entry.name: Entry(entry.name, "done") for entry, _ in done}
        for entry in active:
            alive = any(entry.stash_rev in line for line in executors.values())
            state: State = "running"
            if not workers or (not alive and self._absent_long(entry.stash_rev)):
                state = "lost"  # without a worker nobody takes up what its process makes
            if alive:
                self._not_seen.pop(entry.stash_rev, None)
            if state == "running" or found.get(entry.name) != Entry(entry.name, "running"):
                found[entry.name] = Entry(entry.name, state)
        return found | {entry.name: Entry(entry.name, "queued") for entry in queued}

    def start(self, devices: Sequence[str | None]) -> None:
        """See to it that there is a worker for each device.

        Args:
            devices: For each, the `CUDA_VISIBLE_DEVICES` that it gets; None: it sees all there is.
        """
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        for number, device in enumerate(devices, 1):
            if any(f"-{number}@" in line for line in self._workers().values()):
                continue
            visible = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
            node = f"dvc-exp-{self._own}-{number}@localhost"
            # DVC's own would fork this process, with its locks and its output. The first cleans up.
            words = [sys.executable, "-m", "dvc", "exp", "queue-worker", node]
            folder = Path(self._queue.wdir)
            with explained(folder):
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / f"worker-{number}.out").open("wb") as log:
                    subprocess.Popen(
                        [*words, *(["--clean"] if number == 1 else [])],
                        cwd=self._folder, env={**os.environ, "PATH": path, **visible},
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    )  # fmt: skip

    def drop(self, names: Sequence[str]) -> None:
        """Take experiments out of the queue; what still runs of one is ended first."""
        gone = set(names)
        with _told():
            active = [entry for entry in self._queue.iter_active() if entry.name in gone]
        for entry in active:
            self._end([pid for pid, line in self._executors().items() if entry.stash_rev in line])
        self.end_orphans()
        for entry in active:
            for _ in range(2):  # the first finds out that its process is gone, the second notes it
                with suppress(ConfigError), _told(), _quiet():
                    self._queue.kill([entry.name], force=True)
        with _told():
            known = {entry.name for entry in self._queue.iter_queued()}
            known |= {entry.name for entry, _ in self._queue.iter_done()}
        if present := sorted(gone & known):
            with suppress(ConfigError), _told(), _quiet():
                self._queue.remove(present)

    @property
    def is_busy(self) -> bool:
        """Say whether a worker or an experiment runs."""
        return bool(self._workers() or self._executors())

    def stop(self) -> None:
        """End the workers and what they run, which saves what it has; the queue stays."""
        self._end([*self._workers()])
        self._end([*self._executors()])
        self.end_orphans()

    def end_orphans(self) -> None:
        """End stages whose experiment's process is gone: they would hold what they work on."""
        copies = str(copies_of(self._folder)) + os.sep
        orphans = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                ours = any("components." in word for word in process.cmdline())  # and no shell
                if (
                    ours
                    and process.cwd().startswith(copies)
                    and not any(
                        _EXECUTOR in parent.cmdline() for parent in (process, *process.parents())
                    )
                ):
                    orphans.append(process.pid)
        self._end(orphans)

    def end_of(self, name: str) -> tuple[bool, str]:
        """Return whether an experiment that is done was killed, and the end of what it printed."""
        for entry, _ in self._queue.iter_done():
            if entry.name == name and (process := self._queue.proc.get(entry.stash_rev)):
                text = ""
                with suppress(OSError):
                    text = Path(process.stdout).read_text("utf-8", "replace")
                code = process.returncode
                killed = code is None or code < 0 or bool(_KILLED.search(text))
                return killed, "\n".join(text.splitlines()[-20:])
        return True, ""

    def _absent_long(self, rev: str) -> bool:
        """Say whether a process has not been there for so long that it is not about to be."""
        since = self._not_seen.setdefault(rev, time.monotonic())
        return time.monotonic() - since > _SETUP_SECONDS

    def _workers(self) -> dict[int, str]:
        return self._processes(_WORKER, f"dvc-exp-{self._own}-")

    @property
    def _own(self) -> str:
        """Return what DVC calls the workers of this repository by."""
        return hashlib.sha256(str(self._queue.wdir).encode()).hexdigest()[:6]

    def _executors(self) -> dict[int, str]:
        return self._processes(_EXECUTOR, f"{self._folder}{os.sep}")

    def _processes(self, word: str, mark: str) -> dict[int, str]:
        """Return pid -> command line of this repository's processes of one kind.

        A pid alone may be another program's by now.

        Args:
            word: Of the command.
            mark: What one of its words begins with: whose it is.
        """
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                words = process.cmdline()
                ours = word in words and any(own.startswith(mark) for own in words)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = " ".join(words)
        return found

    @staticmethod
    def _end(pids: Sequence[int]) -> None:
        """End processes and all below them; they get time to save."""
        whole: list[psutil.Process] = []
        for pid in pids:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                whole += [process, *process.children(recursive=True)]
        for process in whole:
            with suppress(psutil.Error):
                process.terminate()
        _, left = psutil.wait_procs(whole, timeout=_SECONDS_TO_SAVE)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_SECONDS_TO_SAVE)


def as_override(value: Any) -> str:
    """Return a value as an override of Hydra's spells it, so that its type stays."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_override, value))}]"
    if isinstance(value, str):
        # Backslashes count only before a quote: there, and at the end, each is written twice.
        inner = re.sub(r"(\\*)'", lambda found: 2 * found[1] + "\\'", value)
        return "'" + re.sub(r"\\+$", lambda found: 2 * found[0], inner) + "'"
    return json.dumps(value)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder: DVC takes the names of stages and files from there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _told() -> Iterator[None]:
    """Turn what DVC raises into one line.

    Raises:
        ConfigError: Of DVC and its Git.
        InfrastructureError: If the disk is full, or what was written when it was is damaged.
    """
    from dulwich.errors import ChecksumMismatch, FileFormatException
    from dulwich.file import FileLocked
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        with explained(Path.cwd()):
            yield
    except (DvcException, SCMError) as error:
        raise ConfigError(f"DVC's queue: {' '.join(str(error).split())}") from error
    except (FileLocked, FileFormatException, ChecksumMismatch) as error:
        raise InfrastructureError(
            f"the Git of DVC's queue: {type(error).__name__}: {error}; run the same again, and if "
            f"it stays, remove {str(QUEUE)!r}: what is finished is not in there alone"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the words of DVC and of its queue from the screen; what they raise is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
