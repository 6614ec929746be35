"""Replay journals into MLflow as they grow: `python -m bigtransfer.track.shipper PROJECT WHAT`.

WHAT is a journal, or the folder of all stages of one DVC run: then one process tells of them all,
until DVC ends, because importing MLflow takes seconds.

One parent run stands for one run of the workflow; the first stage that executes creates it, the
stage `summarize` closes it. Stages are nested below. If the stage's process dies without a word,
its run becomes KILLED; a training that goes on later goes on in the same run.

While the server is away, this waits; what it sent without an answer is sent again. MLflow keeps a
point (key, time, step, value) once, so nothing is lost and nothing doubled.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from bigtransfer.errors import BigTransferError
from bigtransfer.retry import doubling, retry
from bigtransfer.storage import write_text
from bigtransfer.track.address import page_of_run
from bigtransfer.track.follower import SECONDS_BETWEEN_LOOKS, Entry, Follower
from bigtransfer.track.journal import GONE, LAST_STAGE, PAGE, SHIPPER_LOCK, unsent, wait_for
from bigtransfer.track.origin import Origin, is_alive
from bigtransfer.track.pods import (
    ENGINE,
    RETRY_TAG,
    begin_parent,
    earlier_attempt,
    end_former_parent,
    end_parent,
    is_gone,
    part_of,
)
from bigtransfer.track.runs import (
    earlier_training,
    known_points,
    log_dataset,
    open_client,
    open_experiment,
    parent_run,
    run_of_journal,
)
from bigtransfer.track.study_runs import is_outdated, may_end, replace_stage
from bigtransfer.track.tags import JOURNAL_TAG, KEY_TAG, PARENT_TAG, PART_TAG, STAGE_TAG

_SECONDS_BETWEEN_SAMPLES = 2
_SECONDS_AFTER_END = 30
"""How long a server that is away is waited for once the stage has ended."""
_LONGEST_PAUSE = 10.0
_PAUSES_FOR_A_FILE = (0.1, 0.2, 0.4, 0.8)
_PARAM_CHARACTERS = 500
_POINTS_AT_A_TIME = 900
_PARAMS_AT_A_TIME = 100
_T = TypeVar("_T")


def ship(project: Path, journal: Path) -> None:
    """Follow a journal to its end and tell MLflow all of it.

    Leaves `<journal>.done` behind and, on a server, `<journal>.run` with the address of the run; or
    `<journal>.failed` if MLflow refused, with a line for people where we have one.
    """
    finished, line = False, ""
    failed, page = journal.with_suffix(".failed"), journal.with_suffix(PAGE)
    page.unlink(missing_ok=True)
    try:
        page.write_text(_Shipment(project, journal).ship() or "", "utf-8")
        finished = True
    except Exception as error:
        line = str(error) if isinstance(error, BigTransferError) else ""
        journal.with_suffix(".log").write_text(line or traceback.format_exc())
        raise
    finally:
        failed.unlink(missing_ok=True)
        if finished:
            journal.with_suffix(".done").touch()
        else:
            write_text(failed, line)  # at once: whoever waits for it reads it


def ship_all(project: Path, folder: Path) -> None:
    """Ship every journal of a DVC run, one after another, until DVC has ended.

    Does nothing if another process is at it.
    """
    with (folder / SHIPPER_LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        origin: Origin | None = None
        while True:
            alive = origin is None or is_alive(origin.pid, origin.started)
            waiting = [
                journal
                for journal in unsent(folder)
                if journal.stat().st_size and not journal.with_suffix(".failed").exists()
            ]
            for journal in waiting:
                first, begun, _ = journal.read_text().partition("\n")
                if not begun:
                    continue  # it is just being opened
                origin = Origin(**json.loads(first)["origin"])
                with suppress(Exception):  # the reason stands beside the journal
                    ship(project, journal)
            if not waiting and not alive:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


class _Shipment:
    """One journal on its way."""

    def __init__(self, project: Path, journal: Path) -> None:
        self._project, self._journal = project, journal
        self._client = open_client(project)
        self._follower = Follower(journal)
        self._sent: dict[str, set[int]] = {}
        """Metric -> steps that the server has from before."""

    def ship(self) -> str | None:
        """Tell all; return the address of the run's page, if it has one."""
        with closing(self._follower):
            self._ship()
        return page_of_run(self._project, self._experiment, self._run)

    def _ship(self) -> None:
        chunks = iter(self._follower)
        start, *rest = next(chunks)
        self._start, self._origin = start, Origin(**start["origin"])
        with self._after_the_attempts_before():
            self._tell_all(rest, chunks)

    @contextmanager
    def _after_the_attempts_before(self) -> Iterator[None]:
        """Hold the block until earlier journals of the same task in this pod are told.

        A task that tries again in its pod begins while MLflow still hears of the try before.
        """
        if self._origin.engine != ENGINE:
            yield
            return
        name = self._start["stage"].replace("@", "-")
        with (self._journal.parent / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _tell_all(self, rest: list[Entry], chunks: Iterator[list[Entry]]) -> None:
        self._retried(self._open)
        self._monitor = _SystemMetrics(self._run)
        try:
            end = self._replay(rest) or next(filter(None, map(self._replay, chunks)))
        finally:
            self._monitor.finish()
        self._retried(lambda: self._close(end))

    def _open(self) -> None:
        self._experiment = open_experiment(self._project, self._client)
        self._parent = self._find_parent()
        known = run_of_journal(self._client, self._experiment, self._journal.stem)
        if known is None and (known := self._earlier_attempt()):
            self._take_over(known)
        if known is None:
            self._run = self._create_run()
        else:  # the answer was lost, this is sent again, or goes on with the attempt before
            self._run, self._sent = known, known_points(self._client, known)
        self._own = self._run
        self._client.set_terminated(self._run, "RUNNING")
        if self._origin.engine == ENGINE and not self._origin.above:
            begin_parent(self._client, self._parent)

    def _find_parent(self) -> str:
        commit = self._start["commit"]
        return parent_run(self._project, self._client, self._experiment, self._origin, commit)

    def _earlier_attempt(self) -> str | None:
        if self._origin.engine != ENGINE:
            return None
        part = part_of(self._start["command"])
        stage = self._start["stage"]
        return earlier_attempt(self._client, self._experiment, self._parent, stage, part)

    def _take_over(self, run: str) -> None:
        """Go on in a run that another journal began; repeated, it does no harm."""
        tags = {
            PARENT_TAG: self._parent,
            KEY_TAG: self._origin.key,
            RETRY_TAG: self._origin.attempt,
            JOURNAL_TAG: self._journal.stem,
        }
        for name, value in tags.items():
            if value:
                self._client.set_tag(run, name, value)

    def _create_run(self) -> str:
        start = self._start
        tags = {
            STAGE_TAG: start["stage"],
            KEY_TAG: self._origin.key,
            JOURNAL_TAG: self._journal.stem,
            PARENT_TAG: self._parent,
            "mlflow.source.git.commit": start["commit"],
            "mlflow.source.name": " ".join(start["command"]),
        }
        cell = self._origin.cell and not is_outdated(self._client, self._parent, self._origin)
        if cell:  # what a later try of it told is left
            replace_stage(
                self._client, self._experiment, self._parent, start["stage"], start["time"]
            )
        more = {PART_TAG: part_of(start["command"]), RETRY_TAG: self._origin.attempt}
        tags |= {name: value for name, value in more.items() if value}
        run = self._client.create_run(
            self._experiment, start_time=start["time"], tags=tags, run_name=start["stage"]
        )
        return str(run.info.run_id)

    def _replay(self, entries: list[Entry]) -> Entry | None:
        """Tell MLflow some entries; return the one that says how the stage ended, if it came."""
        waiting: list[Entry] = []
        for entry in entries:
            if entry["kind"] == "metrics":
                waiting.append(entry)
                continue
            self._send_points(waiting)
            waiting = []
            if entry["kind"] == "end":
                return entry
            self._retried(lambda: self._tell(entry))  # noqa: B023  # called before the next turn
        self._send_points(waiting)
        return None

    def _tell(self, entry: Entry) -> None:
        kind, run = entry["kind"], self._run
        if kind == "params":
            self._send_params(run, entry["values"])
        elif kind == "tags":
            for key, value in entry["values"].items():
                self._client.set_tag(run, key, value)
        elif kind == "dataset":
            log_dataset(
                self._client, run, entry["name"], entry["digest"], entry["path"], entry["profile"]
            )
        elif kind == "file":
            self._send_file(run, Path(entry["path"]))
        elif kind == "headline":
            self._send_headline(entry)
        elif kind == "training":
            self._join_earlier(entry["key"])

    def _send_params(self, run: str, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(run).data.params  # MLflow refuses to change one
        texts = {k: str(v)[:_PARAM_CHARACTERS] for k, v in values.items()}
        fresh = [Param(k, v) for k, v in texts.items() if k not in known]
        for first in range(0, len(fresh), _PARAMS_AT_A_TIME):
            self._client.log_batch(run, params=fresh[first : first + _PARAMS_AT_A_TIME])

    def _send_headline(self, entry: Entry) -> None:
        """Tell the run of the whole workflow; sent again, it is the same."""
        from mlflow.entities import Metric

        parent = self._parent
        points = [Metric(k, v, entry["time"], 0) for k, v in entry["metrics"].items()]
        self._client.log_batch(parent, metrics=points)
        self._send_params(parent, entry["params"])
        if entry["note"]:
            self._client.set_tag(parent, "mlflow.note.content", entry["note"])
        for path in entry["files"]:
            self._send_file(parent, Path(path))

    def _send_file(self, run: str, path: Path) -> None:
        """Send a file; one that is gone, because it was made anew or removed, is named at the end.

        DVC takes an output away for a moment, when it puts it into its cache.
        """
        try:
            retry(
                lambda: self._client.log_artifact(run, str(path)),
                may_help=lambda error: isinstance(error, FileNotFoundError),
                pauses=_PAUSES_FOR_A_FILE,
            )
        except FileNotFoundError:
            with (self._journal.parent / GONE).open("a", encoding="utf-8") as gone:
                gone.write(f"{str(path)!r} in the run of {self._start['stage']!r}\n")

    def _send_points(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, value, entry["time"], entry["step"])
            for entry in entries
            for name, value in entry["values"].items()
            if entry["step"] not in self._sent.get(name, ())
        ]
        for first in range(0, len(points), _POINTS_AT_A_TIME):
            some = points[first : first + _POINTS_AT_A_TIME]
            self._retried(lambda: self._client.log_batch(self._run, metrics=some))  # noqa: B023

    def _join_earlier(self, key: str) -> None:
        """Go on in the run of the same training that was interrupted, if there is one.

        May be repeated after any of its calls failed: what it found is noted last of all.
        """
        earlier = earlier_training(self._client, self._experiment, key, self._own)
        if earlier is None or not self._began_here(self._own):
            return
        sent = known_points(self._client, earlier)
        former = self._client.get_run(earlier).data.tags.get(PARENT_TAG)
        self._take_over(earlier)
        self._client.set_terminated(earlier, "RUNNING")
        self._client.delete_run(self._own)
        if former and former != self._parent:
            end_former_parent(self._client, self._experiment, former)
        self._run, self._sent = earlier, sent
        self._monitor.finish()
        self._monitor = _SystemMetrics(earlier)

    def _began_here(self, run: str) -> bool:
        """Say whether this journal began a run: otherwise it holds what others told."""
        return bool(self._client.get_run(run).info.start_time == self._start["time"])

    def _close(self, end: Entry) -> None:
        run = self._client.get_run(self._run)
        if run.data.tags.get(JOURNAL_TAG) == self._journal.stem:  # nobody goes on with it yet
            self._client.set_terminated(self._run, end["status"], end["time"])
            if self._origin.cell and is_outdated(self._client, self._parent, self._origin):
                self._client.delete_run(self._run)  # a later try of the cell has its own
        if self._origin.cell and not may_end(self._client, self._parent, self._origin):
            return
        if self._origin.above:
            return  # the task that runs it tells of its own end
        if self._origin.engine != ENGINE:
            _close_parent(self._client, self._journal, self._start["stage"], self._parent, end)
            return
        if is_gone(self._client, self._experiment, self._parent):
            self._parent = self._find_parent()
            self._client.set_tag(self._run, PARENT_TAG, self._parent)
        end_parent(self._client, self._experiment, self._parent)

    def _retried(self, action: Callable[[], _T]) -> _T:
        """Do it, again and again while the server is away and the stage goes on."""
        return retry(
            action,
            may_help=lambda error: (
                _is_away(error) and self._follower.seconds_since_end() <= _SECONDS_AFTER_END
            ),
            pauses=doubling(0.2, longest=_LONGEST_PAUSE),
        )


def _is_away(error: Exception) -> bool:
    """Say whether an error means that the server cannot be reached, or is in trouble."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, requests.RequestException | ConnectionError):
        return True
    if not isinstance(error, MlflowException):
        return False
    text = str(error)
    return "API request" in text and error.get_http_status_code() >= 500 or "is locked" in text


class _SystemMetrics:
    """MLflow's own sampling of processor, memory and network, into a run."""

    def __init__(self, run: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            run, sampling_interval=_SECONDS_BETWEEN_SAMPLES, samples_before_logging=1
        )
        self._monitor.start()

    def finish(self) -> None:
        self._monitor.finish()


def _close_parent(client: Any, journal: Path, stage: str, parent: str, end: dict[str, Any]) -> None:
    """End the parent run after a failure or after the last stage; forget what was shipped."""
    folder = journal.parent
    by_hand = folder.name.startswith("by-hand")
    finished = end["status"] == "FINISHED"
    if finished and stage != LAST_STAGE and not by_hand:
        return
    if finished and (stage == LAST_STAGE or by_hand):
        wait_for(folder, but=journal)  # by hand: of a task that runs stages of its own
    client.set_terminated(parent, end["status"], end["time"])
    if finished and not list(folder.glob("*.failed")):
        for old in folder.iterdir():
            if not old.name.startswith((journal.stem, SHIPPER_LOCK, GONE)):
                old.unlink(missing_ok=True)


if __name__ == "__main__":
    what = Path(sys.argv[2])
    try:
        (ship_all if what.is_dir() else ship)(Path(sys.argv[1]), what)
    except BigTransferError as refusal:
        sys.exit(refusal.exit_code)  # the line stands beside the journal
