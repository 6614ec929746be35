"""`dvc repro` for people: a line for each stage, with its time; all that is said goes to a log.

DVC and the stages write into a file, which is followed here: they go on undisturbed where this
process is killed, and the log is whole. A stage's bar goes straight to the terminal
(`bigtransfer.progress.TERMINAL`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bigtransfer.errors import BigTransferError
from bigtransfer.progress import TERMINAL, counted, duration
from bigtransfer.storage import as_json, explained, read_json, write_text
from bigtransfer.storage.home import STAGE_SECONDS

LOGS = Path(".work") / "log"
_LOGS_KEPT = 10
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_BETWEEN_SIGNS = 60.0
"""Without a terminal: of a stage that takes long, a line so often says how far it is."""
_LAST_LINES = 40
_WIDTH, _NAME = 110, 22
_RUNNING = re.compile(r"Running stage '(.+)':")
_UNCHANGED = re.compile(r"(?:Stage )?'(.+)' didn't change, skipping")
_CACHED = re.compile(r"Stage '(.+)' is cached - skipping run, checking out outputs")
_HOW_FAR = re.compile(r".+: [\d,]+ of [\d,]+ \S+, .+ left.*")
_OF_DVC = re.compile(
    r"ERROR: |WARNING: |Updating lock file |Generating lock file |Use `dvc push` |To enable auto "
    r"staging|To track the changes|\t(?:git|dvc) |Data and pipelines are up to date|$"
)


@dataclass
class Told:
    """What DVC and the stages have said so far."""

    log: Path
    """Where all of it is, from the project."""
    stage: str = ""
    """The one that runs."""
    last: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    """Its last lines, without DVC's."""
    errors: list[str] = field(default_factory=list)
    """DVC's own."""
    code: int = 0
    """Exit code of DVC."""


def repro(
    project: Path, command: Sequence[str], environment: dict[str, str], *, whole: bool
) -> Told:
    """Run `dvc repro` in the project; print a line for each stage that ran.

    Args:
        project: Folder of dvc.yaml.
        command: `dvc repro`, its targets with it.
        environment: Of it.
        whole: Whether all stages are asked for: only then can it be said how long it may take.

    Raises:
        StorageError: If its log cannot be written.
        InfrastructureError: If the disk is full.
        KeyboardInterrupt: After Ctrl-C, once the stage that ran has saved what it has.
    """
    with explained(project / LOGS):
        log = _new_log(project / LOGS)
        file = log.open("wb")
    environment = {**environment, "PYTHONUNBUFFERED": "1"}  # what is said stands in its order
    if sys.stderr.isatty():
        with suppress(OSError):  # a terminal that has no name here: then there are no bars
            environment[TERMINAL] = os.ttyname(sys.stderr.fileno())
    shown = _Shown(project, Told(LOGS / log.name), whole)
    with file:
        process = subprocess.Popen(
            command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    shown.begin()
    _follow(process, log, shown.line)
    shown.told.code = process.returncode
    shown.end()
    return shown.told


def _follow(process: subprocess.Popen[bytes], log: Path, tell: Callable[[str], None]) -> None:
    interrupted = False
    rest = b""
    with log.open("rb") as file:
        while True:
            try:
                ended = process.poll() is not None  # before the look: nothing comes after it
                *lines, rest = (rest + file.read()).split(b"\n")
                for line in lines:
                    tell(line.decode("utf-8", errors="replace"))
                if ended:
                    tell(rest.decode("utf-8", errors="replace"))
                    break
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            except KeyboardInterrupt:
                if interrupted:
                    process.kill()
                    raise
                interrupted = True
                print("\nstopping: the stage saves what it has", file=sys.stderr)
    if interrupted:
        raise KeyboardInterrupt


def _new_log(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("run-*.log"))[: -_LOGS_KEPT + 1]:
        old.unlink(missing_ok=True)
    return folder / f"run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


class _Shown:
    """Prints a line for each stage, and on a terminal the one that runs."""

    def __init__(self, project: Path, told: Told, whole: bool) -> None:
        self.told = told
        self._whole = whole
        self._file = project / STAGE_SECONDS
        self._seconds = _read(self._file)
        self._stages = _stages(project)
        self._left = {name: self._seconds.get(name, 0.0) for name in self._stages}
        self._began = self._sign = time.monotonic()
        self._skipped = self._done = 0
        self._cached = False

    def begin(self) -> None:
        """Say how long it may take, and from what that is known."""
        self._wait()
        if not self._whole or not self._stages:
            return
        self._clear()
        stages = counted(len(self._stages), "stage")
        if known := sum(self._left.values()):
            print(
                f"{stages}, about {duration(known)} by the times of their last runs here "
                f"({STAGE_SECONDS}) if nothing is up to date"
            )
        else:
            print(f"{stages} (dvc.lock), all of them for the first time here")
        self._wait()

    def line(self, text: str) -> None:
        """Take a line of the log."""
        if found := _RUNNING.fullmatch(text):
            self._finish()
            self._start(found[1])
        elif found := _CACHED.fullmatch(text):
            self._finish()
            self._start(found[1], cached=True)
        elif found := _UNCHANGED.fullmatch(text):
            self._finish()
            self._skipped += 1
            self._left.pop(found[1], None)
        elif text.startswith("> ") and not self.told.last:
            pass  # the line of the stage, long
        elif text.startswith("ERROR: "):
            self.told.errors.append(text.removeprefix("ERROR: "))
        elif _HOW_FAR.fullmatch(text):
            self._show_sign(text)
        elif not _OF_DVC.match(text):
            self.told.last.append(text)

    def _show_sign(self, text: str) -> None:
        now = time.monotonic()
        if now - max(self._began, self._sign) >= _SECONDS_BETWEEN_SIGNS:
            self._sign = now
            print(f"    {text}", flush=True)

    def end(self) -> None:
        """Say what is left to say of the stages."""
        if not self.told.code:
            self._finish()
            if self._skipped:
                print(f"  {counted(self._skipped, 'stage')} up to date")
            print(f"  all that was said: {self.told.log}")
        self._clear()

    def _start(self, name: str, cached: bool = False) -> None:
        self.told.stage, self._cached = name, cached
        self.told.last.clear()
        self._began = time.monotonic()
        self._wait()

    def _finish(self) -> None:
        """Print the line of the stage that has run."""
        told = self.told
        if not told.stage:
            return
        took = time.monotonic() - self._began
        note = "taken from DVC's cache" if self._cached else told.last[-1] if told.last else ""
        self._clear()
        line = f"  {told.stage:<{_NAME}} {duration(took):>6}   {' '.join(note.split())}".rstrip()
        print(line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…", flush=True)
        if not self._cached:
            self._seconds[told.stage] = round(took, 1)
            with suppress(BigTransferError):  # a full disk must not end the run
                write_text(self._file, as_json(self._seconds))
        self._left.pop(told.stage, None)
        self._done += 1
        told.stage = ""
        told.last.clear()

    def _wait(self) -> None:
        if sys.stdout.isatty():
            print(f"\r\x1b[K  {self.told.stage or 'DVC looks what is up to date'} …{self._rest()}",
                  end="", flush=True)  # fmt: skip

    def _rest(self) -> str:
        if not self._whole or not self._stages:
            return ""
        if left := sum(self._left.values()):
            return f"   {duration(left)} left at most, by the last times"
        number = min(self._done + self._skipped + 1, len(self._stages))
        return f"   {number} of {len(self._stages)}"

    @staticmethod
    def _clear() -> None:
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)


def _read(path: Path) -> dict[str, float]:
    with suppress(BigTransferError, ValueError, AttributeError):
        return {str(name): float(value) for name, value in read_json(path).items()}
    return {}


def _stages(project: Path) -> list[str]:
    """Return the stages that dvc.lock knows; none where there is no such file yet."""
    try:
        text = (project / "dvc.lock").read_text("utf-8")
    except (OSError, ValueError):
        return []
    return re.findall(r"^  ([\w@.-]+):$", text, re.M)
