"""Runs the cells of a study that are missing, in DVC's queue, and takes up what died.

The queue's own processes work on while this one is gone; run again, it finds them and waits.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError
from bigtransfer.progress import counted, duration
from bigtransfer.storage import free_bytes, lock, read_json
from bigtransfer.storage.home import EXPERIMENT_MARK, STUDIES, failure_file
from bigtransfer.study.cells import StudyCell
from bigtransfer.study.clone import Clone, require_clean
from bigtransfer.study.dvc_queue import DvcQueue, Entry
from bigtransfer.study.results import Results
from bigtransfer.study.states import CellState, Result

_SECONDS_BETWEEN_LOOKS = 3.0
_ENDED = re.compile(r"failed to reproduce '([^']+)'.* exited with (\d+)")
_ATTEMPTS = 3
"""Of a cell that was killed, or that says 75: try again."""
TRY_AGAIN = (InfrastructureError.exit_code, 4, 130, 143)
"""Exit codes that are nobody's fault: the infrastructure, a lock, a signal."""


@dataclass
class Told:
    """What is said on the way."""

    line: Callable[[str], None]
    finished: Callable[[StudyCell, Result], None] = lambda cell, result: None
    """Called once for each cell that is finished, now or before."""


@contextmanager
def held(project: Path, study: str) -> Iterator[None]:
    """Be the only one who works at a study of this project.

    Raises:
        LockError: If somebody is at it.
    """
    with lock(project / STUDIES / "lock", f"the studies of this project ({study})"):
        yield


def states_of(project: Path, cells: Sequence[StudyCell]) -> list[CellState]:
    """Return where each cell stands; nothing is begun, and nothing is waited for."""
    clone = Clone(project)
    entries = DvcQueue(clone.folder).look() if clone.is_there else {}
    clone.fetch(cell.name for cell in cells)
    results = Results(project)
    return [_state_of(project, cell, results.of(cell), entries.get(cell.name)) for cell in cells]


def _state_of(
    project: Path, cell: StudyCell, result: Result | None, entry: Entry | None
) -> CellState:
    if result and not result.mark:
        return CellState(cell, "finished", result)
    if entry and entry.state in ("queued", "running"):
        return CellState(cell, "queued" if entry.state == "queued" else "running", result)
    if failure := _failure(project, cell):
        code, message = failure
        if code not in TRY_AGAIN:
            return CellState(cell, "failed", result, message)
    return CellState(cell, "marked" if result else "missing", result)


def _failure(project: Path, cell: StudyCell) -> tuple[int, str] | None:
    """Return exit code and message of a cell's last failure, if any."""
    path = failure_file(project, cell.name)
    if not path.is_file():
        return None
    try:
        facts = read_json(path)
        code = int(facts["exit_code"])
        return code, f"{facts['stage']}: {' '.join(str(facts['message']).split())} (exit {code})"
    except (BigTransferError, KeyError, ValueError, TypeError):
        return 1, f"failed; {str(path)!r} cannot be read"


def _told_in(log: str) -> tuple[int, str] | None:
    """Return exit code and words of a stage that could not write down why it failed: a full disk.

    Args:
        log: The end of what DVC and its stages printed.
    """
    ended = _ENDED.findall(log)
    if not ended:
        return None
    stage, code = ended[-1]
    words = [line for line in log.splitlines() if line.startswith(f"{stage}: ")]
    return int(code), f"{words[-1] if words else stage} (exit {code})"


def _is(entry: Entry | None, state: str) -> bool:
    return entry is not None and entry.state == state


@dataclass
class Runner:
    """One `study run`."""

    project: Path
    cells: Sequence[StudyCell]
    devices: Sequence[str | None]
    """A worker for each: the `CUDA_VISIBLE_DEVICES` it gets; None: all there is."""
    told: Told
    _attempts: Counter[str] = field(default_factory=Counter)
    _began: dict[str, float] = field(default_factory=dict)
    _failed: dict[str, int] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)

    def run(self, *, retry: bool) -> dict[str, int]:
        """Run what is missing, to the end; return the cells that failed, and their exit codes.

        Args:
            retry: Whether cells that failed before are tried again.

        Raises:
            ConfigError: If the tree has changes, or cells failed before and `retry` is not asked.
            KeyboardInterrupt: After Ctrl-C, when what ran has saved what it has.
        """
        clone = Clone(self.project)
        self._queue = self._opened(clone)
        self._commit = clone.commit
        before = states_of(self.project, self.cells)
        failed = [one for one in before if one.state == "failed"]
        if failed and not retry:
            lines = "; ".join(f"{one.cell.title}: {one.failure}" for one in failed)
            raise ConfigError(
                f"{counted(len(failed), 'cell')} failed before ({lines}); mend it and say --retry"
            )
        if ready := sum(one.state == "finished" for one in before):
            self.told.line(f"  {counted(ready, 'cell')} finished before")
        for one in failed:
            failure_file(self.project, one.cell.name).unlink(missing_ok=True)
        self._queue.end_orphans()
        try:
            while not self._step(clone):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except KeyboardInterrupt:
            self.told.line("stopping: what runs saves what it has")
            self._queue.stop()
            raise
        return dict(self._failed)

    def _opened(self, clone: Clone) -> DvcQueue:
        """Return the queue, on the project's commit; what waits in it is of no other."""
        commit = require_clean(self.project)
        names = [cell.name for cell in self.cells]
        if clone.is_there:
            queue = DvcQueue(clone.folder)
            entries = queue.look()
            if clone.commit == commit and queue.is_busy:  # what runs, runs on
                queue.drop([name for name in names if _is(entries.get(name), "queued")])
                return queue
            queue.stop()
            clone.unlock()
            try:
                queue.drop([*entries])
            except InfrastructureError:  # the disk was full when it was last written, say
                clone.fetch(ref.rpartition("/")[2] for ref in clone.all_experiments())
                clone.remove()
        clone.refresh()
        return DvcQueue(clone.folder)

    def _step(self, clone: Clone) -> bool:
        """Look once, begin what is missing, and say whether nothing is left to wait for."""
        entries = self._queue.look()
        ended = {
            cell.name
            for cell in self.cells
            if cell.name not in self._done
            and (not (entry := entries.get(cell.name)) or entry.state == "done")
        }
        results = None
        if ended:
            clone.fetch(ended)
            results = Results(self.project)
        missing = []
        for cell in self.cells:
            if cell.name in self._done or cell.name in self._failed:
                continue
            entry = entries.get(cell.name)
            if entry and entry.state in ("queued", "running"):
                self._note(cell, entry)
                continue
            result = results.of(cell) if results else None
            if result and not result.mark:
                self._finish(cell, result)
            elif result and cell.name in self._attempts and self._is_new(result):
                self._fail(cell, f"{result.mark}, changed while it ran; run the study again", 2)
            elif result and cell.name not in self._attempts:
                missing.append(cell)  # made by other code or of other data
            elif not self._has_failed(cell, entry):
                missing.append(cell)
        at_work = {
            cell.upstream
            for cell in self.cells
            if (entry := entries.get(cell.name)) and entry.state in ("queued", "running")
        }
        begun = []
        for cell in missing:  # cells of one upstream training in turn: then it is trained once
            if cell.upstream not in at_work:
                at_work.add(cell.upstream)
                begun.append(cell)
        self._begin(clone, begun, [cell.name for cell in begun if cell.name in entries])
        waiting = len(self.cells) - len(self._done) - len(self._failed)
        if waiting:
            self._queue.start(self.devices[:waiting])
        return not waiting

    def _note(self, cell: StudyCell, entry: Entry) -> None:
        if entry.state == "running" and cell.name not in self._began:
            self._began[cell.name] = time.monotonic()

    def _finish(self, cell: StudyCell, result: Result) -> None:
        began = self._began.get(cell.name)
        took = f" {duration(time.monotonic() - began):>7}" if began else " " * 8
        scores = ", ".join(
            f"{name} {100 * median(own.values()):.1f}" for name, own in result.scores.items()
        )
        self._done.add(cell.name)
        if cell.name in self._attempts or began:
            self.told.line(
                f"  {cell.title:<52}{took}   upstream {100 * result.val_top1:.1f} %, {scores}"
            )
        _clear_state(self.project, cell)
        self.told.finished(cell, result)

    def _has_failed(self, cell: StudyCell, entry: Entry | None) -> bool:
        """Say whether a cell that has no result shall not be begun (again)."""
        failure, log = _failure(self.project, cell), ""
        if failure is None:
            done = _is(entry, "done")
            killed, log = self._queue.end_of(cell.name) if done else (True, "")
            failure = _told_in(log) or (1, "DVC ended without a result")
            if killed:
                failure = InfrastructureError.exit_code, "its process was killed"
        code, why = failure
        begun = cell.name in self._attempts or (entry is not None and entry.state == "done")
        if not begun or (code in TRY_AGAIN and self._attempts[cell.name] < _ATTEMPTS):
            if entry is not None and entry.state in ("lost", "done"):
                self.told.line(f"  {cell.title}: {why}; begun again, from where it stopped")
            return False
        self._fail(cell, why, code)
        if log:
            self.told.line(log)
        return True

    def _is_new(self, result: Result) -> bool:
        return self._is_of_commit(result.ref)

    def _is_of_commit(self, ref: str) -> bool:
        return self._commit in ref.replace("/", "")

    def _fail(self, cell: StudyCell, why: str, code: int) -> None:
        self._failed[cell.name] = code
        self.told.line(f"  {cell.title}: failed: {why}")

    def _begin(self, clone: Clone, cells: Sequence[StudyCell], stale: Sequence[str]) -> None:
        if not cells:
            return
        if stale:
            self._queue.drop(stale)
        results = Results(self.project)
        clone.reset(self._commit)
        for cell in cells:
            # DVC refuses a second experiment of a name on one commit; what it made is in its cache.
            clone.forget(ref for ref in results.refs(cell) if self._is_of_commit(ref))
            failure_file(self.project, cell.name).unlink(missing_ok=True)
            self._attempts[cell.name] += 1
            self._queue.put(cell.name, cell.overrides, cell.targets)


def _clear_state(project: Path, cell: StudyCell) -> None:
    """Remove the state that a finished cell's training kept (`components.pretrain`)."""
    for mark in (project / ".work").glob(f"*/*/{EXPERIMENT_MARK}"):
        with suppress(OSError):
            if mark.read_text("utf-8") == cell.name:
                shutil.rmtree(mark.parent, ignore_errors=True)


def remove(project: Path, study: str) -> int:
    """Remove all cells that a study ever had: out of the queue, DVC's experiments, why they failed.

    DVC's cache keeps what they made until `dvc gc`.

    Returns:
        How many there were.
    """
    clone, ours = Clone(project), re.compile(rf"{re.escape(study)}-[0-9a-f]{{12}}")
    names = set()
    if clone.is_there:
        queue = DvcQueue(clone.folder)
        names = {name for name in queue.look() if ours.fullmatch(name)}
        queue.drop(sorted(names))
    refs = [ref for ref in clone.all_experiments() if ours.fullmatch(ref.rpartition("/")[2])]
    clone.forget(refs)
    names |= {ref.rpartition("/")[2] for ref in refs}
    for path in (project / ".work" / "failures").glob(f"{study}-*.json"):
        if ours.fullmatch(path.stem):
            path.unlink(missing_ok=True)
    return len(names)


def require_room(project: Path, wanted: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        InfrastructureError: If there is less than that.
    """
    if (free := free_bytes(project)) < wanted:
        raise InfrastructureError(
            f"about {wanted / 1e9:.1f} GB are wanted and {free / 1e9:.1f} GB free where "
            f"{str(project)!r} lies; make room, or clean DVC's cache (`dvc gc --workspace "
            "--all-experiments`)"
        )
